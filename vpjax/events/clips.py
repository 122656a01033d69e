"""The built-in event clips: seeded mp4 files of a moving shape with a brief event.

Kinds and lengths of events are uniform. At ``prior`` 0, the question of a caption, the colour and the
direction carry no information about the event, so a model without the video is right in 1 of ``len(EVENTS)``
captions. Each kind of event has one shape that occurs in ``unseen`` only, the other two occur in ``train``
and ``heldout`` only. A model that sees the shape but not the event can therefore reach 3 of 16.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from vpjax.events.checks import are_above_0, is_range, is_size
from vpjax.events.drawing import COLOURS, DIRECTIONS, EVENTS, SHAPES, Event, Scene, boxes, draw, encode
from vpjax.events.folder import folder_name, write_event_clips
from vpjax.events.surroundings import camera_path, clutter, distractor
from vpjax.events.text import DETAILS, EVENT_TASKS, make_dialogue
from vpjax.files import AnyPath
from vpjax.types import Clip, Keyword, UserError

EVENT_CLIPS_VERSION = 2  # increased whenever the same spec gives other clips
SPLITS = ("train", "heldout", "unseen")
EIGHTHS = 8  # of a second, in which the lengths of events are given
DISTRACTOR_LENGTHS = (1, 2)  # likewise, of distractors
MARGIN = 2  # eighths of a second without an event: at least so many at either end and between two events
MOMENTS = 8  # at which a tracking asks for the shape's box, from the first frame to the last
CLIPS_PER_FOLDER = 1000
CLIPS_PER_TASK = 600  # for a tokenizer's training: each word of the grammar occurs many times

Option = TypeVar("Option")


@dataclasses.dataclass(frozen=True)
class EventSpec:
    """The appearance of the clips and the kinds of their questions.

    Each clip draws its frame's size from ``sizes``, (height, width) in pixels, its frames per second from
    ``rates`` and its duration log-uniformly from ``seconds``, (least, most); a clip for whose events this is
    too short lasts a little longer. With one size, one rate and one duration, all clips have the same shape.
    lengths: of events in eighths of a second, rounded up to whole frames. So no event falls between frames
    that are sampled 8 times a second. details: least and most number of a caption's further sentences.
    radius: least and most of the shape's radius, as shares of the frame's shorter side. travel: likewise of
    the distance that it travels, as shares of the side along which it moves. noise: standard deviation of the
    pixel noise in grey levels. flicker: share of clips in which, as a distractor, the whole picture is darker
    or brighter for 1 or 2 eighths of a second. crf: H.264's quality, 0 to 51. prior: share of clips whose
    colour follows from the kind of event: event i has colour i, so that a colour predicts an event
    (``predicted_event``). eventless: share of captions whose clips show no event. paired: clips 2i and 2i + 1
    differ only in the event. caption, choice, order, grounding, tracking, grounded: shares of the tasks. A
    clip about order has two events. A grounded question has options, and its answer also names the seconds
    that show the event; the task of such a clip is ``choice``. tags: the answers to grounding, tracking and
    grounded questions are a short thought and the answer between VideoChat-R1's tags.

    What makes key frames hard to find: texture: standard deviation of the background in grey levels. camera:
    the way that the camera pans over a clip, as a share of the frame's shorter side; it shakes too. clutter:
    number of other shapes, which are grey and stand or drift. distractors: number of grey shapes that appear
    for DISTRACTOR_LENGTHS, away from the coloured shape and never during an event. blur: standard deviation
    as a share of the frame's shorter side. rough: seconds by which a keyword's span is moved at most, and
    lengthened at either end at most; ``Clip.spans`` and the answers have the true ones.
    UserError for a value that cannot be drawn.
    """

    seed: int = 0
    sizes: tuple[tuple[int, int], ...] = ((56, 56),)
    seconds: tuple[float, float] = (2.0, 2.0)
    rates: tuple[int, ...] = (8,)
    lengths: tuple[int, ...] = (1, 2, 4)
    details: tuple[int, int] = (0, 0)
    radius: tuple[float, float] = (0.14, 0.165)
    travel: tuple[float, float] = (0.25, 0.38)
    noise: float = 3.0
    flicker: float = 0.3
    crf: int = 23
    prior: float = 0.0
    eventless: float = 0.0
    paired: bool = False
    texture: float = 0.0
    camera: float = 0.0
    clutter: int = 0
    distractors: int = 0
    blur: float = 0.0
    rough: float = 0.0
    caption: float = 1.0
    choice: float = 0.0
    order: float = 0.0
    grounding: float = 0.0
    tracking: float = 0.0
    grounded: float = 0.0
    tags: bool = False

    def __post_init__(self) -> None:
        def require(field: str, holds: bool, rule: str) -> None:
            if not holds:
                raise UserError(f"events.{field} is {getattr(self, field)} and must be {rule}")

        hard = ("texture", "camera", "clutter", "distractors", "blur", "rough")
        for field in ("seed", "noise", *hard, *EVENT_TASKS):
            require(field, 0 <= getattr(self, field) < math.inf, "at least 0")
        for field in ("flicker", "prior", "eventless"):
            require(field, 0 <= getattr(self, field) <= 1, "from 0 to 1")
        require("crf", 0 <= self.crf <= 51, "from 0 to 51")
        are_sizes = len(self.sizes) > 0 and all(is_size(size) for size in self.sizes)
        require("sizes", are_sizes, "pairs (height, width) of even numbers of at least 28")
        require("lengths", are_above_0(self.lengths), "one or more numbers above 0")
        require("rates", are_above_0(self.rates), "one or more numbers above 0")
        least = (2 * MARGIN + max(self.lengths)) / EIGHTHS
        for_longest = f"(least, most) with {least:g} <= least <= most, so that the longest event fits"
        require("seconds", is_range(self.seconds, least), for_longest)
        at_most = f"(least, most) with 0 <= least <= most <= {len(DETAILS)}"
        require("details", is_range(self.details, 0, len(DETAILS)), at_most)
        is_radius = is_range(self.radius, 0) and self.radius[0] > 0
        require("radius", is_radius, "(least, most) with 0 < least <= most")
        require("travel", is_range(self.travel, 0), "(least, most) with 0 <= least <= most")
        no_pairs = "False where events.prior or events.eventless is set: a pair is one scene with two events"
        require("paired", not self.paired or not (self.prior or self.eventless), no_pairs)
        if not any(self.shares):
            raise UserError(f"events: no task; one of {', '.join(EVENT_TASKS)} must be above 0")

    @property
    def shares(self) -> tuple[float, ...]:
        return tuple(getattr(self, task) for task in EVENT_TASKS)

    @property
    def key(self) -> str:
        """The name of the folder that holds these clips and no others."""
        return folder_name("events", EVENT_CLIPS_VERSION, dataclasses.asdict(self))


def make_event_clips(spec: EventSpec, folder: AnyPath, splits: Mapping[str, int]) -> dict[str, Path]:
    """Write the clips that ``folder`` does not hold yet: split -> its file of Clips, one JSON line each.

    splits: the number of clips of each split, ``train``, ``heldout`` or ``unseen``. UserError if a file
    cannot be written.
    """

    def video_of(scene: Scene) -> bytes:
        return encode(draw(scene, noise=spec.noise), fps=scene.fps, crf=spec.crf)

    home = Path(folder).expanduser() / spec.key
    return write_event_clips(functools.partial(describe, spec), video_of, home, splits)


def describe(spec: EventSpec, split: str, index: int) -> tuple[Clip, Scene]:
    """The clip at ``index`` of a split, its video's path relative to the split's file, and its scene."""
    scene_index = index // 2 if spec.paired else index
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), scene_index])
    # These have generators of their own, so that their choices leave the rest of the scene as it is.
    format_rng, eventless_rng, camera_rng, clutter_rng, distractor_rng, rough_rng = rng.spawn(6)
    subject = _draw_subject(spec, split, scene_index, rng)
    if spec.paired and index % 2:
        subject = subject._replace(kinds=subject.kinds[::-1])
    scene = _draw_scene(spec, subject, rng, format_rng)
    details = int(format_rng.integers(spec.details[0], spec.details[1] + 1))
    scene = _with_surroundings(scene, spec, camera_rng, clutter_rng, distractor_rng)
    clip = _draw_clip(spec, subject, scene, details, rng, rough_rng)
    name = f"{index:06d}"
    video = f"{split}/{index // CLIPS_PER_FOLDER:03d}/{name}.mp4"
    clip = dataclasses.replace(clip, id=f"{split}-{name}", video=video)
    if subject.task == "caption" and eventless_rng.random() < spec.eventless:
        return _without_event(clip), dataclasses.replace(scene, events=())
    return clip, scene


class _Subject(NamedTuple):
    """What a clip is about. kinds: of its event, and of another one: the second event of an order clip, the
    event of a pair's other clip, or a wrong option. lengths: of both, in eighths of a second."""

    task: str
    shape: str
    colour: str
    kinds: tuple[str, ...]
    lengths: tuple[int, int]


# In each of these functions the order of the draws is a part of what the clips are.


def _draw_subject(spec: EventSpec, split: str, scene_index: int, rng: np.random.Generator) -> _Subject:
    task = EVENT_TASKS[rng.choice(len(EVENT_TASKS), p=np.array(spec.shares) / sum(spec.shares))]
    kind = EVENTS[scene_index % len(EVENTS)]
    shape = _pick(rng, [shape for shape in SHAPES if _occurs(split, kind, shape)])
    other_kind = _pick(rng, [x for x in EVENTS if x != kind and _occurs(split, x, shape)])
    if rng.random() < spec.prior:
        colour = list(COLOURS)[EVENTS.index(kind)]
    else:
        colour = _pick(rng, COLOURS)
    length = spec.lengths[scene_index // len(EVENTS) % len(spec.lengths)]
    other_length = _pick(rng, spec.lengths)
    return _Subject(task, shape, colour, (kind, other_kind), (length, other_length))


def _draw_scene(
    spec: EventSpec, subject: _Subject, rng: np.random.Generator, format_rng: np.random.Generator
) -> Scene:
    """The scene of a subject, without what surrounds it. format_rng: of size, frame rate and duration."""
    height, width = _pick(format_rng, spec.sizes)
    fps = _pick(format_rng, spec.rates)
    seconds = math.exp(format_rng.uniform(*np.log(spec.seconds)))
    count = 2 if subject.task == "order" else 1
    lengths = [_whole_frames(length, fps) for length in subject.lengths[:count]]
    margin = _whole_frames(MARGIN, fps)
    frames = max(round(seconds * fps), margin * (count + 1) + sum(lengths))
    starts = _start_frames(frames, margin, lengths, rng)
    return Scene(
        height=height,
        width=width,
        frames=frames,
        fps=fps,
        shape=subject.shape,
        colour=subject.colour,
        direction=_pick(rng, DIRECTIONS),
        radius=rng.uniform(*spec.radius),
        # Beside the middle, so that the shape can jump to the other side.
        centre=tuple(0.5 + rng.choice([-1, 1], 2) * rng.uniform(0.04, 0.1, 2)),
        travel=rng.uniform(*spec.travel),
        background=int(rng.integers(35, 75)),
        events=tuple(map(Event, subject.kinds, starts, lengths)),
        flickers=_flicker_frames(spec.flicker, frames, fps, rng),
        flicker=_pick(rng, (0.7, 1.3)),
        noise=int(rng.integers(2**32)),
        texture=spec.texture,
        view=(),
        bystanders=(),
        blur=spec.blur,
    )


def _with_surroundings(
    scene: Scene,
    spec: EventSpec,
    camera_rng: np.random.Generator,
    clutter_rng: np.random.Generator,
    distractor_rng: np.random.Generator,
) -> Scene:
    """The scene before a moving camera, with clutter and distractors."""
    lengths = [_whole_frames(length, scene.fps) for length in DISTRACTOR_LENGTHS]
    standing = [clutter(scene.frames, clutter_rng) for _ in range(spec.clutter)]
    passing = [distractor(scene, lengths, distractor_rng) for _ in range(spec.distractors)]
    view = camera_path(spec.camera, scene.frames, camera_rng)
    return dataclasses.replace(scene, view=view, bystanders=(*standing, *passing))


def _draw_clip(
    spec: EventSpec,
    subject: _Subject,
    scene: Scene,
    details: int,
    rng: np.random.Generator,
    rough_rng: np.random.Generator,
) -> Clip:
    """The question and answer about a scene, still without a name. details: further sentences of a caption.
    rough_rng: of the error of the keywords' spans."""
    task = "choice" if subject.task == "grounded" else subject.task
    true_spans = tuple((event.start / scene.fps, event.end / scene.fps) for event in scene.events)
    seconds = scene.frames / scene.fps
    spans = [_roughly(span, seconds, spec.rough, rough_rng) for span in true_spans]
    words = dict(colour=scene.colour, shape=scene.shape, direction=scene.direction)
    places = tracked_boxes(scene) if task == "tracking" else ()
    dialogue = make_dialogue(
        subject.task,
        subject.kinds,
        true_spans,
        words | _facts(scene),
        details,
        rng,
        boxes=places,
        tags=spec.tags,
    )
    facts = dict(event=subject.kinds[0], length=subject.lengths[0], flicker=bool(scene.flickers))
    group = dict(group=subject.task) if subject.task == "grounded" else {}
    return Clip(
        id="",
        video="",
        question=dialogue.question,
        answer=dialogue.answer,
        keywords=tuple(
            Keyword(phrase, kind, (span,))
            for phrase, kind, span in zip(dialogue.phrases, subject.kinds, spans, strict=False)
        ),
        spans=true_spans,
        task=task,
        choices=dialogue.choices,
        boxes=places,
        degraded_answer=dialogue.degraded_answer,
        extra={**facts, "spans": true_spans, **words, **group},
    )


def _without_event(clip: Clip) -> Clip:
    """A caption of the same scene without its event."""
    return dataclasses.replace(
        clip,
        answer=clip.degraded_answer,
        keywords=(),
        spans=(),
        degraded_answer="",
        extra=clip.extra | dict(event="", length=0, spans=()),
    )


def tracked_boxes(scene: Scene) -> tuple[tuple[float, float, float, float], ...]:
    """The shape's boxes at MOMENTS, as in ``Clip.boxes``."""
    moments = np.linspace(0, scene.frames - 1, MOMENTS).round().astype(int)
    return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in boxes(scene)[moments].tolist())


