"""The attention of the project: one static text layout, and groups of patches for the vision tower.

A text sequence is a causal prefix of P tokens followed by G completions of C tokens that each see the prefix
and themselves; GRPO has G > 1, decoding is the same with a cache::

    P=3 G=2 C=2      prefix  c1   c2
      prefix         1..     ..   ..
                     11.     ..   ..
                     111     ..   ..
      c1             111     1.   ..
                     111     11   ..
      c2             111     ..   1.
                     111     ..   11

Scores between completions are never computed. The prefix may hold several clips: its tokens see only those of
their own segment, and completions see segment 1. SFT has packed rows of many segments and no completions.
Segment 0 is padding, whose output means nothing.

Whole sequences have three back ends, which agree except at padded tokens: ``xla`` everywhere, ``splash``
(Pallas) on TPU and ``cudnn`` on GPU. The latter two never hold the scores in memory.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec as P

from vpjax.types import Array, UserError

BACKENDS = ("auto", "xla", "splash", "cudnn")  # auto: chosen by platform and dtype (``backend_of``)
QUERIES = 96  # xla: tokens of a prefix that attend at once
BLOCK, LANES = 512, 128  # splash: tokens in a block at most; a block is a multiple of LANES

_backend = contextvars.ContextVar("attention", default="auto")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static shape of a text sequence: ``prefix`` + ``groups`` * ``suffix`` tokens. packed: the prefix may
    hold several segments, so that being causal is not enough."""

    prefix: int
    groups: int = 1
    suffix: int = 0
    packed: bool = False


class KeyValues(NamedTuple):
    """Keys and values [..., K, H] of tokens. A cache has them for every layer, on a leading axis."""

    k: jax.Array
    v: jax.Array


