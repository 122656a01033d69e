"""Numbers, seconds and boxes inside jit, and the rewards that compare them.

What counts as a number, a span and a box: ``numbers``, which reads text on the host, and docs/rewards.md.

Axes: N characters of a text, W pieces (runs of letters or of digits).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vpjax.scoring.numbers import (
    DIGITS,
    FRACTION,
    HALF_HUNDREDTH,
    JOINING_MARKS,
    JOINING_WORDS,
    MILLIONTH,
    PARTS,
    TINY,
    UNITS,
)
from vpjax.scoring.pieces import Pieces, find_pieces, is_one_of, shifted, take, word_set
from vpjax.scoring.texts import SPACE, is_digit, last_index
from vpjax.types import Array

# A list without its numbers: the marks of each entry, with the comma before the next.
BOX_MARKS, SPAN_MARKS = "[,,,],", "[,],"
NONE = -100  # no exponent
DECIMAL = ord(";")  # ties a number to its fraction where a comma stands between


class Numbers(NamedTuple):
    """The numbers of a text; entry w describes the one that begins with piece w.

    begins bool[W]: whether there is one. value f32[W]: NaN where it cannot be read. span_end i32[W]: the
    piece with which the second number of its span begins, W: none. after_comma i32[W]: the piece with which
    the next number begins, where only a comma stands between, W: none. opened, closed bool[W]: whether a
    bracket stands before it, and after it. start i32[W]: the place of its piece in the text.
    """

    begins: jax.Array
    value: jax.Array
    span_end: jax.Array
    after_comma: jax.Array
    opened: jax.Array
    closed: jax.Array
    start: jax.Array

    def within(self, place: jax.Array) -> "Numbers":
        """Those that begin at places bool[N] of the text."""
        size = len(self.begins)
        begins = self.begins & take(place, self.start)
        span_end, after_comma = (jnp.where(begins, x, size) for x in (self.span_end, self.after_comma))
        return self._replace(begins=begins, span_end=span_end, after_comma=after_comma)


def find_numbers(text: jax.Array, size: int) -> Numbers:
    """The numbers of a text i32[N] of at most W = ``size`` pieces."""
    pieces = find_pieces(text, size)
    exponents = are_exponents(pieces)
    tie = ties_of_digits(pieces)
    begins = pieces.is_digits & ~shifted(tie != 0, -1) & ~exponents
    # The last piece of each number, first without its exponent.
    final = lax.cummin(jnp.where(tie != 0, size, jnp.arange(size)), reverse=True)

    value, whole = number_values(text, pieces.start, pieces.length, tie, pieces.has_point)
    has_minus = shifted(pieces.is_minus, -1) & (pieces.start > shifted(pieces.end, -1, -1))
    exponent = jnp.where(exponents, jnp.where(has_minus, -whole, whole), NONE)
    exponent = take(exponent, final + 2, NONE)
    value = scaled(value, exponent)
    value = jnp.where(pieces.has_sign, -value, value)
    final = jnp.where(exponent == NONE, final, final + 2)

    adjacent, one_mark = gaps_between(pieces, begins, len(text))
    distance = distance_to_second(pieces, begins, adjacent, one_mark)
    before_comma = one_mark & (pieces.mark == ord(",")) & shifted(begins, 1)
    second, comma, is_closed = take(distance, final), take(before_comma, final), take(pieces.closed, final)
    return Numbers(
        begins,
        value,
        span_end=jnp.where(begins & (second > 0), final + second, size),
        after_comma=jnp.where(begins & comma, final + 1, size),
        opened=pieces.opened,
        closed=is_closed,
        start=pieces.start,
    )


def are_exponents(pieces: Pieces) -> jax.Array:
    """Which pieces bool[W] are an exponent: after digits, "e" and perhaps a sign, one digit, or two of which
    the first is 0."""
    start, end, length, is_digits = pieces.start, pieces.end, pieces.length, pieces.is_digits
    before_e = is_digits & (shifted(start, 1, -1) == end) & shifted(pieces.is_e & (length == 1), 1)
    e_end = shifted(end, -1, -1)
    has_sign = shifted(pieces.is_plus | pieces.is_minus, -1)
    is_attached = (start == e_end) | ((start == e_end + 1) & has_sign)
    is_short = (length == 1) | ((length == 2) & pieces.is_zero)
    return is_digits & shifted(before_e, -2) & is_attached & is_short


def ties_of_digits(pieces: Pieces) -> jax.Array:
    """``ties_of`` the pieces of digits between which one character stands."""
    is_next = shifted(pieces.start, 1, -1) == pieces.end + 1
    is_linked = pieces.is_digits & shifted(pieces.is_digits, 1) & is_next
    link = jnp.where(is_linked, pieces.next_character, 0)
    can_be_comma = ~pieces.has_point & ~pieces.opened & ~shifted(pieces.closed, 1)
    return ties_of(link, pieces.length, can_be_comma=can_be_comma, begins_with_0=pieces.is_zero)


def scaled(value: jax.Array, exponent: jax.Array) -> jax.Array:
    """``value`` times 10 to the power of an exponent, which may be NONE."""
    powers = jnp.array([10.0**k for k in range(10)], jnp.float32)
    power = powers[jnp.clip(jnp.abs(exponent), 0, 9)]
    multiplied = jnp.where(exponent < 0, value / power, value * power)
    return jnp.where(exponent == NONE, value, multiplied)


def gaps_between(pieces: Pieces, begins: jax.Array, characters: int) -> tuple[jax.Array, jax.Array]:
    """Whether there is at most one space between a piece and the next one, bool[W], and whether there is one
    mark with spaces around it, bool[W]. begins: the numbers, whose sign and point are their own. characters:
    of the text."""
    own_start = jnp.where(begins, pieces.start - pieces.has_point - pieces.has_sign, pieces.start)
    next_start = shifted(own_start, 1, characters + 2)
    gap = pieces.end + pieces.has_stop + pieces.has_space
    adjacent = gap >= next_start
    return adjacent, ~adjacent & (gap + 1 + pieces.spaced >= next_start)


def distance_to_second(
    pieces: Pieces, begins: jax.Array, adjacent: jax.Array, one_mark: jax.Array
) -> jax.Array:
    """How many pieces i32[W] after the last one of a number the second number of its span begins, 0: it has
    none. A span is a number, perhaps its unit, the joining word or mark, and the other number."""
    is_unit, is_joining = (is_one_of(pieces.word, word_set(words)) for words in (UNITS, JOINING_WORDS))
    by_mark = one_mark & is_one_of(pieces.mark, "".join(JOINING_MARKS))
    follows = shifted(is_joining & adjacent & shifted(begins, 1), 1) & adjacent
    distance = jnp.where(follows, 2, jnp.where(by_mark & shifted(begins, 1), 1, 0))
    after_unit = shifted(jnp.where(is_unit & (distance > 0), distance + 1, 0), 1)
    return jnp.where(adjacent & shifted(is_unit, 1), after_unit, distance)


def ties_of(
    link: jax.Array, length: jax.Array, *, can_be_comma: jax.Array, begins_with_0: jax.Array
) -> jax.Array:
    """The mark i32[W] that makes each piece and the next one parts of one number, 0: none, DECIMAL for a
    comma before a fraction. link: the one mark between them, 0: none. length: of each piece. can_be_comma:
    whether a comma can be part of a number there. See ``numbers.Reading``."""
    before, after = shifted(link, -1), shifted(link, 1)
    is_comma = (link == ord(",")) & can_be_comma
    is_thousand = (shifted(length, 1) == 3) & (length <= 3) & ~begins_with_0 & ~is_one_of(before, ".:")
    is_decimal = ~is_one_of(before, ".:,") & ~is_one_of(after, ".:,")
    of_comma = jnp.where(is_thousand, ord(","), jnp.where(is_decimal, DECIMAL, 0))
    return jnp.where(is_one_of(link, ".:"), link, jnp.where(is_comma, of_comma, 0))


def number_values(
    text: jax.Array, start: jax.Array, length: jax.Array, tie: jax.Array, has_point: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The value f32[W] of the number that begins with each piece, NaN where it cannot be read, and each piece
    as a whole number i32[W]. tie: see ``ties_of``. has_point: the piece is a fraction."""
    whole, decimals = jnp.zeros(len(start), jnp.int32), jnp.zeros(len(start), jnp.int32)
    digits = take(text, start[:, None] + jnp.arange(DIGITS)) - ord("0")
    for k in range(DIGITS):
        digit = digits[:, k]
        whole = jnp.where(k < length, 10 * whole + digit, whole)
        if k < FRACTION:
            decimals = whole
    tens = jnp.array([10.0**k for k in range(FRACTION + 1)], jnp.float32)
    fraction = decimals.astype(jnp.float32) / tens[jnp.minimum(length, FRACTION)]
    whole_f32 = whole.astype(jnp.float32)

    value = jnp.where(has_point, fraction, whole_f32)
    readable = has_point | (length <= DIGITS)
    inside = jnp.ones(len(start), bool)  # whether the number still goes on
    thousands, colons, is_over = jnp.ones(len(start), bool), jnp.zeros(len(start), jnp.int32), has_point
    for k in range(1, PARTS + 1):
        mark = shifted(tie, k - 1)
        inside &= mark != 0
        is_thousand, is_colon = mark == ord(","), mark == ord(":")
        # Commas between thousands, or at most two colons, and then a fraction; or a fraction after a comma.
        allowed = ~is_over & (k < PARTS)
        allowed &= ~is_thousand | thousands
        allowed &= ~is_colon | ((colons == k - 1) & (colons < 2))
        allowed &= (mark != DECIMAL) | (k == 1)
        is_whole = is_thousand | is_colon
        allowed &= ~is_whole | (shifted(length, k) <= DIGITS)
        readable &= ~inside | allowed
        factor = jnp.where(is_thousand, 1000.0, 60.0)
        longer = jnp.where(is_whole, factor * value + shifted(whole_f32, k), value + shifted(fraction, k))
        value = jnp.where(inside, longer, value)
        thousands &= is_thousand
        colons += is_colon & inside
        is_over |= inside & ~is_whole
    return jnp.where(readable, value, jnp.nan), whole


