"""Random evidence for relative rewards, advantages of any kind, and GRPO's own in NumPy.

The functions under test are jitted, which compiles a few programs instead of one for each operation.
"""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from vpjax.training import relative as rel
from vpjax.training.relative import Evidence

# Advantages are float32 numbers of order 1 after a dozen operations: two computations must agree to 1e-5, the
# same computation on the same numbers exactly.
TOLERANCE = 1e-5
SEEDS = range(10)
OPTIONS = dict(
    w0=0.25, margin=0.2, scale=0.1, hard=False, lam=0.5, clip=1.0, threshold=0.1, mu=0.8, alpha=0.3
)


relative_term = jax.jit(rel.relative_term, static_argnums=1)
advantages = jax.jit(rel.advantages, static_argnames=("scale", "eps"))
relative_metrics = jax.jit(rel.relative_metrics, static_argnames="scale")
share_won = jax.jit(rel.share_won)


def options(kind, **changes):
    return FrozenConfigDict({**OPTIONS, "kind": kind, **changes})


def case(seed=0, *, clips=6, group=8, degraded=4, tokens=5, binary=False, has_degraded=None):
    """Random evidence of every kind. Recall is quantised, so that ties occur."""
    rng = np.random.default_rng(seed)

    def rewards(*shape):
        share = rng.random((clips, 1))
        values = rng.random(shape) < share if binary else rng.random(shape)
        return jnp.asarray(values, jnp.float32)

    length = rng.integers(0, tokens + 1, (clips, group, 1))
    evidence = Evidence(
        rewards=rewards(clips, group),
        has_degraded=jnp.asarray(
            rng.random(clips) < 0.7 if has_degraded is None else np.full(clips, has_degraded)
        ),
        right_degraded=rewards(clips, degraded),
        recall=jnp.asarray(rng.integers(0, 3, (clips, group)) / 2, jnp.float32),
        degraded_recall=jnp.asarray(rng.integers(0, 3, (clips, degraded)) / 2, jnp.float32),
        gap=jnp.asarray(rng.standard_normal((clips, group, tokens)), jnp.float32),
        mask=jnp.asarray(np.arange(tokens) < length),
        keyword=jnp.asarray(rng.random((clips, group, tokens)) < 0.4),
        same=jnp.asarray(rng.random((clips, group, degraded)) < 0.5, jnp.float32),
        hides=jnp.asarray(rng.random(clips) < 0.5),
    )
    return evidence._replace(right=evidence.rewards)  # the only reward, with weight 1


def shaped(evidence, kind, *, scale="group", eps=0.0, **changes):
    """Advantages [B, G, C]."""
    a = advantages(evidence.rewards, relative_term(evidence, options(kind, **changes)), scale=scale, eps=eps)
    return np.broadcast_to(a, evidence.mask.shape)


def plain(evidence, *, scale="group", eps=0.0):
    """GRPO's advantages in NumPy, float64, with torch's unbiased std; equal rewards give 0."""
    r = np.asarray(evidence.rewards, np.float64)
    out = np.zeros_like(r)
    for row, values in zip(out, r, strict=True):
        known = values[~np.isnan(values)]
        if len(set(known)) < 2:
            continue
        std = {"group": known.std(ddof=1), "batch": r[~np.isnan(r)].std(ddof=1), "none": 1.0 - eps}[scale]
        row[:] = np.where(np.isnan(values), 0, (values - known.mean()) / (std + eps))
    return np.broadcast_to(out[..., None], evidence.mask.shape)


def close(a, b, tolerance=TOLERANCE):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
