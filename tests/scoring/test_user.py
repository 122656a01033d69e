"""A user's own rewards: what they are called with, and how their failures are named."""

import sys

import numpy as np
import pytest

from vpjax.scoring.user import RewardFault, load_user_reward
from vpjax.types import Clip, UserError

CAPTION = Clip("c", "c.mp4", "?", "A man runs and falls")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """``module(code)``: the name of a new module with this code."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code):
        name = f"mine_{len(list(tmp_path.iterdir()))}_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(code)
        return name

    yield write
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]


def test_a_user_reward_gets_texts_and_clips(module):
    name = module(
        "def fn(completions, clips):\n"
        "    pairs = zip(completions, clips, strict=True)\n"
        "    return [float(text in clip.answer) if text else None for text, clip in pairs]\n"
    )
    reward = load_user_reward(f"{name}:fn")
    rewards = reward(["runs", "spins", "", "falls"], [CAPTION] * 4)
    np.testing.assert_array_equal(rewards, [1, 0, np.nan, 1])
    assert rewards.dtype == np.float32


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0]", "returned 1 values for 2 completions"),
        ("return [0.5, float('nan')]", "returned nan, which is no finite number"),
        ("return [0.5, 'good']", "returned 'good'"),
        ("return None", "raised TypeError"),
        ("return [1 / 0]", "raised ZeroDivisionError"),
    ],
)
def test_failures_are_named(module, body, message):
    path = f"{module(f'def fn(completions, clips): {body}')}:fn"
    with pytest.raises(RewardFault, match=f"reward '{path}' {message}"):
        load_user_reward(path)(["a", "b"], [CAPTION, CAPTION])


def test_missing_functions_are_named(module):
    for path, message in (
        ("rouge_l", "not of the form my_module:fn"),
        ("no_such_module:fn", "cannot be imported"),
        (f"{module('raise ValueError')}:fn", "cannot be imported: ValueError"),
        (f"{module('fn = 1')}:fn", "has no function 'fn'"),
    ):
        with pytest.raises(UserError, match=message):
            load_user_reward(path)
