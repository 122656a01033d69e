"""Checkpoints of a run, and the work directory that holds them.

<workdir>/model/         config.json and tokenizer as Hugging Face has them: all but the weights
<workdir>/checkpoints/   <step>/state: parameters and optimizer; <step>/run: the step and the config
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh, SingleDeviceSharding

from vpjax.data.text import Text
from vpjax.models import hf
from vpjax.models.sharding import shardings
from vpjax.models.vlm import VideoLM, abstract_model, leaves, rebuild
from vpjax.types import Array, UserError

MODEL, CHECKPOINTS = "model", "checkpoints"


class Manager:
    """The checkpoints of one run: written by a background thread, each complete or not there at all.

    A step is written under a temporary name and renamed when all of it is on the disk; what a killed process
    left unfinished is removed by the next manager. keep: newest checkpoints that stay; None: only read.
    """

    def __init__(self, workdir: str | os.PathLike, *, keep: int | None):
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
        """The steps that are complete, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, config: dict[str, Any]) -> None:
        """Begin to write ``state`` after ``step`` steps; it may be donated as soon as this returns. UserError
        where this write, or the one before, fails."""
        run = ocp.args.JsonSave({"step": step, "config": config})
        with self._explained():
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), run=run))

    def restore(self, step: int, like: Any) -> Any:
        """The state after ``step`` steps, or the part of it that ``like`` has: shapes, types and, where they
        have one, shardings."""
        where = ocp.checkpoint_utils.construct_restore_args(like)
        item = ocp.args.PyTreeRestore(like, restore_args=where, partial_restore=True)
        return self._manager.restore(step, args=ocp.args.Composite(state=item)).state

    def shapes(self, step: int) -> Any:
        """The state after ``step`` steps as nested dicts of things with ``shape`` and ``dtype``."""
        return self._manager.item_metadata(step).state.tree

    def wait(self) -> None:
        """Return when everything is on the disk; errors as for ``save``."""
        with self._explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
            reason = str(error).splitlines()[0]
            raise UserError(f"{self._folder}: a checkpoint could not be written: {reason}") from error


def model_folder(path: str | os.PathLike) -> Path:
    """Where config and tokenizer are: model/ of a work directory, a Hugging Face folder itself."""
    path = Path(path)
    return path / MODEL if (path / MODEL).is_dir() else path


def load(
    path: str | os.PathLike,
    *,
    step: int | None = None,
    mesh: Mesh | None = None,
    dtype: Any = None,
) -> tuple[VideoLM, Text]:
    """The model and its tokenizer, from a work directory or a Hugging Face folder.

    step: of the checkpoint; default: the newest. mesh: each device is given its shard; default: everything on
    the default device. dtype: of all parameters; default: as stored, for a work directory the widest type in
    it. UserError for a folder that is neither, or that holds no such checkpoint.
    """
    path = Path(path)
    if not (path / MODEL).is_dir():
        if step is not None:
            raise UserError(f"{path}: no work directory of a run, so it has no step {step}")
        return hf.load_pretrained(path, mesh=mesh, dtype=dtype), Text.load(path)
    manager = Manager(path, keep=None) if (path / CHECKPOINTS).is_dir() else None
    steps = manager.steps() if manager else []
    chosen = max(steps, default=None) if step is None else step
    if chosen not in steps:
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise UserError(f"{path}: no {wanted} in it; it has {steps or 'none yet'}")
    model = abstract_model(hf.read_config(path / MODEL))
    params = _read_params(manager, chosen, leaves(model), mesh)
    manager.close()
    dtype = dtype or functools.reduce(jnp.promote_types, (x.dtype for x in params.values()))
    return rebuild(model, {name: x.astype(dtype) for name, x in params.items()}), Text.load(path / MODEL)


def _read_params(manager: Manager, step: int, paths: dict[str, Any], mesh: Mesh | None) -> dict[str, Array]:
    """The model's parameters, trained and frozen, without the rest of the state."""
    where = (
        shardings(paths, mesh) if mesh else dict.fromkeys(paths, SingleDeviceSharding(jax.local_devices()[0]))
    )
    stored = manager.shapes(step)
    like = {
        part: {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[name])
            for name, x in stored[part].items()
            if name in paths
        }
        for part in ("params", "frozen")
        if stored[part]
    }
    restored = manager.restore(step, like)
    return {name: x for part in restored.values() for name, x in part.items()}
