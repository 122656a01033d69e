"""The laws of relative rewards (docs/method.md, section 3), kind by kind."""

import ast
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.evidence import (
    SEEDS,
    TOLERANCE,
    advantages,
    case,
    close,
    options,
    plain,
    relative_term,
    shaped,
    share_won,
)
from vpjax.recipes import base
from vpjax.training import relative as rel
from vpjax.training.relative import NEEDS, RELATIVE_KINDS, Evidence

READS = {
    "none": (),
    "gate": ("right", "right_degraded"),
    "need": ("right_degraded",),
    "relation": ("same", "hides"),
    "likelihood": ("right", "gap", "mask", "keyword"),
    "token": ("gap", "mask"),
    "keyword_winrate": ("recall", "degraded_recall"),
    "winrate": ("right", "right_degraded"),
    "hinge": ("right", "right_degraded"),
    "tgrpo": ("right", "right_degraded"),
}
BONUS_KINDS = ("relation", "likelihood", "keyword_winrate", "winrate", "hinge", "tgrpo")


# Every kind.


def test_needs_are_what_kinds_read():
    assert set(NEEDS) == set(RELATIVE_KINDS) == set(READS)
    full = case()
    for kind, fields in READS.items():
        on_degraded = {"right_degraded", "degraded_recall", "same"} & set(fields)
        assert ("rollouts" in NEEDS[kind]) == bool(on_degraded)
        assert ("recall" in NEEDS[kind]) == ("recall" in fields)
        assert ("gap" in NEEDS[kind]) == ("gap" in fields)
        # Right is what a kind reads, or the unit of its bonus.
        assert ("right" in NEEDS[kind]) == (kind not in ("none", "token"))
        given = Evidence(full.rewards, full.has_degraded, **{field: getattr(full, field) for field in fields})
        jax.tree.map(
            np.testing.assert_array_equal,
            relative_term(given, options(kind)),
            relative_term(full, options(kind)),
        )
        for field in fields:
            with pytest.raises((TypeError, ValueError, AttributeError)):
                relative_term(given._replace(**{field: None}), options(kind))


def test_every_option_is_read():
    """By the functions of the module, and only options that exist; ``correct`` is read where evidence is
    gathered."""
    tree = ast.parse(inspect.getsource(rel))
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "options"
    }
    fields = set(base.get_config().grpo.relative)
    assert read == fields - {"correct"} == set(options("none"))


@pytest.mark.parametrize("kind", RELATIVE_KINDS)
def test_clips_without_a_degraded_video_are_plain(kind):
    for seed in SEEDS:
        evidence = case(seed, has_degraded=False)
        term = relative_term(evidence, options(kind))
        assert not np.any(term.bonus) and np.all(term.weight == 1)
        assert np.array_equal(shaped(evidence, kind), shaped(evidence, "none"))
        mixed = case(seed)
        a, b = shaped(mixed, kind), shaped(mixed, "none")
        assert np.array_equal(a[~mixed.has_degraded], b[~mixed.has_degraded])


@pytest.mark.parametrize("kind", RELATIVE_KINDS)
def test_missing_numbers_on_the_degraded_video_change_nothing(kind):
    evidence = case(has_degraded=True)
    nothing = evidence._replace(
        right_degraded=jnp.full_like(evidence.right_degraded, jnp.nan),
        recall=jnp.full_like(evidence.recall, jnp.nan),
        gap=jnp.full_like(evidence.gap, jnp.nan),
        same=jnp.full_like(evidence.same, jnp.nan),
    )
    for hard in (False, True):
        assert np.array_equal(shaped(nothing, kind, hard=hard), shaped(evidence, "none"))
    # Some: as if they did not exist.
    if "rollouts" in NEEDS[kind]:
        holed = evidence._replace(
            right_degraded=evidence.right_degraded.at[:, 1].set(jnp.nan),
            degraded_recall=evidence.degraded_recall.at[:, 1].set(jnp.nan),
            same=evidence.same.at[:, :, 1].set(jnp.nan),
        )
        fewer = evidence._replace(
            right_degraded=jnp.delete(evidence.right_degraded, 1, axis=1),
            degraded_recall=jnp.delete(evidence.degraded_recall, 1, axis=1),
            same=jnp.delete(evidence.same, 1, axis=2),
        )
        close(shaped(holed, kind), shaped(fewer, kind))


@pytest.mark.parametrize("kind", [kind for kind in RELATIVE_KINDS if kind != "gate"])
def test_groups_do_not_see_each_other(kind):
    """But for the gate, whose weights have a mean of 1."""
    evidence = case(3, has_degraded=True)
    alone = jax.tree.map(lambda x: x[2:3] if np.ndim(x) else x, evidence)
    close(shaped(alone, kind), shaped(evidence, kind)[2:3])


