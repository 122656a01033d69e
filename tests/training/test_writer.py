"""Where a run's numbers go: the same numbers everywhere, and what a killed run wrote too much is dropped."""

import json
import math
import struct
import sys
from types import ModuleType

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from vpjax.recipes import base
from vpjax.training.writer import TRACKERS, Writer, check_installed, missing_lines, read_metrics
from vpjax.types import UserError


def config_of(*log_to):
    config = base.get_config()
    config.log_to = log_to
    return config


def clock():
    return 1.5e9


class Board:
    """Stands for a package such as wandb: the runs that it was asked for, and what they were given."""

    def __init__(self):
        self.runs = []

    def init(self, **about):
        self.runs.append(about | {"logged": [], "finished": 0})
        run = self.runs[-1]

        class Run:
            def log(self, metrics, step):
                run["logged"].append((step, metrics))

            def finish(self):
                run["finished"] += 1

        return Run()


@pytest.fixture(params=TRACKERS)
def tracker(request, monkeypatch):
    """(its name, its stand-in)"""
    board, module = Board(), ModuleType(request.param)
    module.init = board.init
    module.__spec__ = object()  # by which a package counts as installed
    monkeypatch.setitem(sys.modules, request.param, module)
    return request.param, board


def test_the_files_are_there_whatever_else_is(tmp_path):
    writer = Writer(tmp_path, 0, config_of(), clock)
    for step in (1, 2, 3):
        writer.write(step, {"loss": 1 / step, "reward": math.nan if step == 2 else 0.5})
    writer.page("rollouts", 2, "# Two")
    writer.close()
    assert not (tmp_path / "tensorboard").exists()
    assert (tmp_path / "rollouts" / "000002.md").read_text() == "# Two\n"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["loss"] for line in lines] == [1, 1 / 2, 1 / 3]
    assert [line["reward"] for line in lines] == [0.5, None, 0.5]
    before = (tmp_path / "metrics.jsonl").read_bytes()
    writer = Writer(tmp_path, 2, config_of(), clock)  # goes on after step 2
    writer.write(3, {"loss": 1 / 3, "reward": 0.5})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_tracker_continues_its_run(tracker, tmp_path):
    """Under a name that this run has and no other; numbers that are not finite are left out, as on every
    board, and the config stands beside them."""
    name, board = tracker
    check_installed(config_of(name))
    for start in (0, 2):
        writer = Writer(tmp_path / "mine", start, config_of(name), clock)
        writer.write(start + 1, {"loss": 0.5, "reward": np.nan})
        writer.page("rollouts", start + 1, "# A page")
        writer.close()
    Writer(tmp_path / "other", 0, config_of(name), clock).close()
    first, second, other = board.runs
    assert [first["logged"], second["logged"]] == [[(1, {"loss": 0.5})], [(3, {"loss": 0.5})]]
    assert {run["project"] for run in board.runs} == {"vpjax"} and first["config"]["seed"] == 0
    assert {run["resume"] for run in board.runs} == {"allow"}
    assert {run["finished"] for run in board.runs} == {1}
    identity = "id" if name == "wandb" else "name"
    assert first[identity] == second[identity] != other[identity]
    assert first["name"].startswith("mine") and other["name"].startswith("other")


def events_in(folder):
    """The events of a folder's files, read by hand: each after its length and a checksum, before another."""
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]


def test_tensorboard_has_the_finite_numbers_and_the_pages(tmp_path):
    writer = Writer(tmp_path, 2, config_of("tensorboard"), clock)
    writer.write(3, {"loss/lm": 0.5, "reward": math.nan})
    written = list(events_in(tmp_path / "tensorboard"))  # as soon as the step has ended
    writer.page("rollouts", 3, "# Three")
    writer.close()
    assert [event.session_log.status for event in written if event.step == 3][1] == SessionLog.START
    (number,) = (value for event in written for value in event.summary.value)
    assert (number.tag, number.simple_value, written[-1].step) == ("loss/lm", 0.5, 3)
    assert written[-1].wall_time == clock()
    *_, page = events_in(tmp_path / "tensorboard")
    assert page.summary.value[0].tensor.string_val[0] == b"# Three"


def test_a_full_disk_ends_the_step_that_writes(tmp_path, monkeypatch):
    """Not a thread beside it, for which the run would wait forever."""
    monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda path: open("/dev/full", "wb"))
    writer = Writer(tmp_path, 0, config_of("tensorboard"), clock)
    with pytest.raises(OSError, match="No space left on device: .*tensorboard"):
        writer.write(1, {"loss": 0.5})


def test_a_tracker_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_installed(config_of("tensorboard"))
    with pytest.raises(UserError, match="^config.log_to names trackio, .* pip install trackio$"):
        check_installed(config_of("tensorboard", "trackio"))


@pytest.mark.parametrize(
    "tail, left",
    [
        (b"", 4),
        (b"\0" * 512, 4),  # blocks that were reserved and not written
        (b'{"step": 5, "lo', 4),
        (b'{"step": 5, "loss": 1.0}', 4),  # whole but for its end: the step is repeated
        (b"\xff\xfe\n[1]\n{}\n", 4),
        (None, 0),
    ],
)
def test_a_power_cut_costs_only_the_lines_that_it_damaged(tmp_path, tail, left):
    writer = Writer(tmp_path, 0, config_of(), clock)
    for step in (1, 2, 3, 4):
        writer.write(step, {"loss": 1 / step})
    writer.files.sync()
    writer.close()
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    file.write_bytes(bytes(len(whole)) if tail is None else whole + tail)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4][:left]
    assert bool(missing_lines(tmp_path, 4)) == (not left)
    assert "5 steps from step 1 on" in missing_lines(tmp_path, 5) or missing_lines(tmp_path, 5).count(
        "step 5 "
    )
    writer = Writer(tmp_path, 4, config_of(), clock)  # goes on after step 4, on a file that is whole again
    writer.write(5, {"loss": 0.2})
    writer.close()
    assert [line["step"] for line in map(json.loads, file.read_text().splitlines())][-1] == 5
    assert missing_lines(tmp_path, 5) == "" or not left
