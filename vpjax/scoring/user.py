"""A user's own reward: a Python function of completions and clips, run on the host."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vpjax.types import Clip, UserError

UserReward = Callable[[Sequence[Sequence[str]], Sequence[Clip | None]], np.ndarray]


class RewardFault(Exception):
    """A user's reward failed on a batch. The message names the function and the failure."""


def load_user_reward(path: str) -> UserReward:
    """The function ``my_module:fn``, wrapped: (completions [B][G], clips [B]) -> f32[B, G].

    ``fn(completions, clips)`` is called once a batch with two lists of the same length, the completions'
    texts and their clips, and returns as many floats, as TRL's reward functions do; None: the reward does not
    count for the clip. Rows without a clip are not passed to it; their rewards are NaN.

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

    def reward(completions: Sequence[Sequence[str]], clips: Sequence[Clip | None]) -> np.ndarray:
        rows = [b for b, clip in enumerate(clips) if clip is not None]
        texts = [text for b in rows for text in completions[b]]
        try:
            values = list(function(texts, [clips[b] for b in rows for _ in completions[b]]))
        except Exception as error:
            raise RewardFault(f"reward {path!r} raised {error!r}") from error
        if len(values) != len(texts):
            raise RewardFault(f"reward {path!r} returned {len(values)} values for {len(texts)} completions")
        out = np.full((len(clips), max(map(len, completions), default=0)), np.nan, np.float32)
        out[rows] = np.reshape([_finite(value, path) for value in values], (len(rows), out.shape[1]))
        return out

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
