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
    pool_slots,
    slot_means,
    token_logprobs,
    unit,
)

TOLERANCE = 1e-5

contrastive = jax.jit(losses.contrastive, static_argnames="in_batch")


def states(shape=(2, 3, 7), width=5, vocab=11, seed=0):
    """h [B, G, C, D], unembed, targets: random, G = 3."""
    rng = np.random.default_rng(seed)
    h, unembed = (rng.standard_normal(size).astype(np.float32) for size in ((*shape, width), (vocab, width)))
    return h, unembed, rng.integers(0, vocab, shape)


def reference_logprobs(h, unembed, targets):
    out = np.zeros(targets.shape)
    for at in np.ndindex(targets.shape):
        logits = unembed.astype(np.float64) @ h[at].astype(np.float64)
        out[at] = logits[targets[at]] - np.log(np.exp(logits).sum())
    return out


def test_logprobs_by_hand():
    # With an identity for unembedding, hidden states are logits.
    h = jnp.log(jnp.array([[[[3.0, 1.0], [1.0, 4.0]]]]))
    out = token_logprobs(h, jnp.eye(2), jnp.array([[[0, 1]]]), chunk=8)
    np.testing.assert_allclose(np.exp(out), [[[3 / 4, 4 / 5]]], rtol=1e-6)
    hot = token_logprobs(h, jnp.eye(2), jnp.array([[[0, 1]]]), chunk=8, temperature=0.5)
    np.testing.assert_allclose(np.exp(hot), [[[9 / 10, 16 / 17]]], rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_logprobs_and_gradients_do_not_depend_on_chunks(chunk):
    h, unembed, targets = states()
    out = token_logprobs(h, unembed, targets, chunk=chunk)
    np.testing.assert_allclose(out, reference_logprobs(h, unembed, targets), rtol=0, atol=TOLERANCE)

    def plain(h, unembed):
        return jax.nn.log_softmax(h @ unembed.T)[jnp.ix_(*map(jnp.arange, targets.shape)) + (targets,)]

    weights = np.random.default_rng(1).standard_normal(targets.shape)

    def weighted(function):
        return jax.jit(jax.grad(lambda *x: (weights * function(*x)).sum(), argnums=(0, 1)))(h, unembed)

    ours = weighted(lambda *x: token_logprobs(*x, targets, chunk=chunk))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE), ours, weighted(plain))


def test_logits_are_float32_where_states_are_not():
    h, unembed, targets = states(width=64)
    half = [x.astype(jnp.bfloat16) for x in (h, unembed)]
    out = token_logprobs(*half, targets, chunk=4)
    # Logits of about 8 rounded to bfloat16 would be off by up to 2e-2.
    exact = reference_logprobs(*(np.asarray(x, np.float32) for x in half), targets)
    np.testing.assert_allclose(out, exact, rtol=0, atol=10 * TOLERANCE)


def test_memory_does_not_hold_all_logits():
    """Neither what the compiled gradient allocates nor any array that it computes."""
    states = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 1, 64, 16), (4096, 16))]
    targets = np.zeros((4, 1, 64), np.int32)
    logits = targets.size * 4096

    def temporary(chunk):
        def loss(h, unembed):
            return token_logprobs(h, unembed, targets, chunk=chunk).sum()

        traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(*states)
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

    def loss(h, unembed):
        with in_use(mesh):
            return token_logprobs(h, unembed, targets, chunk=8).sum()

    def alone(h, unembed):
        return token_logprobs(h, unembed, targets, chunk=8).sum()

    arguments = [jax.device_put(x, where) for x, where in zip(floats, (rows, split), strict=True)]
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), out_shardings=(rows, split))
    program = gradient.lower(*arguments).compile()
    moved = collectives(program.as_text())
    weights, of_a_chunk = 4 * vocab * width, 4 * math.prod(shape) * width // 2
    assert of_a_chunk < weights < of_a_chunk // width * vocab  # the last: logits
    assert max(one.result for one in moved) <= weights
    if vocab % 8 == 0:
        assert max(one.result for one in moved if one.loops) <= of_a_chunk
    expected = jax.jit(jax.grad(alone, argnums=(0, 1)))(*floats)
    for ours, exact in zip(program(*arguments), expected, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=0, atol=TOLERANCE)


