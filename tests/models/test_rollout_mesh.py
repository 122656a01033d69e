"""Decoding on a mesh: the tokens of one device, and no weight that travels in the loop."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests import joint, tiny
from tests.models.test_sharding import mesh_of
from vpjax.hlo import collectives
from vpjax.models.generate import generate
from vpjax.models.rope import section_axes
from vpjax.models.sharding import in_use, put_batch, shardings
from vpjax.models.vlm import leaves, rebuild

NEW = 7
# Wide enough that the smallest kernel is larger than all activations of a step.
WIDE = dataclasses.replace(
    joint.MODEL,
    vision=dataclasses.replace(joint.MODEL.vision, out_hidden=128),
    decoder=dataclasses.replace(
        joint.MODEL.decoder,
        hidden=128,
        intermediate=256,
        heads=4,
        kv_heads=2,
        head_dim=32,
        rope_axes=section_axes((4, 6, 6)),
    ),
)
KERNEL = 4 * 128 * 64  # bytes of a layer's key projection, the smallest
LARGEST = 4 * 128 * 256  # of a layer's gate
ROWS = 8


@functools.cache
def model():
    return joint.model(WIDE)


def batch():
    return tiny.batch([tiny.Row(slots=1 + b % 2, before=1 + b % 3) for b in range(ROWS)], size=(28, 56))


def compiled(mesh):
    """The rollout as a GRPO step has it, compiled for ``mesh``, and its arguments."""
    params = leaves(model())
    params = jax.device_put(params, shardings(params, mesh))

    def roll(params, batch, key):
        with in_use(mesh):
            return generate(rebuild(model(), params), batch, key, max_new=NEW, eos=(119,), groups=2)

    arguments = params, put_batch(batch(), mesh), jax.random.key(0)
    program = jax.jit(roll).lower(*arguments).compile({"xla_backend_optimization_level": 0})
    return program, arguments


@functools.cache
def tokens_of_one():
    program, arguments = compiled(joint.ONE)
    return program(*arguments)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 2, 4)])
def test_weights_stay_where_they_are(sizes):
    program, arguments = compiled(mesh_of(*sizes))
    moved = collectives(program.as_text())
    decoding = [one for one in moved if one.loops and one.loops[0] == NEW]
    assert decoding  # they move activations
    # All-reduces are sums of activations: a weight is gathered, or permuted.
    assert max(one.result for one in decoding if one.kind != "all-reduce") < KERNEL
    # Nor is the stack gathered before the loop: prefill gathers a layer at a time.
    assert max(one.result for one in moved if one.kind != "all-reduce") <= LARGEST
    out, one = program(*arguments), tokens_of_one()
    np.testing.assert_array_equal(out.tokens, one.tokens)
    np.testing.assert_array_equal(out.mask, one.mask)
