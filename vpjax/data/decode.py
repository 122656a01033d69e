"""A video file -> its frames, by PyAV: which there are, when they are shown, and their pixels.

What is wrong with a file is a ``Problem``, which does not name the file: ``video`` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from vpjax.files import is_remote, open_file

FRAME_RATE = 25.0  # of files that do not say theirs
SEEK_GAIN = 32  # frames that a seek must spare: it costs about as much as decoding this many
THREADED = 640 * 360  # pixels of a frame from which decoding in several threads pays


@dataclasses.dataclass(frozen=True)
class FrameIndex:
    """The frames of a file in the order of presentation, N of them.

    times f64[N], duration, tick: seconds. pts i64[N]: how the decoder's frames are recognised, by their
    timestamps in ticks or, if ``counted``, by their number. keyframe i64[N]: the last one at or before each
    frame. entry i64[N]: the timestamp to seek for a keyframe; anything for other frames.
    """

    times: np.ndarray
    duration: float
    tick: float
    pts: np.ndarray
    counted: bool
    keyframe: np.ndarray
    entry: np.ndarray


class Problem(Exception):
    """What is wrong with a file, without its name."""


class Untrusted(Problem):
    """A frame is not where the timestamps of the packets promise it."""


def check_size(width: int, height: int, max_side: int) -> None:
    if max(width, height) > max_side:
        raise Problem(f"{width} x {height} pixels is beyond the limit of {max_side} a side (max_side)")


@contextlib.contextmanager
def opened(path: str | Path, max_side: int) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The file and its first video stream; cover art is none."""
    with contextlib.ExitStack() as files:
        file = files.enter_context(open_file(path)) if is_remote(path) else str(path)
        container = files.enter_context(av.open(file, metadata_errors="replace"))
        if container.format.name == "tty":
            raise Problem("is a text file")  # which FFmpeg would show as on a terminal
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise Problem("has no video stream")
        context = streams[0].codec_context
        if context is None:
            raise Problem("is in a codec that FFmpeg does not know here")
        check_size(context.width, context.height, max_side)
        if context.width * context.height >= THREADED:
            context.thread_type = "AUTO"
        else:
            context.thread_count = 1
        yield container, streams[0]


def packet_index(path: str | Path, max_side: int) -> FrameIndex:
    """From the timestamps of all packets: nothing is decoded."""
    shown, entries, end, cut = {}, {}, 0.0, False  # shown: pts -> duration; entries: pts of keyframes -> dts
    with opened(path, max_side) as (container, stream):
        rate, tick = float(stream.average_rate or FRAME_RATE), float(stream.time_base)
        # These state their length and end early without complaint; it is that of their longest stream.
        stated = container.format.name in ("matroska,webm", "flv") and container.duration
        expected = len(stream.index_entries)
        for packet in container.demux(*(() if stated else (stream,))):
            if not packet.size:  # marks the end of a stream
                continue
            cut |= packet.is_corrupt
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            expected -= 1
            if packet.pts is None:
                raise Untrusted("a packet has no presentation time")
            if packet.is_keyframe:
                entries[packet.pts] = packet.pts if packet.dts is None else packet.dts
            if not packet.is_discard:
                shown[packet.pts] = packet.duration or 0
        # A last frame may not say how long it is.
        promised = stated / av.time_base - 1.0 if stated else 0.0
    if cut or expected > 0 or end < promised:
        raise Problem(f"is cut short or damaged after {len(shown)} frames")
    begin = min(entries, default=-math.inf)  # frames before it cannot be decoded: the clip was cut out here
    pts = np.array(sorted(p for p in shown if p >= begin), np.int64)
    if not len(pts):
        raise Problem("has no decodable frame")
    places = np.arange(len(pts))
    return FrameIndex(
        times=(pts - pts[0]) * tick,
        duration=float(pts[-1] - pts[0]) * tick + (shown[int(pts[-1])] * tick or 1 / rate),
        tick=tick,
        pts=pts,
        counted=False,
        keyframe=np.maximum.accumulate(np.where(np.isin(pts, list(entries)), places, 0)),
        entry=np.array([entries.get(int(p), 0) for p in pts]),
    )


def frame_index(path: str | Path, max_side: int) -> FrameIndex:
    """By decoding the whole file: its frames' own timestamps where they ascend, else its frame rate."""
    with opened(path, max_side) as (container, stream):
        stamps = [frame.pts for frame in container.decode(stream)]
        rate, tick = float(stream.average_rate or FRAME_RATE), float(stream.time_base)
    if not stamps:
        raise Problem("has no decodable frame")
    places = np.arange(len(stamps))
    times = places / rate
    if None not in stamps and np.all(np.diff(stamps) > 0):
        times = (np.array(stamps) - stamps[0]) * tick
    nowhere = np.zeros_like(places)
    return FrameIndex(times, float(times[-1]) + 1 / rate, tick, places, True, keyframe=nowhere, entry=nowhere)


def decode(path: str | Path, index: FrameIndex, chosen: np.ndarray, max_side: int) -> Iterator[np.ndarray]:
    """The chosen frames u8[h,w,3], ascending, upright; by seeking where that spares decoding."""
    # One converter for all, in one thread: to set one up costs more than to convert a small frame.
    convert = VideoReformatter()
    with opened(path, max_side) as (container, stream):
        frames = enumerate(container.decode(stream))
        following = 0  # the place of the frame that the decoder gives next
        for place in chosen:
            keyframe = index.keyframe[place]
            if keyframe - following >= SEEK_GAIN:
                container.seek(int(index.entry[keyframe]), stream=stream)
                frames = enumerate(container.decode(stream))
            pts = None
            for count, frame in frames:
                pts = count if index.counted else frame.pts
                if pts is None or pts >= index.pts[place]:
                    break
            if pts != index.pts[place] or frame.is_corrupt:
                raise Untrusted(f"the frame at {index.times[place]:.3f} s cannot be decoded")
            following = place + 1
            check_size(frame.width, frame.height, max_side)
            yield upright(convert.reformat(frame, format="rgb24", threads=1).to_ndarray(), frame)


def upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """The image u8[h,w,3] of a frame, turned or mirrored by its display matrix."""
    try:
        matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
    except ValueError:  # PyAV reads none of a frame's side data where it does not know a kind of it, as EXIF
        return np.rot90(image, round(frame.rotation / 90))
    if matrix is None:
        return image
    # A point (x, y) is shown at (a x + c y, b x + d y); what matters is which of them is not 0, and its sign.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(int)
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
