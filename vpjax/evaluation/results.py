"""Answers -> scores, tables and comparisons."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vpjax.evaluation.ask import NO_KEY, Prediction
from vpjax.evaluation.benchmarks import REPORTED, Benchmark, answers_to
from vpjax.evaluation.bootstrap import Scored, difference, summary
from vpjax.evaluation.event_scores import OF_A_PRIOR, OF_INVENTION, event_values, seen, seen_difference
from vpjax.events.text import events_named
from vpjax.scoring.answers import final_answer
from vpjax.scoring.tasks import OF_EVIDENCE
from vpjax.types import Clip, UserError

WITH_INTERVALS = 4  # a table of more groups has no intervals, for which there would be no room


def label(prediction: Prediction) -> str:
    return f"{prediction.control}, ranked" if prediction.ranked else prediction.control


def make_results(
    request: Mapping[str, Any],
    benchmark: Benchmark,
    clips: Sequence[Clip],
    predictions: Iterable[Prediction],
    left_out: Mapping[str, int],
    *,
    missing: str,
) -> dict[str, Any]:
    """The scores of ``predictions``, by control and row by row, ready for JSON. Nothing in it depends on when
    the predictions were made.

    request: the description of the evaluation, which is kept as it is; its ``prior`` is that of the training
    clips, if they had one. left_out: the number of clips left out by reason. missing: rows whose video cannot
    be used are kept ``apart`` or count as ``wrong`` in the benchmark's own metrics; they never count in those
    of ``event_scores``. UserError if that leaves no row.
    """
    clip_of_id = {clip.id: clip for clip in clips}
    rows: dict[str, list[Scored]] = {}
    keyless: Counter[str] = Counter()
    unusable: dict[str, set[str]] = {}
    for prediction in predictions:
        name, fault = label(prediction), prediction.fault
        scored = rows.setdefault(name, [])
        if fault == NO_KEY:
            keyless[name] += 1
            continue
        if fault:
            unusable.setdefault(fault, set()).add(prediction.id)
        if not fault or missing == "wrong":
            scored.append(score_prediction(benchmark, clip_of_id[prediction.id], prediction))
    if not any(rows.values()):
        reasons = "; ".join(sorted(unusable)[:3])
        raise UserError(f"no row was answered: {reasons or 'no clip has key frames to replace'}")
    controls: dict[str, dict[str, Any]] = {}
    for name, scored in rows.items():
        controls[name] = summary(scored) if scored else {"rows": 0}
        controls[name]["without_key_frames"] = keyless[name]
        if estimate := seen(scored):
            controls[name]["metrics"]["seen"] = {"micro": estimate}
    return {
        "request": dict(request),
        "missing": missing,
        "chance": chance_of(benchmark, clips),
        "published": {"by": REPORTED, "per_cent": benchmark.published} if benchmark.published else None,
        "unasked": dict(sorted(left_out.items())),
        "unusable": {reason: len(ids) for reason, ids in sorted(unusable.items())},
        "second_group": benchmark.second_group,
        "controls": controls,
        "rows": [row._asdict() for scored in rows.values() for row in scored],
    }


def score_prediction(benchmark: Benchmark, clip: Clip, prediction: Prediction) -> Scored:
    """The row of an answer, or of a video that could not be used, which is a wrong one."""
    readable, values = benchmark.score(clip, prediction.text)
    if prediction.ranked:  # candidates are options, which name no evidence
        values = {name: x for name, x in values.items() if name not in OF_EVIDENCE}
    named: tuple[str, ...] | None = None
    # Where there is no answer, it names nothing and invents nothing.
    if benchmark.names_events and clip.task == "caption" and not prediction.fault:
        named = events_named(final_answer(prediction.text))
        values = values | event_values(clip, prediction, named)
    group, second_group = clip.extra["group"], clip.extra.get(benchmark.second_group, "")
    # Questions about text alone are not about one video, over which intervals would be none.
    video = clip.video or clip.id
    return Scored(clip.id, video, group, label(prediction), readable, values, second_group, named)


def chance_of(benchmark: Benchmark, clips: Sequence[Clip]) -> float | None:
    """The share of right answers by guessing, of the questions that the first one's metric scores; None if
    not all of them have candidate answers."""
    metrics = [list(benchmark.score(clip, "").values) for clip in clips]
    counts = [
        len(answers_to(clip)) for clip, names in zip(clips, metrics, strict=True) if metrics[0][0] in names
    ]
    if not all(counts):
        return None
    return sum(1 / count for count in counts) / len(counts)


def read_other(path: Path, benchmark: str) -> tuple[str, str | None, dict[str, list[Scored]]]:
    """The model, the digest of the rows and the scores by control of another results.json. UserError if the
    file is none or is not about ``benchmark``."""
    try:
        other = json.loads(path.read_text())
        model, found = other["request"]["model"], other["request"]["benchmark"]
        digest, theirs = other["request"].get("rows"), by_control(other)
    except OSError as error:
        raise UserError(f"--against={path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--against={path}: not a results.json of vpjax.evaluate") from error
    if found != benchmark:
        raise UserError(f"--against={path}: it is of {found}, not of {benchmark}")
    return model, digest, theirs


def compare(results: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """``results`` with their paired difference from those in another file, for each control that both have.
    Rows are paired by their ids; ``same_rows`` says whether both files have the same ones, in all of their
    texts and paths. UserError as ``read_other``."""
    model, digest, theirs = read_other(path, results["request"]["benchmark"])
    gains = {}
    for name, rows in by_control(results).items():
        if name in theirs:
            gains[name] = difference(rows, theirs[name])
            if gain := seen_difference(rows, theirs[name]):
                gains[name]["metrics"]["seen"] = gain
    are_same = digest == results["request"].get("rows")
    against = {"file": str(path), "model": model, "same_rows": are_same, "controls": gains}
    return {**results, "against": against}


def by_control(results: Mapping[str, Any]) -> dict[str, list[Scored]]:
    """The scores of the answers under each control that has any."""
    rows: dict[str, list[Scored]] = {}
    for row in results["rows"]:
        rows.setdefault(row["control"], []).append(Scored(**row))
    return rows


def format_results(results: Mapping[str, Any]) -> str:
    """The results as tables for a terminal, in per cent."""
    controls = {name: scores for name, scores in results["controls"].items() if scores["rows"]}
    columns = metric_columns(results)
    leading = columns[0]
    table = [["", *columns, "mean of groups", "readable", "rows"]]
    for name, scores in controls.items():
        metrics = scores["metrics"]
        cells = [interval(metrics[x]["micro"]) if x in metrics else "-" for x in columns]
        macro = per_cent(metrics[leading]["macro"]["mean"]) if leading in metrics else "-"
        table.append([name, *cells, macro, per_cent(scores["readable"]), str(scores["rows"])])
    title = f"{results['request']['benchmark']}: per cent [95 % interval over videos]"
    if results["chance"]:
        title += f"; chance is {per_cent(results['chance'])}"
    lines = [title, *format_table(table)]
    # Where tasks are mixed, a control may have no row of the leading metric's task.
    means_of = {name: x["metrics"][leading] for name, x in controls.items() if leading in x["metrics"]}
    for grouping, name in (("groups", "group"), ("second_groups", results["second_group"])):
        if len(next(iter(means_of.values())).get(grouping, ())) > 1:
            means = {control: by_group[grouping] for control, by_group in means_of.items()}
            lines += ["", f"{leading} by {name} (rows)", *format_table(group_table(means))]
    if "looks" in results:
        lines += scan_lines(results["looks"])
    if remarks(results):
        lines += ["", *remarks(results)]
    if "against" in results:
        lines += ["", *gain_lines(results["against"], columns)]
    return "\n".join(lines)


def scan_lines(looks: Mapping[str, Any]) -> list[str]:
    """How well the windows of two looks were found."""
    lines = []
    if windows := looks["windows"]:
        shown, right = interval(windows["found"]), interval(windows["right"])
        lines += ["", f"the window shows the event: {shown}; and the answer is right: {right}"]
    if unnamed := looks.get("unnamed"):
        scans = len(looks["scans"])
        lines += ["", f"no window was found in {unnamed} of {scans} clips: the middle one was taken"]
    return lines


def gain_lines(against: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """The differences from another model's results (``compare``). columns: the metrics that are shown."""
    rows = "the same rows"
    if not against.get("same_rows", True):
        rows = "rows of the same ids, not all of which have the same texts and paths there"
    lines = [f"minus {against['model']} on {rows}, in points [95 % interval]"]
    for name, gain in against["controls"].items():
        means = gain["metrics"]
        gains = [f"{x} {interval(means[x], sign=True)}" for x in columns if x in means]
        lines.append(
            f"{name}: {', '.join(gains)} on {gain['rows']} rows; {gain['unmatched']} rows on one side only"
        )
    return lines


