"""A conversation is trained as transformers would train it: the same ids, each turn's loss, and V~ of its one
video. The reference writes its own ids, computes its own positions, and is float64."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny
from tests.models.cases import TOLERANCE
from tests.unpacked import sizes_of
from vpjax.data.collate import collate
from vpjax.data.packing import Sizes
from vpjax.data.rows import DegradedAnswers, training_row
from vpjax.data.text import tokenize
from vpjax.data.units import choose_capacity, grid_of
from vpjax.data.video import Video
from vpjax.models.hf import load_pretrained
from vpjax.models.vlm import Degraded
from vpjax.recipes import base
from vpjax.training.sft import target_logprobs
from vpjax.types import Clip, Keyword, Turn

pytestmark = pytest.mark.slow

LOSS = 3e-6  # of a mean over the tokens of a turn; 3e-7 is found
PACKED = 1e-6  # of a loss, for sums in another order
ROUNDING = 1e-5  # of a log-probability of up to 10, which such sums move by 4e-6
TURNS = (Turn("What is it?", "A red square flashes."), Turn("Where is it?", "On the left, at first."))
KEYWORDS = (Keyword("flashes", "flash", ((0.5, 0.6),)), Keyword("jumps", "jump", ((0.5, 0.6),)))
CLIP = Clip("a", "a.mp4", "And then?", "Then it jumps.", KEYWORDS, system="Be brief.", turns=TURNS)
OTHER = Clip("b", "b.mp4", "Who?", "A cat.", turns=(Turn("Well?", "It spins."),))
FRAMES = np.random.default_rng(0).integers(0, 256, (8, 84, 56, 3), np.uint8)
# Slots of a quarter second: no more time positions than rows, so that every rule of positions is the same.
VIDEO = Video(FRAMES, np.arange(8) / 8, 1 / 8)
STAMPS = ("0.1", "0.3", "0.6", "0.8")  # the middle of each slot


@pytest.fixture(scope="module", params=tiny.ONE_OF_EACH)
def models(request, tmp_path_factory):
    """Our model of each family, that of transformers, and their tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    text = tiny.with_tokenizer_of([*CLIP.texts, *OTHER.texts], request.param, folder)
    return load_pretrained(folder), tiny.reference(folder).double(), text


def video_of(model):
    """The frames in a size that the model's patches divide: 3 rows and 2 columns of units."""
    side = model.config.vision.factor
    return dataclasses.replace(
        VIDEO, frames=np.ascontiguousarray(np.resize(FRAMES, (8, 3 * side, 2 * side, 3)))
    )


def batch_of(model, text, clips, **options):
    """Clips as one packed row."""
    video = video_of(model)
    capacity = choose_capacity([grid_of(video.frames.shape[:3], model.config.vision)], model.config.vision)
    rows = []
    for clip in clips:
        tokens = tokenize(clip, text, keywords=2, keyword_tokens=4, train_turns="all")
        answers = DegradedAnswers("keywords")
        rows.append(training_row(tokens, [video], model.config, capacity, answers=answers, **options))
    sizes = Sizes(*map(sum, zip(*map(sizes_of, rows), strict=True)))
    return collate([rows], sizes, capacity, model.config, 4), rows


@jax.jit
def logprobs(model, batch):
    """log p of the targets given V, and of those given V~."""
    again = Degraded(batch.degraded, batch.degraded_target, batch.shared)
    hidden = model.hidden(model.encode(batch.video), batch.text, batch.target, degraded=again)
    config = base.get_config()
    given = target_logprobs(model, hidden.target, batch.text, batch.target, config)
    return given, target_logprobs(model, hidden.degraded, batch.degraded, batch.degraded_target, config)


def conversation(model, text):
    """The ids of the whole conversation, by the chat template itself."""
    messages = [dict(role="system", content=CLIP.system)]
    for number, (question, answer) in enumerate(
        [*map(dataclasses.astuple, TURNS), ("And then?", "Then it jumps.")]
    ):
        content = [dict(type="text", text=question)]
        if number == 0:
            content.insert(0, dict(type="video"))
        messages += [dict(role="user", content=content), dict(role="assistant", content=answer)]
    written = text.tokenizer.apply_chat_template(messages, tokenize=False)
    pads = "<|video_pad|>" * 6
    if model.config.tokens_per_second is None:
        slots = "".join(f"<{time} seconds><|vision_start|>{pads}<|vision_end|>" for time in STAMPS)
        written = written.replace("<|vision_start|><|video_pad|><|vision_end|>", slots)
    else:
        written = written.replace("<|video_pad|>", 4 * pads)
    return np.array(text.tokenizer(written, add_special_tokens=False)["input_ids"])


