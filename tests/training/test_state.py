"""A state starts from copies, is split as its mesh says, and an update takes its place."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import joint
from vpjax.models.sharding import make_mesh, put_batch, shardings
from vpjax.models.vlm import leaves
from vpjax.training.optimizer import OPTIMIZERS, make_optimizer
from vpjax.training.sft import init_heads
from vpjax.training.state import accumulate, create_state, optimize
from vpjax.types import UserError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(optim__freeze=("visual.*",)), r"config.optim.freeze: 'visual.\*' matches no parameter"),
        (
            dict(optim__freeze=("vision.*", "heads.*")),
            r"config.optim.freeze: 'heads.\*' matches no parameter",
        ),
        (dict(optim__freeze=("*",)), "config.optim.freeze leaves no parameter"),
        (
            dict(optim__lr_multipliers=(("vison.*", 0.1),)),
            r"config.optim.lr_multipliers: 'vison.\*' matches no",
        ),
        (
            dict(optim__freeze=("vision.*",), optim__lr_multipliers=(("vision.*", 0.1),)),
            r"config.optim.lr_multipliers: 'vision.\*' matches no parameter",
        ),
    ],
)
def test_patterns_without_effect_are_mistakes(fields, message):
    params = leaves(joint.model()) | init_heads(joint.config(), 32, jax.random.key(0))
    with pytest.raises(UserError, match=message):
        create_state(params, joint.config(**fields), joint.ONE)


def test_an_update_takes_the_place_of_the_state():
    """No parameter and no moment is copied, where a choice between old and new ones copies moments."""
    params = {f"decoder.layers.{name}.kernel": jnp.ones((64, 64)) for name in "qkv"}
    optimizer = make_optimizer(joint.config(), params)

    def copies(take):
        def step(params, opt, x):
            value, gradient = jax.value_and_grad(lambda p: sum(jnp.tanh(x @ w).sum() for w in p.values()))(
                params
            )
            return take(params, opt, gradient, jnp.isfinite(value))

        step = jax.jit(step, donate_argnums=(0, 1))
        text = step.lower(params, optimizer.tx.init(params), jnp.ones((8, 64))).compile().as_text()
        return len(re.findall(r"= f32\[64,64\]\S* copy\(", text))

    def chosen(params, opt, gradient, finite):
        updates, new_opt = optimizer.tx.update(gradient, opt, params)
        new = optax.apply_updates(params, updates), new_opt
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, (params, opt))

    assert copies(functools.partial(optimize, optimizer)) == 0 < copies(chosen)


def types(tree):
    return {x.dtype.name for x in jax.tree.leaves(tree)}


def test_types():
    params = {path: x.astype(jnp.bfloat16) for path, x in leaves(joint.model()).items()}
    config = joint.config(dtype="bfloat16", optim__freeze=("vision.*",), optim__moments_dtype="bfloat16")
    state, _, _ = create_state(params, config, joint.ONE)
    adam = state.opt[1]
    assert types(state.params) == types(adam.nu) == {"float32"}
    assert types(state.frozen) == types(adam.mu) == {"bfloat16"}
    assert set(adam.mu) == set(adam.nu) == set(state.params) and set(state.frozen) | set(state.params) == set(
        params
    )


def test_a_step_leaves_the_parameters_that_the_state_came_from():
    """The step takes its state's memory: it must not be that of the model."""
    config, model = joint.config(contrast__weight=0.0), joint.model()
    before = {path: np.array(x) for path, x in leaves(model).items()}
    state, optimizer, _ = create_state(leaves(model), config, joint.ONE)
    taken = jax.jit(
        lambda s: dataclasses.replace(s, params={p: x + 1 for p, x in s.params.items()}), donate_argnums=0
    )
    taken(state)
    assert state.params["decoder.embed"].is_deleted()
    for path, x in leaves(model).items():
        np.testing.assert_array_equal(x, before[path])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shapes_give_the_state_that_arrays_give(name):
    """What a checkpoint is read into: shapes, types and places."""
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    config = joint.config(optim__freeze=("vision.*",), optim__name=name)
    params = leaves(joint.model()) | init_heads(config, 32, jax.random.key(0))
    state, _, layout = create_state(params, config, mesh)
    shapes, _, same_layout = create_state(jax.eval_shape(lambda: params), config, mesh)
    assert layout == same_layout

    def place(x, y):
        assert (x.shape, x.dtype) == (y.shape, y.dtype) and x.sharding.is_equivalent_to(y.sharding, x.ndim)

    jax.tree.map(place, shapes, state)
    if name == "adamw":
        moments = [state.opt[1].mu, state.opt[1].nu]
    else:
        kinds = state.opt[1].inner_states
        means = [kinds["muon"].inner_state[0].mu, kinds["adam"].inner_state.mu]
        kept = [(path, x) for of_path in means for path, x in of_path.items() if isinstance(x, jax.Array)]
        assert len(kept) == len(state.params)  # each parameter has one running mean
        moments = [dict(kept)]
    for of_path in moments:
        for path, x in state.params.items():
            assert of_path[path].sharding == x.sharding, path
    assert put_batch(joint.batch(), mesh).target.sharding.shard_shape((8, 3)) == (2, 3)


def test_muon_on_a_mesh_computes_what_one_device_does():
    params = {path: x for path, x in leaves(joint.model()).items() if path.startswith("decoder.layers.")}
    gradient = {
        path: jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape) for path, x in params.items()
    }
    tx = make_optimizer(joint.config(optim__name="muon", optim__warmup_share=0.0), params).tx
    update = jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])
    where = shardings(params, make_mesh(dict(data=2, fsdp=2, tensor=2)))
    split = update(jax.device_put(gradient, where), jax.device_put(params, where))
    # Products are summed in another order. What is left of a gradient's small singular values grows by 3.4 in
    # each of five iterations, 450 in all, and float32's rounding with it.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-4 * np.abs(b).max()),
        split,
        update(gradient, params),
    )


def test_micro_batches_may_hold_arrays_without_elements():
    """As the bins of a tower without windows have none. Values by row come back in the order of the rows."""
    rows = dict(number=jnp.arange(8.0), bins=jnp.zeros((8, 0), jnp.int32))
    total, by_row = accumulate(lambda micro: (micro["number"].sum(), micro), rows, 4)
    assert total == 28
    jax.tree.map(np.testing.assert_array_equal, by_row, dict(number=np.arange(8), bins=np.zeros((8, 0))))
