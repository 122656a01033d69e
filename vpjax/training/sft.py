"""The SFT step: the joint loss in one jitted, donated call (docs/method.md, section 2).

L = L_lm + lambda * L_contrast + mu * L_answer + nu * L_truth: next-token cross-entropy on the answer given V;
a keyword contrast between V and the degraded V~ on the states after decoder layer l; a margin by which the
keyword must be likelier given V than given V~; and next-token cross-entropy on V~'s own truth. V~ is a gather
of V's features and begins where it differs from V: tokens before that have the same states. For the contrast
alone it runs through the first l layers only, up to each clip's last visual token. Rows hold several clips,
which see nothing of one another.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vpjax.data.mixture import data_sets
from vpjax.data.rows import NO_ANSWERS, Compared, DegradedAnswers
from vpjax.models import context
from vpjax.models.attention import backend
from vpjax.models.gather import take
from vpjax.models.sharding import check_rows, in_use
from vpjax.models.vlm import Degraded, VideoLM, rebuild
from vpjax.training.losses import (
    AnswerSums,
    ContrastSums,
    Keywords,
    answer_term,
    causal_lm,
    contrastive,
    pool_slots,
    slot_means,
    token_logprobs,
    unit,
)
from vpjax.training.memory import recomputed_share
from vpjax.training.optimizer import HEADS_PREFIX, Optimizer
from vpjax.training.state import State, accumulate, advance, optimize
from vpjax.types import Array, Batch, Strip

LOG_TAU = HEADS_PREFIX + "log_tau"


class SFTSums(NamedTuple):
    """Summed losses and counts, which add up over micro-batches. lm, tokens: f32[N], by data set. truth,
    truth_tokens: of V~'s own truth."""

    lm: Array
    tokens: Array
    contrast: ContrastSums
    answer: AnswerSums
    truth: Array
    truth_tokens: Array


def init_heads(config: ConfigDict, width: int, key: Array) -> dict[str, Array]:
    """The heads W_v and W_t (two-layer MLPs to E) and log tau, by path; {} without a contrast."""
    if not config.contrast.weight:
        return {}
    e, init = config.contrast.width, jax.nn.initializers.lecun_normal()
    heads: dict[str, Array] = {LOG_TAU: jnp.log(jnp.float32(config.contrast.tau))}
    for i, side in enumerate(("visual", "text")):
        for j, shape in enumerate(((width, e), (e, e))):
            heads[f"{HEADS_PREFIX}{side}.{j}.kernel"] = init(jax.random.fold_in(key, 2 * i + j), shape)
            heads[f"{HEADS_PREFIX}{side}.{j}.bias"] = jnp.zeros(e)
    return heads


def project(heads: dict[str, Array], side: str, x: Array) -> Array:
    """Unit vectors f32[..., E] of ``x`` [..., D] through the ``visual`` or ``text`` head."""

    def layer(j: int, x: Array) -> Array:
        return x @ heads[f"{HEADS_PREFIX}{side}.{j}.kernel"] + heads[f"{HEADS_PREFIX}{side}.{j}.bias"]

    return unit(layer(1, jax.nn.gelu(layer(0, x.astype(jnp.float32)))))


def tap_layer(model: VideoLM, config: ConfigDict) -> int:
    """l: the number of decoder layers whose output the contrast reads."""
    return max(1, round(config.contrast.layer * model.config.decoder.layers))


def embed_keywords(model: VideoLM, keywords_RQW: Array) -> Array:
    """emb(k) [R, Q, D]: the mean input embedding of the tokens of keywords, without a gradient."""
    valid = keywords_RQW >= 0
    embedded = model.decoder.embed_tokens(jnp.maximum(keywords_RQW, 0)).astype(jnp.float32)
    count = jnp.maximum(valid.sum(-1, keepdims=True), 1)
    return jax.lax.stop_gradient((embedded * valid[..., None]).sum(-2) / count)


def valid_keywords(batch: Batch, config: ConfigDict) -> Array:
    """bool[R, Q]: a slot shows the keyword and, if V~ is a negative, the clip has a V~."""
    valid = batch.slots.any(-1) & (batch.lemma >= 0)
    if "degraded" in config.contrast.negatives:
        valid &= batch.has_degraded
    return valid


