"""Where files live: a local path, or a URL (gs://, s3://, memory://, ...) that fsspec opens."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec

from vpjax.types import UserError

URL = re.compile(r"[a-z][a-z0-9+.-]*://")
EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # of vpjax, by protocol


def is_remote(path: str | os.PathLike) -> bool:
    return bool(URL.match(os.fspath(path)))


def join_path(root: str | os.PathLike, path: str | os.PathLike) -> str:
    """``path`` as seen from the folder ``root``; itself where it is absolute or a URL."""
    root, path = os.fspath(root), os.fspath(path)
    if is_remote(path) or not is_remote(root):
        return path if is_remote(path) else os.path.join(root, path)
    return path if os.path.isabs(path) else f"{root.rstrip('/')}/{path}"


def folder_of(path: str | os.PathLike) -> str:
    """The folder of a file; "" where its path names none."""
    path = os.fspath(path)
    return path.rpartition("/")[0] if is_remote(path) else os.path.dirname(path)


def open_file(path: str | os.PathLike, mode: str = "rb") -> IO[Any]:
    """Open a file. The folders of one that is written are made. OSError as ``open``; UserError for a URL
    whose package is not installed."""
    path = os.fspath(path)
    if is_remote(path):
        system, place = _system(path)
        return system.open(place, mode)
    if not mode.startswith("r"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    return open(path, mode, encoding=None if "b" in mode else "utf-8")


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Write a file that nobody can see half-written."""
    path = os.fspath(path)
    if is_remote(path):
        system, place = _system(path)
        system.pipe_file(place, content)  # object stores show an object when it is complete
        return
    with _appearing(Path(path)) as part:
        part.write_bytes(content)


@contextlib.contextmanager
def written(path: str | os.PathLike) -> Iterator[Path]:
    """A local file to be written, which becomes ``path`` when the block ends and not at all where it
    fails: for libraries that only write local files."""
    path = os.fspath(path)
    if not is_remote(path):
        with _appearing(Path(path)) as part:
            yield part
        return
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder, path.rpartition("/")[2])
        yield part
        with open(part, "rb") as source, open_file(path, "wb") as target:
            shutil.copyfileobj(source, target)


@contextlib.contextmanager
def fetched(path: str | os.PathLike) -> Iterator[Path]:
    """``path`` as a local file, while the block lasts: for libraries that only read local files."""
    path = os.fspath(path)
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.rpartition("/")[2])
        with open_file(path) as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target)
        yield copy


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A name beside a local file, which takes the file's own when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or folder. UserError as ``open_file``."""
    if is_remote(path):
        system, place = _system(os.fspath(path))
        return system.exists(place)
    return os.path.exists(path)


def is_folder(path: str | os.PathLike) -> bool:
    if is_remote(path):
        system, place = _system(os.fspath(path))
        return system.isdir(place)
    return os.path.isdir(path)


def names_in(folder: str | os.PathLike) -> list[str]:
    """The names of the files and folders in a folder, in no order."""
    if is_remote(folder):
        system, place = _system(os.fspath(folder))
        return [name.rstrip("/").rpartition("/")[2] for name in system.ls(place, detail=False)]
    return os.listdir(folder)


def stamp(path: str | os.PathLike) -> tuple[int, int]:
    """A file's size in bytes and the time of its last change in ns: whether it is still what it was. OSError
    where it is missing."""
    if is_remote(path):
        system, place = _system(os.fspath(path))
        size = int(system.info(place).get("size") or 0)
        try:
            return size, int(system.modified(place).timestamp() * 1e9)
        except NotImplementedError:  # HTTP: its size is all that is known
            return size, 0
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    protocol = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        wanted = f"pip install 'vpjax[{extra}]'" if extra else str(error)
        raise UserError(f"{url}: {protocol}:// needs a package that is not installed: {wanted}") from error
    except ValueError as error:
        raise UserError(f"{url}: {protocol}:// is no place that fsspec knows") from error
