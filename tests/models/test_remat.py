"""What layers keep for the backward pass changes memory and work, and no result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import joint
from vpjax.hlo import flops, inner_jaxprs
from vpjax.models.attention import Layout
from vpjax.models.remat import keep, scan
from vpjax.models.vlm import abstract_model
from vpjax.training.memory import kept_bytes

LAYERS, WIDTH, ROWS = 5, 8, 4


def layer(x, w):
    return jnp.tanh(keep(x @ w)), None


@pytest.mark.parametrize(("recompute", "again"), [(None, 0), (0.0, 0), (0.4, 2), (0.5, 3), (1.0, 5)])
def test_a_share_of_the_layers_is_computed_again(recompute, again):
    """Three products a layer, and one more for each that is computed again. Gradients are equal."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(ROWS, WIDTH)), rng.normal(size=(LAYERS, WIDTH, WIDTH))

    def gradient(recompute):
        return jax.grad(lambda w: scan(layer, jnp.asarray(x), w, recompute).sum())

    product = 2 * ROWS * WIDTH * WIDTH
    assert flops(jax.make_jaxpr(gradient(recompute))(w).jaxpr) == (3 * LAYERS + again) * product
    np.testing.assert_array_equal(gradient(recompute)(w), gradient(None)(w))


def stacked(jaxpr):
    """The bytes of what scans stack up, one entry for each iteration: of the forward one, then backward."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            results = [x.aval for x in eqn.outvars[eqn.params["num_carry"] :]]
            found.append(sum(x.size * x.dtype.itemsize for x in results))
        else:
            found += [count for part in inner_jaxprs(eqn) for count in stacked(part)]
    return found


def decoder_gradient(recompute):
    """The jaxpr of the gradient of a small decoder's weights, on ROWS rows of one segment."""
    decoder, length = abstract_model(joint.MODEL).decoder, 24
    x = jnp.zeros((ROWS, length, joint.MODEL.decoder.hidden))
    positions, segment = jnp.zeros((ROWS, 3, length), jnp.int32), jnp.ones((ROWS, length), jnp.int32)

    def loss(decoder):
        options = dict(recompute=recompute)
        return decoder.run(x, positions, Layout(length, packed=True), segment, **options).sum()

    return jax.make_jaxpr(jax.grad(loss))(decoder).jaxpr, ROWS * length


def test_layers_that_keep_products_hold_what_auto_counts():
    """Their input and the results of their products, and recompute nothing but the scores of attention."""
    c, config = joint.MODEL.decoder, joint.config()
    whole, tokens = decoder_gradient(1.0)
    products, _ = decoder_gradient(0.0)
    everything, _ = decoder_gradient(None)
    inputs = 4 * c.hidden * tokens * c.layers
    assert stacked(whole)[0] == inputs
    kept = kept_bytes(config, c) * tokens * c.layers
    assert stacked(products)[0] == inputs + kept < stacked(everything)[0]
    length = tokens // ROWS
    scores = 2 * c.layers * ROWS * c.heads * length * length * c.head_dim
    assert flops(products) - flops(everything) == scores
