"""Does the model see the event? Its answers on held-out clips, with the video whole, changed and absent."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from vpjax.data.rows import round_up
from vpjax.data.text import Text
from vpjax.evaluation.ask import CONTROLS, NO_KEY, ask
from vpjax.events.clips import EVENTS, event_of
from vpjax.models.vlm import VideoLM
from vpjax.types import Clip, UserError

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
    data_config: ConfigDict,
    *,
    controls: Sequence[str] = CONTROLS,
    batch_size: int = 64,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Ask the model about each clip under each control and see whether it names the event.

    clips: asked about are those whose own answer names the event in ``extra``. data_config: the fields ``data`` of
    configs/base.py; V~ replaces the key slots whatever its ``replacement`` says. seed: of random and shuffle.
    mesh: that the model is on; every process reads all clips, and all devices share the work.
    An answer is cut at the length of the longest true one. UserError where no clip has an event.
    """
    asked = {clip.id: clip for clip in with_events(clips)}
    longest = round_up(
        max(len(text.answer(clip.answer)) for clip in asked.values()), data_config.length_multiple
    )
    how = dict(controls=controls, batch_size=batch_size, max_new=longest, seed=seed, mesh=mesh)
    answers, faults = [], {}
    for (clip, control, _), said, fault in ask(model, text, list(asked.values()), data_config, **how):
        if not fault:
            extra = asked[clip].extra
            answers.append(Answer(clip, control, extra["event"], extra["length"], said))
        elif fault != NO_KEY:
            faults[clip] = fault
    left_out = collections.Counter(faults.values())
    left_out["no event to name"] = len(clips) - len(asked)
    return Evaluation(tuple(answers), dict(+left_out))


def _line(name: str, cells: Iterable[str], width: int) -> str:
    return f"{name:<8}" + "".join(f"{cell:>{width}}" for cell in cells)
