"""The optimizer does to each parameter what the config says, and a state starts from copies."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import joint
from vpjax.models.sharding import make_mesh, put_batch
from vpjax.models.vlm import leaves
from vpjax.training.sft import init_heads
from vpjax.training.state import accumulate, create_state, make_optimizer, optimize
from vpjax.types import UserError

PARAMS = {
    "vision.patch_embed.kernel": jnp.array([2.0, -3.0]),
    "decoder.embed": jnp.array([1.0]),
    "decoder.norm.scale": jnp.array([1.0]),
    "decoder.layers.q.kernel": jnp.array([4.0]),
    "decoder.layers.q.bias": jnp.array([5.0]),
    "heads.log_tau": jnp.array(-2.0),
}


def first_update(gradient, **fields):
    tx = make_optimizer(joint.config(**fields), PARAMS).tx
    return tx.update(gradient, tx.init(PARAMS), PARAMS)[0]


def test_only_kernels_decay():
    # Without a gradient AdamW moves nothing but by decay: -lr * decay * parameter.
    updates = first_update(jax.tree.map(jnp.zeros_like, PARAMS), optim__lr=0.1, optim__weight_decay=0.5)
    expected = {path: -0.05 * x * path.endswith(".kernel") for path, x in PARAMS.items()}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


def test_the_first_multiplier_that_matches_counts():
    # Adam's first update is the gradient's sign; decay is multiplied as well: at 0, a parameter stands still.
    updates = first_update(
        jax.tree.map(jnp.ones_like, PARAMS),
        optim__lr=0.1,
        optim__clip=1e9,
        optim__weight_decay=0.5,
        optim__lr_multipliers=(("decoder.layers.q.*", 0.5), ("decoder.*", 0.1), ("vision.*", 0.0)),
    )
    expected = {
        "vision.patch_embed.kernel": [0.0, 0.0],
        "decoder.embed": [-0.01],
        "decoder.norm.scale": [-0.01],
        "decoder.layers.q.kernel": [-0.05 * (1 + 0.5 * 4)],
        "decoder.layers.q.bias": [-0.05],
        "heads.log_tau": -0.1,
    }
    # Adam's eps and bias correction: 1e-6.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), updates, dict(expected))


def test_heads_have_a_learning_rate_of_their_own():
    """From the first update on, and through the schedule; a multiplier that names them goes before it."""
    one = jax.tree.map(jnp.ones_like, PARAMS)
    same = dict(optim__lr=1e-5, optim__clip=1e9, optim__weight_decay=0.0)
    for fields, expected in (
        ({}, -1e-5),
        ({"contrast__lr": 1e-3}, -1e-3),
        ({"contrast__lr": 1e-3, "optim__lr_multipliers": (("heads.*", 2.0),)}, -2e-5),
    ):
        updates = first_update(one, **same, **fields)
        np.testing.assert_allclose(updates["heads.log_tau"], expected, rtol=1e-5)
        np.testing.assert_allclose(updates["decoder.embed"], -1e-5, rtol=1e-5)


def test_gradients_are_clipped_by_their_norm():
    # A gradient of norm 10 where 1 is allowed becomes a tenth; Adam's first moment is 1 - b1 of that.
    gradient = jax.tree.map(jnp.zeros_like, PARAMS) | {
        "decoder.embed": jnp.array([6.0]),
        "heads.log_tau": jnp.array(8.0),
    }
    tx = make_optimizer(joint.config(optim__clip=1.0, optim__b1=0.9), PARAMS).tx
    moments = tx.update(gradient, tx.init(PARAMS), PARAMS)[1][1].mu
    np.testing.assert_allclose(
        [moments["decoder.embed"][0], moments["heads.log_tau"]], [0.06, 0.08], rtol=1e-5
    )


def test_schedule_by_hand():
    config = joint.config(steps=100, optim__lr=2.0, optim__warmup_share=0.1, optim__end_lr_share=0.25)
    rate = make_optimizer(config, PARAMS).learning_rate
    # Half-way through the cosine, step 55, the rate is half-way between 2 and .5.
    np.testing.assert_allclose([rate(s) for s in (0, 5, 10, 55, 100)], [0, 1, 2, 1.25, 0.5], rtol=1e-6)


@pytest.mark.parametrize(("steps", "share"), [(1, 0.9), (1, 0.0), (3, 0.99)])
def test_short_runs_have_a_schedule(steps, share):
    assert (
        make_optimizer(joint.config(steps=steps, optim__warmup_share=share), PARAMS).learning_rate(steps) == 0
    )


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


def test_shapes_give_the_state_that_arrays_give():
    """What a checkpoint is read into: shapes, types and places."""
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    config = joint.config(optim__freeze=("vision.*",))
    params = leaves(joint.model()) | init_heads(config, 32, jax.random.key(0))
    state, _, layout = create_state(params, config, mesh)
    shapes, _, same_layout = create_state(jax.eval_shape(lambda: params), config, mesh)
    assert layout == same_layout

    def place(x, y):
        assert (x.shape, x.dtype) == (y.shape, y.dtype) and x.sharding.is_equivalent_to(y.sharding, x.ndim)

    jax.tree.map(place, shapes, state)
    for moments in (state.opt[1].mu, state.opt[1].nu):
        for path, x in state.params.items():
            assert moments[path].sharding == x.sharding, path
    assert put_batch(joint.batch(), mesh).target.sharding.shard_shape((8, 3)) == (2, 3)


def test_micro_batches_may_hold_arrays_without_elements():
    """As the bins of a tower without windows have none. Values by row come back in the order of the rows."""
    rows = dict(number=jnp.arange(8.0), bins=jnp.zeros((8, 0), jnp.int32))
    total, by_row = accumulate(lambda micro: (micro["number"].sum(), micro), rows, 4)
    assert total == 28
    jax.tree.map(np.testing.assert_array_equal, by_row, dict(number=np.arange(8), bins=np.zeros((8, 0))))
