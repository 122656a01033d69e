"""An evaluation stopped and gone on with is the uninterrupted one, to the byte; what is wrong is named."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import runs
from vpjax.data.rows import bucket_of, collate, prompt_row
from vpjax.data.video import Sampling, read_frames
from vpjax.evaluation import ask as asking
from vpjax.evaluation import predictions
from vpjax.evaluation import run as evaluation
from vpjax.evaluation.ask import NO_KEY, Query
from vpjax.evaluation.benchmarks import answers_to, read_benchmark
from vpjax.evaluation.page import write_page
from vpjax.evaluation.results import format_results
from vpjax.models.generate import generate
from vpjax.training import checkpoint
from vpjax.types import UserError

CLIPS = 10
CONTROLS = ("none", "key", "random", "shuffle", "blind")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return runs.make_run(tmp_path_factory.mktemp("runs") / "run", clips=CLIPS)


@pytest.fixture(scope="module")
def other(tmp_path_factory, workdir):
    return runs.make_run(workdir.parent / "other", clips=CLIPS, seed=1)


def evaluate(workdir, out, said=None, **options):
    options = dict(controls=CONTROLS, rank=True, batch=8, new_tokens=6) | options
    wanted = evaluation.Evaluation(model=workdir, benchmark="events", out=out, **options)
    return evaluation.run(wanted, (said if said is not None else []).append)


@pytest.fixture(scope="module")
def whole(workdir, tmp_path_factory):
    """An uninterrupted evaluation: (folder, results, clips, answers)."""
    return evaluate(workdir, tmp_path_factory.mktemp("whole"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("stop", [0, 3, 37])
def test_stopped_and_gone_on_with_is_the_same_to_the_byte(workdir, whole, tmp_path, monkeypatch, stop):
    append, count = predictions.Predictions.append, []

    def killed(self, said):
        if len(count) == stop:
            raise KeyboardInterrupt
        count.append(said)
        append(self, said)

    monkeypatch.setattr(predictions.Predictions, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(workdir, tmp_path)
    with open(tmp_path / "predictions.jsonl", "ab") as file:
        file.write(b'{"id": "heldout-00')  # a line that was being written
    monkeypatch.setattr(predictions.Predictions, "append", append)
    evaluate(workdir, tmp_path)
    assert contents(tmp_path) == contents(whole[0])


def test_nothing_is_asked_twice(workdir, whole, monkeypatch):
    """The same request again, and one for fewer rows and controls, run no model."""
    before = contents(whole[0])

    def never(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr(asking, "generate", never)
    monkeypatch.setattr(asking, "answer_logprobs", never)
    evaluate(workdir, whole[0])
    assert contents(whole[0]) == before
    evaluate(workdir, whole[0], controls=("none",), limit=4)
    assert contents(whole[0])["predictions.jsonl"] == before["predictions.jsonl"]
    evaluate(workdir, whole[0])
    assert contents(whole[0]) == before


def test_answers_are_the_models(workdir, whole):
    """Greedy generation of each clip alone, and the likeliest of eight captions by the log-probabilities that
    the decoder gives when it is made to say them."""
    model, text = checkpoint.load(workdir)
    _, _, clips, answers = whole
    said = {answer.key: answer.text for answer in answers}
    for clip in clips[:3]:
        row = prompt_row(
            text.chat(clip.question, "video"),
            read_frames(clip.video, Sampling(frames=14), max_pixels=56**2, min_pixels=56**2),
            model.config,
        )
        batch = collate([row], bucket_of([row]), model.config)
        out = generate(model, batch, jax.random.key(0), max_new=6, eos=text.stops)
        assert said[Query(clip.id, "none")] == text.decode(
            np.asarray(out.tokens)[0, 0][np.asarray(out.mask)[0, 0]]
        )
        scores = []
        for given in answers_to(clip):
            ids = text.answer(given)
            full = dataclasses.replace(row, suffix=ids)
            batch = collate([full], bucket_of([full]), model.config)
            hidden = model.hidden(model.encode(batch.frames), batch)
            states = np.concatenate([hidden.last[0][None], hidden.suffix[0, 0][:-1]])
            logits = states.astype(np.float64) @ np.asarray(model.unembed, np.float64).T
            scores.append(sum(x[i] - np.logaddexp.reduce(x) for x, i in zip(logits, ids, strict=True)))
        assert said[Query(clip.id, "none", True)] == answers_to(clip)[int(np.argmax(scores))]
    assert len({said[Query(clip.id, "blind")] for clip in clips}) <= len({clip.question for clip in clips})


def test_results_hold_what_is_on_disk(whole):
    folder, results, clips, answers = whole
    assert results == json.loads((folder / "results.json").read_text())
    assert set(results["controls"]) == {name + end for name in CONTROLS for end in ("", ", ranked")}
    assert results["chance"] == 1 / 8 and results["request"]["step"] == 3
    for name, scores in results["controls"].items():
        rows = [row for row in results["rows"] if row["control"] == name]
        assert len(rows) == scores["rows"] == CLIPS - scores["without_key_frames"]
        assert scores["metrics"]["accuracy"]["micro"]["mean"] == np.mean(
            [r["values"]["accuracy"] for r in rows]
        )
    assert all(row["readable"] for row in results["rows"] if "ranked" in row["control"])
    faults = [answer for answer in answers if answer.fault]
    assert {answer.fault for answer in faults} <= {NO_KEY} and {a.key.control for a in faults} <= {
        "key",
        "random",
    }
    lines = format_results(results).splitlines()
    assert "chance is 12.5" in lines[0] and "1 frame" in lines[1] and lines[2].startswith("none ")


def test_a_page_shows_rows_and_frames(whole, tmp_path):
    _, results, clips, answers = whole
    hostile = [dataclasses.replace(clip, question="<script>") for clip in clips]
    hostile[0] = dataclasses.replace(hostile[0], video="gone.mp4")
    write_page(tmp_path / "results.html", results, hostile, answers)
    html = (tmp_path / "results.html").read_text()
    assert html.count("data:image/jpeg") >= 14 and 'class="key"' in html and "http" not in html
    assert "<script" not in html and "&lt;script&gt;" in html


def test_split_over_devices(workdir, whole, tmp_path):
    """The tests' eight devices answered above; one device gives the same."""
    assert len(jax.devices()) == 8
    model, text = checkpoint.load(workdir)
    data_config = evaluation.ConfigDict(
        evaluation.run_config.HF_VIDEO_DEFAULTS
        | evaluation.run_config.data_of(workdir).to_dict()
        | evaluation.ROOM
    )
    asked = [evaluation.without_answer(clip) for clip in whole[2]]
    alone = asking.ask(model, text, asked, data_config, controls=("none", "key"), batch_size=4, max_new=6)
    said = {answer.key: answer for answer in whole[3]}
    alone = list(alone)
    assert len(alone) == 2 * CLIPS and all(said[answer.key] == answer for answer in alone)


