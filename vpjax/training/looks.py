"""The GRPO step of two looks: which window of a long clip is looked at again, and what is answered there.

The rows of a batch are prompts: for each clip those of its windows, for each window those of
``data.looks.KINDS``. The scores of the windows make a choice among them, and at each window G answers are
sampled of either look. The choice is not sampled: every window counts as much as it is likely to be chosen.
See docs/method.md, section 3. In this file W are the windows of a clip, L its two looks, and X the answers of
both looks at a window.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vpjax.data.looks import KINDS
from vpjax.models.generate import Completions
from vpjax.models.vision import Features
from vpjax.models.vlm import VideoLM
from vpjax.training.judged import (
    Judge,
    JudgedRollouts,
    correct_reward,
    have_no_faults,
    rollout_metrics,
    score_branches,
    total_rewards,
)
from vpjax.training.optimizer import Optimizer
from vpjax.training.policy import has_ended, sampling_metrics, trained_tokens
from vpjax.training.relative import has_spread
from vpjax.training.rollout import sample_completions
from vpjax.training.state import State, advance
from vpjax.training.update import Learned, PolicyUpdate, Trained, UpdateRows, take_prompts
from vpjax.types import Array, Prompts

RELEVANCE, FIRST, SECOND = range(len(KINDS))
LOOKS = FIRST, SECOND


class LookRewards(NamedTuple):
    """What answers earn, f32[B, W, X], NaN for those that do not count, and its parts: gain f32[B, W], the
    mean over second looks, and overlap f32[B, W]."""

    total: Array
    gain: Array
    overlap: Array


class Expectation(NamedTuple):
    """The policy's choice. chance f32[B, W]: of each window, p. share f32[B, W, X]: the weight of each answer
    in an expectation under the policy, p over the number of answers of its window; 0 for those that do not
    count."""

    chance: Array
    share: Array

    def of(self, x_BWX: Array) -> Array:
        """The mean f32[] over clips of the expectations of ``x``, f32 that broadcasts to [B, W, X]."""
        clips = (self.share > 0).any(axis=(1, 2)).sum()
        return jnp.where(self.share > 0, self.share * x_BWX, 0.0).sum() / jnp.maximum(clips, 1)


def look_rewards(total_BWLG: Array, right_BWLG: Array, overlap_BW: Array, options: ConfigDict) -> LookRewards:
    """The rewards of answers to both looks, 0 at a window that shows nothing of the event: what is right
    there is right by chance, or because nothing else is left.

    total: the weighted sum of the rewards of an answer, NaN if it does not count. right: the one that means
    right. overlap: the IoU of window and event. options: ``config.grpo.looks``.

    Windows are much longer than events, so that all IoUs are near 0: they are divided by the best of the
    clip's. What an answer to the second look gains is by how much it is better than those to the first are on
    average.
    """
    best_B1 = overlap_BW.max(axis=1, keepdims=True)
    overlap_BW = overlap_BW / jnp.where(best_B1 > 0, best_B1, 1.0)
    first_BWG, second_BWG = right_BWLG[:, :, 0], right_BWLG[:, :, 1]
    gain_BWG = second_BWG - jnp.nanmean(first_BWG, axis=-1, keepdims=True)
    shows_BW1 = overlap_BW[..., None] > 0
    gain_BWG = jnp.where(shows_BW1 & ~jnp.isnan(gain_BWG), gain_BWG, 0.0)
    gained_BWLG = jnp.stack([jnp.zeros_like(gain_BWG), gain_BWG], axis=2)
    total_BWLG = total_BWLG + options.overlap * overlap_BW[..., None, None] + options.gain * gained_BWLG
    total_BWX = total_BWLG.reshape(*overlap_BW.shape, -1)
    total_BWX = jnp.where(shows_BW1 | jnp.isnan(total_BWX), total_BWX, 0.0)
    return LookRewards(total_BWX, gain_BWG.mean(axis=-1), overlap_BW)


def expectation(scores_BW: Array, rewards_BWX: Array, temperature: float) -> Expectation:
    """The choice p = softmax(scores / temperature) among the windows of a clip that have a reward."""
    counts_BWX = ~jnp.isnan(rewards_BWX)
    number_BW = counts_BWX.sum(-1)
    chance_BW = jax.nn.softmax(scores_BW / temperature, axis=1, where=number_BW > 0)
    share_BW = chance_BW / jnp.maximum(number_BW, 1)
    return Expectation(chance_BW, jnp.where(counts_BWX, share_BW[..., None], 0.0))


def look_advantages(share_BWX: Array, rewards_BWX: Array, *, scale: str, eps: float = 1e-4) -> Array:
    """Advantages f32[B, W, X]: (R - b) / (std + eps), with b the expectation of R under the policy.

    share: ``Expectation.share``. scale: divide by the std under the policy within the clip ("group"), by that
    over the clips of the batch ("batch"), or not ("none"). 0 for answers that do not count, and for clips
    whose rewards are all equal. No gradient flows through.
    """
    clips = jnp.maximum(jnp.any(share_BWX > 0, axis=(1, 2)).sum(), 1)
    known_BWX = jnp.where(jnp.isnan(rewards_BWX), 0.0, rewards_BWX)

    def mean_of(x_BWX: Array) -> Array:
        return (share_BWX * x_BWX).sum(axis=(1, 2), keepdims=True)

    baseline_B11 = mean_of(known_BWX)
    centred_BWX = known_BWX - baseline_B11
    divisor: Array = jnp.ones(())
    if scale == "group":
        divisor = jnp.sqrt(mean_of(centred_BWX**2)) + eps
    elif scale == "batch":
        from_all_BWX = known_BWX - baseline_B11.sum() / clips
        divisor = jnp.sqrt(mean_of(from_all_BWX**2).sum() / clips) + eps
    # Rewards are compared with each other, because rounding may part equal ones from their mean.
    differs_B = has_spread(rewards_BWX.reshape(len(rewards_BWX), -1))
    counts_BWX = differs_B[:, None, None] & ~jnp.isnan(rewards_BWX)
    return jax.lax.stop_gradient(jnp.where(counts_BWX, centred_BWX / divisor, 0.0))


def slopes(policy: Expectation, advantages_BWX: Array, temperature: float) -> tuple[Array, Array]:
    """The derivatives of the expected reward, its baseline taken off, by the score of each window f32[B, W]
    and by the log-probability of each answer f32[B, W, X].

    Within a clip the first add up to 0: what p's denominator would add to them is 0 with the baseline b."""
    by_answer_BWX = policy.share * advantages_BWX
    return by_answer_BWX.sum(-1) / temperature, by_answer_BWX


