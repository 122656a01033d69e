"""The linear layer of the model, beside whose weights an adapter may stand (``models.lora``)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx


class Linear(nnx.Module):
    """``x W + b`` for x [..., in], with W [in, *out]: at first as in ``nnx.LinearGeneral``.

    With an adapter it is ``x W + b + scale * (x A) B``: A, ``lora_a`` [in, r], and B, ``lora_b`` [r, *out],
    are parameters of the layer like W. Those of a stack of layers have one more axis in front.
    """

    def __init__(self, width: int, *out: int, use_bias: bool = True, param_dtype=jnp.float32, rngs: nnx.Rngs):
        self.out, self.use_bias = out, use_bias
        init = nnx.initializers.lecun_normal()
        kernel = init(rngs.params(), (width, math.prod(out)), param_dtype)
        self.kernel = nnx.Param(kernel.reshape(width, *out))
        if use_bias:
            self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), out, param_dtype))
        self.lora_scale = 0.0  # of an adapter; 0: there is none

    def add_adapter(self, rank: int, scale: float) -> None:
        """Add an adapter of zeros, which changes nothing."""
        *stack, width = self.kernel.shape[: -len(self.out)]
        self.lora_a = nnx.Param(jnp.zeros((*stack, width, rank)))
        self.lora_b = nnx.Param(jnp.zeros((*stack, rank, *self.out)))
        self.lora_scale = scale

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.tensordot(x, self.kernel[...], 1)
        if self.use_bias:
            y = y + self.bias[...]
        if self.lora_scale:
            # Never A times B, which would be as large as W, and so would be its gradient.
            low_rank = self.lora_scale * (x @ self.lora_a[...])
            y = y + jnp.tensordot(low_rank, self.lora_b[...], 1)
        return y
