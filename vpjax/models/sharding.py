"""The mesh, and how parameters, batches and activations are split over it.

Axes: ``data`` copies the parameters, ``fsdp`` and ``group`` split them and the batch, ``context`` splits them
and the tokens of each row (``models.context``), ``tensor`` splits heads and MLPs. Batches are split over
(data, fsdp, group) together, parameters over (fsdp, group, context). In training fsdp and group are one: a
config's ``mesh.fsdp`` is their product; in sampling they are not (``models.sampling_layout``).
"""

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vpjax.types import UserError

AXES = ("data", "fsdp", "group", "context", "tensor")
FSDP = ("context", "fsdp", "group")  # parameters are split over them
ROWS = P(("data", "fsdp", "group"))

# The first pattern that matches a whole path applies. The leading axis of stacked layers is never split, for
# a scan runs along it.
TABLE: tuple[tuple[str, P], ...] = (
    (r"decoder\.(embed|lm_head)", P("tensor", FSDP)),
    (r"decoder\.layers\.(q|k|v|gate|up)\.kernel", P(None, FSDP, "tensor")),
    (r"decoder\.layers\.(q|k|v)\.bias", P(None, "tensor")),
    (r"decoder\.layers\.(o|down)\.kernel", P(None, "tensor", FSDP)),
    (r"vision\.patch_embed\.kernel", P(None, FSDP)),
    (r"vision\.blocks\.qkv\.kernel", P(None, FSDP, None, "tensor")),
    (r"vision\.blocks\.qkv\.bias", P(None, None, "tensor")),
    (r"vision\.blocks\.(gate|up)\.kernel", P(None, FSDP, "tensor")),
    (r"vision\.blocks\.(gate|up)\.bias", P(None, "tensor")),
    (r"vision\.blocks\.(proj|down)\.kernel", P(None, "tensor", FSDP)),
    (r"vision\.blocks\.(proj|down)\.bias", P()),
    (r"vision\.merger\.fc1\.kernel", P(FSDP, "tensor")),
    (r"vision\.merger\.fc1\.bias", P("tensor")),
    (r"vision\.merger\.fc2\.kernel", P("tensor", FSDP)),
    (r"vision\.deepstack\.fc1\.kernel", P(None, FSDP, "tensor")),
    (r"vision\.deepstack\.fc1\.bias", P(None, "tensor")),
    (r"vision\.deepstack\.fc2\.kernel", P(None, "tensor", FSDP)),
    (r"vision\.(patch_embed|merger\.fc2|deepstack\.fc2)\.bias", P()),
    (r"vision\.positions", P(None, FSDP)),
    # Adapters: the sides that they share with their kernel are split as there.
    (r"(decoder\.layers|vision\.(blocks|deepstack))\.(q|k|v|qkv|gate|up|fc1)\.lora_a", P(None, FSDP)),
    (r"(decoder\.layers|vision\.(blocks|deepstack))\.(q|k|v|gate|up|fc1)\.lora_b", P(None, None, "tensor")),
    (r"(decoder\.layers|vision\.(blocks|deepstack))\.(o|proj|down|fc2)\.lora_a", P(None, "tensor")),
    (r"(decoder\.layers|vision\.(blocks|deepstack))\.(o|proj|down|fc2)\.lora_b", P(None, None, FSDP)),
    (r"vision\.blocks\.qkv\.lora_b", P(None, None, None, "tensor")),
    (r"vision\.merger\.fc1\.lora_a", P(FSDP)),
    (r"vision\.merger\.fc1\.lora_b", P(None, "tensor")),
    (r"vision\.merger\.fc2\.lora_a", P("tensor")),
    (r"vision\.merger\.fc2\.lora_b", P(None, FSDP)),
    (r".*\.kernel_scale", P()),  # a number for each output of a layer
    (r".*\.(\w_)?norm\d?\.(scale|bias)", P()),
    (r"heads\..*", P()),
)


