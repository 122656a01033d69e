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

from tests import batches, joint, tiny
from vpjax.hlo import flops
from vpjax.models import vision
from vpjax.models.sharding import put_batch
from vpjax.models.vlm import leaves, rebuild
from vpjax.training import sft

pytestmark = pytest.mark.slow

# float32 sums in another order; parameters and gradients are of order 1.
TOLERANCE = 2e-6
DESCENT = optax.sgd(1.0, momentum=0.9)  # its first update is the gradient
WIDTH, E = joint.MODEL.decoder.hidden, 16
CLIPS = joint.contents(16)
ROWS = [CLIPS[n : n + 2] for n in range(0, 16, 2)]


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


def changed(batch=None, params=(), **fields):
    """The same on another batch, or from a state with other fields; ``params`` are those that differ."""
    state, compiled, given = step()
    if batch is not None:
        given = put_batch(batch, joint.ONE)
    state = dataclasses.replace(state, params=state.params | dict(params), **fields)
    return joint.take(state, compiled, given)


def gradient(before, after):
    return {path: before.params[path] - after.params[path] for path in before.params}


def read_tokens(batch):
    """The ids of the text that the decoder reads."""
    return set(batch.text.tokens[(batch.text.segment > 0) & (batch.text.shows < 0)].tolist())


def test_loss_is_the_formula():
    """Means, windows, rivals and heads in loops over clips in NumPy, from the model's hidden states alone."""
    before, _, metrics = base()
    batch, params = joint.batch(), before.params

    @jax.jit
    def forward(model):
        features = model.encode(batch.video)
        text = model.states_after(features, batch.text, layers=2)
        degraded = model.states_after(features, batches.whole_degraded(batch), layers=2)
        last = model.states_after(features, batch.text, layers=joint.LAYERS)
        return text, degraded, model.decoder.norm(last)

    text_RTD, degraded_RTD, last_RTD = map(np.array, forward(rebuild(joint.model(), params)))

    def unit(x):
        return x / np.linalg.norm(x)

    def head(side, x):
        h = x @ params[f"heads.{side}.0.kernel"] + params[f"heads.{side}.0.bias"]
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        return unit(h @ params[f"heads.{side}.1.kernel"] + params[f"heads.{side}.1.bias"])

    keywords, answers = [], []  # (clip, lemma, e, z, z~, those of the windows); -log p
    for r, row in enumerate(ROWS):
        token = token_degraded = 0
        for clip in row:
            if clip.has_degraded:
                visual, slots = np.flatnonzero(clip.shows >= 0), len(clip.source)
                v_SMD = text_RTD[r, token + visual].reshape(slots, -1, WIDTH)
                degraded_SMD = degraded_RTD[r, token_degraded + visual].reshape(slots, -1, WIDTH)
                token_degraded += visual[-1] + 1
                for ids, lemma, marked in zip(clip.keywords, clip.lemma, clip.marked, strict=True):
                    e = head("text", np.mean([params["decoder.embed"][t] for t in ids if t >= 0], axis=0))
                    pooled = [head("visual", x[marked].mean((0, 1))) for x in (v_SMD, degraded_SMD)]
                    length = marked.sum()
                    runs = [range(i, i + length) for i in range(0, slots - length + 1, length)]
                    runs = [run for run in runs if not clip.marked[:, run].any()]
                    elsewhere = [head("visual", v_SMD[run].mean((0, 1))) for run in runs]
                    keywords.append((clip.number, lemma, e, *pooled, elsewhere))
            for c, target in enumerate(clip.answer):
                before_target = last_RTD[r, token + len(clip.prompt) + c - 1].astype(np.float64)
                logits = params["decoder.lm_head"] @ before_target
                answers.append(np.log(np.exp(logits).sum()) - logits[target])
            token += len(clip.prompt) + len(clip.answer)
    assert len(keywords) == metrics["contrast/keywords"] == 12
    assert sum(len(elsewhere) for *_, elsewhere in keywords) > 12

    total = clean = degraded = retrieved = 0.0
    for number, lemma, e, z, z_degraded, elsewhere in keywords:
        rivals = [z @ other[2] for other in keywords if other[0] != number and other[1] != lemma]
        scores = np.array([z @ e, z_degraded @ e, *rivals, *(window @ e for window in elsewhere)])
        total += np.log(np.exp(scores / 0.07).sum()) - scores[0] / 0.07
        clean, degraded = clean + scores[0], degraded + scores[1]
        retrieved += scores[0] > max(rivals)
    expected = {
        "loss": np.mean(answers) + 0.1 * total / 12,
        "loss/lm": np.mean(answers),
        "loss/contrast": total / 12,
        "contrast/clean": clean / 12,
        "contrast/degraded": degraded / 12,
        "contrast/gap": (clean - degraded) / 12,
        "contrast/retrieval@1": retrieved / 12,
        "contrast/tau": 0.07,
        "contrast/lambda": 0.1,
    }
    # Scores are divided by tau: 1e-5.
    assert metrics == pytest.approx(metrics | expected, rel=0, abs=1e-5)
    norm = np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in gradient(*base()[:2]).values()))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert metrics["tokens"] == sum(len(clip.prompt) + len(clip.answer) for clip in CLIPS)


