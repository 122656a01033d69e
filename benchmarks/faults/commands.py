"""The commands that are disturbed, with models and data so small that they take seconds; their end states."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.faults import text_seeds, videos
from vpjax.training import checkpoint

ROOT = Path(__file__).parents[2]
LIMIT = 500.0  # seconds for a command to end
RECIPE = """\
from vpjax.recipes import {name}


def get_config():
    c = {name}.get_config()
    c.update_from_flattened_dict({fields!r})
    return c
"""
SMALL = {
    "batch": 4,
    "log_every": 1,
    "checkpoint_every": 4,
    "keep": 3,
    "data.heldout": "",
    "events.train": 24,
    "events.heldout": 6,
    "events.unseen": 6,
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
}
STEPS = {"sft": 40, "grpo": 20}
BUILD_CLIPS = 64


class Command(NamedTuple):
    """A command that is disturbed. begun: whether there is something that it could go on from. state: a
    digest of all that it made. saving: whether it is inside a save, if it saves. needs: the commands whose
    results it reads."""

    arguments: Callable[[Path], list[str]]
    begun: Callable[[Path], bool]
    state: Callable[[Path], str]
    saving: Callable[[Path], bool] | None = None
    needs: tuple[str, ...] = ()


def prepare(work: Path) -> None:
    """Write the recipes and the data to build and evaluate from."""
    for name in STEPS:
        fields = SMALL | {"steps": STEPS[name], "data.cache": str(work / "cache")}
        if name == "grpo":
            fields |= {"init_from": str(work / "whole-sft"), "grpo.max_new": 6, "grpo.groups": 4, "batch": 2}
        (work / f"small_{name}.py").write_text(RECIPE.format(name=name, fields=fields))
    folder = work / "videos"
    folder.mkdir(exist_ok=True)
    whole = videos.seeds(work)[0]
    rows = []
    for number in range(BUILD_CLIPS):
        (folder / f"{number}.mp4").write_bytes(whole.content)
        rows.append(text_seeds.conversation(number % text_seeds.ROWS) | {"video": f"{number}.mp4"})
    (work / "annotations.json").write_text(json.dumps(rows))


def train(name: str, workdir: Path) -> list[str]:
    return ["vpjax.train", "--config", str(workdir.parent / f"small_{name}.py"), "--workdir", str(workdir)]


def build(out: Path) -> list[str]:
    work = out.parent
    data = ["--annotations", str(work / "annotations.json"), "--videos", str(work / "videos")]
    return ["vpjax.build", *data, "--out", str(out), "--workers", "1", "--samples", "2"]


def evaluate(out: Path) -> list[str]:
    data = ["--benchmark", "clips", "--data", str(out.parent / "whole-build" / "clips.jsonl")]
    options = ["--model", str(out.parent / "whole-sft"), "--batch", "4", "--max_new_tokens", "16"]
    return ["vpjax.evaluate", *options, *data, "--out", str(out)]


def checkpoints(workdir: Path) -> list[Path]:
    folder = workdir / "checkpoints"
    return [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []


def saves(workdir: Path) -> bool:
    """Whether a checkpoint has a name that is not its final one."""
    folder = workdir / "checkpoints"
    try:
        return any(not path.name.isdigit() for path in folder.iterdir() if path.is_dir())
    except OSError:
        return False


def trained(workdir: Path) -> str:
    """A digest of every array of the last checkpoint, bit by bit, and of the log."""
    last = max(int(path.name) for path in checkpoints(workdir))
    manager = checkpoint.Manager(workdir, keep=None)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), manager.shapes(last))
    state = manager.restore(last, like)
    manager.close()
    digest = hashlib.sha256(str(last).encode())
    for path, value in jax.tree_util.tree_leaves_with_path(state):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(value).tobytes())
    digest.update((workdir / "metrics.jsonl").read_bytes())
    return digest.hexdigest()


def digest_of(names: Sequence[str], folder: Path) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update((folder / name).read_bytes().replace(str(folder).encode(), b""))
    return digest.hexdigest()


def built(out: Path) -> str:
    return digest_of(("clips.jsonl", "skipped.jsonl"), out)


def evaluated(out: Path) -> str:
    answers = sorted((out / "predictions.jsonl").read_bytes().splitlines())
    return hashlib.sha256(b"\n".join(answers)).hexdigest() + digest_of(["results.json"], out)


def has_lines(path: Path) -> bool:
    return path.is_file() and path.read_bytes().count(b"\n") > 0


COMMANDS = {
    "sft": Command(lambda w: train("sft", w), lambda w: bool(checkpoints(w)), trained, saves),
    "grpo": Command(lambda w: train("grpo", w), lambda w: bool(checkpoints(w)), trained, saves, ("sft",)),
    "build": Command(build, lambda out: any(out.glob("parts/0*.jsonl")), built),
    "evaluate": Command(
        evaluate, lambda out: has_lines(out / "predictions.jsonl"), evaluated, None, ("sft", "build")
    ),
}


def environment() -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}


def start(arguments: Sequence[str], log: Path, **options: object) -> subprocess.Popen[bytes]:
    """Start ``python -m`` with these arguments; what it prints is appended to ``log``."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=environment(),
            stdout=out,
            stderr=out,
            **options,  # type: ignore[call-overload]  # any of Popen's
        )


def run_whole(name: str, folder: Path) -> str:
    """Run a command to its end, if it has not been, and return the digest of what it made."""
    log = folder.with_name(f"{folder.name}.log")
    process = start(COMMANDS[name].arguments(folder), log)
    code = process.wait(LIMIT)
    if code:
        raise RuntimeError(f"{name} ended with {code}: {log.read_text()[-2000:]}")
    return COMMANDS[name].state(folder)
