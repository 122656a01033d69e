"""GRPO of two looks: the gradient is that of the expected reward, without sampling which window is chosen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vpjax.training.looks import expectation, look_advantages, look_metrics, look_rewards, slopes

CLIPS, WINDOWS, ANSWERS = 3, 4, 5
TEMPERATURE = 0.7


@pytest.fixture
def table():
    """Scores of windows, and the rewards of every answer that can be given about each."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(CLIPS, WINDOWS)), rng.normal(size=(CLIPS, WINDOWS, ANSWERS))


def advantages_and_slopes(scores, rewards, scale="none"):
    policy = expectation(jnp.asarray(scores), jnp.asarray(rewards), TEMPERATURE)
    advantages = look_advantages(policy.share, jnp.asarray(rewards), scale=scale)
    return np.asarray(advantages), *map(np.asarray, slopes(policy, advantages, TEMPERATURE))


def test_the_gradient_is_that_of_the_expected_reward(table):
    """Of a policy that gives all answers alike, of which each stands once in its group, every expectation is
    enumerated."""
    scores, rewards = table

    def expected_reward(scores, logits):
        p, answers = jax.nn.softmax(scores / TEMPERATURE, axis=1), jax.nn.softmax(logits)
        return (p[..., None] * answers * rewards).sum()

    def surrogate(scores, logits):
        return (scores * by_score).sum() + (jax.nn.log_softmax(logits) * by_answer).sum()

    _, by_score, by_answer = advantages_and_slopes(scores, rewards)
    at = jnp.asarray(scores), jnp.zeros(rewards.shape)
    expected = jax.grad(expected_reward, argnums=(0, 1))(*at)
    for found, own in zip(jax.grad(surrogate, argnums=(0, 1))(*at), expected, strict=True):
        np.testing.assert_allclose(found, own, rtol=0, atol=1e-6)  # float32 sums of numbers of order 1
    # Each alone: without the baseline the choice would have another gradient.
    assert np.abs(by_score).max() > 0.05 and np.abs(by_score.sum(axis=1)).max() < 1e-6


