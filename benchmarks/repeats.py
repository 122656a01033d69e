"""The same runs at several seeds: kept as they finish, told as means with intervals."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vpjax.events.clips import EVENTS

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, by number of seeds
MAIN = "event/none"  # of ``accuracies``, the one that is told as runs finish and compared
CHANCE = 1 / len(EVENTS)


def repeat(
    rows: Iterable[str],
    seeds: Iterable[int],
    setting: str,
    run: Callable[[str, int], dict],
    log: Path | None = None,
) -> dict[str, list[dict]]:
    """The records of ``run(row, seed)``, a list over seeds for each row. setting: what they have in
    common. log: JSON lines, to which each finished run goes; one that is there with this setting is not run
    again."""
    done = [json.loads(line) for line in log.read_text().splitlines()] if log and log.exists() else []
    digest = hashlib.sha256(setting.encode()).hexdigest()[:16]
    rows, results = list(rows), {}
    for seed in seeds:
        for row in rows:
            key = {"row": row, "seed": seed, "setting": digest}
            record = next((one for one in done if key.items() <= one.items()), None)
            if record is None:
                record = key | run(row, seed)
                if log:
                    with log.open("a") as file:
                        file.write(json.dumps(record) + "\n")
            results.setdefault(row, []).append(record)
            print(f"seed {seed}, {row}: {record[MAIN]:.3f}", file=sys.stderr, flush=True)
    return results


def accuracies(results: dict[str, Any]) -> dict[str, float]:
    """``event/<control>`` and ``event/<control>/<frames>`` of the results of an evaluation on event clips."""
    metrics = {}
    for control, scores in results["controls"].items():
        accuracy = scores["metrics"]["accuracy"]
        metrics[f"event/{control}"] = accuracy["micro"]["mean"]
        for group, score in accuracy["groups"].items():
            metrics[f"event/{control}/{group.split()[0]}"] = score["mean"]
    return metrics


def interval(values: Sequence[float]) -> str:
    """Mean and half a 95 % interval over seeds (Student's t; none for one seed)."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


def table(results: dict[str, list[dict]], columns: dict[str, str], against: str) -> list[str]:
    """A line per row: ``columns`` (metric by heading), seconds per step, and the paired difference to the row
    ``against`` in accuracy over events of all lengths; a metric that a row lacks is left blank."""
    lines = [
        "| row | " + " | ".join(columns) + f" | s/step | all, minus {against} |",
        "|---" * (len(columns) + 3) + "|",
    ]
    plain = results.get(against, [])
    for name, runs in results.items():
        cells = [
            interval([one[metric] for one in runs]) if metric in runs[0] else ""
            for metric in (*columns.values(), "seconds per step")
        ]
        pairs = zip(runs, plain, strict=False)
        cells.append(interval([a[MAIN] - b[MAIN] for a, b in pairs]) if plain else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines
