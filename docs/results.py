"""Draws results.png, the README's picture, from the results in benchmarks/results.

python docs/results.py
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
INK, KEY, DEGRADED, GREY = "#22313f", "#d35400", "#2471a3", "#7f8c8d"
CHANCE = 12.5
CONTROLS = {
    "none": "the whole video",
    "random": "as many other frames replaced",
    "reverse": "frames reversed",
    "shuffle": "frames shuffled",
    "single": "one moment throughout",
    "key": "the event's frames replaced",
    "blind": "no video",
}
ROWS = {
    "batch": "contrast alone",
    "batch, as long as margin": "contrast alone, in the\nseconds that the last took",
    "weight": "+ weight on the keyword",
    "margin, random slots": "+ margin, random frames",
    "margin": "+ margin, the event's frames",
}
Bar = tuple[float, float, float]  # its value and the ends of its interval, in per cent


def default_run() -> dict[str, Bar]:
    """Accuracy by control, with intervals over videos."""
    text = (RESULTS / "2026-11-29-runs.md").read_text().partition("## The default run")[2]
    text = text.partition("heldout clips: events")[2]
    table = text.partition("\n\n")[0]
    found = re.findall(r"^(\w+) +([\d.]+) \[([\d.]+), ([\d.]+)\]", table, re.M)
    return {control: (float(x), float(low), float(high)) for control, x, low, high in found}


def shortcut_runs(metric: str) -> dict[str, Bar]:
    """A metric by row of the ablation, with intervals over seeds (Student's t)."""
    runs = defaultdict(list)
    for name in ("2026-11-29-ablation-shortcut.jsonl", "2026-11-30-ablation-seconds.jsonl"):
        for line in (RESULTS / name).read_text().splitlines():
            record = json.loads(line)
            runs[record["row"]].append(100 * record[metric])
    bars = {}
    for row, values in runs.items():
        mean = statistics.mean(values)
        error = statistics.stdev(values) / len(values) ** 0.5
        half = float(stats.t.ppf(0.975, len(values) - 1)) * error
        bars[row] = (mean, mean - half, mean + half)
    return bars


def draw_bars(
    axes: Axes, bars: dict[str, Bar], names: dict[str, str], color: str, shift: float, what: str
) -> None:
    """Horizontal bars in the order of ``names``, the first at the top, with their values beside them and,
    beside the first, what they are."""
    for place, name in enumerate(names):
        value, low, high = bars[name]
        y = -place - shift
        axes.barh(y, value, 0.36 if shift else 0.62, color=color, zorder=2)
        axes.plot([low, high], [y, y], color=INK, linewidth=1.2, zorder=3)
        said = "" if place else f"   {what}"
        axes.text(high + 1.5, y, f"{value:.1f}{said}", va="center", fontsize=8.5, color=color)


def finish(axes: Axes, title: str, names: dict[str, str]) -> None:
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.axvline(CHANCE, color=GREY, linestyle=":", linewidth=1, zorder=1)
    axes.set_yticks([-place for place in range(len(names))], list(names.values()), fontsize=9)
    axes.set(xlim=(0, 150), xticks=range(0, 101, 25))
    axes.set_xlabel("per cent of held-out clips; dotted: chance", fontsize=8.5, color=GREY, loc="left")
    axes.tick_params(length=0, colors=INK, labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)


def main() -> None:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))

    draw_bars(left, default_run(), CONTROLS, DEGRADED, 0.0, "names the event")
    finish(left, "The default run, by what it is shown", CONTROLS)

    draw_bars(right, shortcut_runs("accuracy/none"), ROWS, DEGRADED, -0.2, "names the event")
    draw_bars(right, shortcut_runs("shortcut/none"), ROWS, KEY, 0.2, "follows the colour")
    finish(right, "Trained where the colour nearly tells the event", ROWS)

    figure.savefig(Path(__file__).with_suffix(".png"), dpi=100, facecolor="white")


if __name__ == "__main__":
    main()
