"""The pieces of a text inside jit: its runs of letters and of digits, and what stands around them.

Axes: N characters of a text, W pieces.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.scoring.texts import SPACE, ahead, behind, is_digit, is_word_character
from vpjax.scoring.words import RUN, find_runs, fingerprint_of, run_fingerprints

DIGIT_RUN = 3  # the kind of runs of digits, beside RUN of letters


class Pieces(NamedTuple):
    """The pieces of a text; arrays [W].

    start, end, length i32: in the text. is_digits bool: runs of digits; word u32: fingerprints of the others.
    has_point, has_sign, opened, is_zero, is_e bool: what stands before each and how it begins
    (``before_pieces``). has_stop, has_space, spaced, is_plus, is_minus, closed bool, and mark i32: what
    stands after each (``after_pieces``). next_character i32: directly after each.
    """

    start: jax.Array
    end: jax.Array
    length: jax.Array
    is_digits: jax.Array
    word: jax.Array
    has_point: jax.Array
    has_sign: jax.Array
    opened: jax.Array
    is_zero: jax.Array
    is_e: jax.Array
    has_stop: jax.Array
    has_space: jax.Array
    spaced: jax.Array
    is_plus: jax.Array
    is_minus: jax.Array
    closed: jax.Array
    mark: jax.Array
    next_character: jax.Array


def find_pieces(text: jax.Array, size: int) -> Pieces:
    """The pieces of a text i32[N], at most W = ``size``."""
    kind = jnp.where(is_digit(text), DIGIT_RUN, jnp.where(is_word_character(text), RUN, 0))
    runs = find_runs(kind, size)
    start, end, is_digits = runs.start, runs.end, runs.kind == DIGIT_RUN
    word = jnp.where(is_digits, 0, run_fingerprints(text, runs))
    flags_after, mark_after = after_pieces(text)
    has_point, has_sign, opened, is_zero, is_e = flags_at(before_pieces(text), start)
    has_stop, has_space, spaced, is_plus, is_minus, closed = flags_at(flags_after, end)
    return Pieces(
        start=start,
        end=end,
        length=end - start,
        is_digits=is_digits,
        word=word,
        has_point=has_point,
        has_sign=has_sign,
        opened=opened,
        is_zero=is_zero,
        is_e=is_e,
        has_stop=has_stop,
        has_space=has_space,
        spaced=spaced,
        is_plus=is_plus,
        is_minus=is_minus,
        closed=closed,
        mark=take(mark_after, end),
        next_character=take(text, end),
    )


def before_pieces(text: jax.Array) -> list[jax.Array]:
    """What stands before each place i32[N], if a piece begins there: whether a point before it makes it a
    fraction, whether a minus is its sign, whether a bracket is open; and whether it begins with 0 or e."""
    before = behind(text)
    nearest = jnp.where(before == SPACE, behind(text, 2), before)
    is_opened = is_either(nearest, "[(")
    has_point = (before == ord(".")) & ~is_word_character(behind(text, 2)) & (behind(text, 2) != ord("."))
    number_before = is_digit(nearest) | (nearest == ord("."))
    is_minus = (before == ord("-")) & ~is_word_character(behind(text, 2)) & ~shifted(number_before, -1)
    has_sign = jnp.where(has_point, shifted(is_minus, -1), is_minus)
    skipped = jnp.where(has_point, shifted(is_opened, -1), is_opened)
    twice = jnp.where(has_point, shifted(is_opened, -2), shifted(is_opened, -1))
    opened = jnp.where(has_sign, twice, skipped)
    return [has_point, has_sign, opened, text == ord("0"), (text | 32) == ord("e")]


def after_pieces(text: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """What stands at each place i32[N], if a piece ends there. Flags: a point directly after the piece; a
    space after that; a space after the next character, its mark; a plus, a minus; whether the mark is a
    closing bracket. Then the mark i32[N]."""
    has_stop = text == ord(".")
    next_one = jnp.where(has_stop, ahead(text), text)
    has_space = next_one == SPACE
    skipped = has_stop.astype(jnp.int32) + has_space
    mark, beyond = text, ahead(text)
    for count in (1, 2):
        mark = jnp.where(skipped == count, ahead(text, count), mark)
        beyond = jnp.where(skipped == count, ahead(text, count + 1), beyond)
    flags = [has_stop, has_space, beyond == SPACE, text == ord("+"), text == ord("-"), is_either(mark, "])")]
    return flags, mark


def flags_at(flags: Sequence[jax.Array], place: jax.Array) -> list[jax.Array]:
    """Several flags bool[N] at places i32[W], read at once; False past the end."""
    packed = sum(flag.astype(jnp.int32) << bit for bit, flag in enumerate(flags))
    found = take(jnp.asarray(packed), place)
    return [(found >> bit) & 1 == 1 for bit in range(len(flags))]


def take(x: jax.Array, place: jax.Array, fill: int = 0) -> jax.Array:
    """The elements of ``x`` at places, ``fill`` past the end."""
    return x.at[place].get(mode="fill", fill_value=fill)


def shifted(x: jax.Array, k: int, fill: int = 0) -> jax.Array:
    """The element that stands ``k`` places after each, ``fill`` past an end."""
    if k > 0:
        return jnp.pad(x, (0, k), constant_values=fill)[k:]
    return jnp.pad(x, (-k, 0), constant_values=fill)[: len(x)]


def is_one_of(x: jax.Array, values: str | np.ndarray) -> jax.Array:
    if isinstance(values, str):
        values = np.array([ord(character) for character in values], x.dtype)
    return (x[:, None] == values).any(-1)


def is_either(x: jax.Array, characters: str) -> jax.Array:
    """Whether a character is one of two."""
    return (x == ord(characters[0])) | (x == ord(characters[1]))


def word_set(words: Iterable[str]) -> np.ndarray:
    """The fingerprints u32[M] of words."""
    return np.array([fingerprint_of(word) for word in sorted(words)], np.uint32)
