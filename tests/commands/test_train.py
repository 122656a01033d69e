"""Runs from start to end on a handful of event clips: resume, signals, skipped updates, mistakes."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import signal
import sys

import chex
import jax
import numpy as np
import pytest

from vpjax import cli
from vpjax.evaluation.controls import CONTROLS
from vpjax.models.vlm import leaves
from vpjax.recipes import sft as recipe
from vpjax.training import checkpoint
from vpjax.training.report import draw_curves
from vpjax.types import UserError

train = importlib.import_module("vpjax.train")  # the module; ``vpjax.train`` is the function
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_runs")]

SMALL = {
    "steps": 4,
    "batch": 8,
    "checkpoint_every": 2,
    "log_every": 2,
    "eval_clips": 8,
    "events.train": 20,  # 3 batches an epoch, so that 4 steps and the resume at 2 cross its end
    "events.heldout": 8,
    "events.unseen": 8,
    "contrast.width": 16,
    "model.text_config.hidden_size": 32,
    "model.text_config.intermediate_size": 48,
    "model.text_config.num_hidden_layers": 2,
    "model.text_config.num_attention_heads": 2,
    "model.text_config.num_key_value_heads": 1,
    "model.text_config.rope_parameters.mrope_section": [2, 3, 3],
    "model.vision_config.depth": 1,
    "model.vision_config.fullatt_block_indexes": [0],
    "model.vision_config.hidden_size": 32,
    "model.vision_config.intermediate_size": 48,
    "model.vision_config.num_heads": 2,
    "model.vision_config.out_hidden_size": 32,
    "mesh.data": -1,  # every device that there is
    "mesh.fsdp": 1,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def small(cache, **changes):
    config = recipe.get_config()
    config.update_from_flattened_dict(SMALL | {"data.cache": cache} | changes)
    return config


def train_and_draw(config, workdir):
    """With its real curves, which ``quick_runs`` leaves out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw_curves", draw_curves)
        train.train(config, workdir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache, quick_runs):
    """A run of 4 steps that nothing stopped, with its curves and its held-out result."""
    workdir = tmp_path_factory.mktemp("whole")
    train_and_draw(small(cache), workdir)
    return workdir


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copied")


@pytest.fixture
def watch(monkeypatch):
    """The clips of each step in order; ``watch.at[n]`` is called before the n-th step, counted from 1."""

    class Watch(list):
        at = {}

    seen, put = Watch(), train.put_batch

    def put_batch(batch, mesh):
        seen.append(np.array(batch.clip))
        seen.at.get(len(seen), lambda: None)()
        return put(batch, mesh)

    monkeypatch.setattr(train, "put_batch", put_batch)
    return seen


def everything(workdir, step=4):
    """The whole state after ``step`` steps, as its checkpoint has it."""
    manager = checkpoint.Manager(workdir, keep=None)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), manager.shapes(step))
    state = manager.restore(step, like)
    manager.close()
    return state


