"""Generation agrees with transformers' greedy tokens and with the log-probabilities of the full forward pass.

All sides compute in float32 with sums in another order. In these wide models log-probabilities then differ by
less than 2e-5 between our own paths and 1e-4 from torch, and the best two logits of a step are far enough
apart for 64 equal greedy choices.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests import batches, tiny
from tests.batches import Clip
from tests.models.cases import load_both, shape
from vpjax.models.generate import draw, first_largest, generate, sample

pytestmark = pytest.mark.slow

OWN = 2e-5  # between two of our own paths
STEPS = 64
KEY = jax.random.key(0)
NEW = 12
CLIPS = [Clip(slots=2, before=2, seconds=0.5), Clip(slots=3, grid=(4, 3), after=7)]
GREEDY, SAMPLED = (
    dict(groups=(4,)),
    dict(groups=(4,), temperature=0.7),
)  # the same in most tests: compiled once


def prompts_of(clips, vision):
    """Prompts of one shape, so that a model is compiled once."""
    return batches.prompts(clips, vision, **shape(vision))


@pytest.fixture(params=tiny.MODELS)
def pair(request, checkpoint):
    """Our model and that of transformers, both from the same folder."""
    ours, theirs = load_both(checkpoint(request.param))
    theirs.generation_config.eos_token_id = None
    return ours, theirs


@pytest.fixture(params=tiny.ONE_OF_EACH)
def both(request, checkpoint):
    """Our model of each family, two clips and their prompts."""
    model = load_both(checkpoint(request.param))[0]
    clips = batches.contents(CLIPS, model.config.family)
    return model, clips, prompts_of(clips, model.config.vision)


@pytest.fixture
def model(checkpoint):
    return load_both(checkpoint("tied"))[0]


@pytest.fixture
def prompts(model):
    return prompts_of(batches.contents(CLIPS), model.config.vision)


static = ("max_new", "eos", "groups", "stop_share", "temperature", "top_p", "top_k")
compiled = jax.jit(generate.__wrapped__, static_argnames=static)


def run(model, batch, key=KEY, *, max_new=NEW, eos=(), **options):
    return jax.tree.map(np.asarray, compiled(model, batch, key, max_new=max_new, eos=eos, **options))


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def pick(x, tokens):
    return np.take_along_axis(x, tokens[..., None], axis=-1)[..., 0]


@jax.jit
def full_logits(model, prompts, tokens_BGC):
    """Logits [B, G, C, O] of each token of completions, without a cache."""
    return model.predicting(model.encode(prompts.video), prompts, tokens_BGC) @ model.unembed.T


def without_answers(clips):
    return [dataclasses.replace(clip, answer=clip.answer[:0]) for clip in clips]


def test_greedy_is_transformers_generate(pair):
    """After text and after one image, transformers computes our positions itself."""
    ours, theirs = pair
    family = ours.config.family
    kinds = [Clip(after=9), Clip(slots=1, image=True), Clip(slots=1, grid=(5, 2), image=True), Clip(after=5)]
    clips = without_answers(batches.contents(kinds, family))
    inputs = tiny.reference_inputs(clips, family)
    del inputs["position_ids"]
    theirs.model.rope_deltas = None
    expected = theirs.generate(**inputs, do_sample=False, max_new_tokens=STEPS)[:, -STEPS:]
    got = run(ours, prompts_of(clips, ours.config.vision), max_new=STEPS)
    np.testing.assert_array_equal(got.tokens[:, 0], expected)
    assert got.mask.all()


def test_greedy_after_videos_is_transformers(pair):
    """transformers' generate continues at another position after a Qwen2.5-VL video, so its forward pass gets
    our positions. Our tokens are its greedy tokens if each has the best logit after the tokens before it."""
    ours, theirs = pair
    family = ours.config.family
    kinds = [*CLIPS, Clip(after=4), Clip(slots=2, grid=(2, 5))]
    clips = without_answers(batches.contents(kinds, family))
    got = run(ours, prompts_of(clips, ours.config.vision), max_new=STEPS)
    tokens = got.tokens[:, 0]
    answered = [dataclasses.replace(clip, answer=row) for clip, row in zip(clips, tokens, strict=True)]
    own = np.stack([clip.all_positions[:, -STEPS:-1] for clip in answered], axis=1)
    inputs = tiny.reference_inputs(clips, family)
    theirs.model.rope_deltas = None
    with torch.no_grad():
        prefill = theirs(**inputs, use_cache=True)
        steps = theirs(
            input_ids=torch.tensor(tokens[:, :-1]),
            attention_mask=torch.nn.functional.pad(inputs["attention_mask"], (0, STEPS - 1), value=1),
            position_ids=torch.tensor(own),
            past_key_values=prefill.past_key_values,
        )
    logits = torch.cat([prefill.logits[:, -1:], steps.logits], dim=1).numpy()
    np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))
    np.testing.assert_allclose(got.logprobs[:, 0], pick(log_softmax(logits), tokens), atol=1e-4)
    assert len(np.unique(tokens)) > 20  # not one token over and over


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_cached_decoding_is_the_full_forward(both, temperature):
    model, _, prompts = both
    got = run(model, prompts, groups=(4,), temperature=temperature)
    logits = np.asarray(full_logits(model, prompts, got.tokens))
    expected = pick(log_softmax(logits / (temperature or 1.0)), got.tokens)
    np.testing.assert_allclose(got.logprobs, expected, atol=OWN)


def test_a_shared_prefix_is_the_repeated_prompt(both):
    model, clips, prompts = both
    got = run(model, prompts, **SAMPLED)
    repeated = prompts_of([clip for clip in clips for _ in range(4)], model.config.vision)
    tokens = got.tokens.reshape(8, 1, NEW)
    logits = np.asarray(full_logits(model, repeated, tokens)) / SAMPLED["temperature"]
    np.testing.assert_allclose(got.logprobs.reshape(8, 1, NEW), pick(log_softmax(logits), tokens), atol=OWN)
    greedy = run(model, prompts, **GREEDY)
    np.testing.assert_array_equal(greedy.tokens.reshape(8, 1, NEW), run(model, repeated).tokens)


def test_given_features_are_the_encoded_units(both):
    model, _, prompts = both
    blank = dataclasses.replace(prompts.video, pixels=np.zeros_like(prompts.video.pixels))
    blank = dataclasses.replace(prompts, video=blank)
    encode = jax.jit(lambda model: model.encode(prompts.video))
    expected, got = run(model, prompts, **GREEDY), run(model, blank, features=encode(model), **GREEDY)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    assert (run(model, blank, **GREEDY).tokens != expected.tokens).any()


def test_rollouts_on_the_degraded_video_need_its_list_of_units_only(both):
    """They are those of the video whose frames really are replaced."""
    model, clips, _ = both
    config = model.config.vision
    clips = [
        dataclasses.replace(clip, source=np.array(source, np.int32))
        for clip, source in zip(clips, ([1, 1], [0, 2, 0]), strict=True)
    ]
    prompts = prompts_of(clips, config)
    seen = dataclasses.replace(prompts.text, shows=prompts.shows_degraded)
    got = run(model, dataclasses.replace(prompts, text=seen), **GREEDY)
    expected = run(model, prompts_of([clip.filmed(clip.source) for clip in clips], config), **GREEDY)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_allclose(got.logprobs, expected.logprobs, atol=OWN)
    assert (got.tokens != run(model, prompts, **GREEDY).tokens).any(axis=(1, 2)).all()


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


def test_truncation_shapes_the_sampling_only(model, prompts):
    """top_k = 1 is greedy at any temperature, and its log-probabilities are those of the whole distribution
    at that temperature."""
    got = run(model, prompts, groups=(4,), temperature=2.0, top_k=1)
    logits = np.asarray(full_logits(model, prompts, got.tokens))
    np.testing.assert_array_equal(got.tokens, logits.argmax(axis=-1))
    np.testing.assert_allclose(got.logprobs, pick(log_softmax(logits / 2.0), got.tokens), atol=OWN)


def test_each_completion_stops_at_its_own_end(model, prompts):
    free = run(model, prompts, **SAMPLED)
    eos = (int(free.tokens[0, 0, 3]), int(free.tokens[1, 2, 7]))
    got = run(model, prompts, eos=eos, **SAMPLED)
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


def test_requested_completions_only(model, prompts):
    """The others are empty and change nothing."""
    requested = np.array([[True, False, True, False], [False, True, False, False]])
    got, free = run(model, prompts, requested=requested, **SAMPLED), run(model, prompts, **SAMPLED)
    for ours, all_of_them in zip(got, free, strict=True):
        np.testing.assert_array_equal(ours[requested], all_of_them[requested])
        assert not ours[~requested].any()


def test_completions_depend_on_the_key_alone(model, prompts):
    first = run(model, prompts, **SAMPLED)
    np.testing.assert_array_equal(first.tokens, run(model, prompts, **SAMPLED).tokens)
    assert (first.tokens != run(model, prompts, jax.random.key(1), **SAMPLED).tokens).any()
    assert len({tuple(tokens) for tokens in first.tokens.reshape(8, NEW)}) == 8
    # They depend neither on the other row nor on the number of completions.
    pixels = prompts.video.pixels.copy()
    pixels[0] = 255 - pixels[0]
    mixed = dataclasses.replace(prompts, video=dataclasses.replace(prompts.video, pixels=pixels))
    got = run(model, mixed, **SAMPLED | dict(groups=(2,)))
    np.testing.assert_array_equal(got.tokens[1], first.tokens[1, :2])
    assert (got.tokens[0] != first.tokens[0, :2]).any()


def test_prompts_may_have_groups_of_different_sizes(both):
    """The completions of a prompt are then those that it has where all have as many."""
    model, _, prompts = both
    alike = run(model, prompts, **SAMPLED)
    got = run(model, prompts, **SAMPLED | dict(groups=(3, 1)))
    assert got.tokens.shape == (1, 4, NEW)
    for ours, all_of_them in zip(got, alike, strict=True):
        expected = np.concatenate([all_of_them[0, :3], all_of_them[1, :1]])[None]
        np.testing.assert_allclose(ours, expected, atol=OWN, rtol=0)


def test_sampling_stops_when_enough_have_ended(model, prompts):
    """Those that have ended by then are the same, and the others are empty, as are those not requested."""
    free = run(model, prompts, **SAMPLED)
    eos = tuple(int(free.tokens[b, g, 2 + 4 * b + g]) for b, g in np.ndindex(2, 4))
    requested = np.ones((2, 4), bool)
    requested[0, 3] = False
    whole = run(model, prompts, eos=eos, requested=requested, **SAMPLED)
    lengths = whole.mask.sum(-1)
    assert np.isin(whole.tokens, eos).any(-1)[requested].all()  # each of them ends
    for share in (0.4, 0.6):
        got = run(model, prompts, eos=eos, requested=requested, stop_share=share, **SAMPLED)
        last = np.sort(lengths[requested])[int(np.ceil(share * 7)) - 1]  # the step at which enough have ended
        assert last < NEW
        stays = (lengths <= last) & requested
        assert 0 < stays.sum() < 7
        for ours, all_of_them in zip(got, whole, strict=True):
            np.testing.assert_array_equal(ours[stays], all_of_them[stays])
            assert not ours[~stays].any()


def test_a_row_of_padding_is_empty(model, prompts):
    clips = batches.contents(CLIPS)
    got = run(model, prompts_of([clips[0], None], model.config.vision), **SAMPLED)
    np.testing.assert_array_equal(got.tokens[0], run(model, prompts, **SAMPLED).tokens[0])
    assert got.mask[0].all() and not got.mask[1].any()
    assert not got.tokens[1].any() and not got.logprobs[1].any()


def test_a_draw_is_that_of_jax():
    """Whose argmax takes the first of several largest numbers."""
    rng = np.random.default_rng(0)
    tied = rng.integers(0, 4, (50, 9)).astype(np.float32)
    np.testing.assert_array_equal(first_largest(jnp.asarray(tied)), tied.argmax(axis=-1))
    logits, keys = jnp.float32(rng.normal(size=9)), jax.random.split(jax.random.key(0), 200)
    expected = jax.vmap(lambda key: jax.random.categorical(key, logits))(keys)
    np.testing.assert_array_equal(jax.vmap(lambda key: draw(key, logits))(keys), expected)
