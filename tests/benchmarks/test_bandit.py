"""What group normalisation leaves of each relative reward, on the benchmark's bandit."""

import numpy as np
import pytest

from benchmarks.bandit import changes, push
from vpjax.training.relative import KINDS

CANCELS = {
    "none",
    "winrate",
    "hinge",
    "tgrpo",
    "keyword_winrate",
}  # on 0/1 rewards; recall is the reward there


@pytest.mark.parametrize("kind", KINDS)
def test_which_kinds_move_binary_advantages(kind):
    share, correlation = changes(kind, "0/1", prompts=512)
    if kind in CANCELS:
        assert share < 1e-5
    else:
        assert share > 0.05 and correlation < 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_which_kinds_move_graded_advantages(kind):
    """Comparing the same reward hardly moves anything even there, which METHOD warns of."""
    share, correlation = changes(kind, "graded", prompts=512)
    if kind == "none":
        assert share == 0
    elif kind in ("winrate", "hinge", "tgrpo"):
        assert correlation > 0.99
    else:
        assert share > 0.05
    if kind in ("gate", "likelihood"):
        assert correlation < 0.95


def test_where_kinds_push():
    """Towards naming the event, where the hidden frames are worth less and more."""
    q = np.array([0.9, 0.5, 0.1], np.float32)
    curves = {
        kind: push(kind, 0.5, q, "graded", prompts=2048) for kind in ("gate", "likelihood", "tgrpo", "none")
    }
    assert np.array_equal(curves["none"], np.ones(3))
    for kind in ("gate", "likelihood"):
        assert np.all(np.diff(curves[kind]) > 0.1)
    assert np.abs(curves["tgrpo"] - 1).max() < 0.1
