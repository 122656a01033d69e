"""The optimizer: AdamW, or Muon for the weights of matrix products and AdamW for all else."""

import fnmatch
import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from vpjax.models.lora import is_adapter
from vpjax.types import UserError

HEADS_PREFIX = "heads."  # of the paths of parameters that only training needs: never frozen, not exported
OPTIMIZERS = ("adamw", "muon")
ADAMS_RMS = 0.2  # root mean square of AdamW's updates, which Muon's are given (arXiv 2502.16982, section 2.2)


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
    """``optim.name`` over the trained ``paths``: warm-up and cosine schedule, clipping by global norm, decay
    of kernels and adapters only (not of biases, norms, embeddings), learning rates multiplied by path
    pattern. The schedule counts steps; a GRPO step may make several updates."""
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
        _direction(optim, paths),
        optax.add_decayed_weights(
            optim.weight_decay, mask={path: path.endswith(".kernel") or is_adapter(path) for path in paths}
        ),
        optax.stateless(lambda updates, _: {path: factor[path] * u for path, u in updates.items()}),
        optax.scale_by_learning_rate(lambda count: schedule(count // updates_per_step)),
    )
    return Optimizer(tx, schedule)


def is_muons(optim: ConfigDict, path: str) -> bool:
    """Whether Muon updates a parameter, with one moment where AdamW has two."""
    return optim.name == "muon" and path.endswith(".kernel") and not path.startswith(HEADS_PREFIX)


def _direction(optim: ConfigDict, paths: Iterable[str]) -> optax.GradientTransformation:
    """From gradients to the directions of a step, whose size is that of AdamW's with either optimizer."""
    moments = jnp.dtype(optim.moments_dtype)
    adam = optax.scale_by_adam(optim.b1, optim.b2, optim.eps, mu_dtype=moments)
    if optim.name == "adamw":
        return adam
    kinds, axes = {}, {}
    for path in paths:
        kinds[path] = "muon" if is_muons(optim, path) else "adam"
        axes[path] = _matrix_axes(path) if is_muons(optim, path) else optax.MaskedNode()

    def as_large_as_adams(updates, _):
        def scaled(update: jax.Array, own_axes: MuonDimensionNumbers) -> jax.Array:
            sides = [update.shape[axis] for axis in own_axes]
            return ADAMS_RMS * math.sqrt(max(sides)) * update

        return jax.tree.map(scaled, updates, axes)

    muon = optax.chain(
        scale_by_muon(mu_dtype=moments, weight_dimension_numbers=axes), optax.stateless(as_large_as_adams)
    )
    return optax.partition({"muon": muon, "adam": adam}, kinds)


def _matrix_axes(path: str) -> MuonDimensionNumbers:
    """The axes of a kernel's inputs and outputs; over the others it is a stack of matrices."""
    is_stack_of_three = path.endswith(".qkv.kernel")  # [..., in, 3, out]
    return MuonDimensionNumbers(reduction_axis=-3 if is_stack_of_three else -2, output_axis=-1)
