"""Which frames of a video are read, and how large they are: a frame rate within a budget of visual tokens.

``fit`` plans the shape of a clip from the size and timing of its file alone, and ``choose`` picks the frames,
for the plan (``frame_times``) and for the reader (``vpjax.data.video``) alike.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from ml_collections import ConfigDict

from vpjax.models.patches import smart_resize
from vpjax.types import Clip, Look, UserError

FACTOR = 28
MIN_PIXELS, MAX_PIXELS = 4 * FACTOR**2, 768 * FACTOR**2
SLOT = 2  # frames
NO_LIMIT = 1 << 60  # tokens

Shape = tuple[int, int, int]  # frames (an even number), height and width in pixels
Part = tuple[float | None, float | None]  # start and end of a Clip
Pick = Literal["first", "change", "merge"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The frames of a part of a video that are read: exactly one of ``frames`` and ``fps`` is set.

    frames=n: the frames on screen at the start of each of n equal parts of the part (as Qwen2.5-VL's
    processor does); each frame once if there are no more than n. fps=x: as many frames as x a second give,
    within ``min_frames`` and ``max_frames`` and no more than there are, rounded down to an even number (as
    Qwen2.5-VL's processor and qwen-vl-utils do), and spread likewise. min_pixels, max_pixels: of a frame.
    total_pixels: of one frame of each slot, summed over the slots; 0: no limit. They mean what they mean in
    qwen-vl-utils, but min_frames is the least to which a budget reduces the frames too, and no rounding of
    sizes exceeds a budget (see ``fit``). pick: of each of the equal parts, the frame that is read: the
    ``first``, or the one that changes most against its surroundings; or, of as many runs of frames that look
    alike, a frame of each (see ``data.picking``).
    """

    frames: int | None = None
    fps: float | None = None
    min_frames: int = 1
    max_frames: int = 768
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    total_pixels: int = 0
    pick: Pick = "first"

    def __post_init__(self) -> None:
        if (self.frames is None) == (self.fps is None):
            raise UserError(f"frame sampling: set exactly one of frames ({self.frames}) and fps ({self.fps})")
        if self.frames is not None and self.frames < 1:
            raise UserError(f"frame sampling: frames is {self.frames}; set it to 1 or more")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UserError(f"frame sampling: fps is {self.fps}; set it above 0")
        for low, high in (("min_frames", "max_frames"), ("min_pixels", "max_pixels")):
            least, most = getattr(self, low), getattr(self, high)
            if not 1 <= least <= most:
                raise UserError(
                    f"frame sampling: {low} is {least} and {high} {most}; set 1 <= {low} <= {high}"
                )
        if self.pick not in get_args(Pick):
            raise UserError(
                f"frame sampling: pick is {self.pick!r}; set it to one of {', '.join(get_args(Pick))}"
            )
        if self.total_pixels < 0:
            raise UserError(
                f"frame sampling: total_pixels is {self.total_pixels}; set it to 0 (no limit) or more"
            )

    @classmethod
    def of(cls, data_config: ConfigDict) -> Sampling:
        """From the fields ``data`` of configs/base.py. A run of an older version may lack some of them."""
        fields = {field.name for field in dataclasses.fields(cls)} & set(data_config)
        values = {name: data_config[name] for name in fields}
        return cls(**values | dict(frames=data_config.frames or None, fps=data_config.fps or None))

    def describe(self) -> str:
        """The choice in words."""
        frames = f"{self.fps:g} frames a second, {self.min_frames} to {self.max_frames} of a clip"
        if self.fps is None:
            frames = f"{self.frames} frames, evenly spread"
        limit = f", at most {self.total_pixels} in one of two frames" if self.total_pixels else ""
        if self.pick == "change":
            frames += ", of each part the one that changes most"
        if self.pick == "merge":
            frames += ", each for a run of frames that look alike"
        return f"{frames}, of {self.min_pixels} to {self.max_pixels} pixels{limit}"


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """width, height: of the upright frames in pixels. duration: seconds; 0: an image. fps: the mean frame
    rate. tick: seconds to which the file rounds its times. lost: frames that the file lacks by its own
    times."""

    width: int
    height: int
    duration: float
    fps: float
    frames: int
    tick: float = 0.0
    lost: int = 0

    @property
    def frame_seconds(self) -> float:
        """The mean duration of a frame; 0: an image."""
        return self.duration / self.frames


class Reading(NamedTuple):
    """What is read of one of a clip's files."""

    sampling: Sampling
    part: Part = (None, None)


def readings_of(clip: Clip, sampling: Sampling, media: int) -> tuple[Reading, ...]:
    """What is read of each of a clip's ``media``. sampling: what the section ``data`` says. UserError for a
    look that is none."""
    if clip.looks:
        return tuple(looked_at(look, sampling) for look in clip.looks)
    return tuple(Reading(sampling, (clip.start, clip.end)) for _ in range(media))


