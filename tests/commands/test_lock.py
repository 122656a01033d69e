"""A work directory has one trainer at a time, and one whose owner is gone is free."""

import fcntl
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

from vpjax import lock
from vpjax.recipes import sft
from vpjax.types import UserError

HELD = """
    import pathlib, signal, sys
    from vpjax import lock
    with lock.held(pathlib.Path(sys.argv[1])):
        print("held", flush=True)
        signal.pause()
"""


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    monkeypatch.setattr(lock, "PATIENCE", 0.5)


@pytest.fixture
def owner(tmp_path):
    """Another process that holds the lock of ``tmp_path / "run"``."""
    command = [sys.executable, "-c", textwrap.dedent(HELD), str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def left_by(host, workdir):
    """A lock file that names a process of ``host`` and that no process of this machine holds."""
    workdir.mkdir()
    file = workdir / lock.FILE
    file.write_text(json.dumps({"host": host, "process": 7, "since": "2026-01-01 00:00:00 UTC"}))
    return file


def test_a_folder_is_as_it_was_afterwards(tmp_path):
    """A new one is gone if nothing was written; one with files keeps these and no lock."""
    with lock.held(tmp_path / "new" / "run"):
        owner = json.loads((tmp_path / "new/run" / lock.FILE).read_text())
        assert owner["host"] == socket.gethostname() and owner["process"] == os.getpid()
    assert list((tmp_path / "new").iterdir()) == []
    with lock.held(tmp_path / "run"):
        (tmp_path / "run" / "config.json").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    with pytest.raises(ZeroDivisionError), lock.held(tmp_path / "run"):
        raise ZeroDivisionError
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


@pytest.mark.slow
def test_a_second_trainer_is_turned_away_in_one_line_that_names_the_first(owner, tmp_path):
    before = (tmp_path / "run" / lock.FILE).read_bytes()
    for _ in range(2):
        with pytest.raises(UserError) as error, lock.held(tmp_path / "run"):
            pass
        host = socket.gethostname()
        named = f"{tmp_path}/run: another trainer works here: process {owner.pid} on {host}, since 20"
        assert str(error.value).startswith(named) and "\n" not in str(error.value)
        assert (tmp_path / "run" / lock.FILE).read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_killed_owner_is_free_at_once(owner, tmp_path, number, monkeypatch):
    owner.send_signal(number)
    owner.wait()
    assert (tmp_path / "run" / lock.FILE).exists()  # it had no time to tidy up
    monkeypatch.setattr(lock, "shows_life", lambda path: pytest.fail("it waits"))
    with lock.held(tmp_path / "run"):
        assert f'"process": {os.getpid()}' in (tmp_path / "run" / lock.FILE).read_text()


def test_an_owner_on_another_machine_is_gone_if_it_gives_no_sign(tmp_path, capsys):
    file = left_by("elsewhere", tmp_path / "run")
    with lock.held(tmp_path / "run"):
        assert json.loads(file.read_text())["process"] == os.getpid()
    assert capsys.readouterr().out.count("waiting 0.5 s for a sign") == 1
    assert not file.exists()


def test_an_owner_on_another_machine_is_there_if_it_gives_signs(tmp_path):
    file, ended = left_by("elsewhere", tmp_path / "run"), threading.Event()
    with open(file) as opened:
        thread = threading.Thread(target=lock.give_signs, args=(opened.fileno(), ended))
        thread.start()
        with pytest.raises(UserError, match="process 7 on elsewhere, since 2026.* rm "):
            with lock.held(tmp_path / "run"):
                pass
        ended.set()
        thread.join()
    assert json.loads(file.read_text())["host"] == "elsewhere"


def test_where_files_cannot_be_locked_signs_decide(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(lock.WITHOUT_LOCKS[0], "no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.held(tmp_path / "run"):
        with pytest.raises(UserError, match=f"process {os.getpid()} on"), lock.held(tmp_path / "run"):
            pass
    left_by(socket.gethostname(), tmp_path / "left")
    with lock.held(tmp_path / "left"):
        pass


@pytest.mark.parametrize("content", ["", "{", "[1]", "\0" * 90])
def test_a_damaged_lock_file_is_no_owner(tmp_path, content):
    (tmp_path / lock.FILE).write_text(content)
    with lock.held(tmp_path):
        assert json.loads((tmp_path / lock.FILE).read_text())["process"] == os.getpid()


def test_other_processes_of_a_run_leave_it_to_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with lock.held(tmp_path / "run"):
        assert not (tmp_path / "run").exists()


def test_a_trainer_takes_the_lock_before_it_does_anything(tmp_path):
    train = importlib.import_module("vpjax.train")  # the module; ``vpjax.train`` is the function
    with lock.held(tmp_path / "run"):
        with pytest.raises(UserError, match="another trainer works here"):
            train.train(sft.get_config(), tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [lock.FILE]
