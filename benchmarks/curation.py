"""How well the filters of a curation tell what they are for, on a pool whose truth is known.

    python -m benchmarks.curation --judge RUN [--rows 40] [--out FILE.md]
    python -m benchmarks.curation --make_judge RUN [--init_from RUN] [--steps 1000]

The pool is that of ``curation_pool``. Precision of a filter: of the rows that it drops in the funnel, the
share that is no good row. Recall: of the rows of its own kinds that come to it (of copies, of the pairs), the
share that it drops. A copy is a good row, but for the step that drops copies; one of two may stay.
``--make_judge`` trains the model by whose likelihoods captions are judged, on other clips of the same kind.
Some of their questions tell the event, so that it knows which captions need no video.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.curation_pool import SPEC, in_capitals, make_pool, with_series
from benchmarks.timing import environment, publish
from vpjax import cli
from vpjax.building.examine import Options
from vpjax.curate import curate
from vpjax.curation.recipe import Recipe, parse_recipe
from vpjax.curation.store import FATES
from vpjax.data.clips import read_clips, write_clips
from vpjax.engines import worker_processes
from vpjax.events.clips import make_event_clips
from vpjax.recipes import sft
from vpjax.recipes.data import vp80k
from vpjax.train import train
from vpjax.types import Clip

# The kinds of rows that each step is there for.
TARGETS = {
    "readable": {"unreadable"},
    "english": {"french"},
    "events": {"no event"},
    "benchmark": {"benchmark"},
    "lasting": {"goes on"},
    "event_seconds": {"lasting change"},
    "caption_copy": {"caption copy"},
    "video usable": {"broken file"},
    "peak": {"misplaced"},
    "needs_video": {"prior", "wrong caption"},
    "needs_key": {"lasting onset"},
    "picture_copy": {"picture copy"},
}
GOOD = {"good", "caption copy", "picture copy"}
JUDGED = 12288  # clips on which the judge is trained
CAPITALS_SHARE = 0.1  # of them are told in capitals, which a pretrained model would know
SERIES_SHARE = 0.1  # of their questions tell the event
TEXT_SHARE = 0.5  # of the clips are asked without their video too: what texts alone tell
TEXT_SERIES_SHARE = 0.5  # of these questions tell the event


def pool_recipe() -> Recipe:
    """The shipped recipe's filters, with lengths that suit clips of 2 s, and no caps."""
    config = vp80k.get_config()
    config.total = 10**6
    config.oversample = 1.0
    config.sources = (
        dict(name="pool", files=("rows.jsonl",), share=1.0, url="-", licence="-", format="clips"),
    )
    config.benchmarks = (dict(name="clips", file="asked.jsonl"),)
    limits = {"event_seconds": 1.0}
    config.filters = tuple(
        dict(x) | ({"most": limits[x["measure"]]} if x["measure"] in limits else {}) for x in config.filters
    )
    config.caps = dict(action=1.0, length=1.0, edges=(1.0,), video=10)
    return parse_recipe(config)


def fates(file: Path) -> list[tuple[str, str, float | None]]:
    """(kind, fate, value) of each row of a curation."""
    rows = sqlite3.connect(file).execute(
        f"SELECT clip, fate, fates.value FROM ({FATES}) AS fates JOIN rows USING (id)"
    )
    return [
        (json.loads(clip)["extra"]["truth"] if clip else "unreadable", fate, value)
        for clip, fate, value in rows
    ]


