"""How much of the decoder the backward pass computes again, so that a step fits a device's memory."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vpjax.models.decoder import DecoderConfig
from vpjax.models.sharding import device_bytes, row_parts
from vpjax.models.vlm import VideoLM, leaves
from vpjax.training.state import frozen_paths

GIB = 2**30
USABLE = 0.9  # of a device's memory; the rest is for programs, and for what is not counted here
WORK = 8.0  # arrays as wide as the MLP that the backward pass of a layer holds at once


def recomputed_share(config: ConfigDict, model: VideoLM, layer_tokens: int) -> float | None:
    """The share of the decoder's layers that the backward pass computes again, as ``remat.scan`` takes it.

    layer_tokens: of a micro-batch, those of each layer added up. ``config.remat`` "auto": layers keep their
    products as long as the estimated need stays below ``config.memory``; all are computed again where that
    is 0.
    """
    if config.remat != "auto":
        return {"none": None, "products": 0.0, "layers": 1.0}[config.remat]
    own_tokens = layer_tokens / row_parts(jax.sharding.get_abstract_mesh())
    left = USABLE * config.memory * GIB - state_bytes(config, model)
    left -= own_tokens * input_bytes(config, model.config.decoder)
    return min(max(1 - left / (own_tokens * kept_bytes(config, model.config.decoder)), 0.0), 1.0)


def state_bytes(config: ConfigDict, model: VideoLM) -> float:
    """What a device holds of the parameters: the frozen ones; and of the trained ones float32 numbers, two
    moments, a gradient, a second one where micro-batches are added up, and a copy in the compute dtype."""
    params = leaves(model)
    frozen = frozen_paths(params, config)
    trained = {path: jax.ShapeDtypeStruct(x.shape, jnp.float32) for path, x in params.items()}
    copies = 4.0 if config.accumulate > 1 else 3.0
    for narrower in (config.optim.moments_dtype, config.dtype):
        copies += jnp.dtype(narrower).itemsize / 4
    own = device_bytes({path: x for path, x in trained.items() if path not in frozen})
    return copies * own + device_bytes({path: params[path] for path in frozen})


def input_bytes(config: ConfigDict, decoder: DecoderConfig) -> float:
    """What the backward pass holds for a token in a layer that is computed again: the layer's input, and a
    share of the work on one layer."""
    itemsize = jnp.dtype(config.dtype).itemsize
    return itemsize * (decoder.hidden + WORK * decoder.intermediate / decoder.layers)


def kept_bytes(config: ConfigDict, decoder: DecoderConfig) -> int:
    """What a layer that keeps its products holds for a token besides: of q, k, v, attention, o, gate and
    up."""
    heads = 2 * decoder.heads + 2 * decoder.kv_heads
    width = heads * decoder.head_dim + decoder.hidden + 2 * decoder.intermediate
    return jnp.dtype(config.dtype).itemsize * width
