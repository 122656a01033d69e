"""The policy loss against a loop in NumPy (float64), its gradients against finite differences of that loop.

Losses sum up to 100 float32 numbers of order 1: the tolerance is 1e-5. Central differences with a step of
1e-5 are exact to about 1e-9 in float64 wherever no ratio stands within the step of an end of the clip.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from vpjax.training import policy
from vpjax.training.policy import AGGREGATIONS, denominator, has_ended, policy_metrics, trained_tokens

TOLERANCE = 1e-5
# Of these the loss has the gradient; that of "cispo" has a weight that is held constant.
CLIPPED = tuple(aggregation for aggregation in AGGREGATIONS if aggregation != "cispo")
NEW = 9  # C of the config; the arrays are no longer than the longest completion


def options(aggregation="dapo", **changes):
    defaults = dict(
        eps_low=0.2, eps_high=0.28, beta=0.0, importance_cap=0.0, max_new=NEW, mask_truncated=False
    )
    return FrozenConfigDict({**defaults, "aggregation": aggregation, **changes})


def case(seed=0, shape=(3, 4, 6), spread=0.3, token_advantages=False):
    """logprobs, old, mask, advantages, reference; some completions are empty, and what is not a completion's
    token is NaN."""
    rng = np.random.default_rng(seed)
    mask = np.arange(shape[2]) < rng.integers(0, shape[2] + 1, (*shape[:2], 1))
    old = -rng.exponential(1.0, shape)
    logprobs, reference = (old + spread * rng.standard_normal(shape) for _ in range(2))
    advantages = rng.standard_normal(shape if token_advantages else (*shape[:2], 1))
    logprobs, old, reference = (np.where(mask, x, np.nan) for x in (logprobs, old, reference))
    arrays = (logprobs, old, mask, advantages, reference)
    return [x if x.dtype == bool else x.astype(np.float32) for x in arrays]


def reference_loss(logprobs, old, mask, advantages, reference, o):
    """The papers' formulas, completion by completion: PPO's objective is the lesser of ratio * A and
    clipped ratio * A."""
    total, tokens, completions = 0.0, 0, 0
    advantages = np.broadcast_to(advantages, mask.shape).astype(np.float64)
    for index in np.ndindex(mask.shape[:2]):
        keep = mask[index]
        if not keep.any():
            continue
        lp, lo, ref = (np.asarray(x[index][keep], np.float64) for x in (logprobs, old, reference))
        a, length = advantages[index][keep], keep.sum()
        log_ratio = np.full(length, (lp - lo).mean()) if o.aggregation == "gspo" else lp - lo
        ratio = np.exp(log_ratio)
        each = 0.0
        for t in range(length):
            if a[t] >= 0:
                objective = min(ratio[t], 1 + o.eps_high) * a[t]
            else:
                objective = max(ratio[t], 1 - o.eps_low) * a[t]
            r = np.exp(ref[t] - lp[t])
            each += -objective + o.beta * (r - np.log(r) - 1)
        total += each / length if o.aggregation in ("grpo", "gspo") else each
        tokens, completions = tokens + length, completions + 1
    by = {"dapo": tokens, "grpo": completions, "gspo": completions, "dr_grpo": completions * o.max_new}
    return total / by[o.aggregation]


@functools.partial(jax.jit, static_argnums=1)
def evaluate(arrays, o, divisor=None):
    """(loss, its gradient, sums) in one program for all tests with these shapes and options."""

    def loss(logprobs):
        sampled = arrays[5] if len(arrays) > 5 else None
        sums = policy.policy_loss(logprobs, *arrays[1:5], o, sampled_BGC=sampled)
        return sums.loss / (denominator(arrays[2], o) if divisor is None else divisor), sums

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(arrays[0], jnp.float32))
    return value, gradient, sums


def loss(arrays, o):
    return evaluate(arrays, o)[0]


def gradient(arrays, o):
    return np.asarray(evaluate(arrays, o)[1])


def summed(arrays, o):
    return evaluate(arrays, o)[2]


def finite_differences(arrays, o, step=1e-5):
    logprobs, rest = arrays[0].astype(np.float64), arrays[1:]
    out = np.zeros_like(logprobs)
    for index in zip(*np.nonzero(arrays[2]), strict=True):
        ends = []
        for sign in (1, -1):
            moved = logprobs.copy()
            moved[index] += sign * step
            ends.append(reference_loss(moved, *rest, o))
        out[index] = (ends[0] - ends[1]) / (2 * step)
    return out


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("aggregation", CLIPPED)
def test_loss_and_gradients_are_the_formula(aggregation, beta):
    o = options(aggregation, beta=beta)
    for seed in range(5):
        # One advantage for all tokens of a completion: with others, GSPO-token's gradient is not that of a
        # value (test below).
        arrays = case(seed, token_advantages=aggregation != "gspo" and seed % 2 == 1)
        np.testing.assert_allclose(loss(arrays, o), reference_loss(*arrays, o), rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(gradient(arrays, o), finite_differences(arrays, o), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("ends", [(0.2, 0.28), (1.0, 0.1)])
def test_cispo_is_the_formula(ends, beta):
    """MiniMax-M1's eq. 4 with a mean over all tokens: finite differences of w A log p with the weight w, the
    clipped ratio, held where it is. Half of the ratios are beyond an end, and each has its gradient."""
    o = options("cispo", eps_low=ends[0], eps_high=ends[1], beta=beta)
    beyond = 0
    for seed in range(3):
        arrays = case(seed, token_advantages=seed % 2 == 1)
        logprobs, old, mask, advantages, reference = (np.asarray(x, np.float64) for x in arrays)
        keep = arrays[2]
        ratio = np.exp(logprobs - old)
        weight = np.clip(ratio, 1 - ends[0], 1 + ends[1])
        beyond += (ratio != weight)[keep].sum()

        def objective(x, weight=weight, advantages=advantages, reference=reference, keep=keep):
            d = reference - x
            each = -weight * advantages * x + beta * (np.exp(d) - d - 1)
            return each[keep].sum() / keep.sum()

        np.testing.assert_allclose(loss(arrays, o), objective(logprobs), rtol=0, atol=TOLERANCE)
        slopes = np.zeros(mask.shape)
        for index in zip(*np.nonzero(keep), strict=True):
            ends_of_step = []
            for step in (1e-5, -1e-5):
                moved = logprobs.copy()
                moved[index] += step
                ends_of_step.append(objective(moved))
            slopes[index] = (ends_of_step[0] - ends_of_step[1]) / 2e-5
        np.testing.assert_allclose(gradient(arrays, o), slopes, rtol=0, atol=TOLERANCE)
        sums = summed(arrays, o)
        assert sums.low == (ratio < 1 - ends[0])[keep].sum()
        assert sums.high == (ratio > 1 + ends[1])[keep].sum()
    assert beyond > 10


@pytest.mark.parametrize("ends", [(0.2, 0.2), (0.2, 0.28), (3e-4, 4e-4), (1.0, 9.0)])
def test_ends_of_the_clip(ends):
    o = options(eps_low=ends[0], eps_high=ends[1])
    arrays = case(7, token_advantages=True)
    np.testing.assert_allclose(loss(arrays, o), reference_loss(*arrays, o), rtol=0, atol=TOLERANCE)


def one(ratio, advantage, o, **changes):
    """Loss and gradient of a single token."""
    at = jnp.zeros((1, 1, 1))
    arrays = [at + np.log(ratio), at, at == 0, at + advantage, at]
    return float(loss(arrays, o)), float(gradient(arrays, o)[0, 0, 0])


@pytest.mark.parametrize(
    "ratio, advantage, value, slope",
    [
        (1.1, 1.0, -1.1, -1.1),  # inside: the ratio itself
        (1.1, -1.0, 1.1, 1.1),
        (1.5, 1.0, -1.28, 0.0),  # good and already much likelier: held back at the upper end
        (1.25, 1.0, -1.25, -1.25),  # clip-higher: between 1.2 and 1.28 it goes on
        (0.5, -1.0, 0.8, 0.0),  # bad and already much less likely: held back at the lower end
        (1.5, -1.0, 1.5, 1.5),  # bad and likelier: never held back
        (0.5, 1.0, -0.5, -0.5),  # good and less likely: never held back
    ],
)
def test_clip_by_hand(ratio, advantage, value, slope):
    for aggregation in CLIPPED:
        o = options(aggregation, max_new=1)
        np.testing.assert_allclose(one(ratio, advantage, o), (value, slope), rtol=1e-5, atol=1e-7)
    # cispo: where the clip removes the gradient of the others, its weight is shorter; it never vanishes.
    weight = min(max(ratio, 0.8), 1.28)
    expected = (-weight * advantage * np.log(ratio), -weight * advantage)
    np.testing.assert_allclose(one(ratio, advantage, options("cispo")), expected, rtol=1e-5, atol=1e-7)


def test_means_by_hand():
    # On policy the loss is minus a mean of advantages: 1, 1, 1, 1 and 3, with 3 completions of which one is
    # empty.
    mask = np.arange(4) < np.array([4, 1, 0])[:, None]
    lp = np.zeros((1, 3, 4), np.float32)
    arrays = [lp, lp, mask[None], np.array([[[1.0], [3.0], [5.0]]], np.float32), None]
    expected = {"dapo": 7 / 5, "grpo": (1 + 3) / 2, "gspo": (1 + 3) / 2, "dr_grpo": 7 / (2 * NEW)}
    for aggregation, value in expected.items():
        np.testing.assert_allclose(loss(arrays, options(aggregation)), -value, rtol=1e-6)


def test_gspo_has_one_ratio_per_completion():
    # Ratios 1.5 and 1/1.4: token by token both are clipped or not by themselves; their geometric mean, 1.035,
    # is inside.
    arrays = [np.log([[[1.5, 1 / 1.4]]]).astype(np.float32), np.zeros((1, 1, 2), np.float32)]
    arrays += [np.ones((1, 1, 2), bool), np.ones((1, 1, 1), np.float32), None]
    ratio = np.sqrt(1.5 / 1.4)
    np.testing.assert_allclose(loss(arrays, options("gspo")), -ratio, rtol=1e-6)
    np.testing.assert_allclose(gradient(arrays, options("gspo")), [[[-ratio / 2] * 2]], rtol=1e-6)
    np.testing.assert_allclose(gradient(arrays, options("grpo")), [[[0, -1 / 1.4 / 2]]], rtol=1e-6)
    # Token advantages weigh each token's own gradient (GSPO-token).
    arrays[3] = np.array([[[1.0, 3.0]]], np.float32)
    np.testing.assert_allclose(gradient(arrays, options("gspo")), [[[-ratio / 2, -3 * ratio / 2]]], rtol=1e-6)


def test_k3_by_hand():
    # log p = log 1/4, reference 1/2: 2 - log 2 - 1; its slope in log p is 1 - 2.
    at = jnp.full((1, 1, 1), np.log(0.25), jnp.float32)
    arrays = [at, at, at < 0, jnp.zeros((1, 1, 1)), jnp.log(jnp.full((1, 1, 1), 0.5))]
    o = options(beta=0.5)
    np.testing.assert_allclose(loss(arrays, o), 0.5 * (1 - np.log(2)), rtol=1e-5)
    np.testing.assert_allclose(gradient(arrays, o), -0.5, rtol=1e-6)
    np.testing.assert_allclose(summed(arrays, o).kl, 1 - np.log(2), rtol=1e-5)


def test_k3_estimates_the_divergence():
    """Its mean under the policy is KL(policy || reference), which a table of probabilities tells exactly."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), 2)
    mask, o = np.ones((1, 1, 1), bool), options(beta=1.0)
    kl = [
        summed([a, None, mask, np.zeros((1, 1, 1)), b], o).kl
        for a, b in zip(*np.log([p, q])[..., None, None, None], strict=True)
    ]
    np.testing.assert_allclose(np.dot(p, kl), np.sum(p * np.log(p / q)), rtol=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_on_policy_the_ratio_is_1(aggregation):
    o = options(aggregation)
    logprobs, _, mask, advantages, _ = case(1)
    fresh = [logprobs, None, mask, advantages, None]
    again = [logprobs, logprobs, mask, advantages, None]
    assert loss(fresh, o) == loss(again, o)
    assert np.array_equal(gradient(fresh, o), gradient(again, o))
    sums = summed(fresh, options(aggregation, eps_low=0.0, eps_high=0.0))
    assert sums.low == sums.high == 0  # not by a rounding off 1
    # The policy gradient: the advantage times each token's share of the mean.
    tokens, completions = mask.sum(), mask.any(-1).sum()
    length = np.maximum(mask.sum(-1, keepdims=True), 1)
    share = {"dapo": 1 / tokens, "cispo": 1 / tokens, "dr_grpo": 1 / (completions * NEW)}.get(
        aggregation, 1 / (length * completions)
    )
    np.testing.assert_allclose(gradient(fresh, o), -advantages * share * mask, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_tokens_of_the_old_policy_have_weight_1(aggregation, beta):
    """Not nearly: loss and gradient are those without weights to the bit."""
    arrays, cap = case(8), 2.0
    weighted, plain = options(aggregation, beta=beta, importance_cap=cap), options(aggregation, beta=beta)
    for old in (arrays[1], None):
        given = [arrays[0], old, *arrays[2:]]
        sampled = arrays[0] if old is None else old
        assert loss([*given, sampled], weighted) == loss(given, plain)
        assert np.array_equal(gradient([*given, sampled], weighted), gradient(given, plain))
    weights = policy.importance_weights(arrays[1], arrays[1], arrays[2], cap)
    assert (np.asarray(weights) == 1).all()


def bandit_gradient(theta, sampler, reward, cap):
    """The expected gradient, over the arms that ``sampler`` draws, of the loss of a policy softmax(theta) of
    one token: each arm's own gradient, times how often it is drawn."""
    o = options(importance_cap=cap)
    mask = np.ones((1, 1, 1), bool)

    def loss_of(theta, arm):
        logprob = jax.nn.log_softmax(theta)[arm][None, None, None]
        sampled = np.log(sampler[arm])[None, None, None]
        advantage = np.full((1, 1, 1), reward[arm])
        return policy.policy_loss(logprob, None, mask, advantage, None, o, sampled_BGC=sampled).loss

    each = [np.asarray(jax.grad(loss_of)(jnp.asarray(theta), arm), np.float64) for arm in range(len(theta))]
    return sum(share * own for share, own in zip(sampler, each, strict=True))


def test_weights_correct_the_sampler():
    """The expected gradient is the policy gradient, sum over arms of p(a) A(a) (p - e_a), although another
    policy draws them; an arm beyond the cap counts as if it were drawn so much more seldom."""
    rng = np.random.default_rng(0)
    theta, reward = rng.standard_normal((2, 4))
    p, sampler = (np.exp(x) / np.exp(x).sum() for x in (theta, theta + rng.standard_normal(4)))

    def policy_gradient(weight):
        return sum(weight[a] * reward[a] * (p - np.eye(4)[a]) for a in range(4))

    ratio = p / sampler
    assert ratio.max() > 1.5 and ratio.min() < 0.7
    expected = policy_gradient(p)
    np.testing.assert_allclose(bandit_gradient(theta, sampler, reward, 100.0), expected, atol=1e-5)
    cap = (np.sort(ratio)[-2:].sum() / 2).astype(np.float32)  # below the largest ratio alone
    np.testing.assert_allclose(
        bandit_gradient(theta, sampler, reward, cap),
        policy_gradient(sampler * np.minimum(ratio, cap)),
        atol=1e-5,
    )
    unweighted = bandit_gradient(theta, sampler, reward, 0.0)
    assert np.abs(unweighted - expected).max() > 0.01


def test_what_is_logged_of_sampling():
    """The k3 estimate is the KL of a table of probabilities if each token is as frequent as it is drawn; by
    hand, a token in two is beyond the cap, and padding is not counted."""
    shares, rng = np.array([1, 2, 5]), np.random.default_rng(1)
    drawn, p = np.repeat(np.arange(3), shares), rng.dirichlet(np.ones(3))
    q = shares / shares.sum()
    every = np.ones(drawn.shape, bool)
    got = policy.sampling_metrics(np.log(p)[drawn], np.log(q)[drawn], every, options())
    np.testing.assert_allclose(got["sampling/kl"], np.sum(q * np.log(q / p)), rtol=1e-5)
    assert "sampling/truncated" not in got
    old, sampled = np.log([0.5, 0.2, 0.3, 0.1]), np.log([0.2, 0.25, 0.1, 0.4])
    mask = np.array([True, True, False, False])
    got = policy.sampling_metrics(old, sampled, mask, options(importance_cap=2.0))
    assert got["sampling/truncated"] == 0.5
    np.testing.assert_allclose(got["sampling/logp_difference/max"], np.log(2.5), rtol=1e-6)
    np.testing.assert_allclose(got["sampling/logp_difference/mean"], np.log([2.5, 1.25]).mean(), rtol=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_no_advantage_no_gradient(aggregation):
    logprobs, old, mask, advantages, _ = case(2)
    assert not np.any(gradient([logprobs, old, mask, 0 * advantages, None], options(aggregation)))


@pytest.mark.parametrize("aggregation", CLIPPED)
def test_a_second_iteration_clips(aggregation):
    """A rollout that is used again is held back once the policy has moved far enough."""
    o = options(aggregation)
    logprobs, _, mask, _, _ = case(3)
    advantages = np.ones((*mask.shape[:2], 1), np.float32)
    old = logprobs
    for _ in range(3):
        logprobs = np.where(
            mask, logprobs - np.sign(gradient([logprobs, old, mask, advantages, None], o)) * 0.1, np.nan
        )
    # exp(.3) is above 1.28, exp(.2) below: two steps up, and the third is the first that nothing asks for.
    assert not np.any(gradient([logprobs, old, mask, advantages, None], o))
    sums = summed([logprobs, old, mask, advantages, None], o)
    assert (sums.high, sums.low) == (mask.sum(), 0)


def test_clips_are_counted_where_they_hold_back():
    o = options()
    ratios = np.log([[[0.5, 0.5, 0.9, 1.5, 1.5, 1.25]]]).astype(np.float32)
    advantages = np.array([[[-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]]], np.float32)
    sums = summed([ratios, np.zeros_like(ratios), np.ones((1, 1, 6), bool), advantages, None], o)
    out = policy_metrics(sums, o)
    np.testing.assert_allclose(out["clip_ratio/low_mean"], 1 / 6)
    np.testing.assert_allclose(out["clip_ratio/high_mean"], 1 / 6)
    np.testing.assert_allclose(out["clip_ratio/region_mean"], 2 / 6)
    np.testing.assert_allclose(out["entropy"], -ratios.mean(), rtol=1e-6)
    assert "kl" not in out and "kl" in policy_metrics(sums, options(beta=0.1))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_add_up(aggregation):
    o = options(aggregation, beta=0.1)
    arrays = case(4, shape=(8, 3, 5))
    whole = summed(arrays, o)
    together = gradient(arrays, o)
    divisor = denominator(arrays[2], o)
    parts = [evaluate([x[i::4] for x in arrays], o, divisor) for i in range(4)]
    for total, *each in zip(whole, *(sums for _, _, sums in parts), strict=True):
        np.testing.assert_allclose(sum(each), total, rtol=TOLERANCE)
    for i, (_, part, _) in enumerate(parts):
        np.testing.assert_allclose(part, together[i::4], rtol=0, atol=1e-7)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_padding_changes_nothing(aggregation):
    """Neither rows, nor completions without tokens, nor a longer array."""
    o = options(aggregation, beta=0.1)
    arrays = case(5)
    padded = [
        np.pad(
            x,
            [(0, 2), (0, 0), (0, 3 if x.shape[-1] > 1 else 0)],
            constant_values=False if x.dtype == bool else np.nan,
        )
        for x in arrays
    ]
    padded[3] = np.nan_to_num(padded[3])
    np.testing.assert_allclose(loss(padded, o), loss(arrays, o), rtol=1e-6)
    out = gradient(padded, o)
    np.testing.assert_allclose(out[:3, :, :6], gradient(arrays, o), rtol=0, atol=1e-7)
    assert np.isfinite(out).all() and not np.any(out[3:]) and not np.any(out[..., 6:])


def test_nothing_to_train_on_is_0():
    logprobs, old, mask, advantages, reference = case(6)
    for aggregation in AGGREGATIONS:
        arrays = [logprobs, old, mask & False, advantages, reference]
        assert loss(arrays, options(aggregation, beta=0.1)) == 0
        assert not np.any(gradient(arrays, options(aggregation, beta=0.1)))


def test_the_stop_token_is_trained_on_and_truncated_completions_only_where_asked():
    # 0 pads and stops, as in tokenizers that have one token for both: the mask tells them apart.
    tokens = np.array([[[5, 0, 0, 0], [5, 6, 7, 0], [5, 6, 7, 8], [0, 0, 0, 0]]])
    mask = np.arange(4) < np.array([2, 4, 4, 0])[:, None]
    done = has_ended(tokens, mask[None], (0, 9))
    assert done.tolist() == [[True, True, False, False]]
    assert np.array_equal(trained_tokens(mask[None], done, options()), mask[None])
    kept = trained_tokens(mask[None], done, options(mask_truncated=True))
    assert np.array_equal(kept[0], mask & np.array([True, True, False, False])[:, None])
    assert kept[0, 0].tolist() == [True, True, False, False]
