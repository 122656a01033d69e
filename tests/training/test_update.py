"""Several updates on one rollout, prompts that are replaced, completions that are left out of their group; on
the small model, with plain gradient descent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import joint
from tests.training.rollouts import (
    CLIPS,
    GROUPS,
    LENGTH,
    ROWS,
    Judge,
    assert_close,
    compiled,
    config,
    learner,
    setup,
)
from vpjax.models.sharding import make_mesh
from vpjax.training import judged, policy, update
from vpjax.training.optimizer import Optimizer
from vpjax.training.state import State, deal

pytestmark = pytest.mark.slow
HALF = ROWS // 2
EPS = 1e-6  # of the clip: every ratio that is not 1 up to rounding is beyond it


def by_hand(prompts, completions, advantages, numbers, parts):
    """Gradient descent on the clipped loss, on one part of the prompts after another: the parameters' sum of
    gradients, and the tokens that each update clips."""
    c = config(grpo__relative__kind="none", grpo__eps_low=EPS, grpo__eps_high=EPS)
    state, steps, _ = setup(c, joint.model())
    rows = update.UpdateRows(
        prompts, completions.tokens[:, :1], completions.mask[:, :1], np.asarray(advantages)[:, :1, :, None]
    )
    rows = jax.tree.map(lambda x: jnp.asarray(x)[: ROWS // parts * parts], rows)

    def loss(params, old, rows):
        logprobs = steps.policy.logprobs(steps.policy.compute_model(params, {}), rows)
        new, mask, advantage = (x[:, 0] for x in (logprobs, rows.mask, rows.advantages))
        sums = policy.policy_loss(new, old, mask, advantage, None, c.grpo)
        return sums.loss / mask.sum(), (new, sums.low + sums.high)

    dealt = [jax.tree.map(lambda x, i=i: x[i], deal(rows, parts)) for i in range(parts)]
    blank = jnp.zeros(dealt[0].mask[:, 0].shape)
    gradient_of = compiled(jax.grad(loss, has_aux=True), state.params, blank, dealt[0])
    old = [gradient_of(state.params, blank, part)[1][0] for part in dealt]
    params, counts = state.params, []
    for number in numbers:
        gradient, (_, count) = gradient_of(params, old[number], dealt[number])
        params = jax.tree.map(jnp.subtract, params, gradient)
        counts.append(float(count))
    return jax.tree.map(lambda x, y: np.asarray(x - y), state.params, params), counts


def test_mini_batches_are_updates_one_after_another(prompts, completions, plain):
    """Of every second prompt, twice. The old policy is that before the first of them: the first ratio is
    exactly 1, and from the second update on the clip holds back."""
    clipping = dict(grpo__eps_low=EPS, grpo__eps_high=EPS)
    learn = learner(grpo__relative__kind="none", grpo__num_iterations=2, grpo__num_minibatches=2, **clipping)
    gradient, metrics, _ = learn(prompts, completions)
    expected, counts = by_hand(prompts, completions, plain[2].advantages, [0, 1] * 2, parts=2)
    assert counts[0] == 0 and min(counts[1:]) > 0
    # Rounding decides for some tokens, of a ratio near 1, on which side of the clip they fall.
    assert_close(gradient, expected, 2e-2)
    tokens = completions.mask[:, 0].sum()
    assert metrics["clip_ratio/region_mean"] == pytest.approx(sum(counts[-2:]) / tokens, abs=0.05)
    assert metrics["nonfinite"] == 0


def test_the_first_mini_batch_has_ratio_1(prompts, completions):
    """And the second, which its own old log-probabilities from before the first update judge, has not."""
    state, steps, _ = setup(config(grpo__eps_low=0.0, grpo__eps_high=0.0), joint.model())
    ones = np.ones((ROWS, 1, GROUPS, 1), np.float32) * np.array([1, -1, 1, -1])[:, None]
    rows = update.UpdateRows(prompts, completions.tokens[:, :1], completions.mask[:, :1], ones)

    def two_updates(state, rows):
        trained = update.Trained(state.params, state.opt, jnp.array(True))
        old = steps.policy.forward(state.params, {}, rows)
        trained, first, _ = steps.policy.learn({}, trained, rows)
        _, second, _ = steps.policy.learn({}, trained, rows._replace(old=old))
        return first.sums, second.sums

    first, second = compiled(two_updates, state, rows)(state, rows)
    assert first.low == first.high == 0 and second.low > 0 and second.high > 0


class Counting(update.PolicyUpdate):
    """Updates that add 1, and whose gradient is finite where the advantages are."""

    def forward(self, params, frozen, rows, parts=1):
        return jnp.zeros(rows.mask.shape)

    def learn(self, frozen, trained, rows):
        params, opt, finite = trained
        finite &= jnp.isfinite(rows.advantages).all()
        params, opt = jax.tree.map(lambda x: jnp.where(finite, x + 1, x), (params, opt))
        learned = update.Learned(jnp.zeros(()), jnp.zeros(()), policy.PolicySums(*jnp.zeros(6)))
        return update.Trained(params, opt, finite), learned, jnp.zeros(rows.mask.shape)


@pytest.mark.parametrize("broken", [None, 0, 1])
def test_all_updates_of_a_step_or_none(broken):
    """If one is not finite, those before it are undone to the bit."""
    c = config(grpo__num_minibatches=2, grpo__num_iterations=2)
    schedule = Optimizer(None, lambda step: jnp.zeros(()))
    state = State(jnp.int32(5), {"w": jnp.full(3, 0.1)}, {}, {"w": jnp.full(3, 0.7)}, jnp.int32(0))
    advantages = np.ones((4, 1, 2, 1), np.float32)
    if broken is not None:
        advantages[broken] = np.inf  # of the first or of the second part
    zeros, ones = np.zeros((4, 1, 2, 3)), np.ones((4, 1, 2, 3), bool)
    rows = update.UpdateRows(None, zeros, ones, advantages, sampled=zeros)
    after, metrics = Counting(None, c, schedule)(state, rows, jnp.array(True))
    added = 4 if broken is None else 0
    np.testing.assert_array_equal(after.params["w"], jnp.full(3, 0.1) + added)
    np.testing.assert_array_equal(after.opt["w"], jnp.full(3, 0.7) + added)
    assert (after.step, after.skipped, metrics["nonfinite"]) == (6, broken is not None, broken is not None)


def equal_in(completions, rows):
    """The completions, all rewarded alike in some ``rows``."""
    alike = np.isin(np.arange(ROWS), rows)[:, None, None, None]
    return completions._replace(
        tokens=np.where(completions.mask, np.where(alike, completions.tokens | 64, completions.tokens), 0)
    )


@functools.cache
def oversampled(mesh=joint.ONE, **fields):
    return learner(mesh=mesh, batch=HALF, grpo__oversample=2, grpo__relative__kind="none", **fields)


def test_prompts_without_spread_are_replaced(prompts, completions):
    """The update is that of the first prompts of the step whose completions differ in reward."""
    with_spread = [0, 3, 5, 6]
    others = [row for row in range(ROWS) if row not in with_spread]
    chosen = np.array(with_spread)
    mixed = equal_in(completions, others)
    expected = learner(grpo__relative__kind="none", rows=HALF, batch=HALF)(
        *jax.tree.map(lambda x: np.asarray(x)[chosen], (prompts, mixed))
    )
    gradient, metrics, judged = oversampled()(prompts, mixed)
    assert_close(gradient, expected[0], 1e-5)
    assert metrics["loss"] == pytest.approx(expected[1]["loss"], abs=1e-6)
    assert metrics["oversample/spread"] == 0.5 and metrics["oversample/trained"] == 1.0
    assert metrics["oversample/replaced"] == 0.5  # by prompts 5 and 6
    assert metrics["frac_reward_zero_std"] == 0.5 and judged.total.shape[0] == ROWS


def test_nothing_is_replaced_where_all_prompts_have_spread(prompts, completions):
    half = jax.tree.map(lambda x: np.asarray(x)[:HALF], (prompts, completions))
    expected = learner(grpo__relative__kind="none", rows=HALF, batch=HALF)(*half)
    gradient, metrics, _ = oversampled()(prompts, completions)
    assert_close(gradient, expected[0], 1e-5)
    assert metrics["oversample/replaced"] == 0 and metrics["oversample/trained"] == 1


def test_too_few_prompts_with_spread(prompts, completions):
    """All of them are chosen, and the loss is a mean over the tokens of the others too, as without
    replacing."""
    mixed = equal_in(completions, [0, 1, 2, 3, 4, 5, 7])
    _, metrics, judged = oversampled()(prompts, mixed)
    assert metrics["oversample/trained"] == 0.25 and metrics["oversample/replaced"] == 0.25
    tokens = completions.mask[[6, 0, 1, 2], 0].sum()
    count = completions.mask[6, 0].sum(-1)
    expected = -(np.asarray(judged.advantages)[6, 0] * count).sum() / tokens
    assert metrics["loss"] == pytest.approx(expected, abs=1e-5)


def test_devices_agree(prompts, completions):
    """On which prompts are chosen, and on the parts of an update."""
    mesh = make_mesh(dict(data=1, fsdp=2, tensor=1), jax.devices()[:2])
    mixed = equal_in(completions, [1, 2, 4])
    one = oversampled(grpo__num_minibatches=2)(prompts, mixed)
    two = oversampled(mesh, grpo__num_minibatches=2)(prompts, mixed)
    assert_close(two[0], one[0], 1e-4)
    for name in ("loss", "grad_norm", "oversample/replaced", "oversample/spread"):
        assert two[1][name] == pytest.approx(one[1][name], abs=1e-5), name


def shorter(completions, rows, length):
    """The completions, those of some ``rows`` ending after ``length`` tokens."""
    stays = ~np.isin(np.arange(ROWS), rows)[:, None, None, None] | (np.arange(LENGTH) < length)
    return completions._replace(tokens=np.where(stays, completions.tokens, 0), mask=completions.mask & stays)


def test_short_completions_are_computed_short(prompts, completions, monkeypatch):
    """The step is that on completions of full length, up to float32 sums in another order. Of two
    micro-batches, of even and of odd rows, one is cut."""
    given = shorter(completions, range(0, ROWS, 2), 2)
    whole = learner(grpo__relative__kind="none")(prompts, given)
    monkeypatch.setattr(update, "SHORTEST", 2)
    cut = learner.__wrapped__(grpo__relative__kind="none", accumulate=2)(prompts, given)
    assert_close(cut[0], whole[0], 1e-5)
    for name, value in whole[1].items():
        assert cut[1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    "most, lengths", [(5, [5]), (31, [31]), (32, [16, 32]), (65, [17, 33, 65]), (1024, [256, 512, 1024])]
)
def test_lengths_are_halves(most, lengths):
    assert update.lengths_of(most) == lengths


@pytest.mark.parametrize("longest, length", [(0, 16), (1, 16), (16, 16), (17, 32), (33, 64), (64, 64)])
def test_the_first_length_that_holds_all_tokens(longest, length):
    """Values by token are those of whole rows, and 0 beyond that length; what is not there stays away."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 9, (2, 1, 3, 64))
    mask = np.arange(64) < np.minimum(longest, [[[[9], [64], [5]]], [[[0], [2], [3]]]])
    rows = update.UpdateRows(joint.prompts_of(CLIPS[:2]), tokens, mask, np.ones((2, 1, 3, 1)))

    def function(rows):
        assert rows.old is None and rows.advantages.shape[-1] == 1
        return rows.tokens.shape[-1] * jnp.ones(()), rows.tokens * 2.0

    count, values = update.cut_to_longest(function)(rows)
    assert count == length
    np.testing.assert_array_equal(values, np.where(np.arange(64) < length, 2 * tokens, 0))


