"""Rollouts and their rewards: who judges them, which of them say the same, and what is logged of them."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vpjax.models.generate import Completions
from vpjax.models.sharding import global_rows, local_rows
from vpjax.scoring.judge import HostScore
from vpjax.scoring.rewards import combine
from vpjax.training.relative import Part, has_spread
from vpjax.types import Array, Prompts


class Judge(Protocol):
    """The rewards of completions. NaN: the reward does not apply to the clip."""

    @property
    def host_scores(self) -> Mapping[str, HostScore]:
        """The rewards that are computed on the host, by name: functions that give f32[B, R, G]."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The weights of all rewards by name."""

    @property
    def degraded_weights(self) -> Mapping[str, float]:
        """The weights of the rewards that train completions on V~, by name; {}: they are not trained."""

    def score(self, prompts: Prompts, tokens_BXC: jax.Array, mask_BXC: jax.Array) -> Mapping[str, jax.Array]:
        """The other rewards by name, f32[B, X], of X completions of each row, on the device: on both videos
        for what is true of V."""

    def score_degraded(
        self, prompts: Prompts, tokens_BXC: jax.Array, mask_BXC: jax.Array
    ) -> Mapping[str, jax.Array]:
        """The rewards of ``degraded_weights`` by name, f32[B, X], for what is true of V~."""

    def recall(self, prompts: Prompts, tokens_BXC: jax.Array, mask_BXC: jax.Array) -> jax.Array:
        """Share f32[B, X] of the keywords hidden in V~ that a completion names."""

    def answers(self, prompts: Prompts, tokens_BXC: jax.Array, mask_BXC: jax.Array) -> jax.Array:
        """What completions say, i32[B, X]: equal numbers for answers that say the same; -1: they cannot be
        compared."""

    def overlap(self, prompts: Prompts) -> Array:
        """The IoU f32[B] of what is seen of a clip's video with its event."""


@dataclasses.dataclass(frozen=True)
class FreeRewards:
    """A ``Judge`` for a step that is only planned: the cost of rewards is negligible beside the model's."""

    weights: dict[str, float]
    degraded_weights: dict[str, float]
    host_scores: dict[str, Any] = dataclasses.field(default_factory=dict)

    def score(self, prompts: Prompts, tokens_BXC: jax.Array, mask_BXC: jax.Array) -> dict[str, jax.Array]:
        return {name: self.recall(prompts, tokens_BXC, mask_BXC) for name in self.weights}

    def score_degraded(
        self, prompts: Prompts, tokens_BXC: jax.Array, mask_BXC: jax.Array
    ) -> dict[str, jax.Array]:
        return {name: self.recall(prompts, tokens_BXC, mask_BXC) for name in self.degraded_weights}

    def answers(self, prompts: Prompts, tokens_BXC: jax.Array, mask_BXC: jax.Array) -> jax.Array:
        return mask_BXC.sum(axis=-1)

    def recall(self, prompts: Prompts, tokens_BXC: jax.Array, mask_BXC: jax.Array) -> jax.Array:
        return mask_BXC.mean(axis=-1, dtype=jnp.float32)

    def overlap(self, prompts: Prompts) -> Array:
        return jnp.zeros(prompts.clip.shape)


class JudgedRollouts(NamedTuple):
    """Rollouts with their rewards, for reports. completions: arrays [B, R, G, C]. rewards: f32[B, R, G] by
    name, for what is true of V. total: their weighted sum, NaN for absent completions. degraded_rewards:
    f32[B, G] by name, of the completions on V~ for what is true of it. advantages f32[B, R, G]: token means,
    of the branches that are trained."""

    completions: Completions
    rewards: dict[str, Array]
    total: Array
    degraded_rewards: dict[str, Array]
    advantages: Array
    clip: Array


def total_rewards(rewards: Mapping[str, Array], weights: Mapping[str, float], exists_BRG: Array) -> Array:
    """The weighted sums f32[B, R, G] of the rewards. NaN for completions that do not exist, and for those
    that are left out of their group, because a reward judges others of it and not them."""
    counts_BRG = exists_BRG
    for reward_BRG in rewards.values():
        is_judged = exists_BRG & ~jnp.isnan(reward_BRG)
        counts_BRG &= is_judged | ~is_judged.any(-1, keepdims=True)
    return jnp.where(counts_BRG, combine(rewards, weights), jnp.nan)


def have_no_faults(rewards: Mapping[str, Array]) -> Array:
    """bool[]: no reward of the user's own failed, which makes it infinite. Their weighted sum would not tell:
    there infinity with a weight of 0 is NaN, which stands for "does not count"."""
    return ~jnp.stack([jnp.isinf(x).any() for x in rewards.values()]).any()


def parts_of(
    rewards: Mapping[str, Array], weights: Mapping[str, float], options: ConfigDict
) -> tuple[Part, ...]:
    """The rewards f32[B, G] of a sum, if ``config.grpo`` normalises each of them; else ()."""
    if options.reward_aggregation != "normalize_then_sum":
        return ()
    correct = correct_reward(options)
    return tuple(Part(x, weights[name], name == correct) for name, x in rewards.items())


def host_rewards_of(
    scores: Mapping[str, HostScore], prompts: Prompts, completions: Completions, mesh: Mesh | None
) -> dict[str, Array]:
    """The rewards f32[B, R, G] that are computed on the host, by name, all at once: each in a thread of its
    own. Every process scores its own rows."""
    clip, completions = jax.tree.map(np.asarray, local_rows((prompts.clip, completions), mesh))
    with concurrent.futures.ThreadPoolExecutor(len(scores)) as threads:
        running = {name: threads.submit(score, clip, completions) for name, score in scores.items()}
        rewards = {name: score.result() for name, score in running.items()}
    return global_rows(rewards, mesh)


