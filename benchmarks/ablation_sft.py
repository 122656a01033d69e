"""Does the degraded video help? The rows of SFT on built-in event clips, with a shortcut or without.

    python -m benchmarks.ablation_sft --prior 0.9 --rows margin batch "margin, random slots" --out FILE.md
    python -m benchmarks.ablation_sft --quick                      about 15 minutes on 2 cores (estimated)

Every row trains the model of configs/sft.py from the same initial weights, in the same data order, for the
same number of steps; only what ``ROWS`` names differs. ``--prior``: share of the training clips whose colour
follows from their event; it is 0 in the held-out clips. Cells are means over seeds with a 95 % interval
(Student's t over seeds; for one seed there is none). The last column is the difference to ``batch``, paired
by seed. ``--out`` also appends each finished run to FILE.jsonl: the same command continues where it was
stopped, and several commands with different ``--seeds`` or ``--rows`` can share the work.

The rule of decision, written before the first run of the table. ``margin`` becomes the default of the recipes
if, at 400 steps and over 5 seeds,
  * at prior 0.9 it names the event in at least .10 more of the held-out clips than ``batch``, with the lower
    end of the interval above 0;
  * neither placebo (``margin, random slots``; ``weight``) is above ``batch`` by an interval clear of 0;
  * at prior 0 it is no more than .02 below ``batch`` on average.
``truth`` joins it if invented events, on V~ and on clips without an event, become at most .10 with a recall
within .01 of ``margin``'s at the plateau.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from benchmarks.repeats import (
    CHANCE,
    Record,
    ablation_arguments,
    median_gap,
    repeat,
    right_answers,
    scores_of,
    set_clips,
    setting,
    table,
)
from benchmarks.timing import environment, publish
from vpjax import cli
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
from vpjax.training.optimizer import HEADS_PREFIX
from vpjax.training.setup import initial_params, prepare_model, read_split, split_file
from vpjax.training.state import create_state
from vpjax.types import Clip

BASE = "batch"
LONGER = "batch, as long as margin"  # the row that has more steps than the others
PLAIN = "LM only"
IN_BATCH = {"contrast.negatives": ("batch",)}
MARGIN = IN_BATCH | {"contrast.answer": 0.2}
# Each row and the config fields by which it differs from a contrast with all negatives.
ROWS: dict[str, dict[str, Any]] = {
    PLAIN: {"contrast.weight": 0.0},
    BASE: IN_BATCH,
    "V~": {},
    "V~, random slots": {"data.replacement": "random"},
    "random slots, pooled too": {"data.replacement": "random", "data.pool": "random"},
    "margin": MARGIN,
    "margin, random slots": MARGIN | {"data.replacement": "random"},
    "weight": MARGIN | {"contrast.answer_kind": "weight"},
    "margin, whole answer": MARGIN | {"contrast.answer_kind": "sequence"},
    "margin, V~": {"contrast.answer": 0.2},
    "LM + margin": {"contrast.weight": 0.0, "contrast.answer": 0.2},
    "truth": IN_BATCH | {"contrast.truth": 0.1, "contrast.truth_share": 1.0},
    "margin + truth": MARGIN | {"contrast.truth": 0.1, "contrast.truth_share": 0.25},
    "stronger margin + less truth": MARGIN
    | {"contrast.answer": 0.4, "contrast.truth": 0.05, "contrast.truth_share": 0.25},
    "margin, motion": MARGIN,
    "margin, self": MARGIN,
    LONGER: IN_BATCH,
}
# What the rows are, for the table.
MEANING = {
    PLAIN: "the language-model loss alone",
    BASE: "and a contrast with the other clips' keywords",
    "V~": "and V~ and other moments as negatives of the contrast",
    "V~, random slots": "the same, random slots replaced",
    "random slots, pooled too": "the same, random slots replaced and pooled",
    "margin": "batch, and the keyword must be likelier given V than given V~",
    "margin, random slots": "placebo: the same, random slots replaced",
    "weight": "placebo: batch, and the keyword's tokens weigh more, without V~",
    "margin, whole answer": "batch, and the answer must be likelier given V than given V~ (as DPO)",
    "margin, V~": "margin, and V~ and other moments as negatives of the contrast",
    "LM + margin": "margin without a contrast",
    "truth": "batch, and V~ is trained on its own truth",
    "margin + truth": "margin, and a quarter of the V~s is trained on its own truth",
    "stronger margin + less truth": "the same, the margin twice as strong, the truth half",
    "margin, motion": "margin, key frames found by motion",
    "margin, self": "margin, key frames found by the LM-only model of the same seed",
    LONGER: "batch, for as many seconds as margin takes",
}
# Rows whose key frames are found instead of known.
FOUND_BY = {"margin, motion": "motion", "margin, self": "self"}
# How many times as long a step of margin takes as one of batch, by --size (2 cores, in turns): LONGER has as
# many times the steps.
COST_OF_MARGIN = {"1.6M": 1.52, "6.5M": 1.83}
# The models that --size names, by the fields in which they differ from that of configs/sft.py.
SIZES: dict[str, dict[str, int]] = {
    "1.6M": {},
    "6.5M": {
        "model.text_config.hidden_size": 256,
        "model.text_config.intermediate_size": 768,
        "model.text_config.num_hidden_layers": 7,
        "model.text_config.num_attention_heads": 8,
        "model.text_config.num_key_value_heads": 4,
        "model.vision_config.out_hidden_size": 256,
    },
}
QUICK = dict(steps=160, seeds=[0], clips=2048, heldout=120, rows=[PLAIN, BASE, "margin"])
LEARNING_RATES = {"adamw": 1e-3, "muon": 2e-3}  # of configs/sft.py before it had Muon, and since
REQUEST = Request("events", controls=("none", "key"))
COLUMNS = {
    "all": "accuracy/none",
    "0.125 s": "accuracy/none/0.125",
    "0.25 s": "accuracy/none/0.25",
    "0.5 s": "accuracy/none/0.5",
    "against": "against/none",
    "shortcut, against": "shortcut/none",
    "shortcut on V~": "shortcut/key",
    "seen": "seen/none",
    "on V~": "accuracy/key",
    "invented on V~": "invented/key",
    "false alarms": "false alarms/none",
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


def configure(row: str, seed: int, arguments: argparse.Namespace) -> ConfigDict:
    config = recipe.get_config()
    config.optim.name, config.optim.lr = arguments.optimizer, LEARNING_RATES[arguments.optimizer]
    config.seed, config.steps = seed, arguments.steps
    if row == LONGER:
        config.steps = round(arguments.steps * COST_OF_MARGIN[arguments.size])
    set_clips(config, arguments)
    config.update_from_flattened_dict(SIZES[arguments.size])
    config.update_from_flattened_dict(ROWS[row])
    return config


def train(
    config: ConfigDict, clips: Sequence[Clip], model_config: VLMConfig, text: Text
) -> tuple[VideoLM, dict[str, float]]:
    """The trained model, the seconds per step and how many steps were skipped."""
    mesh = make_mesh(config.mesh)
    maker, index = make_batch_maker(
        clips,
        text,
        model_config,
        config.data,
        packed=True,
        seed=config.seed,
        batch_size=config.batch,
        answers=sft.degraded_answers(config),
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
    def add_flags(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--optimizer", choices=list(LEARNING_RATES), default="adamw", help="adamw: of most tables so far"
        )
        parser.add_argument("--size", choices=list(SIZES), default="1.6M", help="parameters of the model")

    arguments = ablation_arguments(__doc__, list(ROWS), steps=400, quick=QUICK, add_more=add_flags)
    config = configure(BASE, 0, arguments)
    clips = read_split(config, "train", "events")
    heldout, _ = read_benchmark("events", split_file(config, "heldout", "events"))
    with tempfile.TemporaryDirectory() as folder:
        # Rows and seeds share programs: compile each once.
        jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
        model_config, text = prepare_model(config, Path(folder), clips)
        plain_models: dict[int, VideoLM] = {}  # the LM-only model of each seed

        def plain_model(seed: int) -> VideoLM:
            if seed not in plain_models:
                plain_config = configure(PLAIN, seed, arguments)
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
            model, costs = train(configure(name, seed, arguments), train_clips, model_config, text)
            if name == PLAIN:
                plain_models[seed] = model
            results = evaluate_model(model, text, heldout, REQUEST, config.data)
            return record | scores_of(results) | costs | {"right": right_answers(results)}

        log = arguments.out.with_suffix(".jsonl") if arguments.out else None

        def setting_of(name: str) -> str:
            return f"{setting(configure(name, 0, arguments))} {FOUND_BY.get(name)}"

        results = repeat(arguments.rows, arguments.seeds, setting_of, run, log)

    overlap_lines = []
    for name in results.keys() & FOUND_BY:
        share = statistics.mean(record["overlap"] for record in results[name])
        overlap_lines.append(f"{name}: the spans overlap the true ones for {share:.0%} of keywords.")
    lines = [
        f"# SFT ablation on event clips, prior {arguments.prior:g}",
        "",
        environment("jax", "flax", "optax"),
        f"{arguments.steps} steps of {config.batch} clips, {arguments.clips} to train on, {len(heldout)} "
        f"held-out, {len(arguments.seeds)} seeds; share of clips whose event is named, chance {CHANCE:.3f}",
        *sorted(overlap_lines),
        "",
        *table(results, COLUMNS, BASE, compared=("all", "against")),
        "",
        *(f"* {name}: {MEANING[name]}" for name in results),
    ]
    publish(lines, arguments.out)


if __name__ == "__main__":
    cli.run(main)
