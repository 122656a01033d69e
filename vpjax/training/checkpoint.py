"""Checkpoints of a run, and the work directory that holds them.

<workdir>/model/         config.json and tokenizer in Hugging Face's format, without weights
<workdir>/checkpoints/   <step>/state: parameters and optimizer; <step>/run: the step and the config
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh, SingleDeviceSharding

from vpjax.data.text import Text
from vpjax.files import AnyPath
from vpjax.models import hf
from vpjax.models.lora import Lora, merge
from vpjax.models.sharding import shardings
from vpjax.models.vlm import VideoLM, abstract_model, leaves, rebuild
from vpjax.training import run_config
from vpjax.types import UserError

MODEL, CHECKPOINTS = "model", "checkpoints"


class Manager:
    """The checkpoints of one run, written by a background thread.

    A checkpoint is written under a temporary name and renamed when it is complete. The next manager removes
    what a killed process left unfinished. keep: the number of newest checkpoints to keep; None: only read.
    """

    def __init__(self, workdir: AnyPath, *, keep: int | None):
        self._folder = Path(workdir).absolute() / CHECKPOINTS
        writes = keep is not None
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=writes, cleanup_tmp_directories=writes
            ),
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "run": ocp.JsonCheckpointHandler()},
        )

    def steps(self) -> list[int]:
        """The steps with a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, config: dict[str, Any]) -> None:
        """Begin to write ``state`` after ``step`` steps. It may be donated as soon as this returns. UserError
        if this write, or the previous one, fails."""
        run = ocp.args.JsonSave({"step": step, "config": config})
        with self._write_errors():
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), run=run))

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

    def close(self) -> None:
        self._manager.close()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
            reason = str(error).splitlines()[0]
            raise UserError(f"{self._folder}: a checkpoint could not be written: {reason}") from error


def model_folder(path: AnyPath) -> Path:
    """The folder of config and tokenizer: model/ in a work directory, a Hugging Face folder itself."""
    path = Path(path)
    return path / MODEL if (path / MODEL).is_dir() else path


def newest_step(workdir: AnyPath) -> int | None:
    """The newest checkpoint of a work directory; None: there is none, as in a Hugging Face folder."""
    if not (Path(workdir) / CHECKPOINTS).is_dir():
        return None
    with contextlib.closing(Manager(workdir, keep=None)) as manager:
        return max(manager.steps(), default=None)


def load_model(
    path: AnyPath,
    *,
    step: int | None = None,
    mesh: Mesh | None = None,
    dtype: Any = None,
) -> tuple[VideoLM, Text]:
    """The model and its tokenizer, from a work directory or a Hugging Face folder. Adapters of a run are
    merged into their kernels.

    step: of the checkpoint; default: the newest. mesh: each device gets its shard; default: everything on the
    default device. dtype: of all parameters; default: as stored, in a work directory the widest stored type.
    UserError if the folder is neither or has no such checkpoint.
    """
    path = Path(path)
    if not (path / MODEL).is_dir():
        if step is not None:
            raise UserError(f"{path}: no work directory of a run, so it has no step {step}")
        return hf.load_pretrained(path, mesh=mesh, dtype=dtype), Text.load(path)
    model_config, lora = hf.read_config(path / MODEL), adapters_of(path)
    params = read_params(path, step, leaves(abstract_model(model_config, lora=lora)), mesh)
    dtype = dtype or functools.reduce(jnp.promote_types, (x.dtype for x in params.values()))
    if lora is not None:
        params = merge(params, lora, dtype)
    model = rebuild(abstract_model(model_config), {name: x.astype(dtype) for name, x in params.items()})
    return model, Text.load(path / MODEL)


def adapters_of(workdir: AnyPath) -> Lora | None:
    """The adapters of a run; None if it has none."""
    return Lora.of(run_config.read(Path(workdir)).get("lora", {}))


def read_params(
    workdir: Path, step: int | None, paths: dict[str, Any], mesh: Mesh | None
) -> dict[str, jax.Array]:
    """The parameters ``paths`` (arrays or shapes) of a run, trained and frozen. step, mesh: as in
    ``load_model``."""
    layout: dict[str, Any] = dict.fromkeys(paths, SingleDeviceSharding(jax.local_devices()[0]))
    if mesh:
        layout = shardings(paths, mesh)
    with contextlib.closing(Manager(workdir, keep=None)) as manager:
        steps = manager.steps()
        if not steps or (step is not None and step not in steps):
            missing = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise UserError(f"{workdir}: no {missing} in it; it has {steps or 'none yet'}")
        step = steps[-1] if step is None else step
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
