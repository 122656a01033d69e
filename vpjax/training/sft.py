"""The SFT step: the joint loss in one jitted, donated call (docs/method.md, section 2).

L = L_lm + lambda * L_contrast: next-token cross-entropy on the answer given V, and a keyword contrast between
V and the degraded V~ on the states after decoder layer l. V~ is a gather of V's features and runs through the
first l layers only, up to each clip's last visual token. Rows hold several clips, which see nothing of one
another.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vpjax.data.mixture import data_sets
from vpjax.models.attention import backend
from vpjax.models.gather import take
from vpjax.models.sharding import check_rows, in_use
from vpjax.models.vlm import VideoLM, rebuild
from vpjax.training.losses import (
    ContrastSums,
    Keywords,
    causal_lm,
    contrastive,
    pool_slots,
    slot_means,
    token_logprobs,
    unit,
)
from vpjax.training.state import HEADS_PREFIX, Optimizer, State, accumulate, advance, optimize
from vpjax.types import Array, Batch

LOG_TAU = HEADS_PREFIX + "log_tau"


class SFTSums(NamedTuple):
    """Summed losses and counts, which add up over micro-batches. lm, tokens: f32[N], by data set."""

    lm: Array
    tokens: Array
    contrast: ContrastSums


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


def embed_keywords(model: VideoLM, batch: Batch) -> Array:
    """emb(k) [R, Q, D]: the mean input embedding of a keyword's tokens, without a gradient."""
    valid = batch.keywords >= 0
    embedded = model.decoder.embed_tokens(jnp.maximum(batch.keywords, 0)).astype(jnp.float32)
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
    e = project(heads, "text", embed_keywords(model, batch))
    valid = valid_keywords(batch, config)
    lemma, owner = batch.lemma.ravel(), batch.owner.ravel()
    return Keywords(e.reshape(valid.size, e.shape[2]), lemma, owner, valid.ravel())


def summed_losses(
    model: VideoLM, heads: dict[str, Array], batch: Batch, whole: Batch, config: ConfigDict, sources: int
) -> SFTSums:
    """Summed losses of a (micro-)batch. ``whole`` is the whole batch: its keywords are each other's
    negatives. Without ``heads`` the contrast is 0 and is not computed. sources: number of data sets."""
    tap = tap_layer(model, config) if heads else None
    features = model.encode(batch.video, remat=config.remat)
    hidden = model.hidden(features, batch.text, batch.target, tap=tap, remat=config.remat)
    targets = take(batch.text.tokens, batch.target)
    chunk = config.loss.chunk
    logprobs = token_logprobs(hidden.target[:, None], model.unembed, targets[:, None], chunk=chunk)
    lm, tokens = causal_lm(logprobs[:, 0], batch.origin, sources)
    if tap is None or features is None or hidden.tap is None:
        zero = jnp.float32(0)
        return SFTSums(lm, tokens, ContrastSums(zero, zero, zero, zero, jnp.int32(0)))

    negatives = config.contrast.negatives
    own = batch_keywords(model, heads, batch, config)
    pool = batch_keywords(model, heads, whole, config)
    slots = batch.slots.shape[-1]
    means = slot_means(hidden.tap, batch.text.slot, slots)
    z = project(heads, "visual", pool_slots(means, batch.slots))
    degraded = windows = window_of = None
    if "degraded" in negatives and batch.degraded.tokens.size:  # empty if no clip of the data has a V~
        states = model.states_after(features, batch.degraded, layers=tap, remat=config.remat)
        means_degraded = slot_means(states, batch.degraded.slot, slots)
        degraded = project(heads, "visual", pool_slots(means_degraded, batch.slots))
    if "windows" in negatives:
        window_of, first, end = (batch.windows[..., i] for i in range(3))
        inside = (jnp.arange(slots) >= first[..., None]) & (jnp.arange(slots) < end[..., None])
        windows = project(heads, "visual", pool_slots(means, inside))
    tau = jnp.exp(heads[LOG_TAU])
    in_batch = "batch" in negatives
    contrast = contrastive(z, degraded, windows, window_of, own, pool, tau, in_batch=in_batch)
    return SFTSums(lm, tokens, contrast)


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
    names = [data_set.name for data_set in data_sets(config.data)]

    def loss(params, frozen, batch, whole, weight, target_count, keyword_count):
        heads = {path: x for path, x in params.items() if path.startswith(HEADS_PREFIX)}
        compute = {path: x.astype(dtype) for path, x in params.items() if path not in heads}
        sums = summed_losses(rebuild(model, compute | frozen), heads, batch, whole, config, len(names))
        return sums.lm.sum() / target_count + weight * sums.contrast.loss / keyword_count, sums

    def step(state: State, batch: Batch):
        weight = config.contrast.weight * _ramp(state.step, config.contrast.warmup_share * config.steps)
        targets, keywords = (batch.target >= 0).sum(), valid_keywords(batch, config).sum()
        targets = jnp.maximum(targets, 1).astype(jnp.float32)
        keywords = jnp.maximum(keywords, 1).astype(jnp.float32)

        def gradient_of(micro_batch):
            with in_use(mesh), backend(config.attention):
                grad = jax.value_and_grad(loss, has_aux=True)
                return grad(state.params, state.frozen, micro_batch, batch, weight, targets, keywords), ()

        ((value, sums), gradient), _ = accumulate(gradient_of, batch, config.accumulate)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        params, opt = optimize(optimizer, state.params, state.opt, gradient)
        if LOG_TAU in params:  # clipped after the update: a clip in the loss would stop its gradient for good
            lowest, highest = config.contrast.tau_range
            params[LOG_TAU] = jnp.clip(params[LOG_TAU], math.log(lowest), math.log(highest))
        metrics = {
            "loss": value,
            "loss/lm": sums.lm.sum() / targets,
            "grad_norm": norm,
            "lr": optimizer.learning_rate(state.step - state.skipped),
            "nonfinite": ~finite,
            "tokens": (batch.text.segment > 0).sum(),
        }
        if len(names) > 1:
            mean_N = sums.lm / sums.tokens  # NaN: the batch has nothing of this data set
            metrics |= {f"loss/lm/{name}": mean_N[i] for i, name in enumerate(names)}
        if LOG_TAU in params:
            metrics |= _contrast_metrics(sums.contrast, jnp.exp(state.params[LOG_TAU]), weight, config)
        metrics = {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}
        return advance(state, params, opt, finite), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None))


def _contrast_metrics(sums: ContrastSums, tau: Array, weight: Array, config: ConfigDict) -> dict[str, Array]:
    """Means over keywords. The metrics of V~ exist only if V~ is a negative."""
    count = jnp.maximum(sums.keywords, 1)
    metrics = {
        "loss/contrast": sums.loss / count,
        "contrast/clean": sums.clean / count,
        "contrast/retrieval@1": sums.retrieved / count,
        "contrast/keywords": sums.keywords,
        "contrast/tau": tau,
        "contrast/lambda": weight,
    }
    if "degraded" in config.contrast.negatives:
        metrics["contrast/degraded"] = sums.degraded / count
        metrics["contrast/gap"] = (sums.clean - sums.degraded) / count
    return metrics


def _ramp(step: Array, steps: float) -> Array:
    """0 at step 0, 1 from ``steps`` on."""
    return jnp.minimum(step / steps, 1.0) if steps else jnp.float32(1.0)
