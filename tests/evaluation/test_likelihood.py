"""The log-probability of given answers is transformers', whatever shares their batch."""

import dataclasses

import numpy as np
import pytest
import torch

from tests import batches, tiny
from vpjax.evaluation.ranking import answer_logprobs, pad_answers
from vpjax.models.hf import load_pretrained

pytestmark = pytest.mark.slow

LENGTHS = ((4, 1, 3), (2, 4, 0))  # of three answers to each of two rows; the last one of the second is none
# Sums of up to 4 log-probabilities in float32, each within 1e-5 of torch's (tests/test_generate.py).
ATOL = 1e-4


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH)
def test_answers_are_as_likely_as_in_transformers(checkpoint, name):
    model, theirs = load_pretrained(checkpoint(name)), tiny.reference(checkpoint(name))
    family = model.config.family
    clips = [
        batches.Clip(slots=2, grid=(3, 5), before=2, seconds=0.5, answer=4),
        batches.Clip(slots=3, grid=(2, 2), after=6, answer=4),
    ]
    contents = batches.contents(clips, family)
    rng = np.random.default_rng(0)
    answers = [[rng.integers(0, tiny.TEXT_IDS, n, dtype=np.int32) for n in row] for row in LENGTHS]
    tokens, valid = pad_answers(answers, 3, 4)
    assert tokens.shape == valid.shape == (2, 3, 4) and valid.sum() == sum(map(sum, LENGTHS))

    expected = np.zeros((2, 3))
    for g in range(3):
        theirs.model.rope_deltas = None
        answered = [dataclasses.replace(content, answer=tokens[b, g]) for b, content in enumerate(contents)]
        with torch.no_grad():
            logits = theirs(**tiny.reference_inputs(answered, family)).logits
        logprobs = torch.log_softmax(logits[:, -5:-1], dim=-1).numpy()
        each = np.take_along_axis(logprobs, tokens[:, g, :, None], axis=-1)[..., 0]
        expected[:, g] = np.where(valid[:, g], each, 0).sum(-1)
    expected[1, 2] = -np.inf  # never the likeliest

    prompts = batches.prompts(contents, model.config.vision)
    got = np.asarray(answer_logprobs(model, prompts, tokens, valid))
    np.testing.assert_allclose(got, expected, atol=ATOL)
    features = model.encode(prompts.video)
    chunked = answer_logprobs(model, prompts.without_video(), tokens, valid, features=features, chunk=2)
    np.testing.assert_allclose(chunked, got, atol=ATOL)
