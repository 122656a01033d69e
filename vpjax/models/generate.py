"""Completions of prompts: prefill and a while-loop with a cache, in one compiled call.

The G completions of a prompt share one prefix cache. The loop ends when the last completion has ended.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vpjax.models.attention import KeyValues
from vpjax.models.sharding import split_logits, split_vocabulary
from vpjax.models.vision import Features
from vpjax.models.vlm import VideoLM, next_position
from vpjax.types import Array, Prompts


class Completions(NamedTuple):
    """G completions of each prompt; arrays are 0 where ``mask`` is False.

    tokens i32[B, G, C]. mask bool[B, G, C]: True up to and including the stop token. logprobs f32[B, G, C]:
    of each token at the sampling temperature (greedy: 1), before top-k and top-p.
    """

    tokens: Array
    mask: Array
    logprobs: Array


class _Loop(NamedTuple):
    """The carry of the decode loop. step: the number of tokens chosen; the cache lacks the last of them."""

    step: jax.Array
    done_BG: jax.Array
    cache: KeyValues
    out: Completions


@functools.partial(jax.jit, static_argnames=("max_new", "eos", "groups", "temperature", "top_p", "top_k"))
def generate(
    model: VideoLM,
    prompts: Prompts,
    key: Array,
    *,
    max_new: int,
    eos: tuple[int, ...],
    features: Features | None = None,
    groups: int = 1,
    requested: Array | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
) -> Completions:
    """Complete prompts.

    max_new: C, the most tokens of a completion. eos: tokens that end a completion. features: from
    ``model.encode``; default: of the prompts' videos. groups: G. requested: bool[B, G]; other completions and
    those of a row without a prompt are empty. temperature: 0 is greedy. top_p, top_k: the tokens that are
    sampled from, after the temperature (1 and 0: all tokens); top_k first, as in transformers.
    A completion depends on ``key``, on the index of its row and its index in the row, not on the other rows.
    """
    if features is None:
        features = model.encode(prompts.video)
    rows, segment_BP = len(prompts.clip), jnp.asarray(prompts.text.segment)
    next_B = next_position(prompts.text)
    keys_BG = _fold(_fold(key, jnp.arange(rows))[:, None], jnp.arange(groups))
    unembed_OD = split_vocabulary(model.unembed)

    def choose(state: _Loop, h_BGD: Array) -> _Loop:
        """Choose the next token of each completion from ``h``, the hidden state of its last token."""
        # An einsum would put the larger operand first, which is half as fast for one row on a CPU.
        logits_BGO = split_logits(jnp.matmul(h_BGD, unembed_OD.T, preferred_element_type=jnp.float32))
        if temperature:
            logits_BGO = logits_BGO / temperature
            draw = functools.partial(sample, top_p=top_p, top_k=top_k)
            token_BG = jax.vmap(jax.vmap(draw))(_fold(keys_BG, state.step), logits_BGO)
        else:
            token_BG = jnp.argmax(logits_BGO, axis=-1).astype(jnp.int32)
        chosen_BG = jnp.take_along_axis(logits_BGO, token_BG[..., None], axis=-1)[..., 0]
        logprob_BG = chosen_BG - jax.nn.logsumexp(logits_BGO, axis=-1)
        running_BG = ~state.done_BG
        new = Completions(token_BG, running_BG, logprob_BG)
        out = jax.tree.map(lambda full, x: full.at[:, :, state.step].set(x * running_BG), state.out, new)
        done_BG = state.done_BG | jnp.isin(token_BG, jnp.array(eos, jnp.int32))
        return _Loop(state.step + 1, done_BG, state.cache, out)

    def advance(state: _Loop) -> _Loop:
        fed = state.step - 1
        token_BG = state.out.tokens[:, :, fed]
        position_B3 = jnp.tile((next_B + fed)[:, None], (1, 3))
        h_BGD, cache = model.decoder.decode(token_BG, position_B3, fed, segment_BP, prefix, state.cache)
        return choose(state._replace(cache=cache), h_BGD)

    last_BD, prefix = model.prefill(features, prompts)
    shape = (rows, groups, max_new)
    empty = Completions(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape, jnp.float32))
    done_BG = jnp.tile(~jnp.any(segment_BP > 0, axis=1)[:, None], (1, groups))
    if requested is not None:
        done_BG |= ~requested
    start = _Loop(jnp.int32(0), done_BG, model.decoder.empty_cache(*shape), empty)
    first = choose(start, jnp.tile(last_BD[:, None], (1, groups, 1)))
    return jax.lax.while_loop(lambda s: (s.step < max_new) & ~s.done_BG.all(), advance, first).out


def sample(key: Array, logits_O: jax.Array, top_p: float, top_k: int) -> jax.Array:
    """A token i32[] drawn from the softmax of ``logits``, cut to the ``top_k`` likeliest tokens (0: all) and
    then to the fewest whose share reaches ``top_p``; of equally likely tokens, those with lower ids stay."""
    if not top_k and top_p >= 1.0:
        return jax.random.categorical(key, logits_O).astype(jnp.int32)
    likeliest, tokens = jax.lax.top_k(logits_O, min(top_k or logits_O.size, logits_O.size))
    share = jax.nn.softmax(likeliest)
    kept = (jnp.cumsum(share) - share < top_p).at[0].set(True)
    return tokens[jax.random.categorical(key, jnp.where(kept, likeliest, -jnp.inf))]


_fold = jnp.vectorize(jax.random.fold_in)
