"""Rewards for mentioning a clip's event-action keywords, in any of their forms.

Axes: J keywords of a clip, X forms of at most Y words each, W words of a completion. ``expected`` bool[J]
marks the keywords that the reference answer mentions, ``mentioned`` bool[J] those that the completion
mentions: those that are not expected are wrong. ``unexpected`` u32[W] holds the completion's words that
belong to keywords of other clips, else 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vpjax.scoring.forms import Form
from vpjax.scoring.words import count_distinct
from vpjax.types import Array


class KeywordTable(NamedTuple):
    """The words by which answers name the keywords of a run, sorted, and the lemma of each: fingerprints
    u32[M]."""

    words: Array
    lemmas: Array


def first_mentions(words: jax.Array, forms: Array) -> jax.Array:
    """The position i32[J] of each keyword's first mention in words u32[W], W where there is none. forms:
    u32[J, X, Y], 0 after the last word of each and throughout where there is no form."""
    w, y = len(words), forms.shape[-1]
    ahead = jnp.stack([jnp.pad(words, (0, k))[k:][:w] for k in range(y)])  # [Y, W]
    match = (forms[..., None] == ahead) | (forms[..., None] == 0)
    hits = match.all(-2) & (forms[..., :1] != 0)
    return jnp.where(hits, jnp.arange(w), w).min((1, 2), initial=w)


def first_mention(words: Sequence[str], forms: frozenset[Form]) -> int | None:
    """The position in ``words`` of the first mention of one of ``forms``, on the host."""
    for position in range(len(words)):
        if any(tuple(words[position : position + len(form)]) == form for form in forms):
            return position
    return None


def unexpected_words(words: jax.Array, others: Array) -> jax.Array:
    """Those of the words u32[W] that are among ``others`` u32[M], which are sorted; else 0."""
    index = jnp.minimum(jnp.searchsorted(others, words), len(others) - 1)
    return jnp.where(others[index] == words, words, 0)


def named_lemmas(words: jax.Array, table: KeywordTable) -> jax.Array:
    """A number u32[] for the set of lemmas that words u32[W] name, in whichever order and however often: two
    different sets have different numbers but for one pair in 2**32."""
    index = jnp.minimum(jnp.searchsorted(table.words, words), len(table.words) - 1)
    is_known = (jnp.asarray(table.words)[index] == words) & (words != 0)
    lemmas = jnp.sort(jnp.where(is_known, jnp.asarray(table.lemmas)[index], 0))
    is_first = lemmas != jnp.pad(lemmas, (1, 0))[:-1]
    return jnp.where(is_first, lemmas, 0).sum(dtype=jnp.uint32)


def keyword_recall(mentioned: jax.Array, expected: jax.Array) -> jax.Array:
    """The share of the expected keywords that are mentioned; NaN where none is expected."""
    return (mentioned & expected).sum() / jnp.where(expected.any(), expected.sum(), jnp.nan)


def keyword_f1(mentioned: jax.Array, expected: jax.Array, unexpected: jax.Array) -> jax.Array:
    """F1 of the expected keywords, with every different unexpected word and every wrong keyword as a false
    positive; NaN where none is expected."""
    both, total = (mentioned & expected).sum(), expected.sum()
    named = mentioned.sum() + count_distinct(unexpected)
    return 2.0 * both / jnp.where(expected.any(), named + total, jnp.nan)


def keyword_absent(mentioned: jax.Array, hidden: jax.Array) -> jax.Array:
    """1 if none of the hidden keywords bool[J] is mentioned, else 0; NaN where none is hidden."""
    return jnp.where(hidden.any(), ~(mentioned & hidden).any(), jnp.nan)


def exact_match(mentioned: jax.Array, expected: jax.Array, unexpected: jax.Array) -> jax.Array:
    """1 if every expected keyword and no other known one is mentioned, so that naming all events does not
    pay, else 0."""
    return ((mentioned == expected).all() & (unexpected == 0).all()).astype(jnp.float32)


def keyword_order(mentioned: jax.Array, positions: jax.Array, reference: Array) -> jax.Array:
    """The share of pairs of expected keywords that are mentioned in the reference's order. positions i32[J]:
    in the completion; reference i32[J]: in the reference answer, -1: not expected. NaN where there is no
    pair."""
    pairs = (reference[:, None] < reference) & (reference[:, None] >= 0)
    right = pairs & (positions[:, None] < positions) & mentioned[:, None] & mentioned
    return right.sum() / jnp.where(pairs.any(), pairs.sum(), jnp.nan)
