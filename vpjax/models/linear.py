"""The linear layers of the model. Their weights may be int8, and an adapter may stand beside them
(``models.lora``)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx


class Affine(nnx.Module):
    """``x W + b`` for x [..., in], with W [in, *out]: at first as in ``nnx.LinearGeneral``."""

    def __init__(self, width: int, *out: int, use_bias: bool = True, param_dtype=jnp.float32, rngs: nnx.Rngs):
        self.out, self.use_bias = out, use_bias
        init = nnx.initializers.lecun_normal()
        kernel = init(rngs.params(), (width, math.prod(out)), param_dtype)
        self.kernel = nnx.Param(kernel.reshape(width, *out))
        if use_bias:
            self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), out, param_dtype))

    def product(self, x: jax.Array) -> jax.Array:
        """``x W``."""
        return jnp.tensordot(x, self.kernel[...], 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.product(x)
        if not self.use_bias:
            return y
        # The same number, but the gradient of b, a sum over all tokens, is added up in float32: a sum in
        # bfloat16 ends growing where it is 256 times as large as what is added.
        return (y.astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(y.dtype)


class Linear(Affine):
    """With an adapter ``x W + b + scale * (x A) B``: A, ``lora_a`` [in, r], and B, ``lora_b`` [r, *out], are
    parameters of the layer like W. W may be int8, beside its scales, ``kernel_scale`` [1, *out]. The
    parameters of a stack of layers have one more axis in front.
    """

    lora_scale = 0.0  # of an adapter; 0: there is none

    def add_adapter(self, rank: int, scale: float) -> None:
        """Add an adapter of zeros, which changes nothing."""
        *stack, width = self.kernel.shape[: -len(self.out)]
        self.lora_a = nnx.Param(jnp.zeros((*stack, width, rank)))
        self.lora_b = nnx.Param(jnp.zeros((*stack, rank, *self.out)))
        self.lora_scale = scale

    def make_int8(self) -> None:
        """Quantise the weights."""
        kernel, scale = quantise(self.kernel[...], self.kernel.ndim - len(self.out) - 1)
        self.kernel, self.kernel_scale = nnx.Param(kernel), nnx.Param(scale)

    def product(self, x: jax.Array) -> jax.Array:
        if self.kernel.dtype == jnp.int8:
            return int8_product(x, self.kernel[...], self.kernel_scale[...])
        return super().product(x)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        if self.lora_scale:
            # Never A times B, which would be as large as W, and so would be its gradient.
            low_rank = self.lora_scale * (x @ self.lora_a[...])
            y = y + jnp.tensordot(low_rank, self.lora_b[...], 1)
        return y


def widened(layer: Linear, *, inputs: int = 0, outputs: int = 0) -> Linear:
    """The layer with so many more inputs and outputs at the end, of weight 0."""

    def widen(path: tuple, x: jax.Array) -> jax.Array:
        name, more = path[-2].name, [(0, 0)] * x.ndim
        if name in ("kernel", "lora_a"):
            more[0] = (0, inputs)
        if name != "lora_a":
            more[-1] = (0, outputs)
        return jnp.pad(x, more)

    return jax.tree_util.tree_map_with_path(widen, layer)


def quantise(kernel: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Weights as int8 numbers and float32 scales, whose product is within half a scale of the weights. Each
    output has a scale of its own: its largest weight along ``axis``, the inputs, is 127 scales. That axis is
    kept, with length 1."""
    kernel = kernel.astype(jnp.float32)
    largest = jnp.abs(kernel).max(axis, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127, 1.0)
    return jnp.round(kernel / scale).astype(jnp.int8), scale


def dequantise(kernel: jax.Array, scale: jax.Array, dtype) -> jax.Array:
    """The weights that int8 numbers and their scales stand for, rounded to ``dtype``."""
    return (kernel.astype(jnp.float32) * scale).astype(dtype)


@jax.custom_vjp
def int8_product(x: jax.Array, kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """``x W`` for x [..., in] and int8 weights [in, *out], which are frozen: only x has a gradient.

    The backward pass dequantises W again. If it were kept, those of all layers would be a whole model in the
    type of x."""
    # A product of matrices, of which a TPU's compiler dequantises W inside, without a copy of it. Without the
    # barrier it would compute one of W in heads.
    width, *out = kernel.shape
    matrix = dequantise(kernel.reshape(width, -1), scale.reshape(1, -1), x.dtype)
    product = jax.lax.optimization_barrier(x @ matrix)
    return product.reshape(*x.shape[:-1], *out)


def _forward(x: jax.Array, kernel: jax.Array, scale: jax.Array) -> tuple[jax.Array, tuple]:
    return int8_product(x, kernel, scale), (kernel, scale)


def _backward(saved: tuple[jax.Array, jax.Array], d: jax.Array) -> tuple[jax.Array, None, None]:
    kernel, scale = saved
    outputs = kernel.ndim - 1
    axes = tuple(range(d.ndim - outputs, d.ndim)), tuple(range(1, kernel.ndim))
    return jnp.tensordot(d, dequantise(kernel, scale, d.dtype), axes), None, None


int8_product.defvjp(_forward, _backward)
