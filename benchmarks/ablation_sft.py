"""Does the degraded video help? The SFT rows of the method's evidence table, on the built-in event clips.

    python -m benchmarks.ablation_sft --quick                      about 10 minutes on 2 cores
    python -m benchmarks.ablation_sft --out FILE.md                about an hour
    python -m benchmarks.ablation_sft --steps 1500 --out FILE.md   at the plateau: hours (all estimated)

Every row trains the model of configs/sft.py from the same initial weights, in the same data order, for the
same steps; only what its line says differs. Cells are means over seeds with a 95 % interval (Student's t over
seeds; for one seed there is none). The last column is the paired difference to "LM only", over events of all
lengths.
``--out`` also keeps each finished run in FILE.jsonl: the same command goes on where it was stopped, and
several commands with other ``--seeds`` can share the work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from benchmarks.timing import environment
from configs import sft as recipe
from vpjax import heldout, sft
from vpjax.data.keyframes import motion_span
from vpjax.data.pipeline import make_loader
from vpjax.data.text import Text
from vpjax.data.video import Sampling, read_frames
from vpjax.models.vlm import VLMConfig, abstract_model, rebuild
from vpjax.sharding import make_mesh, put_batch
from vpjax.start import initial_params, prepare_model, read_split
from vpjax.state import create_state
from vpjax.types import Clip

ROWS = {
    "LM only": {"contrast.weight": 0.0},
    "+ contrast, in-batch negatives only": {"contrast.negatives": ("batch",)},
    "+ contrast with V~": {},
    "+ contrast, random slots replaced": {"data.replacement": "random"},
    "+ contrast, random slots replaced and pooled": {"data.replacement": "random", "data.pool": "random"},
    "+ contrast with V~, key frames found by motion": {"motion": True},
}
QUICK = dict(steps=160, seeds=[0], clips=2048, heldout=120)
CONTROLS = ("none", "key", "random", "shuffle", "single", "blind")
COLUMNS = {
    "1 frame": "event/none/1",
    "2": "event/none/2",
    "4": "event/none/4",
    "all": "event/none",
    "on V~": "event/key",
    "random replaced": "event/random",
    "shuffled": "event/shuffle",
    "single": "event/single",
    "no video": "event/blind",
}
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, by number of seeds


def found_by_motion(clips: Sequence[Clip], sampling: Sampling) -> tuple[list[Clip], int]:
    """The clips with keyword spans found from the frames instead of known, and how many of these overlap the
    true ones."""
    found, hits = [], 0
    for clip in clips:
        video = read_frames(clip.video, sampling, min_pixels=1, max_pixels=56 * 56)
        start, end = motion_span(video.frames, video.times)
        hits += any(start < last and first < end for first, last in clip.spans)
        keywords = tuple(dataclasses.replace(keyword, spans=((start, end),)) for keyword in clip.keywords)
        found.append(dataclasses.replace(clip, keywords=keywords))
    return found, hits


def configure(row: dict, seed: int, args: argparse.Namespace) -> ConfigDict:
    config = recipe.get_config()
    config.seed, config.steps = seed, args.steps
    config.events.train, config.events.heldout = args.clips, args.heldout
    config.update_from_flattened_dict({field: value for field, value in row.items() if field != "motion"})
    return config


def run(
    config: ConfigDict, clips: list[Clip], asked: list[Clip], model_config: VLMConfig, text: Text
) -> dict:
    """Train and evaluate; metrics of ``heldout`` and seconds per step."""
    mesh = make_mesh(config.mesh)
    loader = make_loader(clips, text, model_config, config.data, seed=config.seed, batch_size=config.batch)
    params = initial_params(config, model_config, mesh)
    state, optimizer, where = create_state(params, config, mesh)
    step = sft.make_step(abstract_model(model_config), config, optimizer, where)
    marks = []
    for _ in range(config.steps):
        state, metrics = step(state, put_batch(next(loader), mesh))
        metrics["loss"].block_until_ready()
        marks.append(time.perf_counter())
    loader.close()
    trained = {path: x for path, x in (state.params | state.frozen).items() if not path.startswith(sft.HEADS)}
    model = rebuild(abstract_model(model_config), trained)
    result = heldout.evaluate(model, text, asked, config.data, controls=CONTROLS)
    gaps = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    return result.metrics() | {"seconds per step": statistics.median(gaps), "skipped": float(state.skipped)}


def interval(values: Sequence[float]) -> str:
    """Mean and half a 95 % interval over seeds."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


def table(results: dict[str, list[dict]]) -> list[str]:
    lines = [
        "| row | " + " | ".join(COLUMNS) + " | s/step | all, minus LM only |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    plain = results.get("LM only", [])
    for name, runs in results.items():
        cells = [interval([one[metric] for one in runs]) for metric in COLUMNS.values()]
        cells.append(f"{statistics.mean(one['seconds per step'] for one in runs):.3f}")
        pairs = zip(runs, plain, strict=False)
        cells.append(interval([a["event/none"] - b["event/none"] for a, b in pairs]) if plain else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=", ".join(f"{k}={v}" for k, v in QUICK.items()))
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at most 5")
    parser.add_argument("--clips", type=int, default=4096, help="to train on")
    parser.add_argument("--heldout", type=int, default=240, help="to evaluate on")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--out", type=Path, help="write the table to this file, and each run to FILE.jsonl")
    args = parser.parse_args()
    if args.quick:
        vars(args).update(QUICK)
    settings = {name: getattr(args, name) for name in QUICK if name != "seeds"}
    log = args.out.with_suffix(".jsonl") if args.out else None
    done = [json.loads(line) for line in log.read_text().splitlines()] if log and log.exists() else []

    config = configure({}, 0, args)
    clips = read_split(config, "train", "events")
    asked = read_split(config, "heldout", "events")
    moved, hits = (
        found_by_motion(clips, Sampling(config.data.frames))
        if any("motion" in ROWS[name] for name in args.rows)
        else ([], 0)
    )
    results: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        # Rows and seeds share programs: compile each once.
        jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
        model_config, text = prepare_model(config, Path(folder), clips)
        for seed in args.seeds:
            for name in args.rows:
                key = {"row": name, "seed": seed, **settings}
                record = next((one for one in done if key.items() <= one.items()), None)
                if record is None:
                    mine = moved if "motion" in ROWS[name] else clips
                    record = key | run(configure(ROWS[name], seed, args), mine, asked, model_config, text)
                    if log:
                        with log.open("a") as file:
                            file.write(json.dumps(record) + "\n")
                results.setdefault(name, []).append(record)
                print(f"seed {seed}, {name}: {record['event/none']:.3f}", file=sys.stderr, flush=True)

    lines = [
        "# SFT ablation on event clips",
        "",
        environment("jax", "flax", "optax"),
        f"{args.steps} steps of {config.batch} clips, {args.clips} to train on, {len(asked)} held-out, "
        f"{len(args.seeds)} seeds; share of clips whose event is named, chance {heldout.CHANCE:.3f}",
        *(
            [f"Motion found a span that overlaps the true one in {hits / len(clips):.0%} of clips."]
            if moved
            else []
        ),
        "",
        *table(results),
    ]
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
