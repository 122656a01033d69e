"""References, with which rewards compare completions: each clip's answer, read on the host, as rows of
arrays.

Axes: R words of an answer, O options, J keywords of X forms, Y words of a form or an option, M other
keywords' words, K spans, Q boxes.
"""

import dataclasses
import enum
import functools
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from vpjax.scoring.answers import LETTERS, read_choice, read_number, read_options
from vpjax.scoring.forms import Form, forms_of
from vpjax.scoring.host_text import CHUNK, STOPWORDS, answer_in, normalize, split_words
from vpjax.scoring.keywords import KeywordTable, first_mention
from vpjax.scoring.stems import stem_of
from vpjax.scoring.words import fingerprint_of
from vpjax.types import Array, Clip, UserError

NO_CLIP = Clip("", "", "", "none")


class AnswerType(enum.IntEnum):
    """TEXT: captions and other free answers. GROUNDED_CHOICE: an option, and the spans that prove it.
    NUMBER, SIZE: a number that must be met, or come close. OCR: text read off a picture."""

    PADDING = -1
    TEXT = 0
    CHOICE = 1
    GROUNDED_CHOICE = 2
    GROUNDING = 3
    TRACKING = 4
    NUMBER = 5
    SIZE = 6
    OCR = 7


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class References:
    """One row per clip. Words are fingerprints (``words.fingerprint_of``), 0 where there is none.

    answer_type i32[B]; words, stems, content u32[B, R]: all words of the answer, their stems, and its content
    words; chunks u32[B, R]: what stands between the spaces of a text to read; number f32[B]: NaN: none;
    choice i32[B]: the right option; marks i32[B, O], options u32[B, O, Y]: the character by which each option
    is named, and the words of its text; forms u32[B, J, X, Y]; positions
    i32[B, J]: of each keyword's first mention in the answer, -1: not expected, and wrong where it has forms;
    shows_nothing bool[B]: it is known that the video shows none at all; others u32[B, M]: words of known
    keywords that are not this clip's, sorted; spans f32[B, K, 2] in seconds, (0, 0): none; boxes f32[B, Q, 4]
    and their number i32[B].
    """

    answer_type: Array
    words: Array
    stems: Array
    content: Array
    chunks: Array
    number: Array
    choice: Array
    marks: Array
    options: Array
    forms: Array
    positions: Array
    shows_nothing: Array
    others: Array
    spans: Array
    boxes: Array
    box_count: Array


@dataclasses.dataclass(frozen=True)
class ReferenceKeyword:
    """A keyword that the reference answer mentions. position: of its first mention, in words; -1: V~ hides
    it, and the answer does not mention it."""

    forms: frozenset[Form]
    position: int


class DegradedClip(Clip):
    """A clip as V~ shows it. Its answer is ``degraded_answer``. Keywords that this does not mention are
    hidden, and it is wrong to name them."""


def answer_words(clip: Clip) -> list[str]:
    return split_words(answer_in(normalize(clip.answer)))


def expected_keywords(clip: Clip, count: int) -> list[ReferenceKeyword | None]:
    """The first ``count`` keywords of a clip. None stands for a keyword that the answer does not mention,
    unless V~ hides it, or whose lemma occurred before, and fills the list if the clip has fewer."""
    words, lemmas = answer_words(clip), set()
    keywords: list[ReferenceKeyword | None] = [None] * count
    for j, keyword in enumerate(clip.keywords[:count]):
        forms = forms_of(keyword)
        position = first_mention(words, forms)
        if position is None and isinstance(clip, DegradedClip):
            keywords[j] = ReferenceKeyword(forms, -1)
        elif position is not None and keyword.lemma not in lemmas:
            keywords[j] = ReferenceKeyword(forms, position)
            lemmas.add(keyword.lemma)
    return keywords


def degraded_clip(clip: Clip) -> DegradedClip | None:
    """The clip as V~ shows it. None if no answer is known that is true of V~, or if the task asks for the
    times or places of what V~ hides."""
    if not clip.degraded_answer or clip.task in ("grounding", "tracking"):
        return None
    return DegradedClip(**vars(clip) | dict(answer=clip.degraded_answer, spans=(), boxes=()))


