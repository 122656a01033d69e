"""Completions of prompts: prefill and a while-loop with a cache, in one compiled call.

The completions of a prompt share one prefix cache. The loop ends when the last completion has ended. On a
mesh the decoder's weights are regrouped between the two, so that no weight travels in the loop.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.hlo import phase
from vpjax.models import context
from vpjax.models.attention import KeyValues
from vpjax.models.sampling_layout import regroup, split_heads, split_words
from vpjax.models.vision import Features
from vpjax.models.vlm import VideoLM, leaves, next_position, rebuild
from vpjax.types import Array, Prompts, UserError


class Completions(NamedTuple):
    """X completions in each row; arrays are 0 where ``mask`` is False.

    tokens i32[B, X, C]. mask bool[B, X, C]: True up to and including the stop token. logprobs f32[B, X, C]:
    of each token at the sampling temperature (greedy: 1), before top-k and top-p.
    """

    tokens: Array
    mask: Array
    logprobs: Array


class _Loop(NamedTuple):
    """The carry of the decode loop. step: the number of tokens chosen; the caches lack the last of them."""

    step: jax.Array
    done_BX: jax.Array
    caches: list[KeyValues]
    out: Completions


@functools.partial(
    jax.jit, static_argnames=("max_new", "eos", "groups", "stop_share", "temperature", "top_p", "top_k")
)
def generate(
    model: VideoLM,
    prompts: Prompts,
    key: Array,
    *,
    max_new: int,
    eos: tuple[int, ...],
    features: Features | None = None,
    groups: tuple[int, ...] = (1,),
    requested: Array | None = None,
    stop_share: float = 1.0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
) -> Completions:
    """Complete prompts, the completions of which need not be as many for each.

    prompts: R for each row of the result, one after the other. max_new: C, the most tokens of a completion.
    eos: tokens that end a completion. features: from ``model.encode``; default: of the prompts' videos.
    groups: how many completions each of the R prompts has; X in all, in their order. requested: bool[B, X];
    other completions and those of a prompt without tokens are empty. stop_share: of the completions, after
    whose end no more tokens are chosen; those that have not ended then are empty. temperature: 0 is greedy.
    top_p, top_k: the tokens that are sampled from, after the temperature (1 and 0: all tokens); top_k first,
    as in transformers.
    A completion depends on ``key``, on the index of its prompt and its index among that prompt's completions,
    not on others.
    """
    if features is None:
        features = model.encode(prompts.video)
    branches, total = len(groups), sum(groups)
    rows = len(prompts.clip) // branches
    # Of each of a row's X completions: which of the row's prompts it continues, and its number among those of
    # that prompt.
    branch_X = np.repeat(np.arange(branches), groups)
    index_X = np.concatenate([np.arange(count) for count in groups])
    segment_BRP = jnp.asarray(prompts.text.segment).reshape(rows, branches, -1)
    next_BX = next_position(prompts.text).reshape(rows, branches)[:, branch_X]
    prompt_BX = branches * jnp.arange(rows)[:, None] + branch_X
    keys_BX = _fold(_fold(key, prompt_BX), index_X)
    absent_BX = ~jnp.any(segment_BRP > 0, axis=2)[:, branch_X]
    if requested is not None:
        absent_BX |= ~requested

    devices = context.devices_for(prompts.text.tokens.shape[1])
    last_ND, prefix = model.prefill(features, prompts, devices)
    with phase("regroup"):
        model, last_ND, prefix = regrouped(model, last_ND, prefix)
    unembed_OD = model.unembed
    last_BXD = last_ND.reshape(rows, branches, -1)[:, branch_X]
    seen = [context.spread(segment_BRP[:, r] > 0, devices) for r in range(branches)]
    caches_of_prompts = [
        jax.tree.map(functools.partial(_of_branch, r, branches), prefix) for r in range(branches)
    ]

    def choose(state: _Loop, h_BXD: Array) -> _Loop:
        """Choose the next token of each completion from ``h``, the hidden state of its last token."""
        # An einsum would put the larger operand first, which is half as fast for one row on a CPU.
        logits_BXO = split_words(jnp.matmul(h_BXD, unembed_OD.T, preferred_element_type=jnp.float32))
        if temperature:
            logits_BXO = logits_BXO / temperature
            draw_token = functools.partial(sample, top_p=top_p, top_k=top_k)
            token_BX = jax.vmap(jax.vmap(draw_token))(_fold(keys_BX, state.step), logits_BXO)
        else:
            token_BX = first_largest(logits_BXO)
        running_BX = ~state.done_BX
        new = Completions(token_BX, running_BX, logprobs_of(token_BX, logits_BXO))
        out = jax.tree.map(lambda full, x: full.at[:, :, state.step].set(x * running_BX), state.out, new)
        done_BX = state.done_BX | jnp.isin(token_BX, jnp.array(eos, jnp.int32))
        return _Loop(state.step + 1, done_BX, state.caches, out)

    def advance(state: _Loop) -> _Loop:
        """Feed the last chosen token of each completion to the decoder, and choose the next one."""
        fed = state.step - 1
        token_BX = state.out.tokens[:, :, fed]
        h_BXD, caches = model.decoder.decode(
            token_BX, next_BX + fed, fed, seen, caches_of_prompts, state.caches
        )
        return choose(state._replace(caches=caches), h_BXD)

    enough = jnp.ceil(stop_share * (~absent_BX).sum())

    def continues(state: _Loop) -> jax.Array:
        return (state.step < max_new) & ((state.done_BX & ~absent_BX).sum() < enough)

    shape = (rows, total, max_new)
    empty = Completions(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape, jnp.float32))
    caches = [model.decoder.empty_suffix(rows, count, max_new) for count in groups]
    start = _Loop(jnp.int32(0), absent_BX, caches, empty)
    with phase("decode"):
        end = jax.lax.while_loop(continues, advance, choose(start, last_BXD))
    # A completion that the loop's end cuts off says nothing about where it would have ended.
    stays_BX1 = (end.done_BX | (end.step >= max_new))[..., None]
    return jax.tree.map(lambda x: x * stays_BX1, end.out)


def regrouped(model: VideoLM, last_ND: jax.Array, prefix: KeyValues) -> tuple[VideoLM, jax.Array, KeyValues]:
    """The model with its decoder in the layout of sampling, and what prefill gave."""
    # The barrier keeps the layout from reaching back into prefill, and the copy from being made before it.
    model, last_ND, prefix = jax.lax.optimization_barrier((model, last_ND, prefix))
    params = leaves(model)
    decoder = {path: regroup(path, x) for path, x in params.items() if path.startswith("decoder.")}
    return rebuild(model, params | decoder), last_ND, prefix


def _of_branch(number: int, branches: int, x_LNPKH: jax.Array) -> jax.Array:
    """Of a cache of ``branches`` prompts for each row that of one, [L, B, K, P, H], in the layout of
    sampling."""
    layers, count, *rest = x_LNPKH.shape
    x_LBPKH = x_LNPKH.reshape(layers, count // branches, branches, *rest)[:, :, number]
    return split_heads(x_LBPKH.swapaxes(2, 3), rows_axis=1, heads_axis=2)


def logprobs_of(token_BX: jax.Array, logits_BXO: jax.Array) -> jax.Array:
    """log p f32[B, X] of a token under the softmax of ``logits``."""
    chosen_BX = jnp.take_along_axis(logits_BXO, token_BX[..., None], axis=-1)[..., 0]
    return chosen_BX - jax.nn.logsumexp(logits_BXO, axis=-1)


def check_numbers(logprobs: Array) -> None:
    """UserError if log-probabilities of answers are NaN: their tokens mean nothing."""
    if np.isnan(np.asarray(logprobs)).any():
        raise UserError(
            "the model's probabilities are no numbers (NaN): its weights are damaged, or of a type too "
            "small for what it computes, as float16 may be: give them in bfloat16 or float32"
        )


def sample(key: Array, logits_O: jax.Array, top_p: float, top_k: int) -> jax.Array:
    """A token i32[] drawn from the softmax of ``logits``, cut to the ``top_k`` likeliest tokens (0: all) and
    then to the fewest whose share reaches ``top_p``; of equally likely tokens, those with lower ids stay."""
    if not top_k and top_p >= 1.0:
        return draw(key, logits_O)
    likeliest, tokens = jax.lax.top_k(logits_O, min(top_k or logits_O.size, logits_O.size))
    share = jax.nn.softmax(likeliest)
    kept = (jnp.cumsum(share) - share < top_p).at[0].set(True)
    return tokens[draw(key, jnp.where(kept, likeliest, -jnp.inf))]


def draw(key: Array, logits_O: jax.Array) -> jax.Array:
    """``jax.random.categorical`` of one distribution, i32[]."""
    return first_largest(logits_O + jax.random.gumbel(key, logits_O.shape, logits_O.dtype))


def first_largest(x: jax.Array) -> jax.Array:
    """``jnp.argmax`` over the last axis, i32, of an array that is split along it: of an argmax XLA sends each
    element's number from chip to chip."""
    count = x.shape[-1]
    is_largest = x == x.max(axis=-1, keepdims=True)
    first = jnp.where(is_largest, jnp.arange(count, dtype=jnp.int32), count).min(axis=-1)
    return jnp.minimum(first, count - 1)  # of numbers that are NaN none is largest


_fold = jnp.vectorize(jax.random.fold_in)
