"""The mesh, and where each parameter lives on it.

Axes: ``data`` copies the parameters, ``fsdp`` splits them and the batch, ``tensor`` splits heads and MLPs.
Batches are split over (data, fsdp) together.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vpjax.types import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))

# One ordered table: the first pattern that matches a whole path decides. The leading axis of stacked layers
# is never split, for a scan walks along it.
TABLE: tuple[tuple[str, P], ...] = (
    (r"decoder\.(embed|lm_head)", P("tensor", "fsdp")),
    (r"decoder\.layers\.(q|k|v|gate|up)\.kernel", P(None, "fsdp", "tensor")),
    (r"decoder\.layers\.(q|k|v)\.bias", P(None, "tensor")),
    (r"decoder\.layers\.(o|down)\.kernel", P(None, "tensor", "fsdp")),
    (r"vision\.patch_embed\.kernel", P(None, "fsdp")),
    (r"vision\.blocks\.qkv\.kernel", P(None, "fsdp", None, "tensor")),
    (r"vision\.blocks\.qkv\.bias", P(None, None, "tensor")),
    (r"vision\.blocks\.(gate|up)\.kernel", P(None, "fsdp", "tensor")),
    (r"vision\.blocks\.(gate|up)\.bias", P(None, "tensor")),
    (r"vision\.blocks\.(proj|down)\.kernel", P(None, "tensor", "fsdp")),
    (r"vision\.blocks\.(proj|down)\.bias", P()),
    (r"vision\.merger\.fc1\.kernel", P("fsdp", "tensor")),
    (r"vision\.merger\.fc1\.bias", P("tensor")),
    (r"vision\.merger\.fc2\.kernel", P("tensor", "fsdp")),
    (r"vision\.deepstack\.fc1\.kernel", P(None, "fsdp", "tensor")),
    (r"vision\.deepstack\.fc1\.bias", P(None, "tensor")),
    (r"vision\.deepstack\.fc2\.kernel", P(None, "tensor", "fsdp")),
    (r"vision\.(patch_embed|merger\.fc2|deepstack\.fc2)\.bias", P()),
    (r"vision\.positions", P(None, "fsdp")),
    (r".*\.(\w_)?norm\d?\.(scale|bias)", P()),
    (r"heads\..*", P()),
)


def make_mesh(sizes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of ``sizes``: devices per axis of AXES, of which one may be -1, all the others.

    Neighbours on the mesh are neighbours by wire. Several TPU slices lie along ``data``, so that only
    gradients travel between them. UserError where the sizes do not multiply to the number of devices, or
    ``data`` does not divide into the slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes[axis] for axis in AXES]
    fixed = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and fixed > 0 and len(devices) % fixed == 0:
        shape[shape.index(-1)] = len(devices) // fixed
    if math.prod(shape) != len(devices) or min(shape) < 1:
        asked = ", ".join(f"{axis}={sizes[axis]}" for axis in AXES)
        raise UserError(
            f"config.mesh: {asked} does not fit {len(devices)} devices; use one -1, or sizes of that product"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices:
        raise UserError(
            f"config.mesh.data={shape[0]} must be a multiple of {slices}, the number of TPU slices"
        )
    if slices > 1:
        inside, between = (shape[0] // slices, *shape[1:]), (slices, 1, 1)
        return Mesh(
            mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True),
            AXES,
        )
    return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES)


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The PartitionSpec of the parameter at ``path``. UserError where a dimension does not divide by its
    axis."""
    spec = next((spec for pattern, spec in TABLE if re.fullmatch(pattern, path)), None)
    if spec is None or len(spec) > len(shape):
        raise ValueError(f"sharding.TABLE has no row for {path} {shape}")
    for dimension, axis in zip(shape, spec, strict=False):
        if axis is not None and dimension % mesh.shape[axis]:
            raise UserError(
                f"config.mesh.{axis}={mesh.shape[axis]} does not divide {dimension}, a side of {path} {shape}"
            )
    return spec