def shows_nothing(clip: Clip) -> bool:
    """Whether it is known that the video shows no keyword: V~ hides all of the clip's, or the clip is one of
    the built-in clips without an event. A clip whose keywords are not annotated is not known to show none."""
    if isinstance(clip, DegradedClip):
        words = answer_words(clip)
        return all(first_mention(words, forms_of(keyword)) is None for keyword in clip.keywords)
    return not clip.keywords and clip.extra.get("event") == ""


def answer_type(clip: Clip) -> AnswerType:
    """UserError if the clip lacks what its task needs, such as an answer that can be compared."""
    if clip.task == "grounding" and not clip.spans:
        raise UserError(f"clip {clip.id}: a grounding clip needs spans, in seconds")
    if clip.task == "tracking" and not clip.boxes:
        raise UserError(f"clip {clip.id}: a tracking clip needs boxes")
    if clip.task in ("numerical", "regression") and read_number(clip.answer) is None:
        raise UserError(f"clip {clip.id}: the answer {clip.answer!r} is not one number, as {clip.task} needs")
    if clip.task in ("caption", "order", "ocr") and not answer_words(clip):
        raise UserError(f"clip {clip.id}: the answer {clip.answer!r} has no words to compare with; remove it")
    types = dict(
        choice=AnswerType.GROUNDED_CHOICE if clip.spans else AnswerType.CHOICE,
        grounding=AnswerType.GROUNDING,
        tracking=AnswerType.TRACKING,
        numerical=AnswerType.NUMBER,
        regression=AnswerType.SIZE,
        ocr=AnswerType.OCR,
    )
    return types.get(clip.task, AnswerType.TEXT)


def right_option(clip: Clip) -> int:
    """The index of the option that the answer chooses, by its own text or as completions do. UserError if it
    chooses none."""
    if clip.answer in clip.choices:
        return clip.choices.index(clip.answer)
    choice = read_choice(clip.answer, clip.choices)
    if choice is None:
        count = len(clip.choices) or len(LETTERS)
        field = "degraded_answer" if isinstance(clip, DegradedClip) else "answer"
        raise UserError(f"clip {clip.id}: the {field} {clip.answer!r} names none of its {count} options")
    return choice


def reference_arrays(clip: Clip, keywords: int, known: frozenset[str] = frozenset()) -> References:
    """The reference of a clip with its first J = ``keywords`` keywords, without the axis B and without
    padding. known: the words of all known keywords. UserError if the clip lacks what its task needs."""
    kind, words = answer_type(clip), answer_words(clip)
    options = read_options(clip.choices) if clip.task == "choice" else []
    number = read_number(clip.answer) if clip.task in ("numerical", "regression") else None
    chunks = CHUNK.findall(answer_in(normalize(clip.answer))) if kind == AnswerType.OCR else []
    stems = map(stem_of, words) if kind == AnswerType.TEXT else ()
    own = {*words, *(word for keyword in clip.keywords for form in forms_of(keyword) for word in form)}
    known_fingerprints = _sorted_fingerprints(known)
    others = known_fingerprints[~np.isin(known_fingerprints, _fingerprints(own))]
    expected = expected_keywords(clip, keywords)
    forms = [sorted(keyword.forms) if keyword else [] for keyword in expected]
    most = max((len(group) for group in forms), default=0)
    longest = max((len(form) for group in forms for form in group), default=0)
    forms_JXY = np.zeros((keywords, most, longest), np.uint32)
    for j, group in enumerate(forms):
        for x, form in enumerate(group):
            forms_JXY[j, x, : len(form)] = _fingerprints(form)
    longest = max((len(option.words) for option in options), default=0)
    options_OY = np.zeros((len(options), longest), np.uint32)
    for o, option in enumerate(options):
        options_OY[o, : len(option.words)] = _fingerprints(option.words)
    return References(
        answer_type=np.array(kind, np.int32),
        words=_fingerprints(words),
        stems=_fingerprints(stems),
        content=_fingerprints(word for word in words if word not in STOPWORDS),
        chunks=_fingerprints(chunks),
        number=np.array(np.nan if number is None else number, np.float32),
        choice=np.array(right_option(clip) if clip.task == "choice" else -1, np.int32),
        marks=np.array([ord(option.mark) if option.mark else 0 for option in options], np.int32),
        options=options_OY,
        forms=forms_JXY,
        positions=np.array([keyword.position if keyword else -1 for keyword in expected], np.int32),
        shows_nothing=np.array(shows_nothing(clip)),
        others=np.pad(others, (len(known) - len(others), 0)),
        spans=np.reshape(clip.spans, (-1, 2)).astype(np.float32),
        boxes=np.reshape(clip.boxes, (-1, 4)).astype(np.float32),
        box_count=np.array(len(clip.boxes), np.int32),
    )


