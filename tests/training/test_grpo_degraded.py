"""The GRPO step with V~: its own groups, and the relative rewards that compare it with V."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import joint
from tests.training.rollouts import (
    DEGRADED,
    ROWS,
    TenfoldJudge,
    TruthJudge,
    assert_close,
    compiled,
    config,
    learner,
    setup,
)
from vpjax.training import grpo

pytestmark = pytest.mark.slow


def test_the_degraded_rollouts_are_not_trained_on(prompts, completions, plain):
    """Other words on V~ change no gradient where the relative reward is none."""
    is_degraded = np.arange(2)[:, None, None] == 1
    other = completions._replace(tokens=np.where(is_degraded, completions.tokens ^ 64, completions.tokens))
    chex.assert_trees_all_equal(learner(grpo__relative__kind="none")(prompts, other)[0], plain[0])


def test_the_degraded_video_has_a_group_of_its_own(prompts, completions, plain):
    """With rewards for V~'s truth the loss is plain GRPO's on V plus the weight times GRPO's on V~: as if V~
    were the video of these prompts, with its own rewards, completions and mean."""
    learn = learner(judge=TruthJudge, grpo__relative__kind="none", grpo__degraded_weight=0.5)
    gradient, metrics, judged = learn(prompts, completions)
    counts = np.arange(ROWS) % 2 == 0
    tokens, mask = completions.tokens[:, 1, :DEGRADED], completions.mask[:, 1, :DEGRADED]
    share = ((tokens % 2 == 0) & mask).sum(-1) / np.maximum(mask.sum(-1), 1)
    apart = share - share.mean(1, keepdims=True)
    expected = np.where(counts[:, None], apart / (share.std(1, ddof=1, keepdims=True) + 1e-4), 0.0)
    np.testing.assert_allclose(judged.advantages[:, 1, :DEGRADED], expected, rtol=0, atol=1e-5)
    assert not np.asarray(judged.advantages[:, 1, DEGRADED:]).any()
    np.testing.assert_allclose(judged.advantages[:, 0], plain[2].advantages[:, 0], rtol=0, atol=1e-6)

    state, parts, _ = setup(config(), joint.model())
    degraded = prompts.showing(prompts.shows_degraded)
    mask = mask & counts[:, None, None]
    rows = grpo.UpdateRows(degraded, tokens[:, None], mask[:, None], np.float32(expected)[:, None, :, None])

    def loss(params):
        logprobs = parts.policy.logprobs(parts.policy.compute_model(params, {}), rows)
        ratio = jnp.exp(logprobs - jax.lax.stop_gradient(logprobs))
        return -jnp.where(rows.mask, ratio * rows.advantages, 0.0).sum() / rows.mask.sum()

    own = compiled(jax.grad(loss), state.params)(state.params)
    assert max(np.abs(x).max() for x in own.values()) > 0.1
    assert_close(gradient, {path: plain[0][path] + 0.5 * own[path] for path in own}, 1e-4)

    # Of the other prompts' V~ nothing is known to be true: their completions count for nothing.
    assert metrics["degraded/reward"] == pytest.approx(share[counts].mean())
    assert metrics["degraded/rewards/even/mean"] == pytest.approx(share[counts].mean())
    assert metrics["degraded/spread"] == pytest.approx((np.ptp(share, axis=1) > 0)[counts].mean())
    trained = np.array(completions.mask)
    trained[:, 1] &= counts[:, None, None]
    sizes = [
        (np.abs(judged.advantages[:, branch]) * trained[:, branch].sum(-1)).sum() / trained[:, branch].sum()
        for branch in range(2)
    ]
    assert metrics["degraded/mass"] == pytest.approx(0.5 * sizes[1] / (sizes[0] + 0.5 * sizes[1]), abs=1e-5)


def test_without_a_degraded_video_it_is_plain_grpo(prompts, completions):
    """Clips without V~: the gradient is that of plain GRPO, whatever the kind and the rewards on V~."""
    same = dataclasses.replace(prompts, shows_degraded=prompts.text.shows)
    alone = completions._replace(mask=completions.mask & (np.arange(2) == 0)[:, None, None])
    expected, _, _ = learner(grpo__relative__kind="none")(same, alone)
    for kind in ("need", "relation"):
        gradient, metrics, _ = learner(judge=TruthJudge, grpo__relative__kind=kind)(same, alone)
        # The branch without completions adds zeros; the gradient is a difference of float32 parameters.
        assert_close(gradient, expected, 1e-5)
        assert metrics["degraded/mass"] == metrics["degraded/spread"] == metrics["rel/change"] == 0
        assert metrics["nonfinite"] == 0


@pytest.mark.parametrize("kind", ["need", "relation"])
def test_only_the_ratios_of_weights_matter(prompts, completions, kind):
    once = learner(grpo__relative__kind=kind)(prompts, completions)
    tenfold = learner(judge=TenfoldJudge, grpo__relative__kind=kind)(prompts, completions)
    assert tenfold[1]["reward"] == pytest.approx(10 * once[1]["reward"], rel=1e-5)
    # The 1e-4 that is added to the standard deviation, about .2, is a tenth.
    np.testing.assert_allclose(tenfold[2].advantages, once[2].advantages, rtol=2e-3, atol=1e-5)
    assert once[1]["rel/change"] > 0.01
    for name in ("rel/gap", "rel/weight", "rel/change", "rel/spread", "rel/active"):
        assert tenfold[1][name] == pytest.approx(once[1][name], abs=1e-5), name


def test_relation_compares_what_completions_say(prompts, completions):
    """Which of them say the same as those on V~, and that the answer must change where V~ hides a keyword and
    stay where it hides none."""
    learn = learner(grpo__relative__kind="relation", grpo__relative__lam=2.0)
    hidden = np.asarray(prompts.hidden).any(axis=1)
    assert hidden[:-1].all()
    tokens, mask = completions.tokens.copy(), completions.mask
    rng = np.random.default_rng(5)
    tokens[..., 0] = rng.integers(64, 67, tokens.shape[:3])  # three answers
    said = completions._replace(tokens=np.where(mask, tokens, 0))
    small = ((said.tokens[:, 0] < 64) & mask[:, 0]).sum(-1) / mask[:, 0].sum(-1)
    same = (tokens[:, 0, :, None, 0] == tokens[:, 1, None, :DEGRADED, 0]).mean(-1)
    for hides, share in ((True, 1 - same), (False, same)):
        changed = dataclasses.replace(prompts, hidden=prompts.hidden & hides)
        total = small + 2.0 * np.where(np.asarray(prompts.has_degraded)[:, None], share, 0.0)
        apart = total - total.mean(1, keepdims=True)
        spread = np.ptp(total, axis=1, keepdims=True) > 1e-6
        expected = np.where(spread, apart / (total.std(1, ddof=1, keepdims=True) + 1e-4), 0.0)
        _, metrics, judged = learn(changed, said)
        np.testing.assert_allclose(judged.advantages[:, 0], expected, rtol=0, atol=1e-4)
        assert metrics["rel/same"] == pytest.approx(same[:-1].mean(), abs=1e-6)


def test_controls_are_compared_by_relation_alone(prompts, completions, plain):
    """A V~ that hides nothing does not tell what is answered without the event: ``need`` weighs such a prompt
    1, and the others as if there were no control."""
    is_control = np.arange(ROWS) % 2 == 0
    mixed = dataclasses.replace(prompts, hidden=prompts.hidden & ~is_control[:, None])
    all_needed = learner(grpo__relative__kind="need")
    some_needed = learner(grpo__relative__kind="need", grpo__control_share=0.5)
    _, metrics, judged = some_needed(mixed, completions)
    expected = np.where(
        is_control[:, None], plain[2].advantages[:, 0], all_needed(prompts, completions)[2].advantages[:, 0]
    )
    np.testing.assert_allclose(judged.advantages[:, 0], expected, rtol=0, atol=1e-6)
    has_degraded = np.asarray(prompts.has_degraded)
    assert metrics["rel/clips"] == pytest.approx((has_degraded & ~is_control).mean())
    # Without controls a V~ that hides nothing is the placebo of data.replacement="random".
    placebo = all_needed(mixed, completions)[2].advantages[:, 0]
    assert np.abs(placebo - judged.advantages[:, 0])[is_control].max() > 0.01
