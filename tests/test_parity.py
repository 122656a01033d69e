"""The model is the Hugging Face model: features, hidden states, logits and gradients against torch.

Errors are in units of the reference's spread: max |ours - theirs| / std(theirs). Both compute in float32 and
sum in another order, which these wide models amplify to 5e-5 at most; TOLERANCE is twice that, and the
sensitivity tests below show that a mechanism that goes wrong moves the logits by at least 100 tolerances.
"""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

from tests import tiny
from tests.tiny import Row
from vpjax.models.hf import load_pretrained, save_pretrained
from vpjax.models.vlm import abstract_model, leaves, rebuild

TOLERANCE = 1e-4
WRONG = 100 * TOLERANCE

# One bucket for all, so that a model is compiled once: rows, slots and prompts are padded to it.
bucket = functools.partial(tiny.batch, slots=4, prompt=80)
CASES = {
    "image": bucket([Row(slots=1, image=True), Row(slots=1, image=True, before=1), Row(slots=1, image=True)]),
    "video": bucket([Row(slots=4), Row(slots=4), Row(slots=4)]),
    "different videos": bucket([Row(slots=2, before=2, seconds=0.5), Row(slots=4, after=7), Row(slots=1)]),
    "mixed": bucket([Row(slots=2), Row(slots=1, image=True), Row(after=5)]),
}
DIFFERENT = CASES["different videos"]


