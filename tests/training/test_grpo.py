"""The GRPO step: shared prefixes, micro-batches, iterations, branches; on a small model of its own."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import batches, joint
from tests.training.rollouts import (
    CLIPS,
    DEGRADED,
    EOS,
    GROUPS,
    LENGTH,
    ROWS,
    HostJudge,
    TruthJudge,
    assert_close,
    compiled,
    config,
    learner,
    setup,
    stepped,
    wide,
)
from vpjax.hlo import inner_jaxprs
from vpjax.models.generate import generate
from vpjax.models.sharding import make_mesh, put_batch
from vpjax.models.vlm import leaves
from vpjax.training import grpo, judged, policy
from vpjax.training.losses import token_logprobs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rolled(prompts):
    """What the compiled step says and does."""
    return stepped(config(), prompts)[1:]


def test_a_step_rolls_out_both_videos(prompts, rolled):
    """G completions of V and Gd of V~; none of V~ where a clip has none (the last row); each ends at a stop
    token."""
    after, metrics, judged = rolled
    mask = np.asarray(judged.completions.mask)
    assert int(after.step) == 1 and metrics["nonfinite"] == 0
    assert mask.shape == (ROWS, 2, GROUPS, LENGTH)
    assert mask[:, 0, :, 0].all() and mask[:-1, 1, :DEGRADED, 0].all()
    assert not mask[:, 1, DEGRADED:].any() and not mask[-1, 1].any()
    stop = np.isin(judged.completions.tokens, EOS) & mask
    assert (stop.sum(-1) <= 1).all() and not (stop[..., :-1] & mask[..., 1:]).any()
    np.testing.assert_array_equal(np.isnan(judged.total), ~mask.any(-1))
    assert metrics["completions/stopped"] == 0
    assert metrics["completions/mean_length"] == pytest.approx(mask[:, 0].sum(-1).mean())
    assert metrics["tokens"] == 2 * sum(len(clip.prompt) for clip in CLIPS) + mask.sum()
    assert metrics["reward"] == pytest.approx(np.nanmean(judged.total[:, 0]))
    assert metrics["reward_degraded"] == pytest.approx(np.nanmean(judged.total[:, 1]))


def test_the_first_ratio_is_one(rolled):
    """The loss of dapo is then minus the token mean of the advantages, and nothing is clipped."""
    _, metrics, judged = rolled
    assert metrics["clip_ratio/region_mean"] == 0
    count = np.asarray(judged.completions.mask[:, 0]).sum(-1)
    mean = (np.asarray(judged.advantages)[:, 0] * count).sum() / count.sum()
    # Sums of some 150 advantages of about 1 in float32.
    assert metrics["loss"] == pytest.approx(-mean, abs=1e-5)


def filmed():
    """The prompts about videos that show what V~ shows, frame by frame."""
    return joint.prompts_of([clip.filmed(clip.source) for clip in CLIPS])


def test_sampling_and_training_see_the_same_probabilities(prompts, rolled):
    """The likelihoods are those that were sampled from, the temperature included; top-p and top-k shape only
    what is drawn. Both sides of a gap come from one forward pass: where V~ is V, the gap is exactly 0. Where
    V~ is another video, its likelihoods are those of a film of it."""
    assert 0 < rolled[1]["sampling/logp_difference/max"] < 1e-4
    same = dataclasses.replace(prompts, shows_degraded=prompts.text.shows)
    sampling = dict(grpo__temperature=0.7, grpo__top_p=0.8, grpo__top_k=50)
    state, parts, _ = setup(config(grpo__relative__kind="token", **sampling), wide())

    def gaps(state, prompts, film):
        """Of the tokens on V: as the evidence has them, and from the film."""
        completions, features = parts.rollout(state, prompts)
        total = jnp.zeros(completions.mask.shape[:3])
        evidence = parts.evidence(state, prompts, completions, {"small": total}, total, features)
        tokens, mask, logprobs = (x[:, :1] for x in completions)
        rows = grpo.UpdateRows(film, tokens, mask, mask)
        gap = logprobs - parts.policy.logprobs(parts.policy.compute_model(state.params, {}), rows)
        return jnp.where(evidence.mask, evidence.gap, 0.0), jnp.where(mask, gap, 0.0)[:, 0]

    gaps = compiled(gaps, state, prompts, filmed())
    gap, expected = gaps(state, same, prompts)
    assert not gap.any() and 0 < np.abs(expected).max() < 1e-4  # the latter with sampling's numbers
    gap, expected = gaps(state, prompts, filmed())
    assert np.abs(gap).max() > 0.1
    np.testing.assert_allclose(gap, expected, rtol=0, atol=1e-4)


def test_branches_are_the_video_and_a_film_of_the_degraded_one(prompts):
    """With one token to choose from, both branches say what greedy decoding says of these videos."""
    state, parts, _ = setup(config(grpo__top_k=1), wide())
    completions, _ = compiled(parts.rollout, state, prompts)(state, prompts)
    greedy = functools.partial(generate, wide(), key=jax.random.key(0), max_new=LENGTH, eos=EOS)
    for branch, seen in enumerate((prompts, filmed())):
        expected = greedy(seen)
        rows = slice(None) if branch == 0 else slice(0, -1)  # the last has no V~
        for group in range((GROUPS, DEGRADED)[branch]):
            np.testing.assert_array_equal(completions.tokens[rows, branch, group], expected.tokens[rows, 0])
    assert (completions.tokens[:-1, 0, 0] != completions.tokens[:-1, 1, 0]).any()


def test_int8_weights_sample_as_those_that_they_stand_for(prompts):
    """Only the decoder's linear layers in sampling: features are those of the model as it is."""
    state, parts, _ = setup(config(grpo__rollout_dtype="int8", grpo__importance_cap=2.0), wide())
    completions, features = compiled(parts.rollout, state, prompts)(state, prompts)
    stand_ins = dict(state.params)
    for path, x in stand_ins.items():
        if path.startswith("decoder.layers.") and path.endswith(".kernel"):
            w = np.asarray(x)
            scale = np.abs(w).max(axis=-2, keepdims=True) / np.float32(127)
            stand_ins[path] = jnp.asarray(np.round(w / scale) * scale)
    plain = setup(config(), wide())[1]
    roll = compiled(plain.rollout, state, prompts)
    expected, _ = roll(dataclasses.replace(state, params=stand_ins), prompts)
    unquantised, own_features = roll(state, prompts)
    np.testing.assert_array_equal(completions.tokens, expected.tokens)
    np.testing.assert_allclose(completions.logprobs, expected.logprobs, rtol=0, atol=1e-4)
    assert np.abs(completions.logprobs - unquantised.logprobs).max() > 1e-2
    np.testing.assert_allclose(features.tokens, own_features.tokens, rtol=0, atol=1e-5)


