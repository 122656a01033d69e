"""A cache of decoded frames on disk, limited in bytes."""

import contextlib
import hashlib
import os
import zlib
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from vpjax.data.video import Video
from vpjax.files import AnyPath, written

# Increased whenever decoding or resizing gives other pixels or times than before, or a page has another form.
PIXELS_VERSION = 5
# A page has the CRC-32 of what follows; the number of frames, their height and width (int64); the seconds
# that a frame lasts, the interval of the moments, and the time of each frame (float64); and the pixels.
SUM_BYTES = 8
SHAPE_BYTES = 3 * 8


class DamagedPage(Exception):
    """A page of the cache whose bytes are not those that were written."""


def sum_of(*arrays: np.ndarray) -> bytes:
    """The CRC-32 of the bytes of arrays, one after another."""
    crc = 0
    for array in arrays:
        crc = zlib.crc32(array.data, crc)
    return crc.to_bytes(SUM_BYTES, "little")


def cache_folder(data_config: ConfigDict) -> Path:
    """The folder of a run's caches. data_config: the fields ``data`` of configs/base.py."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(data_config.cache or Path(home, "vpjax")).expanduser()


class FrameCache:
    """Decoded videos by key, in a folder that several processes may share.

    limit: bytes; beyond it the least recently used entries are deleted. 0: keep nothing.
    """

    def __init__(self, folder: AnyPath, limit: int):
        self.folder = Path(folder)
        self.limit = limit
        self.total: int | None = None  # bytes in the folder at the last count; None: never counted
        self.uncounted = 0  # bytes written by this process since then

    def key(self, *parts: object) -> str:
        """The key of everything that determines the pixels: the file, its state, the sampling and the
        size."""
        return hashlib.sha256(repr((PIXELS_VERSION, parts)).encode()).hexdigest()[:32]

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.frames"

    def get(self, key: str) -> Video | None:
        """The decoded video, or None if it is not in the cache. DamagedPage, and the file is deleted, if it
        is not what was put there."""
        path = self.path(key)
        try:
            page = np.fromfile(path, np.uint8)
        except OSError:
            return None
        body = page[SUM_BYTES:]
        if page[:SUM_BYTES].tobytes() != sum_of(body):
            path.unlink(missing_ok=True)
            raise DamagedPage(f"{path}: not as it was written")
        with contextlib.suppress(OSError):  # it may belong to another user, or have been evicted
            os.utime(path)
        shape = body[:SHAPE_BYTES].view(np.int64)
        seconds_end = SHAPE_BYTES + 8 * (2 + int(shape[0]))
        seconds = body[SHAPE_BYTES:seconds_end].view(np.float64)
        frame_seconds, interval = seconds[:2].tolist()
        return Video(body[seconds_end:].reshape(*shape, 3), seconds[2:], frame_seconds, interval)

    def put(self, key: str, video: Video) -> None:
        """Add a decoded video, which appears whole or not at all. OSError if it cannot be written."""
        if video.frames.nbytes > self.limit:
            return
        with written(self.path(key), keep=False) as part, open(part, "wb") as file:
            # Bare arrays: np.load reads its header through ast, which threads break on Python 3.11.
            shape = np.array(video.frames.shape[:3], np.int64)
            seconds = np.array([video.frame_seconds, video.interval, *video.times], np.float64)
            parts = [shape, seconds, np.ascontiguousarray(video.frames)]
            file.write(sum_of(*parts))
            for array in parts:
                file.write(array.data)
        self.uncounted += video.frames.nbytes
        # Other processes write too, so the folder is counted now and then, not only when this one fills it.
        is_full = self.total is None or self.total + self.uncounted > self.limit
        if is_full or self.uncounted > self.limit // 16:
            self.evict()

    def evict(self) -> None:
        """If the folder is over its limit, delete the least recently used entries down to 90 % of it, so that
        this is rarely needed."""
        entries = []
        for path in self.folder.glob("*/*"):  # unfinished files of killed processes, too
            with contextlib.suppress(FileNotFoundError):  # evicted by another process
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        if total > self.limit:
            for _, size, path in sorted(entries, key=lambda entry: entry[0]):
                path.unlink(missing_ok=True)
                total -= size
                if total <= 0.9 * self.limit:
                    break
        self.total, self.uncounted = total, 0
