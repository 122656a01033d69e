"""Scores of answers in evaluation, from 0 to 1: one function per type of question."""

import contextlib
import functools
import re
from pathlib import Path
from typing import NamedTuple

from vpjax.events.text import events_named, says_nothing_happens
from vpjax.scoring.answers import final_answer, read_choice, read_spans
from vpjax.scoring.references import right_option
from vpjax.types import Clip

THRESHOLDS = (0.3, 0.5, 0.7)  # of the IoU of spans
EVENT_SHARE = 0.5  # share of an event's content words that a sentence must hold to describe the event
EVENT_STOPWORDS = set(Path(__file__).with_name("event_stopwords.txt").read_text().split())


class AnswerScore(NamedTuple):
    """readable: whether the answer could be read; if not, its values are 0. values: by metric, the main one
    first."""

    readable: bool
    values: dict[str, float]


def score_choice(clip: Clip, text: str) -> AnswerScore:
    """Whether the answer chooses the right option of ``clip.choices``."""
    chosen = read_choice(text, clip.choices)
    return AnswerScore(chosen is not None, {"accuracy": float(chosen == right_option(clip))})


def score_span(clip: Clip, text: str) -> AnswerScore:
    """The IoU of the last span that the answer names with the best of ``clip.spans`` (its mean is mIoU), and
    whether it reaches each threshold."""
    spans = read_spans(text)
    iou = 0.0
    if spans:
        iou = max((interval_iou(spans[-1], target) for target in clip.spans), default=0.0)
    recalls = {f"R@{threshold}": float(iou >= threshold) for threshold in THRESHOLDS}
    return AnswerScore(bool(spans), {"mIoU": iou} | recalls)


def interval_iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Intersection over union of two (start, end)."""
    union = max(a[1], b[1]) - min(a[0], b[0])
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / union if union > 0 else float(a == b)


def score_caption(clip: Clip, text: str) -> AnswerScore:
    """ROUGE-1, -2 and -L (F1, stemmed, by the package rouge-score) and, if nltk's WordNet is installed,
    METEOR (by nltk) of the answer against ``clip.answer``."""
    from rouge_score.rouge_scorer import RougeScorer

    answer = final_answer(text)
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(clip.answer, answer)
    values = {name: score.fmeasure for name, score in rouge.items()}
    if missing_for_meteor() is None:
        from nltk.translate.meteor_score import meteor_score

        values["METEOR"] = meteor_score([_tokens(clip.answer)], _tokens(answer))
    return AnswerScore(bool(answer), values)


@functools.cache
def missing_for_meteor() -> str | None:
    """A message about what METEOR lacks on this machine; None if it lacks nothing."""
    import nltk

    for name in ("corpora/wordnet.zip", "corpora/wordnet"):
        with contextlib.suppress(LookupError):
            nltk.data.find(name)
            return None
    return "nltk's WordNet, which METEOR needs, is not installed: python -m nltk.downloader wordnet"


def score_description(clip: Clip, text: str) -> AnswerScore:
    """Recall, precision and F1 of the events in a description, by a matcher of our own. No language model
    judges them, so they are not the published AutoDQ numbers of DREAM-1K.

    A sentence describes an event if it holds at least half of the event's content words, stemmed. Recall is
    the share of ``clip.extra["events"]`` that a sentence of the answer describes. Precision is the share of
    the answer's sentences that a sentence of the reference (``clip.answer`` and its events) describes.
    """
    events = [_content(event) for event in clip.extra["events"]]
    candidate, reference = _sentences(final_answer(text)), [*_sentences(clip.answer), *events]
    recall = _share_described(events, candidate)
    precision = _share_described(candidate, reference)
    f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
    values = {"F1": f1, "recall": recall, "precision": precision}
    return AnswerScore(bool(candidate), {f"{name} (our matcher)": x for name, x in values.items()})


def score_event(clip: Clip, text: str) -> AnswerScore:
    """Whether the answer names ``clip.extra["event"]`` and no other event, or no event where that is "", for
    captions and orders of the built-in event clips.

    An answer is readable if it names one event or says that nothing happens. About a clip without an event
    any words that name none say so too. Without words no answer is readable."""
    answer = final_answer(text)
    named, event = events_named(answer), clip.extra["event"]
    expected = (event,) if event else ()
    readable = len(named) == 1 or says_nothing_happens(answer)
    if not event and not named:
        readable = bool(_tokens(answer))
    return AnswerScore(readable, {"accuracy": float(readable and named == expected)})


def _tokens(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower())


def _content(text: str) -> set[str]:
    """The stems of the content words."""
    from nltk.stem.porter import PorterStemmer

    stem = PorterStemmer().stem
    return {stem(word) for word in _tokens(text) if word not in EVENT_STOPWORDS}


def _sentences(text: str) -> list[set[str]]:
    """The content words of each sentence that has any."""
    contents = [_content(sentence) for sentence in re.split(r"[.;!?\n]+", text)]
    return [content for content in contents if content]


def _share_described(events: list[set[str]], sentences: list[set[str]]) -> float:
    """The share of the events that a sentence describes: it holds at least half of the event's words."""
    described = 0
    for event in events:
        shared = max((len(event & sentence) for sentence in sentences), default=0)
        if event and shared >= EVENT_SHARE * len(event):
            described += 1
    return described / len(events) if events else 0.0
