"""What a damaged file lacks is counted, and a whole one lacks nothing."""

import numpy as np
import pytest

from tests.videos import FORMATS, greys, write
from vpjax.data import decode as decode_module
from vpjax.data.video import probe


def fragments(content):
    """The (start, end) of each fragment, a moof box and the mdat after it, in an mp4 file."""
    boxes, place = [], 0
    while place < len(content):
        size = int.from_bytes(content[place : place + 4])
        boxes.append((content[place + 4 : place + 8], place, place + size))
        place += size
    starts = [number for number, (kind, _, _) in enumerate(boxes) if kind == b"moof"]
    return [(boxes[number][1], boxes[number + 1][2]) for number in starts]


def test_a_lost_fragment_is_counted(tmp_path):
    """Of nine fragments, eight of 11 or 12 frames: what a decoder gets and what is said to be lost make the
    whole. Of the last one no trace is left, but for a part of it that is not whole, and is noticed.
    Some fragments in another order, too, are passed over by FFmpeg: all such files are told by the fragments'
    numbers."""
    path = write(
        tmp_path / "a.mp4", greys(96), muxer={"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    )
    assert probe(path).lost == 0
    content = path.read_bytes()
    parts = fragments(content)
    assert len(parts) >= 8
    for start, end in parts[:-1]:
        path.write_bytes(content[:start] + content[end:])
        info = probe(path)
        assert info.lost >= 10 and info.frames + info.lost == 96
    start, end = parts[-1]
    path.write_bytes(content[:start] + b"\0\0\1\0" + content[start + 4 : end])
    assert probe(path).lost == 1
    (first, second), (third, fourth) = parts[2], parts[3]
    path.write_bytes(content[:first] + content[third:fourth] + content[first:second] + content[fourth:])
    assert probe(path).lost
    path.write_bytes(content[:end])
    assert probe(path).lost == 0
    frames = content.index(b"mdat", second) - 4  # of a fragment; its box claims all of the file that follows
    path.write_bytes(content[:frames] + (end - frames).to_bytes(4) + content[frames + 4 : end])
    assert probe(path).lost


@pytest.mark.parametrize("box, place, number, shown", [(b"stsc", 16, 10, 10), (b"elst", 12, 100, 3)])
def test_frames_that_damaged_tables_hide_are_counted(tmp_path, box, place, number, shown):
    """Of 75 frames: the table of chunks has 10 in its only one, the edit list shows a tenth of a second."""
    path = write(tmp_path / "a.mp4", greys(75))
    content = bytearray(path.read_bytes())
    place += content.find(box)
    content[place : place + 4] = number.to_bytes(4)
    path.write_bytes(content)
    info = probe(path)
    assert (info.frames, info.lost) == (shown, 75 - shown)


def test_a_clip_cut_out_without_decoding_has_lost_nothing(tmp_path):
    """Of the frames from a keyframe on, an edit list shows the last few."""
    muxer = {"avoid_negative_ts": "disabled"}
    path = write(tmp_path / "a.mp4", greys(32), range(-28, 4), muxer=muxer, g="32", sc_threshold="0")
    info = probe(path)
    assert (info.frames, info.lost) == (4, 0)


def test_lost_parts_of_other_containers_are_counted(tmp_path):
    """The end of a webm file, which states its duration; what stands before a stream's first keyframe; the
    end of a transport stream, if a part of a packet is left."""
    path = write(tmp_path / "a.webm", greys(75), codec="libvpx-vp9")
    assert probe(path).lost == 0
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 5])
    for lost in (probe(path).lost, decode_module.frame_index(path, 8192).lost):
        assert 10 <= lost <= 25
    path = write(tmp_path / "a.ts", greys(75))
    assert probe(path).lost == 0
    packets = path.read_bytes()
    path.write_bytes(packets[: 188 * 3] + packets[188 * 4 :])  # without the first keyframe
    info = probe(path)
    assert 10 <= info.lost <= 12 and info.frames + info.lost <= 75
    path.write_bytes(packets[: 188 * 20 + 100])
    assert probe(path).lost == 1


@pytest.mark.parametrize("shown, lost", [([0, 1, 2, 74], 71), ([0, 25, 50, 74], 0)])
def test_few_frames_of_a_webm_file_tell_by_its_rate(tmp_path, shown, lost):
    """Of 75, by its duration and rate: the ends of a file without its middle; pictures of a second each."""
    path = write(tmp_path / "a.webm", greys(4), shown, codec="libvpx-vp9")
    assert probe(path).lost == lost


@pytest.mark.parametrize("format", FORMATS)
def test_whole_files_have_lost_nothing(tmp_path, format):
    kind = dict(FORMATS[format])
    assert probe(write(tmp_path / kind.pop("name"), greys(40), **kind)).lost == 0


@pytest.mark.parametrize(
    "times, missing, lost",
    [
        (range(20), 0, 0),
        (range(20), 15, 15),  # at the end or the beginning
        (range(20), 8, 0),  # sound that lasts a little longer
        ([*range(20), *range(40, 60)], 0, 20),
        ([*range(20), *range(25, 60)], 0, 0),  # a pause
        ([*range(20), *range(40, 60)], 15, 35),
        ([*range(20), *range(26, 50), *range(56, 80)], 0, 12),  # a sixth of them, in short parts
        ([*range(200), *range(206, 500), *range(506, 800)], 0, 0),
        (np.cumsum([1, 15, 2, 20, 1, 1, 30, 2, 9, 14]), 1, 0),  # a recording of a screen
        ([0], 99, 0),
        ([], 0, 0),
    ],
)
def test_frames_are_lost_where_a_constant_rate_is_interrupted(times, missing, lost):
    ticks = 0.04  # seconds; what is added up is rounded once
    found = decode_module.lost_frames(np.array(times, float) * ticks, missing * ticks)
    assert found == lost
