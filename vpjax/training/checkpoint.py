"""Checkpoints of a run, and the work directory that holds them.

<workdir>/model/         config.json and tokenizer in Hugging Face's format, without weights
<workdir>/checkpoints/   <step>/state: parameters and optimizer; <step>/run: the step and the config;
                         <step>/sums.json: the size and the CRC-32 of each file in these two
"""

import contextlib
import functools
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers, multihost

from vpjax.data.text import Text
from vpjax.files import AnyPath, local_folder, sync, sync_tree, write_whole
from vpjax.models import hf
from vpjax.models.lora import Lora, merged
from vpjax.models.sharding import shardings
from vpjax.models.vlm import VideoLM, VLMConfig, abstract_model, leaves, rebuild
from vpjax.training import run_config
from vpjax.training.best import best_of
from vpjax.training.optimizer import HEADS_PREFIX
from vpjax.training.sums import CHECKPOINTS, SUMS, damage_of, newest_whole, steps_in, sums_of
from vpjax.types import Array, UserError

MODEL = "model"
Step = int | Literal["best"] | None  # of a checkpoint; best: by ``config.keep_best``; None: the newest


class NewestAndBest(checkpoint_managers.PreservationPolicy):
    """The checkpoints to keep: the newest ``keep``, None: all, and that of the step ``best``, None: none."""

    def __init__(self, keep: int | None):
        self.keep = keep
        self.best: int | None = None

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        """For each checkpoint, oldest first, whether it is kept."""
        first = 0 if self.keep is None else len(checkpoints) - self.keep
        return [number >= first or x.step == self.best for number, x in enumerate(checkpoints)]


class Manager:
    """The checkpoints of one run, written by a background thread.

    A checkpoint is written under a temporary name and renamed when it is complete. The next manager removes
    what a killed process left unfinished. keep: the number of newest checkpoints to keep; None: only read.
    """

    def __init__(self, workdir: AnyPath, *, keep: int | None):
        self._folder = Path(workdir).absolute() / CHECKPOINTS
        writes = keep is not None
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_is_news)
        _leave_closed_loops()
        self._kept = NewestAndBest(keep)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._kept,
                create=writes,
                cleanup_tmp_directories=writes,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "run": ocp.JsonCheckpointHandler()},
        )

    def steps(self) -> list[int]:
        """The steps with a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, config: dict[str, Any], *, best: int | None = None) -> None:
        """Begin to write ``state`` after ``step`` steps. It may be donated as soon as this returns. best: the
        step whose checkpoint is kept besides the newest ones. UserError if this write, or the previous one,
        fails."""
        self._kept.best = best
        run = ocp.args.JsonSave({"step": step, "config": config})
        with self._write_errors():
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), run=run))

    def _seal(self) -> None:
        """Write the sums of the checkpoint that is about to get its name, all of it on the disk."""
        if multihost.is_primary_host(0):
            for unnamed in self._folder.glob("*.orbax-checkpoint-tmp*"):
                write_whole(unnamed / SUMS, json.dumps(sums_of(unnamed)).encode())
                sync_tree(unnamed)

    def restore(self, step: int, like: Any) -> Any:
        """The state after ``step`` steps, or the part of it that ``like`` has, a pytree of shapes, types and
        (optional) shardings."""
        restore_args = ocp.checkpoint_utils.construct_restore_args(like)
        item = ocp.args.PyTreeRestore(like, restore_args=restore_args, partial_restore=True)
        return self._manager.restore(step, args=ocp.args.Composite(state=item)).state

    def shapes(self, step: int) -> Any:
        """The state after ``step`` steps as nested dicts of objects with ``shape`` and ``dtype``."""
        return self._manager.item_metadata(step).state.tree

    def wait(self) -> None:
        """Return when everything is on the disk. Errors as in ``save``."""
        with self._write_errors():
            self._manager.wait_until_finished()
            sync(self._folder)

    def close(self) -> None:
        self._manager.close()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
            raise UserError(
                f"{self._folder}: a checkpoint could not be written: {_reason_of(error)}"
            ) from error


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of the log says more than the error that is raised: orbax also logs the error of a save
    in each of its threads, and asyncio for each array, with tracebacks."""
    is_of_saving = record.name == "asyncio" or "orbax" in record.pathname
    return not (is_of_saving and record.exc_info)


@functools.cache  # once in a process
def _leave_closed_loops() -> None:
    """Print nothing when tensorstore's threads tell the event loop of a save that failed what they wrote."""
    show = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = hook


