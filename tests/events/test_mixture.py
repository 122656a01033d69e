"""Event clips of many sizes, durations, frame rates and captions: those of configs/sft_mix.py."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from vpjax.data.clips import read_clips
from vpjax.data.sampling import Sampling
from vpjax.data.video import probe, read_frames
from vpjax.events import text as event_text
from vpjax.events.clips import EventSpec, describe, make_event_clips, tokenizer_sentences
from vpjax.events.drawing import EVENTS, draw, encode
from vpjax.events.text import caption_variants, event_of
from vpjax.recipes import sft_mix

CONFIG = sft_mix.get_config()
SPEC = EventSpec(**{field.name: CONFIG.events[field.name] for field in dataclasses.fields(EventSpec)})
TASKS = dataclasses.replace(SPEC, choice=1.0, order=1.0, grounding=1.0)
SAMPLING = Sampling.of(CONFIG.data)


def read_as_trained(path):
    return read_frames(path, SAMPLING)


# Two frames that show different events differ in more pixels than these (measured: 38 and more, of a shape
# that shrinks or vanishes), and two that show none in fewer (measured: up to 16, by compression).
CLEARLY = 25


def differing_pixels(first, second):
    """The number of pixels of each frame that clearly differ: by more than 40 grey levels in some channel."""
    return (np.abs(first.astype(np.float32) - second).max(-1) > 40).sum((1, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "rate"), zip(SPEC.sizes, itertools.cycle(SPEC.rates), strict=False), ids=str
)
def test_every_event_is_seen_at_the_models_rate_and_size(size, rate, tmp_path):
    """Nine files of one scene, with each kind of event and with none, read as for training: the frames that
    were taken in the event's span, and no others, show which event it is. For each size and each frame rate,
    the shortest and the longest events."""
    for length in (min(SPEC.lengths), max(SPEC.lengths)):
        formats = dict(sizes=(size,), rates=(rate,), lengths=(length,), seconds=(1.0, 2.0))
        spec = dataclasses.replace(SPEC, seed=rate, **formats)
        _, scene = describe(spec, "train", length)
        (event,) = scene.events
        shown = {}
        for kind in (*EVENTS, "nothing"):
            events = () if kind == "nothing" else (dataclasses.replace(event, kind=kind),)
            frames = draw(dataclasses.replace(scene, events=events), noise=spec.noise)
            path = tmp_path / f"{rate}-{length}-{kind}.mp4"
            path.write_bytes(encode(frames, fps=rate, crf=spec.crf))
            shown[kind] = read_as_trained(path)
        times = shown["nothing"].times
        number = np.round(times * rate)  # of the frame in the file
        inside = (number >= event.start) & (number < event.end)
        # An even number of frames is spread over the clip: they may lie more than an eighth second apart.
        apart = 8 * len(frames) / rate / len(times)
        assert length // apart <= inside.sum() <= length + 1 and inside.any() and not inside.all()
        for first, second in itertools.combinations(shown, 2):
            differing = differing_pixels(shown[first].frames, shown[second].frames)
            assert (differing[inside] > CLEARLY).all(), (rate, length, first, second)
            assert (differing[~inside] < CLEARLY).all(), (rate, length, first, second)


def test_events_last_as_long_as_they_say():
    """At least their eighths of a second and less than a frame more; with a quarter of a second without an
    event around each; and every eighth of a second that an event covers shows it."""
    for index in range(1200):
        clip, scene = describe(TASKS, "train", index)
        lengths = [event.length / scene.fps for event in scene.events]
        assert clip.extra["length"] / 8 <= lengths[0] < clip.extra["length"] / 8 + 1 / scene.fps
        edges = np.array([0, *itertools.chain(*clip.spans), scene.frames / scene.fps]).reshape(-1, 2)
        assert (edges[:, 1] - edges[:, 0] >= 0.25 - 1e-9).all()
        on_screen = np.arange(int(8 * scene.frames / scene.fps)) * scene.fps // 8  # frames at 8 per second
        for event, length in zip(scene.events, lengths, strict=True):
            seen = ((on_screen >= event.start) & (on_screen < event.end)).sum()
            assert seen >= int(8 * length) >= 1


def test_formats_are_drawn_evenly():
    """Each size, rate and number of sentences equally often, whatever the event; durations log-uniform:
    within four deviations. Clips about order have room for two events."""
    count = 2400
    clips = [describe(SPEC, "train", index) for index in range(count)]
    drawn = {
        "size": [(scene.height, scene.width) for _, scene in clips],
        "rate": [scene.fps for _, scene in clips],
        "sentences": [clip.answer.count(". ") for clip, _ in clips],
    }
    for values, options in zip(
        drawn.values(), (SPEC.sizes, SPEC.rates, range(SPEC.details[0], SPEC.details[1] + 1)), strict=True
    ):
        assert set(values) == set(options)
        share = 1 / len(options)
        deviation = np.sqrt(share * (1 - share) / count)
        assert all(abs(values.count(option) / count - share) < 4 * deviation for option in options)
        of_kind = count // len(EVENTS)
        for kind in range(len(EVENTS)):
            among = [values[index] for index in range(kind, count, len(EVENTS))]
            counts = [among.count(option) for option in options]
            assert max(abs(n / of_kind - share) for n in counts) < 4 * deviation * np.sqrt(len(EVENTS))
    seconds = np.array([scene.frames / scene.fps for _, scene in clips])
    half_frame = 0.5 / min(SPEC.rates)
    assert 1 <= seconds.min() < 1.1 and 7.9 < seconds.max() <= 8 + half_frame
    for share in (0.25, 0.5, 0.75):
        below = np.mean(seconds < 8**share)
        assert abs(below - share) < 0.04 + 0.02  # four deviations, and what rounding to frames moves
    two = [s for c, s in (describe(TASKS, "train", i) for i in range(600)) if c.task == "order"]
    assert min(len(scene.events) for scene in two) == 2
    assert min(scene.frames / scene.fps for scene in two) >= 3 * 0.25 + 2 * 0.125


def test_a_size_changes_nothing_but_the_size():
    for index in range(20):
        clip, scene = describe(EventSpec(), "train", index)
        other_clip, other = describe(EventSpec(sizes=((60, 80),)), "train", index)
        assert other == dataclasses.replace(scene, height=60, width=80) and other_clip == clip


def test_shapes_keep_their_proportions():
    """A square covers as much of the shorter side's square in every size, and is as wide as it is high."""
    for size in SPEC.sizes:
        spec = dataclasses.replace(SPEC, sizes=(size,), flicker=0.0, radius=(0.15, 0.15))
        scene = next(s for _, s in (describe(spec, "train", i) for i in range(99)) if s.shape == "square")
        first = draw(scene, noise=0.0)[0].astype(int)
        coloured = np.ptp(first, axis=-1) > 60
        side = 2 * 0.9 * 0.15 * min(size)
        assert abs(coloured.any(0).sum() - side) < 2 and abs(coloured.any(1).sum() - side) < 2  # pixels


