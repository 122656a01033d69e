"""Long built-in clips: minutes of a slowly moving shape, much that distracts, and one event of a few frames.

Nothing but the event tells what the answer is, and change alone does not tell where it is: the picture
flickers, grey shapes come and go, some for a frame or two and some for seconds, and the scene is cut.

Most events are seen in few pixels too. Of a hatched shape few pixels show that it loses its colour, and not
what is drawn on it: lines of one pixel, which average to the same grey.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vpjax.events.checks import are_above_0, is_range, is_size
from vpjax.events.clips import CLIPS_PER_TASK, SPLITS
from vpjax.events.drawing import (
    COLOURS,
    EVENTS,
    GAP,
    GLOW,
    GROW,
    JUMP,
    SHAPES,
    SHRINK,
    SPIN,
    WHITE,
    Bystander,
    Event,
    covered,
    distance,
    encode,
    opposite,
)
from vpjax.events.folder import folder_name, write_event_clips
from vpjax.events.text import long_dialogue
from vpjax.files import AnyPath
from vpjax.types import Clip, Keyword, UserError

LONG_CLIPS_VERSION = 1  # increased whenever the same spec gives other clips
LONG_TASKS = ("caption", "choice", "grounding")
CLIPS_PER_FOLDER = 100
CHUNK = 64  # frames that are drawn at once
SWING = (0.10, 0.16)  # least and most that the shape moves from the middle, as shares of the frame's sides
SWING_SECONDS = (20.0, 60.0)  # least and most of a swing there and back
STANDING = 2  # grey shapes that stand throughout a shot
BRIEF = (1, 2)  # frames that a flicker and a passing shape last
LASTING = (4, 64)  # least and most frames for which a lasting shape stays
EDGE = 2  # frames at either end of a clip without its event
HATCHINGS = ("plain", "rows", "columns", "checks")
INK = 250.0  # grey level of the bright ones of a hatching's lines; the others are black
HATCHED_STREAM = 1  # a stream of random numbers of its own, so that other clips stay the same


@dataclasses.dataclass(frozen=True)
class LongSpec:
    """The appearance of the clips and the kinds of their questions.

    size: (height, width) of a frame in pixels. frames, fps: of a clip. lengths: of events, in frames. radius:
    least and most of the shape's radius, as shares of the frame's shorter side. noise: standard deviation of
    the pixel noise in grey levels. crf: H.264's quality, 0 to 51. Of what distracts, the number a minute:
    flickers of the whole picture and grey shapes that are ``passing``, both for BRIEF frames; grey shapes
    that are ``lasting``, for LASTING frames; and ``cuts``, at which the light and all grey shapes change.
    hatched: share of the clips whose event is one of HATCHINGS in place of EVENTS. caption, choice,
    grounding: shares of the tasks. UserError for a value that cannot be drawn.
    """

    seed: int = 0
    size: tuple[int, int] = (56, 56)
    frames: int = 1024
    fps: int = 8
    lengths: tuple[int, ...] = (1, 2, 4)
    radius: tuple[float, float] = (0.14, 0.165)
    noise: float = 3.0
    crf: int = 23
    flickers: float = 6.0
    passing: float = 12.0
    lasting: float = 6.0
    cuts: float = 4.0
    hatched: float = 0.0
    caption: float = 1.0
    choice: float = 0.0
    grounding: float = 0.0

    def __post_init__(self) -> None:
        def require(field: str, holds: bool, rule: str) -> None:
            if not holds:
                raise UserError(f"long.{field} is {getattr(self, field)} and must be {rule}")

        require("size", is_size(self.size), "(height, width), even numbers of at least 28")
        require("fps", self.fps > 0, "above 0")
        require("lengths", are_above_0(self.lengths), "one or more numbers above 0")
        least = max(self.lengths) + 2 * EDGE
        require("frames", self.frames >= least, f"at least {least}, so that the longest event fits")
        is_radius = is_range(self.radius, 0) and self.radius[0] > 0
        require("radius", is_radius, "(least, most) with 0 < least <= most")
        require("hatched", 0 <= self.hatched <= 1, "from 0 to 1")
        require("crf", 0 <= self.crf <= 51, "from 0 to 51")
        for field in ("seed", "noise", "flickers", "passing", "lasting", "cuts", *LONG_TASKS):
            require(field, 0 <= getattr(self, field) < math.inf, "at least 0")
        if not any(self.shares):
            raise UserError(f"long: no task; one of {', '.join(LONG_TASKS)} must be above 0")

    @property
    def shares(self) -> tuple[float, ...]:
        return tuple(getattr(self, task) for task in LONG_TASKS)

    @property
    def key(self) -> str:
        """The name of the folder that holds these clips and no others."""
        return folder_name("long", LONG_CLIPS_VERSION, dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class LongScene:
    """All that a long clip shows.

    radius: of the shape, as a share of the frame's shorter side. swing: how far it moves from the middle, (x,
    y) as shares of the frame's sides. period: frames of its swing, (x, y). phase: of it, in radians. jump:
    the axis along which it jumps, 0: x. shots: (first frame, grey level of the background) of each.
    bystanders: the later ones stand before the earlier ones. flickers: (frame, factor of the brightness).
    noise: seed of the pixel noise.
    """

    spec: LongSpec
    shape: str
    colour: str
    radius: float
    swing: tuple[float, float]
    period: tuple[float, float]
    phase: tuple[float, float]
    jump: int
    event: Event
    shots: tuple[tuple[int, int], ...]
    bystanders: tuple[Bystander, ...]
    flickers: tuple[tuple[int, float], ...]
    noise: int


def make_long_clips(spec: LongSpec, folder: AnyPath, splits: Mapping[str, int]) -> dict[str, Path]:
    """Write the clips that ``folder`` does not hold yet, as ``events.clips.make_event_clips`` does."""

    def video_of(scene: LongScene) -> bytes:
        return encode(draw_long(scene), fps=spec.fps, crf=spec.crf)

    describe = functools.partial(describe_long, spec)
    return write_event_clips(describe, video_of, Path(folder).expanduser() / spec.key, splits)


def describe_long(spec: LongSpec, split: str, index: int) -> tuple[Clip, LongScene]:
    """The clip at ``index`` of a split, its video's path relative to the split's file, and its scene."""
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), index])
    task = LONG_TASKS[rng.choice(len(LONG_TASKS), p=np.array(spec.shares) / sum(spec.shares))]
    chance = np.random.default_rng([spec.seed, SPLITS.index(split), index, HATCHED_STREAM])
    kinds = HATCHINGS if chance.random() < spec.hatched else EVENTS
    kind = kinds[index % len(kinds)]
    wrong_kind = kinds[(index + rng.integers(1, len(kinds))) % len(kinds)]
    length = spec.lengths[index // len(EVENTS) % len(spec.lengths)]
    start = int(rng.integers(EDGE, spec.frames - EDGE - length + 1))
    event = Event(kind, start, length)
    shape = SHAPES[rng.integers(len(SHAPES))]
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    shots = _shots(spec, rng)
    scene = LongScene(
        spec=spec,
        shape=shape,
        colour=colour,
        radius=rng.uniform(*spec.radius),
        swing=tuple(rng.uniform(*SWING, 2)),
        period=tuple(spec.fps * rng.uniform(*SWING_SECONDS, 2)),
        phase=tuple(rng.uniform(0, 2 * np.pi, 2)),
        jump=int(rng.integers(2)),
        event=event,
        shots=shots,
        bystanders=tuple(_bystanders(spec, event, shots, rng)),
        flickers=tuple(_flickers(spec, event, rng)),
        noise=int(rng.integers(2**32)),
    )
    span = (event.start / spec.fps, event.end / spec.fps)
    dialogue = long_dialogue(task, [kind, wrong_kind], span, dict(colour=colour, shape=shape), rng)
    clip = Clip(
        id=f"{split}-{index:06d}",
        video=f"{split}/{index // CLIPS_PER_FOLDER:03d}/{index:06d}.mp4",
        question=dialogue.question,
        answer=dialogue.answer,
        keywords=tuple(Keyword(phrase, kind, (span,)) for phrase in dialogue.phrases),
        spans=(span,),
        task=task,
        choices=dialogue.choices,
        degraded_answer=dialogue.degraded_answer,
        # ``length`` in eighths of a second, as in short clips.
        extra=dict(event=kind, length=8 * length / spec.fps, colour=colour, shape=shape),
    )
    return clip, scene


def draw_long(scene: LongScene) -> np.ndarray:
    """The clip's frames u8[F,h,w,3]."""
    spec = scene.spec
    frames = np.empty((spec.frames, *spec.size, 3), np.uint8)
    light = np.ones(spec.frames, np.float32)
    for frame, factor in scene.flickers:
        light[frame] = factor
    rng = np.random.default_rng(scene.noise)
    grains = spec.noise * rng.standard_normal((CHUNK, *spec.size), np.float32)
    backdrop_Fhw = _backdrop(scene)
    for first in range(0, spec.frames, CHUNK):
        part = slice(first, min(first + CHUNK, spec.frames))
        numbers = np.arange(part.start, part.stop)
        cover_Fhw, glow_Fhw = _shape(scene, numbers)
        colour_FC = np.tile(np.array(COLOURS[scene.colour], np.float32), (len(numbers), 1))
        during = _happens(scene.event, numbers)
        if scene.event.kind == "flash":
            colour_FC[during] = WHITE
        if scene.event.kind == "flip":
            colour_FC[during] = COLOURS[opposite(scene.colour)]
        behind = (backdrop_Fhw[part] + glow_Fhw) * (1 - cover_Fhw)
        grain = grains[rng.integers(CHUNK, size=len(numbers))]
        bright = light[part, None, None]
        for channel in range(3):
            level = colour_FC[:, channel, None, None]
            if scene.event.kind in HATCHINGS:
                level = np.where(during[:, None, None], lines_of(scene.event.kind, spec.size), level)
            picture = (behind + level * cover_Fhw) * bright + grain
            frames[part, :, :, channel] = np.clip(picture, 0, 255)
    return frames