@pytest.mark.parametrize(("accumulate", "remat", "chunk"), [(2, "layers", vision.CHUNK), (4, "products", 18)])
def test_memory_options_are_exact(accumulate, remat, chunk, monkeypatch):
    """Micro-batches, layers that are computed again, and a tower that sees two blocks or one bin at a time.
    Rows differ in targets and keywords, so means of micro-batches' means would differ."""
    batch = joint.batch()
    for values in ((batch.target >= 0).sum(1), (batch.lemma >= 0).sum(1)):
        assert len({values[i::accumulate].sum() for i in range(accumulate)}) > 1
    monkeypatch.setattr(vision, "CHUNK", chunk)
    before, after, metrics = joint.take(*step(accumulate=accumulate, remat=remat))
    assert metrics == pytest.approx(base()[2], rel=1e-5, abs=TOLERANCE)
    expected = gradient(*base()[:2])
    for path, ours in gradient(before, after).items():
        scale = max(1.0, np.abs(expected[path]).max())
        np.testing.assert_allclose(ours, expected[path], rtol=0, atol=TOLERANCE * scale, err_msg=path)


def test_the_loss_of_each_data_set():
    """Their means weighted by tokens are the whole loss; NaN stands for a data set of which the batch has
    nothing, in no micro-batch alone."""
    names = ("events", "general", "empty")
    config = joint.config(accumulate=2, contrast__weight=0.0)
    with config.unlocked(), config.ignore_type():
        config.data.train = tuple(dict(file=f"{name}.jsonl") for name in names)
    rows = [[dataclasses.replace(clip, data_set=clip.number % 3 == 0) for clip in row] for row in ROWS]
    _, _, metrics = joint.run(config, joint.packed(rows), tx=DESCENT)
    assert metrics["nonfinite"] == 0 and np.isnan(metrics["loss/lm/empty"])

    def loss_of(kept):
        """From the step of one data set, with the other targets left out."""
        batch = joint.packed(rows)
        target = np.where(np.isin(batch.origin, kept), batch.target, -1)
        return changed(dataclasses.replace(batch, target=target, origin=np.where(target < 0, -1, 0)))[2]

    tokens = [sum(len(clip.answer) for row in rows for clip in row if clip.data_set == n) for n in (0, 1)]
    mean = np.average([metrics[f"loss/lm/{name}"] for name in names[:2]], weights=tokens)
    assert metrics["loss/lm"] == pytest.approx(mean, rel=1e-6)
    for number, name in enumerate(names[:2]):
        assert metrics[f"loss/lm/{name}"] == pytest.approx(loss_of([number])["loss/lm"], rel=1e-6)
    assert metrics["loss/lm"] == pytest.approx(base()[2]["loss/lm"], rel=1e-6)
    assert not any(name.startswith("loss/lm/") for name in base()[2])


