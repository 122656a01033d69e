"""Cases that models are compared on: clips of different sizes in one batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests import batches, tiny
from tests.batches import Clip
from vpjax.data.packing import Sizes
from vpjax.models.hf import load_pretrained

TOLERANCE = 1e-4  # see test_parity.py

DIFFERENT = "different videos"
CASES = {
    "image": [
        Clip(slots=1, image=True),
        Clip(slots=1, grid=(4, 2), image=True, before=1),
        Clip(slots=1, grid=(2, 6), image=True),
    ],
    "video": [Clip(slots=3), Clip(slots=3, grid=(5, 3), after=0), Clip(slots=4, grid=(2, 2))],
    DIFFERENT: [
        Clip(slots=2, before=2, seconds=0.5),
        Clip(slots=3, grid=(4, 3), after=7),
        Clip(slots=1, grid=(2, 7)),
    ],
    "mixed": [Clip(slots=2, grid=(3, 4)), Clip(slots=1, grid=(5, 2), image=True), Clip(after=5)],
    "text": [Clip(after=9), Clip(after=6), Clip(after=2)],
}
# The second clip stands before the third, in one row.
ROWS = ((0,), (1, 2))


def shape(vision):
    """One shape for all cases, so that a model is compiled once. Blocks hold two of the largest windows and a
    unit more, bins two of the largest slots."""
    if not vision.window:
        return dict(block=31, bin=0, least=Sizes(tokens=110, units=124))
    block = 2 * (vision.window // vision.factor) ** 2 + 1
    return dict(block=block, bin=31, least=Sizes(tokens=110, units=9 * block, bins=93))


@functools.cache
def clips_of(name, family):
    return batches.contents(CASES[name], family)


def packed(clips, vision, **layout):
    """The clips of a case as packed rows."""
    return batches.packed([[clips[i] for i in row] for row in ROWS], vision, **shape(vision) | layout)


def case(name, model):
    """The clips of a case, and their packed rows."""
    clips = clips_of(name, model.config.family)
    return clips, packed(clips, model.config.vision)


def error(ours, theirs):
    """The largest difference in units of the spread of ``theirs``."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / theirs.std())


@functools.cache
def load_both(folder):
    return load_pretrained(folder), tiny.reference(folder)


@jax.jit
def encode(model, units):
    return model.encode(units)


@jax.jit
def decode(model, features, batch):
    """Logits [R, A, O] that predict each target token."""
    return model.hidden(features, batch.text, batch.target).target @ model.unembed.T


@jax.jit
def decode_prompts(model, features, prompts, answers_BC):
    """Logits [B, C, O] that predict each token of the answers."""
    return model.predicting(features, prompts, answers_BC[:, None])[:, 0] @ model.unembed.T


def answer_loss(model, batch, answers):
    """The mean cross-entropy of the tokens ``answers`` of packed rows, to be differentiated."""
    scores = decode.__wrapped__(model, model.encode(batch.video), batch)[batch.target >= 0]
    logprobs = jax.nn.log_softmax(scores)
    return -jnp.take_along_axis(logprobs, answers[:, None], axis=-1).mean()


def logits(model, batch):
    """Logits [answer tokens of all clips, O] from packed rows."""
    return np.asarray(decode(model, encode(model, batch.video), batch))[batch.target >= 0]
