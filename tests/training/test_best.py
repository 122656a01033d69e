"""The best evaluation of a run, as its log tells it."""

import math

import pytest

from vpjax.training.best import Best, best_in

LOG = [
    {"step": 1, "loss": 3.0},
    {"step": 2, "heldout/accuracy": 0.5, "heldout/loss": 2.0},
    {"step": 3, "loss": 2.5},
    {"step": 4, "heldout/accuracy": 0.75, "heldout/loss": None},
    {"step": 6, "heldout/accuracy": 0.75, "heldout/loss": 1.0},
    {"step": 8, "heldout/accuracy": 0.25, "heldout/loss": 1.5},
]


@pytest.mark.parametrize(
    "metric, last, step, value, since",
    [
        ("heldout/accuracy", 8, 4, 0.75, 2),  # of equal ones the first
        ("heldout/loss", 8, 6, 1.0, 1),  # less is better; null is never the best
        ("heldout/loss", 5, 2, 2.0, 1),  # what came after the checkpoint does not count
        ("heldout/accuracy", 1, None, math.nan, 0),
        ("", 8, None, math.nan, 0),
    ],
)
def test_the_best_of_a_log(metric, last, step, value, since):
    best = best_in(LOG, metric, last)
    assert (best.step, best.since) == (step, since)
    assert best.value == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("metric", ["heldout/accuracy", "heldout/loss"])
def test_a_log_that_is_read_again_tells_the_same(metric):
    """A run that goes on after any step knows what one that nothing stopped knows there."""
    for stop in range(9):
        resumed = best_in(LOG, metric, stop)
        for line in LOG:
            if line["step"] > stop:
                resumed.add(line["step"], line)
        assert resumed == best_in(LOG, metric, 8)


def test_patience():
    best = Best("heldout/loss")
    is_best = [best.add(step, {"heldout/loss": x}) for step, x in enumerate([2.0, 1.0, math.nan, 1.0], 1)]
    assert is_best == [True, True, False, False]
    assert best.is_over(2) and not best.is_over(3) and not best.is_over(0)
    assert best.add(5, {"heldout/loss": 0.5}) and not best.is_over(1)
    assert not best.add(6, {"loss": 0.1}) and best.since == 0  # no evaluation
