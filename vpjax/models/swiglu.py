"""The gated activation of MLPs."""

import jax
from jax import Array


@jax.custom_vjp
def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up. The backward pass computes silu again, which saves memory and, on a CPU, time.
    (jax.checkpoint would do the same, but shardings do not propagate through it.)"""
    return jax.nn.silu(gate) * up


def _forward(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return swiglu(gate, up), (gate, up)


def _backward(saved: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
    gate, up = saved
    share = jax.nn.sigmoid(gate)
    return d * up * share * (1 + gate * (1 - share)), d * gate * share


swiglu.defvjp(_forward, _backward)