def batch_keywords(model: VideoLM, heads: dict[str, Array], batch: Batch, config: ConfigDict) -> Keywords:
    """The keywords of a batch, flat."""
    e = project(heads, "text", embed_keywords(model, batch.keywords))
    valid = valid_keywords(batch, config)
    lemma, owner = batch.lemma.ravel(), batch.owner.ravel()
    return Keywords(e.reshape(valid.size, e.shape[2]), lemma, owner, valid.ravel())


def degraded_answers(config: ConfigDict) -> DegradedAnswers:
    """What the losses of a config read of V~."""
    contrast = config.contrast
    if config.method != "sft":
        return NO_ANSWERS
    compared: Compared = "none"
    if contrast.answer:
        compared = "all" if contrast.answer_kind == "sequence" else "keywords"
    truth_share = contrast.truth_share if contrast.truth else 0.0
    is_negative = bool(contrast.weight) and "degraded" in contrast.negatives
    return DegradedAnswers(compared, truth_share, alone=is_negative)


def compared_clips(batch: Batch) -> Array:
    """i32[R, C]: the clip in the row of each token that is compared between V and V~, -1: others."""
    clip_RC = take(batch.degraded.segment, batch.degraded_target) - 1
    return jnp.where(jnp.asarray(batch.compared) >= 0, clip_RC, -1)


def is_truth(batch: Batch) -> Array:
    """bool[R, C]: the targets of V~ that belong to its own truth."""
    return (jnp.asarray(batch.degraded_target) >= 0) & (jnp.asarray(batch.compared) < 0)


def target_logprobs(model: VideoLM, h_RAD: Array, text: Strip, target_RA: Array, config: ConfigDict) -> Array:
    """log p f32[R, A] of the target tokens, from the states that predict them."""
    tokens_RA, chunk = take(text.tokens, target_RA), config.loss.chunk
    return token_logprobs(h_RAD[:, None], model.unembed, tokens_RA[:, None], chunk=chunk)[:, 0]


def devices_of(batch: Batch) -> int:
    """The devices over which the tokens of each row are split."""
    return context.devices_for(batch.text.tokens.shape[1], batch.degraded.tokens.shape[1])


def layer_tokens(model: VideoLM, batch: Batch, degraded: Degraded | None, tap: int | None) -> int:
    """The tokens that go through the layers, summed over these: see ``VideoLM.hidden``."""
    layers = model.config.decoder.layers
    count = layers * batch.text.tokens.size
    if degraded is not None:
        count += (layers if degraded.target.shape[1] else tap or 0) * degraded.text.tokens.size
    return count


def summed_losses(
    model: VideoLM, heads: dict[str, Array], batch: Batch, whole: Batch, config: ConfigDict, sources: int
) -> SFTSums:
    """Summed losses of a (micro-)batch. ``whole`` is the whole batch: its keywords are each other's
    negatives. Without ``heads`` the contrast is 0 and is not computed, and likewise the losses on V~'s
    answers without such answers. sources: number of data sets."""
    contrasts = bool(heads) and batch.video.count > 0
    tap = tap_layer(model, config) if contrasts else None
    reads_degraded = contrasts and "degraded" in config.contrast.negatives
    degraded = None
    if batch.degraded.tokens.size and (reads_degraded or batch.degraded_target.size):
        degraded = Degraded(batch.degraded, batch.degraded_target, batch.shared)
    recompute = recomputed_share(config, model, layer_tokens(model, batch, degraded, tap))
    features = model.encode(batch.video, recompute=recompute)
    devices = devices_of(batch)
    options = dict(degraded=degraded, tap=tap, recompute=recompute, devices=devices)
    hidden = model.hidden(features, batch.text, batch.target, **options)

    logprobs_RA = target_logprobs(model, hidden.target, batch.text, batch.target, config)
    lm, tokens = causal_lm(logprobs_RA, batch.origin, sources)
    zero, none = jnp.float32(0), jnp.int32(0)
    answer, truth, truth_tokens = AnswerSums(zero, zero, zero, none), zero, none
    if hidden.degraded is not None:
        degraded_RC = target_logprobs(model, hidden.degraded, batch.degraded, batch.degraded_target, config)
        kind, beta = config.contrast.answer_kind, config.contrast.answer_beta
        same_RC, clips = take(logprobs_RA, batch.compared), batch.clip.shape[1]
        answer = answer_term(same_RC, degraded_RC, compared_clips(batch), clips, kind=kind, beta=beta)
        truth = -jnp.where(is_truth(batch), degraded_RC, 0.0).sum()
        truth_tokens = is_truth(batch).sum()
    contrast = ContrastSums(zero, zero, zero, zero, zero, none)
    if hidden.tap is not None:
        contrast = keyword_contrast(model, heads, batch, whole, hidden.tap, hidden.degraded_tap, config)
    return SFTSums(lm, tokens, contrast, answer, truth, truth_tokens)


