"""Trials in worker processes that are used again and again, each watched: time, memory and death."""

from __future__ import annotations

import dataclasses
import multiprocessing
import multiprocessing.connection
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.faults.tally import Log, Trial

SECONDS = 20.0  # from which on a trial hangs
HIGH_WATER = "VmHWM:"  # of /proc/self/status: the most memory since it was last reset
# Makes a trial from its number and an empty folder: (kind, outcome, detail).
Attempt = Callable[[int, Path], tuple[str, str, str]]


class Worker:
    """A process that makes trials, one at a time; another one takes its place when it dies or hangs."""

    def __init__(self, attempt: Attempt, folder: Path):
        self.attempt, self.folder = attempt, folder
        self.process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, self.attempt, self.folder), daemon=True)
        self.process.start()
        other.close()
        self.connection.recv()  # it has imported what it needs: that is not part of a trial's time

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.process = None

    def make(self, number: int) -> Trial:
        if self.process is None:
            self.start()
        assert self.process is not None
        begin = time.monotonic()
        self.connection.send(number)
        if not self.connection.poll(SECONDS):
            self.stop()
            return Trial("unknown", number, "hung", f"no answer in {SECONDS:g} s", SECONDS)
        seconds = time.monotonic() - begin
        try:
            kind, outcome, detail, megabytes = self.connection.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self.stop()
            return Trial("unknown", number, "crashed", f"the process died with code {code}", seconds)
        return Trial(kind, number, outcome, detail, seconds, megabytes)


def serve(connection: multiprocessing.connection.Connection, attempt: Attempt, folder: Path) -> None:
    """The loop of a worker."""
    connection.send("ready")
    while True:
        number = connection.recv()
        reset_high_water()
        try:
            kind, outcome, detail = attempt(number, folder)
        except Exception:
            kind, outcome, detail = "unknown", "crashed", traceback.format_exc(limit=-4)
        connection.send((kind, outcome, detail, high_water()))


def reset_high_water() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def high_water() -> float:
    """The most megabytes of memory that this process held since ``reset_high_water``."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(HIGH_WATER)[2].split()[0]) / 1024


def kind_at(kinds: Iterable[str], number: int) -> str:
    """The kind of a trial: they take turns."""
    names = list(kinds)
    return names[number % len(names)]


def run(attempt: Attempt, numbers: Iterable[int], log: Log, folder: Path, kinds: Iterable[str]) -> None:
    """Make the trials that ``log`` does not have. kinds: of all trials, for those that cannot tell theirs."""
    worker = Worker(attempt, folder)
    known = {trial.number for trial in log.trials}
    try:
        for number in numbers:
            if number in known:
                continue
            trial = worker.make(number)
            if trial.kind == "unknown":
                trial = dataclasses.replace(trial, kind=kind_at(kinds, number))
            log.add(trial)
    finally:
        worker.stop()
