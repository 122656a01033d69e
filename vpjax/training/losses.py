"""The losses. Sums and counts stay apart until the end, so that micro-batches add up exactly."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vpjax.models.attention import platform
from vpjax.models.sharding import split_logits, split_rows, split_vocabulary
from vpjax.types import Array

NEGATIVES = ("batch", "degraded", "windows")


def token_logprobs(
    last_BD: Array,
    suffix_BGCD: Array,
    unembed_OD: Array,
    targets_BGC: Array,
    *,
    chunk: int,
    temperature: float = 1.0,
) -> Array:
    """log p f32[B, G, C] of each completion token, of logits divided by ``temperature``.

    The one place that shifts by one: the prompt's last state predicts a completion's first token, its token c
    the next. Logits, float32 whatever the states are, exist for at most ``chunk`` positions of every
    completion at a time, and again in the backward pass. On accelerators each device of a mesh scores
    all rows' states on its part of the vocabulary: what moves is states, smaller than weights or logits. CPUs
    score their own rows: their devices share one memory, and gloo may mix up collectives of several processes
    that do not wait for one another.
    """
    by_words = platform() != "cpu"
    if by_words:
        unembed_OD = split_vocabulary(unembed_OD)
    b, g, c, d = suffix_BGCD.shape
    h_BGCD = jnp.concatenate(
        [jnp.broadcast_to(last_BD[:, None, None], (b, g, 1, d)), suffix_BGCD[:, :, :-1]], axis=2
    )
    count = -(-c // chunk)
    chunk = -(-c // count)  # as even as they come, for the last one is padded
    padded = count * chunk

    # Chunks run along C: rows stay on the devices that hold them.
    def chunks(x):
        x = jnp.pad(x, [(0, 0), (0, 0), (0, padded - c)] + [(0, 0)] * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(b, g, count, chunk, *x.shape[3:]), 2, 0)

    @jax.checkpoint
    def scores(h_BGcD, targets_BGc):
        h_BGcD = split_rows(h_BGcD)
        logits = jnp.einsum("bgcd,od->bgco", h_BGcD, unembed_OD, preferred_element_type=jnp.float32)
        logits = logits / temperature
        if by_words:
            logits = split_logits(logits)
        chosen = jnp.take_along_axis(logits, targets_BGc[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    _, out = jax.lax.scan(lambda carry, x: (carry, scores(*x)), None, (chunks(h_BGCD), chunks(targets_BGC)))
    return jnp.moveaxis(out, 0, 2).reshape(b, g, padded)[:, :, :c]


def causal_lm(logprobs: Array, target: Array) -> tuple[Array, Array]:
    """Summed negative log-likelihood f32[] of the target tokens, and their number."""
    return -jnp.where(target, logprobs, 0.0).sum(), target.sum()


class Keywords(NamedTuple):
    """Keywords to tell apart. e [X, E] unit vectors; lemma, clip i32[X]; valid bool[X]."""

    e: Array
    lemma: Array
    clip: Array
    valid: Array


class Contrast(NamedTuple):
    """Sums over valid keywords: loss, s(V, k), s(V~, k), retrieval@1 among the batch's keywords; and their
    number."""

    loss: Array
    clean: Array
    degraded: Array
    retrieved: Array
    count: Array


def contrastive(
    z_BJE: Array,
    degraded_BJE: Array | None,
    windows_BJSE: Array | None,
    window_valid_BJS: Array | None,
    own: Keywords,
    pool: Keywords,
    tau: Array,
    *,
    in_batch: bool = True,
) -> Contrast:
    """InfoNCE of keywords against other clips' keywords, the degraded video and other windows (METHOD,
    section 2).

    z: pooled states of V at each keyword's slots, unit vectors, as are ``degraded`` (V~ at the same slots)
    and ``windows`` (V at other slots); None leaves a kind of negative out. own: these B * J keywords; pool:
    those of the whole batch, of which the other clips' with another lemma are what retrieval@1 chooses from
    and, where ``in_batch``, negatives.
    """
    z, e = (x.reshape(-1, x.shape[-1]).astype(jnp.float32) for x in (z_BJE, own.e))
    positive = (z * e).sum(-1)
    other = (own.clip[:, None] != pool.clip) & (own.lemma[:, None] != pool.lemma) & pool.valid
    against = z @ pool.e.T
    best = jnp.where(other, against, -jnp.inf).max(axis=1, initial=-jnp.inf)
    scores, exists = [positive[:, None], against], [jnp.ones_like(other[:, :1]), other & in_batch]
    degraded = jnp.zeros_like(positive)
    if degraded_BJE is not None:
        degraded = (degraded_BJE.reshape(z.shape) * e).sum(-1)
        scores.append(degraded[:, None])
        exists.append(exists[0])
    if windows_BJSE is not None:
        scores.append(jnp.einsum("xse,xe->xs", windows_BJSE.reshape(len(z), -1, z.shape[-1]), e))
        exists.append(window_valid_BJS.reshape(len(z), -1))
    # Masked after the division: the gradient of tau would be 0 * inf.
    logits = jnp.where(jnp.concatenate(exists, axis=1), jnp.concatenate(scores, axis=1) / tau, -jnp.inf)
    loss = jax.nn.logsumexp(logits, axis=1) - positive / tau

    def total(x):
        return jnp.where(own.valid, x, 0.0).sum()

    return Contrast(total(loss), total(positive), total(degraded), total(positive > best), own.valid.sum())


def pool_slots(h_BVD: Array, slots_BXS: Array) -> Array:
    """Mean over the visual tokens of the marked slots: f32[B, X, D], 0 where none is marked."""
    b, v, d = h_BVD.shape
    per_slot_BSD = h_BVD.reshape(b, slots_BXS.shape[-1], -1, d).astype(jnp.float32).mean(axis=2)
    weights = slots_BXS.astype(jnp.float32)
    return jnp.einsum("bxs,bsd->bxd", weights, per_slot_BSD) / jnp.maximum(
        weights.sum(-1, keepdims=True), 1.0
    )


def windows_of(slots_BJS: Array, slot_valid_BS: Array) -> tuple[Array, Array]:
    """The windows of each keyword: runs of as many slots as it marks, that many apart, over valid slots that
    no keyword of the clip marks.

    Returns (bool[B, J, S, S]: the slots of window w, bool[B, J, S]: which w exist).
    """
    s = slots_BJS.shape[-1]
    length = slots_BJS.sum(-1)[..., None, None]
    start = jnp.arange(s)[:, None] * length
    inside = (jnp.arange(s) >= start) & (jnp.arange(s) < start + length)
    free = (slot_valid_BS & ~slots_BJS.any(axis=1))[:, None, None]
    exists = (length[..., 0] > 0) & (start + length <= s)[..., 0] & ~(inside & ~free).any(-1)
    return inside, exists


def unit(x: Array) -> Array:
    """``x`` at length 1 in float32, with a gradient of 0 rather than NaN at 0."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-12)
