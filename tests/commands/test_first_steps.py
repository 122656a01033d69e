"""The README's five commands on ten clips of one's own, and what is said to those who slip."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from tests.commands.call import ALONE, call
from tests.runs import make_run
from vpjax.data.text import Text
from vpjax.export import export
from vpjax.training import run_config
from vpjax.training.setup import read_split

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SMALL = {
    "steps": 2,
    "batch": 2,
    "eval_every": 2,
    "dtype": "float32",
    "data.workers": 0,
    "data.cache": "cache",
    "data.min_pixels": 56 * 56,
    "data.max_pixels": 56 * 56,
    "data.row_tokens": 256,
    "data.max_tokens": 256,
    "data.length_multiple": 8,
    "loss.chunk": 16,
}


def llava(clips, folder):
    """Clips as LLaVA's annotations, and their videos in ``folder``."""
    rows = []
    for clip in clips:
        shutil.copy(clip.video, folder)
        turns = [("human", f"<video>\n{clip.question}"), ("gpt", clip.answer)]
        turns = [{"from": role, "value": text} for role, text in turns]
        rows.append({"id": clip.id, "video": Path(clip.video).name, "conversations": turns})
    return json.dumps(rows, indent=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the README supposes: videos, annotations of 8 and of 2, and a model."""
    folder = tmp_path_factory.mktemp("first_steps")
    run = make_run(folder / "events" / "run", clips=10)
    clips = read_split(ConfigDict(run_config.read(run)), "heldout", "events")
    (folder / "videos").mkdir()
    (folder / "train.json").write_text(llava(clips[:8], folder / "videos"))
    (folder / "test.json").write_text(llava(clips[8:], folder / "videos"))
    shutil.copy(clips[0].video, folder / "videos" / "a.mp4")
    export(run, folder / "model")
    end_early(folder / "model" / "model.safetensors", Text.load(folder / "model").end)
    return folder


def end_early(weights, end):
    """Make the end of an answer likely for a model of random weights, which would write until it is cut."""
    tensors = load_file(weights)
    tensors["model.embed_tokens.weight"][end] *= 5
    save_file(tensors, weights)


def in_this_process(command):
    """The exit code of a module and its flags, what it printed, and its errors."""
    name, *flags = command
    alone = ALONE if name in ("vpjax.train", "vpjax.evaluate") else {}
    return call(importlib.import_module(name).main, *flags, **alone)


def in_its_own(command):
    """The same on one device, on which the run of a few clips is to be."""
    env = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")}
    command = [sys.executable, "-m", *command]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    return done.returncode, done.stdout, done.stderr


def test_the_five_commands(folder, monkeypatch):
    block = re.search(
        r"^```\n(python -m vpjax\.build .*?)^```", (ROOT / "README.md").read_text(), re.M | re.S
    )
    commands = [shlex.split(line) for line in block[1].replace("\\\n", " ").splitlines()]
    assert [command[:2] for command in commands] == [["python", "-m"]] * 5
    monkeypatch.chdir(folder)
    monkeypatch.setattr("vpjax.build.worker_processes", ThreadPoolExecutor)  # threads start sooner
    printed = {}
    for _, _, *command in commands:
        run = in_this_process
        if command[0] == "vpjax.train":
            run = in_its_own
            command += [f"--config.{field}={value}" for field, value in SMALL.items()]
        code, out, err = run(command)
        assert code == 0, err
        printed[command[0]] = out
    for name, count in (("train", 8), ("test", 2)):
        assert len((folder / name / "clips.jsonl").read_text().splitlines()) == count
    lines = [json.loads(line) for line in (folder / "runs/mine/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[1]["heldout/loss"] > 0
    assert "heldout clips: clips: per cent" in printed["vpjax.train"]
    assert (folder / "exported" / "model.safetensors").exists()


TRAIN = "vpjax.train --config sft_qwen2_5_vl_7b --workdir runs/slip"


@pytest.mark.parametrize(
    "command, message",
    [
        (
            f"{TRAIN} --config.init_from=model --config.data.train=train.json --config.data.heldout=",
            "python -m vpjax.build --annotations train.json --videos DIR --out DIR",
        ),
        (f"{TRAIN} --config.optim.learning_rate=1e-5", "did you mean --config.optim.lr?"),
        (f"{TRAIN} --steps 100", "did you mean --config.steps?"),
        ("vpjax.train --config configs/sft", "did you mean sft?"),
        (
            "vpjax.train --config sft --workdir=gs://bucket/run",
            "gs://bucket/run: runs and models are folders",
        ),
        ("vpjax.predict --model=gs://bucket/run --prompt=What?", "gs://bucket/run: runs and models are"),
        ("vpjax.predict --model=Qwen/Qwen2.5-VL-7B-Instruct --prompt=What?", "hf download Qwen/Qwen2.5-VL"),
        (
            "vpjax.evaluate --model=model --benchmark=clips --data=train/clips.jsonl --step=best",
            "no step best",
        ),
    ],
)
def test_a_slip_is_one_line_that_says_what_to_do(folder, monkeypatch, command, message):
    monkeypatch.chdir(folder)
    code, out, err = in_this_process(shlex.split(command))
    assert code == 2 and err.count("\n") == 1, err
    assert err.startswith("error: ") and message in err
    assert not (folder / "runs" / "slip" / "config.json").exists()


@pytest.mark.parametrize("name", "train build predict evaluate export plan".split())
def test_help_exits_with_0(name):
    code, out, err = in_this_process([f"vpjax.{name}", "--help"])
    assert (code, err) == (0, "") and "--" in out
    text = (ROOT / "vpjax" / f"{name}.py").read_text()
    assert text.endswith('\nif __name__ == "__main__":\n    cli.run(main)\n')  # python -m does the same
