"""The vision tower: window and full attention inside each temporal patch, then 2 x 2 mergers.

Slots (temporal patches) never see one another, so a row is a flat list of units of any number of slots of any
size, and a visual token of V~ is the unit of another slot, exactly. In names p counts the patches of a unit
and n those of a row, n = U * p. Sources:
``Qwen2_5_VisionTransformerPretrainedModel`` and ``Qwen3VLVisionModel`` of transformers, whose differences are
fields of VisionConfig.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vpjax.models.attention import attend_blocks, platform
from vpjax.models.context import cut_rows, whole_rows
from vpjax.models.gather import look_up, take
from vpjax.models.linear import Affine, Linear, widened
from vpjax.models.patches import normalised
from vpjax.models.remat import scan
from vpjax.models.rope import rotate, rotate_by_product, vision_angles
from vpjax.models.sharding import devices_along, split_parts, split_rows
from vpjax.models.swiglu import swiglu
from vpjax.types import Array, Units

TILE = 128  # channels that a TPU computes at once
CHUNK = 2048  # units of a row that go through a part of a layer at once


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
    """The visual features of rows of units.

    tokens [R, U, D]: used as the embeddings of the visual tokens. deep: additions [R, U, D] to the states of
    the visual tokens after the first, second, ... decoder layer (DeepStack, arXiv 2406.04334); may be ().
    """

    tokens: jax.Array
    deep: tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups inside which units attend: windows or slots. They lie in containers of ``size`` places.

    ids i32[R, containers, size]: the group at each place. patches: of a unit. places i32[R, containers *
    size]: the unit at each place, and binned i32[R, U]: the place of each unit; None: they are the same.
    devices: along the mesh's axis ``context``; all but places and binned are parts of rows (``cut_rows``).
    """

    ids: Array
    size: int
    patches: int
    places: Array | None = None
    binned: Array | None = None
    devices: int = 1

    @classmethod
    def of_windows(cls, units: Units, devices: int) -> "Groups":
        window = cut_rows(units.window, devices)
        ids = window.reshape(len(window), -1, units.block)
        return cls(ids, units.block, units.pixels.shape[2])

    @classmethod
    def of_slots(cls, units: Units, devices: int) -> "Groups":
        ids = jnp.where(units.bins < 0, -1, jnp.take_along_axis(units.slot, units.bins, axis=1))
        ids = cut_rows(ids, devices)
        ids = ids.reshape(len(ids), -1, units.bin)
        return cls(ids, units.bin, units.pixels.shape[2], units.bins, units.binned, devices)

    def attend(self, q_RnNH: jax.Array, k_RnNH: jax.Array, v_RnNH: jax.Array) -> jax.Array:
        """Attention of patches inside their groups: [R, n, N * H]."""
        rows, count, *heads = q_RnNH.shape
        unit_width = self.patches * math.prod(heads)

        def contained(x_RnNH):
            if self.places is not None:
                x_RnNH = self.take(x_RnNH.reshape(rows, count // self.patches, unit_width), self.places)
            return x_RnNH.reshape(rows, -1, self.size * self.patches, *heads)

        ids = jnp.repeat(jnp.asarray(self.ids), self.patches, axis=-1)
        q, k, v = (contained(x) for x in (q_RnNH, k_RnNH, v_RnNH))
        out = _in_chunks(attend_blocks, max(1, CHUNK // self.size), q, k, v, ids)
        if self.binned is not None:
            out = self.take(out.reshape(rows, -1, unit_width), self.binned)
        return out.reshape(rows, count, math.prod(heads))

    def take(self, x_RUD: jax.Array, index_RT: Array) -> jax.Array:
        """``gather.take`` of whole rows, whose parts may lie on several devices."""
        if self.devices > 1:
            x_RUD = split_rows(whole_rows(x_RUD, self.devices))
        return cut_rows(take(x_RUD, index_RT), self.devices)


def padded_units(units: Units, devices: int) -> Units:
    """``units`` with as many blocks and bins on each of so many devices."""

    def longer(x: Array, multiple: int, value: int) -> Array:
        more = -x.shape[1] % multiple
        if not more:
            return x
        return jnp.pad(x, ((0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)), constant_values=value)

    # As ``data.units.empty_units`` pads them.
    values = dict(pixels=0, place=1, grid=1, window=-1, slot=-1, binned=-1)
    arrays: dict[str, Any] = {
        name: longer(getattr(units, name), devices * units.block, x) for name, x in values.items()
    }
    bins = longer(units.bins, devices * max(units.bin, 1), -1)
    return dataclasses.replace(units, **arrays, bins=bins)


class LayerRun(NamedTuple):
    """The layers of the tower from ``start`` up to ``end``. is_full: patches attend to their whole slot, not
    to their window alone. gives_deep: the states after the last one are features of DeepStack."""

    start: int
    end: int
    is_full: bool
    gives_deep: bool


def layer_runs(config: VisionConfig) -> list[LayerRun]:
    """All layers, like ones together, which are scanned: a choice inside one scan would run slower."""
    runs: list[LayerRun] = []
    for layer in range(config.depth):
        is_full, gives_deep = not config.window or layer in config.full_attention, layer in config.deepstack
        if runs and runs[-1].is_full == is_full and not runs[-1].gives_deep:
            runs[-1] = LayerRun(runs[-1].start, layer + 1, is_full, gives_deep)
        else:
            runs.append(LayerRun(layer, layer + 1, is_full, gives_deep))
    return runs


def patch_places(units: Units, merge: int) -> jax.Array:
    """Row and column i32[R, U, p, 2] of each patch in its slot."""
    inside = np.array(list(np.ndindex(merge, merge)))
    return merge * jnp.asarray(units.place)[:, :, None] + inside


def _in_chunks(function: Callable, size: int, *arrays: Array) -> Any:
    """``function`` of arrays [R, n, ...], at most ``size`` of the n at a time, recomputed in the backward
    pass: the temporaries of a long row would not fit a chip."""
    if arrays[0].shape[1] <= size:
        return function(*arrays)

    def one(parts):
        return jax.tree.map(lambda x: x[:, 0], function(*(x[:, None] for x in parts)))

    by_place = [jnp.moveaxis(x, 1, 0) for x in arrays]
    out = jax.lax.map(jax.checkpoint(one), by_place, batch_size=size)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), out)


def _norm_layer(model_config: VisionConfig, width: int, **options: Any) -> nnx.LayerNorm | nnx.RMSNorm:
    if model_config.layer_norm:
        return nnx.LayerNorm(width, epsilon=1e-6, use_fast_variance=False, **options)
    return nnx.RMSNorm(width, epsilon=1e-6, **options)


class Block(nnx.Module):
    """Pre-norm attention and MLP of one tower layer."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        linear = functools.partial(Linear, param_dtype=dtype, rngs=rngs)
        norm = functools.partial(_norm_layer, config, param_dtype=dtype, rngs=rngs)
        hidden = config.hidden
        self.heads, self.gated = config.heads, config.gated
        self.norm1 = norm(hidden)
        self.qkv = linear(hidden, 3, hidden)
        self.proj = linear(hidden, hidden)
        self.norm2 = norm(hidden)
        if self.gated:
            self.gate = linear(hidden, config.intermediate)
        self.up = linear(hidden, config.intermediate)
        self.down = linear(config.intermediate, hidden)

    def __call__(self, x_RnD: jax.Array, angles_Rnh: Array, groups: Groups) -> jax.Array:
        """One layer on patches, which attend inside their group."""
        gate, up, down = self.mlp()
        turn = rotate_by_product if platform() == "tpu" else rotate

        def project(x, angles):
            qkv = self.qkv(self.norm1(x))
            q, k, v = (qkv[..., i, :].reshape(*x.shape[:-1], self.heads, -1) for i in range(3))
            return turn(q, angles), turn(k, angles), v

        def rest(x, attended):
            x = x + self.proj(attended)
            h = self.norm2(x)
            return x + down(swiglu(gate(h), up(h)) if gate else jax.nn.gelu(up(h)))

        chunk = CHUNK * groups.patches
        qkv = _in_chunks(project, chunk, x_RnD, angles_Rnh)
        return _in_chunks(rest, chunk, x_RnD, groups.attend(*qkv))

    def mlp(self) -> tuple[Linear | None, Linear, Linear]:
        """Its layers, gate (None without one), up and down. For a TPU those between up and down are padded to
        whole tiles: without, products with the 3,420 of Qwen2.5-VL take nearly twice as long."""
        gate = self.gate if self.gated else None
        more = -self.up.out[0] % TILE
        if platform() != "tpu" or not more:
            return gate, self.up, self.down
        if gate is not None:
            gate = widened(gate, outputs=more)
        return gate, widened(self.up, outputs=more), widened(self.down, inputs=more)


class Merger(nnx.Module):
    """Each 2 x 2 unit of patches becomes one token of the decoder's width. norm_unit: normalise whole units,
    not single patches."""

    def __init__(self, config: VisionConfig, *, norm_unit: bool = False, rngs: nnx.Rngs, dtype=jnp.float32):
        wide = config.hidden * config.merge**2
        self.norm_unit = norm_unit
        self.norm = _norm_layer(config, wide if norm_unit else config.hidden, param_dtype=dtype, rngs=rngs)
        self.fc1 = Linear(wide, wide, param_dtype=dtype, rngs=rngs)
        self.fc2 = Linear(wide, config.out_hidden, param_dtype=dtype, rngs=rngs)

    def __call__(self, x_RUpD: jax.Array) -> jax.Array:
        """[R, U, patches of a unit, D] -> [R, U, decoder width]."""
        flat_shape = (*x_RUpD.shape[:-2], -1)
        if self.norm_unit:
            flat = self.norm(x_RUpD.reshape(flat_shape))
        else:
            flat = self.norm(x_RUpD).reshape(flat_shape)
        return self.fc2(jax.nn.gelu(self.fc1(flat), approximate=False))


class VisionTower(nnx.Module):
    """Units of patches -> one token of the decoder's width for each unit."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config = c = config
        pixels = c.channels * c.temporal * c.patch**2
        # A convolution in transformers, it takes no adapter.
        self.patch_embed = Affine(pixels, c.hidden, use_bias=c.patch_bias, param_dtype=dtype, rngs=rngs)
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

    def learned_positions(self, units: Units) -> jax.Array:
        """The table of learned positions, interpolated bilinearly at every patch: [R, U, p, D].

        Source: ``get_vision_interpolation_indices_and_weights`` of transformers."""
        side = self.config.position_side
        table = self.positions[...]
        count_RU2 = jnp.asarray(units.grid) * self.config.merge
        scale_RU2 = (side - 1) / jnp.maximum(count_RU2 - 1, 1).astype(jnp.float32)
        at_RUp2 = patch_places(units, self.config.merge) * scale_RU2[:, :, None]
        low_RUp2 = jnp.clip(jnp.floor(at_RUp2).astype(jnp.int32), 0, max(side - 2, 0))
        share_RUp2 = (at_RUp2 - low_RUp2).astype(table.dtype)
        total = jnp.zeros((), table.dtype)
        for corner in itertools.product((0, 1), repeat=2):
            row, column = (jnp.minimum(low_RUp2[..., i] + corner[i], side - 1) for i in (0, 1))
            weights = [share_RUp2[..., i] if corner[i] else 1 - share_RUp2[..., i] for i in (0, 1)]
            total = total + (weights[0] * weights[1])[..., None] * look_up(table, row * side + column)
        return total

    def __call__(self, units: Units, *, recompute: float | None = None) -> Features:
        """The features of rows of units. recompute: of the decoder's layers, see ``remat.scan``; unless it is
        None, all layers of the tower are computed again."""
        c, devices = self.config, devices_along("context")
        dtype = self.patch_embed.kernel.dtype
        if devices > 1:
            units = padded_units(units, devices)
        windows = Groups.of_windows(units, devices)
        slots = Groups.of_slots(units, devices) if units.bins.shape[1] else windows
        # From here on each device has its part of a row as a row.
        parts: dict[str, Any] = {
            name: cut_rows(getattr(units, name), devices) for name in ("pixels", "place", "grid")
        }
        units = dataclasses.replace(units, **parts)
        x_RUpD = self.patch_embed(normalised(units.pixels, c.pixel_mean, c.pixel_std).astype(dtype))
        if c.position_side:
            x_RUpD = x_RUpD + self.learned_positions(units)
        by_unit = x_RUpD.shape
        x_RnD = x_RUpD.reshape(by_unit[0], -1, c.hidden)
        places = patch_places(units, c.merge).reshape(by_unit[0], -1, 2)
        angles = vision_angles(places[..., 0], places[..., 1], c.hidden // c.heads)

        def run(x, layers: slice, groups: Groups):
            def layer(x, block):
                return block(split_parts(x), angles, groups), None

            return scan(layer, x, _cut(self.blocks, layers), None if recompute is None else 1.0)

        deep: list[jax.Array] = []
        for layers in layer_runs(c):
            groups = slots if layers.is_full else windows
            x_RnD = run(x_RnD, slice(layers.start, layers.end), groups)
            if layers.gives_deep:
                deep.append(_cut(self.deepstack, len(deep))(x_RnD.reshape(by_unit)))
        tokens = self.merger(x_RnD.reshape(by_unit))
        return Features(*jax.tree.map(lambda x: whole_rows(x, devices), (tokens, tuple(deep))))


def _cut(stack: Any, at: slice | int) -> Any:
    """The layers ``at`` of a stack."""
    return jax.tree.map(lambda p: p[at], stack)
