"""The SFT step: the joint loss is METHOD's, its cost lies where it should, and micro-batches add up.

Most steps here are taken by plain gradient descent at a rate of 1: what parameters lose is the gradient.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import joint, tiny
from vpjax import sft
from vpjax.models.vlm import gather_slots, leaves, rebuild
from vpjax.sharding import put_batch

# float32 sums in another order; parameters and gradients are of order 1.
TOLERANCE = 2e-6
DESCENT = optax.sgd(1.0)
WIDTH, E = joint.MODEL.decoder.hidden, 16


@functools.cache
def base():
    """(state before, state after, metrics) of one plain step."""
    return joint.run(joint.config(), joint.batch(), tx=DESCENT)


def gradient(before, after):
    return {path: before.params[path] - after.params[path] for path in before.params}


def contrast_loss(params, batch, config):
    """The contrastive part alone."""
    heads = {path: x for path, x in params.items() if path.startswith(sft.HEADS)}
    return sft.sums(rebuild(joint.model(), params), heads, batch, batch, config).contrast.loss


@functools.cache
def parameters():
    return leaves(joint.model()) | sft.init_heads(joint.config(), WIDTH, jax.random.key(1))


def test_loss_is_the_formula():
    """Means, windows, rivals and heads in loops over NumPy arrays, from the model's hidden states alone."""
    before, _, metrics = base()
    batch, params = joint.batch(), before.params
    model = rebuild(joint.model(), params)
    features = model.encode(batch.frames)
    hidden = model.hidden(features, batch, tap=2)
    states = np.asarray(hidden.tap), np.asarray(model.visual_hidden(gather_slots(features, batch.source), batch, layers=2))
    tokens_per_slot = states[0].shape[1] // batch.slots.shape[-1]

    def unit(x):
        return x / np.linalg.norm(x)

    def head(side, x):
        h = x @ params[f"heads.{side}.0.kernel"] + params[f"heads.{side}.0.bias"]
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        return unit(h @ params[f"heads.{side}.1.kernel"] + params[f"heads.{side}.1.bias"])

    def pooled(stream, b, slots):
        tokens = [s * tokens_per_slot + i for s in slots for i in range(tokens_per_slot)]
        return head("visual", states[stream][b, tokens].mean(axis=0))

    shown = {(b, j): np.flatnonzero(m) for b, row in enumerate(batch.slots) for j, m in enumerate(row) if m.any()}
    assert len(shown) == metrics["contrast/keywords"] == 11
    text = {
        (b, j): head("text", np.mean([params["decoder.embed"][t] for t in batch.keywords[b, j] if t >= 0], axis=0))
        if (batch.keywords[b, j] >= 0).any()
        else head("text", np.zeros(WIDTH))
        for b, j in shown
    }
    total = clean = degraded = retrieved = windows = 0.0
    for (b, j), slots in shown.items():
        z, e = pooled(0, b, slots), text[b, j]
        others = [
            z @ text[other] for other in shown if other[0] != b and batch.lemma[other] != batch.lemma[b, j]
        ]
        marked = set(np.flatnonzero(batch.slots[b].any(0)))
        runs = [range(i, i + len(slots)) for i in range(0, batch.slot_valid[b].sum() - len(slots) + 1, len(slots))]
        elsewhere = [pooled(0, b, run) @ e for run in runs if not marked & set(run)]
        windows += len(elsewhere)
        scores = np.array([z @ e, pooled(1, b, slots) @ e, *others, *elsewhere])
        total += np.log(np.exp(scores / 0.07).sum()) - scores[0] / 0.07
        clean, degraded, retrieved = clean + scores[0], degraded + scores[1], retrieved + (z @ e > max(others))
    assert windows > 11

    logits = np.concatenate([np.asarray(hidden.last)[:, None], np.asarray(hidden.suffix)[:, 0, :-1]], axis=1)
    logits = logits.astype(np.float64) @ params["decoder.lm_head"].T
    chosen = np.take_along_axis(logits, batch.suffix[..., None], axis=-1)[..., 0]
    lm = -(chosen - np.log(np.exp(logits).sum(-1)))[batch.target].mean()

    expected = {
        "loss": lm + 0.1 * total / 11,
        "loss/lm": lm,
        "loss/contrast": total / 11,
        "contrast/clean": clean / 11,
        "contrast/degraded": degraded / 11,
        "contrast/gap": (clean - degraded) / 11,
        "contrast/retrieval@1": retrieved / 11,
        "contrast/tau": 0.07,
        "contrast/lambda": 0.1,
    }
    # Scores are divided by tau: 1e-5.
    assert metrics == pytest.approx(metrics | expected, rel=0, abs=1e-5)
    norm = np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in gradient(*base()[:2]).values()))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert metrics["tokens"] == batch.prompt_valid.sum() + batch.target.sum()


