"""A video or image file -> uint8 frames with exact presentation times, by PyAV and Pillow.

Frames are chosen by time, from the timestamps of the file's packets: for a moment, the frame that is on
screen then. Seconds count from the first frame that can be shown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from PIL import ExifTags, Image, ImageOps

from vpjax.ops.patches import smart_resize
from vpjax.types import UserError

FACTOR = 28
MIN_PIXELS, MAX_PIXELS = 4 * FACTOR**2, 768 * FACTOR**2
MAX_SIDE = 8192
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # suffixes of files that are read as an image
FRAME_RATE = 25.0  # of files that do not say theirs
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # Pillow's, of broken files
SEEK_GAIN = 32  # frames that a seek must spare: it costs about as much as decoding this many
THREADED = 640 * 360  # pixels of a frame from which decoding in several threads pays


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Which frames of a span of a video: exactly one of ``frames`` and ``fps``.

    frames=n: those on screen at the start of each of n equal parts of the span (as Qwen2.5-VL's processor
    does); where the span has no more than n, each of them once. fps=x: those on screen every 1/x seconds;
    where that makes more than ``max_frames``, that many as above. A frame that stays on screen comes again.
    """

    frames: int | None = None
    fps: float | None = None
    max_frames: int = 768

    def __post_init__(self) -> None:
        if (self.frames is None) == (self.fps is None):
            raise UserError(f"frame sampling: set exactly one of frames ({self.frames}) and fps ({self.fps})")
        if self.frames is not None and self.frames < 1:
            raise UserError(f"frame sampling: frames is {self.frames}; set it to 1 or more")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UserError(f"frame sampling: fps is {self.fps}; set it above 0")
        if self.max_frames < 1:
            raise UserError(f"frame sampling: max_frames is {self.max_frames}; set it to 1 or more")


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """width, height: pixels, as shown (rotated). duration: seconds. fps: frames / duration, the mean rate."""

    width: int
    height: int
    duration: float
    fps: float
    frames: int


@dataclasses.dataclass(frozen=True)
class Video:
    """frames u8[F,h,w,3] RGB, F even. times f64[F]: their exact presentation times in seconds; where the last
    frame is repeated to make F even, so is its time. frame_seconds: how long the file shows a frame (mean); 0
    for an image."""

    frames: np.ndarray
    times: np.ndarray
    frame_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Index:
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


class _Problem(Exception):
    """What is wrong with a file, without its name."""


class _Untrusted(_Problem):
    """A frame is not where the timestamps of the packets promise it."""


def probe(path: str | Path, *, max_side: int = MAX_SIDE) -> VideoInfo:
    """What a video holds, from its packets and one decoded frame. UserError as ``read_frames``."""
    with _problems_of(path):
        index, _, [(height, width, _)] = _read(path, lambda index: np.zeros(1, int), np.shape, max_side)
    count = len(index.times)
    return VideoInfo(width, height, index.duration, count / index.duration, count)


def read_frames(
    path: str | Path,
    sampling: Sampling,
    *,
    size: tuple[int, int] | None = None,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
    factor: int = FACTOR,
    start: float | None = None,
    end: float | None = None,
    max_side: int = MAX_SIDE,
) -> Video:
    """The sampled frames of a video, upright.

    size: (height, width) of the result; None: ``smart_resize`` of the video's own, with ``factor``,
    ``min_pixels`` and ``max_pixels`` of a frame. start, end: of the span in seconds (None: the clip's).
    max_side: width or height in pixels beyond which a file is refused. UserError: the file is missing, broken
    or cut short, has no video stream or no decodable frame, is too large or too slim; the span is not in it.
    """

    def fit(frame: np.ndarray) -> np.ndarray:
        return resize(frame, size or _size(frame, factor, min_pixels, max_pixels))

    with _problems_of(path):
        index, chosen, frames = _read(path, lambda index: _choose(index, sampling, start, end), fit, max_side)
    return Video(np.stack(frames), index.times[chosen], index.duration / len(index.times))


def read_image(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
    factor: int = FACTOR,
    max_side: int = MAX_SIDE,
) -> Video:
    """An image, upright by its EXIF tag, as a video of two equal frames at 0 s. See ``read_frames``."""
    with _problems_of(path):
        with _opened_image(path, max_side) as image:
            frame = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        frame = resize(frame, size or _size(frame, factor, min_pixels, max_pixels))
    return Video(np.stack([frame, frame]), np.zeros(2), 0.0)


