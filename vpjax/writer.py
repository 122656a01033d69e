"""What a run leaves to look at: metrics.jsonl, TensorBoard files and curves.png."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from tensorboardX import SummaryWriter

METRICS, CURVES = "metrics.jsonl", "curves.png"
SMOOTH = 0.02  # share of the run that a smoothed curve averages over


class Writer:
    """Metrics of a run in ``workdir``: one JSON line per step, and the same numbers for TensorBoard.

    step: the last one that the run keeps. What a killed run wrote beyond its checkpoint is dropped, for a resumed
    run writes it again. A number that is not finite is ``null`` in JSON.
    """

    def __init__(self, workdir: str | os.PathLike, step: int):
        workdir = Path(workdir)
        kept = "".join(json.dumps(line) + "\n" for line in read_metrics(workdir) if line["step"] <= step)
        part = workdir / f"{METRICS}.part"
        part.write_text(kept)
        os.replace(part, workdir / METRICS)
        self._file = open(workdir / METRICS, "a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step's metrics."""
        line = {"step": step} | {name: x if math.isfinite(x) else None for name, x in metrics.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, x in metrics.items():
            self._board.add_scalar(name, x, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, float | None]]:
    """The lines of ``metrics.jsonl``, without a last one that a killed run left incomplete; [] without a file."""
    path = Path(workdir) / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def draw_curves(workdir: str | os.PathLike, panels: Mapping[str, tuple[str, ...]]) -> Path:
    """Draw ``curves.png`` from ``metrics.jsonl``: one panel per title with the metrics that it names."""
    lines = read_metrics(workdir)
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    window = max(1, round(SMOOTH * len(lines)))
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            (curve,) = axes.plot(steps, values, alpha=0.25 if window > 1 else 1.0, linewidth=0.8)
            if window > 1:
                means = [sum(values[max(0, i - window) : i]) / min(i, window) for i in range(1, len(values) + 1)]
                axes.plot(steps, means, color=curve.get_color(), linewidth=1.6)
            curve.set_label(name)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.lines and len(names) > 1:
            for handle in axes.legend(fontsize="small").legend_handles:
                handle.set_alpha(1.0)
    path = Path(workdir) / CURVES
    figure.savefig(path, dpi=120)
    return path
