"""What an answer and its reference have in common, from 0 to 1, on the host: ROUGE, IoU, word errors,
numbers.

Evaluation scores by these functions. The rewards, which compute the same on the device (``words``,
``spans``), are tested against them.
"""

import collections
from collections.abc import Sequence

from vpjax.scoring.numbers import HALF_HUNDREDTH, MILLIONTH, TINY, Box, Span


def rouge_n(candidate: Sequence[str], reference: Sequence[str], n: int) -> float:
    """F1 of the runs of n words; each counts as often as it stands in both (ROUGE-N)."""
    ours, theirs = (
        collections.Counter(tuple(words[k : k + n]) for k in range(len(words) - n + 1))
        for words in (candidate, reference)
    )
    return f1((ours & theirs).total(), ours.total(), theirs.total())


def rouge_l(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words (ROUGE-L)."""
    return f1(longest_common(candidate, reference), len(candidate), len(reference))


def longest_common(candidate: Sequence[str], reference: Sequence[str]) -> int:
    """The length of the longest common subsequence of words."""
    lengths = [0] * (len(reference) + 1)
    for word in candidate:
        before = list(lengths)
        for j, other in enumerate(reference):
            lengths[j + 1] = before[j] + 1 if word == other else max(before[j + 1], lengths[j])
    return lengths[-1]


def f1(both: int, candidate: int, reference: int) -> float:
    """The harmonic mean of both / candidate and both / reference; 0 where one of them is empty."""
    return 2 * both / max(candidate + reference, 1)


def word_accuracy(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """1 less the share of the reference's words that must be inserted, deleted or replaced to make it of the
    candidate's (the word error rate); at least 0."""
    errors = list(range(len(candidate) + 1))
    for word in reference:
        before, errors = errors, [errors[0] + 1]
        for w, other in enumerate(candidate):
            errors.append(min(before[w] + (word != other), before[w + 1] + 1, errors[w] + 1))
    return max(0.0, 1 - errors[-1] / max(len(reference), 1))


def span_iou(candidate: Sequence[Span], reference: Sequence[Span]) -> float:
    """Intersection over union of the seconds that spans cover. A span that does not end after it begins
    covers nothing; 0 where nothing is covered."""
    ours, theirs = merged(candidate), merged(reference)
    both = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in ours for b in theirs)
    either = sum(end - start for start, end in ours + theirs) - both
    return both / either if either > 0 else 0.0


def best_iou(span: Span, reference: Sequence[Span]) -> float:
    """The IoU of a span with the one of several that it fits best; 0 if there is none."""
    return max((span_iou([span], [other]) for other in reference), default=0.0)


def merged(spans: Sequence[Span]) -> list[Span]:
    """The same seconds by spans that do not overlap."""
    out: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def box_ious(candidate: Sequence[Box], reference: Sequence[Box]) -> list[float]:
    """The IoU of each box with its counterpart in order; 0 for one that is missing or too many, or has a
    NaN."""
    ious = [0.0] * max(len(candidate), len(reference))
    for number, (a, b) in enumerate(zip(candidate, reference, strict=False)):
        width, height = (max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
        both = width * height
        either = _area(a) + _area(b) - both
        if all(side == side for side in a) and either > 0:  # NaN differs from itself
            ious[number] = both / either
    return ious


def _area(box: Box) -> float:
    x0, y0, x1, y1 = box
    return max(0.0, x1 - x0) * max(0.0, y1 - y0)


def box_iou(candidate: Sequence[Box], reference: Sequence[Box]) -> float:
    """The mean of ``box_ious``."""
    ious = box_ious(candidate, reference)
    return sum(ious) / max(len(ious), 1)


def same_number(number: float | None, reference: float) -> bool:
    """Whether two numbers are equal to half a hundredth and a millionth."""
    if number is None:
        return False
    return abs(number - reference) <= HALF_HUNDREDTH + MILLIONTH * abs(reference)


def closeness(number: float | None, reference: float) -> float:
    """1 less the relative difference of two numbers; 0 from a difference of the reference's size on."""
    if number is None:
        return 0.0
    return 1 - min(1.0, abs(number - reference) / max(abs(reference), TINY))