def test_advantages_have_the_policys_own_mean_and_spread(table):
    """Mean 0 and standard deviation 1, windows weighted by their chance, by hand."""
    scores, rewards = table
    p = np.exp(scores / TEMPERATURE)
    p /= p.sum(axis=1, keepdims=True)
    advantages, _, _ = advantages_and_slopes(scores, rewards, "group")
    np.testing.assert_allclose((p[..., None] * advantages).sum((1, 2)) / ANSWERS, 0, atol=1e-6)
    variance = (p[..., None] * advantages**2).sum((1, 2)) / ANSWERS
    np.testing.assert_allclose(variance, 1, rtol=1e-3)  # eps is 1e-4 of a std of about 1
    batch, _, _ = advantages_and_slopes(scores, rewards, "batch")
    plain, _, _ = advantages_and_slopes(scores, rewards, "none")
    mean = (p[..., None] * rewards).sum() / ANSWERS / CLIPS
    spread = np.sqrt((p[..., None] * (rewards - mean) ** 2).sum() / ANSWERS / CLIPS)
    np.testing.assert_allclose(batch, plain / spread, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_order_of_windows_changes_nothing(table, scale):
    scores, rewards = table
    order = np.array([2, 0, 3, 1])
    found = advantages_and_slopes(scores[:, order], rewards[:, order], scale)
    for own, other in zip(advantages_and_slopes(scores, rewards, scale), found, strict=True):
        np.testing.assert_allclose(other, own[:, order], rtol=1e-5, atol=1e-6)  # sums in another order


def test_a_window_that_is_never_chosen_trains_nothing_and_counts_for_nothing(table):
    """Neither does one without rewards: what is left is the clip of the other windows."""
    scores, rewards = table
    scores[:, 1], rewards[:, 2] = -1e4, np.nan
    _, by_score, by_answer = advantages_and_slopes(scores, rewards, "group")
    assert not by_score[:, 1:3].any() and not by_answer[:, 1:3].any()
    rest = [0, 3]
    _, alone_by_score, alone_by_answer = advantages_and_slopes(scores[:, rest], rewards[:, rest], "group")
    np.testing.assert_allclose(by_score[:, rest], alone_by_score, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(by_answer[:, rest], alone_by_answer, rtol=1e-5, atol=1e-7)


def test_equal_rewards_teach_nothing(table):
    scores, rewards = table
    for scale in ("group", "batch", "none"):
        assert not any(x.any() for x in advantages_and_slopes(scores, np.full(rewards.shape, 0.3), scale))
    nothing = advantages_and_slopes(scores, np.full(rewards.shape, np.nan), "group")
    assert not any(x.any() for x in nothing)


def test_what_either_look_earns():
    """By hand: overlap as a share of the clip's best, and for the second look the gain over the mean of the
    first, which moves all answers at a window alike. A right answer at a window without the event earns
    nothing, and one that does not count stays out."""
    options = ConfigDict(dict(overlap=0.5, gain=2.0))
    second = np.array([[1.0, 0.0, np.nan], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    first = np.array([[1.0, 0.0, 0.0], [np.nan, np.nan, np.nan], [0.0, 1.0, 0.0]])
    right = np.stack([first, second], axis=1)[None]
    earned = look_rewards(right, right, np.array([[0.01, 0.02, 0.0]]), options)
    third = 1 / 3
    # Where no first look counts, nothing is gained.
    expected = [
        [1.25, 0.25, 0.25, 1.25 + 2 * (1 - third), 0.25 - 2 * third, np.nan],
        [np.nan, np.nan, np.nan, 1.5, 1.5, 1.5],
        [0.0] * 6,
    ]
    np.testing.assert_allclose(earned.total[0], expected, atol=1e-6)
    assert not look_rewards(right, right, np.zeros((1, 3)), options).overlap.any()
    # Both windows with the event are chosen as often as their scores say.
    policy = expectation(np.log([[1.0, 2.0, 1.0]]), earned.total, 1.0)
    metrics = look_metrics(policy, earned)
    assert metrics["looks/right_window"] == pytest.approx(0.75)
    assert metrics["looks/overlap"] == pytest.approx(0.25 * 0.5 + 0.5)
    assert metrics["looks/entropy"] == pytest.approx(0.5 * np.log(4) + 0.5 * np.log(2))


@pytest.mark.slow
def test_a_step_follows_the_expected_reward():
    """One step of gradient descent on what was sampled, in micro-batches, moves the parameters along the
    gradient of the expected reward that autodiff takes through the softmax of the scores, with advantages by
    hand. With equal rewards the same program moves nothing."""
    from tests import joint
    from tests.training.rollouts import (
        EOS,
        GROUPS,
        LENGTH,
        Judge,
        assert_close,
        compiled,
        config,
        setup,
        wide,
    )
    from vpjax.evaluation.ranking import answer_logprobs, pad_answers
    from vpjax.models.vlm import leaves
    from vpjax.training.looks import LookStep
    from vpjax.training.losses import token_logprobs

    clips, windows, rows = 2, 2, 12
    looks = dict(looks__windows=1, looks__wrong=1, grpo__looks__temperature=2.0)
    c = config(batch=rows, accumulate=2, grpo__degraded=0, grpo__relative__kind="none", **looks)
    c.grpo.aggregation = "dr_grpo"
    yes_no = ((3, EOS[0]), (4, 5, EOS[0]))

    class GivenJudge(Judge):
        """The share of small tokens times what the prompts say, and the overlap that they say."""

        def score(self, prompts, tokens, mask):
            return {"small": prompts.references["times"][:, None] * self.recall(prompts, tokens, mask)}

        def overlap(self, prompts):
            return prompts.references["overlap"]

    state, parts, _ = setup(c, wide())
    step = LookStep(parts.model, c, parts.optimizer, GivenJudge(), EOS, yes_no)

    def whole(state, prompts):
        completions, features = step.rollout(state, prompts)
        return step.judge_and_update(state, prompts, completions, features, {})

    overlap = np.tile(np.repeat([0.02, 0.0], 3), clips).astype(np.float32)
    given = dict(times=np.ones(rows, np.float32), overlap=overlap)
    prompts = dataclasses.replace(joint.prompts(rows), references=given)
    program = compiled(whole, state, prompts)
    after, metrics, judged = program(state, prompts)
    gradient = {path: np.asarray(x) - np.asarray(after.params[path]) for path, x in state.params.items()}

    tokens, mask = (np.asarray(x)[:, 0] for x in (judged.completions.tokens, judged.completions.mask))
    assert not mask[0::3].any() and mask[1::3, :, 0].all() and mask[2::3, :, 0].all()
    small = ((tokens < 64) & mask).sum(-1) / np.maximum(mask.sum(-1), 1)
    first, second = (small[kind::3].reshape(clips, windows, GROUPS) for kind in (1, 2))
    gained = second + 0.5 * (second - first.mean(-1, keepdims=True))
    reward = 0.5 + np.stack([first, gained], axis=2)
    reward[:, 1] = 0  # the window without the event
    answering = np.arange(rows) % 3 > 0
    np.testing.assert_allclose(judged.total[answering, 0].reshape(reward.shape), reward, atol=1e-6)

    asked, shown = (jax.tree.map(lambda x, own=own: x[own], prompts) for own in (~answering, answering))
    answers = pad_answers([[np.array(x) for x in yes_no]] * clips * windows, 2, 4)

    def expected_reward(m, advantage):
        logp = answer_logprobs(m, asked, *answers)
        p = jax.nn.softmax((logp[:, 0] - logp[:, 1]).reshape(clips, windows) / 2.0, axis=1)
        h = m.predicting(m.encode(shown.video), shown, tokens[answering])
        logprobs = token_logprobs(h, m.unembed, tokens[answering], chunk=LENGTH)
        total = jnp.where(mask[answering], logprobs, 0.0).sum(-1).reshape(reward.shape)
        ratio = jnp.exp(total - jax.lax.stop_gradient(total))
        return (p * (ratio * advantage).mean((-1, -2))).sum() / clips, p

    gradient_of = compiled(jax.grad(expected_reward, has_aux=True), wide(), jnp.asarray(reward))
    _, p = gradient_of(wide(), jnp.asarray(reward))
    chance = np.asarray(p)[..., None, None] / (2 * GROUPS)
    mean = (chance * reward).sum((1, 2, 3), keepdims=True)
    std = np.sqrt((chance * (reward - mean) ** 2).sum((1, 2, 3), keepdims=True))
    expected, _ = gradient_of(wide(), jnp.asarray((reward - mean) / (std + 1e-4), jnp.float32))
    # Gradient descent on a loss that is minus the reward, over the constant length of dr_grpo; float32 sums.
    downhill = {path: -np.asarray(x) / LENGTH for path, x in leaves(expected).items()}
    assert_close(gradient, downhill, 1e-4)
    assert metrics["reward"] == pytest.approx(float(mean.mean()), abs=1e-5)
    assert metrics["looks/right_window"] == pytest.approx(float(np.asarray(p)[:, 0].mean()), abs=1e-5)
    assert 0.05 < float(metrics["looks/right_window"]) < 0.95

    equal = dict(times=np.zeros(rows, np.float32), overlap=np.full(rows, 0.02, np.float32))
    same, metrics, _ = program(state, dataclasses.replace(prompts, references=equal))
    assert metrics["grad_norm"] == 0 and metrics["frac_reward_zero_std"] == 1
    for path, x in state.params.items():
        np.testing.assert_array_equal(x, same.params[path])
