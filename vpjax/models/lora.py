"""Low-rank adapters (LoRA, arXiv 2106.09685): of a linear layer ``x W + b`` only what is added to W is
trained, ``(alpha / r) A B`` with A [in, r] and B [r, out].

Adapters are parameters like others: ``decoder.layers.q.lora_a`` and ``decoder.layers.q.lora_b`` stand beside
``decoder.layers.q.kernel``. A run with adapters trains these and freezes the model's own parameters. Training
never forms W + (alpha / r) A B (``models.linear``); ``merge`` does, for a model that others load.
"""

import dataclasses
import fnmatch
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vpjax.models.linear import Linear
from vpjax.types import UserError

A, B = ".lora_a", ".lora_b"  # endings of the paths of adapters


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapters of ``rank`` r for the layers whose path matches one of ``targets``, scaled by alpha / r."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Lora | None":
        """That of the section ``lora`` of a run's config; None if the run has no adapters."""
        if not fields.get("rank"):
            return None
        return cls(fields["rank"], fields["alpha"], tuple(fields["targets"]))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def is_adapter(path: str) -> bool:
    """Whether a parameter's path is that of an adapter."""
    return path.endswith((A, B))


def adapted_layers(paths: Mapping[str, Any]) -> list[str]:
    """The paths of the layers that have an adapter among parameters by path."""
    return [path.removesuffix(A) for path in paths if path.endswith(A)]


def add_adapters(model: nnx.Module, lora: Lora) -> None:
    """Add adapters of zeros to a model. UserError for a pattern that matches no linear layer."""
    layers = {
        ".".join(map(str, path)): layer
        for path, layer in nnx.iter_modules(model)
        if isinstance(layer, Linear)
    }
    found: set[str] = set()
    for pattern in lora.targets:
        matching = fnmatch.filter(layers, pattern)
        if not matching:
            known = ", ".join(sorted(layers))
            raise UserError(f"config.lora.targets: {pattern!r} matches no linear layer; there are {known}")
        found.update(matching)
    for path in found:
        layers[path].add_adapter(lora.rank, lora.scale)


def first_adapters(shapes: Mapping[str, Any], key: jax.Array) -> dict[str, jax.Array]:
    """The adapters with which a run begins, by path, for the layers that have one in ``shapes``: B is 0, so
    that they change nothing, and A is drawn as in PEFT, uniformly from +-1 / sqrt(in)."""
    adapters: dict[str, jax.Array] = {}
    for number, layer in enumerate(adapted_layers(shapes)):
        shape = shapes[layer + A].shape
        bound = shape[-2] ** -0.5
        own_key = jax.random.fold_in(key, number)
        adapters[layer + A] = jax.random.uniform(own_key, shape, minval=-bound, maxval=bound)
        adapters[layer + B] = jnp.zeros(shapes[layer + B].shape)
    return adapters


def merge(params: Mapping[str, jax.Array], lora: Lora, dtype: Any) -> dict[str, jax.Array]:
    """Parameters by path without adapters: each one is added to its kernel, in float32, which is then rounded
    to ``dtype``. Other parameters stay as they are."""
    merged = {path: x for path, x in params.items() if not is_adapter(path)}
    for layer in adapted_layers(params):
        kernel = params[f"{layer}.kernel"]
        add = functools.partial(_add, scale=lora.scale, dtype=dtype)
        jitted = jax.jit(add, out_shardings=kernel.sharding)
        merged[f"{layer}.kernel"] = jitted(kernel, params[layer + A], params[layer + B])
    return merged


def _add(kernel: jax.Array, a: jax.Array, b: jax.Array, *, scale: float, dtype: Any) -> jax.Array:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    added = a @ b.reshape(*a.shape[:-2], a.shape[-1], -1)
    return (kernel.astype(jnp.float32) + scale * added.reshape(kernel.shape)).astype(dtype)
