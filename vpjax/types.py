"""The axis legend, the glossary, and the records that several folders share.

Axes, as they stand in names such as ``h_BTD``:

    B  clips                    D  decoder width           J  keywords per clip
    R  packed rows of clips     N  query heads             W  tokens per keyword
    T  tokens                   K  key/value heads         E  contrastive width
    F  frames                   H  head width              G  completions per prompt
    S  slots: temporal patches  L  layers                  C  completion tokens
    M  visual tokens per slot   P  prompt tokens           A  target tokens
    U  units, one per visual token                         O  vocabulary

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
    unit       2 x 2 patches of a slot, which the vision tower makes one visual token
    window     the units that see one another in most layers of the tower: at most 4 x 4 of Qwen2.5-VL's
    row        the tokens of one or more clips: SFT packs as many as fit, generation takes one
    segment    the part of a row that belongs to one clip and sees nothing else
    clip       one question and one answer, with the turns of the conversation before them and what they show:
               one video, none or several; an image counts as a video of one slot
    keyword    a word or phrase of the answer that names an event
    lemma      the dictionary form of a keyword; two keywords with one lemma name the same kind of event
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
MEDIA_TAG = "<video>"  # in a question of a clip: the place of its next video or image
TASKS = ("caption", "choice", "order", "grounding", "tracking", "numerical", "regression", "ocr")


class UserError(Exception):
    """A mistake that the user can correct: one line that names the file, field or flag and the remedy."""


def word_place(text: str, words: str) -> int:
    """The first place in a text at which ``words`` stand by themselves, -1: there is none. "eats" does not
    stand in "seats"."""
    place = text.find(words)
    while place >= 0:
        end = place + len(words)
        if not (text[max(place - 1, 0) : place].isalnum() or text[end : end + 1].isalnum()):
            break
        place = text.find(words, place + 1)
    return place


@dataclasses.dataclass(frozen=True)
class Keyword:
    """An event-action keyword of a caption.

    text: as it stands in the caption. lemma: its dictionary form; keywords with equal lemmas are never
    negatives of one another. spans: the times at which it is seen, ``(start, end)`` in seconds of the video;
    empty: unknown. video: the number in ``Clip.media`` of that video.
    """

    text: str
    lemma: str
    spans: tuple[tuple[float, float], ...] = ()
    video: int = 0


@dataclasses.dataclass(frozen=True, order=True)
class Turn:
    """A question of the user and its answer."""

    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Look:
    """How one video of a clip is looked at, where it is not as the section ``data`` of a config says.

    start, end: of the part that is seen, in seconds of the file; None: the file's own. frames: that are read
    of it; 0: as ``data`` says. pixels: of a frame, at most; 0: likewise. pick: which frame is read of each
    equal part, as ``data.pick``; "": likewise.
    """

    start: float | None = None
    end: float | None = None
    frames: int = 0
    pixels: int = 0
    pick: str = ""


@dataclasses.dataclass(frozen=True)
class Clip:
    """One video, one question, one answer: one JSON line, on the host only.

    video: path of the file, "" for text alone. others: paths of more videos and images that are shown after
    it. Each is shown where its MEDIA_TAG stands in a question, and without tags all stand before the first
    question. keywords: of the answers of all turns. spans: the event's ``(start, end)``. task: one of
    TASKS; numerical (a number to meet), regression (to come close to) and ocr (a text to read) are
    Video-R1's. choices: the options of a multiple-choice question. boxes: positions of an object, ``(x0, y0,
    x1, y1)`` as shares of width and height, at moments evenly spread over the clip. start, end: the part of
    the video that belongs to the clip; None: the video's own beginning or end. All times are seconds of the
    file, whichever part of it is used. extra: any other data of a data set, never read by training.
    degraded_answer: the answer that is true of V~, which does not show the event; "": unknown. system: the
    message before the conversation; "": that of the chat template, if it has one. turns: those before the
    question, which is the last of its conversation; task, choices, boxes and degraded_answer are about the
    last turn. looks: how each of ``media`` is looked at, so that one file may be shown several times; ():
    all as the section ``data`` says, from ``start`` to ``end``.
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
    degraded_answer: str = ""
    system: str = ""
    turns: tuple[Turn, ...] = ()
    others: tuple[str, ...] = ()
    looks: tuple[Look, ...] = ()

    @property
    def media(self) -> tuple[str, ...]:
        """The paths of all videos and images, in the order in which they are shown."""
        return (self.video, *self.others) if self.video else ()

    def record(self) -> dict[str, Any]:
        """The JSON object of the clip, as ``data.clips`` reads it: several paths are a list."""
        record = dataclasses.asdict(self)
        if record.pop("others"):
            record["video"] = list(self.media)
        if not record["looks"]:
            del record["looks"]
        return record

    def with_media(self, paths: Sequence[str]) -> "Clip":
        """The clip with other paths in place of ``media``."""
        return dataclasses.replace(self, video="".join(paths[:1]), others=tuple(paths[1:]))

    @property
    def dialogue(self) -> tuple[Turn, ...]:
        """All turns, the last of which is the clip's own question and answer."""
        return (*self.turns, Turn(self.question, self.answer))

    @property
    def texts(self) -> tuple[str, ...]:
        """All that is said: the system message, and the questions and answers of all turns."""
        said = [text for turn in self.dialogue for text in (turn.question, turn.answer)]
        return (self.system, *said)

    def turn_showing(self, medium: int) -> int:
        """The number in ``dialogue`` of the turn whose question shows the medium of a number in ``media``."""
        shown = 0
        for number, turn in enumerate(self.dialogue):
            shown += turn.question.count(MEDIA_TAG)
            if shown > medium:
                return number
        return 0

    def turn_naming(self, keyword: str) -> int:
        """The number in ``dialogue`` of the first turn whose answer names a keyword, or of the last. Answers
        that have it only within another word count where none has the word itself."""
        for place_in in (word_place, str.find):
            for number, turn in enumerate(self.dialogue):
                if place_in(turn.answer, keyword) >= 0:
                    return number
        return len(self.turns)

    def until(self, number: int) -> "Clip":
        """The clip whose last turn is that of a number in ``dialogue``, with what is shown until then. An
        earlier turn is a caption."""
        if number == len(self.turns):
            return self
        shown = [path for n, path in enumerate(self.media) if self.turn_showing(n) <= number]
        return dataclasses.replace(
            self.with_media(shown),
            looks=self.looks[: len(shown)],
            question=self.turns[number].question,
            answer=self.turns[number].answer,
            turns=self.turns[:number],
            task="caption",
            choices=(),
            boxes=(),
            degraded_answer="",
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Units:
    """The videos of R rows as flat lists of merged units: 2 x 2 patches of one slot, one visual token each.

    The units of a window stand together, in one block of ``block`` units, and the blocks of a clip too.
    pixels u8[R,U,4,X]: of each patch, in the order (channel, frame, row, column). place i32[R,U,2]: row and
    column of a unit in its slot. grid i32[R,U,2]: rows and columns of its slot, in units. window, slot
    i32[R,U]: numbers of its window and of its slot within the row, -1: padding. bins i32[R,Z]: units that
    stand in bins of ``bin`` units, each slot in one bin, -1: padding; Z = 0 where every slot is one window.
    binned i32[R,U]: the place of each unit in the bins, -1: padding.
    """

    pixels: Array
    place: Array
    grid: Array
    window: Array
    slot: Array
    bins: Array
    binned: Array
    block: int = dataclasses.field(metadata=dict(static=True))
    bin: int = dataclasses.field(metadata=dict(static=True))

    @property
    def count(self) -> int:
        """U."""
        return self.window.shape[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Strip:
    """Rows of tokens in which several clips may stand one after another.

    tokens i32[R,T]. segment i32[R,T]: 1 for the tokens of the first clip of a row, 2 for those of the second,
    ..., 0 for padding; tokens see their own segment only. positions i32[R,3,T]: time, height, width. shows
    i32[R,T]: the unit that a visual token shows, -1: text. slot i32[R,T]: the number of a visual token's slot
    within the row, -1: text; in V~ it is the slot that is replaced, not the one that is seen.
    """

    tokens: Array
    segment: Array
    positions: Array
    shows: Array
    slot: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Batch:
    """Packed rows of clips with their answers, for SFT. -1 pads all lists.

    video: V. text: prompts and answers. degraded: the prompts of the clips that have a V~, as they see V~,
    from the first token that shows another unit up to their last visual token or with an answer. shared
    i32[R,T]: the segment of the tokens of ``text`` before that, 0: others. target i32[R,A]: the tokens of
    ``text`` that are trained on, those of earlier turns before the others of their clip; origin i32[R,A]: the
    data set of each, by its number in ``data.train``. degraded_target i32[R,C]: the tokens of ``degraded``
    that are trained on, because they are true of V~, or compared; compared i32[R,C]: the place in ``target``
    of the same token given V, -1: it is not compared. keywords i32[R,Q,W]: token ids as they stand in the
    caption; lemma i32[R,Q]; owner i32[R,Q]: the clip of each keyword; slots bool[R,Q,N]: the slots of the row
    that show it; has_degraded bool[R,Q]: its video has a V~. windows i32[R,Y,3]: keyword, first slot, and
    slot past the end, of moments of its video that show no keyword of its clip
    (``data.keyframes.windows_of``). clip i32[R,X]: the numbers of the row's clips in their data set.
    """

    video: Units
    text: Strip
    degraded: Strip
    shared: Array
    target: Array
    origin: Array
    degraded_target: Array
    compared: Array
    keywords: Array
    lemma: Array
    owner: Array
    slots: Array
    has_degraded: Array
    windows: Array
    clip: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Prompts:
    """One prompt per row, right-padded, for generation: rollouts, evaluation, predictions.

    video: V. text: the prompts, segment 1. medium i32[B,P]: the number in ``Clip.media`` of what a visual
    token shows, -1: text. shows_degraded i32[B,P]: the units that V~ shows. keywords
    i32[B,J,W], -1 padded; hidden bool[B,J]: V~ replaces slots that show the keyword. clip i32[B]: the number
    of the row's clip in its data set, -1: padding. references: the data that rewards compare completions with
    (``scoring.references``); None without rewards.
    """

    video: Units
    text: Strip
    medium: Array
    shows_degraded: Array
    keywords: Array
    hidden: Array
    clip: Array
    references: Any = None

    @property
    def has_degraded(self) -> Array:
        """bool[B]: whether V~ differs from V."""
        return (self.shows_degraded != self.text.shows).any(axis=1)

    def showing(self, shows_BP: Array) -> "Prompts":
        """The prompts about another video of the same units: those that its visual tokens show."""
        return dataclasses.replace(self, text=dataclasses.replace(self.text, shows=shows_BP))

    def without_video(self) -> "Prompts":
        """The prompts without their units, for programs that are given the features."""
        return dataclasses.replace(self, video=jax.tree.map(lambda x: x[:, :0], self.video))
