"""A curation of very many rows: rows per second, and whether memory grows with their number.

    python -m benchmarks.curation_scale [--rows 1000000] [--workers 2] [--out FILE]

The rows are made up: JSON lines of the form of ActivityNet Captions, with captions of a large grammar, a
third of them without an event, a tenth of them copies. Only annotations are read (--dry_run), in ten files:
each command reads one more, and draws. Memory is the resident set of all processes, as the system counts it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import environment, publish
from vpjax import cli
from vpjax.curate import curate
from vpjax.curation.recipe import parse_recipe
from vpjax.engines import worker_processes
from vpjax.recipes.data import vp80k

WHO = """a man;a woman;the boy;two girls;an old dog;the player in red;a person;someone;the child;a cook"""
VERBS = """
opens drops throws kicks breaks catches lifts pours cuts folds washes paints rides plays cleans holds watches
carries turns pushes pulls closes picks places hits"""
THINGS = """
door cup ball box lamp chair table book bottle knife bike guitar window car phone towel shirt plate bag rope
board wheel drum mirror"""
WHERE = """in the kitchen;on the floor;near the window;at the beach;in front of a crowd;beside the car;
under a tree;on the stage;in a small room;next to the wall"""
SCENES = """We see {} {}.;There is a {} {}.;{} stands {}.;The words are shown with {} {}."""
SECONDS = 0.5  # between two looks at the memory


def one_of(phrases: str, rng: random.Random) -> str:
    return rng.choice(phrases.split(";")).strip()


def caption(rng: random.Random) -> str:
    who, where = rng.choice(WHO.split(";")), one_of(WHERE, rng)
    if rng.random() < 1 / 3:
        return rng.choice(SCENES.split(";")).format(who, where)
    told = f"{who} {rng.choice(VERBS.split())} the {rng.choice(THINGS.split())} {where}"
    if rng.random() < 0.5:
        told += f" and {rng.choice(VERBS.split())} the {rng.choice(THINGS.split())} {one_of(WHERE, rng)}"
    return f"{told[0].upper()}{told[1:]}."


def lines(count: int) -> Iterator[str]:
    rng = random.Random(0)
    before = ""
    for number in range(count):
        start = round(rng.uniform(0, 100), 2)
        length = round(rng.lognormvariate(1.5, 1.0), 2)
        if rng.random() >= 0.1 or not before:
            before = caption(rng)
        row = dict(video=f"v{number // 3:07d}", timestamps=[[start, start + length]], sentences=[before])
        yield json.dumps(row) + "\n"


class Memory:
    """The highest resident sets, in MB, of this process and of its children, since the last look."""

    def __init__(self) -> None:
        self.highest, self.done = [0.0, 0.0], False
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.done:
            here = os.getpid()
            sizes = [_resident(here), sum(_resident(int(x)) for x in _children(here))]
            self.highest = [max(pair) for pair in zip(self.highest, sizes, strict=True)]
            time.sleep(SECONDS)

    def take(self) -> list[float]:
        taken, self.highest = self.highest, [0.0, 0.0]
        return taken


def _resident(process: int) -> float:
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the curation here")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config = vp80k.get_config()
    source = dict(name="made-up", format="captions", share=1.0, url="-", licence="-")
    parts = [f"{number}.jsonl" for number in range(10)]
    config.sources, config.benchmarks = (source | dict(files=tuple(parts)),), ()
    table = ["| rows | s | rows/s | this process, MB | its workers, MB |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        home = folder / "root/made-up"
        home.mkdir(parents=True, exist_ok=True)
        made = lines(arguments.rows)
        for part in parts:
            with (home / part).open("w") as file:
                file.writelines(next(made) for _ in range(arguments.rows // len(parts)))
        memory, before = Memory(), time.perf_counter()
        with worker_processes(arguments.workers) as pool:
            for number, _ in enumerate(parts, 1):  # each command reads one more file, and draws
                some = source | dict(files=tuple(parts[:number]))
                config.sources = (some,)
                start = time.perf_counter()
                curate(
                    parse_recipe(config),
                    str(folder / "root"),
                    str(folder / "out"),
                    pool=pool,
                    workers=arguments.workers,
                    dry_run=True,
                )
                seconds = time.perf_counter() - start
                here, workers = memory.take()
                rows = arguments.rows // len(parts)
                cells = (f"{number * rows:,}", f"{seconds:.0f}", f"{rows / seconds:.0f}", f"{here:.0f}")
                table.append(f"| {' | '.join(cells)} | {workers:.0f} |")
        total = time.perf_counter() - before
        size = (folder / "out/curation.sqlite").stat().st_size / 2**20
    publish(
        [
            "# A curation of many rows",
            "",
            environment("numpy", "spacy"),
            f"{arguments.rows:,} rows, {total:.0f} s, {arguments.workers} processes; {size:.0f} MB on disk",
            "",
            *table,
        ],
        arguments.out,
    )


if __name__ == "__main__":
    cli.run(main)
