"""Does a relative reward help? The GRPO rows of the method's evidence table, on the built-in event clips.

    python -m benchmarks.ablation_grpo --quick                      about 10 minutes on 2 cores
    python -m benchmarks.ablation_grpo --out FILE.md                about 40 minutes on quiet cores

Every row goes on from the work directory of one SFT run (``--init``) with the recipe of configs/grpo.py, for
fewer steps, on the same clips in the same order; only what its line says differs. The recipe's rewards are 0
or 1, on which tgrpo cancels (``active`` 0). A start that has not learned all it can leaves room:

    python -m vpjax.train --config configs/sft.py --config.steps=400 --workdir runs/sft400

Cells are means over seeds with a 95 % interval (Student's t over seeds; for one seed there is none). Rewards,
gap and active (the share of clips whose advantages the kind changes) are of the last fifth of the steps. The
last column is the paired difference to plain GRPO, over events of all lengths.
``--out`` also keeps each finished run in FILE.jsonl: the same command goes on where it was stopped, and
several commands with other ``--seeds`` can share the work.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from benchmarks.repeats import CHANCE, accuracies, repeat, table
from benchmarks.timing import environment, keep
from vpjax.data.pipeline import make_loader
from vpjax.data.text import Text
from vpjax.evaluation.benchmarks import read_benchmark
from vpjax.evaluation.run import evaluate_model
from vpjax.models.sharding import make_mesh, put_batch
from vpjax.models.vlm import VLMConfig, abstract_model, rebuild
from vpjax.recipes import grpo as recipe
from vpjax.scoring.judge import Judge
from vpjax.training import grpo, run_config
from vpjax.training.relative import NEEDS
from vpjax.training.setup import initial_params, prepare_model, read_split, split_file
from vpjax.training.state import create_state
from vpjax.types import Clip

START, PLAIN = "SFT, where all start", "GRPO"
ROWS = {
    START: {},
    PLAIN: {"grpo.relative.kind": "none"},
    "+ tgrpo": {"grpo.relative.kind": "tgrpo"},
    "+ gate": {"grpo.relative.kind": "gate"},
    "+ gate, random slots replaced": {"grpo.relative.kind": "gate", "data.replacement": "random"},
    "+ likelihood": {"grpo.relative.kind": "likelihood"},
    "+ token": {"grpo.relative.kind": "token"},
    "+ keyword_winrate": {"grpo.relative.kind": "keyword_winrate"},
}
QUICK = dict(steps=20, seeds=[0], clips=2048, heldout=120)
CONTROLS = ("none", "key")
COLUMNS = {
    "1 frame": "event/none/1",
    "2": "event/none/2",
    "4": "event/none/4",
    "all": "event/none",
    "on V~": "event/key",
    "reward": "reward",
    "reward on V~": "reward_degraded",
    "active": "rel/active",
}


def configure(row: dict, seed: int, args: argparse.Namespace) -> ConfigDict:
    config = recipe.get_config()
    config.seed, config.steps, config.batch, config.init_from = seed, args.steps, args.batch, str(args.init)
    config.events.train, config.events.heldout = args.clips, args.heldout
    config.update_from_flattened_dict(row)
    if "rollouts" not in NEEDS[config.grpo.relative.kind]:
        config.grpo.degraded = 0  # as it would be run: what a kind does not need is not paid for
    return config


def run(
    config: ConfigDict, steps: int, clips: list[Clip], asked: list[Clip], model_config: VLMConfig, text: Text
) -> dict:
    """Train for ``steps`` and evaluate; ``accuracies`` and metrics of the steps, and seconds per step."""
    mesh, model = make_mesh(config.mesh), abstract_model(model_config)
    loader = make_loader(clips, text, model_config, config.data, seed=config.seed, batch_size=config.batch)
    state, optimizer, where = create_state(initial_params(config, model_config, mesh), config, mesh)
    judge = Judge(config, text, clips)
    step = grpo.make_step(model, config, optimizer, where, judge=judge, eos=text.stops)
    marks, told = [], []
    for _ in range(steps):
        state, metrics, _ = step(state, put_batch(judge.with_references(next(loader)), mesh))
        told.append({name: float(x) for name, x in metrics.items()})
        marks.append(time.perf_counter())
    loader.close()
    trained = rebuild(model, state.params | state.frozen)
    record = accuracies(evaluate_model(trained, text, asked, "events", config.data, controls=CONTROLS))
    if told:
        late = told[-max(1, len(told) // 5) :]
        record |= {name: statistics.mean(one[name] for one in late) for name in told[0]}
        gaps = [after - before for before, after in zip(marks, marks[1:], strict=False)]
        record |= {"seconds per step": statistics.median(gaps), "skipped": float(state.skipped)}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=", ".join(f"{k}={v}" for k, v in QUICK.items()))
    parser.add_argument(
        "--init", type=Path, default=Path("runs/sft"), help="the work directory of an SFT run"
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32, help="clips a step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at most 5")
    parser.add_argument("--clips", type=int, default=4096, help="to train on")
    parser.add_argument("--heldout", type=int, default=240, help="to evaluate on")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--out", type=Path, help="write the table to this file, and each run to FILE.jsonl")
    args = parser.parse_args()
    if args.quick:
        vars(args).update(QUICK)

    config = configure({}, 0, args)
    run_config.check(config)
    clips = read_split(config, "train", "events")
    asked, _ = read_benchmark("events", split_file(config, "heldout", "events"))
    with tempfile.TemporaryDirectory() as folder:
        # Seeds share programs: compile each once.
        jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
        model_config, text = prepare_model(config, Path(folder), clips)

        def one(name: str, seed: int) -> dict:
            config = configure(ROWS[name], seed, args)
            return run(config, 0 if name == START else args.steps, clips, asked, model_config, text)

        log = args.out.with_suffix(".jsonl") if args.out else None
        results = repeat(args.rows, args.seeds, f"{config} {ROWS}", one, log)

    lines = [
        "# GRPO ablation on event clips",
        "",
        environment("jax", "flax", "optax"),
        f"{args.steps} steps of {config.batch} clips from {args.init.name}; {config.grpo.groups} completions "
        f"on V and, where the kind needs them, {recipe.get_config().grpo.degraded} on V~; rewards "
        f"{dict(config.grpo.rewards)}; "
        f"{args.clips} clips to train on, {len(asked)} held-out; {len(args.seeds)} seeds; share of clips "
        f"whose event is named, chance {CHANCE:.3f}",
        "",
        *table(results, COLUMNS, PLAIN),
    ]
    print("\n".join(lines))
    keep(lines, args.out)


if __name__ == "__main__":
    main()
