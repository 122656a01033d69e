"""What damaged files, killed processes and broken surroundings do to vpjax, in one table:

    python -m benchmarks.faults --work DIR [--only videos,texts,kills,surroundings] [--videos N] [--texts N]
        [--kills N] [--seed S] [--out FILE]

The same command again goes on where it was stopped: each trial is a line of DIR/<campaign>.jsonl. A campaign
of 5,000 videos, 3,000 text files and 50 kills takes about an hour and a half on one core.

A trial is refused in one line (a UserError, exit code 2), read as if nothing were wrong, or told: it goes on,
and a line says what is missing. Defects are a loss that no line tells (lost), a traceback or a dead process
(crashed), and more than 20 s (hung).
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from benchmarks.faults import pool, tally
from benchmarks.timing import environment, publish
from vpjax import cli
from vpjax.types import UserError

CAMPAIGNS = ("videos", "texts", "kills", "surroundings")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of the campaign, outside of the checkout"
    )
    parser.add_argument("--only", default=",".join(CAMPAIGNS), help=f"some of {','.join(CAMPAIGNS)}")
    parser.add_argument("--videos", type=int, default=5000)
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file of the table")
    arguments = parser.parse_args()
    asked = cli.comma_list(arguments.only)
    if not asked or set(asked) - set(CAMPAIGNS):
        raise UserError(f"--only={arguments.only}: choose some of {', '.join(CAMPAIGNS)}")
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if "videos" in asked:
        from benchmarks.faults import videos

        videos.seeds(work)
        make = functools.partial(videos.attempt, seed=arguments.seed)
        pool.run(make, range(arguments.videos), log_of(work, "videos"), work, videos.MUTATIONS)
    if "texts" in asked:
        from benchmarks.faults import texts

        make = functools.partial(texts.attempt, seed=arguments.seed)
        pool.run(make, range(arguments.texts), log_of(work, "texts"), work, texts.MUTATIONS)
    if "kills" in asked:
        from benchmarks.faults import kills

        kills.run(arguments.kills, log_of(work, "kills"), work, arguments.seed)
    if "surroundings" in asked:
        from benchmarks.faults import surroundings

        surroundings.run(log_of(work, "surroundings"), work)
    logs = [(name, log_of(work, name).trials) for name in CAMPAIGNS]
    made = [(name, trials) for name, trials in logs if trials]
    bad = [line for _, trials in made for line in tally.defects(trials)]
    lines = [*tally.table(made), "", environment("jax", "av", "orbax-checkpoint"), "", *bad]
    publish(lines, arguments.out)


def log_of(work: Path, name: str) -> tally.Log:
    return tally.Log(work / f"{name}.jsonl")


if __name__ == "__main__":
    cli.run(main)
