"""How much of the decoder the backward pass computes again, so that a step fits a device's memory."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vpjax.models.decoder import DecoderConfig
from vpjax.models.sharding import ROWS, device_bytes, devices_along
from vpjax.models.vlm import VideoLM, leaves
from vpjax.training.optimizer import frozen_paths, is_muons
from vpjax.training.state import keeps_reference

GIB = 2**30
# Of a device's memory. The rest is for programs, and for what is not counted here: by their plans, steps that
# were to fill .9 needed .89 to .97.
USABLE = 0.85
# What the backward pass of one layer holds at once, by plans for TPUs: arrays of its tokens as wide as its
# MLP, and copies of its weights, which are gathered, and of their gradients.
WIDE_ARRAYS, WEIGHT_COPIES = 7, 4
# Copies of the keys and values of whole rows, where the tokens of a row lie on several devices: as they are
# gathered, in their order and as the kernel takes them, and their gradients.
GATHERED_COPIES = 6


def recomputed_share(config: ConfigDict, model: VideoLM, layer_tokens: int) -> float | None:
    """The share of the decoder's layers that the backward pass computes again, as ``remat.scan`` takes it.

    layer_tokens: of a micro-batch, those of each layer added up. ``config.remat`` "auto": layers keep their
    products as long as the estimated need stays below ``config.memory``; all are computed again where that
    is 0.
    """
    if config.remat != "auto":
        return {"none": None, "products": 0.0, "layers": 1.0}[config.remat]
    devices, decoder = devices_along("context"), model.config.decoder
    tokens = layer_tokens / (devices_along(ROWS[0]) * devices)
    left = USABLE * config.memory * GIB
    left -= state_bytes(config, model) + layer_bytes(config, model, tokens)
    if devices > 1:
        width = 2 * decoder.kv_heads * decoder.head_dim * jnp.dtype(config.dtype).itemsize
        left -= GATHERED_COPIES * width * tokens * devices / decoder.layers
    return min(max(1 - left / (tokens * kept_bytes(config, decoder)), 0.0), 1.0)


def state_bytes(config: ConfigDict, model: VideoLM) -> float:
    """What a device holds of the parameters: the frozen ones; and of the trained ones float32 numbers, a
    gradient, a second one where micro-batches are added up, a copy in the compute dtype, in GRPO with a KL
    the reference in that type, and the optimizer's moments: the first in ``optim.moments_dtype``, the second,
    which Muon does without, in float32."""
    params = leaves(model)
    frozen = frozen_paths(params, config)
    trained = {
        path: jax.ShapeDtypeStruct(x.shape, jnp.float32) for path, x in params.items() if path not in frozen
    }
    second_moments = {path: x for path, x in trained.items() if not is_muons(config.optim, path)}
    copies = 3.0 if config.accumulate > 1 else 2.0
    narrower = [config.optim.moments_dtype, config.dtype]
    if keeps_reference(config):
        narrower.append(config.dtype)
    copies += sum(jnp.dtype(dtype).itemsize / 4 for dtype in narrower)
    untrained = device_bytes({path: params[path] for path in frozen})
    return copies * device_bytes(trained) + device_bytes(second_moments) + untrained


def layer_bytes(config: ConfigDict, model: VideoLM, layer_tokens: float) -> float:
    """What the backward pass holds if all layers are computed again: the input of each, and the work on one.
    layer_tokens: of a device, those of each layer added up."""
    decoder, itemsize = model.config.decoder, jnp.dtype(config.dtype).itemsize
    stacked = sum(x.size for path, x in leaves(model).items() if path.startswith("decoder.layers."))
    work = WIDE_ARRAYS * layer_tokens * decoder.intermediate + WEIGHT_COPIES * stacked
    return itemsize * (layer_tokens * decoder.hidden + work / decoder.layers)


def kept_bytes(config: ConfigDict, decoder: DecoderConfig) -> int:
    """What a layer that keeps its products holds for a token besides: of q, k, v, attention, o, gate and
    up."""
    heads = 2 * decoder.heads + 2 * decoder.kv_heads
    width = heads * decoder.head_dim + decoder.hidden + 2 * decoder.intermediate
    return jnp.dtype(config.dtype).itemsize * width
