"""Rewards that compare words: ROUGE, recall of a caption's content, repetition.

A word is a run of ASCII letters and digits in small letters, as in the ``rouge-score`` package. On the device
it is a fingerprint, u32 and never 0: two of a thousand words share one in about 1 of 4,000 texts.

Of one completion: W words, of the reference R; 0 where there is none.
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from vpjax.scoring.texts import is_letter, is_word
from vpjax.types import Array

BASE = 0x9E3779B1  # of the fingerprint, a polynomial in it; odd, so that it has an inverse
INVERSE = pow(BASE, -1, 2**32)
REPEATED = 3  # words: the n-grams whose repetition is punished
# They say nothing about what happens.
STOPWORDS = frozenset(
    b"""
    a about after again against all also am an and any are as at be because been before being below between
    both but by can could did do does doing down during each few for from further had has have having he her
    here hers him his how i if in into is it its itself just me more most my no nor not now of off on once
    only or other our out over own s same she should so some such t than that the their them then there
    these they this those through to too under until up very was we were what when where which while who
    whom why will with would you your
    """.split()
)


class Runs(NamedTuple):
    """Where runs of one kind begin and end, i32[size], N where there is none; kind i32[size], 0: none."""

    start: Array
    end: Array
    kind: Array


def runs(kind: Array, size: int) -> Runs:
    """The first ``size`` runs of equal numbers above 0 in ``kind`` i32[N]."""
    n, begins = jnp.arange(len(kind)), (kind > 0) & (kind != jnp.pad(kind, (1, 0))[:-1])
    ends = (kind > 0) & (kind != jnp.pad(kind, (0, 1))[1:])
    place = jnp.cumsum(begins) - 1
    none = jnp.full(size, len(kind))
    start = none.at[jnp.where(begins, place, size)].set(n, mode="drop")
    end = none.at[jnp.where(ends, place, size)].set(n + 1, mode="drop")
    return Runs(start, end, kind.at[start].get(mode="fill", fill_value=0))


def fingerprints(b: Array, found: Runs) -> Array:
    """u32[size] of the runs of ``b`` u8[N], capitals as small letters; 0 where there is no run."""
    small = jnp.where(is_letter(b), b | 32, b).astype(jnp.uint32)
    total = jnp.pad(jnp.cumsum(small * powers_of(BASE, len(b)), dtype=jnp.uint32), (1, 0))
    # The powers count from the text's start: those before the run are divided away.
    run = (total[found.end] - total[found.start]) * jnp.asarray(powers_of(INVERSE, len(b) + 1))[found.start]
    return jnp.where(found.kind > 0, mixed(run), 0)


def mixed(x: Array) -> Array:
    """u32, never 0: spreads the polynomial's regular differences over all bits (MurmurHash3's finalizer)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return (x ^ (x >> 16)) | np.uint32(1)


def powers_of(base: int, count: int) -> np.ndarray:
    factors = np.full(count, base, np.uint32)
    factors[:1] = 1
    return np.multiply.accumulate(factors, dtype=np.uint32)


@functools.lru_cache(2**16)
def host_fingerprint(word: bytes) -> int:
    letters = np.frombuffer(word, np.uint8)
    return int(mixed((letters * powers_of(BASE, len(word))).sum(dtype=np.uint32, keepdims=True))[0])


def words_of(b: Array, size: int) -> Array:
    """The fingerprints u32[size] of the words of ``b`` u8[N]."""
    return fingerprints(b, runs(is_word(b).astype(jnp.int32), size))


def host_words_of(text: bytes) -> list[bytes]:
    return re.findall(rb"[a-z0-9]+", text.lower())


def rouge_l(said: Array, wanted: Array) -> Array:
    """F1 of the longest common subsequence of words u32[W] and u32[R] (ROUGE-L)."""
    longer, shorter = (said, wanted) if len(said) >= len(wanted) else (wanted, said)

    def extend(row, word):  # row[j]: of the words of ``shorter`` so far and the first j + 1 of ``longer``
        match = (longer == word) & (word != 0)
        return lax.cummax(jnp.maximum(row, jnp.pad(row, (1, 0))[:-1] + match)), None

    row, _ = lax.scan(extend, jnp.zeros(len(longer), jnp.int32), shorter)
    return f1(row[-1], count(said), count(wanted))


