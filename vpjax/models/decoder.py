"""The causal decoder: grouped-query attention with three-axis rotary positions.

Layers are stacked and scanned, so compile time does not grow with depth and "the first l layers" is a slice.
Visual features may be added after the first layers (DeepStack). Sources: ``Qwen2_5_VLTextModel`` and
``Qwen3VLTextModel`` of transformers, whose differences are fields of DecoderConfig.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vpjax.models.attention import Branch, KeyValues, Layout, attend, attend_cached
from vpjax.models.gather import look_up
from vpjax.models.linear import Linear
from vpjax.models.remat import keep, scan
from vpjax.models.rope import rotate, text_angles
from vpjax.models.sampling_layout import laid_out, split_groups, split_heads
from vpjax.models.sharding import split_looked_up, split_tokens, split_width
from vpjax.models.swiglu import swiglu
from vpjax.types import Array

Attention = Callable[[jax.Array, KeyValues], tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder. rope_axes: the position axis of each pair of channels (``rope.section_axes``,
    ``interleaved_axes``). qk_norm: RMSNorm of every head's queries and keys."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    rope_axes: tuple[int, ...]
    rms_eps: float
    tied: bool
    qkv_bias: bool = True
    qk_norm: bool = False


class Layer(nnx.Module):
    """Pre-norm attention and gated MLP of one decoder layer."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        linear = functools.partial(Linear, param_dtype=dtype, rngs=rngs)
        norm = functools.partial(nnx.RMSNorm, epsilon=config.rms_eps, param_dtype=dtype, rngs=rngs)
        hidden, width = config.hidden, config.head_dim
        self.head_dim, self.qk_norm = width, config.qk_norm
        self.norm1 = norm(hidden)
        self.q = linear(hidden, config.heads * width, use_bias=config.qkv_bias)
        self.k = linear(hidden, config.kv_heads * width, use_bias=config.qkv_bias)
        self.v = linear(hidden, config.kv_heads * width, use_bias=config.qkv_bias)
        if self.qk_norm:
            self.q_norm, self.k_norm = norm(width), norm(width)
        self.o = linear(config.heads * width, hidden, use_bias=False)
        self.norm2 = norm(hidden)
        self.gate = linear(hidden, config.intermediate, use_bias=False)
        self.up = linear(hidden, config.intermediate, use_bias=False)
        self.down = linear(config.intermediate, hidden, use_bias=False)

    def __call__(
        self, x_BTD: jax.Array, angles_BTh: jax.Array, attention: Attention
    ) -> tuple[jax.Array, Any]:
        """Hidden states after the layer. ``attention`` maps rotated queries, keys and values to their mix and
        a second result, such as a cache, which is returned too."""
        h = self.norm1(x_BTD)
        q, k, v = (keep(f(h)).reshape(*h.shape[:-1], -1, self.head_dim) for f in (self.q, self.k, self.v))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed, extra = attention(rotate(q, angles_BTh), KeyValues(rotate(k, angles_BTh), v))
        x = x_BTD + keep(self.o(mixed.reshape(*h.shape[:-1], -1)))
        h = self.norm2(x)
        return x + self.down(swiglu(keep(self.gate(h)), keep(self.up(h)))), extra