def lines_of(kind: str, size: tuple[int, int]) -> np.ndarray:
    """The grey levels f32[h,w] of a hatching: any 2 x 2 pixels have the same mean, whatever the kind."""
    row, column = np.indices(size)
    share = {
        "plain": np.full(size, 0.5),
        "rows": row % 2,
        "columns": column % 2,
        "checks": (row + column) % 2,
    }
    return (INK * share[kind]).astype(np.float32)


def tokenizer_sentences(spec: LongSpec, asides: Sequence[str]) -> Iterator[str]:
    """Texts to train a tokenizer on: questions and answers of every task, whatever its share, and as often
    what else is said about the clips."""
    for task in LONG_TASKS:
        shares: dict[str, Any] = dict.fromkeys(LONG_TASKS, 0.0) | {task: 1.0}
        of_task = dataclasses.replace(spec, **shares)
        for index in range(CLIPS_PER_TASK):
            clip, _ = describe_long(of_task, "train", index)
            yield from (clip.question, clip.answer, clip.degraded_answer, *asides)


def _shots(spec: LongSpec, rng: np.random.Generator) -> tuple[tuple[int, int], ...]:
    """The (first frame, grey level of the background) of each shot."""
    cuts = sorted({int(frame) for frame in rng.integers(1, spec.frames, _count(spec, spec.cuts, rng))})
    return tuple((first, int(rng.integers(35, 75))) for first in (0, *cuts))


