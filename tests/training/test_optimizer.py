"""The optimizer does to each parameter what the config says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import joint
from vpjax.training.optimizer import make_optimizer

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


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


MATRICES = {
    "decoder.layers.up.kernel": (2, 6, 10),  # of two layers
    "vision.blocks.qkv.kernel": (2, 5, 3, 8),
    "vision.patch_embed.kernel": (12, 4),
}
OTHERS = {
    "decoder.embed": (7, 6),
    "vision.blocks.qkv.bias": (2, 3, 8),
    "decoder.norm.scale": (6,),
    "heads.text.kernel": (6, 4),
}


def muon_and_adamw(gradient):
    """The first updates of both optimizers at a learning rate of 1."""
    params = {path: jnp.zeros_like(x) for path, x in gradient.items()}
    fields = dict(optim__lr=1.0, optim__clip=1e9, optim__weight_decay=0.0, optim__warmup_share=0.0)

    def update(name):
        tx = make_optimizer(joint.config(optim__name=name, **fields), params).tx
        return tx.update(gradient, tx.init(params), params)[0]

    return update("muon"), update("adamw")


def matrices_of(path, x):
    """[matrices, in, out]: the weights of each matrix product."""
    if path.endswith("qkv.kernel"):
        x = np.moveaxis(x, -2, 1)
    return np.asarray(x).reshape(-1, *x.shape[-2:])


def test_muon_turns_the_gradient_of_every_matrix_into_an_orthogonal_one_of_adams_size():
    """By NumPy's SVD: the singular vectors stay, and the values become alike, as far as five iterations of
    Newton and Schulz go, .7 to 1.2. A matrix [m, n] with those of 1 has a root mean square of 1 / sqrt(max(m,
    n)), so .2 * sqrt(max(m, n)) of it is AdamW's .2."""
    gradient = {path: normal(*shape) for path, shape in MATRICES.items()}
    updates, _ = muon_and_adamw(gradient)
    for path, x in gradient.items():
        for g, update in zip(matrices_of(path, x), matrices_of(path, updates[path]), strict=True):
            u, _, v = np.linalg.svd(g, full_matrices=False)
            inside = -u.T @ update @ v.T / (0.2 * np.sqrt(max(g.shape)))
            values = np.diag(inside)
            assert 0.65 < values.min() and values.max() < 1.25, path
            np.testing.assert_allclose(inside, np.diag(values), atol=1e-3)


def test_muon_leaves_all_but_the_weights_of_the_model_to_adamw():
    gradient = {path: normal(*shape) for path, shape in (MATRICES | OTHERS).items()}
    muon, adamw = muon_and_adamw(gradient)
    for path in OTHERS:
        np.testing.assert_array_equal(muon[path], adamw[path])


def test_muon_does_not_mix_queries_keys_and_values():
    gradient = {"vision.blocks.qkv.kernel": normal(2, 5, 3, 8)}
    other = {"vision.blocks.qkv.kernel": gradient["vision.blocks.qkv.kernel"].copy()}
    other["vision.blocks.qkv.kernel"][:, :, 0] *= -7
    q_changed, unchanged = (muon_and_adamw(x)[0]["vision.blocks.qkv.kernel"] for x in (other, gradient))
    np.testing.assert_array_equal(q_changed[:, :, 1:], unchanged[:, :, 1:])
    np.testing.assert_allclose(q_changed[:, :, 0], -unchanged[:, :, 0], atol=1e-5)
