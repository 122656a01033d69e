"""Completions that trained models sampled: the device agrees with the host, and reward with evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.scoring.reward_cases import garbled
from tests.scoring.scorer import assert_evaluation_agrees, assert_same, make_scorers
from vpjax.data.clips import parse_clip

pytestmark = pytest.mark.slow

# Each line: a run, a held-out clip, and the different ones of 8 completions that the run's model sampled at
# temperature 1. The runs are those of the recipe sft_shortcut (captions), and of earlier forms of the recipes
# sft_events_joint and grpo_events_joint (groundings, trackings, grounded questions).
LINES = [json.loads(line) for line in (Path(__file__).parent / "rollouts.jsonl").open(encoding="utf-8")]
CLIPS = [parse_clip({"video": "", **line["clip"]}) for line in LINES]
ROLLOUTS = [line["completions"] for line in LINES]
GROUP = 8
LIMIT = 256  # tokens: every tracking fits
NAMES = ("rouge_l", "event", "choice", "span_iou", "box_iou", "evidence_iou", "format")  # of the recipes


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    return make_scorers(tmp_path_factory, clips=CLIPS, group=GROUP, limit=LIMIT, names=NAMES)


def test_the_rollouts_are_of_every_task_and_differ():
    assert {clip.task for clip in CLIPS} == {"caption", "grounding", "tracking", "choice"}
    assert sum(map(len, ROLLOUTS)) >= 400
    assert all(len(set(row)) == len(row) <= GROUP for row in ROLLOUTS)


@pytest.mark.parametrize("tokenizer", [0, 1])
def test_device_equals_host_and_evaluation(scorers, tokenizer):
    """On the rollouts as they are, and garbled three times."""
    scorer, rng = scorers[tokenizer], np.random.default_rng(11 + tokenizer)

    def agreed_rewards(completions):
        device = scorer.device(completions, CLIPS)
        assert_same(device, scorer.host(completions, CLIPS))
        assert_evaluation_agrees(device, scorer.decoded(completions), CLIPS)
        return device

    as_they_are = [row + [""] * (GROUP - len(row)) for row in ROLLOUTS]
    assert scorer.decoded(as_they_are) == as_they_are  # none is cut off
    rewards = agreed_rewards(as_they_are)
    for name in NAMES:
        assert np.ptp(rewards[name][~np.isnan(rewards[name])]) > 0, name  # the answers are not all alike
    for _ in range(3):
        agreed_rewards([[garbled(rng, text) for text in row] for row in as_they_are])
