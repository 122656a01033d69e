"""Rows whose tokens are split over several devices, those along the axis ``context`` of the mesh.

All but attention looks at one token at a time and needs nothing of the others. For attention keys and values
of all tokens are gathered, of which a model has several times fewer heads than of queries, and queries stay
where they are (arXiv 2407.21783, section 3.3.2). A token sees the tokens before it: so that all devices
compute as many scores, a row is cut into twice as many pieces as there are n devices, and device i has pieces
i and 2 n - 1 - i.

What follows the tokens of a row, a branch or completions, is split in the same way, and on each device stands
after its tokens. So an array [B, T, ...] of them has its parts in an order of its own: ``spread`` and
``joined`` lead there, and ``apart`` back to the parts.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.models.sharding import devices_along, split_parts, split_tokens
from vpjax.types import Array, Strip

AXIS = "context"


def devices_for(*counts: int) -> int:
    """The devices over which rows of so many tokens, and of so many after them, are split: all along the
    axis if every count divides by them, else 1: each computes all tokens."""
    devices = devices_along(AXIS)
    return 1 if any(count % devices for count in counts) else devices


def tokens_of(count: int, devices: int) -> np.ndarray:
    """i32[devices, count / devices]: the tokens of each device."""
    if count % (2 * devices):
        return np.arange(count, dtype=np.int32).reshape(devices, -1)
    pieces = np.arange(count, dtype=np.int32).reshape(2 * devices, -1)
    return np.concatenate([pieces[:devices], pieces[devices:][::-1]], axis=1)


def places_of(count: int, devices: int) -> np.ndarray:
    """i32[count]: the place of each token in an array that is ``spread``."""
    return np.argsort(tokens_of(count, devices).ravel()).astype(np.int32)


def placed(index: Array, count: int, devices: int) -> Array:
    """The places of the tokens ``index`` of ``count``; -1 stays."""
    if devices == 1:
        return index
    index = jnp.asarray(index)
    return jnp.where(index < 0, -1, jnp.asarray(places_of(count, devices))[index])


def spread(x: Array, devices: int, axis: int = 1) -> Array:
    """``x`` with its tokens in the order of the devices."""
    if devices == 1:
        return x
    return jnp.take(jnp.asarray(x), tokens_of(x.shape[axis], devices).ravel(), axis=axis)


def spread_strip(strip: Strip, devices: int) -> Strip:
    """``strip`` with its tokens in the order of the devices."""
    if devices == 1:
        return strip
    arrays = {name: spread(x, devices) for name, x in vars(strip).items() if name != "positions"}
    return dataclasses.replace(strip, **arrays, positions=spread(strip.positions, devices, axis=2))


def joined(parts: Sequence[Array], devices: int, axis: int = 1) -> jax.Array:
    """Parts [B, T, ...] that are spread, each device's own tokens together."""
    if devices > 1:
        parts = [_by_device(x, devices, axis) for x in parts]
        axis += 1
    x = jnp.concatenate([jnp.asarray(part) for part in parts], axis=axis)
    return x if devices == 1 else _merged(x, axis - 1)


def apart(x: jax.Array, counts: Sequence[int], devices: int, axis: int = 1) -> list[jax.Array]:
    """The parts of so many tokens of an array that is ``joined``."""
    ends = np.cumsum(counts)[:-1] // devices
    if devices == 1:
        return jnp.split(x, ends, axis=axis)
    return [_merged(part, axis) for part in jnp.split(_by_device(x, devices, axis), ends, axis=axis + 1)]


def gather(x: jax.Array, counts: Sequence[int], devices: int) -> jax.Array:
    """All tokens, in their order, of an array [B, t, ...] of which each device has its own, joined from parts
    of so many tokens. Called on every device."""
    if devices == 1:
        return x
    x = jax.lax.all_gather(x, AXIS, axis=1, tiled=True)
    parts = zip(apart(x, counts, devices), counts, strict=True)
    return jnp.concatenate([_in_order(part, count, devices) for part, count in parts], axis=1)


def cut_rows(x: Array, devices: int) -> jax.Array:
    """[B * devices, T / devices, ...]: the parts of rows [B, T, ...], one on each device, in their order."""
    if devices == 1:
        return jnp.asarray(x)
    rows, count = x.shape[:2]
    x = split_tokens(jnp.asarray(x), devices)
    return split_parts(x.reshape(rows * devices, count // devices, *x.shape[2:]))


def whole_rows(x: jax.Array, devices: int) -> jax.Array:
    """The inverse of ``cut_rows``. The parts stay where they are."""
    if devices == 1:
        return x
    return split_tokens(x.reshape(x.shape[0] // devices, devices * x.shape[1], *x.shape[2:]), devices)


def device_number(devices: int) -> jax.Array | int:
    """The number of this device along the axis. Called on every device."""
    return 0 if devices == 1 else jax.lax.axis_index(AXIS)


def _in_order(x: jax.Array, count: int, devices: int) -> jax.Array:
    """The inverse of ``spread``, for an array [B, count, ...] that one device holds."""
    if count % (2 * devices):
        return x
    pieces = x.reshape(x.shape[0], devices, 2, -1, *x.shape[2:])
    pieces = jnp.concatenate([pieces[:, :, 0], pieces[:, ::-1, 1]], axis=1)
    return pieces.reshape(x.shape)


def _by_device(x: Array, devices: int, axis: int) -> jax.Array:
    return jnp.asarray(x).reshape(*x.shape[:axis], devices, x.shape[axis] // devices, *x.shape[axis + 1 :])


def _merged(x: jax.Array, axis: int) -> jax.Array:
    return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])
