"""Scores of answers in evaluation, from 0 to 1: one function per type of question."""

import contextlib
import functools
import re
from typing import NamedTuple

from vpjax.events.text import events_named, says_nothing_happens
from vpjax.scoring.answers import final_answer, read_choice, read_number, read_spans
from vpjax.scoring.comparisons import (
    best_iou,
    closeness,
    longest_common,
    rouge_l,
    rouge_n,
    same_number,
    word_accuracy,
)
from vpjax.scoring.host_text import CHUNK, STOPWORDS, answer_in, normalize, split_words
from vpjax.scoring.references import right_option
from vpjax.scoring.stems import stem_of
from vpjax.types import Clip, UserError

THRESHOLDS = (0.3, 0.5, 0.7)  # of the IoU of spans
EVENT_SHARE = 0.5  # share of an event's content words that a sentence must hold to describe the event


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
    iou = best_iou(spans[-1], clip.spans) if spans else 0.0
    recalls = {f"R@{threshold}": float(iou >= threshold) for threshold in THRESHOLDS}
    return AnswerScore(bool(spans), {"mIoU": iou} | recalls)


def score_caption(clip: Clip, text: str) -> AnswerScore:
    """ROUGE-1, -2 and -L (F1 of stems, as by the package rouge-score) and, if nltk's WordNet is installed,
    METEOR (by nltk) of the answer against ``clip.answer``."""
    words, reference = _words(text), _words(clip.answer)
    stems, reference_stems = ([stem_of(word) for word in side] for side in (words, reference))
    values = {
        "rouge1": rouge_n(stems, reference_stems, 1),
        "rouge2": rouge_n(stems, reference_stems, 2),
        "rougeL": rouge_l(stems, reference_stems),
    }
    if missing_for_meteor() is None:
        from nltk.translate.meteor_score import meteor_score

        values["METEOR"] = meteor_score([reference], words)
    return AnswerScore(bool(words), values)


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


def score_told_option(clip: Clip, text: str) -> AnswerScore:
    """Whether a caption tells the right one of ``clip.choices``, by a matcher of our own: the option of which
    it has the largest share, of the content words and of all words in their order, all stemmed; of several
    the longest. No language model judges captions, as in TempCompass' own evaluation, which gives more."""
    words = [stem_of(word) for word in _words(text)]
    shares = []
    for choice in clip.choices:
        stems, content = [stem_of(word) for word in split_words(normalize(choice))], _content(choice)
        share = len(content.intersection(words)) / max(len(content), 1)
        share += longest_common(words, stems) / max(len(stems), 1)
        shares.append((share, len(stems)))
    best = max(shares)
    readable = best[0] > 0 and shares.count(best) == 1
    told = shares.index(best) if readable else None
    return AnswerScore(readable, {"caption accuracy (our matcher)": float(told == right_option(clip))})


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
        readable = bool(_words(answer))
    return AnswerScore(readable, {"accuracy": float(readable and named == expected)})


def score_number(clip: Clip, text: str) -> AnswerScore:
    """Whether the one number of an answer is the reference's and, of a quantity to estimate, how close it
    comes (Video-R1's rewards of ``numerical`` and ``regression``)."""
    number, reference = read_number(text), read_number(clip.answer)
    if reference is None:
        raise UserError(f"clip {clip.id}: the answer {clip.answer!r} is not one number, as {clip.task} needs")
    values = {"accuracy": float(same_number(number, reference))}
    if clip.task == "regression":
        values = {"closeness": closeness(number, reference)} | values
    return AnswerScore(number is not None, values)


def score_ocr(clip: Clip, text: str) -> AnswerScore:
    """1 less the word error rate, with marks and capitals."""
    words, reference = (CHUNK.findall(answer_in(normalize(side))) for side in (text, clip.answer))
    return AnswerScore(bool(words), {"word accuracy": word_accuracy(words, reference)})


def _words(text: str) -> list[str]:
    return split_words(answer_in(normalize(text)))


def _content(text: str) -> set[str]:
    """The stems of the content words."""
    return {stem_of(word) for word in split_words(normalize(text)) if word not in STOPWORDS}


def _sentences(text: str) -> list[set[str]]:
    """The content words of each sentence that has any."""
    contents = [_content(sentence) for sentence in re.split(r"[.;!?\n\u3002]+", text)]
    return [content for content in contents if content]


def _share_described(events: list[set[str]], sentences: list[set[str]]) -> float:
    """The share of the events that a sentence describes: it holds at least half of the event's words."""
    described = 0
    for event in events:
        shared = max((len(event & sentence) for sentence in sentences), default=0)
        if event and shared >= EVENT_SHARE * len(event):
            described += 1
    return described / len(events) if events else 0.0
