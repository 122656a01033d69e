"""Porter's stems on the device are those of nltk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpjax.scoring.host_text import split_words
from vpjax.scoring.stemming import IRREGULAR, word_stems
from vpjax.scoring.stems import stem_of
from vpjax.scoring.words import fingerprint_of

pytestmark = pytest.mark.slow  # compiles the stemmer, imports nltk

SUFFIXES = (
    "s es ies ied ed ing eed y ly ational tional enci anci izer bli alli entli eli ousli ization ation ator "
    "alism iveness fulness ousness aliti iviti biliti fulli logi icate ative alize iciti ical ful ness al "
    "ance ence er ic able ible ant ement ment ent ion sion tion ou ism ate iti ous ive ize e ll ationalli"
).split()
WORDS, LENGTH = 256, 4096


def made_words(rng, count):
    """Stems of random letters, in which those that rules ask for are frequent, with one or two suffixes."""
    for _ in range(count):
        stem = "".join(rng.choice(list("abcdeilostyywxz5"), rng.integers(7)))
        yield stem + "".join(rng.choice(SUFFIXES, rng.integers(1, 3)))


def test_stems_are_those_of_nltk():
    rng = np.random.default_rng(0)
    words = [*made_words(rng, 20 * WORDS - 100), *" ".join(IRREGULAR.values()).split()]
    words += split_words("a in caf\u00e9s \u7537\u4eba yyyying " + "x" * 30 + "ing")
    stems = jax.jit(word_stems, static_argnums=1)
    for start in range(0, len(words), WORDS):
        some = words[start : start + WORDS]
        text = " ".join(some).ljust(LENGTH)
        device = stems(jnp.array([ord(character) for character in text]), WORDS)
        expected = [fingerprint_of(stem_of(word)) for word in some]
        wrong = np.array(some)[np.asarray(device)[: len(some)] != np.array(expected, np.uint32)]
        assert not len(wrong), wrong[:5]