@pytest.mark.parametrize("count", [2, 4])
def test_accumulation_is_exact(count):
    """Rows have 1 to 6 targets and 0 to 2 keywords, so means of micro-batches' means would differ."""
    batch = joint.batch()
    for values in (batch.target.sum(1), batch.slots.any(-1).sum(1)):
        assert len({values[i::count].sum() for i in range(count)}) > 1
    before, after, metrics = joint.run(joint.config(accumulate=count), batch, tx=DESCENT)
    assert metrics == pytest.approx(base()[2], rel=1e-5, abs=TOLERANCE)
    expected = gradient(*base()[:2])
    for path, ours in gradient(before, after).items():
        scale = max(1.0, np.abs(expected[path]).max())
        np.testing.assert_allclose(ours, expected[path], rtol=0, atol=TOLERANCE * scale, err_msg=path)


def test_contrast_does_not_see_the_answer():
    """Other answers change nothing; and of the tokens, only those before the video have a gradient."""
    batch, params, config = joint.batch(), parameters(), joint.config()
    other = dataclasses.replace(batch, suffix=(batch.suffix + 7) % tiny.TEXT_IDS)
    value = jax.jit(functools.partial(contrast_loss, config=config))
    assert value(params, batch) == value(params, other)

    embed = jax.jit(jax.grad(value))(params, batch)["decoder.embed"]
    seen = {int(t) for b, row in enumerate(batch.prompt) for t in row[: batch.visual[b, 0]]}
    assert set(np.flatnonzero(np.abs(embed).max(axis=1))) == seen - {tiny.VIDEO}
    assert np.abs(gradient(*base()[:2])["decoder.embed"][batch.suffix[:, 0]]).min(axis=0).max() > 0  # L_lm's does


def test_keywords_give_no_gradient_to_embeddings():
    batch, params = joint.batch(), parameters()
    assert not set(batch.keywords[batch.keywords >= 0]) <= set(batch.prompt.ravel()) | set(batch.suffix.ravel())
    before, after, _ = base()
    moved = set(np.flatnonzero(np.abs(gradient(before, after)["decoder.embed"]).max(axis=1)))
    assert moved <= set(batch.prompt.ravel()) | set(batch.suffix.ravel())
    assert all(np.any(gradient(before, after)[path]) for path in params if path.startswith("heads.text"))


def test_without_keywords_the_contrast_is_zero():
    batch = joint.batch()
    for masked in (
        dataclasses.replace(batch, slots=np.zeros_like(batch.slots)),
        dataclasses.replace(batch, source=np.tile(np.arange(5, dtype=np.int32), (8, 1))),
    ):
        value, gradients = jax.jit(jax.value_and_grad(functools.partial(contrast_loss, config=joint.config())))(
            parameters(), masked
        )
        assert value == 0
        for path, x in gradients.items():
            assert not np.any(x), path  # also not NaN


def test_a_batch_of_text_alone():
    batch = tiny.batch([tiny.Row(before=n) for n in (3, 5, 4, 4)], suffix=6)
    slots = np.zeros((4, 2, 0), bool)
    batch = dataclasses.replace(batch, slots=slots, keywords=np.full((4, 2, 3), -1), lemma=np.full((4, 2), -1))
    _, after, metrics = joint.run(joint.config(), batch, tx=DESCENT)
    assert metrics["nonfinite"] == metrics["loss/contrast"] == metrics["contrast/keywords"] == 0
    assert metrics["loss"] == metrics["loss/lm"] > 0


def flops(jaxpr):
    """Floating-point operations of all matrix products of a jaxpr, scanned bodies as often as they run."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            size = np.prod([eqn.invars[0].aval.shape[d] for d in contracted])
            total += int(2 * eqn.outvars[0].aval.size * size)
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        inner = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"))
        parts = [flops(getattr(x, "jaxpr", x)) for x in inner if hasattr(x, "eqns") or hasattr(x, "jaxpr")]
        total += times * (max(parts, default=0) if eqn.primitive.name == "cond" else sum(parts))
    return total


def step_flops(**fields):
    state, step = joint.setup(joint.config(**fields), tx=DESCENT)
    return flops(step.trace(state, joint.batch()).jaxpr)


def layer_flops(tokens):
    """One decoder layer forward on ``tokens`` of one row."""
    c = joint.MODEL.decoder
    projections = c.hidden * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.hidden * c.intermediate
    return 2 * tokens * projections + 2 * 2 * tokens**2 * c.heads * c.head_dim


def test_degraded_video_costs_the_lower_layers_only():
    """Through layer l, up to the last visual token, forward and backward (twice the forward): to the operation."""
    batch = joint.batch()
    rows, keywords, slots = batch.slots.shape
    end = batch.video_end
    assert end < batch.prompt.shape[1]
    extra = step_flops(contrast__negatives=("batch", "degraded")) - step_flops(contrast__negatives=("batch",))
    stream = 3 * rows * 2 * layer_flops(end)
    head = 3 * rows * keywords * 2 * (WIDTH * E + E * E)
    pooling = 2 * rows * keywords * slots * 2 * WIDTH
    assert extra == stream + head + pooling


def test_no_weight_no_contrast():
    """Nothing is computed for it: with a weight of 0 the step costs what the language model's loss does."""
    state, step = joint.setup(joint.config(contrast__weight=0.0), tx=DESCENT)
    batch = joint.batch()
    model = joint.model()

    def loss(params):
        m = rebuild(model, params)
        hidden = m.hidden(m.encode(batch.frames), batch)
        return sft.token_logprobs(hidden.last, hidden.suffix, m.unembed, batch.suffix[:, None], chunk=8).sum()

    assert flops(step.trace(state, batch).jaxpr) == flops(jax.make_jaxpr(jax.grad(loss))(state.params).jaxpr)
    assert not any(path.startswith(sft.HEADS) for path in state.params)
    assert "loss/contrast" not in jax.eval_shape(step, state, batch)[1]


