"""The model computes what the Hugging Face model computes: features, hidden states, logits and gradients.

Errors are in units of the reference's spread: max |ours - theirs| / std(theirs). Both compute in float32 and
sum in another order, which these wide models amplify to 6e-5 at most; TOLERANCE is 1e-4.
``test_sensitivity.py`` shows that a wrong mechanism changes the logits by at least 100 tolerances.
"""

import copy
import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests import batches, tiny
from tests.batches import Clip
from tests.models.cases import (
    CASES,
    DIFFERENT,
    TOLERANCE,
    answer_loss,
    case,
    clips_of,
    decode,
    decode_prompts,
    encode,
    error,
    load_both,
    logits,
    packed,
    shape,
)
from vpjax.models.hf import save_pretrained
from vpjax.models.vlm import Degraded

pytestmark = pytest.mark.slow


@pytest.fixture(params=tiny.MODELS)
def pair(request, checkpoint):
    """Our model and that of transformers, both from the same folder."""
    return load_both(checkpoint(request.param))


@pytest.fixture(params=tiny.ONE_OF_EACH)
def pair_of_family(request, checkpoint):
    """The same of one model of each family."""
    return load_both(checkpoint(request.param))


def their_outputs(model, clips, *, left=False):
    """The forward pass of the torch model, each clip in a row of its own, padded at the left or the right."""
    model.model.rope_deltas = None  # kept from one call to the next
    inputs = tiny.reference_inputs(clips, model.config.model_type, left=left)
    return model(**{k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()})


def their_logits(model, clips, *, left=False):
    """The same of the torch model."""
    out = []
    for row, clip in zip(their_outputs(model, clips, left=left).logits, clips, strict=True):
        end = len(row) if left else len(clip.prompt) + len(clip.answer)
        out.append(row[end - len(clip.answer) - 1 : end - 1])
    return torch.cat(out)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits(pair, name):
    """Packed, and with each clip as a prompt and a completion."""
    ours, theirs = pair
    clips, batch = case(name, ours)
    reference = their_logits(theirs, clips)
    assert error(logits(ours, batch), reference) < TOLERANCE
    prompts = batches.prompts(clips, ours.config.vision, **shape(ours.config.vision))
    answers = np.stack([clip.answer for clip in clips])
    got = decode_prompts(ours, encode(ours, prompts.video), prompts, answers)
    assert error(got.reshape(reference.shape), reference) < TOLERANCE


@torch.no_grad()
def test_logits_of_text_alone(pair_of_family):
    """A batch of no units."""
    ours, theirs = pair_of_family
    clips = clips_of("text", ours.config.family)
    batch = batches.packed([clips], ours.config.vision)
    assert batch.video.count == 0 and ours.encode(batch.video) is None
    got = np.asarray(decode(ours, None, batch))[batch.target >= 0]
    assert error(got, their_logits(theirs, clips)) < TOLERANCE


@torch.no_grad()
def test_their_padding_at_either_side(pair_of_family):
    ours, theirs = pair_of_family
    clips, batch = case(DIFFERENT, ours)
    got = logits(ours, batch)
    for left in (True, False):
        assert error(got, their_logits(theirs, clips, left=left)) < TOLERANCE


# Windows of 2, 3 and 4 units: frames that they do not divide, smaller frames and exact fits. Tables of 7 x 7
# or 3 x 3 positions: frames of fewer, as many and more patches, down to one unit.
GRIDS = ((1, 1), (3, 5), (1, 5), (6, 4), (5, 3), (2, 3), (4, 4), (9, 4), (5, 9), (2, 2), (1, 7))


