"""Train: ``python -m vpjax.train --config sft [--config.field=value ...] [--workdir DIR]``.

The same command again goes on where the run was stopped, bit for bit. A finished run prints its result again.

    <workdir>/config.json     the run's config             <workdir>/model/        see training/checkpoint.py
    <workdir>/metrics.jsonl   one JSON line per step       <workdir>/checkpoints/  see training/checkpoint.py
    <workdir>/tensorboard/    the same numbers             <workdir>/curves.png    the same, drawn at the end
    <workdir>/profile/        a trace of the steps that config.profile names
    <workdir>/rollouts/       GRPO: sample rollouts with their rewards, as Markdown
    <workdir>/evaluate/       answers about held-out clips, at the end, as vpjax.evaluate writes them
    <workdir>/lock.json       who trains there now; a second trainer is turned away
"""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vpjax import cli, distributed, lock
from vpjax.chips import memory_of
from vpjax.cli import say
from vpjax.data import coverage
from vpjax.data.cache import cache_folder
from vpjax.data.looks import yes_no_of
from vpjax.data.mixture import data_sets
from vpjax.data.pipeline import Loader, make_batch_maker
from vpjax.data.text import Text
from vpjax.evaluation import run as evaluation
from vpjax.evaluation.heldout import (
    HeldOut,
    check_heldout,
    check_scans,
    heldout_folder,
    heldout_request,
    heldout_splits,
)
from vpjax.evaluation.results import format_results
from vpjax.files import AnyPath, local_folder, read_object
from vpjax.models.config import VLMConfig
from vpjax.models.lora import Lora, merge
from vpjax.models.sharding import check_rows, make_mesh, put_batch, row_numbers_here
from vpjax.models.vlm import VideoLM, abstract_model, leaves, rebuild
from vpjax.programs import Announced, keep_in
from vpjax.progress import FinishedStep, Profile, Report, Timed
from vpjax.scoring.judge import ConfigJudge, user_rewards
from vpjax.training import checkpoint, grpo, run_config, sft, sums
from vpjax.training.best import best_of
from vpjax.training.optimizer import Optimizer
from vpjax.training.report import draw_curves
from vpjax.training.setup import forget_unstarted, initial_params, prepare_model, read_training
from vpjax.training.state import State, create_state
from vpjax.training.writer import check_installed
from vpjax.types import Batch, Clip, Prompts

# ``train_step(step, state, batch) -> state, finished``: the step of this number on a batch of the loader: a
# Batch in SFT, Prompts in GRPO. The state is donated.
TrainStep = Callable[[int, State, Any], tuple[State, FinishedStep]]


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_config()
    parser.add_argument("--workdir", help="folder of the run; default: runs/ and the config's name")
    parser.add_processes()
    arguments, config = parser.parse_config()
    distributed.join(arguments.coordinator, arguments.processes, arguments.process, arguments.join_timeout)
    try:
        train(config, arguments.workdir or f"runs/{Path(arguments.config).stem}")
    except KeyboardInterrupt:  # the training loop itself holds signals back
        say("stopped outside of the training loop; the same command goes on")


def train(config: ConfigDict, workdir: AnyPath) -> None:
    """Run ``config`` in ``workdir``, from its newest checkpoint to its end or to a signal.

    UserError for a mistake in the config, in the files that it names or in the work directory, and if another
    trainer works there, before any training; later for too many unreadable clips or skipped updates.
    """
    workdir = local_folder(workdir)
    run_config.check(config)
    check_installed(config)
    if config.method == "grpo":
        user_rewards(config)  # loaded again when they are needed, which is after minutes
    with lock.held(workdir):
        train_alone(config, workdir)


def train_alone(config: ConfigDict, workdir: Path) -> None:
    """``train`` in a work directory that no other trainer uses."""
    run_config.check_workdir(workdir, config)
    if config.compile_cache:
        keep_in(cache_folder(config.data) / "programs")
    if jax.process_index() == 0:  # the others open the checkpoints after it
        say(*sums.set_damaged_aside(workdir))
        forget_unstarted(config, workdir)
    prepared = distributed.process_zero_first(lambda: prepare(config, workdir))
    with contextlib.closing(checkpoint.Manager(workdir, keep=config.keep)) as manager:
        step = max(manager.steps(), default=0)
        if not is_finished(config, workdir, step):
            step = fit(config, workdir, manager, step, prepared)
    if is_finished(config, workdir, step):
        finish(config, workdir, step)