class Choosy(Judge):
    """A reward that does not judge completions which begin with token 100, and one that judges all."""

    weights = {"small": 1.0, "choosy": 2.0}

    def score(self, prompts, tokens, mask):
        share = ((tokens % 2 == 0) & mask).sum(-1) / jnp.maximum(mask.sum(-1), 1)
        choosy = jnp.where(tokens[..., 0] == 100, jnp.nan, share)
        return {"small": self.recall(prompts, tokens, mask), "choosy": choosy}


@pytest.mark.parametrize("kind", ["none", "gate"])
def test_an_unjudged_completion_is_left_out_of_its_group(prompts, completions, kind):
    """The step is that of the smaller group: its own advantage is 0, those of the others are as if it had not
    been sampled, and it is no part of any mean."""
    tokens = completions.tokens.copy()
    tokens[..., 0] = 50
    tokens[2, 0, 1, 0] = tokens[4, 0, 0, 0] = tokens[3, 1, 0, 0] = 100
    given = completions._replace(tokens=np.where(completions.mask, tokens, 0))
    left_out = (tokens[:, :, :, 0] == 100)[..., None]
    smaller = given._replace(mask=given.mask & ~left_out)
    learn = learner(judge=Choosy, grpo__relative__kind=kind)
    gradient, metrics, judged = learn(prompts, given)
    expected, expected_metrics, expected_judged = learn(prompts, smaller)
    assert judged.advantages[2, 0, 1] == judged.advantages[4, 0, 0] == 0
    np.testing.assert_array_equal(judged.advantages, expected_judged.advantages)
    assert np.isnan(judged.total[2, 0, 1]) and np.count_nonzero(judged.advantages[2, 0]) == GROUPS - 1
    assert_close(gradient, expected, 1e-6)
    assert metrics["loss"] == pytest.approx(expected_metrics["loss"], abs=1e-6)
    for name in ("reward", "reward_degraded", "rel/gap", "rel/win_rate", "rel/change"):
        assert metrics[name] == pytest.approx(expected_metrics[name], abs=1e-6), name