def host_rouge_l(said: Sequence[bytes], wanted: Sequence[bytes]) -> float:
    row = [0] * (len(wanted) + 1)
    for word in said:
        above = list(row)
        for j, other in enumerate(wanted):
            row[j + 1] = above[j] + 1 if word == other else max(above[j + 1], row[j])
    return host_f1(row[-1], len(said), len(wanted))


def rouge_n(said: Array, wanted: Array, n: int) -> Array:
    """F1 of the n-grams of words u32[W] and u32[R], each shared as often as it stands in both (ROUGE-N)."""
    said, wanted = grams(said, n), grams(wanted, n)
    return f1(shared(said, wanted).sum(), count(said), count(wanted))


def host_rouge_n(said: Sequence[bytes], wanted: Sequence[bytes], n: int) -> float:
    said, wanted = (collections.Counter(host_grams(words, n)) for words in (said, wanted))
    return host_f1((said & wanted).total(), said.total(), wanted.total())


def content_recall(said: Array, wanted: Array) -> Array:
    """The share of the words wanted u32[R] that are said u32[W], each as often as it is wanted; NaN where
    none is wanted."""
    return shared(said, wanted).sum() / jnp.where(count(wanted) > 0, count(wanted), jnp.nan)


def host_content_recall(said: Sequence[bytes], wanted: Sequence[bytes]) -> float:
    both = collections.Counter(said) & collections.Counter(wanted)
    return both.total() / len(wanted) if wanted else np.nan


def content(words: Sequence[bytes]) -> list[bytes]:
    """The words that say what happens: without STOPWORDS."""
    return [word for word in words if word not in STOPWORDS]


def repetition(said: Array) -> Array:
    """Minus the share of a text's n-grams that stood in it before: 0 to -1."""
    said = grams(said, REPEATED)
    return distinct(said) / jnp.maximum(count(said), 1) - (count(said) > 0)


def host_repetition(said: Sequence[bytes]) -> float:
    said = host_grams(said, REPEATED)
    return len(set(said)) / len(said) - 1 if said else 0.0


def grams(words: Array, n: int) -> Array:
    """The fingerprint of the n words from each one on, u32[W]; 0 where fewer are left."""
    out, whole = jnp.zeros_like(words), words != 0
    for k in range(n):
        ahead = jnp.pad(words, (0, k))[k:]
        out, whole = mixed(out * np.uint32(BASE) + ahead), whole & (ahead != 0)
    return jnp.where(whole, out, 0)


def host_grams(words: Sequence[bytes], n: int) -> list[tuple[bytes, ...]]:
    return list(zip(*(words[k:] for k in range(n)), strict=False))


def shared(said: Array, wanted: Array) -> Array:
    """Which of the fingerprints wanted u32[R] have one of their own among those said u32[W]: bool[R]."""
    equal = (wanted[:, None] == wanted) & (wanted != 0)
    earlier = jnp.tril(equal, -1).sum(-1)
    return earlier < ((wanted[:, None] == said) & (wanted[:, None] != 0)).sum(-1)


def count(fingerprints: Array) -> Array:
    return (fingerprints != 0).sum()


def distinct(fingerprints: Array) -> Array:
    """How many different ones there are, 0 aside."""
    ordered = jnp.sort(fingerprints)
    return ((ordered != jnp.pad(ordered, (1, 0))[:-1]) & (ordered != 0)).sum()


def f1(both: Array, said: Array, wanted: Array) -> Array:
    """2 both / (said + wanted), which is the harmonic mean of both / said and both / wanted; 0 where one is
    empty."""
    return 2.0 * both / jnp.maximum(said + wanted, 1)


def host_f1(both: int, said: int, wanted: int) -> float:
    return 2 * both / max(said + wanted, 1)
