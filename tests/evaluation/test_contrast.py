"""Given answers ranked by log p(answer given V) - log p(answer given V~), whatever finds V~'s key frames."""

import dataclasses
import json

import numpy as np
import pytest

import vpjax.evaluate
from tests import runs
from tests.commands.call import ALONE, call
from vpjax.data.collate import single_prompt
from vpjax.data.keyframes import slots_of, source_of
from vpjax.data.pipeline import BatchMaker
from vpjax.data.sampling import Sampling
from vpjax.data.video import Video, read_frames
from vpjax.evaluation import ask
from vpjax.evaluation import run as evaluation
from vpjax.evaluation.ask import NO_BEST, NO_KEY, Predictions, Query
from vpjax.evaluation.benchmarks import answers_to
from vpjax.evaluation.ranking import answer_logprobs, pad_answers
from vpjax.evaluation.results import format_results
from vpjax.training import checkpoint, run_config

pytestmark = pytest.mark.slow

CLIPS = 10
SPANS = {"some": ((0.5, 0.75),), "none": (), "all": ((0.0, 2.0),)}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return runs.make_run(tmp_path_factory.mktemp("runs") / "run", clips=CLIPS)


@pytest.fixture(scope="module")
def loaded(workdir):
    """The model, its tokenizer, and the run's ``data``."""
    return *checkpoint.load_model(workdir), run_config.data_of(workdir)


@pytest.fixture(scope="module")
def clips(workdir):
    """Clips of which no two have the same candidates, so that these tell whose they are."""
    clips, _ = evaluation.requested_clips(evaluation.Request("events", model=workdir))
    return list({answers_to(clip): clip for clip in clips}.values())


def candidate_logprobs(model, text, clip, video):
    """log p of each candidate answer about these frames, alone."""
    _, prompts = single_prompt(text.chat(clip.question), [video], model.config)
    answers = [text.answer(candidate) for candidate in answers_to(clip)]
    return np.asarray(answer_logprobs(model, prompts, *pad_answers([answers], len(answers), 32)))[0]


def contrasted(loaded, clips, monkeypatch, **contrasts):
    """The results of contrasts alone, and by clip the scores of its candidates, as many as contrasts."""
    model, text, data_config = loaded
    scores = {clip.id: [] for clip in clips}
    id_of = {answers_to(clip): clip.id for clip in clips}
    best_answer = ask.best_answer

    def recording(answers, scores_G):
        scores[id_of[answers]].append(scores_G)
        return best_answer(answers, scores_G)

    monkeypatch.setattr(ask, "best_answer", recording)
    request = evaluation.Request("events", controls=("blind",), rank=True, contrasts=contrasts, batch=4)
    predictions = Predictions()
    results = evaluation.evaluate_model(model, text, clips, request, data_config, predictions=predictions)
    # "blind" ranks the same candidates after the contrasts.
    return results, predictions.known, {id: found[: len(contrasts)] for id, found in scores.items()}


def test_a_contrast_is_the_difference_of_two_rankings(loaded, clips, monkeypatch):
    """Of V and of a V~ whose frames are really replaced, where its key frames are those of the annotation or
    any that are found; the likeliest by that difference is predicted."""
    model, text, _ = loaded
    spans = ((0.5, 1.0),)
    given = []

    def find(video, clip, answers):
        given.append((clip.question, answers))
        np.testing.assert_array_equal(video.times, np.arange(14) / 8)
        return spans

    finders = {"key": None, "mine": lambda model, text: find}
    results, known, scores = contrasted(loaded, clips, monkeypatch, **finders)
    assert sorted(given) == sorted((clip.question, answers_to(clip)) for clip in clips)
    replaced = 0
    for clip in clips[:4]:
        video = read_frames(clip.video, Sampling(frames=14, min_pixels=56**2, max_pixels=56**2))
        whole = candidate_logprobs(model, text, clip, video)
        for number, (name, key_spans) in enumerate((("key", clip.spans), ("mine", spans))):
            prediction = known[Query(clip.id, f"contrast by {name}", ranked=True)]
            key = slots_of(key_spans, video.times, video.frame_seconds)
            source = source_of(key[None])
            if (source == np.arange(len(key))).all():
                assert prediction.fault == NO_KEY
                continue
            frames = video.frames.reshape(len(key), 2, *video.frames.shape[1:])[source]
            degraded = dataclasses.replace(video, frames=frames.reshape(video.frames.shape))
            expected = whole - candidate_logprobs(model, text, clip, degraded)
            # Differences of log-probabilities near -50, computed in float32.
            np.testing.assert_allclose(scores[clip.id][number], expected, atol=2e-4)
            assert np.ptp(expected) > 0.01
            assert prediction.text == answers_to(clip)[int(np.argmax(expected))]
            replaced += 1
    assert replaced > 4
    assert list(results["controls"])[2:] == ["contrast by key, ranked", "contrast by mine, ranked"]