def test_did_it_help(workdir, other, whole, tmp_path):
    _, results, _, _ = evaluate(other, tmp_path, against=whole[0] / "results.json")
    gain = results["against"]["controls"]["none, ranked"]
    assert gain["rows"] == CLIPS and gain["unmatched"] == 0
    means = [
        r["controls"]["none, ranked"]["metrics"]["accuracy"]["micro"]["mean"] for r in (results, whole[1])
    ]
    assert gain["metrics"]["accuracy"]["mean"] == pytest.approx(means[0] - means[1])
    assert f"minus {workdir}" in format_results(results)
    for wrong, named in (
        (tmp_path / "none.json", "No such file"),
        (tmp_path / "request.json", "not a results"),
    ):
        with pytest.raises(UserError, match=named):
            evaluate(other, tmp_path, against=wrong)


@pytest.mark.parametrize("missing", ["apart", "wrong"])
def test_missing_videos(workdir, whole, tmp_path, missing):
    """One is not there, one cannot be decoded: told once, and kept apart or wrong under every control."""
    lines = [json.loads(line) for line in _events(whole).read_text().splitlines()]
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for line in lines:
        line["video"] = str(_events(whole).parent / line["video"])
    lines[0]["video"], lines[1]["video"] = "gone.mp4", "broken.mp4"
    data = tmp_path / "clips.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said, options = [], dict(data=data, missing=missing, rank=False, controls=("none", "blind"))
    _, results, _, _ = evaluate(workdir, tmp_path / "out", said, **options)
    assert (
        len(said) == 1
        and "1 of 10 videos are missing, with 1 of 10 rows" in said[0]
        and "gone.mp4" in said[0]
    )
    assert sum(results["unusable"].values()) == 2 and any(
        "broken.mp4" in reason for reason in results["unusable"]
    )
    assert [x["rows"] for x in results["controls"].values()] == [8 if missing == "apart" else 10] * 2
    assert format_results(results).count("1 rows") == 2  # a reason each
    before = contents(tmp_path / "out")
    evaluate(workdir, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == before
    # One that can be decoded now is asked about, and nothing else is.
    shutil.copy(lines[2]["video"], tmp_path / "broken.mp4")
    _, results, _, _ = evaluate(workdir, tmp_path / "out", **options)
    assert sum(results["unusable"].values()) == 1
    assert len(contents(tmp_path / "out")["predictions.jsonl"].splitlines()) == 2 * 10 + 2


def _events(whole):
    """The file of the event clips."""
    return next((whole[2][0].video and evaluation.Path(whole[2][0].video).parents[2]).glob("heldout-*.jsonl"))


def test_mistakes_are_named(workdir, other, whole, tmp_path):
    for options, named in (
        (dict(model=other), "another request .*weights"),
        (dict(new_tokens=7), "another request .new_tokens."),
        (dict(step=2), "no checkpoint of step 2"),
        (dict(data=tmp_path / "none.jsonl"), "No such file"),
        (dict(model=tmp_path / "none"), "no run on event clips"),
        (dict(benchmark="mlvu"), "--data is missing"),
    ):
        wanted = dict(
            model=workdir, benchmark="events", out=whole[0], controls=CONTROLS, rank=True, new_tokens=6
        )
        with pytest.raises(UserError, match=named):
            evaluation.run(evaluation.Evaluation(**wanted | options), print)
    clips = _events(whole).read_text().replace(".mp4", ".avi")
    (tmp_path / "gone.jsonl").write_text(clips)
    with pytest.raises(UserError, match="none of 10 videos is there.*--videos"):
        evaluate(workdir, tmp_path / "o", data=tmp_path / "gone.jsonl")
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "predictions.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="predictions.jsonl, line 1"):
        evaluate(workdir, tmp_path / "o")


def test_the_command(workdir, tmp_path):
    command = [sys.executable, "-m", "vpjax.evaluate", f"--model={workdir}", "--benchmark=events"]
    for flag, named in (("--benchmark=nil", "motionbench"), ("--controls=blinded", "choose some of none")):
        done = subprocess.run([*command, flag], capture_output=True, text=True)
        assert done.returncode == 2 and named in done.stderr and "Traceback" not in done.stderr
    some = ["--controls=blind,none", "--limit=3", "--max_new_tokens=4", f"--out={tmp_path}/o"]
    done = subprocess.run([*command, *some], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        "none " in done.stdout
        and "7 rows not asked" in done.stdout
        and (tmp_path / "o/results.html").exists()
    )


def test_a_reader_is_found_by_name(whole):
    clips, _ = read_benchmark("events", _events(whole), None)
    assert [clip.id for clip in clips] == [clip.id for clip in whole[2]]
