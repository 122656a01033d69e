"""Splash attention (Pallas) on TPU, on the queries and keys of one device.

Scores are never held in memory, and blocks of scores in which no query sees a key are not computed. Which
these are is computed on the device, from the index and the segment of each token: the kernel's own library
would look at every score on the host. Off TPUs the kernel is interpreted, which is for tests.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from vpjax.models.mask import sees, sees_some
from vpjax.models.remat import KEPT
from vpjax.types import Array

BLOCK, LANES = 512, 128  # tokens in a block at most; a block is a multiple of LANES
LAST = np.iinfo(np.int32).max


def attend(
    q_BQNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    index_dQ: np.ndarray,
    segment_BT: Array,
    prefix: int,
    suffix: int,
    *,
    device: jax.Array | int,
    interpret: bool,
) -> jax.Array:
    """Attention of queries to keys as ``mask.sees`` says, inside segments: [B, Q, N, H].

    index i32[devices, Q]: of the queries of each device among all T tokens. device: the number of this one.
    segment: of all tokens. Where it ascends along a row, blocks of scores between segments are left out.
    """
    count, keys = q_BQNH.shape[1], k_BTKH.shape[1]
    block, key_block = _block(count), _block(keys)
    index_dQ = np.pad(index_dQ.astype(np.int32), ((0, 0), (0, -count % block)), mode="edge")
    index_Q = jnp.asarray(index_dQ)[device]
    segment_BT = jnp.asarray(segment_BT, jnp.int32)
    segment_BQ = segment_BT[:, index_Q[:count]]
    first_key = np.arange(0, keys, key_block, dtype=np.int32)
    key_ends = first_key, first_key + np.int32(key_block - 1)

    def runs(index_Q: Any) -> Any:
        """bool[blocks of queries, blocks of keys]: the blocks of scores that are not wholly masked."""
        blocks = index_Q.reshape(-1, block)
        query_ends = blocks.min(axis=1)[:, None], blocks.max(axis=1)[:, None]
        return sees_some(prefix, suffix, query_ends, key_ends)

    on_devices = np.stack([runs(index) for index in index_dQ])
    widths = int(on_devices.sum(axis=2).max()), int(on_devices.sum(axis=1).max())
    runs_here = runs(index_Q)

    def of_row(q, k, v, segment_Q, segment_T):
        shared = _overlap(segment_Q.reshape(-1, block), segment_T.reshape(-1, key_block))
        infos = _infos(runs_here & shared, widths, index_Q)
        kernel = _kernel(*infos, block, key_block, sees(prefix, suffix), interpret)
        return kernel(q, k, v, splash.SegmentIds(segment_Q, segment_T))

    q, segment_BQ = (_padded(x, block) for x in (q_BQNH, segment_BQ))
    k, v, segment_BT = (_padded(x, key_block) for x in (k_BTKH, v_BTKH, segment_BT))
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    out = jax.vmap(of_row)(q * q.shape[-1] ** -0.5, k, v, segment_BQ, segment_BT)
    return out.swapaxes(1, 2).astype(q_BQNH.dtype)[:, :count]


def _kernel(
    by_query: MaskInfo,
    by_key: MaskInfo,
    block: int,
    key_block: int,
    mask_function: Callable[..., Any],
    interpret: bool,
) -> splash.SplashAttentionKernel:
    """The kernel of one row. by_query, by_key: ``_infos``. block, key_block: tokens in a block of queries and
    of keys."""
    return splash.SplashAttentionKernel(
        by_query,
        by_query,
        by_key,
        block_sizes=splash.BlockSizes(
            block, key_block, key_block, block, key_block, key_block, block, key_block
        ),
        is_mqa=False,
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=KEPT,
        mask_function=mask_function,
        interpret=interpret,
    )


def _block(count: int) -> int:
    """Tokens in a block of so many tokens: a multiple of LANES."""
    return min(BLOCK, math.ceil(count / LANES) * LANES)


def _padded(x: jax.Array, block: int) -> jax.Array:
    """``x`` [B, T, ...] with zeros up to whole blocks."""
    extra = -x.shape[1] % block
    return jnp.pad(x, ((0, 0), (0, extra), *[(0, 0)] * (x.ndim - 2)))


def _overlap(segment_Qb: jax.Array, segment_Kb: jax.Array) -> jax.Array:
    """bool[blocks of queries, blocks of keys]: whether the ranges of their segments overlap. Padding, 0,
    counts as the last segment."""

    def ranges(segment_Xb: jax.Array) -> tuple[jax.Array, jax.Array]:
        ordered = jnp.where(segment_Xb == 0, LAST, segment_Xb)
        return ordered.min(axis=1), ordered.max(axis=1)

    (own_first, own_last), (first, last) = ranges(segment_Qb), ranges(segment_Kb)
    return (own_first[:, None] <= last) & (first <= own_last[:, None])


def _infos(runs_QK: jax.Array, widths: tuple[int, int], index_Q: Any) -> tuple[MaskInfo, MaskInfo]:
    """What the kernel reads about its steps: of each block of queries the blocks of keys that run, and of
    each block of keys those of queries. widths: how many run at most."""

    def steps(runs: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
        """Along the last axis, the blocks that run, and then steps that do not; these name the last block
        that does, which is then not loaded again."""
        order = jnp.argsort(~runs, axis=1, stable=True)[:, :width]
        does_run = jnp.take_along_axis(runs, order, axis=1)
        last = jnp.maximum(does_run.sum(axis=1, keepdims=True) - 1, 0)
        named = jnp.where(does_run, order, jnp.take_along_axis(order, last, axis=1))
        # The smallest types, for they lie in a chip's small memory of scalars.
        return named.astype(np.min_scalar_type(-max(runs.shape))), does_run.astype(jnp.int8)

    named, does_run = steps(runs_QK, widths[0])
    by_query = MaskInfo(named[None], None, does_run[None], None, index_Q)
    named, does_run = steps(runs_QK.T, widths[1])
    return by_query, MaskInfo(named.T[None], None, does_run.T[None], None, index_Q)
