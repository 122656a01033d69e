"""Where the numbers of a run go: files of its work directory, and the boards of ``config.log_to``.

The files are the run's own record, from which it resumes. A resumed run repeats what it has written after its
last checkpoint bit for bit, so boards that cannot take a step back lose nothing.
"""

import contextlib
import functools
import importlib
import importlib.util
import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ml_collections import ConfigDict

from vpjax.files import AnyPath, named, write_whole
from vpjax.types import UserError

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

METRICS_FILE = "metrics.jsonl"
RUN_ID_FILE = "run_id"  # a name that no other run has, under which trackers continue this one
TRACKERS = ("wandb", "trackio")  # packages of the user's own, with the same functions
PROJECT = "vpjax"  # under which trackers show runs


class Sink(Protocol):
    """A place that takes the numbers and pages of a run."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take one step's metrics, some of which may not be finite."""

    def page(self, name: str, step: int, markdown: str) -> None:
        """Take a page of a step."""

    def close(self) -> None: ...


class Writer:
    """Writes the metrics and pages of a run to the files of ``workdir`` and to the sinks of ``log_to``.

    step: the last one to keep. What a killed run wrote about later steps, after its last checkpoint, is
    dropped, because the resumed run writes it again. clock: gives the seconds since 1970 for boards.
    """

    def __init__(self, workdir: AnyPath, step: int, config: ConfigDict, clock: Callable[[], float]):
        workdir = Path(workdir)
        self.files = Files(workdir, step)
        self.sinks: list[Sink] = [self.files]
        for name in config.log_to:
            if name == "tensorboard":
                self.sinks.append(TensorBoard(workdir, step, clock))
            else:
                self.sinks.append(Tracker(name, workdir, config))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for sink in self.sinks:
            sink.write(step, metrics)

    def page(self, name: str, step: int, markdown: str) -> None:
        for sink in self.sinks:
            sink.page(name, step, markdown)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


class Files:
    """``metrics.jsonl``, one JSON line per step, in which numbers that are not finite are ``null``, and pages
    as Markdown files in folders of their name."""

    def __init__(self, workdir: Path, step: int):
        self._workdir = workdir
        lines = [line for line in read_metrics(workdir) if line["step"] <= step]
        write_whole(workdir / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file = open(workdir / METRICS_FILE, "a")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        numbers = {name: x if math.isfinite(x) else None for name, x in metrics.items()}
        with named(self._file.name):
            self._file.write(json.dumps({"step": step} | numbers) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Return when all that was written is on the disk."""
        os.fsync(self._file.fileno())

    def page(self, name: str, step: int, markdown: str) -> None:
        folder = self._workdir / name
        folder.mkdir(exist_ok=True)
        (folder / f"{step:06d}.md").write_text(markdown + "\n")

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """``<workdir>/tensorboard/``, without numbers that are not finite. The board is opened when it has
    something to show, so that the first step of a run does not wait for its import.

    tensorboardX's SummaryWriter writes in a thread, which a full disk ends, and the run would wait for it
    forever. So this writes the same events by itself."""

    def __init__(self, workdir: Path, step: int, clock: Callable[[], float]):
        self._folder, self._first, self._clock = workdir / "tensorboard", step + 1, clock

    @functools.cached_property
    def _events(self) -> "EventsWriter":
        from tensorboardX.event_file_writer import EventsWriter  # imports torch where that is installed
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder.mkdir(exist_ok=True)
        events = EventsWriter(str(self._folder / "events"))
        # Boards hide what an earlier start wrote from this step on.
        events.write_event(Event(step=self._first, file_version="brain.Event:2"))
        events.write_event(Event(step=self._first, session_log=SessionLog(status=SessionLog.START)))
        return events

    def _write(self, step: int, summaries: Iterable[Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with named(self._folder):
            for summary in summaries:
                self._events.write_event(Event(step=step, wall_time=self._clock(), summary=summary))
            self._events.flush()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        self._write(step, [scalar(name, x) for name, x in finite(metrics).items()])

    def page(self, name: str, step: int, markdown: str) -> None:
        from tensorboardX.summary import text

        self._write(step, [text(name, markdown)])

    def close(self) -> None:
        if "_events" in vars(self):
            with named(self._folder):
                self._events.close()


class Tracker:
    """A run of wandb or trackio, which their own login and environment variables lead to its place. It has
    the run's numbers that are finite, and no pages."""

    def __init__(self, name: str, workdir: Path, config: ConfigDict):
        own, shown = run_id(workdir), workdir.resolve().name
        about: dict[str, Any] = {"project": PROJECT, "config": config.to_dict(), "resume": "allow"}
        if name == "wandb":
            about |= {"id": own, "name": shown, "dir": str(workdir)}
        else:  # trackio knows a run by its name
            about |= {"name": f"{shown}-{own}"}
        self._run = importlib.import_module(name).init(**about)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(finite(metrics), step=step)

    def page(self, name: str, step: int, markdown: str) -> None:
        pass  # it is in the work directory

    def close(self) -> None:
        self._run.finish()


def check_installed(config: ConfigDict) -> None:
    """UserError if ``config.log_to`` names a package that is not installed."""
    for name in set(config.log_to) & set(TRACKERS):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"config.log_to names {name}, which is not installed: pip install {name}")


def run_id(workdir: Path) -> str:
    """The run's own name, which is made once."""
    file = workdir / RUN_ID_FILE
    if not file.exists():
        write_whole(file, uuid.uuid4().hex[:8].encode())
    return file.read_text()


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: x for name, x in metrics.items() if math.isfinite(x)}


def read_metrics(workdir: AnyPath) -> list[dict[str, Any]]:
    """The whole lines of ``metrics.jsonl``: without a last one that a killed run left incomplete, and without
    those that a power cut or a fault of the disk left as other bytes."""
    path = Path(workdir) / METRICS_FILE
    lines = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        with contextlib.suppress(ValueError):  # of JSON and of UTF-8
            row = json.loads(line)
            if line.endswith(b"\n") and isinstance(row, dict) and isinstance(row.get("step"), int):
                lines.append(row)
    return lines


def missing_lines(workdir: AnyPath, step: int) -> str:
    """What is missing in ``metrics.jsonl`` of the steps up to ``step``, each of which has written a line; "":
    nothing."""
    missing = sorted(set(range(1, step + 1)) - {line["step"] for line in read_metrics(workdir)})
    if not missing:
        return ""
    of_steps = (
        f"step {missing[0]}" if len(missing) == 1 else f"{len(missing)} steps from step {missing[0]} on"
    )
    return f"{Path(workdir) / METRICS_FILE} is damaged: the numbers of {of_steps} are lost; the run is not"
