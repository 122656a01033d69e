"""What a clip asks of its completions: read from the Clip on the host, and as rows of arrays for the device.

Of one clip: R words, J keywords of X forms of Y words, M other words, K spans, Q boxes.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from vpjax.scoring import words
from vpjax.scoring.forms import Form, forms_of
from vpjax.scoring.keywords import host_place
from vpjax.scoring.texts import host_answer_part, host_ascii, host_chosen
from vpjax.types import Array, Clip, UserError

LETTERS = 26


class Kind(enum.IntEnum):
    """What is asked. TEXT: words of a caption or an order. EVIDENCE: a choice and the spans that prove it."""

    MASKED = -1
    TEXT = 0
    CHOICE = 1
    EVIDENCE = 2
    GROUNDING = 3
    TRACKING = 4


@dataclasses.dataclass(frozen=True)
class ReferenceKeyword:
    """A keyword that the reference says: its forms; the word of the answer part with which it is first said;
    whether V~ lacks it."""

    forms: frozenset[Form]
    place: int
    removed: bool


@dataclasses.dataclass(frozen=True)
class ClipReference:
    """What one clip asks. keywords: None where the answer does not say it or its lemma came before; own:
    the words of the answer and of all the clip's keywords; known: those of all known ones."""

    kind: Kind
    words: tuple[bytes, ...]
    choice: int
    choices: int
    keywords: tuple[ReferenceKeyword | None, ...]
    own: frozenset[bytes]
    known: frozenset[bytes]
    spans: tuple[tuple[float, float], ...]
    boxes: tuple[tuple[float, float, float, float], ...]

    @property
    def content(self) -> list[bytes]:
        return words.content(self.words)

    @property
    def asked(self) -> list[ReferenceKeyword]:
        return [keyword for keyword in self.keywords if keyword]


