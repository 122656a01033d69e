"""The plan of a clip: its budget is kept and filled, and it is what the reader reads."""

import dataclasses
import fractions

import numpy as np
import pytest

from tests.videos import SIZE, greys, write
from vpjax.data.sampling import (
    Sampling,
    VideoInfo,
    choose,
    fit,
    frame_times,
    largest_grid,
    seconds_per_slot,
)
from vpjax.data.video import probe, read_frames
from vpjax.models.patches import smart_resize
from vpjax.recipes import base
from vpjax.types import UserError

UNIT = 28 * 28  # pixels of a token


def info_of(height=720, width=1280, seconds=10.0, fps=25.0):
    count = max(1, round(seconds * fps))
    return VideoInfo(width, height, count / fps, fps, count)


def tokens(shape, slot_tokens=0, factor=28):
    frames, height, width = shape
    assert frames % 2 == height % factor == width % factor == 0
    return frames // 2 * (height // factor * width // factor + slot_tokens)


def random_cases(count, seed=0):
    """Files of all kinds, and samplings: (info, sampling, factor, max_tokens, slot_tokens)."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        sides = rng.integers(90, 1500, 2)
        height, width = int(sides[0]), int(np.clip(sides[1], sides[0] // 3, 3 * sides[0]))
        seconds, rate = float(rng.lognormal(3, 1.2)), float(rng.choice([10, 24, 25, 30000 / 1001, 60]))
        low, factor = int(rng.choice([16, 32, 64, 128])), int(rng.choice([28, 32]))
        sampling = Sampling(
            fps=float(rng.choice([1, 2, 4, 8, 12])),
            min_frames=4,
            max_frames=int(rng.choice([64, 256, 768])),
            min_pixels=low * factor**2,
            max_pixels=int(low * rng.choice([1, 2, 6])) * factor**2,
            total_pixels=int(rng.choice([0, rng.integers(500, 20000)])) * factor**2,
        )
        slot_tokens = int(rng.choice([0, 11]))
        yield (
            info_of(height, width, seconds, rate),
            sampling,
            factor,
            int(rng.integers(500, 20000)),
            slot_tokens,
        )


def unlimited(sampling):
    return dataclasses.replace(sampling, total_pixels=0)


def test_without_a_budget_frames_and_their_size_are_those_of_hugging_face():
    """By hand, after ``sample_frames`` of Qwen2VLVideoProcessor: an even number of frames, i * total / n."""
    for info, sampling, factor, *_ in random_cases(300):
        frames, height, width = fit(unlimited(sampling), info, factor=factor)
        at_rate = info.frames / info.fps * sampling.fps
        expected = min(max(at_rate, sampling.min_frames), sampling.max_frames, info.frames) // 2 * 2
        assert frames == max(expected, 2)
        times = frame_times(unlimited(sampling), info)
        if expected:
            theirs = (np.arange(expected) * info.frames / expected + 1e-6).astype(int)
            np.testing.assert_allclose(times * info.fps, theirs, atol=1e-6)
        limits = dict(factor=factor, min_pixels=sampling.min_pixels, max_pixels=sampling.max_pixels)
        assert (height, width) == smart_resize(info.height, info.width, **limits)


def test_no_budget_is_exceeded_and_pixels_go_before_frames():
    shrunk = thinned = 0
    for info, sampling, factor, most, slot_tokens in random_cases(4000):
        limits = dict(factor=factor, slot_tokens=slot_tokens)
        free = fit(unlimited(sampling), info, **limits)
        shape = fit(sampling, info, **limits, max_tokens=most)
        frames, height, width = shape
        assert tokens(shape, slot_tokens, factor) <= most
        if sampling.total_pixels:
            assert frames // 2 * height * width <= sampling.total_pixels
        assert frames <= free[0] and height * width <= free[1] * free[2] and frames >= min(4, free[0])
        # The nearest whole numbers of units to the floor differ from it by less than one row or column.
        least = min(free[1] * free[2], sampling.min_pixels)
        assert height * width >= least - max(height, width) * factor
        if frames < free[0]:  # only at the floor, to within a row or column
            thinned += 1
            assert height * width <= sampling.min_pixels + max(height, width) * factor
        shrunk += height * width < free[1] * free[2]
    assert shrunk > 500 and thinned > 500


def test_a_budget_that_binds_is_filled():
    """Whole units cost at most 15 % of slots of 64 units or more, and at most 20 % of 32 or more. Whole slots
    cost up to the size of one."""
    shares = []
    for info, sampling, factor, most, slot_tokens in random_cases(4000, seed=1):
        limits = dict(factor=factor, slot_tokens=slot_tokens)
        sampling = unlimited(sampling)
        free, shape = fit(sampling, info, **limits), fit(sampling, info, **limits, max_tokens=most)
        if shape == free or shape[0] < free[0] and shape[0] >= info.frames:
            continue
        per_slot = most // (shape[0] // 2) - slot_tokens
        share = tokens(shape, 0, factor) / (most - shape[0] // 2 * slot_tokens)
        if per_slot >= 32 and shape[0] >= 16:
            shares.append(share)
            assert share >= (0.85 if per_slot >= 64 else 0.8) - 2 / shape[0], (info, sampling, most, shape)
    assert len(shares) > 500 and np.mean(shares) > 0.95


def test_more_budget_never_gives_less():
    for info, sampling, factor, _, slot_tokens in random_cases(150, seed=2):
        latest = (0, 0)
        for most in range(600, 9000, 37):
            by_tokens = fit(
                unlimited(sampling), info, factor=factor, max_tokens=most, slot_tokens=slot_tokens
            )
            by_pixels = dataclasses.replace(sampling, total_pixels=most * factor**2)
            counts = tokens(by_tokens, 0, factor), tokens(fit(by_pixels, info, factor=factor), 0, factor)
            assert counts[0] >= latest[0] and counts[1] >= latest[1]
            latest = counts


def test_the_largest_grid_against_all_grids():
    rng = np.random.default_rng(0)
    rows, columns = np.indices((80, 80)) + 1
    for _ in range(300):
        height, width = rng.integers(50, 300, 2)
        units = int(rng.integers(9, 80))
        off_by = np.minimum(rows / height, columns / width) - np.maximum(rows / height, columns / width)
        near = np.abs(off_by) <= 1 / min(height, width) + 1e-12
        most = (rows * columns)[near & (rows * columns <= units)].max()
        r, c = largest_grid(int(height), int(width), units)
        assert r * c == most and near[r - 1, c - 1]


def test_the_rules_of_qwen_vl_utils():
    """By hand, from its documentation: an even number of frames at ``fps`` between 4 and 768, and at most
    total_pixels / frames * 2 pixels a frame (of 2 frames to a slot), which it rounds down to whole units."""
    sampling = Sampling(fps=2.0, min_frames=4, min_pixels=128 * UNIT, max_pixels=768 * UNIT)
    sampling = dataclasses.replace(sampling, total_pixels=24576 * UNIT)
    # Of the last, theirs leaves 768 frames and exceeds the budget, which holds 24576 / 128 slots.
    for seconds, frames in ((10.0, 20), (1.0, 4), (0.5, 4), (60.0, 120), (150.0, 300), (500.0, 384)):
        shape = fit(sampling, info_of(seconds=seconds), factor=28)
        theirs = min(768 * UNIT, 24576 * UNIT / frames * 2)
        assert shape[0] == frames and 0.85 * theirs <= shape[1] * shape[2] <= theirs
    assert fit(dataclasses.replace(sampling, total_pixels=0), info_of(seconds=500.0), factor=28)[0] == 768


def test_an_image_is_one_slot():
    image = VideoInfo(1280, 720, duration=0.0, fps=0.0, frames=1)
    sampling = Sampling(fps=8.0, min_frames=4, min_pixels=4 * UNIT, max_pixels=256 * UNIT)
    assert fit(sampling, image, factor=28) == (
        2,
        *smart_resize(720, 1280, min_pixels=1, max_pixels=256 * UNIT),
    )
    for budget in (dict(max_tokens=100, slot_tokens=11), dict(max_tokens=None)):
        limited = dataclasses.replace(sampling, total_pixels=0 if budget["max_tokens"] else 100 * UNIT)
        shape = fit(limited, image, factor=28, **budget)
        assert shape[0] == 2 and 85 <= tokens(shape) <= 100
    np.testing.assert_array_equal(frame_times(sampling, image), [0, 0])


def test_what_does_not_fit_is_an_error():
    sampling = Sampling(fps=8.0, min_frames=4, min_pixels=64 * UNIT, max_pixels=256 * UNIT)
    for most in (-5, 0, 10, 100, 119):  # two slots of 60 units, the nearest to 64, are 120
        with pytest.raises(UserError, match="data.min_frames=4 frames of data.min_pixels=50176 are above"):
            fit(sampling, info_of(), factor=28, max_tokens=most)
    assert fit(sampling, info_of(), factor=28, max_tokens=120) == (4, 6 * 28, 10 * 28)
    with pytest.raises(UserError, match="data.total_pixels"):
        fit(dataclasses.replace(sampling, total_pixels=UNIT), info_of(), factor=28)
    one_frame = info_of(seconds=0.04)
    assert fit(sampling, one_frame, factor=28, max_tokens=64)[0] == 2
    with pytest.raises(ValueError, match="aspect ratio"):
        fit(sampling, info_of(10, 3000), factor=28)
    with pytest.raises(ValueError, match="the span 9 to 12 s"):
        fit(sampling, info_of(), (9.0, 12.0), factor=28)


RATES = [8, 10, 24, 25, fractions.Fraction(30000, 1001), 60]
SAMPLINGS = [
    dict(fps=2.0),
    dict(fps=8.0, min_frames=4),
    dict(fps=7.3, min_frames=6),
    dict(fps=8.0, max_frames=6),
    dict(fps=30.0),
    dict(frames=1),
    dict(frames=5),
    dict(frames=16),
]


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_the_reader_reads_what_is_planned(tmp_path, name, rate):
    """As many frames, at the predicted times to within a tick of the file. Matroska rounds to 1 ms both the
    times of frames and the duration from which their rate is known: where a frame begins at the very moment
    that is looked for, that or the one before it is read."""
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 9, 26, 49):
        path = write(tmp_path / name, greys(count), rate=rate)
        info = probe(path)
        assert (info.frames, info.tick > 0) == (count, True)
        parts = [(None, None)]
        if count > 8:
            start, end = np.sort(rng.uniform(0, info.duration, 2)).round(3)
            parts += [(None, end), (start, None), (start, end)]
        for options in SAMPLINGS:
            sampling = Sampling(**options)
            for part in parts:
                for most in (None, 100):
                    budget = dict(max_tokens=most) if most else {}
                    frames, height, width = fit(sampling, info, part, factor=28, **budget)
                    limits = dict(size=SIZE, frames=frames, start=part[0], end=part[1])
                    times = read_frames(path, sampling, **limits).times
                    assert len(times) == frames
                    apart = np.abs(times - frame_times(sampling, info, part, frames))
                    within = 1.001 * info.tick if name == "a.mp4" else 1 / info.fps + 2 * info.tick
                    assert apart.max() <= within


def test_a_variable_rate_never_gives_more_than_planned():
    rng = np.random.default_rng(0)
    for _ in range(500):
        times = np.append(0, rng.exponential(0.1, rng.integers(1, 60)).cumsum())
        info = VideoInfo(SIZE[1], SIZE[0], float(times[-1]) + 0.1, len(times) / (times[-1] + 0.1), len(times))
        start, end = np.sort(rng.uniform(0, info.duration, 2))
        for options in SAMPLINGS:
            sampling = Sampling(**options)
            for part in ((None, None), (start, end)):
                frames, _, _ = fit(sampling, info, part, factor=28, max_tokens=int(rng.integers(100, 800)))

                def on_screen(moments, times=times):
                    return np.searchsorted(times, moments, "right") - 1

                chosen = choose(sampling, info, part, on_screen, frames)
                assert len(chosen) <= frames and len(chosen) % 2 == 0 and (np.diff(chosen) >= 0).all()
                if part == (None, None):
                    assert len(chosen) == frames


def test_short_clips_get_the_least_number_of_frames():
    """Evenly spread, an even number, each frame at most once unless there is but one."""
    sampling = Sampling(fps=2.0, min_frames=4)
    np.testing.assert_allclose(frame_times(sampling, info_of(seconds=1.0, fps=8)), [0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(frame_times(sampling, info_of(seconds=0.3, fps=10)), [0, 0.1])
    np.testing.assert_allclose(frame_times(sampling, info_of(seconds=0.1, fps=10)), [0, 0])
    np.testing.assert_allclose(frame_times(sampling, info_of(seconds=2.0, fps=8)), [0, 0.5, 1.0, 1.5])
    assert len(frame_times(sampling, info_of(seconds=3.0, fps=8))) == 6


def test_frames_that_a_budget_leaves_are_evenly_spread():
    sampling = Sampling(fps=8.0, min_pixels=16 * UNIT, max_pixels=16 * UNIT)
    info = info_of(720, 720, seconds=20.0, fps=24)
    frames, height, width = fit(sampling, info, factor=28, max_tokens=640)
    assert (frames, height, width) == (80, 112, 112)
    np.testing.assert_allclose(frame_times(sampling, info, most=frames), np.arange(80) / 4)
    np.testing.assert_allclose(frame_times(sampling, info), np.arange(160) / 8)


def test_fields_of_a_config():
    data = base.get_config().data
    data.frames, data.fps, data.min_frames, data.max_frames, data.total_pixels = 0, 2.0, 6, 96, 1000 * UNIT
    expected = Sampling(None, 2.0, 6, 96, data.min_pixels, data.max_pixels, 1000 * UNIT)
    assert Sampling.of(data) == expected
    for name in ("min_frames", "max_frames", "total_pixels"):  # as in a run of an older version
        del data[name]
    assert Sampling.of(data) == Sampling(fps=2.0, min_pixels=data.min_pixels, max_pixels=data.max_pixels)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        dict(frames=4, fps=1.0),
        dict(frames=0),
        dict(frames=-2),
        dict(fps=0.0),
        dict(fps=-1.0),
        dict(fps=float("nan")),
        dict(fps=float("inf")),
        dict(fps=1.0, max_frames=0),
        dict(fps=1.0, min_frames=0),
        dict(fps=1.0, min_frames=5, max_frames=4),
        dict(fps=1.0, min_pixels=2 * UNIT, max_pixels=UNIT),
        dict(fps=1.0, total_pixels=-1),
    ],
)
def test_bad_sampling_is_refused(wrong):
    with pytest.raises(UserError, match="sampling"):
        Sampling(**wrong)


def test_seconds_per_slot():
    assert seconds_per_slot(np.arange(8) / 4) == pytest.approx(0.5)
    assert seconds_per_slot(np.array([1.0, 1.5, 2.0, 2.0])) == pytest.approx(1.0)  # the last one is repeated
    assert seconds_per_slot(np.array([0.0, 0.0, 1.0, 1.0, 2.0, 3.0])) == pytest.approx(1.2)
    assert seconds_per_slot(np.arange(9) / 3, temporal=3) == pytest.approx(1.0)
    assert seconds_per_slot(np.zeros(2)) == 0
