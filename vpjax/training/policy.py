"""The clipped policy loss of GRPO and its variants (docs/method.md, section 3). Sums and counts stay apart
until the end, so that micro-batches add up exactly."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vpjax.types import Array

AGGREGATIONS = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")


class PolicySums(NamedTuple):
    """Sums over the trained tokens, f32[].

    loss: divided by ``denominator`` it is the loss. tokens: their number. low, high: the number of tokens
    whose gradient the clip at that end removes; for cispo, whose weight it changes. kl: k3 to the reference
    (0 without one). surprise: -log p, whose mean estimates the entropy.
    """

    loss: Array
    tokens: Array
    low: Array
    high: Array
    kl: Array
    surprise: Array


def policy_loss(
    logprobs_BGC: Array,
    old_BGC: Array | None,
    mask_BGC: Array,
    advantages: Array,
    reference_BGC: Array | None,
    options: ConfigDict,
    *,
    sampled_BGC: Array | None = None,
) -> PolicySums:
    """PPO's clipped loss of ``logprobs``, plus ``beta`` times the k3 estimate of the KL to ``reference``.

    old: log-probabilities under the old policy; None: ``logprobs`` themselves, so that the ratio is 1.
    mask: the tokens that are trained on. advantages: broadcasts to [B, G, C]. reference: log-probabilities
    under the reference, required unless ``options.beta`` is 0. sampled: those seen in sampling, required
    unless ``options.importance_cap`` is 0 (``importance_weights``). options: eps_low, eps_high, beta,
    importance_cap and aggregation, which docs/method.md, section 3, explains. For "gspo" the gradient is that
    of its GSPO-token (arXiv 2507.18071), so that advantages may differ between tokens. "cispo" clips the
    ratio as a constant weight of log p (arXiv 2506.13585), so that every token keeps a gradient.
    """
    old_BGC = jax.lax.stop_gradient(logprobs_BGC if old_BGC is None else old_BGC)
    length_BG1 = jnp.maximum(mask_BGC.sum(-1, keepdims=True), 1)
    log_ratio = jnp.where(mask_BGC, logprobs_BGC - old_BGC, 0.0)
    if options.aggregation == "gspo":  # the value is that of the completion, the gradient that of each token
        sequence = jax.lax.stop_gradient(log_ratio.sum(-1, keepdims=True) / length_BG1)
        log_ratio = log_ratio - jax.lax.stop_gradient(log_ratio) + sequence
    ratio = jnp.exp(log_ratio)
    lowest, highest = 1.0 - options.eps_low, 1.0 + options.eps_high
    clipped = jnp.clip(ratio, lowest, highest)
    is_low, is_high = ratio < lowest, ratio > highest
    if options.aggregation == "cispo":
        # Padding may be NaN, whose gradient would be NaN even where its loss is left out.
        loss = -jax.lax.stop_gradient(clipped) * advantages * jnp.where(mask_BGC, logprobs_BGC, 0.0)
    else:
        loss = -jnp.minimum(ratio * advantages, clipped * advantages)
        is_low, is_high = is_low & (advantages < 0), is_high & (advantages > 0)
    if options.importance_cap:
        if sampled_BGC is None:
            raise ValueError("importance weights (importance_cap) need the log-probabilities of sampling")
        loss *= importance_weights(old_BGC, sampled_BGC, mask_BGC, options.importance_cap)
    kl = jnp.zeros_like(loss)
    if options.beta:
        if reference_BGC is None:
            raise ValueError("a KL term (beta) needs the reference's log-probabilities")
        kl = k3(jnp.where(mask_BGC, reference_BGC - logprobs_BGC, 0.0))
        loss += options.beta * kl
    share = 1.0 / length_BG1 if options.aggregation in ("grpo", "gspo") else 1.0

    def total(x):
        return jnp.where(mask_BGC, x, 0.0).sum()

    return PolicySums(
        loss=total(loss * share),
        tokens=total(1.0),
        low=total(is_low),
        high=total(is_high),
        kl=total(kl),
        surprise=total(-logprobs_BGC),
    )


def k3(log_ratio: jax.Array) -> jax.Array:
    """Schulman's estimate of KL(p || q) from log q - log p of tokens that p has drawn; never below 0."""
    return jnp.exp(log_ratio) - log_ratio - 1.0


