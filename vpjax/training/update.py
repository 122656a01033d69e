"""What every training step does with a loss: add up micro-batches, update, leave out what is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vpjax.training.state import Optimizer, State
from vpjax.types import Array


def accumulate(part: Callable[[Any], tuple[Any, Any]], rows: Any, count: int) -> tuple[Any, Any]:
    """``part(rows) -> sums, by_row`` over ``count`` micro-batches: the sums added up, and what there is by
    row, in the order of ``rows``.

    rows, by_row: pytrees of arrays [B, ...]. Each micro-batch takes every count-th row, so that rows that are
    split over devices stay where they are.
    """
    if count == 1:
        return part(rows)
    micro = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), rows)
    shapes, _ = jax.eval_shape(part, jax.tree.map(lambda x: x[0], micro))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, some):
        sums, by_row = part(some)
        return jax.tree.map(jnp.add, total, sums), by_row

    sums, by_row = jax.lax.scan(add, zero, micro)
    return sums, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), by_row)


def optimize(
    optimizer: Optimizer, params: dict[str, Array], opt: Any, gradient: dict[str, Array]
) -> tuple[dict[str, Array], Any]:
    """Parameters and optimizer state after one update."""
    updates, opt = optimizer.tx.update(gradient, opt, params)
    return optax.apply_updates(params, updates), opt


def advance(state: State, params: dict[str, Array], opt: Any, finite: Array) -> State:
    """The state after a step that led to ``params`` and ``opt``; where it was not ``finite``, these stay as
    they were and the step counts as skipped."""
    old = state.params, state.opt
    params, opt = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (params, opt), old)
    return State(state.step + 1, params, state.frozen, opt, state.skipped + ~finite, state.reference)
