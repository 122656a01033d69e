"""The model computes what the Hugging Face model computes: features, hidden states, logits and gradients.

Errors are in units of the reference's spread: max |ours - theirs| / std(theirs). Both compute in float32 and
sum in another order, which these wide models amplify to 5e-5 at most; TOLERANCE is twice that. The tests of
sensitivity below show that a wrong mechanism changes the logits by at least 100 tolerances.
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

from tests import tiny
from tests.tiny import Row
from vpjax.models.hf import load_pretrained, save_pretrained
from vpjax.models.vlm import abstract_model, leaves, rebuild

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
WRONG = 100 * TOLERANCE

DIFFERENT = "different videos"
CASES = {
    "image": [Row(slots=1, image=True), Row(slots=1, image=True, before=1), Row(slots=1, image=True)],
    "video": [Row(slots=4), Row(slots=4), Row(slots=4)],
    DIFFERENT: [Row(slots=2, before=2, seconds=0.5), Row(slots=4, after=7), Row(slots=1)],
    "mixed": [Row(slots=2), Row(slots=1, image=True), Row(after=5)],
    "text": [Row(after=9), Row(after=6), Row(after=2)],
}


@functools.cache
def case(name, family):
    """A batch, padded to one shape for all cases, so that a model is compiled once."""
    return dataclasses.replace(tiny.batch(CASES[name], family, slots=4, prompt=90), video_end=90)


def error(ours, theirs):
    """The largest difference in units of the spread of ``theirs``."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / theirs.std())


@functools.cache
def load_both(folder):
    return load_pretrained(folder), tiny.reference(folder)


@pytest.fixture(params=tiny.MODELS)
def pair(request, checkpoint):
    """Our model and that of transformers, both from the same folder."""
    return load_both(checkpoint(request.param))


@pytest.fixture(params=tiny.ONE_OF_EACH)
def pair_and_batch(request, checkpoint):
    """Our model and theirs of each family, and a batch of different videos."""
    ours, theirs = load_both(checkpoint(request.param))
    return ours, theirs, case(DIFFERENT, ours.config.family)


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
    inputs = tiny.reference_inputs(batch, model.config.model_type, left=left)
    out = model(**{k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}).logits
    count = batch.suffix.shape[1] + 1
    if left:
        return out[:, -count:]
    ends = batch.prompt_valid.sum(axis=1)
    return torch.stack([row[end - 1 : end - 1 + count] for row, end in zip(out, ends, strict=True)])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits(pair, name):
    ours, theirs = pair
    batch = case(name, ours.config.family)
    assert error(logits(ours, batch), their_logits(theirs, batch)) < TOLERANCE


@torch.no_grad()
def test_logits_of_text_alone(pair_and_batch):
    """A batch whose frames are not encoded."""
    ours, theirs, _ = pair_and_batch
    batch = case("text", ours.config.family)
    assert error(decode(ours, None, batch), their_logits(theirs, batch)) < TOLERANCE


@torch.no_grad()
def test_padding_at_either_side(pair_and_batch):
    ours, theirs, batch = pair_and_batch
    assert error(logits(ours, batch), their_logits(theirs, batch, left=False)) < TOLERANCE


# Windows of 2, 3 and 4 merged tokens: frames that they do not divide, smaller frames and an exact fit.
# Tables of 7 x 7 or 3 x 3 positions: frames of fewer, as many and more patches, down to one token.
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
        ("deep", (32, 32)),
        ("deep", (96, 160)),
        ("deep", (288, 128)),
        ("deep_throughout", (64, 96)),
    ],
)
@torch.no_grad()
def test_vision_features(checkpoint, name, size):
    ours, theirs = load_both(checkpoint(name))
    family = ours.config.family
    batch = tiny.batch([Row(slots=2)], family, size=size)
    inputs = tiny.reference_inputs(batch, family)
    features = encode(ours, batch.frames)
    reference = theirs.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
    both = [reference.pooler_output, *getattr(reference, "deepstack_features", ())]
    for ours, theirs in zip([features.tokens, *features.deep], both, strict=True):
        assert error(ours, theirs.reshape(ours.shape)) < TOLERANCE