def keyword_contrast(
    model: VideoLM,
    heads: dict[str, Array],
    batch: Batch,
    whole: Batch,
    tap_RTD: Array,
    degraded_RCD: Array | None,
    config: ConfigDict,
) -> ContrastSums:
    """The contrast of a (micro-)batch from the tapped states of V [R, T, D] and V~ [R, C, D], None if no clip
    of the data has a V~; of tokens in the order of ``context.spread``. whole: see ``summed_losses``."""
    negatives = config.contrast.negatives
    own = batch_keywords(model, heads, batch, config)
    pool = batch_keywords(model, heads, whole, config)
    slots, devices = batch.slots.shape[-1], devices_of(batch)
    own_slot = context.spread(batch.text.slot, devices)
    means = slot_means(tap_RTD, own_slot, slots)
    z = project(heads, "visual", pool_slots(means, batch.slots))
    degraded = windows = window_of = None
    if "degraded" in negatives and degraded_RCD is not None:
        # The slots before the first that is replaced are those of V.
        shared = context.spread(jnp.asarray(batch.shared), devices)
        shared_slot = jnp.where(shared > 0, own_slot, -1)
        states = context.joined([tap_RTD, degraded_RCD], devices)
        slot = context.joined([shared_slot, context.spread(batch.degraded.slot, devices)], devices)
        means_degraded = slot_means(states, slot, slots)
        degraded = project(heads, "visual", pool_slots(means_degraded, batch.slots))
    if "windows" in negatives:
        window_of, first, end = (batch.windows[..., i] for i in range(3))
        inside = (jnp.arange(slots) >= first[..., None]) & (jnp.arange(slots) < end[..., None])
        windows = project(heads, "visual", pool_slots(means, inside))
    tau = jnp.exp(heads[LOG_TAU])
    in_batch = "batch" in negatives
    return contrastive(z, degraded, windows, window_of, own, pool, tau, in_batch=in_batch)


class Weights(NamedTuple):
    """lambda, mu and nu at a step."""

    contrast: Array
    answer: Array
    truth: Array


def weights_at(step: Array, config: ConfigDict) -> Weights:
    """The weights, which rise from 0 to their full size in the steps of ``contrast.warmup_share``."""
    contrast = config.contrast
    warmup = contrast.warmup_share * config.steps
    share = jnp.minimum(step / warmup, 1.0) if warmup else jnp.float32(1.0)
    return Weights(share * contrast.weight, share * contrast.answer, share * contrast.truth)


class Counts(NamedTuple):
    """By what the terms of a whole batch are divided: its targets, keywords, clips that are compared, and
    tokens of V~'s truth; at least 1."""

    targets: Array
    keywords: Array
    compared: Array
    truth: Array


def count_terms(batch: Batch, config: ConfigDict) -> Counts:
    clip_RC = compared_clips(batch)
    compared = (clip_RC[..., None] == jnp.arange(batch.clip.shape[1])).any(axis=1)
    counts = (batch.target >= 0), valid_keywords(batch, config), compared, is_truth(batch)
    return Counts(*(jnp.maximum(x.sum(), 1).astype(jnp.float32) for x in counts))


def joint_loss(sums: SFTSums, weights: Weights, counts: Counts) -> Array:
    """L f32[], or the part of it that a micro-batch adds. counts: of the whole batch."""
    value = sums.lm.sum() / counts.targets
    value += weights.contrast * sums.contrast.loss / counts.keywords
    value += weights.answer * sums.answer.loss / counts.compared
    return value + weights.truth * sums.truth / counts.truth


