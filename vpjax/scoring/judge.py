"""The rewards of a run's config, as the GRPO step and the training loop use them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from vpjax.data.text import Text
from vpjax.models.generate import Completions
from vpjax.scoring.references import reference_rows, reference_sizes
from vpjax.scoring.rewards import check_names, compute_rewards
from vpjax.scoring.texts import byte_table
from vpjax.scoring.user import RewardFault, UserReward, load_user_reward
from vpjax.types import Array, Clip, Prompts, UserError

HostScore = Callable[[Prompts, Completions], Array]
REMOVED = "keyword_removed"  # the recall of the relative rewards (docs/method.md, section 3)


class ConfigJudge:
    """The rewards of ``config.grpo.rewards``, by name: a number is the weight of one of ``rewards.REWARDS``,
    "my_module:fn" a function of the user's own, and ("my_module:fn", weight) the same with a weight."""

    def __init__(self, config: ConfigDict, text: Text, clips: Sequence[Clip]):
        """UserError for a reward that does not exist, and for a clip that lacks what its task needs."""
        self.text, self.clips = text, clips
        self.weights: dict[str, float] = {}
        self.host_scores: dict[str, HostScore] = {}
        for name, value in config.grpo.rewards.items():
            path, weight = None, value
            if isinstance(value, str):
                path, weight = value, 1.0
            elif isinstance(value, tuple | list):
                path, weight = value
            self.weights[name] = float(weight)
            if path:
                self.host_scores[name] = functools.partial(self._user_reward, load_user_reward(path))
        if self.host_scores and jax.process_count() > 1:
            field = f"config.grpo.rewards.{next(iter(self.host_scores))}"
            raise UserError(f"{field}: a function of your own needs the run in one process")
        self.names = tuple(name for name in self.weights if name not in self.host_scores)
        check_names(self.names)
        self.sizes = reference_sizes(clips, keywords=config.data.keywords)
        self.table = byte_table(text)
        self._faults: list[str] = []

    def with_references(self, prompts: Prompts) -> Prompts:
        """Prompts (NumPy) with their clips' references."""
        return dataclasses.replace(prompts, references=reference_rows(self._clips(prompts), self.sizes))

    def score(self, prompts: Prompts, tokens_BXC: Array, mask_BXC: Array) -> dict[str, jax.Array]:
        """The rewards f32[B, X] on the device; NaN: the reward does not count for the clip."""
        return compute_rewards(self.names, self.table, tokens_BXC, mask_BXC, prompts.references)

    def recall(self, prompts: Prompts, tokens_BXC: Array, mask_BXC: Array) -> jax.Array:
        """Share f32[B, X] of the keywords removed from V~ that a completion mentions."""
        return compute_rewards((REMOVED,), self.table, tokens_BXC, mask_BXC, prompts.references)[REMOVED]

    def take_faults(self) -> list[str]:
        """The failures of the user's own functions since the last call."""
        faults, self._faults = self._faults, []
        return faults

    def _user_reward(self, function: UserReward, prompts: Prompts, completions: Completions) -> np.ndarray:
        """A user's reward f32[B, R, G]. If the function fails, all rewards are +inf, which makes the step
        skip its update."""
        tokens, mask = np.asarray(completions.tokens), np.asarray(completions.mask)
        numbers = np.asarray(prompts.clip)
        rewards = np.full(mask.shape[:3], np.nan, np.float32)
        index = np.nonzero(mask.any(-1) & (numbers >= 0)[:, None, None])
        texts = [self.text.decode(ids[valid]) for ids, valid in zip(tokens[index], mask[index], strict=True)]
        try:
            rewards[index] = function(texts, [self.clips[number] for number in numbers[index[0]]])
        except RewardFault as fault:
            self._faults.append(str(fault))
            rewards[:] = np.inf
        return rewards

    def _clips(self, prompts: Prompts) -> list[Clip | None]:
        return [self.clips[number] if number >= 0 else None for number in np.asarray(prompts.clip)]
