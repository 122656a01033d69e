"""The gate of an MLP."""

import jax

from vpjax.types import Array


@jax.custom_vjp
def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up. Its backward pass computes from these two again what it needs: to keep it costs more,
    in memory and, on a CPU, in time. (jax.checkpoint would do the same, but no sharding crosses its edge.)"""
    return jax.nn.silu(gate) * up


def _forward(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return swiglu(gate, up), (gate, up)


def _backward(kept: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
    gate, up = kept
    share = jax.nn.sigmoid(gate)
    return d * up * share * (1 + gate * (1 - share)), d * gate * share


swiglu.defvjp(_forward, _backward)