def test_a_contrast_of_equal_videos_is_0(loaded, clips, monkeypatch):
    """Where all frames are equal, V~ shows what V shows: no answer is ahead, which is reported. Without key
    frames there is no V~, which is counted. Neither falls back to the plain ranking."""
    still = Video(np.full((14, 56, 56, 3), 99, np.uint8), np.arange(14) / 8, 1 / 8)
    monkeypatch.setattr(BatchMaker, "video", lambda *_: (still, ()))
    finders = {name: lambda model, text, s=spans: lambda *_: s for name, spans in SPANS.items()}
    results, known, scores = contrasted(loaded, clips, monkeypatch, **finders)
    for clip in clips:
        assert scores[clip.id][0].tolist() == [0.0] * 8
        for name, fault in (("some", NO_BEST), ("none", NO_KEY), ("all", NO_KEY)):
            prediction = known[Query(clip.id, f"contrast by {name}", ranked=True)]
            assert (prediction.text, prediction.fault) == ("", fault)
    counts = [results["controls"][f"contrast by {name}, ranked"] for name in SPANS]
    assert [x["rows"] for x in counts] == [0, 0, 0]
    assert [x["without_key_frames"] for x in counts] == [0, len(clips), len(clips)]
    assert results["unusable"] == {NO_BEST: len(clips)}
    printed = format_results(results)
    assert f"{len(clips)} rows not counted: {NO_BEST}" in printed
    assert f"{len(clips)} rows left out under contrast by none, ranked: {NO_KEY}" in printed


def test_answers_are_scored_once_for_each_video(loaded, clips, monkeypatch):
    """V once for its ranking and all contrasts; the units of each batch are encoded once."""
    model, text, data_config = loaded
    candidates = {clip.id: answers_to(clip) for clip in clips}
    predictor = ask.ClipPredictor(
        model,
        text,
        [evaluation.without_answer(clip) for clip in clips],
        evaluation.evaluation_data(data_config, "events", model),
        controls=("none",),
        batch_size=4,
        max_new=2,
        candidates=candidates,
        contrasts={"first": lambda *_: ((0.5, 0.75),), "second": lambda *_: ((1.0, 1.25),)},
    )
    calls = []
    for name in ("score", "encode"):
        program = getattr(predictor, name)
        monkeypatch.setattr(predictor, name, lambda *x, n=name, p=program: calls.append(n) or p(*x))
    assert len(list(predictor.predictions())) == 4 * len(clips)
    batches = predictor.maker.plan.steps_per_epoch
    assert calls.count("encode") == batches and calls.count("score") == 3 * batches


def test_the_command_with_contrasts_and_budgets(workdir, tmp_path):
    flags = dict(ALONE, model=workdir, benchmark="events", limit=3, max_new_tokens=2, out=tmp_path / "o")
    flags |= dict(min_pixels=784, total_pixels=7 * 784)
    code, out, err = call(vpjax.evaluate.main, "--rank", **flags, contrast="self,motion")
    assert code == 0, err
    assert json.loads((tmp_path / "o/request.json").read_text())["shown"]["total_pixels"] == 7 * 784
    results = json.loads((tmp_path / "o/results.json").read_text())
    rows = ["none", "none, ranked", "contrast by motion, ranked", "contrast by self, ranked"]
    assert list(results["controls"]) == rows
    for name in rows[2:]:
        counts = results["controls"][name]
        assert counts["rows"] + counts["without_key_frames"] + sum(results["unusable"].values()) == 3
    # The rows of another contrast join those that are there.
    before = (tmp_path / "o/predictions.jsonl").read_bytes()
    code, out, err = call(vpjax.evaluate.main, "--rank", **flags, contrast="key")
    assert code == 0 and (tmp_path / "o/predictions.jsonl").read_bytes().startswith(before)
    assert "none, ranked" in out and "contrast by key" in out and "contrast by self" not in out
