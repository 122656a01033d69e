"""Train: ``python -m vpjax.train --config configs/sft.py [--config.field=value ...] [--workdir DIR]``.

The same command again goes on where the run was stopped, bit for bit; a finished run tells its result again.

    <workdir>/config.json     the run's config             <workdir>/model/        see checkpoint.py
    <workdir>/metrics.jsonl   one JSON line per step       <workdir>/checkpoints/  see checkpoint.py
    <workdir>/tensorboard/    the same numbers             <workdir>/curves.png    the same, drawn at the end
    <workdir>/rollouts/       GRPO: sample rollouts, judged, as Markdown
    <workdir>/heldout.json    answers on held-out clips, at the end
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

from vpjax import cli
from vpjax import distributed as processes
from vpjax.data.pipeline import make_loader
from vpjax.data.text import Text
from vpjax.evaluation import heldout
from vpjax.files import write_whole
from vpjax.models.attention import backend
from vpjax.models.sharding import make_mesh, put_batch
from vpjax.models.vlm import VLMConfig, abstract_model
from vpjax.scoring.judge import Judge
from vpjax.training import checkpoint, grpo, run_config, sft
from vpjax.training.grpo import JudgedRollouts
from vpjax.training.report import Writer, draw_curves, no_spread, page
from vpjax.training.setup import initial_params, prepare_model, read_split
from vpjax.training.state import State, create_state
from vpjax.types import Array, Batch, Clip, UserError

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/ and the config's name.")
flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(processes)

CURVES = {
    "loss": ("loss", "loss/lm"),
    "reward": ("reward", "reward_degraded"),
    "reward: spread": ("reward_std", "frac_reward_zero_std"),
    "relative reward": ("rel/gap", "rel/weight", "rel/active"),
    "completion length": ("completions/mean_length",),
    "entropy": ("entropy",),
    "contrast loss": ("loss/contrast",),
    "similarity of keyword and video": ("contrast/clean", "contrast/degraded", "contrast/gap"),
    "retrieval@1 in the batch": ("contrast/retrieval@1",),
    "learning rate": ("lr",),
    "gradient norm": ("grad_norm",),
}
HELDOUT = "heldout.json"


def main() -> int:
    try:
        train(CONFIG.value, Path(WORKDIR.value or f"runs/{cli.config_name()}"))
    except KeyboardInterrupt:  # not in the loop, which holds signals back
        say("stopped outside of the training loop; the same command goes on")
    return cli.OK


def train(config: ConfigDict, workdir: Path) -> None:
    """Run ``config`` in ``workdir`` from where it stands to its end, or to a signal.

    UserError for a mistake in the config, in the files that it names or in the work directory, before any
    training; later for too many unreadable clips or skipped updates.
    """
    run_config.check(config)
    run_config.check_workdir(workdir, config)
    clips, asked, unseen, model_config, text = processes.process_zero_first(lambda: prepare(config, workdir))
    with contextlib.closing(checkpoint.Manager(workdir, keep=config.keep)) as manager:
        step = max(manager.steps(), default=0)
        if step < config.steps:
            step = fit(config, workdir, manager, step, clips, model_config, text)
    if step == config.steps:
        finish(config, workdir, asked, unseen)


def prepare(config: ConfigDict, workdir: Path) -> tuple[list[Clip], list[Clip], list[Clip], VLMConfig, Text]:
    """The clips to train on, to be asked about and of unseen pairs, and the model; built-in clips and the
    run's model/ folder are made once."""
    clips = read_split(config, "train", config.data.train)
    asked = read_split(config, "heldout", config.data.heldout)[: config.eval_clips]
    if asked:
        heldout.with_events(asked)  # or a UserError, now and not when the training is done
    unseen = read_split(config, "unseen", "events") if config.data.heldout == "events" else []
    return clips, asked, unseen, *prepare_model(config, workdir, clips)