def test_importance_weights_act_on_every_token(prompts, completions, plain):
    """Where sampling held all tokens for nearly impossible, each weighs as much as the cap allows."""
    seldom = completions._replace(logprobs=np.full_like(completions.logprobs, -50))
    gradient, metrics, _ = learner(grpo__relative__kind="none", grpo__importance_cap=1.5)(prompts, seldom)
    # Both are differences of parameters of order 1 in float32.
    assert_close(gradient, {path: 1.5 * x for path, x in plain[0].items()}, 1e-4)
    assert metrics["sampling/truncated"] == 1


def test_the_degraded_video_costs_no_vision():
    """Pixels are read as often with V~ as without it."""

    def readings(judge=None, **fields):
        state, _, step = setup(config(**fields), joint.model(), judge=judge)
        jaxpr = jax.make_jaxpr(step)(state, joint.prompts(ROWS)).jaxpr
        products = [eqn for eqn in _equations(jaxpr) if eqn.primitive.name == "dot_general"]
        pixels = joint.prompts(ROWS).video.pixels.shape[-1]
        return sum(pixels in (*eqn.invars[0].aval.shape, *eqn.invars[1].aval.shape) for eqn in products)

    plain = readings(grpo__relative__kind="none", grpo__degraded=0)
    assert readings(grpo__relative__kind="token") == readings(judge=TruthJudge()) == plain
    # For the rollouts, for the update, and its gradient.
    assert plain == 3
    assert readings(optim__freeze=("vision.*",)) == 1


