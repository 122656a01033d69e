"""The boundary through which rows of files from elsewhere come in.

What passes it can be hashed, written, tokenized and looked for on a disk. What does not is a ValueError that
says why, so that a reader can count the row and go on.
"""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from vpjax.files import is_remote

SCHEMES = ("gs", "gcs", "s3", "s3a", "https", "file")  # of the URLs that rows may name, besides local paths
MAX_DEPTH = 100  # of lists and objects in one another: deeper ones would exhaust Python's stack somewhere
MAX_BITS = 1000  # of a whole number, which floats can hold
MAX_TEXT = 100_000  # characters of a text: more than any context holds
MAX_REASON = 300  # characters of what is said of a row, which may quote it
# A string, which has no line break, or what gives JSON its structure, or a quotation mark that is not closed.
JSON_MARK = re.compile(rb'"[^"\\\n]*(?:\\[^\n][^"\\\n]*)*"|[\[\]{},"]')


def parse_json(text: bytes, *, distinct_keys: bool = False) -> Any:
    """The value of a JSON text, with a byte order mark or without. ValueError if it is none. distinct_keys:
    an object that has a key twice is none."""

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            raise ValueError("an object has the same key twice")
        return row

    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=object_of if distinct_keys else None)
    except RecursionError:
        raise ValueError("lists and objects are nested too deep") from None


def check_row(row: Any) -> None:
    """ValueError if a JSON value is one that later steps could not handle: nested too deep, with a text that
    is too long or no Unicode, or with a number beyond those of floats."""
    level, depth = [row], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"lists and objects are nested more than {MAX_DEPTH} deep")
        below: list[Any] = []
        for x in level:
            if isinstance(x, str):
                _check_text(x)
            elif isinstance(x, dict):
                below += x
                below += x.values()
            elif isinstance(x, list):
                below += x
            elif isinstance(x, int) and x.bit_length() > MAX_BITS:
                raise ValueError(f"a number has {x.bit_length()} bits, more than {MAX_BITS}")
        level = below


def _check_text(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise ValueError(f"a text has {len(text):,} characters, more than {MAX_TEXT:,}")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text has half of a character (a lone surrogate)") from None


def reason_of(error: Exception) -> str:
    """What is wrong with a row, in one line that is short enough to be read."""
    return shortened(str(error))


def shortened(text: str) -> str:
    """A text that quotes a row, in one line of at most MAX_REASON characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_REASON else f"{line[: MAX_REASON - 3]}..."


def check_path(path: str, schemes: Collection[str] = SCHEMES) -> None:
    """ValueError if a row's path of a video cannot be one, or is a URL that rows may not name."""
    if "\0" in path:
        raise ValueError(f"the path {path[:80]!r} has a NUL character")
    if "::" in path:
        raise ValueError(f"the path {path[:80]!r} has '::', by which fsspec would chain places")
    scheme = path.partition("://")[0]
    if is_remote(path) and scheme not in schemes:
        raise ValueError(
            f"videos at {scheme}:// are not fetched ({path[:80]}); rows may name {names(schemes)}"
        )


def names(schemes: Collection[str]) -> str:
    return ", ".join(["local paths", *(f"{scheme}://" for scheme in schemes)])


def elements_of(text: bytes) -> Iterator[bytes]:
    """The elements of a JSON list as they are written, for a list of which some cannot be read.

    A missing comma between two of them is no fault. ValueError if the brackets and quotation marks do not
    close: then an element may hold others, and nobody can tell how many.
    """
    depth, start = 0, 0
    for mark in JSON_MARK.finditer(text):
        kind, opens = mark[0], mark[0] in (b"[", b"{")
        if kind == b'"':
            raise ValueError("a quotation mark is not closed")
        if depth == 0 and start:
            raise ValueError("a bracket closes the list too soon")
        if depth == 1 and (opens or kind in b",]"):
            if element := text[start : mark.start()].strip():
                yield element
            start = mark.start() if opens else mark.end()
        if opens:
            depth += 1
            if depth == 1:
                start = mark.end()
        elif kind in (b"]", b"}"):
            depth -= 1
    if depth:
        raise ValueError("the list does not end")
    if text[start:].strip():
        raise ValueError("a bracket closes the list too soon")