def _fingerprints(words: Iterable[str]) -> np.ndarray:
    return np.array([fingerprint_of(word) for word in words], np.uint32)


@functools.lru_cache(2)  # that of the run, and the empty one
def _sorted_fingerprints(words: frozenset[str]) -> np.ndarray:
    return np.sort(_fingerprints(words))


def keyword_table(clips: Iterable[Clip], keywords: int) -> KeywordTable:
    """The words by which answers name the first J = ``keywords`` keywords of any of ``clips``. Forms of
    several words are left out. A word of two lemmas stands for the first."""
    lemma_of: dict[int, int] = {}
    for clip in clips:
        for keyword, expected in zip(clip.keywords, expected_keywords(clip, keywords), strict=False):
            if expected is not None:
                for form in sorted(expected.forms):
                    if len(form) == 1:
                        lemma = fingerprint_of(keyword.lemma)
                        lemma_of.setdefault(fingerprint_of(form[0]), lemma)
    words = sorted(lemma_of) or [0]
    return KeywordTable(
        words=np.array(words, np.uint32),
        lemmas=np.array([lemma_of.get(word, 0) for word in words], np.uint32),
    )


@dataclasses.dataclass(frozen=True)
class ReferenceSizes:
    """The sizes that References must have. shapes: of a row of each field. known: the keywords' forms of one
    word."""

    keywords: int
    shapes: dict[str, tuple[int, ...]]
    known: frozenset[str]


def reference_sizes(clips: Iterable[Clip], *, keywords: int, max_words: int = 1024) -> ReferenceSizes:
    """The sizes that hold all ``clips``, with the first J = ``keywords`` keywords of each. UserError, naming
    the clip, if a reference has more than ``max_words`` words or lacks what its task needs."""
    empty = vars(reference_arrays(NO_CLIP, keywords))
    shapes = {name: tuple(np.maximum(1, array.shape).tolist()) for name, array in empty.items()}
    known: set[str] = set()
    for clip in clips:
        row = reference_arrays(clip, keywords)
        if len(row.words) > max_words:
            words = f"{len(row.words)} words, of which rewards hold {max_words}"
            raise UserError(f"clip {clip.id}: the answer has {words}; shorten it or allow more")
        for keyword in expected_keywords(clip, keywords):
            if keyword and keyword.position >= 0:
                known.update(form[0] for form in keyword.forms if len(form) == 1)
        for name, array in vars(row).items():
            shapes[name] = tuple(np.maximum(shapes[name], array.shape).tolist())
    return ReferenceSizes(keywords, shapes, frozenset(known))


def reference_rows(clips: Sequence[Clip | None], sizes: ReferenceSizes) -> References:
    """NumPy rows of ``clips``; None is a masked row, whose rewards are all NaN. UserError for a reference
    that is longer than ``sizes``, or lacks what its task needs."""
    shapes = sizes.shapes | {"others": (max(1, len(sizes.known)),)}
    rows = {}
    for name, array in vars(reference_arrays(NO_CLIP, sizes.keywords)).items():
        fill = -1 if name in ("answer_type", "choice", "positions") else 0
        rows[name] = np.full((len(clips), *shapes[name]), fill, array.dtype)
    for row, clip in enumerate(clips):
        if clip is None:
            continue
        for name, array in vars(reference_arrays(clip, sizes.keywords, sizes.known)).items():
            if (np.array(array.shape) > shapes[name]).any():
                sizes_now = f"{array.shape} where the rewards' tables hold {shapes[name]}"
                raise UserError(f"clip {clip.id}: {name} {sizes_now}; make their sizes from this clip too")
            index: tuple[int | slice, ...] = (row, *(slice(size) for size in array.shape))
            rows[name][index] = array
    return References(**rows)
