"""Scores of answers by the task of their clip, with those of places and of evidence.

The box IoU and the evidence IoU are those of the rewards ``box_iou`` and ``evidence_iou``.
"""

import numpy as np

from vpjax.scoring.answers import read_boxes, read_evidence
from vpjax.scoring.comparisons import box_ious, span_iou
from vpjax.scoring.metrics import (
    AnswerScore,
    score_caption,
    score_choice,
    score_event,
    score_number,
    score_ocr,
    score_span,
)
from vpjax.types import Clip

OF_EVIDENCE = "evidence IoU", "grounded@0.5"  # of an answer that may name the seconds that prove it
ENOUGH = 0.5  # the IoU from which on a box, a span or evidence counts as found


def score_tracking(clip: Clip, text: str) -> AnswerScore:
    """How well the boxes of an answer lie on ``clip.boxes``, in order; a box that is missing or too many has
    IoU 0.

    ``AO`` (average overlap) and ``success@0.5`` (the share of boxes with an IoU of at least .5) are means
    over the moments after the first, whose box the question gives, as in GOT-10k's own evaluation; ``box
    IoU`` is the mean over all moments, as in VideoChat-R1's.
    """
    boxes = read_boxes(text)
    overlaps = box_ious(boxes, clip.boxes)
    later = overlaps[1:] or overlaps
    values = {
        "AO": float(np.mean(later)),
        "success@0.5": float(np.mean([overlap >= ENOUGH for overlap in later])),
        "box IoU": float(np.mean(overlaps)),
    }
    return AnswerScore(bool(boxes), values)


def score_grounded_choice(clip: Clip, text: str) -> AnswerScore:
    """Whether the answer chooses the right option, the IoU of the seconds between its ``<glue>`` tags with
    ``clip.spans``, and whether both are right: the option, and an IoU of at least .5."""
    readable, values = score_choice(clip, text)
    iou = span_iou(read_evidence(text), clip.spans)
    grounded = values["accuracy"] * float(iou >= ENOUGH)
    return AnswerScore(readable, values | dict(zip(OF_EVIDENCE, (iou, grounded), strict=True)))


def score_by_task(clip: Clip, text: str) -> AnswerScore:
    """The score of the clip's task; a choice has those of evidence if the clip has spans."""
    match clip.task:
        case "choice":
            return score_grounded_choice(clip, text) if clip.spans else score_choice(clip, text)
        case "grounding":
            return score_span(clip, text)
        case "tracking":
            return score_tracking(clip, text)
        case "numerical" | "regression":
            return score_number(clip, text)
        case "ocr":
            return score_ocr(clip, text)
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
