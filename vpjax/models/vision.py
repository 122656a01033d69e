"""The vision tower of Qwen2.5-VL: window and full attention inside each temporal patch, then a 2 x 2 merger.

Slots (temporal patches) never see one another, so the tower runs on a batch of slots and
``features(V~) == features(V)[source]`` holds exactly. Source: ``Qwen2_5_VisionTransformerPretrainedModel``.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vpjax.ops.attention import attend_blocks
from vpjax.ops.rope import rotate, vision_angles
from vpjax.sharding import split_rows
from vpjax.types import Array


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the tower. window: pixels; full_attention: indices of the layers without windows;
    pixel_mean, pixel_std: statistics that frames in 0..1 are normalised with."""

    depth: int
    hidden: int
    intermediate: int
    heads: int
    out_hidden: int
    patch: int = 14
    merge: int = 2
    temporal: int = 2
    window: int = 112
    full_attention: tuple[int, ...] = (7, 15, 23, 31)
    channels: int = 3
    pixel_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def factor(self) -> int:
        """Height and width of a frame are multiples of this many pixels: one merged token."""
        return self.patch * self.merge


@dataclasses.dataclass(frozen=True)
class Windows:
    """How one slot's merged units are laid out for window attention.

    order i32[U]: the unit at each place, padding places repeat unit 0; valid bool[W, U / W]: True at real
    units; inverse i32[units]: the place of each unit. W windows of equal, padded size.
    """

    order: np.ndarray
    valid: np.ndarray
    inverse: np.ndarray


@functools.lru_cache
def windows(rows: int, columns: int, side: int) -> Windows:
    """Cut ``rows`` x ``columns`` merged units into windows of ``side`` x ``side``; those at the edge are cut
    off."""
    units = np.arange(rows * columns).reshape(rows, columns)
    cuts = [
        units[r : r + side, c : c + side].ravel()
        for r in range(0, rows, side)
        for c in range(0, columns, side)
    ]
    longest = max(map(len, cuts))
    valid = np.array([np.arange(longest) < len(cut) for cut in cuts])
    order = np.concatenate([np.pad(cut, (0, longest - len(cut))) for cut in cuts])
    places = np.flatnonzero(valid)
    return Windows(order, valid, places[np.argsort(order[places])])


class Block(nnx.Module):
    """Pre-norm attention and gated MLP of one tower layer."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        linear = functools.partial(nnx.Linear, param_dtype=dtype, rngs=rngs)
        norm = functools.partial(nnx.RMSNorm, epsilon=1e-6, param_dtype=dtype, rngs=rngs)
        hidden = config.hidden
        self.heads = config.heads
        self.norm1 = norm(hidden)
        self.qkv = nnx.LinearGeneral(hidden, (3, hidden), param_dtype=dtype, rngs=rngs)
        self.proj = linear(hidden, hidden)
        self.norm2 = norm(hidden)
        self.gate = linear(hidden, config.intermediate)
        self.up = linear(hidden, config.intermediate)
        self.down = linear(config.intermediate, hidden)

    def __call__(self, x_XWTD: Array, angles_WTh: Array, valid_WT: Array | None, full: Array | bool) -> Array:
        """One layer on X slots of W windows of T patches; ``full`` attends to the whole slot."""
        qkv = self.qkv(self.norm1(x_XWTD))
        q, k, v = (qkv[..., i, :].reshape(*x_XWTD.shape[:-1], self.heads, -1) for i in range(3))
        q, k = rotate(q, angles_WTh), rotate(k, angles_WTh)

        def window(q, k, v):
            return attend_blocks(q, k, v, valid_WT)

        def whole(q, k, v):
            flat = [x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (q, k, v)]
            return attend_blocks(*flat, None if valid_WT is None else valid_WT.reshape(-1)).reshape(q.shape)

        attended = window(q, k, v) if x_XWTD.shape[1] == 1 else jax.lax.cond(full, whole, window, q, k, v)
        x = x_XWTD + self.proj(attended.reshape(x_XWTD.shape))
        h = self.norm2(x)
        return x + self.down(jax.nn.silu(self.gate(h)) * self.up(h))


class Merger(nnx.Module):
    """Each 2 x 2 unit of patches becomes one token of the decoder's width."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        wide = config.hidden * config.merge**2
        self.norm = nnx.RMSNorm(config.hidden, epsilon=1e-6, param_dtype=dtype, rngs=rngs)
        self.fc1 = nnx.Linear(wide, wide, param_dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(wide, config.out_hidden, param_dtype=dtype, rngs=rngs)

    def __call__(self, x_XMUD: Array) -> Array:
        """[X, M, patches of a unit, D] -> [X, M, decoder width]."""
        flat = self.norm(x_XMUD).reshape(*x_XMUD.shape[:2], -1)
        return self.fc2(jax.nn.gelu(self.fc1(flat), approximate=False))


class VisionTower(nnx.Module):
    """Patches of X slots -> M tokens of the decoder's width for each slot."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config = config
        pixels = config.channels * config.temporal * config.patch**2
        self.patch_embed = nnx.Linear(pixels, config.hidden, use_bias=False, param_dtype=dtype, rngs=rngs)
        self.blocks = jax.vmap(lambda key: Block(config, rngs=nnx.Rngs(key), dtype=dtype))(
            jax.random.split(rngs.params(), config.depth)
        )
        self.merger = Merger(config, rngs=rngs, dtype=dtype)

    def __call__(self, patches_XNP: Array, grid: tuple[int, int], *, remat: bool = False) -> Array:
        """patches [X, N, pixels of a patch] in merge-grouped order (``ops.patches.patchify``) of a frame of
        ``grid`` = (rows, columns) patches -> [X, M, decoder width]."""
        c = self.config
        unit = c.merge**2
        rows, columns = grid[0] // c.merge, grid[1] // c.merge
        layout = windows(rows, columns, c.window // c.factor)
        count, places = layout.valid.shape
        valid_WT = None if layout.valid.all() else jnp.asarray(layout.valid.repeat(unit, axis=1))

        def to_windows(x):  # [..., units, unit, D] -> [..., W, T, D]
            picked = (
                x if np.array_equal(layout.order, np.arange(rows * columns)) else x[..., layout.order, :, :]
            )
            return picked.reshape(*x.shape[:-3], count, places * unit, x.shape[-1])

        patch_rows, patch_columns = np.indices(grid).reshape(2, rows, c.merge, columns, c.merge)
        order = (patch_rows.transpose(0, 2, 1, 3).ravel(), patch_columns.transpose(0, 2, 1, 3).ravel())
        angles = vision_angles(*order, c.hidden // c.heads)
        angles_WTh = to_windows(angles.reshape(rows * columns, unit, -1))

        x = self.patch_embed(patches_XNP)
        x_XWTD = to_windows(x.reshape(x.shape[0], rows * columns, unit, -1))

        def layer(x, block_full):
            block, full = block_full
            return block(split_rows(x), angles_WTh, valid_WT, full), None

        full_L = np.isin(np.arange(c.depth), c.full_attention)
        x_XWTD, _ = jax.lax.scan(jax.checkpoint(layer) if remat else layer, x_XWTD, (self.blocks, full_L))
        units = x_XWTD.reshape(x.shape[0], count * places, unit, -1)[:, layout.inverse]
        return self.merger(units)
