"""The laws of relative rewards (METHOD, section 3), on the terms and on the advantages that they shape.

Advantages are float32 numbers of order 1 out of a dozen operations: 1e-5 is asked for where two ways must
agree, equality where the same numbers take the same way.
"""

import ast
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vpjax import relative as rel
from vpjax.relative import KINDS, NEEDS, NOTHING, Evidence, Term, advantages, relative

TOLERANCE = 1e-5
OPTIONS = ConfigDict(
    dict(w0=0.25, margin=0.2, scale=0.1, hard=False, lam=0.5, clip=1.0, threshold=0.1, mu=0.8, alpha=0.3)
)
FIELDS = {
    "rollouts": ("degraded",),
    "recall": ("recall", "degraded_recall"),
    "gap": ("gap", "mask"),
    "keyword": ("keyword",),
}
SEEDS = range(10)


def options(kind, **changes):
    return ConfigDict({**OPTIONS, "kind": kind, **changes})


def case(seed=0, *, clips=6, group=8, degraded=4, tokens=5, binary=False, has=None):
    """Evidence of every sort at random; recall is quantised, so that ties happen."""
    rng = np.random.default_rng(seed)

    def rewards(*shape):
        share = rng.random((clips, 1))
        values = rng.random(shape) < share if binary else rng.random(shape)
        return jnp.asarray(values, jnp.float32)

    length = rng.integers(0, tokens + 1, (clips, group, 1))
    return Evidence(
        rewards=rewards(clips, group),
        has=jnp.asarray(rng.random(clips) < 0.7 if has is None else np.full(clips, has)),
        degraded=rewards(clips, degraded),
        recall=jnp.asarray(rng.integers(0, 3, (clips, group)) / 2, jnp.float32),
        degraded_recall=jnp.asarray(rng.integers(0, 3, (clips, degraded)) / 2, jnp.float32),
        gap=jnp.asarray(rng.standard_normal((clips, group, tokens)), jnp.float32),
        mask=jnp.asarray(np.arange(tokens) < length),
        keyword=jnp.asarray(rng.random((clips, group, tokens)) < 0.4),
    )


def shaped(evidence, kind, *, scale="group", eps=0.0, **changes):
    """Advantages [B, G, C]."""
    a = advantages(evidence.rewards, relative(evidence, options(kind, **changes)), scale=scale, eps=eps)
    return np.broadcast_to(a, evidence.mask.shape)


def plain(evidence, *, scale="group", eps=0.0):
    """GRPO's advantages in NumPy, float64, with torch's unbiased std; equal rewards give 0."""
    r = np.asarray(evidence.rewards, np.float64)
    out = np.zeros_like(r)
    for row, values in zip(out, r, strict=True):
        known = values[~np.isnan(values)]
        if len(set(known)) < 2:
            continue
        std = {"group": known.std(ddof=1), "batch": r[~np.isnan(r)].std(ddof=1), "none": 1.0 - eps}[scale]
        row[:] = np.where(np.isnan(values), 0, (values - known.mean()) / (std + eps))
    return np.broadcast_to(out[..., None], evidence.mask.shape)


def close(a, b, tolerance=TOLERANCE):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


# Advantages.


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
        advantages(rewards, NOTHING, scale="group", eps=0.0)[0, :, 0],
        np.sqrt(3) / 2 * np.array([1, -1, -1, 1]),
    )
    term = Term(jnp.array([[2.0, 0.0, 0.0, 0.0]]), jnp.full((1, 1, 1), 0.5))
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
        out = advantages(rewards, NOTHING, scale=scale, eps=eps)
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
            alone = advantages(evidence.rewards[:1, keep], NOTHING, scale="group", eps=0.0)
            close(alone[..., 0], shaped(evidence, "none")[:1, keep, 0])


# Every kind.


def test_needs_are_what_kinds_read():
    assert set(NEEDS) == set(KINDS)
    full = case()
    for kind, needs in NEEDS.items():
        fields = [field for need in needs for field in FIELDS[need]]
        if "recall" in needs:  # for which there must be rollouts, whatever their rewards
            fields.remove("degraded")
        told = Evidence(full.rewards, full.has, **{field: getattr(full, field) for field in fields})
        jax.tree.map(
            np.testing.assert_array_equal, relative(told, options(kind)), relative(full, options(kind))
        )
        for field in fields:
            with pytest.raises((TypeError, ValueError, AttributeError)):
                relative(told._replace(**{field: None}), options(kind))