def predicted_event(colour: str) -> str:
    """The event that a colour predicts where clips have a prior (``EventSpec.prior``)."""
    return EVENTS[list(COLOURS).index(colour)]


def _occurs(split: str, kind: str, shape: str) -> bool:
    """Whether an event happens to a shape in a split: each event leaves one shape to ``unseen``."""
    return (split == "unseen") == (shape == SHAPES[EVENTS.index(kind) % len(SHAPES)])


def _whole_frames(eighths: int, fps: int) -> int:
    """The fewest frames that last at least so many eighths of a second."""
    return math.ceil(eighths * fps / EIGHTHS)


def _start_frames(frames: int, margin: int, lengths: Sequence[int], rng: np.random.Generator) -> list[int]:
    """The first frames of successive events, ``margin`` frames from the edges and from one another."""
    slack = frames - margin * (len(lengths) + 1) - sum(lengths)
    waits = np.sort(rng.integers(0, slack + 1, len(lengths)))
    earliest = margin * np.arange(1, len(lengths) + 1) + np.cumsum([0, *lengths[:-1]])
    return (earliest + waits).tolist()


def _flicker_frames(share: float, frames: int, fps: int, rng: np.random.Generator) -> tuple[int, ...]:
    start = int(rng.integers(frames - _whole_frames(2, fps) + 1))
    length = _whole_frames(int(rng.integers(1, 3)), fps)
    return tuple(range(start, start + length)) if rng.random() < share else ()


