"""The GRPO step: rollouts of V and V~, rewards, advantages and the update in one jitted, donated call.

A prompt's video is encoded once; V~ is a gather of its features. Each branch is prefilled once, its rollouts
read one prefix cache, and in the update they share the prefix again: P + G * C tokens. Rewards that are the
user's own Python stand between two calls, one that rolls out and one that learns.

R: branches, V and, where it is rolled out, V~. Both have G = max(groups, degraded) completions, of which
those that were not asked for are masked out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vpjax.models.attention import backend
from vpjax.models.generate import Completions, completed, generate
from vpjax.models.sharding import check_rows, in_use
from vpjax.models.vlm import VideoLM, gather_slots, rebuild
from vpjax.scoring.judge import HostScore
from vpjax.scoring.rewards import combine
from vpjax.training import policy
from vpjax.training.losses import token_logprobs
from vpjax.training.relative import NEEDS, NOTHING, Evidence, advantages, relative
from vpjax.training.relative import metrics as relative_metrics
from vpjax.training.state import Optimizer, State
from vpjax.training.update import accumulate, advance, optimize
from vpjax.types import Array, Batch

ROLE = 2  # of the rollouts' keys among the folds of (seed, role, step); 0 and 1 are the initial parameters'

Score = Callable[[Batch, Array, Array], Any]  # of X completions of each row: tokens, mask [B, X, C]


class Judge(Protocol):
    """The rewards of completions. NaN: this reward says nothing of this clip.

    score: f32[B, X] by name, on the device. recall: share f32[B, X] of the keywords hidden in V~ that a
    completion names. host_scores: f32[B, R, G] each, computed on the host. weights: of all, by name.
    """

    score: Score
    recall: Score
    host_scores: Mapping[str, HostScore]
    weights: Mapping[str, float]


class JudgedRollouts(NamedTuple):
    """Rollouts as they were judged, for people to read. said: Completions [B, R, G, C]; rewards: by name,
    f32[B, R, G]; total: their weighted sum, NaN where nothing was asked for; advantages f32[B, R, G]: means
    over tokens; clip i32[B]: see ``Batch``."""

    said: Completions
    rewards: dict[str, Array]
    total: Array
    advantages: Array
    clip: Array


class Rows(NamedTuple):
    """What an update reads by row: tokens, mask, advantages [B, R, G, C]; features of V where the vision
    tower is frozen, else None; log-probabilities [B, R, G, C] under the old policy and under the reference,
    or None."""

    batch: Batch
    tokens: Array
    mask: Array
    advantages: Array
    features: Any
    old: Array | None
    reference: Array | None


def make_step(
    model: VideoLM,
    config: ConfigDict,
    optimizer: Optimizer,
    shardings: State | None = None,
    *,
    judge: Judge,
    eos: tuple[int, ...],
) -> Callable[[State, Batch], tuple[State, dict[str, Array], JudgedRollouts]]:
    """``step(state, batch) -> state, metrics (f32 scalars), told``, the state donated.

    model: arrays or shapes. shardings: of the state, from ``state.create_state``. eos: tokens that end a
    completion. An update whose loss, gradient or reward is not finite is skipped and counted. UserError where
    micro-batches cannot be split over the devices.
    """
    mesh = None if shardings is None else shardings.step.mesh
    if mesh is not None:
        check_rows(config.batch // config.accumulate, mesh, "config.batch / config.accumulate")
    parts = GRPOStep(model, config, optimizer, judge, eos)

    def roll(state, batch):
        with in_use(mesh), backend(config.attention):
            return parts.roll(state, batch)

    def learn(state, batch, said, features, own):
        with in_use(mesh), backend(config.attention):
            return parts.learn(state, batch, said, features, own)

    compiled = functools.partial(
        jax.jit, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None, None)
    )
    if not judge.host_scores:
        return compiled(lambda state, batch: learn(state, batch, *roll(state, batch), {}))
    first, second = jax.jit(roll), compiled(learn)

    def step(state: State, batch: Batch):
        said, features = first(state, batch)
        own = {name: host(batch, said) for name, host in judge.host_scores.items()}
        return second(state, batch, said, features, own)

    return step


@dataclasses.dataclass(frozen=True)
class GRPOStep:
    """The step's parts, all of them pure."""

    model: VideoLM
    config: ConfigDict
    optimizer: Optimizer
    judge: Judge
    eos: tuple[int, ...]

    def roll(self, state: State, batch: Batch) -> tuple[Completions, Any]:
        """Completions [B, R, G, C] of both branches, sampled in one loop, and the features of V."""
        options, config = self.config.grpo, self.config
        model = self.model_of(state.params, state.frozen)
        features = model.encode(batch.frames) if batch.video_end else None
        asked = [options.groups, options.degraded][: 1 + (options.degraded > 0)]
        groups = max(asked)
        wanted_BRG = jnp.broadcast_to(
            jnp.arange(groups) < jnp.array(asked)[:, None], (len(batch.clip), len(asked), groups)
        )
        if len(asked) > 1:  # without a V~ there is nothing to say about it
            wanted_BRG &= jnp.stack([jnp.ones(len(batch.clip), bool), _has(batch)], axis=1)[..., None]
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), ROLE), state.step)
        said = generate(
            model,
            _branched(dataclasses.replace(batch, frames=batch.frames[:, :0]), len(asked)),
            key,
            max_new=options.max_new,
            eos=self.eos,
            features=_branches(features, batch, len(asked)),
            groups=groups,
            wanted=_flat(wanted_BRG),
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
        )
        return jax.tree.map(lambda x: x.reshape(*wanted_BRG.shape, -1), said), features

    def learn(
        self, state: State, batch: Batch, said: Completions, features: Any, own: dict[str, Array]
    ) -> tuple[State, dict[str, Array], JudgedRollouts]:
        """Judge the completions and learn from them. own: the host's rewards f32[B, R, G]."""
        options = self.config.grpo
        scores = _each(self.judge.score, batch, said) | own
        asked_BRG = said.mask.any(-1)
        total = jnp.where(asked_BRG, combine(scores, self.judge.weights), jnp.nan)
        evidence = self.evidence(state, batch, said, total, features)
        term = relative(evidence, options.relative)
        whole = advantages(evidence.rewards, term, scale=options.scale)
        branches = [jnp.broadcast_to(whole, said.mask[:, 0].shape)]
        if options.train_on_degraded:
            other = advantages(total[:, 1], NOTHING, scale=options.scale)
            branches.append(jnp.broadcast_to(other, said.mask[:, 1].shape))
        merit = jnp.stack(branches, axis=1)
        count = merit.shape[1]  # branches that are trained on
        ended = policy.ended(said.tokens, said.mask, self.eos)
        rows = Rows(
            batch,
            said.tokens[:, :count],
            policy.trained(said.mask, ended, options)[:, :count],
            merit,
            features=None if any(path.startswith("vision.") for path in state.params) else features,
            old=None,
            reference=None,
        )
        # Asked of the rewards themselves: a weight of 0 makes a fault of infinity NaN, which looks like none.
        sound = ~jnp.stack([jnp.isinf(x).any() for x in scores.values()]).any()
        state, metrics = self.update(state, rows, said.logprobs[:, :count], sound)
        metrics |= relative_metrics(evidence, term, scale=options.scale)
        metrics |= _rollout_metrics(said, ended, scores, total)
        metrics["tokens"] = batch.prompt_valid.sum() * said.mask.shape[1] + said.mask.sum()
        mean_BRG = jnp.where(rows.mask, merit, 0.0).sum(-1) / jnp.maximum(rows.mask.sum(-1), 1)
        told = JudgedRollouts(said, scores, total, mean_BRG, batch.clip)
        return state, {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}, told

    def evidence(
        self, state: State, batch: Batch, said: Completions, total: Array, features: Any
    ) -> Evidence:
        """What the relative reward asks for, and nothing else."""
        needs = NEEDS[self.config.grpo.relative.kind]
        found = {"rewards": total[:, 0], "has": _has(batch)}
        if total.shape[1] > 1:
            found["degraded"] = total[:, 1]
        if "recall" in needs:
            recall = jnp.where(said.mask.any(-1), _each(self.judge.recall, batch, said), jnp.nan)
            found |= dict(recall=recall[:, 0], degraded_recall=recall[:, 1])
        if "gap" in needs:
            model = self.model_of(state.params, state.frozen)
            whole = Rows(batch, said.tokens[:, :1], said.mask[:, :1], said.mask[:, :1], features, None, None)

            def on_degraded(rows: Rows):
                other = gather_slots(rows.features, rows.batch.source)
                return (), self.logprobs(model, rows._replace(features=other))

            _, logprobs = accumulate(on_degraded, whole, self.config.accumulate)
            found |= dict(gap=said.logprobs[:, 0] - logprobs[:, 0], mask=said.mask[:, 0])
        if "keyword" in needs:
            found["keyword"] = spelled(said.tokens[:, 0], batch.keywords, _hidden(batch))
        return Evidence(**found)

    def update(
        self, state: State, rows: Rows, sampled: Array, sound: Array
    ) -> tuple[State, dict[str, Array]]:
        """``num_iterations`` updates on the same rollouts. sampled: their log-probabilities when drawn;
        sound: whether there are to be any."""
        options, count = self.config.grpo, self.config.accumulate
        if options.beta:
            reference = self.model_of(state.reference, state.frozen)
            _, logprobs = accumulate(lambda some: ((), self.logprobs(reference, some)), rows, count)
            rows = rows._replace(reference=logprobs)
        denominator = policy.denominator(rows.mask, options)

        def loss(params, frozen, some: Rows):
            logprobs = self.logprobs(self.model_of(params, frozen), some)
            sums = policy.policy_loss(
                *map(_flat, (logprobs, some.old, some.mask, some.advantages, some.reference)), options
            )
            return sums.loss / denominator, (sums, logprobs)

        params, opt, finite = state.params, state.opt, sound
        for _ in range(options.num_iterations):

            def part(some: Rows, params=params):
                (value, (sums, logprobs)), gradient = jax.value_and_grad(loss, has_aux=True)(
                    params, state.frozen, some
                )
                return (value, sums, gradient), jax.lax.stop_gradient(logprobs)

            (value, sums, gradient), logprobs = accumulate(part, rows, count)
            norm = optax.tree.norm(gradient)
            finite &= jnp.isfinite(value) & jnp.isfinite(norm)
            params, opt = optimize(self.optimizer, params, opt, gradient)
            if rows.old is None:
                # The ratio is to the training forward itself, so that it is 1 at first; what sampling saw
                # differs by rounding.
                difference = jnp.where(rows.mask, jnp.abs(logprobs - sampled), 0.0)
                rows = rows._replace(old=logprobs)
        metrics = policy.metrics(sums, options) | {
            "loss": value,
            "grad_norm": norm,
            "lr": self.optimizer.learning_rate(state.step - state.skipped),
            "nonfinite": ~finite,
            "sampling/logp_difference/max": difference.max(),
            "sampling/logp_difference/mean": difference.sum() / jnp.maximum(rows.mask.sum(), 1),
        }
        return advance(state, params, opt, finite), metrics

    def logprobs(self, model: VideoLM, rows: Rows) -> Array:
        """log p f32[B, R, G, C] of the tokens of each branch, whose completions share its prompt."""
        batch, shape = rows.batch, rows.tokens.shape
        features = rows.features
        if features is None and batch.video_end:
            features = model.encode(batch.frames, remat=self.config.remat)
        prompt = _branched(dataclasses.replace(batch, frames=batch.frames[:, :0]), shape[1])
        tokens = _flat(rows.tokens)
        seen = _branches(features, batch, shape[1])
        hidden = model.hidden(seen, completed(prompt, tokens), remat=self.config.remat)
        return token_logprobs(
            hidden.last,
            hidden.suffix,
            model.unembed,
            tokens,
            chunk=self.config.loss.chunk,
            temperature=self.config.grpo.temperature,
        ).reshape(shape)

    def model_of(self, params: dict[str, Array], frozen: dict[str, Array]) -> VideoLM:
        """The model in the compute dtype."""
        dtype = jnp.dtype(self.config.dtype)
        return rebuild(self.model, {path: x.astype(dtype) for path, x in params.items()} | frozen)


