"""The rewards of a config: a function of the user's own is called with the completions that were sampled."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from vpjax.models.generate import Completions
from vpjax.scoring import judge as judges
from vpjax.types import Clip, UserError

CLIPS = [Clip("a", "", "?", "A man runs"), Clip("b", "", "?", "A dog sits")]
CODE = """
def count(completions, clips):
    return [len(text) + (clip.id == "b") for text, clip in zip(completions, clips, strict=True)]

VALUES = []

def fail(completions, clips):
    return VALUES
"""


@pytest.fixture
def judge(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(CODE)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(judges, "byte_table", lambda text: None)
    rewards = {"mine": ("my_rewards:count", 0.5), "broken": "my_rewards:fail", "event": 2}
    grpo = {"rewards": rewards, "degraded_rewards": {}, "control_share": 0.0}
    config = ConfigDict({"seed": 0, "data": {"keywords": 1}, "grpo": grpo})
    text = SimpleNamespace(decode=lambda ids: "x" * len(ids))
    return judges.ConfigJudge(config, text, CLIPS)


def test_a_users_reward_scores_what_was_sampled(judge):
    """Clips 1, 0 and padding, two branches of two completions. What was not sampled, and padding, is NaN."""
    assert judge.weights == {"mine": 0.5, "broken": 1.0, "event": 2.0} and judge.names == ("event",)
    length = np.array([[[1, 2], [0, 0]], [[3, 4], [5, 0]], [[1, 1], [1, 1]]])
    mask = np.arange(6) < length[..., None]
    completions = Completions(np.zeros(mask.shape, np.int32), mask, None)
    numbers = np.array([1, 0, -1])
    nan = np.nan
    expected = [[[2, 3], [nan, nan]], [[3, 4], [5, nan]], [[nan, nan], [nan, nan]]]
    np.testing.assert_array_equal(judge.host_scores["mine"](numbers, completions), expected)
    assert judge.take_faults() == []


def test_a_users_reward_that_never_worked_stops_the_run(judge, monkeypatch):
    """Its message names the reward. One that fails later has the step skipped, and a process whose rows are
    all padding asks nothing of it."""
    completions = Completions(np.zeros((1, 1, 2, 3), np.int32), np.ones((1, 1, 2, 3), bool), None)
    broken = judge.host_scores["broken"]
    message = "config.grpo.rewards.broken: reward 'my_rewards:fail' returned 0 values for 2 completions"
    for _ in range(2):
        assert np.isnan(broken(np.array([-1]), completions)).all()
        with pytest.raises(UserError, match=message):
            broken(np.array([0]), completions)
    monkeypatch.setattr(sys.modules["my_rewards"], "VALUES", [0.5, None])
    np.testing.assert_array_equal(broken(np.array([0]), completions), [[[0.5, np.nan]]])
    assert judge.take_faults() == []
    monkeypatch.setattr(sys.modules["my_rewards"], "VALUES", [])
    assert np.isposinf(broken(np.array([0]), completions)).all()
    (fault,) = judge.take_faults()
    assert "returned 0 values for 2 completions" in fault and judge.take_faults() == []


@pytest.mark.parametrize(
    "rewards, fits",
    [
        ({"choice": 1.0, "format": 1.0}, False),  # which would train the form alone, and choice: nothing
        ({"numerical": 1.0, "keyword_recall": 1.0}, False),  # no clip has keywords
        ({"choice": 1.0, "rouge_l": 1.0}, True),
        ({"format": 1.0}, True),
    ],
)
def test_rewards_that_count_for_no_clip_are_named(monkeypatch, rewards, fits):
    """All rewards would be NaN, and the run would learn nothing without saying so."""
    monkeypatch.setattr(judges, "byte_table", lambda text: None)
    grpo = {"rewards": rewards, "degraded_rewards": {}, "control_share": 0.0}
    config = ConfigDict({"seed": 0, "data": {"keywords": 1}, "grpo": grpo})
    if fits:
        assert set(judges.ConfigJudge(config, None, CLIPS).names) == set(rewards)
        return
    with pytest.raises(UserError, match="counts for none of these clips, whose task is caption"):
        judges.ConfigJudge(config, None, CLIPS)


def test_rewards_on_the_degraded_video_need_what_is_true_of_it(monkeypatch):
    """No clip says what is true of its V~: a reward that compares completions with it is an error, one that
    does not is fine."""
    monkeypatch.setattr(judges, "byte_table", lambda text: None)

    def judge(clips, **rewards):
        grpo = {"rewards": {"event": 1.0}, "degraded_rewards": rewards, "control_share": 0.0}
        return judges.ConfigJudge(ConfigDict({"seed": 0, "data": {"keywords": 1}, "grpo": grpo}), None, clips)

    assert judge(CLIPS, keyword_absent=1.0).degraded_weights == {"keyword_absent": 1.0}
    with pytest.raises(UserError, match="grpo.degraded_rewards.event .*degraded_answer, which no clip has"):
        judge(CLIPS, keyword_absent=1.0, event=1.0)
    with pytest.raises(UserError, match="reward 'even' does not exist"):
        judge(CLIPS, even=1.0)
    known = [dataclasses.replace(CLIPS[0], degraded_answer="A man stands"), CLIPS[1]]
    assert judge(known, event=1.0).compared == ("event",)
