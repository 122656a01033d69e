"""Metrics of evaluation against numbers worked by hand."""

import dataclasses
import importlib.util

import pytest

from vpjax.scoring import metrics
from vpjax.types import Clip


def make_clip(answer="", **fields):
    return Clip("a", "a.mp4", "q", answer, **fields)


def test_spans():
    target = make_clip(spans=((2.0, 6.0),), task="grounding")
    for text, iou in (
        ("from 2 to 6 seconds", 1.0),
        ("from 4 to 8", 2 / 6),
        ("2 to 5", 3 / 4),
        ("7 to 9", 0.0),
        ("0 to 10", 0.4),
    ):
        readable, values = metrics.score_span(target, text)
        assert readable and values["mIoU"] == pytest.approx(iou)
        assert values == {"mIoU": values["mIoU"]} | {f"R@{t}": float(iou >= t) for t in (0.3, 0.5, 0.7)}
    assert metrics.score_span(target, "soon") == (False, {"mIoU": 0, "R@0.3": 0, "R@0.5": 0, "R@0.7": 0})


def test_captions():
    reference = "the cat sat on the mat"
    readable, values = metrics.score_caption(make_clip(reference), "the cat on a mat")
    # ROUGE-1: 4 of 5 and 4 of 6 words; ROUGE-2: 1 of 4 and 1 of 5 pairs; ROUGE-L: the cat on mat, 4 words.
    assert (
        readable and values["rouge1"] == pytest.approx(8 / 11) and values["rougeL"] == pytest.approx(8 / 11)
    )
    assert values["rouge2"] == pytest.approx(2 * (1 / 4) * (1 / 5) / (1 / 4 + 1 / 5))
    assert metrics.score_caption(make_clip(reference), "<think>the cat")[0] is False
    assert ("METEOR" in values) == (metrics.missing_for_meteor() is None)


def test_what_meteor_misses_is_named(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    metrics.missing_for_meteor.cache_clear()
    assert "wordnet" in metrics.missing_for_meteor()
    metrics.missing_for_meteor.cache_clear()
    assert importlib.util.find_spec("nltk")


def test_described_events():
    reference = make_clip(
        "A red car stops. A man opens the door.",
        extra={"events": ["A red car stops.", "A man opens the door."]},
    )
    # Both events, inflected, and a sentence that is not in the reference.
    answer = "The red car is stopping; then the man opened a door. A bird sings loudly."
    _, values = metrics.score_description(reference, answer)
    assert list(values.values()) == pytest.approx([2 * 1 * (2 / 3) / (5 / 3), 1.0, 2 / 3])
    assert all("our matcher" in name for name in values)  # these are not a language model's judgements
    assert metrics.score_description(reference, "") == (False, dict.fromkeys(values, 0.0))
    assert list(metrics.score_description(reference, "Birds sing.").values.values()) == [0, 0, 0]


def test_events_are_named():
    caption = make_clip("The red cross spins.", extra={"event": "spin"})
    assert metrics.score_event(caption, "A red cross rotates.") == (True, {"accuracy": 1})
    assert metrics.score_event(caption, "A red cross rotates and vanishes.") == (False, {"accuracy": 0})
    assert metrics.score_event(caption, "A red cross grows.") == (True, {"accuracy": 0})
    assert metrics.score_event(caption, "A red cross stays the same.") == (True, {"accuracy": 0})
    quiet = dataclasses.replace(caption, answer="A red cross does nothing.", extra=dict(event=""))
    assert metrics.score_event(quiet, "It stays the same.") == (True, {"accuracy": 1})
    assert metrics.score_event(quiet, "A red cross.") == (True, {"accuracy": 1})
    assert metrics.score_event(caption, "A red cross.") == (False, {"accuracy": 0})
    for silent in ("", " ?!", "<think>It stays the same."):
        for clip in (caption, quiet):
            assert metrics.score_event(clip, silent) == (False, {"accuracy": 0})
    assert metrics.score_event(quiet, "It rotates.") == (True, {"accuracy": 0})
    assert metrics.score_event(quiet, "It rotates and vanishes.") == (False, {"accuracy": 0})