def fit(
    config: ConfigDict,
    workdir: Path,
    manager: checkpoint.Manager,
    start: int,
    clips: Sequence[Clip],
    model_config: VLMConfig,
    text: Text,
) -> int:
    """Train from after step ``start`` on; the step after which the run was left, which is on the disk."""
    mesh = make_mesh(config.mesh)
    processes.check_mesh(mesh)
    loader = make_loader(
        clips,
        text,
        model_config,
        config.data,
        seed=config.seed,
        batch_size=config.batch,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    say(*loader.summary())
    params = initial_params(config, model_config, mesh, only_shapes=start > 0)
    state, optimizer, layout = create_state(params, config, mesh)
    if start:
        state = manager.restore(start, state)
        say(f"{workdir}: goes on after step {start}")
    make, complete, judge = sft.make_step, lambda batch: batch, None
    if config.method == "grpo":
        judge = Judge(config, text, clips)
        make, complete = functools.partial(grpo.make_step, judge=judge, eos=text.stops), judge.with_references
    step = make(abstract_model(model_config), config, optimizer, layout)
    if jax.process_index() == 0:
        run_config.write(workdir, config)

    report = Report(config, workdir, start, int(state.skipped), clips, text, judge)
    with contextlib.closing(loader), contextlib.closing(report), cli.stop_signal() as asked:
        batches = report.waited_for((batch.clip, put_batch(complete(batch), mesh)) for batch in loader)
        end, signal = loop(step, state, batches, report, manager, config, start, asked)
        manager.wait()
    say(*loader.summary()[1:])
    if signal:
        say(f"{signal}: saved step {end} of {config.steps} in {workdir}; the same command goes on")
    return end


def loop(
    step: Callable[[State, Batch], tuple],
    state: State,
    batches: Iterable[tuple[np.ndarray, Batch]],
    report: Report,
    manager: checkpoint.Manager,
    config: ConfigDict,
    start: int,
    asked: Callable[[int], str],
) -> tuple[int, str]:
    """The training loop: next batch, step, report, checkpoint when due. The last step, which is being saved,
    and the signal that ended it (``cli.stop_signal``).

    step: state, batch -> state, metrics and, of GRPO, the rollouts. What it tells is read when the next step
    is under way, so that the devices do not wait for the host.
    """
    late = None
    for number, (clips, batch) in zip(range(start + 1, config.steps + 1), batches, strict=False):
        state, *told = step(state, batch)
        faults = report.take_faults()
        if late:
            report(*late)
        late = number, clips, faults, *told
        signal = asked(number)
        last = signal or number == config.steps
        if last or number % config.checkpoint_every == 0:
            report(*late)
            late = None
            manager.save(number, state, config.to_dict())
        if last:
            break
    return number, signal


class Report:
    """What a run tells while it trains: every step's metrics to the work directory, now and then a line."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        start: int,
        skipped: int,
        clips: Sequence[Clip],
        text: Text,
        judge: Judge | None,
    ):
        """skipped: updates that the run has skipped so far. clips: all of them, by number. judge: of GRPO."""
        self.config, self.clips, self.skipped = config, clips, skipped
        self.text, self.judge = text, judge
        self.writer = Writer(workdir, start) if jax.process_index() == 0 else None
        self.first, self.last = start + 1, start
        self.since, self.waited, self.tokens = time.perf_counter(), 0.0, 0.0
        self.flat = 0  # steps in a row in which no prompt's completions differed in reward

    def waited_for(self, batches: Iterator[Any]) -> Iterator[Any]:
        """``batches``, counting the time that each takes to come as waiting."""
        while True:
            before = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - before
            yield batch

    def take_faults(self) -> list[str]:
        """What went wrong in rewards of the user's own since this was last asked."""
        return self.judge.take_faults() if self.judge else []

    def __call__(
        self,
        step: int,
        clips: np.ndarray,
        faults: list[str],
        metrics: dict[str, Array],
        rollouts: JudgedRollouts | None = None,
    ) -> None:
        """Report a step, its clips by number, what went wrong in it, its metrics and its rollouts. UserError
        when too many updates have been skipped."""
        metrics = {name: float(x) for name, x in metrics.items()}
        if self.writer:
            self.writer.write(step, metrics)
        if metrics["nonfinite"]:
            self._skip(step, clips, faults)
        self.tokens += metrics["tokens"]
        if rollouts is not None:
            self._rollouts(step, metrics, rollouts)
        if step in (self.first, self.config.steps) or step % self.config.log_every == 0:
            seconds = time.perf_counter() - self.since
            say(f"step {step}/{self.config.steps}  {_losses(metrics)}  {self._speed(step, seconds)}")
            self.since, self.last, self.waited, self.tokens = time.perf_counter(), step, 0.0, 0.0

    def _rollouts(self, step: int, metrics: dict[str, float], told: JudgedRollouts) -> None:
        """Now and then a page of samples; a line when no reward of any recent step has told completions
        apart."""
        self.flat = self.flat + 1 if metrics["frac_reward_zero_std"] == 1.0 else 0
        if self.flat and self.flat % self.config.log_every == 0:
            say(f"step {step}: for {self.flat} steps {no_spread(metrics, list(told.rewards))}")
        if step == self.first or step % self.config.grpo.show_every == 0:
            told = multihost_utils.process_allgather(told, tiled=True)
            if self.writer:
                asked = [self.clips[number] if number >= 0 else None for number in told.clip]
                self.writer.page("rollouts", step, page(told, asked, self.text))

    def _skip(self, step: int, clips: np.ndarray, faults: list[str]) -> None:
        self.skipped += 1
        ids = ", ".join(self.clips[clip].id for clip in clips if clip >= 0)
        why = "; ".join(faults) or "loss or gradient not finite"
        what = f"step {step}: {why}, update skipped; its clips: {ids}"
        if self.skipped > self.config.max_nonfinite:
            raise UserError(f"{what}; that makes {self.skipped}, more than config.max_nonfinite")
        say(what)

    def _speed(self, step: int, seconds: float) -> str:
        if step == self.first:
            return f"{seconds:.0f} s with compiling"
        rate = (step - self.last) / seconds
        return (
            f"{rate:.2f} steps/s  {self.tokens / seconds:,.0f} tokens/s  "
            f"{tqdm.format_interval((self.config.steps - step) / rate)} left  "
            f"{self.waited / seconds:.0%} waiting for data"
        )

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def _losses(metrics: dict[str, float]) -> str:
    shown = {
        "loss": "loss",
        "lm": "loss/lm",
        "contrast": "loss/contrast",
        "gap": "contrast/gap",
        "reward": "reward",
        "on V~": "reward_degraded",
    }
    return "  ".join(f"{name} {metrics[key]:.3f}" for name, key in shown.items() if key in metrics)


def finish(config: ConfigDict, workdir: Path, clips: Sequence[Clip], unseen: Sequence[Clip]) -> None:
    """Draw the curves of a finished run and tell its held-out result, which is computed once.

    clips: asked about under every control. unseen: of pairs of shape and event that training did not have."""
    first = jax.process_index() == 0
    if first:
        say(f"{workdir}: finished, {config.steps} steps; curves in {draw_curves(workdir, CURVES)}")
    file = workdir / HELDOUT
    if clips and not processes.process_zero_first(file.exists):
        mesh = make_mesh(config.mesh)
        model, text = checkpoint.load(workdir, mesh=mesh, dtype=config.dtype)
        evaluate = functools.partial(heldout.evaluate, model, text, data_config=config.data, mesh=mesh)
        with backend(config.attention):
            result = evaluate(clips)
            other = evaluate(unseen, controls=("none",)) if unseen else None
        record = {
            "metrics": {name: x for name, x in result.metrics().items() if math.isfinite(x)},
            "left_out": result.left_out,
            "answers": [dataclasses.asdict(answer) for answer in result.answers],
            "unseen": [dataclasses.asdict(answer) for answer in other.answers] if other else [],
        }
        if first:
            write_whole(file, (json.dumps(record, indent=1) + "\n").encode())
    if not clips or not first:
        return
    record = json.loads(file.read_text())
    answers, others = (tuple(heldout.Answer(**x) for x in record[part]) for part in ("answers", "unseen"))
    say(str(heldout.Evaluation(answers, record["left_out"])))
    if others:
        say("", f"unseen pairs of shape and event, whole video: {heldout.score(others)}")


def say(*lines: str) -> None:
    if jax.process_index() == 0:
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    cli.run(main, before=processes.join)
