"""Timing for the benchmarks: ratios of calls that take turns in one process, after a warm-up."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from vpjax.types import UserError

Name = TypeVar("Name", bound=Hashable)


def medians(runs: Mapping[Name, Callable[[], object]], *, rounds: int, warmup: int = 2) -> dict[Name, float]:
    """Median seconds of each call. The calls take turns, so that load from other programs affects all of them
    alike; each must return only when its work is done."""
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    for turn in range(warmup + rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def environment(*packages: str) -> str:
    """The machine and the versions of a measurement, in one line. UserError for a package that is missing."""
    try:
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"{error.name} is not installed") from error
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}"


def publish(lines: Sequence[str], out: Path | None) -> None:
    """Print a result and, if there is a path ``out``, write it there."""
    print("\n".join(lines))
    write_result(lines, out)


def write_result(lines: Sequence[str], out: Path | None) -> None:
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n".join(lines) + "\n")
