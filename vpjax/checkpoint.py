"""Checkpoints of a run, and the work directory that holds them.

    <workdir>/config.json    the run's config
    <workdir>/model/         Hugging Face config.json and tokenizer: with a checkpoint, all that the model needs
    <workdir>/checkpoints/   <step>/state: parameters and optimizer; <step>/run: the step and the config
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from vpjax.data.text import Text
from vpjax.models import hf
from vpjax.models.vlm import VideoLM, abstract_model, leaves, rebuild
from vpjax.sharding import shardings
from vpjax.types import UserError

CONFIG, MODEL, CHECKPOINTS = "config.json", "model", "checkpoints"
# Fields that may differ when a run is resumed: they change no number, but that another mesh rounds differently.
FREE = ("log_every", "checkpoint_every", "keep", "max_nonfinite", "mesh", "data.workers", "data.cache", "data.cache_gb")


class Manager:
    """The checkpoints of one run: written by a background thread, each complete or not there at all.

    A step is written under a temporary name and renamed when all of it is on the disk; what a killed process
    left unfinished is removed by the next manager. keep: newest checkpoints that stay; None: only read.
    """

    def __init__(self, workdir: str | os.PathLike, *, keep: int | None):
        self._folder = Path(workdir).absolute() / CHECKPOINTS
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, cleanup_tmp_directories=keep is not None, read_only=keep is None
            ),
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "run": ocp.JsonCheckpointHandler()},
        )

    def steps(self) -> list[int]:
        """The steps that are complete, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, config: dict[str, Any]) -> None:
        """Begin to write ``state`` after ``step`` steps; it may be donated as soon as this returns. UserError
        where this write, or the one before, fails."""
        items = {"state": ocp.args.PyTreeSave(state), "run": ocp.args.JsonSave({"step": step, "config": config})}
        with self._explained():
            self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, step: int, like: Any) -> Any:
        """The state after ``step`` steps, or the part of it that ``like`` has: arrays' shapes, types and, where
        they have one, shardings."""
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


def load(
    path: str | os.PathLike, *, step: int | None = None, mesh: jax.sharding.Mesh | None = None, dtype: Any = None
) -> tuple[VideoLM, Text]:
    """The model and its tokenizer, from a work directory or a Hugging Face folder.

    step: of the checkpoint; default: the newest. mesh: each device is given its shard; default: everything on the
    default device. dtype: of all parameters; default: as stored, for a work directory the widest type in it.
    UserError for a folder that is neither, or that holds no such checkpoint.
    """
    path = Path(path)
    if not (path / MODEL).is_dir():
        return hf.load_pretrained(path, mesh=mesh, dtype=dtype), Text.load(path)
    manager = Manager(path, keep=None)
    steps = manager.steps()
    step = max(steps, default=None) if step is None else step
    if step not in steps:
        raise UserError(f"{path}: no checkpoint{'' if step is None else f' of step {step}'}; there are {steps}")
    model = abstract_model(hf.read_config(path / MODEL))
    paths = leaves(model)
    where = shardings(paths, mesh) if mesh else dict.fromkeys(paths, SingleDeviceSharding(jax.devices()[0]))
    stored = manager.shapes(step)
    like = {
        part: {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[name])
            for name, x in stored[part].items()
            if name in paths
        }
        for part in ("params", "frozen")
    }
    restored = manager.restore(step, like)
    manager.close()
    params = restored["params"] | restored["frozen"]
    dtype = dtype or functools.reduce(jnp.promote_types, (x.dtype for x in params.values()))
    return rebuild(model, {name: x.astype(dtype) for name, x in params.items()}), Text.load(path / MODEL)


def check_config(workdir: str | os.PathLike, config: dict[str, Any]) -> None:
    """UserError where ``workdir`` holds a run with another config, naming the fields that differ."""
    path = Path(workdir) / CONFIG
    if not path.exists():
        return
    there, here = _flat(json.loads(path.read_text())), _flat(json.loads(json.dumps(config)))
    differ = [
        f"{name}={there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name) and not name.startswith(FREE)
    ]
    if differ:
        raise UserError(f"{path} is of another run ({'; '.join(differ)}): give another --workdir")


def write_config(workdir: str | os.PathLike, config: dict[str, Any]) -> None:
    path = Path(workdir) / CONFIG
    part = path.with_suffix(".part")
    part.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(part, path)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    out = {}
    for name, value in config.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return out