def test_contrast_does_not_see_the_answer():
    """Other answers change nothing; and of the tokens, only those before the video have a gradient."""
    batch, answers = joint.batch(), joint.batch()
    for tokens, target in zip(answers.text.tokens, answers.target, strict=True):
        tokens[target[target >= 0]] = (tokens[target[target >= 0]] + 7) % tiny.TEXT_IDS
    _, _, metrics = changed(answers)
    assert metrics["loss/lm"] != base()[2]["loss/lm"]
    for name in ("loss/contrast", "contrast/clean", "contrast/degraded"):
        assert metrics[name] == base()[2][name], name

    no_target = np.full_like(batch.target, -1)  # leaves the contrast alone
    before, after, _ = changed(dataclasses.replace(batch, target=no_target, origin=no_target))
    moved = np.flatnonzero(np.abs(gradient(before, after)["decoder.embed"]).max(axis=1))
    shown = [clip for clip in CLIPS if clip.has_degraded and len(clip.marked)]
    before_video = {int(t) for clip in shown for t in clip.prompt[: (clip.shows >= 0).argmax()]}
    assert set(moved.tolist()) == before_video


def test_neither_keywords_nor_padding_give_a_gradient_to_embeddings():
    batch = joint.batch()
    read = read_tokens(batch)
    assert not set(batch.keywords[batch.keywords >= 0]) <= read
    assert not set(batch.text.tokens[batch.text.segment == 0].tolist()) <= read
    moved = gradient(*base()[:2])
    assert set(np.flatnonzero(np.abs(moved["decoder.embed"]).max(axis=1))) <= read
    assert all(np.any(moved[path]) for path in moved if path.startswith("heads.text"))


def without_slots(clip):
    return dataclasses.replace(clip, marked=np.zeros_like(clip.marked))


def without_degraded(clip):
    return dataclasses.replace(clip, source=np.arange(len(clip.source), dtype=np.int32))


@pytest.mark.parametrize("change", [without_slots, without_degraded])
def test_clips_without_a_degraded_video_are_masked(change):
    """Nothing left: the contrast is 0, and its heads have a gradient of 0, not NaN."""
    before, after, metrics = changed(joint.packed([[change(clip) for clip in row] for row in ROWS]))
    assert metrics["nonfinite"] == metrics["loss/contrast"] == metrics["contrast/keywords"] == 0
    assert metrics["loss"] == metrics["loss/lm"] == base()[2]["loss/lm"]
    for path, x in gradient(before, after).items():
        assert np.any(x) != path.startswith(sft.HEADS_PREFIX), path


def test_videos_without_keywords():
    """In a run in which no clip has any, rows have no room for them, for windows and for V~."""
    batch = joint.packed([[without_degraded(clip) for clip in row] for row in ROWS])
    names = ("keywords", "lemma", "owner", "slots", "has_degraded", "windows")
    batch = dataclasses.replace(
        batch,
        degraded=jax.tree.map(lambda x: x[..., :0], batch.degraded),
        **{name: getattr(batch, name)[:, :0] for name in names},
    )
    _, after, metrics = joint.run(joint.config(), batch, tx=DESCENT)
    assert metrics["nonfinite"] == metrics["loss/contrast"] == metrics["contrast/keywords"] == 0
    assert metrics["loss"] == pytest.approx(base()[2]["loss/lm"], rel=1e-6)
    assert set(metrics) == set(base()[2])
    assert all(np.isfinite(x).all() for x in after.params.values())


