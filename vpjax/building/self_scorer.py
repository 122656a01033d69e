"""Which frames a model needs to predict a keyword: the scorer that queries the model under training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.building.scorers import Scorer
from vpjax.data.keyframes import source_of
from vpjax.data.rows import bucket_of, collate, prompt_row
from vpjax.data.text import Text
from vpjax.data.video import Video
from vpjax.models.vlm import VideoLM, gather_slots
from vpjax.training.losses import token_logprobs
from vpjax.types import Array, Batch, Clip, Keyword

LONGEST_WINDOW = 3  # slots (chosen here: the paper gives no value)
WINDOWS_AT_ONCE = 16  # that go through the decoder together
MULTIPLE = 16  # of tokens: prompts and answers are padded to it, so that many captions share a program
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
        row = prompt_row(text.chat(clip.question), video, model.config, stamps=text.stamps)
        row = dataclasses.replace(row, suffix=text.answer(clip.answer))
        slots = len(row.source)
        windows = slot_windows(slots)
        if not windows:  # a single slot has no neighbours
            return np.zeros(len(video.times), np.float32)
        sources = [row.source]
        for first, end in windows:
            mask_S = (first <= np.arange(slots)) & (np.arange(slots) < end)
            sources.append(source_of(mask_S[None], slots))
        batch = collate([row], bucket_of([row], multiple=MULTIPLE), model.config)
        scored = np.zeros(batch.suffix.shape[1], bool)
        scored[text.places(keyword.text, clip.answer) or slice(len(row.suffix))] = True
        whole, *degraded = np.asarray(keyword_logprobs(model, batch, np.stack(sources), scored))
        drops = dict(zip(windows, whole - np.array(degraded), strict=True))
        scores = np.full(slots, -np.inf, np.float32)
        for (first, end), drop in drops.items():
            scores[first] = max(scores[first], drop - drops.get((first + 1, end), 0.0))
            scores[end - 1] = max(scores[end - 1], drop - drops.get((first, end - 1), 0.0))
        return np.repeat(scores, model.config.vision.temporal)

    return score


@jax.jit
def keyword_logprobs(model: VideoLM, batch: Batch, sources_WS: Array, scored_C: Array) -> jax.Array:
    """The log-probability f32[W] of the suffix tokens ``scored_C`` of a batch of one row, for each of the
    videos that ``sources_WS`` gathers from its slots. The video is encoded once."""
    features = model.encode(batch.frames)

    def logprob(source_S: jax.Array) -> jax.Array:
        h = model.hidden(gather_slots(features, source_S[None]), batch)
        logprobs = token_logprobs(h.last, h.suffix, model.unembed, batch.suffix[:, None], chunk=CHUNK)
        return jnp.where(scored_C, logprobs[0, 0], 0.0).sum()

    return jax.lax.map(logprob, sources_WS, batch_size=WINDOWS_AT_ONCE)


def slot_windows(slots: int) -> list[tuple[int, int]]:
    """All windows, as (first slot, slot past its end): every run of up to LONGEST_WINDOW slots that leaves at
    least half of the clip."""
    windows = []
    for length in range(1, min(LONGEST_WINDOW, slots // 2) + 1):
        for first in range(slots - length + 1):
            windows.append((first, first + length))
    return windows
