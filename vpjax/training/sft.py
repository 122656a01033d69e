"""The SFT step: the joint loss in one jitted, donated call.

L = L_lm + lambda * L_contrast: next-token cross-entropy on the answer given V, and a keyword contrast on the
states after decoder layer l, where V must be told from the degraded V~. V~ is a gather of V's features and
runs through the first l layers only, up to its last visual token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vpjax.models.attention import backend
from vpjax.models.sharding import check_rows, in_use
from vpjax.models.vlm import VideoLM, gather_slots, rebuild
from vpjax.training.losses import (
    Contrast,
    Keywords,
    causal_lm,
    contrastive,
    pool_slots,
    token_logprobs,
    unit,
    windows_of,
)
from vpjax.training.state import HEADS, Optimizer, State
from vpjax.training.update import accumulate, advance, optimize
from vpjax.types import Array, Batch

LOG_TAU = HEADS + "log_tau"


class Sums(NamedTuple):
    """What micro-batches add up: summed losses and counts."""

    lm: Array
    tokens: Array
    contrast: Contrast


def init_heads(config: ConfigDict, width: int, key: Array) -> dict[str, Array]:
    """The training-only heads W_v and W_t (two-layer MLPs to E) and log tau, by path; {} without a
    contrast."""
    if not config.contrast.weight:
        return {}
    e, init = config.contrast.width, jax.nn.initializers.lecun_normal()
    heads = {LOG_TAU: jnp.log(jnp.float32(config.contrast.tau))}
    for i, side in enumerate(("visual", "text")):
        for j, shape in enumerate(((width, e), (e, e))):
            heads[f"{HEADS}{side}.{j}.kernel"] = init(jax.random.fold_in(key, 2 * i + j), shape)
            heads[f"{HEADS}{side}.{j}.bias"] = jnp.zeros(e)
    return heads


def project(heads: dict[str, Array], side: str, x: Array) -> Array:
    """Unit vectors f32[..., E] of ``x`` [..., D] through the ``visual`` or ``text`` head."""
    h = x.astype(jnp.float32)
    for j in range(2):
        h = h @ heads[f"{HEADS}{side}.{j}.kernel"] + heads[f"{HEADS}{side}.{j}.bias"]
        h = jax.nn.gelu(h) if j == 0 else h
    return unit(h)


def tap_layer(model: VideoLM, config: ConfigDict) -> int:
    """l: how many decoder layers the contrast stands on."""
    return max(1, round(config.contrast.layer * model.config.decoder.layers))


def embed_keywords(model: VideoLM, batch: Batch) -> Array:
    """emb(k) [B, J, D]: the mean input embedding of a keyword's tokens, without a gradient."""
    valid = batch.keywords >= 0
    embedded = model.embed_tokens(jnp.maximum(batch.keywords, 0)).astype(jnp.float32)
    count = jnp.maximum(valid.sum(-1, keepdims=True), 1)
    return jax.lax.stop_gradient((embedded * valid[..., None]).sum(-2) / count)


def valid_keywords(batch: Batch, config: ConfigDict) -> Array:
    """bool[B, J]: some slot shows the keyword and, where V~ is a negative, the clip has a V~."""
    valid = batch.slots.any(-1) & (batch.lemma >= 0)
    if "degraded" in config.contrast.negatives:
        valid &= batch.replaced.any(-1, keepdims=True)
    return valid


def keywords_of(model: VideoLM, heads: dict[str, Array], batch: Batch, config: ConfigDict) -> Keywords:
    """A batch's keywords, flat."""
    e = project(heads, "text", embed_keywords(model, batch))
    clip = jnp.broadcast_to(batch.clip[:, None], batch.lemma.shape)
    valid = valid_keywords(batch, config)
    return Keywords(e.reshape(-1, e.shape[-1]), batch.lemma.ravel(), clip.ravel(), valid.ravel())


