"""Events that no sampled slot shows are counted from the plan, as the reader then misses them."""

import numpy as np
import pytest

from tests.videos import SIZE, greys, write
from vpjax.data.coverage import PlannedClip, check, measure
from vpjax.data.keyframes import slots_of
from vpjax.data.sampling import Sampling, VideoInfo, fit
from vpjax.data.video import probe, read_frames
from vpjax.types import UserError

WHOLE = (None, None)


def info_of(seconds, fps=25.0):
    return VideoInfo(1280, 720, seconds, fps, round(seconds * fps))


def planned(events, sampling, seconds=10.0, part=WHOLE, max_tokens=None):
    info = info_of(seconds)
    return PlannedClip(events, info, part, fit(sampling, info, part, factor=28, max_tokens=max_tokens))


def test_an_event_is_missed_where_no_sampled_frame_is_on_screen_during_it():
    rng = np.random.default_rng(0)
    for _ in range(400):
        fps, rate = float(rng.choice([1, 2, 5, 8])), float(rng.choice([24, 25, 30]))
        info = info_of(float(rng.integers(2, 40)), rate)
        sampling = Sampling(fps=fps)
        start = rng.uniform(0, info.duration - 1)
        end = start + rng.lognormal(-1.5, 1)
        # Frame k is on screen from k / rate to (k + 1) / rate; an even number of them is read, evenly spread.
        # A hundredth of a frame in between is left to the tolerance for rounded annotations.
        count = max(int(info.duration * fps + 1e-6) // 2 * 2, 2)
        read = np.floor(np.arange(count) * info.frames / count + 1e-6)
        inside = np.minimum((read + 1) / rate - start, end - read / rate)
        if np.abs(inside).min() < 2e-3:
            continue
        shape = fit(sampling, info, factor=28)
        coverage = measure([PlannedClip([((start, end),)], info, WHOLE, shape)], sampling)
        assert coverage.missed.tolist() == [not (inside > 0).any()]


@pytest.mark.parametrize("rate", [12, 25])
@pytest.mark.parametrize("options", [dict(fps=2.0), dict(fps=8.0), dict(frames=6)])
def test_the_reader_misses_the_same_events(tmp_path, rate, options):
    path = write(tmp_path / "a.mp4", greys(75), rate=rate)
    info, sampling = probe(path), Sampling(min_frames=4, **options)
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, info.duration - 0.5, 200)
    events = [
        ((start, start + length),) for start, length in zip(starts, rng.uniform(0, 0.4, 200), strict=True)
    ]
    for part, most in ((WHOLE, None), ((0.3, 2.6), None), (WHOLE, 40)):
        shape = fit(sampling, info, part, factor=28, max_tokens=most)
        video = read_frames(path, sampling, size=SIZE, frames=shape[0], start=part[0], end=part[1])
        inside = [spans for spans in events if spans[0][0] < (part[1] or 9) and spans[0][1] >= (part[0] or 0)]
        missed = [not slots_of(spans, video.times, video.frame_seconds).any() for spans in inside]
        coverage = measure([PlannedClip(events, info, part, shape)], sampling)
        assert (coverage.missed.sum(), len(coverage.missed)) == (sum(missed), len(inside))
        assert coverage.outside == len(events) - len(inside)
        assert 0 < sum(missed) < len(inside)


def test_the_table_by_hand():
    every_second = Sampling(fps=1.0)  # a frame of 0.04 s at each whole second
    clips = [
        planned([((1.5, 1.6),), ((2.0, 2.1),)], every_second),  # below 0.125 s: one of two is missed
        planned([((3.1, 3.5),)], every_second, seconds=40.0),  # 0.25 to 0.5 s in 30 to 60 s: missed
        planned([((3.1, 5.2),)], every_second, seconds=100.0),  # above 2 s, in a longer clip: shown
        planned([], every_second),
    ]
    coverage = measure(clips, every_second)
    table = coverage.table()
    cells = {
        (row[0], name): cell for row in table[1:] for name, cell in zip(table[0][1:], row[1:], strict=True)
    }
    filled = {place: cell for place, cell in cells.items() if cell != "-" and "all" not in f"{place}"}
    assert filled == {
        ("events below 0.125 s", "clips to 10 s"): "50.0 (2)",
        ("events 0.25 to 0.5 s", "clips 30 to 60 s"): "100.0 (1)",
        ("events above 2 s", "clips above 60 s"): "0.0 (1)",
    }
    assert cells["events below 0.125 s", "all clips"] == cells["all events", "clips to 10 s"] == "50.0 (2)"
    assert cells["all events", "all clips"] == "50.0 (4)" and len(table) == 8 and len(table[0]) == 6
    assert (coverage.share(), coverage.share(30.0)) == (0.5, 0.5)
    lines = coverage.lines()
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[-1] == "2 of 4 annotated events (50.0 %) are in no slot; in clips up to 30 s 50.0 %"


def test_what_counts_as_an_event():
    sampling = Sampling(fps=1.0)
    shown, missed = (2.0, 2.1), (1.5, 1.9)
    assert measure([planned([(missed, shown)], sampling)], sampling).missed.tolist() == [False]
    assert measure([planned([(missed, (3.3, 3.4))], sampling)], sampling).event_seconds == pytest.approx(
        [0.4]
    )
    same = measure([planned([(missed,), (missed,), (shown,), ()], sampling)], sampling)
    assert sorted(same.missed) == [False, True]
    part = measure([planned([(missed,), (shown,), ((4.0, 4.4),)], sampling, part=(3.0, 9.0))], sampling)
    assert (len(part.missed), part.outside, part.share()) == (1, 2, 0.0)
    assert part.lines()[-1] == "2 annotated events lie outside of their clips and are not counted"
    image = VideoInfo(100, 100, duration=0.0, fps=0.0, frames=1)
    nothing = measure([PlannedClip([(missed,)], image, WHOLE, (2, 56, 56))], sampling)
    assert (len(nothing.missed), nothing.share(), nothing.lines()) == (0, 0.0, [])
    check(nothing, 0.0)


def test_too_large_a_share_stops_with_what_to_change():
    sampling = Sampling(fps=1.0, min_pixels=64 * 28**2, max_pixels=64 * 28**2)
    events = [((1.5, 1.6),), ((2.0, 2.1),)]
    clips = [planned(events, sampling)]
    check(measure(clips, sampling), 0.5)
    with pytest.raises(UserError) as error:
        check(measure(clips, sampling), 0.49)
    assert str(error.value) == (
        "1 of 2 annotated events (50.0 %) are in no slot, more than data.max_missed_share=0.49 allows: "
        "raise data.fps=1 for 1 of them"
    )
    clips.append(planned(events, sampling, max_tokens=128))  # 4 frames in place of 10: 0, 2.5, 5 and 7.5 s
    with pytest.raises(UserError) as error:
        check(measure(clips, sampling), 0.5)
    line = str(error.value)
    assert line.startswith("3 of 4")
    assert "raise data.fps=1 for 1 of them; lower data.min_pixels=50176, or raise data.max_tokens" in line
    assert line.endswith("for 2 whose clips have fewer frames than asked for")
    uniform = Sampling(frames=4)
    with pytest.raises(UserError, match="set data.fps in place of data.frames for 2 of them"):
        check(measure([planned(events, uniform)], uniform), 0.0)
