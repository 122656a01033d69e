"""Reads video and image files as uint8 frames with exact presentation times, by PyAV and Pillow.

Frames are chosen by time, from the timestamps of the file's packets: a moment selects the frame that is on
screen then. Seconds count from the first frame that can be decoded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import av
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vpjax.data import tfio
from vpjax.data.decode import BadTimestamps, FrameIndex, Problem, decode_frames, frame_index, packet_index
from vpjax.data.images import folder_frames, folder_index, image_pixels, image_size
from vpjax.files import AnyPath, exists, is_folder
from vpjax.models.patches import smart_resize
from vpjax.types import UserError

FACTOR = 28
MIN_PIXELS, MAX_PIXELS = 4 * FACTOR**2, 768 * FACTOR**2
MAX_SIDE = 8192


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The choice of frames in a span of a video: exactly one of ``frames`` and ``fps`` is set.

    frames=n: the frames on screen at the start of each of n equal parts of the span (as Qwen2.5-VL's
    processor does); each frame once if the span has no more than n. fps=x: the frames on screen every 1/x
    seconds; if these are more than ``max_frames``, so many as above. Frames that stay on screen repeat.
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

    @classmethod
    def of(cls, data_config: ConfigDict) -> Sampling:
        """From the fields ``data`` of configs/base.py, which may have ``max_frames`` too."""
        max_frames = data_config.get("max_frames", cls.max_frames)
        return cls(frames=data_config.frames or None, fps=data_config.fps or None, max_frames=max_frames)


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """width, height: of the upright frames in pixels. duration: seconds. fps: the mean frame rate."""

    width: int
    height: int
    duration: float
    fps: float
    frames: int


@dataclasses.dataclass(frozen=True)
class Video:
    """frames u8[F,h,w,3] RGB, F even. times f64[F]: their exact presentation times in seconds; if the last
    frame is repeated to make F even, so is its time. frame_seconds: mean duration of a frame; 0: an image."""

    frames: np.ndarray
    times: np.ndarray
    frame_seconds: float = 0.0


def probe(path: AnyPath, *, max_side: int = MAX_SIDE) -> VideoInfo:
    """Size and timing of a video, from its packets and one decoded frame. UserError as ``read_frames``."""
    with _named_problems(path):
        index, _, [(height, width, _)] = _read_chosen(path, lambda _: np.zeros(1, int), np.shape, max_side)
    count = len(index.times)
    return VideoInfo(width, height, index.duration, count / index.duration, count)


def read_frames(
    path: AnyPath,
    sampling: Sampling,
    *,
    size: tuple[int, int] | None = None,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
    factor: int = FACTOR,
    start: float | None = None,
    end: float | None = None,
    max_side: int = MAX_SIDE,
    tfio_python: str = "",
) -> Video:
    """The sampled frames of a video, upright. A folder of images is a video too: see ``folder_index``.

    size: (height, width) of the result; None: ``smart_resize`` of the video's own, with ``factor``,
    ``min_pixels`` and ``max_pixels`` of a frame. start, end: of the span in seconds; None: the video's.
    max_side: the largest width or height in pixels that is accepted. tfio_python: a Python with
    tensorflow-io, which decodes in place of PyAV (``vpjax.data.tfio``). UserError if the file is missing,
    broken or cut short, has no video stream or no decodable frame, is too large or too slim, or does not
    contain the span.
    """

    def fit(frame: np.ndarray) -> np.ndarray:
        return _fit(frame, size, factor, min_pixels, max_pixels)

    with _named_problems(path):
        index, chosen, frames = _read_chosen(
            path, lambda index: _choose(index, sampling, start, end), fit, max_side, tfio_python
        )
    return Video(np.stack(frames), index.times[chosen], index.duration / len(index.times))


def read_image(
    path: AnyPath,
    *,
    size: tuple[int, int] | None = None,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
    factor: int = FACTOR,
    max_side: int = MAX_SIDE,
) -> Video:
    """An image, upright by its EXIF tag, as a video of two equal frames at 0 s. See ``read_frames``."""
    with _named_problems(path):
        if is_folder(path):
            raise Problem("is a folder")
        frame = _fit(image_pixels(path, max_side), size, factor, min_pixels, max_pixels)
    return Video(np.stack([frame, frame]), np.zeros(2), 0.0)


def probe_image(path: AnyPath, *, max_side: int = MAX_SIDE) -> VideoInfo:
    """The size of an image, upright by its EXIF tag, without decoding it. UserError as ``read_image``."""
    with _named_problems(path):
        height, width = image_size(path, max_side)
    return VideoInfo(width, height, duration=0.0, fps=0.0, frames=1)


def seconds_per_slot(times: np.ndarray, temporal: int = 2) -> float:
    """Seconds from one slot to the next, Hugging Face's ``second_per_grid_ts``: ``temporal`` mean frame
    intervals of ``times`` f64[F], of which a repeated last one counts once; 0 for an image."""
    if len(times) > 1 and times[-1] == times[-2]:
        times = times[:-1]
    return temporal * float(times[-1] - times[0]) / max(len(times) - 1, 1)


def resolve_part(
    duration: float, frame_seconds: float, start: float | None, end: float | None
) -> tuple[float, float]:
    """The part of a video from ``start`` to ``end`` (None: the video's own), in seconds. Both may lie outside
    the video by less than a frame. ValueError if the part is not inside it."""
    first, last = 0.0 if start is None else start, duration if end is None else end
    if not (-frame_seconds < first < last < duration + frame_seconds and first < duration):
        raise ValueError(f"the span {first:g} to {last:g} s is not inside the clip of {duration:g} s")
    return max(first, 0.0), min(last, duration)


def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """u8[h,w,3] -> u8[*size,3] by antialiased bicubic (a = -0.5) in float32, clipped and rounded once."""
    if frame.shape[:2] == tuple(size):
        return frame
    resized = []
    # As floats, for Pillow would clip bytes after each of its two passes.
    for channel in frame.transpose(2, 0, 1).astype(np.float32):
        resized.append(np.asarray(Image.fromarray(channel).resize(size[::-1], Image.Resampling.BICUBIC)))
    return np.rint(np.stack(resized, axis=-1).clip(0, 255)).astype(np.uint8)


def _choose(index: FrameIndex, sampling: Sampling, start: float | None, end: float | None) -> np.ndarray:
    """The numbers i64[F] of the sampled frames, F even, ascending."""
    times, frame_seconds = index.times, index.duration / len(index.times)
    try:
        first, last = resolve_part(index.duration, frame_seconds, start, end)
    except ValueError as error:
        raise Problem(error) from error
    # Timestamps are rounded to ticks, so a moment that close before a frame selects that frame.
    slack = 1e-6 * frame_seconds + (index.tick if index.tick < frame_seconds / 10 else 0.0)
    low = np.searchsorted(times, first + slack, "right") - 1
    high = np.searchsorted(times, last - slack, "left")
    if sampling.frames is not None and high - low <= sampling.frames:
        chosen = np.arange(low, max(high, low + 1))
    else:
        if sampling.fps is not None:
            count, interval = max(1, math.ceil((last - first - slack) * sampling.fps)), 1 / sampling.fps
        if sampling.fps is None or count > sampling.max_frames:
            count = sampling.frames or sampling.max_frames
            interval = (last - first) / count
        chosen = np.searchsorted(times, first + interval * np.arange(count) + slack, "right") - 1
    return np.pad(chosen, (0, len(chosen) % 2), mode="edge")


def _fit(
    frame: np.ndarray, size: tuple[int, int] | None, factor: int, min_pixels: int, max_pixels: int
) -> np.ndarray:
    """The frame resized to ``size``, or by ``smart_resize`` if that is None."""
    height, width, _ = frame.shape
    try:
        if size is None:
            size = smart_resize(height, width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)
    except ValueError as error:
        raise Problem(error) from error
    return resize(frame, size)


@contextlib.contextmanager
def _named_problems(path: AnyPath) -> Iterator[None]:
    """Raise everything that is wrong with a file as a UserError, one line that names the file."""
    try:
        if not exists(path):
            raise Problem("no such file")
        yield
    except Problem as problem:
        raise UserError(f"{path}: {problem}") from problem
    except av.FFmpegError as error:
        raise UserError(f"{path}: is damaged or no video ({error.strerror})") from error


def _read_chosen(
    path: AnyPath,
    choose: Callable[[FrameIndex], np.ndarray],
    convert: Callable[[np.ndarray], Any],
    max_side: int,
    tfio_python: str = "",
) -> tuple[FrameIndex, np.ndarray, list[Any]]:
    """The index, the frame numbers i64[F] that ``choose`` returns for it, and these frames converted."""
    files: list[str] = []

    def frames_at(index: FrameIndex, numbers: np.ndarray) -> Iterable[np.ndarray]:
        if files:
            return folder_frames([files[number] for number in numbers], max_side)
        if tfio_python:
            return tfio.decode_with_tfio(tfio_python, path, index, numbers, max_side)
        return decode_frames(path, index, numbers, max_side)

    def read(index: FrameIndex) -> tuple[FrameIndex, np.ndarray, list[Any]]:
        chosen = choose(index)
        distinct, inverse = np.unique(chosen, return_inverse=True)
        converted = [convert(frame) for frame in frames_at(index, distinct)]
        return index, chosen, [converted[i] for i in inverse]

    if is_folder(path):
        index, files = folder_index(path)
        return read(index)
    try:
        return read(packet_index(path, max_side))
    except BadTimestamps:
        return read(frame_index(path, max_side))
