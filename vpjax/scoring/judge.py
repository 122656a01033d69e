"""What stands around the GRPO step on the host: reference answers and rewards by config."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from vpjax.data.text import Text
from vpjax.models.generate import Completions
from vpjax.scoring.references import references, sizes_of
from vpjax.scoring.rewards import check_names, score
from vpjax.scoring.texts import byte_table
from vpjax.scoring.user import RewardFault, UserReward, load_user_reward
from vpjax.types import Array, Batch, Clip, UserError

HostScore = Callable[[Batch, Completions], Array]
REMOVED = "keyword_removed"  # the reward that relative rewards mean by recall


class Judge:
    """The rewards of ``config.grpo.rewards``, by name: a number is the weight of one of ``rewards.REWARDS``,
    "my_module:fn" a function of the user's own, and ("my_module:fn", weight) the same with a weight."""

    def __init__(self, config: ConfigDict, text: Text, clips: Sequence[Clip]):
        """UserError for a reward that does not exist and for a clip that lacks what its task needs."""
        self.text, self.clips = text, clips
        own, self.weights = {}, {}
        for name, value in config.grpo.rewards.items():
            path, weight = (value, 1.0) if isinstance(value, str) else (None, value)
            if isinstance(value, tuple | list):
                path, weight = value
            self.weights[name] = float(weight)
            if path:
                own[name] = load_user_reward(path)
        if own and jax.process_count() > 1:
            raise UserError(
                f"config.grpo.rewards.{next(iter(own))}: a function of your own needs the run in one process"
            )
        self.names = tuple(name for name in self.weights if name not in own)
        check_names(self.names)
        self.sizes = sizes_of(clips, keywords=config.data.keywords)
        self.table = byte_table(text)
        self._faults: list[str] = []
        self.host_scores: dict[str, HostScore] = {
            name: functools.partial(self._own, function) for name, function in own.items()
        }

    def with_references(self, batch: Batch) -> Batch:
        """A batch (NumPy) with its clips' references."""
        return dataclasses.replace(batch, references=references(self._clips(batch), self.sizes))

    def score(self, batch: Batch, tokens_BXC: Array, mask_BXC: Array) -> dict[str, Array]:
        """The rewards f32[B, X] on the device; NaN: not this task."""
        return score(self.names, self.table, tokens_BXC, mask_BXC, batch.references)

    def recall(self, batch: Batch, tokens_BXC: Array, mask_BXC: Array) -> Array:
        """Share f32[B, X] of the keywords hidden in V~ that a completion names."""
        return score((REMOVED,), self.table, tokens_BXC, mask_BXC, batch.references)[REMOVED]

    def take_faults(self) -> list[str]:
        """What went wrong in functions of the user's own since this was last asked."""
        faults, self._faults = self._faults, []
        return faults

    def _own(self, function: UserReward, batch: Batch, said: Completions) -> np.ndarray:
        """A user's reward f32[B, R, G]; infinite, which has the update skipped, where it goes wrong."""
        tokens, mask, clips = np.asarray(said.tokens), np.asarray(said.mask), self._clips(batch)
        out = np.full(mask.shape[:3], np.nan, np.float32)
        asked = np.argwhere(mask.any(-1))
        texts = [[self.text.decode(tokens[*at][mask[*at]])] for at in asked]
        try:
            out[tuple(asked.T)] = function(texts, [clips[row] for row, *_ in asked])[:, 0]
        except RewardFault as fault:
            self._faults.append(str(fault))
            out[:] = np.inf
        return out

    def _clips(self, batch: Batch) -> list[Clip | None]:
        return [self.clips[number] if number >= 0 else None for number in np.asarray(batch.clip)]