def test_completions_of_a_prompt_equal_packed_rows(prompts, completions, plain):
    """The gradient of G completions after one prompt is that of G packed rows, each of which has the prompt
    and a completion as its answer."""
    gradient, metrics, judged = plain
    tokens, mask = completions.tokens[:, 0], completions.mask[:, 0]
    rows = [
        [dataclasses.replace(clip, answer=tokens[b, g][mask[b, g]])]
        for b, clip in enumerate(CLIPS)
        for g in range(GROUPS)
    ]
    packed = batches.packed(rows, joint.MODEL.vision, **joint.LAYOUT)
    advantage = np.asarray(judged.advantages)[:, 0].reshape(-1, 1)

    def loss(m):
        h = m.hidden(m.encode(packed.video), packed.text, packed.target).target
        targets = np.take_along_axis(packed.text.tokens, packed.target, axis=1)
        logprobs = token_logprobs(h[:, None], m.unembed, targets[:, None], chunk=LENGTH)[:, 0]
        ratio = jnp.exp(logprobs - jax.lax.stop_gradient(logprobs))
        return -jnp.where(packed.target >= 0, ratio * advantage, 0.0).sum() / mask.sum()

    value, expected = compiled(jax.value_and_grad(loss), joint.model())(joint.model())
    assert metrics["loss"] == pytest.approx(float(value), abs=1e-5)
    assert_close(gradient, leaves(expected), 1e-4)


def test_micro_batches_add_up(prompts, completions):
    """In the update, and in the likelihoods on V~."""
    whole = learner(grpo__relative__kind="likelihood")(prompts, completions)
    micro = learner(grpo__relative__kind="likelihood", accumulate=4)(prompts, completions)
    assert_close(micro[0], whole[0], 1e-5)  # float32 sums in another order
    chex.assert_trees_all_close(micro[1], whole[1], rtol=1e-4, atol=1e-6)
    assert whole[1]["rel/logp_gap"] != 0


def test_nothing_is_learned_from_equal_rewards(prompts, completions):
    same = completions._replace(tokens=np.where(completions.mask, completions.tokens | 64, 0))
    gradient, metrics, _ = learner(grpo__relative__kind="none")(prompts, same)
    assert metrics["frac_reward_zero_std"] == 1.0 and metrics["grad_norm"] == 0.0
    assert not any(x.any() for x in gradient.values())