@torch.no_grad()
def test_hidden_states_at_the_visual_tokens(pair_and_batch):
    """``tap`` = l and ``visual_hidden`` are the states after l decoder layers and the additions there, and 0
    at invalid slots."""
    ours, theirs, batch = pair_and_batch
    states = []  # by hooks: transformers' own states lack the last, or what is added after a layer
    text = theirs.model.language_model
    followers = [*text.layers[1:], text.norm]
    hooks = [part.register_forward_pre_hook(lambda *args: states.append(args[1][0])) for part in followers]
    their_logits(theirs, batch, left=False)
    for hook in hooks:
        hook.remove()

    @functools.partial(jax.jit, static_argnums=1)
    def taps(model, layers):
        tapped = model.hidden(features, batch, tap=layers).tap
        return tapped, model.visual_hidden(features, batch, layers=layers)

    features = encode(ours, batch.frames)
    for layers in (1, 2, 3):
        reference = np.zeros((*batch.visual.shape, 64), np.float32)
        for b, at in enumerate(batch.visual):
            real = at < batch.prompt.shape[1]
            reference[b, real] = states[layers - 1][b, at[real]]
        for tapped in taps(ours, layers):
            assert error(tapped, reference) < TOLERANCE


@pytest.mark.parametrize("name", ["tied", "one_kv", "deep", "deep_throughout"])
def test_gradients(checkpoint, tmp_path, name):
    """The gradient of the answer's cross-entropy for every weight, vision and text, against autograd.

    The reference is float64, for torch's float32 gradients differ from it by up to 2.7e-4 of their spread:
    single elements of a gradient are 20 times larger than the spread, and rounding grows with them.
    So the limit is TOLERANCE for the root mean square and three tolerances for the worst element.
    """
    ours, theirs = load_both(checkpoint(name))
    theirs = copy.deepcopy(theirs).double()
    batch = case(DIFFERENT, ours.config.family)

    @jax.jit
    @jax.value_and_grad
    def loss(model):
        scores = decode.__wrapped__(model, model.encode(batch.frames), batch)
        logprobs = jax.nn.log_softmax(scores[:, :-1])
        return -jnp.take_along_axis(logprobs, batch.suffix[..., None], axis=-1).mean()

    value, gradient = loss(ours)
    scores = their_logits(theirs, batch)[:, :-1].flatten(0, 1)
    their_loss = torch.nn.functional.cross_entropy(scores, torch.tensor(batch.suffix).long().flatten())
    their_loss.backward()
    assert float(value) == pytest.approx(their_loss.item(), rel=1e-5)

    save_pretrained(gradient, tmp_path)  # a tree like the model: saved, it has the names of transformers
    gradients = load_file(tmp_path / "model.safetensors")
    worst, rms = {}, {}
    for name, parameter in theirs.named_parameters():
        if ours.config.family == "qwen2_5_vl":  # whose files keep the names of transformers 4
            name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        reference = parameter.grad.numpy()
        worst[name] = error(gradients[name], reference)
        rms[name] = np.sqrt(np.mean((gradients.pop(name) - reference) ** 2)) / reference.std()
    assert not gradients
    assert {name: e for name, e in rms.items() if not e < TOLERANCE} == {}
    assert {name: e for name, e in worst.items() if not e < 3 * TOLERANCE} == {}


# Sensitivity: every mistake below, made in a right model, must change the logits.


def changed(model, **parts):
    """``model`` with the same weights and other fields in its configuration, as ``decoder=dict(...)``."""
    edits = {part: dataclasses.replace(getattr(model.config, part), **new) for part, new in parts.items()}
    return rebuild(abstract_model(dataclasses.replace(model.config, **edits)), leaves(model))


def replaced(model, path, value=None, *, reverse=False):
    params = leaves(model)
    value = params[path][::-1] if reverse else value.reshape(params[path].shape)
    return rebuild(model, params | {path: value})


def zeroed(model, path):
    return replaced(model, path, 0 * leaves(model)[path])


def wrong_towers(m):
    yield "no qkv bias", zeroed(m, "vision.blocks.qkv.bias")
    yield "no merger bias", zeroed(m, "vision.merger.fc1.bias")
    if m.config.family == "qwen2_5_vl":
        yield "windows off", changed(m, vision=dict(full_attention=(0, 1, 2)))
        yield "full attention in another block", changed(m, vision=dict(full_attention=(0,)))
        yield "larger windows", changed(m, vision=dict(window=84))
    else:
        table = m.vision.positions[...].reshape(7, 7, -1)
        yield "windows", changed(m, vision=dict(window=64))
        yield "no bias of patches", zeroed(m, "vision.patch_embed.bias")
        yield "no bias of norms", zeroed(m, "vision.blocks.norm1.bias")
        yield "no learned positions", zeroed(m, "vision.positions")
        yield "learned positions transposed", replaced(m, "vision.positions", table.swapaxes(0, 1))
        yield "another layer to the decoder", changed(m, vision=dict(deepstack=(0, 1)))
        yield "mergers in another order", replaced(m, "vision.deepstack.fc1.kernel", reverse=True)