def importance_weights(old_BGC: Array, sampled_BGC: Array, mask_BGC: Array, cap: float) -> Array:
    """The weight f32[B, G, C] of each token, min(p_old / p_sampled, cap); 1 outside of the mask.

    Tokens are drawn by a policy that differs from the old one by rounding, or by lighter weights. Without the
    cap the weights would make the expected gradient that of tokens drawn by the old policy; with it their
    variance stays small (truncated importance sampling, as in TRL and verl). No gradient flows through."""
    log_weight = jnp.where(mask_BGC, old_BGC - sampled_BGC, 0.0)
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(log_weight), cap))


def sampling_metrics(old: Array, sampled: Array, mask: Array, options: ConfigDict) -> dict[str, Array]:
    """How far sampling is from the old policy, by their log-probabilities [...] of the tokens of ``mask``.

    sampling/logp_difference/max and /mean: of the absolute differences. sampling/kl: the k3 estimate of
    KL(sampling || old), in nats a token. With importance weights, sampling/truncated: the share of the tokens
    whose weight the cap lowers."""
    difference = jnp.where(mask, old - sampled, 0.0)
    count = jnp.maximum(mask.sum(), 1)
    metrics: dict[str, Array] = {
        "sampling/logp_difference/max": jnp.abs(difference).max(),
        "sampling/logp_difference/mean": jnp.abs(difference).sum() / count,
        "sampling/kl": k3(difference).sum() / count,
    }
    if options.importance_cap:
        metrics["sampling/truncated"] = (jnp.exp(difference) > options.importance_cap).sum() / count
    return metrics


def denominator(mask_BGC: Array, options: ConfigDict) -> Array:
    """The divisor of the whole batch's ``PolicySums.loss``, f32[], at least 1: the trained tokens for dapo
    and cispo, else the completions that have any, times ``max_new`` for dr_grpo."""
    if options.aggregation in ("dapo", "cispo"):
        count = mask_BGC.sum()
    else:
        count = mask_BGC.any(-1).sum()
        if options.aggregation == "dr_grpo":
            count = count * options.max_new
    return jnp.maximum(count, 1).astype(jnp.float32)


def trained_tokens(mask_BGC: Array, ended_BG: Array, options: ConfigDict) -> Array:
    """The tokens that are trained on, bool[B, G, C]: all tokens of a completion, its stop token included.
    With ``mask_truncated``, completions without a stop token are left out (DAPO's overlong filtering)."""
    return mask_BGC & ended_BG[..., None] if options.mask_truncated else mask_BGC


def has_ended(tokens_BGC: Array, mask_BGC: Array, eos: tuple[int, ...]) -> Array:
    """bool[B, G]: a stop token ended the completion, not the limit on its length."""
    return (jnp.isin(tokens_BGC, jnp.array(eos, jnp.int32)) & mask_BGC).any(-1)


def policy_metrics(sums: PolicySums, options: ConfigDict) -> dict[str, Array]:
    """Means over trained tokens under TRL's names, f32[]; ``entropy`` is an estimate: the mean of -log p."""
    count = jnp.maximum(sums.tokens, 1)
    metrics = {
        "clip_ratio/low_mean": sums.low / count,
        "clip_ratio/high_mean": sums.high / count,
        "clip_ratio/region_mean": (sums.low + sums.high) / count,
        "entropy": sums.surprise / count,
    }
    if options.beta:
        metrics["kl"] = sums.kl / count
    return metrics