def make_step(
    model: VideoLM, config: ConfigDict, optimizer: Optimizer, shardings: State | None = None
) -> Callable[[State, Batch], tuple[State, dict[str, Array]]]:
    """``step(state, batch) -> state, metrics`` (f32 scalars). The state is donated. An update whose loss or
    gradient is not finite is skipped and counted.

    model: arrays or shapes. shardings: of the state, from ``create_state``. UserError if the rows of a
    micro-batch do not divide over the devices.
    """
    mesh = None if shardings is None else shardings.step.mesh
    if mesh is not None:
        check_rows(config.batch // config.accumulate, mesh, "config.batch / config.accumulate")
    dtype = jnp.dtype(config.dtype)
    data_set_names = [data_set.name for data_set in data_sets(config.data)]

    def loss(params, frozen, batch, whole, weights: Weights, counts: Counts):
        heads = {path: x for path, x in params.items() if path.startswith(HEADS_PREFIX)}
        compute = {path: x.astype(dtype) for path, x in params.items() if path not in heads}
        compute_model = rebuild(model, compute | frozen)
        sums = summed_losses(compute_model, heads, batch, whole, config, len(data_set_names))
        return joint_loss(sums, weights, counts), sums

    def step(state: State, batch: Batch):
        weights, counts = weights_at(state.step, config), count_terms(batch, config)

        def gradient_of(micro_batch):
            with in_use(mesh), backend(config.attention):
                grad = jax.value_and_grad(loss, has_aux=True)
                return grad(state.params, state.frozen, micro_batch, batch, weights, counts), ()

        ((value, sums), gradient), _ = accumulate(gradient_of, batch, config.accumulate)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        params, opt = optimize(optimizer, state.params, state.opt, gradient, finite)
        if LOG_TAU in params:  # clipped after the update: a clip in the loss would stop its gradient for good
            lowest, highest = config.contrast.tau_range
            params[LOG_TAU] = jnp.clip(params[LOG_TAU], math.log(lowest), math.log(highest))
        metrics = {
            "loss": value,
            "grad_norm": norm,
            "lr": optimizer.learning_rate(state.step - state.skipped),
            "nonfinite": ~finite,
            "tokens": (batch.text.segment > 0).sum(),
        }
        metrics |= _loss_metrics(sums, counts, config, data_set_names)
        if LOG_TAU in params:
            tau = jnp.exp(state.params[LOG_TAU])
            metrics |= _contrast_metrics(sums.contrast, tau, weights.contrast, config)
        metrics = {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}
        return advance(state, params, opt, finite), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None))


def _loss_metrics(
    sums: SFTSums, counts: Counts, config: ConfigDict, data_set_names: Sequence[str]
) -> dict[str, Array]:
    """The terms of the loss but for the contrast, and what is compared between V and V~."""
    metrics = {"loss/lm": sums.lm.sum() / counts.targets}
    if len(data_set_names) > 1:
        mean_N = sums.lm / sums.tokens  # NaN: the batch has nothing of this data set
        metrics |= {f"loss/lm/{name}": mean_N[i] for i, name in enumerate(data_set_names)}
    if config.contrast.answer:
        metrics |= {
            "loss/answer": sums.answer.loss / counts.compared,
            "answer/gap": sums.answer.gap / counts.compared,
            "answer/ahead": sums.answer.ahead / counts.compared,
            "answer/clips": sums.answer.clips,
        }
    if config.contrast.truth:
        metrics |= {"loss/truth": sums.truth / counts.truth, "truth/tokens": sums.truth_tokens}
    return metrics


def _contrast_metrics(sums: ContrastSums, tau: Array, weight: Array, config: ConfigDict) -> dict[str, Array]:
    """Means over keywords; retrieval is over those that have a candidate, and NaN without any. The metrics of
    V~ exist only if V~ is a negative."""
    count = jnp.maximum(sums.keywords, 1)
    metrics = {
        "loss/contrast": sums.loss / count,
        "contrast/clean": sums.clean / count,
        "contrast/retrieval@1": sums.retrieved / sums.candidates,
        "contrast/keywords": sums.keywords,
        "contrast/tau": tau,
        "contrast/lambda": weight,
    }
    if "degraded" in config.contrast.negatives:
        metrics["contrast/degraded"] = sums.degraded / count
        metrics["contrast/gap"] = (sums.clean - sums.degraded) / count
    return metrics