def wrong_features(f):
    """Qwen3-VL: mistakes between tower and decoder."""
    yield "DeepStack left out", f._replace(deep=())
    yield "DeepStack in the first layer only", f._replace(deep=f.deep[:1])
    yield "DeepStack in another order", f._replace(deep=f.deep[::-1])
    yield "DeepStack a layer late", f._replace(deep=(0 * f.tokens, *f.deep))
    yield "DeepStack of the first row for all", f._replace(deep=tuple(x[:1].repeat(3, 0) for x in f.deep))


def wrong_decoders(m):
    layers = "decoder.layers"
    yield "another theta", changed(m, decoder=dict(rope_theta=1e5))
    yield "another eps", changed(m, decoder=dict(rms_eps=0.1))
    yield "one-dimensional rope", changed(m, decoder=dict(rope_axes=(0,) * 8))
    yield "rope axes reversed", changed(m, decoder=dict(rope_axes=m.config.decoder.rope_axes[::-1]))
    if m.config.family == "qwen2_5_vl":
        yield "rope axes interleaved", changed(m, decoder=dict(rope_axes=(0, 1, 2, 0, 1, 2, 1, 2)))
        yield "no query bias", zeroed(m, f"{layers}.q.bias")
        yield "no key bias", zeroed(m, f"{layers}.k.bias")
        yield "no value bias", zeroed(m, f"{layers}.v.bias")
    else:
        yield "rope axes in sections", changed(m, decoder=dict(rope_axes=(0, 0, 0, 0, 1, 1, 2, 2)))
        yield "no norms of queries and keys", changed(m, decoder=dict(qk_norm=False))
        yield "norms swapped", replaced(m, f"{layers}.q_norm.scale", m.decoder.layers.k_norm.scale[...])


def _every_slot_as_the_first(batch):
    pairs = batch.frames.reshape(len(batch.frames), -1, 2, *batch.frames.shape[2:])
    return np.broadcast_to(pairs[:, :1], pairs.shape).reshape(batch.frames.shape)


def _a_few_pixels(batch):
    frames = batch.frames.copy()
    frames[:, 3, 40:48, 50:58] = 255 - frames[:, 3, 40:48, 50:58]
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


WRONG_BATCHES = {
    "another frame rate": lambda b: dict(positions=_positions(b, time=2)),
    "time ids that stand still": lambda b: dict(positions=_positions(b, time=0)),
    "positions of plain text": lambda b: dict(positions=_positions(b, flat=True)),
    "height and width swapped": lambda b: dict(positions=_positions(b, swap=True)),
    "text after the video one too early": lambda b: dict(positions=_positions(b, text=-1)),
    "a few pixels": lambda b: dict(frames=_a_few_pixels(b)),
    "the two frames of a slot swapped": lambda b: dict(frames=b.frames[:, np.arange(b.frames.shape[1]) ^ 1]),
    "the video reversed": lambda b: dict(frames=b.frames[:, ::-1]),
    "one slot shown in all": lambda b: dict(frames=_every_slot_as_the_first(b)),
    "the first row's video for all": lambda b: dict(frames=np.broadcast_to(b.frames[:1], b.frames.shape)),
    "colours as BGR": lambda b: dict(frames=b.frames[..., ::-1]),
    "visual tokens one place late": lambda b: dict(visual=b.visual + 1),
    "padding seen by the suffix": lambda b: dict(prompt_valid=b.prompt_valid | True),
}


@pytest.fixture
def right(pair_and_batch):
    """The right model, its batch, features and logits."""
    model, _, batch = pair_and_batch
    features = encode(model, batch.frames)
    return model, batch, features, np.asarray(decode(model, features, batch))


def test_a_wrong_tower_changes_the_logits(right):
    model, batch, _, reference = right
    for mistake, wrong in wrong_towers(model):
        assert error(decode(model, encode(wrong, batch.frames), batch), reference) > WRONG, mistake


def test_wrong_features_change_the_logits(right):
    model, batch, features, reference = right
    if features.deep:
        for mistake, wrong in wrong_features(features):
            assert error(decode(model, wrong, batch), reference) > WRONG, mistake


def test_a_wrong_decoder_changes_the_logits(right):
    model, batch, features, reference = right
    for mistake, wrong in wrong_decoders(model):
        assert error(decode(wrong, features, batch), reference) > WRONG, mistake


def test_a_wrong_input_changes_the_logits(right):
    model, batch, _, reference = right
    for mistake, edit in WRONG_BATCHES.items():
        assert error(logits(model, dataclasses.replace(batch, **edit(batch))), reference) > WRONG, mistake