def test_further_sentences_are_true():
    """Each against the clip's pixels, without noise."""
    spec = dataclasses.replace(SPEC, details=(5, 5))
    for index in range(60):
        clip, scene = describe(spec, "heldout", index)
        frames = draw(scene, noise=0.0).astype(int)
        seconds = len(frames) / scene.fps
        half = re.search(r"in ([\w ]+) half", clip.answer)[1]
        assert half == ("the first" if clip.spans[0][0] < seconds / 2 else "the second")
        assert clip.degraded_answer.count(".") == clip.answer.count(".")
        assert "in neither half" in clip.degraded_answer
        places = re.search(
            r"in the (\w+ \w+) quarter of the picture, at the end in the (\w+ \w+)", clip.answer
        )
        for frame, place in ((frames[0], places[1]), (frames[-1], places[2])):
            y, x = (np.mean(axis) for axis in np.nonzero(np.ptp(frame, axis=-1) > 60))
            upper, left = y < frame.shape[0] / 2, x < frame.shape[1] / 2
            assert place == f"{'upper' if upper else 'lower'} {'left' if left else 'right'}"
        grey = np.median(frames, axis=(1, 2, 3))
        usual = np.median(grey)
        light = {"darker": grey.min() < usual - 5, "brighter": grey.max() > usual + 5}
        light["is the same throughout"] = not any(light.values())
        assert {words for words, holds in light.items() if holds} == {w for w in light if w in clip.answer}
        height, width = frames.shape[1:3]
        outline = {"wider than high": width > height, "higher than wide": width < height}
        outline["as wide as high"] = width == height
        assert [words for words, holds in outline.items() if holds] == [
            w for w in outline if w in clip.answer
        ]
        assert abs(float(re.search(r"about (\d) s\.", clip.answer)[1]) - seconds) <= 0.5
        assert ("nearly black" in clip.answer) == (usual < 55)
        assert clip.answer.endswith("background.") and f"this one is {clip.extra['colour']} on" in clip.answer


