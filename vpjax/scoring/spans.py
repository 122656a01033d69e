"""Rewards for seconds and boxes: temporal IoU of spans, mean IoU of boxes.

What counts as a number, a span and a box: docs/rewards.md. Up to six digits are read in a part of a number,
the first six of those after the point.

Axes: N bytes of a completion, W pieces (runs of letters or of digits).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vpjax.scoring.texts import SPACE, is_digit, is_letter, last_index
from vpjax.scoring.words import find_runs, fingerprint_of, run_fingerprints
from vpjax.types import Array

UNITS = ("s", "sec", "secs", "second", "seconds")
JOINING_WORDS = ("to", "and", "until", "till")
JOINING_MARKS = b"-,"
DIGITS = 6  # in a part of a number
PARTS = 4  # of a number: hours, minutes, seconds and what follows the point


class Numbers(NamedTuple):
    """The numbers of a text; entry w describes the one that begins with piece w.

    begins bool[W]: whether there is one. value f32[W]: NaN where it cannot be read. span_end i32[W]: the
    piece with which the second number of its span begins, W: none. after_comma i32[W]: the piece with which
    the next number begins, where only a comma stands between, W: none. opened, closed bool[W]: whether a
    bracket stands before it, and after it.
    """

    begins: jax.Array
    value: jax.Array
    span_end: jax.Array
    after_comma: jax.Array
    opened: jax.Array
    closed: jax.Array


def find_numbers(b: jax.Array, size: int) -> Numbers:
    """The numbers of a text b u8[N] of at most W = ``size`` pieces."""
    pieces = find_runs(is_letter(b) + 2 * is_digit(b), size)
    start, end, digits = pieces.start, pieces.end, pieces.kind == 2
    next_start = jnp.append(start[1:], len(b))
    word = jnp.where(digits, 0, run_fingerprints(b, pieces))

    def byte(index):
        return b.at[index].get(mode="fill", fill_value=SPACE, wrap_negative_indices=False)

    def at(x, piece, fill=0):
        return x.at[piece].get(mode="fill", fill_value=fill)

    # Between a piece and the next stands at most one space (adjacent), or one mark with spaces around it.
    gap = end + (byte(end) == SPACE)
    adjacent = gap >= next_start
    one_mark = gap + 1 + (byte(gap + 1) == SPACE) >= next_start
    mark = jnp.where(one_mark & ~adjacent, byte(gap), 0)

    # Pieces of one number are tied by points and colons: 1:05.5 is three. ``final``: the last one.
    link = jnp.where(next_start == end + 1, byte(end), 0)
    tied = digits & jnp.append(digits[1:], False) & is_one_of(link, b".:")
    begins = digits & ~jnp.pad(tied, (1, 0))[:-1]
    final = lax.cummin(jnp.where(tied, size, jnp.arange(size)), reverse=True)

    # A span: a number, perhaps its unit, the joining word or mark, the other number.
    units = [fingerprint_of(unit) for unit in UNITS]
    joining_words = [fingerprint_of(joining) for joining in JOINING_WORDS]
    has_unit = at(adjacent, final) & is_one_of(at(word, final + 1), units)
    tail = final + has_unit
    by_word = at(adjacent, tail) & is_one_of(at(word, tail + 1), joining_words) & at(adjacent, tail + 1)
    second = tail + 1 + by_word
    joins = begins & (by_word | is_one_of(at(mark, tail), JOINING_MARKS)) & at(begins, second)

    comma = begins & (at(mark, final) == ord(",")) & at(begins, final + 1)
    before = jnp.where(byte(start - 1) == SPACE, byte(start - 2), byte(start - 1))
    number_end = at(end, final, len(b))
    after = jnp.where(byte(number_end) == SPACE, byte(number_end + 1), byte(number_end))
    return Numbers(
        begins,
        number_values(b, start, end, jnp.where(tied, link, 0)),
        span_end=jnp.where(joins, second, size),
        after_comma=jnp.where(comma, final + 1, size),
        opened=is_one_of(before, b"[("),
        closed=is_one_of(after, b"])"),
    )


def is_one_of(x: jax.Array, values: Sequence[int]) -> jax.Array:
    return (x[:, None] == np.array(list(values), x.dtype)).any(-1)


def number_values(b: jax.Array, start: jax.Array, end: jax.Array, link: jax.Array) -> jax.Array:
    """The value f32[W] of the number that begins with each piece, NaN where it cannot be read. link u8[W]:
    the mark that ties a piece of digits to the next, 0: none."""
    length = end - start
    whole = jnp.zeros(len(start), jnp.float32)  # each piece as a whole number
    for k in range(DIGITS):
        digit = b.at[start + k].get(mode="fill", fill_value=0).astype(jnp.float32) - ord("0")
        whole = jnp.where(k < length, 10 * whole + digit, whole)
    tens = jnp.array([10.0**k for k in range(DIGITS + 1)])
    fraction = whole / tens[jnp.minimum(length, DIGITS)]  # each piece as the digits after a point

    def ahead(x, k):
        return jnp.pad(x, (0, k))[k:]

    value, readable = whole, length <= DIGITS
    inside = jnp.ones_like(readable)  # whether the number still goes on
    had_point = jnp.zeros_like(readable)
    for k in range(1, PARTS + 1):
        tie = ahead(link, k - 1)
        inside = inside & (tie != 0)
        colon = tie == ord(":")
        # At most two colons, then at most one point: hours:minutes:seconds.fraction.
        allowed = jnp.where(colon, (k < PARTS - 1) & (ahead(length, k) <= DIGITS), k < PARTS)
        readable = readable & (~inside | (allowed & ~had_point))
        longer = jnp.where(colon, 60 * value + ahead(whole, k), value + ahead(fraction, k))
        value = jnp.where(inside, longer, value)
        had_point = had_point | (inside & ~colon)
    return jnp.where(readable, value, jnp.nan)


def find_spans(b: jax.Array, size: int, *, only_last: bool) -> jax.Array:
    """The spans f32[W, 2] that a text of at most W = ``size`` pieces names, from left to right without
    overlap, or the last one alone; (0, 0) where there is none or its numbers cannot be read."""
    numbers = find_numbers(b, size)
    joins = numbers.span_end < size
    # In "1 to 2 to 3" the second pair overlaps the first: of a chain of pairs every other one counts.
    number = jnp.cumsum(numbers.begins) - 1
    overlaps = jnp.zeros(size, bool).at[numbers.span_end].set(True, mode="drop")
    chain_start = lax.cummax(jnp.where(numbers.begins & ~overlaps, number, -1))
    taken = joins & ((number - chain_start) % 2 == 0)
    if only_last:
        taken = taken & (jnp.arange(size) == last_index(taken))
    ends = numbers.value.at[numbers.span_end].get(mode="fill", fill_value=jnp.nan)
    spans = jnp.stack([numbers.value, ends], axis=-1)
    return jnp.where((taken & jnp.isfinite(spans).all(-1))[:, None], spans, 0.0)


def span_iou(candidate: Array, reference: Array) -> jax.Array:
    """IoU of the seconds that the spans f32[X, 2] and f32[Y, 2] cover. A span that does not end after it
    begins covers nothing; 0 where nothing is covered."""
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


def find_boxes(b: jax.Array, size: int, count: int) -> tuple[jax.Array, jax.Array]:
    """The first ``count`` boxes f32[count, 4] of a text of at most ``size`` pieces, (0, 0, 0, 0) where there
    is none, and the number of boxes i32[] in it."""
    numbers = find_numbers(b, size)
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