def _roughly(
    span: tuple[float, float], seconds: float, by: float, rng: np.random.Generator
) -> tuple[float, float]:
    """A span of a clip of so many seconds, moved by up to ``by`` and lengthened by up to ``by`` at either
    end, within the clip."""
    start, end = span
    moved, before, after = rng.uniform((-by, 0, 0), by)
    moved = float(np.clip(moved, -start, seconds - end))
    return max(0.0, start + moved - float(before)), min(seconds, end + moved + float(after))


def _facts(scene: Scene) -> dict[str, str]:
    """What DETAILS say of a scene; the same whatever the kind of its event."""
    centre, step = np.array(scene.centre), np.array(DIRECTIONS[scene.direction])
    light = "The light is the same throughout."
    if scene.flickers:
        light = f"For a moment the whole picture is {'darker' if scene.flicker < 1 else 'brighter'}."
    if scene.width == scene.height:
        outline = "as wide as high"
    else:
        outline = "wider than high" if scene.width > scene.height else "higher than wide"
    start, end = centre - step * scene.travel / 2, centre + step * scene.travel / 2
    side = min(scene.width, scene.height) / np.array([scene.width, scene.height])
    return dict(
        half="the first" if 2 * scene.events[0].start < scene.frames else "the second",
        start=_quarter(start - side * scene.view[0]),
        end=_quarter(end - side * scene.view[-1]),
        light=light,
        outline=outline,
        seconds=str(round(scene.frames / scene.fps)),
        background="nearly black" if scene.background < 55 else "dark grey",
    )


def _quarter(place: np.ndarray) -> str:
    """The quarter of the frame in which (x, y), as shares of its width and height, lies."""
    return f"{'upper' if place[1] < 0.5 else 'lower'} {'left' if place[0] < 0.5 else 'right'}"


def _pick(rng: np.random.Generator, options: Iterable[Option]) -> Option:
    options = list(options)
    return options[int(rng.integers(len(options)))]


def tokenizer_sentences(spec: EventSpec) -> Iterator[str]:
    """Questions and answers to train a tokenizer on: of every task, whatever its share, but of trackings and
    grounded questions only where a spec asks for them, for their words would take the room of others."""
    for task in EVENT_TASKS:
        if task in ("tracking", "grounded") and not getattr(spec, task):
            continue
        shares: dict[str, Any] = dict.fromkeys(EVENT_TASKS, 0.0) | {task: 1.0}
        of_task = dataclasses.replace(spec, **shares)
        for index in range(CLIPS_PER_TASK):
            clip, _ = describe(of_task, "train", index)
            yield clip.question
            yield clip.answer
            yield clip.degraded_answer
