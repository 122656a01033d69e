"""Clips of several videos and images: V~ and controls inside each video, the sizes that are planned for
them, and their files."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from tests import unpacked
from tests.data.test_collate import (
    FAMILIES,
    SIDES,
    STAMPS,
    config_of,
    expected,
    pack_of,
    random_packing,
    random_video,
)
from tests.videos import greys, write
from tests.words import word_text
from vpjax.data import keyframes as kf
from vpjax.data.clips import parse_clip, read_clips, write_clips
from vpjax.data.collate import collate_prompts
from vpjax.data.control import with_control
from vpjax.data.index import build_index
from vpjax.data.packing import Sizes
from vpjax.data.pipeline import Loader, coverage_of, make_batch_maker
from vpjax.data.rows import DegradedAnswers, training_row
from vpjax.data.sampling import File, Sampling, VideoInfo, fit, fit_all
from vpjax.data.text import tokenize
from vpjax.data.units import choose_capacity
from vpjax.evaluation.controls import control_shows
from vpjax.recipes import base
from vpjax.types import Clip, Keyword, Turn, UserError

ANSWER = "A red square drifts left and flashes twice."


@pytest.fixture(scope="module")
def text():
    return word_text()


# Rows


def random_clip(text, number, rng):
    """A clip of two to four media in one or two turns, and keywords that are seen in some of its videos."""
    kinds = [("video", "video", "image")[int(n)] for n in rng.integers(0, 3, rng.integers(2, 5))]
    videos = [random_video(rng, kind) for kind in kinds]
    later = int(rng.integers(0, len(kinds))) if rng.random() < 0.5 else 0
    turns = (Turn(f"Look {'<video> ' * later}there.", "It spins now."),) if later else ()
    question = "Then <video> " + "and <video> " * (len(kinds) - later - 1) + "what?"
    keywords = []
    for word in ("drifts", "flashes", "spins")[: rng.integers(1, 4)]:
        start = float(rng.uniform(0, 1))
        spans = ((start, start + 0.15),) if rng.random() < 0.9 else ()
        keywords.append(Keyword(word, word, spans, int(rng.integers(0, len(kinds)))))
    clip = Clip(
        f"c{number}", "x", question, ANSWER, tuple(keywords), turns=turns, degraded_answer="A square."
    )
    clip = dataclasses.replace(clip, others=("y",) * (len(kinds) - 1))
    tokens = tokenize(clip, text, media=tuple(kinds), keywords=3, keyword_tokens=2, train_turns="all")
    return dataclasses.replace(tokens, stamps=STAMPS), videos


def random_rows(text, family, count=40, seed=0, **options):
    """(row, tokens, videos) of such clips, and how their units are laid out."""
    rng, config = np.random.default_rng(seed), config_of(text, family)
    sides = [(4, *pair) for pair in np.ndindex(SIDES, SIDES) if all(pair)]
    capacity = choose_capacity(sides, config.vision)
    rows = []
    for number in range(count):
        tokens, videos = random_clip(text, number, rng)
        own = dict(answers=DegradedAnswers("keywords"), seed=(number,), clip=number) | options
        rows.append((training_row(tokens, videos, config, capacity, **own), tokens, videos))
    return rows, capacity, config


def shown_pixels(row, shows):
    """What the visual tokens of a prompt show, in order: pixels of their units."""
    return row.video.pixels[shows[shows >= 0]]


def frames_of(video, source, config):
    """The pixels of the units of a video whose slots are those of ``source``, cut one by one."""
    factor, patch = config.vision.factor, config.vision.patch
    pairs = video.frames.reshape(-1, 2, *video.frames.shape[1:])[source]
    out = []
    for pair in pairs:
        for top in range(0, pair.shape[1], factor):
            for left in range(0, pair.shape[2], factor):
                unit = pair[:, top : top + factor, left : left + factor]
                patches = unit.reshape(2, 2, patch, 2, patch, 3).transpose(1, 3, 5, 0, 2, 4)
                out.append(patches.reshape(4, -1))
    return np.array(out)


def sources_in(row, shows):
    """For each video of a row, the slot of it that each of its slots shows: all of its tokens agree."""
    slot = row.prompt.slot[row.prompt.slot >= 0]
    seen = row.video.slot[shows[shows >= 0]]
    out = []
    for part in kf.parts_of(row.counts):
        out.append([])
        for s in range(part.start, part.stop):
            (source,) = set(seen[slot == s].tolist())
            assert part.start <= source < part.stop
            out[-1].append(source - part.start)
    return out


@FAMILIES
@pytest.mark.parametrize("replacement", ["key", "random"])
def test_a_video_of_v_degraded_shows_its_own_frames(text, family, replacement):
    """The pixels of V~ are those of V whose slots are replaced video by video, as the source of each alone
    says, and every token shows the place that it has."""
    rows, _, config = random_rows(text, family, replacement=replacement)
    changed = 0
    for row, tokens, videos in rows:
        np.testing.assert_array_equal(
            shown_pixels(row, row.prompt.shows),
            np.concatenate([frames_of(v, np.arange(len(v.times) // 2), config) for v in videos]),
        )
        sources = sources_in(row, row.shows_degraded)
        degraded = [frames_of(v, np.array(s), config) for v, s in zip(videos, sources, strict=True)]
        np.testing.assert_array_equal(shown_pixels(row, row.shows_degraded), np.concatenate(degraded))
        for number, (video, source) in enumerate(zip(videos, sources, strict=True)):
            masks = [kf.slots_of(s, video.times, video.frame_seconds) for s in tokens.spans_in(number)]
            is_replaced = np.array(source) != np.arange(len(source))
            if replacement == "key" and row.has_degraded:
                assert source == kf.source_of(np.array(masks)).tolist()
            if replacement == "random":
                assert not (is_replaced & np.any(masks, axis=0)).any()
            changed += is_replaced.any()
            of_video = np.array(tokens.videos) == number
            assert (row.in_degraded[of_video] == is_replaced.any()).all()
    assert changed > (10 if replacement == "key" else 5)


@FAMILIES
def test_moments_that_keywords_are_compared_with_are_of_their_video(text, family):
    rows, _, _ = random_rows(text, family)
    found = 0
    for row, tokens, _ in rows:
        parts = kf.parts_of(row.counts)
        for keyword, first, end in kf.windows_of(row.slots, row.counts):
            part = parts[tokens.videos[keyword]]
            assert part.start <= first < end <= part.stop
            assert end - first == row.slots[keyword].sum() and not row.slots[:, first:end].any()
            assert (first - part.start) % (end - first) == 0
            found += 1
        for number, slots in enumerate(row.slots):
            outside = np.ones(len(slots), bool)
            outside[parts[tokens.videos[number]]] = False
            assert not (slots & outside).any()
    assert found > 20


@FAMILIES
def test_controls_change_each_video_by_itself(text, family):
    """What a control does to a clip's video is what it does to that video alone, or an order of its slots."""
    rows, capacity, config = random_rows(text, family)
    for row, _, _ in rows:
        sizes = Sizes(len(row.prompt.tokens), len(row.video.window), len(row.video.bins))
        prompts = collate_prompts([row], sizes, capacity, config, 3, 2)
        unpacked.check_units(prompts.video)
        for control in ("reverse", "single", "shuffle", "random", "key"):
            shows, _ = control_shows(prompts, control, 3)
            sources = sources_in(row, shows[0])
            for source in sources:
                count = len(source)
                if control == "reverse":
                    assert source == list(range(count))[::-1]
                if control == "single":
                    assert source == [count // 2] * count
                if control == "shuffle":
                    assert sorted(source) == list(range(count))
        other = with_control(prompts, 1.0, 0)
        sources_in(row, other.shows_degraded[0])


@FAMILIES
def test_a_packed_clip_is_its_own_row(text, family):
    """In any packing, and whatever its neighbours."""
    made, capacity, config = random_rows(text, family, 18)
    rows, rng = [row for row, _, _ in made], np.random.default_rng(1)
    for spare in (0, 5):
        packing = random_packing(len(rows), rng)
        found = unpacked.clips_of(pack_of(rows, packing, capacity, config, spare))
        assert sorted(found) == list(range(len(rows)))
        for number, part in found.items():
            unpacked.same(part, expected(rows[number]))


# Sizes


def info_of(rng):
    height, width = (int(n) for n in rng.integers(60, 900, 2))
    width = int(np.clip(width, height // 3, 3 * height))
    if rng.random() < 0.4:
        return VideoInfo(width, height, 0.0, 0.0, 1)
    count = int(rng.integers(8, 2000))
    return VideoInfo(width, height, count / 24, 24.0, count)


@pytest.mark.parametrize("total", [0, 900 * 28**2])
def test_media_share_a_budget(total):
    """No sum exceeds it, and one file has what it has alone. What the smallest leave goes to the others."""
    rng = np.random.default_rng(0)
    sampling = Sampling(fps=2.0, min_pixels=4 * 28**2, max_pixels=256 * 28**2, total_pixels=total)
    for _ in range(60):
        files = [File(info_of(rng), slot_tokens=7) for _ in range(int(rng.integers(1, 5)))]
        budget = int(rng.integers(2000, 9000))
        shapes = fit_all(sampling, files, factor=28, max_tokens=budget)
        used = [
            frames // 2 * (height * width // 28**2 + (7 if file.info.duration else 0))
            for file, (frames, height, width) in zip(files, shapes, strict=True)
        ]
        assert sum(used) <= budget
        pixels = sum(frames // 2 * height * width for frames, height, width in shapes)
        assert pixels <= (total or np.inf)
        if len(files) == 1:
            alone = fit(sampling, files[0].info, factor=28, max_tokens=budget, slot_tokens=7)
            assert shapes == [alone]
    image, video = VideoInfo(280, 280, 0.0, 0.0, 1), VideoInfo(560, 560, 100.0, 24.0, 2400)
    shapes = fit_all(dataclasses.replace(sampling, total_pixels=0), [File(image), File(video)], factor=28)
    assert shapes[0] == (2, 280, 280)
    unlimited = dataclasses.replace(sampling, total_pixels=0)
    rest = fit(unlimited, video, factor=28, max_tokens=3000 - 100)
    for order in ([image, video], [video, image]):
        shapes = fit_all(unlimited, [File(info) for info in order], factor=28, max_tokens=3000)
        assert shapes[order.index(image)] == (2, 280, 280) and shapes[order.index(video)] == rest


def data_of(tmp_path, **fields):
    data = base.get_config().data
    defaults = dict(frames=0, fps=4.0, min_pixels=2 * 4**2, max_pixels=30 * 4**2, max_tokens=900)
    data.update(defaults | dict(cache=str(tmp_path / "cache")) | fields)
    return data


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two videos, one of them of varying frame rate, and two images."""
    folder = tmp_path_factory.mktemp("files")
    write(folder / "a.mp4", greys(40, (64, 96)), rate=8)
    gaps = np.cumsum(np.random.default_rng(0).integers(1, 30, 40))
    write(folder / "b.mp4", greys(40, (96, 64)), [int(n) for n in gaps - gaps[0]], rate=25)
    Image.new("RGB", (200, 120)).save(folder / "c.png")
    Image.new("RGB", (60, 90)).save(folder / "d.png")
    return [str(folder / name) for name in ("a.mp4", "b.mp4", "c.png", "d.png")]


def clips_of(files, count=30):
    """Clips of random selections of the files, in up to three turns."""
    rng = np.random.default_rng(1)
    clips = []
    for number in range(count):
        media = [files[int(n)] for n in rng.integers(0, 4, rng.integers(2, 5))]
        turn_of = np.sort(rng.integers(0, 3, len(media)))
        questions = [f"Look {'<video> and ' * int((turn_of == n).sum())}there." for n in range(3)]
        keywords = tuple(
            Keyword(word, word, ((start, start + 0.6),), int(rng.integers(0, len(media))))
            for word, start in (("drifts", 0.7), ("flashes", 1.9))
        )
        named = "It drifts." if number % 2 else "It falls."  # after which V~ has no truth of its own
        turns = (Turn(questions[0], named), Turn(questions[1], "It spins now."))
        clip = Clip(
            f"c{number}", media[0], questions[2], ANSWER, keywords, others=tuple(media[1:]), turns=turns
        )
        clips.append(dataclasses.replace(clip, degraded_answer="A red square."))
    return clips


@FAMILIES
@pytest.mark.parametrize("compared", ["none", "keywords", "all"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_planned_sizes_are_never_exceeded(text, family, files, tmp_path, compared, share):
    """By the rows of the files themselves, read in the shapes that are planned for them."""
    config, answers = config_of(text, family), DegradedAnswers(compared, truth_share=share)
    text = dataclasses.replace(text)
    object.__setattr__(text, "stamps_of", lambda prompt: STAMPS)  # as if its digits were not merged
    tight = 150 if family == "qwen2_5" else 300
    for fields in (dict(), dict(max_tokens=tight), dict(replacement="random", frames=12, fps=0.0)):
        data = data_of(tmp_path, train_turns="all", **fields)
        maker, index = make_batch_maker(
            clips_of(files), text, config, data, packed=True, seed=0, batch_size=2, answers=answers
        )
        assert not index.rejected
        followed = 0
        for entry in index.entries:
            # A placeholder and, in words, the pair around it are counted twice for each of up to 4 media.
            assert entry.sizes.tokens <= data.max_tokens + 2 * len(entry.sources)
            videos, _ = maker.videos(entry)
            options = dict(replacement=data.replacement, answers=answers)
            row = training_row(entry.tokens, videos, config, index.capacity, **options)
            followed += len(row.degraded.tokens) > 0
            if entry.sources[0].path.endswith("a.mp4") or not row.has_degraded:
                assert (np.array(unpacked.sizes_of(row)) <= entry.sizes).all()
            else:  # of a varying frame rate: what does not fit goes without V~
                row = maker.row(entry, 0)
                assert (np.array(unpacked.sizes_of(row)) <= entry.sizes).all()
        assert followed > (3 if fields else 10)
        loader = Loader(maker, index)
        for _ in range(3):
            unpacked.clips_of(next(loader))
        loader.close()


def test_a_file_that_is_missing_leaves_its_clip_out(text, files, tmp_path):
    config = config_of(text, "qwen2_5")
    clips = clips_of(files, 6)
    broken = clips[2].with_media([*clips[2].media[:1], "gone.mp4", *clips[2].media[2:]])
    index = build_index([*clips[:2], broken, *clips[3:]], text, config, data_of(tmp_path))
    assert [bool(entry.fault) for entry in index.entries] == [n == 2 for n in range(6)]
    assert "gone.mp4" in index.entries[2].fault


def test_events_are_looked_for_in_their_own_video(text, files, tmp_path):
    """One in the first second of a video of 5 s, and one that the other video is too short to show."""
    keywords = (Keyword("drifts", "drift", ((0.5, 1.0),), 1), Keyword("flashes", "flash", ((30.0, 31.0),), 1))
    clip = Clip("a", files[2], "What?", ANSWER, keywords, others=(files[0],))
    data = data_of(tmp_path)
    seen = coverage_of(build_index([clip], text, config_of(text, "qwen2_5"), data), data)
    assert len(seen.missed) == 1 and not seen.missed.any() and seen.outside == 1


# Files of clips

GOOD = {
    "id": "a",
    "video": ["a.png", "b.mp4"],
    "question": "Is <video> before <video>?",
    "answer": "It falls.",
    "keywords": [{"text": "falls", "lemma": "fall", "spans": [[1, 2]], "video": 1}],
}


def test_several_paths_are_read_and_written(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD) + "\n")
    (clip,) = read_clips(tmp_path / "a.jsonl")
    assert clip.media == (str(tmp_path / "a.png"), str(tmp_path / "b.mp4")) and clip.keywords[0].video == 1
    for name in ("b.jsonl", "b.array_record"):
        write_clips(tmp_path / name, [clip.with_media(GOOD["video"])])
        assert read_clips(tmp_path / name) == [clip]
    record = json.loads((tmp_path / "b.jsonl").read_text())
    assert record["video"] == GOOD["video"] and "others" not in record
    one = parse_clip(GOOD | dict(video=["a.mp4"], question="What?", keywords=[]))
    assert one == parse_clip(GOOD | dict(video="a.mp4", question="What?", keywords=[]))


@pytest.mark.parametrize(
    "change, reason",
    [
        (dict(question="Is <video>?"), "1 marks <video> in its questions for 2 videos or images"),
        (dict(turns=[dict(question="<video>", answer="x")]), "3 marks <video> in its questions for 2 videos"),
        (dict(video="b.mp4", keywords=[]), "2 marks <video> in its questions for one video or image"),
        (dict(question="Is <image> <video>?"), "1 marks <video> in its questions for 2 videos or images"),
        (
            dict(question="Is <image> <image>?"),
            "mark <image> in a question: <video> is the place of an image",
        ),
        (
            dict(keywords=[GOOD["keywords"][0] | dict(video=2)]),
            "keyword 'falls' is seen in video 2, of 2 counted",
        ),
        (dict(keywords=[GOOD["keywords"][0] | dict(video=-1)]), "keyword 'falls' is seen in video -1, of 2"),
        (dict(keywords=[GOOD["keywords"][0] | dict(video="b.mp4")]), "field 'video' of a keyword is 'b.mp4'"),
        (dict(start=1.0), "fields 'start' and 'end' are those of a clip of one video"),
        (dict(video=["a.png", ""]), "not a list of the paths of videos and images"),
        (dict(others=["b.mp4"]), "unknown field 'others'"),
    ],
)
def test_each_mistake_is_one_line(tmp_path, change, reason):
    file = tmp_path / "clips.jsonl"
    file.write_text(json.dumps(GOOD | dict(id="b")) + "\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(UserError) as error:
        read_clips(file)
    assert f"{file}, line 2: " in str(error.value) and reason in str(error.value)
    assert "\n" not in str(error.value)
