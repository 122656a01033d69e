"""The axis legend, the glossary, and the records that several folders share.

Axes, as they stand in names such as ``h_BTD``:

    B  clips                    D  decoder width           J  keywords per clip
    T  tokens                   N  query heads             W  tokens per keyword
    F  frames                   K  key/value heads         E  contrastive width
    S  slots: temporal patches  H  head width              G  completions per prompt
    M  visual tokens per slot   L  layers                  C  completion tokens
    V  visual tokens (S * M)    P  prompt tokens           O  vocabulary

Glossary:

    V          the video of a clip, as its file shows it
    V~         the degraded video: V with its key slots replaced by neighbours, which hides the event
    slot       a temporal patch: two frames, which become M visual tokens
    key slots  the slots in which an event of the clip can be seen
    source     i32[S]: for each slot of V~ or of a control, the slot of V that it shows
    tap        the decoder layer whose hidden states the contrastive loss uses
    control    another video made out of V for evaluation, such as its slots in random order
    rollout    a completion that the model samples during GRPO training, with its rewards
    branch     one of the two videos, V or V~, on which the rollouts of a prompt are sampled
    bucket     the static shape that all rows of a batch share
    clip       one video, one question and one answer
    keyword    a word or phrase of the answer that names an event
    lemma      the dictionary form of a keyword; two keywords with one lemma name the same kind of event
"""

import dataclasses
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
TASKS = ("caption", "choice", "order", "grounding", "tracking")


class UserError(Exception):
    """A mistake that the user can correct: one line that names the file, field or flag and the remedy."""


@dataclasses.dataclass(frozen=True)
class Keyword:
    """An event-action keyword of a caption.

    text: as it stands in the caption. lemma: its dictionary form; keywords with equal lemmas are never
    negatives of one another. spans: the times at which it is seen, ``(start, end)`` in seconds of the video;
    empty: unknown.
    """

    text: str
    lemma: str
    spans: tuple[tuple[float, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Clip:
    """One video, one question, one answer: one JSON line, on the host only.

    video: path of the file. spans: the event's ``(start, end)``. task: one of TASKS. choices: the options of
    a multiple-choice question. boxes: positions of an object, ``(x0, y0, x1, y1)`` as shares of width and
    height, at moments evenly spread over the clip. start, end: the part of the video that belongs to the
    clip; None: the video's own beginning or end. All times are seconds of the file, whichever part of it is
    used. extra: any other data of a data set, never read by training.
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
    """The static shape of a batch: all its rows share it, and so does one compiled step.

    frames: F, even. height, width: of a frame in pixels. prompt: P. suffix: C. video_end: tokens of a prompt
    up to and including its last visual token (0: no video), the same for all rows; only this part of the
    prompt is computed again for V~.
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
    """Rows of one bucket, right-padded. A row that is all padding has no ``target`` and no ``slots``.

    frames u8[B,F,h,w,3]; slot_valid bool[B,S] (False: past the clip's end); prompt i32[B,P], prompt_valid
    bool[B,P]; positions i32[B,3,P+C] (time, height, width); visual i32[B,V] index of each visual token in the
    prompt, P where its slot is invalid; suffix i32[B,C]; target bool[B,C] (the tokens that are trained on or
    scored); source i32[B,S] the slot of V that each slot of V~ shows (identity: no V~); slots bool[B,J,S] the
    slots that show each keyword (all False: no such keyword); keywords i32[B,J,W] token ids as they stand in
    the caption, -1 padded; lemma i32[B,J], -1: none; clip i32[B] index of the row's clip in its data set, -1:
    padding; video_end: see Bucket; references: the data that rewards compare completions with
    (``scoring.references``); None without rewards.
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
        """bool[B, S]: whether each slot of V~ shows another slot of V; a row without such slots has no V~."""
        return self.source != np.arange(self.source.shape[1])