def test_after_a_damaged_checkpoint_and_log_the_run_goes_on(whole, copied, cache, monkeypatch, capsys):
    """As a power cut leaves them: the last checkpoint has a file of zeros, the log ends in NUL bytes. The run
    goes on after the checkpoint before, and ends as the one that nothing disturbed."""
    file = copied / "checkpoints/4/state/manifest.ocdbt"
    file.write_bytes(bytes(file.stat().st_size))
    log = (copied / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_bytes(b"".join(log[:3]) + bytes(300))
    monkeypatch.setattr(train, "finish", lambda config, workdir, step: None)  # no evaluation of all clips
    train.train(small(cache), copied)
    out = capsys.readouterr().out
    assert out.count("is damaged (state/manifest.ocdbt has other bytes than were written)") == 1
    assert f"{copied}: goes on after step 2" in out and "are lost" not in out
    chex.assert_trees_all_equal(everything(copied), everything(whole))
    assert (copied / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


class Crash(Exception):
    pass


def crash():
    raise Crash


def test_a_stopped_run_goes_on_bit_for_bit(whole, cache, watch, tmp_path, monkeypatch, capsys):
    """Stopped by SIGTERM after 2 steps, then crashed, then left alone: parameters, optimizer, metrics and the
    order of the data are those of the run that nothing stopped. Called as the command line calls it."""
    workdir, config = tmp_path / "run", tmp_path / "small.py"
    config.write_text(
        "from tests.commands.test_train import small\n\n"
        f"def get_config():\n    return small({cache!r}, **{{'data.heldout': ''}})\n"
    )
    one_process = ["--coordinator=nowhere:1", "--processes=1", "--process=0"]
    monkeypatch.setattr("sys.argv", ["train", "--config", str(config), f"--workdir={workdir}", *one_process])

    def command():
        with pytest.raises(SystemExit) as exit:
            cli.run(train.main)
        assert exit.value.code == 0
        return capsys.readouterr().out.splitlines()

    watch.at[2] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert command()[-1].startswith(f"SIGTERM: saved step 2 of 4 in {workdir}")

    watch.at[4] = crash
    with pytest.raises(Crash):
        cli.run(train.main)
    with open(workdir / "metrics.jsonl", "a") as file:  # as a killed process may leave its last lines
        file.write('{"step": 3, "loss": 0.0}\n{"step": 4, "lo')

    out = command()
    assert any("goes on after step 2" in line for line in out)
    assert "finished, 4 steps" in out[-1]
    first, again = watch[:2] + watch[4:], watch[2:4]
    assert [row.tolist() for row in again] == [row.tolist() for row in first[2:]]
    assert sorted(np.concatenate(first)[:20].ravel()) == list(range(20))  # an epoch has each clip once
    assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    chex.assert_trees_all_equal(everything(workdir), everything(whole))


def test_a_workdir_is_self_contained(whole):
    model, text = checkpoint.load_model(whole)
    params = everything(whole)["params"]
    chex.assert_trees_all_equal(leaves(model), {name: params[name] for name in leaves(model)})
    assert text.decode(text.encode("A red square flashes.")) == "A red square flashes."
    assert model.config.video_token == text.video_pad
    early, _ = checkpoint.load_model(whole, step=2)
    assert not np.array_equal(early.unembed, model.unembed)
    with pytest.raises(UserError, match="no checkpoint of step 3.*2, 4"):
        checkpoint.load_model(whole, step=3)


def test_what_a_run_leaves(whole, cache):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    expected = {"loss", "loss/lm", "loss/contrast", "contrast/gap", "lr", "grad_norm", "tokens", "nonfinite"}
    assert all(expected <= line.keys() for line in lines)
    assert json.loads((whole / "config.json").read_text()) == json.loads(small(cache).to_json())
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((whole / "tensorboard").iterdir())
    model = {file.name for file in (whole / "model").iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= model
    for split, controls in (("heldout", CONTROLS), ("unseen", ("none",))):
        results = json.loads((whole / "evaluate" / f"{split}-4" / "results.json").read_text())
        assert set(results["controls"]) == set(controls)
        assert results["controls"]["none"]["rows"] == 8
    assert not list(whole.rglob("*.part"))


def test_a_finished_run_prints_its_results_again(whole, copied, cache, watch, capsys):
    train.train(small(cache), copied)
    out = capsys.readouterr().out
    assert "finished, 4 steps" in out and "heldout clips: events: per cent" in out
    assert not watch
    for file in ("evaluate/heldout-4/results.json", "metrics.jsonl"):
        assert (copied / file).read_bytes() == (whole / file).read_bytes()


def test_too_many_skipped_updates_stop_the_run(copied, cache, watch, monkeypatch, capsys):
    """With a parameter that is not a number, every step is skipped; the second one is one too many here."""
    shutil.rmtree(copied / "checkpoints" / "4")
    restore = checkpoint.Manager.restore

    def poisoned(manager, step, like):
        state = restore(manager, step, like)
        norm = "decoder.norm.scale"
        return dataclasses.replace(state, params=state.params | {norm: state.params[norm] * np.nan})

    monkeypatch.setattr(checkpoint.Manager, "restore", poisoned)
    with pytest.raises(UserError, match="^step 4: .*not finite.*config.max_nonfinite$") as error:
        train.train(small(cache, max_nonfinite=1), copied)
    ids = [f"train-{clip:06d}" for clip in np.ravel(watch[1]) if clip >= 0]
    assert re.findall(r"train-\d+", str(error.value)) == ids
    assert "step 3: loss or gradient not finite, update skipped; its clips: train-" in capsys.readouterr().out
    lines = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    assert [(line["nonfinite"], line["loss"] is None) for line in lines] == [(0, False)] * 2 + [(1, True)] * 2
    assert not (copied / "checkpoints" / "4").exists()


def grpo_config(cache, whole, **changes):
    """GRPO after the whole run above."""
    grpo = {
        "method": "grpo",
        "init_from": str(whole),
        "steps": 2,
        "grpo.groups": 2,
        "grpo.degraded": 1,
        "grpo.max_new": 8,
        "grpo.show_every": 2,
        "grpo.rewards": {"event": 1.0},
        "data.heldout": "",
    }
    return small(cache, **grpo | changes)


# Mini-batches, of half of the prompts that a step reads.
OVERSAMPLED = {
    "batch": 16,
    "grpo.oversample": 2,
    "grpo.num_minibatches": 2,
    "grpo.reward_aggregation": "normalize_then_sum",
    "grpo.scale": "batch",
    "checkpoint_every": 1,
}


@pytest.fixture(scope="module")
def grpo_run(tmp_path_factory, whole, cache):
    workdir = tmp_path_factory.mktemp("grpo_run")
    train_and_draw(grpo_config(cache, whole, **OVERSAMPLED), workdir)
    return workdir


def after_the_first_step(run, folder):
    """A copy of a run of two steps in ``folder``, as if it had been stopped after the first one."""
    copied = shutil.copytree(run, folder)
    shutil.rmtree(copied / "checkpoints" / "2")
    for file in ("curves.png", "rollouts/000002.md"):
        (copied / file).unlink()
    return copied


def test_grpo_goes_on_from_a_run(grpo_run, whole):
    """The same files as SFT leaves, and pages of rollouts, from the run's weights and tokenizer."""
    lines = [json.loads(line) for line in (grpo_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"reward", "reward_degraded", "rewards/event/mean", "rel/gap", "kl"} - lines[0].keys() == {"kl"}
    assert lines[0]["sampling/logp_difference/max"] < 1e-4 and "oversample/replaced" in lines[0]
    for name in ("000001.md", "000002.md"):
        text = (grpo_run / "rollouts" / name).read_text()
        clips = text.count("## train-")
        assert clips in (8, 4)  # the last batch of an epoch has 4 rows without a clip
        assert text.count("| V | ") == 2 * clips and text.count("| V~ | ") == clips
    for file in ("config.json", "tokenizer.json"):
        assert (grpo_run / "model" / file).read_bytes() == (whole / "model" / file).read_bytes()
    assert (grpo_run / "curves.png").exists()
    assert not set(everything(grpo_run, 2)["params"]) - set(everything(whole)["params"])


def test_grpo_resumes_bit_for_bit(grpo_run, whole, cache, tmp_path, watch):
    """1 + 1 steps end as 2 do, rollouts included. A step reads twice the prompts of its update, in an order
    that is known from its number."""
    copied = after_the_first_step(grpo_run, tmp_path / "copied")
    train.train(grpo_config(cache, whole, **OVERSAMPLED), copied)
    assert [len(clips) for clips in watch] == [32]
    chex.assert_trees_all_equal(everything(copied, 2), everything(grpo_run, 2))
    for file in ("metrics.jsonl", "rollouts/000002.md"):
        assert (copied / file).read_bytes() == (grpo_run / file).read_bytes()
    assert (copied / "curves.png").exists()


@pytest.fixture
def own_reward(monkeypatch):
    """``own_reward(failing)``: the rewards of a config, one of one's own that fails at these calls, and the
    numbers of completions that it was given."""
    calls = []

    def rewards(failing):
        def reward(completions, clips):
            calls.append(len(completions))
            assert all(isinstance(text, str) for text in completions) and clips[0].id.startswith("train-")
            if len(calls) in failing:
                raise ValueError("no such luck")
            return [float(len(text)) for text in completions]

        monkeypatch.setattr(sys.modules[__name__], "reward_of_mine", reward, raising=False)
        return {"mine": f"{__name__}:reward_of_mine"}, calls

    return rewards


def test_a_reward_of_ones_own_may_fail(whole, cache, own_reward, tmp_path, capsys):
    """A step in which it does is skipped, counted and named; its numbers are missing in the log. Another step
    is not harmed. Eight devices give it the completions of all."""
    rewards, calls = own_reward({2})
    config = grpo_config(cache, whole, **{"grpo.rewards": rewards, "steps": 3})
    train_and_draw(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["nonfinite"] for line in lines] == [0, 1, 0]
    assert [line["reward"] is None for line in lines] == [False, True, False] and lines[0]["reward"] > 0
    assert all(0 < line["rewards/mine/seconds"] < 60 for line in lines)
    assert set(calls) <= {3 * 8, 3 * 4} and len(calls) == 3
    assert "step 2: reward" in (out := capsys.readouterr().out) and "no such luck" in out


def test_a_reward_of_ones_own_that_never_worked_stops_the_run(whole, cache, own_reward, tmp_path, capsys):
    """At its first step, also where that is a resumed run's."""
    rewards, calls = own_reward({1})
    config = grpo_config(cache, whole, **{"grpo.rewards": rewards, "max_nonfinite": 100})
    with pytest.raises(
        UserError, match="^config.grpo.rewards.mine: reward '.*' raised .*no such luck"
    ) as error:
        train.train(config, tmp_path)
    assert "\n" not in str(error.value) and len(calls) == 1
    assert "finished" not in (out := capsys.readouterr().out) and "reward 3" not in out
    assert not (tmp_path / "metrics.jsonl").read_text()


BROKEN = '{"id": "a", "video": "a.mp4", "question": "What?", "answer": "That."}\n{"id": "b",\n'


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"data.train": "broken.jsonl"}, "broken.jsonl, line 2"),
        ({"data.heldout": "missing.jsonl"}, "missing.jsonl"),
        ({"data.heldout": "eventless.jsonl"}, "data.heldout"),
        ({"init_from": "folder"}, "config.init_from: there is no folder folder"),
        ({"method": "grpo", "grpo.rewards": {"even": 1.0}}, "reward 'even' does not exist"),
        ({"method": "grpo", "grpo.rewards": {"mine": "nowhere:fn"}}, "reward 'nowhere:fn'"),
        ({"method": "grpo", "grpo.rewards": {"event": 1.0}, "grpo.groups": 1}, "config.grpo.groups"),
        ({"method": "grpo", "grpo.rewards": {"event": 1.0}, "grpo.degraded": 0}, "config.grpo.degraded"),
        ({"steps": 0}, "config.steps"),
        ({"mesh.data": 3}, "config.mesh"),
        ({"batch": 6}, "config.batch"),
        ({"optim.freeze": ("nothing.*",)}, "optim.freeze: 'nothing.*'"),
        ({"events.sizes": ((3, 3),)}, "events.sizes"),
        ({"model.text_config.vocab_size": 100}, "vocab_size 100"),
    ],
)
def test_mistakes_show_before_any_training(whole, cache, changes, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jsonl").write_text(BROKEN)
    (tmp_path / "eventless.jsonl").write_text(BROKEN.splitlines()[0])
    workdir = tmp_path / "run"
    if not {"init_from", "model.text_config.vocab_size"} & set(changes):
        shutil.copytree(whole / "model", workdir / "model")  # spares training the tokenizer again
    with pytest.raises(UserError) as error:
        train.train(small(cache, **changes), workdir)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert not (workdir / "metrics.jsonl").exists() and not (workdir / "config.json").exists()


@pytest.mark.parametrize("rewards", [{"even": 1.0}, {"mine": "nowhere:fn"}])
def test_a_reward_that_is_not_there_is_told_before_all_else(cache, rewards, tmp_path):
    config = small(cache, **{"method": "grpo", "grpo.rewards": rewards})
    with pytest.raises(UserError, match="reward"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # in which the lock would be


def test_a_workdir_of_another_run_is_refused(whole, cache):
    with pytest.raises(UserError, match="seed is 1, there 0"):
        train.train(small(cache, seed=1), whole)