def spelled(tokens_BGC: Array, keywords_BJW: Array, wanted_BJ: Array) -> Array:
    """bool[B, G, C]: the tokens that stand in a run which is one of the ``wanted`` keywords, token by token
    as it stands in the caption."""
    length = keywords_BJW.shape[-1]
    c = tokens_BGC.shape[-1]
    padded = jnp.pad(tokens_BGC, [(0, 0), (0, 0), (0, length)], constant_values=-2)
    runs_BGCW = jnp.stack([padded[..., i : i + c] for i in range(length)], axis=-1)
    inside_BJW = keywords_BJW >= 0
    same = (runs_BGCW[:, :, None] == keywords_BJW[:, None, :, None]) | ~inside_BJW[:, None, :, None]
    begins_BGJC = same.all(-1) & (wanted_BJ & inside_BJW.any(-1))[:, None, :, None]
    marked = jnp.zeros_like(begins_BGJC)
    for i in range(length):
        shifted = jnp.pad(begins_BGJC, [(0, 0)] * 3 + [(i, 0)])[..., :c]
        marked |= shifted & inside_BJW[:, None, :, i, None]
    return marked.any(axis=2)


def _has(batch: Batch) -> Array:
    """bool[B]: the clip has a V~."""
    return batch.replaced.any(-1) & (batch.clip >= 0)


