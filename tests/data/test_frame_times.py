"""Files that do not say when their frames are shown, or not of each: the frames of a time are still those."""

import av
import numpy as np
import pytest

from tests.videos import SIZE, frame_numbers, greys, read, write
from vpjax.data.video import probe


def rising(count):
    """Frames that rise slowly above noise, so that x264 shows many in another order than they are decoded in:
    number i is 2 * i brighter than the first."""
    noise = np.random.default_rng(0).integers(0, 30, (*SIZE, 1), np.uint8)
    return (noise + 2 * np.arange(count)[:, None, None, None]).astype(np.uint8).repeat(3, -1)


def rising_numbers(video):
    levels = video.frames.mean((1, 2, 3))
    return np.rint((levels - 14.5) / 2).astype(int).tolist()


REORDERED = {"x264-params": "bframes=1:b-adapt=0:scenecut=0:keyint=50:weightp=0:qp=10"}


def remuxed(source, target):
    """The same packets in another file."""
    with av.open(str(source)) as read_from, av.open(str(target), "w") as file:
        stream = file.add_stream_from_template(read_from.streams.video[0])
        for packet in read_from.demux(video=0):
            if packet.size:
                packet.stream = stream
                file.mux(packet)
    return target


@pytest.mark.parametrize("name", ["a.avi", "from-avi.mp4"])
def test_frames_without_times_of_their_own_are_counted(tmp_path, name):
    """H.264 with B-frames in AVI, which has no times but those of decoding, and an mp4 made of such a file:
    what FFmpeg takes for a frame's time is that of another frame."""
    path = write(tmp_path / "a.avi", rising(100), **REORDERED)
    if name != "a.avi":
        path = remuxed(path, tmp_path / name)
    for sampling in (dict(fps=2.0), dict(frames=5), dict(frames=4, start=2.0, end=2.3)):
        video = read(path, **sampling)
        assert rising_numbers(video) == np.rint(video.times * 25).astype(int).tolist()
    assert (probe(path).frames, probe(path).duration) == (100, pytest.approx(4.0))


def test_a_program_stream_is_not_sought_in(tmp_path):
    """Where few packets have a time, what FFmpeg derives for the others depends on where it begins."""
    path = write(tmp_path / "a.mpg", greys(150), codec="mpeg1video", bf="2", b="3M")
    for frames in (3, 5, 6, 9):
        video = read(path, frames=frames)
        assert frame_numbers(video) == (np.rint(video.times * 25).astype(int) % 32).tolist()


def test_files_written_one_behind_another_are_all_read(tmp_path):
    path = write(tmp_path / "a.mpg", greys(30), codec="mpeg2video", b="4M")
    path.write_bytes(path.read_bytes() * 2)  # the times of the second are those of the first
    assert (probe(path).frames, probe(path).duration) == (60, pytest.approx(2.4))
    assert frame_numbers(read(path, frames=60)) == [*range(30), *range(30)]


@pytest.mark.parametrize("rate", [10, 25, 30])
def test_a_bare_stream_states_its_rate_itself(tmp_path, rate):
    path = write(tmp_path / "a.h264", greys(30), rate=rate)
    assert probe(path).fps == pytest.approx(rate) and probe(path).duration == pytest.approx(30 / rate)
    np.testing.assert_allclose(read(path, frames=30).times, np.arange(30) / rate, rtol=0, atol=1e-9)
