"""The attention of the project: one static text layout, and unmasked blocks for the vision tower.

A text sequence is a causal prefix of P tokens followed by G completions of C tokens that each see the prefix
and themselves; SFT has G = 1, GRPO has G > 1, decoding is the same with a cache::

    P=3 G=2 C=2      prefix  c1   c2
      prefix         1..     ..   ..
                     11.     ..   ..
                     111     ..   ..
      c1             111     1.   ..
                     111     11   ..
      c2             111     ..   1.
                     111     ..   11

Scores between completions are never computed and the prefix is never copied. Rows of a causal prefix never
see the padding to their right, so only suffix queries look at ``prompt_valid``.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vpjax.types import Array


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static shape of a text sequence: ``prefix`` + ``groups`` * ``suffix`` tokens."""

    prefix: int
    groups: int
    suffix: int


class KeyValues(NamedTuple):
    """Keys and values [..., K, H] of some tokens; stacked over layers on a leading axis, a cache."""

    k: Array
    v: Array


def _softmax(scores: Array, mask: Array | None) -> Array:
    """Softmax over the last axis in float32; ``mask`` is True where a key is seen."""
    scores = scores.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


def _grouped(q: Array, kv_heads: int) -> Array:
    """Queries [..., N, H], scaled, as [..., K, N / K, H]."""
    *lead, heads, width = q.shape
    return (q * width**-0.5).reshape(*lead, kv_heads, heads // kv_heads, width)


def attend_prefix(q_BPNH: Array, prefix: KeyValues) -> Array:
    """Causal attention of a prefix to itself: [B, P, N, H]."""
    q = _grouped(q_BPNH, prefix.k.shape[-2])
    causal = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
    weights = _softmax(jnp.einsum("bqkrh,bpkh->bkrqp", q, prefix.k), causal)
    return jnp.einsum("bkrqp,bpkh->bqkrh", weights.astype(q.dtype), prefix.v).reshape(q_BPNH.shape)


def attend_suffix(
    q_BGQNH: Array, prefix: KeyValues, suffix: KeyValues, prompt_valid_BP: Array, start: Array | int = 0
) -> Array:
    """Attention of Q tokens of each completion to the prefix and to their own completion: [B, G, Q, N, H].

    prefix: [B, P, K, H], shared by the G completions. suffix: [B, G, C, K, H]; query i stands at its index
    ``start + i`` and sees the keys up to itself. Both parts share one softmax.
    """
    q = _grouped(q_BGQNH, prefix.k.shape[-2])
    own_QC = jnp.arange(suffix.k.shape[2]) <= start + jnp.arange(q.shape[2])[:, None]
    seen = [
        jnp.broadcast_to(m, (q.shape[0], *own_QC.shape[:1], m.shape[-1]))
        for m in (prompt_valid_BP[:, None], own_QC)
    ]
    scores = [jnp.einsum("bgqkrh,bpkh->bgkrqp", q, prefix.k), jnp.einsum("bgqkrh,bgckh->bgkrqc", q, suffix.k)]
    mask = jnp.concatenate(seen, axis=-1)[:, None, None, None]
    weights = _softmax(jnp.concatenate(scores, axis=-1), mask).astype(q.dtype)
    to_prefix, to_suffix = jnp.split(weights, [prefix.k.shape[1]], axis=-1)
    out = jnp.einsum("bgkrqp,bpkh->bgqkrh", to_prefix, prefix.v)
    return (out + jnp.einsum("bgkrqc,bgckh->bgqkrh", to_suffix, suffix.v)).reshape(q_BGQNH.shape)


def attend(q_BTNH: Array, kv: KeyValues, layout: Layout, prompt_valid_BP: Array) -> Array:
    """Attention of a whole sequence of ``layout`` to itself: [B, P + G * C, N, H]."""
    p, groups = layout.prefix, (layout.groups, layout.suffix)
    prefix = KeyValues(kv.k[:, :p], kv.v[:, :p])
    out = attend_prefix(q_BTNH[:, :p], prefix)
    if not layout.suffix:
        return out
    q, k, v = (x[:, p:].reshape(x.shape[0], *groups, *x.shape[2:]) for x in (q_BTNH, *kv))
    suffix = attend_suffix(q, prefix, KeyValues(k, v), prompt_valid_BP)
    return jnp.concatenate([out, suffix.reshape(q_BTNH[:, p:].shape)], axis=1)


def attend_blocks(q: Array, k: Array, v: Array, valid: Array | None = None) -> Array:
    """Attention inside blocks, not causal: q, k, v [..., T, N, H]; ``valid`` bool[..., T] marks true keys."""
    scores = jnp.einsum("...qnh,...knh->...nqk", q * q.shape[-1] ** -0.5, k)
    weights = _softmax(scores, None if valid is None else valid[..., None, None, :])
    return jnp.einsum("...nqk,...knh->...qnh", weights.astype(q.dtype), v)
