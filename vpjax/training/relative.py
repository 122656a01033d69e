"""Relative rewards: how completions on the degraded video V~ change the advantages of completions on V.
See docs/method.md, section 3, which also shows why most bonuses cancel.

Each kind is a function ``kind(evidence, options) -> RelativeTerm``: a bonus that is added to the rewards
before they are normalised within their group, and a weight that multiplies the advantages afterwards.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vpjax.types import Array

SCALES = ("group", "batch", "none")
ROUNDING = 1e-6  # of the difference of two rewards of about 1: in float32 .6 - .4 is above .2
REWARD_AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")  # by TRL's names
# What each kind needs. right: the reward ``options.correct``, whose value says how right a completion is and
# whose weight is the unit of a bonus. rollouts: completions on V~. recall: of the hidden keywords, on both
# videos. gap: log-probability gaps of the completions on V. keyword: which of their tokens spell a hidden
# keyword. same: which completions on V and V~ say the same.
NEEDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "gate": ("right", "rollouts"),
    "need": ("right", "rollouts"),
    "relation": ("right", "rollouts", "same"),
    "likelihood": ("right", "gap", "keyword"),
    "token": ("gap",),
    "keyword_winrate": ("right", "rollouts", "recall"),
    "winrate": ("right", "rollouts"),
    "hinge": ("right", "rollouts"),
    "tgrpo": ("right", "rollouts"),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Part:
    """A reward of a sum: its values f32[B, G] (NaN: it does not count), its weight, and whether it is the one
    that means right, to which a bonus belongs."""

    values: Array
    weight: float = dataclasses.field(metadata=dict(static=True))
    means_right: bool = dataclasses.field(default=False, metadata=dict(static=True))


class Evidence(NamedTuple):
    """The data from which relative rewards are computed. Fields that a kind does not read (see ``NEEDS``) may
    be None. Numbers that do not exist are NaN and are ignored.

    rewards f32[B, G]: the weighted sums of the completions on V. has_degraded bool[B]: the clip has a V~ with
    which the kind compares V.
    unit: the weight of the reward that means right.
    right f32[B, G], right_degraded f32[B, Gd]: that reward, without its weight, on V and on V~.
    recall f32[B, G], degraded_recall f32[B, Gd]: share of the hidden keywords that a completion names.
    same f32[B, G, Gd]: 1 where a completion on V and one on V~ say the same, else 0. hides bool[B]: V~ hides
    a keyword, so that the answer must change.
    gap f32[B, G, C]: log p(y_t | V) - log p(y_t | V~) of the completions on V; mask bool[B, G, C]: their
    tokens; keyword bool[B, G, C]: the tokens that spell a hidden keyword.
    parts: the rewards of which ``rewards`` are the sums, if each is normalised in its group; else ().
    """

    rewards: Array
    has_degraded: Array
    unit: float = 1.0
    right: Array | None = None
    right_degraded: Array | None = None
    recall: Array | None = None
    degraded_recall: Array | None = None
    same: Array | None = None
    hides: Array | None = None
    gap: Array | None = None
    mask: Array | None = None
    keyword: Array | None = None
    parts: tuple[Part, ...] = ()

    def get(self, field: str) -> Array:
        """The array of a field. ValueError if it is missing."""
        value = getattr(self, field)
        if value is None:
            raise ValueError(f"this kind of relative reward needs the evidence {field!r}")
        return value


class RelativeTerm(NamedTuple):
    """bonus f32, broadcasts to [B, G]; weight f32, broadcasts to [B, G, C]. NaN stands for 0 and for 1."""

    bonus: Array
    weight: Array


NO_TERM = RelativeTerm(np.zeros((1, 1), np.float32), np.ones((1, 1, 1), np.float32))


def relative_term(evidence: Evidence, options: ConfigDict) -> RelativeTerm:
    """The term of ``options.kind``: bonus f32[B, G] and weight f32[B, 1, 1], [B, G, 1] or [B, G, C]. Clips
    without V~ and clips without anything to compare have bonus 0 and weight 1. No gradient flows through.

    A kind's own bonus is in units of the reward that means right. Here it is multiplied by that reward's
    weight, so that only the ratios of the rewards' weights matter."""
    bonus, weight = RELATIVE_KINDS[options.kind](evidence, options)
    has_degraded = evidence.has_degraded
    bonus = jnp.broadcast_to(bonus * evidence.unit, evidence.rewards.shape)
    bonus = jnp.where(has_degraded[:, None] & ~jnp.isnan(bonus), bonus, 0.0)
    weight = jnp.where(has_degraded[:, None, None] & ~jnp.isnan(weight), weight, 1.0)
    return jax.lax.stop_gradient(RelativeTerm(bonus, weight))


