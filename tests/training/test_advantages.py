"""Group advantages: GRPO's own, what normalisation leaves of a relative reward, and what is logged of it."""

import dataclasses

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
from vpjax.training.relative import NO_TERM, RELATIVE_KINDS, Evidence, Part, RelativeTerm


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


# Each reward normalised by itself.


def several(seed, *, clips=5, group=6, holes=True):
    """Three rewards f32[B, G] with their weights, of which the first means right. The third does not count
    for the first clip, the second is equal in the second clip, one completion is missing."""
    rng = np.random.default_rng(seed)
    values = rng.random((3, clips, group)).astype(np.float32)
    values[0] = values[0] < 0.5
    if holes:
        values[2, 0] = np.nan
        values[1, 1] = 0.3
        values[:, 2, 4] = np.nan
    weights = (1.0, 0.5, -2.0)
    total = np.nansum(values * np.array(weights)[:, None, None], axis=0)
    total[np.isnan(values).all(0)] = np.nan
    parts = tuple(
        Part(jnp.asarray(x), w, i == 0) for i, (w, x) in enumerate(zip(weights, values, strict=True))
    )
    return jnp.asarray(total), parts


def gdpo(total, parts, bonus, scale):
    """GDPO's eqs. 4 to 6 (arXiv 2601.05242) with weights, in NumPy, float64. The bonus belongs to the first
    reward."""
    out = np.zeros(total.shape)
    for number, part in enumerate(parts):
        values = np.asarray(part.values, np.float64) + (bonus / part.weight if number == 0 else 0.0)
        for b, row in enumerate(values):
            known = ~np.isnan(row) & ~np.isnan(np.asarray(total[b]))
            if known.any() and np.ptp(row[known]) > 0:
                z = (row[known] - row[known].mean()) / row[known].std(ddof=1)
                out[b, known] += part.weight * z
    missing = np.isnan(np.asarray(total))
    if scale == "batch":
        out = (out - out[~missing].mean()) / out[~missing].std(ddof=1)
    out[missing] = 0
    return out


@pytest.mark.parametrize("scale", ["batch", "none"])
def test_each_reward_is_normalised_in_its_group(scale):
    for seed in SEEDS:
        total, parts = several(seed)
        bonus = np.random.default_rng(seed).random(total.shape)
        term = RelativeTerm(jnp.asarray(bonus, jnp.float32), NO_TERM.weight)
        for used, given in ((NO_TERM, 0 * bonus), (term, bonus)):
            out = advantages(total, used, scale=scale, eps=0.0, parts=parts)[..., 0]
            close(out, gdpo(total, parts, given, scale))


@pytest.mark.parametrize("scale", rel.SCALES)
def test_no_reward_is_drowned_by_its_scale(scale):
    """Other units of a reward change nothing; a sum's own advantages would be those of the largest one."""
    for seed in SEEDS:
        total, parts = several(seed, holes=False)
        units = [
            dataclasses.replace(part, values=part.values * unit)
            for part, unit in zip(parts, (1, 100, 0.01), strict=True)
        ]
        other = sum(part.weight * part.values for part in units)
        before = advantages(total, NO_TERM, scale=scale, eps=0.0, parts=parts)
        close(advantages(other, NO_TERM, scale=scale, eps=0.0, parts=tuple(units)), before, 1e-4)
        drowned = advantages(other, NO_TERM, scale=scale, eps=0.0)
        assert np.abs(drowned - advantages(total, NO_TERM, scale=scale, eps=0.0)).max() > 0.1


def test_one_reward_alone_is_plain_grpo():
    """Also with the bonus of any kind, and of any weight. The std of the batch comes after the group's."""
    for seed in SEEDS:
        evidence = case(seed)
        for kind in RELATIVE_KINDS:
            term = relative_term(evidence._replace(unit=3.0), options(kind))
            total, parts = 3 * evidence.rewards, (Part(evidence.rewards, 3.0, True),)
            expected = advantages(total, term, scale="group", eps=0.0)
            close(advantages(total, term, scale="group", eps=0.0, parts=parts), expected)
            close(advantages(total, term, scale="none", eps=0.0, parts=parts), 3 * expected, 1e-4)
            batch = np.asarray(advantages(total, term, scale="batch", eps=0.0, parts=parts))
            ratio = np.linalg.norm(batch) / np.linalg.norm(expected)
            close(batch, ratio * expected, 1e-4)


def test_gdpo_by_hand():
    """The paper's first example: (0, 1) and (0, 2) are alike once their sum is normalised, but not here."""
    for second, expected in ((0.0, 1), (1.0, 2)):
        first = jnp.array([[0.0, 1.0]])
        other = jnp.array([[0.0, second]])
        parts = Part(first, 1.0, True), Part(other, 1.0)
        out = advantages(first + other, NO_TERM, scale="none", eps=0.0, parts=parts)[0, :, 0]
        close(out, expected * np.array([-1, 1]) / np.sqrt(2))
        close(
            advantages(first + other, NO_TERM, scale="group", eps=0.0)[0, :, 0],
            np.array([-1, 1]) / np.sqrt(2),
        )
    # Rewards that contradict each other leave nothing, whatever rounding leaves of it.
    first = jnp.array([[0.0, 0.3, 0.1, 0.7]])
    parts = Part(first, 1.0, True), Part(1 - 3 * first, 1.0)
    assert not np.any(advantages(0 * first, NO_TERM, scale="batch", eps=0.0, parts=parts))


def test_the_log_sees_what_each_reward_parts():
    """Sums are equal and each reward has spread."""
    first = jnp.array([[0.0, 0.0, 1.0, 1.0]])
    second = jnp.array([[1.0, 1.0, 0.9, -0.9]])
    total = jnp.zeros((1, 4))
    parts = Part(first, 1.0, True), Part(second, 1.0)
    evidence = Evidence(total, jnp.array([True]), right=first, parts=parts)
    out = relative_metrics(evidence, NO_TERM, scale="batch")
    assert out["rel/spread"] == 1 and out["rel/change"] == 0
    assert relative_metrics(evidence._replace(parts=()), NO_TERM, scale="batch")["rel/spread"] == 0


# What is logged.


def test_metrics_by_hand():
    rewards = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [jnp.nan, jnp.nan]])
    evidence = Evidence(
        rewards=rewards,
        has_degraded=jnp.array([True, True, True, False]),
        right=rewards,
        right_degraded=jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [jnp.nan, jnp.nan]]),
        same=jnp.array([[[1.0, 1.0], [0.0, 0.0]], *[[[1.0, 0.0], [1.0, 0.0]]] * 2, [[jnp.nan] * 2] * 2]),
    )
    chosen = options("gate", hard=True, margin=0.6)
    out = relative_metrics(evidence, relative_term(evidence, chosen), scale="group")
    # Gaps .5, 0 and .5, as shares 1, 0 and .5: weights 1, .25 and .25 over .625, the mean of the first two.
    # Equal rewards have nothing that a weight could change. Of the four pairs of each clip two are won and
    # two tie; one is won, one lost; two are won and two tie. 1.6 changes A by .6 A, .4 by as much: 1.2 / 4.
    expected = {
        "rel/clips": 3 / 4,
        "rel/active": 2 / 3,
        "rel/spread": 2 / 3,
        "rel/change": 0.3,
        "rel/same": 0.5,
        "rel/weight": 0.8,
        "rel/gap": 1 / 3,
        "rel/win_rate": 2 / 3,
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
