"""Laws of the model that need no reference: V~ is a gather, and no token sees later ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.tiny import Row
from vpjax.models.hf import load_pretrained
from vpjax.models.vlm import gather_slots, leaves, rebuild

pytestmark = pytest.mark.slow


@jax.jit
def encode(model, frames):
    return model.encode(frames)


def with_slots(batch, source_BS):
    """The frames of a batch, in which slot s shows the pixels of slot ``source[s]``."""
    pixels = batch.frames.reshape(*source_BS.shape, -1, *batch.frames.shape[2:])
    rows = [row[source] for row, source in zip(pixels, source_BS, strict=True)]
    return np.stack(rows).reshape(batch.frames.shape)


@pytest.fixture(params=tiny.ONE_OF_EACH)
def model_and_batch(request, checkpoint):
    """A model of each family and a batch of different videos."""
    model = load_pretrained(checkpoint(request.param))
    rows = [Row(slots=2, before=2), Row(slots=4, after=7)]
    return model, tiny.batch(rows, model.config.family, prompt=90, suffix=6)


def test_features_of_the_degraded_video_are_a_gather(model_and_batch):
    """To the bit, in every part: encoding replaced pixels gives the gathered features."""
    model, batch = model_and_batch
    source = np.random.default_rng(0).integers(0, batch.source.shape[1], batch.source.shape)
    replaced = with_slots(batch, source)
    assert not np.array_equal(replaced, batch.frames)
    features = encode(model, batch.frames)
    assert len(jax.tree.leaves(features)) == 1 + len(model.config.vision.deepstack)
    jax.tree.map(np.testing.assert_array_equal, encode(model, replaced), gather_slots(features, source))


def test_the_model_sees_the_degraded_video_through_its_features(model_and_batch):
    """Hidden states of gathered features are those of replaced pixels, at the tap and at the end."""
    model, batch = model_and_batch
    source = np.array([[1, 1, 2, 3], [0, 2, 2, 0]])

    @jax.jit
    def states(model, features):
        return model.hidden(features, batch, tap=2), model.visual_hidden(features, batch, layers=2)

    features = encode(model, batch.frames)
    expected = states(model, encode(model, with_slots(batch, source)))
    got = states(model, gather_slots(features, source))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert np.abs(got[0].last - states(model, features)[0].last).max() > 1e-2


def test_no_token_sees_later_ones(model_and_batch):
    """The gradient of a token's state is exactly 0 at every later input, and not at those before it."""
    model, batch = model_and_batch
    features = encode(model, batch.frames)

    def state(features, embed, at):
        changed = rebuild(model, leaves(model) | {"decoder.embed": embed})
        return changed.hidden(features, batch).suffix[:, 0, at].sum()

    embed = model.decoder.embed[...]
    by_feature, by_token = jax.jit(jax.grad(state, argnums=(0, 1)), static_argnums=2)(features, embed, 1)
    for part in jax.tree.leaves(by_feature):
        assert jnp.all(jnp.any(part != 0, axis=(-2, -1)) == batch.slot_valid)
    seen = set(batch.prompt[batch.prompt_valid].tolist()) | set(batch.suffix[:, :2].ravel().tolist())
    later = set(batch.suffix[:, 2:].ravel().tolist()) - seen
    assert later and not np.any(np.asarray(by_token)[sorted(later)])
    own = sorted(set(batch.suffix[:, :2].ravel().tolist()))
    assert np.all(np.any(np.asarray(by_token)[own], axis=1))
