"""An evaluation that was stopped and started again is the uninterrupted one; mistakes are named."""

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest

import vpjax.evaluate
from tests import runs
from tests.commands.call import ALONE, call
from vpjax.building.scorers import find_by_motion
from vpjax.data.collate import collate, single_prompt
from vpjax.data.packing import Sizes
from vpjax.data.pipeline import Loader, make_batch_maker
from vpjax.data.rows import prompt_row
from vpjax.data.sampling import Sampling
from vpjax.data.units import Capacity
from vpjax.data.video import read_frames
from vpjax.evaluation import ask
from vpjax.evaluation import run as evaluation
from vpjax.evaluation.ask import NO_KEY, Predictions, Query
from vpjax.evaluation.benchmarks import answers_to, read_benchmark
from vpjax.evaluation.controls import CONTROLS, control_shows
from vpjax.evaluation.results import format_results
from vpjax.events.clips import make_event_clips
from vpjax.models.gather import take
from vpjax.models.generate import Completions, generate
from vpjax.training import checkpoint, run_config
from vpjax.types import Clip, Keyword, Look, UserError

pytestmark = pytest.mark.slow

CLIPS = 10
USED_CONTROLS = ("none", "key", "random", "shuffle", "blind")
CONTRASTS = {"key": None, "motion": lambda model, text: find_by_motion}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return runs.make_run(tmp_path_factory.mktemp("runs") / "run", clips=CLIPS)


@pytest.fixture(scope="module")
def other(workdir):
    return runs.make_run(workdir.parent / "other", clips=CLIPS, seed=1)


@pytest.fixture(scope="module")
def loaded(workdir):
    """The model, its tokenizer, and the run's ``data``."""
    return *checkpoint.load_model(workdir), run_config.data_of(workdir)


def evaluate(workdir, out, lines=None, **options):
    """The results. lines: takes what is printed."""
    defaults = dict(controls=USED_CONTROLS, rank=True, contrasts=CONTRASTS, batch=8, max_new_tokens=6)
    options = defaults | options
    request = evaluation.Request("events", model=workdir, out=out, **options)
    return evaluation.evaluate(request, [].append if lines is None else lines.append)[1]


@pytest.fixture(scope="module")
def whole(workdir, tmp_path_factory):
    """The folder of an uninterrupted evaluation."""
    folder = tmp_path_factory.mktemp("whole")
    evaluate(workdir, folder)
    return folder


@pytest.fixture(scope="module")
def clips(workdir):
    return evaluation.requested_clips(evaluation.Request("events", model=workdir))[0]


