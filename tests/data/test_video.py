"""The choice of frames, their times, and the errors for files that cannot be read."""

import fractions
import socket

import av
import numpy as np
import pytest
from PIL import Image

from tests.videos import (
    FORMATS,
    OPEN_GROUPS,
    SIZE,
    frame_numbers,
    greys,
    noisy,
    read,
    write,
)
from vpjax.data import decode as decode_module
from vpjax.data import images
from vpjax.data import video as module
from vpjax.data.positions import time_ids
from vpjax.data.sampling import Sampling, VideoInfo, fit, frame_interval, seconds_per_slot
from vpjax.data.video import probe, probe_image, read_frames, read_image
from vpjax.files import write_whole
from vpjax.types import UserError

MILLISECONDS = fractions.Fraction(1, 1000)


@pytest.fixture
def decoded_once(monkeypatch):
    """Fails if a file is decoded twice, which is needed only if its packets do not tell its frames' times."""
    monkeypatch.setattr(module, "frame_index", None)


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_as_many_frames_as_there_are_are_those_frames(tmp_path, monkeypatch, options):
    options = dict(options)
    if options["name"] not in ("a.h264", "a.avi"):  # which have no times at which frames are shown
        monkeypatch.setattr(module, "frame_index", None)
    path = write(tmp_path / options.pop("name"), greys(30), **options)
    video = read(path, frames=30)
    assert frame_numbers(video) == list(range(30))
    # Matroska rounds to 1 ms, a transport stream to 1/90000 s.
    np.testing.assert_allclose(video.times, np.arange(30) / 25, rtol=0, atol=5.1e-4)
    info = probe(path)
    assert (info.height, info.width, info.frames) == (*SIZE, 30)
    assert info.duration == pytest.approx(1.2, abs=1e-3)
    assert info.fps == pytest.approx(25, abs=0.03)


def on_screen(times, moment):
    """The last frame that begins at or before a moment."""
    return max(i for i, time in enumerate(times) if time <= moment)


IRREGULAR = (0, 40, 60, 300, 310, 330, 800, 1000, 1010, 1400, 1900, 1950)  # ms


@pytest.fixture(scope="module")
def irregular(tmp_path_factory):
    return write(tmp_path_factory.mktemp("vfr") / "a.mp4", greys(12), IRREGULAR, tick=MILLISECONDS)


def test_variable_rate_is_respected(irregular):
    video = read(irregular, frames=12)
    assert frame_numbers(video) == list(range(12))
    np.testing.assert_allclose(video.times, np.array(IRREGULAR) / 1000, rtol=0, atol=1e-9)
    assert probe(irregular).frames == 12