def none(evidence: Evidence, options: ConfigDict) -> RelativeTerm:
    """Plain GRPO."""
    return NO_TERM


def gate(evidence: Evidence, options: ConfigDict) -> RelativeTerm:
    """Prompts whose right answers need the hidden frames weigh more than those that V~ answers too (ours).

    The gap is a share of the larger mean: a prompt that is seldom right, but never on V~, weighs as much as
    one that is always right, but never on V~. The weights are divided by their mean over the prompts with V~
    whose rewards differ: they shift weight between these, and a clip without V~ weighs as much as the average
    of them."""
    excess = gap_share(evidence) - options.margin
    # A comparison would turn NaN, a gap that does not exist, into False.
    share = jnp.heaviside(excess, 0.0) if options.hard else jax.nn.sigmoid(excess / options.scale)
    weight = options.w0 + (1.0 - options.w0) * share
    counts = evidence.has_degraded & has_spread(evidence.rewards) & ~jnp.isnan(weight)
    mean = jnp.where(counts, weight, 0.0).sum() / jnp.maximum(counts.sum(), 1)
    weight = weight / jnp.where(mean > 0, mean, 1.0)
    return RelativeTerm(NO_TERM.bonus, weight[:, None, None])


def need(evidence: Evidence, options: ConfigDict) -> RelativeTerm:
    """The weight of a prompt is the share of completions on V~ that are wrong: a prompt that is answered
    without the hidden frames teaches nothing about them (ours). A reward above 1 counts as 1, and one below 0
    as 0: a weight outside of 0 to 1 would turn advantages around, or blow them up."""
    share_right = jnp.clip(_group_mean(evidence.get("right_degraded")), 0.0, 1.0)
    return RelativeTerm(NO_TERM.bonus, 1.0 - share_right[..., None])


def relation(evidence: Evidence, options: ConfigDict) -> RelativeTerm:
    """Answers earn a bonus for the share of completions on V~ that say something else, where V~ hides a
    keyword, or the same, where it hides none (ours, after the relation reward of CRPO, arXiv 2605.21988).
    It tells wrong answers apart, so it acts on groups whose rewards are all equal too."""
    share_same = jnp.nanmean(evidence.get("same"), axis=-1)
    share = jnp.where(evidence.get("hides")[:, None], 1.0 - share_same, share_same)
    return RelativeTerm(options.lam * share, NO_TERM.weight)


def likelihood(evidence: Evidence, options: ConfigDict) -> RelativeTerm:
    """Right answers whose keywords are likelier given V than given V~ earn a bonus (ours, after PAPO)."""
    gap = _token_mean(evidence.get("gap"), evidence.get("mask") & evidence.get("keyword"))[..., 0]
    bonus = options.lam * jnp.clip(gap, -options.clip, options.clip)
    return RelativeTerm(jnp.where(evidence.get("right") > options.threshold, bonus, 0.0), NO_TERM.weight)


def token(evidence: Evidence, options: ConfigDict) -> RelativeTerm:
    """Tokens that are likelier given V than given V~ weigh more. The mean weight of a completion stays 1
    (ours)."""
    mask = evidence.get("mask")
    extra = options.lam * jnp.clip(jnp.where(mask, evidence.get("gap"), 0.0), 0.0, options.clip)
    return RelativeTerm(NO_TERM.bonus, (1.0 + extra) / (1.0 + _token_mean(extra, mask)))


def keyword_winrate(evidence: Evidence, options: ConfigDict) -> RelativeTerm:
    """Completions that name more of the hidden keywords than those on V~ earn a bonus (ours)."""
    share = share_won(evidence.get("recall"), evidence.get("degraded_recall"), options.margin)
    return RelativeTerm(options.lam * share, NO_TERM.weight)


def winrate(evidence: Evidence, options: ConfigDict) -> RelativeTerm:
    """The same comparison of the reward that means right. It changes advantages very little."""
    share = share_won(evidence.get("right"), evidence.get("right_degraded"), options.margin)
    return RelativeTerm(options.lam * share, NO_TERM.weight)


