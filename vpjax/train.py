"""Train: ``python -m vpjax.train --config sft [--config.field=value ...] [--workdir DIR]``.

The same command again goes on where the run was stopped, bit for bit. A finished run prints its result again.

    <workdir>/config.json     the run's config             <workdir>/model/        see training/checkpoint.py
    <workdir>/metrics.jsonl   one JSON line per step       <workdir>/checkpoints/  see training/checkpoint.py
    <workdir>/tensorboard/    the same numbers             <workdir>/curves.png    the same, drawn at the end
    <workdir>/rollouts/       GRPO: sample rollouts with their rewards, as Markdown
    <workdir>/evaluate/       answers about held-out clips, at the end, as vpjax.evaluate writes them
"""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

from vpjax import cli, distributed
from vpjax.cli import say
from vpjax.data import coverage
from vpjax.data.cache import cache_folder
from vpjax.data.mixture import data_sets
from vpjax.data.pipeline import Loader, make_batch_maker
from vpjax.data.text import Text
from vpjax.evaluation import run as evaluation
from vpjax.evaluation.ask import CONTROLS
from vpjax.evaluation.results import format_results
from vpjax.files import AnyPath
from vpjax.models.config import VLMConfig
from vpjax.models.lora import Lora
from vpjax.models.sharding import make_mesh, put_batch
from vpjax.models.vlm import abstract_model
from vpjax.programs import Announced, keep_in
from vpjax.scoring.judge import ConfigJudge
from vpjax.training import checkpoint, grpo, run_config, sft
from vpjax.training.grpo import JudgedRollouts
from vpjax.training.report import Writer, draw_curves, equal_rewards_reason, rollouts_page
from vpjax.training.setup import initial_params, prepare_model, read_training, split_file
from vpjax.training.state import create_state
from vpjax.types import Array, Batch, Clip, Prompts, UserError