def error(ours, theirs):
    """The largest difference in units of the spread of ``theirs``."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / theirs.std())


@functools.cache
def load_both(folder):
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return load_pretrained(folder), theirs


@pytest.fixture(params=tiny.MODELS)
def pair(request, checkpoint):
    """Our model and theirs, both from the same folder."""
    return load_both(checkpoint(request.param))


@pytest.fixture
def tied(checkpoint):
    return load_both(checkpoint("tied"))


@jax.jit
def encode(model, frames):
    return model.encode(frames)


@jax.jit
def decode(model, features, batch):
    """Logits [B, 1 + C, O] that predict each token of the suffix and the one after it."""
    hidden = model.hidden(features, batch)
    h_BCD = jnp.concatenate([hidden.last[:, None], hidden.suffix[:, 0]], axis=1)
    return h_BCD @ model.unembed.T


def logits(model, batch):
    return decode(model, encode(model, batch.frames), batch)


def their_logits(model, batch, *, left=True):
    """The same of the torch model, its rows padded at the left or at the right."""
    model.model.rope_deltas = None  # kept from one call to the next
    inputs = tiny.reference_inputs(batch, left=left)
    out = model(**{k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}).logits
    count = batch.suffix.shape[1] + 1
    if left:
        return out[:, -count:]
    ends = batch.prompt_valid.sum(axis=1)
    return torch.stack([row[end - 1 : end - 1 + count] for row, end in zip(out, ends, strict=True)])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits(pair, case):
    ours, theirs = pair
    assert error(logits(ours, CASES[case]), their_logits(theirs, CASES[case])) < TOLERANCE


@torch.no_grad()
def test_logits_of_text_alone(pair):
    ours, theirs = pair
    batch = tiny.batch([Row(after=9), Row(after=6)])
    assert error(decode(ours, None, batch), their_logits(theirs, batch)) < TOLERANCE


@torch.no_grad()
def test_padding_at_either_side(tied):
    ours, theirs = tied
    assert error(logits(ours, DIFFERENT), their_logits(theirs, DIFFERENT, left=False)) < TOLERANCE


# Frames that windows of 2, 3 and 4 merged tokens do not divide, some smaller than a window, and an exact fit.
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tied", (28, 28)),
        ("tied", (28, 140)),
        ("tied", (140, 84)),
        ("one_kv", (168, 112)),
        ("one_kv", (56, 140)),
        ("eight_kv", (112, 112)),
        ("eight_kv", (140, 252)),
    ],
)
@torch.no_grad()
def test_vision_features(checkpoint, name, size):
    ours, theirs = load_both(checkpoint(name))
    batch = tiny.batch([Row(slots=2)], size=size)
    inputs = tiny.reference_inputs(batch)
    features = encode(ours, batch.frames)
    reference = theirs.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
    assert error(features, reference.pooler_output.reshape(features.shape)) < TOLERANCE


@torch.no_grad()
def test_hidden_states_at_the_visual_tokens(tied):
    """``tap`` = l and ``visual_hidden`` are the states after l decoder layers, 0 at slots not valid."""
    ours, theirs = tied
    states = []  # by hooks, for the last of the states that transformers returns is after the final norm
    layers = theirs.model.language_model.layers
    hooks = [layer.register_forward_hook(lambda *args: states.append(args[2])) for layer in layers]
    their_logits(theirs, DIFFERENT, left=False)
    for hook in hooks:
        hook.remove()

    @functools.partial(jax.jit, static_argnums=1)
    def taps(model, layers):
        tapped = model.hidden(features, DIFFERENT, tap=layers).tap
        return tapped, model.visual_hidden(features, DIFFERENT, layers=layers)

    features = encode(ours, DIFFERENT.frames)
    for layers in (1, 3):
        reference = np.zeros((*DIFFERENT.visual.shape, 64), np.float32)
        for b, at in enumerate(DIFFERENT.visual):
            real = at < DIFFERENT.prompt.shape[1]
            reference[b, real] = states[layers - 1][b, at[real]]
        for tapped in taps(ours, layers):
            assert error(tapped, reference) < TOLERANCE


@pytest.mark.parametrize("name", ["tied", "one_kv"])
def test_gradients(checkpoint, tmp_path, name):
    """The gradient of the answer's cross-entropy for every weight, vision and text, against autograd.

    The reference is float64, for torch's own float32 gradients are up to 2.7e-4 of their spread away from it:
    single elements of a gradient stand out by 20 times the spread, and rounding grows with them.
    So ours are within TOLERANCE in the root mean square, and within three at the worst element.
    """
    ours, theirs = load_both(checkpoint(name))
    theirs = copy.deepcopy(theirs).double()

    @jax.jit
    @jax.value_and_grad
    def loss(model):
        logprobs = jax.nn.log_softmax(logits(model, DIFFERENT)[:, :-1])
        return -jnp.take_along_axis(logprobs, DIFFERENT.suffix[..., None], axis=-1).mean()

    value, gradient = loss(ours)
    scores = their_logits(theirs, DIFFERENT)[:, :-1].flatten(0, 1)
    their_loss = torch.nn.functional.cross_entropy(scores, torch.tensor(DIFFERENT.suffix).long().flatten())
    their_loss.backward()
    assert float(value) == pytest.approx(their_loss.item(), rel=1e-5)

    save_pretrained(gradient, tmp_path)  # a tree like the model, so it can be saved, and read by their names
    gradients = load_file(tmp_path / "model.safetensors")
    worst, rms = {}, {}
    for name, parameter in theirs.named_parameters():
        name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        reference = parameter.grad.numpy()
        worst[name] = error(gradients[name], reference)
        rms[name] = np.sqrt(np.mean((gradients.pop(name) - reference) ** 2)) / reference.std()
    assert not gradients
    assert {name: e for name, e in rms.items() if not e < TOLERANCE} == {}
    assert {name: e for name, e in worst.items() if not e < 3 * TOLERANCE} == {}


# What a wrong model would do, each done here to a right one: the logits must move.


def changed(model, **parts):
    """``model`` with the same weights and other fields in its configuration, as ``decoder=dict(...)``."""
    config = model.config
    edits = {part: dataclasses.replace(getattr(config, part), **fields) for part, fields in parts.items()}
    return rebuild(abstract_model(dataclasses.replace(config, **edits)), leaves(model))


def zeroed(model, *paths):
    params = leaves(model)
    return rebuild(model, params | {path: 0 * params[path] for path in paths})


TOWERS_THAT_ARE_WRONG = {
    "windows off": lambda m: changed(m, vision=dict(full_attention=(0, 1, 2))),
    "full attention in another block": lambda m: changed(m, vision=dict(full_attention=(0,))),
    "larger windows": lambda m: changed(m, vision=dict(window=84)),
    "no qkv bias": lambda m: zeroed(m, "vision.blocks.qkv.bias"),
    "no merger bias": lambda m: zeroed(m, "vision.merger.fc1.bias"),
}
DECODERS_THAT_ARE_WRONG = {
    "rope sections reversed": lambda m: changed(m, decoder=dict(rope_axes=(2, 2, 2, 1, 1, 1, 0, 0))),
    "rope axes interleaved": lambda m: changed(m, decoder=dict(rope_axes=(0, 1, 2, 0, 1, 2, 1, 2))),
    "one-dimensional rope": lambda m: changed(m, decoder=dict(rope_axes=(0,) * 8)),
    "another theta": lambda m: changed(m, decoder=dict(rope_theta=1e5)),
    "another eps": lambda m: changed(m, decoder=dict(rms_eps=0.1)),
    "no query bias": lambda m: zeroed(m, "decoder.layers.q.bias"),
    "no key bias": lambda m: zeroed(m, "decoder.layers.k.bias"),
    "no value bias": lambda m: zeroed(m, "decoder.layers.v.bias"),
}


def _every_slot_as_the_first(batch):
    pairs = batch.frames.reshape(len(batch.frames), -1, 2, *batch.frames.shape[2:])
    return np.broadcast_to(pairs[:, :1], pairs.shape).reshape(batch.frames.shape)


def _one_pixel(batch):
    frames = batch.frames.copy()
    frames[:, 3, 40, 50] = 255 - frames[:, 3, 40, 50]
    return frames


def _positions(batch, *, time=1.0, text=0, flat=False, swap=False):
    """Positions with time ids scaled, text after the video moved, flat, or height and width swapped."""
    positions = batch.positions.copy()
    if flat:
        positions[:] = np.arange(positions.shape[-1])
    if swap:
        positions = positions[:, [0, 2, 1]]
    for b, at in enumerate(batch.visual):
        at = at[at < batch.prompt.shape[1]]
        first = positions[b, 0, at[0]]
        positions[b, 0, at] = first + (positions[b, 0, at] - first) * time
        positions[b, :, at[-1] + 1 :] += text
    return positions


BATCHES_THAT_ARE_WRONG = {
    "another frame rate": lambda b: dict(positions=_positions(b, time=2)),
    "time ids that stand still": lambda b: dict(positions=_positions(b, time=0)),
    "positions of plain text": lambda b: dict(positions=_positions(b, flat=True)),
    "height and width swapped": lambda b: dict(positions=_positions(b, swap=True)),
    "text after the video one too early": lambda b: dict(positions=_positions(b, text=-1)),
    "one pixel": lambda b: dict(frames=_one_pixel(b)),
    "the two frames of a slot swapped": lambda b: dict(frames=b.frames[:, np.arange(b.frames.shape[1]) ^ 1]),
    "the video reversed": lambda b: dict(frames=b.frames[:, ::-1]),
    "one slot shown in all": lambda b: dict(frames=_every_slot_as_the_first(b)),
    "the first row's video for all": lambda b: dict(frames=np.broadcast_to(b.frames[:1], b.frames.shape)),
    "colours as BGR": lambda b: dict(frames=b.frames[..., ::-1]),
    "visual tokens one place late": lambda b: dict(visual=b.visual + 1),
    "padding seen by the suffix": lambda b: dict(prompt_valid=b.prompt_valid | True),
}


@pytest.fixture
def right(tied):
    """The right model, its features and its logits."""
    features = encode(tied[0], DIFFERENT.frames)
    return tied[0], features, np.asarray(decode(tied[0], features, DIFFERENT))


@pytest.mark.parametrize("wrong", TOWERS_THAT_ARE_WRONG)
def test_a_wrong_tower_is_seen(right, wrong):
    model, _, reference = right
    features = encode(TOWERS_THAT_ARE_WRONG[wrong](model), DIFFERENT.frames)
    assert error(decode(model, features, DIFFERENT), reference) > WRONG


@pytest.mark.parametrize("wrong", DECODERS_THAT_ARE_WRONG)
def test_a_wrong_decoder_is_seen(right, wrong):
    model, features, reference = right
    assert error(decode(DECODERS_THAT_ARE_WRONG[wrong](model), features, DIFFERENT), reference) > WRONG


@pytest.mark.parametrize("wrong", BATCHES_THAT_ARE_WRONG)
def test_a_wrong_input_is_seen(right, wrong):
    model, _, reference = right
    batch = dataclasses.replace(DIFFERENT, **BATCHES_THAT_ARE_WRONG[wrong](DIFFERENT))
    assert error(logits(model, batch), reference) > WRONG
