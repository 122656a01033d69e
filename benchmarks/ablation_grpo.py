"""Does a relative reward help? The GRPO rows of docs/method.md, section 5, on the built-in event clips.

    python -m benchmarks.ablation_grpo --quick                      about 10 minutes on 2 cores
    python -m benchmarks.ablation_grpo --out FILE.md                about 40 minutes on 2 idle cores

Every row continues from the work directory of one SFT run (``--init``) with the recipe of configs/grpo.py,
for fewer steps, on the same clips in the same order; only what its line names differs (the one that
oversamples reads twice as many). The recipe's rewards are 0 or 1, on which tgrpo cancels (``active`` 0). A
start that has not converged leaves room for a gain:

    python -m vpjax.train --config sft --config.steps=400 --workdir runs/sft400

With a shortcut, from the contrast in the batch, which reads the colour:

    python -m vpjax.train --config sft_shortcut --config.contrast.negatives="('batch',)" \\
        --config.events.eventless=0.1 --workdir runs/shortcut
    python -m benchmarks.ablation_grpo --init runs/shortcut --prior 0.9 --eventless 0.1 --batch 16 \\
        --steps 160 --heldout 768 --rows GRPO "+ need" "V~ absent" "V~ truth" --out FILE.md

Cells are means over seeds with a 95 % interval (Student's t over seeds; for one seed there is none). Rewards,
gap and active (the share of clips whose advantages the kind changes) are of the last fifth of the steps. The
last column is the paired difference to plain GRPO, over events of all lengths.
``--out`` also appends each finished run to FILE.jsonl: the same command continues where it was stopped, and
several commands with different ``--seeds`` can share the work.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

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
from vpjax.data.pipeline import Loader, make_batch_maker
from vpjax.data.text import Text
from vpjax.evaluation.benchmarks import read_benchmark
from vpjax.evaluation.run import Request, evaluate_model
from vpjax.models.sharding import make_mesh, put_batch
from vpjax.models.vlm import VLMConfig, abstract_model, rebuild
from vpjax.recipes import grpo as recipe
from vpjax.scoring.judge import ConfigJudge
from vpjax.training import grpo, run_config
from vpjax.training.relative import NEEDS
from vpjax.training.setup import initial_params, prepare_model, read_split, split_file
from vpjax.training.state import create_state
from vpjax.types import Clip, Prompts

START, PLAIN = "SFT, where all start", "GRPO"
OVERSAMPLED, PARTS, CISPO = "GRPO, oversample 2", "GRPO, 4 mini-batches", "GRPO, 4 mini-batches, cispo"
# Completions on V~ are trained too, towards what is true of V~, as in configs/grpo_shortcut.py.
TRUTH = {
    "grpo.degraded_rewards": {"keyword_absent": 1.0, "event": 1.0, "rouge_l": 1.0},
    "grpo.control_share": 0.25,
}
# Each row and the config fields by which it differs.
ROWS: dict[str, dict[str, Any]] = {
    START: {},
    PLAIN: {"grpo.relative.kind": "none"},
    "+ tgrpo": {"grpo.relative.kind": "tgrpo"},
    "+ gate": {"grpo.relative.kind": "gate"},
    "+ gate, random slots replaced": {"grpo.relative.kind": "gate", "data.replacement": "random"},
    "+ likelihood": {"grpo.relative.kind": "likelihood"},
    "+ token": {"grpo.relative.kind": "token"},
    "+ keyword_winrate": {"grpo.relative.kind": "keyword_winrate"},
    "+ need": {"grpo.relative.kind": "need"},
    "+ relation": {"grpo.relative.kind": "relation"},
    "V~ absent": {"grpo.relative.kind": "none", "grpo.degraded_rewards": {"keyword_absent": 1.0}},
    "V~ truth": {"grpo.relative.kind": "none"} | TRUTH,
    "V~ truth, need": {"grpo.relative.kind": "need"} | TRUTH,
    OVERSAMPLED: {"grpo.relative.kind": "none", "grpo.oversample": 2},
    PARTS: {"grpo.relative.kind": "none", "grpo.num_minibatches": 4},
    CISPO: {
        "grpo.relative.kind": "none",
        "grpo.num_minibatches": 4,
        "grpo.aggregation": "cispo",
        "grpo.eps_low": 1.0,
        "grpo.eps_high": 4.0,
    },
}
QUICK = dict(steps=20, seeds=[0], clips=2048, heldout=120)
REQUEST = Request("events", controls=("none", "key"))
COLUMNS = {
    "0.125 s": "accuracy/none/0.125",
    "0.25 s": "accuracy/none/0.25",
    "0.5 s": "accuracy/none/0.5",
    "all": "accuracy/none",
    "against": "against/none",
    "shortcut, against": "shortcut/none",
    "shortcut on V~": "shortcut/key",
    "on V~": "accuracy/key",
    "invented on V~": "invented/key",
    "false alarms": "false alarms/none",
    "reward": "reward",
    "reward on V~": "reward_degraded",
    "own reward of V~": "degraded/reward",
    "groups without spread": "frac_reward_zero_std",
    "groups on V~ with spread": "degraded/spread",
    "share of the advantages on V~": "degraded/mass",
    "active": "rel/active",
}


def configure(row: Mapping[str, Any], seed: int, arguments: argparse.Namespace) -> ConfigDict:
    config = recipe.get_config()
    config.seed, config.steps, config.batch = seed, arguments.steps, arguments.batch
    config.init_from = str(arguments.init)
    set_clips(config, arguments)
    config.update_from_flattened_dict(row)
    if config.grpo.degraded_rewards:
        config.grpo.degraded = config.grpo.groups
    elif "rollouts" not in NEEDS[config.grpo.relative.kind]:
        config.grpo.degraded = 0  # a kind that does not need them would not pay for them
    return config


def run(
    config: ConfigDict,
    steps: int,
    clips: Sequence[Clip],
    heldout: Sequence[Clip],
    model_config: VLMConfig,
    text: Text,
) -> Record:
    """Train for ``steps`` and evaluate: ``scores_of``, metrics of the last fifth of the steps, and seconds
    per step."""
    mesh, model = make_mesh(config.mesh), abstract_model(model_config)
    maker, index = make_batch_maker(
        clips,
        text,
        model_config,
        config.data,
        packed=False,
        seed=config.seed,
        batch_size=run_config.rows_per_step(config),
    )
    loader = Loader(maker, index)
    params = initial_params(config, model_config, mesh)
    state, optimizer, shardings = create_state(params, config, mesh)
    judge = ConfigJudge(config, text, clips)
    step = grpo.make_step(model, config, optimizer, shardings, judge=judge, eos=text.stops)
    times = []
    history = []
    for _ in range(steps):
        prompts = next(loader)
        assert isinstance(prompts, Prompts)  # not packed
        state, metrics, _ = step(state, put_batch(judge.with_references(prompts), mesh))
        history.append({name: float(x) for name, x in metrics.items()})
        times.append(time.perf_counter())
    loader.close()
    trained = rebuild(model, state.params | state.frozen)
    results = evaluate_model(trained, text, heldout, REQUEST, config.data)
    record: Record = scores_of(results) | {"right": right_answers(results)}
    if history:
        last = history[-max(1, len(history) // 5) :]
        for name in history[0]:
            record[name] = statistics.mean(metrics[name] for metrics in last)
        record["seconds per step"] = median_gap(times)
        record["skipped"] = float(state.skipped)
    return record


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--init", type=Path, default=Path("runs/sft"), help="work directory of an SFT run")
    parser.add_argument("--batch", type=int, default=32, help="clips a step")


def main() -> None:
    arguments = ablation_arguments(__doc__, list(ROWS), steps=40, quick=QUICK, add_more=add_flags)
    config = configure({}, 0, arguments)
    run_config.check(config)
    clips = read_split(config, "train", "events")
    heldout, _ = read_benchmark("events", split_file(config, "heldout", "events"))
    with tempfile.TemporaryDirectory() as folder:
        # Seeds share programs: compile each once.
        jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
        model_config, text = prepare_model(config, Path(folder), clips)

        def run_row(name: str, seed: int) -> Record:
            steps = 0 if name == START else arguments.steps
            return run(configure(ROWS[name], seed, arguments), steps, clips, heldout, model_config, text)

        log = arguments.out.with_suffix(".jsonl") if arguments.out else None

        def setting_of(name: str) -> str:
            return f"{setting(configure(ROWS[name], 0, arguments))} {arguments.init}"

        results = repeat(arguments.rows, arguments.seeds, setting_of, run_row, log)

    compared = ("all", "against") if arguments.prior else ("all",)
    lines = [
        "# GRPO ablation on event clips",
        "",
        environment("jax", "flax", "optax"),
        f"prior {arguments.prior:g}; {arguments.steps} steps of {config.batch} clips from "
        f"{arguments.init.name}; {config.grpo.groups} completions on V and, where the kind needs them, "
        f"{recipe.get_config().grpo.degraded} on V~; rewards {dict(config.grpo.rewards)}; "
        f"{arguments.clips} clips to train on, {len(heldout)} held-out; {len(arguments.seeds)} seeds; share "
        f"of clips whose event is named, chance {CHANCE:.3f}",
        "",
        *table(results, COLUMNS, PLAIN, compared=compared),
    ]
    publish(lines, arguments.out)


if __name__ == "__main__":
    cli.run(main)
