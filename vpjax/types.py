"""The axis legend and the records that travel between rooms.

Axes, as they stand in names such as ``h_BTD``:

    B  clips                    D  decoder width           J  keywords per clip
    T  tokens                   N  query heads             W  tokens per keyword
    F  frames                   K  key/value heads         E  contrastive width
    S  slots: temporal patches  H  head width              G  completions per prompt
    M  visual tokens per slot   L  layers                  C  completion tokens
    V  visual tokens (S * M)    P  prompt tokens           O  vocabulary
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
TASKS = ("caption", "choice", "order", "grounding", "tracking")


class UserError(Exception):
    """A mistake that the user can mend: one line that names the file, field or flag and what to do."""


@dataclasses.dataclass(frozen=True)
class Keyword:
    """An event-action keyword of a caption.

    text: as it stands in the caption. lemma: its dictionary form, the identity used for negatives.
    spans: where it is seen, ``(start, end)`` in seconds of the video; empty where unknown.
    """

    text: str
    lemma: str
    spans: tuple[tuple[float, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Clip:
    """One video, one question, one answer: one JSON line, on the host only.

    video: path of the file. spans: the event's ``(start, end)``. task: one of TASKS. choices: the options of
    a multiple-choice question. boxes: where an object is, ``(x0, y0, x1, y1)`` as shares of width and height,
    at moments evenly spread over the clip. start, end: the part of the video that the clip is; None: from its
    beginning, to its end. All times are seconds of the file, whatever part of it is shown. extra: anything
    else that a data set wants to carry
    (never read by training).
    """

    id: str
    video: str
    question: str
    answer: str
    keywords: tuple[Keyword, ...] = ()
    spans: tuple[tuple[float, float], ...] = ()
    task: str = "caption"
    choices: tuple[str, ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    start: float | None = None
    end: float | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The static shape of a batch: all its rows share it, and one compiled step serves it.

    frames: F, even. height, width: of a frame in pixels. prompt: P. suffix: C.
    video_end: tokens of a prompt up to and with its last visual token (0: no video), the same for all rows;
    V~ is run over this much of the prompt only.
    """

    frames: int
    height: int
    width: int
    prompt: int
    suffix: int
    video_end: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Batch:
    """Rows of one bucket, right-padded. A row that is wholly padding has no ``target`` and no ``slots``.

    frames u8[B,F,h,w,3]; slot_valid bool[B,S] (False: past the clip's end);
    prompt i32[B,P], prompt_valid bool[B,P]; positions i32[B,3,P+C] (time, height, width);
    visual i32[B,V] index of each visual token in the prompt, P where its slot is invalid;
    suffix i32[B,C]; target bool[B,C] (the tokens that are trained on or scored);
    source i32[B,S] the slot of V that each slot of V~ shows (identity: no V~);
    slots bool[B,J,S] the slots M that show each keyword (all False: no such keyword);
    keywords i32[B,J,W] token ids as they stand in the caption, -1 padded; lemma i32[B,J], -1: none;
    clip i32[B] index of the row's clip in its data set, -1: padding; video_end: see Bucket;
    references: what rewards compare completions to (``rewards.References``), None where nothing is rewarded.
    """

    frames: Array
    slot_valid: Array
    prompt: Array
    prompt_valid: Array
    positions: Array
    visual: Array
    suffix: Array
    target: Array
    source: Array
    slots: Array
    keywords: Array
    lemma: Array
    clip: Array
    video_end: int = dataclasses.field(metadata=dict(static=True))
    references: Any = None

    @property
    def replaced(self) -> Array:
        """The slots of V~ that show another slot of V, bool[B, S]; a row without any has no V~."""
        return self.source != np.arange(self.source.shape[1])
