"""Generation agrees with transformers' greedy tokens and with the log-probabilities of the full forward pass.

All sides compute in float32 with sums in another order. In these wide models log-probabilities then differ by
less than 1e-5 between our own paths and 1e-4 from torch, and the best two logits of a step are far enough
apart for 64 equal greedy choices.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests import tiny
from tests.tiny import Row
from vpjax.models.generate import generate, sample
from vpjax.models.hf import load_pretrained

pytestmark = pytest.mark.slow

STEPS = 64
KEY = jax.random.key(0)
NEW = 12
ROWS = [Row(slots=2, before=2, seconds=0.5), Row(slots=4, after=7)]
GREEDY, SAMPLED = dict(groups=4), dict(groups=4, temperature=0.7)  # the same in most tests: compiled once


@functools.cache
def load_both(folder):
    theirs = tiny.reference(folder)
    theirs.generation_config.eos_token_id = None
    return load_pretrained(folder), theirs


@pytest.fixture(params=tiny.MODELS)
def pair(request, checkpoint):
    """Our model and that of transformers, both from the same folder."""
    return load_both(checkpoint(request.param))


@pytest.fixture(params=tiny.ONE_OF_EACH)
def both(request, checkpoint):
    """Our model of each family and a batch of two videos."""
    model = load_both(checkpoint(request.param))[0]
    return model, tiny.batch(ROWS, model.config.family, prompt=90, suffix=NEW)


@pytest.fixture
def model(checkpoint):
    return load_both(checkpoint("tied"))[0]


VIDEO = tiny.batch(ROWS, prompt=90, suffix=NEW)


def greedy_batch(rows, family, suffix=0):
    """Batches of one shape, so that a model is compiled once."""
    batch = tiny.batch(rows, family, slots=4, prompt=90, suffix=suffix)
    return dataclasses.replace(batch, video_end=90)


static = ("max_new", "eos", "groups", "temperature", "top_p", "top_k")
compiled = jax.jit(generate.__wrapped__, static_argnames=static)


def run(model, batch, key=KEY, *, max_new=NEW, eos=(), **options):
    return jax.tree.map(np.asarray, compiled(model, batch, key, max_new=max_new, eos=eos, **options))


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def pick(x, tokens):
    return np.take_along_axis(x, tokens[..., None], axis=-1)[..., 0]


@jax.jit
def full_logits(model, batch):
    """Logits [B, G, C, O] of each token of the suffixes, without a cache."""
    hidden = model.hidden(model.encode(batch.frames) if batch.frames.shape[1] else None, batch)
    last = jnp.broadcast_to(hidden.last[:, None, None], hidden.suffix[:, :, :1].shape)
    return jnp.concatenate([last, hidden.suffix[:, :, :-1]], axis=2) @ model.unembed.T


def test_greedy_is_transformers_generate(pair):
    """After text and after one image, transformers computes our positions itself."""
    ours, theirs = pair
    family = ours.config.family
    batch = greedy_batch([Row(after=9), Row(slots=1, image=True), Row(after=5)], family)
    inputs = tiny.reference_inputs(batch, family)
    del inputs["position_ids"]
    theirs.model.rope_deltas = None
    expected = theirs.generate(**inputs, do_sample=False, max_new_tokens=STEPS)[:, -STEPS:]
    got = run(ours, batch, max_new=STEPS)
    np.testing.assert_array_equal(got.tokens[:, 0], expected)
    assert got.mask.all()


def test_greedy_after_videos_is_transformers(pair):
    """transformers' generate continues at another position after a Qwen2.5-VL video, so its forward pass gets
    our positions. Our tokens are its greedy tokens if each has the best logit after the tokens before it."""
    ours, theirs = pair
    family, rows = ours.config.family, [*ROWS, Row(after=4)]
    batch = greedy_batch(rows, family)
    got = run(ours, batch, max_new=STEPS)
    tokens = got.tokens[:, 0]
    inputs = tiny.reference_inputs(batch, family)
    theirs.model.rope_deltas = None
    with torch.no_grad():
        prefill = theirs(**inputs, use_cache=True)
        steps = theirs(
            input_ids=torch.tensor(tokens[:, :-1]),
            attention_mask=torch.nn.functional.pad(inputs["attention_mask"], (0, STEPS - 1), value=1),
            position_ids=torch.tensor(
                greedy_batch(rows, family, suffix=STEPS).positions[:, :, -STEPS:-1].swapaxes(0, 1)
            ),
            past_key_values=prefill.past_key_values,
        )
    logits = torch.cat([prefill.logits[:, -1:], steps.logits], dim=1).numpy()
    np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))
    np.testing.assert_allclose(got.logprobs[:, 0], pick(log_softmax(logits), tokens), atol=1e-4)
    assert len(np.unique(tokens)) > 20  # not one token over and over


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_cached_decoding_is_the_full_forward(both, temperature):
    model, video = both
    got = run(model, video, groups=4, temperature=temperature)
    logits = np.asarray(full_logits(model, dataclasses.replace(video, suffix=got.tokens)))
    expected = pick(log_softmax(logits / (temperature or 1.0)), got.tokens)
    np.testing.assert_allclose(got.logprobs, expected, atol=1e-5)


def test_a_shared_prefix_is_the_repeated_prompt(both):
    model, video = both
    got = run(model, video, **SAMPLED)
    repeated = jax.tree.map(lambda x: np.repeat(x, 4, axis=0), dataclasses.replace(video, suffix=None))
    repeated.suffix = got.tokens.reshape(8, NEW)
    logits = np.asarray(full_logits(model, repeated))[:, 0] / SAMPLED["temperature"]
    np.testing.assert_allclose(
        got.logprobs.reshape(8, NEW), pick(log_softmax(logits), repeated.suffix), atol=1e-5
    )
    greedy = run(model, video, **GREEDY)
    np.testing.assert_array_equal(greedy.tokens.reshape(8, NEW), run(model, repeated).tokens[:, 0])


def test_given_features_are_the_encoded_frames(both):
    model, video = both
    blank = dataclasses.replace(video, frames=np.zeros_like(video.frames))
    encode = jax.jit(lambda model: model.encode(video.frames))
    expected, got = run(model, video, **GREEDY), run(model, blank, features=encode(model), **GREEDY)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    assert (run(model, blank, **GREEDY).tokens != expected.tokens).any()


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (7, 1.0), (0, 0.6), (12, 0.7), (500, 1.0), (0, 1e-9)])
def test_samples_follow_the_truncated_distribution(top_k, top_p):
    draws, rng = 8192, np.random.default_rng(0)
    logits = rng.normal(scale=1.5, size=128)
    order = np.argsort(-logits)[: top_k or None]
    share = np.exp(logits[order]) / np.exp(logits[order]).sum()
    count = np.searchsorted(np.cumsum(share), top_p) + 1  # the fewest tokens that reach top_p
    expected = np.zeros(128)
    expected[order[:count]] = share[:count] / share[:count].sum()
    keys = jax.random.split(KEY, draws)
    draw = jax.vmap(lambda key: sample(key, jnp.float32(logits), top_p, top_k))
    tokens = np.asarray(jax.jit(draw)(keys))
    assert set(tokens) <= set(order[:count])
    # Five standard errors of each token's share, and one draw for the rare ones.
    error = np.abs(np.bincount(tokens, minlength=128) / draws - expected)
    assert (error <= 5 * np.sqrt(expected / draws) + 1 / draws).all()


def test_truncation_shapes_the_sampling_only(model):
    """top_k = 1 is greedy at any temperature, and its log-probabilities are those of the whole distribution
    at that temperature."""
    got = run(model, VIDEO, groups=4, temperature=2.0, top_k=1)
    logits = np.asarray(full_logits(model, dataclasses.replace(VIDEO, suffix=got.tokens)))
    np.testing.assert_array_equal(got.tokens, logits.argmax(axis=-1))
    np.testing.assert_allclose(got.logprobs, pick(log_softmax(logits / 2.0), got.tokens), atol=1e-5)


def test_each_completion_stops_at_its_own_end(model):
    free = run(model, VIDEO, **SAMPLED)
    eos = (int(free.tokens[0, 0, 3]), int(free.tokens[1, 2, 7]))
    got = run(model, VIDEO, eos=eos, **SAMPLED)
    lengths = set()
    for b, g in np.ndindex(2, 4):
        ends = np.flatnonzero(np.isin(free.tokens[b, g], eos))
        length = ends[0] + 1 if len(ends) else NEW
        lengths.add(length)
        np.testing.assert_array_equal(got.mask[b, g], np.arange(NEW) < length)
        np.testing.assert_array_equal(got.tokens[b, g], np.where(got.mask[b, g], free.tokens[b, g], 0))
        np.testing.assert_allclose(
            got.logprobs[b, g], np.where(got.mask[b, g], free.logprobs[b, g], 0), atol=1e-6
        )
    assert len(lengths) > 2


def test_completions_depend_on_the_key_alone(model):
    first = run(model, VIDEO, **SAMPLED)
    np.testing.assert_array_equal(first.tokens, run(model, VIDEO, **SAMPLED).tokens)
    assert (first.tokens != run(model, VIDEO, jax.random.key(1), **SAMPLED).tokens).any()
    assert len({tuple(tokens) for tokens in first.tokens.reshape(8, NEW)}) == 8
    # They depend neither on the other row nor on the number of completions.
    mixed = dataclasses.replace(VIDEO, frames=VIDEO.frames.copy())
    mixed.frames[0] = 255 - mixed.frames[0]
    got = run(model, mixed, **SAMPLED | dict(groups=2))
    np.testing.assert_array_equal(got.tokens[1], first.tokens[1, :2])
    assert (got.tokens[0] != first.tokens[0, :2]).any()


def test_a_row_of_padding_is_empty(model):
    valid = VIDEO.prompt_valid & np.array([[True], [False]])
    got = run(model, dataclasses.replace(VIDEO, prompt_valid=valid), **SAMPLED)
    np.testing.assert_array_equal(got.tokens[0], run(model, VIDEO, **SAMPLED).tokens[0])
    assert got.mask[0].all() and not got.mask[1].any()
    assert not got.tokens[1].any() and not got.logprobs[1].any()