def _reason_of(error: Exception) -> str:
    """Why a file could not be written. tensorstore has the number of the system's error behind its paths."""
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(number[1])) if number else str(error).splitlines()[0]


def model_folder(path: AnyPath) -> Path:
    """The folder of config and tokenizer: model/ in a work directory, a Hugging Face folder itself."""
    path = Path(path)
    return path / MODEL if (path / MODEL).is_dir() else path


def read_model_config(path: AnyPath) -> VLMConfig:
    """The sizes of the model in a work directory or a Hugging Face folder. UserError if it is neither."""
    check_model(path)
    return hf.read_config(model_folder(path))


def check_model(path: AnyPath) -> None:
    """UserError, with what to do, for what users take for a model: a name on the hub, an adapter, quantised
    weights."""
    folder = local_folder(path)
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}; give a run's work directory (python -m vpjax.train --config sft "
            "makes runs/sft) or a Hugging Face folder, which for a model of the hub is made by: "
            f"hf download {folder} --local-dir DIR"
        )
    config, adapter = model_folder(folder) / "config.json", folder / "adapter_config.json"
    if adapter.is_file() and not config.is_file():
        base = hf.read_json(adapter).get("base_model_name_or_path", "its base model")
        raise UserError(
            f"{folder} has an adapter of {base} and no model: train on with it by --config.init_from=BASE "
            "--config.lora.init_from=FOLDER, or merge them (merge_and_unload of peft, then save_pretrained) "
            "and give the folder of the result"
        )
    if config.is_file() and "quantization_config" in hf.read_json(config):
        raise UserError(
            f"{config} is of quantised weights, which are not supported: give the folder of the model before "
            "it was quantised"
        )


def step_of(path: AnyPath, step: Step = None, say: Callable[[str], None] | None = None) -> int | None:
    """The number of a step that has a whole checkpoint in a work directory. None, if no step is asked for:
    there is none, as in a Hugging Face folder.

    say: is told if the newest checkpoint is damaged, and an older one is taken; None: that is an error.
    UserError if there is no such checkpoint, or it is damaged.
    """
    path = Path(path)
    if not (path / MODEL).is_dir():
        if step is not None:
            raise UserError(f"{path}: no work directory of a run, so it has no step {step}")
        return None
    steps = steps_in(path)
    if step is None:
        whole, damaged = newest_whole(path, steps)
        if damaged:
            newest, damage = next(iter(damaged.items()))
            line = f"{path}: the checkpoint of step {newest} is damaged ({damage})"
            if say is None:
                raise UserError(f"{line}: move it elsewhere, and that of step {whole} is taken")
            say(f"{line}: that of step {whole} is taken")
        return whole
    found = _best_step(path, max(steps, default=0)) if step == "best" else step
    if found not in steps:
        raise UserError(f"{path}: no checkpoint of step {found} in it; it has {steps or 'none yet'}")
    if damage := damage_of(path / CHECKPOINTS / str(found)):
        others = [other for other in steps if not damage_of(path / CHECKPOINTS / str(other))]
        rest = f"whole are those of {others}" if others else "none is whole"
        raise UserError(f"{path}: the checkpoint of step {found} is damaged ({damage}); {rest}")
    return found


def existing_step(workdir: AnyPath, step: Step = None, say: Callable[[str], None] | None = None) -> int:
    """``step_of`` in a work directory. UserError if there is no checkpoint yet."""
    found = step_of(workdir, step, say)
    if found is None:
        raise UserError(f"{workdir}: no checkpoint in it yet")
    return found


def _best_step(workdir: Path, newest: int) -> int:
    """The best step of a run, among those up to its newest checkpoint, which all led to that checkpoint."""
    metric = run_config.read(workdir).get("keep_best", "")
    if not metric:
        raise UserError(f"{workdir}: no step is its best one, because config.keep_best names no metric")
    step = best_of(workdir, metric, newest).step
    if step is None:
        raise UserError(f"{workdir}: no step is its best one yet: {metric} has not been measured")
    return step


