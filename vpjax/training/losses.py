"""The losses of SFT, and the log-probabilities that GRPO uses too (docs/method.md, sections 2 and 4).

Sums and counts stay apart until the end, so that micro-batches add up exactly.
"""

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
    """log p f32[B, G, C] of each completion token, from logits divided by ``temperature``.

    This is the only place that shifts by one: the prompt's last state predicts a completion's first token,
    and the state of token c predicts token c + 1. Logits are float32 and exist for at most ``chunk``
    positions of every completion at a time; the backward pass computes them again. On accelerators each
    device of a mesh scores the states of all rows on its part of the vocabulary, because states are smaller
    than weights and logits. CPU devices score their own rows: they share one memory, and gloo may mix up
    collectives of several processes that do not wait for one another.
    """
    splits_vocabulary = platform() != "cpu"
    if splits_vocabulary:
        unembed_OD = split_vocabulary(jnp.asarray(unembed_OD))
    b, g, c, d = suffix_BGCD.shape
    h_BGCD = jnp.concatenate(
        [jnp.broadcast_to(last_BD[:, None, None], (b, g, 1, d)), suffix_BGCD[:, :, :-1]], axis=2
    )
    count = -(-c // chunk)
    chunk = -(-c // count)  # chunks of nearly equal length need the least padding
    padded = count * chunk

    # Chunks are cut along C, so that rows stay on the devices that hold them.
    def chunks(x):
        x = jnp.pad(x, [(0, 0), (0, 0), (0, padded - c)] + [(0, 0)] * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(b, g, count, chunk, *x.shape[3:]), 2, 0)

    @jax.checkpoint
    def scores(h_BGcD, targets_BGc):
        h_BGcD = split_rows(h_BGcD)
        logits = jnp.einsum("bgcd,od->bgco", h_BGcD, unembed_OD, preferred_element_type=jnp.float32)
        logits = logits / temperature
        if splits_vocabulary:
            logits = split_logits(logits)
        chosen = jnp.take_along_axis(logits, targets_BGc[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    _, out = jax.lax.scan(lambda carry, x: (carry, scores(*x)), None, (chunks(h_BGCD), chunks(targets_BGC)))
    return jnp.moveaxis(out, 0, 2).reshape(b, g, padded)[:, :, :c]


def causal_lm(logprobs: Array, target: Array) -> tuple[Array, Array]:
    """Summed negative log-likelihood f32[] of the target tokens, and their number."""
    return -jnp.where(target, logprobs, 0.0).sum(), target.sum()


class Keywords(NamedTuple):
    """The keywords of a batch, flat. e [X, E] unit vectors; lemma, clip i32[X]; valid bool[X]."""

    e: Array
    lemma: Array
    clip: Array
    valid: Array


class ContrastSums(NamedTuple):
    """Sums over valid keywords: the loss, s(V, k), s(V~, k), retrieval@1 among the batch's keywords, 1."""

    loss: Array
    clean: Array
    degraded: Array
    retrieved: Array
    keywords: Array


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
) -> ContrastSums:
    """InfoNCE of keywords against other clips' keywords, the degraded video and other windows
    (docs/method.md, section 2).

    z: states of V pooled at each keyword's slots, as unit vectors. degraded: the same of V~; windows: of V at
    other slots. None leaves out this kind of negative. own: these B * J keywords. pool: the keywords of the
    whole batch. Those of other clips with another lemma are the candidates of retrieval@1 and, if
    ``in_batch``, negatives.
    """
    z = z_BJE.reshape(-1, z_BJE.shape[-1]).astype(jnp.float32)
    e = own.e.reshape(-1, own.e.shape[-1]).astype(jnp.float32)
    positive = (z * e).sum(-1)
    is_other = (own.clip[:, None] != pool.clip) & (own.lemma[:, None] != pool.lemma) & pool.valid
    others = z @ pool.e.T
    best = jnp.where(is_other, others, -jnp.inf).max(axis=1, initial=-jnp.inf)
    always = jnp.ones_like(is_other[:, :1])
    scores, exists = [positive[:, None], others], [always, is_other & in_batch]
    degraded = jnp.zeros_like(positive)
    if degraded_BJE is not None:
        degraded = (degraded_BJE.reshape(z.shape) * e).sum(-1)
        scores.append(degraded[:, None])
        exists.append(always)
    if windows_BJSE is not None and window_valid_BJS is not None:
        scores.append(jnp.einsum("xse,xe->xs", windows_BJSE.reshape(len(z), -1, z.shape[-1]), e))
        exists.append(window_valid_BJS.reshape(len(z), -1))
    # Masked after the division: otherwise the gradient of tau would be 0 * inf.
    logits = jnp.where(jnp.concatenate(exists, axis=1), jnp.concatenate(scores, axis=1) / tau, -jnp.inf)
    loss = jax.nn.logsumexp(logits, axis=1) - positive / tau

    def total(x):
        return jnp.where(own.valid, x, 0.0).sum()

    retrieved = total(positive > best)
    return ContrastSums(total(loss), total(positive), total(degraded), retrieved, own.valid.sum())


def pool_slots(h_BVD: Array, slots_BXS: Array) -> Array:
    """Mean over the visual tokens of the marked slots: f32[B, X, D], 0 if none is marked."""
    b, v, d = h_BVD.shape
    per_slot_BSD = h_BVD.reshape(b, slots_BXS.shape[-1], -1, d).astype(jnp.float32).mean(axis=2)
    weights = slots_BXS.astype(jnp.float32)
    return jnp.einsum("bxs,bsd->bxd", weights, per_slot_BSD) / jnp.maximum(
        weights.sum(-1, keepdims=True), 1.0
    )


def keyword_windows(slots_BJS: Array, slot_valid_BS: Array) -> tuple[Array, Array]:
    """The windows of each keyword: runs of as many slots as the keyword has, starting at multiples of that
    number, over valid slots that show no keyword of the clip.

    Returns bool[B, J, S, S], the slots of window w, and bool[B, J, S], whether window w exists.
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
