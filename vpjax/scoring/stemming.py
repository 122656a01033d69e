"""Porter's stems of words inside jit: what ``stems.stem_of`` makes on the host.

Porter's algorithm ("An algorithm for suffix stripping", 1980) with the changes of nltk, whose stems the
``rouge-score`` package and so Video-R1's reward compare. A step replaces the suffix of a word if the rest,
its stem, has a measure: the number of its vowels that a consonant follows.

Axes: W words, L = LONGEST letters of each.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.scoring.pieces import is_one_of, word_set
from vpjax.scoring.stems import LONGEST, LONGEST_Y, SHORTEST
from vpjax.scoring.words import BASE, find_words, mix_bits, powers, run_fingerprints

ANY, VOWEL = -1, -2  # conditions beside a least measure: none, and a vowel in the stem


class Rule(NamedTuple):
    """``suffix`` becomes ``replacement`` if the stem's measure is above ``above``. of_length: only in words
    of this length, 0: all. kept: letters of the suffix that the measure counts, too."""

    suffix: str
    replacement: str
    above: int
    of_length: int = 0
    kept: int = 0


def rules(above: int, pairs: str) -> list[Rule]:
    """Rules written as ``suffix:replacement``."""
    split = [pair.split(":") for pair in pairs.split()]
    return [Rule(suffix, replacement, above) for suffix, replacement in split]


PLURALS = [Rule("ies", "ie", ANY, of_length=4), *rules(ANY, "sses:ss ies:i ss:ss s:")]
PASTS = [
    Rule("ied", "ie", ANY, of_length=4),
    *rules(ANY, "ied:i"),
    *rules(0, "eed:ee"),
    *rules(VOWEL, "ed: ing:"),
]
AFTER_PASTS = rules(ANY, "at:ate bl:ble iz:ize")
DOUBLE_SUFFIXES = [
    *rules(
        0,
        "ational:ate tional:tion enci:ence anci:ance izer:ize bli:ble alli:al entli:ent eli:e ousli:ous "
        "ization:ize ation:ate ator:ate alism:al iveness:ive fulness:ful ousness:ous aliti:al iviti:ive "
        "biliti:ble fulli:ful",
    ),
    Rule("logi", "log", 0, kept=1),
]
ADJECTIVES = rules(0, "icate:ic ative: alize:al iciti:ic ical:ic ful: ness:")
SUFFIXES = rules(
    1,
    "al: ance: ence: er: ic: able: ible: ant: ement: ment: ent: ion: ou: ism: ate: iti: ous: ive: ize:",
)
IRREGULAR = {
    "sky": "sky skies",
    "die": "dying",
    "lie": "lying",
    "tie": "tying",
    "news": "news",
    "inning": "inning innings",
    "outing": "outing outings",
    "canning": "canning cannings",
    "howe": "howe",
    "proceed": "proceed",
    "exceed": "exceed",
    "succeed": "succeed",
}


def word_stems(text: jax.Array, size: int) -> jax.Array:
    """The fingerprints u32[W] of the stems of the first W = ``size`` words of a text i32[N]."""
    runs = find_words(text, size)
    words = run_fingerprints(text, runs)
    place = jnp.arange(LONGEST)
    letters = text.at[runs.start[:, None] + place].get(mode="fill", fill_value=0) | 32  # digits have the bit
    length = runs.end - runs.start
    letters = jnp.where(place < length[:, None], letters, 0)
    is_y = letters == ord("y")
    many_y = is_y[:, LONGEST_Y:]
    for k in range(LONGEST_Y):
        many_y &= is_y[:, k : LONGEST - LONGEST_Y + k]
    is_english = (letters < 128).all(-1) & (length >= SHORTEST) & (length <= LONGEST) & ~many_y.any(-1)
    stem = stemmed(Word(letters, jnp.clip(length, SHORTEST, LONGEST)))

    total = (stem.letters.astype(jnp.uint32) * powers(BASE, LONGEST)).sum(-1, dtype=jnp.uint32)
    stems = jnp.where(is_english, mix_bits(total), words)
    for stem_word, forms in IRREGULAR.items():
        is_form = (words[:, None] == word_set(forms.split())).any(-1)
        stems = jnp.where(is_form, word_set([stem_word])[0], stems)
    return jnp.where(words != 0, stems, 0)


class Word(NamedTuple):
    """letters i32[W, L], 0 after the last one; length i32[W]."""

    letters: jax.Array
    length: jax.Array

    def ends(self, count: int) -> jax.Array:
        """The last ``count`` letters i32[W, count], the last one first; 0 where there is none."""
        place = self.length[:, None] - 1 - jnp.arange(count)
        found = jnp.take_along_axis(self.letters, jnp.maximum(place, 0), axis=1)
        return jnp.where(place >= 0, found, 0)


class Stem(NamedTuple):
    """What conditions ask of a stem: its measure and its number of vowels i32[W], whether its last three
    letters are consonants bool[W, 3], the last one first, and its last letter i32[W]."""

    measure: jax.Array
    vowels: jax.Array
    consonants: jax.Array
    last: jax.Array
    length: jax.Array

    @property
    def is_short(self) -> jax.Array:
        """Whether it ends with consonant, vowel and a consonant that is not w, x or y, or is a vowel and a
        consonant."""
        last, second, third = (self.consonants[:, k] for k in range(3))
        plain = ~is_one_of(self.last, "wxy")
        return last & ~second & jnp.where(self.length >= 3, third & plain, self.length == 2)


def codes(letters: str) -> np.ndarray:
    return np.array([ord(letter) for letter in letters], np.int32)


def consonants_of(letters: jax.Array) -> jax.Array:
    """Which letters bool[W, L] are consonants: a "y" is one at the start of a word and after a vowel."""
    is_y = letters == ord("y")
    consonant = jnp.ones(letters.shape, bool)
    for vowel in "aeiou":
        consonant &= letters != ord(vowel)
    for _ in range(LONGEST_Y):
        after_vowel = ~jnp.pad(consonant, ((0, 0), (1, 0)))[:, :-1]
        consonant = jnp.where(is_y, after_vowel, consonant)
    return consonant


def first_letters(word: Word, consonant: jax.Array, length: jax.Array) -> Stem:
    """The stem that is the first ``length`` i32[W] letters of a word."""
    inside = jnp.arange(LONGEST) < length[:, None]
    follows = jnp.pad(~consonant, ((0, 0), (1, 0)))[:, :-1] & consonant & inside
    place = length[:, None] - 1 - jnp.arange(3)
    packed = 2 * word.letters + consonant
    last = jnp.where(place >= 0, jnp.take_along_axis(packed, jnp.maximum(place, 0), axis=1), 0)
    vowels = (~consonant & inside).sum(1)
    return Stem(follows.sum(1), vowels, last % 2 == 1, last[:, 0] >> 1, length)


def apply_first(
    word: Word, rule_list: Sequence[Rule], extra: Callable[[jax.Array, Stem], jax.Array] | None = None
) -> tuple[Word, jax.Array]:
    """The word after the first rule whose suffix it has, whether its condition holds or not, and the number
    of that rule i32[W], -1: none or it does not hold. extra: a further condition, of that number and the
    stem."""
    longest = max(len(rule.suffix) for rule in rule_list)
    widest = max(len(rule.replacement) for rule in rule_list)
    suffixes = np.full((len(rule_list), longest), -1, np.int32)  # from the last letter on
    # Of each rule: the length of its suffix, what of it is kept, its least measure, its replacement.
    table = np.zeros((len(rule_list), 4 + widest), np.int32)
    for r, rule in enumerate(rule_list):
        suffixes[r, : len(rule.suffix)] = codes(rule.suffix[::-1])
        table[r, :4] = len(rule.suffix), rule.kept, rule.above, len(rule.replacement)
        table[r, 4 : 4 + len(rule.replacement)] = codes(rule.replacement)
    of_length = np.array([rule.of_length for rule in rule_list])
    match = ((word.ends(longest)[:, None] == suffixes) | (suffixes < 0)).all(-1)
    match &= (of_length == 0) | (of_length == word.length[:, None])

    number = jnp.argmax(match, axis=1)
    row = jnp.asarray(table)[number]
    stem_length, above, added = word.length - row[:, 0], row[:, 2], row[:, 3]
    stem = first_letters(word, consonants_of(word.letters), stem_length + row[:, 1])
    enough = jnp.where(above == VOWEL, stem.vowels > 0, (above == ANY) | (stem.measure > above))
    holds = match.any(1) & enough
    if extra is not None:
        holds &= extra(number, stem)
    place = jnp.arange(LONGEST) - stem_length[:, None]
    letters = jnp.where(place < 0, word.letters, 0)
    for k in range(widest):
        letters = jnp.where(place == k, row[:, 4 + k, None], letters)
    letters = jnp.where(holds[:, None], letters, word.letters)
    length = jnp.where(holds, stem_length + added, word.length)
    return Word(letters, length), jnp.where(holds, number, -1)


def cut(word: Word, where: jax.Array) -> Word:
    """The words without their last letter, where bool[W] says so."""
    length = word.length - where
    return Word(jnp.where(jnp.arange(LONGEST) < length[:, None], word.letters, 0), length)


def append(word: Word, letter: str, where: jax.Array) -> Word:
    at_end = (jnp.arange(LONGEST) == word.length[:, None]) & where[:, None]
    return Word(jnp.where(at_end, ord(letter), word.letters), word.length + where)


def stemmed(word: Word) -> Word:
    """The stems of regular words."""
    word, _ = apply_first(word, PLURALS)
    word, number = apply_first(word, PASTS)
    is_cut = number >= len(PASTS) - 2  # by the last two rules
    mended, repair = apply_first(word, AFTER_PASTS)
    word = Word(
        jnp.where(is_cut[:, None], mended.letters, word.letters),
        jnp.where(is_cut, mended.length, word.length),
    )
    stem = first_letters(word, consonants_of(word.letters), word.length)
    ends = word.ends(2)
    is_plain = is_cut & (repair < 0)
    is_double = (ends[:, 0] == ends[:, 1]) & stem.consonants[:, 0]
    word = cut(word, is_plain & is_double & ~is_one_of(ends[:, 0], "lsz"))
    word = append(word, "e", is_plain & ~is_double & (stem.measure == 1) & stem.is_short)

    word, _ = apply_first(word, rules(ANY, "y:i"), lambda _, stem: stem.consonants[:, 0] & (stem.length > 1))
    word, _ = apply_first(word, rules(0, "alli:al"))
    word, _ = apply_first(word, DOUBLE_SUFFIXES)
    word, _ = apply_first(word, ADJECTIVES)
    ion = [rule.suffix for rule in SUFFIXES].index("ion")
    word, _ = apply_first(word, SUFFIXES, lambda number, stem: (number != ion) | is_one_of(stem.last, "st"))

    def is_long(_: jax.Array, stem: Stem) -> jax.Array:
        return (stem.measure > 1) | ((stem.measure == 1) & ~stem.is_short)

    word, _ = apply_first(word, rules(ANY, "e:"), is_long)
    word, _ = apply_first(word, [Rule("ll", "l", 1, kept=1)])
    return word
