"""Does the model see the event? Greedy answers on held-out clips, with the video whole, changed and absent.

Every clip is encoded once: a changed video is a gather of its slots.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from vpjax.data import keyframes
from vpjax.data.events import EVENTS, event_of
from vpjax.data.pipeline import make_loader
from vpjax.data.rows import bucket_of, collate, masked_row, prompt_row, round_up
from vpjax.data.text import Text
from vpjax.generate import Completions, generate
from vpjax.models.vlm import VideoLM, gather_slots
from vpjax.sharding import on_mesh, put_whole, row_parts
from vpjax.types import Array, Batch, Clip, UserError

# What the model is shown. none: the clip; key: V~, the event's slots replaced by those beside them; random:
# as many slots replaced elsewhere; single: the middle slot throughout; blind: no video, the question alone.
CONTROLS = ("none", "key", "random", "shuffle", "reverse", "single", "blind")
CHANCE = 1 / len(EVENTS)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model said about one clip under one control. event, length (frames): what happens in it."""

    clip: str
    control: str
    event: str
    length: int
    text: str

    @property
    def right(self) -> bool:
        return event_of(self.text) == self.event

    @property
    def readable(self) -> bool:
        """Whether it names an event, right or wrong."""
        return event_of(self.text) is not None


class Score(NamedTuple):
    """``right`` of ``count`` answers name the event."""

    right: int
    count: int

    @property
    def accuracy(self) -> float:
        return self.right / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy; clips count as independent."""
        if not self.count:
            return math.nan, math.nan
        z2 = 1.96**2
        middle = (self.right + z2 / 2) / (self.count + z2)
        half = 1.96 * math.sqrt(self.accuracy * (1 - self.accuracy) * self.count + z2 / 4) / (self.count + z2)
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.accuracy:.2f} [{low:.2f}, {high:.2f}] {self.count}"


def score(answers: Iterable[Answer], **wanted: str | int) -> Score:
    """The score of the answers whose fields are as ``wanted``, such as ``control="none", length=1``."""
    chosen = [a.right for a in answers if all(getattr(a, field) == value for field, value in wanted.items())]
    return Score(sum(chosen), len(chosen))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All answers, and how many clips gave none and why."""

    answers: tuple[Answer, ...]
    left_out: dict[str, int]

    def metrics(self) -> dict[str, float]:
        """Accuracies by name: ``event/<control>`` and ``event/<control>/<length>``."""
        out = {}
        for control in self._values("control"):
            some = [answer for answer in self.answers if answer.control == control]
            out[f"event/{control}"] = score(some).accuracy
            for length in self._values("length"):
                out[f"event/{control}/{length}"] = score(some, length=length).accuracy
        return out

    def __str__(self) -> str:
        """The tables: by length with intervals and counts, and by event."""
        lengths = self._values("length")
        head = [f"{length} frame{'s' * (length > 1)}" for length in lengths]
        clips = len({answer.clip for answer in self.answers})
        lines = [
            f"event named in {clips} held-out clips, by length of the event: share [95 % interval] of clips; "
            f"chance is {CHANCE:.3f}",
            _line("video", [*head, "all", "answers naming one"], 22),
        ]
        for control in self._values("control"):
            cells = [score(self.answers, control=control, length=length) for length in lengths]
            cells.append(score(self.answers, control=control))
            readable = [answer.readable for answer in self.answers if answer.control == control]
            lines.append(_line(control, [*map(str, cells), f"{sum(readable) / len(readable):.2f}"], 22))
        lines += ["", _line("video", EVENTS, 8)]
        for control in self._values("control"):
            shares = [score(self.answers, control=control, event=event).accuracy for event in EVENTS]
            lines.append(_line(control, [f"{share:.2f}" for share in shares], 8))
        lines += [f"{count} clips left out: {reason}" for reason, count in self.left_out.items()]
        return "\n".join(lines)

    def _values(self, field: str) -> list:
        """The values of a field, controls in the order of CONTROLS."""
        values = {getattr(answer, field) for answer in self.answers}
        return sorted(values, key=CONTROLS.index if field == "control" else None)


def with_events(clips: Sequence[Clip]) -> list[Clip]:
    """The clips whose ``extra`` has the event, which their answer names, and its length in frames. UserError
    where there is none."""
    asked = [c for c in clips if "length" in c.extra and event_of(c.answer) == c.extra.get("event", "")]
    if not asked:
        raise UserError(f"none of {len(clips)} held-out clips has an event to name: set data.heldout to ''")
    return asked


