"""Laws of the model that need no reference: V~ is a gather, and nothing sees what comes after it."""

import jax
import jax.numpy as jnp
import numpy as np

from tests import joint
from vpjax.models.vlm import gather_slots, leaves, rebuild


def test_features_of_the_degraded_video_are_a_gather():
    """To the bit: encoding really replaced pixels gives the gathered features."""
    model, batch = joint.model(), joint.batch()
    slots = batch.source.shape[1]
    source = np.random.default_rng(0).integers(0, slots, batch.source.shape)
    pixels = batch.frames.reshape(len(source), slots, -1, *batch.frames.shape[2:])
    replaced = np.stack([row[of] for row, of in zip(pixels, source, strict=True)]).reshape(batch.frames.shape)
    assert not np.array_equal(replaced, batch.frames)
    encode = jax.jit(lambda model, frames: model.encode(frames))
    expected = gather_slots(encode(model, batch.frames), source)
    np.testing.assert_array_equal(encode(model, replaced), expected)


def test_nothing_sees_what_comes_after_it():
    """The gradient of a token's state is exactly 0 at every later input, and not at those before it."""
    model, batch = joint.model(), joint.batch()
    features = model.encode(batch.frames)

    def state(features, embed, at):
        changed = rebuild(model, leaves(model) | {"decoder.embed": embed})
        return changed.hidden(features, batch).suffix[:, 0, at].sum()

    embed = model.decoder.embed[...]
    by_feature, by_token = jax.jit(jax.grad(state, argnums=(0, 1)), static_argnums=2)(features, embed, 1)
    assert jnp.all(jnp.any(by_feature[0] != 0, axis=-1))
    seen = set(batch.prompt[batch.prompt_valid].tolist()) | set(batch.suffix[:, :2].ravel().tolist())
    later = set(batch.suffix[:, 2:].ravel().tolist()) - seen
    assert later and not np.any(np.asarray(by_token)[sorted(later)])
    now = sorted(set(batch.suffix[:, :2].ravel().tolist()))
    assert np.all(np.any(np.asarray(by_token)[now], axis=1))
