"""Reads video and image files as uint8 frames with exact presentation times, by PyAV and Pillow.

Frames are chosen by time, from the timestamps of the file's packets: a moment selects the frame that is on
screen then. Seconds count from the first frame that can be decoded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import av
import numpy as np
from PIL import Image

from vpjax.data.decode import BadTimestamps, FrameIndex, Problem, decode_frames, frame_index, packet_index
from vpjax.data.images import folder_frames, folder_index, image_pixels, image_size
from vpjax.data.picking import changed_most, merged
from vpjax.data.sampling import (
    FACTOR,
    MAX_PIXELS,
    MIN_PIXELS,
    Pick,
    Sampling,
    VideoInfo,
    choose,
    fit,
    frame_interval,
    part_frames,
    seconds_per_slot,
)
from vpjax.data.tfio import decode_with_tfio
from vpjax.files import AnyPath, exists, is_folder, stamp
from vpjax.models.patches import smart_resize
from vpjax.types import UserError

VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov")  # suffixes of the files of videos
MAX_SIDE = 8192
SMALL_SIDE = 128  # pixels, up to which two products resize a frame in a sixth of the time

FramesAt = Callable[[np.ndarray], Iterable[np.ndarray]]  # decodes the frames u8[h,w,3] of some numbers
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Video:
    """frames u8[F,h,w,3] RGB, F even. times f64[F]: their exact presentation times in seconds; if the last
    frame is repeated to make F even, so is its time. frame_seconds: mean duration of a frame; 0: an image.
    interval: seconds from one of the moments whose frames these are to the next; 0: they are not evenly
    spread."""

    frames: np.ndarray
    times: np.ndarray
    frame_seconds: float = 0.0
    interval: float = 0.0

    def seconds_per_slot(self, temporal: int) -> float:
        """Seconds from one slot of ``temporal`` frames to the next, Hugging Face's ``second_per_grid_ts``: by
        the moments that were asked for, before which a frame may begin."""
        return temporal * self.interval or seconds_per_slot(self.times, temporal)


def probe(path: AnyPath, *, max_side: int = MAX_SIDE) -> VideoInfo:
    """Size and timing of a video, from its packets and one decoded frame. UserError as ``read_frames``."""

    def measure(index: FrameIndex, frames_at: FramesAt) -> VideoInfo:
        [first] = frames_at(np.zeros(1, int))
        return _info(index, *index.shown_size(*first.shape[:2]))

    with _named_problems(path):
        return _with_frames(path, measure, max_side)


def read_frames(
    path: AnyPath,
    sampling: Sampling,
    *,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    factor: int = FACTOR,
    start: float | None = None,
    end: float | None = None,
    max_side: int = MAX_SIDE,
    tfio_python: str = "",
) -> Video:
    """The sampled frames of a video, upright, with the shape that they are shown in even where the file's
    pixels are not square. A folder of images is a video too: see ``folder_index``.

    size: (height, width) of the result, and frames: an even number, the most that are read, as ``fit`` plans
    both; None: as ``fit`` plans for this file and ``factor``. start, end: of the span in seconds; None: the
    video's. max_side: the largest width or height in pixels that is accepted. tfio_python: a Python with
    tensorflow-io, which decodes in place of PyAV (``vpjax.data.tfio``). UserError if the file is missing,
    broken or cut short, has no video stream or no decodable frame, is too large or too slim, or does not
    contain the span.
    """
    with _named_problems(path):
        if size is None and sampling.total_pixels:  # only then the frames' number depends on their size
            try:
                info = probe(path, max_side=max_side)
                planned, height, width = fit(sampling, info, (start, end), factor=factor)
            except ValueError as error:
                raise Problem(error) from error
            size, frames = (height, width), frames or planned

        def read(index: FrameIndex, frames_at: FramesAt) -> Video:
            starts, last = _choose(index, sampling, start, end, frames)

            def resized_at(numbers: np.ndarray) -> Iterator[np.ndarray]:
                nonlocal size  # of the first frame, for all, whose own size may change
                for frame in frames_at(numbers):
                    if size is None:
                        shown = index.shown_size(*frame.shape[:2])
                        size = _planned_size(shown, factor, sampling.min_pixels, sampling.max_pixels)
                    yield resize(frame, size)

            numbers, pixels = _pick_frames(sampling.pick, starts, last, resized_at)
            interval = 0.0
            if sampling.pick == "first":
                there = last - int(starts[0]) + 1
                interval = frame_interval(sampling, _info(index), (start, end), len(starts), there)
            return Video(np.stack(pixels), index.times[numbers], index.duration / len(index.times), interval)

        return _with_frames(path, read, max_side, tfio_python)


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
        pixels = image_pixels(path, max_side)
        size = size or _planned_size(pixels.shape[:2], factor, min_pixels, max_pixels)
        frame = resize(pixels, size)
    return Video(np.stack([frame, frame]), np.zeros(2), 0.0)


def probe_image(path: AnyPath, *, max_side: int = MAX_SIDE) -> VideoInfo:
    """The size of an image, upright by its EXIF tag, without decoding it. UserError as ``read_image``."""
    with _named_problems(path):
        height, width = image_size(path, max_side)
    return VideoInfo(width, height, duration=0.0, fps=0.0, frames=1)


def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """u8[h,w,3] -> u8[*size,3] by antialiased bicubic (a = -0.5) in float32, clipped and rounded once."""
    height, width = frame.shape[:2]
    if (height, width) == tuple(size):
        return frame
    if max(height, width, *size) <= SMALL_SIDE:
        rows = resizing(height, size[0]) @ frame.astype(np.float32).reshape(height, -1)
        both = resizing(width, size[1]) @ rows.reshape(size[0], width, 3)
        return np.rint(both.clip(0, 255)).astype(np.uint8)
    resized = []
    for channel in frame.transpose(2, 0, 1):  # one at a time, for a large image fills much memory
        # As floats, for Pillow would clip bytes after each of its two passes.
        floats = Image.fromarray(channel.astype(np.float32))
        resized.append(np.asarray(floats.resize(size[::-1], Image.Resampling.BICUBIC)))
    return np.rint(np.stack(resized, axis=-1).clip(0, 255)).astype(np.uint8)


@functools.lru_cache(256)
def resizing(before: int, after: int) -> np.ndarray:
    """The weights f32[after, before] of a line's pixels in those of the resized line."""
    unit = Image.fromarray(np.eye(before, dtype=np.float32))
    return np.asarray(unit.resize((before, after), Image.Resampling.BICUBIC))


