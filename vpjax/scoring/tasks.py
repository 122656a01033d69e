"""Scores of answers by the task of their clip, with those of places and of evidence.

The box IoU and the evidence IoU are those of the rewards ``box_iou`` and ``evidence_iou``.
"""

from collections.abc import Sequence

import numpy as np

from vpjax.scoring.answers import read_boxes, read_evidence
from vpjax.scoring.metrics import AnswerScore, score_caption, score_choice, score_event, score_span
from vpjax.types import Clip

ENOUGH = 0.5  # the IoU from which on a box, a span or evidence counts as found

Box = tuple[float, float, float, float]
Span = tuple[float, float]


def score_tracking(clip: Clip, text: str) -> AnswerScore:
    """How well the boxes of an answer lie on ``clip.boxes``, in order; a box that is missing or too many has
    IoU 0.

    ``AO`` (average overlap) and ``success@0.5`` (the share of boxes with an IoU of at least .5) are means
    over the moments after the first, whose box the question gives, as in GOT-10k's own evaluation; ``box
    IoU`` is the mean over all moments, as in VideoChat-R1's.
    """
    boxes = read_boxes(text)
    overlaps = box_overlaps(boxes, clip.boxes)
    later = overlaps[1:] or overlaps
    values = {
        "AO": float(np.mean(later)),
        "success@0.5": float(np.mean([overlap >= ENOUGH for overlap in later])),
        "box IoU": float(np.mean(overlaps)),
    }
    return AnswerScore(bool(boxes), values)


def box_overlaps(boxes: Sequence[Box], reference: Sequence[Box]) -> list[float]:
    """The IoU of each box with its counterpart; 0 where either side has none."""
    overlaps = [box_iou(box, other) for box, other in zip(boxes, reference, strict=False)]
    return overlaps + [0.0] * abs(len(boxes) - len(reference))


def box_iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    either = box_area(a) + box_area(b) - both
    return both / either if either > 0 else 0.0


def box_area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def score_grounded_choice(clip: Clip, text: str) -> AnswerScore:
    """Whether the answer chooses the right option, the IoU of the seconds between its ``<glue>`` tags with
    ``clip.spans``, and whether both are right: the option, and an IoU of at least .5."""
    readable, values = score_choice(clip, text)
    iou = covered_iou(read_evidence(text), clip.spans)
    grounded = values["accuracy"] * float(iou >= ENOUGH)
    return AnswerScore(readable, values | {"evidence IoU": iou, "grounded@0.5": grounded})


def covered_iou(spans: Sequence[Span], reference: Sequence[Span]) -> float:
    """The IoU of the seconds that the spans of either side cover together; 0 where nothing is covered."""
    times = sorted({time for start, end in [*spans, *reference] if start < end for time in (start, end)})
    both = either = 0.0
    for start, end in zip(times, times[1:], strict=False):
        covered = [any(s <= start and end <= e for s, e in side) for side in (spans, reference)]
        both += (end - start) * all(covered)
        either += (end - start) * any(covered)
    return both / either if either else 0.0


def score_by_task(clip: Clip, text: str) -> AnswerScore:
    """The score of the clip's task: a choice, with evidence if the clip has spans, seconds, boxes, or else a
    caption."""
    match clip.task:
        case "choice":
            return score_grounded_choice(clip, text) if clip.spans else score_choice(clip, text)
        case "grounding":
            return score_span(clip, text)
        case "tracking":
            return score_tracking(clip, text)
    return score_caption(clip, text)


def score_built_in(clip: Clip, text: str) -> AnswerScore:
    """The score of a built-in event clip. All tasks have an accuracy, which leads: a caption or an order is
    right if it names the event, a choice if it is the right option, a grounding if its IoU is at least .5, a
    tracking if its average overlap is. The task's own scores follow; a choice has those of evidence if its
    answer names some."""
    if clip.task in ("caption", "order"):
        return score_event(clip, text)
    if clip.task == "choice":
        has_evidence = len(read_evidence(clip.answer)) > 0
        return score_grounded_choice(clip, text) if has_evidence else score_choice(clip, text)
    if clip.task == "grounding":
        readable, values = score_span(clip, text)
        return AnswerScore(readable, {"accuracy": values["R@0.5"], "mIoU": values["mIoU"]})
    readable, values = score_tracking(clip, text)
    return AnswerScore(readable, {"accuracy": float(values["AO"] >= ENOUGH)} | values)
