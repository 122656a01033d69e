"""The event clips: their grammar, their frames after decoding, hints at the event, and their files."""

import collections
import dataclasses
import itertools
import json
import re

import numpy as np
import pytest

from vpjax.data.clips import read_clips
from vpjax.data.sampling import Sampling
from vpjax.data.video import read_frames
from vpjax.events import clips as events
from vpjax.events import text as event_text
from vpjax.events.clips import EventSpec, describe, make_event_clips, predicted_event, tokenizer_sentences
from vpjax.events.drawing import COLOURS, DIRECTIONS, EVENTS, SHAPES, Event, boxes, draw, encode, opposite
from vpjax.events.folder import SENTENCES, kept_sentences
from vpjax.events.long import HATCHINGS
from vpjax.events.text import event_of, events_named, says_nothing_happens
from vpjax.types import UserError

SPEC = EventSpec()
MIXED = EventSpec(choice=1, order=1, grounding=1)
JOINT = EventSpec(caption=0, grounding=1, tracking=1, grounded=1, tags=True)  # VideoChat-R1's tasks


def drawn(scene, **changes):
    return draw(dataclasses.replace(scene, **changes), noise=SPEC.noise).astype(np.float32)


def clips_of(spec, count, split="train"):
    return [describe(spec, split, index)[0] for index in range(count)]


def test_every_caption_names_its_event():
    for (pattern, phrase_index), kind in itertools.product(event_text.CAPTIONS, EVENTS):
        for colour, shape, direction in itertools.product(COLOURS, SHAPES, DIRECTIONS):
            phrase = event_text.PHRASES[kind][phrase_index]
            caption = pattern.format(colour=colour, shape=shape, direction=direction, event=phrase)
            assert event_of(caption) == kind and phrase in caption
    assert set(event_text.PHRASES) == set(EVENTS) and set(event_text.HATCHED) == set(HATCHINGS)
    assert list(event_text.EVENT_WORDS) == [*event_text.PHRASES, *event_text.HATCHED]