def hinge(evidence: Evidence, options: ConfigDict) -> RelativeTerm:
    """The clipped margin over the mean reward on V~. It changes advantages very little."""
    margin = evidence.get("right") - _group_mean(evidence.get("right_degraded")) - options.margin
    return RelativeTerm(options.lam * jnp.clip(margin, 0.0, options.clip), NO_TERM.weight)


def tgrpo(evidence: Evidence, options: ConfigDict) -> RelativeTerm:
    """T-GRPO (Video-R1, arXiv 2503.21776, and its trainer): right answers earn alpha if the mean of that
    reward on V is at least mu times that on V~. The bonus is also given at 0 >= 0, and on 0/1 rewards it
    cancels."""
    right = evidence.get("right")
    is_ahead = _group_mean(right) >= options.mu * _group_mean(evidence.get("right_degraded"))
    bonus = jnp.where(is_ahead & (right > options.threshold), options.alpha, 0.0)
    return RelativeTerm(bonus, NO_TERM.weight)


RELATIVE_KINDS = {
    kind.__name__: kind
    for kind in (none, gate, need, relation, likelihood, token, keyword_winrate, winrate, hinge, tgrpo)
}


def advantages(
    rewards_BG: Array, term: RelativeTerm, *, scale: str, eps: float = 1e-4, parts: tuple[Part, ...] = ()
) -> Array:
    """Advantages, f32 that broadcasts to [B, G, C]: (R - mean) / (std + eps) * weight of R = reward + bonus.

    scale: divide by the std of the "group" or of the "batch", or do not divide ("none"). Mean and (unbiased)
    std leave out NaN rewards. Their advantages are 0, as are those of groups whose rewards are all equal.
    eps: as in TRL. parts: R is the sum of these rewards, each of them normalised (``summed_rewards``). No
    gradient flows through.
    """
    total_BG = summed_rewards(rewards_BG, term.bonus, parts, eps)
    centred_BG = total_BG - _group_mean(total_BG)
    if scale == "group":
        centred_BG = centred_BG / (jnp.nanstd(total_BG, axis=1, ddof=1, keepdims=True) + eps)
    elif scale == "batch":
        centred_BG = centred_BG / (jnp.nanstd(total_BG, axis=None, ddof=1, keepdims=True) + eps)
    # Rewards are compared with each other, because rounding may part equal ones from their mean.
    spread_B1 = has_spread(total_BG)[:, None]
    advantage_BG = jnp.where(spread_B1 & ~jnp.isnan(total_BG), centred_BG, 0.0)
    return jax.lax.stop_gradient(advantage_BG[..., None] * term.weight)


def summed_rewards(
    rewards_BG: Array, bonus_BG: Array, parts: tuple[Part, ...] = (), eps: float = 1e-4
) -> Array:
    """R f32[B, G]: reward + bonus.

    With ``parts``, the sum over them of weight * (r - mean) / (std + eps), with mean and std of the group, so
    that no reward is drowned by one of a larger scale (GDPO, arXiv 2601.05242, where ``scale="batch"``
    follows). The bonus is added to the part that means right, before that is normalised."""
    if not parts:
        return rewards_BG + bonus_BG
    total_BG = jnp.where(jnp.isnan(rewards_BG), jnp.nan, 0.0)
    for part in parts:
        values_BG = jnp.where(jnp.isnan(rewards_BG), jnp.nan, part.values)
        if part.means_right:
            values_BG = values_BG + bonus_BG / part.weight
        normalised = advantages(values_BG, NO_TERM, scale="group", eps=eps)[..., 0]
        total_BG += part.weight * normalised
    # Rewards that contradict each other cancel, up to rounding of numbers of order 1.
    differs_B = jnp.nanmax(total_BG, axis=1) - jnp.nanmin(total_BG, axis=1) > 1e-5
    return jnp.where(differs_B[:, None], total_BG, 0.0 * total_BG)


def has_spread(rewards_BG: Array) -> Array:
    """bool[B]: the rewards of the group are not all equal. False without rewards."""
    return jnp.nanmax(rewards_BG, axis=1) > jnp.nanmin(rewards_BG, axis=1)


