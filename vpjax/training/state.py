"""The state of a run: trained and frozen parameters by path, and the optimizer over the trained ones."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vpjax.models.sharding import replicated, shardings
from vpjax.types import Array, UserError

HEADS = "heads."  # paths of what only training needs: never frozen, not exported


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    """step i32[]: steps taken; params: trained, float32; frozen: in the compute dtype, without optimizer
    slots; opt: of optax; skipped i32[]: steps whose loss or gradient was not finite; reference: the trained
    parameters as they were at first, in the compute dtype, where GRPO holds on to them."""

    step: Array
    params: dict[str, Array]
    frozen: dict[str, Array]
    opt: Any
    skipped: Array
    reference: dict[str, Array] = dataclasses.field(default_factory=dict)


class Optimizer(NamedTuple):
    tx: optax.GradientTransformation
    learning_rate: optax.Schedule


def matching(pattern: str, paths: Iterable[str], field: str) -> set[str]:
    """The paths that match a pattern such as ``vision.*``. UserError, naming the config field, if none
    does."""
    found = set(fnmatch.filter(paths, pattern))
    if not found:
        raise UserError(f"config.{field}: {pattern!r} matches no parameter")
    return found


def frozen_paths(paths: Iterable[str], config: ConfigDict) -> set[str]:
    """The paths of the model that ``optim.freeze`` names. UserError where it leaves nothing to train."""
    paths = [path for path in paths if not path.startswith(HEADS)]
    frozen = set().union(*(matching(pattern, paths, "optim.freeze") for pattern in config.optim.freeze))
    if frozen == set(paths):
        raise UserError("config.optim.freeze leaves no parameter of the model to train")
    return frozen


def make_optimizer(config: ConfigDict, paths: Iterable[str]) -> Optimizer:
    """AdamW over the trained ``paths``: warm-up and cosine, clipping by global norm, decay of kernels only
    (never of biases, norms and embeddings), learning rates multiplied by pattern. The schedule counts steps,
    of which one may make several updates."""
    optim, paths = config.optim, list(paths)
    updates = config.grpo.num_iterations if config.method == "grpo" else 1
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=optim.lr,
        warmup_steps=int(optim.warmup_share * config.steps),
        decay_steps=config.steps,
        end_value=optim.lr * optim.end_lr_share,
    )
    factor = dict.fromkeys(paths, 1.0)
    for pattern, value in reversed(tuple(optim.lr_multipliers)):  # the first match counts
        factor |= dict.fromkeys(matching(pattern, paths, "optim.lr_multipliers"), value)
    tx = optax.chain(
        optax.clip_by_global_norm(optim.clip),
        optax.scale_by_adam(optim.b1, optim.b2, optim.eps, mu_dtype=jnp.dtype(optim.moments_dtype)),
        optax.add_decayed_weights(
            optim.weight_decay, mask={path: path.endswith(".kernel") for path in paths}
        ),
        optax.stateless(lambda updates, _: {path: factor[path] * u for path, u in updates.items()}),
        optax.scale_by_learning_rate(lambda count: schedule(count // updates)),
    )
    return Optimizer(tx, schedule)


def state_shardings(tx: optax.GradientTransformation, state: State, mesh: Mesh) -> State:
    """Where each array of a (possibly abstract) state lives: optimizer slots as their parameter."""
    params, everywhere = shardings(state.params, mesh), replicated(mesh)
    opt = optax.tree.map_params(
        tx, lambda _, where: where, state.opt, params, transform_non_params=lambda _: everywhere
    )
    frozen, reference = shardings(state.frozen, mesh), shardings(state.reference, mesh)
    return State(everywhere, params, frozen, opt, everywhere, reference)


def create_state(
    params: Mapping[str, Array], config: ConfigDict, mesh: Mesh
) -> tuple[State, Optimizer, State]:
    """The state of step 0 from parameters by path, its optimizer, and its shardings. Shapes instead of arrays
    give the shapes of the state, with shardings, into which a checkpoint is read."""
    frozen = frozen_paths(params, config)
    optimizer = make_optimizer(config, [path for path in params if path not in frozen])
    held = config.method == "grpo" and config.grpo.beta > 0

    def create(params):
        trained = {path: x.astype(jnp.float32) for path, x in params.items() if path not in frozen}
        still = {path: x.astype(config.dtype) for path, x in params.items() if path in frozen}
        reference = {path: params[path].astype(config.dtype) for path in trained if held}
        return State(jnp.int32(0), trained, still, optimizer.tx.init(trained), jnp.int32(0), reference)

    params = dict(params)
    shapes = jax.eval_shape(create, params)
    layout = state_shardings(optimizer.tx, shapes, mesh)
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in params.values()):
        state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout)
        return state, optimizer, layout
    placed = jax.device_put(params, shardings(params, mesh))
    return jax.jit(create, out_shardings=layout)(placed), optimizer, layout
