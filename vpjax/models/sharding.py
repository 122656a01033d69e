"""The mesh, and how parameters, batches and activations are split over it.

Axes: ``data`` copies the parameters, ``fsdp`` splits them and the batch, ``tensor`` splits heads and MLPs.
Batches are split over (data, fsdp) together.
"""

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vpjax.types import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))

# The first pattern that matches a whole path applies. The leading axis of stacked layers is never split, for
# a scan runs along it.
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
    # Adapters: the sides that they share with their kernel are split as there.
    (r"(decoder\.layers|vision\.(blocks|deepstack))\.(q|k|v|qkv|gate|up|fc1)\.lora_a", P(None, "fsdp")),
    (r"(decoder\.layers|vision\.(blocks|deepstack))\.(q|k|v|gate|up|fc1)\.lora_b", P(None, None, "tensor")),
    (r"(decoder\.layers|vision\.(blocks|deepstack))\.(o|proj|down|fc2)\.lora_a", P(None, "tensor")),
    (r"(decoder\.layers|vision\.(blocks|deepstack))\.(o|proj|down|fc2)\.lora_b", P(None, None, "fsdp")),
    (r"vision\.blocks\.qkv\.lora_b", P(None, None, None, "tensor")),
    (r"vision\.merger\.fc1\.lora_a", P("fsdp")),
    (r"vision\.merger\.fc1\.lora_b", P(None, "tensor")),
    (r"vision\.merger\.fc2\.lora_a", P("tensor")),
    (r"vision\.merger\.fc2\.lora_b", P(None, "fsdp")),
    (r".*\.kernel_scale", P()),  # a number for each output of a layer
    (r".*\.(\w_)?norm\d?\.(scale|bias)", P()),
    (r"heads\..*", P()),
)


def make_mesh(sizes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of ``sizes``, devices per axis of AXES; one may be -1, which is replaced by what fits.

    Devices that are neighbours on the mesh are connected directly. Several TPU slices lie along ``data``, so
    that only gradients travel between slices. UserError if the product of the sizes is not the number of
    devices, or ``data`` is not a multiple of the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes[axis] for axis in AXES]
    fixed = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and fixed > 0 and len(devices) % fixed == 0:
        shape[shape.index(-1)] = len(devices) // fixed
    if math.prod(shape) != len(devices) or min(shape) < 1:
        given = ", ".join(f"{axis}={sizes[axis]}" for axis in AXES)
        raise UserError(
            f"config.mesh: {given} does not fit {len(devices)} devices; use one -1, or sizes of that product"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices:
        raise UserError(
            f"config.mesh.data={shape[0]} must be a multiple of {slices}, the number of TPU slices"
        )
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        inside, between = (shape[0] // slices, *shape[1:]), (slices, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES)


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The PartitionSpec of a parameter. UserError if a dimension does not divide by its axis."""
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
    """The sharding of each parameter, given as ``{path: array or shape struct}``."""
    return {path: NamedSharding(mesh, spec_of(path, x.shape, mesh)) for path, x in shapes.items()}


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array of a Batch: rows split over (data, fsdp)."""
    return NamedSharding(mesh, ROWS)


def in_use(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """A context in which programs are traced for ``mesh``: the functions below split activations over it.
    Without a mesh in use they return their argument."""
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def _constrain(x: jax.Array, spec: P) -> jax.Array:
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec)


def split_rows(x: jax.Array) -> jax.Array:
    """``x`` [B, ...], its rows over (data, fsdp).

    Parameters are split over fsdp too: without this constraint, XLA splits the last axis of activations to
    match, and every device computes all rows.
    """
    return _constrain(x, ROWS)


def split_width(x: jax.Array) -> jax.Array:
    """``x`` [B, ..., D], its last axis over fsdp like the rows of kernels, its rows over data alone.

    For few tokens at a time, as in decoding: products with kernels then move activations, which are small
    there, and never weights (2-D weight-stationary: Pope et al., arXiv 2211.05102).
    """
    return _constrain(x, P("data", *[None] * (x.ndim - 2), "fsdp"))


def split_heads(x: jax.Array, rows: str | tuple[str, ...] = ROWS[0]) -> jax.Array:
    """``x`` [B, ..., N, H], its rows over the axes ``rows``, its heads over tensor if they divide."""
    heads = "tensor" if x.shape[-2] % _devices("tensor") == 0 else None
    return _constrain(x, P(rows, *[None] * (x.ndim - 3), heads, None))


def split_vocabulary(x: jax.Array) -> jax.Array:
    """An output projection ``x`` [O, D], O over tensor and fsdp if it divides, else whole on every device:
    each device computes the logits of its words, and nothing is summed over devices."""
    return _constrain(x, P(_vocabulary_axes(x.shape[0])))


def split_logits(x: jax.Array) -> jax.Array:
    """Logits ``x`` [B, ..., O], O as in ``split_vocabulary``, rows over data alone; if O does not divide,
    rows over fsdp too."""
    words = _vocabulary_axes(x.shape[-1])
    rows = "data" if words else ROWS[0]
    return _constrain(x, P(rows, *[None] * (x.ndim - 2), words))


def _vocabulary_axes(count: int) -> tuple[str, str] | None:
    """The axes over which a vocabulary of ``count`` words is split."""
    return None if count % _devices("tensor", "fsdp") else ("tensor", "fsdp")


def _devices(*axes: str) -> int:
    """The number of devices along ``axes`` of the mesh in use; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in axes)


def on_mesh(mesh: Mesh | None, function: Callable[..., Any], *, rows: bool = False) -> Callable[..., Any]:
    """``function`` jitted for arguments on ``mesh``; without a mesh, ``function`` itself. Its results are
    split by rows if ``rows``, else whole on every device of every process."""
    if mesh is None:
        return function

    def within(*arguments: Any) -> Any:
        with in_use(mesh):
            return function(*arguments)

    return jax.jit(within, out_shardings=batch_sharding(mesh) if rows else replicated(mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def row_parts(mesh: Mesh | None) -> int:
    """The number of parts into which the rows of a batch are split."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def check_rows(rows: int, mesh: Mesh, field: str) -> None:
    """UserError if ``rows``, the value of ``field``, do not divide over the mesh."""
    count = row_parts(mesh)
    if rows % count:
        raise UserError(
            f"{field} = {rows} rows do not divide over data * fsdp = {count} of config.mesh: change one"
        )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch as global arrays. UserError if rows do not divide over the mesh."""
    check_rows(len(batch.clip) * jax.process_count(), mesh, "config.batch")
    return global_rows(batch, mesh)


def global_rows(rows: Any, mesh: Mesh | None) -> Any:
    """Rows that each process holds a part of, as global arrays; without a mesh, ``rows`` themselves."""
    if mesh is None:
        return rows
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), rows)


def local_rows(rows: Any, mesh: Mesh | None) -> Any:
    """This process's part of the rows of global arrays, the inverse of ``global_rows``."""
    if mesh is None:
        return rows
    return multihost_utils.global_array_to_host_local_array(rows, mesh, ROWS)


def put_whole(batch: Any, mesh: Mesh | None) -> Any:
    """A batch that every process holds whole, as global arrays; without a mesh, the batch itself."""
    if mesh is None:
        return batch
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), batch)
