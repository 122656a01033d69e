"""Does an exported run answer in lmms-eval? Its two classes of Qwen2.5-VL models, on a task of its own.

    python -m venv lm && lm/bin/pip install torch torchvision lmms-eval decord qwen-vl-utils
    python -m benchmarks.clients --workdir runs/sft --python lm/bin/python --out FILE.md

Asks about held-out built-in event clips, and compares the answers with those of ``vpjax.predict``.
lmms-eval runs in an environment of its own (``--python``), because it wants other versions of
packages than vpjax does. Nothing is fetched: the task is a folder with a JSON file, a YAML file and a module.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks.timing import environment, publish
from vpjax import cli
from vpjax.export import export
from vpjax.predict import ask, load
from vpjax.training import checkpoint, run_config
from vpjax.training.setup import read_split
from vpjax.types import Clip

TASK = "event_clips"
YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function doc.visual
doc_to_text: !function doc.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 32
  temperature: 0
process_results: !function doc.score
metric_list:
  - metric: equal
    aggregation: mean
    higher_is_better: true
"""
MODULE = """\
def visual(doc):
    return [doc["video"]]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def score(doc, results):
    return {"equal": float(results[0].strip() == doc["answer"])}
"""
PACKAGES = ("lmms_eval", "transformers", "torch", "qwen_vl_utils")
CLASSES = {"chat": [], "simple": ["--force_simple"]}


def write_task(folder: Path, clips: Sequence[Clip]) -> None:
    """A task of lmms-eval that asks about the clips."""
    rows = [dict(id=c.id, video=str(c.video), question=c.question, answer=c.answer) for c in clips]
    (folder / "data.json").write_text(json.dumps(rows))
    (folder / f"{TASK}.yaml").write_text(YAML.format(task=TASK, data=folder / "data.json"))
    (folder / "doc.py").write_text(MODULE)


def answers_of(command: Sequence[str], model: Path, folder: Path, fields: dict[str, object]) -> list[str]:
    """What the exported ``model`` answers if ``command`` starts lmms-eval, in the order of the clips."""
    arguments = dict(pretrained=model, device="cpu", device_map="cpu", **fields)
    options = {
        "model": "qwen2_5_vl",
        "model_args": ",".join(f"{name}={value}" for name, value in arguments.items()),
        "tasks": TASK,
        "include_path": folder,
        "batch_size": 1,
    }
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "FORCE_QWENVL_VIDEO_READER": "decord"}
    with tempfile.TemporaryDirectory() as out:
        flags = [f"--{name}={value}" for name, value in options.items()]
        flags += ["--log_samples", f"--output_path={out}"]
        subprocess.run([*command, *flags], check=True, cwd=folder, env=environment)
        (file,) = Path(out).rglob("*samples*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [row["filtered_resps"].strip() for row in sorted(rows, key=lambda row: row["doc_id"])]


def installed(python: str, *names: str) -> str:
    """The versions of packages of the other environment."""
    code = f"from importlib.metadata import version\nfor name in {names}: print(name, version(name))"
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return ", ".join(done.stdout.splitlines())


def parse_arguments(description: str | None, client: str, clips: int) -> argparse.Namespace:
    """The flags of a comparison with a client, which has a Python of its own. clips: the default. UserError
    if there is no such run."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="of a run on built-in clips")
    parser.add_argument("--python", required=True, help=f"a Python with {client}")
    parser.add_argument("--clips", type=int, default=clips)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    checkpoint.check_model(arguments.workdir)
    return arguments


def main() -> None:
    arguments = parse_arguments(__doc__, "lmms-eval", clips=16)
    config = ConfigDict(run_config.read(arguments.workdir))
    clips = read_split(config, "heldout", "events")[: arguments.clips]
    loaded = load(arguments.workdir)
    ours = [ask(loaded, clip.question, clip.video).text for clip in clips]
    data = config.data
    fields = dict(
        min_pixels=data.min_pixels, max_pixels=data.max_pixels, max_num_frames=data.frames or data.max_frames
    )
    lines = [
        "# An exported run in lmms-eval",
        "",
        environment("jax", "transformers"),
        f"{installed(arguments.python, *PACKAGES)}; {arguments.workdir.name}, {len(clips)} held-out clips",
        "",
        "| class of lmms-eval | started by | answers as in vpjax.predict |",
        "|---|---|---:|",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export(arguments.workdir, folder / "model")
        write_task(folder, clips)
        mended = ["as_trained.py -m lmms_eval", str(folder / "model" / "as_trained.py")]
        for name, flags in CLASSES.items():
            for start, *script in (["-m lmms_eval"], mended):
                command = [arguments.python, *script, "-m", "lmms_eval", *flags]
                theirs = answers_of(command, folder / "model", folder, fields)
                same = sum(a == b for a, b in zip(theirs, ours, strict=True))
                lines.append(f"| {name} | {start} | {same} of {len(clips)} |")
    publish(lines, arguments.out)


if __name__ == "__main__":
    cli.run(main)
