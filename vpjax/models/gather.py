"""A gather along the second axis, with room for padding."""

import jax
import jax.numpy as jnp

from vpjax.types import Array


def take(x_RU: Array, index_RT: Array) -> jax.Array:
    """``x`` [R, U, ...] at the indices i32[R, T]: [R, T, ...], 0 where the index is -1, without a gradient
    there."""
    x_RU, index_RT = jnp.asarray(x_RU), jnp.asarray(index_RT)
    outside = jnp.where(index_RT < 0, x_RU.shape[1], index_RT)  # -1 itself would count from the end
    index = outside.reshape(*outside.shape, *[1] * (x_RU.ndim - 2))
    return jnp.take_along_axis(x_RU, index, axis=1, mode="fill", fill_value=0)
