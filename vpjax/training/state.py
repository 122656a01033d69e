"""The state of a run, and the parts of a step that SFT and GRPO share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vpjax.hlo import phase
from vpjax.models.lora import SCALE
from vpjax.models.sharding import replicated, shardings
from vpjax.training.optimizer import Optimizer, frozen_paths, make_optimizer
from vpjax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    """The state of a run. Parameters are stored by path; ``create_state`` also makes a State of shardings.

    step i32[]: steps taken. params: trained parameters, float32. frozen: the others, in the compute dtype;
    beside adapters weights may be int8, with float32 scales.
    opt: optax's state of the trained parameters. skipped i32[]: steps whose loss or gradient was not finite.
    reference: the first trained parameters in the compute dtype, where GRPO needs them. With adapters it is
    the first of these: all else is frozen, and kept once.
    """

    step: Any
    params: dict[str, Any]
    frozen: dict[str, Any]
    opt: Any
    skipped: Any
    reference: dict[str, Any] = dataclasses.field(default_factory=dict)


def state_shardings(tx: optax.GradientTransformation, state: State, mesh: Mesh) -> State:
    """The sharding of each array of a (possibly abstract) state; moments are sharded as their parameter."""
    params, everywhere = shardings(state.params, mesh), replicated(mesh)

    def is_left_out(x: Any) -> bool:  # a parameter of which this part of the optimizer keeps nothing
        return isinstance(x, optax.MaskedNode)

    opt = optax.tree.map_params(
        tx,
        lambda x, where: x if is_left_out(x) else where,
        state.opt,
        params,
        transform_non_params=lambda _: everywhere,
        is_leaf=is_left_out,
    )
    frozen, reference = shardings(state.frozen, mesh), shardings(state.reference, mesh)
    return State(everywhere, params, frozen, opt, everywhere, reference)


def keeps_reference(config: ConfigDict) -> bool:
    """Whether the first policy is kept beside the one that is trained, for a KL."""
    return config.method == "grpo" and config.grpo.beta > 0


def create_state(params: Mapping[str, Any], config: ConfigDict, mesh: Mesh) -> tuple[State, Optimizer, State]:
    """The state of step 0 from parameters by path, its optimizer, and its shardings. Abstract parameters give
    an abstract state with shardings, which is what a checkpoint is restored into."""
    frozen = frozen_paths(params, config)
    optimizer = make_optimizer(config, [path for path in params if path not in frozen])

    def kept(path, x):
        is_int8 = x.dtype == jnp.int8 or path.endswith(SCALE)
        return x if is_int8 else x.astype(config.dtype)

    def create(params):
        trained = {path: x.astype(jnp.float32) for path, x in params.items() if path not in frozen}
        untrained = {path: kept(path, x) for path, x in params.items() if path in frozen}
        reference = {}
        if keeps_reference(config):
            reference = {path: params[path].astype(config.dtype) for path in trained}
        return State(jnp.int32(0), trained, untrained, optimizer.tx.init(trained), jnp.int32(0), reference)

    params = dict(params)
    shapes = jax.eval_shape(create, params)
    layout = state_shardings(optimizer.tx, shapes, mesh)
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in params.values()):
        state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout)
        return state, optimizer, layout
    placed = jax.device_put(params, shardings(params, mesh))
    return jax.jit(create, out_shardings=layout)(placed), optimizer, layout


def deal(rows: Any, count: int) -> Any:
    """Rows [B, ...] dealt out to ``count`` parts, [count, B / count, ...]. Each part takes every count-th
    row, so that rows that are split over devices stay on their device."""

    # Numbers of rows are written out: that of an array without elements could not be inferred.
    def cut(x):
        return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)

    return jax.tree.map(cut, rows)


def accumulate(function: Callable[[Any], tuple[Any, Any]], rows: Any, count: int) -> tuple[Any, Any]:
    """``function(rows) -> sums, by_row`` over ``count`` micro-batches: the total of the sums, and the values
    by row in the order of ``rows``.

    rows, by_row: pytrees of arrays [B, ...].
    """
    if count == 1:
        return function(rows)

    def joined(x):
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1] * count, *x.shape[2:])

    micro = deal(rows, count)
    shapes, _ = jax.eval_shape(function, jax.tree.map(lambda x: x[0], micro))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, micro_batch):
        sums, by_row = function(micro_batch)
        return jax.tree.map(jnp.add, total, sums), by_row

    sums, by_row = jax.lax.scan(add, zero, micro)
    return sums, jax.tree.map(joined, by_row)


@phase("update")
def optimize(
    optimizer: Optimizer, params: dict[str, Array], opt: Any, gradient: dict[str, Array], finite: Array
) -> tuple[dict[str, Array], Any]:
    """Parameters and optimizer state after one update; if the gradient is not ``finite``, as they were.

    A condition, so that an update takes the place of a donated state: a choice between both would need both
    in memory."""

    def updated() -> tuple[dict[str, Array], Any]:
        updates, new_opt = optimizer.tx.update(gradient, opt, params)
        return optax.apply_updates(params, updates), new_opt

    return jax.lax.cond(finite, updated, lambda: (params, opt))


def advance(state: State, params: dict[str, Array], opt: Any, finite: Array) -> State:
    """The state after a step that led to ``params`` and ``opt``. One that was not ``finite`` counts as
    skipped."""
    return State(state.step + 1, params, state.frozen, opt, state.skipped + ~finite, state.reference)
