"""Clips of several videos and images compute what transformers computes on the same ids, pixels, positions.

The reference writes its own ids by the chat template, and its positions are worked here by Qwen's rule: what
follows a video or image, be it text or another one, continues at the largest position so far + 1. (That of
transformers 5 restarts lower after a Qwen2.5-VL video; ``as_trained`` mends it.)
"""

import copy
import dataclasses

import jax
import numpy as np
import pytest
import torch

from tests import tiny
from tests.models.cases import TOLERANCE, decode, encode, error
from tests.unpacked import sizes_of
from vpjax.data.collate import collate
from vpjax.data.packing import Sizes
from vpjax.data.rows import DegradedAnswers, training_row
from vpjax.data.text import tokenize
from vpjax.data.units import choose_capacity, grid_of
from vpjax.data.video import Video
from vpjax.models.as_trained import as_trained
from vpjax.models.hf import load_pretrained
from vpjax.models.vlm import Degraded
from vpjax.recipes import base
from vpjax.training.sft import target_logprobs
from vpjax.types import Clip, Keyword, Turn

pytestmark = pytest.mark.slow

ROUNDING = 1e-5  # of a log-probability, which sums in another order move by less
SECONDS = (
    1.0  # of a slot: two time positions, so that a video of 4 slots lasts longer than it is wide or high
)


@dataclasses.dataclass(frozen=True)
class Shown:
    """A video or image. slots, rows, columns: of its units."""

    kind: str
    slots: int
    rows: int
    columns: int


IMAGE, WIDE = Shown("image", 1, 2, 3), Shown("image", 1, 1, 5)
LONG, HIGH = Shown("video", 4, 2, 3), Shown("video", 3, 5, 1)
FLASH = Keyword("flashes", "flash", ((1.1, 1.4),), 1)
CASES = {
    "two images": (
        (IMAGE, WIDE),
        Clip("a", "x", "Is <video> like <video>?", "No, one is red.", others=("y",)),
    ),
    "an image and a video": (
        (IMAGE, LONG),
        Clip("b", "x", "What happens?", "It flashes on the left.", (FLASH,), others=("y",)),
    ),
    "two videos": (
        (LONG, HIGH),
        Clip("c", "x", "In <video> it spins. And in <video> then?", "It flashes.", (FLASH,), others=("y",)),
    ),
    "two turns": (
        (HIGH, LONG, WIDE),
        Clip(
            "d",
            "x",
            "Is it in <video> or in <video>?",
            "It flashes on the left.",
            (FLASH, Keyword("spins", "spin", ((2.1, 2.4),))),
            turns=(Turn("Look at <video> now.", "It spins."),),
            others=("y", "z"),
        ),
    ),
}