def _flickers(spec: LongSpec, event: Event, rng: np.random.Generator) -> Iterator[tuple[int, float]]:
    """The frames that are darker or brighter, none of them of the event, and by what factor."""
    for start in rng.integers(0, spec.frames, _count(spec, spec.flickers, rng)):
        factor = (0.7, 1.3)[rng.integers(2)]
        for frame in range(int(start), min(int(start + rng.choice(BRIEF)), spec.frames)):
            if not event.start <= frame < event.end:
                yield frame, factor


def _bystanders(
    spec: LongSpec, event: Event, shots: tuple[tuple[int, int], ...], rng: np.random.Generator
) -> Iterator[Bystander]:
    """The grey shapes. None appears or disappears while the event happens."""
    ends = [first for first, _ in shots[1:]] + [spec.frames]
    for (first, _), end in zip(shots, ends, strict=True):
        for _ in range(STANDING):
            yield _grey(first, end - first, (0.06, 0.11), rng)
    lasting = [(int(rng.integers(*LASTING)), (0.08, 0.15)) for _ in range(_count(spec, spec.lasting, rng))]
    passing = [(int(rng.choice(BRIEF)), (0.1, 0.18)) for _ in range(_count(spec, spec.passing, rng))]
    for length, radius in lasting + passing:
        start = int(rng.integers(0, spec.frames))
        length = min(length, spec.frames - start)
        changes = (start, start + length)
        if not any(event.start <= frame <= event.end for frame in changes):
            yield _grey(start, length, radius, rng)


def _grey(start: int, length: int, radius: tuple[float, float], rng: np.random.Generator) -> Bystander:
    return Bystander(
        shape=SHAPES[rng.integers(len(SHAPES))],
        level=int(rng.integers(100, 230)),
        radius=rng.uniform(*radius),
        place=tuple(rng.uniform(0.08, 0.92, 2)),
        drift=(0.0, 0.0),
        start=start,
        length=length,
    )


