"""Videos by tensorflow-io, in a worker process with an environment of its own (``tfio_worker``).

Times come from the file's packets, as for PyAV; the pixels come from the worker, through a file in shared
memory. tensorflow-io decodes a file as a whole: this is for short clips.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vpjax.data.decode import FrameIndex, Problem, Untrusted, opened, upright
from vpjax.events.drawing import encode
from vpjax.files import fetched
from vpjax.types import UserError

WORKER = Path(__file__).with_name("tfio_worker.py")
SHARED = "/dev/shm"  # files in memory, where a system has them
WIDTH = 16  # pixels: at a width that is no multiple of it, tensorflow-io 0.37.1 overruns its buffer
PROBE = 4, 48, 64  # frames, height and width of the clip that a worker decodes first


class Worker:
    """A process that decodes one video at a time, for any number of threads.

    python: the path of a Python that has tensorflow-io. UserError where it has not, naming what is missing.
    """

    def __init__(self, python: str):
        self.name = f"data.tfio_python={python}"
        self.lock = threading.Lock()
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            # It ends when this process does, which closes its input.
            self.process = subprocess.Popen([python, WORKER], **pipes, text=True, env=os.environ | quiet)
        except OSError as error:
            raise UserError(f"{self.name}: cannot be run ({error.strerror})") from error
        started = self._heard()
        if "missing" in started:
            raise UserError(f"{self.name}: {started['missing']}")
        self.versions = started["versions"]
        self._probe()

    def _probe(self) -> None:
        """Decode a tiny clip."""
        count, *size = PROBE
        with tempfile.NamedTemporaryFile(suffix=".mp4") as clip:
            clip.write(encode(np.zeros((count, *size, 3), np.uint8), fps=8, crf=23))
            clip.flush()
            try:
                found, frames = self.decode(Path(clip.name), np.arange(count))
            except Problem as problem:
                raise UserError(f"{self.name}: {self.versions} decodes no H.264 ({problem})") from problem
        if found != count or frames.shape != (*PROBE, 3):
            raise UserError(f"{self.name}: {self.versions} finds {found} frames in a clip of {count}")

    def decode(self, path: Path, places: np.ndarray) -> tuple[int, np.ndarray]:
        """How many frames a local file has, and those at ``places`` u8[F,h,w,3]. Problem where it has
        none."""
        folder = SHARED if os.path.isdir(SHARED) else None
        with tempfile.NamedTemporaryFile(dir=folder) as shared, self.lock:
            request = {"path": str(path), "frames": places.tolist(), "into": shared.name}
            with contextlib.suppress(BrokenPipeError):  # a worker that died says nothing, which is seen next
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
            heard = self._heard()
            if "error" in heard:
                raise Problem(f"tensorflow-io: {heard['error']}")
            return heard["count"], np.fromfile(shared.name, np.uint8).reshape(heard["shape"])

    def _heard(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"{self.name}: the worker ended with code {self.process.wait()}")
        return json.loads(line)


_starting = threading.Lock()  # so that threads start one between them


@functools.cache
def _worker(python: str, process: int) -> Worker:
    return Worker(python)


def worker(python: str) -> Worker:
    """The worker of this process."""
    with _starting:
        return _worker(python, os.getpid())


def decode(
    python: str, path: str | Path, index: FrameIndex, chosen: np.ndarray, max_side: int
) -> Iterator[np.ndarray]:
    """The chosen frames u8[h,w,3], upright; as ``vpjax.data.decode.decode``."""
    with opened(path, max_side) as (container, stream):
        width = stream.codec_context.width
        if width % WIDTH:
            raise Problem(f"is {width} pixels wide; tensorflow-io needs a multiple of {WIDTH}: use PyAV")
        first = next(container.decode(stream), None)
    with fetched(path) as file:
        try:
            count, frames = worker(python).decode(file, chosen)
        except UserError:
            _worker.cache_clear()  # it died of this file: the next one gets another
            raise
    if count != len(index.times):
        raise Untrusted(f"has {len(index.times)} frames, of which tensorflow-io decodes {count}")
    for frame in frames:
        yield upright(frame, first)
