"""Does choosing clips pay? SFT on the clips that a curation chooses, against as many random ones of its pool.

    python -m benchmarks.curation_train --judge RUN --folder DIR --out FILE.md
    python -m benchmarks.curation_train --judge RUN --folder DIR --quick

The pool is that of ``curation_pool``. Its videos are examined once, with all measures and no limits; a row of
the table then drops what its filters do not keep, and takes the first of the rest in the order of the draw:
as many as the filters of ``chosen`` keep, at most ``--clips``. Every row trains the model of configs/sft.py
from the same initial weights for the same number of steps, a clip in each row of a batch, and is asked about
the same held-out clips. ``random``: no filter at all, of the clips whose video can be read. ``without X``:
all filters but X. The last columns are differences to ``random``, paired by seed and by clip. The same
command again continues (FILE.jsonl).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from benchmarks.ablation_sft import REQUEST, train
from benchmarks.curation import GOOD, pool_recipe
from benchmarks.curation_pool import SPEC, make_pool
from benchmarks.repeats import Record, ablation_arguments, repeat, right_answers, scores_of, setting, table
from benchmarks.timing import environment, publish
from vpjax import cli
from vpjax.building.examine import Options
from vpjax.curate import curate
from vpjax.curation.measures import ROW, Candidate
from vpjax.curation.recipe import Filter, Recipe
from vpjax.curation.rows import Settings, load_tools
from vpjax.curation.store import FATES
from vpjax.data.clips import read_clips
from vpjax.engines import worker_processes
from vpjax.evaluation.benchmarks import read_benchmark
from vpjax.evaluation.run import evaluate_model
from vpjax.recipes import sft
from vpjax.training.setup import prepare_model, split_file
from vpjax.types import Clip

RANDOM, CHOSEN = "random", "chosen"
CLIPS = "out/clips/pool.jsonl"  # of the pool, in the folder that keeps it
FILTERS = ("english", "events", "lasting", "event_seconds", "peak", "needs_video", "needs_key")
QUICK = dict(steps=4, seeds=[0], clips=16, heldout=16, rows=[RANDOM, CHOSEN])
COLUMNS = {
    "all": "accuracy/none",
    "0.125 s": "accuracy/none/0.125",
    "0.25 s": "accuracy/none/0.25",
    "0.5 s": "accuracy/none/0.5",
    "on V~": "accuracy/key",
}


def without_limits(recipe: Recipe) -> Recipe:
    """The recipe whose filters measure and keep all rows. Copies are dropped."""
    kept = tuple(
        x if x.measure.endswith("_copy") else dataclasses.replace(x, least=-math.inf, most=math.inf)
        for x in recipe.filters
    )
    return dataclasses.replace(recipe, filters=kept)


def examined_pool(folder: Path, judge: str, count: int) -> tuple[list[Clip], Recipe]:
    """The clips of the pool whose videos can be read, with what was measured on them, in the order of the
    draw, and the recipe whose filters may drop them."""
    root, recipe = make_pool(folder / "root", count), pool_recipe()
    options = Options(model=judge)
    with worker_processes(1) as pool:
        curate(without_limits(recipe), str(root), str(folder / "out"), pool=pool, workers=1, options=options)
    clips = {clip.id: clip for clip in read_clips(folder / CLIPS)}
    recipe = dataclasses.replace(
        recipe, filters=tuple(x for x in recipe.filters if judge or not x.measure.startswith("needs"))
    )
    return [clips[id] for id in drawn(folder / "out/curation.sqlite") if id in clips], recipe


def drawn(file: Path) -> list[str]:
    """The ids of the rows of a curation, in the order of the draw."""
    query = f"""SELECT source, number FROM ({FATES}) AS fates JOIN rows USING (id)
        WHERE fate = '' ORDER BY draw, id"""
    return [f"{source}-{number}" for source, number in sqlite3.connect(file).execute(query)]


def kept(clips: Sequence[Clip], filters: Sequence[Filter], recipe: Recipe, root: str) -> list[Clip]:
    """The clips that all ``filters`` keep."""
    tools = load_tools(Settings(recipe, root, ""))

    def value(clip: Clip, x: Filter) -> float:
        if x.measure in ROW:
            return ROW[x.measure](Candidate(dataclasses.replace(clip, keywords=()), tools))
        measured = clip.extra["measured"].get(x.measure)
        return math.nan if measured is None else measured

    return [clip for clip in clips if all(x.keeps(value(clip, x)) for x in filters)]


def configure(seed: int, arguments: argparse.Namespace) -> ConfigDict:
    config = sft.get_config()
    config.seed, config.steps = seed, arguments.steps
    config.events.heldout, config.events.texture = arguments.heldout, SPEC.texture
    # A tokenizer of the pool's texts: none is so long that the rows of a batch have room for two clips.
    config.data.train = CLIPS
    config.model.text_config.vocab_size = 1024
    return config


def main() -> None:
    def add_more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--judge", default="", help="work directory of a judge, see benchmarks.curation")
        parser.add_argument("--pool", type=int, default=200, help="rows of each kind in the pool")
        parser.add_argument("--folder", type=Path, required=True, help="keeps the pool and its curation")

    rows = [RANDOM, CHOSEN, *(f"without {name}" for name in FILTERS)]
    arguments = ablation_arguments(__doc__, rows, steps=250, quick=QUICK, add_more=add_more)
    pool, recipe = examined_pool(arguments.folder, arguments.judge, arguments.pool)
    filters = {x.measure: x for x in recipe.filters if not x.measure.endswith("_copy")}
    root = str(arguments.folder / "root")

    def allowed(name: str) -> list[Clip]:
        used = [] if name == RANDOM else [x for x in filters.values() if name != f"without {x.measure}"]
        return kept(pool, used, recipe, root)

    count = min(arguments.clips, len(allowed(CHOSEN)))

    def clips_of(name: str) -> list[Clip]:
        return allowed(name)[:count]

    first = configure(0, arguments)
    heldout, _ = read_benchmark("events", split_file(first, "heldout", "events"))
    sizes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
        model_config, text = prepare_model(first, Path(folder), pool)

        def run(name: str, seed: int) -> Record:
            clips = clips_of(name)
            model, costs = train(configure(seed, arguments), clips, model_config, text)
            results = evaluate_model(model, text, heldout, REQUEST, first.data)
            return scores_of(results) | costs | {"right": right_answers(results), "clips": len(clips)}

        log = arguments.out.with_suffix(".jsonl") if arguments.out else None

        def setting_of(name: str) -> str:
            return f"{setting(first)} {count} of {arguments.pool} {name} {recipe.filters}"

        results = repeat(arguments.rows, arguments.seeds, setting_of, run, log)
    for name in results:
        clips = clips_of(name)
        good = sum(clip.extra.get("truth") in GOOD for clip in clips)
        sizes[name] = f"{len(clips)} clips, {good / max(1, len(clips)):.0%} of them good"
    publish(
        [
            "# Training on chosen clips against random ones",
            "",
            environment("jax", "flax", "optax"),
            f"{arguments.steps} steps of {first.batch} clips, {len(heldout)} held-out, "
            f"{len(arguments.seeds)} seeds; a pool of {len(pool)} clips",
            "",
            *table(results, COLUMNS, RANDOM),
            "",
            *(f"* {name}: {size}" for name, size in sizes.items()),
        ],
        arguments.out,
    )


if __name__ == "__main__":
    cli.run(main)
