"""The losses against numbers worked by hand and loops in NumPy, float64.

Both sides sum a few hundred float32 numbers of order 1: they agree to about 1e-6. The tolerance is 1e-5.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests import joint
from tests.joint import mesh_of
from vpjax.hlo import collectives
from vpjax.models.sharding import batch_sharding, in_use
from vpjax.training import losses
from vpjax.training.losses import (
    NEGATIVES,
    Keywords,
    causal_lm,
    contrastive,
    keyword_windows,
    pool_slots,
    token_logprobs,
    unit,
)

TOLERANCE = 1e-5


def states(shape=(2, 3, 7), width=5, vocab=11, seed=0):
    """last, suffix, unembed, targets: random, G = 3."""
    rng = np.random.default_rng(seed)
    b, _, _ = shape
    arrays = [
        rng.standard_normal(size).astype(np.float32) for size in ((b, width), (*shape, width), (vocab, width))
    ]
    return *arrays, rng.integers(0, vocab, shape)


def reference_logprobs(last, suffix, unembed, targets):
    out = np.zeros(targets.shape)
    for b, g, c in np.ndindex(targets.shape):
        h = last[b] if c == 0 else suffix[b, g, c - 1]
        logits = unembed.astype(np.float64) @ h.astype(np.float64)
        out[b, g, c] = logits[targets[b, g, c]] - np.log(np.exp(logits).sum())
    return out


def test_logprobs_by_hand():
    # With an identity for unembedding, hidden states are logits; the last suffix state predicts nothing.
    last = jnp.log(jnp.array([[3.0, 1.0]]))
    suffix = jnp.log(jnp.array([[[[1.0, 4.0], [7.0, 9.0]]]]))
    out = token_logprobs(last, suffix, jnp.eye(2), jnp.array([[[0, 1]]]), chunk=8)
    np.testing.assert_allclose(np.exp(out), [[[3 / 4, 4 / 5]]], rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_logprobs_and_gradients_do_not_depend_on_chunks(chunk):
    last, suffix, unembed, targets = states()
    out = token_logprobs(last, suffix, unembed, targets, chunk=chunk)
    np.testing.assert_allclose(
        out, reference_logprobs(last, suffix, unembed, targets), rtol=0, atol=TOLERANCE
    )

    def plain(last, suffix, unembed):
        h = jnp.concatenate([jnp.tile(last[:, None, None], (1, 3, 1, 1)), suffix], axis=2)[:, :, :-1]
        return jax.nn.log_softmax(h @ unembed.T)[jnp.ix_(*map(jnp.arange, targets.shape)) + (targets,)]

    weights = np.random.default_rng(1).standard_normal(targets.shape)

    def weighted(function):
        return jax.grad(lambda *x: (weights * function(*x)).sum(), argnums=(0, 1, 2))(last, suffix, unembed)

    ours = weighted(lambda *x: token_logprobs(*x, targets, chunk=chunk))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE), ours, weighted(plain))


def test_logits_are_float32_where_states_are_not():
    last, suffix, unembed, targets = states(width=64)
    half = [x.astype(jnp.bfloat16) for x in (last, suffix, unembed)]
    out = token_logprobs(*half, targets, chunk=4)
    # Logits of about 8 rounded to bfloat16 would be off by up to 2e-2.
    exact = reference_logprobs(*(np.asarray(x, np.float32) for x in half), targets)
    np.testing.assert_allclose(out, exact, rtol=0, atol=10 * TOLERANCE)


def test_memory_does_not_hold_all_logits():
    """Neither what the compiled gradient allocates nor any array that it computes."""
    shapes = ((4, 16), (4, 1, 64, 16), (4096, 16))
    states = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    targets = np.zeros((4, 1, 64), np.int32)
    logits = targets.size * 4096

    def temporary(chunk):
        def loss(last, suffix, unembed):
            return token_logprobs(last, suffix, unembed, targets, chunk=chunk).sum()

        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*states)
        return traced.lower().compile().memory_analysis().temp_size_in_bytes, joint.largest(traced.jaxpr)

    held, largest = temporary(chunk=4)
    assert held < logits * 4 / 4 and largest < logits / 4
    held, largest = temporary(chunk=64)  # one chunk is everything: what is measured above can be seen
    assert held >= logits * 4 and largest >= logits


@pytest.mark.parametrize("vocab", [512, 508])  # the latter does not divide by 8
@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 4, 2)])
def test_on_a_mesh_states_travel_and_logits_do_not(sizes, vocab, monkeypatch):
    """The weights go to their part of the vocabulary once, before the chunks, in which nothing larger than
    the states of one travels. Where the vocabulary does not divide, the weights are gathered instead."""
    monkeypatch.setattr(losses, "platform", lambda: "tpu")
    shape, width = (8, 2, 16), 32
    *floats, targets = states(shape, width, vocab)
    mesh = mesh_of(*sizes)
    rows, split = batch_sharding(mesh), NamedSharding(mesh, P("tensor", "fsdp"))

    def loss(last, suffix, unembed):
        with in_use(mesh):
            return token_logprobs(last, suffix, unembed, targets, chunk=8).sum()

    def alone(last, suffix, unembed):
        return token_logprobs(last, suffix, unembed, targets, chunk=8).sum()

    arguments = [jax.device_put(x, where) for x, where in zip(floats, (rows, rows, split), strict=True)]
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), out_shardings=(rows, rows, split))
    program = gradient.lower(*arguments).compile()
    moved = collectives(program.as_text())
    weights, of_a_chunk = 4 * vocab * width, 4 * math.prod(shape) * width // 2
    assert of_a_chunk < weights < of_a_chunk // width * vocab  # the last: logits
    assert max(one.result for one in moved) <= weights
    if vocab % 8 == 0:
        assert max(one.result for one in moved if one.loops) <= of_a_chunk
    for ours, exact in zip(program(*arguments), jax.grad(alone, argnums=(0, 1, 2))(*floats), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=0, atol=TOLERANCE)


def test_causal_lm_by_hand():
    logprobs = jnp.log(jnp.array([[0.5, 0.25, 0.1], [0.125, 0.1, 0.1]]))
    total, count = causal_lm(logprobs, jnp.array([[True, True, False], [True, False, False]]))
    np.testing.assert_allclose(total, 6 * np.log(2), rtol=1e-6)
    assert count == 3


def keywords(e, lemma, clip, valid):
    return Keywords(jnp.array(e), jnp.array(lemma), jnp.array(clip), jnp.array(valid))


def test_contrastive_by_hand():
    # Clip 0 has one keyword. Of the others, clip 1's is a rival, clip 2's has the same lemma, clip 3's is not
    # valid and the last is of clip 0 itself. s(V, k) = .6; rivals: clip 1's 0, V~ .8, a window .96; the other
    # window does not exist.
    own = keywords([[0.6, 0.8]], [5], [0], [True])
    pool = keywords(
        [[0.6, 0.8], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]],
        [5, 6, 5, 6, 7],
        [0, 1, 2, 3, 0],
        [True, True, True, False, True],
    )
    z, degraded = jnp.array([[[1.0, 0.0]]]), jnp.array([[[0.0, 1.0]]])
    windows, exists = jnp.array([[[[0.8, 0.6], [0.6, 0.8]]]]), jnp.array([[[True, False]]])
    out = contrastive(z, degraded, windows, exists, own, pool, 0.5)
    # exp(1.2) / (exp(1.2) + exp(0) + exp(1.6) + exp(1.92)) = 3.320117 / 16.094107
    np.testing.assert_allclose(out.loss, np.log(16.094107 / 3.320117), rtol=1e-6)
    np.testing.assert_allclose([out.clean, out.degraded], [0.6, 0.8], rtol=1e-6)
    assert (out.retrieved, out.keywords) == (1, 1)


def contrast_case(clips=5, per_clip=3, slots=6, width=4, seed=0):
    rng = np.random.default_rng(seed)

    def vectors(*shape):
        return np.asarray(unit(rng.standard_normal((*shape, width))))

    own = keywords(
        vectors(clips * per_clip),
        rng.integers(0, 3, clips * per_clip),
        np.repeat(np.arange(clips), per_clip),
        rng.random(clips * per_clip) < 0.7,
    )
    shape = (clips, per_clip)
    exists = rng.random((*shape, slots)) < 0.5
    return vectors(*shape), vectors(*shape), vectors(*shape, slots), exists, own


def reference_contrast(z, degraded, windows, exists, own, tau, negatives):
    """METHOD's formula, keyword by keyword."""
    loss = retrieved = 0.0
    for x, (b, j) in enumerate(np.ndindex(z.shape[:2])):
        if not own.valid[x]:
            continue
        e = np.asarray(own.e[x], np.float64)
        others = [
            z[b, j] @ own.e[y]
            for y in range(len(own.valid))
            if own.valid[y] and own.clip[y] != own.clip[x] and own.lemma[y] != own.lemma[x]
        ]
        rivals = others * ("batch" in negatives)
        rivals += [degraded[b, j] @ e] * ("degraded" in negatives)
        rivals += list(windows[b, j][exists[b, j]] @ e) * ("windows" in negatives)
        positive = np.exp(z[b, j] @ e / tau)
        loss -= np.log(positive / (positive + np.exp(np.array(rivals) / tau).sum()))
        retrieved += all(z[b, j] @ e > s for s in others)
    return loss, retrieved


