"""A user's own reward: a Python function of completions and clips, run on the host."""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vpjax.types import Clip, UserError

UserReward = Callable[[Sequence[str], Sequence[Clip]], np.ndarray]


class RewardFault(Exception):
    """A user's reward failed on a batch. The message names the function and the failure."""


def load_user_reward(path: str) -> UserReward:
    """The function ``my_module:fn``, wrapped: (completions [X], clips [X]) -> f32[X].

    ``fn(completions, clips)`` is called once per batch with two lists of the same length, the completions'
    texts and their clips, and returns as many floats, as TRL's reward functions do; None: the completion is
    not judged. Its reward is then NaN.

    UserError if there is no such function. The wrapper raises RewardFault if the function raises, returns
    another number of values, or returns a value that is not a finite number.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise UserError(f"reward {path!r} is not of the form my_module:fn")
    try:
        function = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever the user's module raises as it is imported
        raise UserError(f"reward {path!r}: the module cannot be imported: {error!r}") from error
    if not callable(function):
        raise UserError(f"reward {path!r}: {module} has no function {name!r}")

    def reward(completions: Sequence[str], clips: Sequence[Clip]) -> np.ndarray:
        try:
            values = list(function(list(completions), list(clips)))
        except Exception as error:
            raise RewardFault(f"reward {path!r} raised {error!r}") from error
        if len(values) != len(completions):
            counts = f"{len(values)} values for {len(completions)} completions"
            raise RewardFault(f"reward {path!r} returned {counts}")
        return np.array([_finite(value, path) for value in values], np.float32)

    return reward


def _finite(value: Any, path: str) -> float:
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RewardFault(f"reward {path!r} returned {value!r}, which is no finite number")
    return number
