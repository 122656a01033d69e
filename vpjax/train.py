"""Train: ``python -m vpjax.train --config configs/sft.py [--config.field=value ...] [--workdir DIR]``.

The same command again goes on where the run was stopped, bit for bit; a finished run tells its result again.

    <workdir>/config.json     the run's config             <workdir>/model/        see checkpoint.py
    <workdir>/metrics.jsonl   one JSON line per step       <workdir>/checkpoints/  see checkpoint.py
    <workdir>/tensorboard/    the same numbers             <workdir>/curves.png    the same, drawn at the end
    <workdir>/heldout.json    answers on held-out clips, at the end
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from vpjax import checkpoint, cli, heldout, processes, settings, sft
from vpjax.data import events
from vpjax.data.cache import cache_folder
from vpjax.data.clips import read_clips
from vpjax.data.pipeline import make_loader
from vpjax.data.text import Text, train_tokenizer
from vpjax.models import hf
from vpjax.models.vlm import VideoLM, VLMConfig, abstract_model, leaves
from vpjax.sharding import make_mesh, put_batch, shardings
from vpjax.state import State, create_state
from vpjax.types import Array, Batch, Clip, UserError
from vpjax.writer import Writer, draw_curves

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/ and the config's name.")
flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(processes)

CURVES = {
    "loss": ("loss", "loss/lm"),
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
    settings.check(config)
    settings.check_workdir(workdir, config)
    clips = read_split(config, "train", config.data.train)
    asked = read_split(config, "heldout", config.data.heldout)[: config.eval_clips]
    if asked:
        heldout.with_events(asked)  # or a UserError, now and not when the training is done
    unseen = read_split(config, "unseen", "events") if config.data.heldout == "events" else []
    model_config, text = prepare_model(config, workdir, clips)
    with contextlib.closing(checkpoint.Manager(workdir, keep=config.keep)) as manager:
        step = max(manager.steps(), default=0)
        if step < config.steps:
            step = fit(config, workdir, manager, step, clips, model_config, text)
    if step == config.steps:
        finish(config, workdir, asked, unseen)


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
    step = sft.make_step(abstract_model(model_config), config, optimizer, layout)
    if jax.process_index() == 0:
        settings.write(workdir, config)

    report = Report(config, workdir, start, int(state.skipped), [clip.id for clip in clips])
    with contextlib.closing(loader), contextlib.closing(report), cli.stop_requests() as asked:
        batches = report.waited_for((batch.clip, put_batch(batch, mesh)) for batch in loader)
        end, signal = loop(step, state, batches, report, manager, config, start, asked)
        manager.wait()
    say(*loader.summary()[1:])
    if signal:
        say(f"{signal}: saved step {end} of {config.steps} in {workdir}; the same command goes on")
    return end


def loop(
    step: Callable[[State, Batch], tuple[State, dict[str, Array]]],
    state: State,
    batches: Iterable[tuple[np.ndarray, Batch]],
    report: Report,
    manager: checkpoint.Manager,
    config: ConfigDict,
    start: int,
    asked: Callable[[int], str],
) -> tuple[int, str]:
    """The training loop: next batch, step, report, checkpoint when due. The last step, which is being saved,
    and the signal that ended it (``cli.stop_requests``).

    A step's metrics are read when the next step is under way, so that the devices do not wait for the host.
    """
    late = None
    for number, (clips, batch) in zip(range(start + 1, config.steps + 1), batches, strict=False):
        state, metrics = step(state, batch)
        if late:
            report(*late)
        late = number, metrics, clips
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

    def __init__(self, config: ConfigDict, workdir: Path, start: int, skipped: int, ids: Sequence[str]):
        """skipped: updates that the run has skipped so far. ids: of all clips, by number."""
        self.config, self.ids, self.skipped = config, ids, skipped
        self.writer = Writer(workdir, start) if jax.process_index() == 0 else None
        self.first, self.last = start + 1, start
        self.since, self.waited, self.tokens = time.perf_counter(), 0.0, 0.0

    def waited_for(self, batches: Iterator[Any]) -> Iterator[Any]:
        """``batches``, counting the time that each takes to come as waiting."""
        while True:
            before = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - before
            yield batch

    def __call__(self, step: int, metrics: dict[str, Array], clips: np.ndarray) -> None:
        """Report a step, its metrics and its clips. UserError when too many updates have been skipped."""
        metrics = {name: float(x) for name, x in metrics.items()}
        if self.writer:
            self.writer.write(step, metrics)
        if metrics["nonfinite"]:
            self._skip(step, clips)
        self.tokens += metrics["tokens"]
        if step in (self.first, self.config.steps) or step % self.config.log_every == 0:
            seconds = time.perf_counter() - self.since
            say(f"step {step}/{self.config.steps}  {_losses(metrics)}  {self._speed(step, seconds)}")
            self.since, self.last, self.waited, self.tokens = time.perf_counter(), step, 0.0, 0.0

    def _skip(self, step: int, clips: np.ndarray) -> None:
        self.skipped += 1
        ids = ", ".join(self.ids[clip] for clip in clips if clip >= 0)
        what = f"step {step}: loss or gradient not finite, update skipped; its clips: {ids}"
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
    shown = {"loss": "loss", "lm": "loss/lm", "contrast": "loss/contrast", "gap": "contrast/gap"}
    return "  ".join(f"{name} {metrics[key]:.3f}" for name, key in shown.items() if key in metrics)


def read_split(config: ConfigDict, split: str, source: str) -> list[Clip]:
    """The clips of a file, or the built-in ones of a split, made if need be; [] without a source."""
    if source == "events":
        spec, folder, count = event_spec(config), cache_folder(config.data), config.events[split]
        return read_clips(processes.in_turn(lambda: events.make(spec, folder, {split: count}))[split])
    return read_clips(source, config.data.videos) if source else []


def event_spec(config: ConfigDict) -> events.EventSpec:
    return events.EventSpec(**{f.name: config.events[f.name] for f in dataclasses.fields(events.EventSpec)})


def prepare_model(config: ConfigDict, workdir: Path, clips: Sequence[Clip]) -> tuple[VLMConfig, Text]:
    """The run's model/ folder, made once: copied from ``config.init``, or the sizes of ``config.model`` with
    a tokenizer trained on the run's texts."""
    folder, part = workdir / checkpoint.MODEL, workdir / f"{checkpoint.MODEL}.part"
    if jax.process_index() == 0 and not folder.exists():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        if config.init:
            hf.read_config(config.init)
            for pattern in ("config.json", *hf.HF_FILES):
                for file in Path(config.init).glob(pattern):
                    shutil.copyfile(file, part / file.name)
        else:
            new_model(config, part, clips)
        part.replace(folder)
    if not processes.in_turn(folder.exists):
        raise UserError(
            f"--workdir={workdir}: put it on a disk that all processes share; process 0 wrote to it"
        )
    return hf.read_config(folder), Text.load(folder)


