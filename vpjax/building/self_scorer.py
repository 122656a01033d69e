"""Which frames a model needs to predict a keyword: the scorer that queries the model under training."""

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.building.scorers import Scorer
from vpjax.data.collate import coarse, single_prompt
from vpjax.data.keyframes import source_of
from vpjax.data.rows import seen_through
from vpjax.data.text import Text
from vpjax.data.video import Video
from vpjax.models.vision import Features
from vpjax.models.vlm import VideoLM
from vpjax.training.losses import token_logprobs
from vpjax.types import Array, Clip, Keyword, Prompts, Units

LONGEST_WINDOW = 3  # slots (chosen here: the paper gives no value)
VIDEOS_AT_ONCE = 16  # that go through the decoder together, at most
CHUNK = 128  # answer tokens whose logits are held at once


def self_scorer(model: VideoLM, text: Text) -> Scorer:
    """Score frames by the drop of log p(keyword | V), in nats, when they are replaced by their neighbours.

    Every window of 1 to LONGEST_WINDOW slots, at most half of the clip, is replaced once, as V~ replaces its
    key slots. A slot's score is the largest additional drop when it joins a window: if two slots show the
    event, neither is missed while the other is visible, and slots beside them add nothing. Both frames of a
    slot have its score. The log-probability is that of the keyword's tokens in the answer, given the words
    before them, or of the whole answer if it does not contain the keyword.
    """

    def score(video: Video, clip: Clip, keyword: Keyword) -> np.ndarray:
        row, prompts = single_prompt(text.chat(clip.question), video, model.config, stamps=text.stamps)
        slots = row.slots.shape[1]
        windows = slot_windows(slots)
        if not windows:  # a single slot has no neighbours
            return np.zeros(len(video.times), np.float32)
        shows_P, slot_P = np.asarray(prompts.text.shows)[0], np.asarray(prompts.text.slot)[0]
        videos = [shows_P]
        for first, end in windows:
            mask_S = (first <= np.arange(slots)) & (np.arange(slots) < end)
            videos.append(seen_through(shows_P, slot_P, source_of(mask_S[None], slots)))
        answer = text.answer(clip.answer)
        answer_C = np.zeros(coarse(len(answer)), np.int32)
        answer_C[: len(answer)] = answer
        scored_C = np.zeros(len(answer_C), bool)
        scored_C[text.places(keyword.text, clip.answer) or slice(len(answer))] = True
        whole, *degraded = keyword_logprobs(model, prompts, np.stack(videos), answer_C, scored_C)
        drops = dict(zip(windows, whole - np.array(degraded), strict=True))
        scores = np.full(slots, -np.inf, np.float32)
        for (first, end), drop in drops.items():
            scores[first] = max(scores[first], drop - drops.get((first + 1, end), 0.0))
            scores[end - 1] = max(scores[end - 1], drop - drops.get((first, end - 1), 0.0))
        return np.repeat(scores, model.config.vision.temporal)

    return score


def keyword_logprobs(
    model: VideoLM, prompts: Prompts, shows_VP: np.ndarray, answer_C: np.ndarray, scored_C: np.ndarray
) -> np.ndarray:
    """The log-probability f32[V] of the tokens ``scored`` of an answer to a batch of one prompt, for each of
    V videos, given as the units that its visual tokens show. The units are encoded once."""
    features, prompts = encode(model, prompts.video), prompts.without_video()
    # As few as a short clip needs, and few different numbers.
    at_once = min(VIDEOS_AT_ONCE, 1 << (len(shows_VP) - 1).bit_length())
    found = []
    for first in range(0, len(shows_VP), at_once):
        part_VP = shows_VP[first : first + at_once]
        padded_VP = np.pad(part_VP, ((0, at_once - len(part_VP)), (0, 0)), mode="edge")
        logprobs_V = answer_logprobs(model, prompts, features, padded_VP, answer_C, scored_C)
        found.append(np.asarray(logprobs_V)[: len(part_VP)])
    return np.concatenate(found)


@jax.jit
def encode(model: VideoLM, units: Units) -> Features | None:
    return model.encode(units)


@jax.jit
def answer_logprobs(
    model: VideoLM,
    prompts: Prompts,
    features: Features | None,
    shows_VP: Array,
    answer_C: Array,
    scored_C: Array,
) -> jax.Array:
    """``keyword_logprobs`` of a few videos, in one program."""
    answer_11C = jnp.asarray(answer_C)[None, None]

    def logprob(shows_P: jax.Array) -> jax.Array:
        h_11CD = model.predicting(features, prompts.showing(shows_P[None]), answer_11C)
        logprobs = token_logprobs(h_11CD, model.unembed, answer_11C, chunk=CHUNK)
        return jnp.where(scored_C, logprobs[0, 0], 0.0).sum()

    return jax.vmap(logprob)(jnp.asarray(shows_VP))


def slot_windows(slots: int) -> list[tuple[int, int]]:
    """All windows, as (first slot, slot past its end): every run of up to LONGEST_WINDOW slots that leaves at
    least half of the clip."""
    windows = []
    for length in range(1, min(LONGEST_WINDOW, slots // 2) + 1):
        for first in range(slots - length + 1):
            windows.append((first, first + length))
    return windows
