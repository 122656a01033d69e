"""Relative rewards: what the degraded video V~ says about the rollouts of V, and the advantages that come of
it (METHOD, section 3).

Inside a group V~ is the same for all rollouts, so a term that sees it only through rewards is a function of a
rollout's own reward. Group normalisation cancels an affine one, and on 0/1 rewards every function is affine.
What V~ can change is the weight of a prompt, of a rollout or of a token, or a comparison on another quantity.
So each kind is a function ``kind(evidence, options) -> Term``, and a term has two parts: a bonus that is
added before normalisation, and a weight that multiplies after it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vpjax.types import Array

SCALES = ("group", "batch", "none")
# What each kind must be told: rewards of rollouts on V~; recall of the hidden keywords on both videos;
# log-probability gaps of the rollouts on V; which of their tokens spell a hidden keyword.
NEEDS = {
    "none": (),
    "gate": ("rollouts",),
    "likelihood": ("gap", "keyword"),
    "token": ("gap",),
    "keyword_winrate": ("rollouts", "recall"),
    "winrate": ("rollouts",),
    "hinge": ("rollouts",),
    "tgrpo": ("rollouts",),
}


class Evidence(NamedTuple):
    """What a relative reward may look at; ``NEEDS`` says which kind reads what, and the rest may be None. A
    reward or recall that does not exist is NaN and is ignored.

    rewards f32[B, G] on V; has bool[B]: the clip has a V~; degraded f32[B, Gd]: rewards of the rollouts on
    V~; recall f32[B, G], degraded_recall f32[B, Gd]: share of the keywords hidden in V~ that a rollout names;
    gap f32[B, G, C]: log p(y_t | V) - log p(y_t | V~) of the rollouts on V; mask bool[B, G, C]: their tokens;
    keyword bool[B, G, C]: those that spell a hidden keyword.
    """

    rewards: Array
    has: Array
    degraded: Array | None = None
    recall: Array | None = None
    degraded_recall: Array | None = None
    gap: Array | None = None
    mask: Array | None = None
    keyword: Array | None = None


class Term(NamedTuple):
    """bonus: f32, broadcasts to [B, G]; weight: f32, broadcasts to [B, G, C]. NaN: no say."""

    bonus: Array
    weight: Array


NOTHING = Term(np.zeros((1, 1), np.float32), np.ones((1, 1, 1), np.float32))


def relative(evidence: Evidence, options: ConfigDict) -> Term:
    """The term of ``options.kind``: bonus f32[B, G] and weight f32[B, 1, 1], [B, G, 1] or [B, G, C]; 0 and 1
    for clips without V~ and where there is nothing to compare. No gradient flows through it."""
    bonus, weight = KINDS[options.kind](evidence, options)
    bonus = jnp.broadcast_to(bonus, evidence.rewards.shape)
    bonus = jnp.where(evidence.has[:, None] & ~jnp.isnan(bonus), bonus, 0.0)
    weight = jnp.where(evidence.has[:, None, None] & ~jnp.isnan(weight), weight, 1.0)
    return jax.lax.stop_gradient(Term(bonus, weight))


def none(evidence: Evidence, options: ConfigDict) -> Term:
    """Plain GRPO."""
    return NOTHING


def gate(evidence: Evidence, options: ConfigDict) -> Term:
    """Prompts that V~ answers worse than V weigh more, those solved without the hidden frames less (ours)."""
    beyond = reward_gap(evidence) - options.margin
    # A comparison would turn a gap that does not exist into False.
    share = jnp.heaviside(beyond, 0.0) if options.hard else jax.nn.sigmoid(beyond / options.scale)
    weight = options.w0 + (1.0 - options.w0) * share
    return Term(NOTHING.bonus, weight[:, None, None])


def likelihood(evidence: Evidence, options: ConfigDict) -> Term:
    """Right answers whose keywords V makes likelier than V~ does earn more (ours, after PAPO)."""
    gap = _token_mean(evidence.gap, evidence.mask & evidence.keyword)[..., 0]
    bonus = options.lam * jnp.clip(gap, -options.clip, options.clip)
    return Term(jnp.where(evidence.rewards > options.threshold, bonus, 0.0), NOTHING.weight)


def token(evidence: Evidence, options: ConfigDict) -> Term:
    """Tokens that V makes likelier than V~ does weigh more; a completion's mean weight stays 1 (ours)."""
    extra = options.lam * jnp.clip(jnp.where(evidence.mask, evidence.gap, 0.0), 0.0, options.clip)
    return Term(NOTHING.bonus, (1.0 + extra) / (1.0 + _token_mean(extra, evidence.mask)))


def keyword_winrate(evidence: Evidence, options: ConfigDict) -> Term:
    """Rollouts that name more of the hidden keywords than those on V~ do earn more (ours)."""
    return Term(options.lam * wins(evidence.recall, evidence.degraded_recall, options.margin), NOTHING.weight)


def winrate(evidence: Evidence, options: ConfigDict) -> Term:
    """The same comparison of the rewards themselves: hardly moves anything."""
    return Term(options.lam * wins(evidence.rewards, evidence.degraded, options.margin), NOTHING.weight)


