"""Scores of places and evidence, by hand."""

import dataclasses

import pytest

from vpjax.scoring.metrics import score_caption, score_choice
from vpjax.scoring.tasks import score_built_in, score_by_task, score_tracking
from vpjax.types import Clip

BOXES = ((0.0, 0.0, 0.4, 0.4), (0.2, 0.2, 0.6, 0.6), (0.5, 0.5, 1.0, 1.0))
CLIP = Clip("a", "", "?", str([list(box) for box in BOXES]), task="tracking", boxes=BOXES)


def test_tracking_by_hand():
    # The first box is off, the second right, the third half as wide.
    boxes = "[[0.6, 0.6, 0.9, 0.9], [0.2, 0.2, 0.6, 0.6], [0.5, 0.5, 0.75, 1.0]]"
    expected = {"AO": (1 + 0.5) / 2, "success@0.5": 1, "box IoU": (0 + 1 + 0.5) / 3}
    for text in (boxes, f"<think>[0, 0, 1, 1]</think> <answer>{boxes}</answer>"):
        readable, values = score_tracking(CLIP, text)
        assert readable and values == pytest.approx(expected)


def test_a_missing_box_and_one_too_many_count_as_0():
    two, four = str([list(box) for box in BOXES[:2]]), str([list(box) for box in (*BOXES, BOXES[0])])
    assert score_tracking(CLIP, two).values == pytest.approx(
        {"AO": 1 / 2, "success@0.5": 1 / 2, "box IoU": 2 / 3}
    )
    assert score_tracking(CLIP, four).values == pytest.approx(
        {"AO": 2 / 3, "success@0.5": 2 / 3, "box IoU": 3 / 4}
    )
    assert score_tracking(CLIP, "nowhere") == (False, {"AO": 0, "success@0.5": 0, "box IoU": 0})
    alone = dataclasses.replace(CLIP, boxes=BOXES[:1])
    assert score_tracking(alone, str(list(BOXES[0]))).values["AO"] == 1  # no moment after the first


def test_each_task_has_its_score():
    choice = Clip("b", "", "?", "B", task="choice", choices=("spins", "grows"), spans=((0.5, 1.0),))
    grounded = dataclasses.replace(choice, answer="B <glue>[(0.50, 1.00)]</glue>")
    right = {"accuracy": 1, "evidence IoU": 1, "grounded@0.5": 1}
    assert score_by_task(choice, grounded.answer).values == right
    assert score_by_task(choice, "B").values == right | {"evidence IoU": 0, "grounded@0.5": 0}
    # The built-in choices have spans, too, which only grounded ones ask for.
    assert score_built_in(choice, "B") == score_choice(choice, "B") == (True, {"accuracy": 1})
    assert score_built_in(grounded, grounded.answer).values == right
    assert score_by_task(dataclasses.replace(choice, spans=()), "B").values == {"accuracy": 1}
    assert score_by_task(CLIP, CLIP.answer) == score_tracking(CLIP, CLIP.answer)
    assert (
        score_built_in(CLIP, CLIP.answer).values == {"accuracy": 1} | score_tracking(CLIP, CLIP.answer).values
    )
    seconds = Clip("c", "", "?", "From 1 to 2 seconds.", task="grounding", spans=((1.0, 2.0),))
    assert score_by_task(seconds, "1.0 to 1.6").values["mIoU"] == pytest.approx(0.6)
    assert score_built_in(seconds, "1.0 to 1.4").values["accuracy"] == 0
    caption = Clip("d", "", "?", "It spins.", extra={"event": "spin"})
    assert score_by_task(caption, "It grows.") == score_caption(caption, "It grows.")
    assert score_built_in(caption, "It spins.").values == {"accuracy": 1}
