"""The GRPO step: rollouts of V and V~, rewards, advantages and the update in one jitted, donated call.

A prompt's video is encoded once; V~ is a gather of its features. Each branch (V, and V~ if it is rolled out)
is prefilled once. Its completions share the prefix, in sampling and in the update: P + G * C tokens. Rewards
that are the user's own Python run between two calls, one that rolls out and one that updates.

R: branches. All have G = max(groups, degraded) completions; those beyond a branch's own number are masked
out. A decode loop of its own for each branch would sample no such completions, but read the weights twice.
See docs/method.md, section 3.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vpjax.models.attention import backend
from vpjax.models.generate import Completions, generate
from vpjax.models.sharding import check_rows, in_use
from vpjax.models.vision import Features
from vpjax.models.vlm import VideoLM, rebuild
from vpjax.scoring.rewards import combine
from vpjax.training.judged import (
    Judge,
    JudgedRollouts,
    correct_reward,
    degraded_metrics,
    keyword_tokens,
    rollout_metrics,
    same_answers,
    score_branches,
)
from vpjax.training.losses import token_logprobs
from vpjax.training.policy import denominator, has_ended, policy_loss, policy_metrics, trained_tokens
from vpjax.training.relative import (
    NEEDS,
    NO_TERM,
    Evidence,
    advantages,
    relative_metrics,
    relative_term,
)
from vpjax.training.state import Optimizer, State, accumulate, advance, optimize
from vpjax.types import Array, Prompts

ROLE = 2  # of the rollouts' keys among the folds of (seed, role, step); 0 and 1 are the initial parameters'


class UpdateRows(NamedTuple):
    """The rows of an update. tokens, mask, advantages [B, R, G, C]. features: of V, if the vision tower is
    frozen. old, reference [B, R, G, C]: log-probabilities under the old policy and the reference."""

    prompts: Prompts
    tokens: Array
    mask: Array
    advantages: Array
    features: Features | None = None
    old: Array | None = None
    reference: Array | None = None


def make_step(
    model: VideoLM,
    config: ConfigDict,
    optimizer: Optimizer,
    shardings: State | None = None,
    *,
    judge: Judge,
    eos: tuple[int, ...],
) -> Callable[[State, Prompts], tuple[State, dict[str, Array], JudgedRollouts]]:
    """``step(state, prompts) -> state, metrics (f32 scalars), rollouts``. The state is donated. An update
    whose loss, gradient or reward is not finite is skipped and counted.

    model: arrays or shapes. shardings: of the state, from ``create_state``. eos: stop tokens. UserError if
    the rows of a micro-batch do not divide over the devices.
    """
    mesh = None if shardings is None else shardings.step.mesh
    if mesh is not None:
        check_rows(config.batch // config.accumulate, mesh, "config.batch / config.accumulate")
    grpo = GRPOStep(model, config, optimizer, judge, eos)

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
    first = jax.jit(rollout)
    second = jax.jit(judge_and_update, donate_argnums=0, out_shardings=out_shardings)

    def step_with_host_rewards(state: State, prompts: Prompts):
        completions, features = first(state, prompts)
        host_rewards = {name: score(prompts, completions) for name, score in judge.host_scores.items()}
        return second(state, prompts, completions, features, host_rewards)

    return step_with_host_rewards


@dataclasses.dataclass(frozen=True)
class GRPOStep:
    """The parts of the step, all of them pure functions of their arguments."""

    model: VideoLM
    config: ConfigDict
    optimizer: Optimizer
    judge: Judge
    eos: tuple[int, ...]

    def rollout(self, state: State, prompts: Prompts) -> tuple[Completions, Features | None]:
        """Completions [B, R, G, C] of all branches, sampled in one loop, and the features of V."""
        options, rows = self.config.grpo, len(prompts.clip)
        model = self.compute_model(state.params, state.frozen)
        features = model.encode(prompts.video)
        counts = [options.groups]
        if options.degraded > 0:
            counts.append(options.degraded)
        branches, groups = len(counts), max(counts)
        is_requested = jnp.arange(groups) < jnp.array(counts)[:, None]
        is_requested_BRG = jnp.broadcast_to(is_requested, (rows, branches, groups))
        if branches > 1:  # nothing is sampled on V~ for clips that have none
            has_branch_BR = jnp.stack([jnp.ones(rows, bool), prompts.has_degraded], axis=1)
            is_requested_BRG &= has_branch_BR[..., None]
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.config.seed), ROLE), state.step)
        completions = generate(
            model,
            _branch_prompts(prompts, branches),
            key,
            max_new=options.max_new,
            eos=self.eos,
            features=_repeat_rows(features, branches),
            groups=groups,
            requested=_merge_branches(is_requested_BRG),
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
        )
        return jax.tree.map(lambda x: x.reshape(rows, branches, groups, -1), completions), features

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
        total = jnp.where(mask.any(-1), combine(rewards, self.judge.weights), jnp.nan)
        evidence = self.evidence(state, prompts, completions, rewards, total, features)
        term = relative_term(evidence, options.relative)
        branch_advantages = [
            jnp.broadcast_to(advantages(evidence.rewards, term, scale=options.scale), mask[:, 0].shape)
        ]
        degraded_rewards: dict[str, Array] = {}
        if self.judge.degraded_weights:  # V~ has a truth and a group of its own
            tokens_BGC, mask_BGC = jnp.asarray(completions.tokens[:, 1]), jnp.asarray(mask[:, 1])
            scored = self.judge.score_degraded(prompts, tokens_BGC, mask_BGC)
            exists_BG = mask[:, 1].any(-1)
            degraded_rewards = {name: jnp.where(exists_BG, x, jnp.nan) for name, x in scored.items()}
            degraded_total = combine(degraded_rewards, self.judge.degraded_weights)
            degraded_total = jnp.where(exists_BG, degraded_total, jnp.nan)
            degraded_advantages = advantages(degraded_total, NO_TERM, scale=options.scale)
            branch_advantages.append(jnp.broadcast_to(degraded_advantages, mask[:, 1].shape))
        advantages_BRGC = jnp.stack(branch_advantages, axis=1)
        trained = len(branch_advantages)  # branches
        ended_BRG = has_ended(completions.tokens, mask, self.eos)
        trains_vision = any(path.startswith("vision.") for path in state.params)
        rows = UpdateRows(
            prompts,
            completions.tokens[:, :trained],
            trained_tokens(mask, ended_BRG, options)[:, :trained],
            advantages_BRGC,
            features=None if trains_vision else features,
        )
        # Not the total: there infinity with a weight of 0 is NaN, which stands for "does not apply".
        no_faults = ~jnp.stack([jnp.isinf(x).any() for x in rewards.values()]).any()
        state, metrics = self.update(state, rows, completions.logprobs[:, :trained], no_faults)
        metrics |= relative_metrics(evidence, term, scale=options.scale)
        metrics |= rollout_metrics(completions, ended_BRG, rewards, total)
        if degraded_rewards:
            metrics |= degraded_metrics(
                rows.mask, advantages_BRGC, self.branch_weights, degraded_rewards, degraded_total
            )
        metrics["tokens"] = (prompts.text.segment > 0).sum() * mask.shape[1] + mask.sum()
        mean_BRG = jnp.where(rows.mask, advantages_BRGC, 0.0).sum(-1) / jnp.maximum(rows.mask.sum(-1), 1)
        judged = JudgedRollouts(completions, rewards, total, degraded_rewards, mean_BRG, prompts.clip)
        return state, {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}, judged

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
        exists_BRG = mask.any(-1)
        compared = prompts.has_degraded
        if self.config.grpo.control_share and "same" not in needs:
            # A control hides nothing. Only a kind that knows this, by ``hides``, can compare it with V.
            compared = compared & jnp.any(prompts.hidden, axis=1)
        evidence = Evidence(rewards=total[:, 0], has_degraded=compared)
        correct = correct_reward(self.config.grpo)
        if correct is not None:
            right = jnp.where(exists_BRG, rewards[correct], jnp.nan)
            evidence = evidence._replace(unit=self.judge.weights[correct], right=right[:, 0])
            if right.shape[1] > 1:
                evidence = evidence._replace(right_degraded=right[:, 1])
        if "recall" in needs:
            recall = jnp.where(exists_BRG, score_branches(self.judge.recall, prompts, completions), jnp.nan)
            evidence = evidence._replace(recall=recall[:, 0], degraded_recall=recall[:, 1])
        if "same" in needs:
            said = jnp.where(exists_BRG, score_branches(self.judge.answers, prompts, completions), -1)
            evidence = evidence._replace(same=same_answers(said), hides=jnp.any(prompts.hidden, axis=1))
        if "gap" in needs:
            model = self.compute_model(state.params, state.frozen)
            degraded = prompts.showing(prompts.shows_degraded)
            rows = UpdateRows(degraded, tokens[:, :1], mask[:, :1], mask[:, :1], features)
            _, logprobs = accumulate(
                lambda micro: ((), self.logprobs(model, micro)), rows, self.config.accumulate
            )
            gap = completions.logprobs[:, 0] - logprobs[:, 0]
            evidence = evidence._replace(gap=gap, mask=mask[:, 0])
        if "keyword" in needs:
            spelled = keyword_tokens(tokens[:, 0], prompts.keywords, prompts.hidden)
            evidence = evidence._replace(keyword=spelled)
        return evidence

    def update(
        self, state: State, rows: UpdateRows, sampled: Array, no_faults: Array
    ) -> tuple[State, dict[str, Array]]:
        """``num_iterations`` updates on the same rollouts. sampled: the log-probabilities [B, R, G, C] of
        sampling. no_faults bool[]: if False, the update is skipped.

        The loss is that of V, as if there were no V~, plus ``degraded_weight`` times that of V~: each is a
        mean over its own branch."""
        options, count = self.config.grpo, self.config.accumulate
        if options.beta:
            reference = self.compute_model(state.reference, state.frozen)
            _, logprobs = accumulate(lambda micro: ((), self.logprobs(reference, micro)), rows, count)
            rows = rows._replace(reference=logprobs)
        branches = range(rows.mask.shape[1])
        divisors = [denominator(rows.mask[:, branch], options) for branch in branches]

        def loss(params, frozen, micro: UpdateRows):
            logprobs = self.logprobs(self.compute_model(params, frozen), micro)
            arrays = logprobs, micro.old, micro.mask, micro.advantages, micro.reference
            value, all_sums = jnp.zeros(()), []
            for branch in branches:
                new, old, mask, advantage, reference = jax.tree.map(lambda x, r=branch: x[:, r], arrays)
                sums = policy_loss(new, old, mask, advantage, reference, options)
                value += self.branch_weights[branch] * sums.loss / divisors[branch]
                all_sums.append(sums)
            return value, (jax.tree.map(lambda *x: sum(x), *all_sums), logprobs)

        gradient_of = jax.value_and_grad(loss, has_aux=True)
        params, opt, finite = state.params, state.opt, no_faults
        for _ in range(options.num_iterations):

            def gradient_and_logprobs(micro: UpdateRows, params=params):
                (value, (sums, logprobs)), gradient = gradient_of(params, state.frozen, micro)
                return (value, sums, gradient), jax.lax.stop_gradient(logprobs)

            (value, sums, gradient), logprobs = accumulate(gradient_and_logprobs, rows, count)
            norm = optax.tree.norm(gradient)
            finite &= jnp.isfinite(value) & jnp.isfinite(norm)
            params, opt = optimize(self.optimizer, params, opt, gradient)
            if rows.old is None:
                # The old log-probabilities come from the training forward pass itself, so that the ratio is
                # 1 at first. Those seen in sampling differ by rounding.
                difference = jnp.where(rows.mask, jnp.abs(logprobs - sampled), 0.0)
                rows = rows._replace(old=logprobs)
        metrics = policy_metrics(sums, options) | {
            "loss": value,
            "grad_norm": norm,
            "lr": self.optimizer.learning_rate(state.step - state.skipped),
            "nonfinite": ~finite,
            "sampling/logp_difference/max": difference.max(),
            "sampling/logp_difference/mean": difference.sum() / jnp.maximum(rows.mask.sum(), 1),
        }
        return advance(state, params, opt, finite), metrics

    @property
    def branch_weights(self) -> tuple[float, float]:
        """The weights of the losses of V and of V~."""
        return 1.0, self.config.grpo.degraded_weight

    def logprobs(self, model: VideoLM, rows: UpdateRows) -> Array:
        """log p f32[B, R, G, C] of the tokens of each branch, whose completions share its prompt."""
        prompts, shape, features = rows.prompts, rows.tokens.shape, rows.features
        if features is None:
            features = model.encode(prompts.video, remat=self.config.remat)
        tokens = _merge_branches(rows.tokens)
        h_BGCD = model.predicting(
            _repeat_rows(features, shape[1]),
            _branch_prompts(prompts, shape[1]),
            tokens,
            remat=self.config.remat,
        )
        temperature, chunk = self.config.grpo.temperature, self.config.loss.chunk
        logprobs = token_logprobs(h_BGCD, model.unembed, tokens, chunk=chunk, temperature=temperature)
        return logprobs.reshape(shape)

    def compute_model(self, params: dict[str, Array], frozen: dict[str, Array]) -> VideoLM:
        """The model in the compute dtype."""
        dtype = jnp.dtype(self.config.dtype)
        return rebuild(self.model, {path: x.astype(dtype) for path, x in params.items()} | frozen)


def _merge_branches(x: Array) -> Array:
    """[B, R, ...] as [B * R, ...]: the branches of a row stay on its device."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])  # a -1 could not be inferred without elements


def _branch_prompts(prompts: Prompts, branches: int) -> Prompts:
    """[B * R, ...]: each prompt on V and, with two branches, on V~ after it. Their videos are left out."""
    prompts = prompts.without_video()
    if branches == 1:
        return prompts
    degraded = prompts.showing(prompts.shows_degraded)
    return jax.tree.map(lambda *x: _merge_branches(jnp.stack(x, axis=1)), prompts, degraded)


def _repeat_rows(features: Features | None, branches: int) -> Features | None:
    """[B * R, ...]: the features of each row's video for each branch."""
    return jax.tree.map(lambda x: jnp.repeat(x, branches, axis=0), features)
