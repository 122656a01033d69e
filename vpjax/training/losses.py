"""The losses of SFT, and the log-probabilities that GRPO uses too (docs/method.md, sections 2 and 4).

Sums and counts stay apart until the end, so that micro-batches add up exactly.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vpjax.hlo import phase
from vpjax.models.attention import platform
from vpjax.models.sharding import split_logits, split_rows, split_vocabulary
from vpjax.types import Array

NEGATIVES = ("batch", "degraded", "windows")
ANSWER_KINDS = ("keyword", "sequence", "weight")


@phase("loss")
def token_logprobs(
    h_BGCD: Array, unembed_OD: Array, targets_BGC: Array, *, chunk: int, temperature: float = 1.0
) -> Array:
    """log p f32[B, G, C] of the tokens ``targets``, from logits divided by ``temperature``. h: the states
    that predict them.

    Logits are float32 and exist for at most ``chunk`` positions of every completion at a time; the backward
    pass computes them again. On accelerators each device of a mesh scores the states of all rows on its part
    of the vocabulary, because states are smaller than weights and logits. CPU devices score their own rows:
    they share one memory, and gloo may mix up collectives of several processes that do not wait for one
    another.
    """
    splits_vocabulary = platform() != "cpu"
    if splits_vocabulary:
        unembed_OD = split_vocabulary(jnp.asarray(unembed_OD))
    b, g, c, _ = h_BGCD.shape
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


def causal_lm(logprobs_RA: Array, origin_RA: Array, count: int) -> tuple[Array, Array]:
    """Summed negative log-likelihood of the target tokens of each of ``count`` data sets, f32[count], and
    their number. origin: the data set of each target, -1: padding."""
    is_origin = jnp.asarray(origin_RA)[..., None] == jnp.arange(count)
    return -jnp.where(is_origin, logprobs_RA[..., None], 0.0).sum((0, 1)), is_origin.sum((0, 1))


class AnswerSums(NamedTuple):
    """Sums over clips whose answers on V and V~ are compared: the loss, log p(V) - log p(V~) of the compared
    tokens, how often it is above 0, 1."""

    loss: Array
    gap: Array
    ahead: Array
    clips: Array


def answer_term(
    logprobs_RC: Array,
    degraded_RC: Array,
    clip_RC: Array,
    clips: int,
    *,
    kind: str = "keyword",
    beta: float = 1.0,
) -> AnswerSums:
    """The margin by which V must beat V~ on the answer (docs/method.md, section 2).

    logprobs, degraded: log p of the compared tokens given V and given V~. clip: the clip in the row to which
    each belongs, below ``clips``, -1: padding. kind: one of ANSWER_KINDS. ``weight`` is a control without V~:
    the tokens are trained on once more.
    """
    is_own_RCX = clip_RC[..., None] == jnp.arange(clips)
    gap_RX = jnp.where(is_own_RCX, (logprobs_RC - degraded_RC)[..., None], 0.0).sum(1)
    if kind == "weight":
        loss_RX = -jnp.where(is_own_RCX, logprobs_RC[..., None], 0.0).sum(1)
    else:
        loss_RX = jax.nn.softplus(-beta * gap_RX) / beta
    exists_RX = is_own_RCX.any(1)

    def total(x_RX: Array) -> Array:
        return jnp.where(exists_RX, x_RX, 0.0).sum()

    return AnswerSums(total(loss_RX), total(gap_RX), total(gap_RX > 0), exists_RX.sum())


class Keywords(NamedTuple):
    """The keywords of a batch, flat. e [X, E] unit vectors; lemma, clip i32[X]; valid bool[X]."""

    e: Array
    lemma: Array
    clip: Array
    valid: Array


class ContrastSums(NamedTuple):
    """Sums over valid keywords: the loss, s(V, k), s(V~, k), retrieval@1 among the batch's keywords, whether
    there is another one to retrieve, 1."""

    loss: Array
    clean: Array
    degraded: Array
    retrieved: Array
    candidates: Array
    keywords: Array


def contrastive(
    z_RQE: Array,
    degraded_RQE: Array | None,
    windows_RYE: Array | None,
    window_of_RY: Array | None,
    own: Keywords,
    pool: Keywords,
    tau: Array,
    *,
    in_batch: bool = True,
) -> ContrastSums:
    """InfoNCE of keywords against other clips' keywords, the degraded video and other windows
    (docs/method.md, section 2).

    z: states of V pooled at each keyword's slots, as unit vectors. degraded: the same of V~; windows: of V at
    other slots, and window_of: the keyword of each, -1: padding. None leaves out this kind of negative. own:
    these R * Q keywords. pool: the keywords of the whole batch. Those of other clips with another lemma are
    the candidates of retrieval@1 and, if ``in_batch``, negatives.
    """
    rows, keywords, width = z_RQE.shape
    # Shapes are written out: without keywords there is nothing to infer them from.
    z = z_RQE.reshape(rows * keywords, width).astype(jnp.float32)
    e = own.e.astype(jnp.float32)
    positive = (z * e).sum(-1)
    is_other = (own.clip[:, None] != pool.clip) & (own.lemma[:, None] != pool.lemma) & pool.valid
    others = z @ pool.e.T
    best = jnp.where(is_other, others, -jnp.inf).max(axis=1, initial=-jnp.inf)
    always = jnp.ones((rows * keywords, 1), bool)
    scores, exists = [positive[:, None], others], [always, is_other & in_batch]
    degraded = jnp.zeros_like(positive)
    if degraded_RQE is not None:
        degraded = (degraded_RQE.reshape(z.shape) * e).sum(-1)
        scores.append(degraded[:, None])
        exists.append(always)
    if windows_RYE is not None and window_of_RY is not None:
        of_row = jnp.einsum("rqe,rye->rqy", e.reshape(z_RQE.shape), windows_RYE)
        is_own = jnp.arange(keywords)[:, None] == window_of_RY[:, None]
        scores.append(of_row.reshape(rows * keywords, of_row.shape[2]))
        exists.append(is_own.reshape(rows * keywords, of_row.shape[2]))
    # Masked after the division: otherwise the gradient of tau would be 0 * inf.
    logits = jnp.where(jnp.concatenate(exists, axis=1), jnp.concatenate(scores, axis=1) / tau, -jnp.inf)
    loss = jax.nn.logsumexp(logits, axis=1) - positive / tau

    def total(x):
        return jnp.where(own.valid, x, 0.0).sum()

    has_candidate = is_other.any(axis=1)
    return ContrastSums(
        loss=total(loss),
        clean=total(positive),
        degraded=total(degraded),
        retrieved=total(has_candidate & (positive > best)),
        candidates=total(has_candidate),
        keywords=own.valid.sum(),
    )


def slot_means(h_RTD: Array, slot_RT: Array, count: int) -> Array:
    """Mean over the visual tokens of each of ``count`` slots of a row: f32[R, count, D]; 0 without tokens."""

    def sums(x_TD: Array, slot_T: Array) -> Array:
        place_T = jnp.where(slot_T < 0, count, slot_T)  # beyond the last slot, which drops text
        return jax.ops.segment_sum(x_TD, place_T, count + 1)[:count]

    total_RND = jax.vmap(sums)(h_RTD.astype(jnp.float32), slot_RT)
    tokens_RN = jax.vmap(sums)(jnp.ones(slot_RT.shape, jnp.float32), slot_RT)
    return total_RND / jnp.maximum(tokens_RN, 1.0)[..., None]


def pool_slots(means_RND: Array, slots_RXN: Array) -> Array:
    """Mean over the marked slots, all of them of equal size: f32[R, X, D], 0 if none is marked."""
    weights = slots_RXN.astype(jnp.float32)
    return jnp.einsum("rxn,rnd->rxd", weights, means_RND) / jnp.maximum(weights.sum(-1, keepdims=True), 1.0)


def unit(x: Array) -> Array:
    """``x`` at length 1 in float32, with a gradient of 0 rather than NaN at 0."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-12)