def is_finished(config: ConfigDict, workdir: Path, step: int) -> bool:
    """Whether the run ends with this step: it is the last, or ``config.patience`` is over."""
    best = best_of(workdir, config.keep_best, step)
    return step == config.steps or best.is_over(config.patience)


class Prepared(NamedTuple):
    """What a run trains on, and what: clips, each one's data set by its number, model sizes, tokenizer."""

    clips: list[Clip]
    data_set_of: list[int]
    model_config: VLMConfig
    text: Text


def prepare(config: ConfigDict, workdir: Path) -> Prepared:
    """Make built-in clips and the run's model/ folder if they do not exist, and read them. UserError, too, if
    the held-out clips could not be evaluated at the end."""
    clips, data_set_of = read_training(config, say)
    check_heldout(config, workdir, say)
    model_config, text = prepare_model(config, workdir, clips)
    check_scans(config, workdir, model_config.vision.factor)
    return Prepared(clips, data_set_of, model_config, text)


def fit(
    config: ConfigDict, workdir: Path, manager: checkpoint.Manager, start: int, prepared: Prepared
) -> int:
    """The training loop, which continues after step ``start``. Returns the last step, which is saved."""
    model_config, text = prepared.model_config, prepared.text
    mesh = make_mesh(config.mesh, kv_heads=model_config.decoder.kv_heads)
    loader = make_loader(config, prepared, mesh, start)
    params = initial_params(config, model_config, mesh, only_shapes=start > 0)
    state, optimizer, shardings = create_state(params, config, mesh)
    if start:
        state = manager.restore(start, state)
        say(f"{workdir}: goes on after step {start}")
    train_step = make_train_step(config, prepared, optimizer, shardings, mesh, loader.usage.programs)
    heldout = HeldOut(config, workdir, text, model_config, mesh) if config.eval_every else None
    if jax.process_index() == 0:
        run_config.write(workdir, config)

    report = Report(config, workdir, start, int(state.skipped), prepared.clips, text)
    profile = Profile(config, workdir)
    with contextlib.closing(loader), contextlib.closing(report), profile, cli.stop_signal() as received:
        pending = None  # a step is reported while the next one runs, so that devices do not wait for the host
        for step in range(start + 1, config.steps + 1):
            profile.begin(step)
            state, finished = train_step(step, state, report.next_batch(loader))
            profile.end(step, state)
            if pending:
                report(pending)
            if heldout and (step % config.eval_every == 0 or step == config.steps):
                metrics = report.evaluate(step, heldout, evaluated_model(state, config, model_config))
                finished = finished._replace(heldout=metrics)
            pending = finished

            signal, best = received(step), report.best
            is_last = bool(signal) or step == config.steps or best.is_over(config.patience)
            if is_last or step % config.checkpoint_every == 0 or step == best.step:
                report(pending)
                report.sync()
                pending = None
                manager.save(step, state, config.to_dict(), best=best.step)
            if is_last:
                break
        manager.wait()
    say(*loader.summary()[1:])
    if signal:
        say(f"{signal}: saved step {step} of {config.steps} in {workdir}; the same command goes on")
    return step


def make_loader(config: ConfigDict, prepared: Prepared, mesh: Mesh, start: int) -> Loader:
    """The batches after step ``start``, of which each process makes the rows that its devices hold. UserError
    if they do not divide over the devices, or if too many events are in no frame."""
    rows = run_config.rows_per_step(config)
    maker, index = make_batch_maker(
        prepared.clips,
        prepared.text,
        prepared.model_config,
        config.data,
        packed=config.method == "sft",
        seed=config.seed,
        batch_size=rows,
        data_set_of=prepared.data_set_of,
        weights=[data_set.weight for data_set in data_sets(config.data)],
        answers=sft.degraded_answers(config),
        together=run_config.prompts_together(config),
    )
    check_rows(rows, mesh, "config.batch")
    maker = dataclasses.replace(maker, part=row_numbers_here(rows, mesh))
    loader = Loader(maker, index, start)
    say(*loader.summary(), *loader.coverage.lines(), *loader.warnings())
    coverage.check(loader.coverage, config.data.max_missed_share)
    return loader


