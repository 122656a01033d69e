"""The GRPO step: rollouts of V and V~, rewards, advantages and the update in one jitted, donated call.

A prompt's video is encoded once; V~ is a gather of its features. Each branch (V, and V~ if it is rolled out)
is prefilled once. Its completions share the prefix, in sampling and in the update: P + G * C tokens. Rewards
that are the user's own Python run between two calls, one that rolls out and one that updates.

R: branches. One loop samples as many completions of each as it has, for a loop of its own would read the
weights again; in arrays both have G = max(groups, degraded), of which those beyond a branch's own number are
masked out. See docs/method.md, section 3.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vpjax.data.looks import KINDS
from vpjax.hlo import phase
from vpjax.models.attention import backend
from vpjax.models.generate import Completions
from vpjax.models.sharding import batch_sharding, check_rows, in_use
from vpjax.models.vision import Features
from vpjax.models.vlm import VideoLM
from vpjax.scoring.rewards import combine
from vpjax.training.judged import (
    Judge,
    JudgedRollouts,
    correct_reward,
    degraded_metrics,
    have_no_faults,
    host_rewards_of,
    keyword_tokens,
    parts_of,
    rollout_metrics,
    same_answers,
    score_branches,
    total_rewards,
)
from vpjax.training.looks import LookStep
from vpjax.training.optimizer import Optimizer
from vpjax.training.policy import has_ended, trained_tokens
from vpjax.training.relative import (
    NEEDS,
    NO_TERM,
    Evidence,
    advantages,
    relative_metrics,
    relative_term,
)
from vpjax.training.rollout import sample_completions
from vpjax.training.state import State
from vpjax.training.update import (
    PolicyUpdate,
    UpdateRows,
    branch_prompts,
    prompts_with_spread,
    repeat_rows,
    take_prompts,
)
from vpjax.types import Array, Prompts


def make_step(
    model: VideoLM,
    config: ConfigDict,
    optimizer: Optimizer,
    shardings: State | None = None,
    *,
    judge: Judge,
    eos: tuple[int, ...],
    yes_no: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
) -> Callable[[State, Prompts], tuple[State, dict[str, Array], JudgedRollouts]]:
    """``step(state, prompts) -> state, metrics (f32 scalars), rollouts``. The state is donated. An update
    whose loss, gradient or reward is not finite is skipped and counted.

    model: arrays or shapes. shardings: of the state, from ``create_state``. eos: stop tokens. yes_no: the
    tokens of these answers, for two looks. UserError if the rows of a micro-batch do not divide over the
    devices.
    """
    mesh = None if shardings is None else shardings.step.mesh
    if mesh is not None:
        check_micro_batch(config, mesh)
    grpo: GRPOStep | LookStep = GRPOStep(model, config, optimizer, judge, eos)
    if config.looks.windows:
        grpo = LookStep(model, config, optimizer, judge, eos, yes_no)

    def on_mesh(function: Callable[..., Any]) -> Callable[..., Any]:
        def traced(*arguments):
            with in_use(mesh), backend(config.attention):
                return function(*arguments)

        return traced

    rollout, judge_and_update = on_mesh(grpo.rollout), on_mesh(grpo.judge_and_update)

    def whole_step(state, prompts):
        return judge_and_update(state, prompts, *rollout(state, prompts), {})

    out_shardings = None if shardings is None else (shardings, None, None)
    if not judge.host_scores:
        return jax.jit(whole_step, donate_argnums=0, out_shardings=out_shardings)
    # Every process scores the completions of its own rows.
    first = jax.jit(rollout, out_shardings=None if mesh is None else batch_sharding(mesh))
    second = jax.jit(judge_and_update, donate_argnums=0, out_shardings=out_shardings)

    def step_with_host_rewards(state: State, prompts: Prompts):
        completions, features = first(state, prompts)
        host_rewards = host_rewards_of(judge.host_scores, prompts, completions, mesh)
        return second(state, prompts, completions, features, host_rewards)

    return step_with_host_rewards


def check_micro_batch(config: ConfigDict, mesh: Mesh) -> None:
    """UserError if the rows that are computed at once do not divide over the devices."""
    field = "config.batch / config.accumulate"
    if config.grpo.num_minibatches > 1:
        field += " / config.grpo.num_minibatches"
    rows = config.batch // (config.accumulate * config.grpo.num_minibatches)
    if config.looks.windows:
        field, rows = f"{field} / {len(KINDS)}", rows // len(KINDS)
    check_rows(rows, mesh, field)


class TrainedBranch(NamedTuple):
    """The completions of a branch that are trained. advantages f32[B, G, C]. counts bool[B, G]: the
    completions that have one."""

    advantages: Array
    counts: Array


class DegradedScores(NamedTuple):
    """The scores of completions on V~ for what is true of V~. rewards f32[B, G] by name. total f32[B, G]:
    their weighted sum, NaN where none counts. is_judged bool[B, G]: where one does."""

    rewards: dict[str, Array]
    total: Array
    is_judged: Array


@dataclasses.dataclass(frozen=True)
class GRPOStep:
    """The parts of the step, all of them pure functions of their arguments."""

    model: VideoLM
    config: ConfigDict
    optimizer: Optimizer
    judge: Judge
    eos: tuple[int, ...]

    @property
    def policy(self) -> PolicyUpdate:
        return PolicyUpdate(self.model, self.config, self.optimizer)

    def rollout(self, state: State, prompts: Prompts) -> tuple[Completions, Features | None]:
        """Completions [B, R, G, C] of all branches, sampled in one loop, and the features of V."""
        model = self.policy.compute_model(state.params, state.frozen)
        features, branches = model.encode(prompts.video), len(self.groups)
        completions = sample_completions(
            model,
            branch_prompts(prompts, branches),
            repeat_rows(features, branches),
            self.config,
            state.step,
            groups=self.groups,
            requested=jnp.concatenate(self.requested(prompts), axis=1),
            eos=self.eos,
        )
        return jax.tree.map(self.by_branch, completions), features

    @property
    def groups(self) -> tuple[int, ...]:
        """The number of completions on V and, if there are any, on V~."""
        options = self.config.grpo
        return (options.groups, options.degraded) if options.degraded > 0 else (options.groups,)

    def requested(self, prompts: Prompts) -> list[Array]:
        """Of each branch bool[B, G or K]: the completions that are sampled; on V~ none for clips that have
        none."""
        exists_B = jnp.asarray(prompts.clip) >= 0
        has_branch = exists_B, exists_B & prompts.has_degraded
        pairs = zip(has_branch, self.groups, strict=False)
        return [jnp.repeat(has_B[:, None], count, axis=1) for has_B, count in pairs]

    def by_branch(self, x_BXC: Array) -> Array:
        """[B, R, G, C], with zeros in the place of completions that a branch has not."""
        most, ends = max(self.groups), np.cumsum(self.groups)[:-1]
        parts = jnp.split(x_BXC, ends, axis=1)
        return jnp.stack([jnp.pad(x, [(0, 0), (0, most - x.shape[1]), (0, 0)]) for x in parts], axis=1)

    def judge_and_update(
        self,
        state: State,
        prompts: Prompts,
        completions: Completions,
        features: Features | None,
        host_rewards: dict[str, Array],
    ) -> tuple[State, dict[str, Array], JudgedRollouts]:
        """Score the completions, compute their advantages and update. host_rewards: f32[B, R, G] by name."""
        options, mask = self.config.grpo, completions.mask
        rewards = score_branches(self.judge.score, prompts, completions) | host_rewards
        exists_BRG = jnp.asarray(mask).any(-1)
        total = total_rewards(rewards, self.judge.weights, exists_BRG)
        evidence = self.evidence(state, prompts, completions, rewards, total, features)
        term = relative_term(evidence, options.relative)
        own = advantages(evidence.rewards, term, scale=options.scale, parts=evidence.parts)
        branches = [TrainedBranch(jnp.broadcast_to(own, mask[:, 0].shape), ~jnp.isnan(total[:, 0]))]
        degraded = None
        if self.judge.degraded_weights:  # V~ has a truth and a group of its own
            degraded = self.degraded_scores(prompts, completions, exists_BRG[:, 1])
            branches.append(self.degraded_branch(degraded, mask[:, 1].shape))
        ended_BRG = has_ended(completions.tokens, mask, self.eos)
        rows = self.update_rows(state, prompts, completions, features, branches, ended_BRG)
        no_faults = have_no_faults(rewards)

        metrics = relative_metrics(evidence, term, scale=options.scale)
        metrics |= rollout_metrics(completions, ended_BRG, rewards, total)
        if degraded is not None:
            weights = self.policy.branch_weights
            metrics |= degraded_metrics(rows.mask, rows.advantages, weights, degraded.rewards, degraded.total)
        sampled_count = sum(x.sum() for x in self.requested(prompts))
        metrics["completions/stopped"] = 1 - exists_BRG.sum() / jnp.maximum(sampled_count, 1)
        metrics["tokens"] = (prompts.text.segment > 0).sum() * mask.shape[1] + mask.sum()
        judged = JudgedRollouts(
            completions,
            rewards,
            total,
            {} if degraded is None else degraded.rewards,
            mean_advantages(rows),
            prompts.clip,
        )

        if options.oversample > 1:
            chosen, chosen_metrics = prompts_with_spread(rows, self.config.batch)
            metrics |= chosen_metrics
            rows = take_prompts(rows, chosen)
        state, learned = self.policy(state, rows, no_faults)
        metrics |= learned
        return state, {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}, judged

    def degraded_scores(self, prompts: Prompts, completions: Completions, exists_BG: Array) -> DegradedScores:
        """The scores for what is true of V~. exists: the completions on V~ that there are."""
        weights = self.judge.degraded_weights
        tokens_BGC, mask_BGC = jnp.asarray(completions.tokens[:, 1]), jnp.asarray(completions.mask[:, 1])
        scored = self.judge.score_degraded(prompts, tokens_BGC, mask_BGC)
        rewards: dict[str, Array] = {name: jnp.where(exists_BG, x, jnp.nan) for name, x in scored.items()}
        # Of some V~s nothing is known to be true, so that no reward counts.
        is_judged_BG = ~jnp.stack([jnp.isnan(x) for x in rewards.values()]).all(axis=0)
        total = jnp.where(is_judged_BG, combine(rewards, weights), jnp.nan)
        return DegradedScores(rewards, total, is_judged_BG)

    def degraded_branch(self, scores: DegradedScores, shape: tuple[int, ...]) -> TrainedBranch:
        """The completions on V~ as a group of their own. shape: [B, G, C]."""
        options = self.config.grpo
        parts = parts_of(scores.rewards, self.judge.degraded_weights, options)
        own = advantages(scores.total, NO_TERM, scale=options.scale, parts=parts)
        return TrainedBranch(jnp.broadcast_to(own, shape), scores.is_judged)

    def update_rows(
        self,
        state: State,
        prompts: Prompts,
        completions: Completions,
        features: Features | None,
        branches: Sequence[TrainedBranch],
        ended_BRG: Array,
    ) -> UpdateRows:
        """What is updated on: the completions of the trained branches, of V alone or of V and V~. The vision
        tower reads the videos again if it is trained, and its features are kept if it is frozen."""
        trained = len(branches)
        advantages_BRGC, counts_BRG = (jnp.stack(x, axis=1) for x in zip(*branches, strict=True))
        mask_BRGC = trained_tokens(completions.mask, ended_BRG, self.config.grpo)[:, :trained]
        trains_vision = any(path.startswith("vision.") for path in state.params)
        return UpdateRows(
            prompts=prompts if trains_vision else prompts.without_video(),
            tokens=completions.tokens[:, :trained],
            mask=mask_BRGC & counts_BRG[..., None],
            advantages=advantages_BRGC,
            features=None if trains_vision else features,
            sampled=completions.logprobs[:, :trained],
        )

    @phase("evidence")
    def evidence(
        self,
        state: State,
        prompts: Prompts,
        completions: Completions,
        rewards: Mapping[str, Array],
        total: Array,
        features: Features | None,
    ) -> Evidence:
        """The evidence that the relative reward needs, and which completions are right if the config says
        which reward means that. rewards, total: f32[B, R, G]."""
        needs = NEEDS[self.config.grpo.relative.kind]
        tokens, mask = completions.tokens, completions.mask
        counts_BRG = ~jnp.isnan(total)  # the others are left out of their groups
        compared = prompts.has_degraded
        if self.config.grpo.control_share and "same" not in needs:
            # A control hides nothing. Only a kind that knows this, by ``hides``, can compare it with V.
            compared = compared & jnp.any(prompts.hidden, axis=1)
        correct = correct_reward(self.config.grpo)
        on_video = {name: x[:, 0] for name, x in rewards.items()}
        parts = parts_of(on_video, self.judge.weights, self.config.grpo)
        evidence = Evidence(rewards=total[:, 0], has_degraded=compared, parts=parts)
        if correct is not None:
            right = jnp.where(counts_BRG, rewards[correct], jnp.nan)
            evidence = evidence._replace(unit=self.judge.weights[correct], right=right[:, 0])
            if right.shape[1] > 1:
                evidence = evidence._replace(right_degraded=right[:, 1])
        if "recall" in needs:
            recall = jnp.where(counts_BRG, score_branches(self.judge.recall, prompts, completions), jnp.nan)
            evidence = evidence._replace(recall=recall[:, 0], degraded_recall=recall[:, 1])
        if "same" in needs:
            said = jnp.where(counts_BRG, score_branches(self.judge.answers, prompts, completions), -1)
            evidence = evidence._replace(same=same_answers(said), hides=jnp.any(prompts.hidden, axis=1))
        if "gap" in needs:
            # What was said on V, on both videos, by one forward pass: sampling differs from it by rounding.
            said, on_both = (jnp.repeat(x[:, :1], 2, axis=1) for x in (tokens, mask))
            rows = UpdateRows(prompts, said, on_both, on_both, features)
            updates = self.config.grpo.num_minibatches * self.config.grpo.oversample  # of as many rows
            logprobs = self.policy.forward(state.params, state.frozen, rows, updates)
            evidence = evidence._replace(gap=logprobs[:, 0] - logprobs[:, 1], mask=mask[:, 0])
        if "keyword" in needs:
            spelled = keyword_tokens(tokens[:, 0], prompts.keywords, prompts.hidden)
            evidence = evidence._replace(keyword=spelled)
        return evidence


def mean_advantages(rows: UpdateRows) -> Array:
    """The mean f32[B, R, G] over the trained tokens of each completion."""
    total_BRG = jnp.where(rows.mask, rows.advantages, 0.0).sum(-1)
    return total_BRG / jnp.maximum(rows.mask.sum(-1), 1)