def _softmax(scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Softmax over the last axis in float32; ``mask`` is True where a query sees a key."""
    scores = scores.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


def _grouped(q: jax.Array, kv_heads: int) -> jax.Array:
    """Queries [..., N, H], scaled, as [..., K, N / K, H]."""
    *lead, heads, width = q.shape
    return (q * width**-0.5).reshape(*lead, kv_heads, heads // kv_heads, width)


def causal_inside(segment_BP: Array) -> jax.Array:
    """bool[B, P, P]: whether a token sees another one, which is not later and of its own segment."""
    causal = jnp.tril(jnp.ones((segment_BP.shape[1],) * 2, bool))
    return causal & (segment_BP[:, :, None] == segment_BP[:, None])


def attend_prefix(q_BPNH: jax.Array, prefix: KeyValues, segment_BP: Array) -> jax.Array:
    """Causal attention of a prefix to itself, inside segments: [B, P, N, H].

    QUERIES tokens at a time, to the keys up to the last of them: later keys would be masked out."""
    q = _grouped(q_BPNH, prefix.k.shape[-2])
    mask_BPP = causal_inside(segment_BP)
    out = []
    for start in range(0, q.shape[1], QUERIES):
        end = min(start + QUERIES, q.shape[1])
        k, v = prefix.k[:, :end], prefix.v[:, :end]
        scores = jnp.einsum("bqkrh,bpkh->bkrqp", q[:, start:end], k)
        weights = _softmax(scores, mask_BPP[:, None, None, start:end, :end])
        out.append(jnp.einsum("bkrqp,bpkh->bqkrh", weights.astype(q.dtype), v))
    return jnp.concatenate(out, axis=1).reshape(q_BPNH.shape)


def attend_suffix(
    q_BGQNH: jax.Array, prefix: KeyValues, suffix: KeyValues, segment_BP: Array, start: Array | int = 0
) -> jax.Array:
    """Attention of Q tokens of each completion to the prefix and to their own completion: [B, G, Q, N, H].

    prefix: [B, P, K, H], shared by the G completions. suffix: [B, G, C, K, H]. Query i is token ``start + i``
    of its completion and sees the keys up to that token. Both parts share one softmax.
    """
    q = _grouped(q_BGQNH, prefix.k.shape[-2])
    rows, queries, length = q.shape[0], q.shape[2], suffix.k.shape[2]
    own_QC = jnp.arange(length) <= start + jnp.arange(queries)[:, None]
    sees_prefix = jnp.broadcast_to((segment_BP == 1)[:, None], (rows, queries, prefix.k.shape[1]))
    sees_own = jnp.broadcast_to(own_QC, (rows, queries, length))
    mask = jnp.concatenate([sees_prefix, sees_own], axis=-1)[:, None, None, None]
    scores = [jnp.einsum("bgqkrh,bpkh->bgkrqp", q, prefix.k), jnp.einsum("bgqkrh,bgckh->bgkrqc", q, suffix.k)]
    weights = _softmax(jnp.concatenate(scores, axis=-1), mask).astype(q.dtype)
    to_prefix, to_suffix = jnp.split(weights, [prefix.k.shape[1]], axis=-1)
    out = jnp.einsum("bgkrqp,bpkh->bgqkrh", to_prefix, prefix.v)
    return (out + jnp.einsum("bgkrqc,bgckh->bgqkrh", to_suffix, suffix.v)).reshape(q_BGQNH.shape)


def attend(q_BTNH: jax.Array, kv: KeyValues, layout: Layout, segment_BP: Array) -> jax.Array:
    """Attention of a whole sequence of ``layout`` to itself: [B, P + G * C, N, H]."""
    functions = {"xla": _attend_xla, "splash": _attend_splash, "cudnn": _attend_cudnn}
    return functions[backend_of(q_BTNH.dtype)](q_BTNH, kv, layout, segment_BP)


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """A context in which programs are traced with this back end, one of BACKENDS."""
    before = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(before)


def platform() -> str:
    """The platform for which a program is traced: that of the mesh in use, or of the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def backend_of(dtype: jnp.dtype) -> str:
    """The back end in use for queries of ``dtype``."""
    if _backend.get() != "auto":
        return _backend.get()
    if platform() == "tpu":
        return "splash"
    if platform() == "gpu" and dtype in (jnp.bfloat16, jnp.float16):  # cuDNN has no float32
        return "cudnn"
    return "xla"


def _attend_xla(q_BTNH: jax.Array, kv: KeyValues, layout: Layout, segment_BP: Array) -> jax.Array:
    prefix, (q, *own) = _split(q_BTNH, kv, layout)
    out = attend_prefix(q_BTNH[:, : layout.prefix], prefix, segment_BP)
    if not layout.suffix:
        return out
    suffix = attend_suffix(q, prefix, KeyValues(*own), segment_BP)
    return jnp.concatenate([out, suffix.reshape(q_BTNH[:, layout.prefix :].shape)], axis=1)


def _attend_cudnn(
    q_BTNH: jax.Array,
    kv: KeyValues,
    layout: Layout,
    segment_BP: Array,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """A causal call for the prefix and a second one for the completions, each with a copy of its prefix.

    One prefix for all completions would need a merge by log-sum-exps, whose gradient JAX stops.
    """
    prefix, (q_BGCNH, *own) = _split(q_BTNH, kv, layout)
    kernel = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    mask = causal_inside(segment_BP)[:, None] if layout.packed else None
    out = kernel(q_BTNH[:, : layout.prefix], prefix.k, prefix.v, mask=mask, is_causal=True)
    if not layout.suffix:
        return out
    rows, groups, length = q_BGCNH.shape[:3]
    keys, values = (
        jnp.concatenate([jnp.broadcast_to(x[:, None], (rows, groups, *x.shape[1:])), y], axis=2)
        for x, y in zip(prefix, own, strict=True)
    )
    causal = jnp.tril(jnp.ones((length, length), bool))
    sees_prefix = jnp.broadcast_to((segment_BP == 1)[:, None, None], (rows, groups, length, layout.prefix))
    sees_own = jnp.broadcast_to(causal, (rows, groups, length, length))
    mask = jnp.concatenate([sees_prefix, sees_own], axis=-1).reshape(rows * groups, 1, length, -1)
    q, k, v = (x.reshape(rows * groups, *x.shape[2:]) for x in (q_BGCNH, keys, values))
    suffix = kernel(q, k, v, mask=mask)
    return jnp.concatenate([out, suffix.reshape(rows, groups * length, *q_BTNH.shape[2:])], axis=1)


class _LayoutMask(splash_mask._ComputableMask):  # the only masks that the kernel computes instead of loading
    """The mask of a layout, padded to ``length`` tokens; the segments part them further."""

    def __init__(self, layout: Layout, length: int):
        prefix, suffix = np.int32(layout.prefix), np.int32(max(layout.suffix, 1))

        def mask(q, kv):
            same = (q - prefix) // suffix == (kv - prefix) // suffix
            return (kv <= q) & ((kv < prefix) | same)

        self.key = layout, length
        super().__init__((length, length), mask)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LayoutMask) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _attend_splash(q_BTNH: jax.Array, kv: KeyValues, layout: Layout, segment_BP: Array) -> jax.Array:
    """One kernel over the whole sequence, which reads the segments. With a mesh in use, the kernel runs on
    each device's rows and heads. UserError if the mesh splits the heads unevenly."""
    count = q_BTNH.shape[1]
    block = min(BLOCK, math.ceil(count / LANES) * LANES)
    extra = -count % block  # padding to whole blocks
    mask = _LayoutMask(layout, count + extra)
    sizes = splash.BlockSizes(block, block, block, block, block, block, block, block)

    def on_device(q, k, v, segment):
        segment = jnp.pad(segment, ((0, 0), (0, count - layout.prefix)), constant_values=1)
        segment = jnp.pad(segment, ((0, 0), (0, extra)))
        q, k, v = (jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q, k, v))
        kernel = splash.make_splash_mha_single_device(
            splash_mask.MultiHeadMask([mask] * q.shape[1]), block_sizes=sizes, interpret=platform() != "tpu"
        )

        def of_row(q, k, v, segment_T):
            segments = splash.SegmentIds(segment_T, segment_T)
            return _inside_segments(kernel, segment_T, block)(q, k, v, segments)

        out = jax.vmap(of_row)(q * q.shape[-1] ** -0.5, k, v, segment)
        return out.swapaxes(1, 2)[:, :count].astype(q.dtype)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        if kv.k.shape[2] % mesh.shape["tensor"]:
            raise UserError(
                f"config.mesh.tensor={mesh.shape['tensor']} does not divide the model's {kv.k.shape[2]} "
                "key/value heads: take a smaller one, or --config.attention=xla"
            )
        rows, heads = P(("data", "fsdp")), P(("data", "fsdp"), None, "tensor")
        on_device = jax.shard_map(
            on_device, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
        )
    return on_device(q_BTNH, *kv, jnp.asarray(segment_BP, jnp.int32))