@dataclasses.dataclass(frozen=True)
class LookStep:
    """The parts of the step, all of them pure functions of their arguments. yes_no: the tokens of the answers
    whose log-probabilities make a window's score."""

    model: VideoLM
    config: ConfigDict
    optimizer: Optimizer
    judge: Judge
    eos: tuple[int, ...]
    yes_no: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def policy(self) -> PolicyUpdate:
        return PolicyUpdate(self.model, self.config, self.optimizer)

    def by_window(self, x: Array) -> Array:
        """Of an array [N, ...] of prompts the kinds of each clip's windows, [B, W, kinds, ...]."""
        windows = self.config.looks.windows + self.config.looks.wrong
        clips = x.shape[0] // (windows * len(KINDS))
        return x.reshape(clips, windows, len(KINDS), *x.shape[1:])

    def rollout(self, state: State, prompts: Prompts) -> tuple[Completions, Features | None]:
        """Completions [N, 1, G, C], none of the prompts about relevance, and the features of all."""
        model = self.policy.compute_model(state.params, state.frozen)
        features, count = model.encode(prompts.video), self.config.grpo.groups
        numbers = rows_of(prompts, *LOOKS)
        asked = take_prompts(prompts.without_video(), numbers)
        requested = jnp.repeat(asked.clip[:, None] >= 0, count, axis=1)
        said = sample_completions(
            model,
            asked,
            take_prompts(features, numbers),
            self.config,
            state.step,
            groups=(count,),
            requested=requested,
            eos=self.eos,
        )

        def among_all(x: Array) -> Array:
            return jnp.zeros((len(prompts.clip), 1, *x.shape[1:]), x.dtype).at[numbers, 0].set(x)

        return jax.tree.map(among_all, said), features

    def judge_and_update(
        self,
        state: State,
        prompts: Prompts,
        completions: Completions,
        features: Features | None,
        host_rewards: dict[str, Array],
    ) -> tuple[State, dict[str, Array], JudgedRollouts]:
        """Score the completions and the windows, compute the advantages of both and update. host_rewards:
        f32[N, 1, G] by name."""
        options, mask = self.config.grpo, jnp.asarray(completions.mask)
        rewards = score_branches(self.judge.score, prompts, completions) | host_rewards
        exists_NRG = mask.any(-1)
        total_NRG = total_rewards(rewards, self.judge.weights, exists_NRG)
        earned = self.earned(prompts, rewards, total_NRG)

        scored = self.choice_rows(prompts.without_video(), features)
        scored = scored._replace(sampled=self.policy.forward(state.params, state.frozen, scored))
        scores_BW = scores_of(scored).reshape(earned.overlap.shape)
        policy = expectation(scores_BW, earned.total, options.looks.temperature)
        advantages_BWX = look_advantages(policy.share, earned.total, scale=options.scale)

        by_score_BW, by_answer_BWX = slopes(policy, advantages_BWX, options.looks.temperature)
        by_yes_no_N2 = by_score_BW.ravel()[:, None] * jnp.array([1.0, -1.0])  # log p(yes) - log p(no)
        by_answer_NG = by_answer_BWX.reshape(-1, options.groups)
        shown, shown_features = prompts.without_video(), features
        if any(path.startswith("vision.") for path in state.params):
            shown, shown_features = prompts, None  # so that the update reads the videos again
        choices = self.choice_rows(shown, shown_features)
        choices = choices._replace(sampled=scored.sampled, advantages=spread_over(by_yes_no_N2, choices.mask))
        answers = self.answer_rows(shown, shown_features, completions)
        answers = answers._replace(advantages=spread_over(by_answer_NG, answers.mask))
        clips = jnp.maximum((policy.share > 0).any(axis=(1, 2)).sum(), 1)
        state, learned = self.update(state, choices, answers, clips, have_no_faults(rewards))

        second, answered = rows_of(prompts, SECOND), rows_of(prompts, *LOOKS)
        ended_NRG = has_ended(completions.tokens, mask, self.eos)
        of_second = take_prompts((completions, ended_NRG, rewards, total_NRG), second)
        metrics = rollout_metrics(*of_second) | look_metrics(policy, earned)
        metrics["completions/stopped"] = 1 - self.share_sampled(prompts, exists_NRG)
        metrics["tokens"] = (prompts.text.segment > 0).sum() + mask.sum()
        metrics |= learned
        # For reports: what answers earned, and their advantages, in the places of their prompts.
        total_NRG = jnp.asarray(total_NRG).at[answered, 0].set(earned.total.reshape(-1, options.groups))
        shown_NRG = (
            jnp.zeros(exists_NRG.shape).at[answered, 0].set(advantages_BWX.reshape(-1, options.groups))
        )
        judged = JudgedRollouts(completions, rewards, total_NRG, {}, shown_NRG, prompts.clip)
        return state, {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}, judged

    def earned(self, prompts: Prompts, rewards: Mapping[str, Array], total_NRG: Array) -> LookRewards:
        """What the answers at each window earn. total: NaN for those that do not count."""
        correct = correct_reward(self.config.grpo)
        assert correct is not None  # by ``run_config.check``
        right_NRG = jnp.where(jnp.isnan(total_NRG), jnp.nan, rewards[correct])
        # A window counts if all of its prompts are there, also the one that gives its score.
        exists_BWK = self.by_window(jnp.asarray(prompts.clip) >= 0)
        is_whole_BW11 = jnp.all(exists_BWK, axis=2)[..., None, None]
        total_BWLG = self.by_window(total_NRG[:, 0])[:, :, FIRST:]
        return look_rewards(
            jnp.where(is_whole_BW11, total_BWLG, jnp.nan),
            self.by_window(right_NRG[:, 0])[:, :, FIRST:],
            self.by_window(self.judge.overlap(prompts))[:, :, SECOND],
            self.config.grpo.looks,
        )

    def share_sampled(self, prompts: Prompts, exists_NRG: Array) -> Array:
        """The share of the completions that were asked for and have ended."""
        exists_BWL = self.by_window(jnp.asarray(prompts.clip) >= 0)[:, :, FIRST:]
        return exists_NRG.sum() / jnp.maximum(exists_BWL.sum() * self.config.grpo.groups, 1)

    def choice_rows(self, prompts: Prompts, features: Features | None) -> UpdateRows:
        """The prompts about relevance, each with its two answers: arrays [B * W, 1, 2, C]."""
        numbers = rows_of(prompts, RELEVANCE)
        tokens_2C = np.zeros((2, max(map(len, self.yes_no))), np.int32)
        mask_2C = np.zeros(tokens_2C.shape, bool)
        for number, answer in enumerate(self.yes_no):
            tokens_2C[number, : len(answer)], mask_2C[number, : len(answer)] = answer, True
        asked, own = take_prompts((prompts, features), numbers)
        exists_N111 = (jnp.asarray(asked.clip) >= 0)[:, None, None, None]
        tokens = jnp.broadcast_to(tokens_2C, (len(numbers), 1, *tokens_2C.shape))
        return UpdateRows(asked, tokens, exists_N111 & mask_2C, jnp.zeros(tokens.shape), features=own)

    def answer_rows(
        self, prompts: Prompts, features: Features | None, completions: Completions
    ) -> UpdateRows:
        """The prompts about either look and what was answered: arrays [B * W * L, 1, G, C]."""
        asked, own, said = take_prompts((prompts, features, completions), rows_of(prompts, *LOOKS))
        mask = trained_tokens(said.mask, has_ended(said.tokens, said.mask, self.eos), self.config.grpo)
        zeros = jnp.zeros(mask.shape)
        return UpdateRows(asked, said.tokens, mask, zeros, features=own, sampled=said.logprobs)

    def update(
        self, state: State, choices: UpdateRows, answers: UpdateRows, clips: Array, no_faults: Array
    ) -> tuple[State, dict[str, Array]]:
        """One update on the choice and on the answers, whose losses are sums over ``clips`` clips."""
        options, policy = self.config.grpo, self.policy
        divisor = (clips * options.max_new).astype(jnp.float32)
        of_choice, _ = policy.gradient(state.params, state.frozen, choices, [divisor])
        of_answers, logprobs = policy.gradient(state.params, state.frozen, answers, [divisor])
        value, _, gradient = jax.tree.map(jnp.add, of_choice, of_answers)
        before = Trained(state.params, state.opt, no_faults)
        after, norm = policy.apply(before, value, gradient)
        metrics = policy.metrics(state, Learned(value, norm, of_answers[1]), after.finite)
        assert answers.sampled is not None
        metrics |= sampling_metrics(logprobs, answers.sampled, answers.mask, options)
        return advance(state, *after), metrics


