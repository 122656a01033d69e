"""Several processes as one run: how they find one another, agree on when to stop, and end when one is lost.

The cluster tells each process who it is (Cloud TPU, GKE, SLURM, Open MPI: what ``jax.distributed`` knows), or
its flags do. Without either a process is alone.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vpjax.types import UserError

T = TypeVar("T")


def join(coordinator: str | None, processes: int | None, process: int | None, timeout: int = 300) -> None:
    """Make this process one of those that its arguments or the cluster name; before anything else of JAX.

    coordinator: HOST:PORT of process 0. processes: how many there are. process: which of them this is, from
    0. timeout: seconds to wait for the others. UserError where only some of the three are given, or where
    process 0 cannot be reached in time.
    """
    given = coordinator, processes, process
    if given != (None, None, None):
        if coordinator is None or processes is None or process is None:
            raise UserError("--coordinator, --processes and --process belong together: give all three")
        if process >= processes:
            raise UserError(f"--process={process} is not below --processes={processes}")
        if processes == 1:
            return
        if process:  # JAX itself would abort
            _reach(coordinator, timeout)
    try:
        jax.distributed.initialize(*given, initialization_timeout=timeout)
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            raise UserError(f"the processes of this cluster cannot be joined: {error}") from error


def _reach(address: str, seconds: float) -> None:
    """Return when something listens at ``address``. UserError where nothing does within ``seconds``."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdigit()):
        raise UserError(f"--coordinator={address}: give HOST:PORT")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=min(seconds, 5)).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() + 0.2 > end:
                raise UserError(
                    f"--coordinator={address} cannot be reached within --join_timeout={seconds:g} s "
                    f"({error}): is process 0 running there, and the port open?"
                ) from error
        time.sleep(0.2)


def check_mesh(mesh: Mesh) -> None:
    """UserError where devices that share rows of a batch belong to several processes, each of which reads
    clips of its own."""
    tensor = mesh.shape["tensor"]
    if any(len({device.process_index for device in row}) > 1 for row in mesh.devices.reshape(-1, tensor)):
        raise UserError(
            f"config.mesh.tensor={tensor} spans processes, each of which reads clips of its own: make it "
            "smaller, or start one process for all devices of a host"
        )


def process_zero_first(make: Callable[[], T]) -> T:
    """``make()`` in process 0 and then, when its files are on the disk, in the others."""
    if jax.process_index() == 0:
        made = make()
        multihost_utils.sync_global_devices("process 0 is done")
        return made
    multihost_utils.sync_global_devices("process 0 is done")
    return make()


def explain(error: Exception) -> str:
    """The message for an error of this process, or for the loss of another one."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return (
            f"error: process {jax.process_index()}: a computation of all processes failed: has another one "
            "stopped? Its own output says why. The same command goes on after the newest checkpoint"
        )
    return f"error: process {jax.process_index()} failed, and ends the others"


def leave(code: int) -> NoReturn:
    """Exit with ``code``. Among several processes a failure exits at once, and so ends the others.

    (At an orderly exit JAX waits for the others, while they wait for this one in a computation.)
    """
    if code and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
