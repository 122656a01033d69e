"""What a model needs to tell an event: against transformers."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.building import test_self_scorer as case
from tests.building.test_self_scorer import models  # noqa: F401 (a fixture)
from vpjax.building.examine import Options
from vpjax.curation import videos

pytestmark = pytest.mark.slow


def test_what_a_model_needs_is_the_fall_of_the_words_likelihood(models, monkeypatch):  # noqa: F811
    """Against transformers: on pixels in which the key slots are replaced, and on the question alone."""
    ours, reference, text = models
    monkeypatch.setattr(videos, "load_model", lambda folder: (ours, text))
    keyword = dataclasses.replace(case.KEYWORD, spans=((0.5, 1.4),))  # slots 1 and 2, of .5 s each
    clip = dataclasses.replace(case.CLIP, keywords=(keyword,))
    row, _ = case.single_prompt(text.chat(clip.question), [case.VIDEO], ours.config)
    answer = text.answer(clip.answer)
    places = text.keyword(keyword.text, clip.answer)[0]
    whole, degraded = (
        case.reference_logprob(reference, row, frames, answer, places)
        for frames in (case.VIDEO.frames, case.replaced(*case.WINDOWS[1, 3]))
    )
    with torch.no_grad():
        asked = text.chat(clip.question, ())
        ids = torch.tensor(np.concatenate([asked, answer])[None], dtype=torch.int64)
        reference.model.rope_deltas = None
        logits = reference(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        logprobs = torch.log_softmax(logits[len(asked) - 1 : -1], dim=-1)
        blind = sum(float(logprobs[c, answer[c]]) for c in places)
    found = videos.needs(clip, case.VIDEO, Options(model="-"))
    # Of log p near -10 in float32.
    assert found["needs_key"] == pytest.approx(whole - degraded, abs=1e-3)
    assert found["needs_video"] == pytest.approx(whole - blind, abs=1e-3)
    assert abs(whole - degraded) > 0.1 and abs(whole - blind) > 0.1
    everywhere = dataclasses.replace(keyword, spans=((0.0, 3.0),))
    no_rest = videos.needs(dataclasses.replace(clip, keywords=(everywhere,)), case.VIDEO, Options(model="-"))
    assert no_rest["needs_key"] is None and no_rest["needs_video"] == found["needs_video"]
