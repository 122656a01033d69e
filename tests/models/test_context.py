"""Tokens of a row over several devices: each has its part and as much work as the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import joint
from tests.joint import mesh_of
from vpjax.models import context
from vpjax.models.generate import generate
from vpjax.models.sharding import in_use, put_batch, shardings
from vpjax.models.vlm import leaves, rebuild
from vpjax.training.losses import token_logprobs


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_each_device_has_as_many_tokens_and_scores(devices):
    count = 16 * devices
    tokens = context.tokens_of(count, devices)
    np.testing.assert_array_equal(np.sort(tokens.ravel()), np.arange(count))
    assert len(set((tokens + 1).sum(axis=1))) == 1  # token t sees t + 1
    np.testing.assert_array_equal(tokens.ravel()[context.places_of(count, devices)], np.arange(count))
    odd = context.tokens_of(devices * 3, devices)  # too few to be cut in twice as many pieces
    np.testing.assert_array_equal(odd.ravel(), np.arange(devices * 3))


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_parts_come_apart_as_they_were_joined(devices):
    """Each device keeps its own tokens of both parts, and ``placed`` finds a token."""
    counts = 16, 12
    parts = [np.arange(100 * n, 100 * n + count)[None] for n, count in enumerate(counts)]
    spread = [context.spread(part, devices) for part in parts]
    joined = context.joined(spread, devices)
    for device, own in enumerate(np.asarray(joined).reshape(devices, -1)):
        expected = [part[0, context.tokens_of(part.size, devices)[device]] for part in parts]
        np.testing.assert_array_equal(own, np.concatenate(expected))
    for part, back in zip(spread, context.apart(joined, counts, devices), strict=True):
        np.testing.assert_array_equal(part, back)
    index = np.array([[3, -1, 15]])
    placed = np.asarray(context.placed(index, 16, devices))
    assert placed[0, 1] == -1
    np.testing.assert_array_equal(np.asarray(spread[0])[0, placed[0, [0, 2]]], [3, 15])


def computed(mesh):
    """Of prompts in a mesh: the log-probabilities of given completions, the gradient of their sum, and what
    greedy decoding answers."""
    prompts = joint.prompts(8)
    given = np.random.default_rng(0).integers(0, 100, (8, 4, 6), dtype=np.int32)
    params = leaves(joint.model())
    params = jax.device_put(params, shardings(params, mesh))

    def loss(params, prompts):
        with in_use(mesh):
            model = rebuild(joint.model(), params)
            h = model.predicting(model.encode(prompts.video), prompts, jnp.asarray(given))
            logprobs = token_logprobs(h, model.unembed, jnp.asarray(given), chunk=3)
            return logprobs.mean(), logprobs

    def run(params, prompts):
        gradient, logprobs = jax.grad(loss, has_aux=True)(params, prompts)
        with in_use(mesh):
            model = rebuild(joint.model(), params)
            answers = generate(model, prompts, jax.random.key(0), max_new=5, eos=(119,), groups=(2,))
        return logprobs, gradient, answers

    return jax.tree.map(np.asarray, jax.jit(run)(params, put_batch(prompts, mesh)))


@pytest.mark.slow
def test_prompts_and_their_completions():
    """Rollouts, in groups of two with rows over context too, and the log-probabilities of GRPO: to roundings
    of float32 sums."""
    logprobs, gradient, answers = computed(mesh_of(1, 2, 1, rollout=2, context=4))
    one_logprobs, one_gradient, one_answers = computed(joint.ONE)
    np.testing.assert_allclose(logprobs, one_logprobs, rtol=0, atol=1e-5)
    for path, expected in one_gradient.items():
        scale = max(1e-2, np.abs(expected).max())
        np.testing.assert_allclose(gradient[path], expected, rtol=0, atol=1e-5 * scale, err_msg=path)
    np.testing.assert_array_equal(answers.tokens, one_answers.tokens)
    np.testing.assert_allclose(answers.logprobs, one_answers.logprobs, rtol=0, atol=1e-5)