def hinge(evidence: Evidence, options: ConfigDict) -> Term:
    """The clipped margin over V~'s mean reward: hardly moves anything."""
    ahead = evidence.rewards - _mean(evidence.degraded) - options.margin
    return Term(options.lam * jnp.clip(ahead, 0.0, options.clip), NOTHING.weight)


def tgrpo(evidence: Evidence, options: ConfigDict) -> Term:
    """Video-R1's rule (T-GRPO, arXiv 2503.21776, and its trainer): right answers earn alpha where V does not
    fall behind mu times V~. It fires at 0 >= 0, and on 0/1 rewards it cancels."""
    fires = _mean(evidence.rewards) >= options.mu * _mean(evidence.degraded)
    bonus = jnp.where(fires & (evidence.rewards > options.threshold), options.alpha, 0.0)
    return Term(bonus, NOTHING.weight)


KINDS = {
    kind.__name__: kind for kind in (none, gate, likelihood, token, keyword_winrate, winrate, hinge, tgrpo)
}


def advantages(rewards_BG: Array, term: Term, *, scale: str, eps: float = 1e-4) -> Array:
    """Advantages, f32 that broadcasts to [B, G, C]: (R - mean) / (std + eps) * weight of R = reward + bonus.

    scale: the std of a "group", of the "batch", or "none". Mean and (unbiased) std skip NaN rewards, whose
    advantage is 0, as it is in groups whose rewards are all equal. eps: as in TRL. No gradient flows through
    it.
    """
    total_BG = rewards_BG + term.bonus
    centred_BG = total_BG - _mean(total_BG)
    if scale != "none":
        axis = {"group": 1, "batch": None}[scale]
        centred_BG /= jnp.nanstd(total_BG, axis=axis, ddof=1, keepdims=True) + eps
    # Asked of the rewards, for rounding may part them from their mean.
    spread_B1 = jnp.nanmax(total_BG, axis=1, keepdims=True) > jnp.nanmin(total_BG, axis=1, keepdims=True)
    advantage_BG = jnp.where(spread_B1 & ~jnp.isnan(total_BG), centred_BG, 0.0)
    return jax.lax.stop_gradient(advantage_BG[..., None] * term.weight)


def metrics(evidence: Evidence, term: Term, *, scale: str) -> dict[str, Array]:
    """Means f32[] over the clips that have a V~ (0 where none has).

    rel/clips: their share of the batch; rel/active: the share of them whose advantages the term changes;
    rel/weight: of their tokens; where V~ was rolled out, rel/gap: mean R on V less that on V~, and
    rel/win_rate: of rollouts on V against those on V~, ties counting half; where likelihoods were taken,
    rel/logp_gap: nats per token.
    """

    def mean(x_B):
        valid = evidence.has & ~jnp.isnan(x_B)
        return jnp.where(valid, x_B, 0.0).sum() / jnp.maximum(valid.sum(), 1)

    # Without eps, in whose small part of the std even a bonus that cancels leaves a trace.
    plain, shaped = (advantages(evidence.rewards, t, scale=scale, eps=0.0) for t in (NOTHING, term))
    moved = jnp.abs(shaped - plain)
    weight = jnp.broadcast_to(term.weight, moved.shape)
    if evidence.mask is not None:
        moved = jnp.where(evidence.mask, moved, 0.0)
        weight = _token_mean(weight, evidence.mask)
    out = {
        "rel/clips": evidence.has.mean(),
        # A change that rounding makes is none.
        "rel/active": mean((moved > 1e-5).any(axis=(1, 2)).astype(jnp.float32)),
        "rel/weight": mean(weight.mean(axis=(1, 2))),
    }
    if evidence.degraded is not None:
        rate = jnp.nanmean(wins(evidence.rewards, evidence.degraded, 0.0), axis=1)
        out |= {"rel/gap": mean(reward_gap(evidence)), "rel/win_rate": mean(rate)}
    if evidence.gap is not None:
        out["rel/logp_gap"] = mean(_token_mean(evidence.gap, evidence.mask).mean(axis=(1, 2)))
    return out


def reward_gap(evidence: Evidence) -> Array:
    """Mean reward on V less that on V~, f32[B]; NaN where either has none."""
    return (_mean(evidence.rewards) - _mean(evidence.degraded))[:, 0]


def wins(own_BG: Array, other_BGd: Array, margin: float) -> Array:
    """Share f32[B, G] of ``other`` that each of ``own`` beats by more than ``margin``; within it is half a
    win. NaN where there is nothing to compare."""
    ahead = own_BG[:, :, None] - other_BGd[:, None]
    won = jnp.where(ahead > margin, 1.0, jnp.where(ahead < -margin, 0.0, 0.5))
    return jnp.nanmean(jnp.where(jnp.isnan(ahead), jnp.nan, won), axis=-1)


def _mean(x_BG: Array) -> Array:
    """f32[B, 1] over what is not NaN; NaN where nothing is left."""
    return jnp.nanmean(x_BG, axis=1, keepdims=True)


def _token_mean(x_BGC: Array, mask_BGC: Array) -> Array:
    """f32[B, G, 1] over the marked tokens; 0 where there are none."""
    total = jnp.where(mask_BGC, x_BGC, 0.0).sum(-1, keepdims=True)
    return total / jnp.maximum(mask_BGC.sum(-1, keepdims=True), 1)
