"""Rotary positions: two axes (height, width) in the vision tower, three (time, height, width) in the
decoder."""

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.types import Array


def frequencies(width: int, theta: float) -> np.ndarray:
    """The inverse frequencies f32[width / 2] of a rotary embedding of ``width`` channels."""
    return (theta ** -(np.arange(0, width, 2, dtype=np.float32) / width)).astype(np.float32)


def vision_angles(rows: Array, columns: Array, width: int, theta: float = 10000.0) -> jax.Array:
    """Angles f32[..., width / 2] of patches at rows and columns [...]; each axis has half the channels.

    Source: ``Qwen2_5_VisionRotaryEmbedding`` of transformers.
    """
    inverse = frequencies(width // 2, theta)
    return jnp.concatenate([rows[..., None] * inverse, columns[..., None] * inverse], axis=-1)


def section_axes(sections: tuple[int, ...]) -> tuple[int, ...]:
    """The axis (0 time, 1 height, 2 width) of each channel pair: Qwen2.5-VL's contiguous sections."""
    return tuple(axis for axis, size in enumerate(sections) for _ in range(size))


def interleaved_axes(sections: tuple[int, ...]) -> tuple[int, ...]:
    """The same for Qwen3-VL: the axes alternate, and time takes all pairs after those of height and width.

    Source: ``Qwen3VLTextRotaryEmbedding.recomposition_frequencies`` of transformers.
    """
    axes = np.zeros(sum(sections), int)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return tuple(axes.tolist())


def text_angles(positions_B3T: Array, axes: tuple[int, ...], theta: float) -> jax.Array:
    """Angles f32[B, T, H / 2] of tokens at three-axis positions; ``axes``: of each channel pair.

    Source: multimodal rotary embedding of Qwen2-VL (arXiv 2409.12191, section 2.1).
    """
    chosen_BhT = positions_B3T[:, np.asarray(axes)].astype(jnp.float32)
    return jnp.swapaxes(chosen_BhT, 1, 2) * frequencies(2 * len(axes), theta)


def rotate(x_TNH: jax.Array, angles_Th: Array) -> jax.Array:
    """``x`` [..., T, N, H] rotated by angles [..., T, H / 2], channel i paired with i + H / 2, in float32."""
    cos, sin = jnp.cos(angles_Th)[..., None, :], jnp.sin(angles_Th)[..., None, :]
    a, b = jnp.split(x_TNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_TNH.dtype)


def rotate_by_product(x_TNH: jax.Array, angles_Th: Array) -> jax.Array:
    """The same as ``rotate``, where the channels of a pair change places by a product with a matrix of 0, 1
    and -1, which is exact. A TPU computes in tiles of 128 channels: to cut heads of 80 into halves and join
    them costs it several times as much."""
    half = angles_Th.shape[-1]
    exchange = np.zeros((2 * half, 2 * half), np.float32)
    pairs = np.arange(half)
    exchange[pairs + half, pairs], exchange[pairs, pairs + half] = -1, 1
    turned_TNH = jnp.matmul(x_TNH, jnp.asarray(exchange, x_TNH.dtype), precision="highest")
    cos, sin = (jnp.tile(f(angles_Th), 2)[..., None, :] for f in (jnp.cos, jnp.sin))
    return (x_TNH.astype(jnp.float32) * cos + turned_TNH.astype(jnp.float32) * sin).astype(x_TNH.dtype)
