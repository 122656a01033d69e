"""Evidence for relative rewards at random, advantages of any kind, and GRPO's own in NumPy."""

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vpjax.training.relative import Evidence, advantages, relative

# Advantages are float32 numbers of order 1 out of a dozen operations: 1e-5 is asked for where two ways must
# agree, equality where the same numbers take the same way.
TOLERANCE = 1e-5
SEEDS = range(10)
OPTIONS = ConfigDict(
    dict(w0=0.25, margin=0.2, scale=0.1, hard=False, lam=0.5, clip=1.0, threshold=0.1, mu=0.8, alpha=0.3)
)


def options(kind, **changes):
    return ConfigDict({**OPTIONS, "kind": kind, **changes})


def case(seed=0, *, clips=6, group=8, degraded=4, tokens=5, binary=False, has=None):
    """Evidence of every sort at random; recall is quantised, so that ties happen."""
    rng = np.random.default_rng(seed)

    def rewards(*shape):
        share = rng.random((clips, 1))
        values = rng.random(shape) < share if binary else rng.random(shape)
        return jnp.asarray(values, jnp.float32)

    length = rng.integers(0, tokens + 1, (clips, group, 1))
    return Evidence(
        rewards=rewards(clips, group),
        has=jnp.asarray(rng.random(clips) < 0.7 if has is None else np.full(clips, has)),
        degraded=rewards(clips, degraded),
        recall=jnp.asarray(rng.integers(0, 3, (clips, group)) / 2, jnp.float32),
        degraded_recall=jnp.asarray(rng.integers(0, 3, (clips, degraded)) / 2, jnp.float32),
        gap=jnp.asarray(rng.standard_normal((clips, group, tokens)), jnp.float32),
        mask=jnp.asarray(np.arange(tokens) < length),
        keyword=jnp.asarray(rng.random((clips, group, tokens)) < 0.4),
    )


def shaped(evidence, kind, *, scale="group", eps=0.0, **changes):
    """Advantages [B, G, C]."""
    a = advantages(evidence.rewards, relative(evidence, options(kind, **changes)), scale=scale, eps=eps)
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