def rows_of(prompts: Prompts, *kinds: int) -> np.ndarray:
    """The numbers i64[B * W * n] of the prompts of n of KINDS, window by window."""
    return np.arange(len(prompts.clip)).reshape(-1, len(KINDS))[:, kinds].ravel()


def scores_of(choices: UpdateRows) -> Array:
    """log p(yes) - log p(no) f32[B * W] of windows, from ``sampled``."""
    assert choices.sampled is not None
    logp_N2 = jnp.where(choices.mask, choices.sampled, 0.0).sum(-1)[:, 0]
    return logp_N2[:, 0] - logp_N2[:, 1]


def spread_over(x_NG: Array, mask_NRGC: Array) -> Array:
    """A value of each completion at each of its tokens, f32[N, 1, G, C]."""
    return jnp.broadcast_to(x_NG[:, None, :, None], mask_NRGC.shape)


def look_metrics(policy: Expectation, earned: LookRewards) -> dict[str, Array]:
    """Expectations under the policy, f32[], means over clips.

    reward: of what is trained. reward_std: its standard deviation within a clip. frac_reward_zero_std: the
    share of clips whose rewards are all equal. looks/right_window: the chance of a window that shows a part
    of the event. looks/overlap, looks/gain: the parts of the reward, without their weights. looks/entropy: of
    the choice, in nats.
    """
    known_BWX = jnp.where(jnp.isnan(earned.total), 0.0, earned.total)
    exists_B = jnp.any(policy.share > 0, axis=(1, 2))
    clips = jnp.maximum(exists_B.sum(), 1)
    baseline_B11 = (policy.share * known_BWX).sum(axis=(1, 2), keepdims=True)
    variance_B = (policy.share * (known_BWX - baseline_B11) ** 2).sum(axis=(1, 2))
    equal_B = exists_B & ~has_spread(earned.total.reshape(len(exists_B), -1))
    return {
        "reward": policy.of(known_BWX),
        "reward_std": jnp.sqrt(variance_B).sum() / clips,
        "frac_reward_zero_std": equal_B.sum() / clips,
        "looks/right_window": policy.of((earned.overlap > 0)[..., None]),
        "looks/overlap": policy.of(earned.overlap[..., None]),
        "looks/gain": policy.of(earned.gain[..., None]),
        "looks/entropy": jax.scipy.special.entr(policy.chance).sum() / clips,
    }