def make_mesh(
    sizes: Mapping[str, int], devices: list[jax.Device] | None = None, *, kv_heads: int = 1
) -> Mesh:
    """The mesh of ``sizes``: devices for ``data``, ``fsdp``, ``context`` and ``tensor``, of which one may be
    -1, which is replaced by what fits, and for ``rollout``, those of a group, which divides fsdp. Without a
    size ``context`` is 1.

    kv_heads: of the decoder, which are split over a group. rollout -1 is the largest size that divides both.
    Devices that are neighbours on the mesh are connected directly. Several TPU slices lie along ``data``, so
    that only gradients travel between slices. UserError if the product of the sizes is not the number of
    devices, ``data`` is not a multiple of the number of slices, or a group divides fsdp or heads unevenly.
    """
    devices = jax.devices() if devices is None else devices
    named = {axis: sizes.get(axis, 1) for axis in ("data", "fsdp", "context", "tensor")}
    shape = list(named.values())
    fixed = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and fixed > 0 and len(devices) % fixed == 0:
        shape[shape.index(-1)] = len(devices) // fixed
    if math.prod(shape) != len(devices) or min(shape) < 1:
        given = ", ".join(f"{axis}={size}" for axis, size in named.items())
        raise UserError(
            f"config.mesh: {given} does not fit {len(devices)} devices; use one -1, or sizes of that product"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices:
        raise UserError(
            f"config.mesh.data={shape[0]} must be a multiple of {slices}, the number of TPU slices"
        )
    data, fsdp, along_context, tensor = shape
    group = _group_size(sizes.get("rollout", -1), fsdp, tensor, kv_heads)
    shape = [data, fsdp // group, group, along_context, tensor]
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        inside, between = (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES)


def _group_size(rollout: int, fsdp: int, tensor: int, kv_heads: int) -> int:
    """The devices of a group. A device needs key/value heads of its own, or all devices would hold all."""
    heads = kv_heads // tensor if kv_heads % tensor == 0 else 1
    if rollout == -1:
        return math.gcd(fsdp, heads)
    if rollout < 1 or fsdp % rollout:
        raise UserError(f"config.mesh.rollout={rollout} does not divide config.mesh.fsdp={fsdp}")
    if heads % rollout:
        raise UserError(
            f"config.mesh.rollout={rollout} does not divide the {heads} key/value heads that "
            f"config.mesh.tensor={tensor} leaves of the model's {kv_heads}"
        )
    return rollout


def spec_of(path: str, shape: tuple[int, ...], mesh: Any) -> P:
    """The PartitionSpec of a parameter on a mesh (abstract or not). UserError if a dimension does not divide
    by its axis."""
    spec = next((spec for pattern, spec in TABLE if re.fullmatch(pattern, path)), None)
    if spec is None or len(spec) > len(shape):
        raise ValueError(f"sharding.TABLE has no row for {path} {shape}")
    for dimension, axis in zip(shape, spec, strict=False):
        count = devices_along(axis, mesh=mesh)
        if dimension % count:
            name = axis
            if axis == FSDP:
                name = "fsdp" if devices_along("context", mesh) == 1 else "fsdp * config.mesh.context"
            raise UserError(
                f"config.mesh.{name}={count} does not divide {dimension}, a side of {path} {shape}"
            )
    return spec


def shardings(shapes: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """The sharding of each parameter, given as ``{path: array or shape struct}``."""
    return {path: NamedSharding(mesh, spec_of(path, x.shape, mesh)) for path, x in shapes.items()}


def device_bytes(shapes: Mapping[str, Any]) -> int:
    """What a device of the mesh in use holds of parameters, in bytes, each given as an array or a shape."""
    mesh, total = jax.sharding.get_abstract_mesh(), 0
    for path, x in shapes.items():
        parts = math.prod(devices_along(axis, mesh) for axis in spec_of(path, x.shape, mesh))
        total += x.size * x.dtype.itemsize // parts
    return total


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array of a Batch: its rows are split."""
    return NamedSharding(mesh, ROWS)


def in_use(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """A context in which programs are traced for ``mesh``: the functions below split activations over it.
    Without a mesh in use they return their argument."""
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def constrain(x: jax.Array, spec: P) -> jax.Array:
    """``x``, split over the mesh in use as ``spec`` says."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec)


def split_rows(x: jax.Array) -> jax.Array:
    """``x`` [B, ...], its rows over (data, fsdp, group).

    Parameters are split over fsdp too: without this constraint, XLA splits the last axis of activations to
    match, and every device computes all rows.
    """
    return constrain(x, ROWS)


def split_tokens(x: jax.Array, devices: int) -> jax.Array:
    """``x`` [B, T, ...], its rows as in ``split_rows``, its tokens over ``devices``: 1 or all of context."""
    return constrain(x, ROWS if devices == 1 else P(*ROWS, "context"))


def split_looked_up(x: jax.Array, devices: int) -> jax.Array:
    """``x`` [B, T, ..., D], of which each device looked up its columns (``split_width``), as in
    ``split_tokens``."""
    # In one step XLA would gather all of it: rows are exchanged first, and then tokens.
    x = constrain(x, P(*ROWS, *[None] * (x.ndim - 2), "context"))
    return split_tokens(x, devices)


def split_parts(x: jax.Array) -> jax.Array:
    """``x`` [B * devices, ...]: parts of rows, each on a device of its own among those along context."""
    return constrain(x, P((*ROWS[0], "context")))


def on_own_tokens(
    function: Callable[..., jax.Array], devices: int, q: jax.Array, k: jax.Array, v: jax.Array, *segments: Any
) -> jax.Array:
    """A function of queries, keys and values [B, T, heads, H] and of segments, on every device's own rows,
    heads and tokens (``split_tokens``), and all segments of its rows. UserError if the mesh splits the heads
    unevenly."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        if k.shape[2] % mesh.shape["tensor"]:
            raise UserError(
                f"config.mesh.tensor={mesh.shape['tensor']} does not divide the model's {k.shape[2]} "
                "key/value heads: take a smaller one, or --config.attention=xla without a context axis"
            )
        own = P(*ROWS, None if devices == 1 else "context", "tensor")
        specs = own, own, own, *[ROWS] * len(segments)
        function = jax.shard_map(function, in_specs=specs, out_specs=own, check_vma=False)
    return function(q, k, v, *(jnp.asarray(segment, jnp.int32) for segment in segments))


def split_width(x: jax.Array) -> jax.Array:
    """``x`` [B, ..., D], its last axis split as the columns of the embedding table, its rows over data."""
    return constrain(x, P("data", *[None] * (x.ndim - 2), FSDP))


def split_vocabulary(x: jax.Array) -> jax.Array:
    """An output projection ``x`` [O, D], O over all devices of a part of ``data`` if it divides, else whole
    on every device: each device computes the logits of its words, and nothing is summed over devices."""
    return constrain(x, P(if_divides(x.shape[0], (*FSDP, "tensor"))))


def split_logits(x: jax.Array) -> jax.Array:
    """Logits ``x`` [B, ..., O], O as in ``split_vocabulary``, rows over data alone; if O does not divide,
    rows over fsdp too."""
    words = if_divides(x.shape[-1], (*FSDP, "tensor"))
    rows = "data" if words else ROWS[0]
    return constrain(x, P(rows, *[None] * (x.ndim - 2), words))


def if_divides(side: int, axes: tuple[str, ...], otherwise: str | None = None, *, mesh: Any = None) -> Any:
    """``axes`` if they split ``side`` evenly, on ``mesh`` or on that in use."""
    return otherwise if side % devices_along(axes, mesh) else axes


def devices_along(axes: Any, mesh: Any = None) -> int:
    """The number of devices along an axis, several or None (1) of ``mesh``, by default that in use; 1
    without one."""
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    names = () if axes is None else (axes,) if isinstance(axes, str) else axes
    return math.prod(mesh.shape.get(name, 1) for name in names)


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


def row_parts(mesh: Mesh | AbstractMesh | None) -> int:
    """The number of parts into which the rows of a batch are split."""
    return 1 if mesh is None else devices_along(ROWS[0], mesh)


def check_rows(rows: int, mesh: Mesh, field: str) -> None:
    """UserError if ``rows``, the value of ``field``, do not divide over the mesh."""
    count = row_parts(mesh)
    if rows % count:
        raise UserError(
            f"{field} = {rows} rows do not divide over data * fsdp = {count} of config.mesh: change one"
        )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch as global arrays. UserError if rows do not divide over the mesh."""
    parts = row_parts(mesh)
    check_rows(len(batch.clip) * parts // len(row_numbers_here(parts, mesh)), mesh, "config.batch")
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


def row_numbers_here(count: int, mesh: Mesh | None) -> list[int]:
    """The numbers, ascending, of those of ``count`` rows that this process gives to ``global_rows``, because
    its devices hold them."""
    if mesh is None:
        return list(range(count))
    sharding = batch_sharding(mesh)
    rows_of_device = sharding.devices_indices_map((count,))
    parts = [rows_of_device[device][0] for device in sharding.addressable_devices]
    return sorted({row for part in parts for row in range(*part.indices(count))})


def all_rows(rows: np.ndarray, mesh: Mesh | None) -> np.ndarray:
    """The rows of all processes, in each of them. rows: those of this one, as for ``global_rows``."""
    if mesh is None:
        return rows
    return multihost_utils.process_allgather(global_rows(rows, mesh), tiled=True)


def own_copy(arrays: Any) -> Any:
    """Global arrays whole on one device of each process, which then computes with them alone; if there is one
    process only, as they are."""
    if jax.process_count() == 1:
        return arrays
    whole = multihost_utils.process_allgather(arrays, tiled=True)
    return jax.device_put(whole, jax.local_devices()[0])


def all_texts(text: str) -> list[str]:
    """The text of each process, in each of them."""
    own = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(own)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(own)] = own
    texts = multihost_utils.process_allgather(padded)
    return [x[:length].tobytes().decode() for x, length in zip(texts, lengths, strict=True)]


def put_whole(batch: Any, mesh: Mesh | None) -> Any:
    """A batch that every process holds whole, as global arrays; without a mesh, the batch itself."""
    if mesh is None:
        return batch
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), batch)