def shardings(shapes: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """The sharding of each parameter of ``{path: array or shape struct}``."""
    return {path: NamedSharding(mesh, spec_of(path, x.shape, mesh)) for path, x in shapes.items()}


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array of a Batch: rows split over (data, fsdp)."""
    return NamedSharding(mesh, ROWS)


def in_use(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Within it, what is traced splits activations over ``mesh`` (``split_rows``)."""
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def split_rows(x: jax.Array) -> jax.Array:
    """``x`` [B, ...], its rows over (data, fsdp) of the mesh ``in_use``; without one, ``x``.

    Parameters are split over fsdp as well: left to choose, XLA splits the last axis of activations to match,
    and every device computes all rows.
    """
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, ROWS)


def split_width(x: jax.Array) -> jax.Array:
    """``x`` [B, ..., D], its last axis over fsdp as the rows of kernels are, its rows over data alone.

    For few tokens at a time, as in decoding: products with kernels that stay where they are then move
    activations, which are small there, and never weights (2-D weight-stationary: Pope et al., 2211.05102).
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P("data", *[None] * (x.ndim - 2), "fsdp"))


def split_heads(x: jax.Array, rows: str | tuple[str, ...] = ROWS[0]) -> jax.Array:
    """``x`` [B, ..., N, H], its rows over the axes ``rows``, its heads over tensor where they divide."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    heads = None if x.shape[-2] % mesh.shape["tensor"] else "tensor"
    return jax.lax.with_sharding_constraint(x, P(rows, *[None] * (x.ndim - 3), heads, None))


def split_vocabulary(x: jax.Array) -> jax.Array:
    """An output projection ``x`` [O, D], O over tensor and fsdp where it divides, else whole on every device:
    each has the logits of some words, and nothing is summed over devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, P(_words(x.shape[0], mesh)))


def split_logits(x: jax.Array) -> jax.Array:
    """Logits ``x`` [B, ..., O], O as in ``split_vocabulary``, rows over data alone; where O does not divide,
    over fsdp too."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    words = _words(x.shape[-1], mesh)
    rows = "data" if words else ROWS[0]
    return jax.lax.with_sharding_constraint(x, P(rows, *[None] * (x.ndim - 2), words))


def _words(count: int, mesh: jax.sharding.AbstractMesh) -> tuple[str, str] | None:
    """The axes over which a vocabulary of ``count`` words is split."""
    axes = ("tensor", "fsdp")
    return None if count % math.prod(mesh.shape[axis] for axis in axes) else axes


def on_mesh(mesh: Mesh | None, function: Callable[..., Any], *, rows: bool = False) -> Callable[..., Any]:
    """``function``, jitted for arguments on ``mesh``; what it returns is split by rows or, by default, whole
    on every device and so in every process. Without a mesh, ``function``."""
    if mesh is None:
        return function

    def within(*arguments: Any) -> Any:
        with in_use(mesh):
            return function(*arguments)

    return jax.jit(within, out_shardings=batch_sharding(mesh) if rows else replicated(mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def row_parts(mesh: Mesh | None) -> int:
    """How many parts the rows of a batch are split into."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def check_rows(rows: int, mesh: Mesh, field: str) -> None:
    """UserError where ``rows``, which ``field`` gives, do not divide over the devices that rows are split
    over."""
    count = row_parts(mesh)
    if rows % count:
        raise UserError(
            f"{field} = {rows} rows do not divide over data * fsdp = {count} of config.mesh: change one"
        )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch as global arrays. UserError where the rows do not divide over the
    mesh."""
    check_rows(len(batch.clip) * jax.process_count(), mesh, "config.batch")
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put_whole(batch: Any, mesh: Mesh | None) -> Any:
    """A batch that every process holds whole as global arrays; without a mesh, as it is."""
    if mesh is None:
        return batch
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), batch)
