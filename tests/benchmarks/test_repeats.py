"""Tables of runs over seeds."""

import json

import pytest

from benchmarks.repeats import MAIN, gains_by_clip, interval, median_gap, repeat, setting, table
from vpjax.recipes import sft


def test_intervals_are_those_of_student():
    # Three values with a standard deviation of 0.3; the quantile of two degrees of freedom, from a table.
    half = 4.3027 * 0.3 / 3**0.5
    mean, _, printed_half = interval([0.2, 0.5, 0.8]).partition(" ± ")
    assert mean == "0.500" and float(printed_half) == pytest.approx(half, abs=5e-4)
    assert interval([0.2]) == "0.200"


def test_median_gap():
    assert median_gap([1.0, 2.0, 5.0, 6.0]) == 1.0


def test_finished_runs_are_not_repeated(tmp_path):
    calls, log = [], tmp_path / "runs.jsonl"

    def run(row, seed):
        calls.append((row, seed))
        return {MAIN: len(row) + seed}

    first = repeat(["a", "b"], [0], "steps: 1 {}".format, run, log)
    records = [first["a"][0], first["b"][0]]
    assert [(record["row"], record["seed"], record[MAIN]) for record in records] == [("a", 0, 1), ("b", 0, 1)]
    calls.clear()
    both = repeat(["a", "b"], [0, 1], "steps: 1 {}".format, run, log)
    assert calls == [("a", 1), ("b", 1)] and both["a"][:1] == first["a"]
    assert [json.loads(line)["seed"] for line in log.read_text().splitlines()] == [0, 0, 1, 1]
    calls.clear()
    repeat(["a"], [0], "steps: 2 {}".format, run, log)  # another setting is another run
    assert calls == [("a", 0)]


def test_a_setting_is_what_differs_from_the_defaults():
    config = sft.get_config()
    before = setting(config)
    assert "optim.b2" in before and "optim.b1" not in before
    config.optim.b1 = 0.5
    assert setting(config) != before


def test_table():
    results = {
        "start": [{"seed": 0, MAIN: 0.25}],
        "plain": [{"seed": 0, MAIN: 0.5, "seconds per step": 1.0}],
        "ours": [{"seed": 1, MAIN: 0.5, "seconds per step": 2.0}, {"seed": 0, MAIN: 0.75}],
    }
    assert table(results, {"all": MAIN}, "plain") == [
        "| row | all | s/step | all, minus plain | minus plain, by clip |",
        "|---|---|---|---|---|",
        "| start | 0.250 |  | -0.250 |  |",
        "| plain | 0.500 | 1.000 | 0.000 |  |",
        "| ours | 0.625 ± 1.588 | 2.000 | 0.250 |  |",  # 0.125 * 12.706, Student's t; one pair of seeds
    ]


def test_gains_are_paired_by_clip():
    """Over two seeds the first clip gains once, the third loses twice."""
    pairs = [({"right": "1100"}, {"right": "0110"}), ({"right": "1101"}, {"right": "1111"})]
    assert gains_by_clip(pairs) == [0.5, 0.0, -1.0, 0.0]
    assert gains_by_clip([({"right": "1"}, {})]) == []
