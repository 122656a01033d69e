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
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from benchmarks.repeats import CHANCE, accuracies, repeat, table
from benchmarks.timing import environment, keep
from vpjax.building import scorers
from vpjax.building.self_scorer import self_scorer
from vpjax.data.pipeline import make_loader
from vpjax.data.text import Text
from vpjax.data.video import Sampling, read_frames
from vpjax.evaluation.benchmarks import read_benchmark
from vpjax.evaluation.run import evaluate_model
from vpjax.models.sharding import make_mesh, put_batch
from vpjax.models.vlm import VideoLM, VLMConfig, abstract_model, rebuild
from vpjax.recipes import sft as recipe
from vpjax.training import sft
from vpjax.training.setup import initial_params, prepare_model, read_split, split_file
from vpjax.training.state import create_state
from vpjax.types import Clip

PLAIN = "LM only"
ROWS = {
    PLAIN: {"contrast.weight": 0.0},
    "+ contrast, in-batch negatives only": {"contrast.negatives": ("batch",)},
    "+ contrast with V~": {},
    "+ contrast, random slots replaced": {"data.replacement": "random"},
    "+ contrast, random slots replaced and pooled": {"data.replacement": "random", "data.pool": "random"},
    "+ contrast with V~, key frames found by motion": {"found": "motion"},
    "+ contrast with V~, key frames found by self": {
        "found": "self"
    },  # asks the LM-only model of the same seed
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


def found_by(scorer: scorers.Scorer, clips: Sequence[Clip], sampling: Sampling) -> tuple[list[Clip], int]:
    """The clips with keyword spans found from the frames instead of known, and how many of these overlap the
    true ones."""
    found, hits = [], 0
    for clip in tqdm(clips, "key frames", unit="clip"):
        video = read_frames(clip.video, sampling, min_pixels=1, max_pixels=56 * 56)
        keywords = []
        for keyword in clip.keywords:
            spans, _ = scorers.runs(scorer(video, clip, keyword), video.times)
            keywords.append(dataclasses.replace(keyword, spans=spans))
            hits += any(start < last and first < end for start, end in spans for first, last in keyword.spans)
        found.append(dataclasses.replace(clip, keywords=tuple(keywords)))
    return found, hits


def configure(row: dict, seed: int, args: argparse.Namespace) -> ConfigDict:
    config = recipe.get_config()
    config.seed, config.steps = seed, args.steps
    config.events.train, config.events.heldout = args.clips, args.heldout
    config.update_from_flattened_dict({field: value for field, value in row.items() if field != "found"})
    return config


def train(
    config: ConfigDict, clips: list[Clip], model_config: VLMConfig, text: Text
) -> tuple[VideoLM, dict[str, float]]:
    """The trained model, the seconds per step and how many steps were skipped."""
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
    gaps = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    costs = {"seconds per step": statistics.median(gaps), "skipped": float(state.skipped)}
    return rebuild(abstract_model(model_config), trained), costs


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
    config = configure({}, 0, args)
    clips = read_split(config, "train", "events")
    asked, _ = read_benchmark("events", split_file(config, "heldout", "events"))
    with tempfile.TemporaryDirectory() as folder:
        # Rows and seeds share programs: compile each once.
        jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
        model_config, text = prepare_model(config, Path(folder), clips)
        plain: dict[int, VideoLM] = {}  # the LM-only model of each seed, which the self scorer asks

        def one(name: str, seed: int) -> dict:
            row, mine, overlap = ROWS[name], clips, {}
            if "found" in row:
                scorer = scorers.motion_scorer
                if row["found"] == "self":
                    if seed not in plain:
                        plain[seed] = train(configure(ROWS[PLAIN], seed, args), clips, model_config, text)[0]
                    scorer = self_scorer(plain[seed], text)
                mine, hits = found_by(scorer, clips, Sampling(config.data.frames))
                overlap = {"overlap": hits / len(clips)}
            model, costs = train(configure(row, seed, args), mine, model_config, text)
            if name == PLAIN:
                plain[seed] = model
            result = evaluate_model(model, text, asked, "events", config.data, controls=CONTROLS)
            return accuracies(result) | costs | overlap

        log = args.out.with_suffix(".jsonl") if args.out else None
        results = repeat(args.rows, args.seeds, f"{config} {ROWS}", one, log)

    lines = [
        "# SFT ablation on event clips",
        "",
        environment("jax", "flax", "optax"),
        f"{args.steps} steps of {config.batch} clips, {args.clips} to train on, {len(asked)} held-out, "
        f"{len(args.seeds)} seeds; share of clips whose event is named, chance {CHANCE:.3f}",
        *(
            f"{name}: they overlap the true ones in {statistics.mean(overlaps):.0%} of clips."
            for name, runs in results.items()
            if (overlaps := [run["overlap"] for run in runs if "overlap" in run])
        ),
        "",
        *table(results, COLUMNS, PLAIN),
    ]
    print("\n".join(lines))
    keep(lines, args.out)


if __name__ == "__main__":
    main()
