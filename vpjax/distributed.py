"""One run in several processes: how they join, wait for one another, and end when one of them is lost.

A process learns its number from its flags, or from the cluster if ``jax.distributed`` knows that kind (Cloud
TPU, GKE, SLURM, Open MPI). Without either it runs alone.
"""

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
    """Join the processes that the arguments or the cluster name. Must be called before any other use of JAX.

    coordinator: HOST:PORT of process 0. processes: their number. process: the number of this one, from 0.
    timeout: seconds to wait for the others. UserError if only some of the three are given, or if process 0
    cannot be reached in time.
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
    # CPUs connect in their first exchange, for which gloo waits 30 seconds. Here all are there. Later ones
    # may take longer: process 0 makes clips, or compares a checkpoint with its sums, before the others go on.
    multihost_utils.sync_global_devices("all have joined")


def _reach(address: str, seconds: float) -> None:
    """Wait until something listens at ``address``. UserError if nothing does within ``seconds``."""
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
    """UserError if devices that share rows of a batch belong to several processes, which must not be where
    each process scores the completions of its own rows."""
    sharing = mesh.shape["context"] * mesh.shape["tensor"]
    if any(len({device.process_index for device in row}) > 1 for row in mesh.devices.reshape(-1, sharing)):
        raise UserError(
            f"config.mesh: {sharing} devices, context times tensor, share rows and span processes, each of "
            "which would score the same completions with config.grpo.rewards of your own: make them fewer, "
            "or start one process for all devices of a host"
        )


def process_zero_first(make: Callable[[], T]) -> T:
    """Call ``make`` in process 0 and then in the others, which find the files that it wrote."""
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
            "stopped? See its own output. The same command continues after the newest checkpoint"
        )
    return f"error: process {jax.process_index()} failed, and ends the others"


def leave(code: int) -> NoReturn:
    """Exit with ``code``. With several processes, a failure exits at once, which ends the others: an orderly
    exit would wait for them while they wait for this one in a computation."""
    if code and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
