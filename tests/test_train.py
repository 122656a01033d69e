"""Runs from start to end on a handful of event clips: resume, signals, skipped updates, mistakes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from configs import sft as recipe
from vpjax import checkpoint, train
from vpjax.models.vlm import leaves
from vpjax.types import UserError

ROOT = Path(__file__).parents[1]
SMALL = {
    "steps": 4,
    "batch": 8,
    "checkpoint_every": 2,
    "log_every": 2,
    "eval_clips": 8,
    "events.train": 20,  # 3 batches an epoch, so that 4 steps and the resume at 2 cross its end
    "events.heldout": 8,
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
    "mesh.data": 2,
    "mesh.fsdp": 4,
}


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Equal steps of different runs are compiled once."""
    before = {name: getattr(jax.config, name) for name in CACHE}
    folder = str(tmp_path_factory.mktemp("compiled"))
    for name, value in {**CACHE, "jax_compilation_cache_dir": folder}.items():
        jax.config.update(name, value)
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)


CACHE = {
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def config(cache):
    config = recipe.get_config()
    config.update_from_flattened_dict(SMALL | {"data.cache": cache})
    return config.lock()


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """A run of 4 steps that nothing stopped, with its held-out result."""
    config = recipe.get_config()
    config.update_from_flattened_dict(SMALL | {"data.cache": cache})
    workdir = tmp_path_factory.mktemp("whole")
    train.train(config.lock(), workdir)
    return workdir


def everything(workdir, config):
    """The whole state after the last step, read back from its checkpoint."""
    manager = checkpoint.Manager(workdir, keep=None)
    shapes = manager.shapes(config.steps)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
    state = manager.restore(config.steps, like)
    manager.close()
    return state


def kill():
    os.kill(os.getpid(), signal.SIGTERM)


class Crash(Exception):
    pass


def crash():
    raise Crash


def test_two_steps_resume_two_steps_is_four_steps(whole, config, watch, tmp_path, capsys):
    """Bit for bit: parameters, optimizer, metrics and the order of the data."""
    config.unlock()
    config.data.heldout = ""
    watch.at[2] = kill
    train.train(config, tmp_path)
    assert "SIGTERM: saved step 2 of 4" in capsys.readouterr().out
    assert len(watch) == 2
    watch.at.clear()
    train.train(config, tmp_path)
    assert "goes on after step 2" in capsys.readouterr().out
    assert len(watch) == 4
    assert sorted(np.concatenate(watch[:3])) == [-1] * 4 + list(range(20))  # an epoch has each clip once
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    chex.assert_trees_all_equal(everything(tmp_path, config), everything(whole, config))


def test_a_crash_repeats_what_came_after_the_checkpoint(whole, config, watch, tmp_path):
    config.unlock()
    config.data.heldout = ""
    watch.at[4] = crash
    with pytest.raises(Crash):
        train.train(config, tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')  # as a killed process leaves its last line
    watch.at.clear()
    train.train(config, tmp_path)
    assert [tuple(clips) for clips in watch[4:]] == [tuple(clips) for clips in watch[2:4]]
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    chex.assert_trees_all_equal(everything(tmp_path, config), everything(whole, config))


def test_a_workdir_is_self_contained(whole, config):
    model, text = checkpoint.load(whole)
    state = everything(whole, config)
    chex.assert_trees_all_equal(leaves(model), {name: state["params"][name] for name in leaves(model)})
    assert text.decode(text.encode("A red square flashes.")) == "A red square flashes."
    assert model.config.video_token == text.video_pad
    early, _ = checkpoint.load(whole, step=2)
    assert not np.array_equal(early.unembed, model.unembed)
    with pytest.raises(UserError, match="no checkpoint of step 3.*2, 4"):
        checkpoint.load(whole, step=3)


def test_what_a_run_leaves(whole, config):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    wanted = {"loss", "loss/lm", "loss/contrast", "contrast/gap", "lr", "grad_norm", "tokens", "nonfinite"}
    assert all(wanted <= line.keys() for line in lines)
    assert json.loads((whole / "config.json").read_text()) == json.loads(config.to_json())
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((whole / "tensorboard").iterdir())
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= {p.name for p in (whole / "model").iterdir()}
    result = json.loads((whole / "heldout.json").read_text())
    assert {answer["control"] for answer in result["answers"]} >= {"none", "key", "shuffle", "single", "blind"}
    assert not list(whole.rglob("*.part"))


def test_a_finished_run_tells_its_result_again(whole, config, watch, tmp_path, capsys):
    workdir = tmp_path / "copy"
    shutil.copytree(whole, workdir)
    before = (workdir / "heldout.json").read_bytes()
    train.train(config, workdir)
    out = capsys.readouterr().out
    assert "finished, 4 steps" in out and "event named in 8 held-out clips" in out
    assert not watch
    assert (workdir / "heldout.json").read_bytes() == before
    assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_too_many_skipped_updates_stop_the_run(config, watch, tmp_path, capsys):
    config.unlock()
    config.update_from_flattened_dict({"optim.lr": 1e30, "max_nonfinite": 1, "data.heldout": ""})
    with pytest.raises(UserError, match="^step 3: .*not finite.*config.max_nonfinite$") as error:
        train.train(config, tmp_path)
    assert re.findall(r"train-0*(\d+)", str(error.value)) == [str(clip) for clip in watch[2] if clip >= 0]
    assert "step 2: loss or gradient not finite, update skipped; its clips: train-" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["nonfinite"], line["loss"] is None) for line in lines] == [(0, False), (1, True), (1, True)]


