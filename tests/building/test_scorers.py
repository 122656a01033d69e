"""Scores of frames: what stands out, and what must not."""

import dataclasses

import numpy as np
import pytest

from vpjax.building.scorers import find_by_motion, key_runs, motion_scorer, product, span_scorer
from vpjax.data.keyframes import slots_of
from vpjax.data.video import Video
from vpjax.types import Clip, Keyword

FPS = 8
KEYWORD = Keyword("tips over", "tip over")
CLIP = Clip("a", "a.mp4", "What happens?", "A cup tips over.", (KEYWORD,))


def drifting(count=16, seed=0):
    """u8[F,40,40,3]: noise, and a square that drifts."""
    rng = np.random.default_rng(seed)
    frames = rng.normal(60, 2, (count, 40, 40, 3))
    for t in range(count):
        frames[t, 10:20, t : t + 10] += 140
    return frames.clip(0, 255).astype(np.uint8)


def another_scene(frames):
    """The same motion before stripes."""
    stripes = (np.arange(40) // 4 % 2 * 80).astype(np.uint8)
    return frames // 2 + stripes[:, None, None]


def video(frames):
    return Video(frames, np.arange(len(frames)) / FPS, 1 / FPS)


def spans_of(scorer, shown, clip=CLIP, **options):
    return key_runs(scorer(shown, clip, clip.keywords[0]), shown.times, **options)[0]


@pytest.mark.parametrize("length", [1, 2, 4])
def test_motion_finds_what_comes_and_goes(length):
    """Past a slow motion, a flicker and a flash of the whole picture, and a cut."""
    frames = drifting(24)
    frames[6 : 6 + length, 10:20] = 40
    frames[13] = (frames[13] * 1.25).astype(np.uint8)
    frames[14] = 255
    frames[18:] = another_scene(frames[18:])
    assert spans_of(motion_scorer, video(frames)) == ((6 / FPS, (6 + length) / FPS),)
    assert find_by_motion(video(frames), "", ()) == ((6 / FPS, (6 + length) / FPS),)


def test_a_small_event_stands_out_of_noise_that_comes_and_goes():
    """Of 16 pixels of 1,600, in noise of 2 to 6 grey levels."""
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        frames = drifting(24).astype(np.float64)
        frames[6:8, 30:34, 30:34] = 160
        frames += rng.uniform(2, 6, (24, 1, 1, 1)) * rng.normal(size=frames.shape)
        shown = video(frames.clip(0, 255).astype(np.uint8))
        found += spans_of(motion_scorer, shown) == ((6 / FPS, 8 / FPS),)
    assert found >= 18


def test_motion_finds_what_stays_changed():
    frames = drifting(16)
    frames[9:, 25:35, 25:35] = 200
    assert spans_of(motion_scorer, video(frames)) == ((8 / FPS, 10 / FPS),)


@pytest.mark.parametrize("kind", ["nothing", "steady", "cut", "two frames"])
def test_motion_finds_nothing_where_nothing_stands_out(kind):
    frames = drifting(2 if kind == "two frames" else 16)
    if kind == "nothing":
        frames[:] = frames[0]
    if kind == "cut":
        frames[8:] = another_scene(frames[8:])
    shown = video(frames)
    assert key_runs(motion_scorer(shown, CLIP, KEYWORD), shown.times) == ((), 0.0)


def annotated(*spans):
    return dataclasses.replace(CLIP, keywords=(dataclasses.replace(KEYWORD, spans=spans),))


def test_annotated_spans_are_kept_or_narrowed():
    frames = drifting(32)
    shown = video(frames)
    assert spans_of(span_scorer, shown, annotated((1.0, 1.5))) == ((1.0, 1.5),)  # nothing else to go by
    frames[10:12, 10:20] = 40
    assert spans_of(span_scorer, shown, annotated((0.75, 2.0))) == ((10 / FPS, 12 / FPS),)
    assert spans_of(span_scorer, shown, annotated((2.5, 3.0))) == ((2.5, 3.0),)  # the event lies elsewhere
    assert spans_of(span_scorer, shown, annotated()) == ()
    assert spans_of(span_scorer, shown, dataclasses.replace(CLIP, spans=((3.0, 3.5),))) == ((3.0, 3.5),)


def test_runs_are_those_above_half_of_the_peak():
    times = np.arange(10) / 2
    spans, confidence = key_runs(np.array([0, 0, 4, 5, 0, 1, 0, 0, 3, 0.0]), times)
    assert spans == ((1.0, 2.0), (4.0, 4.5)) and confidence == pytest.approx(12 / 13)
    # Only their order and height above the rest count.
    assert key_runs(7 + 3 * np.array([0, 0, 4, 5, 0, 1, 0, 0, 3, 0.0]), times)[0] == spans
    assert key_runs(np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 1.0]), times) == (((4.5, 5.0),), 1.0)


def test_runs_keep_to_the_cap_and_to_what_stands_out():
    times = np.arange(10.0)
    scores = np.array([0, 5, 4, 3, 0, 0, 0, 0, 0, 0.0])
    assert key_runs(scores, times, cap=0.3)[0] == ((1.0, 4.0),)
    assert key_runs(scores, times, cap=0.2)[0] == ((1.0, 3.0),)
    assert key_runs(np.array([0, 5, 5, 5, 0, 0, 0, 0, 0, 0.0]), times, cap=0.2) == ((), 0.0)  # which two?
    assert key_runs(np.ones(10), times) == ((), 0.0)
    noise = np.random.default_rng(0).normal(size=(200, 16))
    assert np.mean([bool(key_runs(row, np.arange(16.0))[0]) for row in noise]) < 0.2


def test_a_frame_that_is_there_twice_counts_once():
    times = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 4.0])
    assert key_runs(np.array([0, 0, 0, 0, 9, 9.0]), times)[0] == ((4.0, 5.0),)
    assert key_runs(np.array([5.0, 5.0]), np.zeros(2)) == ((), 0.0)  # an image


def test_runs_mark_the_slots_they_were_found_in():
    """Through seconds and back, at a rate whose times are no round numbers."""
    times = np.arange(16) / 29.97 * 5
    for first in range(15):
        scores = np.zeros(16)
        scores[first] = 1
        spans, _ = key_runs(scores, times)
        assert np.flatnonzero(slots_of(spans, times, 1 / 29.97)).tolist() == [first // 2]


def test_a_product_is_high_where_its_factors_agree():
    shown = video(drifting())

    def first(*_):
        return np.array([0, 0, 8, 8, 0, 0, 0, 0] * 2, np.float32)

    def second(*_):
        return np.array([-1, -1, -1, 1, 1, -1, -1, -1] + [-1] * 8, np.float32)

    def silent(*_):
        return np.zeros(16)

    assert np.flatnonzero(product(first, second)(shown, CLIP, KEYWORD)).tolist() == [3]
    np.testing.assert_array_equal(product(first)(shown, CLIP, KEYWORD), first() / 8)
    assert not product(first, silent)(shown, CLIP, KEYWORD).any()
