"""Words inside jit, and the rewards that compare them: ROUGE, recall of content words, repetition.

A word is a run of ASCII letters and digits in lower case, as in the ``rouge-score`` package. On the device it
is a fingerprint, u32 and never 0: of texts with a thousand different words, 1 in 4,000 has two that collide.

Axes: W words of a completion, R words of its reference, N bytes; 0 stands for no word.
"""

import functools
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vpjax.scoring.texts import is_alphanumeric, is_letter
from vpjax.types import Array

OneArray = TypeVar("OneArray", jax.Array, np.ndarray)

BASE = 0x9E3779B1  # the fingerprint is a polynomial in it; odd, so that it has an inverse
INVERSE = pow(BASE, -1, 2**32)
REPEATED = 3  # words of the n-grams whose repetition is punished


class Runs(NamedTuple):
    """Where runs of one kind begin and end, i32[size], N where there is no run; kind i32[size], 0: no run."""

    start: jax.Array
    end: jax.Array
    kind: jax.Array


def find_runs(kind: jax.Array, size: int) -> Runs:
    """The first ``size`` runs of equal numbers above 0 in ``kind`` i32[N]."""
    index = jnp.arange(len(kind))
    begins = (kind > 0) & (kind != jnp.pad(kind, (1, 0))[:-1])
    ends = (kind > 0) & (kind != jnp.pad(kind, (0, 1))[1:])
    run = jnp.cumsum(begins) - 1
    missing = jnp.full(size, len(kind))
    start = missing.at[jnp.where(begins, run, size)].set(index, mode="drop")
    end = missing.at[jnp.where(ends, run, size)].set(index + 1, mode="drop")
    return Runs(start, end, kind.at[start].get(mode="fill", fill_value=0))


def run_fingerprints(b: jax.Array, runs: Runs) -> jax.Array:
    """The fingerprints u32[size] of the runs of a text u8[N], in lower case; 0 where there is no run."""
    small = jnp.where(is_letter(b), b | 32, b).astype(jnp.uint32)
    total = jnp.pad(jnp.cumsum(small * powers(BASE, len(b)), dtype=jnp.uint32), (1, 0))
    # The powers count from the start of the text: those before the run are divided away.
    run = (total[runs.end] - total[runs.start]) * jnp.asarray(powers(INVERSE, len(b) + 1))[runs.start]
    return jnp.where(runs.kind > 0, mix_bits(run), 0)


def mix_bits(x: OneArray) -> OneArray:
    """u32, never 0: spreads the polynomial's regular differences over all bits (MurmurHash3's finalizer)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return (x ^ (x >> 16)) | np.uint32(1)


def powers(base: int, count: int) -> np.ndarray:
    factors = np.full(count, base, np.uint32)
    factors[:1] = 1
    return np.multiply.accumulate(factors, dtype=np.uint32)


@functools.lru_cache(2**16)
def fingerprint_of(word: str) -> int:
    """The fingerprint of a word in lower case, on the host."""
    letters = np.array([ord(character) for character in word], np.uint32)
    return int(mix_bits((letters * powers(BASE, len(word))).sum(dtype=np.uint32, keepdims=True))[0])


def word_fingerprints(b: jax.Array, size: int) -> jax.Array:
    """The fingerprints u32[size] of the words of a text u8[N]."""
    return run_fingerprints(b, find_runs(is_alphanumeric(b).astype(jnp.int32), size))


def rouge_l(candidate: Array, reference: Array) -> jax.Array:
    """F1 of the longest common subsequence of words u32[W] and u32[R] (ROUGE-L)."""
    longer, shorter = candidate, reference
    if len(candidate) < len(reference):
        longer, shorter = reference, candidate

    # lengths[j]: for the words of ``shorter`` so far and the first j + 1 of ``longer``.
    def extend(lengths, word):
        match = (longer == word) & (word != 0)
        return lax.cummax(jnp.maximum(lengths, jnp.pad(lengths, (1, 0))[:-1] + match)), None

    lengths, _ = lax.scan(extend, jnp.zeros(len(longer), jnp.int32), shorter)
    return f1_of_counts(lengths[-1], count_words(candidate), count_words(reference))


def rouge_n(candidate: Array, reference: Array, n: int) -> jax.Array:
    """F1 of the n-grams of words u32[W] and u32[R]; each counts as often as it stands in both (ROUGE-N)."""
    candidate, reference = ngrams(candidate, n), ngrams(reference, n)
    both = matched(candidate, reference).sum()
    return f1_of_counts(both, count_words(candidate), count_words(reference))


def content_recall(candidate: Array, content: Array) -> jax.Array:
    """The share of the reference's content words u32[R] that stand in the candidate u32[W], each as often as
    in the reference; NaN where it has none."""
    total = count_words(content)
    return matched(candidate, content).sum() / jnp.where(total > 0, total, jnp.nan)


def repetition(words: Array) -> jax.Array:
    """Minus the share of a text's n-grams that stood in it before: 0 to -1."""
    grams = ngrams(words, REPEATED)
    total = count_words(grams)
    return jnp.where(total > 0, count_distinct(grams) / jnp.maximum(total, 1) - 1.0, 0.0)


def ngrams(words: Array, n: int) -> jax.Array:
    """The fingerprint u32[W] of the n words from each word on; 0 where fewer are left."""
    out, whole = jnp.zeros_like(words), words != 0
    for k in range(n):
        word = jnp.pad(words, (0, k))[k:]
        out, whole = mix_bits(out * np.uint32(BASE) + word), whole & (word != 0)
    return jnp.where(whole, out, 0)


def matched(candidate: Array, reference: Array) -> jax.Array:
    """Which fingerprints of the reference u32[R] have a counterpart of their own in the candidate u32[W]:
    bool[R]."""
    equal = (reference[:, None] == reference) & (reference != 0)
    earlier = jnp.tril(equal, -1).sum(-1)
    return earlier < ((reference[:, None] == candidate) & (reference[:, None] != 0)).sum(-1)


def count_words(fingerprints: Array) -> jax.Array:
    return jnp.sum(fingerprints != 0)


def count_distinct(fingerprints: Array) -> jax.Array:
    """The number of different fingerprints, 0 not counted."""
    ordered = jnp.sort(fingerprints)
    return ((ordered != jnp.pad(ordered, (1, 0))[:-1]) & (ordered != 0)).sum()


def f1_of_counts(both: jax.Array, candidate: jax.Array, reference: jax.Array) -> jax.Array:
    """The harmonic mean of both / candidate and both / reference; 0 where one of them is empty."""
    return 2.0 * both / jnp.maximum(candidate + reference, 1)