def test_text_alone():
    """In a run with videos, and in a run without any, whose rows have no units."""
    clips = batches.contents([batches.Clip(before=1 + n, answer=3) for n in range(8)])
    clips = [dataclasses.replace(clip, keywords=np.zeros((0, 3), np.int32)) for clip in clips]
    rows = [[clip] for clip in clips]
    bare = batches.packed(rows, joint.MODEL.vision)
    assert bare.video.count == bare.slots.shape[-1] == bare.windows.shape[1] == 0
    results = changed(joint.packed(rows)), joint.run(joint.config(), bare, tx=DESCENT)
    for _, _, metrics in results:
        assert metrics["nonfinite"] == metrics["loss/contrast"] == metrics["contrast/keywords"] == 0
        assert metrics["loss"] == metrics["loss/lm"] > 0
    (_, padded, metrics), (_, after, expected) = results
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    for path, x in after.params.items():
        np.testing.assert_allclose(padded.params[path], x, rtol=0, atol=TOLERANCE, err_msg=path)
        assert np.any(x != base()[0].params[path]) == path.startswith("decoder."), path


def step_flops(**fields):
    state, step = joint.setup(joint.config(**fields), tx=DESCENT)
    return flops(step.trace(state, joint.batch()).jaxpr)


def layer_flops(tokens, keys):
    """One decoder layer forward on ``tokens`` of one row, which attend to so many keys."""
    c = joint.MODEL.decoder
    projections = c.hidden * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.hidden * c.intermediate
    return 2 * tokens * projections + 2 * 2 * tokens * keys * c.heads * c.head_dim


def test_degraded_video_costs_the_lower_layers_only():
    """Its tokens go through l layers, forward and backward (twice that): to the operation. They are those
    from the first replaced slot on, and attend to V's tokens and their own."""
    batch = joint.batch()
    rows, keywords, slots = batch.slots.shape
    tokens = batch.degraded.tokens.shape[1]
    assert tokens < batch.text.tokens.shape[1]
    extra = step_flops(contrast__negatives=("batch", "degraded")) - step_flops(contrast__negatives=("batch",))
    stream = 3 * rows * 2 * layer_flops(tokens, batch.text.tokens.shape[1] + tokens)
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
        hidden = m.hidden(m.encode(batch.video), batch.text, batch.target)
        targets = np.take_along_axis(batch.text.tokens, batch.target, axis=1)
        return sft.token_logprobs(hidden.target[:, None], m.unembed, targets[:, None], chunk=12).sum()

    assert flops(step.trace(state, batch).jaxpr) == flops(jax.make_jaxpr(jax.grad(loss))(state.params).jaxpr)
    assert not any(path.startswith(sft.HEADS_PREFIX) for path in state.params)
    assert "loss/contrast" not in jax.eval_shape(step, state, batch)[1]


def test_frozen_parts_have_no_backward_and_no_moments_and_do_not_change():
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
    encode = jax.make_jaxpr(lambda model, units: model.encode(units).tokens)(joint.model(), batch.video)
    first = 2 * batch.video.pixels.size * joint.MODEL.vision.hidden  # pixels need no gradient
    assert step_flops() - step_flops(optim__freeze=freeze) == 2 * flops(encode.jaxpr) - first


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
    shapes = dataclasses.replace(joint.MODEL, decoder=dataclasses.replace(joint.MODEL.decoder, vocab=65536))
    batch = joint.batch(answer=96)
    logits = batch.target.size * 65536

    def traced(chunk):
        config = joint.config(loss__chunk=chunk, contrast__weight=0.0)
        state, step = joint.setup(config, tx=DESCENT, shapes=shapes)
        return step.trace(state, batch)

    chunked = traced(chunk=2)
    held = chunked.lower().compile().memory_analysis().temp_size_in_bytes
    assert held < 4 * logits / 2
    assert joint.largest(chunked.jaxpr) < logits / 4
    assert joint.largest(traced(chunk=batch.target.shape[1]).jaxpr) >= logits
