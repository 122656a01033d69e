"""Group advantages: GRPO's own, what normalisation leaves of a relative reward, and what is logged of it."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.evidence import (
    SEEDS,
    advantages,
    case,
    close,
    options,
    plain,
    relative_metrics,
    relative_term,
    shaped,
)
from vpjax.training import relative as rel
from vpjax.training.relative import NO_TERM, RELATIVE_KINDS, Evidence, RelativeTerm


@pytest.mark.parametrize("scale", rel.SCALES)
@pytest.mark.parametrize("eps", [0.0, 1e-4, 0.1])
def test_advantages_are_grpo(scale, eps):
    for seed in SEEDS:
        evidence = case(seed, binary=seed % 2 == 0)
        close(shaped(evidence, "none", scale=scale, eps=eps), plain(evidence, scale=scale, eps=eps))


def test_advantages_by_hand():
    # Rewards 1, 0, 0, 1: mean 1/2, unbiased variance 1/3. With a bonus of 2 for the first: 3, 0, 0, 1 has
    # mean 1 and variance 2.
    rewards = jnp.array([[1.0, 0.0, 0.0, 1.0]])
    close(
        advantages(rewards, NO_TERM, scale="group", eps=0.0)[0, :, 0],
        np.sqrt(3) / 2 * np.array([1, -1, -1, 1]),
    )
    term = RelativeTerm(jnp.array([[2.0, 0.0, 0.0, 0.0]]), jnp.full((1, 1, 1), 0.5))
    close(
        advantages(rewards, term, scale="group", eps=0.0)[0, :, 0], np.array([2, -1, -1, 0]) / np.sqrt(2) / 2
    )
    close(advantages(rewards, term, scale="none")[0, :, 0], np.array([2, -1, -1, 0]) / 2)


@pytest.mark.parametrize("scale", rel.SCALES)
@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_equal_rewards_have_no_advantage(scale, eps):
    # 0.1 and 1/3 differ from their float32 means; divided by a spread of rounding errors that would be large.
    for value in (0.0, 1.0, 0.1, 1 / 3, np.nan):
        rewards = jnp.full((3, 7), value).at[0].set(jnp.arange(7.0))
        out = advantages(rewards, NO_TERM, scale=scale, eps=eps)
        assert np.array_equal(out[1:], np.zeros((2, 7, 1))) and np.isfinite(out).all()


def test_missing_rewards_are_ignored():
    for seed in SEEDS:
        evidence = case(seed)
        rng = np.random.default_rng(seed)
        holes = jnp.asarray(rng.random(evidence.rewards.shape) < 0.4)
        evidence = evidence._replace(rewards=jnp.where(holes, jnp.nan, evidence.rewards))
        close(shaped(evidence, "none"), plain(evidence))
        # A rollout without a reward is as one that does not exist.
        keep = ~np.asarray(holes[0])
        if keep.sum() > 1:
            alone = advantages(evidence.rewards[:1, keep], NO_TERM, scale="group", eps=0.0)
            close(alone[..., 0], shaped(evidence, "none")[:1, keep, 0])


# What survives normalisation.


@pytest.mark.parametrize("kind", ["winrate", "hinge", "tgrpo"])
def test_terms_on_binary_rewards_cancel(kind):
    """The reason for every other kind: a function of a 0/1 reward is affine."""
    moved = False
    for seed in SEEDS:
        evidence = case(seed, binary=True, has_degraded=True)
        close(shaped(evidence, kind), plain(evidence))
        moved |= bool(np.any(relative_term(evidence, options(kind)).bonus))
    assert moved  # they did try


def test_affine_bonuses_cancel():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        evidence = case(seed, binary=seed % 2 == 0)
        slope, offset = rng.random((2, len(evidence.has_degraded), 1))
        term = RelativeTerm(slope * evidence.rewards + offset, NO_TERM.weight)
        out = advantages(evidence.rewards, term, scale="group", eps=0.0)
        close(np.broadcast_to(out, evidence.mask.shape), plain(evidence))


def test_a_bonus_for_all_is_none():
    for scale in rel.SCALES[::2]:
        evidence = case()
        term = RelativeTerm(jnp.full(evidence.rewards.shape, 0.3), NO_TERM.weight)
        out = advantages(evidence.rewards, term, scale=scale, eps=0.0)
        close(np.broadcast_to(out, evidence.mask.shape), plain(evidence, scale=scale))


# What is logged.


def test_metrics_by_hand():
    rewards = jnp.array([[1.0, 0.0], [1.0, 1.0], [jnp.nan, jnp.nan]])
    evidence = Evidence(
        rewards=rewards,
        has_degraded=jnp.array([True, True, False]),
        right=rewards,
        right_degraded=jnp.array([[0.0, 0.0], [1.0, 0.0], [jnp.nan, jnp.nan]]),
        same=jnp.array([[[1.0, 1.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]], [[jnp.nan] * 2] * 2]),
    )
    chosen = options("gate", hard=True, margin=0.6)
    out = relative_metrics(evidence, relative_term(evidence, chosen), scale="group")
    # Both gaps are .5 and both weights .25, but equal rewards have nothing that a weight could change. In
    # either clip two of the four pairs win and two tie. A weight of .25 changes A by .75 A: .75 / 1.25.
    expected = {
        "rel/clips": 2 / 3,
        "rel/active": 1 / 2,
        "rel/spread": 1 / 2,
        "rel/change": 0.6,
        "rel/same": 0.5,
        "rel/weight": 0.25,
        "rel/gap": 0.5,
        "rel/win_rate": 0.75,
    }
    assert out.keys() == expected.keys()
    for name, value in expected.items():
        close(out[name], value)


def test_the_change_of_all_clips_by_hand():
    """A bonus of one clip changes the standard deviation of a batch and so the advantages of another."""
    rewards, bonus = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 0.0]])
    evidence = Evidence(rewards=rewards, has_degraded=jnp.array([True, False]))
    term = RelativeTerm(bonus, NO_TERM.weight)
    # Of 1, 0, 1, 0 and of 2, 0, 1, 0, unbiased.
    before, after = np.sqrt(1 / 3), np.sqrt(2.75 / 3)
    sizes = np.array([1.0, 0.5]) / after, np.array([0.5, 0.5]) / before
    expected = np.abs(sizes[0] - sizes[1]).sum() / (sizes[0] + sizes[1]).sum()
    close(relative_metrics(evidence, term, scale="batch")["rel/change"], expected)
    # Divided by its own, or by nothing, the other clip stays: 1 to 1, and from 1/2 to 1.
    close(relative_metrics(evidence, term, scale="group")["rel/change"], 0)
    close(relative_metrics(evidence, term, scale="none")["rel/change"], 0.5 / (1 + 0.5 + 0.5 + 0.5))


def test_metrics_tell_no_ops():
    for kind, active in {"none": 0, "winrate": 0, "hinge": 0, "tgrpo": 0, "gate": 1, "token": 1}.items():
        shares, changes = [], []
        for seed in SEEDS:
            evidence = case(seed, binary=True, has_degraded=True)
            chosen = options(kind)
            out = relative_metrics(evidence, relative_term(evidence, chosen), scale="group")
            spread = np.ptp(evidence.rewards, axis=1) > 0
            shares.append(float(out["rel/active"]) / max(spread.mean(), 1e-9))
            changes.append(float(out["rel/change"]))
            assert float(out["rel/spread"]) == pytest.approx(spread.mean())  # these kinds add none
        assert np.mean(shares) == (0 if not active else pytest.approx(1, abs=0.1)), kind
        assert (np.mean(changes) > 0.02) == bool(active), kind
        assert active or np.max(changes) < 1e-5, kind


def test_relation_gives_spread_where_rewards_have_none():
    evidence = case(binary=True, has_degraded=True)._replace(rewards=jnp.ones((6, 8)))
    out = relative_metrics(evidence, relative_term(evidence, options("relation")), scale="group")
    assert float(out["rel/spread"]) == float(out["rel/active"]) > 0.5
    assert float(out["rel/change"]) == pytest.approx(1.0)  # all of the advantages come from it


def test_metrics_without_a_degraded_video_are_0():
    evidence = case(has_degraded=False)
    for kind in RELATIVE_KINDS:
        out = relative_metrics(evidence, relative_term(evidence, options(kind)), scale="batch")
        names = {"rel/gap", "rel/win_rate", "rel/logp_gap", "rel/same", "rel/spread", "rel/change"}
        assert set(out) >= names and not any(map(np.any, out.values()))