def looked_at(look: Look, sampling: Sampling) -> Reading:
    """What is read of a file by a look, whose own fields come before those of ``sampling``."""
    changes: dict[str, Any] = {}
    if look.frames:
        changes |= dict(frames=look.frames, fps=None)
    if look.pixels:
        changes |= dict(max_pixels=look.pixels, min_pixels=min(look.pixels, sampling.min_pixels))
    if look.pick:
        changes |= dict(pick=look.pick)
    return Reading(dataclasses.replace(sampling, **changes), (look.start, look.end))


@functools.lru_cache(1 << 16)  # clips of like files have like shapes
def fit(
    sampling: Sampling,
    info: VideoInfo,
    part: Part = (None, None),
    *,
    factor: int,
    max_tokens: int | None = None,
    slot_tokens: int = 0,
) -> Shape:
    """The shape in which the part of a file is read: an image as two equal frames.

    ``factor`` x ``factor`` pixels of a slot become one visual token. Frames are as many as ``choose`` returns
    and as large as ``smart_resize`` makes them. If that exceeds ``sampling.total_pixels`` or, with
    ``slot_tokens`` text tokens for each slot of a video, ``max_tokens``, the frames are made smaller, down to
    ``min_pixels`` (less what rounding to whole tokens takes), then fewer, down to ``min_frames``.

    ``read_frames`` never returns more frames, given the shape, and exactly so many if the frame rate is
    constant. ValueError for an aspect ratio that smart_resize refuses and for a part that is not in the file;
    UserError if the least frames of the least size exceed a budget.
    """
    if not info.duration:
        natural, least_slots, slot_tokens = SLOT, 1, 0
    else:
        natural = len(_constant_rate_frames(sampling, info, part))
        least_slots = math.ceil(min(natural, sampling.min_frames) / SLOT)
    limits = dict(min_pixels=sampling.min_pixels, max_pixels=sampling.max_pixels)
    height, width = smart_resize(info.height, info.width, factor=factor, **limits)
    units, slots = height * width // factor**2, natural // SLOT  # units: visual tokens of a slot

    most_units = sampling.total_pixels // factor**2 if sampling.total_pixels else NO_LIMIT
    most_tokens = NO_LIMIT if max_tokens is None else max_tokens
    units_that_fit = min(most_units // slots, most_tokens // slots - slot_tokens)
    if units <= units_that_fit:
        return natural, height, width
    least_units = sampling.min_pixels // factor**2
    rows, columns = largest_grid(info.height, info.width, max(units_that_fit, least_units, 1))
    if rows * columns < units:
        height, width, units = rows * factor, columns * factor, rows * columns
    slots_that_fit = min(most_units // units, most_tokens // (units + slot_tokens))
    if slots_that_fit >= slots:
        return natural, height, width
    if slots_that_fit < least_slots:
        raise UserError(
            f"even data.min_frames={sampling.min_frames} frames of data.min_pixels={sampling.min_pixels} are "
            "above the clip's budget: lower these, or raise data.total_pixels or data.max_tokens"
        )
    frames = _constant_rate_frames(sampling, info, part, SLOT * slots_that_fit)
    return len(frames), height, width


class File(NamedTuple):
    """A part of a video, or an image, that a clip shows. slot_tokens: text beside each of its slots.
    sampling: its own, but for ``total_pixels``; None: that of all."""

    info: VideoInfo
    part: Part = (None, None)
    slot_tokens: int = 0
    sampling: Sampling | None = None


def fit_all(
    sampling: Sampling, files: Sequence[File], *, factor: int, max_tokens: int | None = None
) -> list[Shape]:
    """The shapes, as ``fit`` gives them, of files that share ``sampling.total_pixels`` and ``max_tokens``.

    Each may take an equal share of what is left. The ones that need the least come first, so that the others
    have what these leave over.
    """
    unlimited = [dataclasses.replace(file.sampling or sampling, total_pixels=0) for file in files]
    needs = [
        math.prod(fit(own, file.info, file.part, factor=factor))
        for own, file in zip(unlimited, files, strict=True)
    ]
    shapes: dict[int, Shape] = {}
    pixels_left, tokens_left = sampling.total_pixels, max_tokens
    for number in sorted(range(len(files)), key=lambda number: needs[number]):
        file, own, files_left = files[number], unlimited[number], len(files) - len(shapes)
        if sampling.total_pixels:
            own = dataclasses.replace(own, total_pixels=max(pixels_left // files_left, 1))
        frames, height, width = fit(
            own,
            file.info,
            file.part,
            factor=factor,
            max_tokens=None if tokens_left is None else tokens_left // files_left,
            slot_tokens=file.slot_tokens,
        )
        shapes[number] = frames, height, width
        slots, units = frames // SLOT, height * width // factor**2
        pixels_left -= slots * units * factor**2
        if tokens_left is not None:
            text_tokens = file.slot_tokens if file.info.duration else 0  # an image has no time beside it
            tokens_left -= slots * (units + text_tokens)
    return [shapes[number] for number in range(len(files))]


@functools.lru_cache(1 << 16)
def largest_grid(height: int, width: int, units: int) -> tuple[int, int]:
    """The (rows, columns) with most of at most ``units`` units, whose aspect ratio is a frame's to within one
    unit of the shorter side; of several, the nearest. At least 1 x 1."""
    low, high = min(height, width), max(height, width)
    best, best_key = (1, 1), (0, 0.0)
    for short in range(1, math.isqrt(units) + 1):
        long = min(units // short, (short + 1) * high // low)
        distortion = abs(math.log(long * low / (short * high)))
        if long * low >= (short - 1) * high and (short * long, -distortion) > best_key:
            best, best_key = (short, long), (short * long, -distortion)
    return best if height <= width else best[::-1]


def choose(
    sampling: Sampling,
    info: VideoInfo,
    part: Part,
    on_screen: Callable[[np.ndarray], np.ndarray],
    most: int | None = None,
) -> np.ndarray:
    """The numbers i64[F] of the frames that are read of a part of a video, F even, ascending.

    on_screen: the number of the frame on screen at each of some moments in seconds. most: an even number; if
    more frames would be read, so many are, evenly spread. ValueError if the part is not inside the video.
    """
    first, last = resolve_part(info.duration, info.frame_seconds, *part)
    slack = _slack(info)
    low, high = part_frames(info, part, on_screen)
    available = high - low + 1
    if sampling.fps is None:
        count = sampling.frames or 1
    else:
        natural = int((last - first + slack) * sampling.fps)
        count = min(max(natural, sampling.min_frames), sampling.max_frames, available)
        count = max(count // SLOT, 1) * SLOT
    if most is not None:
        count = min(count, most)
    if available <= count:
        chosen = np.arange(low, low + available)
    else:
        chosen = on_screen(first + np.arange(count) * (last - first) / count + slack)
    return np.append(chosen, chosen[-1]) if len(chosen) % SLOT else chosen


def part_frames(
    info: VideoInfo, part: Part, on_screen: Callable[[np.ndarray], np.ndarray]
) -> tuple[int, int]:
    """The numbers of the first and the last frame of a part of a video, see ``choose``."""
    first, last = resolve_part(info.duration, info.frame_seconds, *part)
    low, high = on_screen(np.array([first + _slack(info), last - _slack(info)])).tolist()
    return low, max(low, high)


def _slack(info: VideoInfo) -> float:
    """Seconds by which a moment may lie before a frame that it selects: timestamps are rounded to ticks."""
    return 1e-6 * info.frame_seconds + (info.tick if info.tick < info.frame_seconds / 10 else 0.0)


def frame_times(
    sampling: Sampling, info: VideoInfo, part: Part = (None, None), most: int | None = None
) -> np.ndarray:
    """The times f64[F] in seconds of the frames that are read of a part of a file, if its frame rate is
    constant. most: F of the shape that ``fit`` gave. ValueError if the part is not inside the file."""
    if not info.duration:
        return np.zeros(SLOT)
    return _constant_rate_frames(sampling, info, part, most) * info.frame_seconds


@functools.lru_cache(1 << 12)
def _constant_rate_frames(
    sampling: Sampling, info: VideoInfo, part: Part, most: int | None = None
) -> np.ndarray:
    """``choose`` for a video whose frames all last equally long. The array is read-only."""

    def on_screen(moments: np.ndarray) -> np.ndarray:
        return np.minimum(moments / info.frame_seconds, info.frames - 1).astype(np.int64)

    frames = choose(sampling, info, part, on_screen, most)
    frames.setflags(write=False)
    return frames


def frame_interval(sampling: Sampling, info: VideoInfo, part: Part, frames: int, available: int = 0) -> float:
    """Seconds between the moments that ``choose`` spreads evenly over a part of a video. frames: as many as
    it returned. available: the frames of the part; 0: those of a constant frame rate. ValueError if the part
    is not inside the video."""
    first, last = resolve_part(info.duration, info.frame_seconds, *part)
    available = available or max(round((last - first) / info.frame_seconds), 1)
    # One frame more than there are moments is the last one again.
    return (last - first) / min(frames, available, sampling.frames or available)


def seconds_per_slot(times: np.ndarray, temporal: int = SLOT) -> float:
    """Seconds from one slot to the next of frames that are not evenly spread: ``temporal`` mean intervals of
    ``times`` f64[F], of which a repeated last one counts once; 0 for an image."""
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