@pytest.mark.parametrize("kind", RELATIVE_KINDS)
def test_no_gradient_flows(kind):
    evidence = case()

    def total(floats):
        e = evidence._replace(**floats)
        return jnp.sum(advantages(e.rewards, relative_term(e, options(kind)), scale="group") * evidence.gap)

    names = ("rewards", "right", "right_degraded", "recall", "degraded_recall", "gap", "same")
    floats = {name: getattr(evidence, name) for name in names}
    for gradient in jax.tree.leaves(jax.grad(total)(floats)):
        assert not np.any(gradient)


@pytest.mark.parametrize("kind", RELATIVE_KINDS)
def test_only_the_ratios_of_weights_matter(kind):
    """Ten times all rewards' weights are ten times the sums and the unit, and change no advantage."""
    for seed in SEEDS:
        evidence = case(seed)
        tenfold = evidence._replace(rewards=10 * evidence.rewards, unit=10.0)
        close(shaped(tenfold, kind), shaped(evidence, kind))
    # Without the unit a bonus would shrink to a tenth.
    if kind in BONUS_KINDS:
        forgotten = tenfold._replace(unit=1.0)
        assert np.abs(shaped(forgotten, kind) - shaped(evidence, kind)).max() > 1e-3


# Each kind.


def test_need_by_hand():
    """A prompt that is always right on V~ weighs nothing, one that never is weighs 1; plain GRPO else."""
    evidence = Evidence(
        jnp.array([[1.0, 0.0]] * 4),
        jnp.array([True, True, True, False]),
        right_degraded=jnp.array([[1.0, 1.0], [0.0, 0.0], [0.25, jnp.nan], [1.0, 1.0]]),
    )
    term = relative_term(evidence, options("need"))
    close(term.weight[:, 0, 0], [0.0, 1.0, 0.75, 1.0])
    assert not np.any(term.bonus)


def test_relation_by_hand():
    """lam times the share of completions on V~ that say something else, where V~ hides something, or the
    same, where it does not."""
    same = jnp.array([[1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, jnp.nan]])
    evidence = Evidence(
        jnp.zeros((2, 2)),
        jnp.ones(2, bool),
        same=jnp.stack([same, same]),
        hides=jnp.array([True, False]),
    )
    bonus = relative_term(evidence, options("relation")).bonus
    close(bonus, 0.5 * np.array([[1 / 4, 1.0], [3 / 4, 0.0]]))


