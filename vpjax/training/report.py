"""The reports of a run: curves.png, and pages of rollouts."""

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vpjax.data.text import Text
from vpjax.files import AnyPath
from vpjax.training.grpo import JudgedRollouts
from vpjax.training.writer import read_metrics
from vpjax.types import Clip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES_FILE = "curves.png"
# The metrics of each panel by its title, as names or patterns. A metric is drawn in the first panel that has
# it; panels of which a run has none are left out.
CURVES = {
    "loss": ("loss", "loss/lm", "heldout/loss", "heldout/*/loss"),
    "held-out answers": ("heldout/*",),
    "reward": ("reward", "reward_degraded"),
    "reward on V~, of its own truth": ("degraded/reward",),
    "reward: spread": ("reward_std", "frac_reward_zero_std"),
    "groups with spread": ("rel/spread", "degraded/spread"),
    "relative reward": ("rel/gap", "rel/weight", "rel/active"),
    "what V~ changes": ("rel/change", "degraded/mass"),
    "chosen window": ("looks/right_window", "looks/overlap"),
    "gain of the second look": ("looks/gain",),
    "completion length": ("completions/mean_length",),
    "entropy": ("entropy",),
    "contrast loss": ("loss/contrast",),
    "answers on V~": ("loss/answer", "loss/truth"),
    "answer: log p(V) - log p(V~)": ("answer/gap",),
    "similarity of keyword and video": ("contrast/clean", "contrast/degraded", "contrast/gap"),
    "retrieval@1 in the batch": ("contrast/retrieval@1",),
    "learning rate": ("lr",),
    "gradient norm": ("grad_norm",),
}
LOGARITHMIC = ("loss", "contrast loss")  # unless a value is 0 or less
POINTS = "heldout/*"  # metrics of some steps only, which are drawn as points
SMOOTH = 0.02  # share of the run that a smoothed curve averages over
COLUMNS = 3


def panels_of(names: Iterable[str]) -> dict[str, list[str]]:
    """The titles of the panels that a run with metrics of these names has, and the metrics of each."""
    left = sorted(names)
    panels: dict[str, list[str]] = {}
    for title, patterns in CURVES.items():
        found = dict.fromkeys(name for pattern in patterns for name in fnmatch.filter(left, pattern))
        if found:
            panels[title] = list(found)
            left = [name for name in left if name not in found]
    return panels


def draw_curves(workdir: AnyPath) -> Path:
    """Draw ``curves.png`` from ``metrics.jsonl``."""
    from matplotlib.figure import Figure

    lines = read_metrics(workdir)
    panels = panels_of({name for line in lines for name in line})
    rows = max(1, math.ceil(len(panels) / COLUMNS))
    figure = Figure(figsize=(5 * COLUMNS, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    for panel, title in zip(axes, panels, strict=False):
        lowest = math.inf
        for name in panels[title]:
            points = np.array([(line["step"], line[name]) for line in lines if line.get(name) is not None])
            steps, values = points.reshape(-1, 2).T
            lowest = min(lowest, values.min(initial=math.inf))
            if fnmatch.fnmatch(name, POINTS):
                panel.plot(steps, values, marker="o", markersize=4, linewidth=0.8, label=name)
            else:
                _draw(panel, name, steps, values, window=max(1, round(SMOOTH * len(lines))))
        if title in LOGARITHMIC and 0 < lowest < math.inf:
            panel.set_yscale("log")
        panel.set(title=title, xlabel="step")
        panel.grid(alpha=0.3, which="both")
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