@pytest.fixture(scope="module", params=tiny.ONE_OF_EACH)
def models(request, tmp_path_factory):
    """Our model of each family, that of transformers, and their tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    texts = [text for _, clip in CASES.values() for text in clip.texts]
    text = tiny.with_tokenizer_of(texts, request.param, folder)
    return load_pretrained(folder), tiny.reference(folder), text


def videos_of(shown, model):
    """Random frames, those of an image equal."""
    rng, side = np.random.default_rng(0), model.config.vision.factor
    videos = []
    for medium in shown:
        size = (2 * medium.slots, side * medium.rows, side * medium.columns, 3)
        frames = rng.integers(0, 256, size, np.uint8)
        if medium.kind == "image":
            videos.append(Video(np.repeat(frames[:1], 2, axis=0), np.zeros(2)))
        else:
            times = np.arange(2 * medium.slots) * SECONDS / 2
            videos.append(Video(frames, times, SECONDS / 2))
    return videos


def row_of(models, case):
    ours, _, text = models
    shown, clip = case
    videos = videos_of(shown, ours)
    kinds = tuple(medium.kind for medium in shown)
    tokens = tokenize(clip, text, media=kinds, keywords=2, keyword_tokens=4, train_turns="all")
    every = [grid for other, _ in CASES.values() for grid in grids_of(other, ours)]
    capacity = choose_capacity(every, ours.config.vision)
    answers = DegradedAnswers("keywords")
    return training_row(tokens, videos, ours.config, capacity, answers=answers), videos, capacity


def grids_of(shown, model):
    return [grid_of(video.frames.shape[:3], model.config.vision) for video in videos_of(shown, model)]


def batch_of(models, rows, capacity):
    """Clips as one packed row."""
    sizes = Sizes(*np.sum([sizes_of(row) for row in rows], axis=0).tolist())
    return collate([rows], sizes, capacity, models[0].config, 4)


def conversation(models, case):
    """The ids of the whole conversation, by the chat template itself."""
    ours, _, text = models
    shown, clip = case
    waiting, messages = list(shown), []
    if not any("<video>" in turn.question for turn in clip.dialogue):
        clip = dataclasses.replace(clip, question="<video>" * len(shown) + clip.question)
    for turn in clip.dialogue:
        content = []
        for number, piece in enumerate(turn.question.split("<video>")):
            if number:
                content.append(dict(type=waiting.pop(0).kind))
            content.append(dict(type="text", text=piece))
        messages += [dict(role="user", content=content), dict(role="assistant", content=turn.answer)]
    written = text.tokenizer.apply_chat_template(messages, tokenize=False)
    for medium in shown:
        pad = f"<|{medium.kind}_pad|>"
        marked = f"<|vision_start|>{pad}<|vision_end|>"
        place = written.index(marked)
        many = pad.replace("pad", "PAD") * (medium.rows * medium.columns)
        own = f"<|vision_start|>{many * medium.slots}<|vision_end|>"
        if medium.kind == "video" and ours.config.tokens_per_second is None:
            times = [(slot + 0.25) * SECONDS for slot in range(medium.slots)]  # the middle of its two frames
            own = "".join(f"<{time:.1f} seconds><|vision_start|>{many}<|vision_end|>" for time in times)
        written = written[:place] + own + written[place + len(marked) :]
    return np.array(text.encode(written.replace("PAD", "pad")))


def walked(model, ids, shown):
    """Positions i32[3, p], worked token by token."""
    pieces = []
    for medium in shown:
        if medium.kind == "image":
            times = [[0]]
        elif model.config.tokens_per_second is None:
            times = [[0]] * medium.slots
        else:
            times = [[int(slot * SECONDS * model.config.tokens_per_second) for slot in range(medium.slots)]]
        pieces += [
            [(t, y, x) for t in own for y, x in np.ndindex(medium.rows, medium.columns)] for own in times
        ]
    columns = []
    while len(columns) < len(ids):
        start = max(map(max, columns), default=-1) + 1
        if ids[len(columns)] in (model.config.image_token, model.config.video_token):
            columns += [tuple(start + x for x in place) for place in pieces.pop(0)]
        else:
            columns.append((start,) * 3)
    assert not pieces
    return np.array(columns).T


def their_inputs(models, case, ids, videos):
    ours, _, _ = models
    family, (shown, _) = ours.config.family, case
    is_image, is_video = ids == ours.config.image_token, ids == ours.config.video_token
    inputs = dict(
        input_ids=torch.tensor(ids[None]),
        attention_mask=torch.ones((1, len(ids)), dtype=torch.long),
        mm_token_type_ids=torch.tensor(is_image[None] + 2 * is_video[None]),
    )
    names = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
    for kind, (pixels, grid) in names.items():
        own = [(m, video) for m, video in zip(shown, videos, strict=True) if m.kind == kind]
        if own:
            inputs[pixels] = torch.cat([tiny.patches(video.frames, family) for _, video in own])
            inputs[grid] = torch.tensor([[m.slots, 2 * m.rows, 2 * m.columns] for m, _ in own])
    return inputs


@torch.no_grad()
def their_logits(models, case, ids, videos):
    """[p, O], at our rule's positions."""
    ours, theirs, _ = models
    theirs.model.rope_deltas = None
    places = torch.tensor(walked(ours, ids, case[0])[:, None])
    return theirs(**their_inputs(models, case, ids, videos), position_ids=places).logits[0]