class Decoder(nnx.Module):
    """Token embedding, L stacked layers, final norm and (if untied) the output projection."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config = config
        std = config.hidden**-0.5
        embedding = std * jax.random.normal(rngs.params(), (config.vocab, config.hidden), dtype)
        self.embed = nnx.Param(embedding)
        self.layers = jax.vmap(lambda key: Layer(config, rngs=nnx.Rngs(key), dtype=dtype))(
            jax.random.split(rngs.params(), config.layers)
        )
        self.norm = nnx.RMSNorm(config.hidden, epsilon=config.rms_eps, param_dtype=dtype, rngs=rngs)
        if not config.tied:
            self.lm_head = nnx.Param(
                std * jax.random.normal(rngs.params(), (config.vocab, config.hidden), dtype)
            )

    def embed_tokens(self, tokens: Array, devices: int = 1) -> jax.Array:
        """Input embeddings [..., D] of token ids. devices: over which the tokens of a row are split."""
        # Each device looks up its columns of the table for all rows, then keeps its own rows.
        return split_looked_up(split_width(look_up(self.embed[...], tokens)), devices)

    def empty_cache(self, rows: int, length: int) -> KeyValues:
        """A cache [L, B, P, K, H] of zeros for prompts."""
        shape = self.config.layers, rows, length, self.config.kv_heads, self.config.head_dim
        return KeyValues(jnp.zeros(shape, self.embed.dtype), jnp.zeros(shape, self.embed.dtype))

    def empty_suffix(self, rows: int, groups: int, length: int) -> KeyValues:
        """A cache [L, B, K, G, C, H] of zeros for completions."""
        shape = self.config.layers, rows, self.config.kv_heads, groups, length, self.config.head_dim
        zeros = laid_out(jnp.zeros(shape, self.embed.dtype), rows_axis=1, heads_axis=2)
        return KeyValues(zeros, zeros)

    def angles(self, positions_B3T: Array) -> jax.Array:
        """Rotary angles [B, T, H / 2] of three-axis positions."""
        return text_angles(positions_B3T, self.config.rope_axes, self.config.rope_theta)

    def run(
        self,
        x_BTD: jax.Array,
        positions_B3T: Array,
        layout: Layout,
        segment_BP: Array,
        *,
        branch: Branch | None = None,
        deep: tuple[jax.Array, ...] = (),
        layers: slice = slice(None),
        recompute: float | None = None,
    ) -> jax.Array:
        """The hidden states [B, T, D] after ``layers``, before the final norm.

        segment: of the first P tokens, and branch: of those after them, see ``attention``. deep: additions to
        the states of the first tokens, as many as they have, after the first, second, ... of all layers.
        recompute: what the backward pass computes again, see ``remat.scan``. Where the tokens of a row are
        split over devices, x, positions and deep are in the order of ``context.joined``."""
        angles = self.angles(positions_B3T)

        def layer(carry, block):
            def attention(q, kv):
                return attend(q, kv, layout, segment_BP, branch), None

            x, _ = block(split_tokens(carry[0], layout.devices), angles, attention)
            return (x,)

        stack = jax.tree.map(lambda p: p[layers], self.layers)
        return _through(layer, (x_BTD,), stack, deep[layers], recompute)[0]

    def prefill(
        self,
        x_BPD: jax.Array,
        positions_B3P: Array,
        segment_BP: Array,
        deep: tuple[jax.Array, ...] = (),
        devices: int = 1,
    ) -> tuple[jax.Array, KeyValues]:
        """Hidden states [B, P, D] before the final norm, and the prefix cache [L, B, P, K, H]. deep: as in
        ``run``. devices: over which the tokens of a row are split; all but ``segment`` are ``spread``."""
        rows, length = x_BPD.shape[:2]
        angles, layout = self.angles(positions_B3P), Layout(length, devices=devices)

        def layer(carry, block_index):
            x, cache = carry
            block, index = block_index

            def attention(q, kv):
                write = functools.partial(jax.lax.dynamic_update_index_in_dim, index=index, axis=0)
                return attend(q, kv, layout, segment_BP), jax.tree.map(write, cache, kv)

            return block(split_tokens(x, devices), angles, attention)

        stack = self.layers, jnp.arange(self.config.layers)
        return _through(layer, (x_BPD, self.empty_cache(rows, length)), stack, deep)

    def decode(
        self,
        token_BX: Array,
        position_BX: Array,
        step: Array,
        seen: Sequence[Array],
        prompts: Sequence[KeyValues],
        suffixes: Sequence[KeyValues],
    ) -> tuple[jax.Array, list[KeyValues]]:
        """Feed token number ``step`` of each of X completions: its hidden states [B, X, D] after the final
        norm, and the caches of completions with this token written.

        A row has several prompts, each with completions of its own, which follow one another in X. prompts:
        the cache [L, B, K, P, H] of each, and seen bool[B, P]: what of it is no padding. suffixes: the cache
        [L, B, K, G, C, H] of each one's completions. On a mesh the weights are as
        ``sampling_layout.regroup`` leaves them."""
        angles = self.angles(jnp.repeat(position_BX[:, None], 3, axis=1))

        ends = itertools.accumulate(cache.k.shape[3] for cache in suffixes)
        owns = [slice(end - cache.k.shape[3], end) for end, cache in zip(ends, suffixes, strict=True)]

        def layer(x, block_and_caches):
            block, prompts, suffixes = block_and_caches

            def attention(q_BXNH, kv_BXKH):
                q_BXNH, kv_BXKH = jax.tree.map(split_heads, (q_BXNH, kv_BXKH))
                kv_BKXH, mixed = jax.tree.map(lambda x: x.swapaxes(1, 2), kv_BXKH), []
                for own, prompt, before, seen_BP in zip(owns, prompts, suffixes, seen, strict=True):
                    kv_BKGH = jax.tree.map(lambda x, own=own: x[:, :, own], kv_BKXH)
                    mixed.append(attend_cached(q_BXNH[:, own], prompt, before, kv_BKGH, seen_BP, step))
                return split_heads(jnp.concatenate(mixed, axis=1)), kv_BKXH

            x, kv_BKXH = block(split_groups(x), angles, attention)
            return split_groups(x), kv_BKXH

        x_BXD = split_groups(self.embed[token_BX])
        h_BXD, new = jax.lax.scan(layer, x_BXD, (self.layers, list(prompts), list(suffixes)))

        # All layers at once, so that each only reads its caches.
        def written(own: slice, c: jax.Array, new_LBKXH: jax.Array) -> jax.Array:
            c = c.at[:, :, :, :, step].set(new_LBKXH[:, :, :, own].astype(c.dtype))
            return laid_out(c, rows_axis=1, heads_axis=2)

        pairs = zip(owns, suffixes, strict=True)
        suffixes = [jax.tree.map(functools.partial(written, own), cache, new) for own, cache in pairs]
        return self.norm(h_BXD), suffixes


def _through(
    layer: Callable, carry: tuple, stack: Any, deep: tuple[jax.Array, ...], recompute: float | None = None
) -> tuple:
    """The carry, hidden states first, after all layers of a stack, of which ``layer(carry, x)`` runs one.

    The first layers, to whose states ``deep`` is added, have a scan of their own: one scan over all layers
    would carry a gradient of all additions through each layer.
    """

    def plain(carry, x):
        return layer(carry, x), None

    def adding(carry, x_added):
        x, added_BPD = x_added
        h, *rest = layer(carry, x)
        return (h.at[:, : added_BPD.shape[1]].add(added_BPD), *rest), None

    if deep:
        first = jax.tree.map(lambda p: p[: len(deep)], stack)
        stack = jax.tree.map(lambda p: p[len(deep) :], stack)
        carry = scan(adding, carry, (first, jnp.stack(deep)), recompute)
    return scan(plain, carry, stack, recompute)
