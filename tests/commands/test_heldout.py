"""Runs that are evaluated while they train: what they log and keep; stopping them changes nothing."""

import importlib
import json
import os
import shutil
import signal

import chex
import pytest

from tests.commands.test_train import everything, small
from vpjax.evaluation import run as evaluation
from vpjax.training import checkpoint
from vpjax.types import UserError

train = importlib.import_module("vpjax.train")  # the module; ``vpjax.train`` is the function
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_runs")]

STEPS = 6
EVALUATED = {
    "steps": STEPS,
    "keep": 1,
    "checkpoint_every": 4,
    "eval_every": 2,
    "eval_part": 4,
    "optim.lr": 1e-2,
    "optim.warmup_share": 0.0,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def config_of(cache, **changes):
    return small(cache, **EVALUATED | changes)


def log(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def before_batch(monkeypatch, number, act):
    """Call ``act`` before the batch of this number, counted from 1, goes to the devices."""
    put, seen = train.put_batch, []

    def put_batch(batch, mesh):
        seen.append(batch)
        if len(seen) == number:
            act()
        return put(batch, mesh)

    monkeypatch.setattr(train, "put_batch", put_batch)


def train_only(config, workdir):
    """Without the evaluation of all clips after the last step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "finish", lambda config, workdir, step: None)
        train.train(config, workdir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache, quick_runs):
    """A run that nothing stopped and that keeps its best checkpoint."""
    workdir = tmp_path_factory.mktemp("whole")
    train_only(config_of(cache, keep_best="heldout/loss"), workdir)
    return workdir


def steps_in(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_evaluations_stand_in_the_log(whole):
    """At every second step, of V and of V~; the training metrics of all steps stand beside them."""
    evaluated = {line["step"] for line in log(whole) if "heldout/loss" in line}
    assert evaluated == {2, 4, 6}
    for line in log(whole):
        names = {name for name in line if name.startswith("heldout/")}
        expected = {"loss", "readable", "accuracy", "key/loss", "key/readable", "key/accuracy"}
        assert names == ({f"heldout/{name}" for name in expected} if line["step"] in evaluated else set())
        assert "loss/lm" in line


def test_the_best_checkpoint_is_kept(whole):
    losses = {line["step"]: line["heldout/loss"] for line in log(whole) if "heldout/loss" in line}
    best = min(losses, key=losses.get)
    assert steps_in(whole) == sorted({best, STEPS})
    assert checkpoint.step_of(whole, "best") == best and checkpoint.step_of(whole) == STEPS


def test_a_run_that_is_stopped_anywhere_logs_and_keeps_the_same(whole, cache, tmp_path, monkeypatch):
    """Stopped by SIGTERM after step 3, and killed in step 6: after the evaluation of step 4, whose checkpoint
    is on disk, and before that of step 6."""
    config = config_of(cache, keep_best="heldout/loss")
    before_batch(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    train_only(config, tmp_path)
    assert steps_in(tmp_path)[-1] == 3

    class Killed(Exception):
        pass

    def kill():
        raise Killed

    before_batch(monkeypatch, 3, kill)
    with pytest.raises(Killed):
        train_only(config, tmp_path)
    train_only(config, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert steps_in(tmp_path) == steps_in(whole)
    for step in steps_in(whole):
        chex.assert_trees_all_equal(everything(tmp_path, step), everything(whole, step))


def test_evaluating_changes_nothing_about_training(whole, cache, tmp_path):
    train_only(config_of(cache, eval_every=0), tmp_path)
    plain = [{name: x for name, x in line.items() if "heldout" not in name} for line in log(whole)]
    assert log(tmp_path) == plain
    chex.assert_trees_all_equal(everything(tmp_path, STEPS), everything(whole, STEPS))


def test_a_run_ends_when_its_patience_is_over(cache, tmp_path, monkeypatch, capsys):
    """Accuracies of .5, .75, .75, .25: the second is the best. After two that are not better the run ends,
    with its newest checkpoint evaluated; the same command again finds it finished, and more patience goes
    on."""
    accuracies = iter([0.5, 0.75, 0.75, 0.25, 0.9, 0.9])
    ended = []

    def with_accuracy(heldout, model):
        return dict.fromkeys(heldout.names(), 0.0) | {"heldout/accuracy": next(accuracies)}

    def evaluate(request, say, *, writes):
        ended.append((request.step, request.out.name))
        evaluation.write_json(request.out / evaluation.RESULTS, {})

    monkeypatch.setattr(train.HeldOut, "__call__", with_accuracy)
    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    monkeypatch.setattr(train, "format_results", lambda results: "")
    changes = {"keep_best": "heldout/accuracy", "patience": 2, "eval_every": 1, "checkpoint_every": 100}
    train.train(config_of(cache, **changes), tmp_path)
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4]
    assert steps_in(tmp_path) == [2, 4] and checkpoint.step_of(tmp_path, "best") == 2
    assert ended == [(4, "heldout-4"), (4, "unseen-4")]
    out = capsys.readouterr().out
    assert "finished, 4 steps" in out and "ended before step 6: 2 evaluations in a row" in out
    assert "best heldout/accuracy: 0.750 at step 2, which --step=best reads" in out

    train.train(config_of(cache, **changes), tmp_path)
    assert len(log(tmp_path)) == 4 and len(ended) == 2
    train.train(config_of(cache, **changes | {"patience": 3}), tmp_path)
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert steps_in(tmp_path) == [5, 6] and ended[2:] == [(6, "heldout-6"), (6, "unseen-6")]


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"eval_every": -1}, "config.eval_every is 0 or more"),
        ({"eval_part": 0}, "config.eval_part is a number above 0"),
        ({"data.heldout": ""}, "config.eval_every is 0 unless data.heldout"),
        ({"eval_every": 0, "keep_best": "heldout/loss"}, "config.keep_best is '' unless eval_every"),
        ({"patience": 2}, "config.patience is 0 unless keep_best"),
        ({"keep_best": "loss"}, "config.keep_best='loss' is no metric of the held-out clips; choose one of"),
        ({"eval_controls": ("nothing",)}, "config.eval_controls=('nothing',): choose some of none, key"),
        ({"log_to": ("paper",)}, "config.log_to holds some of tensorboard, wandb, trackio"),
        ({"profile": (3, 2)}, "config.profile is (first, last)"),
        ({"profile": (3,)}, "config.profile is (first, last)"),
    ],
)
def test_mistakes_show_before_any_training(whole, cache, changes, named, tmp_path):
    shutil.copytree(whole / "model", tmp_path / "model")  # spares training the tokenizer again
    with pytest.raises(UserError) as error:
        train.train(config_of(cache, **changes), tmp_path)
    assert named in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "metrics.jsonl").exists() and not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    "step, message", [("best", "keep_best names no metric"), (5, "no checkpoint of step 5.*6")]
)
def test_a_step_that_is_not_there(whole, tmp_path, step, message):
    copied = shutil.copytree(whole, tmp_path / "copied")
    fields = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(fields | {"keep_best": ""}))
    with pytest.raises(UserError, match=message):
        checkpoint.load_model(copied, step=step)
