"""The vision tower: window and full attention inside each temporal patch, then 2 x 2 mergers.

Slots (temporal patches) never see one another, so the tower runs on a batch of slots and
``features(V~) == features(V)[source]`` holds exactly. Sources: ``Qwen2_5_VisionTransformerPretrainedModel``
and ``Qwen3VLVisionModel`` of transformers, whose differences are fields of VisionConfig.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vpjax.models.attention import attend_blocks
from vpjax.models.patches import interpolation
from vpjax.models.rope import rotate, vision_angles
from vpjax.models.sharding import split_rows
from vpjax.models.swiglu import swiglu
from vpjax.types import Array


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the tower and the choices of its family; the defaults are Qwen2.5-VL's.

    window: side in pixels, 0: no layer has windows. full_attention: indices of the layers without windows.
    pixel_mean, pixel_std: normalise frames with values of 0 to 1. layer_norm: LayerNorm instead of RMSNorm.
    gated: the MLP computes silu(gate) * up, else gelu(up). patch_bias: of the patch embedding.
    position_side: rows and columns of the table of learned positions, 0: none. deepstack: indices of the
    layers whose states go to the decoder too, ascending.
    """

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
    layer_norm: bool = False
    gated: bool = True
    patch_bias: bool = False
    position_side: int = 0
    deepstack: tuple[int, ...] = ()

    @property
    def factor(self) -> int:
        """Height and width of a frame are multiples of this many pixels: one merged token."""
        return self.patch * self.merge


class Features(NamedTuple):
    """The visual features of a video; every array is [..., M, D], M tokens of a slot.

    tokens: used as the embeddings of the visual tokens. deep: additions to the states of the visual tokens
    after the first, second, ... decoder layer (DeepStack, arXiv 2406.04334); may be ().
    """

    tokens: jax.Array
    deep: tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Windows:
    """The order of a slot's merged units (tokens) for attention in W windows, padded to equal size.

    order i32[U]: the unit at each place; padding repeats unit 0. valid bool[W, U / W]: False at padding.
    inverse i32[units]: the place of each unit.
    """

    order: np.ndarray
    valid: np.ndarray
    inverse: np.ndarray


@functools.lru_cache
def windows(rows: int, columns: int, side: int) -> Windows:
    """Windows of ``side`` x ``side`` over ``rows`` x ``columns`` merged units, smaller at the edges."""
    units = np.arange(rows * columns).reshape(rows, columns)
    cuts = [
        units[r : r + side, c : c + side].ravel()
        for r in range(0, rows, side)
        for c in range(0, columns, side)
    ]
    longest = max(len(cut) for cut in cuts)
    valid = np.array([np.arange(longest) < len(cut) for cut in cuts])
    order = np.concatenate([np.pad(cut, (0, longest - len(cut))) for cut in cuts])
    places = np.flatnonzero(valid)
    return Windows(order, valid, places[np.argsort(order[places])])


def _norm_layer(model_config: VisionConfig, width: int, **options: Any) -> nnx.LayerNorm | nnx.RMSNorm:
    if model_config.layer_norm:
        return nnx.LayerNorm(width, epsilon=1e-6, use_fast_variance=False, **options)
    return nnx.RMSNorm(width, epsilon=1e-6, **options)