def _count(spec: LongSpec, a_minute: float, rng: np.random.Generator) -> int:
    """How often something happens in a clip of the spec that happens so often a minute."""
    return int(rng.poisson(a_minute * spec.frames / spec.fps / 60))


def _backdrop(scene: LongScene) -> np.ndarray:
    """All that is seen behind the coloured shape, f32[F,h,w] in grey levels."""
    spec = scene.spec
    height, width = spec.size
    side = min(spec.size)
    backdrop = np.empty((spec.frames, height, width), np.float32)
    for first, level in scene.shots:
        backdrop[first:] = level
    column, row = np.arange(width, dtype=np.float32) + 0.5, np.arange(height, dtype=np.float32)[:, None] + 0.5
    for other in scene.bystanders:
        x, y = column - other.place[0] * width, row - other.place[1] * height
        outside = distance(other.shape, x, y, np.array(other.radius * side, np.float32))
        cover = np.clip(0.5 - outside, 0, 1)
        rows, columns = (slice(i.min(), i.max() + 1) for i in np.nonzero(cover))
        during = backdrop[other.start : other.start + other.length, rows, columns]
        during += (other.level - during) * cover[rows, columns]
    return backdrop


class _Poses(NamedTuple):
    """Where and how the coloured shape stands in each of some frames. centre f64[F,2]: as shares of the
    frame's width and height. radius, gap f64[F]: in pixels, see ``drawing.covered``. angle f64[F]: in
    radians. visible f64[F]: 0 or 1."""

    centre: np.ndarray
    radius: np.ndarray
    gap: np.ndarray
    angle: np.ndarray
    visible: np.ndarray


def _poses(scene: LongScene, numbers: np.ndarray) -> _Poses:
    turns = 2 * np.pi * numbers[:, None] / np.array(scene.period) + np.array(scene.phase)
    centre_F2 = 0.5 + np.array(scene.swing) * np.sin(turns)
    side, count = min(scene.spec.size), len(numbers)
    radius, visible = np.full(count, scene.radius * side), np.ones(count)
    angle, gap = np.zeros((2, count))
    during = _happens(scene.event, numbers)
    match scene.event.kind:
        case "jump":
            along = centre_F2[during, scene.jump]
            centre_F2[during, scene.jump] = along + JUMP * np.where(along > 0.5, -1, 1)
        case "shrink":
            radius[during] *= SHRINK
        case "grow":
            radius[during] *= GROW
        case "vanish":
            visible[during] = 0
        case "split":
            gap[during] = GAP * scene.radius * side
        case "spin":
            angle[during] = SPIN[scene.shape]
    return _Poses(centre_F2, radius, gap, angle, visible)


def _happens(event: Event, numbers: np.ndarray) -> np.ndarray:
    """Whether the event happens in each of some frames, bool[F]."""
    return (event.start <= numbers) & (numbers < event.end)


def _shape(scene: LongScene, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the coloured shape covers of each of some frames, f32[F,h,w] from 0 to 1, and the light that it
    sheds around it, in grey levels."""
    height, width = scene.spec.size
    poses, during = _poses(scene, numbers), _happens(scene.event, numbers)
    of_frames = (np.cos(poses.angle), np.sin(poses.angle), poses.radius, poses.gap, poses.visible)
    cos, sin, radius, gap, visible = (values.astype(np.float32)[:, None, None] for values in of_frames)
    middle_x, middle_y = (poses.centre * (width, height)).T.astype(np.float32)[:, :, None, None]
    x = np.arange(width, dtype=np.float32) + 0.5 - middle_x
    y = np.arange(height, dtype=np.float32)[:, None] + 0.5 - middle_y
    u, v = np.abs(cos * x + sin * y), cos * y - sin * x
    cover = covered(scene.shape, u, v, radius, gap) * visible
    if scene.event.kind in HATCHINGS and during.any():
        # Whole pairs of lines, or the shape's edges would show in few pixels which lines they are.
        cells = cover[during].reshape(-1, height // 2, 2, width // 2, 2).mean(axis=(2, 4))
        cover[during] = cells.repeat(2, axis=1).repeat(2, axis=2)
    if scene.event.kind != "flash" or not during.any():
        return cover, np.zeros((1, 1, 1), np.float32)
    glow = GLOW * during[:, None, None].astype(np.float32)
    return cover, np.clip(2 - np.hypot(x, y) / radius, 0, 1) * glow
