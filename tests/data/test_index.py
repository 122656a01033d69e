"""The index of clips: budgets, what is rejected and noted, and planned sizes that hold."""

import dataclasses
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests import unpacked
from tests.videos import greys, write
from tests.words import StubVision, stub_config, word_text
from vpjax.data import probing
from vpjax.data.index import FEWER, SMALLER, build_index, index_clips, prompt_sizes
from vpjax.data.positions import Stamps
from vpjax.data.probing import Source
from vpjax.data.rows import NO_ANSWERS, SHARED_TIMES, DegradedAnswers, prompt_row, training_row
from vpjax.data.sampling import Sampling, VideoInfo, frame_times
from vpjax.data.text import tokenize
from vpjax.data.video import Video, read_frames, read_image
from vpjax.recipes import base
from vpjax.types import Clip, Keyword, Turn, UserError

UNIT = 28 * 28  # pixels of a visual token
STAMPS = Stamps({**{piece: (901,) for piece in "<0123456789."}, " seconds>": (902, 903)})


@pytest.fixture(scope="module")
def text():
    return word_text()


@pytest.fixture(scope="module")
def config(text):
    return stub_config(text)


@pytest.fixture(scope="module")
def config3(config, text):
    """As of Qwen3-VL: a slot's time in words, no windows."""
    own = dict(tokens_per_second=None, vision=StubVision(window=0))
    return SimpleNamespace(**vars(config) | own, vision_start=text.vision_start, vision_end=text.vision_end)


def data_of(**fields):
    data = base.get_config().data
    defaults = dict(frames=0, fps=4.0, min_pixels=4 * UNIT, max_pixels=64 * UNIT, max_tokens=600)
    data.update(defaults | fields)
    return data


def info_of(seconds=4.0, height=360, width=640, fps=24.0):
    count = max(1, round(seconds * fps))
    return VideoInfo(width, height, count / fps, fps, count)


def clip_of(number=0, question="What happens?", answer="It flashes.", spans=((0.5, 0.9),), **part):
    return Clip(f"c{number}", "x.mp4", question, answer, (Keyword("flashes", "flash", spans),), **part)


def index_of(clips, infos, text, config, data, **options):
    """The index of clips of videos (None: of text only)."""
    media = [info and ("video" if info.duration else "image") for info in infos]
    sources = [
        [Source("x.mp4", kind, info=info)] if kind else [] for kind, info in zip(media, infos, strict=True)
    ]
    limits = {name: data[name] for name in ("keywords", "keyword_tokens", "train_turns")}
    tokens = [
        dataclasses.replace(tokenize(clip, text, media=(kind,) if kind else (), **limits), stamps=STAMPS)
        for clip, kind in zip(clips, media, strict=True)
    ]
    return index_clips(clips, sources, tokens, config, data, **options)


