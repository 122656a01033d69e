"""Which frames a model needs to say a keyword: the scorer that asks the model under training."""

from __future__ import annotations

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

LONGEST = 3  # slots of a window (ours)
AT_ONCE = 16  # windows that go through the decoder together
MULTIPLE = 16  # tokens that prompts and answers are padded to: few programs for many captions
CHUNK = 128  # answer tokens whose logits are held at once


def self_scorer(model: VideoLM, text: Text, *, longest: int = LONGEST) -> Scorer:
    """The drop of log p(keyword | V), in nats, when frames are replaced by those beside them.

    Every window of 1 to ``longest`` slots, at most half of the clip, is replaced once, as V~ replaces its key
    slots. A slot's score is the largest further drop that comes of adding it to a window: where two slots
    show the event, neither is missed while the other stands, and slots that only lie beside them add nothing.
    Both frames of a slot have its score. Scored are the keyword's tokens in the answer, given the words
    before them; the whole answer where it does not say the keyword.
    """

    def score(video: Video, clip: Clip, keyword: Keyword) -> np.ndarray:
        row = prompt_row(text.chat(clip.question), video, model.config, stamps=text.stamps)
        row = dataclasses.replace(row, suffix=text.answer(clip.answer))
        slots = len(row.source)
        windows = windows_of(slots, longest)
        if not windows:  # a single slot: there is nothing to put in its place
            return np.zeros(len(video.times), np.float32)
        masks_WS = np.array(
            [(first <= np.arange(slots)) & (np.arange(slots) < end) for first, end in windows]
        )
        sources = [source_of(mask[None], slots) for mask in masks_WS]
        batch = collate([row], bucket_of([row], multiple=MULTIPLE), model.config)
        said = np.zeros(batch.suffix.shape[1], bool)
        said[text.places(keyword.text, clip.answer) or slice(len(row.suffix))] = True
        whole, *degraded = np.asarray(logprobs(model, batch, np.stack([row.source, *sources]), said))
        drops = dict(zip(windows, whole - np.array(degraded), strict=True))
        scores = np.full(slots, -np.inf, np.float32)
        for (first, end), drop in drops.items():
            scores[first] = max(scores[first], drop - drops.get((first + 1, end), 0.0))
            scores[end - 1] = max(scores[end - 1], drop - drops.get((first, end - 1), 0.0))
        return np.repeat(scores, model.config.vision.temporal)

    return score


@jax.jit
def logprobs(model: VideoLM, batch: Batch, sources_WS: Array, said_C: Array) -> Array:
    """log p f32[W] of the suffix tokens ``said`` of a batch of one row, whose video shows ``sources`` of its
    slots. The video is encoded once."""
    features = model.encode(batch.frames)

    def logprob(source_S):
        h = model.hidden(gather_slots(features, source_S[None]), batch)
        each = token_logprobs(h.last, h.suffix, model.unembed, batch.suffix[:, None], chunk=CHUNK)
        return jnp.where(said_C, each[0, 0], 0.0).sum()

    return jax.lax.map(logprob, sources_WS, batch_size=AT_ONCE)


def windows_of(slots: int, longest: int) -> list[tuple[int, int]]:
    """The windows, as (first slot, slot past its end): every run of up to ``longest`` slots that leaves
    half of the clip or more."""
    lengths = range(1, min(longest, slots // 2) + 1)
    return [(first, first + length) for length in lengths for first in range(slots - length + 1)]
