"""The state of a run, its optimizer, and the parts of a step that SFT and GRPO share."""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vpjax.hlo import phase
from vpjax.models.lora import SCALE, is_adapter
from vpjax.models.sharding import replicated, shardings
from vpjax.types import Array, UserError

HEADS_PREFIX = "heads."  # of the paths of parameters that only training needs: never frozen, not exported


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


class Optimizer(NamedTuple):
    tx: optax.GradientTransformation
    learning_rate: optax.Schedule


def matching_paths(pattern: str, paths: Iterable[str], field: str) -> set[str]:
    """The paths that match a pattern such as ``vision.*``. UserError, naming the config field, if there is
    none."""
    found = set(fnmatch.filter(paths, pattern))
    if not found:
        raise UserError(f"config.{field}: {pattern!r} matches no parameter")
    return found


def frozen_paths(paths: Iterable[str], config: ConfigDict) -> set[str]:
    """The model's paths that are not trained: those that ``optim.freeze`` names and, in a run with adapters,
    all but these. UserError if that leaves nothing to train."""
    paths = [path for path in paths if not path.startswith(HEADS_PREFIX)]
    frozen: set[str] = set()
    if config.lora.rank:
        frozen |= {path for path in paths if not is_adapter(path)}
    for pattern in config.optim.freeze:
        frozen |= matching_paths(pattern, paths, "optim.freeze")
    if frozen == set(paths):
        raise UserError("config.optim.freeze leaves no parameter of the model to train")
    return frozen


def make_optimizer(config: ConfigDict, paths: Iterable[str]) -> Optimizer:
    """AdamW over the trained ``paths``: warm-up and cosine schedule, clipping by global norm, decay of
    kernels and adapters only (not of biases, norms, embeddings), learning rates multiplied by path pattern.
    The schedule counts steps; a GRPO step may make several updates."""
    optim, paths = config.optim, list(paths)
    updates_per_step = 1
    if config.method == "grpo":
        updates_per_step = config.grpo.num_iterations * config.grpo.num_minibatches
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=optim.lr,
        warmup_steps=int(optim.warmup_share * config.steps),
        decay_steps=config.steps,
        end_value=optim.lr * optim.end_lr_share,
    )
    factor = dict.fromkeys(paths, 1.0)
    if config.contrast.lr:
        factor |= {path: config.contrast.lr / optim.lr for path in paths if path.startswith(HEADS_PREFIX)}
    for pattern, value in reversed(tuple(optim.lr_multipliers)):  # so that the first match counts
        factor |= dict.fromkeys(matching_paths(pattern, paths, "optim.lr_multipliers"), value)
    tx = optax.chain(
        optax.clip_by_global_norm(optim.clip),
        optax.scale_by_adam(optim.b1, optim.b2, optim.eps, mu_dtype=jnp.dtype(optim.moments_dtype)),
        optax.add_decayed_weights(
            optim.weight_decay, mask={path: path.endswith(".kernel") or is_adapter(path) for path in paths}
        ),
        optax.stateless(lambda updates, _: {path: factor[path] * u for path, u in updates.items()}),
        optax.scale_by_learning_rate(lambda count: schedule(count // updates_per_step)),
    )
    return Optimizer(tx, schedule)


def state_shardings(tx: optax.GradientTransformation, state: State, mesh: Mesh) -> State:
    """The sharding of each array of a (possibly abstract) state; moments are sharded as their parameter."""
    params, everywhere = shardings(state.params, mesh), replicated(mesh)
    opt = optax.tree.map_params(
        tx, lambda _, where: where, state.opt, params, transform_non_params=lambda _: everywhere
    )
    frozen, reference = shardings(state.frozen, mesh), shardings(state.reference, mesh)
    return State(everywhere, params, frozen, opt, everywhere, reference)


def create_state(params: Mapping[str, Any], config: ConfigDict, mesh: Mesh) -> tuple[State, Optimizer, State]:
    """The state of step 0 from parameters by path, its optimizer, and its shardings. Abstract parameters give
    an abstract state with shardings, which is what a checkpoint is restored into."""
    frozen = frozen_paths(params, config)
    optimizer = make_optimizer(config, [path for path in params if path not in frozen])
    keeps_reference = config.method == "grpo" and config.grpo.beta > 0

    def kept(path, x):
        is_int8 = x.dtype == jnp.int8 or path.endswith(SCALE)
        return x if is_int8 else x.astype(config.dtype)

    def create(params):
        trained = {path: x.astype(jnp.float32) for path, x in params.items() if path not in frozen}
        untrained = {path: kept(path, x) for path, x in params.items() if path in frozen}
        reference = {}
        if keeps_reference:
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