def test_padding_rows_count_for_nothing(prompts, completions, plain):
    """A batch whose last half is padding gives the gradient and the rewards of its first half."""
    empty = np.arange(ROWS) >= ROWS // 2
    masked = joint.prompts_of([*CLIPS[: ROWS // 2], *[None] * (ROWS // 2)])
    quiet = completions._replace(mask=completions.mask & ~empty[:, None, None, None])
    half = jax.tree.map(lambda x: x[: ROWS // 2], (prompts, completions))
    got = learner(grpo__relative__kind="none")(masked, quiet)
    expected = learner(grpo__relative__kind="none", rows=ROWS // 2, batch=ROWS // 2)(*half)
    assert_close(got[0], expected[0], 1e-5)
    for name in (
        "reward",
        "reward_std",
        "reward_degraded",
        "rel/gap",
        "frac_reward_zero_std",
        "loss",
        "completions/stopped",
    ):
        assert got[1][name] == pytest.approx(expected[1][name], abs=1e-6), name


def test_a_second_iteration_clips(prompts, completions):
    """Two updates on the same rollouts are two steps of gradient descent on the clipped loss, the second
    with the ratio to the first forward."""
    c = config(grpo__num_iterations=2, grpo__relative__kind="none")
    twice, metrics, judged = learner(grpo__num_iterations=2, grpo__relative__kind="none")(
        prompts, completions
    )
    assert metrics["clip_ratio/region_mean"] > 0.05
    state, parts, _ = setup(c, joint.model())
    rows = grpo.UpdateRows(
        prompts, completions.tokens[:, :1], completions.mask[:, :1], judged.advantages[..., None]
    )

    def loss(params, old):
        logprobs = parts.policy.logprobs(parts.policy.compute_model(params, {}), rows)
        args = (logprobs[:, 0], old, rows.mask[:, 0], rows.advantages[:, 0], None)
        return policy.policy_loss(*args, c.grpo).loss / rows.mask.sum(), logprobs[:, 0]

    zero = jnp.zeros(rows.mask[:, 0].shape)
    gradient_of = compiled(jax.grad(loss, has_aux=True), state.params, zero)
    _, old = gradient_of(state.params, zero)
    first, _ = gradient_of(state.params, old)
    second, _ = gradient_of(jax.tree.map(jnp.subtract, state.params, first), old)
    # Rounding after the first update decides for some tokens on which side of the clip they fall.
    assert_close(twice, jax.tree.map(jnp.add, first, second), 1e-3)


def test_a_reference_stays(prompts, completions):
    """The first policy is its reference, so the KL begins at 0; the policy moves away and the reference
    does not."""
    state, parts, _ = setup(config(grpo__beta=0.1, grpo__relative__kind="none"), joint.model())

    def step(state, prompts, completions):
        features = parts.policy.compute_model(state.params, {}).encode(prompts.video)
        return parts.judge_and_update(state, prompts, completions, features, {})

    after, metrics, _ = compiled(step, state, prompts, completions)(state, prompts, completions)
    chex.assert_trees_all_equal(after.reference, state.params)
    assert any(np.any(x != state.params[path]) for path, x in after.params.items())
    assert metrics["kl"] == pytest.approx(0, abs=1e-9)
    assert metrics["grad_norm"] > 0
    assert not setup(config(), joint.model())[0].reference


def test_rewards_on_the_host(prompts, rolled):
    """They make the same step as on the device. If one fails, even one that weighs nothing, the update is
    skipped and counted."""
    judge = HostJudge()
    state, _, step = setup(config(), wide(), judge=judge)
    after, _, judged = step(state, put_batch(prompts, joint.ONE))
    np.testing.assert_array_equal(judged.completions.tokens, rolled[2].completions.tokens)
    # Compiled in two parts and with XLA's optimizations.
    chex.assert_trees_all_close(after.params, rolled[0].params, atol=1e-4)
    before = jax.tree.map(np.array, after.params)
    for count, name in enumerate(("small", "logged"), start=1):
        judge.failing = {name}
        after, metrics, judged = step(after, put_batch(prompts, joint.ONE))
        assert metrics["nonfinite"] == 1 and int(after.skipped) == count and int(after.step) == 1 + count
        chex.assert_trees_all_equal(jax.tree.map(np.array, after.params), before)
        np.testing.assert_array_equal(judged.clip, prompts.clip)


def test_text_alone():
    """Clips without a video have no V~, whatever the kind: nothing is rolled out on it, and they train."""
    clips = batches.contents([batches.Clip(before=n) for n in range(ROWS)])
    before, after, metrics, judged = stepped(config(), batches.prompts(clips, joint.MODEL.vision))
    mask = np.asarray(judged.completions.mask)
    assert mask[:, 0, :, 0].all() and not mask[:, 1].any()
    assert metrics["rel/clips"] == metrics["nonfinite"] == 0 and metrics["reward_std"] > 0
    assert not np.array_equal(before.params["decoder.embed"], after.params["decoder.embed"])


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 2, 4)])
def test_devices_agree(prompts, completions, plain, sizes):
    """The same gradient on one device and on eight, for given completions."""
    mesh = make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    gradient, metrics, _ = learner(mesh=mesh, grpo__relative__kind="none")(prompts, completions)
    assert_close(gradient, plain[0], 1e-5)
    assert metrics["loss"] == pytest.approx(plain[1]["loss"], abs=1e-5)


def test_logits_of_all_completions_never_exist(prompts):
    """With a chunk of one token, no array that ends in the vocabulary holds more than one token of each."""
    state, _, step = setup(config(loss__chunk=1), joint.model())
    jaxpr = jax.make_jaxpr(step)(state, prompts)
    shapes = {out.aval.shape for eqn in _equations(jaxpr.jaxpr) for out in eqn.outvars}
    vocabulary = joint.MODEL.decoder.vocab
    scores = [shape for shape in shapes if shape and shape[-1] == vocabulary and len(shape) > 2]
    assert scores and max(int(np.prod(shape)) for shape in scores) <= 2 * ROWS * GROUPS * vocabulary


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for part in inner_jaxprs(eqn):
            yield from _equations(part)


def test_tokens_that_spell_a_keyword():
    tokens = np.array([[[5, 1, 2, 3, 1, 2, 9], [2, 3, 3, 0, 0, 1, 1]]])
    keywords = np.array([[[1, 2, -1], [3, -1, -1], [-1, -1, -1], [9, -1, -1]]])
    expected = np.array([[True, True, True, False]])
    got = judged.keyword_tokens(tokens, keywords, expected)
    np.testing.assert_array_equal(got[0].astype(int), [[0, 1, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0, 0]])