def load_model(
    path: AnyPath,
    *,
    step: Step = None,
    mesh: Mesh | None = None,
    dtype: Any = None,
    say: Callable[[str], None] | None = None,
) -> tuple[VideoLM, Text]:
    """The model and its tokenizer, from a work directory or a Hugging Face folder. Adapters of a run are
    merged into their kernels.

    step: of the checkpoint, see ``Step``. mesh: each device gets its shard; default: everything on the
    default device. dtype: of all parameters; default: as stored, in a work directory the widest stored type.
    say: see ``step_of``. UserError if the folder is neither or has no such checkpoint.
    """
    params = dict(load_params(path, step=step, mesh=mesh, dtype=dtype, say=say))
    folder = model_folder(path)
    model_config = hf.read_config(folder)
    return rebuild(abstract_model(model_config), params), text_of(folder, model_config)


def text_of(folder: Path, model_config: VLMConfig) -> Text:
    """The tokenizer of a model's folder. UserError if it is another model's: ids that the embedding lacks
    would be read as its last one, and a video's tokens as text."""
    text = Text.load(folder)
    largest, vocab = max(text.tokenizer.get_vocab().values()), model_config.decoder.vocab
    if largest >= vocab:
        raise UserError(
            f"{folder}: the tokenizer has ids up to {largest}, but vocab_size in config.json is {vocab}: use "
            "the model's own tokenizer, or first resize the model (resize_token_embeddings in transformers)"
        )
    names = ["image_pad", "video_pad"]
    if model_config.tokens_per_second is None:  # only then they are written around each slot
        names += ["vision_start", "vision_end"]
    for name in names:
        field = name.replace("pad", "token")
        found, expected = getattr(model_config, field), getattr(text, name)
        if found != expected:
            raise UserError(
                f"{folder}: <|{name}|> is {found} in config.json, but {expected} in the tokenizer: use the "
                "model's own tokenizer"
            )
    return text


def load_params(
    path: AnyPath,
    *,
    step: Step = None,
    mesh: Mesh | None = None,
    dtype: Any = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[tuple[str, jax.Array]]:
    """The parameters of a model by path, see ``load_model``, one after another: of a Hugging Face folder each
    is read when it is asked for, of a run each is forgotten here when it has been given."""
    check_model(path)
    path = Path(path)
    if not (path / MODEL).is_dir():
        step_of(path, step)  # there is none
        yield from hf.read_params(path, mesh=mesh, dtype=dtype)
        return
    model_config, lora = hf.read_config(path / MODEL), adapters_of(path)
    params = read_params(path, step, leaves(abstract_model(model_config, lora=lora)), mesh, say)
    dtype = dtype or functools.reduce(jnp.promote_types, (x.dtype for x in params.values()))
    for name in leaves(abstract_model(model_config)):
        x = params[name] if lora is None else merged(name, params, lora, dtype)
        del params[name]
        yield name, x.astype(dtype)


def load_heads(workdir: AnyPath, *, step: Step = None) -> dict[str, Array]:
    """The heads of the contrast that a run of SFT trained, by path; {} for a run or folder without them."""
    workdir = Path(workdir)
    if not (workdir / MODEL).is_dir():
        return {}
    with contextlib.closing(Manager(workdir, keep=None)) as manager:
        params = manager.shapes(existing_step(workdir, step))["params"]
    heads = {path: x for path, x in params.items() if path.startswith(HEADS_PREFIX)}
    return dict(read_params(workdir, step, heads, None)) if heads else {}


def adapters_of(workdir: AnyPath) -> Lora | None:
    """The adapters of a run; None if it has none."""
    return Lora.of(run_config.read(Path(workdir)).get("lora", {}))


def read_params(
    workdir: Path,
    step: Step,
    paths: dict[str, Any],
    mesh: Mesh | None,
    say: Callable[[str], None] | None = None,
) -> dict[str, jax.Array]:
    """The parameters ``paths`` (arrays or shapes) of a run, trained and frozen. step, mesh, say: as in
    ``load_model``."""
    step = existing_step(workdir, step, say)
    layout: dict[str, Any] = dict.fromkeys(paths, SingleDeviceSharding(jax.local_devices()[0]))
    if mesh:
        layout = shardings(paths, mesh)
    with contextlib.closing(Manager(workdir, keep=None)) as manager:
        stored = manager.shapes(step)
        like: dict[str, dict[str, Any]] = {}
        for part in ("params", "frozen"):
            wanted = {name: x for name, x in (stored[part] or {}).items() if name in paths}
            if wanted:
                like[part] = {
                    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout[name])
                    for name, x in wanted.items()
                }
        restored = manager.restore(step, like)
    return restored.get("params", {}) | restored.get("frozen", {})