def _inside_segments(kernel: Any, segment_T: jax.Array, block: int) -> Any:
    """A splash kernel that leaves out the blocks of scores in which no query and key share a segment.
    Segments ascend along a row, and padding stands last."""
    ordered = jnp.where(segment_T == 0, segment_T.size, segment_T).reshape(-1, block)
    first, last = ordered.min(axis=1), ordered.max(axis=1)

    def fewer(info: Any, axis: int) -> Any:
        """A MaskInfo: block_mask says which steps along ``axis`` run, data_next which blocks they load."""
        own, other = jnp.indices(info.data_next.shape)[3 - axis], info.data_next.astype(jnp.int32)
        runs = (info.block_mask > 0) & (first[own] <= last[other]) & (first[other] <= last[own])
        # A step that does not run names the block of one that does: what is there is not loaded again.
        needed = jnp.take_along_axis(info.data_next, runs.argmax(axis, keepdims=True), axis)
        return info._replace(
            block_mask=jnp.where(runs, info.block_mask, 0), data_next=jnp.where(runs, info.data_next, needed)
        )

    infos = zip((kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info), (2, 2, 1), strict=True)
    return splash.SplashAttentionKernel(*(fewer(*info) for info in infos), **kernel.kwargs)


def _split(q_BTNH: jax.Array, kv: KeyValues, layout: Layout) -> tuple[KeyValues, list[jax.Array]]:
    """The prefix's keys and values, and the queries, keys and values [B, G, C, ., H] of the completions."""
    p, groups = layout.prefix, (layout.groups, layout.suffix)
    own = [x[:, p:].reshape(x.shape[0], *groups, *x.shape[2:]) for x in (q_BTNH, *kv)]
    return KeyValues(kv.k[:, :p], kv.v[:, :p]), own


def attend_blocks(q_TNH: jax.Array, k_TNH: jax.Array, v_TNH: jax.Array, group_T: Array) -> jax.Array:
    """Attention inside groups, not causal: q, k, v [..., T, N, H]; tokens see those with equal ``group``."""
    same_TT = group_T[..., :, None] == group_T[..., None, :]
    scores = jnp.einsum("...qnh,...knh->...nqk", q_TNH * q_TNH.shape[-1] ** -0.5, k_TNH)
    weights = _softmax(scores, same_TT[..., None, :, :])
    return jnp.einsum("...nqk,...knh->...qnh", weights.astype(q_TNH.dtype), v_TNH)
