"""What group normalisation leaves of each relative reward, on the benchmark's bandit."""

import numpy as np
import pytest

from benchmarks.bandit import changes, gate_weights, push
from vpjax.training.relative import RELATIVE_KINDS

pytestmark = pytest.mark.slow  # compiles some hundred small programs

# On 0/1 rewards: recall of the keyword equals the reward there.
CANCEL = ("none", "winrate", "hinge", "tgrpo", "keyword_winrate")


@pytest.mark.parametrize("kind", RELATIVE_KINDS)
def test_which_kinds_change_binary_advantages(kind):
    share, correlation = changes(kind, "0/1", prompts=512)
    if kind in CANCEL:
        assert share < 1e-5
    else:
        assert share > 0.05 and correlation < 0.999


@pytest.mark.parametrize("kind", RELATIVE_KINDS)
def test_which_kinds_change_graded_advantages(kind):
    """A comparison of the trained reward itself changes little there too (docs/method.md, section 3)."""
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
    """Towards naming the event, more strongly where the hidden frames are worth more."""
    q = np.array([0.9, 0.5, 0.1], np.float32)
    curves = {
        kind: push(kind, 0.5, q, "graded", prompts=2048) for kind in ("gate", "likelihood", "tgrpo", "none")
    }
    assert np.array_equal(curves["none"], np.ones(3))
    for kind in ("gate", "likelihood"):
        assert np.all(np.diff(curves[kind]) > 0.1)
    assert np.abs(curves["tgrpo"] - 1).max() < 0.1


def test_gate_asks_what_is_needed():
    """Before, a hard prompt that needs the frames weighed less than half of an easy one, little more than one
    that is guessed, and a clip without V~ outweighed the average of the others; now by none of these."""
    weights = gate_weights(prompts=512)
    before, now = ({name: pair[i] for name, pair in weights.items()} for i in (0, 1))
    hard, easy = "hard, needs the frames", "easy, needs the frames"
    assert before[hard] < 0.55 * before[easy] and now[hard] > 0.9 * now[easy]
    assert now["open, guessed"] < 0.6 * now[hard]
    assert now["no V~"] == 1
