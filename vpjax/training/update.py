"""The update of the policy on the completions of one rollout: several passes over its mini-batches, each with
a clipped policy loss (docs/method.md, section 3)."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vpjax.hlo import phase
from vpjax.models.sharding import split_rows
from vpjax.models.vision import Features
from vpjax.models.vlm import VideoLM, rebuild
from vpjax.training.losses import token_logprobs
from vpjax.training.memory import recomputed_share
from vpjax.training.optimizer import Optimizer
from vpjax.training.policy import PolicySums, denominator, policy_loss, policy_metrics, sampling_metrics
from vpjax.training.state import State, accumulate, advance, deal, optimize
from vpjax.types import Array, Prompts

# Of the lengths that completions are cut to for an update: how many there are at most, the longest included,
# and the shortest. Each is compiled, so a few must do.
LENGTHS, SHORTEST = 3, 16


class UpdateRows(NamedTuple):
    """The rows of an update. tokens, mask, advantages [B, R, G, C]. features: of V, if the vision tower is
    frozen. old, reference, sampled [B, R, G, C]: log-probabilities under the old policy and the reference,
    and those seen in sampling."""

    prompts: Prompts
    tokens: Array
    mask: Array
    advantages: Array
    features: Features | None = None
    old: Array | None = None
    reference: Array | None = None
    sampled: Array | None = None

    def until(self, length: int) -> "UpdateRows":
        """The rows with the first ``length`` tokens of each completion."""
        names = ("tokens", "mask", "advantages", "old", "reference", "sampled")
        arrays = {name: getattr(self, name) for name in names}
        return self._replace(**jax.tree.map(lambda x: x[..., :length], arrays))


class Learned(NamedTuple):
    """What one update gives beside new parameters: its loss, the norm of its gradient, and its sums over the
    completions on V, so that metrics mean the same whether V~ is trained or not."""

    loss: Array
    norm: Array
    sums: PolicySums


class Trained(NamedTuple):
    """What updates change. finite bool[]: so far all of them were, with their losses and gradients."""

    params: dict[str, Array]
    opt: Any
    finite: Array


def prompts_with_spread(rows: UpdateRows, count: int) -> tuple[Array, dict[str, Array]]:
    """The numbers i32[count] of the prompts to update on, and metrics of them: the first ``count`` whose
    completions have advantages and, if these are too few, the first of the others (DAPO's dynamic sampling,
    arXiv 2503.14476, within the prompts of one step).

    oversample/spread: the share of the rolled out prompts that have advantages. oversample/trained: the same
    of the chosen ones. oversample/replaced: the share of the chosen ones that stand in for one of the first
    ``count``.
    """
    has_spread_B = (jnp.where(rows.mask, rows.advantages, 0.0) != 0).any(axis=(1, 2, 3))
    exists_B = rows.prompts.clip >= 0
    chosen = jnp.argsort(~has_spread_B, stable=True)[:count]
    return chosen, {
        "oversample/spread": has_spread_B.sum() / jnp.maximum(exists_B.sum(), 1),
        "oversample/trained": has_spread_B[chosen].mean(),
        "oversample/replaced": (chosen >= count).mean(),
    }


def take_prompts(rows: Any, numbers: Array) -> Any:
    """The rows with these ``numbers``, split over the devices again."""
    return jax.tree.map(lambda x: split_rows(jnp.asarray(x)[numbers]), rows)


def lengths_of(most: int) -> list[int]:
    """The lengths, ascending, at which completions of up to ``most`` tokens are computed: it and halves."""
    lengths = [most]
    while len(lengths) < LENGTHS and lengths[0] >= 2 * SHORTEST:
        lengths.insert(0, -(-lengths[0] // 2))
    return lengths


def cut_to_longest(
    function: Callable[[UpdateRows], tuple[Any, Array]],
) -> Callable[[UpdateRows], tuple[Any, Array]]:
    """``function(rows) -> sums, by token [B, R, G, C]``, computed at the first of ``lengths_of`` C that holds
    the last token of ``mask``: most completions end long before C, and what follows would be computed to be
    masked out. Values of tokens beyond that length are 0."""

    def at_length(rows: UpdateRows) -> tuple[Any, Array]:
        most = rows.mask.shape[-1]
        lengths = lengths_of(most)

        def computed(length: int, rows: UpdateRows) -> tuple[Any, Array]:
            sums, by_token = function(rows.until(length))
            return sums, jnp.pad(by_token, [(0, 0)] * 3 + [(0, most - length)])

        longest = jnp.where(rows.mask, jnp.arange(1, most + 1), 0).max()
        number = sum((longest > length).astype(jnp.int32) for length in lengths[:-1])
        return jax.lax.switch(number, [functools.partial(computed, length) for length in lengths], rows)

    return at_length


@dataclasses.dataclass(frozen=True)
class PolicyUpdate:
    """The update and the forward passes that it and the relative rewards need. Pure functions."""

    model: VideoLM
    config: ConfigDict
    optimizer: Optimizer

    @phase("update")
    def __call__(self, state: State, rows: UpdateRows, no_faults: Array) -> tuple[State, dict[str, Array]]:
        """``num_iterations`` times an update on each of the ``num_minibatches`` parts of the prompts: all of
        them, or none if one is not finite.

        rows: with ``sampled``. no_faults bool[]: if False, all updates are skipped.

        The loss is that of V, as if there were no V~, plus ``degraded_weight`` times that of V~: each is a
        mean over its own branch. Metrics are of the last iteration."""
        options, frozen = self.config.grpo, state.frozen
        count = options.num_minibatches
        if options.beta:
            reference = self.forward(state.reference, frozen, rows, count)
            rows = rows._replace(reference=reference)
        parts = deal(rows, count)
        first, later = jax.tree.map(lambda x: x[0], parts), jax.tree.map(lambda x: x[1:], parts)
        # The old log-probabilities come from training forward passes before the first update. For the first
        # part it is the forward pass of that update, so that the ratio is exactly 1 there. Those seen in
        # sampling differ by rounding, or more (``importance_weights``).
        if count > 1:
            later_old = jax.lax.map(lambda part: self.forward(state.params, frozen, part), later)
        before = Trained(state.params, state.opt, no_faults)
        after, learned, first_old = self.learn(frozen, before, first)
        old = first_old[None]
        if count > 1:
            old = jnp.concatenate([old, later_old])
        parts = parts._replace(old=old)

        def learn_again(trained, number):
            part = jax.tree.map(lambda x: x[number], parts)
            trained, learned, _ = self.learn(frozen, trained, part)
            return trained, learned

        all_learned = jax.tree.map(lambda x: x[None], learned)
        numbers = jnp.arange(1, options.num_iterations * count) % count
        if numbers.size:
            after, more = jax.lax.scan(learn_again, after, numbers)
            after = all_or_none(after, before)
            all_learned = jax.tree.map(lambda *x: jnp.concatenate(x), all_learned, more)
        last = jax.tree.map(lambda x: x[-count:], all_learned)
        means = Learned(last.loss.mean(), last.norm.mean(), jax.tree.map(lambda x: x.sum(0), last.sums))
        metrics = self.metrics(state, means, after.finite)
        metrics |= sampling_metrics(old, parts.sampled, parts.mask, options)
        return advance(state, *after), metrics

    def learn(
        self, frozen: dict[str, Array], trained: Trained, rows: UpdateRows
    ) -> tuple[Trained, Learned, Array]:
        """One update on ``rows``, and the log-probabilities f32[B, R, G, C] before it, with the gradient
        stopped."""
        divisors = [denominator(rows.mask[:, r], self.config.grpo) for r in range(rows.mask.shape[1])]
        (value, sums, gradient), logprobs = self.gradient(trained.params, frozen, rows, divisors)
        trained, norm = self.apply(trained, value, gradient)
        return trained, Learned(value, norm, sums), logprobs

    def metrics(self, state: State, learned: Learned, finite: Array) -> dict[str, Array]:
        """What is logged of an update of ``state``. finite: whether it was made."""
        return policy_metrics(learned.sums, self.config.grpo) | {
            "loss": learned.loss,
            "grad_norm": learned.norm,
            "lr": self.optimizer.learning_rate(state.step - state.skipped),
            "nonfinite": ~finite,
        }

    def gradient(
        self, params: dict[str, Array], frozen: dict[str, Array], rows: UpdateRows, divisors: Sequence[Array]
    ) -> tuple[tuple[Array, PolicySums, dict[str, Array]], Array]:
        """The loss of ``rows``, its sums over the completions on V and its gradient by path; and the
        log-probabilities f32[B, R, G, C], with the gradient stopped. The loss is the sum over the branches
        of their summed losses, each by its one of ``divisors`` and times its one of ``branch_weights``."""
        options, branches = self.config.grpo, range(rows.mask.shape[1])

        def loss(params, micro: UpdateRows):
            logprobs = self.logprobs(self.compute_model(params, frozen), micro)
            arrays = logprobs, micro.old, micro.mask, micro.advantages, micro.reference, micro.sampled
            value, all_sums = jnp.zeros(()), []
            for branch in branches:
                new, old, mask, advantage, reference, sampled = jax.tree.map(
                    lambda x, r=branch: x[:, r], arrays
                )
                sums = policy_loss(new, old, mask, advantage, reference, options, sampled_BGC=sampled)
                value += self.branch_weights[branch] * sums.loss / divisors[branch]
                all_sums.append(sums)
            return value, (all_sums[0], logprobs)

        def gradient_and_logprobs(micro: UpdateRows):
            (value, (sums, logprobs)), gradient = jax.value_and_grad(loss, has_aux=True)(params, micro)
            return (value, sums, gradient), jax.lax.stop_gradient(logprobs)

        return accumulate(cut_to_longest(gradient_and_logprobs), rows, self.config.accumulate)

    def apply(self, trained: Trained, value: Array, gradient: dict[str, Array]) -> tuple[Trained, Array]:
        """``trained`` after an update by the gradient of a loss of this value, and the norm of that."""
        norm = optax.tree.norm(gradient)
        finite = trained.finite & (jnp.isfinite(value) & jnp.isfinite(norm))
        params, opt = optimize(self.optimizer, trained.params, trained.opt, gradient, finite)
        return Trained(params, opt, finite), norm

    @property
    def branch_weights(self) -> tuple[float, float]:
        """The weights of the losses of V and of V~."""
        return 1.0, self.config.grpo.degraded_weight

    def forward(
        self, params: dict[str, Array], frozen: dict[str, Array], rows: UpdateRows, parts: int = 1
    ) -> Array:
        """``logprobs`` of ``parts`` times as many rows as an update has, in micro-batches of equal size."""
        model = self.compute_model(params, frozen)
        count = parts * self.config.accumulate
        return accumulate(cut_to_longest(lambda micro: ((), self.logprobs(model, micro))), rows, count)[1]

    def logprobs(self, model: VideoLM, rows: UpdateRows) -> Array:
        """log p f32[B, R, G, C] of the tokens of each branch, whose completions share its prompt."""
        prompts, shape, features = rows.prompts, rows.tokens.shape, rows.features
        tokens = merge_branches(rows.tokens)
        length = prompts.text.tokens.shape[1] + math.prod(tokens.shape[1:])
        count = model.config.decoder.layers * tokens.shape[0] * length
        recompute = recomputed_share(self.config, model, count)
        if features is None:
            features = model.encode(prompts.video, recompute=recompute)
        h_BGCD = model.predicting(
            repeat_rows(features, shape[1]),
            branch_prompts(prompts, shape[1]),
            tokens,
            recompute=recompute,
        )
        temperature, chunk = self.config.grpo.temperature, self.config.loss.chunk
        logprobs = token_logprobs(h_BGCD, model.unembed, tokens, chunk=chunk, temperature=temperature)
        return logprobs.reshape(shape)

    def compute_model(self, params: dict[str, Array], frozen: dict[str, Array]) -> VideoLM:
        """The model in the compute dtype."""
        dtype = jnp.dtype(self.config.dtype)
        return rebuild(self.model, {path: x.astype(dtype) for path, x in params.items()} | frozen)


def all_or_none(after: Trained, before: Trained) -> Trained:
    """``after`` or, if an update was not finite, what there was before the first of them."""

    def kept(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda x, y: jnp.where(after.finite, x, y), new, old)

    return Trained(kept(after.params, before.params), kept(after.opt, before.opt), after.finite)


def merge_branches(x: Array) -> Array:
    """[B, R, ...] as [B * R, ...]: the branches of a row stay on its device."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])  # a -1 could not be inferred without elements


def branch_prompts(prompts: Prompts, branches: int) -> Prompts:
    """[B * R, ...]: each prompt on V and, with two branches, on V~ after it. Their videos are left out."""
    prompts = prompts.without_video()
    if branches == 1:
        return prompts
    degraded = prompts.showing(prompts.shows_degraded)
    return jax.tree.map(lambda *x: merge_branches(jnp.stack(x, axis=1)), prompts, degraded)


def repeat_rows(features: Features | None, branches: int) -> Features | None:
    """[B * R, ...]: the features of each row's video for each branch."""
    return jax.tree.map(lambda x: jnp.repeat(x, branches, axis=0), features)