@functools.lru_cache(8)  # a long video is read window by window
def _packet_index(path: str, stamp: tuple[int, int], max_side: int) -> FrameIndex:
    """``packet_index`` of a file of this size and time of change."""
    return packet_index(path, max_side)


def _choose(
    index: FrameIndex, sampling: Sampling, start: float | None, end: float | None, most: int | None
) -> tuple[np.ndarray, int]:
    """The numbers i64[F] of the sampled frames, F even, ascending, and of the last frame of the part."""

    def on_screen(moments: np.ndarray) -> np.ndarray:
        return np.searchsorted(index.times, moments, "right") - 1

    info, part = _info(index), (start, end)
    try:
        return choose(sampling, info, part, on_screen, most), part_frames(info, part, on_screen)[1]
    except ValueError as error:
        raise Problem(error) from error


def _info(index: FrameIndex, height: int = 0, width: int = 0) -> VideoInfo:
    count = len(index.times)
    return VideoInfo(width, height, index.duration, count / index.duration, count, index.tick, index.lost)


def _planned_size(shown: tuple[int, ...], factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The size to which ``smart_resize`` brings a frame that is to be shown as ``shown`` (height, width)."""
    try:
        return smart_resize(*shown, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)
    except ValueError as error:
        raise Problem(error) from error


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
    except OSError as error:  # of a place elsewhere
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _with_frames(
    path: AnyPath, use: Callable[[FrameIndex, FramesAt], Result], max_side: int, tfio_python: str = ""
) -> Result:
    """``use`` of the index of a file's frames and of what decodes them. If they turn out not to be at the
    times that the packets tell, the index is made by decoding, and used once more."""
    if is_folder(path):
        index, files = folder_index(path)
        return use(index, lambda numbers: folder_frames([files[n] for n in numbers], max_side))

    def use_index(index: FrameIndex) -> Result:
        if tfio_python:
            return use(index, lambda numbers: decode_with_tfio(tfio_python, path, index, numbers, max_side))
        return use(index, lambda numbers: decode_frames(path, index, numbers, max_side))

    try:
        return use_index(_packet_index(os.fspath(path), stamp(path), max_side))
    except BadTimestamps:
        return use_index(frame_index(path, max_side))


def _pick_frames(
    pick: Pick, starts: np.ndarray, last: int, frames_at: FramesAt
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The numbers i64[F] of the frames that are read, one of each part of a video, and these frames. starts:
    i64[F], the first frame of each part; equal ones are one part, whose frame is repeated. last: the number
    of the last frame of the last part."""
    starts, part_of = np.unique(starts, return_inverse=True)
    if pick == "first":
        numbers, frames = starts, list(frames_at(starts))
    elif pick == "change":
        numbers, frames = changed_most(frames_at(np.arange(starts[0], last + 1)), starts, last + 1)
    else:  # the frames of a long video are too many to be held until it is known which are read
        numbers = starts[0] + merged(frames_at(np.arange(starts[0], last + 1)), len(starts))
        frames = list(frames_at(numbers))
    return numbers[part_of], [frames[part] for part in part_of]