def metric_columns(results: Mapping[str, Any]) -> list[str]:
    """The metrics that a table of the results shows, the main one first.

    Those of the built-in event clips are shown where they can tell something: the ones about a prior after a
    training with one (``request.prior``), the ones about invention there too, and where clips show no event.
    """
    controls = [scores["metrics"] for scores in results["controls"].values() if scores["rows"]]
    found = list(dict.fromkeys(name for metrics in controls for name in metrics))
    prior = bool(results["request"].get("prior"))
    columns = [name for name in found if name not in (*OF_A_PRIOR, *OF_INVENTION)]
    if prior:
        columns += [name for name in OF_A_PRIOR if name in found]
    if prior or "false alarms" in found:
        columns += [name for name in OF_INVENTION if name in found]
    return columns


def group_table(means: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The cells of a table of means by control and group. Up to WITH_INTERVALS groups are columns, with
    intervals; more groups are lines, without."""
    groups = list(next(iter(means.values())))

    def cell(control: str, group: str) -> str:
        mean = means[control].get(group)
        if mean is None:
            return "-"
        text = interval(mean) if len(groups) <= WITH_INTERVALS else per_cent(mean["mean"])
        return f"{text} ({mean['rows']})"

    if len(groups) <= WITH_INTERVALS:
        lines = [[control, *(cell(control, group) for group in groups)] for control in means]
        return [["", *groups], *lines]
    lines = [[group, *(cell(control, group) for control in means)] for group in groups]
    return [["", *means], *lines]


def remarks(results: Mapping[str, Any]) -> list[str]:
    """Lines about rows that are not in the tables, and the numbers that others reported."""
    lines = []
    if results["published"]:
        numbers = ", ".join(f"{metric} {x}" for metric, x in results["published"]["per_cent"].items())
        lines.append(f"{results['published']['by']}: {numbers}")
    counted = {"apart": "not counted", "wrong": "counted as wrong"}[results["missing"]]
    lines += [f"{rows} rows {counted}: {reason}" for reason, rows in results["unusable"].items()]
    lines += [f"{rows} rows left out: {reason}" for reason, rows in results["unasked"].items()]
    for name, x in results["controls"].items():
        if x["without_key_frames"]:
            lines.append(f"{x['without_key_frames']} rows left out under {name}: {NO_KEY}")
    return lines


def per_cent(share: float) -> str:
    return f"{100 * share:.1f}"


def interval(estimate: Mapping[str, Any], *, sign: bool = False) -> str:
    """``62.1 [58.0, 66.3]``, or ``62.1`` if there is no interval. sign: with ``+`` if positive."""
    form = "+.1f" if sign else ".1f"
    text = format(100 * estimate["mean"], form)
    if estimate["low"] is None:
        return text
    return f"{text} [{format(100 * estimate['low'], form)}, {format(100 * estimate['high'], form)}]"


def format_table(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, its first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *others in table:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return lines