def relative_metrics(evidence: Evidence, term: RelativeTerm, *, scale: str) -> dict[str, Array]:
    """Means f32[] over the clips with ``has_degraded`` (0 if there are none), and how much of the advantages
    of all clips the term changes, rel/change: sum |A - A'| / sum (|A| + |A'|) with A' those of plain GRPO, 0
    to 1.

    rel/clips: their share of the batch. rel/active: the share of them whose advantages the term changes.
    rel/spread: the share of them whose completions on V differ in reward + bonus. rel/weight: mean weight of
    their tokens. With the reward that means right on both videos: rel/gap, its mean on V minus that on V~,
    and rel/win_rate, the share of pairs that V wins, ties counting half. With ``same``: rel/same, the share
    of pairs that say the same. With log-probability gaps: rel/logp_gap, in nats per token.
    """

    def clip_mean(x_B: Array) -> Array:
        valid = evidence.has_degraded & ~jnp.isnan(x_B)
        return jnp.where(valid, x_B, 0.0).sum() / jnp.maximum(valid.sum(), 1)

    # Without eps: with it, even a bonus that cancels would change advantages a little.
    rewards, parts = evidence.rewards, evidence.parts
    plain = advantages(rewards, NO_TERM, scale=scale, eps=0.0, parts=parts)
    shaped = advantages(rewards, term, scale=scale, eps=0.0, parts=parts)
    has_signal = has_spread(summed_rewards(rewards, term.bonus, parts))
    change, size = jnp.abs(shaped - plain), jnp.abs(shaped) + jnp.abs(plain)
    weight: Array = jnp.broadcast_to(term.weight, change.shape)
    if evidence.mask is not None:
        change = jnp.where(evidence.mask, change, 0.0)
        size = jnp.where(evidence.mask, size, 0.0)
        weight = _token_mean(weight, evidence.mask)
    metrics = {
        "rel/clips": evidence.has_degraded.mean(),
        # Smaller changes are rounding.
        "rel/active": clip_mean((change > 1e-5).any(axis=(1, 2)).astype(jnp.float32)),
        "rel/spread": clip_mean(has_signal.astype(jnp.float32)),
        # Of all clips: those without V~ change with the standard deviation of the batch.
        "rel/change": change.sum() / jnp.where(size.any(), size.sum(), 1.0),
        "rel/weight": clip_mean(weight.mean(axis=(1, 2))),
    }
    if evidence.right is not None and evidence.right_degraded is not None:
        wins = jnp.nanmean(share_won(evidence.right, evidence.right_degraded, 0.0), axis=1)
        metrics |= {"rel/gap": clip_mean(reward_gap(evidence)), "rel/win_rate": clip_mean(wins)}
    if evidence.same is not None:
        metrics["rel/same"] = clip_mean(jnp.nanmean(evidence.same, axis=(1, 2)))
    if evidence.gap is not None:
        gap = _token_mean(evidence.gap, evidence.get("mask"))
        metrics["rel/logp_gap"] = clip_mean(gap.mean(axis=(1, 2)))
    return metrics


def reward_gap(evidence: Evidence) -> Array:
    """Mean of the reward that means right on V minus that on V~, f32[B]; NaN if either is missing."""
    return (_group_mean(evidence.get("right")) - _group_mean(evidence.get("right_degraded")))[:, 0]


def gap_share(evidence: Evidence) -> Array:
    """``reward_gap`` as a share of the larger of the two means, f32[B] in [-1, 1] for rewards that are not
    negative: whatever the unit of the reward. NaN if both are 0."""
    means = [_group_mean(evidence.get(field))[:, 0] for field in ("right", "right_degraded")]
    return reward_gap(evidence) / jnp.maximum(jnp.abs(means[0]), jnp.abs(means[1]))


def share_won(values_BG: Array, others_BGd: Array, margin: float) -> Array:
    """Share f32[B, G] of ``others`` that each of ``values`` exceeds by more than ``margin``. A difference
    within the margin counts half. NaN if there is nothing to compare."""
    difference = values_BG[:, :, None] - others_BGd[:, None]
    apart = margin + ROUNDING
    wins = jnp.where(difference > apart, 1.0, jnp.where(difference < -apart, 0.0, 0.5))
    return jnp.nanmean(jnp.where(jnp.isnan(difference), jnp.nan, wins), axis=-1)


def _group_mean(x_BG: Array) -> Array:
    """f32[B, 1]: the mean of the values that are not NaN; NaN if all are."""
    return jnp.nanmean(x_BG, axis=1, keepdims=True)


def _token_mean(x_BGC: Array, mask_BGC: Array) -> Array:
    """f32[B, G, 1]: the mean over the tokens of ``mask``; 0 if there are none."""
    total = jnp.where(mask_BGC, x_BGC, 0.0).sum(-1, keepdims=True)
    return total / jnp.maximum(mask_BGC.sum(-1, keepdims=True), 1)
