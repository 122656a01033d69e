"""The chips of TPU slices, single GPUs, and the devices for which a program is compiled without them."""

import math
import os
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from vpjax.types import UserError


class Chip(NamedTuple):
    """Published figures of a chip. memory: GiB of HBM. reading: bytes per second from it. flops: bfloat16,
    per second. links: bytes per second sent over all links together, in a slice whose axes do not wrap around
    (``in_slice``). grids: sizes of a slice. products: operations of its matrix units in a cycle. is_gpu:
    programs cannot be compiled for it without it, so they are compiled for v5p chips, whose kernels hold as
    little in memory: an estimate."""

    memory: float
    reading: float
    flops: float
    links: float
    grids: tuple[str, ...]
    products: int = 0
    is_gpu: bool = False

    @property
    def clock(self) -> float:
        """Cycles a second."""
        return self.flops / self.products

    def in_slice(self, grid: str) -> "Chip":
        """The chip in a slice of this size. A ring along an axis that wraps around sends both ways; along one
        that ends each link carries all that passes it, so that it is as quick as one way."""
        if self.is_gpu:
            return self
        sides = [int(side) for side in grid.split("x")]
        if len(sides) == 3:
            wraps = [all(side % WRAPPED_CUBE == 0 for side in sides)] * 3
        else:
            wraps = [side == WRAPPED_SIDE for side in sides]
        return self._replace(links=self.links * (1 + sum(wraps) / len(sides)))


# What JAX calls a chip of them.
KINDS = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
SQUARES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
# An axis wraps around in v5e and v6e if it has this many chips; in v5p all axes of slices of whole cubes do.
WRAPPED_SIDE, WRAPPED_CUBE = 16, 4
# cloud.google.com/tpu/docs/v5e, /v5p and /v6e; NVIDIA's data sheets of A100 and H100 of 80 GB and of H200
# (SXM). The bandwidth between TPU chips, 400, 1,200 and 800 GB/s, counts two directions along each axis, and
# what is received beside what is sent: a quarter. That between GPUs counts the latter: half. The compiler
# needs 1.03, 1.11 and 1.14 times the cycles that ``products`` says for a product of two large matrices.
CHIPS = {
    "v5e": Chip(16, 819e9, 197e12, 100e9, SQUARES, 2**17),
    "v5p": Chip(95, 2765e9, 459e12, 300e9, CUBES, 2**18),
    "v6e": Chip(32, 1640e9, 918e12, 200e9, SQUARES, 2**19),
    "a100": Chip(79, 2039e9, 312e12, 300e9, ("1", "8"), is_gpu=True),
    "h100": Chip(79, 3350e9, 989e12, 450e9, ("1", "8"), is_gpu=True),
    "h200": Chip(139, 4800e9, 989e12, 450e9, ("1", "8"), is_gpu=True),
}
GPU_STANDINS = {"1": "1x1x1", "8": "2x2x2"}  # v5p chips
# Google Cloud names a slice by its chips, or of v5p by its cores, two a chip.
CORES = {"v5e": 1, "v5litepod": 1, "v6e": 1, "v5p": 2}


def memory_of(device: jax.Device) -> float:
    """GiB of a device's memory, 0 if it does not say: CPUs share one memory."""
    if device.device_kind in KINDS:
        return CHIPS[KINDS[device.device_kind]].memory
    return (device.memory_stats() or {}).get("bytes_limit", 0) / 2**30


def spelled_out(topology: str) -> str:
    """The topology of an accelerator type of Google Cloud: v5litepod-64 is v5e:8x8. Others stay."""
    name, _, count = topology.partition("-")
    if name not in CORES or not count.isdigit():
        return topology
    name = name.replace("litepod", "e")
    for grid in CHIPS[name].grids:
        if math.prod(int(side) for side in grid.split("x")) * CORES[name] == int(count):
            return f"{name}:{grid}"
    return topology


def find_devices(topology: str) -> tuple[Chip | None, list[jax.Device]]:
    """The chip (None: a CPU) and the devices of a topology. UserError for an unknown topology, or if libtpu
    is missing."""
    name, _, grid = spelled_out(topology).partition(":")
    if name == "cpu" and grid.isdigit() and int(grid):
        try:
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", int(grid))
        except RuntimeError:  # they exist already
            pass
        if len(jax.devices("cpu")) < int(grid):
            raise UserError(
                f"--topology={topology}: this process has {len(jax.devices('cpu'))} devices already"
            )
        return None, jax.devices("cpu")[: int(grid)]
    if name not in CHIPS or grid not in CHIPS[name].grids:
        known = "; ".join(f"{name}:{{{','.join(chip.grids)}}}" for name, chip in CHIPS.items())
        raise UserError(f"--topology={topology} is not known; known are {known}; cpu:N")
    options: dict[str, Any] = {}
    compiled_for = f"{name}:{grid}"
    if CHIPS[name].is_gpu:
        compiled_for = f"v5p:{GPU_STANDINS[grid]}"
        if grid == "1":
            options = dict(chips_per_host_bounds=(1, 1, 1))
    # No chip is taken, so others may plan at the same time; nothing runs, so no TPU is looked for.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        jax.config.update("jax_platforms", "cpu")
        described = topologies.get_topology_desc(compiled_for, platform="tpu", **options)
        return CHIPS[name].in_slice(grid), list(described.devices)
    except (ImportError, RuntimeError) as error:
        raise UserError(f"--topology={topology} needs libtpu: pip install 'vpjax[tpu]' ({error})") from error