def correct_reward(options: ConfigDict) -> str | None:
    """The name of the reward that means right: ``relative.correct`` of ``config.grpo`` or, if that is "", the
    only reward. None if there are several."""
    if options.relative.correct:
        return options.relative.correct
    return next(iter(options.rewards)) if len(options.rewards) == 1 else None


def score_branches(
    score: Callable[[Prompts, jax.Array, jax.Array], Any], prompts: Prompts, completions: Completions
) -> Any:
    """``score`` of completions [B, R, G, C]: its arrays f32[B, X] as f32[B, R, G]."""
    rows, branches, groups, length = completions.mask.shape
    tokens = jnp.reshape(completions.tokens, (rows, -1, length))
    mask = jnp.reshape(completions.mask, (rows, -1, length))
    return jax.tree.map(lambda x: x.reshape(rows, branches, groups), score(prompts, tokens, mask))


def same_answers(said_BRG: Array) -> Array:
    """f32[B, G, G]: 1 where a completion on V says the same as one on V~, else 0; NaN if one of them does not
    exist or cannot be compared. said i32[B, R, G]: ``Judge.answers``, -1 for those."""
    own_BG1, other_B1G = said_BRG[:, 0, :, None], said_BRG[:, 1, None]
    return jnp.where((own_BG1 < 0) | (other_B1G < 0), jnp.nan, own_BG1 == other_B1G)


def keyword_tokens(tokens_BGC: Array, keywords_BJW: Array, requested_BJ: Array) -> Array:
    """bool[B, G, C]: the tokens that belong to an occurrence of one of the ``requested`` keywords, spelled
    token by token as in the caption."""
    length = keywords_BJW.shape[-1]
    c = tokens_BGC.shape[-1]
    padded = jnp.pad(tokens_BGC, [(0, 0), (0, 0), (0, length)], constant_values=-2)
    runs_BGCW = jnp.stack([padded[..., i : i + c] for i in range(length)], axis=-1)
    inside_BJW = keywords_BJW >= 0
    same = (runs_BGCW[:, :, None] == keywords_BJW[:, None, :, None]) | ~inside_BJW[:, None, :, None]
    begins_BGJC = same.all(-1) & (requested_BJ & inside_BJW.any(-1))[:, None, :, None]
    marked = jnp.zeros_like(begins_BGJC)
    for i in range(length):
        shifted = jnp.pad(begins_BGJC, [(0, 0)] * 3 + [(i, 0)])[..., :c]
        marked |= shifted & inside_BJW[:, None, :, i, None]
    return marked.any(axis=2)


def rollout_metrics(
    completions: Completions, ended_BRG: Array, rewards: Mapping[str, Array], total: Array
) -> dict[str, Array]:
    """Metrics of the completions of V, under TRL's names."""
    exists_BG = completions.mask[:, 0].any(-1)
    length_BG = completions.mask[:, 0].sum(-1)
    count = jnp.maximum(exists_BG.sum(), 1)
    prompts_B = exists_BG.any(-1)
    equal_B = ~has_spread(total[:, 0])
    metrics = {
        "reward": nanmean(total[:, 0]),
        "reward_std": nanmean(jnp.nanstd(total[:, 0], axis=1, ddof=1)),
        "frac_reward_zero_std": (equal_B & prompts_B).sum() / jnp.maximum(prompts_B.sum(), 1),
        "completions/mean_length": length_BG.sum() / count,
        "completions/max_length": length_BG.max(),
        "completions/clipped_ratio": (exists_BG & ~ended_BRG[:, 0]).sum() / count,
    }
    if total.shape[1] > 1:
        metrics["reward_degraded"] = nanmean(total[:, 1])
    for name, x in rewards.items():
        x = jnp.where(exists_BG, x[:, 0], jnp.nan)
        metrics |= {f"rewards/{name}/mean": nanmean(x), f"rewards/{name}/std": jnp.nanstd(x)}
    return metrics


def degraded_metrics(
    mask_BRGC: Array,
    advantages_BRGC: Array,
    weights: Sequence[float],
    rewards: Mapping[str, Array],
    total_BG: Array,
) -> dict[str, Array]:
    """Metrics f32[] of the training on V~. mask: the trained tokens. weights: of the losses of V and of V~.
    rewards f32[B, G] by name and their weighted sum: of completions on V~, for what is true of it.

    degraded/reward: mean of the sum. degraded/spread: share of the groups on V~ whose sums differ.
    degraded/mass: V~'s share of the advantages' mass, weight * mean |A| over a branch's trained tokens.
    """
    prompts_B = (~jnp.isnan(total_BG)).any(-1)
    masses = []
    for branch, weight in enumerate(weights):
        mask_BGC = mask_BRGC[:, branch]
        size = jnp.where(mask_BGC, jnp.abs(advantages_BRGC[:, branch]), 0.0)
        masses.append(weight * size.sum() / jnp.maximum(mask_BGC.sum(), 1))
    whole = masses[0] + masses[1]
    metrics = {
        "degraded/reward": nanmean(total_BG),
        "degraded/spread": has_spread(total_BG).sum() / jnp.maximum(prompts_B.sum(), 1),
        "degraded/mass": masses[1] / jnp.where(whole > 0, whole, 1.0),
    }
    return metrics | {f"degraded/rewards/{name}/mean": nanmean(x) for name, x in rewards.items()}


def nanmean(x: Array) -> Array:
    """The mean of the values that are not NaN; 0 if all are."""
    mean = jnp.nanmean(x)
    return jnp.where(jnp.isnan(mean), 0.0, mean)
