"""Gathers: of rows of a table, and along the second axis, with room for padding."""

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


@jax.custom_vjp
def look_up(table_OD: jax.Array, index: Array) -> jax.Array:
    """The rows [..., D] of a table at the indices i32[...].

    The gradient of a row, which may be looked up thousands of times, is added up in float32: a sum in
    bfloat16 ends growing where it is 256 times as large as what is added."""
    return table_OD[index]


def _forward(table_OD: jax.Array, index: Array) -> tuple[jax.Array, tuple[jax.Array, Array]]:
    return table_OD[index], (table_OD, index)


def _backward(saved: tuple[jax.Array, Array], d: jax.Array) -> tuple[jax.Array, None]:
    table_OD, index = saved
    total_OD = jnp.zeros(table_OD.shape, jnp.float32).at[index].add(d.astype(jnp.float32))
    return total_OD.astype(table_OD.dtype), None


look_up.defvjp(_forward, _backward)
