"""Words inside jit, and the rewards that compare them: ROUGE, recall of content words, word errors,
repetition.

A word is a run of letters and digits in lower case (see ``host_text.split_words``). On the device it is a
fingerprint, u32 and never 0: of texts with a thousand different words, 1 in 4,000 has two that collide.

Axes: W words of a completion, R words of its reference, N characters; 0 stands for no word.
"""

import functools
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vpjax.scoring.texts import SPACE, is_letter, is_unspaced, is_word_character
from vpjax.types import Array

OneArray = TypeVar("OneArray", jax.Array, np.ndarray)

BASE = 0x9E3779B1  # the fingerprint is a polynomial in it; odd, so that it has an inverse
INVERSE = pow(BASE, -1, 2**32)
RUN, SINGLE = 1, 2  # kinds of places: those beside one another are one run, or each is its own
REPEATED = 3  # words of the n-grams whose repetition is punished


class Runs(NamedTuple):
    """Where runs of one kind begin and end, i32[size], N where there is no run; kind i32[size], 0: no run."""

    start: jax.Array
    end: jax.Array
    kind: jax.Array


def find_runs(kind: jax.Array, size: int) -> Runs:
    """The first ``size`` runs of equal numbers above 0 in ``kind`` i32[N]; SINGLE is a run of its own at each
    place."""
    place = jnp.arange(len(kind))
    begins = (kind > 0) & ((kind != jnp.pad(kind, (1, 0))[:-1]) | (kind == SINGLE))
    ends = (kind > 0) & ((kind != jnp.pad(kind, (0, 1))[1:]) | (kind == SINGLE))
    run = jnp.cumsum(begins) - 1
    missing = jnp.full(size, len(kind))
    start = missing.at[jnp.where(begins, run, size)].set(place, mode="drop")
    end = missing.at[jnp.where(ends, run, size)].set(place + 1, mode="drop")
    return Runs(start, end, kind.at[start].get(mode="fill", fill_value=0))


def find_words(text: jax.Array, size: int) -> Runs:
    """The first ``size`` words of a text i32[N]."""
    kind = jnp.where(is_unspaced(text), SINGLE, jnp.where(is_word_character(text), RUN, 0))
    return find_runs(kind, size)


def run_fingerprints(text: jax.Array, runs: Runs, *, lower: bool = True) -> jax.Array:
    """The fingerprints u32[size] of the runs of a text i32[N], in lower case; 0 where there is no run."""
    if lower:
        text = jnp.where(is_letter(text), text | 32, text)
    total = jnp.cumsum(text.astype(jnp.uint32) * powers(BASE, len(text)), dtype=jnp.uint32)
    total = jnp.pad(total, (1, 0))
    # The powers count from the start of the text: those before the run are divided away.
    run = (total[runs.end] - total[runs.start]) * jnp.asarray(powers(INVERSE, len(text) + 1))[runs.start]
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
    """The fingerprint of a word, on the host."""
    letters = np.array([ord(character) for character in word], np.uint32)
    return int(mix_bits((letters * powers(BASE, len(word))).sum(dtype=np.uint32, keepdims=True))[0])


def word_fingerprints(text: jax.Array, size: int) -> jax.Array:
    """The fingerprints u32[size] of the words of a text i32[N]."""
    return run_fingerprints(text, find_words(text, size))


def chunk_fingerprints(text: jax.Array, size: int) -> jax.Array:
    """The fingerprints u32[size] of what stands between the spaces of a text i32[N], with marks and
    capitals (``host_text.CHUNK``)."""
    kind = jnp.where(is_unspaced(text), SINGLE, jnp.where(text != SPACE, RUN, 0))
    return run_fingerprints(text, find_runs(kind, size), lower=False)


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


def rouge_mean(candidate: Array, reference: Array) -> jax.Array:
    """The mean of ROUGE-1, ROUGE-2 and ROUGE-L."""
    return (
        rouge_n(candidate, reference, 1) + rouge_n(candidate, reference, 2) + rouge_l(candidate, reference)
    ) / 3


def content_recall(candidate: Array, content: Array) -> jax.Array:
    """The share of the reference's content words u32[R] that stand in the candidate u32[W], each as often as
    in the reference; NaN where it has none."""
    total = count_words(content)
    return matched(candidate, content).sum() / jnp.where(total > 0, total, jnp.nan)


def word_accuracy(candidate: Array, reference: Array) -> jax.Array:
    """1 less the share of the reference's words u32[R] that must be inserted, deleted or replaced to make it
    of the candidate's u32[W]; at least 0."""
    place = jnp.arange(len(candidate) + 1)

    # errors[w]: between the reference's words so far and the first w of the candidate.
    def extend(errors, word):
        kept = jnp.pad(errors[:-1] + (candidate != word), (1, 0), constant_values=len(place))
        longer = jnp.minimum(errors + 1, kept)
        longer = lax.cummin(longer - place) + place  # words of the candidate inserted after it
        return jnp.where(word != 0, longer, errors), None

    errors, _ = lax.scan(extend, place, jnp.asarray(reference))
    wrong = errors[count_words(candidate)] / jnp.maximum(count_words(reference), 1)
    return jnp.maximum(0.0, 1.0 - wrong)


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
