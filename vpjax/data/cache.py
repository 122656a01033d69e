"""Decoded frames on disk: what was decoded once is read back, up to a limit of bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

from vpjax.data.video import Video

VERSION = 1  # raised whenever decoding or resizing gives other pixels than before


class FrameCache:
    """Decoded videos by key, in a folder that several processes may share.

    limit: bytes beyond which the entries that were used least recently go; 0: keep nothing.
    """

    def __init__(self, folder: str | Path, limit: int):
        self.folder = Path(folder)
        self.limit = limit
        self.total: int | None = None  # bytes in the folder when they were last counted; None: never
        self.unseen = 0  # bytes written by this process since then

    def key(self, *parts: object) -> str:
        """The key of whatever decides the pixels: the file's identity, the sampling, the size."""
        return hashlib.sha256(repr((VERSION, parts)).encode()).hexdigest()[:32]

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.frames"

    def get(self, key: str) -> Video | None:
        """The decoded video, or None where it is not kept or not whole."""
        path = self.path(key)
        try:
            with open(path, "rb") as file:
                video = Video(np.load(file), np.load(file), float(np.load(file)))
            os.utime(path)  # its last use
        except FileNotFoundError:
            return None
        except (ValueError, EOFError):  # cut short, by a full disk for one
            path.unlink(missing_ok=True)
            return None
        return video

    def put(self, key: str, video: Video) -> None:
        """Keep a decoded video; it appears whole or not at all. OSError where it cannot be written."""
        if video.frames.nbytes > self.limit:
            return
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=path.parent)
        try:
            with open(handle, "wb") as file:
                for part in (video.frames, video.times, video.frame_seconds):
                    np.save(file, part)
            os.replace(unfinished, path)
        except OSError:
            os.unlink(unfinished)
            raise
        self.unseen += video.frames.nbytes
        # Other processes write too, so the folder is counted anew now and then, not only when this one fills
        # it.
        if self.total is None or self.total + self.unseen > self.limit or self.unseen > self.limit // 16:
            self.evict()

    def evict(self) -> None:
        """Delete the least recently used entries beyond the limit, and some more so that this stays rare."""
        entries = []
        for path in self.folder.glob("*/*.frames"):
            with contextlib.suppress(FileNotFoundError):  # another process evicts as well
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        self.total, self.unseen = sum(size for _, size, _ in entries), 0
        if self.total <= self.limit:
            return
        for _, size, path in sorted(entries, key=lambda entry: entry[0]):
            if self.total <= 0.9 * self.limit:
                break
            path.unlink(missing_ok=True)
            self.total -= size