def mend(config, tmp_path):
    """Mistakes that show only when the run is set up, each with what its message names."""
    broken = tmp_path / "clips.jsonl"
    broken.write_text('{"id": "a", "video": "a.mp4", "question": "What?", "answer": "That."}\n{"id": "b",\n')
    yield {"data.train": str(broken)}, [str(broken), "line 2"]
    yield {"data.heldout": str(tmp_path / "none.jsonl")}, ["none.jsonl"]
    yield {"init": str(tmp_path / "folder")}, ["folder"]
    yield {"steps": 0}, ["config.steps"]
    yield {"mesh.data": 3}, ["config.mesh"]
    yield {"batch": 6}, ["config.batch=6"]
    yield {"optim.freeze": ("nothing.*",)}, ["optim.freeze", "nothing.*"]
    yield {"events.size": 3}, ["events.size"]
    yield {"model.text_config.vocab_size": 100}, ["vocab_size 100"]


def test_mistakes_show_before_any_training(config, tmp_path):
    for number, (changes, named) in enumerate(mend(config, tmp_path)):
        changed = config.copy_and_resolve_references().unlock()
        changed.update_from_flattened_dict(changes)
        workdir = tmp_path / str(number)
        with pytest.raises(UserError) as error:
            train.train(changed, workdir)
        assert all(name in str(error.value) for name in named), (changes, error.value)
        assert "\n" not in str(error.value)
        assert not (workdir / "metrics.jsonl").exists()


def test_a_workdir_of_another_run_is_refused(whole, config, tmp_path):
    config.unlock()
    config.seed = 1
    with pytest.raises(UserError, match="seed is 1, there 0"):
        train.train(config, whole)


def test_the_command_saves_on_sigterm_and_goes_on(cache, compile_once, tmp_path):
    """The command itself, in a process of its own, stopped from outside."""
    values = SMALL | {"steps": 10_000, "data.heldout": "", "mesh.data": 1, "mesh.fsdp": -1, "data.cache": cache}
    lists = {name: value for name, value in values.items() if isinstance(value, list)}
    (tmp_path / "small.py").write_text(
        "from configs import sft\n\ndef get_config():\n    c = sft.get_config()\n"
        f"    c.update_from_flattened_dict({lists!r})\n    return c\n"
    )
    flags = [f"--config.{name}={value}" for name, value in values.items() if name not in lists]
    command = [sys.executable, "-m", "vpjax.train", "--config", str(tmp_path / "small.py"), *flags]
    command += ["--workdir", str(tmp_path / "run")]
    environment = os.environ | {name.upper(): str(value) for name, value in CACHE.items() if value is not None}
    environment |= {"JAX_COMPILATION_CACHE_DIR": compile_once}
    metrics = tmp_path / "run" / "metrics.jsonl"
    ends = []
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        seen = 2 + (ends[-1] if ends else 0)
        while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < seen):
            time.sleep(0.05)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        ends.append(int(re.search(rf"{number.name}: saved step (\d+) of 10000", out.splitlines()[-1])[1]))
        steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
        assert steps == list(range(1, ends[-1] + 1))
    assert f"goes on after step {ends[0]}" in out