def test_causal_lm_by_hand():
    """Targets of data sets 0 and 2 of three; -1 is padding."""
    logprobs = jnp.log(jnp.array([[0.5, 0.25, 0.1], [0.125, 0.1, 0.5]]))
    total, count = causal_lm(logprobs, jnp.array([[0, 2, -1], [2, -1, 0]]), 3)
    np.testing.assert_allclose(total, np.log(2) * np.array([2, 0, 5]), rtol=1e-6)
    assert count.tolist() == [2, 0, 2]


def test_what_stands_at_padding_does_not_count():
    logprobs = jnp.array([[-1.0, jnp.nan, -jnp.inf]])
    total, gradient = jax.value_and_grad(lambda x: causal_lm(x, np.array([[0, -1, -1]]), 1)[0].sum())(
        logprobs
    )
    assert total == 1 and gradient.tolist() == [[-1, 0, 0]]


def keywords(e, lemma, clip, valid):
    return Keywords(jnp.array(e), jnp.array(lemma), jnp.array(clip), jnp.array(valid))


def test_contrastive_by_hand():
    # Clip 0 has one keyword. Of the others, clip 1's is a rival, clip 2's has the same lemma, clip 3's is not
    # valid and the last is of clip 0 itself. s(V, k) = .6; rivals: clip 1's 0, V~ .8, a window .96; the other
    # window is padding.
    own = keywords([[0.6, 0.8]], [5], [0], [True])
    pool = keywords(
        [[0.6, 0.8], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]],
        [5, 6, 5, 6, 7],
        [0, 1, 2, 3, 0],
        [True, True, True, False, True],
    )
    z, degraded = jnp.array([[[1.0, 0.0]]]), jnp.array([[[0.0, 1.0]]])
    windows, window_of = jnp.array([[[0.8, 0.6], [0.6, 0.8]]]), jnp.array([[0, -1]])
    out = contrastive(z, degraded, windows, window_of, own, pool, 0.5)
    # exp(1.2) / (exp(1.2) + exp(0) + exp(1.6) + exp(1.92)) = 3.320117 / 16.094107
    np.testing.assert_allclose(out.loss, np.log(16.094107 / 3.320117), rtol=1e-6)
    np.testing.assert_allclose([out.clean, out.degraded], [0.6, 0.8], rtol=1e-6)
    assert (out.retrieved, out.candidates, out.keywords) == (1, 1, 1)
    # Clip 2's has the same lemma: nothing is left that could be retrieved in its place.
    alone = keywords([[0.6, 0.8], [1.0, 0.0]], [5, 5], [0, 2], [True, True])
    out = contrastive(z, None, None, None, own, alone, 0.5)
    assert (out.retrieved, out.candidates, out.keywords) == (0, 0, 1)


def contrast_case(rows=3, per_row=5, windows=9, width=4, seed=0):
    """z, degraded, windows, window_of, own: rows of two clips; the first has two keywords. Windows belong to
    keywords of their row in any order; some are padding."""
    rng = np.random.default_rng(seed)

    def vectors(*shape):
        return np.asarray(unit(rng.standard_normal((*shape, width))))

    count = rows * per_row
    clip = 2 * np.arange(rows)[:, None] + (np.arange(per_row) >= 2)
    own = keywords(vectors(count), rng.integers(0, 3, count), clip.ravel(), rng.random(count) < 0.7)
    window_of = rng.integers(-1, per_row, (rows, windows))
    return vectors(rows, per_row), vectors(rows, per_row), vectors(rows, windows), window_of, own


def reference_contrast(z, degraded, windows, window_of, own, tau, negatives):
    """METHOD's formula, keyword by keyword."""
    loss = retrieved = candidates = 0.0
    for x, (r, q) in enumerate(np.ndindex(z.shape[:2])):
        if not own.valid[x]:
            continue
        e = np.asarray(own.e[x], np.float64)
        others = [
            z[r, q] @ own.e[y]
            for y in range(len(own.valid))
            if own.valid[y] and own.clip[y] != own.clip[x] and own.lemma[y] != own.lemma[x]
        ]
        rivals = others * ("batch" in negatives)
        rivals += [degraded[r, q] @ e] * ("degraded" in negatives)
        rivals += list(windows[r, window_of[r] == q] @ e) * ("windows" in negatives)
        positive = np.exp(z[r, q] @ e / tau)
        loss -= np.log(positive / (positive + np.exp(np.array(rivals) / tau).sum()))
        retrieved += bool(others) and all(z[r, q] @ e > s for s in others)
        candidates += bool(others)
    return loss, retrieved, candidates