def _hidden(batch: Batch) -> Array:
    """bool[B, J]: V~ hides the keyword."""
    return (batch.slots & batch.replaced[:, None]).any(-1)


def _each(score: Score, batch: Batch, said: Completions) -> Any:
    """What ``score`` says of completions [B, R, G, C], by branch: f32[B, R, G]."""
    shape = said.mask.shape
    several = score(batch, *(x.reshape(shape[0], -1, shape[-1]) for x in (said.tokens, said.mask)))
    return jax.tree.map(lambda x: x.reshape(shape[:3]), several)


def _flat(x: Array | None) -> Array | None:
    """[B, R, ...] as [B * R, ...]: the branches of a row stay on its device."""
    return None if x is None else x.reshape(-1, *x.shape[2:])


def _branched(batch: Batch, count: int) -> Batch:
    """A batch with each row ``count`` times."""
    return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), batch)


def _branches(features: Any, batch: Batch, count: int) -> Any:
    """The features of V and, for ``count`` = 2, of V~: [B * count, S, ...]."""
    if count == 1:
        return features
    both = features, gather_slots(features, batch.source)
    return jax.tree.map(lambda *x: _flat(jnp.stack(x, axis=1)), *both)


def _rollout_metrics(
    said: Completions, ended_BRG: Array, scores: Mapping[str, Array], total: Array
) -> dict[str, Array]:
    """TRL's names, over the completions of V."""
    there_BG = said.mask[:, 0].any(-1)
    length_BG = said.mask[:, 0].sum(-1)
    count = jnp.maximum(there_BG.sum(), 1)
    prompts_B = there_BG.any(-1)
    flat_B = jnp.nanmax(total[:, 0], axis=1) == jnp.nanmin(total[:, 0], axis=1)
    metrics = {
        "reward": _nanmean(total[:, 0]),
        "reward_std": _nanmean(jnp.nanstd(total[:, 0], axis=1, ddof=1)),
        "frac_reward_zero_std": (flat_B & prompts_B).sum() / jnp.maximum(prompts_B.sum(), 1),
        "completions/mean_length": length_BG.sum() / count,
        "completions/max_length": length_BG.max(),
        "completions/clipped_ratio": (there_BG & ~ended_BRG[:, 0]).sum() / count,
    }
    if total.shape[1] > 1:
        metrics["reward_degraded"] = _nanmean(total[:, 1])
    for name, x in scores.items():
        x = jnp.where(there_BG, x[:, 0], jnp.nan)
        metrics |= {f"rewards/{name}/mean": _nanmean(x), f"rewards/{name}/std": jnp.nanstd(x)}
    return metrics


def _nanmean(x: Array) -> Array:
    """The mean of what is not NaN, 0 of nothing."""
    return jnp.nan_to_num(jnp.nanmean(x))
