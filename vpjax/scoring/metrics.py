"""What an answer is worth: one rule per kind of question, each giving numbers from 0 to 1."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from vpjax.events.text import event_of
from vpjax.scoring.answers import choice_of, final, span_of
from vpjax.types import Clip

THRESHOLDS = (0.3, 0.5, 0.7)
SAID = 0.5  # share of an event's content words that a sentence must hold to tell the event
STOP = set(
    "a an and as at be by for from he her his in into is it its of off on one onto or out she some that the "
    "their them then there they this to up was were which while who with".split()
)


class Score(NamedTuple):
    """readable: whether the answer could be read at all; where not, its values are 0. values: by metric, the
    leading one first."""

    readable: bool
    values: dict[str, float]


def choice_made(clip: Clip, text: str) -> Score:
    """Whether the answer chooses the right option of ``clip.choices``."""
    chosen = choice_of(text, clip.choices)
    return Score(chosen is not None, {"accuracy": float(chosen == choice_of(clip.answer, clip.choices))})


def span_found(clip: Clip, text: str) -> Score:
    """The overlap of the seconds that the answer names with those of ``clip.spans``: intersection over union,
    whose mean is mIoU, and whether it reaches each threshold."""
    said = span_of(text)
    iou = max((overlap(said, span) for span in clip.spans), default=0.0) if said else 0.0
    return Score(
        said is not None, {"mIoU": iou} | {f"R@{least}": float(iou >= least) for least in THRESHOLDS}
    )


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Intersection over union of two (start, end)."""
    union = max(a[1], b[1]) - min(a[0], b[0])
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / union if union > 0 else float(a == b)


def caption(clip: Clip, text: str) -> Score:
    """ROUGE-1, -2 and -L (F1, stemmed, of the package rouge-score) and, where nltk's WordNet is installed,
    METEOR (of nltk) of the answer against ``clip.answer``."""
    said = final(text)
    values = {name: s.fmeasure for name, s in _rouge().score(clip.answer, said).items()}
    if meteor_lacks() is None:
        from nltk.translate.meteor_score import meteor_score

        values["METEOR"] = meteor_score([_words(clip.answer)], _words(said))
    return Score(bool(said), values)


@functools.cache
def meteor_lacks() -> str | None:
    """What METEOR needs and this machine lacks; None where it is all there. Nothing is downloaded."""
    import nltk

    for name in ("corpora/wordnet.zip", "corpora/wordnet"):
        try:
            nltk.data.find(name)
            return None
        except LookupError:
            continue
    return "nltk's WordNet, which METEOR needs, is not installed: python -m nltk.downloader wordnet"


def described_events(clip: Clip, text: str) -> Score:
    """Recall, precision and F1 of the events that a description tells, by a matcher of our own: no language
    model judges, so these are not the published AutoDQ numbers of DREAM-1K.

    A sentence tells an event where it holds at least half of the event's content words, stemmed. Recall is
    the share of ``clip.extra["events"]`` that some sentence of the answer tells; precision the share of the
    answer's sentences that some sentence of the reference tells, ``clip.answer`` and its events.
    """
    events = clip.extra["events"]
    said, reference = _sentences(final(text)), [*_sentences(clip.answer), *map(_content, events)]
    recall = _share(tells(said, _content(event)) for event in events)
    precision = _share(tells(reference, sentence) for sentence in said)
    f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
    return Score(
        bool(said),
        {"F1 (our matcher)": f1, "recall (our matcher)": recall, "precision (our matcher)": precision},
    )


def tells(sentences: list[set[str]], event: set[str]) -> bool:
    """Whether one of the sentences holds at least half of an event's content words."""
    return bool(event) and any(len(event & sentence) >= SAID * len(event) for sentence in sentences)


def event_named(clip: Clip, text: str) -> Score:
    """Of the built-in event clips: whether the answer names the event that ``clip.extra`` holds. Questions
    with options and about time are scored as such, the latter as right where the overlap reaches half."""
    if clip.task == "choice":
        return choice_made(clip, text)
    if clip.task == "grounding":
        readable, values = span_found(clip, text)
        return Score(readable, {"accuracy": values["R@0.5"]})
    named = event_of(final(text))
    return Score(named is not None, {"accuracy": float(named == clip.extra["event"])})


def task_score(clip: Clip, text: str) -> Score:
    """The rule of the clip's task: a choice, seconds, or else a caption."""
    return {"choice": choice_made, "grounding": span_found}.get(clip.task, caption)(clip, text)


@functools.cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


@functools.cache
def _stem(word: str) -> str:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer().stem(word)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower())


def _content(text: str) -> set[str]:
    return {_stem(word) for word in _words(text) if word not in STOP}


def _sentences(text: str) -> list[set[str]]:
    """The content words of each sentence that has any."""
    return [words for words in map(_content, re.split(r"[.;!?\n]+", text)) if words]


def _share(those) -> float:
    those = list(those)
    return sum(those) / len(those) if those else 0.0
