"""Decoding on a mesh, in groups of any size, gives one device's tokens, and no weight travels in the loop."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests import batches, joint
from tests.batches import Clip
from tests.joint import mesh_of
from vpjax.hlo import collectives
from vpjax.models.generate import generate
from vpjax.models.rope import section_axes
from vpjax.models.sharding import in_use, put_batch, shardings
from vpjax.models.vlm import leaves, rebuild

pytestmark = pytest.mark.slow

NEW = 7
# Wide enough that the smallest kernel is larger than all activations of a step.
WIDE = dataclasses.replace(
    joint.MODEL,
    vision=dataclasses.replace(joint.MODEL.vision, out_hidden=128),
    decoder=dataclasses.replace(
        joint.MODEL.decoder,
        hidden=128,
        intermediate=256,
        heads=8,
        kv_heads=4,
        head_dim=32,
        rope_axes=section_axes((4, 6, 6)),
    ),
)
LAYERS = WIDE.decoder.layers
LARGEST = 4 * 128 * 256  # bytes of a layer's gate
ACTIVATIONS = 4 * 8 * 2 * 256  # bytes of a step's widest activations, of all rows
ROWS = 8


@functools.cache
def model():
    return joint.model(WIDE)


def prompts():
    clips = [Clip(slots=1 + b % 2, before=1 + b % 3, grid=(1 + b % 2, 2)) for b in range(ROWS)]
    return batches.prompts(batches.contents(clips), WIDE.vision, bin=8)


def compiled(mesh):
    """The rollout as a GRPO step has it, compiled for ``mesh``, and its arguments."""
    params = leaves(model())
    params = jax.device_put(params, shardings(params, mesh))

    def roll(params, prompts, key):
        with in_use(mesh):
            return generate(rebuild(model(), params), prompts, key, max_new=NEW, eos=(119,), groups=(2,))

    arguments = params, put_batch(prompts(), mesh), jax.random.key(0)
    program = jax.jit(roll).lower(*arguments).compile()
    return program, arguments


@functools.cache
def one_device():
    program, arguments = compiled(joint.ONE)
    return program(*arguments)


@pytest.mark.parametrize("sizes", [(1, 8, 1, 4), (1, 8, 1, 2), (1, 8, 1, 1), (2, 2, 2, 2), (1, 2, 4, 1)])
def test_weights_stay_where_they_are(sizes):
    program, arguments = compiled(mesh_of(*sizes))
    moves = collectives(program.as_text())
    decoding = [move for move in moves if move.loops and move.loops[0] == NEW]
    # A group sums activations, and one device alone has none to sum.
    assert bool(decoding) == (sizes[2] * sizes[3] > 1)
    assert all(move.result <= ACTIVATIONS for move in decoding)
    # Before the loop each device gets its part of the weights, of the whole stack at once, and nothing whole.
    part = LAYERS * LARGEST / (sizes[2] * sizes[3])
    assert max(move.result for move in moves if move.kind != "all-reduce") <= max(part, LARGEST)
    completions, expected = program(*arguments), one_device()
    np.testing.assert_array_equal(completions.tokens, expected.tokens)
    np.testing.assert_array_equal(completions.mask, expected.mask)
    # Sums over heads and the MLP are in another order.
    np.testing.assert_allclose(completions.logprobs, expected.logprobs, atol=1e-5, rtol=0)