def table(found: list[tuple[str, str, float | None]], recipe: Recipe) -> list[str]:
    """The precision and the recall of each step, in their order, and of the whole."""
    order = [name for name in ("readable", *(x.measure for x in recipe.filters_at("row")))]
    order += [x.measure for x in recipe.filters_at("copies")]
    order += ["video usable", *(x.measure for x in recipe.filters_at("video"))]
    lines = [
        "| step | drops | of its kinds | precision | recall | others that it drops |",
        "|---|---|---|---|---|---|",
    ]
    left = list(found)
    for name in order:
        dropped = [kind for kind, fate, _ in left if fate == name]
        kinds = TARGETS.get(name, set())
        hits = sum(kind in kinds for kind in dropped)
        bad = sum(kind in kinds or kind not in GOOD for kind in dropped)
        came = sum(kind in kinds for kind, _, _ in left)
        if name.endswith("_copy"):  # one of two copies is to go
            came //= 2
        more = Counter(kind for kind in dropped if kind not in kinds)
        cells = [name, str(len(dropped)), f"{', '.join(sorted(kinds)) or '-'} ({came})"]
        cells.append(f"{bad / len(dropped):.3f}" if dropped else "")
        cells.append(f"{hits / came:.3f}" if came else "")
        cells.append(", ".join(f"{kind} {count}" for kind, count in more.most_common()))
        lines.append("| " + " | ".join(cells) + " |")
        left = [row for row in left if row[1] != name]
    good = Counter(fate == "" for kind, fate, _ in found if kind == "good")
    others = Counter(fate == "" for kind, fate, _ in found if kind not in GOOD)
    precision, recall = good[True] / max(1, good[True] + others[True]), good[True] / good.total()
    lines += [
        "",
        f"Chosen: {good[True]} of {good.total()} good rows and {others[True]} of {others.total()} bad ones, "
        f"precision {precision:.3f}, recall {recall:.3f}.",
    ]
    return lines


def judge_clips(clips: Iterable[Clip]) -> list[Clip]:
    """What a judge is trained on: event clips with their videos, and some of them once more without."""
    rng, found = random.Random(0), list[Clip]()  # not by number, from which the kind of event follows
    for clip in clips:
        told = in_capitals(clip) if rng.random() < CAPITALS_SHARE else clip
        found.append(with_series(told) if rng.random() < SERIES_SHARE else told)
        if rng.random() < TEXT_SHARE:
            asked = with_series(told) if rng.random() < TEXT_SERIES_SHARE else told
            found.append(dataclasses.replace(asked, id=f"{clip.id}-text", video="", keywords=(), spans=()))
    return found


def make_judge(run: Path, init_from: str, steps: int) -> None:
    """Train a judge on clips of another seed."""
    folder = run.parent / f"{run.name}-clips"
    file = make_event_clips(dataclasses.replace(SPEC, seed=202), folder, {"train": JUDGED})["train"]
    write_clips(folder / "judge.jsonl", judge_clips(read_clips(file)))
    config = sft.get_config()
    config.steps, config.init_from = steps, init_from
    config.model.text_config.vocab_size = 768  # room for words in capitals
    if init_from:
        config.model = {}
    # On V~ no event may be likely, or its clips seem to need no key frames.
    config.contrast.answer, config.contrast.truth, config.contrast.truth_share = 0.2, 0.2, 0.5
    config.data.train, config.data.heldout = str(folder / "judge.jsonl"), ""
    train(config, run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--judge", default="", help="work directory of a judge; without it, no likelihoods")
    parser.add_argument("--make_judge", type=Path)
    parser.add_argument("--init_from", default="", help="of the judge; default: from scratch")
    parser.add_argument("--steps", type=int, default=1000, help="of the judge's training")
    parser.add_argument("--rows", type=int, default=40, help="of each kind")
    parser.add_argument("--folder", type=Path, help="keep the pool and its curation here")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.make_judge:
        make_judge(arguments.make_judge, arguments.init_from, arguments.steps)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        root, recipe = make_pool(folder / "root", arguments.rows), pool_recipe()
        start = time.perf_counter()
        options = Options(model=arguments.judge)
        with worker_processes(1) as pool:
            curate(recipe, str(root), str(folder / "out"), pool=pool, workers=1, options=options)
        seconds = time.perf_counter() - start
        found = fates(folder / "out/curation.sqlite")
    lines = [
        "# Filters of a curation on a pool whose truth is known",
        "",
        environment("jax", "numpy", "spacy"),
        f"{len(found)} rows, {arguments.rows} of each kind; {seconds:.0f} s in one process",
        "",
        *table(found, recipe),
    ]
    publish(lines, arguments.out)


if __name__ == "__main__":
    cli.run(main)
