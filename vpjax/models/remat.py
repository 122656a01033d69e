"""What the backward pass of layers keeps, and what it computes again (rematerialisation)."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

# ``config.remat``, from the most memory to the least: layers keep everything; the results of their linear
# layers and of attention, from which all else follows without products of matrices; or their input alone.
# auto: products or input, as the memory of a device allows (``training.memory``).
REMATS = ("none", "products", "layers", "auto")
KEPT = "kept"  # the name of what "products" keeps


def keep(x: jax.Array) -> jax.Array:
    """``x``, which layers that keep their products hold until the backward pass."""
    return checkpoint_name(x, KEPT)


def scan(layer: Callable, carry: Any, stack: Any, recompute: float | None) -> Any:
    """The carry after a scan of ``layer(carry, x) -> carry, None`` over a stack of layers.

    recompute: the share of the layers, the first ones, that the backward pass computes again from their
    input. Of the others it computes again what lies between products. None: it computes nothing again.
    """
    if recompute is None:
        return jax.lax.scan(layer, carry, stack)[0]
    count = len(jax.tree.leaves(stack)[0])
    cut = math.ceil(recompute * count)
    products = jax.checkpoint_policies.save_only_these_names(KEPT)
    for part, policy in ((slice(0, cut), None), (slice(cut, count), products)):
        if part.start < part.stop:
            # Without barriers against common subexpressions, of which two loops have none: barriers copy each
            # layer's weights.
            again = jax.checkpoint(layer, policy=policy, prevent_cse=False)
            carry, _ = jax.lax.scan(again, carry, jax.tree.map(lambda x, part=part: x[part], stack))
    return carry
