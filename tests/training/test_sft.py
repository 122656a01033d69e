"""The SFT step: the joint loss is that of docs/method.md, section 2, its cost lies where it should, and
micro-batches add up.

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
from vpjax.hlo import flops
from vpjax.models.sharding import put_batch
from vpjax.models.vlm import gather_slots, leaves, rebuild
from vpjax.training import sft

pytestmark = pytest.mark.slow

# float32 sums in another order; parameters and gradients are of order 1.
TOLERANCE = 2e-6
DESCENT = optax.sgd(1.0, momentum=0.9)  # its first update is the gradient
WIDTH, E = joint.MODEL.decoder.hidden, 16


@functools.cache
def step(**fields):
    """(state, step, batch): the step of most tests, with the contrast at full weight from step 4 on."""
    config = joint.config(contrast__warmup_share=0.4, **fields)
    state, compiled, batch = joint.compiled(config, joint.batch(), tx=DESCENT)
    return dataclasses.replace(state, step=jnp.int32(4)), compiled, batch


@functools.cache
def base():
    """(state before, state after, metrics) of it."""
    return joint.take(*step())


def changed(**fields):
    """The same from a state or a batch with other fields; ``params`` are those that differ."""
    state, compiled, batch = step()
    params = state.params | fields.pop("params", {})
    batch_fields = {name: fields.pop(name) for name in list(fields) if hasattr(batch, name)}
    batch = put_batch(dataclasses.replace(joint.batch(), **batch_fields), joint.ONE)
    return joint.take(dataclasses.replace(state, params=params, **fields), compiled, batch)


def gradient(before, after):
    return {path: before.params[path] - after.params[path] for path in before.params}


def test_loss_is_the_formula():
    """Means, windows, rivals and heads in loops over NumPy arrays, from the model's hidden states alone."""
    before, _, metrics = base()
    batch, params = joint.batch(), before.params

    @jax.jit
    def forward(model):
        features = model.encode(batch.frames)
        degraded = model.visual_hidden(gather_slots(features, batch.source), batch, layers=2)
        return model.hidden(features, batch, tap=2), degraded

    hidden, degraded_tap = jax.tree.map(np.array, forward(rebuild(joint.model(), params)))
    states = hidden.tap, degraded_tap
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

    slots_of = {
        (b, j): np.flatnonzero(m) for b, row in enumerate(batch.slots) for j, m in enumerate(row) if m.any()
    }
    assert len(slots_of) == metrics["contrast/keywords"] == 11
    embeddings = {at: [params["decoder.embed"][t] for t in batch.keywords[at] if t >= 0] for at in slots_of}
    text = {at: head("text", np.mean(tokens, axis=0)) for at, tokens in embeddings.items()}
    total = clean = degraded = retrieved = windows = 0.0
    for (b, j), slots in slots_of.items():
        z, e = pooled(0, b, slots), text[b, j]
        others = [
            z @ text[other] for other in slots_of if other[0] != b and batch.lemma[other] != batch.lemma[b, j]
        ]
        marked = set(np.flatnonzero(batch.slots[b].any(0)))
        runs = [
            range(i, i + len(slots)) for i in range(0, batch.slot_valid[b].sum() - len(slots) + 1, len(slots))
        ]
        elsewhere = [pooled(0, b, run) @ e for run in runs if not marked & set(run)]
        windows += len(elsewhere)
        scores = np.array([z @ e, pooled(1, b, slots) @ e, *others, *elsewhere])
        total += np.log(np.exp(scores / 0.07).sum()) - scores[0] / 0.07
        clean, degraded, retrieved = (
            clean + scores[0],
            degraded + scores[1],
            retrieved + (z @ e > max(others)),
        )
    assert windows > 11

    logits = np.concatenate([hidden.last[:, None], hidden.suffix[:, 0, :-1]], axis=1)
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


def test_accumulation_is_exact():
    """Rows have 1 to 6 targets and 0 to 2 keywords, so means of micro-batches' means would differ."""
    batch = joint.batch()
    for values in (batch.target.sum(1), batch.slots.any(-1).sum(1)):
        assert len({values[i::4].sum() for i in range(4)}) > 1
    before, after, metrics = joint.take(*step(accumulate=4))
    assert metrics == pytest.approx(base()[2], rel=1e-5, abs=TOLERANCE)
    expected = gradient(*base()[:2])
    for path, ours in gradient(before, after).items():
        scale = max(1.0, np.abs(expected[path]).max())
        np.testing.assert_allclose(ours, expected[path], rtol=0, atol=TOLERANCE * scale, err_msg=path)


