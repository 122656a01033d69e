"""The reports of a run: metrics.jsonl, TensorBoard files, pages of rollouts and curves.png."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vpjax.data.text import Text
from vpjax.files import AnyPath, write_whole
from vpjax.training.grpo import JudgedRollouts
from vpjax.types import Clip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS_FILE, CURVES_FILE = "metrics.jsonl", "curves.png"
SMOOTH = 0.02  # share of the run that a smoothed curve averages over
COLUMNS = 3


class Writer:
    """Writes the metrics of a run to ``workdir``: one JSON line per step, and the same for TensorBoard.
    Numbers that are not finite are ``null`` in JSON and missing in TensorBoard.

    step: the last one to keep. Lines of later steps, which a killed run wrote after its last checkpoint, are
    dropped, because the resumed run writes them again.
    """

    def __init__(self, workdir: AnyPath, step: int):
        from tensorboardX import SummaryWriter  # imports torch where that is installed

        self._workdir = workdir = Path(workdir)
        lines = [line for line in read_metrics(workdir) if line["step"] <= step]
        write_whole(workdir / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file = open(workdir / METRICS_FILE, "a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step's metrics."""
        line: dict[str, float | None] = {"step": step}
        for name, x in metrics.items():
            line[name] = x if math.isfinite(x) else None
            if math.isfinite(x):
                self._board.add_scalar(name, x, step)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def page(self, name: str, step: int, markdown: str) -> None:
        """Write a page of ``step`` to <workdir>/<name>/ and to TensorBoard."""
        folder = self._workdir / name
        folder.mkdir(exist_ok=True)
        (folder / f"{step:06d}.md").write_text(markdown + "\n")
        self._board.add_text(name, markdown, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(workdir: AnyPath) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, without a last line that a killed run left incomplete."""
    path = Path(workdir) / METRICS_FILE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def draw_curves(workdir: AnyPath, panels: Mapping[str, tuple[str, ...]]) -> Path:
    """Draw ``curves.png`` from ``metrics.jsonl``. panels: the metrics of each panel by title; those that the
    run does not have are left out."""
    from matplotlib.figure import Figure

    lines = read_metrics(workdir)
    known = {name for line in lines for name in line}
    drawn: dict[str, list[str]] = {}
    for title, names in panels.items():
        if known & set(names):
            drawn[title] = [name for name in names if name in known]
    rows = max(1, math.ceil(len(drawn) / COLUMNS))
    figure = Figure(figsize=(5 * COLUMNS, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel in axes[len(drawn) :]:
        panel.set_axis_off()
    for panel, title in zip(axes, drawn, strict=False):
        for name in drawn[title]:
            points = np.array([(line["step"], line[name]) for line in lines if line.get(name) is not None])
            steps, values = points.reshape(-1, 2).T
            _draw(panel, name, steps, values, window=max(1, round(SMOOTH * len(lines))))
        panel.set(title=title, xlabel="step")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    path = Path(workdir) / CURVES_FILE
    figure.savefig(path, dpi=120)
    return path


def _draw(panel: "Axes", name: str, steps: np.ndarray, values: np.ndarray, window: int) -> None:
    """The values, faint, and their running mean over the last ``window``."""
    (faint,) = panel.plot(steps, values, alpha=0.25, linewidth=0.8)
    sums = np.cumsum(np.append(0.0, values))
    end = np.arange(len(values)) + 1
    start = np.maximum(end - window, 0)
    means = (sums[end] - sums[start]) / (end - start)
    panel.plot(steps, means, color=faint.get_color(), linewidth=1.6, label=name)


def rollouts_page(
    rollouts: JudgedRollouts, clips: Sequence[Clip | None], text: Text, *, limit: int = 8
) -> str:
    """Rollouts (NumPy arrays) of the first ``limit`` clips as Markdown: question, reference, and each
    completion with its rewards, on both videos. Rewards for what is true of V~ stand in columns of their
    own."""
    tokens, mask = np.asarray(rollouts.completions.tokens), np.asarray(rollouts.completions.mask)
    own_columns = [f"{name} on V~" for name in rollouts.degraded_rewards]
    columns = ["video", "completion", *rollouts.rewards, "total", *own_columns, "advantage"]
    lines = []
    for row, clip in enumerate(clips[:limit]):
        if clip is None:
            continue
        lines += [
            f"## {_cell(clip.id)}",
            "",
            *(
                f"**Turn before** {_cell(turn.question)} **Answer** {_cell(turn.answer)}  "
                for turn in clip.turns
            ),
            f"**Question** {_cell(clip.question)}  ",
            f"**Reference** {_cell(clip.answer)}  ",
            f"**Reference where V~ hides the event** {_cell(clip.degraded_answer)}",
            "",
            f"| {' | '.join(columns)} |",
            "|---|---|" + "---:|" * (len(columns) - 2),
        ]
        for branch, group in np.argwhere(mask[row].any(-1)):
            index = (row, branch, group)
            completion = text.decode(tokens[index][mask[index]].tolist())
            cells = ["V" if branch == 0 else "V~", _cell(completion)]
            for values in (*rollouts.rewards.values(), rollouts.total):
                value = float(values[index])
                cells.append("" if math.isnan(value) else f"{value:.2f}")
            for values in rollouts.degraded_rewards.values():
                value = float(values[row, group])
                cells.append("" if math.isnan(value) or branch == 0 else f"{value:.2f}")
            is_trained = branch < rollouts.advantages.shape[1]
            cells.append(f"{rollouts.advantages[index]:+.2f}" if is_trained else "")
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def equal_rewards_reason(metrics: Mapping[str, float], rewards: Sequence[str]) -> str:
    """Why there is nothing to learn if the rewards of every prompt's completions are equal."""
    means = ", ".join(f"{name} {metrics[f'rewards/{name}/mean']:.2f}" for name in rewards)
    clipped = metrics["completions/clipped_ratio"]
    hint = f"; {clipped:.0%} of completions are cut off at grpo.max_new" if clipped > 0.5 else ""
    return (
        f"no prompt's completions differ in reward ({means}), so there is nothing to learn from: the task is "
        "too easy or too hard for this model, the reward does not fit the answers, or grpo.temperature is "
        f"too low{hint}; see the rollouts"
    )


def _cell(text: str) -> str:
    """Text for one cell of a table: no line breaks, no markup."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.split()) or "(nothing)"
