"""Reads the numbers, spans and boxes of a normalized text on the host. ``spans`` does the same on the device.

docs/rewards.md says what counts as each of them, and why.
"""

import math
import re
from typing import NamedTuple

UNITS = frozenset(("s", "sec", "secs", "second", "seconds"))
JOINING_WORDS = frozenset(("to", "and", "until", "till"))
JOINING_MARKS = frozenset("-,~")
DIGITS = 9  # at most, in a part of a number
FRACTION = 6  # digits after the point that are read
PARTS = 4  # of a number, at most: hours, minutes, seconds and what follows the point
# Numbers are equal if they differ by no more than half a hundredth and a millionth, which float32 resolves.
HALF_HUNDREDTH, MILLIONTH = 0.005, 1e-6
TINY = 1e-9  # the least size of a number to which a difference is compared
PIECE = re.compile(r"[0-9]+|(?:[A-Za-z]|[^\x00-\x7f])+")  # a run of digits or of letters

Span = tuple[float, float]
Box = tuple[float, float, float, float]


class Number(NamedTuple):
    """value: NaN if it cannot be read. first, last: its pieces. lead: where it begins, with its sign."""

    value: float
    first: int
    last: int
    lead: int


class Reading:
    """The pieces of a text, and the numbers that they make."""

    def __init__(self, text: str):
        self.text = text
        self.pieces = list(PIECE.finditer(text))
        self.number_at: dict[int, Number] = {}
        for piece in range(len(self.pieces)):
            if self.is_digits(piece) and not self._tie(piece - 1) and not self._is_exponent(piece):
                self.number_at[piece] = self._number_at(piece)
        self.numbers = list(self.number_at.values())

    def character(self, index: int) -> str:
        return self.text[index] if 0 <= index < len(self.text) else " "

    def is_digits(self, piece: int) -> bool:
        return 0 <= piece < len(self.pieces) and is_digit(self.pieces[piece][0][0])

    def word(self, piece: int) -> str:
        return self.pieces[piece][0].lower() if piece < len(self.pieces) else ""

    def stop(self, piece: int) -> int:
        """Where a piece ends, with a point directly after it."""
        end = self.pieces[piece].end()
        return end + 1 if self.character(end) == "." else end

    def lead(self, piece: int) -> int:
        """Where a piece begins, or the number that begins with it: with its point and its minus."""
        start = self.pieces[piece].start()
        if piece not in self.number_at:
            return start
        return self.number_at[piece].lead

    def between(self, piece: int) -> str:
        """What stands between a piece and the next one, without one space at either end."""
        if piece + 1 >= len(self.pieces):
            return "end"
        text = self.text[self.stop(piece) : self.lead(piece + 1)]
        return text.removeprefix(" ").removesuffix(" ")

    def is_opened(self, number: Number) -> bool:
        return self._before(number.lead) in "[("

    def is_closed(self, number: Number) -> bool:
        return self._after(self.stop(number.last)) in "])"

    def _before(self, index: int) -> str:
        character = self.character(index - 1)
        return self.character(index - 2) if character == " " else character

    def _after(self, index: int) -> str:
        character = self.character(index)
        return self.character(index + 1) if character == " " else character

    def _link(self, piece: int) -> str:
        """The one mark between two pieces of digits; "" if they are not so linked."""
        if not (self.is_digits(piece) and self.is_digits(piece + 1)):
            return ""
        end = self.pieces[piece].end()
        return self.character(end) if self.pieces[piece + 1].start() == end + 1 else ""

    def _point_before(self, piece: int) -> bool:
        """Whether the piece is all of a fraction, as in ``.5``."""
        start = self.pieces[piece].start()
        before = self.character(start - 2)
        return self.character(start - 1) == "." and not (is_word_character(before) or before == ".")

    def _lead_of_number(self, piece: int) -> int:
        point = self.pieces[piece].start() - self._point_before(piece)
        before = self.character(point - 2)
        is_sign = self.character(point - 1) == "-" and not is_word_character(before)
        nearest = self._before(point - 1)
        if is_sign and not (is_digit(nearest) or nearest == "."):
            return point - 1
        return point

    def _tie(self, piece: int) -> str:
        """The mark that makes a piece and the next one parts of one number, "": none. A comma is ``,``
        between thousands and ``;`` before a fraction."""
        link = self._link(piece)
        if link in (".", ":"):
            return link
        if link != "," or self._point_before(piece):
            return ""
        if self._before(self._lead_of_number(piece)) in "[(" or self._after(self.stop(piece + 1)) in "])":
            return ""  # a list
        here, after = self.pieces[piece][0], self.pieces[piece + 1][0]
        before = self._link(piece - 1)
        if len(after) == 3 and len(here) <= 3 and here[0] != "0" and before not in (".", ":"):
            return ","
        others = (before, self._link(piece + 1))
        return "" if any(other in (".", ":", ",") for other in others) else ";"

    def _number_at(self, first: int) -> Number:
        last, ties = first, ""
        while tie := self._tie(last):
            ties += tie
            last += 1
        parts = [piece[0] for piece in self.pieces[first : last + 1]]
        value = number_value(parts, ties, self._point_before(first))
        lead = self._lead_of_number(first)
        if self._is_exponent(last + 2):
            exponent = self.pieces[last + 2]
            sign = -1 if self.character(exponent.start() - 1) == "-" else 1
            value *= 10.0 ** (sign * int(exponent[0]))
            last += 2
        if lead < self.pieces[first].start() - self._point_before(first):
            value = -value
        return Number(value, first, last, lead)

    def _is_exponent(self, piece: int) -> bool:
        """Whether the digits of a piece are an exponent from 0 to 9: ``e-1``, directly after other digits."""
        if not (self.is_digits(piece) and self.is_digits(piece - 2) and self.word(piece - 1) == "e"):
            return False
        base, letter, digits = self.pieces[piece - 2 : piece + 1]
        sign = self.text[letter.end() : digits.start()]
        is_small = len(digits[0]) == 1 or (len(digits[0]) == 2 and digits[0][0] == "0")
        return is_small and letter.start() == base.end() and sign in ("", "+", "-")