def test_a_reward_that_judges_nobody_of_a_group_does_not_count():
    """It is 0 in the sum of those clips, and no completion is left out for it."""
    nan = np.nan
    exists = np.array([[[True, True, True]], [[True, True, True]], [[True, True, False]]])
    rewards = {
        "one": jnp.array([[[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]], [[1.0, 2.0, 9.0]]]),
        "mine": jnp.array([[[nan, nan, nan]], [[4.0, nan, 6.0]], [[nan, nan, 5.0]]]),
    }
    total = judged.total_rewards(rewards, {"one": 1.0, "mine": 0.5}, jnp.asarray(exists))
    expected = [[[1, 2, 3]], [[3, nan, 6]], [[1, 2, nan]]]
    np.testing.assert_array_equal(total, expected)


def test_a_failed_reward_is_not_a_large_number():
    """It is logged as infinite, which the log shows as missing; NaN alone stands for none."""
    assert judged.nanmean(jnp.array([1.0, np.nan, 3.0])) == 2
    assert judged.nanmean(jnp.array([np.nan, np.nan])) == 0
    assert np.isposinf(judged.nanmean(jnp.array([np.inf, 1.0])))


def test_rows_are_dealt_and_the_order_is_stable():
    rows = update.UpdateRows(
        joint.prompts_of(CLIPS),
        np.zeros((ROWS, 1, GROUPS, LENGTH), int),
        np.ones((ROWS, 1, GROUPS, LENGTH), bool),
        np.isin(np.arange(ROWS), [2, 7, 1]).astype(float)[:, None, None, None]
        * np.ones((1, 1, GROUPS, LENGTH)),
    )
    for count, expected in ((2, [1, 2]), (3, [1, 2, 7]), (5, [1, 2, 7, 0, 3])):
        assert update.prompts_with_spread(rows, count)[0].tolist() == expected
    np.testing.assert_array_equal(deal(np.arange(6), 3), [[0, 3], [1, 4], [2, 5]])