@pytest.mark.parametrize("negatives", [n for r in range(4) for n in itertools.combinations(NEGATIVES, r)])
def test_contrastive_is_the_formula(negatives):
    z, degraded, windows, window_of, own = contrast_case()
    with_windows = (windows, window_of) if "windows" in negatives else (None, None)
    out = contrastive(
        z,
        degraded if "degraded" in negatives else None,
        *with_windows,
        own,
        own,
        0.1,
        in_batch="batch" in negatives,
    )
    loss, *counts = reference_contrast(z, degraded, windows, window_of, own, 0.1, negatives)
    np.testing.assert_allclose(out.loss, loss, rtol=TOLERANCE, atol=TOLERANCE)
    assert [out.retrieved, out.candidates] == counts and out.keywords == np.sum(own.valid)


@pytest.mark.parametrize("valid", [True, False])
def test_contrastive_gradients_are_finite(valid):
    """Also of tau, where rivals are masked, and of states that are 0; without a keyword everything is 0."""
    z, degraded, windows, window_of, own = contrast_case()
    own = own._replace(valid=own.valid & valid)

    def loss(z, degraded, windows, e, tau):
        words = own._replace(e=unit(e))
        return contrastive(unit(z), unit(degraded), unit(windows), window_of, words, words, tau).loss

    zeros = jax.tree.map(jnp.zeros_like, (z, degraded, windows))
    for states in ((z, degraded, windows), zeros):
        value, gradients = jax.value_and_grad(loss, argnums=range(5))(*states, own.e, 0.07)
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
        if not valid:
            assert value == 0 and not any(np.any(g) for g in gradients)


def test_a_part_of_the_batch_needs_the_whole_batchs_keywords_only():
    z, degraded, windows, window_of, own = contrast_case(rows=4)
    whole = contrastive(z, degraded, windows, window_of, own, own, 0.1)
    parts = []
    for half in (slice(0, 2), slice(2, 4)):
        words = Keywords(*(x.reshape(4, 5, *x.shape[1:])[half].reshape(10, *x.shape[1:]) for x in own))
        parts.append(contrastive(z[half], degraded[half], windows[half], window_of[half], words, own, 0.1))
    for total, *part in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(sum(part), total, rtol=TOLERANCE)


def test_a_batch_without_room_for_keywords():
    """As of clips that name no event: nothing to contrast, and no error."""
    z, degraded, windows, window_of, own = contrast_case(per_row=0, windows=0)
    out = contrastive(z, degraded, windows, window_of, own, own, 0.1)
    assert [float(x) for x in out] == [0, 0, 0, 0, 0, 0]


def test_slot_means_and_pooling():
    """Means over the tokens of a slot, wherever they stand, and over the marked slots: of slots of equal size
    the latter is the mean over their tokens."""
    rng = np.random.default_rng(0)
    h = rng.standard_normal((2, 12, 4)).astype(np.float32)
    slot = np.array([[-1, 0, 0, -1, 1, 1, 2, 2, -1, -1, 3, 3], [0, 0, 0, 1, 1, 1, -1, 2, 2, 2, -1, -1]])
    means = slot_means(h, slot, 5)
    for r, n in np.ndindex(2, 5):
        own = h[r, slot[r] == n]
        expected = own.mean(0) if len(own) else np.zeros(4)
        np.testing.assert_allclose(means[r, n], expected, rtol=0, atol=TOLERANCE)
    marked = np.array([[[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], [[0, 1, 0, 0, 0], [1, 1, 1, 0, 0]]], bool)
    pooled = pool_slots(means, marked)
    for r, x in np.ndindex(2, 2):
        own = h[r, np.isin(slot[r], np.flatnonzero(marked[r, x]))]
        expected = own.mean(0) if len(own) else np.zeros(4)
        np.testing.assert_allclose(pooled[r, x], expected, rtol=0, atol=TOLERANCE)


def test_text_has_no_part_in_slot_means():
    """Nor a gradient."""
    h, slot = np.random.default_rng(0).standard_normal((1, 4, 2)), np.array([[-1, 0, 0, -1]])
    gradient = jax.grad(lambda h: slot_means(h, slot, 1).sum())(jnp.array(h))
    assert gradient[0, :, 0].tolist() == [0, 0.5, 0.5, 0]
