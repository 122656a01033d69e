"""What a run leaves to look at: metrics.jsonl, TensorBoard files, pages and curves.png."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensorboardX import SummaryWriter

from vpjax.data.text import Text
from vpjax.files import write_whole
from vpjax.training.grpo import JudgedRollouts
from vpjax.types import Clip

METRICS, CURVES = "metrics.jsonl", "curves.png"
SMOOTH = 0.02  # share of the run that a smoothed curve averages over
COLUMNS = 3


class Writer:
    """Metrics of a run in ``workdir``: one JSON line per step, and the same numbers for TensorBoard.

    step: the last one that the run keeps. What a killed run wrote beyond its checkpoint is dropped, for the
    resumed run writes it again. A number that is not finite is ``null`` in JSON and missing in TensorBoard.
    """

    def __init__(self, workdir: str | os.PathLike, step: int):
        self._workdir = workdir = Path(workdir)
        kept = "".join(json.dumps(line) + "\n" for line in read_metrics(workdir) if line["step"] <= step)
        write_whole(workdir / METRICS, kept.encode())
        self._file = open(workdir / METRICS, "a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step's metrics."""
        metrics = {name: x if math.isfinite(x) else None for name, x in metrics.items()}
        self._file.write(json.dumps({"step": step} | metrics) + "\n")
        self._file.flush()
        for name, x in metrics.items():
            if x is not None:
                self._board.add_scalar(name, x, step)

    def page(self, name: str, step: int, markdown: str) -> None:
        """Write a page of ``step`` to <workdir>/<name>/ and to TensorBoard."""
        folder = self._workdir / name
        folder.mkdir(exist_ok=True)
        (folder / f"{step:06d}.md").write_text(markdown + "\n")
        self._board.add_text(name, markdown, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, float | None]]:
    """The lines of ``metrics.jsonl``, without a last one that a killed run left incomplete."""
    path = Path(workdir) / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def draw_curves(workdir: str | os.PathLike, panels: Mapping[str, tuple[str, ...]]) -> Path:
    """Draw ``curves.png`` from ``metrics.jsonl``: a panel per title with the metrics that it names, where the
    run has them."""
    lines = read_metrics(workdir)
    known = {name for line in lines for name in line}
    panels = {title: [name for name in names if name in known] for title, names in panels.items()}
    panels = {title: names for title, names in panels.items() if names}
    rows = max(1, -(-len(panels) // COLUMNS))
    figure = Figure(figsize=(5 * COLUMNS, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    for panel, (title, names) in zip(axes, panels.items(), strict=False):
        for name in names:
            points = np.array([(line["step"], line[name]) for line in lines if line.get(name) is not None])
            steps, values = points.reshape(-1, 2).T
            _draw(panel, name, steps, values, window=max(1, round(SMOOTH * len(lines))))
        panel.set(title=title, xlabel="step")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    path = Path(workdir) / CURVES
    figure.savefig(path, dpi=120)
    return path


def _draw(panel: Axes, name: str, steps: np.ndarray, values: np.ndarray, window: int) -> None:
    """The values, faint, and their running mean over the last ``window``."""
    (faint,) = panel.plot(steps, values, alpha=0.25, linewidth=0.8)
    sums = np.cumsum(np.append(0.0, values))
    first = np.maximum(np.arange(len(values)) + 1 - window, 0)
    means = (sums[1:] - sums[first]) / (np.arange(len(values)) + 1 - first)
    panel.plot(steps, means, color=faint.get_color(), linewidth=1.6, label=name)


def page(told: JudgedRollouts, clips: Sequence[Clip | None], text: Text, *, most: int = 8) -> str:
    """Rollouts of the first ``most`` clips as Markdown: question, reference, and each completion with its
    rewards, on both videos. told: NumPy arrays."""
    names = list(told.rewards)
    lines = []
    for row, clip in enumerate(clips[:most]):
        if clip is None:
            continue
        lines += [
            f"## {_cell(clip.id)}",
            "",
            f"**Question** {_cell(clip.question)}  ",
            f"**Reference** {_cell(clip.answer)}",
            "",
            "| video | completion | " + " | ".join([*names, "total", "advantage"]) + " |",
            "|---|---|" + "---:|" * (len(names) + 2),
        ]
        asked = np.argwhere(told.said.mask[row].any(-1))
        for branch, group in asked:
            at = (row, branch, group)
            said = text.decode(told.said.tokens[at][told.said.mask[at]])
            numbers = [told.rewards[name][at] for name in names] + [told.total[at]]
            merit = f"{told.advantages[at]:+.2f}" if branch < told.advantages.shape[1] else ""
            cells = [("V", "V~")[branch], _cell(said), *map(_number, numbers), merit]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def no_spread(metrics: Mapping[str, float], names: Sequence[str]) -> str:
    """Why nothing can be learned from rewards that are equal within every prompt."""
    means = ", ".join(
        f"{name} {metrics[key]:.2f}" for name in names if (key := f"rewards/{name}/mean") in metrics
    )
    cut = metrics["completions/clipped_ratio"]
    hint = f"; {cut:.0%} of completions are cut off at grpo.max_new" if cut > 0.5 else ""
    return (
        f"no prompt's completions differ in reward ({means}), so there is nothing to learn from: the task is "
        "too easy or too hard for this model, the reward does not fit the answers, or grpo.temperature is "
        f"too low{hint}; see the rollouts"
    )


def _number(x: float) -> str:
    return "" if np.isnan(x) else f"{x:.2f}"


def _cell(text: str) -> str:
    """Text for one cell of a table: no line breaks, no markup."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.split()) or "(nothing)"