def make_train_step(
    config: ConfigDict, prepared: Prepared, optimizer: Optimizer, shardings: State, mesh: Mesh, programs: int
) -> TrainStep:
    """The step of ``config.method``. programs: how many shapes of batches there are, each compiled once."""
    model = abstract_model(prepared.model_config, lora=Lora.of(config.lora))
    config = config.copy_and_resolve_references()
    config.memory = config.memory or memory_of(jax.local_devices()[0])
    if config.method == "grpo":
        return make_grpo_step(config, prepared, model, optimizer, shardings, mesh, programs)
    sft_step = Announced(sft.make_step(model, config, optimizer, shardings), programs)

    def train_step(step: int, state: State, batch: Batch) -> tuple[State, FinishedStep]:
        state, metrics = sft_step(state, put_batch(batch, mesh))
        return state, FinishedStep(step, batch.clip, metrics)

    return train_step


def make_grpo_step(
    config: ConfigDict,
    prepared: Prepared,
    model: VideoLM,
    optimizer: Optimizer,
    shardings: State,
    mesh: Mesh,
    programs: int,
) -> TrainStep:
    """The step of GRPO, with the rewards of the run's clips and what the user's own ones took and said."""
    judge = ConfigJudge(config, prepared.text, prepared.clips)
    host_scores = {name: Timed(score) for name, score in judge.host_scores.items()}
    judge.host_scores = host_scores
    if host_scores:
        distributed.check_mesh(mesh)
    eos, yes_no = prepared.text.stops, yes_no_of(prepared.text)
    grpo_step = grpo.make_step(model, config, optimizer, shardings, judge=judge, eos=eos, yes_no=yes_no)
    announced_step = Announced(grpo_step, programs)

    def train_step(step: int, state: State, batch: Prompts) -> tuple[State, FinishedStep]:
        prompts = put_batch(judge.with_references(batch), mesh)
        state, metrics, rollouts = announced_step(state, prompts)
        for name, score in host_scores.items():
            metrics[f"rewards/{name}/seconds"] = score.seconds
        return state, FinishedStep(step, batch.clip, metrics, rollouts, judge.take_faults())

    return train_step


def evaluated_model(state: State, config: ConfigDict, model_config: VLMConfig) -> VideoLM:
    """The model of a state in the compute dtype and with its adapters merged, as an evaluation reads it from
    a checkpoint."""
    params = state.params | state.frozen
    lora = Lora.of(config.lora)
    if lora is not None:
        params = merge(params, lora, config.dtype)
    model = abstract_model(model_config)
    return rebuild(model, {path: params[path].astype(config.dtype) for path in leaves(model)})


def finish(config: ConfigDict, workdir: Path, step: int) -> None:
    """Draw the curves of a run that ended after ``step``, and evaluate it on held-out clips unless that has
    been done."""
    if jax.process_index() == 0:
        curves = draw_curves(workdir)
        say(f"{workdir}: finished, {step} steps; curves in {curves}")
        best = best_of(workdir, config.keep_best, step)
        if best.is_over(config.patience) and step < config.steps:
            say(f"ended before step {config.steps}: {best.since} evaluations in a row were not the best")
        if best.step:
            say(f"best {best.metric}: {best.value:.3f} at step {best.step}, which --step=best reads")
    for split in heldout_splits(config):
        file = heldout_folder(workdir, split, step) / evaluation.RESULTS
        if not distributed.process_zero_first(file.exists):
            request = heldout_request(config, workdir, split, step)
            evaluation.evaluate(request, say, writes=jax.process_index() == 0)
        if jax.process_index() == 0:
            results = read_object(file, "delete it, and the same command makes it anew")
            say("", f"{split} clips: {format_results(results)}")


if __name__ == "__main__":
    cli.run(main)
