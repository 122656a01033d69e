"""The rewards of a run's config, as the GRPO step and the training loop use them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vpjax.data.control import with_control
from vpjax.data.keyframes import lasting
from vpjax.data.looks import seconds_seen
from vpjax.data.text import Text
from vpjax.models.generate import Completions
from vpjax.scoring.comparisons import span_iou
from vpjax.scoring.references import (
    References,
    degraded_clip,
    keyword_table,
    reference_rows,
    reference_sizes,
)
from vpjax.scoring.rewards import (
    FREE_OF_ANSWER,
    answer_numbers,
    check_names,
    compute_rewards,
    counts_for,
)
from vpjax.scoring.texts import byte_table
from vpjax.scoring.user import RewardFault, UserReward, load_user_reward
from vpjax.types import Array, Clip, Prompts, UserError

# The rewards f32[B, R, G] of completions about clips i32[B], which are given by number; -1: padding. NumPy.
HostScore = Callable[[np.ndarray, Completions], np.ndarray]
REMOVED = "keyword_removed"  # the recall of the relative rewards (docs/method.md, section 3)


class ReferencePair(NamedTuple):
    """What is true of V, and of V~ if completions on V~ are compared with it. overlap f32[B]: of what is seen
    of V with the event, see ``overlap_of``."""

    complete: References
    degraded: References | None
    overlap: Array


def weights_of(rewards: Mapping[str, Any]) -> dict[str, float]:
    """The weights of ``config.grpo.rewards`` by name."""
    weights = {}
    for name, value in rewards.items():
        if isinstance(value, str):
            weights[name] = 1.0
        elif isinstance(value, tuple | list):
            weights[name] = float(value[1])
        else:
            weights[name] = float(value)
    return weights


def path_of(value: Any) -> str | None:
    """The path of the user's own function in a value of ``config.grpo.rewards``; None for a built-in one."""
    if isinstance(value, tuple | list):
        return value[0]
    return value if isinstance(value, str) else None


def user_rewards(config: ConfigDict) -> dict[str, UserReward]:
    """The functions of the user's own among ``config.grpo.rewards``, by name. UserError as
    ``load_user_reward``, and for the name of a built-in reward, on V or V~, that does not exist."""
    paths = {name: path_of(value) for name, value in config.grpo.rewards.items()}
    check_names([*(name for name, path in paths.items() if not path), *config.grpo.degraded_rewards])
    return {name: load_user_reward(path) for name, path in paths.items() if path}


def hides_all(clip: Clip, hidden_J: Array) -> bool:
    """Whether V~ hides every keyword of the clip whose time is known, so that its ``degraded_answer`` is true
    of V~. The keywords that ``data.keywords`` and ``data.keyword_tokens`` leave out are not hidden."""
    timed = {j for j, keyword in enumerate(clip.keywords) if keyword.spans}
    return timed <= set(np.flatnonzero(hidden_J).tolist())


def overlap_of(clip: Clip) -> float:
    """The IoU of the part of its video that a clip's one look shows with its spans; 0 for other clips."""
    if len(clip.looks) != 1 or clip.looks[0].start is None or clip.looks[0].end is None:
        return 0.0
    part = clip.looks[0].start, clip.looks[0].end
    return span_iou([part], lasting(clip.spans)) if seconds_seen(part, clip.spans) else 0.0


