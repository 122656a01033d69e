"""A run with adapters trains them and nothing else, by the gradient that full training has, and keeps one
copy of the model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import joint
from tests.training import rollouts
from vpjax.hlo import inner_jaxprs
from vpjax.models.lora import Lora, adapted_layers, first_adapters, is_adapter, quantised
from vpjax.models.vlm import abstract_model, leaves, rebuild
from vpjax.training.optimizer import HEADS_PREFIX
from vpjax.training.state import create_state
from vpjax.training.update import UpdateRows

pytestmark = pytest.mark.slow

RANK, ALPHA = 4, 6.0
ON = dict(lora__rank=RANK, lora__alpha=ALPHA, lora__targets=("decoder.*", "vision.*"))
INT8 = ON | dict(lora__base_dtype="int8")
SGD = optax.sgd(1.0)  # the parameters move by the gradient
BATCH = joint.batch(8)


@functools.cache
def full_gradient():
    """The gradient of full training, by path."""
    before, after, _ = joint.run(joint.config(), BATCH, tx=SGD)
    return {path: x - after.params[path] for path, x in before.params.items()}


def test_the_gradient_is_that_of_full_training():
    """Of a first step on eight devices and in two parts, by the chain rule: B = 0 gets scale * A^T dW, A
    nothing, the heads what they had."""
    config = joint.config(accumulate=2, **ON)
    before, after, _ = joint.run(config, BATCH, tx=SGD, mesh=joint.mesh_of(2, 2, 2))
    assert {path for path in before.params if not is_adapter(path)} == {
        path for path in full_gradient() if path.startswith(HEADS_PREFIX)
    }
    expected = {path: x for path, x in full_gradient().items() if path in before.params}
    for layer in adapted_layers(before.params):
        a, b = before.params[f"{layer}.lora_a"], before.params[f"{layer}.lora_b"]
        of_kernel = full_gradient()[f"{layer}.kernel"].reshape(*a.shape[:-1], -1)
        expected[f"{layer}.lora_a"] = np.zeros_like(a)
        expected[f"{layer}.lora_b"] = (ALPHA / RANK * a.swapaxes(-1, -2) @ of_kernel).reshape(b.shape)
    gradient = {path: x - after.params[path] for path, x in before.params.items()}
    assert gradient.keys() == expected.keys()
    # Sums in another order: 1e-5 of the spread, as for full training on several devices.
    rollouts.assert_close(gradient, expected, 1e-4)


def test_int8_weights_on_eight_devices():
    """The same weights to the bit, and the gradient of one device; tolerance as above."""
    runs = [
        joint.run(joint.config(**INT8), BATCH, tx=SGD, mesh=joint.mesh_of(*mesh))
        for mesh in ((1, 1, 1), (2, 2, 2))
    ]
    (one, one_after, _), (eight, eight_after, _) = runs
    jax.tree.map(np.testing.assert_array_equal, one.frozen, eight.frozen)
    one_gradient, gradient = (
        {path: x - after.params[path] for path, x in before.params.items()}
        for before, after in ((one, one_after), (eight, eight_after))
    )
    assert any(np.any(x) for path, x in gradient.items() if path.endswith(".lora_b"))
    rollouts.assert_close(gradient, one_gradient, 1e-4)


def test_only_adapters_are_trained_and_only_they_have_moments():
    """int8 weights and their scales keep their types."""
    config = joint.config(dtype="bfloat16", contrast__weight=0.0, **INT8)
    before, after, metrics = joint.run(config, BATCH)
    assert metrics["nonfinite"] == 0
    assert set(before.params) == {path for path in before.params if is_adapter(path)}
    shapes = leaves(abstract_model(joint.MODEL, jnp.bfloat16, lora=Lora.of(config.lora)))
    assert set(before.frozen) == {path for path in shapes if not is_adapter(path)}
    for path, x in after.frozen.items():
        assert x.dtype == shapes[path].dtype
        np.testing.assert_array_equal(x, before.frozen[path])
    assert set(after.opt[1].mu) == set(after.opt[1].nu) == set(after.params)
    assert all(x.dtype == np.float32 for x in after.params.values())
    assert all(np.any(x) for path, x in after.params.items() if path.endswith(".lora_b"))


def shapes_computed(jaxpr):
    """The shapes of what is computed; a jitted call only passes results on."""
    own = {out.aval.shape for eqn in jaxpr.eqns for out in eqn.outvars if eqn.primitive.name != "jit"}
    return own.union(*(shapes_computed(part) for eqn in jaxpr.eqns for part in inner_jaxprs(eqn)))


def test_nothing_as_large_as_the_weights_is_computed():
    """Neither A B nor a gradient of W, of a layer or of all."""

    def computed(**fields):
        state, step = joint.setup(joint.config(contrast__weight=0.0, **fields))
        return shapes_computed(jax.make_jaxpr(step)(state, BATCH).jaxpr)

    gates = leaves(joint.model())["decoder.layers.gate.kernel"].shape
    assert {gates, gates[1:]} <= computed()
    assert not {gates, gates[1:]} & computed(**ON)
    # int8 weights are dequantised layer by layer, and not kept for the backward pass.
    assert gates not in computed(**INT8)
    assert gates not in computed(remat="layers", **INT8)


def adapted(m, *, is_int8=False):
    """A model with new adapters, which change nothing."""
    lora = Lora(RANK, ALPHA, ON["lora__targets"], is_int8)
    model = abstract_model(joint.MODEL, lora=lora)
    params = first_adapters(leaves(model), jax.random.key(2))
    for path, x in leaves(m).items():
        params |= quantised(path, x, leaves(model))
    return rebuild(model, params)


def test_the_reference_of_grpo_is_the_model_without_adapters(prompts, completions):
    """It is no copy of the model, and has its log-probabilities to the bit."""
    with_adapters = adapted(rollouts.wide())
    state, parts, _ = rollouts.setup(rollouts.config(grpo__beta=0.1, **ON), with_adapters)
    assert set(state.reference) == set(state.params) and all(map(is_adapter, state.reference))
    plain, plain_parts, _ = rollouts.setup(rollouts.config(), rollouts.wide())
    rows = UpdateRows(prompts, completions.tokens, completions.mask, completions.mask)

    def reference(state, rows):
        return parts.policy.forward(state.reference, state.frozen, rows)

    def base(state, rows):
        return plain_parts.policy.forward(state.params, state.frozen, rows)

    ours = rollouts.compiled(reference, state, rows)(state, rows)
    theirs = rollouts.compiled(base, plain, rows)(plain, rows)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("fields", [ON, INT8])
def test_grpo_trains_adapters_away_from_the_reference(prompts, fields):
    """The KL is 0 in the first step and no longer in the second; the model and the reference stay."""
    model = adapted(rollouts.wide(), is_int8=fields is INT8)
    state, _, step = rollouts.setup(rollouts.config(grpo__beta=0.1, **fields), model)
    kept = jax.tree.map(np.array, (state.frozen, state.reference))
    p = rollouts.put_batch(prompts, joint.ONE)
    step = step.lower(state, p).compile()
    kls = []
    for _ in range(2):
        state, metrics, _ = step(state, p)
        assert metrics["nonfinite"] == 0 and metrics["grad_norm"] > 0
        kls.append(float(metrics["kl"]))
    assert kls[0] == 0 < kls[1]
    jax.tree.map(np.testing.assert_array_equal, kept, (state.frozen, state.reference))


def test_frozen_layers_have_frozen_adapters():
    params = leaves(adapted(joint.model()))
    state, _, _ = create_state(params, joint.config(optim__freeze=("vision.*",), **ON), joint.ONE)
    assert set(state.params) == {path for path in params if is_adapter(path) and path.startswith("decoder")}