def evaluate(
    model: VideoLM,
    text: Text,
    clips: Sequence[Clip],
    cfg: ConfigDict,
    *,
    controls: Sequence[str] = CONTROLS,
    batch_size: int = 64,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Ask the model about each clip under each control and see whether it names the event.

    clips: asked about are those whose own answer names the event in ``extra``. cfg: the fields ``data`` of
    configs/base.py; V~ replaces the key slots whatever its ``replacement`` says. seed: of random and shuffle.
    mesh: that the model is on; every process reads all clips, and all devices share the work.
    An answer is cut at the length of the longest true one. UserError where no clip has an event.
    """
    asked = with_events(clips)
    longest = round_up(max(len(text.answer(clip.answer)) for clip in asked), cfg.length_multiple)
    batch_size = round_up(batch_size, row_parts(mesh))
    greedy = functools.partial(generate, key=jax.random.key(0), max_new=longest, eos=text.stops)

    def see(model: VideoLM, batch: Batch, features: Array, source_BS: Array) -> Completions:
        return greedy(model, batch, features=gather_slots(features, source_BS))

    cfg = ConfigDict(cfg.to_dict() | dict(replacement="key", pool="key"))
    loader = make_loader(asked, text, model.config, cfg, seed=seed, batch_size=batch_size)
    encode = on_mesh(mesh, jax.jit(lambda model, frames: model.encode(frames)), rows=True)
    see, blind = on_mesh(mesh, see), on_mesh(mesh, greedy)
    said: list[tuple[str, Clip, np.ndarray]] = []
    for _ in tqdm(range(loader.steps_per_epoch), desc="held-out clips", unit="batch", leave=False):
        batch = next(loader)
        placed = put_whole(batch, mesh)
        features = encode(model, placed.frames)
        for control in controls:
            if control != "blind":
                source_BS, there_B = sources(batch, control, seed)
                out = see(model, placed, features, put_whole(source_BS, mesh))
                said += [(control, asked[batch.clip[row]], ids) for row, ids in _tokens(out, there_B)]
    loader.close()
    left_out = collections.Counter(loader.faults.values())
    left_out.update({reason: len(ids) for reason, ids in loader.rejected.items()})
    left_out["no event to name"] = len(clips) - len(asked)
    if "blind" in controls:
        unused = loader.faults.keys() | set().union(*loader.rejected.values())
        asked = [clip for clip in asked if clip.id not in unused]
        said += [("blind", clip, ids) for clip, ids in _blind(blind, model, text, asked, batch_size, mesh)]
    answers = tuple(
        Answer(clip.id, control, clip.extra["event"], clip.extra["length"], text.decode(ids))
        for control, clip, ids in said
    )
    return Evaluation(answers, dict(+left_out))


def sources(batch: Batch, control: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The gather i32[B, S] that makes a control's video out of V, and the rows bool[B] that have it: those
    that hold a clip and, for ``key`` and ``random``, have a V~."""
    slots = batch.source.shape[1]
    same = keyframes.identity(slots)
    out = np.tile(same, (len(batch.clip), 1))
    for row, (number, valid, key) in enumerate(zip(batch.clip, batch.slot_valid, batch.source, strict=True)):
        count, rng = int(valid.sum()), np.random.default_rng([seed, max(number, 0)])
        match control:
            case "key":
                out[row] = key
            case "random":
                out[row] = keyframes.random_source((key != same)[None], count, rng)
            case "shuffle":
                out[row] = keyframes.shuffle_source(slots, count, rng)
            case "reverse":
                out[row] = keyframes.reverse_source(slots, count)
            case "single":
                out[row] = keyframes.single_source(slots, count)
    changed = (out != same).any(axis=1) | (control not in ("key", "random"))
    return out, changed & (batch.clip >= 0)


def _blind(
    greedy: Callable[..., Completions],
    model: VideoLM,
    text: Text,
    clips: Sequence[Clip],
    batch_size: int,
    mesh: Mesh | None,
) -> Iterator[tuple[Clip, np.ndarray]]:
    """Each clip and the tokens of the answer to its question alone, generated once for equal questions."""
    questions = sorted({clip.question for clip in clips})
    rows = [prompt_row(text.chat(question, None), None, model.config) for question in questions]
    answers = []
    for first in range(0, len(rows), batch_size):
        some = rows[first : first + batch_size]
        length = min(batch_size, round_up(len(rows), row_parts(mesh)))
        padded = some + [masked_row()] * (length - len(some))
        batch = collate(padded, bucket_of(rows), model.config)
        answers += [ids for _, ids in _tokens(greedy(model, put_whole(batch, mesh)), batch.clip >= 0)]
    said = dict(zip(questions, answers, strict=True))
    return ((clip, said[clip.question]) for clip in clips)


def _tokens(out: Completions, wanted_B: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The wanted rows and their tokens i32[c]."""
    tokens, mask = np.asarray(out.tokens)[:, 0], np.asarray(out.mask)[:, 0]
    return ((row, tokens[row][mask[row]]) for row in np.flatnonzero(wanted_B))


def _line(name: str, cells: Iterable[str], width: int) -> str:
    return f"{name:<8}" + "".join(f"{cell:>{width}}" for cell in cells)