def test_contrast_does_not_see_the_answer():
    """Other answers change nothing; and of the tokens, only those before the video have a gradient."""
    batch = joint.batch()
    _, _, metrics = changed(suffix=(batch.suffix + 7) % tiny.TEXT_IDS)
    assert metrics["loss/lm"] != base()[2]["loss/lm"]
    for name in ("loss/contrast", "contrast/clean", "contrast/degraded"):
        assert metrics[name] == base()[2][name], name

    before, after, _ = changed(target=np.zeros_like(batch.target))  # leaves the contrast alone
    moved = np.flatnonzero(np.abs(gradient(before, after)["decoder.embed"]).max(axis=1))
    rows = np.flatnonzero(batch.slots.any(axis=(1, 2)))
    before_video = {int(token) for b in rows for token in batch.prompt[b, : batch.visual[b, 0]]}
    assert set(moved.tolist()) == before_video


def test_keywords_give_no_gradient_to_embeddings():
    batch = joint.batch()
    read = set(batch.prompt.ravel()) | set(batch.suffix.ravel())
    assert not set(batch.keywords[batch.keywords >= 0]) <= read
    moved = gradient(*base()[:2])
    assert set(np.flatnonzero(np.abs(moved["decoder.embed"]).max(axis=1))) <= read
    assert all(np.any(moved[path]) for path in moved if path.startswith("heads.text"))


@pytest.mark.parametrize("without", ["keywords", "degraded video"])
def test_rows_without_a_degraded_video_are_masked(without):
    """Nothing left: the contrast is 0, and its heads have a gradient of 0, not NaN."""
    if without == "keywords":
        before, after, metrics = changed(slots=np.zeros_like(joint.batch().slots))
    else:
        before, after, metrics = changed(source=np.tile(np.arange(5, dtype=np.int32), (8, 1)))
    assert metrics["nonfinite"] == metrics["loss/contrast"] == metrics["contrast/keywords"] == 0
    assert metrics["loss"] == metrics["loss/lm"] == base()[2]["loss/lm"]
    for path, x in gradient(before, after).items():
        assert np.any(x) != path.startswith(sft.HEADS_PREFIX), path


def test_a_batch_of_text_alone():
    batch = tiny.batch([tiny.Row(before=n) for n in (3, 5, 4, 4)], suffix=6)
    slots = np.zeros((4, 2, 0), bool)
    batch = dataclasses.replace(
        batch, slots=slots, keywords=np.full((4, 2, 3), -1), lemma=np.full((4, 2), -1)
    )
    _, after, metrics = joint.run(joint.config(), batch, tx=DESCENT)
    assert metrics["nonfinite"] == metrics["loss/contrast"] == metrics["contrast/keywords"] == 0
    assert metrics["loss"] == metrics["loss/lm"] > 0


def step_flops(**fields):
    state, step = joint.setup(joint.config(**fields), tx=DESCENT)
    return flops(step.trace(state, joint.batch()).jaxpr)


def layer_flops(tokens):
    """One decoder layer forward on ``tokens`` of one row."""
    c = joint.MODEL.decoder
    projections = c.hidden * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.hidden * c.intermediate
    return 2 * tokens * projections + 2 * 2 * tokens**2 * c.heads * c.head_dim


def test_degraded_video_costs_the_lower_layers_only():
    """Through layer l, up to the last visual token, forward and backward (twice that): to the operation."""
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
    assert not any(path.startswith(sft.HEADS_PREFIX) for path in state.params)
    assert "loss/contrast" not in jax.eval_shape(step, state, batch)[1]


