"""One trainer at a time in a work directory: a lock that names its owner.

The lock is ``<workdir>/lock.json``, with the owner's machine, process and start. The system takes it from a
process that ends, however it ends, so a lock of this machine whose owner is gone is free. Another machine may
not see the system's locks. There, its owner is gone if the file, whose time it sets every BEAT seconds, stays
unchanged for PATIENCE seconds.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import jax

from vpjax.cli import say
from vpjax.types import UserError

FILE = "lock.json"
BEAT = 15.0  # seconds between two signs of life
PATIENCE = 90.0  # seconds without one, longer than shared file systems keep a file's old time
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of file systems that the system cannot lock


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Keep other trainers out of ``workdir``, which is made if there is none, while the block lasts.

    Process 0 of a run does so for all. UserError, which names the owner, if another trainer works there.
    """
    if jax.process_index() != 0:
        yield
        return
    is_new = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    file = take(workdir / FILE)
    ended = threading.Event()
    signs = threading.Thread(target=give_signs, args=(file.fileno(), ended), daemon=True)
    signs.start()
    try:
        yield
    finally:
        ended.set()
        signs.join()
        if is_same(file, workdir / FILE):
            (workdir / FILE).unlink()
        file.close()
        if is_new:
            with contextlib.suppress(OSError):  # something was written
                workdir.rmdir()


def take(path: Path) -> IO[str]:
    """The open lock file, which is this process's own until it is closed. UserError if it has an owner."""
    while True:
        file = open(path, "a+", encoding="utf-8")
        try:
            is_free = lock(file)
            if not is_same(file, path):  # its owner has just removed it
                file.close()
                continue
            owner = read_owner(file)
            is_gone = is_free and owner.get("host") == socket.gethostname()
            if is_free is False or (owner and not is_gone and shows_life(path)):
                raise UserError(
                    f"{path.parent}: another trainer works here: {described(owner)}. Wait for its end, stop "
                    f"it, or give another --workdir (if there is none any more: rm {path})"
                )
        except BaseException:
            file.close()
            raise
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        json.dump({"host": socket.gethostname(), "process": os.getpid(), "since": since}, file)
        file.flush()
        os.fsync(file.fileno())
        return file


def lock(file: IO[str]) -> bool | None:
    """Whether the system has given this process the lock; None: it cannot lock files of this kind."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in WITHOUT_LOCKS:
            return None
        raise
    return True


def is_same(file: IO[str], path: Path) -> bool:
    """Whether the open file is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def read_owner(file: IO[str]) -> dict[str, str]:
    """What the file says of its owner; {}: nothing, or nothing whole."""
    file.seek(0)
    try:
        owner = json.loads(file.read())
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def described(owner: dict[str, str]) -> str:
    if not owner:
        return "a process that has just begun"
    return f"process {owner.get('process')} on {owner.get('host')}, since {owner.get('since')}"


def shows_life(path: Path) -> bool:
    """Whether the time of the lock file changes within PATIENCE seconds."""
    before, end = path.stat().st_mtime_ns, time.monotonic() + PATIENCE
    say(f"{path}: its owner left it behind or is on another machine: waiting {PATIENCE:g} s for a sign of it")
    while time.monotonic() < end:
        time.sleep(min(1.0, BEAT))
        try:
            with open(path) as file:  # opened anew, so that a shared file system asks its server
                if os.fstat(file.fileno()).st_mtime_ns != before:
                    return True
        except FileNotFoundError:  # it has ended
            return False
    return False


def give_signs(descriptor: int, ended: threading.Event) -> None:
    """Set the time of the lock file every BEAT seconds."""
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):  # a disk in trouble is told of where the run writes
            os.utime(descriptor)
