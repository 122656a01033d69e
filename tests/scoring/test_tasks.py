"""Scores of places and evidence by hand, and against the rewards that they share."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from vpjax.scoring import spans as device
from vpjax.scoring.metrics import score_caption, score_choice
from vpjax.scoring.tasks import box_overlaps, covered_iou, score_built_in, score_by_task, score_tracking
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


def test_evidence_by_hand():
    assert covered_iou([(1, 3)], [(2, 4)]) == pytest.approx(1 / 3)
    assert covered_iou([(0, 1), (0.5, 2)], [(0, 2)]) == 1  # overlapping spans are merged
    assert covered_iou([(0, 1), (3, 4)], [(0, 4)]) == pytest.approx(1 / 2)
    assert covered_iou([], [(0, 4)]) == covered_iou([(2, 1)], [(1, 2)]) == covered_iou([], []) == 0


def test_places_and_evidence_are_worth_what_their_rewards_are():
    rng = np.random.default_rng(0)
    for _ in range(50):
        boxes, reference = (
            np.sort(rng.random((rng.integers(1, 5), 2, 2)), axis=1).reshape(-1, 4) for _ in "ab"
        )
        padded = [
            np.concatenate([x, np.zeros((5 - len(x), 4))]).astype(np.float32) for x in (boxes, reference)
        ]
        reward = device.box_iou(padded[0], len(boxes), padded[1], len(reference))
        assert np.mean(box_overlaps(boxes.tolist(), reference.tolist())) == pytest.approx(
            float(reward), abs=1e-5
        )
        spans, others = (rng.random((rng.integers(1, 4), 2)).astype(np.float32) for _ in "ab")
        reward = device.span_iou(jnp.asarray(spans), jnp.asarray(others))
        assert covered_iou(spans.tolist(), others.tolist()) == pytest.approx(float(reward), abs=1e-5)


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