def population(count=150, seed=0):
    """Clips of every length, from a second to an hour, of any size, with keywords that are seen some time."""
    rng = np.random.default_rng(seed)
    words = "a red square drifts left and flashes twice while it spins".split()
    clips, infos = [], []
    for number in range(count):
        seconds = float(rng.lognormal(3, 1.5))
        height, width = (int(n) for n in rng.integers(100, 1100, 2))
        width = int(np.clip(width, height // 3, 3 * height))
        info = info_of(seconds, height, width, float(rng.choice([8, 24, 30000 / 1001, 60])))
        kind = rng.integers(8)
        if kind == 0:
            info = None
        elif kind == 1:
            info = VideoInfo(width, height, 0.0, 0.0, 1)
        start = float(rng.uniform(0, seconds))
        answer = " ".join(rng.choice(words, rng.integers(1, 30)))
        keywords = tuple(
            Keyword(word, word, ((start, start + 0.5),) if rng.random() < 0.7 else ())
            for word in answer.split()[: rng.integers(0, 5)]
        )
        question = " ".join(rng.choice(words, rng.integers(1, 40)))
        clips.append(Clip(f"c{number}", "x.mp4", question, answer, keywords))
        infos.append(info)
    return clips, infos


FAMILIES = pytest.mark.parametrize("family", ["config", "config3"])


@FAMILIES
@pytest.mark.parametrize("fields", [dict(), dict(total_pixels=300 * UNIT), dict(frames=16, fps=0.0)])
def test_no_clip_is_rejected_for_being_long(text, request, family, fields):
    config, data = request.getfixturevalue(family), data_of(**fields)
    clips, infos = population()
    index = index_of(clips, infos, text, config, data)
    assert index.rejected == {} and [entry.number for entry in index.entries] == list(range(len(clips)))
    for entry, info in zip(index.entries, infos, strict=True):
        frames, height, width = entry.shapes[0] if entry.shapes else (0, 0, 0)
        # One placeholder and, in words, the pair around it are counted twice.
        assert entry.sizes.tokens <= data.max_tokens + 2
        assert frames // 2 * height * width <= (data.total_pixels or np.inf)
        assert (frames > 0) == (info is not None)
        if info is not None and info.duration:
            natural = len(frame_times(Sampling.of(data), info))
            assert frames >= min(data.min_frames, natural) and frames % 2 == 0
    if not data.total_pixels:
        assert max(entry.sizes.tokens for entry in index.entries) > 0.9 * data.max_tokens


def test_clips_of_which_not_even_the_least_fits_are_named(text, config):
    """4 frames of 4 units are 8 tokens: a question or answer that leaves less rejects its clip, no other."""
    data = data_of(max_tokens=100, min_frames=4, max_answer=60)
    clips = [
        clip_of(0),
        clip_of(1, question="word " * 85),
        clip_of(2, question="word " * 70),
        clip_of(3, answer="word " * 70),
        clip_of(4, question="word " * 200),
        clip_of(5, question="word " * 85),
    ]
    index = index_of(clips, [info_of()] * 6, text, config, data)
    assert [entry.id for entry in index.entries] == ["c0", "c2"]
    reasons = {reason[:35]: ids for reason, ids in index.rejected.items()}
    assert reasons == {
        "even data.min_frames=4 frames of da": ["c1", "c5"],
        "answer above 60 tokens (data.max_an": ["c3"],
        "question and answer above 100 token": ["c4"],
    }
    assert index.entries[1].sizes.tokens <= 100
    with pytest.raises(UserError, match="none of 6 clips can be used; the first: even data.min_frames=4"):
        index_of([clips[1]] * 6, [info_of()] * 6, text, config, data)


def test_what_a_budget_changes_is_counted(text, config):
    """32 frames of 60 units are 960 tokens at 4 frames a second of 8 s: 600 make the frames smaller; 20
    minutes leave fewer; 16 frames a second share positions at 4 tokens a second."""
    infos = [info_of(2.0, 280, 336), info_of(8.0, 280, 336), info_of(1200.0, 280, 336), None]
    clips = [clip_of(n) for n in range(4)]
    index = index_of(clips, infos, text, config, data_of(total_pixels=0))
    assert index.noted == {SMALLER: ["c1", "c2"], FEWER: ["c2"]}
    assert index_of(clips, infos, text, config, data_of(max_tokens=10**6)).noted.keys() == {FEWER}
    assert index_of(clips, infos, text, config, data_of(max_tokens=10**6, max_frames=10**4)).noted == {}
    dense = index_of(clips[:1], infos[:1], text, config, data_of(fps=16.0))
    assert dense.noted[SHARED_TIMES] == ["c0"]
    assert SHARED_TIMES not in index_of(clips[:1], infos[:1], text, config, data_of(fps=8.0)).noted
    data = data_of(max_tokens=10**6, max_frames=16, fps=16.0)  # but 16 frames of 20 minutes lie far apart
    assert index_of(clips[2:3], infos[2:3], text, config, data).noted == {FEWER: ["c2"]}


def test_a_truth_of_v_degraded_counts_where_it_is_read(text, config):
    """Elsewhere a long one costs no frames and rejects no clip."""
    data = data_of(max_answer=60)
    clips = [dataclasses.replace(clip_of(0), degraded_answer="Nothing happens.")]
    clips.append(dataclasses.replace(clip_of(1), degraded_answer="word " * 80))
    plain, with_truth = (
        index_of(clips, [info_of()] * 2, text, config, data, answers=answers)
        for answers in (DegradedAnswers("keywords"), DegradedAnswers("keywords", truth_share=0.5))
    )
    assert plain.rejected == {} and plain.entries[0].shapes == plain.entries[1].shapes
    assert with_truth.rejected == {"degraded_answer above 60 tokens (data.max_answer)": ["c1"]}


@pytest.mark.parametrize(
    "answers, changes, message",
    [
        (DegradedAnswers("none", truth_share=0.5), {}, "contrast.truth: no clip with key frames has"),
        (DegradedAnswers("keywords"), dict(answer="A"), "contrast.answer: no clip has a keyword"),
        (DegradedAnswers("keywords"), dict(keywords=()), "contrast.answer: no clip has a keyword"),
        (DegradedAnswers("all"), dict(keywords=()), "contrast.answer: no clip has a keyword"),
    ],
)
def test_losses_on_v_degraded_that_no_clip_can_have_are_refused(text, config, answers, changes, message):
    """They would be 0 in every step, and nobody would be told."""
    clips = [dataclasses.replace(clip_of(0), **changes)]
    with pytest.raises(UserError, match=message):
        index_of(clips, [info_of()], text, config, data_of(), answers=answers)
    index_of(clips, [info_of()], text, config, data_of())
    enough = [*clips, dataclasses.replace(clip_of(1), degraded_answer="Nothing happens.")]
    assert len(index_of(enough, [info_of()] * 2, text, config, data_of(), answers=answers).entries) == 2


def test_an_event_in_an_earlier_frame_than_planned_has_no_v_degraded(text, config):
    """In a file whose frame rate varies: its row would be larger than planned. It says so."""
    answers = DegradedAnswers("keywords", truth_share=0.5)
    clip = dataclasses.replace(clip_of(spans=((3.0, 3.2),)), degraded_answer="Nothing happens.")
    index = index_of([clip], [info_of()], text, config, data_of(), answers=answers)
    entry = index.entries[0]
    even = np.arange(entry.shapes[0][0]) / 4
    on_time, _ = made(entry, config, index.capacity, even, answers)
    assert on_time.has_degraded and unpacked.sizes_of(on_time).degraded <= entry.sizes.degraded
    early, _ = made(entry, config, index.capacity, even + 2.5, answers)
    assert early.has_degraded and unpacked.sizes_of(early).degraded > entry.sizes.degraded


def made(entry, config, capacity, times, answers=NO_ANSWERS):
    """The row of an entry with frames at ``times``, and that of its prompt."""
    videos = []
    for source, (_, height, width) in zip(entry.sources, entry.shapes, strict=True):
        pixels = np.zeros((len(times), height, width, 3), np.uint8)
        videos.append(Video(pixels, times, source.info.frame_seconds))
    row = training_row(entry.tokens, videos, config, capacity, answers=answers)
    return row, prompt_row(entry.tokens.prompt, videos, config, capacity, stamps=entry.tokens.stamps)


@FAMILIES
@pytest.mark.parametrize(
    "answers",
    [
        NO_ANSWERS,
        DegradedAnswers("keywords", alone=False),
        DegradedAnswers("all"),
        DegradedAnswers("none", truth_share=1.0),
        DegradedAnswers("keywords", truth_share=0.5),
    ],
)
def test_planned_sizes_are_never_exceeded(text, request, family, answers):
    """The row that is made takes no more than was planned, also if the file has fewer frames; and if it is
    read as planned, no less than a few tokens."""
    config, data = request.getfixturevalue(family), data_of()
    clips, infos = population(60)
    clips = [dataclasses.replace(clip, degraded_answer="word " * (n % 9)) for n, clip in enumerate(clips)]
    index = index_of(clips, infos, text, config, data, answers=answers)
    rng = np.random.default_rng(0)
    for entry, info in zip(index.entries, infos, strict=True):
        times = np.zeros(2)
        if info is not None:
            times = frame_times(Sampling.of(data), info, most=entry.shapes[0][0])
            assert len(times) == entry.shapes[0][0]
        row, prompt = made(entry, config, index.capacity, times, answers)
        taken = unpacked.sizes_of(row)
        assert (np.array(taken) <= entry.sizes).all()
        assert (np.array(unpacked.sizes_of(prompt)) <= prompt_sizes(entry)._replace(slots=1 << 20)).all()
        exact = ("units", "bins", "targets", "keywords", "slots")
        assert all(getattr(taken, name) == getattr(entry.sizes, name) for name in exact)
        words = 0
        if family == "config3" and entry.sources and entry.sources[0].media == "video":
            words = entry.shapes[0][0] // 2 * 4 + 2
        assert entry.sizes.tokens - taken.tokens <= words
        if len(times) > 2:
            fewer = times[: 2 * int(rng.integers(1, len(times) // 2))]
            row, _ = made(entry, config, index.capacity, fewer, answers)
            assert (np.array(unpacked.sizes_of(row)) <= entry.sizes).all()


@FAMILIES
@pytest.mark.parametrize("train_turns", ["all", "last"])
@pytest.mark.parametrize("compared", ["keywords", "all"])
def test_planned_sizes_of_conversations_are_never_exceeded(text, request, family, train_turns, compared):
    """With the video in any of the turns. Targets of earlier answers are planned exactly."""
    config, data = request.getfixturevalue(family), data_of(train_turns=train_turns)
    single, infos = population(60)
    rng = np.random.default_rng(1)
    clips = []
    for clip, info in zip(single, infos, strict=True):
        count = int(rng.integers(0, 4))
        tagged = int(rng.integers(0, count + 1))
        said = [
            (f"Look {'<video>' if info and n == tagged else ''} {n}?", clip.answer[n:]) for n in range(count)
        ]
        dialogue = dict(system="Be brief.", turns=tuple(Turn(*x) for x in said))
        clips.append(dataclasses.replace(clip, degraded_answer="word " * (1 + count), **dialogue))
    answers = DegradedAnswers(compared, truth_share=0.5)
    index = index_of(clips, infos, text, config, data, answers=answers)
    assert not index.rejected
    compared_earlier = 0
    for entry, info in zip(index.entries, infos, strict=True):
        times = np.zeros(2)
        if info is not None:
            times = frame_times(Sampling.of(data), info, most=entry.shapes[0][0])
        row, prompt = made(entry, config, index.capacity, times, answers)
        taken = unpacked.sizes_of(row)
        assert (np.array(taken) <= entry.sizes).all() and taken.targets == entry.sizes.targets
        assert (np.array(unpacked.sizes_of(prompt)) <= prompt_sizes(entry)._replace(slots=1 << 20)).all()
        said = clips[entry.number].dialogue[0 if train_turns == "all" else -1 :]
        assert taken.targets == sum(len(text.answer(turn.answer)) for turn in said)
        assert (row.degraded_target > row.shared).all()
        compared_earlier += (row.degraded_target < len(row.prompt.tokens)).sum()
    assert (compared_earlier > 0) == (train_turns == "all")


def test_a_long_answer_of_an_earlier_turn_rejects_what_it_trains(text, config):
    clip = dataclasses.replace(clip_of(0), turns=(Turn("Well?", "word " * 70),))
    trained = index_of([clip, clip_of(1)], [info_of()] * 2, text, config, data_of(max_answer=60))
    assert trained.rejected == {"answer above 60 tokens (data.max_answer)": ["c0"]}
    assert not index_of(
        [clip], [info_of()], text, config, data_of(max_answer=60, train_turns="last")
    ).rejected


def test_planned_sizes_hold_for_real_files(text, config, tmp_path):
    """Of constant and of varying frame rate, cut short by the clip, and an image."""
    rng = np.random.default_rng(0)
    write(tmp_path / "even.mp4", greys(40, (64, 96)), rate=8)
    gaps = np.cumsum(rng.integers(1, 30, 40))
    write(tmp_path / "uneven.mp4", greys(40, (96, 64)), [int(n) for n in gaps - gaps[0]], rate=25)
    Image.new("RGB", (200, 120)).save(tmp_path / "one.png")
    span = ((1.0, 1.5),)
    clips = [
        dataclasses.replace(clip_of(0, spans=span), video=str(tmp_path / "even.mp4")),
        dataclasses.replace(clip_of(1, spans=span), video=str(tmp_path / "uneven.mp4")),
        dataclasses.replace(clip_of(2, spans=span, start=0.8, end=3.1), video=str(tmp_path / "uneven.mp4")),
        dataclasses.replace(clip_of(3, spans=()), video=str(tmp_path / "one.png")),
        dataclasses.replace(clip_of(4, spans=()), video=""),
    ]
    for fields in (dict(), dict(max_tokens=60), dict(frames=7, fps=0.0), dict(fps=30.0, max_tokens=3000)):
        data = data_of(cache=str(tmp_path / "cache"), **fields)
        index = build_index(clips, text, config, data)
        assert not index.rejected and len(index.entries) == 5
        for entry in index.entries:
            videos = []
            for source, (frames, *size) in zip(entry.sources, entry.shapes, strict=True):
                if source.media == "image":
                    videos.append(read_image(source.path, size=tuple(size)))
                    continue
                start, end = entry.readings[0].part
                options = dict(frames=frames, size=tuple(size), start=start, end=end)
                videos.append(read_frames(source.path, Sampling.of(data), **options))
                count = len(videos[-1].frames)
                assert count <= frames and (entry.number != 0 or count == frames)
            row = training_row(entry.tokens, videos, config, index.capacity)
            assert (np.array(unpacked.sizes_of(row)) <= entry.sizes).all()


def test_an_image_takes_no_times_in_words(text, config3):
    """Its row is planned to the token."""
    infos = [info_of(), VideoInfo(280, 280, 0.0, 0.0, 1)]
    index = index_of([clip_of(0), clip_of(1)], infos, text, config3, data_of())
    row, _ = made(index.entries[1], config3, index.capacity, np.zeros(2))
    assert index.entries[1].sizes.tokens == len(row.text.tokens)


def test_a_file_that_cannot_be_used_keeps_its_place(text, config, tmp_path):
    """With the most common shape, so that the other clips are packed as they would be."""
    write(tmp_path / "a.mp4", greys(16, (56, 84)), rate=8)
    write(tmp_path / "b.mp4", greys(16, (84, 56)), rate=8)
    good = dataclasses.replace(clip_of(0), video=str(tmp_path / "a.mp4"))
    other = dataclasses.replace(clip_of(1), video=str(tmp_path / "b.mp4"))
    gone = dataclasses.replace(clip_of(2), video=str(tmp_path / "gone.mp4"))
    outside = dataclasses.replace(clip_of(3, start=1.0, end=30.0), video=str(tmp_path / "a.mp4"))
    data = data_of(cache=str(tmp_path / "cache"))
    index = build_index([gone, good, other, outside, good], text, config, data, [0, 1, 0, 1, 1])
    assert [entry.fault != "" for entry in index.entries] == [True, False, False, True, False]
    assert "gone.mp4" in index.entries[0].fault
    assert "a.mp4: the span 1 to 30 s is not inside the clip of 2 s" in index.entries[3].fault
    assert index.entries[0].shapes == index.entries[3].shapes == index.entries[1].shapes
    assert [entry.data_set for entry in index.entries] == [0, 1, 0, 1, 1]
    with pytest.raises(UserError, match="none of 2 clips can be used; the first: .*gone.mp4"):
        build_index([gone, gone], text, config, data)


def test_a_question_that_holds_a_placeholder_rejects_its_clip_alone(text, config, tmp_path):
    clips = [dataclasses.replace(clip_of(n), video="") for n in range(3)]
    clips[1] = dataclasses.replace(clips[1], question="<|video_pad|> and this one?")
    index = build_index(clips, text, config, data_of(cache=str(tmp_path)), [0, 1, 2])
    assert [(entry.number, entry.data_set) for entry in index.entries] == [(0, 0), (2, 2)]
    ((reason, ids),) = index.rejected.items()
    assert "1 places for media" in reason and ids == ["c1"]


def test_unchanged_files_are_not_probed_again(text, config, tmp_path, monkeypatch):
    paths = [str(write(tmp_path / f"{n}.mp4", greys(4), rate=8)) for n in range(3)]
    clips = [dataclasses.replace(clip_of(n), video=path) for n, path in enumerate(paths)]
    data = data_of(cache=str(tmp_path / "cache"))
    first = build_index(clips, text, config, data)
    probed = []
    probe = probing.probe
    monkeypatch.setattr(probing, "probe", lambda path, **options: probed.append(path) or probe(path))
    again = build_index(clips, text, config, data)
    assert probed == [] and [entry.sizes for entry in again.entries] == [e.sizes for e in first.entries]
    os.utime(paths[1], ns=(1, 1))
    build_index(clips, text, config, data)
    assert probed == paths[1:2]
