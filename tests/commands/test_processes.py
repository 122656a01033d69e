"""Two processes with four devices each are one with eight: numbers, checkpoints, signals, mistakes."""

import importlib
import json
import os
import re
import socket
import subprocess
import sys
import types
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from tests.commands.test_train import everything, small
from vpjax import distributed as processes
from vpjax.models.sharding import make_mesh, shardings
from vpjax.training import checkpoint
from vpjax.types import UserError

train = importlib.import_module("vpjax.train")  # the module; ``vpjax.train`` is the function
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_runs")]

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 9, 3  # the two processes evaluate at least once before they stop
CHANGES = {"steps": STEPS, "mesh.data": 2, "mesh.fsdp": -1, "optim.lr": 1e-4}
CHANGES |= {
    "checkpoint_every": STEPS,
    "eval_every": EVERY,
    "eval_part": 4,
    "eval_controls": ("none",),
    "keep_best": "heldout/loss",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


def config(folder):
    return small(str(folder / "cache"), **CHANGES)


@pytest.fixture(scope="module")
def stopped(folder):
    """A run of two processes in ``folder / "two"``, through launch/local.sh, after SIGTERM to the second one:
    (its last step, what it printed)."""
    recipe, python = folder / "recipe.py", folder / "python"
    recipe.write_text(
        "from tests.commands.test_processes import Path, config\n\n"
        f"def get_config():\n    return config(Path({str(folder)!r}))\n"
    )
    python.write_text(
        '#!/bin/sh\n[ "$1" = -c ] || { shift 2; set -- -m tests.commands.process "$@"; }\n'
        f'exec {sys.executable} "$@"\n'  # in the shell's place, so that the launcher's signals arrive
    )
    python.chmod(0o755)
    env = os.environ | dict(
        PYTHON=str(python),
        XLA_FLAGS=os.environ["XLA_FLAGS"].replace("count=8", "count=4"),
    )
    command = [ROOT / "launch" / "local.sh", "2", "--config", recipe, f"--workdir={folder / 'two'}"]
    command.append("--join_timeout=60")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(re.search(rf"SIGTERM: saved step (\d+) of {STEPS}", done.stdout).group(1)), done.stdout


@pytest.fixture(scope="module")
def state(folder, stopped):
    """The whole state of ``stopped`` by its checkpoint, before the run goes on."""
    return everything(folder / "two", stopped[0])


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_signal_to_one_process_saves_all_at_one_step(folder, stopped):
    step, out = stopped
    assert 3 <= step < STEPS
    assert out.count("saved step") == out.count(f"step 1/{STEPS}") == 1  # process 0 alone speaks
    manager = checkpoint.Manager(folder / "two", keep=None)
    assert manager.steps()[-1] == step
    manager.close()
    assert [line["step"] for line in metrics(folder / "two")][:step] == list(range(1, step + 1))


@pytest.mark.parametrize("devices", [1, 4])
def test_their_checkpoint_is_read_on_other_devices(folder, state, stopped, devices):
    mesh = make_mesh(dict(data=1, fsdp=devices, tensor=1), jax.devices()[:devices])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state["params"])
    where = shardings(shapes, mesh)
    like = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[path]) for path, x in shapes.items()}
    manager = checkpoint.Manager(folder / "two", keep=None)
    params = manager.restore(stopped[0], {"params": like})["params"]
    manager.close()
    chex.assert_trees_all_equal(params, state["params"])
    kernel = params["decoder.layers.q.kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[1] == kernel.shape[1] // devices


def test_one_process_goes_on_and_the_numbers_are_those_of_one_alone(folder, state, monkeypatch, capsys):
    """After two processes were stopped, one with 8 devices finishes their run, as one that nothing stopped
    does. (``benchmarks.faults`` kills processes, too.) Losses of order 7, those of held-out clips too: 1e-5
    of them is a few roundings, grown over the steps."""
    monkeypatch.setattr(train, "finish", lambda config, workdir, step: None)  # no evaluation of all clips
    train.train(config(folder), folder / "two")
    assert "goes on after step" in capsys.readouterr().out
    train.train(config(folder), folder / "one")
    two, one = metrics(folder / "two"), metrics(folder / "one")
    assert [line["step"] for line in two] == [line["step"] for line in one] == list(range(1, STEPS + 1))
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
        assert ("heldout/loss" in ours) == (ours["step"] % EVERY == 0)
    assert checkpoint.step_of(folder / "two", "best") == checkpoint.step_of(folder / "one", "best")


def test_devices_that_share_rows_belong_to_one_process():
    def mesh(context, tensor):
        devices = [types.SimpleNamespace(process_index=i // 2) for i in range(8)]
        shape = 1, 8 // (context * tensor), context, tensor
        sizes = {"context": context, "tensor": tensor}
        return types.SimpleNamespace(devices=np.reshape(devices, shape), shape=sizes)

    processes.check_mesh(mesh(1, 1))
    processes.check_mesh(mesh(1, 2))
    for sizes in ((1, 4), (4, 1), (2, 2)):
        with pytest.raises(UserError, match="config.mesh: 4 devices, context times tensor, share rows"):
            processes.check_mesh(mesh(*sizes))


def test_processes_meet_as_soon_as_they_have_joined(monkeypatch):
    """Gloo waits 30 seconds for the first exchange of CPUs, and process 0 may take minutes for the clips, so
    the first must not be the one after these. Later ones wait as long as it takes."""
    calls = []
    monkeypatch.setattr(processes, "_reach", lambda address, seconds: calls.append("reach"))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: calls.append("initialize"))
    monkeypatch.setattr(processes.multihost_utils, "sync_global_devices", lambda name: calls.append("meet"))
    processes.join("h:1", processes=2, process=1)
    assert calls == ["reach", "initialize", "meet"]


def test_a_single_process_joins_nothing():
    processes.join("nowhere:1", processes=1, process=0)
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    "flags, message",
    [
        ((None, 2, None), "belong together"),
        (("h:1", 2, 2), "--process=2 is not below --processes=2"),
        (("h", 2, 1), "--coordinator=h: give HOST:PORT"),
    ],
)
def test_flags_that_name_no_process(flags, message):
    with pytest.raises(UserError, match=message):
        processes.join(*flags)


def test_a_coordinator_that_cannot_be_reached():
    with socket.socket() as taken:  # bound and not listening: nothing answers there
        taken.bind(("localhost", 0))
        address = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--coordinator={address} cannot be reached within .*=1 s"):
            processes.join(address, processes=2, process=1, timeout=1)