@jax.jit
def logprobs(model, batch):
    """log p of the targets given V, and of those given V~."""
    again = Degraded(batch.degraded, batch.degraded_target, batch.shared)
    hidden = model.hidden(model.encode(batch.video), batch.text, batch.target, degraded=again)
    config = base.get_config()
    given = target_logprobs(model, hidden.target, batch.text, batch.target, config)
    if hidden.degraded is None:
        return given, given[:, :0]
    return given, target_logprobs(model, hidden.degraded, batch.degraded, batch.degraded_target, config)


@pytest.mark.parametrize("name", CASES)
def test_logits(models, name):
    ours, _, text = models
    row, videos, capacity = row_of(models, CASES[name])
    ids = conversation(models, CASES[name])
    np.testing.assert_array_equal(row.text.tokens, ids[: len(row.text.tokens)])
    assert text.decode(ids[len(row.text.tokens) :]) == "\n"
    places = walked(ours, ids, CASES[name][0])
    np.testing.assert_array_equal(row.text.positions, places[:, : len(row.text.tokens)])
    batch = batch_of(models, [row], capacity)
    got = np.asarray(decode(ours, encode(ours, batch.video), batch))[batch.target >= 0]
    assert error(got, their_logits(models, CASES[name], ids, videos)[row.target - 1]) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_an_exported_model_has_these_positions(models, name):
    """transformers' own function, as ``as_trained`` mends it."""
    ours, theirs, _ = models
    ids = conversation(models, CASES[name])
    inputs = their_inputs(models, CASES[name], ids, videos_of(CASES[name][0], ours))
    inputs = {key: value for key, value in inputs.items() if not key.startswith("pixel")}
    if ours.config.tokens_per_second is not None:
        videos = sum(medium.kind == "video" for medium in CASES[name][0])
        inputs["second_per_grid_ts"] = torch.tensor([SECONDS] * videos)
    mended, _ = as_trained(copy.deepcopy(theirs))
    found, _ = mended.model.get_rope_index(**inputs)
    np.testing.assert_array_equal(found[:, 0].numpy(), walked(ours, ids, CASES[name][0]))


@pytest.mark.parametrize("name", [name for name, (_, clip) in CASES.items() if clip.keywords])
def test_v_degraded_replaces_frames_of_the_keywords_own_video(models, name):
    """Its keywords are as likely as where these frames really are others, and no other video is changed."""
    ours, _, _ = models
    row, videos, capacity = row_of(models, CASES[name])
    ids = conversation(models, CASES[name])
    changed = [dataclasses.replace(video, frames=video.frames.copy()) for video in videos]
    changed[1].frames[2:4] = videos[1].frames[0:2]  # slot 1 shows the one before it
    if name == "two turns":
        changed[0].frames[4:6] = videos[0].frames[2:4]  # and slot 2 of the other keyword's video
    reference = torch.log_softmax(their_logits(models, CASES[name], ids, changed), dim=-1)
    places = row.degraded_target
    expected = reference[places - 1, ids[places]].numpy()
    given, degraded = (np.asarray(x)[0] for x in logprobs(ours, batch_of(models, [row], capacity)))
    assert len(places) == len(CASES[name][1].keywords)
    np.testing.assert_allclose(degraded, expected, atol=TOLERANCE * float(reference.std()))
    assert (np.abs(degraded - given[row.compared]) > 1e-3).all()


def test_packed_as_alone(models):
    """All cases in one row, in either order."""
    ours, _, _ = models
    made = [row_of(models, case) for case in CASES.values()]
    rows, capacity = [row for row, _, _ in made], made[0][2]
    alone = [[np.asarray(x)[0] for x in logprobs(ours, batch_of(models, [row], capacity))] for row in rows]
    for order in (range(len(rows)), reversed(range(len(rows)))):
        numbers = list(order)
        together = logprobs(ours, batch_of(models, [rows[n] for n in numbers], capacity))
        for found, kind in zip(together, (0, 1), strict=True):
            expected = np.concatenate([alone[n][kind] for n in numbers])
            np.testing.assert_allclose(np.asarray(found)[0], expected, atol=ROUNDING)
