"""What filters go by: numbers that are measured on a row.

A row is measured in three stages, each dearer than the one before: by its own text (``row``), among all rows
(``copies``), and by its video (``video``). NaN means that a measure does not apply to a row.
"""

import dataclasses
import functools
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from vpjax.building.examine import caption_of
from vpjax.curation.contamination import Known, shared_share
from vpjax.scoring.host_text import PLAIN_QUOTES
from vpjax.types import Clip, Keyword

if TYPE_CHECKING:
    from vpjax.building.keywords import Extractor
    from vpjax.building.verbs import Tagger

STAGES = ("row", "copies", "video")
PUNCTUAL_SECONDS = 2.0  # that an event lasts at most which its verb calls one of a moment (chosen here)
WORD = re.compile(r"[^\W\d_][\w'-]*")
_LISTS = tomllib.loads(Path(__file__).with_name("kinds.toml").read_text(encoding="utf-8"))
FOREIGN = frozenset(_LISTS["foreign"].split())
KINDS = {word.replace("_", " "): kind for kind in ("lasting", "punctual") for word in _LISTS[kind].split()}


class Tools(NamedTuple):
    """What rows are measured with: what finds keywords, what knows nouns, whether the dictionary has a word,
    and what benchmarks hold."""

    extract: "Extractor"
    tagger: "Tagger"
    is_known: Callable[[str], bool]
    known: Known


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A row of a source that may be chosen, and what is known of it without its video."""

    clip: Clip
    tools: Tools

    @functools.cached_property
    def told(self) -> str:
        """What the row says of its video: the caption or, of a choice, the question and the right answer."""
        caption = caption_of(self.clip)
        if self.clip.task == "choice":
            return f"{self.clip.question.partition(chr(10))[0]} {caption}"
        return caption

    @functools.cached_property
    def words(self) -> list[str]:
        return WORD.findall(self.told.translate(PLAIN_QUOTES))

    @functools.cached_property
    def keywords(self) -> list[Keyword]:
        """The clip's keywords or, if it has none, those of its caption."""
        return list(self.clip.keywords) or self.tools.extract(caption_of(self.clip))

    @functools.cached_property
    def kinds(self) -> list[str]:
        return [kind_of(keyword.lemma) for keyword in self.keywords]

    @property
    def action(self) -> str:
        """The action by which rows are balanced: the lemma and the object of the first keyword that is over
        in a moment, else of the first; "": it has none."""
        if not self.keywords:
            return ""
        number = self.kinds.index("punctual") if "punctual" in self.kinds else 0
        return action_of(self.keywords[number], self.tools.tagger)

    @property
    def span(self) -> float:
        """The length of the shortest span that the annotation gives, in seconds; NaN: it gives none."""
        return min((end - start for start, end in spans_of(self.clip)), default=math.nan)

    @functools.cached_property
    def event_seconds(self) -> float:
        """An estimate of how long the event lasts, in seconds: as long as its span, but at most
        PUNCTUAL_SECONDS if a verb says that it is over in a moment. NaN if neither says so."""
        if "punctual" in self.kinds:
            return PUNCTUAL_SECONDS if math.isnan(self.span) else min(self.span, PUNCTUAL_SECONDS)
        return self.span


def spans_of(clip: Clip) -> Sequence[tuple[float, float]]:
    """The spans of a clip's keywords, or else its own."""
    return [span for keyword in clip.keywords for span in keyword.spans] or clip.spans


def kind_of(lemma: str) -> str:
    """Whether a verb is ``punctual`` or ``lasting``, by kinds.toml; "" if it does not say."""
    verb = lemma.partition(" ")[0]
    return KINDS.get(lemma) or KINDS.get(verb, "")


def action_of(keyword: Keyword, tagger: "Tagger") -> str:
    """The lemma of a keyword and the dictionary form of its object, the last noun in it: ``open door``."""
    from vpjax.building.verbs import CLOSED  # brings spaCy

    words = WORD.findall(keyword.text.lower())[1:]
    nouns = [word for word in words if word not in CLOSED and tagger.is_noun(word)]
    if not nouns or nouns[-1] in keyword.lemma.split():
        return keyword.lemma
    noun = (tagger.lemmas(nouns[-1], "noun") or nouns[-1:])[0]
    return f"{keyword.lemma} {noun}"


def video_name(clip: Clip) -> str:
    """The name of a clip's video, whatever its folder and suffix."""
    return PurePosixPath(clip.video).stem


def english(candidate: Candidate) -> float:
    """The share of its words that the English dictionary knows; names are not counted. The little words of
    other languages are unknown, whatever they are in English: those languages share many nouns with it."""
    words = [word.partition("'")[0] for word in candidate.words if word.islower()]
    if not words:
        return float(candidate.told.isascii())
    return sum(candidate.tools.is_known(word) and word not in FOREIGN for word in words) / len(words)


def lasting(candidate: Candidate) -> float:
    """The share of its actions whose verb says that they go on and on; NaN without actions."""
    kinds = candidate.kinds
    return kinds.count("lasting") / len(kinds) if kinds else math.nan


def benchmark(candidate: Candidate) -> float:
    """1 if its video is one of a benchmark's, else the share of its runs of words that benchmarks hold."""
    known = candidate.tools.known
    if known.has_video(candidate.clip.media):
        return 1.0
    return shared_share(candidate.told, known)


# Of rows: name -> measure. The other stages' are computed in ``choose`` and ``videos``.
ROW: Mapping[str, Callable[[Candidate], float]] = {
    "words": lambda candidate: len(candidate.words),
    "english": english,
    "events": lambda candidate: len(candidate.keywords),
    "span": lambda candidate: candidate.span,
    "lasting": lasting,
    "event_seconds": lambda candidate: candidate.event_seconds,
    "benchmark": benchmark,
}
COPIES = ("caption_copy",)
VIDEO = ("peak", "needs_key", "needs_video", "shown", "picture_copy")


def stage_of(measure: str) -> str:
    """The stage of a measure; "" if there is no such measure."""
    for stage, names in zip(STAGES, (ROW, COPIES, VIDEO), strict=True):
        if measure in names:
            return stage
    return ""
