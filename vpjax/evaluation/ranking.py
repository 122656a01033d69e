"""Given answers of a question: their log-probabilities, and the best of them."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.models.vision import Features
from vpjax.models.vlm import VideoLM
from vpjax.training.losses import token_logprobs
from vpjax.types import Array, Prompts


def pad_answers(
    answers: Sequence[Sequence[np.ndarray]], groups: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens i32[B, G, C] of each row's answers i32[c], and which of them are real, bool[B, G, C]."""
    tokens_BGC = np.zeros((len(answers), groups, length), np.int32)
    valid_BGC = np.zeros(tokens_BGC.shape, bool)
    for row, row_answers in enumerate(answers):
        for number, ids in enumerate(row_answers):
            tokens_BGC[row, number, : len(ids)] = ids
            valid_BGC[row, number, : len(ids)] = True
    return tokens_BGC, valid_BGC


@functools.partial(jax.jit, static_argnames="chunk")
def answer_logprobs(
    model: VideoLM,
    prompts: Prompts,
    tokens_BGC: Array,
    valid_BGC: Array,
    *,
    features: Features | None = None,
    chunk: int = 128,
) -> jax.Array:
    """log p f32[B, G] of each whole answer after its row's prompt; -inf for an answer without tokens.

    features: from ``model.encode``; None: those of the prompts' videos. chunk: positions whose logits are
    held at once."""
    if features is None:
        features = model.encode(prompts.video)
    h_BGCD = model.predicting(features, prompts, tokens_BGC)
    logprobs = token_logprobs(h_BGCD, model.unembed, tokens_BGC, chunk=chunk)
    total_BG = jnp.where(valid_BGC, logprobs, 0.0).sum(-1)
    return jnp.where(valid_BGC.any(-1), total_BG, -jnp.inf)


def likeliest_first(logprobs_LG: np.ndarray) -> np.ndarray:
    """The numbers i64[G] of answers by the sum of their log-probabilities given each of L looks at a video,
    the highest first; of equal ones as they stand."""
    return np.argsort(-logprobs_LG.sum(axis=0), kind="stable")


def best_answer(answers: Sequence[str], scores_G: np.ndarray) -> str | None:
    """The answer with the highest of the scores f[G]; None if answers that differ share it."""
    highest = scores_G.max()
    best = {answer for answer, score in zip(answers, scores_G, strict=True) if score == highest}
    return best.pop() if len(best) == 1 else None
