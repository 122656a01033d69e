"""What a run tells while it trains: its log, lines of progress, pages of rollouts, and a profile."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

from vpjax.cli import say
from vpjax.data.pipeline import Loader
from vpjax.data.text import Text
from vpjax.evaluation.heldout import HeldOut
from vpjax.models.sharding import all_texts
from vpjax.models.vlm import VideoLM
from vpjax.training.best import best_of
from vpjax.training.grpo import JudgedRollouts
from vpjax.training.report import equal_rewards_reason, rollouts_page
from vpjax.training.writer import Writer, missing_lines
from vpjax.types import Array, Batch, Clip, Prompts, UserError

PROFILE = "profile"  # the folder of the profile in the work directory
SHOWN = {
    "loss": "loss",
    "lm": "loss/lm",
    "contrast": "loss/contrast",
    "answer": "loss/answer",
    "truth": "loss/truth",
    "gap": "contrast/gap",
    "reward": "reward",
    "on V~": "reward_degraded",
    "right window": "looks/right_window",
}


class Timed:
    """A function that also tells how many seconds its last call took."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return self.function(*arguments)
        finally:
            self.seconds = time.perf_counter() - start


class FinishedStep(NamedTuple):
    """The results of a step. clips i32[...]: the numbers of its clips, -1 for padding. faults: messages of
    the user's own rewards that failed. heldout: the metrics of the evaluation after it; {}: there was
    none."""

    step: int
    clips: Array
    metrics: dict[str, Array]
    rollouts: JudgedRollouts | None = None
    faults: Sequence[str] = ()
    heldout: Mapping[str, float] = {}


