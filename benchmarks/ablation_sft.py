"""Does the degraded video help? The SFT rows of docs/method.md, section 5, on the built-in event clips.

    python -m benchmarks.ablation_sft --quick                      about 10 minutes on 2 cores
    python -m benchmarks.ablation_sft --out FILE.md                about an hour
    python -m benchmarks.ablation_sft --steps 1500 --out FILE.md   at the plateau: hours (all estimated)

Every row trains the model of configs/sft.py from the same initial weights, in the same data order, for the
same number of steps; only what its line names differs. Cells are means over seeds with a 95 % interval
(Student's t over seeds; for one seed there is none). The last column is the paired difference to "LM only",
over events of all lengths.
``--out`` also appends each finished run to FILE.jsonl: the same command continues where it was stopped, and
several commands with different ``--seeds`` can share the work.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from benchmarks.repeats import (
    CHANCE,
    Record,
    ablation_arguments,
    accuracies,
    median_gap,
    repeat,
    table,
)
from benchmarks.timing import environment, publish
from vpjax.building import scorers
from vpjax.building.self_scorer import self_scorer
from vpjax.data.pipeline import Loader, make_batch_maker
from vpjax.data.sampling import Sampling
from vpjax.data.text import Text
from vpjax.data.video import read_frames
from vpjax.evaluation.benchmarks import read_benchmark
from vpjax.evaluation.run import Request, evaluate_model
from vpjax.models.sharding import make_mesh, put_batch
from vpjax.models.vlm import VideoLM, VLMConfig, abstract_model, rebuild
from vpjax.recipes import sft as recipe
from vpjax.training import sft
from vpjax.training.setup import initial_params, prepare_model, read_split, split_file
from vpjax.training.state import HEADS_PREFIX, create_state
from vpjax.types import Clip

PLAIN = "LM only"
# Each row and the config fields by which it differs.
ROWS: dict[str, dict[str, Any]] = {
    PLAIN: {"contrast.weight": 0.0},
    "+ contrast, in-batch negatives only": {"contrast.negatives": ("batch",)},
    "+ contrast with V~": {},
    "+ contrast, random slots replaced": {"data.replacement": "random"},
    "+ contrast, random slots replaced and pooled": {"data.replacement": "random", "data.pool": "random"},
    "+ contrast with V~, key frames found by motion": {},
    "+ contrast with V~, key frames found by self": {},
}
# Rows whose key frames are found instead of known. "self" uses the LM-only model of the same seed.
FOUND_BY = {
    "+ contrast with V~, key frames found by motion": "motion",
    "+ contrast with V~, key frames found by self": "self",
}
QUICK = dict(steps=160, seeds=[0], clips=2048, heldout=120)
REQUEST = Request("events", controls=("none", "key", "random", "shuffle", "single", "blind"))
COLUMNS = {
    "0.125 s": "event/none/0.125",
    "0.25 s": "event/none/0.25",
    "0.5 s": "event/none/0.5",
    "all": "event/none",
    "on V~": "event/key",
    "random replaced": "event/random",
    "shuffled": "event/shuffle",
    "single": "event/single",
    "no video": "event/blind",
}


def find_key_frames(
    scorer: scorers.Scorer, clips: Sequence[Clip], sampling: Sampling
) -> tuple[list[Clip], float]:
    """The clips with keyword spans that were found from the frames, and the share of keywords for which one
    of these overlaps a true one."""
    found = []
    overlaps = []
    for clip in tqdm(clips, "key frames", unit="clip"):
        video = read_frames(clip.video, sampling)
        keywords = []
        for keyword in clip.keywords:
            spans, _ = scorers.key_runs(scorer(video, clip, keyword), video.times)
            keywords.append(dataclasses.replace(keyword, spans=spans))
            overlaps.append(any(overlap(a, b) for a in spans for b in keyword.spans))
        found.append(dataclasses.replace(clip, keywords=tuple(keywords)))
    return found, statistics.mean(overlaps)


def overlap(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return first[0] < second[1] and second[0] < first[1]


def configure(row: Mapping[str, Any], seed: int, arguments: argparse.Namespace) -> ConfigDict:
    config = recipe.get_config()
    config.seed, config.steps = seed, arguments.steps
    config.events.train, config.events.heldout = arguments.clips, arguments.heldout
    config.update_from_flattened_dict(row)
    return config


def train(
    config: ConfigDict, clips: Sequence[Clip], model_config: VLMConfig, text: Text
) -> tuple[VideoLM, dict[str, float]]:
    """The trained model, the seconds per step and how many steps were skipped."""
    mesh = make_mesh(config.mesh)
    maker, index = make_batch_maker(
        clips, text, model_config, config.data, packed=True, seed=config.seed, batch_size=config.batch
    )
    loader = Loader(maker, index)
    params = initial_params(config, model_config, mesh)
    state, optimizer, shardings = create_state(params, config, mesh)
    step = sft.make_step(abstract_model(model_config), config, optimizer, shardings)
    times = []
    for _ in range(config.steps):
        state, metrics = step(state, put_batch(next(loader), mesh))
        jax.block_until_ready(metrics)
        times.append(time.perf_counter())
    loader.close()
    weights = state.params | state.frozen
    weights = {path: x for path, x in weights.items() if not path.startswith(HEADS_PREFIX)}
    costs = {"seconds per step": median_gap(times), "skipped": float(state.skipped)}
    return rebuild(abstract_model(model_config), weights), costs


def main() -> None:
    arguments = ablation_arguments(__doc__, list(ROWS), steps=240, quick=QUICK)
    config = configure({}, 0, arguments)
    clips = read_split(config, "train", "events")
    heldout, _ = read_benchmark("events", split_file(config, "heldout", "events"))
    with tempfile.TemporaryDirectory() as folder:
        # Rows and seeds share programs: compile each once.
        jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
        model_config, text = prepare_model(config, Path(folder), clips)
        plain_models: dict[int, VideoLM] = {}  # the LM-only model of each seed

        def plain_model(seed: int) -> VideoLM:
            if seed not in plain_models:
                plain_config = configure(ROWS[PLAIN], seed, arguments)
                plain_models[seed], _ = train(plain_config, clips, model_config, text)
            return plain_models[seed]

        def run(name: str, seed: int) -> Record:
            record: Record = {}
            train_clips = clips
            if name in FOUND_BY:
                scorer: scorers.Scorer = scorers.motion_scorer
                if FOUND_BY[name] == "self":
                    scorer = self_scorer(plain_model(seed), text)
                sampling = Sampling(config.data.frames, min_pixels=1, max_pixels=56 * 56)
                train_clips, record["overlap"] = find_key_frames(scorer, clips, sampling)
            model, costs = train(configure(ROWS[name], seed, arguments), train_clips, model_config, text)
            if name == PLAIN:
                plain_models[seed] = model
            results = evaluate_model(model, text, heldout, REQUEST, config.data)
            return record | accuracies(results) | costs

        log = arguments.out.with_suffix(".jsonl") if arguments.out else None
        results = repeat(arguments.rows, arguments.seeds, f"{config} {ROWS} {FOUND_BY}", run, log)

    overlap_lines = []
    for name in results.keys() & FOUND_BY:
        share = statistics.mean(record["overlap"] for record in results[name])
        overlap_lines.append(f"{name}: the spans overlap the true ones for {share:.0%} of keywords.")
    lines = [
        "# SFT ablation on event clips",
        "",
        environment("jax", "flax", "optax"),
        f"{arguments.steps} steps of {config.batch} clips, {arguments.clips} to train on, {len(heldout)} "
        f"held-out, {len(arguments.seeds)} seeds; share of clips whose event is named, chance {CHANCE:.3f}",
        *sorted(overlap_lines),
        "",
        *table(results, COLUMNS, PLAIN),
    ]
    publish(lines, arguments.out)


if __name__ == "__main__":
    main()
