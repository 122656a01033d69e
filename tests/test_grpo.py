"""The GRPO step: shared prefixes, micro-batches, iterations, branches; on a small model of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import joint
from vpjax import grpo
from vpjax.models.vlm import leaves
from vpjax.sharding import put_batch
from vpjax.state import create_state

EOS = (7, 8, 9)


def config(**fields):
    c = joint.config(
        method="grpo", grpo__groups=4, grpo__degraded=2, grpo__max_new=5, batch=8, optim__warmup_share=0.0
    )
    with c.unlocked():
        for name, value in fields.items():
            *sections, field = name.split("__")
            functools.reduce(lambda node, section: node[section], sections, c)[field] = value
    return c


class Judge:
    """Rewards the share of a completion's tokens with an id below 64."""

    host_scores = {}
    weights = {"small": 1.0}

    def score(self, batch, tokens, mask):
        return {"small": self.recall(batch, tokens, mask)}

    def recall(self, batch, tokens, mask):
        return ((tokens < 64) & mask).sum(-1) / jnp.maximum(mask.sum(-1), 1)


def setup(c, *, mesh=joint.ONE, judge=None):
    m = joint.model()
    # Wide weights, so that the samples depend on the video.
    params = {path: 3 * x if path.endswith("kernel") else x for path, x in leaves(m).items()}
    state, optimizer, where = create_state(params, c, mesh)
    return state, grpo.make_step(m, c, optimizer, where, judge=judge or Judge(), eos=EOS)


def run(c, batch, *, mesh=joint.ONE, **options):
    """(state before, state after, metrics, told) of one step."""
    state, step = setup(c, mesh=mesh, **options)
    before = jax.tree.map(np.array, state)
    after, metrics, told = step(state, put_batch(batch, mesh))
    return before, after, {name: float(x) for name, x in metrics.items()}, jax.tree.map(np.array, told)


@pytest.fixture(scope="module")
def batch():
    return joint.batch(8)


def test_a_step(batch):
    before, after, metrics, told = run(config(), batch)
    print(metrics)
    assert int(after.step) == 1
