"""The best of the evaluations that a run makes while it trains, from its log alone."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from vpjax.files import AnyPath
from vpjax.training.writer import read_metrics

LESS_IS_BETTER = ("loss", "shortcut", "false alarms", "invented")  # the last part of a metric's name


@dataclasses.dataclass
class Best:
    """The best value so far of a held-out metric. Of equal values the first is the best.

    metric: its name in the log; "": none is followed. step: of the best evaluation; None: there is none yet.
    since: the number of evaluations after it.
    """

    metric: str
    step: int | None = None
    value: float = math.nan
    since: int = 0

    def add(self, step: int, metrics: Mapping[str, float | None]) -> bool:
        """Whether these metrics of a step are the best so far. A step without the metric is no evaluation; a
        value that is not finite, in the log null, is never the best."""
        if not self.metric or self.metric not in metrics:
            return False
        value = metrics[self.metric]
        if value is None or not math.isfinite(value) or not self._is_better(value):
            self.since += 1
            return False
        self.step, self.value, self.since = step, value, 0
        return True

    def _is_better(self, value: float) -> bool:
        if self.step is None:
            return True
        if self.metric.rpartition("/")[2] in LESS_IS_BETTER:
            return value < self.value
        return value > self.value

    def is_over(self, patience: int) -> bool:
        """Whether the last ``patience`` evaluations were not the best; 0: never."""
        return bool(patience) and self.since >= patience


def best_in(lines: Iterable[Mapping[str, Any]], metric: str, last_step: int) -> Best:
    """The best of the log's lines up to ``last_step``."""
    best = Best(metric)
    for line in lines:
        if line["step"] <= last_step:
            best.add(line["step"], line)
    return best


def best_of(workdir: AnyPath, metric: str, last_step: int) -> Best:
    """The best in the log of a run up to ``last_step``. The log is read only if a metric is followed."""
    return best_in(read_metrics(workdir) if metric else (), metric, last_step)