def assistant_spans(text, ids):
    """The places of each answer and its end, found in the ids."""
    header = text.encode("<|im_start|>assistant\n")
    spans = []
    for at in range(len(ids)):
        if ids[at : at + len(header)].tolist() == header:
            first = at + len(header)
            spans.append(np.arange(first, first + ids[first:].tolist().index(text.end) + 1))
    return spans


def their_inputs(model, ids, frames):
    import torch

    is_video = ids == model.config.video_token_id
    inputs = dict(
        input_ids=torch.tensor(ids[None]),
        attention_mask=torch.ones((1, len(ids)), dtype=torch.long),
        mm_token_type_ids=torch.tensor(2 * is_video[None]),
        pixel_values_videos=tiny.patches(frames, model.config.model_type).double(),
        video_grid_thw=torch.tensor([[4, 6, 4]]),
    )
    if model.config.model_type == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.tensor([0.25])
    model.model.rope_deltas = None
    return inputs


def test_each_turn_has_the_loss_that_transformers_gives_it(models):
    import torch

    ours, theirs, text = models
    batch, (row,) = batch_of(ours, text, [CLIP])
    ids = conversation(ours, text)
    np.testing.assert_array_equal(row.text.tokens, ids[: len(row.text.tokens)])
    assert text.decode(ids[len(row.text.tokens) :]) == "\n"
    spans = assistant_spans(text, ids)
    np.testing.assert_array_equal(row.target, np.concatenate(spans))
    found = np.split(np.asarray(logprobs(ours, batch)[0])[0], np.cumsum([*map(len, spans)])[:-1])
    assert len(found) == len(spans) == 3
    for logprob, span in zip(found, spans, strict=True):
        labels = np.full_like(ids, -100)
        labels[span] = ids[span]
        with torch.no_grad():
            inputs = their_inputs(theirs, ids, video_of(ours).frames)
            loss = theirs(**inputs, labels=torch.tensor(labels[None])).loss
        assert -logprob.mean() == pytest.approx(loss.item(), rel=LOSS)


def test_the_degraded_video_hides_the_keywords_of_every_turn(models):
    """A keyword of the first answer and one of the last are as likely as they are where the frames really
    are others."""
    import torch

    ours, theirs, text = models
    batch, (row,) = batch_of(ours, text, [CLIP])
    ids = conversation(ours, text)
    assert text.decode(ids[row.degraded_target]) == " flashes jumps"
    np.testing.assert_array_equal(row.target[row.compared], row.degraded_target)
    frames = video_of(ours).frames
    frames[4:6] = frames[2:4]
    with torch.no_grad():
        scores = torch.log_softmax(theirs(**their_inputs(theirs, ids, frames)).logits[0], dim=-1)
    expected = scores[row.degraded_target - 1, ids[row.degraded_target]].numpy()
    given, degraded = (np.asarray(x)[0] for x in logprobs(ours, batch))
    np.testing.assert_allclose(degraded, expected, atol=TOLERANCE * float(scores.std()))
    assert (np.abs(degraded - given[row.compared]) > 1e-3).all()


def test_a_packed_conversation_has_the_loss_that_it_has_alone(models):
    ours, _, text = models
    alone, degraded_alone = (np.asarray(x)[0] for x in logprobs(ours, batch_of(ours, text, [CLIP])[0]))
    for clips in ([CLIP, OTHER], [OTHER, CLIP]):
        batch, _ = batch_of(ours, text, clips)
        place = clips.index(CLIP)
        own = np.asarray(batch.text.segment)[0, batch.target[0]] == place + 1
        together, degraded = (np.asarray(x)[0] for x in logprobs(ours, batch))
        assert together[own].mean() == pytest.approx(alone.mean(), rel=PACKED)
        np.testing.assert_allclose(together[own], alone, atol=ROUNDING)
        np.testing.assert_allclose(degraded, degraded_alone, atol=ROUNDING)


def test_later_turns_see_earlier_ones(models):
    """And none sees a later one."""
    ours, _, text = models
    batch, (row,) = batch_of(ours, text, [CLIP])
    lengths = [len(text.answer(turn.answer)) for turn in CLIP.dialogue]
    changed = dataclasses.replace(batch.text, tokens=np.array(batch.text.tokens))
    changed.tokens[0, row.target[lengths[0]]] = text.encode(" spins")[
        0
    ]  # the first token of the second answer
    before, after = (
        np.split(np.asarray(logprobs(ours, x)[0])[0], np.cumsum(lengths)[:-1])
        for x in (batch, dataclasses.replace(batch, text=changed))
    )
    np.testing.assert_array_equal(before[0], after[0])
    assert (np.abs(before[2] - after[2]) > 1e-4).all()