def new_model(config: ConfigDict, folder: Path, clips: Sequence[Clip]) -> None:
    """Train the tokenizer of a model from scratch and write its config.json with the tokenizer's ids."""
    texts = (text for clip in clips for text in (clip.question, clip.answer))
    if config.data.train == "events":
        texts = events.sentences(event_spec(config))
    model = config.model.to_dict()
    train_tokenizer(texts, folder, model["text_config"]["vocab_size"])
    text = Text.load(folder)
    model |= dict(
        image_token_id=text.image_pad,
        video_token_id=text.video_pad,
        vision_start_token_id=text.vision_start,
        vision_end_token_id=text.vision_end,
    )
    model["text_config"] |= dict(bos_token_id=None, eos_token_id=text.end, pad_token_id=text.pad)
    (folder / "config.json").write_text(json.dumps(model, indent=2) + "\n")


def initial_params(
    config: ConfigDict, model_config: VLMConfig, mesh: Mesh, *, only_shapes: bool = False
) -> dict[str, Any]:
    """Parameters by path, those of ``config.init`` or random ones, and the training-only heads."""
    key = jax.random.key(config.seed)

    def heads():
        return sft.init_heads(config, model_config.decoder.hidden, jax.random.fold_in(key, 0))

    def init():
        return leaves(VideoLM(model_config, rngs=nnx.Rngs(jax.random.fold_in(key, 1)))) | heads()

    shapes = jax.eval_shape(init)
    if only_shapes:
        return shapes
    if config.init:
        return leaves(hf.load_pretrained(config.init, mesh=mesh)) | heads()
    return jax.jit(init, out_shardings=shardings(shapes, mesh))()


def finish(config: ConfigDict, workdir: Path, clips: Sequence[Clip], unseen: Sequence[Clip]) -> None:
    """Draw the curves of a finished run and tell its held-out result, which is computed once.

    clips: asked about under every control. unseen: of pairs of shape and event that training did not have."""
    first = jax.process_index() == 0
    if first:
        say(f"{workdir}: finished, {config.steps} steps; curves in {draw_curves(workdir, CURVES)}")
    file = workdir / HELDOUT
    if clips and not processes.in_turn(file.exists):
        mesh = make_mesh(config.mesh)
        model, text = checkpoint.load(workdir, mesh=mesh, dtype=config.dtype)
        evaluate = functools.partial(heldout.evaluate, model, text, cfg=config.data, mesh=mesh)
        result = evaluate(clips)
        other = evaluate(unseen, controls=("none",)) if unseen else None
        record = {
            "metrics": {name: x for name, x in result.metrics().items() if math.isfinite(x)},
            "left_out": result.left_out,
            "answers": [dataclasses.asdict(answer) for answer in result.answers],
            "unseen": [dataclasses.asdict(answer) for answer in other.answers] if other else [],
        }
        if first:
            part = workdir / f"{HELDOUT}.part"
            part.write_text(json.dumps(record, indent=1) + "\n")
            part.replace(file)
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
