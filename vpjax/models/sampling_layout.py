"""How the decoder's weights, caches and activations are split while tokens are sampled.

Each group of devices (along the mesh's axes ``group`` and ``tensor``) has rows of its own and a whole copy of
the weights, of which each of its devices holds some heads: no weight travels for a token.
"""

import functools
from typing import Any

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec as P

from vpjax.models.sharding import FSDP, constrain, devices_along, if_divides, spec_of

GROUPS = ("data", "fsdp", "context")  # rows are split over them if they divide, else not over context
HEADS = ("group", "tensor")  # heads, MLPs and the vocabulary are split over them


def regroup(path: str, x: jax.Array) -> jax.Array:
    """A parameter of the decoder in the layout of sampling: each group of devices holds all of it, and each
    of its devices a part: what was split over ``tensor`` is split over HEADS, nothing over ``fsdp``.

    Decoding then moves activations inside a group, and no weight (Megatron's tensor parallelism, arXiv
    1909.08053)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    inside, across = sampling_specs(path, x.shape, mesh)
    # In one step XLA would gather whole weights: parts are exchanged inside the group and then gathered.
    return constrain(constrain(constrain(x, spec_of(path, x.shape, mesh)), inside), across)


def sampling_specs(path: str, shape: tuple[int, ...], mesh: Any) -> tuple[P, P]:
    """The PartitionSpec of a parameter of the decoder on its way to the layout of sampling, in which it is
    split inside a group and still over groups, and in that layout."""
    inside: list[Any] = []
    over_groups = ("context", "fsdp")
    for side, axis in zip(shape, spec_of(path, shape, mesh), strict=False):
        if axis == "tensor":
            inside.append(if_divides(side, HEADS, axis, mesh=mesh))
        else:
            inside.append(over_groups if axis == FSDP else None)
    return P(*inside), P(*[None if axis == over_groups else axis for axis in inside])


def split_groups(x: jax.Array) -> jax.Array:
    """``x`` [B, ...] in sampling: each group has rows of its own, whole on each of its devices. Groups along
    context share rows if there are too few."""
    return constrain(x, P(groups_for(x.shape[0])))


def split_heads(x: jax.Array, *, rows_axis: int = 0, heads_axis: int = -2) -> jax.Array:
    """``x`` in sampling: its rows as in ``split_groups``, its heads over HEADS if they divide."""
    return constrain(x, _heads_spec(x, rows_axis, heads_axis))


def _heads_spec(x: jax.Array, rows_axis: int, heads_axis: int) -> P:
    spec: list[Any] = [None] * x.ndim
    spec[rows_axis] = groups_for(x.shape[rows_axis])
    spec[heads_axis] = if_divides(x.shape[heads_axis], HEADS)
    return P(*spec)


def laid_out(x: jax.Array, *, rows_axis: int, heads_axis: int) -> jax.Array:
    """``x``, split as by ``split_heads``, whose axes follow one another in memory in their order: as it is
    read, where XLA would lay out a cache as it is written."""
    in_order = functools.partial(with_layout_constraint, layouts=Layout(tuple(range(x.ndim))))
    if jax.sharding.get_abstract_mesh().empty:
        return in_order(x)
    spec = _heads_spec(x, rows_axis, heads_axis)
    return jax.shard_map(in_order, in_specs=spec, out_specs=spec, check_vma=False)(x)


def split_words(x: jax.Array) -> jax.Array:
    """Logits ``x`` [B, ..., O] in sampling: rows as in ``split_groups``, O over HEADS if it divides."""
    words = if_divides(x.shape[-1], HEADS)
    return constrain(x, P(groups_for(x.shape[0]), *[None] * (x.ndim - 2), words))


def groups_for(rows: int, mesh: Any = None) -> tuple[str, ...]:
    """The axes over which so many rows are split in sampling."""
    return GROUPS if rows % devices_along(GROUPS, mesh) == 0 else ("data", "fsdp")
