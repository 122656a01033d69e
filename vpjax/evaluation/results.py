"""Answers -> scores, tables and comparisons."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vpjax.evaluation.ask import NO_KEY, Prediction, Query
from vpjax.evaluation.benchmarks import REPORTED, Benchmark, answers_to
from vpjax.evaluation.bootstrap import Scored, difference, summary
from vpjax.types import Clip, UserError

GROUPS = 8  # a table has a column for each of so many groups at most


def label(key: Query) -> str:
    return f"{key.control}, ranked" if key.ranked else key.control


def make_results(
    request: Mapping[str, Any],
    benchmark: Benchmark,
    clips: Sequence[Clip],
    answers: Iterable[Prediction],
    unasked: Mapping[str, int],
    *,
    missing: str,
) -> dict[str, Any]:
    """The scores of ``answers`` in all, by control and row by row, ready for JSON; nothing in it depends on
    when or in how many goes the answers came.

    missing: whether rows whose video cannot be used are kept ``apart`` or count as ``wrong``. UserError where
    that leaves no row.
    """
    by_id = {clip.id: clip for clip in clips}
    rows: dict[str, list[Scored]] = {}
    keyless, unusable = Counter(), {}
    for key, text, fault in answers:
        clip, name = by_id[key.clip], label(key)
        rows.setdefault(name, [])
        if fault == NO_KEY:
            keyless[name] += 1
            continue
        if fault:
            unusable.setdefault(fault, set()).add(clip.id)
        if not fault or missing == "wrong":
            readable, values = benchmark.score(clip, text)
            rows[name].append(Scored(clip.id, clip.video, clip.extra["group"], name, readable, values))
    if not any(rows.values()):
        reasons = "; ".join(sorted(unusable)[:3])
        raise UserError(f"no row was answered: {reasons or 'no clip has key frames to replace'}")
    options = [len(answers_to(clip)) for clip in clips]
    return {
        "request": dict(request),
        "missing": missing,
        "chance": sum(1 / n for n in options) / len(options) if all(options) else None,
        "published": {"by": REPORTED, "per_cent": benchmark.published} if benchmark.published else None,
        "unasked": dict(sorted(unasked.items())),
        "unusable": {reason: len(ids) for reason, ids in sorted(unusable.items())},
        "controls": {
            name: (summary(some) if some else {"rows": 0}) | {"without_key_frames": keyless[name]}
            for name, some in rows.items()
        },
        "rows": [row._asdict() for some in rows.values() for row in some],
    }


def compare(results: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """``results`` with their difference from those in another file, row by row, for each control that both
    have. UserError where it is no such file or of another benchmark."""
    try:
        other = json.loads(path.read_text())
        benchmarks = [x["request"]["benchmark"] for x in (results, other)]
        theirs, ours = _by_control(other), _by_control(results)
    except OSError as error:
        raise UserError(f"--against={path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--against={path}: not a results.json of vpjax.evaluate") from error
    if benchmarks[0] != benchmarks[1]:
        raise UserError(f"--against={path}: it is of {benchmarks[1]}, not of {benchmarks[0]}")
    gains = {name: difference(some, theirs[name]) for name, some in ours.items() if name in theirs}
    model = other["request"]["model"]
    return {**results, "against": {"file": str(path), "model": model, "controls": gains}}


def _by_control(results: Mapping[str, Any]) -> dict[str, list[Scored]]:
    rows: dict[str, list[Scored]] = {}
    for row in results["rows"]:
        rows.setdefault(row["control"], []).append(Scored(**row))
    return rows


def format_results(results: Mapping[str, Any]) -> str:
    """The results as tables for a terminal, in per cent."""
    controls = {name: x for name, x in results["controls"].items() if x["rows"]}
    first = next(iter(controls.values()))
    leading, *others = first["metrics"]
    groups = list(first["metrics"][leading]["groups"])
    shown = groups if 1 < len(groups) <= GROUPS else []
    chance = f"; chance is {per_cent(results['chance'])}" if results["chance"] else ""
    head = [*shown, "all rows [95 % interval]", "mean of groups", "readable", "rows"]
    table = [["", *head]]
    for name, x in controls.items():
        metric = x["metrics"][leading]
        cells = [per_cent(metric["groups"][g]["mean"]) if g in metric["groups"] else "-" for g in shown]
        cells += [interval(metric["micro"]), per_cent(metric["macro"]["mean"]), per_cent(x["readable"])]
        table.append([name, *cells, str(x["rows"])])
    lines = [
        f"{results['request']['benchmark']}: {leading} in per cent; intervals are over videos{chance}",
        *columns(table),
    ]
    if others:
        rows = [[name, *(interval(x["metrics"][m]["micro"]) for m in others)] for name, x in controls.items()]
        lines += ["", *columns([["", *others], *rows])]
    if len(groups) > GROUPS:
        rows = [[g, *(_group(x, leading, g) for x in controls.values())] for g in groups]
        lines += ["", *columns([["", *controls], *rows])]
    lines += ["", *remarks(results)] if remarks(results) else []
    if "against" in results:
        lines += ["", f"minus {results['against']['model']} on the same rows, in points [95 % interval]"]
        for name, gain in results["against"]["controls"].items():
            cells = ", ".join(f"{m} {interval(x, sign=True)}" for m, x in gain["metrics"].items())
            lines.append(f"{name}: {cells} on {gain['rows']} rows; {gain['unmatched']} rows on one side only")
    return "\n".join(lines)


def remarks(results: Mapping[str, Any]) -> list[str]:
    """What is to be known about the rows that are not in the tables, and what others reported."""
    lines = []
    if results["published"]:
        numbers = ", ".join(f"{metric} {x}" for metric, x in results["published"]["per_cent"].items())
        lines.append(f"{results['published']['by']}: {numbers}")
    how = {"apart": "not counted", "wrong": "counted as wrong"}[results["missing"]]
    lines += [f"{rows} rows {how}: {reason}" for reason, rows in results["unusable"].items()]
    lines += [f"{rows} rows not asked: {reason}" for reason, rows in results["unasked"].items()]
    for name, x in results["controls"].items():
        if x["without_key_frames"]:
            lines.append(f"{x['without_key_frames']} rows not shown under {name}: {NO_KEY}")
    return lines


def per_cent(share: float) -> str:
    return f"{100 * share:.1f}"


def interval(estimate: Mapping[str, float | None], *, sign: bool = False) -> str:
    """``62.1 [58.0, 66.3]``; without the interval where one video gives none."""
    cells = [
        None if x is None else f"{100 * x:{'+' * sign}.1f}"
        for x in map(estimate.get, ("mean", "low", "high"))
    ]
    return cells[0] if cells[1] is None else f"{cells[0]} [{cells[1]}, {cells[2]}]"


def _group(control: Mapping[str, Any], metric: str, group: str) -> str:
    groups = control["metrics"][metric]["groups"]
    return f"{per_cent(groups[group]['mean'])} ({groups[group]['rows']})" if group in groups else "-"


def columns(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, its first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    ]