def the_number(numbers: Numbers) -> jax.Array:
    """The one number f32[] of a text; NaN if it has none, several that differ, or one that cannot be read."""
    value = numbers.value[jnp.argmax(numbers.begins)]
    agrees = (~numbers.begins | (numbers.value == value)).all()
    return jnp.where(numbers.begins.any() & agrees, value, jnp.nan)


def spans_of(numbers: Numbers) -> jax.Array:
    """The spans f32[W, 2], each where its first number begins, from left to right without overlap; NaN where
    there is none."""
    size = len(numbers.value)
    ends = numbers.value.at[numbers.span_end].get(mode="fill", fill_value=jnp.nan)
    joins = (numbers.span_end < size) & (numbers.value <= ends)
    # In "1 to 2 to 3" the second pair overlaps the first: of a chain of pairs every other one counts.
    number = jnp.cumsum(numbers.begins) - 1
    overlaps = jnp.zeros(size, bool).at[jnp.where(joins, numbers.span_end, size)].set(True, mode="drop")
    chain_start = lax.cummax(jnp.where(numbers.begins & ~overlaps, number, -1))
    taken = joins & ((number - chain_start) % 2 == 0)
    # Where none are joined, the only two numbers are a pair.
    only_pair = ~joins.any() & (numbers.begins.sum() == 2)
    taken |= only_pair & (jnp.arange(size) == jnp.argmax(numbers.begins))
    ends = jnp.where(only_pair, numbers.value[last_index(numbers.begins)], ends)
    spans = jnp.stack([numbers.value, ends], axis=-1)
    return jnp.where((taken & (spans[:, 0] <= spans[:, 1]))[:, None], spans, jnp.nan)


def last_span(spans: jax.Array) -> jax.Array:
    """The last of the spans f32[W, 2] that exist: f32[1, 2]; NaN where there is none."""
    last = last_index(~jnp.isnan(spans[:, 0]))
    return spans.at[last].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)[None]


def best_iou(candidate: Array, reference: Array) -> jax.Array:
    """The IoU f32[] of a span f32[1, 2] with the one of the spans f32[Y, 2] that it fits best."""
    return jax.vmap(lambda span: span_iou(candidate, span[None]))(jnp.asarray(reference)).max()


def span_iou(candidate: Array, reference: Array) -> jax.Array:
    """IoU of the seconds that the spans f32[X, 2] and f32[Y, 2] cover, NaN: none. A span that does not end
    after it begins covers nothing; 0 where nothing is covered."""
    borders = [jnp.where(s[:, :1] < s[:, 1:], s, 0.0).T.ravel() for s in (candidate, reference)]
    times = jnp.concatenate(borders)  # [2 X + 2 Y]: starts and ends of each side
    x, y = len(candidate), len(reference)
    # How each time changes the number of spans open on either side.
    deltas = np.repeat([[1, 0], [-1, 0], [0, 1], [0, -1]], [x, x, y, y], axis=0)
    order = jnp.argsort(times)
    covered = jnp.cumsum(jnp.asarray(deltas)[order], axis=0)[:-1] > 0
    length = jnp.diff(times[order])
    both, either = (length * covered.all(-1)).sum(), (length * covered.any(-1)).sum()
    return both / jnp.where(either > 0, either, 1.0)


def boxes_of(numbers: Numbers, count: int) -> tuple[jax.Array, jax.Array]:
    """The first ``count`` boxes f32[count, 4], (0, 0, 0, 0) where there is none, and their number i32[]."""
    size = len(numbers.value)
    corners = [jnp.arange(size)]
    for _ in range(3):
        corners.append(numbers.after_comma.at[corners[-1]].get(mode="fill", fill_value=size))
    closed = numbers.closed.at[corners[-1]].get(mode="fill", fill_value=False)
    found = numbers.begins & numbers.opened & closed
    values = numbers.value.at[jnp.stack(corners, axis=-1)].get(mode="fill", fill_value=jnp.nan)
    values = jnp.where(jnp.isfinite(values).all(-1, keepdims=True), values, 0.0)
    index = jnp.where(found, jnp.cumsum(found) - 1, count)
    return jnp.zeros((count, 4), jnp.float32).at[index].set(values, mode="drop"), found.sum()


def box_iou(candidate: Array, candidate_count: Array, reference: Array, reference_count: Array) -> jax.Array:
    """Mean IoU of boxes (x0, y0, x1, y1) f32[X, 4], each with its counterpart in order; one that is missing
    or too many counts as 0."""
    low = jnp.maximum(candidate[:, :2], reference[:, :2])
    high = jnp.minimum(candidate[:, 2:], reference[:, 2:])
    both = jnp.maximum(high - low, 0).prod(-1)
    either = box_areas(candidate) + box_areas(reference) - both
    count = jnp.maximum(jnp.maximum(candidate_count, reference_count), 1)
    return (both / jnp.where(either > 0, either, 1.0)).sum() / count


def box_areas(boxes: Array) -> jax.Array:
    return jnp.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(-1)


def is_list(text: jax.Array, entry: str, count: Array) -> jax.Array:
    """Whether a text is one list of ``count`` > 0 entries in brackets, and nothing else: its marks are ``[``,
    those of each entry, and ``]``. entry: BOX_MARKS or SPAN_MARKS; ``(`` may stand for ``[``."""
    opening, closing = ord("["), ord("]")
    mark = jnp.where(text == ord("("), opening, jnp.where(text == ord(")"), closing, text))
    counts = (text != SPACE) & ~is_digit(text) & ~is_one_of(text, ".-+eE")
    place, total = jnp.cumsum(counts) - 1, counts.sum()
    marks = jnp.array([ord(character) for character in entry])
    expected = marks[(place - 1) % len(entry)]
    expected = jnp.where(place == 0, opening, jnp.where(place == total - 1, closing, expected))
    return (~counts | (mark == expected)).all() & (total == 1 + len(entry) * count) & (count > 0)


def same_number(number: Array, reference: Array) -> jax.Array:
    """Whether two numbers are equal to half a hundredth and a millionth (Video-R1: after rounding to two
    places); False for NaN."""
    return jnp.abs(number - reference) <= HALF_HUNDREDTH + MILLIONTH * jnp.abs(reference)


def closeness(number: Array, reference: Array) -> jax.Array:
    """1 less the relative difference of two numbers, 0 from a difference of the reference's size on
    (Video-R1); 0 for NaN."""
    difference = jnp.abs(number - reference) / jnp.maximum(jnp.abs(reference), TINY)
    return jnp.where(jnp.isnan(number), 0.0, 1.0 - jnp.minimum(difference, 1.0))
