"""Train: ``python -m vpjax.train --config configs/sft.py [--config.field=value ...] [--workdir DIR]``.

The same command again goes on where the run was stopped, bit for bit; on a finished run it repeats the result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from vpjax import checkpoint, cli, heldout, sft
from vpjax.data import events
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

CURVES = {
    "loss": ("loss", "loss/lm"),
    "contrast": ("loss/contrast",),
    "similarity to keyword": ("contrast/clean", "contrast/degraded", "contrast/gap"),
    "learning rate": ("lr",),
    "gradient norm": ("grad_norm",),
}
HELDOUT = "heldout.json"


def main() -> int:
    try:
        train(CONFIG.value, Path(WORKDIR.value or f"runs/{cli.config_name()}"))
    except KeyboardInterrupt:  # outside of the loop, which holds signals back
        say("stopped outside of the training loop; the same command goes on")
    return cli.OK


def train(config: ConfigDict, workdir: Path) -> None:
    """Run ``config`` in ``workdir`` from where it stands to its end, or to a signal.

    UserError for a mistake in the config, the files that it names or the work directory: before any training.
    """
    checkpoint.check_config(workdir, config.to_dict())
    clips = {split: read_split(config, split) for split in ("train", "heldout") if config.data[split]}
    model_config, text = prepare_model(config, workdir, clips["train"])
    manager = checkpoint.Manager(workdir, keep=config.keep)
    start = max(manager.steps(), default=0)
    if start < config.steps:
        start = fit(config, workdir, manager, start, clips["train"], model_config, text)
    manager.close()
    if start == config.steps:
        finish(config, workdir, clips.get("heldout"))


def fit(
    config: ConfigDict,
    workdir: Path,
    manager: checkpoint.Manager,
    start: int,
    clips: Sequence[Clip],
    model_config: VLMConfig,
    text: Text,
) -> int:
    """Train from step ``start`` on; the step at which the run was left, all of it on the disk."""
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
    state, optimizer, layout = create_state(initial_params(config, model_config, mesh, start), config, mesh)
    if start:
        state = manager.restore(start, state)
        say(f"{workdir}: goes on after step {start}")
    step = sft.make_step(abstract_model(model_config), config, optimizer, layout)
    checkpoint.write_config(workdir, config.to_dict())

    report = Report(config, workdir, start, int(state.skipped), [clip.id for clip in clips])
    with contextlib.closing(loader), contextlib.closing(report), cli.held_signals() as signals:
        say(*loader.summary())
        batches = report.waited_for((batch.clip, put_batch(batch, mesh)) for batch in loader)
        end = loop(step, state, batches, report, manager, config, start, signals)
        manager.wait()
    if signals:
        say(f"{signals[0]}: saved step {end} of {config.steps} in {workdir}; the same command goes on from there")
    return end


def loop(
    step: Callable[[State, Batch], tuple[State, dict[str, Array]]],
    state: State,
    batches: Iterator[tuple[np.ndarray, Batch]],
    report: Report,
    manager: checkpoint.Manager,
    config: ConfigDict,
    start: int,
    signals: Sequence[str],
) -> int:
    """The training loop: next batch, step, report, checkpoint when due. Returns the last step, which is saved.

    A step's metrics are read when the next one is under way, so that the devices never wait for the host.
    """
    late = None
    for number, (clips, batch) in zip(range(start + 1, config.steps + 1), batches, strict=False):
        state, metrics = step(state, batch)
        if late:
            report(*late)
        late = number, metrics, clips
        if signals or number == config.steps or number % config.checkpoint_every == 0:
            report(*late)
            late = None
            manager.save(number, state, config.to_dict())
        if signals:
            break
    return number


class Report:
    """What a run tells while it trains: every step's metrics to the work directory, now and then a line."""

    def __init__(self, config: ConfigDict, workdir: Path, start: int, skipped: int, ids: Sequence[str]):
        """skipped: updates that the run has skipped so far. ids: of all clips, by number."""
        self.config, self.ids, self.skipped = config, ids, skipped
        self.writer = Writer(workdir, start) if jax.process_index() == 0 else None
        self.began = self.since = time.perf_counter()
        self.start = self.last = start
        self.waited = self.tokens = 0.0

    def waited_for(self, batches: Iterator[Any]) -> Iterator[Any]:
        """``batches``, with the time that they take counted as waiting."""
        while True:
            before = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - before
            yield batch

    def __call__(self, step: int, metrics: dict[str, Array], clips: np.ndarray) -> None:
        """Report step ``step``. UserError when too many updates have been skipped."""
        metrics = {name: float(x) for name, x in metrics.items()}
        self.tokens += metrics["tokens"]
        if self.writer:
            self.writer.write(step, metrics)
        if metrics["nonfinite"]:
            self.skipped += 1
            what = (
                f"step {step}: the loss or its gradient is not finite, update skipped (clips "
                f"{', '.join(self.ids[i] for i in clips if i >= 0)})"
            )
            if self.skipped > self.config.max_nonfinite:
                raise UserError(f"{what}; this is number {self.skipped}, more than max_nonfinite allows")
            say(what)
        if step == self.start + 1:
            say(f"step {step}/{self.config.steps}  {summary(metrics)}  {time.perf_counter() - self.began:.0f} s to compile")
        elif step % self.config.log_every and step < self.config.steps:
            return
        else:
            self.line(step, metrics)
        self.since, self.last, self.waited, self.tokens = time.perf_counter(), step, 0.0, 0.0

    def line(self, step: int, metrics: dict[str, float]) -> None:
        seconds = time.perf_counter() - self.since
        rate = (step - self.last) / seconds
        say(
            f"step {step}/{self.config.steps}  {summary(metrics)}  {rate:.2f} steps/s  "
            f"{self.tokens / seconds:,.0f} tokens/s  {tqdm.format_interval((self.config.steps - step) / rate)} left  "
            f"{100 * self.waited / seconds:.0f} % waiting for data"
        )

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def summary(metrics: dict[str, float]) -> str:
    shown = {"loss": "loss", "lm": "loss/lm", "contrast": "loss/contrast", "gap": "contrast/gap"}
    return "  ".join(f"{name} {metrics[key]:.3f}" for name, key in shown.items() if key in metrics)


