"""Does an exported run go on in TRL? Its SFTTrainer on questions about images.

    python -m venv lm && lm/bin/pip install torch torchvision trl
    python -m benchmarks.clients_trl --workdir runs/sft --python lm/bin/python --out FILE.md

Single frames of held-out event clips, with the clips' questions and answers, are handed to TRL with the
exported folder and nothing else. Before training, the loss on the answers' tokens must be that of vpjax on
the same images; after it, the logged loss must have fallen. TRL runs in an environment of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
from ml_collections import ConfigDict

from benchmarks.clients import installed, parse_arguments
from benchmarks.timing import environment, publish
from vpjax import cli
from vpjax.evaluation.ask import ClipPredictor
from vpjax.evaluation.run import evaluation_data
from vpjax.export import export
from vpjax.predict import load
from vpjax.training import run_config
from vpjax.training.setup import read_split
from vpjax.types import Clip


def image_clips(clips: Sequence[Clip], folder: Path) -> list[Clip]:
    """The clips with the first frame of each video, as a PNG file, in its place."""
    images = []
    for clip in clips:
        path = folder / f"{clip.id}.png"
        with av.open(str(clip.video)) as video:
            next(video.decode(video=0)).to_image().save(path)
        images.append(replace(clip, video=str(path), keywords=(), spans=()))
    return images


def our_loss(workdir: Path, clips: Sequence[Clip], data: ConfigDict) -> tuple[float, int]:
    """(the mean of -log p over the tokens of the clips' answers, their number)."""
    loaded = load(workdir)
    predictor = ClipPredictor(
        loaded.model,
        loaded.text,
        clips,
        evaluation_data(data, "events", loaded.model),
        controls=("none",),
        batch_size=len(clips),
        max_new=1,
        candidates={clip.id: (clip.answer,) for clip in clips},
    )
    list(predictor.predictions())
    tokens = sum(len(ids) for (ids,) in predictor.candidate_ids.values())
    return -sum(float(scores[0]) for scores in predictor.scores.values()) / tokens, tokens


def their_losses(python: str, model: Path, clips: Sequence[Clip]) -> dict[str, Any]:
    """What benchmarks/clients_trl_side.py prints about the exported ``model``."""
    rows = model.parent / "rows.json"
    rows.write_text(json.dumps([dict(image=c.video, question=c.question, answer=c.answer) for c in clips]))
    script = Path(__file__).with_name("clients_trl_side.py")
    done = subprocess.run(
        [python, script, model, rows],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    arguments = parse_arguments(__doc__, "TRL", clips=8)
    config = ConfigDict(run_config.read(arguments.workdir))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clips = image_clips(read_split(config, "heldout", "events")[: arguments.clips], folder)
        export(arguments.workdir, folder / "model")
        ours, tokens = our_loss(arguments.workdir, clips, config.data)
        theirs = their_losses(arguments.python, folder / "model", clips)
    lines = [
        "# An exported run in TRL, on images",
        "",
        environment("jax", "transformers"),
        f"{installed(arguments.python, 'trl', 'transformers', 'torch')}; {arguments.workdir.name}, first "
        f"frames of {len(clips)} held-out clips",
        "",
        "| | tokens of the answers | loss |",
        "|---|---:|---:|",
        f"| vpjax | {tokens} | {ours:.6f} |",
        f"| TRL's batch, before training | {theirs['tokens']} | {theirs['loss']:.6f} |",
        "",
        f"Logged by SFTTrainer, step by step: {', '.join(f'{loss:.3f}' for loss in theirs['trained'])}.",
    ]
    publish(lines, arguments.out)


if __name__ == "__main__":
    cli.run(main)
