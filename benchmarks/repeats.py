"""Ablations: runs of several rows at several seeds, logged as they finish, and their table."""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from scipy import stats

from vpjax import cli
from vpjax.events.clips import EVENTS
from vpjax.recipes import base
from vpjax.training.config_rules import by_dotted_name

Record = dict[str, Any]  # of a run: its row, its seed and its metrics
MAIN = "accuracy/none"  # the metric that is printed as runs finish
CHANCE = 1 / len(EVENTS)


def ablation_arguments(
    description: str | None,
    rows: Sequence[str],
    *,
    steps: int,
    quick: Mapping[str, Any],
    add_more: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> argparse.Namespace:
    """The flags of an ablation; ``--quick`` sets those in ``quick`` that are not given.
    steps: the default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    values = ", ".join(f"{name}={value}" for name, value in quick.items())
    parser.add_argument("--quick", action="store_true", help=values)
    parser.add_argument("--steps", type=cli.at_least(2), default=steps)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clips", type=int, default=4096, help="clips to train on")
    parser.add_argument("--heldout", type=int, default=240, help="clips to evaluate on")
    parser.add_argument("--prior", type=float, default=0.0, help="of the colour, in the training clips")
    parser.add_argument("--eventless", type=float, default=0.0, help="share of clips without an event")
    parser.add_argument("--rows", nargs="+", default=list(rows), choices=list(rows), metavar="ROW")
    parser.add_argument("--out", type=Path, help="write the table to this file, and each run to FILE.jsonl")
    add_more(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        parser.set_defaults(**quick)
        arguments = parser.parse_args()
    return arguments


def set_clips(config: ConfigDict, arguments: argparse.Namespace) -> None:
    """Let a config have the clips that the flags of an ablation name."""
    config.events.train, config.events.heldout = arguments.clips, arguments.heldout
    config.events.prior, config.events.eventless = arguments.prior, arguments.eventless
    config.events_heldout = dict(prior=0.0)


def setting(config: ConfigDict) -> str:
    """What tells a config from configs/base.py: a new field at its default changes no setting, so that a log
    of finished runs outlives it."""
    defaults = by_dotted_name(base.get_config().to_dict())
    values = by_dotted_name(config.to_dict())
    changed = {name: str(x) for name, x in values.items() if name not in defaults or x != defaults[name]}
    return str(sorted(changed.items()))


def repeat(
    rows: Sequence[str],
    seeds: Sequence[int],
    setting_of: Callable[[str], str],
    run: Callable[[str, int], Record],
    log: Path | None = None,
) -> dict[str, list[Record]]:
    """The records of ``run(row, seed)``: for each row a list over seeds.

    setting_of: all that a row's result depends on but its seed. log: a file of JSON lines to which each
    finished run is appended; a run that it holds with the same setting is not repeated.
    """
    finished: list[Record] = []
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists():
            finished = [json.loads(line) for line in log.read_text().splitlines()]
    digest_of = {row: hashlib.sha256(setting_of(row).encode()).hexdigest()[:16] for row in rows}
    results: dict[str, list[Record]] = {row: [] for row in rows}
    for seed in seeds:
        for row in rows:
            key = {"row": row, "seed": seed, "setting": digest_of[row]}
            known = [record for record in finished if key.items() <= record.items()]
            if known:
                record = known[0]
            else:
                record = key | run(row, seed)
                if log:
                    with log.open("a") as file:
                        file.write(json.dumps(record) + "\n")
            results[row].append(record)
            print(f"seed {seed}, {row}: {record[MAIN]:.3f}", file=sys.stderr, flush=True)
    return results


def scores_of(results: dict[str, Any]) -> dict[str, float]:
    """``<metric>/<control>``, and ``accuracy/<control>/<seconds>``, of an evaluation on event clips."""
    found = {}
    for control, scores in results["controls"].items():
        for name, score in scores["metrics"].items():
            found[f"{name}/{control}"] = score["micro"]["mean"]
        for group, score in scores["metrics"]["accuracy"]["groups"].items():
            found[f"accuracy/{control}/{group.split()[0]}"] = score["mean"]
    return found


def right_answers(results: dict[str, Any], control: str = "none") -> str:
    """For each clip, in their order, 1 if its answer is right and 0 if it is not: for pairs of runs by
    clip."""
    rows = [row for row in results["rows"] if row["control"] == control]
    return "".join(str(int(row["values"]["accuracy"])) for row in rows)


def gains_by_clip(pairs: Sequence[tuple[Record, Record]]) -> list[float]:
    """For each clip the mean over ``pairs`` of runs (a row's and the baseline's, of the same seed) of how
    much more often the row is right; [] if a run does not say which clips it has right."""
    if not pairs or any("right" not in record for pair in pairs for record in pair):
        return []
    gains = [
        [int(own) - int(base) for own, base in zip(run["right"], baseline["right"], strict=True)]
        for run, baseline in pairs
    ]
    return [statistics.mean(of_clip) for of_clip in zip(*gains, strict=True)]


def median_gap(times: Sequence[float]) -> float:
    """The median time from one entry to the next."""
    return statistics.median(after - before for before, after in zip(times, times[1:], strict=False))


def interval(values: Sequence[float]) -> str:
    """Mean and half of a 95 % interval over seeds (Student's t); for one seed the value alone."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


def table(
    results: Mapping[str, Sequence[Record]],
    columns: Mapping[str, str],
    baseline: str,
    compared: Sequence[str] = ("all",),
) -> list[str]:
    """A line for each row: the ``columns`` (metrics by heading), seconds per step, and the differences to the
    row ``baseline``: for the headings ``compared`` paired by seed, and for the clips that are answered right
    paired by clip, with an interval over clips. What a row lacks stays blank."""
    differences = [f"{heading}, minus {baseline}" for heading in compared]
    differences.append(f"minus {baseline}, by clip")
    lines = [
        "| row | " + " | ".join([*columns, "s/step", *differences]) + " |",
        "|---" * (len(columns) + len(differences) + 2) + "|",
    ]
    baseline_runs = {record["seed"]: record for record in results.get(baseline, [])}
    for name, runs in results.items():
        cells = [name]
        for metric in (*columns.values(), "seconds per step"):
            values = [record[metric] for record in runs if metric in record]
            cells.append(interval(values) if values else "")
        pairs = [(run, baseline_runs[run["seed"]]) for run in runs if run["seed"] in baseline_runs]
        for heading in compared:
            metric = columns[heading]
            gains = [own[metric] - base[metric] for own, base in pairs if metric in own]
            cells.append(interval(gains) if gains else "")
        by_clip = gains_by_clip(pairs)
        cells.append(interval(by_clip) if by_clip else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines
