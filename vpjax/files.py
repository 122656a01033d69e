"""Files at a local path, or at a URL (gs://, s3://, memory://, ...) that fsspec opens."""

import contextlib
import errno
import json
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

AnyPath = str | os.PathLike[str]

URL = re.compile(r"[a-z][a-z0-9+.-]*://")
EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # protocol -> the extra of vpjax that opens it


def is_remote(path: AnyPath) -> bool:
    return bool(URL.match(os.fspath(path)))


def local_folder(path: AnyPath) -> Path:
    """The folder of a run or a model. UserError for a URL, whose files cannot be appended to or mapped into
    memory."""
    if is_remote(path):
        raise UserError(
            f"{os.fspath(path)}: runs and models are folders of this machine: mount the bucket (gs:// by "
            "gcsfuse) and give the path under which it is mounted"
        )
    return Path(path)


def join_path(root: AnyPath, path: AnyPath) -> str:
    """``path`` relative to the folder ``root``; ``path`` itself if it is absolute or a URL."""
    root, path = os.fspath(root), os.fspath(path)
    if is_remote(path) or os.path.isabs(path):
        return path
    return f"{root.rstrip('/')}/{path}" if is_remote(root) else os.path.join(root, path)


def folder_of(path: AnyPath) -> str:
    """The folder of a file; "" if its path names none."""
    path = os.fspath(path)
    return path.rpartition("/")[0] if is_remote(path) else os.path.dirname(path)


def open_file(path: AnyPath, mode: str = "rb") -> IO[Any]:
    """Open a file; the folders of a file to be written are created. Raises OSError as ``open`` does, and
    UserError for a URL whose package is not installed."""
    if is_remote(path):
        system, inner = _file_system(path)
        with _as_os_errors(path):
            return system.open(inner, mode)
    if not mode.startswith("r"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    return open(path, mode, encoding=None if "b" in mode else "utf-8")


def read_object(path: AnyPath, remedy: str) -> dict[str, Any]:
    """The JSON object of a file that vpjax or a model's makers wrote. UserError, which ends with what to do,
    if the file is damaged. Raises OSError as ``open_file``."""
    with open_file(path) as file:
        content = file.read()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged (no JSON: {error}): {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged (no JSON object): {remedy}")
    return value


def write_whole(path: AnyPath, content: bytes, *, keep: bool = True) -> None:
    """Write a file that nobody can see half-written. keep: see ``written``."""
    if is_remote(path):
        system, inner = _file_system(path)
        system.pipe_file(inner, content)  # object stores show an object when it is complete
        return
    with written(path, keep=keep) as part:
        part.write_bytes(content)


def write_json(path: AnyPath, value: Any) -> None:
    """Write a JSON file in the form of Hugging Face's, which nobody can see half-written."""
    write_whole(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


@contextlib.contextmanager
def written(path: AnyPath, *, keep: bool = True) -> Iterator[Path]:
    """A local file to be written, for libraries that only write local files. It becomes ``path`` when the
    block ends; if the block fails, ``path`` stays as it was. keep: a power cut, too, leaves it whole or as it
    was, for which the disk is waited for."""
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder, os.path.basename(path))
            yield part
            with open(part, "rb") as source, open_file(path, "wb") as target:
                shutil.copyfileobj(source, target)
        return
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(f"{final.name}.{uuid.uuid4().hex}.part")
    try:
        with named(final):
            part.touch()
            rights = part.stat().st_mode  # those of any new file, which some libraries do not give theirs
            yield part
            part.chmod(rights)
            if keep:
                sync(part)
            part.replace(final)
            if keep:
                sync(final.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def named(path: AnyPath) -> Iterator[None]:
    """Give errors of the system that name no file, as those of a full disk, the file that is written to."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = os.fspath(path)
        raise


def sync(path: AnyPath) -> None:
    """Return when a local file or the names in a local folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # there is nothing to wait for
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: AnyPath) -> None:
    """Return when a local folder with all that is in it is on the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync(os.path.join(root, name))
        sync(root)


@contextlib.contextmanager
def fetched(path: AnyPath) -> Iterator[Path]:
    """``path`` as a local file, while the block lasts: for libraries that only read local files."""
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, os.path.basename(path))
        with open_file(path) as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target)
        yield copy


def exists(path: AnyPath) -> bool:
    """Whether there is a file or folder. UserError as ``open_file``."""
    if is_remote(path):
        system, inner = _file_system(path)
        with _as_os_errors(path):
            return system.exists(inner)
    return os.path.exists(path)


def is_folder(path: AnyPath) -> bool:
    if is_remote(path):
        system, inner = _file_system(path)
        with _as_os_errors(path):
            return system.isdir(inner)
    return os.path.isdir(path)


def names_in(folder: AnyPath) -> list[str]:
    """The names of the files and folders in a folder, in no particular order."""
    if is_remote(folder):
        system, inner = _file_system(folder)
        return [os.path.basename(name.rstrip("/")) for name in system.ls(inner, detail=False)]
    return os.listdir(folder)


def stamp(path: AnyPath) -> tuple[int, int]:
    """A file's size in bytes and the time of its last change in ns, by which a change of the file is noticed.
    OSError if it is missing."""
    if is_remote(path):
        system, inner = _file_system(path)
        with _as_os_errors(path):
            size = int(system.info(inner).get("size") or 0)
            try:
                return size, int(system.modified(inner).timestamp() * 1e9)
            except NotImplementedError:  # HTTP gives no time
                return size, 0
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _as_os_errors(path: AnyPath) -> Iterator[None]:
    """Raise the errors that a place's own library has, such as for missing credentials, as OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", os.fspath(path)) from error


def _file_system(path: AnyPath) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    url = os.fspath(path)
    protocol = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        remedy = f"pip install 'vpjax[{extra}]'" if extra else str(error)
        raise UserError(f"{url}: {protocol}:// needs a package that is not installed: {remedy}") from error
    except ValueError as error:
        raise UserError(f"{url}: {protocol}:// is no place that fsspec knows") from error
