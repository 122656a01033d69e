"""Rewards for seconds and boxes: temporal IoU of spans, mean IoU of boxes.

A number is digits, a point and digits if it has any, or minutes or hours before it with colons (``1:05.5`` is
65.5); up to six digits in a part, and the first six after the point count. Numbers have no sign.
A span is two numbers, the first with its unit if it has one (``3.50s``), and between them ``to``, ``and``,
``until``, ``till``, a dash or a comma. A box is four numbers with commas between them in brackets.

Of one completion: N bytes, W pieces (runs of letters or of digits).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from vpjax.scoring.texts import SPACE, is_digit, is_letter, last
from vpjax.scoring.words import fingerprints, host_fingerprint, runs
from vpjax.types import Array

UNIT_WORDS, JOIN_WORDS, JOIN_MARKS = "s sec secs second seconds".split(), "to and until till".split(), "-,"
DIGITS, PARTS = 6, 4  # of a part of a number; hours, minutes, seconds and what follows the point

NUMBER = r"(\d+(?:[.:]\d+)*)"
UNIT, JOIN = (rf"(?:{'|'.join(some)})(?![a-z])" for some in (UNIT_WORDS, JOIN_WORDS))
SPAN = re.compile(rf"{NUMBER} *(?:{UNIT} *)?(?:{JOIN}|[{JOIN_MARKS}]) *{NUMBER}".encode(), re.IGNORECASE)
BOX = re.compile(rf"[\[(] *{' *, *'.join([NUMBER] * 4)} *[\])]".encode())
PART = rf"(\d{{1,{DIGITS}}})"
VALUE = re.compile(rf"(?:(?:{PART}:)?{PART}:)?{PART}(?:\.(\d+))?".encode())
UNITS, JOINERS = ([host_fingerprint(word.encode()) for word in some] for some in (UNIT_WORDS, JOIN_WORDS))
MARKS = JOIN_MARKS.encode()


class Numbers(NamedTuple):
    """The numbers of a text, at the piece with which each begins.

    begins bool[W]; value f32[W], NaN where it cannot be read; joined i32[W]: where the second number of its
    span begins, W: none; comma i32[W]: where the next number begins, with a comma between, W: none; opened,
    closed bool[W]: a bracket stands before and after it.
    """

    begins: Array
    value: Array
    joined: Array
    comma: Array
    opened: Array
    closed: Array


def numbers(b: Array, size: int) -> Numbers:
    """Of the text b u8[N] of at most ``size`` pieces."""
    found = runs(is_letter(b) + 2 * is_digit(b), size)
    start, end, digit = found.start, found.end, found.kind == 2
    following = jnp.append(start[1:], len(b))
    word = jnp.where(digit, 0, fingerprints(b, found))

    def byte(place):
        return b.at[place].get(mode="fill", fill_value=SPACE, wrap_negative_indices=False)

    # What stands between a piece and the next: at most a space, or one mark and spaces.
    nothing = end + (byte(end) == SPACE) >= following
    place = end + (byte(end) == SPACE)
    alone = place + 1 + (byte(place + 1) == SPACE) >= following
    mark = jnp.where(alone & ~nothing, byte(place), 0)

    # Pieces of one number: 1:05.5 is three.
    link = jnp.where(following == end + 1, byte(end), 0)
    tied = digit & jnp.append(digit[1:], False) & one_of(link, b".:")
    begins = digit & ~jnp.pad(tied, (1, 0))[:-1]
    final = lax.cummin(jnp.where(tied, size, jnp.arange(size)), reverse=True)

    def at(x, place, fill=0):
        return x.at[place].get(mode="fill", fill_value=fill)

    # A number, its unit, the joining word or mark, the other number.
    unit = at(nothing, final) & one_of(at(word, final + 1), UNITS)
    tail = final + unit
    by_word = at(nothing, tail) & one_of(at(word, tail + 1), JOINERS) & at(nothing, tail + 1)
    second = tail + 1 + by_word
    joins = begins & (by_word | one_of(at(mark, tail), MARKS)) & at(begins, second)
    comma = begins & (at(mark, final) == ord(",")) & at(begins, final + 1)
    before = jnp.where(byte(start - 1) == SPACE, byte(start - 2), byte(start - 1))
    close = at(end, final, len(b))
    after = jnp.where(byte(close) == SPACE, byte(close + 1), byte(close))
    return Numbers(
        begins,
        value_of(b, start, end, jnp.where(tied, link, 0)),
        joined=jnp.where(joins, second, size),
        comma=jnp.where(comma, final + 1, size),
        opened=one_of(before, b"[("),
        closed=one_of(after, b"])"),
    )


def one_of(x: Array, some: Sequence[int]) -> Array:
    return (x[:, None] == np.array(list(some), x.dtype)).any(-1)


def value_of(b: Array, start: Array, end: Array, link: Array) -> Array:
    """f32[W]: of the number that begins with each piece; NaN where it cannot be read. link u8[W]: what ties a
    piece of digits to the next, 0: nothing."""
    length = end - start
    part = jnp.zeros(len(start), jnp.float32)
    for k in range(DIGITS):
        digit = b.at[start + k].get(mode="fill", fill_value=0).astype(jnp.float32) - ord("0")
        part = jnp.where(k < length, 10 * part + digit, part)
    share = part / jnp.array([10.0**k for k in range(DIGITS + 1)])[jnp.minimum(length, DIGITS)]

    def ahead(x, k):
        return jnp.pad(x, (0, k))[k:]

    value, good = part, length <= DIGITS
    inside, pointed = jnp.ones_like(good), jnp.zeros_like(good)  # the number goes on; its point is behind
    for k in range(1, PARTS + 1):
        tie = ahead(link, k - 1)
        inside, colon = inside & (tie != 0), tie == ord(":")
        right = jnp.where(colon, (k < PARTS - 1) & (ahead(length, k) <= DIGITS), k < PARTS)
        good = good & (~inside | right & ~pointed)
        further = jnp.where(colon, 60 * value + ahead(part, k), value + ahead(share, k))
        value, pointed = jnp.where(inside, further, value), pointed | inside & ~colon
    return jnp.where(good, value, jnp.nan)


def host_value(number: bytes) -> float:
    match = VALUE.fullmatch(number)
    if not match:
        return np.nan
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3])
    fraction = (match[4] or b"0")[:DIGITS]
    return 3600 * hours + 60 * minutes + seconds + int(fraction) / 10 ** len(fraction)


def spans_of(b: Array, size: int, *, only_last: bool) -> Array:
    """The spans f32[W, 2] that a text names, from left to right without overlap, or its last alone; (0, 0)
    where there is none or its numbers are none."""
    found = numbers(b, size)
    joins = found.joined < size
    # In "1 to 2 to 3" the second pair overlaps: of a chain of pairs every other one counts.
    number = jnp.cumsum(found.begins) - 1
    overlaps = jnp.zeros(size, bool).at[found.joined].set(True, mode="drop")
    first = lax.cummax(jnp.where(found.begins & ~overlaps, number, -1))
    taken = joins & ((number - first) % 2 == 0)
    if only_last:
        taken = taken & (jnp.arange(size) == last(taken))
    ends = found.value.at[found.joined].get(mode="fill", fill_value=jnp.nan)
    spans = jnp.stack([found.value, ends], axis=-1)
    return jnp.where((taken & jnp.isfinite(spans).all(-1))[:, None], spans, 0.0)


def host_spans_of(text: bytes) -> list[tuple[float, float]]:
    return [(host_value(a), host_value(b)) for a, b in SPAN.findall(text)]


def span_iou(said: Array, wanted: Array) -> Array:
    """IoU of what the spans said f32[X, 2] and wanted f32[Y, 2] cover. One that does not end after it begins
    covers nothing; 0 where nothing is covered."""
    ends = jnp.concatenate([jnp.where(s[:, :1] < s[:, 1:], s, 0.0).T.ravel() for s in (said, wanted)])
    x, y = len(said), len(wanted)
    deltas = np.repeat([[1, 0], [-1, 0], [0, 1], [0, -1]], [x, x, y, y], axis=0)
    order = jnp.argsort(ends)
    covered = jnp.cumsum(jnp.asarray(deltas)[order], axis=0)[:-1] > 0
    length = jnp.diff(ends[order])
    both, either = (length * covered.all(-1)).sum(), (length * covered.any(-1)).sum()
    return both / jnp.where(either > 0, either, 1.0)


def host_span_iou(said: Sequence[tuple[float, float]], wanted: Sequence[tuple[float, float]]) -> float:
    def merged(spans):
        out = []
        for start, end in sorted(span for span in spans if span[0] < span[1]):
            if out and start <= out[-1][1]:
                out[-1][1] = max(out[-1][1], end)
            else:
                out.append([start, end])
        return out

    said, wanted = merged(said), merged(wanted)
    both = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in said for b in wanted)
    either = sum(end - start for start, end in said + wanted) - both
    return both / either if either else 0.0


def boxes_of(b: Array, size: int, count: int) -> tuple[Array, Array]:
    """The first ``count`` boxes f32[count, 4] of a text, (0, 0, 0, 0) where there is none, and how many there
    are, i32[]."""
    found = numbers(b, size)
    corners = [jnp.arange(size)]
    for _ in range(3):
        corners.append(found.comma.at[corners[-1]].get(mode="fill", fill_value=size))
    closed = found.closed.at[corners[-1]].get(mode="fill", fill_value=False)
    whole = found.begins & found.opened & closed
    values = found.value.at[jnp.stack(corners, axis=-1)].get(mode="fill", fill_value=jnp.nan)
    values = jnp.where(jnp.isfinite(values).all(-1, keepdims=True), values, 0.0)
    place = jnp.where(whole, jnp.cumsum(whole) - 1, count)
    return jnp.zeros((count, 4), jnp.float32).at[place].set(values, mode="drop"), whole.sum()


def host_boxes_of(text: bytes) -> list[tuple[float, ...]]:
    return [tuple(map(host_value, box)) for box in BOX.findall(text)]


def box_iou(said: Array, said_count: Array, wanted: Array, wanted_count: Array) -> Array:
    """Mean IoU of boxes (x0, y0, x1, y1) f32[X, 4], in turn; one that is missing or too many counts as 0."""
    low = jnp.maximum(said[:, :2], wanted[:, :2])
    high = jnp.minimum(said[:, 2:], wanted[:, 2:])
    both = jnp.maximum(high - low, 0).prod(-1)
    either = sum(jnp.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(-1) for boxes in (said, wanted)) - both
    count = jnp.maximum(jnp.maximum(said_count, wanted_count), 1)
    return (both / jnp.where(either > 0, either, 1.0)).sum() / count


def host_box_iou(said: Sequence[tuple[float, ...]], wanted: Sequence[tuple[float, ...]]) -> float:
    total = 0.0
    for a, b in zip(said, wanted, strict=False):
        if np.isfinite(a).all():
            sides = [max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1)]
            areas = [max(0.0, x1 - x0) * max(0.0, y1 - y0) for x0, y0, x1, y1 in (a, b)]
            both = sides[0] * sides[1]
            either = sum(areas) - both
            total += both / either if either else 0.0
    return total / max(len(said), len(wanted), 1)
