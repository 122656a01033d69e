"""Decodes videos by tensorflow-io, in a worker process with an environment of its own (``tfio_worker``).

Times come from the file's packets, as for PyAV; the pixels come from the worker, through a file in shared
memory. tensorflow-io decodes whole files, which suits short clips.
"""

import contextlib
import functools
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import numpy as np

from vpjax.data.decode import BadTimestamps, FrameIndex, Problem, opened, upright
from vpjax.events.drawing import encode
from vpjax.files import AnyPath, fetched
from vpjax.types import UserError

WORKER = Path(__file__).with_name("tfio_worker.py")
SHARED = "/dev/shm"  # files in memory, on systems that have them
WIDTH_STEP = 16  # pixels: tensorflow-io 0.37.1 overruns its buffer at any other width
PROBE_SHAPE = (4, 48, 64, 3)  # of the clip that a worker decodes first: frames, height, width, channels


class Worker:
    """A process that decodes one video at a time, for any number of threads.

    python: the path of a Python with tensorflow-io. UserError, naming what is missing, if it cannot decode.
    """

    def __init__(self, python: str):
        self.name = f"data.tfio_python={python}"
        self.lock = threading.Lock()
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        try:
            # The worker ends when this process does, which closes its input.
            self.process = Popen(
                [python, str(WORKER)], stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True, env=environment
            )
        except OSError as error:
            raise UserError(f"{self.name}: cannot be run ({error.strerror})") from error
        started = self._receive()
        if "missing" in started:
            raise UserError(f"{self.name}: {started['missing']}")
        self.versions = started["versions"]
        self._probe()

    def _probe(self) -> None:
        """Decode a tiny clip. UserError if that fails."""
        count = PROBE_SHAPE[0]
        with tempfile.NamedTemporaryFile(suffix=".mp4") as clip:
            clip.write(encode(np.zeros(PROBE_SHAPE, np.uint8), fps=8, crf=23))
            clip.flush()
            try:
                found, frames = self.decode(Path(clip.name), np.arange(count))
            except Problem as problem:
                raise UserError(f"{self.name}: {self.versions} decodes no H.264 ({problem})") from problem
        if found != count or frames.shape != PROBE_SHAPE:
            raise UserError(f"{self.name}: {self.versions} finds {found} frames in a clip of {count}")

    def decode(self, path: Path, numbers: np.ndarray) -> tuple[int, np.ndarray]:
        """A local file's frame count, and its frames u8[F,h,w,3] at ``numbers``. Problem if it is broken."""
        folder = SHARED if os.path.isdir(SHARED) else None
        with tempfile.NamedTemporaryFile(dir=folder) as shared, self.lock:
            request = {"path": str(path), "frames": numbers.tolist(), "into": shared.name}
            assert self.process.stdin
            with contextlib.suppress(BrokenPipeError):  # the worker died, which _receive reports
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
            message = self._receive()
            if "error" in message:
                raise Problem(f"tensorflow-io: {message['error']}")
            return message["count"], np.fromfile(shared.name, np.uint8).reshape(message["shape"])

    def _receive(self) -> dict[str, Any]:
        """The worker's next message. UserError if it ended."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"{self.name}: the worker ended with code {self.process.wait()}")
        return json.loads(line)


_starting = threading.Lock()  # so that threads start one worker between them


@functools.cache
def _worker(python: str, process: int) -> Worker:
    return Worker(python)


def worker(python: str) -> Worker:
    """The worker of this process."""
    with _starting:
        return _worker(python, os.getpid())


def decode_with_tfio(
    python: str, path: AnyPath, index: FrameIndex, chosen: np.ndarray, max_side: int
) -> Iterator[np.ndarray]:
    """The upright frames u8[h,w,3] at ``chosen``, as ``vpjax.data.decode.decode_frames``."""
    with opened(path, max_side) as (container, stream):
        width = stream.codec_context.width
        if width % WIDTH_STEP:
            raise Problem(f"is {width} pixels wide; tensorflow-io needs a multiple of {WIDTH_STEP}: use PyAV")
        first = next(container.decode(stream), None)
    with fetched(path) as file:
        try:
            count, frames = worker(python).decode(file, chosen)
        except UserError:
            _worker.cache_clear()  # this file killed the worker: start another one for the next file
            raise
    if count != len(index.times):
        raise BadTimestamps(f"has {len(index.times)} frames, of which tensorflow-io decodes {count}")
    if first is None:
        raise Problem("has no decodable frame")
    for frame in frames:
        yield upright(frame, first)
