"""The built-in event clips: seeded mp4 files of a moving shape to which something brief happens.

Kinds and lengths of event are uniform; at ``prior`` 0 the question of a caption, the colour and the direction
say nothing about the event, so a model without the video is right in 1 of ``len(EVENTS)`` captions. One shape
of each kind is left out of ``train`` and ``heldout`` and is all that ``unseen`` has: a model that sees the
shape but not the event can therefore reach 3 of 16.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from vpjax.events.drawing import COLOURS, DIRECTIONS, EVENTS, SHAPES, Event, Scene, draw, encode
from vpjax.events.text import EVENT_TASKS, event_of, make_dialogue
from vpjax.files import write_whole
from vpjax.types import Clip, Keyword, UserError

__all__ = ["EVENTS", "EventSpec", "describe", "event_of", "make_event_clips", "tokenizer_sentences"]

EVENT_CLIPS_VERSION = 1  # goes up whenever the same spec gives other clips
SPLITS = ("train", "heldout", "unseen")
MARGIN = 2  # frames without an event: at least so many at either end and between two events
FOLDER = 1000  # clips per folder
SENTENCES = 600  # clips per task for a tokenizer: each word of the grammar many times over

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class EventSpec:
    """What the clips look like and what is asked about them.

    size: of a square frame in pixels. frames: per clip. fps: frames per second. lengths: of events in frames.
    radius, travel: least and most of the shape's radius and of its way over the clip, as shares of ``size``.
    noise: standard deviation of the pixel noise in grey levels. flicker: share of clips in which, as a
    distractor, the whole picture is darker or brighter for 1 or 2 frames. crf: H.264's quality, 0 to 51.
    prior: share of clips whose colour follows from the kind of event. paired: clips 2i and 2i + 1 differ only
    in the event. caption, choice, order, grounding: shares of the tasks; a clip about order has two events.
    UserError for a value that cannot be drawn.
    """

    seed: int = 0
    size: int = 56
    frames: int = 16
    fps: int = 8
    lengths: tuple[int, ...] = (1, 2, 4)
    radius: tuple[float, float] = (0.14, 0.165)
    travel: tuple[float, float] = (0.25, 0.38)
    noise: float = 3.0
    flicker: float = 0.3
    crf: int = 23
    prior: float = 0.0
    paired: bool = False
    caption: float = 1.0
    choice: float = 0.0
    order: float = 0.0
    grounding: float = 0.0

    def __post_init__(self):
        longest = max(self.lengths, default=0)
        least = MARGIN + 2 * (MARGIN + longest)
        wanted = {
            "seed": ("at least 0", self.seed >= 0),
            "size": ("even and at least 28", self.size >= 28 and self.size % 2 == 0),
            "lengths": ("frame counts above 0", longest > 0 and min(self.lengths) > 0),
            "frames": (f"at least {least}, for two of the longest events", self.frames >= least),
            "fps": ("above 0", self.fps > 0),
            "radius": ("(least, most) with 0 < least <= most", 0 < self.radius[0] <= self.radius[1]),
            "travel": ("(least, most) with 0 <= least <= most", 0 <= self.travel[0] <= self.travel[1]),
            "noise": ("at least 0", self.noise >= 0),
            "flicker": ("from 0 to 1", 0 <= self.flicker <= 1),
            "crf": ("from 0 to 51", 0 <= self.crf <= 51),
            "prior": ("from 0 to 1", 0 <= self.prior <= 1),
            "paired": (
                "False where events.prior is set: a pair has one colour",
                not (self.paired and self.prior),
            ),
            **{task: ("at least 0", share >= 0) for task, share in zip(EVENT_TASKS, self.shares, strict=True)},
        }
        for field, (rule, kept) in wanted.items():
            if not kept:
                raise UserError(f"events.{field} is {getattr(self, field)} and must be {rule}")
        if not sum(self.shares):
            raise UserError(f"events: no task; one of {', '.join(EVENT_TASKS)} must be above 0")

    @property
    def shares(self) -> tuple[float, ...]:
        return tuple(getattr(self, task) for task in EVENT_TASKS)

    @property
    def key(self) -> str:
        """The name of the folder that holds these clips and no others."""
        text = json.dumps([EVENT_CLIPS_VERSION, dataclasses.asdict(self)], sort_keys=True)
        return f"events-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def make_event_clips(
    spec: EventSpec, folder: str | Path, splits: Mapping[str, int], *, progress: bool = True
) -> dict[str, Path]:
    """Write the clips that ``folder`` does not hold yet: split -> its file of Clips, one JSON line each.

    splits: clips per split, of ``train``, ``heldout`` and ``unseen``. A file has its name only when it is
    whole, and then never changes: a killed run goes on where it stopped, several can share the folder, and
    the first clips of a split are the same however many follow. UserError where the folder cannot be written.
    """
    home = Path(folder).expanduser() / spec.key
    files = {split: home / f"{split}-{count}.jsonl" for split, count in splits.items()}
    try:
        for split, file in files.items():
            if not file.exists():
                make_event_split(spec, split, splits[split], file, progress)
    except OSError as error:
        raise UserError(f"{home}: event clips cannot be written: {error.strerror or error}") from error
    return files


def make_event_split(spec: EventSpec, split: str, count: int, file: Path, progress: bool) -> None:
    def line(index: int) -> str:
        clip, scene = describe(spec, split, index)
        video = file.parent / clip.video
        if not video.exists():
            frames = draw(scene, size=spec.size, frames=spec.frames, noise=spec.noise)
            write_whole(video, encode(frames, fps=spec.fps, crf=spec.crf))
        return json.dumps(dataclasses.asdict(clip)) + "\n"

    # Threads: drawing and encoding run mostly outside Python's lock, and new processes would have to start
    # without a fork (JAX may already run threads), each importing the caller's main module.
    pool = ThreadPoolExecutor()
    try:
        lines = pool.map(line, range(count))
        bar = tqdm(lines, f"event clips ({split})", total=count, unit="clip", disable=not progress)
        write_whole(file, "".join(bar).encode())
    finally:
        pool.shutdown(cancel_futures=True)


def describe(spec: EventSpec, split: str, index: int) -> tuple[Clip, Scene]:
    """The clip at ``index`` of a split, its video's path relative to the split's file, and what it shows."""
    place = index // 2 if spec.paired else index
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), place])
    task = EVENT_TASKS[rng.choice(len(EVENT_TASKS), p=np.array(spec.shares) / sum(spec.shares))]
    kind = EVENTS[place % len(EVENTS)]
    shape = pick(rng, [shape for shape in SHAPES if (split == "unseen") == left_out(kind, shape)])
    # Of an order clip the second event, of a pair the other clip's, of a choice a wrong option.
    other = pick(rng, [k for k in EVENTS if k != kind and (split == "unseen") == left_out(k, shape)])
    told = rng.random() < spec.prior
    colour = list(COLOURS)[EVENTS.index(kind) % len(COLOURS)] if told else pick(rng, list(COLOURS))
    lengths = [spec.lengths[place // len(EVENTS) % len(spec.lengths)], pick(rng, spec.lengths)]
    starts = start_frames(spec, lengths if task == "order" else lengths[:1], rng)
    kinds = [other, kind] if spec.paired and index % 2 else [kind, other]
    scene = Scene(
        shape=shape,
        colour=colour,
        direction=pick(rng, list(DIRECTIONS)),
        radius=rng.uniform(*spec.radius),
        # Off the middle, so that there is room for a jump past it.
        centre=tuple(0.5 + rng.choice([-1, 1], 2) * rng.uniform(0.04, 0.1, 2)),
        travel=rng.uniform(*spec.travel),
        background=int(rng.integers(35, 75)),
        events=tuple(Event(*event) for event in zip(kinds, starts, lengths, strict=False)),
        flickers=flicker_frames(spec, rng),
        flicker=pick(rng, (0.7, 1.3)),
        noise=int(rng.integers(2**32)),
    )
    spans = tuple((e.start / spec.fps, (e.start + e.length) / spec.fps) for e in scene.events)
    words = dict(colour=colour, shape=shape, direction=scene.direction)
    said = make_dialogue(task, kinds, spans, words, rng)
    clip = Clip(
        id=f"{split}-{index:06d}",
        video=f"{split}/{index // FOLDER:03d}/{index:06d}.mp4",
        question=said.question,
        answer=said.answer,
        keywords=tuple(
            Keyword(phrase, event.kind, (span,))
            for phrase, event, span in zip(said.phrases, scene.events, spans, strict=True)
        ),
        spans=spans,
        task=task,
        choices=said.choices,
        extra=dict(event=kinds[0], length=lengths[0], flicker=bool(scene.flickers), **words),
    )
    return clip, scene


def left_out(kind: str, shape: str) -> bool:
    """Whether an event never happens to a shape but in the split ``unseen``."""
    return shape == SHAPES[EVENTS.index(kind) % len(SHAPES)]


def start_frames(spec: EventSpec, lengths: Sequence[int], rng: np.random.Generator) -> list[int]:
    """The first frames of events that follow one another, MARGIN frames from the edges and from the next."""
    slack = spec.frames - MARGIN * (len(lengths) + 1) - sum(lengths)
    waits = np.sort(rng.integers(0, slack + 1, len(lengths)))
    earliest = MARGIN * np.arange(1, len(lengths) + 1) + np.cumsum([0, *lengths[:-1]])
    return (earliest + waits).tolist()


def flicker_frames(spec: EventSpec, rng: np.random.Generator) -> tuple[int, ...]:
    start, length = int(rng.integers(spec.frames - 1)), int(rng.integers(1, 3))
    return tuple(range(start, start + length)) if rng.random() < spec.flicker else ()


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[rng.integers(len(options))]


def tokenizer_sentences(spec: EventSpec) -> Iterator[str]:
    """Questions and answers of every task, whatever their shares, to train a tokenizer on."""
    for task in EVENT_TASKS:
        alone = dataclasses.replace(spec, **{other: float(other == task) for other in EVENT_TASKS})
        for index in range(SENTENCES):
            clip, _ = describe(alone, "train", index)
            yield clip.question
            yield clip.answer