def probe_image(path: str | Path, *, max_side: int = MAX_SIDE) -> VideoInfo:
    """The size of an image, upright by its EXIF tag, without decoding it. UserError as for ``read_image``."""
    with _problems_of(path), _opened_image(path, max_side) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return VideoInfo(*image.size[:: -1 if turned else 1], duration=0.0, fps=0.0, frames=1)


@contextlib.contextmanager
def _opened_image(path: str | Path, max_side: int) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            _check_size(image.width, image.height, max_side)
            yield image
    except IMAGE_ERRORS as error:
        raise _Problem(f"is damaged or no image ({error})") from error


def seconds_per_slot(times: np.ndarray, temporal: int = 2) -> float:
    """Seconds from one slot to the next, HF's ``second_per_grid_ts``: ``temporal`` mean frame intervals.

    times: f64[F]; a last frame that is there twice counts once. 0 for an image.
    """
    if len(times) > 1 and times[-1] == times[-2]:
        times = times[:-1]
    return temporal * float(times[-1] - times[0]) / max(len(times) - 1, 1)


def part_of(
    duration: float, frame_seconds: float, start: float | None, end: float | None
) -> tuple[float, float]:
    """The part of a video from ``start`` to ``end`` (None: its own), all in seconds; either may lie outside
    by less than a frame. ValueError where the part is not inside."""
    first, last = 0.0 if start is None else start, duration if end is None else end
    if not (-frame_seconds < first < last < duration + frame_seconds and first < duration):
        raise ValueError(f"the span {first:g} to {last:g} s is not inside the clip of {duration:g} s")
    return max(first, 0.0), min(last, duration)


def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """u8[h,w,3] -> u8[*size,3] by antialiased bicubic (a = -0.5) in float32, clipped and rounded once."""
    if frame.shape[:2] == tuple(size):
        return frame
    # Pillow clips bytes after each of its two passes, and floats never.
    channels = [Image.fromarray(channel) for channel in frame.transpose(2, 0, 1).astype(np.float32)]
    resized = [channel.resize(size[::-1], Image.Resampling.BICUBIC) for channel in channels]
    return np.rint(np.stack(resized, axis=-1).clip(0, 255)).astype(np.uint8)


def _choose(index: _Index, sampling: Sampling, start: float | None, end: float | None) -> np.ndarray:
    """The frames i64[F] of a video, F even, ascending."""
    times, frame_seconds = index.times, index.duration / len(index.times)
    try:
        first, last = part_of(index.duration, frame_seconds, start, end)
    except ValueError as error:
        raise _Problem(error) from error
    # A timestamp is rounded to ticks: a moment that close before a frame means that frame.
    slack = 1e-6 * frame_seconds + (index.tick if index.tick < frame_seconds / 10 else 0.0)
    low = np.searchsorted(times, first + slack, "right") - 1
    high = np.searchsorted(times, last - slack, "left")
    if sampling.frames is not None and high - low <= sampling.frames:
        chosen = np.arange(low, max(high, low + 1))
    else:
        count = sampling.frames or max(1, math.ceil((last - first - slack) * sampling.fps))
        if sampling.fps is not None and count <= sampling.max_frames:
            interval = 1 / sampling.fps
        else:
            count = sampling.frames or sampling.max_frames
            interval = (last - first) / count
        chosen = np.searchsorted(times, first + interval * np.arange(count) + slack, "right") - 1
    return np.pad(chosen, (0, len(chosen) % 2), mode="edge")