class ConfigJudge:
    """The rewards of ``config.grpo.rewards``, by name: a number is the weight of one of ``rewards.REWARDS``,
    "my_module:fn" a function of the user's own, and ("my_module:fn", weight) the same with a weight. They
    compare completions, on either video, with ``Clip.answer``. Those of ``config.grpo.degraded_rewards`` are
    built-in and compare completions on V~ with what is true of V~."""

    def __init__(self, config: ConfigDict, text: Text, clips: Sequence[Clip]):
        """UserError for a reward that does not exist, for a clip that lacks what its task needs, for rewards
        none of which compares anything about these clips, and for rewards of completions on V~ that compare
        them with ``degraded_answer`` where no clip has one."""
        self.text, self.clips, self.seed = text, clips, config.seed
        self.control_share = config.grpo.control_share
        self.weights = weights_of(config.grpo.rewards)
        self.degraded_weights = weights_of(config.grpo.degraded_rewards)
        self.host_scores: Mapping[str, HostScore] = {
            name: functools.partial(self._user_reward, name, reward)
            for name, reward in user_rewards(config).items()
        }
        self.names = tuple(name for name in self.weights if name not in self.host_scores)
        self.compared = tuple(name for name in self.degraded_weights if name not in FREE_OF_ANSWER)
        shown: list[Clip] = []
        if self.compared:
            shown = [degraded for degraded in map(degraded_clip, clips) if degraded is not None]
            if not shown:
                raise UserError(
                    f"config.grpo.degraded_rewards.{self.compared[0]} compares completions on V~ with "
                    "degraded_answer, which no clip has; add it to the clips, or take keyword_absent"
                )
        self.sizes = reference_sizes([*clips, *shown], keywords=config.data.keywords)
        comparing = [name for name in self.names if name not in FREE_OF_ANSWER]
        if comparing and not self.host_scores:
            if not any(counts_for(name, clip) for name in comparing for clip in clips):
                tasks = ", ".join(sorted({clip.task for clip in clips}))
                raise UserError(
                    f"config.grpo.rewards: {', '.join(comparing)} counts for none of these clips, whose task "
                    f"is {tasks}: name a reward of that task, or give the clips theirs (task, keywords)"
                )
        self.known = keyword_table(clips, config.data.keywords)
        self.table = byte_table(text)
        self._worked: set[str] = set()  # rewards of the user's own that have scored a batch
        self._faults: list[str] = []

    def with_references(self, prompts: Prompts) -> Prompts:
        """Prompts (NumPy) with their clips' references. A share ``control_share`` of them gets a V~ that
        hides nothing. What is true of V is then true of V~. Nothing is known to be true of a V~ that hides
        some keywords and shows others."""
        prompts = with_control(prompts, self.control_share, self.seed)
        clips = self._clips(prompts)
        degraded = None
        if self.compared:
            shown = list(clips)
            for row in np.flatnonzero(np.any(prompts.hidden, axis=1)):
                clip = clips[row]
                shown[row] = None
                if clip and hides_all(clip, prompts.hidden[row]):
                    shown[row] = degraded_clip(clip)
            degraded = reference_rows(shown, self.sizes)
        overlap = np.array([overlap_of(clip) if clip else 0.0 for clip in clips], np.float32)
        references = ReferencePair(reference_rows(clips, self.sizes), degraded, overlap)
        return dataclasses.replace(prompts, references=references)

    def score(self, prompts: Prompts, tokens_BXC: Array, mask_BXC: Array) -> dict[str, jax.Array]:
        """The rewards f32[B, X] on the device; NaN: the reward does not count for the clip."""
        return self._compute(self.names, prompts, tokens_BXC, mask_BXC)

    def score_degraded(self, prompts: Prompts, tokens_BXC: Array, mask_BXC: Array) -> dict[str, jax.Array]:
        """The rewards f32[B, X] of completions on V~ for what is true of V~; NaN: the reward does not count
        for the clip, or what is true of its V~ is not known."""
        free = [name for name in self.degraded_weights if name in FREE_OF_ANSWER]
        rewards = self._compute(free, prompts, tokens_BXC, mask_BXC)
        if self.compared:
            truth = prompts.references.degraded
            nothing = np.zeros(prompts.hidden.shape, bool)  # is hidden of what is true of V~
            rewards |= compute_rewards(self.compared, self.table, tokens_BXC, mask_BXC, truth, nothing)
        return rewards

    def recall(self, prompts: Prompts, tokens_BXC: Array, mask_BXC: Array) -> jax.Array:
        """Share f32[B, X] of the keywords hidden in V~ that a completion mentions."""
        return self._compute((REMOVED,), prompts, tokens_BXC, mask_BXC)[REMOVED]

    def answers(self, prompts: Prompts, tokens_BXC: Array, mask_BXC: Array) -> jax.Array:
        """What completions say, i32[B, X]: equal numbers for answers that say the same, see
        ``rewards.answer_numbers``; -1: they cannot be compared."""
        return answer_numbers(self.table, self.known, tokens_BXC, mask_BXC, prompts.references.complete)

    def overlap(self, prompts: Prompts) -> Array:
        """The IoU f32[B] of what is seen of a clip's video with its event."""
        return prompts.references.overlap

    def take_faults(self) -> list[str]:
        """The failures of the user's own functions since the last call."""
        faults, self._faults = self._faults, []
        return faults

    def _compute(
        self, names: Sequence[str], prompts: Prompts, tokens_BXC: Array, mask_BXC: Array
    ) -> dict[str, jax.Array]:
        references = prompts.references.complete
        return compute_rewards(names, self.table, tokens_BXC, mask_BXC, references, prompts.hidden)

    def _user_reward(
        self, name: str, function: UserReward, numbers: np.ndarray, completions: Completions
    ) -> np.ndarray:
        """A user's reward f32[B, R, G]; NaN where it judges nothing. If the function fails, all rewards are
        +inf, which makes the step skip its update. UserError if it fails before it has ever worked."""
        tokens, mask = completions.tokens, completions.mask
        rewards = np.full(mask.shape[:3], np.nan, np.float32)
        index = np.nonzero(mask.any(-1) & (numbers >= 0)[:, None, None])
        texts = [self.text.decode(ids[valid]) for ids, valid in zip(tokens[index], mask[index], strict=True)]
        if not texts:  # a process whose rows are all padding
            return rewards
        try:
            rewards[index] = function(texts, [self.clips[number] for number in numbers[index[0]]])
            self._worked.add(name)
        except RewardFault as fault:
            if name not in self._worked:
                raise UserError(f"config.grpo.rewards.{name}: {fault}") from fault
            self._faults.append(str(fault))
            rewards[:] = np.inf
        return rewards

    def _clips(self, prompts: Prompts) -> list[Clip | None]:
        return [self.clips[number] if number >= 0 else None for number in np.asarray(prompts.clip)]