def test_relation_does_not_cancel():
    """On 0/1 rewards it changes advantages, and it parts answers that are all wrong, where V~ says what some
    of them say. All other kinds leave such a group without an advantage."""
    for seed in SEEDS:
        evidence = case(seed, binary=True, has_degraded=True)
        assert np.abs(shaped(evidence, "relation") - plain(evidence)).max() > 0.1
    # Four wrong answers, of which V~ gives the first two.
    wrong = jnp.zeros((1, 4))
    evidence = case(clips=1, group=4, degraded=2, has_degraded=True)._replace(
        rewards=wrong,
        right=wrong,
        recall=wrong,
        same=jnp.array([[[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]]),
        hides=jnp.array([True]),
    )
    for kind in RELATIVE_KINDS:
        expected = np.zeros(4)
        if kind == "relation":  # bonuses 0, 0, .5, .5: as 0/1 rewards, whose unbiased variance is 1/3
            expected = np.sqrt(3) / 2 * np.array([-1, -1, 1, 1])
        close(shaped(evidence, kind)[0, :, 0], expected)
    stay = evidence._replace(hides=jnp.array([False]))
    close(shaped(stay, "relation"), -shaped(evidence, "relation"))


def test_a_right_answer_stays_ahead_of_a_wrong_one():
    """The bonus of relation is below the worth of a right answer, whatever V~ says."""
    for seed in SEEDS:
        evidence = case(seed, binary=True, has_degraded=True)
        total = evidence.rewards + relative_term(evidence, options("relation")).bonus
        right = np.asarray(evidence.right) > 0
        lowest = np.where(right, total, np.inf).min(1)
        assert np.all(lowest > np.where(right, -np.inf, total).max(1))


@pytest.mark.parametrize("kind", ["tgrpo", "likelihood"])
def test_right_is_one_reward_whatever_else_is_summed(kind):
    """With a format reward in the sum every sum is above .1. The bonus stays with the right answers, and does
    not cancel."""
    for seed in SEEDS:
        evidence = case(seed, binary=True, has_degraded=True)._replace(
            right_degraded=jnp.zeros((6, 4)), keyword=jnp.ones((6, 8, 5), bool)
        )
        summed = evidence._replace(rewards=evidence.rewards + 1.0)
        bonus = np.asarray(relative_term(summed, options(kind)).bonus)
        assert not bonus[np.asarray(evidence.right) == 0].any() and bonus.any()
        assert np.array_equal(bonus, relative_term(evidence, options(kind)).bonus)
        # Were the sum itself what is right, all would have the bonus of tgrpo, and it would cancel.
        every = summed._replace(right=summed.rewards, right_degraded=jnp.ones((6, 4)))
        if kind == "tgrpo":
            assert (np.asarray(relative_term(every, options(kind)).bonus) > 0).all()


def test_equal_videos_say_nothing():
    evidence = case(has_degraded=True)
    evidence = evidence._replace(gap=jnp.zeros_like(evidence.gap))
    for kind in ("likelihood", "token"):
        term = relative_term(evidence, options(kind))
        assert not np.any(term.bonus) and np.all(term.weight == 1)
    # The same rollouts on either video: half are won.
    close(share_won(evidence.right, evidence.right, 0.0).mean(1), 0.5)


def test_likelihood_by_hand():
    # Two keyword tokens with gaps 1 and -.2, a third one after the end: .4 on average, .2 with lambda .5.
    evidence = Evidence(
        rewards=jnp.zeros((1, 4)),
        has_degraded=jnp.array([True]),
        right=jnp.array([[1.0, 0.0, 1.0, 1.0]]),
        gap=jnp.tile(jnp.array([[1.0, 3.0, -0.2, 9.0]]), (4, 1))[None] * jnp.array([1, 1, 9, 1.0])[:, None],
        mask=jnp.arange(4)[None, None] < jnp.array([3, 3, 3, 0])[:, None],
        keyword=jnp.tile(jnp.array([True, False, True, True]), (4, 1))[None],
    )
    # The second is wrong, the third's mean of 3.6 is cut to 1, the fourth has no tokens.
    term = relative_term(evidence, options("likelihood"))
    close(term.bonus, [[0.2, 0.0, 0.5, 0.0]])
    close(
        relative_term(evidence._replace(gap=-evidence.gap), options("likelihood")).bonus,
        [[-0.2, 0.0, -0.5, 0.0]],
    )
    assert np.all(term.weight == 1)


def test_token_weights_by_hand():
    # Gaps 1, -5, .5 and, past the end, 7; lambda .5, cut at .8: 1.4, 1, 1.25 over their mean.
    evidence = Evidence(
        rewards=jnp.ones((1, 1)),
        has_degraded=jnp.array([True]),
        gap=jnp.array([[[1.0, -5.0, 0.5, 7.0]]]),
        mask=jnp.array([[[True, True, True, False]]]),
    )
    term = relative_term(evidence, options("token", clip=0.8))
    close(term.weight[0, 0, :3], np.array([1.4, 1.0, 1.25]) * 3 / 3.65)
    assert not np.any(term.bonus)


def test_token_weights_have_mean_1():
    for seed in SEEDS:
        evidence = case(seed, has_degraded=True)
        weight = np.asarray(relative_term(evidence, options("token")).weight)
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
    close(share_won(own, other, 0.1), expected)
    on_reward = Evidence(own, jnp.array([True]), right=own, right_degraded=other)
    close(relative_term(on_reward, options("winrate", margin=0.1)).bonus, expected / 2)
    on_recall = Evidence(1 - own, jnp.array([True]), recall=own, degraded_recall=other)
    close(relative_term(on_recall, options("keyword_winrate", margin=0.1)).bonus, expected / 2)


def test_a_difference_that_is_the_margin_counts_half():
    """Whatever rounding makes of it: of n keywords, one more at a margin of 1 / n."""
    for n in range(2, 13):
        named = jnp.arange(n + 1, dtype=jnp.float32) / n
        more, fewer = named[1:, None], named[:-1, None]
        close(share_won(more, fewer, 1 / n), 0.5)
        close(share_won(fewer, more, 1 / n), 0.5)
        close(share_won(more, fewer, 0.9 / n), 1.0)


def test_keyword_winrate_counts_where_recall_and_reward_disagree():
    for seed in SEEDS:
        evidence = case(seed, binary=True, has_degraded=True)
        agreed = evidence._replace(recall=evidence.rewards)
        close(shaped(agreed, "keyword_winrate"), plain(evidence))
        others = evidence._replace(degraded_recall=jnp.full_like(evidence.degraded_recall, 0.5))
        differ = (np.ptp(others.recall, axis=1) > 0) & (np.ptp(others.rewards, axis=1) > 0)
        if differ.any():
            moved = np.abs(shaped(others, "keyword_winrate") - plain(others)).max(axis=(1, 2))
            assert (moved[differ] > 1e-2).any()


def test_hinge_by_hand():
    # V~ has .5 on average, the margin is .2.
    right = jnp.array([[0.6, 0.8, 3.0]])
    evidence = Evidence(right, jnp.array([True]), right=right, right_degraded=jnp.array([[0.0, 1.0]]))
    close(relative_term(evidence, options("hinge")).bonus, [[0.0, 0.05, 0.5]])


def test_tgrpo_by_hand():
    degraded = jnp.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    rewards = jnp.array([[0.4, 0.1, 0.8], [0.4, 0.2, 1.0], [0.0, 0.0, 0.0]])
    evidence = Evidence(rewards, jnp.ones(3, bool), right=rewards, right_degraded=degraded)
    # 1.3/3 >= .4 fires, for rewards above .1 only; 1.6/3 < .8 does not; 0 >= 0 does, for nobody.
    close(relative_term(evidence, options("tgrpo")).bonus, [[0.3, 0.0, 0.3], [0, 0, 0], [0, 0, 0]])
