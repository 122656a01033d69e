"""Low-rank adapters (LoRA, arXiv 2106.09685): of a linear layer ``x W + b`` only what is added to W is
trained, ``(alpha / r) A B`` with A [in, r] and B [r, out].

Adapters are parameters like others: ``decoder.layers.q.lora_a`` and ``decoder.layers.q.lora_b`` stand beside
``decoder.layers.q.kernel``. A run with adapters trains these and freezes the model's own parameters. Training
never forms W + (alpha / r) A B (``models.linear``); ``merge`` does, for a model that others load. The weights
W may be frozen as int8 (as in QLoRA, arXiv 2305.14314, which has 4 bits); all else is then as with the model
whose weights are the dequantised ones.
"""

import dataclasses
import fnmatch
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vpjax.models.linear import Linear, dequantise, quantise
from vpjax.types import UserError

A, B = ".lora_a", ".lora_b"  # endings of the paths of adapters
KERNEL, SCALE = ".kernel", ".kernel_scale"  # of weights, and of the scales of those that are int8
BASE_DTYPES = ("dtype", "int8")  # of ``config.lora.base_dtype``


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapters of ``rank`` r for the layers whose path matches one of ``targets``, scaled by alpha / r.
    is_int8: the weights of these layers are int8."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    is_int8: bool = False

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Lora | None":
        """That of the section ``lora`` of a run's config; None if the run has no adapters."""
        if not fields.get("rank"):
            return None
        is_int8 = fields.get("base_dtype") == "int8"  # older runs have no such field
        return cls(fields["rank"], fields["alpha"], tuple(fields["targets"]), is_int8)

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
    """Add adapters of zeros to a model, and quantise its weights beside them if ``lora`` asks for it.
    UserError for a pattern that matches no linear layer."""
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
        if lora.is_int8:
            layers[path].make_int8()


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


def quantised(path: str, x: jax.Array, shapes: Mapping[str, Any]) -> dict[str, jax.Array]:
    """A parameter of the model as it is among ``shapes``: weights that are int8 there as int8 and scales,
    others as they are."""
    if shapes[path].dtype != jnp.int8:
        return {path: x}
    layer = path.removesuffix(KERNEL)
    kernel, scale = quantise(x, axis=shapes[layer + A].ndim - 2)
    return {path: kernel, layer + SCALE: scale}


def merge(params: Mapping[str, jax.Array], lora: Lora, dtype: Any) -> dict[str, jax.Array]:
    """Parameters by path without adapters and scales, see ``merged``."""
    own = [path for path in params if not is_adapter(path) and not path.endswith(SCALE)]
    return {path: merged(path, params, lora, dtype) for path in own}


def merged(path: str, params: Mapping[str, jax.Array], lora: Lora, dtype: Any) -> jax.Array:
    """The parameter at ``path`` of the model, to which its adapter is added, in float32, and rounded to
    ``dtype``; without an adapter, as it is. Weights that are int8 are dequantised, so that the merged model
    answers as the trained one."""
    layer, x = path.removesuffix(KERNEL), params[path]
    if layer + A not in params:
        return x
    add = jax.jit(functools.partial(_add, scale=lora.scale, dtype=dtype), out_shardings=x.sharding)
    return add(x, params.get(layer + SCALE), params[layer + A], params[layer + B])


def _add(
    kernel: jax.Array, kernel_scale: jax.Array | None, a: jax.Array, b: jax.Array, *, scale: float, dtype: Any
) -> jax.Array:
    if kernel_scale is None:
        kernel = kernel.astype(jnp.float32)
    else:
        kernel = dequantise(kernel, kernel_scale, jnp.float32)
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    added = a @ b.reshape(*a.shape[:-2], a.shape[-1], -1)
    return (kernel + scale * added.reshape(kernel.shape)).astype(dtype)
