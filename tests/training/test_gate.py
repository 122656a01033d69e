"""The weights of the relative reward ``gate``: what they ask, and what they leave alone (docs/method.md)."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.evidence import SEEDS, case, close, options, plain, relative_term, shaped, share_won
from vpjax.training import relative as rel
from vpjax.training.relative import Evidence


def gated(right, degraded, **changes):
    """The weights of prompts whose completions have a spread of 1/8 around the mean ``right`` on V, and
    ``degraded`` for each on V~."""
    right = jnp.asarray(right, jnp.float32)[:, None] + jnp.array([-1, 1, -1, 1]) / 8
    degraded = jnp.broadcast_to(jnp.asarray(degraded, jnp.float32)[:, None], (len(right), 3))
    evidence = Evidence(right, jnp.ones(len(right), bool), right=right, right_degraded=degraded)
    return np.asarray(relative_term(evidence, options("gate", **changes)).weight[:, 0, 0], np.float64)


def test_gate_weights_grow_with_the_gap():
    """The gap as a share of the larger mean, through a sigmoid from w0 to 1, over the mean of all weights."""
    degraded = np.linspace(1, 0, 41)
    for unit in (1.0, 100.0):
        right = np.ones(41)
        soft = gated(unit * right, unit * degraded)
        expected = 0.25 + 0.75 / (1 + np.exp(-(1 - degraded - 0.2) / 0.1))
        close(soft, expected / expected.mean())
        assert np.all(np.diff(soft) >= 0) and soft.mean() == pytest.approx(1, abs=1e-6)
        hard = gated(unit * right, unit * degraded, hard=True, margin=0.21)
        expected = np.where(1 - degraded > 0.21, 1, 0.25)
        close(hard, expected / expected.mean())
    # At the margin there is nothing to show for V.
    close(gated([1.0, 1.0], [1.0, 0.5], hard=True, margin=0.0), np.array([0.25, 1.0]) / 0.625)
    # Where nothing needs the hidden frames, all prompts are alike; or count for nothing, if w0 says so.
    close(gated([0.5, 0.5], [0.5, 0.5]), [1.0, 1.0])
    close(gated([0.5, 0.5], [0.5, 0.5], hard=True, w0=0.0), [0.0, 0.0])


def test_gate_does_not_depend_on_weights_of_rewards():
    """Rollouts that are right half of the time on V and a quarter of it on V~. A gate that compared weighted
    sums in absolute units gave them .49, .72 or .96, by the weight of the reward alone."""
    gap = 1 / 2 - 1 / 4
    old = [0.25 + 0.75 / (1 + np.exp(-(weight * gap - 0.2) / 0.1)) for weight in (0.5, 1, 2)]
    np.testing.assert_allclose(old, [0.49, 0.72, 0.96], atol=0.005)
    right = jnp.array([[1.0, 0.0] * 4, [1.0, 0.0] * 4])
    degraded = jnp.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    weights = []
    for weight in (0.5, 1.0, 2.0):
        # A format reward of 1 for all is a part of the sum, too.
        evidence = Evidence(weight * (right + 1), jnp.ones(2, bool), weight, right, degraded)
        weights.append(relative_term(evidence, options("gate")).weight[:, 0, 0])
    assert np.array_equal(weights[0], weights[1]) and np.array_equal(weights[0], weights[2])
    # The second prompt is answered as well on V~: shares of 1/2 and 0.
    raw = 0.25 + 0.75 / (1 + np.exp(-(np.array([1 / 2, 0]) - 0.2) / 0.1))
    close(weights[0], raw / raw.mean())


def test_gate_asks_what_is_needed_not_what_is_easy():
    """A prompt that is right once in 16 times, and never on V~, weighs as one that is right every second
    time, and never on V~; a clip without V~ as the average."""
    right = np.zeros((5, 16), np.float32)
    right[:2, :1], right[2:, ::2] = 1, 1
    degraded = np.zeros((5, 4), np.float32)
    degraded[3] = 1
    has = jnp.array([True, True, True, True, False])
    evidence = Evidence(jnp.asarray(right), has, right=jnp.asarray(right), right_degraded=degraded)
    weight = np.asarray(relative_term(evidence, options("gate")).weight[:, 0, 0])
    assert weight[0] == weight[1] == weight[2] > 3 * weight[3]
    assert weight[4] == 1 and weight[:4].mean() == pytest.approx(1, abs=1e-6)


def test_gate_leaves_the_size_of_the_advantages_alone():
    """Under group scaling all prompts have advantages of one size, so weights of mean 1 only shift them."""
    for seed in SEEDS:
        evidence = case(seed, has_degraded=True)
        weight = np.asarray(relative_term(evidence, options("gate")).weight)[:, 0, 0]
        differs = np.ptp(np.asarray(evidence.rewards), axis=1) > 0
        assert weight[differs].mean() == pytest.approx(1, abs=1e-5)
        assert weight.max() / weight.min() <= 4 * (1 + 1e-5)  # 1 / w0


@pytest.mark.parametrize("binary", [False, True])
def test_gate_weighs_prompts(binary):
    for seed in SEEDS:
        evidence = case(seed, binary=binary, has_degraded=True)
        term = relative_term(evidence, options("gate"))
        assert not np.any(term.bonus) and term.weight.shape == (6, 1, 1)
        close(shaped(evidence, "gate"), plain(evidence) * np.asarray(term.weight))


def test_swapping_the_branches_negates_the_gap():
    evidence = case()
    swapped = evidence._replace(
        rewards=evidence.right_degraded, right=evidence.right_degraded, right_degraded=evidence.right
    )
    for gap in (rel.reward_gap, rel.gap_share):
        assert np.array_equal(gap(swapped), -gap(evidence))
    assert np.all(np.abs(rel.gap_share(evidence)) <= 1)
    forth, back = (
        share_won(evidence.right, evidence.right_degraded, 0.2),
        share_won(evidence.right_degraded, evidence.right, 0.2),
    )
    close(forth.mean(1), 1 - back.mean(1))
