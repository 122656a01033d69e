"""From frames to patches: the size of a frame, and its normalised patches."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.types import Array

MAX_RATIO = 200


def smart_resize(
    height: int, width: int, *, factor: int = 28, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The size (h, w) to which a frame is resized for the tower: multiples of ``factor``, nearly the frame's
    own size and aspect ratio, with an area of ``min_pixels`` to ``max_pixels``. ValueError for a ratio above
    MAX_RATIO.

    Source: ``smart_resize`` of transformers' Qwen2-VL image processor.
    """
    if max(height, width) / min(height, width) > MAX_RATIO:
        raise ValueError(f"aspect ratio of {height} x {width} is above {MAX_RATIO}")
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h = max(factor, math.floor(height / shrink / factor) * factor)
        w = max(factor, math.floor(width / shrink / factor) * factor)
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h, w = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return h, w


def normalised(pixels: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Patches f32[..., X] of patches u8[..., X], whose values stand channel by channel."""
    each = pixels.shape[-1] // len(mean)
    mean_X, std_X = (np.repeat(np.array(x, np.float32), each) for x in (mean, std))
    return (jnp.asarray(pixels).astype(jnp.float32) / 255 - mean_X) / std_X
