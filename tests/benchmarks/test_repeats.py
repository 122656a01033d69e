"""Tables of runs over seeds."""

import json

import numpy as np
import pytest
from scipy import stats

from benchmarks.repeats import MAIN, T95, interval, repeat, table


def test_intervals_are_students():
    for count, value in T95.items():
        assert value == pytest.approx(stats.t.ppf(0.975, count - 1), abs=1e-3)
    values = [0.2, 0.5, 0.8]
    half = np.ptp(stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))) / 2
    assert interval(values) == f"0.500 ± {half:.3f}"
    assert interval(values[:1]) == "0.200"


def test_finished_runs_are_not_run_again(tmp_path):
    ran, log = [], tmp_path / "runs.jsonl"

    def run(row, seed):
        ran.append((row, seed))
        return {MAIN: len(row) + seed}

    first = repeat("ab", [0], "steps: 1", run, log)
    told = [(one["row"], one["seed"], one[MAIN]) for row in "ab" for one in first[row]]
    assert told == [("a", 0, 1), ("b", 0, 1)]
    ran.clear()
    both = repeat("ab", [0, 1], "steps: 1", run, log)
    assert ran == [("a", 1), ("b", 1)] and both["a"][:1] == first["a"]
    assert [json.loads(line)["seed"] for line in log.read_text().splitlines()] == [0, 0, 1, 1]
    ran.clear()
    repeat("a", [0], "steps: 2", run, log)  # another setting is another run
    assert ran == [("a", 0)]


def test_table():
    results = {
        "start": [{MAIN: 0.25}],
        "plain": [{MAIN: 0.5, "seconds per step": 1.0}],
        "ours": [{MAIN: 0.75, "seconds per step": 2.0}],
    }
    assert table(results, {"all": MAIN}, "plain") == [
        "| row | all | s/step | all, minus plain |",
        "|---|---|---|---|",
        "| start | 0.250 |  | -0.250 |",
        "| plain | 0.500 | 1.000 | 0.000 |",
        "| ours | 0.750 | 2.000 | 0.250 |",
    ]
