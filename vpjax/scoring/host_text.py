"""Text as rewards and evaluation read it, on the host. ``texts`` makes the same of bytes on the device."""

import functools
import re
import string
import unicodedata
from pathlib import Path

import numpy as np

# The characters of scripts that are written without spaces, first and last: each is a word of its own. Thai
# to Myanmar, Khmer and Mongolian, Japanese, Chinese.
UNSPACED = (
    (0x0E00, 0x109F),
    (0x1780, 0x18AF),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
PLANE = 0x10000  # characters of the basic plane; of those beyond, only Chinese ones are read
QUOTES = dict.fromkeys("\u2018\u2019\u201b\u2032\u00b4", "'") | dict.fromkeys("\u201c\u201d\u201e\u2033", '"')
PLAIN_QUOTES = str.maketrans(QUOTES)
MARKS = QUOTES | {"\u2212": "-", "\u3001": ",", "\u3002": "."}  # minus, and the marks of Chinese
# Words that are no content words.
STOPWORDS = frozenset(Path(__file__).with_name("stopwords.txt").read_text().split())

_UNSPACED_CLASS = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED)
WORD = re.compile(rf"[{_UNSPACED_CLASS}]|(?:[A-Za-z0-9]|[^\x00-\x7f{_UNSPACED_CLASS}])+")
CHUNK = re.compile(rf"[{_UNSPACED_CLASS}]|[^ {_UNSPACED_CLASS}]+")  # a word with the marks around it
_BEYOND = re.compile(r"[\U00010000-\U0001ffff\U00040000-\U0010ffff]")
_SMALL_LETTERS = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def normalize(text: str) -> str:
    """The text as every reward reads it: ASCII, and the letters of other scripts in lower case.

    Full-width characters and the digits of other scripts are read as ASCII, all dashes and the minus sign as
    ``-``. White space, and what is neither letter, digit nor a mark of ASCII, is a space. A run of spaces is
    one space, a longer run of one mark is two of it."""
    text = _BEYOND.sub(" ", text.translate(_translation()))
    text = re.sub(r" +", " ", text).lstrip()
    return re.sub(r"([!-/:-@\[-`{-~])\1{2,}", r"\1\1", text)


@functools.cache
def folded_characters() -> np.ndarray:
    """u16[PLANE]: what each character of the basic plane is read as."""
    return np.array([ord(_folded(chr(code))) for code in range(PLANE)], np.uint16)


@functools.cache
def _translation() -> dict[int, int]:
    return {code: int(folded) for code, folded in enumerate(folded_characters()) if folded != code}


def _folded(character: str) -> str:
    category = unicodedata.category(character)
    if character in MARKS:
        return MARKS[character]
    if category == "Nd":
        return str(unicodedata.digit(character))
    if category == "Pd":
        return "-"
    plain = character
    if category != "No":  # 10² is not 102
        plain = unicodedata.normalize("NFKC", character)
    if len(plain) == 1 and " " <= plain <= "~":
        return plain
    if category[0] not in "LMN":
        return " "
    if len(plain) > 1 or ord(plain) >= PLANE:
        plain = character
    small = plain.lower()
    return small if len(small) == 1 else plain


def answer_in(text: str) -> str:
    """The answer in a text: from the last ``<answer>`` to the next ``</answer>``, else from the last
    ``</think>`` on. A thought that never ends has no answer. Evidence (``<glue>``) is not part of it."""
    _, found, rest = text.rpartition("<answer>")
    if found:
        answer = rest.partition("</answer>")[0]
    elif "<think>" in text and "</think>" not in text:
        answer = ""
    else:
        answer = text.rpartition("</think>")[2]
    before, found, rest = answer.rpartition("<glue>")
    if not found:
        return answer
    # Three spaces, so that what stands on either side is no neighbour.
    return f"{before}   {rest.partition('</glue>')[2]}"


def evidence_in(text: str) -> str:
    """What follows the last ``<glue>``, up to the next ``</glue>``; "" without one."""
    _, found, rest = text.rpartition("<glue>")
    return rest.partition("</glue>")[0] if found else ""


def split_words(text: str) -> list[str]:
    """The words of a normalized text, in lower case: runs of letters and digits of any script. A character of
    a script without spaces is a word."""
    return [in_small_letters(word) for word in WORD.findall(text)]


def in_small_letters(word: str) -> str:
    """A word of a normalized text in lower case."""
    return word.translate(_SMALL_LETTERS)
