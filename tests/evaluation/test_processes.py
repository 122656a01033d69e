"""An evaluation by two processes with four devices each is that of one with eight, to the byte."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import vpjax.evaluate
from tests import runs
from tests.commands.call import ALONE, call
from vpjax.evaluation import run as evaluation

pytestmark = pytest.mark.slow

CLIPS = 10
BROKEN = {1: 0.0, 4: 0.5, 6: 0.5, 7: 0.5}  # from this share of its data on a clip's video is broken
FLAGS = dict(benchmark="events", controls="none,blind,key,shuffle", contrast="motion,self,key", fsdp=2)
FLAGS |= dict(batch=8, max_new_tokens=6)


def break_frames(path, share):
    """Overwrite the frames of a video from a share of its data on. Where the first are left, the file looks
    whole until it is decoded."""
    content = bytearray(path.read_bytes())
    data = content.index(b"mdat") + 4
    end = data - 8 + int.from_bytes(content[data - 8 : data - 4], "big")
    first = data + int(share * (end - data))
    content[first:end] = bytes(end - first)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Those of an evaluation of clips of which some cannot be decoded."""
    workdir = runs.make_run(tmp_path_factory.mktemp("runs") / "run", clips=CLIPS)
    clips = evaluation.requested_clips(evaluation.Request("events", model=workdir))[0]
    for number, share in BROKEN.items():
        break_frames(Path(clips[number].video), share)
    return FLAGS | dict(model=workdir)


def in_two(folder, flags):
    """Two processes at once: (exit code, stdout, stderr) of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = os.environ | dict(XLA_FLAGS=os.environ["XLA_FLAGS"].replace("count=8", "count=4"))
    command = [sys.executable, "-m", "tests.evaluation.process", "--rank", "--processes=2"]
    command.append(f"--coordinator={address}")
    command += [f"--{name}={value}" for name, value in (flags | dict(out=folder)).items()]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = [subprocess.Popen([*command, f"--process={n}"], env=env, **pipes) for n in (0, 1)]
    printed = [process.communicate(timeout=500) for process in started]
    return [(process.returncode, *texts) for process, texts in zip(started, printed, strict=True)]


@pytest.fixture(scope="module")
def one(flags, tmp_path_factory):
    """The folder of an evaluation by one process, and what it printed."""
    folder = tmp_path_factory.mktemp("one")
    code, out, err = call(vpjax.evaluate.main, "--rank", **flags, **ALONE, out=folder)
    assert code == 0, err
    return folder, out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_processes_write_what_one_does(flags, one, tmp_path):
    """After an interruption that left some of the predictions. What one process alone
    can find, that a video cannot be decoded and that a clip has no key frames, all heed."""
    folder, printed = one
    results = json.loads((folder / "results.json").read_text())
    assert sum(results["unusable"].values()) == len(BROKEN)
    assert results["controls"]["contrast by motion, ranked"]["rows"]
    (tmp_path / "request.json").write_bytes((folder / "request.json").read_bytes())
    lines = (folder / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "predictions.jsonl").write_bytes(b"".join(lines[:13]) + lines[13][:9])
    shutil.rmtree(flags["model"].parent / "frames")  # of the videos, which must be decoded again
    (code, out, err), (other_code, other_out, other_err) = in_two(tmp_path, flags)
    assert code == other_code == 0, err + other_err
    assert contents(tmp_path) == contents(folder)
    # Process 0 alone speaks. Before that, the library that connects CPUs does.
    assert out.endswith(printed.replace(str(folder), str(tmp_path))) and "events" not in other_out
    # Each decodes a part of the videos, and none is decoded by both.
    decoded = [re.findall("decodes (.*)", text) for text in (err, other_err)]
    looks_whole = CLIPS - list(BROKEN.values()).count(0.0)
    assert len(set(decoded[0]) | set(decoded[1])) == len(decoded[0]) + len(decoded[1]) == looks_whole
    assert min(map(len, decoded)) > 1
