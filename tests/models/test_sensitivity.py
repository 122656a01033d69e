"""Every mistake in the model, in a clip or in a batch's layout changes the logits by far more than the tests
of parity allow."""

import dataclasses

import numpy as np
import pytest

from tests import batches, tiny
from tests.models.cases import (
    DIFFERENT,
    TOLERANCE,
    case,
    decode,
    decode_prompts,
    encode,
    error,
    load_both,
    logits,
    packed,
    shape,
)
from vpjax.models.vlm import abstract_model, leaves, rebuild

pytestmark = pytest.mark.slow

WRONG = 100 * TOLERANCE


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
    else:
        table = m.vision.positions[...].reshape(7, 7, -1)
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
    yield "DeepStack of the first row for all", f._replace(deep=tuple(x[:1].repeat(2, 0) for x in f.deep))


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


def _positions(clip, *, time=1.0, text=0, flat=False, swap=False):
    """Positions with time ids scaled, text after the video moved, flat, or height and width swapped."""
    positions = clip.positions.copy()
    if flat:
        positions[:] = np.arange(positions.shape[-1])
    if swap:
        positions = positions[[0, 2, 1]]
    at = np.flatnonzero(clip.shows >= 0)
    first = positions[0, at[0]]
    positions[0, at] = first + (positions[0, at] - first) * time
    positions[:, at[-1] + 1 :] += text
    return dict(positions=positions)


def _a_few_pixels(clip):
    frames = clip.frames.copy()
    frames[-1, 40:48, 50:58] = 255 - frames[-1, 40:48, 50:58]
    return dict(frames=frames)


WRONG_CLIPS = {
    "another frame rate": lambda c: _positions(c, time=2),
    "time ids that stand still": lambda c: _positions(c, time=0),
    "positions of plain text": lambda c: _positions(c, flat=True),
    "height and width swapped": lambda c: _positions(c, swap=True),
    "text after the video one too early": lambda c: _positions(c, text=-1),
    "a few pixels": _a_few_pixels,
    "the two frames of a slot swapped": lambda c: dict(frames=c.frames[np.arange(len(c.frames)) ^ 1]),
    "the video reversed": lambda c: dict(frames=c.frames[::-1]),
    "one slot shown in all": lambda c: dict(frames=np.tile(c.frames[:2], (len(c.source), 1, 1, 1))),
    "colours as BGR": lambda c: dict(frames=c.frames[..., ::-1]),
}


def _units(**change):
    """A wrong batch whose units have other fields: each a function of the right ones."""

    def edit(batch):
        fields = {name: function(batch.video) for name, function in change.items()}
        return dataclasses.replace(batch, video=dataclasses.replace(batch.video, **fields))

    return edit


def _text(**change):
    """The same for the tokens."""

    def edit(batch):
        fields = {name: function(batch.text) for name, function in change.items()}
        return dataclasses.replace(batch, text=dataclasses.replace(batch.text, **fields))

    return edit