@pytest.mark.parametrize("negatives", [n for r in range(4) for n in itertools.combinations(NEGATIVES, r)])
def test_contrastive_is_the_formula(negatives):
    z, degraded, windows, exists, own = contrast_case()
    with_windows = (windows, exists) if "windows" in negatives else (None, None)
    out = contrastive(
        z,
        degraded if "degraded" in negatives else None,
        *with_windows,
        own,
        own,
        0.1,
        in_batch="batch" in negatives,
    )
    loss, retrieved = reference_contrast(z, degraded, windows, exists, own, 0.1, negatives)
    np.testing.assert_allclose(out.loss, loss, rtol=TOLERANCE, atol=TOLERANCE)
    assert (out.retrieved, out.keywords) == (retrieved, np.sum(own.valid))


@pytest.mark.parametrize("valid", [True, False])
def test_contrastive_gradients_are_finite(valid):
    """Also of tau, where rivals are masked, and of states that are 0; without a keyword everything is 0."""
    z, degraded, windows, exists, own = contrast_case()
    own = own._replace(valid=own.valid & valid)

    def loss(z, degraded, windows, e, tau):
        words = own._replace(e=unit(e))
        return contrastive(unit(z), unit(degraded), unit(windows), exists, words, words, tau).loss

    zeros = jax.tree.map(jnp.zeros_like, (z, degraded, windows))
    for states in ((z, degraded, windows), zeros):
        value, gradients = jax.value_and_grad(loss, argnums=range(5))(*states, own.e, 0.07)
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
        if not valid:
            assert value == 0 and not any(np.any(g) for g in gradients)