def is_digit(character: str) -> bool:
    """Of a normalized text: ``²`` is none."""
    return "0" <= character <= "9"


def is_word_character(character: str) -> bool:
    """Of a normalized text."""
    return character.isalnum() or not character.isascii()


def number_value(parts: list[str], ties: str, fraction: bool) -> float:
    """The value of a number of these parts of digits, NaN if it cannot be read. ties: the mark between each
    part and the next. fraction: the first part follows a point."""
    if fraction:
        return math.nan if ties else float(f".{parts[0][:FRACTION]}")
    if not re.fullmatch(r",*\.?|;|:{1,2}\.?", ties) or len(parts) > PARTS:
        return math.nan
    value = 0.0
    for tie, part in zip(f" {ties}", parts, strict=True):
        if tie in ".;":
            return value + float(f".{part[:FRACTION]}")
        if len(part) > DIGITS:
            return math.nan
        value = value * {" ": 0, ",": 1000, ":": 60}[tie] + int(part)
    return value


def numbers_in(text: str) -> list[float]:
    """The numbers of a normalized text, from left to right."""
    return [number.value for number in Reading(text).numbers]


def spans_in(text: str) -> list[Span]:
    """The spans (start, end) of a normalized text, from left to right."""
    reading = Reading(text)
    pairs = []
    joined_until = -1  # the piece with which the last pair's second number begins
    for number in reading.numbers:
        second = _joined(reading, number)
        # Of "30 s, 3 to 5" the first two numbers are none, so that the last two are one. False for NaN.
        is_span = second is not None and number.value <= second.value
        if second is not None and is_span and number.first != joined_until:
            pairs.append((number.value, second.value))
            joined_until = second.first
    if not pairs and len(reading.numbers) == 2:
        start, end = (number.value for number in reading.numbers)
        return [(start, end)] if start <= end else []
    return pairs


def _joined(reading: Reading, number: Number) -> Number | None:
    """The second number of the span that begins with ``number``."""
    tail = number.last
    if reading.between(tail) == "" and reading.word(tail + 1) in UNITS:
        tail += 1
    mark = reading.between(tail)
    if mark == "" and reading.word(tail + 1) in JOINING_WORDS and reading.between(tail + 1) == "":
        return reading.number_at.get(tail + 2)
    return reading.number_at.get(tail + 1) if mark and mark in JOINING_MARKS else None


def boxes_in(text: str) -> list[Box]:
    """The boxes (x0, y0, x1, y1) of a normalized text, from left to right, NaN where a number cannot be
    read."""
    reading, boxes = Reading(text), []
    for first in reading.numbers:
        corners = [first]
        while len(corners) < 4 and reading.between(corners[-1].last) == ",":
            following = reading.number_at.get(corners[-1].last + 1)
            if following is None:
                break
            corners.append(following)
        if len(corners) == 4 and reading.is_opened(first) and reading.is_closed(corners[-1]):
            x0, y0, x1, y1 = (corner.value for corner in corners)
            boxes.append((x0, y0, x1, y1))
    return boxes
