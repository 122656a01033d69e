"""A profile of some steps, and updates that are skipped."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpjax import progress
from vpjax.progress import FinishedStep, Profile, Report
from vpjax.recipes import base
from vpjax.types import Clip


@pytest.fixture
def calls(monkeypatch):
    """When JAX's profiler is started and stopped, between the steps that are noted beside it."""
    found = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: found.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("stop"))
    return found


@pytest.mark.parametrize(
    "profile, steps, expected",
    [
        ((), (1, 5), [1, 2, 3, 4]),
        ((2, 3), (1, 5), [1, "start", 2, 3, "stop", 4]),
        ((1, 1), (1, 3), ["start", 1, "stop", 2]),
        ((2, 4), (3, 6), ["start", 3, 4, "stop", 5]),  # a run that goes on in the middle
        ((2, 9), (1, 4), [1, "start", 2, 3, "stop"]),  # and one that ends there
    ],
)
def test_the_steps_that_are_traced(profile, steps, expected, calls, tmp_path):
    config = base.get_config()
    config.profile = profile
    with Profile(config, tmp_path) as profiled:
        for step in range(*steps):
            profiled.begin(step)
            calls.append(step)
            profiled.end(step, jnp.ones(3))
    assert [str(call).replace(str(tmp_path / "profile"), "start") for call in calls] == [
        str(x) for x in expected
    ]


@pytest.mark.slow
def test_a_profile_is_a_file_for_perfetto_and_one_for_tensorboard(tmp_path):
    config = base.get_config()
    config.profile = (1, 1)
    with Profile(config, tmp_path) as profiled:
        profiled.begin(1)
        profiled.end(1, jax.jit(lambda x: x @ x)(jnp.ones((8, 8))))
    files = {"".join(path.suffixes) for path in (tmp_path / "profile").rglob("*") if path.is_file()}
    assert {".xplane.pb", ".trace.json.gz"} <= files


def test_a_skipped_update_is_told_with_what_all_processes_know(monkeypatch, capsys):
    """Each process has rows of its own, and only one may know why: the user's own reward failed there."""
    report = object.__new__(Report)
    report.config, report.skipped = base.get_config(), 0
    report.clips = [Clip(f"clip-{number}", "", "", "") for number in range(4)]
    fault = "reward 'm:f' raised ValueError('no')"
    theirs = json.dumps([["clip-3", "clip-2"], [fault]])
    monkeypatch.setattr(progress, "all_texts", lambda text: [text, theirs])
    report._count_skipped(FinishedStep(7, np.array([0, -1, 1]), {}))
    expected = f"step 7: {fault}, update skipped; its clips: clip-0, clip-1, clip-3, clip-2\n"
    assert capsys.readouterr().out == expected