def test_longer_captions_name_one_event():
    for index in range(480):
        clip, scene = describe(SPEC, "train", index)
        kind, phrase = clip.extra["event"], clip.keywords[0].text
        assert event_of(clip.answer) == kind and clip.answer.count(phrase) == 1
        variants = caption_variants(clip.answer)
        assert [event_of(variant) for variant in variants] == list(EVENTS)
        assert clip.answer in variants
        asked = re.search(r"Use (\d) sentences", clip.question)
        assert clip.answer.count(".") == (int(asked[1]) if asked else 1)
    words = {word for detail in event_text.DETAILS for word in re.findall(r"\w+", detail.lower())}
    assert not words & set(event_text.KIND_OF_WORD)


def test_pairs_are_one_file_but_for_the_event(tmp_path):
    """Two files of a pair, as they are decoded for training."""
    spec = dataclasses.replace(SPEC, paired=True, seed=5)
    clips = read_clips(make_event_clips(spec, tmp_path, {"heldout": 24})["heldout"])
    for place in range(12):
        first, second = clips[2 * place : 2 * place + 2]
        texts = [clip.keywords[0].text for clip in (first, second)]
        assert texts[0] != texts[1] and first.answer.replace(*texts) == second.answer
        assert first.question == second.question and first.spans == second.spans
        one, other = read_as_trained(first.video), read_as_trained(second.video)
        np.testing.assert_array_equal(one.times, other.times)
        ((start, end),) = first.spans
        inside = (one.times > start - 1e-3) & (one.times < end - 1e-3)
        differing = differing_pixels(one.frames, other.frames)
        assert inside.any() and (differing[inside] > CLEARLY).all() and (differing[~inside] < CLEARLY).all()


def test_files_are_what_their_scenes_say(tmp_path):
    file = make_event_clips(SPEC, tmp_path, {"train": 12})["train"]
    for index, clip in enumerate(read_clips(file)):
        _, scene = describe(SPEC, "train", index)
        info = probe(clip.video)
        assert (info.height, info.width, info.frames) == (scene.height, scene.width, scene.frames)
        assert abs(info.fps - scene.fps) < 1e-6


def test_a_prior_and_unseen_pairs_hold_in_a_mixture():
    seen = {split: set() for split in ("train", "unseen")}
    for split, pairs in seen.items():
        for index in range(480):
            clip, _ = describe(TASKS, split, index)
            pairs.add((clip.extra["event"], clip.extra["shape"]))
    assert len(seen["train"]) == 16 and len(seen["unseen"]) == 8 and not seen["train"] & seen["unseen"]
    tied = [describe(dataclasses.replace(SPEC, prior=1.0), "train", index)[0].extra for index in range(240)]
    assert len({(extra["event"], extra["colour"]) for extra in tied}) == len(EVENTS)


def test_the_tokenizer_sees_every_word():
    """Also those of the rarest sentences."""
    words = {word for text in tokenizer_sentences(SPEC) for word in re.findall(r"\w+", text)}
    spec = dataclasses.replace(TASKS, seed=9)
    needed = [describe(spec, "heldout", index)[0] for index in range(600)]
    texts = [text for clip in needed if clip.task != "grounding" for text in (clip.question, clip.answer)]
    assert {word for text in texts for word in re.findall(r"\w+", text)} <= words


def test_two_events_of_a_short_clip():
    spec = EventSpec(seconds=(1.0, 1.0), rates=(10,), caption=0.0, order=1.0)
    for index in range(30):
        _, scene = describe(spec, "train", index)
        first, second = scene.events
        assert first.start >= 3 and second.start - first.end >= 3
        assert scene.frames - second.end >= 3
