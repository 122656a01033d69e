"""The gate of an MLP."""

import jax

from vpjax.types import Array


@jax.checkpoint
def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up. Its backward pass computes it again: to keep what it needs costs more, in memory and,
    on a CPU, in time."""
    return jax.nn.silu(gate) * up
