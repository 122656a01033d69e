"""From frames to patches: the size of a frame, its normalised patches, and the interpolation of a table of
learned positions."""

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


def patchify(
    frames_BFhw3: Array,
    *,
    patch: int,
    merge: int,
    temporal: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> jax.Array:
    """Normalised patches f32[B, S, N, X] of uint8 frames; F is a multiple of ``temporal``.

    N = (h / patch) * (w / patch) patches, grouped by the ``merge`` x ``merge`` unit that becomes one token;
    X = 3 * temporal * patch**2 values, in the order (channel, frame, row, column) of the HF image processor.
    """
    b, f, h, w, channels = frames_BFhw3.shape
    x = jnp.subtract(frames_BFhw3.astype(jnp.float32) / 255, jnp.array(mean)) / jnp.array(std)
    rows, columns = h // (merge * patch), w // (merge * patch)
    x = x.reshape(b, f // temporal, temporal, rows, merge, patch, columns, merge, patch, channels)
    x = x.transpose(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
    return x.reshape(b, f // temporal, rows * columns * merge**2, -1)


def interpolation(count: int, side: int) -> np.ndarray:
    """Weights f32[count, side] of linear interpolation at ``count`` points, evenly spread from the first to
    the last of ``side`` values.

    Source: ``get_vision_interpolation_indices_and_weights`` of transformers, one axis of its bilinear
    interpolation with aligned corners.
    """
    points = np.arange(count, dtype=np.float32) * (side - 1) / max(count - 1, 1)
    return np.maximum(0, 1 - np.abs(points[:, None] - np.arange(side))).astype(np.float32)
