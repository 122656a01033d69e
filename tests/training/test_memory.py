"""``config.remat`` "auto" fills a device's memory, by counts of what a device holds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import joint
from vpjax.models.sharding import in_use
from vpjax.models.vlm import abstract_model, leaves
from vpjax.training.memory import GIB, USABLE, kept_bytes, recomputed_share, state_bytes
from vpjax.training.state import create_state

TOKENS = 10**7  # of all layers
MODEL = abstract_model(joint.MODEL, jnp.bfloat16)


def share(memory, mesh=joint.ONE):
    config = joint.config(remat="auto", dtype="bfloat16", memory=memory)
    with in_use(mesh):
        return recomputed_share(config, MODEL, TOKENS)


def test_a_further_gib_keeps_as_much_more():
    """All is kept where there is much memory, and nothing where there is little or nobody knows."""
    assert share(0.0) == share(0.1) == 1.0 and share(1e6) == 0.0
    all_kept = TOKENS * kept_bytes(joint.config(dtype="bfloat16"), joint.MODEL.decoder)
    shares = {memory: share(memory) for memory in np.linspace(0.1, 1.5, 8) * all_kept / GIB}
    between = [memory for memory in shares if 0 < shares[memory] < 1]
    assert len(between) > 3
    for less, more in zip(between, between[1:], strict=False):
        kept = (shares[less] - shares[more]) * all_kept
        assert kept == pytest.approx(USABLE * (more - less) * GIB, rel=1e-6)
    # Of eight devices each has an eighth of the tokens, and here of nearly all else.
    assert share(between[-1] / 8, joint.mesh_of(1, 8, 1)) == pytest.approx(shares[between[-1]], abs=0.01)
    # Two that share rows hold the keys and values of all tokens of a layer, in six copies.
    width, kept = 2 * 2 * 8 * 2, all_kept / TOKENS
    gathered = 6 * width * 2 / (joint.LAYERS * kept)
    ours = share(between[-1] / 8, joint.mesh_of(1, 4, 1, context=2))
    assert ours == pytest.approx(shares[between[-1]] + gathered, abs=0.01) and ours < 1


@pytest.mark.parametrize("remat, expected", [("none", None), ("products", 0.0), ("layers", 1.0)])
def test_what_is_asked_for(remat, expected):
    assert recomputed_share(joint.config(remat=remat), MODEL, TOKENS) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(optim__freeze=("vision.*",), optim__moments_dtype="bfloat16"),
        dict(optim__name="muon"),
        dict(method="grpo", grpo__beta=0.04),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_state_is_counted_as_it_lies_on_devices(fields, accumulate):
    """Besides it, gradients in float32 and a copy in the compute dtype."""
    mesh = joint.mesh_of(2, 2, 2)
    config = joint.config(dtype="bfloat16", contrast__weight=0.0, accumulate=accumulate, **fields)
    shapes = leaves(abstract_model(joint.MODEL))
    state, _, _ = create_state(shapes, config, mesh)

    def own(tree):
        """But for optax's counters of updates and Muon's three coefficients."""
        return sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
            if x.size > 3
        )

    with in_use(mesh):
        counted = state_bytes(config, MODEL)
    kept = state.params, state.frozen, state.opt, state.reference
    expected = own(kept) + (accumulate + 0.5) * own(state.params)
    assert counted == expected