class Report:
    """Reports a run while it trains: every step's metrics to the work directory, and lines of progress."""

    def __init__(
        self, config: ConfigDict, workdir: Path, start: int, skipped: int, clips: Sequence[Clip], text: Text
    ):
        """skipped: updates that the run has skipped so far. clips: all clips, by number."""
        self.config, self.clips, self.text, self.skipped = config, clips, text, skipped
        self.best = best_of(workdir, config.keep_best, start)
        if lost := missing_lines(workdir, start):
            say(lost)
        self.writer = None
        if jax.process_index() == 0:
            self.writer = Writer(workdir, start, config, time.time)
        self.first_step = start + 1
        self.steps_without_spread = 0  # in a row, in which no prompt's completions differed in reward
        self._start_interval(start)

    def _start_interval(self, step: int) -> None:
        """Count time and tokens from here to the next line."""
        self.interval_step, self.interval_start = step, time.perf_counter()
        self.seconds_waiting, self.tokens = 0.0, 0.0

    def next_batch(self, loader: Loader) -> Batch | Prompts:
        """The next batch. The time until it is ready counts as waiting."""
        before = time.perf_counter()
        batch = next(loader)
        self.seconds_waiting += time.perf_counter() - before
        return batch

    def evaluate(self, step: int, heldout: HeldOut, model: VideoLM) -> dict[str, float]:
        """The metrics of the model after ``step``, which are printed. The time that they take is not that of
        the steps around."""
        jax.block_until_ready(model)
        start = time.perf_counter()
        metrics = heldout(model)
        seconds = time.perf_counter() - start
        self.interval_start += seconds
        self.best.add(step, metrics)
        values = "  ".join(f"{name.partition('/')[2]} {x:.3f}" for name, x in metrics.items())
        line = f"step {step}/{self.config.steps}  held out, {len(heldout.clips)} clips: {values}"
        if self.best.step:
            line += f"  (best {self.best.metric}: {self.best.value:.3f} at step {self.best.step})"
        say(f"{line}  {seconds:.1f} s")
        return metrics

    def __call__(self, finished: FinishedStep) -> None:
        """Report a step. UserError if too many updates have been skipped."""
        step, rollouts = finished.step, finished.rollouts
        values = {name: float(x) for name, x in finished.metrics.items()}
        if self.writer:
            self.writer.write(step, {**values, **finished.heldout})
        if values["nonfinite"]:
            self._count_skipped(finished)
        self.tokens += values["tokens"]
        if rollouts is not None:
            self._show_rollouts(step, values, rollouts)
        if step in (self.first_step, self.config.steps) or step % self.config.log_every == 0:
            losses = "  ".join(f"{name} {values[key]:.3f}" for name, key in SHOWN.items() if key in values)
            say(f"step {step}/{self.config.steps}  {losses}  {self._speed(step)}")
            self._start_interval(step)

    def _show_rollouts(self, step: int, metrics: dict[str, float], rollouts: JudgedRollouts) -> None:
        """Write a page of samples every ``show_every`` steps. Print a reason if, for ``log_every`` steps or a
        multiple, the rewards of every prompt's completions were equal, and V~ did not part them either."""
        spread_by_degraded = metrics.get("rel/spread", 0.0) + metrics.get("degraded/spread", 0.0)
        if metrics["frac_reward_zero_std"] == 1.0 and not spread_by_degraded:
            self.steps_without_spread += 1
        else:
            self.steps_without_spread = 0
        if self.steps_without_spread and self.steps_without_spread % self.config.log_every == 0:
            reason = equal_rewards_reason(metrics, list(rollouts.rewards))
            say(f"step {step}: for {self.steps_without_spread} steps {reason}")
        if step == self.first_step or step % self.config.grpo.show_every == 0:
            rollouts = multihost_utils.process_allgather(rollouts, tiled=True)
            if self.writer:
                clips = [self.clips[number] if number >= 0 else None for number in rollouts.clip]
                self.writer.page("rollouts", step, rollouts_page(rollouts, clips, self.text))

    def _count_skipped(self, finished: FinishedStep) -> None:
        self.skipped += 1
        own_ids = [self.clips[number].id for number in np.ravel(finished.clips) if number >= 0]
        # Each process knows its own rows and what its own rewards said.
        everyones = [json.loads(text) for text in all_texts(json.dumps([own_ids, list(finished.faults)]))]
        ids = ", ".join(dict.fromkeys(name for own, _ in everyones for name in own))
        faults = dict.fromkeys(fault for _, own in everyones for fault in own)
        reason = "; ".join(faults) or "loss or gradient not finite"
        message = f"step {finished.step}: {reason}, update skipped; its clips: {ids}"
        if self.skipped > self.config.max_nonfinite:
            raise UserError(f"{message}; that makes {self.skipped}, more than config.max_nonfinite")
        say(message)

    def _speed(self, step: int) -> str:
        seconds = time.perf_counter() - self.interval_start
        if step == self.first_step:
            return f"{seconds:.0f} s with compiling"
        rate = (step - self.interval_step) / seconds
        return (
            f"{rate:.2f} steps/s  {self.tokens / seconds:,.0f} tokens/s  "
            f"{tqdm.format_interval((self.config.steps - step) / rate)} left  "
            f"{self.seconds_waiting / seconds:.0%} waiting for data"
        )

    def sync(self) -> None:
        """Return when the metrics are on the disk, before a checkpoint after which the run does not repeat
        them."""
        if self.writer:
            self.writer.files.sync()

    def close(self) -> None:
        if self.writer:
            self.writer.close()


class Profile(contextlib.AbstractContextManager):
    """Traces the steps from the first to the last of ``config.profile`` with JAX's profiler. In ``workdir``
    it leaves a trace for ui.perfetto.dev and for TensorBoard's profile plugin."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self.first: int = config.profile[0] if config.profile else 0  # there is no step 0
        self.last: int = config.profile[1] if config.profile else 0
        self.folder = workdir / PROFILE
        self.is_on = False

    def begin(self, step: int) -> None:
        """Start at the first step, or where the run goes on between it and the last."""
        if self.first <= step <= self.last and not self.is_on and jax.process_index() == 0:
            jax.profiler.start_trace(str(self.folder))
            self.is_on = True

    def end(self, step: int, state: Any) -> None:
        """Stop after the last step, when the devices have computed ``state``."""
        if self.is_on and step == self.last:
            jax.block_until_ready(state)
            self.__exit__()

    def __exit__(self, *_: object) -> None:
        if self.is_on:
            jax.profiler.stop_trace()
            say(f"{self.folder}: a profile of the steps from {self.first} to {self.last}")
            self.is_on = False