def _of_block(units):
    """The number of each unit's block."""
    return np.broadcast_to(np.arange(units.count) // units.block, units.window.shape)


def _padding_in_windows(units):
    """Windows with the padding of their block."""
    blocks = units.window.reshape(len(units.window), -1, units.block)
    return np.where(blocks < 0, blocks.max(axis=-1, keepdims=True), blocks).reshape(units.window.shape)


def _one_moved(units):
    """Windows in which a unit is in another one of its block."""
    window = units.window.copy()
    for block in window.reshape(-1, units.block):
        others = np.flatnonzero((block >= 0) & (block != block[0]))
        if block[0] >= 0 and len(others):
            block[others[0]] = block[0]
            return window
    raise AssertionError("every block holds one window")


def _token_of_another(text):
    """Segments in which the first token of a row's second clip is in the first one's."""
    segment = text.segment.copy()
    for row in segment:
        row[np.flatnonzero(row == 2)[:1]] = 1
    return segment


WRONG_BATCHES = {
    "no windows in a block": _units(window=lambda u: np.where(u.window < 0, -1, _of_block(u))),
    "padding in windows": _units(window=_padding_in_windows),
    "a unit in another window": _units(window=_one_moved),
    "places transposed": _units(place=lambda u: u.place[..., ::-1]),
    "the pixels of another row": _units(pixels=lambda u: u.pixels[::-1]),
    "patches of a unit in another order": _units(pixels=lambda u: u.pixels[:, :, ::-1]),
    "the unit after it shown": _text(shows=lambda t: np.where(t.shows < 0, -1, np.roll(t.shows, 1, axis=1))),
    "clips see one another": _text(segment=lambda t: np.minimum(t.segment, 1)),
    "a token of another clip": _text(segment=_token_of_another),
}
OF_FAMILY = {
    "qwen2_5_vl": {
        "slots of a bin see one another": _units(slot=lambda u: np.minimum(u.slot, 0)),
        "bins of other units": _units(bins=lambda u: np.roll(u.bins, 1, axis=1)),
        "places in bins mixed up": _units(binned=lambda u: np.roll(u.binned, 1, axis=1)),
    },
    "qwen3_vl": {"grids transposed": _units(grid=lambda u: u.grid[..., ::-1])},
}


@pytest.fixture(params=tiny.ONE_OF_EACH)
def right(request, checkpoint):
    """A right model of each family, its clips and their batch, features and logits."""
    model, _ = load_both(checkpoint(request.param))
    clips, batch = case(DIFFERENT, model)
    features = encode(model, batch.video)
    return model, clips, batch, features, np.asarray(decode(model, features, batch))


def test_a_wrong_tower_changes_the_logits(right):
    model, _, batch, _, reference = right
    for mistake, wrong in wrong_towers(model):
        assert error(decode(model, encode(wrong, batch.video), batch), reference) > WRONG, mistake


def test_wrong_features_change_the_logits(right):
    model, _, batch, features, reference = right
    if features.deep:
        for mistake, wrong in wrong_features(features):
            assert error(decode(model, wrong, batch), reference) > WRONG, mistake


def test_a_wrong_decoder_changes_the_logits(right):
    model, _, batch, features, reference = right
    for mistake, wrong in wrong_decoders(model):
        assert error(decode(wrong, features, batch), reference) > WRONG, mistake


def test_a_wrong_clip_changes_the_logits(right):
    model, clips, batch, _, _ = right
    vision = model.config.vision
    reference = logits(model, batch)
    for mistake, edit in WRONG_CLIPS.items():
        wrong = [dataclasses.replace(clip, **edit(clip)) for clip in clips]
        assert error(logits(model, packed(wrong, vision)), reference) > WRONG, mistake
    if vision.window:  # a tower without them attends in bins
        other = dataclasses.replace(vision, window=3 * vision.factor)
        assert error(logits(model, packed(clips, other)), reference) > WRONG, "windows of another size"


def test_a_wrong_layout_changes_the_logits(right):
    model, _, batch, _, _ = right
    reference = logits(model, batch)
    for mistake, edit in (WRONG_BATCHES | OF_FAMILY[model.config.family]).items():
        assert error(logits(model, edit(batch)), reference) > WRONG, mistake


def test_padding_that_completions_see_changes_the_logits(right):
    model, clips, _, _, _ = right
    vision = model.config.vision
    prompts = batches.prompts(clips, vision, **shape(vision))
    answers, features = np.stack([clip.answer for clip in clips]), encode(model, prompts.video)
    seen = dataclasses.replace(prompts.text, segment=np.ones_like(prompts.text.segment))
    wrong = dataclasses.replace(prompts, text=seen)
    reference, got = (np.asarray(decode_prompts(model, features, p, answers)) for p in (prompts, wrong))
    assert error(got[:, 1:], reference[:, 1:]) > WRONG  # the first token's state is at another place
