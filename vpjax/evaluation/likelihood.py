"""How likely a model finds given answers: what it prefers when it has to choose among them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.models.generate import completed
from vpjax.models.vlm import VideoLM
from vpjax.training.losses import token_logprobs
from vpjax.types import Array, Batch


def pad_answers(
    answers: Sequence[Sequence[np.ndarray]], groups: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens i32[B, G, C] of each row's answers i32[c], and which of them are real, bool[B, G, C]."""
    tokens = np.zeros((len(answers), groups, length), np.int32)
    valid = np.zeros(tokens.shape, bool)
    for b, row in enumerate(answers):
        for g, ids in enumerate(row):
            tokens[b, g, : len(ids)] = ids
            valid[b, g, : len(ids)] = True
    return tokens, valid


@functools.partial(jax.jit, static_argnames="chunk")
def answer_logprobs(
    model: VideoLM,
    batch: Batch,
    tokens_BGC: Array,
    valid_BGC: Array,
    *,
    features: Array | None = None,
    chunk: int = 128,
) -> Array:
    """log p f32[B, G] of each whole answer after its row's prompt; -inf for one without tokens.

    features: of ``model.encode``; default: of the batch's frames. chunk: positions whose logits are held at
    once. The batch's own suffix is not read."""
    if features is None and batch.frames.shape[1]:
        features = model.encode(batch.frames)
    hidden = model.hidden(features, completed(batch, tokens_BGC))
    logprobs = token_logprobs(hidden.last, hidden.suffix, model.unembed, tokens_BGC, chunk=chunk)
    total_BG = jnp.where(valid_BGC, logprobs, 0.0).sum(-1)
    return jnp.where(valid_BGC.any(-1), total_BG, -jnp.inf)