@pytest.mark.parametrize("fps", [1.0, 2.0, 4.0, 7.0])
def test_at_a_rate_the_frame_on_screen_comes(irregular, fps):
    """As many as the rate gives, an even number, evenly spread; at most each frame once."""
    times, duration = np.array(IRREGULAR) / 1000, probe(irregular).duration
    count = max(int(min(duration * fps, len(times))) // 2 * 2, 2)
    expected = [on_screen(times, k * duration / count) for k in range(count)]
    if count == len(times):
        expected = list(range(count))
    video = read(irregular, fps=fps)
    assert frame_numbers(video) == expected
    np.testing.assert_allclose(video.times, times[expected], rtol=0, atol=1e-9)


@pytest.mark.parametrize("frames", [2, 4, 6, 8])
def test_uniform_frames_are_those_on_screen(irregular, frames):
    duration = probe(irregular).duration
    expected = [on_screen(np.array(IRREGULAR) / 1000, k * duration / frames) for k in range(frames)]
    assert frame_numbers(read(irregular, frames=frames)) == expected


@pytest.mark.parametrize(
    "rate, total, sampling",
    [
        (25, 50, dict(fps=2.0)),  # every 12.5th frame, for which an earlier one is on screen
        (10, 40, dict(fps=4.0)),
        (30, 60, dict(fps=8.0)),
        (25, 33, dict(fps=8.0)),
        (25, 40, dict(frames=16)),
        (25, 9, dict(frames=100)),  # all of them, the last one twice
    ],
)
def test_slots_last_as_long_as_qwens_own_code_says(tmp_path, rate, total, sampling):
    """qwen-vl-utils: frames over seconds, whenever the frames on screen at those moments begin. So positions
    are those of the model's pretraining, and of whoever serves it."""
    path = write(tmp_path / "a.mp4", greys(total), rate=rate)
    video, plan = read(path, **sampling), Sampling(**sampling)
    count = min(len(video.times), total)
    sample_fps = count / total * rate
    assert video.seconds_per_slot(2) == pytest.approx(2 / sample_fps, rel=1e-9)
    planned = frame_interval(plan, probe(path), (None, None), len(video.times))
    assert planned == pytest.approx(1 / sample_fps, rel=1e-9)
    per_second = 2 * sample_fps  # at which each slot has four positions
    assert time_ids(count // 2, video.seconds_per_slot(2), per_second).tolist() == [
        *range(0, 4 * (count // 2), 4)
    ]


def test_slots_of_a_part_and_of_uneven_frames(irregular, tmp_path):
    path = write(tmp_path / "a.mp4", greys(50))
    assert read(path, frames=4, start=0.4, end=1.2).seconds_per_slot(2) == pytest.approx(0.4)
    assert read(path, frames=3).seconds_per_slot(2) == pytest.approx(2 * 2.0 / 3)
    duration = probe(irregular).duration  # whose last frame is on screen at several moments
    assert read(irregular, frames=8).seconds_per_slot(2) == pytest.approx(2 * duration / 8)
    changed = read(path, frames=4, pick="change")  # frames anywhere in their parts
    assert changed.seconds_per_slot(2) == seconds_per_slot(changed.times)


def test_an_odd_count_repeats_the_last_frame(tmp_path):
    path = write(tmp_path / "a.mp4", greys(9))
    assert frame_numbers(read(path, frames=9)) == [*range(9), 8]
    video = read(path, frames=3)
    assert frame_numbers(video) == [0, 3, 6, 6]
    np.testing.assert_allclose(video.times, [0, 0.12, 0.24, 0.24], rtol=0, atol=1e-9)
    assert seconds_per_slot(video.times) == pytest.approx(0.24)
    assert frame_numbers(read(path, frames=1)) == [0, 0]
    assert frame_numbers(read(path, frames=100)) == [*range(9), 8]


def test_a_clip_of_one_frame(tmp_path):
    path = write(tmp_path / "a.mp4", greys(1))
    for sampling in (dict(frames=4), dict(fps=1.0), dict(fps=100.0)):
        video = read(path, **sampling)
        assert set(frame_numbers(video)) == {0} and not video.times.any()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_rounded_times_lose_no_frame(tmp_path, name):
    # 1/30 s is no whole number of milliseconds: in Matroska frame 1 begins early, at 33 ms, frame 2 late, at
    # 67 ms. AVI counts in frames, where only floats round.
    path = write(tmp_path / name, greys(30), rate=30, codec="mpeg4" if name == "a.avi" else "libx264", b="4M")
    assert frame_numbers(read(path, fps=30.0)) == list(range(30))
    assert frame_numbers(read(path, fps=15.0)) == [30 * k // 14 for k in range(14)]
    assert frame_numbers(read(path, fps=10.0)) == list(range(0, 30, 3))
    assert frame_numbers(read(path, frames=15, start=0.0, end=0.5)) == [*range(15), 14]
    for frames in (2, 6, 10):
        assert frame_numbers(read(path, frames=frames)) == list(range(0, 30, 30 // frames))


def test_a_rate_stops_at_max_frames(tmp_path):
    path = write(tmp_path / "a.mp4", greys(24), rate=24)
    assert frame_numbers(read(path, fps=12.0, max_frames=12)) == list(range(0, 24, 2))
    assert (
        frame_numbers(read(path, fps=12.0, max_frames=6))
        == frame_numbers(read(path, frames=6))
        == list(range(0, 24, 4))
    )


def test_frames_are_as_planned_without_a_plan_too(tmp_path):
    path = write(tmp_path / "a.mp4", greys(60, (256, 384)), rate=10)
    for most in (40, 300, 10**6):
        sampling = Sampling(fps=5.0, min_frames=4, total_pixels=most * 28**2)
        frames, *size = fit(sampling, probe(path), (1.0, None), factor=28)
        video = read_frames(path, sampling, start=1.0)
        assert video.frames.shape == (frames, *size, 3)
        expected = read_frames(path, sampling, size=tuple(size), frames=frames, start=1.0)
        np.testing.assert_array_equal(video.frames, expected.frames)
        np.testing.assert_array_equal(video.times, expected.times)
    assert video.frames.shape == (24, 252, 392, 3)
    with pytest.raises(UserError, match="a.mp4: the span 9 to 6 s"):
        read_frames(path, sampling, start=9.0)
    with pytest.raises(UserError, match="data.min_frames=4 frames"):
        read_frames(path, Sampling(fps=5.0, min_frames=4, total_pixels=28**2))


def test_a_span_is_in_seconds_of_the_clip(tmp_path):
    path = write(tmp_path / "a.mp4", greys(30), rate=10)
    video = read(path, frames=4, start=1.0, end=1.8)
    assert frame_numbers(video) == [10, 12, 14, 16]
    np.testing.assert_allclose(video.times, [1.0, 1.2, 1.4, 1.6], rtol=0, atol=1e-9)
    assert frame_numbers(read(path, fps=5.0, start=2.5)) == [25, 27]
    assert frame_numbers(read(path, frames=2, end=0.2)) == [0, 1]
    assert frame_numbers(read(path, frames=8, start=1.05, end=1.15)) == [
        10,
        11,
    ]  # 10 is still on screen at 1.05 s
    assert frame_numbers(read(path, frames=2, start=2.9, end=3.05)) == [
        29,
        29,
    ]  # an end rounded up by half a frame


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.webm"])
@pytest.mark.parametrize("open_groups", [False, True])
def test_seeking_gives_what_decoding_all_gives(tmp_path, monkeypatch, decoded_once, name, open_groups):
    if name.endswith("webm"):
        options = dict(codec="libvpx-vp9", deadline="realtime", **{"cpu-used": "8"})
    else:
        options = {"x264-params": OPEN_GROUPS} if open_groups else {}
    noise = np.random.default_rng(0).integers(0, 256, (150, *SIZE, 3), np.uint8)
    path = write(tmp_path / name, noise, **options)
    everything = read(path, frames=150)
    assert len(everything.frames) == 150
    for sampling in (dict(frames=10), dict(fps=1.3), dict(frames=4, start=4.0, end=4.5)):
        monkeypatch.setattr(decode_module, "SEEK_GAIN", 10**9)
        decoded = read(path, **sampling)
        monkeypatch.setattr(decode_module, "SEEK_GAIN", 1)
        sought = read(path, **sampling)
        np.testing.assert_array_equal(sought.frames, decoded.frames)
        np.testing.assert_array_equal(sought.times, decoded.times)
        places = np.searchsorted(everything.times, sought.times)
        np.testing.assert_array_equal(sought.frames, everything.frames[places])


def test_an_edit_list_hides_frames(tmp_path, decoded_once):
    # Frames 0 to 4 are there to decode from, but the file states that it begins after them.
    path = write(tmp_path / "a.mp4", greys(30), range(-5, 25), muxer={"avoid_negative_ts": "disabled"})
    video = read(path, frames=30)
    assert frame_numbers(video) == [*range(5, 30), 29]
    np.testing.assert_allclose(video.times[:25], np.arange(25) / 25, rtol=0, atol=1e-9)
    assert probe(path).frames == 25


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv"])
def test_frames_before_the_first_keyframe_are_not_counted(tmp_path, decoded_once, name):
    """As in a clip that was cut out of a film without encoding it again."""
    whole = write(tmp_path / "a.mp4", greys(30), **{"x264-params": OPEN_GROUPS})
    with av.open(str(whole)) as source, av.open(str(tmp_path / name), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        second = [place for place, packet in enumerate(packets) if packet.is_keyframe][1]
        assert packets[second + 1].pts < packets[second].pts  # shown before, refers to what is not there
        for packet in packets[second:]:
            packet.stream = stream
            target.mux(packet)
    assert frame_numbers(read(tmp_path / name, frames=30)) == list(range(12, 30))
    assert probe(tmp_path / name).frames == 18


# Videos at URLs, and folders of images.


def moved(path, folder="memory://videos"):
    """A copy of a file on another file system, which fsspec reaches."""
    url = f"{folder}/{path.name}"
    write_whole(url, path.read_bytes())
    return url


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.h264"])
def test_a_video_at_a_url_is_the_same(tmp_path, monkeypatch, name):
    monkeypatch.setattr(decode_module, "SEEK_GAIN", 1)
    path = write(tmp_path / name, greys(40), codec="mpeg4" if name == "a.avi" else "libx264", b="4M")
    url = moved(path)
    assert probe(url) == probe(path)
    ours, theirs = (read(place, frames=4, start=0.4) for place in (url, path))
    np.testing.assert_array_equal(ours.frames, theirs.frames)
    np.testing.assert_array_equal(ours.times, theirs.times)


def test_problems_at_a_url_are_named(tmp_path):
    with pytest.raises(UserError, match="memory://videos/none.mp4: no such file"):
        probe("memory://videos/none.mp4")
    path = write(tmp_path / "cut.mp4", greys(40))
    path.write_bytes(path.read_bytes()[:-700])
    reasons = []
    for place in (path, moved(path)):
        with pytest.raises(UserError) as error:
            read(place, frames=4)
        reasons.append(str(error.value).partition("cut.mp4: ")[2])
    assert reasons[0] == reasons[1] != ""
    Image.fromarray(noisy(1)[0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        read_image(moved(tmp_path / "a.png")).frames, read_image(tmp_path / "a.png").frames
    )


@pytest.fixture(params=["local", "elsewhere"])
def folder(request, tmp_path):
    """Twelve images in a folder, with other files between them."""
    for number, pixels in enumerate(greys(12)):
        Image.fromarray(pixels).save(tmp_path / f"{number + 1}.png")  # 10.png comes after 9.png
    (tmp_path / "3.txt").write_text("no image")
    if request.param == "local":
        return tmp_path
    for path in tmp_path.iterdir():
        moved(path, "memory://images")
    return "memory://images"


def test_a_folder_of_images_is_a_video(folder):
    assert probe(folder) == VideoInfo(SIZE[1], SIZE[0], 1.2, pytest.approx(10), 12)
    video = read(folder, frames=12)
    assert frame_numbers(video) == list(range(12)) and video.frame_seconds == pytest.approx(0.1)
    np.testing.assert_allclose(video.times, np.arange(12) / 10, rtol=0, atol=1e-12)
    assert frame_numbers(read(folder, frames=4)) == [0, 3, 6, 9]
    assert frame_numbers(read(folder, fps=5.0, start=0.6, end=1.2)) == [6, 9]


@pytest.mark.parametrize(
    "name, rate",
    [
        ("frames_fps3_hq/castle_s01e01_seg02_clip_00", 3),  # TVQA's, in MVBench
        ("fps3/a_24fps", 24),
        ("fps_2.5/a", 2.5),
        ("clips/fps", 10),
        ("60fps/b/c", 10),  # of a folder around that
        ("fps0/a", 10),
    ],
)
def test_the_name_of_a_folder_may_state_its_rate(tmp_path, name, rate):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    for number in range(1, 13):
        Image.new("RGB", (56, 56)).save(folder / f"{number:05d}.jpg")
    info = probe(folder)
    assert (info.fps, info.duration) == (pytest.approx(rate), pytest.approx(12 / rate))
    second = read_frames(folder, Sampling(frames=2), start=1 / rate, end=3 / rate)
    assert second.times == pytest.approx([1 / rate, 2 / rate])


def test_folders_that_are_no_video_are_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: is a folder without images"):
        probe(tmp_path)
    with pytest.raises(UserError, match="is a folder"):
        read_image(tmp_path)
    Image.new("RGB", (40, 30)).save(tmp_path / "1.png")
    Image.new("RGB", (400, 300)).save(tmp_path / "2.png")
    with pytest.raises(UserError, match="2.png: 400 x 300 pixels, the frames before it 40 x 30"):
        read_frames(tmp_path, Sampling(frames=2))
    (tmp_path / "2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="2.png: is damaged or no image"):
        read_frames(tmp_path, Sampling(frames=2))


def test_images_are_opened_in_the_formats_that_are_meant(tmp_path, monkeypatch):
    """Whatever their suffix; an EPS would start Ghostscript."""
    picture = Image.fromarray(np.full((32, 56, 3), 90, np.uint8))
    for format in images.FORMATS:
        picture.save(tmp_path / "a.jpg", format)
        assert probe_image(tmp_path / "a.jpg").width == 56
        assert abs(read_image(tmp_path / "a.jpg").frames.astype(int) - 90).max() <= 2
    for format in ("EPS", "PPM", "TGA", "PCX", "PDF"):
        picture.save(tmp_path / "a.jpg", format)
        monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program is started"))
        for work in (probe_image, read_image):
            with pytest.raises(UserError, match="a.jpg: is damaged or no image"):
                work(tmp_path / "a.jpg")


def test_an_image_is_measured_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("RGB", (7072, 7072)).save(tmp_path / "a.png")  # 50 million pixels and a few
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it is decoded"))
    for work in (probe_image, read_image):
        with pytest.raises(UserError, match="a.png: 7072 x 7072 pixels are more than 50,000,000$"):
            work(tmp_path / "a.png")


@pytest.mark.parametrize("place", ["local", "elsewhere"])
def test_a_playlist_fetches_nothing(tmp_path, place):
    """From a server that would notice."""
    path = f"{tmp_path}/a.m3u8" if place == "local" else "memory://playlists/a.m3u8"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        lines = [
            "#EXTM3U",
            "#EXT-X-VERSION:3",
            "#EXT-X-TARGETDURATION:2",
            "#EXTINF:2.0,",
            url,
            "#EXT-X-ENDLIST",
        ]
        write_whole(path, "\n".join([*lines, ""]).encode())
        with pytest.raises(UserError, match="a.m3u8: is damaged or no video"):
            probe(path)
        with pytest.raises(TimeoutError):
            server.accept()


def test_frames_of_other_sizes_are_brought_to_that_of_the_first(tmp_path):
    """A stream whose resolution changes in its middle."""
    first = write(tmp_path / "a.ts", greys(12, (56, 84))).read_bytes()
    second = write(tmp_path / "b.ts", greys(12, (112, 56)), range(12, 24)).read_bytes()
    (tmp_path / "a.ts").write_bytes(first + second)
    video = read(tmp_path / "a.ts", size=None, fps=25, min_pixels=1, max_pixels=28 * 28 * 6)
    assert len(video.frames) >= 20 and video.frames.shape[1:] == (56, 84, 3)


def test_a_packet_of_a_stream_that_no_header_names_is_damage():
    """As PyAV reports it."""

    class Container:
        def demux(self):
            yield "packet"
            raise IndexError("list index out of range")

    packets = decode_module.packets_of(Container())
    assert next(packets) == "packet"
    with pytest.raises(decode_module.Problem, match="of no stream that its header names"):
        next(packets)