@torch.no_grad()
def test_vision_features(pair):
    """Of videos of many sizes in one batch."""
    ours, theirs = pair
    family = ours.config.family
    clips = batches.contents([Clip(slots=1 + n % 2, grid=grid) for n, grid in enumerate(GRIDS)], family)
    rows = [clips[:4], clips[4:9], clips[9:]]
    units, places = batches.units(rows, ours.config.vision)
    features = encode(ours, units)
    inputs = tiny.reference_inputs(clips, family)
    reference = theirs.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
    both = [reference.pooler_output, *getattr(reference, "deepstack_features", ())]
    assert len(both) == 1 + len(ours.config.vision.deepstack)
    for ours, theirs in zip([features.tokens, *features.deep], both, strict=True):
        of_clips = [np.asarray(ours)[r, at] for r, row in enumerate(places) for at in row]
        sizes = [len(clip) for clip in of_clips]
        assert sizes == [len(clip.source) * clip.per_slot for clip in clips]
        for clip, grid, expected in zip(of_clips, GRIDS, theirs.split(sizes), strict=True):
            assert np.abs(clip - expected.numpy()).max() / theirs.std() < TOLERANCE, grid


@torch.no_grad()
def their_states(theirs, clips):
    """The states [B, T, D] of the torch model after each decoder layer and the additions there."""
    states = []  # by hooks: transformers' own states lack the last, or what is added after a layer
    text = theirs.model.language_model
    followers = [*text.layers[1:], text.norm]
    hooks = [part.register_forward_pre_hook(lambda *args: states.append(args[1][0])) for part in followers]
    their_outputs(theirs, clips)
    for hook in hooks:
        hook.remove()
    return states


def test_hidden_states_after_each_layer(pair_of_family):
    """``tap`` = l of V and of V~, whose frames really are replaced in the reference. Its states before the
    first replaced slot are those of V and are not computed again."""
    ours, theirs = pair_of_family
    sources = [1, 1], [0, 2, 2], [0]
    clips = [
        dataclasses.replace(clip, source=np.array(source, np.int32))
        for clip, source in zip(clips_of(DIFFERENT, ours.config.family), sources, strict=True)
    ]
    batch = packed(clips, ours.config.vision)
    states = their_states(theirs, clips)
    states_degraded = their_states(theirs, [clip.filmed(clip.source) for clip in clips])
    parts = []
    for clip in clips[:2]:
        first = np.flatnonzero(clip.shows != clip.seen(clip.source))[0]
        parts.append(slice(first, np.flatnonzero(clip.shows >= 0)[-1] + 1))
    assert parts[0].start > 0

    @functools.partial(jax.jit, static_argnums=1)
    def taps(model, layers):
        again = Degraded(batch.degraded, batch.degraded_target, batch.shared)
        hidden = model.hidden(features, batch.text, batch.target, degraded=again, tap=layers)
        return hidden.tap, hidden.degraded_tap

    features = encode(ours, batch.video)
    assert batch.degraded.segment.max(axis=1).tolist() == [1, 1]  # the third clip has no V~
    for layers in (1, 2, 3):
        tapped, degraded = (np.asarray(x) for x in taps(ours, layers))
        # Rows are clips one after another: padding is last.
        expected = [states[layers - 1][b, : len(c.prompt) + len(c.answer)] for b, c in enumerate(clips)]
        assert error(tapped[batch.text.segment > 0], torch.cat(expected)) < TOLERANCE
        expected = [states_degraded[layers - 1][b, part] for b, part in enumerate(parts)]
        assert error(degraded[batch.degraded.segment > 0], torch.cat(expected)) < TOLERANCE


@pytest.mark.parametrize("name", ["tied", "one_kv", "deep", "deep_throughout"])
def test_gradients(checkpoint, tmp_path, name):
    """The gradient of the answer's cross-entropy for every weight, vision and text, against autograd.

    The reference is float64, for torch's float32 gradients differ from it by up to 2.7e-4 of their spread:
    single elements of a gradient are 20 times larger than the spread, and rounding grows with them.
    So the limit is TOLERANCE for the root mean square and three tolerances for the worst element.
    """
    ours, theirs = load_both(checkpoint(name))
    theirs = copy.deepcopy(theirs).double()
    clips, batch = case(DIFFERENT, ours)
    answers = np.concatenate([clip.answer for clip in clips])

    @jax.jit
    @jax.value_and_grad
    def loss(model):
        return answer_loss(model, batch, answers)

    value, gradient = loss(ours)
    their_loss = torch.nn.functional.cross_entropy(their_logits(theirs, clips), torch.tensor(answers).long())
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