def clip_reference(clip: Clip, *, keywords: int, known: frozenset[bytes] = frozenset()) -> ClipReference:
    """Read a clip with its first J = ``keywords`` keywords. known: the words of all known keywords. UserError
    where the clip lacks what its task needs."""
    answer = host_answer_part(host_ascii(clip.answer))
    said = words.host_words_of(answer)
    choices = len(clip.choices) or LETTERS
    choice, kind = -1, Kind.TEXT
    match clip.task:
        case "choice":
            kind = Kind.EVIDENCE if clip.spans else Kind.CHOICE
            choice = host_chosen(answer, choices)
            if clip.answer in clip.choices:  # the option's text in place of its letter
                choice = clip.choices.index(clip.answer)
            if choice < 0 or choices > LETTERS:
                raise UserError(
                    f"clip {clip.id}: the answer {clip.answer!r} names none of its {choices} options"
                )
        case "grounding":
            kind = Kind.GROUNDING
            if not clip.spans:
                raise UserError(f"clip {clip.id}: a grounding clip needs spans, in seconds")
        case "tracking":
            kind = Kind.TRACKING
            if not clip.boxes:
                raise UserError(f"clip {clip.id}: a tracking clip needs boxes")
    asked, own, lemmas = [], set(said), set()
    for keyword in clip.keywords:
        forms = forms_of(keyword)
        own |= {word for form in forms for word in form}
        if len(asked) == keywords:
            continue
        place = None if keyword.lemma in lemmas else host_place(said, forms)
        asked.append(None if place is None else ReferenceKeyword(forms, place, bool(keyword.spans)))
        if place is not None:
            lemmas.add(keyword.lemma)
    return ClipReference(
        kind=kind,
        words=tuple(said),
        choice=choice,
        choices=choices,
        keywords=tuple(asked),
        own=frozenset(own),
        known=known,
        spans=clip.spans,
        boxes=clip.boxes,
    )


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The widths of References, and the words that are known as keywords (all forms of one word)."""

    words: int
    keywords: int
    forms: int
    form_words: int
    spans: int
    boxes: int
    known: frozenset[bytes] = frozenset()


def sizes_of(clips: Iterable[Clip], *, keywords: int, words: int = 1024) -> Sizes:
    """The sizes that hold all ``clips``, with the first J = ``keywords`` keywords of each. UserError that
    names the clip where a reference has more than ``words`` words or lacks what its task needs."""
    most, known = dict(words=1, forms=1, form_words=1, spans=1, boxes=1), set()
    for clip in clips:
        wanted = clip_reference(clip, keywords=keywords)
        if len(wanted.words) > words:
            raise UserError(
                f"clip {clip.id}: the answer has {len(wanted.words)} words, of which rewards hold {words}; "
                "shorten it or allow more"
            )
        forms = [keyword.forms for keyword in wanted.asked]
        known |= {form[0] for some in forms for form in some if len(form) == 1}
        most = {name: max(most[name], least) for name, least in _widths(wanted).items()}
    return Sizes(keywords=keywords, known=frozenset(known), **most)


def _widths(wanted: ClipReference) -> dict[str, int]:
    forms = [keyword.forms for keyword in wanted.asked]
    return dict(
        words=len(wanted.words),
        forms=max(map(len, forms), default=0),
        form_words=max((len(form) for some in forms for form in some), default=0),
        spans=len(wanted.spans),
        boxes=len(wanted.boxes),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class References:
    """One row per clip. Words are fingerprints (``vpjax.scoring.words``), 0 where there is none.

    kind i32[B]; words, content u32[B, R]: all of the answer part's words and those that say what happens;
    choice, choices i32[B]: the right option and how many there are; forms u32[B, J, X, Y]; places i32[B, J]:
    where the answer first says each keyword, -1: not asked; removed bool[B, J]: not seen in V~; others
    u32[B, M]: known keywords' words that are none of this clip's, sorted; spans f32[B, K, 2] seconds, (0, 0):
    none; boxes f32[B, Q, 4] and their number i32[B].
    """

    kind: Array
    words: Array
    content: Array
    choice: Array
    choices: Array
    forms: Array
    places: Array
    removed: Array
    others: Array
    spans: Array
    boxes: Array
    box_count: Array


def references(clips: Sequence[Clip | None], sizes: Sizes) -> References:
    """NumPy rows of ``clips``; None is a masked row, whose rewards are all NaN. ``removed`` marks the
    keywords whose key frames are known. UserError for a reference that is longer than its table, or lacks
    what its task needs."""
    b, s = len(clips), sizes
    out = References(
        kind=np.full(b, Kind.MASKED, np.int32),
        words=np.zeros((b, s.words), np.uint32),
        content=np.zeros((b, s.words), np.uint32),
        choice=np.full(b, -1, np.int32),
        choices=np.zeros(b, np.int32),
        forms=np.zeros((b, s.keywords, s.forms, s.form_words), np.uint32),
        places=np.full((b, s.keywords), -1, np.int32),
        removed=np.zeros((b, s.keywords), bool),
        others=np.zeros((b, max(1, len(s.known))), np.uint32),
        spans=np.zeros((b, s.spans, 2), np.float32),
        boxes=np.zeros((b, s.boxes, 4), np.float32),
        box_count=np.zeros(b, np.int32),
    )
    for row, clip in enumerate(clips):
        if clip is not None:
            wanted = clip_reference(clip, keywords=s.keywords, known=s.known)
            for name, least in _widths(wanted).items():
                if least > getattr(s, name):
                    raise UserError(
                        f"clip {clip.id}: {least} {name.replace('_', ' of ')} where the rewards' tables hold "
                        f"{getattr(s, name)}; make their sizes from this clip too"
                    )
            _fill(out, row, wanted)
    return out


@functools.lru_cache(1)
def _known_prints(known: frozenset[bytes]) -> np.ndarray:
    return np.sort(np.array([words.host_fingerprint(word) for word in known], np.uint32))


def _fill(out: References, row: int, wanted: ClipReference) -> None:
    def prints(some):
        return [words.host_fingerprint(word) for word in some]

    out.kind[row], out.choice[row], out.choices[row] = wanted.kind, wanted.choice, wanted.choices
    out.words[row, : len(wanted.words)] = prints(wanted.words)
    out.content[row, : len(wanted.content)] = prints(wanted.content)
    for j, keyword in enumerate(wanted.keywords):
        if keyword:
            out.places[row, j], out.removed[row, j] = keyword.place, keyword.removed
            for x, form in enumerate(sorted(keyword.forms)):
                out.forms[row, j, x, : len(form)] = prints(form)
    known = _known_prints(wanted.known)
    others = known[~np.isin(known, prints(wanted.own))]
    out.others[row, out.others.shape[1] - len(others) :] = others
    out.spans[row, : len(wanted.spans)] = np.reshape(wanted.spans, (-1, 2))
    out.boxes[row, : len(wanted.boxes)] = np.reshape(wanted.boxes, (-1, 4))
    out.box_count[row] = len(wanted.boxes)