def _size(frame: np.ndarray, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    height, width, _ = frame.shape
    try:
        return smart_resize(height, width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)
    except ValueError as error:
        raise _Problem(error) from error


def _check_size(width: int, height: int, max_side: int) -> None:
    if max(width, height) > max_side:
        raise _Problem(f"{width} x {height} pixels is beyond the limit of {max_side} a side (max_side)")


@contextlib.contextmanager
def _problems_of(path: str | Path) -> Iterator[None]:
    """Whatever is wrong with a file, as one line that names it."""
    try:
        if not Path(path).is_file():
            raise _Problem("is a folder" if Path(path).is_dir() else "no such file")
        yield
    except _Problem as problem:
        raise UserError(f"{path}: {problem}") from problem
    except av.FFmpegError as error:
        raise UserError(f"{path}: is damaged or no video ({error.strerror})") from error


@contextlib.contextmanager
def _opened(path: str | Path, max_side: int) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The file and its first video stream; cover art is none."""
    with av.open(str(path), metadata_errors="replace") as container:
        if container.format.name == "tty":
            raise _Problem("is a text file")  # which FFmpeg would show as on a terminal
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise _Problem("has no video stream")
        context = streams[0].codec_context
        if context is None:
            raise _Problem("is in a codec that FFmpeg does not know here")
        _check_size(context.width, context.height, max_side)
        if context.width * context.height >= THREADED:
            context.thread_type = "AUTO"
        else:
            context.thread_count = 1
        yield container, streams[0]


def _read(
    path: str | Path, choose: Callable[[_Index], np.ndarray], keep: Callable[[np.ndarray], Any], max_side: int
) -> tuple[_Index, np.ndarray, list]:
    """The index, the frames i64[F] that were chosen by it, and what is kept of each."""

    def attempt(index: _Index) -> tuple[_Index, np.ndarray, list]:
        chosen = choose(index)
        distinct, places = np.unique(chosen, return_inverse=True)
        kept = [keep(frame) for frame in _decode(path, index, distinct, max_side)]
        return index, chosen, [kept[place] for place in places]

    try:
        return attempt(_packet_index(path, max_side))
    except _Untrusted:
        return attempt(_frame_index(path, max_side))


def _packet_index(path: str | Path, max_side: int) -> _Index:
    """From the timestamps of all packets: nothing is decoded."""
    shown, entries, end, cut = {}, {}, 0.0, False  # shown: pts -> duration; entries: pts of keyframes -> dts
    with _opened(path, max_side) as (container, stream):
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
                raise _Untrusted("a packet has no presentation time")
            if packet.is_keyframe:
                entries[packet.pts] = packet.pts if packet.dts is None else packet.dts
            if not packet.is_discard:
                shown[packet.pts] = packet.duration or 0
        # A last frame may not say how long it is.
        promised = stated / av.time_base - 1.0 if stated else 0.0
    if cut or expected > 0 or end < promised:
        raise _Problem(f"is cut short or damaged after {len(shown)} frames")
    begin = min(entries, default=-math.inf)  # frames before it cannot be decoded: the clip was cut out here
    pts = np.array(sorted(p for p in shown if p >= begin), np.int64)
    if not len(pts):
        raise _Problem("has no decodable frame")
    places = np.arange(len(pts))
    return _Index(
        times=(pts - pts[0]) * tick,
        duration=float(pts[-1] - pts[0]) * tick + (shown[int(pts[-1])] * tick or 1 / rate),
        tick=tick,
        pts=pts,
        counted=False,
        keyframe=np.maximum.accumulate(np.where(np.isin(pts, list(entries)), places, 0)),
        entry=np.array([entries.get(int(p), 0) for p in pts]),
    )


def _frame_index(path: str | Path, max_side: int) -> _Index:
    """By decoding the whole file: its frames' own timestamps where they ascend, else its frame rate."""
    with _opened(path, max_side) as (container, stream):
        stamps = [frame.pts for frame in container.decode(stream)]
        rate, tick = float(stream.average_rate or FRAME_RATE), float(stream.time_base)
    if not stamps:
        raise _Problem("has no decodable frame")
    places = np.arange(len(stamps))
    times = places / rate
    if None not in stamps and np.all(np.diff(stamps) > 0):
        times = (np.array(stamps) - stamps[0]) * tick
    nowhere = np.zeros_like(places)
    return _Index(times, float(times[-1]) + 1 / rate, tick, places, True, keyframe=nowhere, entry=nowhere)


def _decode(path: str | Path, index: _Index, chosen: np.ndarray, max_side: int) -> Iterator[np.ndarray]:
    """The chosen frames u8[h,w,3], ascending, upright; by seeking where that spares decoding."""
    # One converter for all, in one thread: to set one up costs more than to convert a small frame.
    convert = VideoReformatter()
    with _opened(path, max_side) as (container, stream):
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
                raise _Untrusted(f"the frame at {index.times[place]:.3f} s cannot be decoded")
            following = place + 1
            _check_size(frame.width, frame.height, max_side)
            yield _upright(convert.reformat(frame, format="rgb24", threads=1).to_ndarray(), frame)


def _upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
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