def sums(model: VideoLM, heads: dict[str, Array], batch: Batch, whole: Batch, config: ConfigDict) -> Sums:
    """Summed losses of a (micro-)batch; ``whole`` is the batch whose keywords are each other's negatives."""
    tap = tap_layer(model, config) if heads else None
    features = model.encode(batch.frames, remat=config.remat) if batch.video_end else None
    hidden = model.hidden(features, batch, tap=tap, remat=config.remat)
    logprobs = token_logprobs(
        hidden.last, hidden.suffix, model.unembed, batch.suffix[:, None], chunk=config.loss.chunk
    )
    lm, tokens = causal_lm(logprobs[:, 0], batch.target)
    if tap is None or features is None:
        return Sums(lm, tokens, Contrast(*[jnp.float32(0)] * 4, jnp.int32(0)))

    negatives = config.contrast.negatives
    own = keywords_of(model, heads, batch, config)
    pool = keywords_of(model, heads, whole, config)
    z = project(heads, "visual", pool_slots(hidden.tap, batch.slots))
    degraded = windows = exists = None
    if "degraded" in negatives:
        states = model.visual_hidden(
            gather_slots(features, batch.source), batch, layers=tap, remat=config.remat
        )
        degraded = project(heads, "visual", pool_slots(states, batch.slots))
    if "windows" in negatives:
        inside, exists = windows_of(batch.slots, batch.slot_valid)
        pooled = pool_slots(hidden.tap, inside.reshape(len(inside), -1, inside.shape[-1]))
        windows = project(heads, "visual", pooled).reshape(*exists.shape, -1)
    tau = jnp.exp(heads[LOG_TAU])
    in_batch = "batch" in negatives
    return Sums(lm, tokens, contrastive(z, degraded, windows, exists, own, pool, tau, in_batch=in_batch))


def make_step(
    model: VideoLM, config: ConfigDict, optimizer: Optimizer, shardings: State | None = None
) -> Callable[[State, Batch], tuple[State, dict[str, Array]]]:
    """``step(state, batch) -> state, metrics`` (f32 scalars), the state donated.

    model: arrays or shapes. shardings: of the state, from ``state.create_state``. An update whose loss or
    gradient is not finite is skipped and counted. UserError where micro-batches cannot be split over the
    devices.
    """
    mesh = None if shardings is None else shardings.step.mesh
    if mesh is not None:
        check_rows(config.batch // config.accumulate, mesh, "config.batch / config.accumulate")
    dtype = jnp.dtype(config.dtype)

    def loss(params, frozen, batch, whole, lam, counts):
        heads = {path: x for path, x in params.items() if path.startswith(HEADS)}
        cast = {path: x.astype(dtype) for path, x in params.items() if path not in heads}
        s = sums(rebuild(model, cast | frozen), heads, batch, whole, config)
        return s.lm / counts[0] + lam * s.contrast.loss / counts[1], s

    def step(state: State, batch: Batch):
        lam = config.contrast.weight * _ramp(state.step, config.contrast.warmup_share * config.steps)
        counts = batch.target.sum(), valid_keywords(batch, config).sum()
        counts = [jnp.maximum(count, 1).astype(jnp.float32) for count in counts]

        def part(micro):
            with in_use(mesh), backend(config.attention):
                grad = jax.value_and_grad(loss, has_aux=True)
                return grad(state.params, state.frozen, micro, batch, lam, counts), ()

        ((value, s), gradient), _ = accumulate(part, batch, config.accumulate)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        params, opt = optimize(optimizer, state.params, state.opt, gradient)
        if LOG_TAU in params:  # bounded here, for a clip in the loss would end its gradient for good
            params[LOG_TAU] = jnp.clip(params[LOG_TAU], *map(math.log, config.contrast.tau_range))
        metrics = {
            "loss": value,
            "loss/lm": s.lm / counts[0],
            "grad_norm": norm,
            "lr": optimizer.learning_rate(state.step - state.skipped),
            "nonfinite": ~finite,
            "tokens": batch.prompt_valid.sum() + s.tokens,
        }
        if LOG_TAU in params:
            metrics |= _contrast_metrics(s.contrast, jnp.exp(state.params[LOG_TAU]), lam, config)
        return advance(state, params, opt, finite), {
            name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()
        }

    return jax.jit(step, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None))


def _contrast_metrics(c: Contrast, tau: Array, lam: Array, config: ConfigDict) -> dict[str, Array]:
    """Means over keywords; the names that need V~ only where it was computed."""
    count = jnp.maximum(c.count, 1)
    metrics = {
        "loss/contrast": c.loss / count,
        "contrast/clean": c.clean / count,
        "contrast/retrieval@1": c.retrieved / count,
        "contrast/keywords": c.count,
        "contrast/tau": tau,
        "contrast/lambda": lam,
    }
    if "degraded" in config.contrast.negatives:
        metrics |= {"contrast/degraded": c.degraded / count, "contrast/gap": (c.clean - c.degraded) / count}
    return metrics


def _ramp(step: Array, steps: float) -> Array:
    """0 at step 0, 1 from ``steps`` on."""
    return jnp.minimum(step / steps, 1.0) if steps else jnp.float32(1.0)
