"""A video or image file -> uint8 frames with exact presentation times, by PyAV and Pillow.

Frames are chosen by time, from the timestamps of the file's packets: for a moment, the frame that is on
screen then. Seconds count from the first frame that can be shown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vpjax.data import tfio
from vpjax.data.decode import FrameIndex, Problem, Untrusted, decode, frame_index, packet_index
from vpjax.data.images import IMAGES as IMAGES
from vpjax.data.images import folder_frames, folder_index, image_pixels, image_size
from vpjax.files import exists, is_folder
from vpjax.models.patches import smart_resize
from vpjax.types import UserError

FACTOR = 28
MIN_PIXELS, MAX_PIXELS = 4 * FACTOR**2, 768 * FACTOR**2
MAX_SIDE = 8192


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

    @classmethod
    def of(cls, data_config: ConfigDict) -> Sampling:
        """By the fields ``data`` of configs/base.py, and ``max_frames`` where they have it."""
        most = data_config.get("max_frames", cls.max_frames)
        return cls(frames=data_config.frames or None, fps=data_config.fps or None, max_frames=most)


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
    tfio_python: str = "",
) -> Video:
    """The sampled frames of a video, upright. A folder of images is a video too: see ``folder_index``.

    size: (height, width) of the result; None: ``smart_resize`` of the video's own, with ``factor``,
    ``min_pixels`` and ``max_pixels`` of a frame. start, end: of the span in seconds (None: the clip's).
    max_side: width or height in pixels beyond which a file is refused. tfio_python: a Python with
    tensorflow-io, which decodes in place of PyAV (``vpjax.data.tfio``). UserError: the file is missing,
    broken or cut short, has no video stream or no decodable frame, is too large or too slim; the span is not
    in it.
    """

    def fit(frame: np.ndarray) -> np.ndarray:
        return resize(frame, size or _size(frame, factor, min_pixels, max_pixels))

    with _problems_of(path):
        index, chosen, frames = _read(
            path, lambda index: _choose(index, sampling, start, end), fit, max_side, tfio_python
        )
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
        if is_folder(path):
            raise Problem("is a folder")
        frame = image_pixels(path, max_side)
        frame = resize(frame, size or _size(frame, factor, min_pixels, max_pixels))
    return Video(np.stack([frame, frame]), np.zeros(2), 0.0)


def probe_image(path: str | Path, *, max_side: int = MAX_SIDE) -> VideoInfo:
    """The size of an image, upright by its EXIF tag, without decoding it. UserError as for ``read_image``."""
    with _problems_of(path):
        height, width = image_size(path, max_side)
    return VideoInfo(width, height, duration=0.0, fps=0.0, frames=1)


def seconds_per_slot(times: np.ndarray, temporal: int = 2) -> float:
    """Seconds from one slot to the next, HF's ``second_per_grid_ts``: ``temporal`` mean frame intervals.

    times: f64[F]; a last frame that is there twice counts once. 0 for an image.
    """
    if len(times) > 1 and times[-1] == times[-2]:
        times = times[:-1]
    return temporal * float(times[-1] - times[0]) / max(len(times) - 1, 1)


def resolve_part(
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


def _choose(index: FrameIndex, sampling: Sampling, start: float | None, end: float | None) -> np.ndarray:
    """The frames i64[F] of a video, F even, ascending."""
    times, frame_seconds = index.times, index.duration / len(index.times)
    try:
        first, last = resolve_part(index.duration, frame_seconds, start, end)
    except ValueError as error:
        raise Problem(error) from error
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
        raise Problem(error) from error


@contextlib.contextmanager
def _problems_of(path: str | Path) -> Iterator[None]:
    """Whatever is wrong with a file, as one line that names it."""
    try:
        if not exists(path):
            raise Problem("no such file")
        yield
    except Problem as problem:
        raise UserError(f"{path}: {problem}") from problem
    except av.FFmpegError as error:
        raise UserError(f"{path}: is damaged or no video ({error.strerror})") from error


def _read(
    path: str | Path,
    choose: Callable[[FrameIndex], np.ndarray],
    keep: Callable[[np.ndarray], Any],
    max_side: int,
    tfio_python: str = "",
) -> tuple[FrameIndex, np.ndarray, list]:
    """The index, the frames i64[F] that were chosen by it, and what is kept of each."""

    def attempt(
        index: FrameIndex, frames_at: Callable[[FrameIndex, np.ndarray], Iterable[np.ndarray]]
    ) -> tuple[FrameIndex, np.ndarray, list]:
        chosen = choose(index)
        distinct, places = np.unique(chosen, return_inverse=True)
        kept = [keep(frame) for frame in frames_at(index, distinct)]
        return index, chosen, [kept[place] for place in places]

    if is_folder(path):
        index, files = folder_index(path)
        return attempt(index, lambda _, chosen: folder_frames([files[place] for place in chosen], max_side))

    def frames_at(index: FrameIndex, chosen: np.ndarray) -> Iterable[np.ndarray]:
        if tfio_python:
            return tfio.decode(tfio_python, path, index, chosen, max_side)
        return decode(path, index, chosen, max_side)

    try:
        return attempt(packet_index(path, max_side), frames_at)
    except Untrusted:
        return attempt(frame_index(path, max_side), frames_at)