def test_a_part_of_the_batch_needs_the_whole_batchs_keywords_only():
    z, degraded, windows, exists, own = contrast_case(clips=4)
    whole = contrastive(z, degraded, windows, exists, own, own, 0.1)
    parts = []
    for half in (slice(0, 2), slice(2, 4)):
        words = Keywords(*(x.reshape(4, 3, *x.shape[1:])[half].reshape(6, *x.shape[1:]) for x in own))
        parts.append(contrastive(z[half], degraded[half], windows[half], exists[half], words, own, 0.1))
    for total, *part in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(sum(part), total, rtol=TOLERANCE)


def found(inside, exists):
    """The slots of each keyword's windows."""
    return [
        [np.flatnonzero(s).tolist() for s in inside[0, j, e]] for j, e in enumerate(np.asarray(exists[0]))
    ]


def test_windows_by_hand():
    # 8 slots, the last not part of the clip. Slots 2 and 3 show keyword 0, slot 5 keyword 1, none keyword 2.
    slots = np.zeros((1, 3, 8), bool)
    slots[0, 0, 2:4] = slots[0, 1, 5] = True
    inside, exists = keyword_windows(jnp.array(slots), jnp.arange(8)[None] < 7)
    assert found(inside, exists) == [[[0, 1]], [[0], [1], [4], [6]], []]


def test_windows_stand_a_length_apart():
    slots = np.zeros((1, 1, 9), bool)
    slots[0, 0, [0, 1, 3]] = True
    inside, exists = keyword_windows(jnp.array(slots), jnp.ones((1, 9), bool))
    assert found(inside, exists) == [[[6, 7, 8]]]


def test_pooling_is_the_mean_over_tokens_of_marked_slots():
    h = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)  # 3 slots of 2 tokens
    slots = np.array([[[1, 0, 1], [0, 0, 0]], [[0, 1, 0], [1, 1, 1]]], bool)
    expected = [[h[0, [0, 1, 4, 5]].mean(0), np.zeros(4)], [h[1, [2, 3]].mean(0), h[1].mean(0)]]
    np.testing.assert_allclose(pool_slots(h, slots), expected, rtol=0, atol=TOLERANCE)