def test_articles_fit_their_words():
    answers = {clip.answer for clip in clips_of(SPEC, 400)}
    assert any(re.search(r"\b[Aa]n orange", answer) for answer in answers)
    assert not any(re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", answer) for answer in answers)


def test_an_event_is_named_by_whole_words_and_alone():
    words = [word for line in event_text.EVENT_WORDS.values() for word in line.split()]
    assert len(set(words)) == len(words)
    assert event_of("It SPINS!") == "spin"
    assert event_of("A red square moves left.") is None
    assert event_of("a springboard, outgrown and unsplit") is None
    assert event_of("it spins or it grows") is None
    assert event_of("it spins and rotates") == "spin"
    assert events_named("it spins, grows and rotates") == ("grow", "spin")
    for phrase in event_text.NOTHING:
        assert not events_named(phrase) and says_nothing_happens(f"It {phrase}.")
    families = [phrases for family in event_text.FAMILIES for phrases in family.values()]
    phrases = itertools.chain(*families, event_text.DETAILS)
    assert not any(says_nothing_happens(phrase) for phrase in phrases)


def test_captions_begin_so_that_one_phrase_is_right():
    # Captions with different phrases for the event already differ before it.
    words = dict(colour="red", shape="cross", direction="left", event="")
    starts = [(pattern.partition("{event}")[0].format(**words), i) for pattern, i in event_text.CAPTIONS]
    for (first, i), (second, j) in itertools.combinations(starts, 2):
        assert i == j or not (first.startswith(second) or second.startswith(first))


def test_sentences_are_drawn_once(tmp_path):
    """And then read: the same ones, in their order. A damaged file is named."""
    drawn = kept_sentences(tmp_path / "clips", lambda: iter(["It spins.", "Größer \u2192"]))
    assert drawn == ["It spins.", "Größer \u2192"]
    assert kept_sentences(tmp_path / "clips", lambda: pytest.fail("drawn again")) == drawn
    file = tmp_path / "clips" / SENTENCES
    file.write_bytes(file.read_bytes()[:9])
    with pytest.raises(UserError, match=f"{SENTENCES}: damaged .* delete it"):
        kept_sentences(tmp_path / "clips", list)


def test_tokenizer_sentences_hold_the_grammar():
    words = {word for text in tokenizer_sentences(SPEC) for word in re.findall(r"\w+", text)}
    grammar = [
        *itertools.chain(*event_text.PHRASES.values(), event_text.NOTHING),
        *COLOURS,
        *SHAPES,
        *DIRECTIONS,
        *event_text.QUESTIONS,
        *event_text.OPTION_LETTERS,
    ]
    assert {word for text in grammar for word in re.findall(r"\w+", text)} <= words


@pytest.mark.parametrize("kind", EVENTS)
def test_every_event_survives_compression(kind, tmp_path):
    """A file keeps at least three quarters of the change that an event is, in each frame of its span and in
    no other, also where it lasts one frame."""
    place = EVENTS.index(kind)
    for split, length in itertools.product(("train", "unseen"), range(len(SPEC.lengths))):
        clip, scene = describe(SPEC, split, place + len(EVENTS) * length)
        assert clip.extra["event"] == kind and clip.extra["length"] == SPEC.lengths[length]
        path = tmp_path / f"{split}{length}.mp4"
        path.write_bytes(encode(drawn(scene).astype(np.uint8), fps=scene.fps, crf=SPEC.crf))
        video = read_frames(path, Sampling(frames=scene.frames), size=(scene.height, scene.width))
        np.testing.assert_allclose(video.times, np.arange(16) / 8, atol=1e-6)
        quiet = drawn(scene, events=())
        change, kept = drawn(scene) - quiet, video.frames - quiet
        ((start, end),) = clip.spans
        inside = (video.times >= start - 1e-6) & (video.times < end - 1e-6)
        assert inside.sum() == clip.extra["length"]
        for frame in np.flatnonzero(inside):
            assert np.sum(kept[frame] * change[frame]) > 0.75 * np.sum(change[frame] ** 2)
        assert not change[~inside].any()
        assert np.abs(kept[~inside]).mean() < 4  # grey levels; the noise alone is 3


def test_colours_survive_compression(tmp_path):
    """In every frame of a file, the shape's mean colour is nearer to its own than to any other colour."""
    spec = EventSpec(eventless=1.0, flicker=0.0)
    palette = np.array(list(COLOURS.values()))
    _, scene = describe(spec, "train", 0)
    for number, colour in enumerate(COLOURS):
        scene = dataclasses.replace(scene, colour=colour)
        path = tmp_path / f"{colour}.mp4"
        path.write_bytes(encode(drawn(scene).astype(np.uint8), fps=scene.fps, crf=spec.crf))
        frames = read_frames(path, Sampling(frames=scene.frames), size=(scene.height, scene.width)).frames
        coloured = np.ptp(draw(scene, noise=0.0).astype(int), axis=-1) > 60
        for frame, mask in zip(frames, coloured, strict=True):
            distances = np.linalg.norm(palette - frame[mask].mean(0), axis=1)
            own = distances[number]
            assert own < 0.6 * np.delete(distances, number).min(), (colour, distances)


def test_flips_go_to_the_other_side_of_the_colour_wheel():
    for colour in COLOURS:
        assert opposite(opposite(colour)) == colour
        distance = list(COLOURS).index(opposite(colour)) - list(COLOURS).index(colour)
        assert abs(distance) == 4


@pytest.mark.parametrize("shape", SHAPES)
def test_events_look_different_from_one_another(shape):
    scene = dataclasses.replace(describe(SPEC, "train", 0)[1], shape=shape, flickers=())
    pictures = {kind: drawn(scene, events=(Event(kind, 4, 1),))[4] for kind in EVENTS}
    pictures["nothing"] = drawn(scene, events=())[4]
    for first, second in itertools.combinations(pictures, 2):
        changed = (np.abs(pictures[first] - pictures[second]).max(-1) > 40).sum()
        assert changed > 25, (first, second)  # pixels


@pytest.mark.slow
def test_nothing_but_the_video_tells_the_event():
    """Pearson's chi-square of the event against all other data of a clip: within four deviations."""
    clips = clips_of(SPEC, 4800)
    assert set(collections.Counter(clip.extra["event"] for clip in clips).values()) == {600}
    cells = collections.Counter((clip.extra["event"], clip.extra["length"]) for clip in clips)
    assert set(cells.values()) == {200} and len(cells) == len(EVENTS) * len(SPEC.lengths)
    for feature in (
        lambda clip: clip.question,
        lambda clip: clip.extra["colour"],
        lambda clip: clip.extra["direction"],
        lambda clip: clip.extra["flicker"],
        lambda clip: (clip.answer.split()[0], clip.extra["colour"]),
        lambda clip: round(clip.spans[0][0] * 8),
    ):
        values = sorted({feature(clip) for clip in clips})
        table = np.zeros((len(EVENTS), len(values)))
        for clip in clips:
            table[EVENTS.index(clip.extra["event"]), values.index(feature(clip))] += 1
        expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        assert np.sum((table - expected) ** 2 / expected) < freedom + 4 * np.sqrt(2 * freedom)


def test_a_prior_ties_the_colour_to_the_event():
    """A prior of 1 tells the event by the colour alone, one of half in half of the clips and by chance."""
    assert {predicted_event(colour) for colour in COLOURS} == set(EVENTS)
    for clip in clips_of(EventSpec(prior=1.0), 240):
        assert predicted_event(clip.extra["colour"]) == clip.extra["event"]
    half = clips_of(EventSpec(prior=0.5), 2400)
    share = np.mean([predicted_event(clip.extra["colour"]) == clip.extra["event"] for clip in half])
    assert abs(share - (0.5 + 0.5 / len(COLOURS))) < 0.04  # four deviations of .01


def test_the_truth_of_degraded_videos_stands_in_the_events_place():
    """The caption with another phrase and no event, for captions only."""
    for clip in clips_of(MIXED, 400):
        if clip.task != "caption":
            assert clip.degraded_answer == ""
            continue
        phrase = clip.keywords[0].text
        index = event_text.PHRASES[clip.extra["event"]].index(phrase)
        assert clip.degraded_answer == clip.answer.replace(phrase, event_text.NOTHING[index])
        assert not events_named(clip.degraded_answer) and says_nothing_happens(clip.degraded_answer)
        assert not says_nothing_happens(clip.answer)


def test_clips_without_an_event_leave_the_others_as_they_are():
    """They have the scene of the clip that they replace, without its event."""
    some, without = dataclasses.replace(MIXED, eventless=0.3), 0
    captions = 0
    for index in range(1200):
        (usual, scene), (clip, other) = (describe(spec, "train", index) for spec in (MIXED, some))
        captions += usual.task == "caption"
        if clip.extra["event"]:
            assert (clip, other) == (usual, scene)
            continue
        without += 1
        assert clip.task == "caption" and clip.answer == usual.degraded_answer
        assert (clip.keywords, clip.spans, clip.degraded_answer, clip.extra["length"]) == ((), (), "", 0)
        assert other == dataclasses.replace(scene, events=())
    assert abs(without / captions - 0.3) < 0.11  # four deviations for about 300 captions
    assert not any(clip.extra["event"] for clip in clips_of(EventSpec(eventless=1.0), 48))


def test_unseen_pairs_are_unseen():
    pairs = {
        split: {(clip.extra["event"], clip.extra["shape"]) for clip in clips_of(MIXED, 480, split)}
        for split in events.SPLITS
    }
    assert pairs["train"] == pairs["heldout"] and len(pairs["train"]) == 16
    assert pairs["unseen"] == set(itertools.product(EVENTS, SHAPES)) - pairs["train"]


def test_splits_and_seeds_draw_other_scenes():
    scenes = [describe(SPEC, split, 0)[1] for split in events.SPLITS] + [
        describe(EventSpec(seed=1), "train", 0)[1]
    ]
    assert len({scene.noise for scene in scenes}) == len(scenes)


def test_pairs_differ_only_in_the_event():
    spec = dataclasses.replace(MIXED, paired=True, grounding=0.0)
    tasks = set()
    for place in range(48):
        first, scene = describe(spec, "heldout", 2 * place)
        second, second_scene = describe(spec, "heldout", 2 * place + 1)
        tasks.add(first.task)
        assert first.extra["event"] != second.extra["event"]
        assert first.answer != second.answer
        for field in ("question", "task", "choices", "spans"):
            assert getattr(first, field) == getattr(second, field)
        assert first.extra | dict(event="") == second.extra | dict(event="")
        assert dataclasses.replace(scene, events=()) == dataclasses.replace(second_scene, events=())
        changed = (drawn(scene) != drawn(second_scene)).any((1, 2, 3))
        during = {frame for event in scene.events for frame in range(event.start, event.end)}
        assert set(np.flatnonzero(changed)) == during
    assert tasks == {"caption", "choice", "order"}


def test_tasks_are_asked_and_answered():
    clips = [describe(MIXED, "train", index) for index in range(1200)]
    count = collections.Counter(clip.task for clip, _ in clips)
    assert set(count) == {"caption", "choice", "order", "grounding"}
    assert all(abs(number - 300) < 60 for number in count.values())  # four deviations of 15
    letters = collections.Counter()
    for clip, scene in clips:
        kinds = [event.kind for event in scene.events]
        assert [keyword.lemma for keyword in clip.keywords] == kinds and kinds[0] == clip.extra["event"]
        assert [keyword.spans for keyword in clip.keywords] == [(span,) for span in clip.spans]
        assert all(keyword.text in clip.answer + clip.question for keyword in clip.keywords)
        assert all(event_of(keyword.text) == keyword.lemma for keyword in clip.keywords)
        match clip.task:
            case "choice":
                letter, right = re.fullmatch(r"\(([A-D])\) (.*)", clip.answer).groups()
                letters[letter] += 1
                assert clip.choices["ABCD".index(letter)] == right and event_of(right) == kinds[0]
                assert len({event_of(choice) for choice in clip.choices}) == 4
                assert all(f"({x}) {c}" in clip.question for x, c in zip("ABCD", clip.choices, strict=True))
            case "order":
                assert len(set(kinds)) == 2 and clip.spans[0][1] + 2 / 8 <= clip.spans[1][0]
                assert event_of(clip.answer) == kinds[0]
            case "grounding":
                span = [float(number) for number in re.findall(r"\d+\.\d+", clip.answer)]
                assert np.allclose(span, clip.spans[0], atol=0.0051)
            case "caption":
                assert event_of(clip.answer) == kinds[0] and clip.keywords[0].text in clip.answer
    assert min(letters.values()) > 40
    edges = [(e.start, e.start + e.length) for _, scene in clips for e in scene.events]
    assert min(start for start, _ in edges) == 2 and max(end for _, end in edges) == 16 - 2


def test_times_and_places_are_asked_and_answered():
    """Grounding, tracking and grounded choices, with and without tags; the right option stands anywhere."""
    tagged = [describe(JOINT, "train", index)[0] for index in range(600)]
    plain = [describe(dataclasses.replace(JOINT, tags=False), "train", index)[0] for index in range(600)]
    groups = collections.Counter(clip.extra.get("group", clip.task) for clip in tagged)
    assert set(groups) == {"grounding", "tracking", "grounded"}
    assert all(abs(count - 200) < 47 for count in groups.values())  # four deviations
    form = re.compile(r"<think>It [a-z ]+\.</think> <answer>(.+?)</answer>( <glue>.+</glue>)?")
    places = collections.Counter()
    for clip, other in zip(tagged, plain, strict=True):
        for field in ("question", "task", "choices", "spans", "boxes", "keywords", "extra"):
            assert getattr(clip, field) == getattr(other, field)
        answer, evidence = form.fullmatch(clip.answer).groups()
        assert other.answer == answer + (evidence or "")
        numbers = [float(number) for number in re.findall(r"\d\.\d\d", evidence or answer)]
        if clip.task == "tracking":
            assert not evidence and not clip.keywords and clip.extra["shape"] in clip.question
            assert np.allclose(np.reshape(json.loads(answer), -1), np.reshape(clip.boxes, -1), atol=0.0051)
            assert len(clip.boxes) == 8 and answer.startswith("[" + re.search(r"\[.*?\]", clip.question)[0])
            continue
        assert not clip.boxes and np.allclose(numbers, clip.spans[0], atol=0.0051)
        assert clip.task == ("choice" if evidence else "grounding")
        assert event_of(clip.answer) == clip.extra["event"] == clip.keywords[0].lemma
        if evidence:
            places[clip.choices.index(answer)] += 1
            assert f"{', '.join(clip.choices)}?" in clip.question and len(set(clip.choices)) == 4
    assert min(places.values()) > 25 and set(places) == set(range(4))


def test_other_tasks_change_no_clip():
    """The shares of tracking and grounded questions draw nothing: what a clip shows does not depend on its
    task, and clips of a task that both specs draw are the same."""
    more = dataclasses.replace(MIXED, tracking=1.0, grounded=1.0)
    for index in range(200):
        (clip, scene), (other, other_scene) = (describe(spec, "train", index) for spec in (MIXED, more))
        if clip.task == other.task != "choice":
            assert (clip, scene) == (other, other_scene)


def test_a_box_is_the_smallest_around_the_shape():
    """Against the pixels that differ from the background by at least half: within one pixel at each edge,
    for every shape and event, in square and other frames, with a moving camera, cut off at the edges."""
    spec = EventSpec(sizes=((224, 224), (168, 252)), camera=0.15, flicker=0.0, travel=(0.5, 0.6))
    for index in range(48):
        _, scene = describe(spec, "train" if index % 3 else "unseen", index)
        kind = scene.events[0].kind
        still = dataclasses.replace(scene, events=tuple(e for e in scene.events if e.kind != "vanish"))
        recoloured = ("flash", "flip")  # a flash has a halo
        if kind in recoloured:
            still = dataclasses.replace(scene, events=())
        picture = draw(still, noise=0.0).astype(int)
        contrast = np.abs(picture - scene.background).max(-1)
        size = np.array([scene.width, scene.height, scene.width, scene.height])
        for mask, box in zip(contrast, boxes(scene) * size, strict=True):
            row, column = np.nonzero(mask > mask.max() / 2)
            pixels = (column.min(), row.min(), column.max() + 1, row.max() + 1)
            assert np.abs(np.array(pixels) - box).max() < 1.5, (index, kind, scene.shape)


def test_files_are_made_once_and_resumed(tmp_path, monkeypatch):
    whole = make_event_clips(SPEC, tmp_path / "a", {"train": 9, "heldout": 2})
    assert {split: len(read_clips(file)) for split, file in whole.items()} == {"train": 9, "heldout": 2}
    videos = sorted((tmp_path / "a").rglob("*.mp4"))
    assert len(videos) == 11

    # Killed in the fifth clip: no list of clips, no half-written file.
    encoded = []

    def until_the_fifth(frames, **options):
        encoded.append(1)
        if len(encoded) >= 5:
            raise KeyboardInterrupt
        return encode(frames, **options)

    monkeypatch.setattr(events, "encode", until_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        make_event_clips(SPEC, tmp_path / "b", {"train": 9})
    left = [path for path in (tmp_path / "b").rglob("*") if path.is_file()]
    assert len(left) == 4 and all(path.suffix == ".mp4" for path in left)

    # The same command again makes what is missing, and the same bytes as the run that was not killed.
    encoded.clear()
    monkeypatch.setattr(events, "encode", lambda *a, **options: encoded.append(1) or encode(*a, **options))
    again = make_event_clips(SPEC, tmp_path / "b", {"train": 9})
    assert len(encoded) == 5
    files = {file.relative_to(tmp_path / "b"): file for file in (tmp_path / "b").rglob("*") if file.is_file()}
    assert again["train"] in files.values() and len(files) == 10
    assert all((tmp_path / "a" / name).read_bytes() == file.read_bytes() for name, file in files.items())

    # And once more nothing at all; more clips add to those there are.
    make_event_clips(SPEC, tmp_path / "b", {"train": 9})
    assert len(encoded) == 5
    more = make_event_clips(SPEC, tmp_path / "b", {"train": 12})
    assert len(encoded) == 8
    assert more["train"].read_bytes().startswith(again["train"].read_bytes())


def test_another_spec_has_another_folder():
    keys = {EventSpec(**change).key for change in ({}, dict(seed=1), dict(noise=1.0), dict(order=0.5))}
    assert len(keys) == 4
    assert EventSpec(lengths=[1, 2, 4]).key == SPEC.key  # as a config that was read back has it


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file.*cannot be written"):
        make_event_clips(SPEC, tmp_path / "file", {"train": 1})
