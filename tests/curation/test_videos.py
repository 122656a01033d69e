"""What is measured on videos: where the picture changes most, and what they look like."""

import numpy as np
import pytest

from tests.building.flash_video import END, FIRST, write_videos
from vpjax.building.examine import Options
from vpjax.building.items import Item
from vpjax.curation.videos import PICTURE, Measurer, motion_peak, picture_of
from vpjax.data.video import Video
from vpjax.types import Clip

SECONDS = 8.0


def flash(*at):
    """A lamp that is on for two frames at each moment."""
    times = np.arange(int(SECONDS * 8)) / 8
    frames = np.full((len(times), 28, 28, 3), 60, np.uint8)
    frames += np.random.default_rng(0).integers(0, 3, frames.shape, np.uint8)
    for moment in at:
        frames[(moment <= times) & (times < moment + 0.25), 4:20, 4:20] = 220
    return Video(frames, times, 1 / 8)


def test_the_peak_of_motion_is_inside_the_span_or_not():
    video = flash(3.0)
    assert motion_peak(video, [(2.5, 3.5)]) > 0.9
    assert motion_peak(video, [(0.0, SECONDS)]) == 1
    assert motion_peak(video, [(5.0, 6.0)]) == 0
    assert motion_peak(video, []) is None
    assert motion_peak(flash(), [(2.0, 3.0)]) == 0
    # Two events of one strength.
    assert motion_peak(flash(1.0, 6.0), [(0.5, 2.0)]) == pytest.approx(0.5, abs=0.05)


def test_clips_are_measured_while_they_are_examined(tmp_path):
    options = Options(videos=str(write_videos(tmp_path)))
    measurer = Measurer(("peak", "picture_copy"))

    def examined(name, *spans, answer="The lamp flashes."):
        clip = Clip("a", name, "What happens?", answer, spans=spans)
        (found,) = measurer([Item("row 1", clip)], options)
        return found.item

    item = examined("flash.mp4", (FIRST - 0.5, END + 0.5))
    numbers = item.clip.extra["measured"]
    assert numbers["peak"] > 0.9 and item.clip.keywords[0].spans
    assert picture_of(numbers[PICTURE]).dtype == np.uint32
    assert examined("flash.mp4", (0.0, 1.0)).clip.extra["measured"]["peak"] == 0
    assert examined("flash.mp4").clip.extra["measured"]["peak"] is None
    assert examined("p.png").clip.extra["measured"] == dict.fromkeys(["peak", "picture_copy", PICTURE])
    assert "unreadable" in examined("broken.mp4").skipped and "missing" in examined("none.mp4").skipped