def read_split(config: ConfigDict, split: str) -> list[Clip]:
    """The clips of ``config.data.train`` or ``.heldout``, made now where they are the built-in ones."""
    source, root = config.data[split], config.data.videos
    if source != "events":
        return read_clips(source, root)
    cache = Path(config.data.cache or "~/.cache/vpjax").expanduser()
    fields = {field.name: config.events[field.name] for field in dataclasses.fields(events.EventSpec)}
    made = events.make(events.EventSpec(**fields), cache, {split: config.events[split]})
    return read_clips(made[split])


def prepare_model(config: ConfigDict, workdir: Path, clips: Sequence[Clip]) -> tuple[VLMConfig, Text]:
    """The run's model/ folder: copied from ``config.init``, or ``config.model`` with a tokenizer trained on the
    run's texts; made once."""
    folder, part = workdir / checkpoint.MODEL, workdir / f"{checkpoint.MODEL}.part"
    if not folder.exists():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        if config.init:
            hf.read_config(config.init)
            for file in (file for pattern in ("config.json", *hf.HF_FILES) for file in Path(config.init).glob(pattern)):
                shutil.copyfile(file, part / file.name)
        else:
            new_model(config, part, clips)
        part.replace(folder)
    return hf.read_config(folder), Text.load(folder)


def new_model(config: ConfigDict, folder: Path, clips: Sequence[Clip]) -> None:
    """Write config.json and tokenizer of a model from scratch."""
    if not config.model:
        raise UserError("config.init and config.model are both empty: name a folder with weights, or give sizes")
    model = config.model.to_dict()
    texts = (text for clip in clips for text in (clip.question, clip.answer))
    if config.data.train == "events":
        texts = events.sentences(events.EventSpec())
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


def initial_params(config: ConfigDict, model_config: VLMConfig, mesh: Mesh, start: int) -> dict[str, Any]:
    """Parameters by path, sharded: of ``config.init`` or at random; only their shapes where the run goes on."""
    key = jax.random.key(config.seed)

    def heads():
        return sft.init_heads(config, model_config.decoder.hidden, jax.random.fold_in(key, 0))

    def init():
        return leaves(VideoLM(model_config, rngs=nnx.Rngs(jax.random.fold_in(key, 1)))) | heads()

    shapes = jax.eval_shape(init)
    if start:
        return shapes
    if config.init:
        return leaves(hf.load_pretrained(config.init, mesh=mesh)) | heads()
    return jax.jit(init, out_shardings=shardings(shapes, mesh))()


def finish(config: ConfigDict, workdir: Path, clips: Sequence[Clip] | None) -> None:
    """Draw the curves and tell the held-out result of a finished run, which is computed once."""
    say(f"{workdir}: {config.steps} steps done; curves in {draw_curves(workdir, CURVES)}")
    if clips is None:
        return
    file = workdir / HELDOUT
    if not file.exists():
        model, text = checkpoint.load(workdir, dtype=config.dtype)
        result = heldout.evaluate(model, text, clips[: config.eval_clips], config.data)
        answers = [dataclasses.asdict(answer) for answer in result.answers]
        record = {"metrics": result.metrics(), "left_out": result.left_out, "answers": answers}
        part = file.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1) + "\n")
        part.replace(file)
    record = json.loads(file.read_text())
    answers = tuple(heldout.Answer(**answer) for answer in record["answers"])
    say(str(heldout.Evaluation(answers, record["left_out"])))


def say(*lines: str) -> None:
    if jax.process_index() == 0:
        print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    cli.run(main)