def test_frozen_parts_have_no_backward_and_no_slots_and_do_not_change():
    freeze = ("vision.*", "decoder.embed")
    config = joint.config(optim__freeze=freeze)
    before, after, metrics = joint.run(config, joint.batch(), tx=DESCENT)
    params = leaves(joint.model())
    frozen = {path for path in params if path.startswith("vision.")} | {"decoder.embed"}
    assert set(after.frozen) == frozen and set(params) - frozen < set(after.params)
    for path in frozen:
        np.testing.assert_array_equal(after.frozen[path], params[path])
    moments = [
        x for x in jax.tree.leaves(after.opt, is_leaf=lambda x: isinstance(x, dict)) if isinstance(x, dict)
    ]
    assert len(moments) == 1 and set(moments[0]) == set(after.params)
    assert all(np.any(before.params[path] != after.params[path]) for path in after.params)
    assert metrics["nonfinite"] == 0

    batch = joint.batch()
    vision = flops(
        jax.make_jaxpr(lambda model, frames: model.encode(frames))(joint.model(), batch.frames).jaxpr
    )
    pixels = batch.frames.shape[1] // 2 * np.prod(batch.frames.shape[2:4]) // 14**2 * 14**2 * 6 * 16
    first = 2 * len(batch.frames) * int(pixels)  # pixels need no gradient
    assert step_flops() - step_flops(optim__freeze=freeze) == 2 * vision - first


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_an_update_that_is_not_finite_is_skipped(broken):
    scale, head = (step()[0].params[f"decoder.{name}"] for name in ("norm.scale", "lm_head"))
    if broken == "loss":
        params = {"decoder.norm.scale": scale.at[0].set(jnp.inf)}
    else:  # states of 1e30 against an unembedding of 1e-30: logits as ever, but the unembedding's gradient
        params = {"decoder.norm.scale": scale * 1e30, "decoder.lm_head": head * 1e-30}
    before, after, metrics = changed(params=params)
    assert np.isfinite(metrics["loss"]) == (broken == "gradient") and not np.isfinite(metrics["grad_norm"])
    assert (metrics["nonfinite"], after.skipped, after.step) == (1, 1, 5)
    for name in ("params", "frozen", "opt"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    assert base()[1].skipped == 0


def test_tau_stays_inside_its_range_and_can_come_back():
    """Untrained, frames fit no keyword and the loss wants tau to grow: its gradient lets it leave the lower
    bound, and at the upper it stays."""
    low, high = np.log(np.float32(joint.config().contrast.tau_range))
    tau = {start: changed(params={sft.LOG_TAU: jnp.array(start)})[1] for start in (low, high)}
    assert low < tau[low].params[sft.LOG_TAU] <= high
    assert tau[high].params[sft.LOG_TAU] == pytest.approx(high, rel=1e-6)
    assert tau[high].opt[0].trace[sft.LOG_TAU] < 0  # outwards, and not cut off


def test_bfloat16_compute_keeps_float32_where_it_matters():
    state, step = joint.setup(joint.config(dtype="bfloat16", optim__freeze=("vision.*",)), tx=DESCENT)
    assert {x.dtype.name for x in state.params.values()} == {"float32"}
    assert {x.dtype.name for x in state.frozen.values()} == {"bfloat16"}
    after, metrics = jax.eval_shape(step, state, joint.batch())
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    assert {x.dtype.name for x in metrics.values()} == {"float32"}


def test_the_warm_up_of_the_contrast():
    """4 of 10 steps."""
    weights = [changed(step=jnp.int32(at))[2]["contrast/lambda"] for at in (0, 1, 4, 9)]
    assert weights == pytest.approx([0.0, 0.025, 0.1, 0.1])


def test_memory_does_not_hold_all_logits():
    """Of the compiled step; nor is any array as large among those that it computes."""
    shapes = dataclasses.replace(joint.MODEL, decoder=dataclasses.replace(joint.MODEL.decoder, vocab=32768))
    batch = joint.batch(suffix=96)
    logits = batch.suffix.size * 32768

    def traced(chunk):
        config = joint.config(loss__chunk=chunk, contrast__weight=0.0)
        state, step = joint.setup(config, tx=DESCENT, shapes=shapes)
        return step.trace(state, batch)

    chunked = traced(chunk=2)
    held = chunked.lower().compile().memory_analysis().temp_size_in_bytes
    assert held < 4 * logits / 2
    assert joint.largest(chunked.jaxpr) < logits / 4
    assert joint.largest(traced(chunk=96).jaxpr) >= logits