def test_every_option_is_read():
    """By the functions here, and only options that exist."""
    tree = ast.parse(inspect.getsource(rel))
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "options"
    }
    assert read == set(options("none"))


@pytest.mark.parametrize("kind", KINDS)
def test_clips_without_a_degraded_video_are_plain(kind):
    for seed in SEEDS:
        evidence = case(seed, has=False)
        term = relative(evidence, options(kind))
        assert not np.any(term.bonus) and np.all(term.weight == 1)
        assert np.array_equal(shaped(evidence, kind), shaped(evidence, "none"))
        mixed = case(seed)
        a, b = shaped(mixed, kind), shaped(mixed, "none")
        assert np.array_equal(a[~mixed.has], b[~mixed.has])


@pytest.mark.parametrize("kind", KINDS)
def test_missing_numbers_on_the_degraded_video_change_nothing(kind):
    evidence = case(has=True)
    nothing = evidence._replace(
        degraded=jnp.full_like(evidence.degraded, jnp.nan),
        recall=jnp.full_like(evidence.recall, jnp.nan),
        gap=jnp.full_like(evidence.gap, jnp.nan),
    )
    for hard in (False, True):
        assert np.array_equal(shaped(nothing, kind, hard=hard), shaped(evidence, "none"))
    # Some: as if they did not exist.
    if kind in ("gate", "winrate", "hinge", "tgrpo", "keyword_winrate"):
        holed = evidence._replace(
            degraded=evidence.degraded.at[:, 1].set(jnp.nan),
            degraded_recall=evidence.degraded_recall.at[:, 1].set(jnp.nan),
        )
        fewer = evidence._replace(
            degraded=jnp.delete(evidence.degraded, 1, axis=1),
            degraded_recall=jnp.delete(evidence.degraded_recall, 1, axis=1),
        )
        close(shaped(holed, kind), shaped(fewer, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_groups_do_not_see_each_other(kind):
    evidence = case(3, has=True)
    alone = jax.tree.map(lambda x: x[2:3], evidence)
    close(shaped(alone, kind), shaped(evidence, kind)[2:3])


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_flows(kind):
    evidence = case()

    def total(floats):
        e = evidence._replace(**floats)
        return jnp.sum(advantages(e.rewards, relative(e, options(kind)), scale="group") * evidence.gap)

    floats = {f: getattr(evidence, f) for f in ("rewards", "degraded", "recall", "degraded_recall", "gap")}
    for gradient in jax.tree.leaves(jax.grad(total)(floats)):
        assert not np.any(gradient)


# What survives normalisation.


@pytest.mark.parametrize("kind", ["winrate", "hinge", "tgrpo"])
def test_terms_on_binary_rewards_cancel(kind):
    """The reason for every other kind: a function of a 0/1 reward is affine."""
    moved = False
    for seed in SEEDS:
        evidence = case(seed, binary=True, has=True)
        close(shaped(evidence, kind), plain(evidence))
        moved |= bool(np.any(relative(evidence, options(kind)).bonus))
    assert moved  # they did try


def test_affine_bonuses_cancel():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        evidence = case(seed, binary=seed % 2 == 0)
        slope, offset = rng.random((2, len(evidence.has), 1))
        term = Term(slope * evidence.rewards + offset, NOTHING.weight)
        out = advantages(evidence.rewards, term, scale="group", eps=0.0)
        close(np.broadcast_to(out, evidence.mask.shape), plain(evidence))


def test_a_bonus_for_all_is_none():
    for scale in rel.SCALES[::2]:
        evidence = case()
        term = Term(jnp.full(evidence.rewards.shape, 0.3), NOTHING.weight)
        out = advantages(evidence.rewards, term, scale=scale, eps=0.0)
        close(np.broadcast_to(out, evidence.mask.shape), plain(evidence, scale=scale))


# Each kind.


def test_gate_weights_grow_with_the_gap():
    gaps = np.linspace(-1, 1, 41, dtype=np.float32)
    evidence = Evidence(jnp.tile(gaps[:, None], (1, 4)), jnp.ones(41, bool), degraded=jnp.zeros((41, 3)))
    soft = relative(evidence, options("gate")).weight[:, 0, 0]
    assert np.all(np.diff(soft) >= 0) and soft[-1] - soft[0] > 0.7
    assert np.all((soft >= 0.25) & (soft <= 1))
    close(soft, 0.25 + 0.75 / (1 + np.exp(-(gaps.astype(np.float64) - 0.2) / 0.1)))
    hard = relative(evidence, options("gate", hard=True, margin=0.21)).weight[:, 0, 0]
    assert np.array_equal(hard, np.where(gaps > 0.21, 1, np.float32(0.25)))
    # At the margin there is nothing to show for V.
    level = evidence._replace(rewards=jnp.zeros((41, 4)))
    assert np.all(relative(level, options("gate", hard=True, margin=0.0)).weight == 0.25)


@pytest.mark.parametrize("binary", [False, True])
def test_gate_weighs_prompts(binary):
    for seed in SEEDS:
        evidence = case(seed, binary=binary, has=True)
        term = relative(evidence, options("gate"))
        assert not np.any(term.bonus) and term.weight.shape == (6, 1, 1)
        close(shaped(evidence, "gate"), plain(evidence) * np.asarray(term.weight))


def test_swapping_the_branches_negates_the_gap():
    evidence = case()
    swapped = evidence._replace(rewards=evidence.degraded, degraded=evidence.rewards)
    assert np.array_equal(rel.reward_gap(swapped), -rel.reward_gap(evidence))
    forth, back = (
        rel.wins(evidence.rewards, evidence.degraded, 0.2),
        rel.wins(evidence.degraded, evidence.rewards, 0.2),
    )
    close(forth.mean(1), 1 - back.mean(1))
    # A sigmoid is point-symmetric: at no margin the two weights average (1 + w0) / 2.
    weights = [
        relative(e._replace(has=evidence.has | True), options("gate", margin=0.0)).weight
        for e in (evidence, swapped)
    ]
    close((weights[0] + weights[1]) / 2, 0.625)


def test_equal_videos_say_nothing():
    evidence = case(has=True)
    evidence = evidence._replace(gap=jnp.zeros_like(evidence.gap))
    for kind in ("likelihood", "token"):
        term = relative(evidence, options(kind))
        assert not np.any(term.bonus) and np.all(term.weight == 1)
    # The same rollouts on either video: half are won.
    close(rel.wins(evidence.rewards, evidence.rewards, 0.0).mean(1), 0.5)


def test_likelihood_by_hand():
    # Two keyword tokens with gaps 1 and -.2, a third one after the end: .4 on average, .2 with lambda .5.
    evidence = Evidence(
        rewards=jnp.array([[1.0, 0.0, 1.0, 1.0]]),
        has=jnp.array([True]),
        gap=jnp.tile(jnp.array([[1.0, 3.0, -0.2, 9.0]]), (4, 1))[None] * jnp.array([1, 1, 9, 1.0])[:, None],
        mask=jnp.arange(4)[None, None] < jnp.array([3, 3, 3, 0])[:, None],
        keyword=jnp.tile(jnp.array([True, False, True, True]), (4, 1))[None],
    )
    # The second is wrong, the third's mean of 3.6 is cut to 1, the fourth has no tokens.
    term = relative(evidence, options("likelihood"))
    close(term.bonus, [[0.2, 0.0, 0.5, 0.0]])
    close(
        relative(evidence._replace(gap=-evidence.gap), options("likelihood")).bonus, [[-0.2, 0.0, -0.5, 0.0]]
    )
    assert np.all(term.weight == 1)


def test_token_weights_by_hand():
    # Gaps 1, -5, .5 and, past the end, 7; lambda .5, cut at .8: 1.4, 1, 1.25 over their mean.
    evidence = Evidence(
        rewards=jnp.ones((1, 1)),
        has=jnp.array([True]),
        gap=jnp.array([[[1.0, -5.0, 0.5, 7.0]]]),
        mask=jnp.array([[[True, True, True, False]]]),
    )
    term = relative(evidence, options("token", clip=0.8))
    close(term.weight[0, 0, :3], np.array([1.4, 1.0, 1.25]) * 3 / 3.65)
    assert not np.any(term.bonus)


def test_token_weights_have_mean_1():
    for seed in SEEDS:
        evidence = case(seed, has=True)
        weight = np.asarray(relative(evidence, options("token")).weight)
        for mask, row in zip(np.asarray(evidence.mask).reshape(-1, 5), weight.reshape(-1, 5), strict=True):
            assert not mask.any() or abs(row[mask].mean() - 1) < TOLERANCE
            assert np.isfinite(row).all() and np.all(row > 0)
        # So a completion's summed advantage is what it was.
        summed = [(a * evidence.mask).sum(-1) for a in (shaped(evidence, "token"), shaped(evidence, "none"))]
        close(*summed)


def test_winrates_by_hand():
    # Against 0, .5, .5, 1 with margin .1: .55 beats one, ties two; .65 beats three; 0 ties one.
    own, other = jnp.array([[0.55, 0.65, 0.0]]), jnp.array([[0.0, 0.5, 0.5, 1.0]])
    expected = np.array([[2 / 4, 3 / 4, 0.5 / 4]])
    close(rel.wins(own, other, 0.1), expected)
    on_reward = Evidence(own, jnp.array([True]), degraded=other)
    close(relative(on_reward, options("winrate", margin=0.1)).bonus, expected / 2)
    on_recall = Evidence(1 - own, jnp.array([True]), recall=own, degraded_recall=other)
    close(relative(on_recall, options("keyword_winrate", margin=0.1)).bonus, expected / 2)


def test_keyword_winrate_counts_where_recall_and_reward_disagree():
    for seed in SEEDS:
        evidence = case(seed, binary=True, has=True)
        agreed = evidence._replace(recall=evidence.rewards)
        close(shaped(agreed, "keyword_winrate"), plain(evidence))
        others = evidence._replace(degraded_recall=jnp.full_like(evidence.degraded_recall, 0.5))
        differ = (np.ptp(others.recall, axis=1) > 0) & (np.ptp(others.rewards, axis=1) > 0)
        if differ.any():
            moved = np.abs(shaped(others, "keyword_winrate") - plain(others)).max(axis=(1, 2))
            assert (moved[differ] > 1e-2).any()


def test_hinge_by_hand():
    # V~ has .5 on average, the margin is .2.
    evidence = Evidence(jnp.array([[0.6, 0.8, 3.0]]), jnp.array([True]), degraded=jnp.array([[0.0, 1.0]]))
    close(relative(evidence, options("hinge")).bonus, [[0.0, 0.05, 0.5]])


def test_tgrpo_by_hand():
    degraded = jnp.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    rewards = jnp.array([[0.4, 0.1, 0.8], [0.4, 0.2, 1.0], [0.0, 0.0, 0.0]])
    evidence = Evidence(rewards, jnp.ones(3, bool), degraded=degraded)
    # 1.3/3 >= .4 fires, for rewards above .1 only; 1.6/3 < .8 does not; 0 >= 0 does, for nobody.
    close(relative(evidence, options("tgrpo")).bonus, [[0.3, 0.0, 0.3], [0, 0, 0], [0, 0, 0]])


# What is logged.


def test_metrics_by_hand():
    evidence = Evidence(
        rewards=jnp.array([[1.0, 0.0], [1.0, 1.0], [jnp.nan, jnp.nan]]),
        has=jnp.array([True, True, False]),
        degraded=jnp.array([[0.0, 0.0], [1.0, 0.0], [jnp.nan, jnp.nan]]),
    )
    chosen = options("gate", hard=True, margin=0.6)
    out = rel.metrics(evidence, relative(evidence, chosen), scale="group")
    # Both gaps are .5 and both weights .25, but equal rewards have nothing that a weight could change. In
    # either clip two of the four pairs win and two tie.
    expected = {
        "rel/clips": 2 / 3,
        "rel/active": 1 / 2,
        "rel/weight": 0.25,
        "rel/gap": 0.5,
        "rel/win_rate": 0.75,
    }
    assert out.keys() == expected.keys()
    for name, value in expected.items():
        close(out[name], value)


def test_metrics_tell_no_ops():
    for kind, active in {"none": 0, "winrate": 0, "hinge": 0, "tgrpo": 0, "gate": 1, "token": 1}.items():
        shares = []
        for seed in SEEDS:
            evidence = case(seed, binary=True, has=True)
            chosen = options(kind)
            out = rel.metrics(evidence, relative(evidence, chosen), scale="group", eps=0.0)
            spread = np.ptp(evidence.rewards, axis=1) > 0
            shares.append(float(out["rel/active"]) / max(spread.mean(), 1e-9))
        assert np.mean(shares) == (0 if not active else pytest.approx(1, abs=0.1)), kind


def test_metrics_without_a_degraded_video_are_0():
    evidence = case(has=False)
    for kind in KINDS:
        out = rel.metrics(evidence, relative(evidence, options(kind)), scale="batch")
        assert set(out) >= {"rel/gap", "rel/win_rate", "rel/logp_gap"} and not any(map(np.any, out.values()))


def test_terms_run_inside_jit():
    evidence = case()
    for kind in KINDS:
        chosen = options(kind)

        def both(e, chosen=chosen):
            term = relative(e, chosen)
            return advantages(e.rewards, term, scale="group"), rel.metrics(e, term, scale="group")

        jax.tree.map(close, jax.jit(both)(evidence), both(evidence))
