"""The scorer that queries the model: against transformers on replaced pixels, with scores worked by hand."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from tests import tiny
from vpjax.building import self_scorer
from vpjax.data import collate
from vpjax.data.collate import single_prompt
from vpjax.data.text import Text
from vpjax.data.tokenizer import train_tokenizer
from vpjax.data.video import Video
from vpjax.models.hf import load_pretrained
from vpjax.types import Clip, Keyword

pytestmark = pytest.mark.slow
SLOTS = 5
ANSWER = "A cup tips over and falls."
KEYWORD = Keyword("tips over", "tip over")
CLIP = Clip("a", "a.mp4", "What happens?", ANSWER, (KEYWORD,))
VIDEO = Video(
    np.random.default_rng(0).integers(0, 256, (2 * SLOTS, 56, 56, 3), np.uint8),
    np.arange(2 * SLOTS) / 4,
    0.25,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Our model, that of transformers, and the tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer([ANSWER, CLIP.question], folder, 400)
    text = Text.load(folder)
    raw = copy.deepcopy(tiny.MODELS["tied"])
    raw |= dict(image_token_id=text.image_pad, video_token_id=text.video_pad)
    raw["text_config"] |= dict(vocab_size=400)
    raw["vision_config"] |= dict(tokens_per_second=4)
    return load_pretrained(tiny.write_checkpoint(folder, raw)), tiny.torch_model(raw), text


@torch.no_grad()
def reference_logprob(model, row, frames, answer, places):
    """log p of the answer's tokens at ``places``, by transformers."""
    prompt = row.prompt
    ids = np.concatenate([prompt.tokens, answer])
    after = prompt.positions.max() + 1 + np.arange(len(answer))
    positions = np.concatenate([prompt.positions, np.repeat(after[None], 3, axis=0)], axis=1)
    model.model.rope_deltas = None
    logits = model(
        input_ids=torch.tensor(ids[None], dtype=torch.int64),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        position_ids=torch.tensor(positions[:, None], dtype=torch.int64),
        mm_token_type_ids=torch.tensor((ids == model.config.video_token_id)[None] * 2),
        pixel_values_videos=tiny.patches(frames),
        video_grid_thw=torch.tensor([[len(frames) // 2, 4, 4]]),
    ).logits[0]
    logprobs = torch.log_softmax(logits[len(prompt.tokens) - 1 : -1], dim=-1)
    return sum(float(logprobs[c, answer[c]]) for c in places)


WINDOWS = {  # the slot that each slot of V~ shows
    (0, 1): (1, 1, 2, 3, 4),
    (1, 2): (0, 0, 2, 3, 4),
    (2, 3): (0, 1, 1, 3, 4),
    (3, 4): (0, 1, 2, 2, 4),
    (4, 5): (0, 1, 2, 3, 3),
    (0, 2): (2, 2, 2, 3, 4),
    (1, 3): (0, 0, 3, 3, 4),
    (2, 4): (0, 1, 1, 4, 4),
    (3, 5): (0, 1, 2, 2, 2),
}


def replaced(*sources):
    """The frames of VIDEO with slot s showing slot sources[s]."""
    slots = VIDEO.frames.reshape(SLOTS, 2, 56, 56, 3)
    return slots[list(sources)].reshape(VIDEO.frames.shape)


def scores_by_hand(drops):
    """Of each slot, from the drops of WINDOWS: the largest one by which it adds to a window."""
    single, double = [drops[s, s + 1] for s in range(5)], [drops[s, s + 2] for s in range(4)]
    return [
        max(single[0], double[0] - single[1]),
        max(single[1], double[0] - single[0], double[1] - single[2]),
        max(single[2], double[1] - single[1], double[2] - single[3]),
        max(single[3], double[2] - single[2], double[3] - single[4]),
        max(single[4], double[3] - single[3]),
    ]


@pytest.mark.parametrize("keyword", [KEYWORD, Keyword("absent", "absent")])
def test_scores_are_drops_on_replaced_pixels(models, keyword):
    ours, reference, text = models
    row, _ = single_prompt(text.chat(CLIP.question), [VIDEO], ours.config)
    answer = text.answer(ANSWER)
    places = [c for c in range(len(answer)) if text.decode(answer[c : c + 1]).strip() in ("tips", "over")]
    assert text.decode(answer[places]) == " tips over"
    if keyword is not KEYWORD:  # the whole answer, its end included
        places = range(len(answer))

    def logprob(frames):
        return reference_logprob(reference, row, frames, answer, places)

    drops = {window: logprob(VIDEO.frames) - logprob(replaced(*shown)) for window, shown in WINDOWS.items()}
    expected = scores_by_hand(drops)
    scores = self_scorer.self_scorer(ours, text)(VIDEO, CLIP, keyword)
    assert scores.shape == (2 * SLOTS,) and np.std(expected) > 0.1
    np.testing.assert_allclose(scores, np.repeat(expected, 2), atol=1e-3)  # of log p near -10 in float32


def test_key_frames_are_those_that_tell_answers_apart(models, monkeypatch):
    """The score of a window is the spread, over the answers, of their drops on replaced pixels."""
    ours, reference, text = models
    row, _ = single_prompt(text.chat(CLIP.question), [VIDEO], ours.config)
    answers = [ANSWER, "A cup falls.", "falls and tips"]

    def logprobs(frames):
        ids = [text.answer(answer) for answer in answers]
        return np.array([reference_logprob(reference, row, frames, x, range(len(x))) for x in ids])

    whole = logprobs(VIDEO.frames)
    spreads = {window: np.std(whole - logprobs(replaced(*shown))) for window, shown in WINDOWS.items()}
    expected = np.repeat(scores_by_hand(spreads), 2)
    got = []
    found = ((1.0, 1.5),)
    monkeypatch.setattr(self_scorer, "key_runs", lambda scores, times: got.append(scores) or (found, 1.0))
    assert self_scorer.self_finder(ours, text)(VIDEO, CLIP, answers) == found
    assert np.std(expected) > 0.03
    np.testing.assert_allclose(got[0], expected, atol=1e-3)  # of log p near -30 in float32


def test_the_video_is_encoded_once(models, monkeypatch):
    ours, _, text = models
    calls = []
    encode = self_scorer.encode
    monkeypatch.setattr(self_scorer, "encode", lambda *args: calls.append(1) or encode(*args))
    self_scorer.self_scorer(ours, text)(VIDEO, CLIP, KEYWORD)
    assert len(calls) == 1


def test_few_programs(models):
    """Clips of other lengths, sizes and answers share one program of each kind, whatever is scored."""
    ours, _, text = models
    scorer = self_scorer.self_scorer(ours, text)
    rng = np.random.default_rng(0)

    def score(slots, size, answer, keyword):
        video = Video(rng.integers(0, 256, (2 * slots, *size, 3), np.uint8), np.arange(2 * slots) / 4, 0.25)
        scores = scorer(video, dataclasses.replace(CLIP, answer=answer), keyword)
        assert scores.shape == (2 * slots,) and np.isfinite(scores).all()

    score(24, (56, 84), ANSWER, KEYWORD)
    before = self_scorer.encode._cache_size(), self_scorer.answer_logprobs._cache_size()
    score(23, (56, 84), ANSWER, Keyword("falls", "fall"))
    score(23, (84, 56), "A cup falls.", KEYWORD)
    score(22, (84, 56), ANSWER, Keyword("absent", "absent"))
    assert (self_scorer.encode._cache_size(), self_scorer.answer_logprobs._cache_size()) == before


def test_padding_changes_nothing(models, monkeypatch):
    """Neither that of a prompt and its units nor that of the answer; that of the videos is cut off again."""
    ours, _, text = models
    scores = self_scorer.self_scorer(ours, text)(VIDEO, CLIP, KEYWORD)
    monkeypatch.setattr(collate, "coarse", lambda count: count)
    monkeypatch.setattr(self_scorer, "coarse", lambda count: count)
    monkeypatch.setattr(self_scorer, "VIDEOS_AT_ONCE", 3)
    without = self_scorer.self_scorer(ours, text)(VIDEO, CLIP, KEYWORD)
    np.testing.assert_allclose(scores, without, atol=1e-4)  # of log p near -10 in float32


def test_an_image_has_no_neighbouring_slot(models):
    ours, _, text = models
    image = Video(VIDEO.frames[:2], np.zeros(2))
    assert self_scorer.self_scorer(ours, text)(image, CLIP, KEYWORD).tolist() == [0.0, 0.0]