@pytest.fixture(scope="module")
def clips_file(clips):
    return next(evaluation.Path(clips[0].video).parents[2].glob(f"heldout-{CLIPS}.jsonl"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("stop", [0, 3, 37, 70])
def test_stopped_and_started_again_is_the_same_to_the_byte(workdir, whole, tmp_path, monkeypatch, stop):
    append, appended = Predictions.append, []

    def killed(self, prediction):
        if len(appended) == stop:
            raise KeyboardInterrupt
        appended.append(prediction)
        append(self, prediction)

    monkeypatch.setattr(Predictions, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(workdir, tmp_path)
    with open(tmp_path / "predictions.jsonl", "ab") as file:
        file.write(b'{"id": "heldout-00')  # a line that was being written
    monkeypatch.setattr(Predictions, "append", append)
    evaluate(workdir, tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_nothing_is_predicted_twice(workdir, whole, monkeypatch):
    """The same request again, and one for fewer clips and controls, run no model; nor does a
    process write that may not."""
    before = contents(whole)

    def never(*_, **__):
        raise AssertionError("predicted again")

    monkeypatch.setattr(ask, "generate", never)
    monkeypatch.setattr(ask, "answer_logprobs", never)
    request = evaluation.Request(
        "events", model=workdir, out=whole, controls=("none",), limit=4, max_new_tokens=6
    )
    _, results = evaluation.evaluate(request, print, writes=False)
    assert results["controls"]["none"]["rows"] == 4 and results["unasked"] == {"beyond a limit of 4": 6}
    assert contents(whole) == before
    evaluation.evaluate(request, print)
    assert contents(whole)["predictions.jsonl"] == before["predictions.jsonl"]
    evaluate(workdir, whole)
    assert contents(whole) == before


@jax.jit
def forced(model, batch):
    """The states that predict the tokens of given answers, in rows of a prompt and an answer."""
    return model.hidden(model.encode(batch.video), batch.text, batch.target).target


def test_predictions_are_the_models(loaded, clips, whole):
    """Greedy generation of each clip alone, and the likeliest of eight captions by the log-probabilities of
    whole rows."""
    model, text, _ = loaded
    predictions = Predictions(whole / "predictions.jsonl", writes=False).known
    for clip in clips[:3]:
        prompt = text.chat(clip.question)
        video = read_frames(clip.video, Sampling(frames=14, min_pixels=56**2, max_pixels=56**2))
        row, alone = single_prompt(prompt, [video], model.config)
        out = generate(model, alone, jax.random.key(0), max_new=6, eos=text.stops)
        ids, valid = np.asarray(out.tokens)[0, 0], np.asarray(out.mask)[0, 0]
        assert predictions[Query(clip.id, "none")].text == text.decode(ids[valid])

        answers = [text.answer(candidate) for candidate in answers_to(clip)]
        row = prompt_row(prompt, [video], model.config, capacity := Capacity(4, 4))
        sizes = Sizes(tokens=128, units=28, bins=28, targets=32, slots=7)
        rows = [[dataclasses.replace(row, answer=ids)] for ids in answers]
        h_RAD = np.asarray(forced(model, collate(rows, sizes, capacity, model.config)), np.float64)
        logprobs = []
        for states, ids in zip(h_RAD, answers, strict=True):
            logits = states[: len(ids)] @ np.asarray(model.unembed, np.float64).T
            logprobs.append(sum(x[i] - np.logaddexp.reduce(x) for x, i in zip(logits, ids, strict=True)))
        likeliest = answers_to(clip)[int(np.argmax(logprobs))]
        assert predictions[Query(clip.id, "none", ranked=True)].text == likeliest
    blind = {(clip.question, predictions[Query(clip.id, "blind")].text) for clip in clips}
    assert len(blind) == len({clip.question for clip in clips})
    texts = {
        control: [predictions[Query(clip.id, control)].text for clip in clips]
        for control in ("none", "shuffle")
    }
    assert texts["none"] != texts["shuffle"]


def test_results_hold_what_is_on_disk(workdir, whole):
    results = json.loads((whole / "results.json").read_text())
    names = {name + end for name in USED_CONTROLS for end in ("", ", ranked")}
    assert set(results["controls"]) == names | {f"contrast by {name}, ranked" for name in CONTRASTS}
    assert results["chance"] == 1 / 8 and results["request"]["step"] == 3
    for name, scores in results["controls"].items():
        rows = [row for row in results["rows"] if row["control"] == name]
        assert len(rows) == scores["rows"] == CLIPS - scores["without_key_frames"]
        mean = np.mean([row["values"]["accuracy"] for row in rows])
        assert scores["metrics"]["accuracy"]["micro"]["mean"] == mean
    assert all(row["readable"] for row in results["rows"] if "ranked" in row["control"])
    predictions = Predictions(whole / "predictions.jsonl", writes=False).known.values()
    contrasts = {f"contrast by {name}" for name in CONTRASTS}
    assert {x.control for x in predictions if x.fault} <= {"key", "random", *contrasts}
    assert {x.fault for x in predictions} <= {"", NO_KEY}
    html = (whole / "results.html").read_text()
    assert html.count("data:image/jpeg") >= 14 and 'class="key"' in html


@pytest.mark.parametrize("control", [control for control in CONTROLS if control != "blind"])
def test_a_control_is_the_changed_video(loaded, batch_of_four, control):
    """Showing other units is filming the slots that they belong to."""
    model, batch = loaded[0], batch_of_four
    shows, _ = control_shows(batch, control, seed=0)
    filmed = batch.video.pixels.copy()
    for row, (own, shown) in enumerate(zip(batch.text.shows, shows, strict=True)):
        filmed[row, own[own >= 0]] = batch.video.pixels[row, shown[own >= 0]]
    expected = SEEN(model, dataclasses.replace(batch.video, pixels=filmed), batch.text.shows)
    chex.assert_trees_all_close(SEEN(model, batch.video, shows), expected, atol=1e-6)
    if control in ("reverse", "single"):
        assert np.abs(expected - SEEN(model, batch.video, batch.text.shows)).max() > 0.1


SEEN = jax.jit(lambda model, units, shows: take(model.encode(units).tokens, shows))


@pytest.fixture(scope="module")
def batch_of_four(loaded, clips):
    """With rows of padding."""
    model, text, data_config = loaded
    maker, index = make_batch_maker(
        clips, text, model.config, data_config, packed=False, seed=0, batch_size=4
    )
    loader = Loader(maker, index)
    batches = [next(loader) for _ in range(loader.plan.steps_per_epoch)]
    loader.close()
    return next(batch for batch in batches if (batch.clip < 0).any())


def test_predictions_go_to_their_clips(loaded, workdir, monkeypatch):
    """With a model that gives every other clip's true answer, and none without a video, the results hold what
    is counted here from the clips."""
    model, text, data_config = loaded
    file = make_event_clips(runs.SPEC, workdir.parent, {"heldout": 18})["heldout"]
    clips, _ = read_benchmark("events", file)
    odd = clips[1::2]
    truth = np.zeros((len(clips), 32), np.int32)
    for number, clip in enumerate(clips):
        ids = text.answer(clip.answer)
        truth[number, : len(ids)] = ids

    logprob = 0.0

    def oracle(model, prompts, key, *, features=None, max_new, eos):
        knows = (prompts.clip % 2 == 1) & (features is not None)
        tokens = np.where(knows[:, None], truth[prompts.clip], 0)
        logprobs = np.full(tokens.shape, logprob, np.float32)
        return Completions(tokens[:, None], (tokens != 0)[:, None], logprobs[:, None])

    monkeypatch.setattr(ask, "generate", oracle)
    predictions = Predictions()
    request = evaluation.Request("events", controls=CONTROLS, batch=4)
    results = evaluation.evaluate_model(model, text, clips, request, data_config, predictions=predictions)
    for control in CONTROLS:
        right = {
            row["id"] for row in results["rows"] if row["control"] == control and row["values"]["accuracy"]
        }
        scored = {row["id"] for row in results["rows"] if row["control"] == control}
        if control not in ("key", "random"):
            assert scored == {clip.id for clip in clips}
        assert right == ({clip.id for clip in odd} & scored if control != "blind" else set())
        for clip in clips:
            expected = clip.answer if clip.id in right else ""
            assert predictions.known[Query(clip.id, control)].text == expected
    accuracy = results["controls"]["none"]["metrics"]["accuracy"]
    assert accuracy["micro"]["mean"] == 0.5
    for group, key in (("groups", "group"), ("second_groups", "event")):
        for name, mean in accuracy[group].items():
            of_group = [clip for clip in clips if clip.extra[key] == name]
            assert mean["rows"] == len(of_group)
            assert mean["mean"] == sum(clip in odd for clip in of_group) / len(of_group)
    assert list(accuracy["groups"]) == ["0.125 s", "0.25 s", "0.5 s"]
    logprob = np.nan  # what a damaged model says is not scored
    with pytest.raises(UserError, match="probabilities are no numbers"):
        evaluation.evaluate_model(model, text, clips, request, data_config, predictions=Predictions())


def test_split_over_devices(loaded, clips, whole):
    """The tests' eight devices predicted above; one device gives the same."""
    assert len(jax.devices()) == 8
    model, text, _ = loaded
    request = evaluation.Request("events", controls=("none", "key"), batch=4, max_new_tokens=6)
    alone = Predictions()
    evaluation.evaluate_model(model, text, clips, request, loaded[2], predictions=alone)
    split = Predictions(whole / "predictions.jsonl", writes=False).known
    assert len(alone.known) == 2 * CLIPS
    assert {query: split[query] for query in alone.known} == alone.known


def test_another_part_or_event_is_another_row():
    """Of the same question about the same file: no prediction about the earlier one is taken for it."""
    clip = Clip("a", "a.mp4", "What?", "It flashes.", (Keyword("flashes", "flash"),))
    timed = Keyword("flashes", "flash", ((1.0, 2.0),))
    others = [dict(start=1.0), dict(end=2.0), dict(looks=(Look(1.0),)), dict(spans=((1.0, 2.0),))]
    others += [dict(keywords=(timed,)), dict(keywords=(dataclasses.replace(timed, video=1),))]
    others += [dict(choices=("flashes", "falls")), dict(choices=("flashes", "spins"))]
    known = [evaluation.identity(dataclasses.replace(clip, **fields)) for fields in ({}, *others)]
    assert len(set(known)) == len(known)


def test_against_other_results(workdir, other, whole, tmp_path):
    results = evaluate(other, tmp_path, against=whole / "results.json")
    gain = results["against"]["controls"]["none, ranked"]
    assert gain["rows"] == CLIPS and gain["unmatched"] == 0
    theirs = json.loads((whole / "results.json").read_text())
    means = [x["controls"]["none, ranked"]["metrics"]["accuracy"]["micro"]["mean"] for x in (results, theirs)]
    assert gain["metrics"]["accuracy"]["mean"] == pytest.approx(means[0] - means[1])
    assert f"minus {workdir}" in format_results(results)
    with pytest.raises(UserError, match="not a results"):
        evaluate(other, tmp_path, against=tmp_path / "request.json")
    theirs["request"]["benchmark"] = "clips"
    (tmp_path / "clips.json").write_text(json.dumps(theirs))
    with pytest.raises(UserError, match="it is of clips, not of events"):
        evaluate(other, tmp_path, against=tmp_path / "clips.json")


@pytest.mark.parametrize("missing", ["apart", "wrong"])
def test_missing_videos(workdir, clips_file, tmp_path, missing):
    """One is not there, one cannot be decoded: named once, and kept apart or wrong under every control."""
    rows = [json.loads(line) for line in clips_file.read_text().splitlines()]
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for row in rows:
        row["video"] = str(clips_file.parent / row["video"])
    rows[0]["video"], rows[1]["video"] = "gone.mp4", "broken.mp4"
    data = tmp_path / "clips.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = dict(data=data, missing=missing, rank=False, contrasts={}, controls=("none", "blind"))
    lines = []
    results = evaluate(workdir, tmp_path / "out", lines, **options)
    assert len(lines) == 1 and "1 of 10 videos are missing, with 1 of 10 rows" in lines[0]
    assert "gone.mp4" in lines[0]
    assert sum(results["unusable"].values()) == 2
    assert any("broken.mp4" in reason for reason in results["unusable"])
    assert [x["rows"] for x in results["controls"].values()] == [8 if missing == "apart" else 10] * 2
    assert format_results(results).count("1 rows") == 2  # a reason each
    before = contents(tmp_path / "out")
    evaluate(workdir, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == before
    # One that can be decoded now is asked about, and nothing else is.
    shutil.copy(rows[2]["video"], tmp_path / "broken.mp4")
    results = evaluate(workdir, tmp_path / "out", **options)
    assert sum(results["unusable"].values()) == 1
    assert len(contents(tmp_path / "out")["predictions.jsonl"].splitlines()) == 2 * 10 + 2


def test_mistakes_are_named(workdir, other, whole, clips_file, tmp_path):
    for options, message in (
        (dict(model=other), "another request .*weights"),
        (dict(max_new_tokens=7), "another request .new_tokens."),
        (dict(step=2), "no checkpoint of step 2"),
        (dict(data=tmp_path / "none.jsonl"), "no such file"),
        (dict(model=tmp_path / "none"), "there is no folder"),
        (dict(against=tmp_path / "none.json", model=other), "none.json: No such file"),  # before all else
        (dict(benchmark="mlvu"), "--data is missing"),
    ):
        request = evaluation.Request("events", model=workdir, out=whole, max_new_tokens=6)
        with pytest.raises(UserError, match=message):
            evaluation.evaluate(dataclasses.replace(request, **options), print)
    (tmp_path / "gone.jsonl").write_text(clips_file.read_text().replace(".mp4", ".avi"))
    with pytest.raises(UserError, match="none of 10 videos is there.*--videos"):
        evaluate(workdir, tmp_path / "o", data=tmp_path / "gone.jsonl")


def test_limits_that_are_asked_for_come_before_the_runs(loaded):
    model, run = loaded[0], dict(min_pixels=100, max_pixels=400, total_pixels=5000, max_tokens=64, fps=2.0)
    for options, changed in (
        ({}, {}),
        (dict(max_pixels=200), dict(max_pixels=200)),
        (dict(max_pixels=50), dict(max_pixels=50, min_pixels=50)),
        (dict(min_pixels=50), dict(min_pixels=50)),
        (dict(min_pixels=500), dict(min_pixels=500, max_pixels=500)),
        (dict(min_pixels=50, max_pixels=60), dict(min_pixels=50, max_pixels=60)),
        (dict(total_pixels=9000, fps=4.0), dict(total_pixels=9000, fps=4.0, max_tokens=0)),
    ):
        assert evaluation.with_options(run, options).to_dict() == run | changed
    for benchmark in ("events", "mlvu"):
        asked = evaluation.with_options(run, dict(total_pixels=10**6))
        fields = evaluation.evaluation_data(asked, benchmark, model)
        assert fields.total_pixels == 10**6 and fields.max_tokens > 10**9  # nothing else limits it


@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(benchmark="nil"), "motionbench"),
        (dict(controls="blinded"), "choose some of none"),
        (dict(controls=""), "choose some of none"),
        (dict(limit=0), "limit"),
        (dict(frames=8, fps=2), "--frames and --fps"),
        (dict(contrast="motion"), "--contrast=motion ranks candidate answers: give --rank too"),
        (dict(contrast="optical"), "--contrast=optical: choose some of key, motion, self"),
        (dict(contrast=""), "--contrast=: choose some of key, motion, self"),
        (dict(min_pixels=784, max_pixels=500), "min_pixels is 784 and max_pixels 500"),
        (dict(total_pixels=-1), "total_pixels"),
    ],
)
def test_a_wrong_flag_is_one_line(workdir, tmp_path, flags, message):
    flags = dict(ALONE, model=workdir, benchmark="events", out=tmp_path / "o") | flags
    code, _, err = call(vpjax.evaluate.main, **flags)
    assert code == 2 and len(err.splitlines()) == 1 and message in err, err


def test_the_command(workdir, tmp_path):
    flags = dict(ALONE, model=workdir, benchmark="events", controls="blind,none", limit=3, max_new_tokens=4)
    code, out, err = call(vpjax.evaluate.main, **flags, max_pixels=784, out=tmp_path / "o")
    assert code == 0, err
    request = json.loads((tmp_path / "o/request.json").read_text())
    assert request["shown"]["min_pixels"] == request["shown"]["max_pixels"] == 784
    assert "\nnone " in out and "7 rows left out" in out and (tmp_path / "o/results.html").exists()