class Block(nnx.Module):
    """Pre-norm attention and MLP of one tower layer."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        linear = functools.partial(nnx.Linear, param_dtype=dtype, rngs=rngs)
        norm = functools.partial(_norm_layer, config, param_dtype=dtype, rngs=rngs)
        hidden = config.hidden
        self.heads, self.gated = config.heads, config.gated
        self.norm1 = norm(hidden)
        self.qkv = nnx.LinearGeneral(hidden, (3, hidden), param_dtype=dtype, rngs=rngs)
        self.proj = linear(hidden, hidden)
        self.norm2 = norm(hidden)
        if self.gated:
            self.gate = linear(hidden, config.intermediate)
        self.up = linear(hidden, config.intermediate)
        self.down = linear(config.intermediate, hidden)

    def __call__(
        self, x_XWTD: jax.Array, angles_WTh: Array, valid_WT: jax.Array | None, full: jax.Array
    ) -> jax.Array:
        """One layer on X slots of W windows of T patches. If ``full``, patches attend to their whole slot."""
        qkv = self.qkv(self.norm1(x_XWTD))
        q, k, v = (qkv[..., i, :].reshape(*x_XWTD.shape[:-1], self.heads, -1) for i in range(3))
        q, k = rotate(q, angles_WTh), rotate(k, angles_WTh)

        def window(q, k, v):
            return attend_blocks(q, k, v, valid_WT)

        def whole(q, k, v):
            valid = None if valid_WT is None else valid_WT.reshape(-1)
            flat_q, flat_k, flat_v = (x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (q, k, v))
            return attend_blocks(flat_q, flat_k, flat_v, valid).reshape(q.shape)

        attended = window(q, k, v) if x_XWTD.shape[1] == 1 else jax.lax.cond(full, whole, window, q, k, v)
        x = x_XWTD + self.proj(attended.reshape(x_XWTD.shape))
        h = self.norm2(x)
        up = self.up(h)
        return x + self.down(swiglu(self.gate(h), up) if self.gated else jax.nn.gelu(up))


class Merger(nnx.Module):
    """Each 2 x 2 unit of patches becomes one token of the decoder's width. norm_unit: normalise whole units,
    not single patches."""

    def __init__(self, config: VisionConfig, *, norm_unit: bool = False, rngs: nnx.Rngs, dtype=jnp.float32):
        wide = config.hidden * config.merge**2
        self.norm_unit = norm_unit
        self.norm = _norm_layer(config, wide if norm_unit else config.hidden, param_dtype=dtype, rngs=rngs)
        self.fc1 = nnx.Linear(wide, wide, param_dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(wide, config.out_hidden, param_dtype=dtype, rngs=rngs)

    def __call__(self, x_XMUD: jax.Array) -> jax.Array:
        """[X, M, patches of a unit, D] -> [X, M, decoder width]."""
        flat_shape = (*x_XMUD.shape[:2], -1)
        if self.norm_unit:
            flat = self.norm(x_XMUD.reshape(flat_shape))
        else:
            flat = self.norm(x_XMUD).reshape(flat_shape)
        return self.fc2(jax.nn.gelu(self.fc1(flat), approximate=False))


class VisionTower(nnx.Module):
    """Patches of X slots -> M tokens of the decoder's width for each slot."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config = c = config
        pixels = c.channels * c.temporal * c.patch**2
        self.patch_embed = nnx.Linear(pixels, c.hidden, use_bias=c.patch_bias, param_dtype=dtype, rngs=rngs)
        self.blocks = jax.vmap(lambda key: Block(config, rngs=nnx.Rngs(key), dtype=dtype))(
            jax.random.split(rngs.params(), c.depth)
        )
        self.merger = Merger(config, rngs=rngs, dtype=dtype)
        if c.position_side:
            self.positions = nnx.Param(
                0.02 * jax.random.normal(rngs.params(), (c.position_side**2, c.hidden), dtype)
            )
        if c.deepstack:
            self.deepstack = jax.vmap(
                lambda key: Merger(config, norm_unit=True, rngs=nnx.Rngs(key), dtype=dtype)
            )(jax.random.split(rngs.params(), len(c.deepstack)))

    def learned_positions(self, grid: tuple[int, int]) -> jax.Array:
        """The table of learned positions, bilinearly interpolated to ``grid``: [rows, columns, D]."""
        side = self.config.position_side
        rows, columns = (interpolation(count, side) for count in grid)
        table = self.positions[...].reshape(side, side, -1)
        return jnp.einsum("rh,cw,hwd->rcd", rows, columns, table).astype(table.dtype)

    def __call__(self, patches_XNP: jax.Array, grid: tuple[int, int], *, remat: bool = False) -> Features:
        """Features [X, M, decoder width] of patches [X, N, pixels of a patch] in the order of
        ``patches.patchify``. grid: rows, columns of patches. remat: recompute layers in the backward pass."""
        c = self.config
        unit = c.merge**2
        rows, columns = grid[0] // c.merge, grid[1] // c.merge
        layout = windows(rows, columns, c.window // c.factor or max(rows, columns))
        count, places = layout.valid.shape
        valid_WT = None if layout.valid.all() else jnp.asarray(layout.valid.repeat(unit, axis=1))

        def to_windows(x):  # [..., units, unit, D] -> [..., W, T, D]
            if not np.array_equal(layout.order, np.arange(rows * columns)):
                x = x[..., layout.order, :, :]
            return x.reshape(*x.shape[:-3], count, places * unit, x.shape[-1])

        patch_rows, patch_columns = np.indices(grid).reshape(2, rows, c.merge, columns, c.merge)
        order = (patch_rows.transpose(0, 2, 1, 3).ravel(), patch_columns.transpose(0, 2, 1, 3).ravel())
        angles = vision_angles(*order, c.hidden // c.heads)
        angles_WTh = to_windows(angles.reshape(rows * columns, unit, -1))

        x = self.patch_embed(patches_XNP)
        if c.position_side:
            x = x + self.learned_positions(grid)[order]
        x_XWTD = to_windows(x.reshape(x.shape[0], rows * columns, unit, -1))

        def layer(x, block_full):
            block, full = block_full
            return block(split_rows(x), angles_WTh, valid_WT, full), None

        full_L = np.isin(np.arange(c.depth), c.full_attention)
        body = jax.checkpoint(layer) if remat else layer
        states = []  # after each layer of ``deepstack`` and after the last layer
        for start, end in itertools.pairwise((0, *(i + 1 for i in c.deepstack), c.depth)):
            x_XWTD, _ = jax.lax.scan(body, x_XWTD, _cut((self.blocks, full_L), slice(start, end)))
            states.append(x_XWTD.reshape(x.shape[0], count * places, unit, -1)[:, layout.inverse])
        deep = tuple(_cut(self.deepstack, i)(state) for i, state in enumerate(states[:-1]))
        return Features(self.merger(states[-1]), deep)


def _cut(stack: Any, at: slice | int) -> Any:
    """The layers ``at`` of a stack."""
    return jax.tree.map(lambda p: p[at], stack)
