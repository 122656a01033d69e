"""Splash attention (Pallas) on TPU, by rows and heads on each device of a mesh.

Scores are never held in memory, and blocks of scores between segments are not computed. Off TPUs the kernel
is interpreted, which is for tests.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec as P

from vpjax.models.remat import KEPT
from vpjax.models.sharding import ROWS
from vpjax.types import Array, UserError

BLOCK, LANES = 512, 128  # tokens in a block at most; a block is a multiple of LANES


class _LayoutMask(masks._ComputableMask):  # the only masks that the kernel computes instead of loading
    """The mask of a prefix and completions of ``suffix`` tokens, padded to ``length`` tokens; the segments
    part them further."""

    def __init__(self, prefix: int, suffix: int, length: int):
        self.key = prefix, suffix, length
        start, size = np.int32(prefix), np.int32(max(suffix, 1))

        def mask(q, kv):
            same = (q - start) // size == (kv - start) // size
            return (kv <= q) & ((kv < start) | same)

        super().__init__((length, length), mask)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LayoutMask) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class _BranchMask(masks._ComputableMask):
    """The mask of a branch of ``length`` tokens after a prefix; the segments part them further."""

    def __init__(self, prefix: int, length: int):
        self.key = prefix, length
        start = np.int32(prefix)
        super().__init__((length, prefix + length), lambda q, kv: kv - start <= q)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BranchMask) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_BP: Array,
    suffix: int,
    *,
    interpret: bool,
) -> jax.Array:
    """Causal attention of a prefix to itself, inside segments, and of completions of ``suffix`` tokens after
    it to themselves and to segment 1. UserError if the mesh in use splits the heads unevenly."""
    count, prefix = q_BTNH.shape[1], segment_BP.shape[1]
    block = _block(count)
    mask = _LayoutMask(prefix, suffix, _whole_blocks(count, block))

    def on_device(q, k, v, segment):
        segment = jnp.pad(segment, ((0, 0), (0, count - prefix)), constant_values=1)
        segment, q, k, v = (_padded(x, block) for x in (segment, q, k, v))
        return _kernel(mask, block, block, interpret, q, k, v, segment, segment)[:, :count]

    return _on_devices(on_device, q_BTNH, k_BTKH, v_BTKH, segment_BP)


def attend_branch(
    q_BCNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_BC: Array,
    shared_BP: Array,
    *,
    interpret: bool,
) -> jax.Array:
    """Attention of a branch to the prefix and to itself, see ``attention.Branch``; T = P + C. UserError as
    ``attend``."""
    count, prefix = q_BCNH.shape[1], shared_BP.shape[1]
    block, prefix_block = _block(count), _block(prefix)
    key_block = math.gcd(block, prefix_block)
    mask = _BranchMask(_whole_blocks(prefix, prefix_block), _whole_blocks(count, block))

    def on_device(q, k, v, segment, shared):
        q, segment = _padded(q, block), _padded(segment, block)
        keys, values = (
            jnp.concatenate([_padded(x[:, :prefix], prefix_block), _padded(x[:, prefix:], block)], axis=1)
            for x in (k, v)
        )
        seen = jnp.concatenate([_padded(shared, prefix_block), segment], axis=1)
        return _kernel(mask, block, key_block, interpret, q, keys, values, segment, seen)[:, :count]

    return _on_devices(on_device, q_BCNH, k_BTKH, v_BTKH, segment_BC, shared_BP)


def _block(count: int) -> int:
    """Tokens in a block of so many tokens: a multiple of LANES."""
    return min(BLOCK, math.ceil(count / LANES) * LANES)


def _whole_blocks(count: int, block: int) -> int:
    return math.ceil(count / block) * block


def _padded(x: jax.Array, block: int) -> jax.Array:
    """``x`` [B, T, ...] with zeros up to whole blocks."""
    extra = -x.shape[1] % block
    return jnp.pad(x, ((0, 0), (0, extra), *[(0, 0)] * (x.ndim - 2)))


def _kernel(
    mask: Any,
    block: int,
    key_block: int,
    interpret: bool,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_BQ: jax.Array,
    segment_BK: jax.Array,
) -> jax.Array:
    """Splash attention of whole blocks, inside segments."""
    sizes = splash.BlockSizes(block, key_block, key_block, block, key_block, key_block, block, key_block)
    heads = masks.MultiHeadMask([mask] * q_BTNH.shape[2])
    kernel = splash.make_splash_mha_single_device(
        heads, block_sizes=sizes, interpret=interpret, residual_checkpoint_name=KEPT
    )

    def of_row(q, k, v, segment_Q, segment_K):
        inside = _inside_segments(kernel, segment_Q.reshape(-1, block), segment_K.reshape(-1, key_block))
        return inside(q, k, v, splash.SegmentIds(segment_Q, segment_K))

    q, k, v = (x.swapaxes(1, 2) for x in (q_BTNH, k_BTKH, v_BTKH))
    out = jax.vmap(of_row)(q * q.shape[-1] ** -0.5, k, v, segment_BQ, segment_BK)
    return out.swapaxes(1, 2).astype(q_BTNH.dtype)


def _on_devices(
    function: Callable, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, *segments: Array
) -> jax.Array:
    """A function of queries, keys, values and segments, on each device's rows and heads where a mesh is in
    use. UserError if the mesh splits the heads unevenly."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        if k_BTKH.shape[2] % mesh.shape["tensor"]:
            raise UserError(
                f"config.mesh.tensor={mesh.shape['tensor']} does not divide the model's {k_BTKH.shape[2]} "
                "key/value heads: take a smaller one, or --config.attention=xla"
            )
        rows, heads = ROWS, P(*ROWS, None, "tensor")
        specs = heads, heads, heads, *[rows] * len(segments)
        function = jax.shard_map(function, in_specs=specs, out_specs=heads, check_vma=False)
    return function(q_BTNH, k_BTKH, v_BTKH, *(jnp.asarray(segment, jnp.int32) for segment in segments))


def _inside_segments(kernel: Any, segment_Qb: jax.Array, segment_Kb: jax.Array) -> Any:
    """A splash kernel that leaves out the blocks of scores in which no query and key share a segment.
    segment: of the tokens of each block. Segments ascend along a row, so that ranges tell; 0 counts as the
    last."""

    def ranges(segment_Xb: jax.Array) -> tuple[jax.Array, jax.Array]:
        ordered = jnp.where(segment_Xb == 0, jnp.iinfo(jnp.int32).max, segment_Xb)
        return ordered.min(axis=1), ordered.max(axis=1)

    queries, keys = ranges(segment_Qb), ranges(segment_Kb)

    def fewer(info: Any, axis: int) -> Any:
        """A MaskInfo: block_mask says which steps along ``axis`` run, data_next which blocks they load."""
        own, other = jnp.indices(info.data_next.shape)[3 - axis], info.data_next.astype(jnp.int32)
        (own_first, own_last), (first, last) = (queries, keys) if axis == 2 else (keys, queries)
        runs = (info.block_mask > 0) & (own_first[own] <= last[other]) & (first[other] <= own_last[own])
        # A step that does not run names the block of one that does: what is there is not loaded again.
        needed = jnp.take_along_axis(info.data_next, runs.argmax(axis, keepdims=True), axis)
        return info._replace(
            block_mask=jnp.where(runs, info.block_mask, 0), data_next=jnp.where(runs, info.data_next, needed)
        )

    infos = zip((kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info), (2, 2, 1), strict=True)
    return splash.SplashAttentionKernel(*(fewer(*info) for info in infos), **kernel.kwargs)