CURVES = {
    "loss": ("loss", "loss/lm"),
    "reward": ("reward", "reward_degraded"),
    "reward on V~, of its own truth": ("degraded/reward",),
    "reward: spread": ("reward_std", "frac_reward_zero_std"),
    "groups with spread": ("rel/spread", "degraded/spread"),
    "relative reward": ("rel/gap", "rel/weight", "rel/active"),
    "what V~ changes": ("rel/change", "degraded/mass"),
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
PROGRESS_METRICS = {
    "loss": "loss",
    "lm": "loss/lm",
    "contrast": "loss/contrast",
    "answer": "loss/answer",
    "truth": "loss/truth",
    "gap": "contrast/gap",
    "reward": "reward",
    "on V~": "reward_degraded",
}


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_config()
    parser.add_argument("--workdir", help="folder of the run; default: runs/ and the config's name")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0, unless the cluster gives it")
    parser.add_argument("--processes", type=cli.at_least(1), help="how many there are, likewise")
    parser.add_argument("--process", type=cli.at_least(0), help="which of them this is, from 0, likewise")
    parser.add_argument("--join_timeout", type=cli.at_least(1), default=300, help="seconds to wait for them")
    arguments, config = parser.parse_config()
    distributed.join(arguments.coordinator, arguments.processes, arguments.process, arguments.join_timeout)
    try:
        train(config, arguments.workdir or f"runs/{Path(arguments.config).stem}")
    except KeyboardInterrupt:  # the training loop itself holds signals back
        say("stopped outside of the training loop; the same command goes on")


def train(config: ConfigDict, workdir: AnyPath) -> None:
    """Run ``config`` in ``workdir``, from its newest checkpoint to its end or to a signal.

    UserError for a mistake in the config, in the files that it names or in the work directory, before any
    training; later for too many unreadable clips or skipped updates.
    """
    workdir = Path(workdir)
    run_config.check(config)
    run_config.check_workdir(workdir, config)
    if config.compile_cache:
        keep_in(cache_folder(config.data) / "programs")
    clips, data_set_of, model_config, text = distributed.process_zero_first(lambda: prepare(config, workdir))
    with contextlib.closing(checkpoint.Manager(workdir, keep=config.keep)) as manager:
        step = max(manager.steps(), default=0)
        if step < config.steps:
            step = fit(config, workdir, manager, step, clips, data_set_of, model_config, text)
    if step == config.steps:
        finish(config, workdir)


def prepare(config: ConfigDict, workdir: Path) -> tuple[list[Clip], list[int], VLMConfig, Text]:
    """The clips to train on, each one's data set, and the model's sizes and tokenizer. Built-in clips and the
    run's model/ folder are made if they do not exist. UserError, too, if the held-out clips could not be
    evaluated at the end."""
    clips, data_set_of = read_training(config)
    for split in heldout_splits(config):
        try:
            evaluation.requested_clips(heldout_request(config, workdir, split))
        except UserError as error:
            raise UserError(f"{error}; set data.heldout to '' for no evaluation") from error
    return clips, data_set_of, *prepare_model(config, workdir, clips)


def fit(
    config: ConfigDict,
    workdir: Path,
    manager: checkpoint.Manager,
    start: int,
    clips: Sequence[Clip],
    data_set_of: Sequence[int],
    model_config: VLMConfig,
    text: Text,
) -> int:
    """The training loop, which continues after step ``start``. Returns the last step, which is saved."""
    mesh = make_mesh(config.mesh)
    distributed.check_mesh(mesh)
    maker, index = make_batch_maker(
        clips,
        text,
        model_config,
        config.data,
        packed=config.method == "sft",
        seed=config.seed,
        batch_size=run_config.rows_per_step(config),
        data_set_of=data_set_of,
        weights=[data_set.weight for data_set in data_sets(config.data)],
        answers=sft.degraded_answers(config),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    loader = Loader(maker, index, start)
    say(*loader.summary(), *loader.coverage.lines())
    coverage.check(loader.coverage, config.data.max_missed_share)
    params = initial_params(config, model_config, mesh, only_shapes=start > 0)
    state, optimizer, shardings = create_state(params, config, mesh)
    if start:
        state = manager.restore(start, state)
        say(f"{workdir}: goes on after step {start}")
    model = abstract_model(model_config, lora=Lora.of(config.lora))
    if config.method == "grpo":
        judge = ConfigJudge(config, text, clips)
        timed = {name: Timed(score) for name, score in judge.host_scores.items()}
        judge.host_scores = timed
        grpo_step = grpo.make_step(model, config, optimizer, shardings, judge=judge, eos=text.stops)
        step_function = Announced(grpo_step, loader.usage.programs)
    else:
        sft_step = sft.make_step(model, config, optimizer, shardings)
        step_function = Announced(sft_step, loader.usage.programs)
    if jax.process_index() == 0:
        run_config.write(workdir, config)

    report = Report(config, workdir, start, int(state.skipped), clips, text)
    with contextlib.closing(loader), contextlib.closing(report), cli.stop_signal() as received:
        pending = None  # a step is reported while the next one runs, so that devices do not wait for the host
        for step in range(start + 1, config.steps + 1):
            batch = report.next_batch(loader)
            if isinstance(batch, Prompts):
                prompts = put_batch(judge.with_references(batch), mesh)
                state, metrics, rollouts = step_function(state, prompts)
                for name, score in timed.items():
                    metrics[f"rewards/{name}/seconds"] = score.seconds
                finished = FinishedStep(step, batch.clip, metrics, rollouts, judge.take_faults())
            else:
                state, metrics = step_function(state, put_batch(batch, mesh))
                finished = FinishedStep(step, batch.clip, metrics)

            if pending:
                report(pending)
            pending = finished

            signal = received(step)
            is_last = bool(signal) or step == config.steps
            if is_last or step % config.checkpoint_every == 0:
                report(pending)
                pending = None
                manager.save(step, state, config.to_dict())
            if is_last:
                break
        manager.wait()
    say(*loader.summary()[1:])
    if signal:
        say(f"{signal}: saved step {step} of {config.steps} in {workdir}; the same command goes on")
    return step


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
    the user's own rewards that failed."""

    step: int
    clips: Array
    metrics: dict[str, Array]
    rollouts: JudgedRollouts | None = None
    faults: Sequence[str] = ()


class Report:
    """Reports a run while it trains: every step's metrics to the work directory, and lines of progress."""

    def __init__(
        self, config: ConfigDict, workdir: Path, start: int, skipped: int, clips: Sequence[Clip], text: Text
    ):
        """skipped: updates that the run has skipped so far. clips: all clips, by number."""
        self.config, self.clips, self.text, self.skipped = config, clips, text, skipped
        self.writer = Writer(workdir, start) if jax.process_index() == 0 else None
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

    def __call__(self, finished: FinishedStep) -> None:
        """Report a step. UserError if too many updates have been skipped."""
        step, rollouts = finished.step, finished.rollouts
        values = {name: float(x) for name, x in finished.metrics.items()}
        if self.writer:
            self.writer.write(step, values)
        if values["nonfinite"]:
            self._count_skipped(finished)
        self.tokens += values["tokens"]
        if rollouts is not None:
            self._show_rollouts(step, values, rollouts)
        if step in (self.first_step, self.config.steps) or step % self.config.log_every == 0:
            losses = "  ".join(
                f"{name} {values[key]:.3f}" for name, key in PROGRESS_METRICS.items() if key in values
            )
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
        ids = ", ".join(self.clips[number].id for number in np.ravel(finished.clips) if number >= 0)
        reason = "; ".join(finished.faults) or "loss or gradient not finite"
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

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def finish(config: ConfigDict, workdir: Path) -> None:
    """Draw the curves of a finished run, and evaluate it on held-out clips unless that has been done."""
    if jax.process_index() == 0:
        curves = draw_curves(workdir, CURVES)
        say(f"{workdir}: finished, {config.steps} steps; curves in {curves}")
    for split in heldout_splits(config):
        file = heldout_folder(config, workdir, split) / evaluation.RESULTS
        if not distributed.process_zero_first(file.exists):
            request = heldout_request(config, workdir, split)
            evaluation.evaluate(request, say, writes=jax.process_index() == 0)
        if jax.process_index() == 0:
            say("", f"{split} clips: {format_results(json.loads(file.read_text()))}")


def heldout_splits(config: ConfigDict) -> list[str]:
    """The splits that are evaluated when the run ends: unseen pairs of shape and event are built in."""
    if not config.data.heldout:
        return []
    return ["heldout", "unseen"] if config.data.heldout == "events" else ["heldout"]


def heldout_folder(config: ConfigDict, workdir: Path, split: str) -> Path:
    return workdir / "evaluate" / f"{split}-{config.steps}"


def heldout_request(config: ConfigDict, workdir: Path, split: str) -> evaluation.Request:
    """The evaluation of a split, the same as that of ``vpjax.evaluate --benchmark events``."""
    videos = config.data.videos if config.data.heldout != "events" else ""
    return evaluation.Request(
        model=workdir,
        benchmark="events",
        data=split_file(config, split, config.data.heldout),
        videos=videos or None,
        out=heldout_folder(config, workdir, split),
        controls=CONTROLS if split == "heldout" else ("none",),
        limit=config.eval_clips,
        mesh=config.mesh,
    )


if __name__ == "__main__":
    cli.run(main)
