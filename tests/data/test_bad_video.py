"""Videos and images that cannot be read are named in one line."""

import re
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from tests.videos import (
    greys,
    noisy,
    quarters,
    read,
    write,
    write_sound,
)
from vpjax.data.sampling import Sampling
from vpjax.data.video import probe, read_frames, read_image
from vpjax.types import UserError


def damaged(path):
    """Bytes overwritten in the middle of the pictures."""
    content = bytearray(write(path, noisy(60), muxer={"movflags": "faststart"}).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = np.random.default_rng(1).bytes(3000)
    path.write_bytes(content)


def cut(path, share, **options):
    content = write(path, noisy(60), **options).read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def cut_between(path):
    """Some packets are whole, the others are gone."""
    write(path, noisy(60), muxer=FASTSTART)
    with av.open(str(path)) as file:
        places = sorted(packet.pos for packet in file.demux(video=0) if packet.size)
    path.write_bytes(path.read_bytes()[: places[40]])


FASTSTART = {"movflags": "faststart"}
FAST_VP8 = dict(codec="libvpx", deadline="realtime")
BAD = {
    "missing": ("a.mp4", lambda path: None, "no such file"),
    "a folder": ("a.mp4", lambda path: path.mkdir(), "no such file|is a folder|directory"),
    "empty": ("a.mp4", lambda path: path.touch(), ""),
    "text": ("a.mp4", lambda path: path.write_text("not a video\n" * 99), ""),
    "text called text": ("a.txt", lambda path: path.write_text("not a video\n" * 99), ""),
    "sound only": ("a.mp4", write_sound, "no video stream"),
    "sound called sound": ("a.mp2", write_sound, "no video stream"),
    "index lost": ("a.mp4", lambda path: cut(path, 0.7), ""),
    "first half": ("a.mp4", lambda path: cut(path, 0.5, muxer=FASTSTART), "cut short"),
    "last frame cut": ("a.mp4", lambda path: cut(path, 0.99, muxer=FASTSTART), "cut short"),
    "cut between two frames": ("a.mp4", cut_between, "cut short"),
    "matroska, first half": ("a.mkv", lambda path: cut(path, 0.5), "cut short"),
    "webm, first half": (
        "a.webm",
        lambda path: cut(path, 0.5, codec="libvpx", deadline="realtime"),
        "cut short",
    ),
    "avi, first half": ("a.avi", lambda path: cut(path, 0.5, codec="mpeg4"), ""),
    "header only": ("a.mp4", lambda path: cut(path, 0.02, muxer=FASTSTART), ""),
    "damaged": ("a.mp4", damaged, ""),
    "too slim": ("a.mkv", lambda path: write(path, greys(2, (16, 3232)), codec="mpeg4"), "aspect ratio"),
}


@pytest.mark.parametrize(("name", "make", "reason"), BAD.values(), ids=BAD)
def test_bad_files_are_named_in_one_line(tmp_path, capfd, name, make, reason):
    path = tmp_path / name
    make(path)
    with pytest.raises(UserError) as error:
        read_frames(path, Sampling(fps=100.0))
    line = str(error.value)
    assert line.startswith(f"{path}: ") and "\n" not in line
    assert re.search(reason, line), line
    assert len(line) > len(str(path)) + 10
    assert capfd.readouterr() == ("", ""), "FFmpeg printed something itself"


def test_a_picture_of_an_album_is_no_video(tmp_path):
    write_sound(tmp_path / "a.mp3", codec="libmp3lame", sample="s16p")
    Image.fromarray(quarters(8, 8)).save(tmp_path / "a.png")
    picture = (tmp_path / "a.png").read_bytes()
    # An ID3 tag of version 2.3: its sizes are big-endian, that of the whole in 7 bits a byte.
    frame = b"\0image/png\0\3\0" + picture
    frame = b"APIC" + len(frame).to_bytes(4, "big") + b"\0\0" + frame
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    content = b"ID3\3\0\0" + size + frame + (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(content)
    with av.open(str(tmp_path / "a.mp3")) as file:
        assert len(file.streams.video) == 1
    with pytest.raises(UserError, match="a.mp3: .*no video stream"):
        probe(tmp_path / "a.mp3")


def test_absurd_dimensions_are_refused(tmp_path):
    path = write(tmp_path / "a.mp4", greys(2, (32, 96)))
    assert probe(path, max_side=96).width == 96
    for work in (probe, lambda path, max_side: read_frames(path, Sampling(frames=2), max_side=max_side)):
        with pytest.raises(UserError, match="a.mp4: 96 x 32 .* 95 .*max_side"):
            work(path, max_side=95)
    Image.new("RGB", (96, 32)).save(tmp_path / "a.png")
    for work in (probe, read_image):
        with pytest.raises(UserError, match="a.png: 96 x 32 .* 95 .*max_side"):
            work(tmp_path / "a.png", max_side=95)
    header = b"IHDR" + (30000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    header = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + bytes(4) + b"IDAT" + bytes(99))
    with pytest.raises(UserError, match="bomb.png: .*900000000 pixels"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("start", "end"),
    [(1.2, 1.5), (-1.0, 0.5), (0.5, 0.5), (0.8, 0.2), (0.0, 2.0), (0.0, -1.0), (float("nan"), 1.0)],
)
def test_a_span_outside_the_clip_is_named(tmp_path, start, end):
    path = write(tmp_path / "a.mp4", greys(25))
    with pytest.raises(UserError, match=re.escape(f"a.mp4: the span {start:g} to {end:g} s")):
        read(path, frames=4, start=start, end=end)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_bad_images_are_named_in_one_line(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(noisy(1)[0]).save(path)
    content = path.read_bytes()
    for broken in (b"", b"no image at all", content[:20], content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(UserError) as error:
            read_image(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    with pytest.raises(UserError, match="none.png: no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(UserError, match="slim.png: aspect ratio"):
        Image.new("RGB", (1005, 5)).save(tmp_path / "slim.png")
        read_image(tmp_path / "slim.png")