def test_frozen_parts_have_no_backward_and_no_slots_and_do_not_change():
    freeze = ("vision.*", "decoder.embed")
    config = joint.config(optim__freeze=freeze)
    before, after, metrics = joint.run(config, joint.batch())
    frozen = {path for path in parameters() if path.startswith("vision.")} | {"decoder.embed"}
    assert set(after.frozen) == frozen and set(after.params) == set(parameters()) - frozen
    for path in frozen:
        np.testing.assert_array_equal(after.frozen[path], parameters()[path])
    moments = [x for x in jax.tree.leaves(after.opt, is_leaf=lambda x: isinstance(x, dict)) if isinstance(x, dict)]
    assert len(moments) == 2 and all(set(m) == set(after.params) for m in moments)
    assert all(np.any(before.params[path] != after.params[path]) for path in after.params)
    assert metrics["nonfinite"] == 0

    batch = joint.batch()
    vision = flops(jax.make_jaxpr(lambda p, f: rebuild(joint.model(), p).encode(f))(parameters(), batch.frames).jaxpr)
    pixels = batch.frames.shape[1] // 2 * np.prod(batch.frames.shape[2:4]) // 14**2 * 14**2 * 6 * 16
    first = 2 * len(batch.frames) * int(pixels)  # pixels need no gradient
    assert step_flops() - step_flops(optim__freeze=freeze) == 2 * vision - first


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_an_update_that_is_not_finite_is_skipped(broken):
    batch = joint.batch()
    state, step = joint.setup(joint.config())
    if broken == "loss":
        state.params["decoder.norm.scale"] = state.params["decoder.norm.scale"].at[0].set(jnp.inf)
    else:  # states of 1e30 against an unembedding of 1e-30: logits are as ever, the unembedding's gradient is not
        state.params["decoder.norm.scale"] *= 1e30
        state.params["decoder.lm_head"] *= 1e-30
    before = jax.tree.map(np.array, state)
    after, metrics = step(state, put_batch(batch, joint.ONE))
    assert np.isfinite(metrics["loss"]) == (broken == "gradient") and not np.isfinite(metrics["grad_norm"])
    assert metrics["nonfinite"] == after.skipped == after.step == 1
    for name in ("params", "frozen", "opt"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))

    if broken == "loss":  # and training goes on, with the schedule and the moments of a first update
        after.params["decoder.norm.scale"] = after.params["decoder.norm.scale"].at[0].set(1.0)
        after, metrics = step(after, put_batch(batch, joint.ONE))
        assert (int(after.step), int(after.skipped), float(metrics["nonfinite"])) == (2, 1, 0)
        assert np.any(after.params["decoder.lm_head"] != before.params["decoder.lm_head"])
        assert step._cache_size() == 1


def test_tau_stays_inside_its_range_and_can_come_back():
    """At its bound tau stops, with a gradient that can still move it the other way."""
    before, after, _ = base()
    slope = gradient(before, after)[sft.LOG_TAU]
    at_bound = joint.config(contrast__tau_range=(0.07, 0.5) if slope > 0 else (0.01, 0.07))
    before, after, metrics = joint.run(at_bound, joint.batch(), tx=DESCENT)
    assert abs(slope) > 0 and np.exp(after.params[sft.LOG_TAU]) == pytest.approx(0.07, rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(base()[2]["grad_norm"], rel=1e-5)


def test_bfloat16_compute_keeps_float32_where_it_matters():
    state, step = joint.setup(joint.config(dtype="bfloat16", optim__freeze=("vision.*",)), tx=DESCENT)
    assert {x.dtype.name for x in state.params.values()} == {"float32"}
    assert {x.dtype.name for x in state.frozen.values()} == {"bfloat16"}
    after, metrics = jax.eval_shape(step, state, joint.batch())
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    assert {x.dtype.name for x in metrics.values()} == {"float32"}


def test_the_warm_up_of_the_contrast():
    config = joint.config(contrast__warmup_share=0.4)  # 4 of 10 steps
    state, step = joint.setup(config, tx=DESCENT)
    sizes = []
    for start in (0, 1, 4, 9):
        shifted = dataclasses.replace(jax.tree.map(jnp.array, state), step=jnp.int32(start))
        sizes.append(float(step(shifted, joint.batch())[1]["contrast/lambda"]))
    assert sizes == pytest.approx([0.0, 0.025, 0.1, 0.1])
