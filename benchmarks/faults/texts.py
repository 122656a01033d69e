"""Mutated text files: annotations, clips and benchmarks, and what their readers make of them."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.faults.pool import kind_at
from benchmarks.faults.tally import refusal
from benchmarks.faults.text_seeds import FILES, Seed
from vpjax.building.annotations import read_annotations
from vpjax.building.examine import find_video
from vpjax.building.fields import Rejected
from vpjax.data.clips import read_clips, write_clips
from vpjax.data.json_rows import parse_json
from vpjax.evaluation.benchmarks import read_benchmark
from vpjax.files import is_remote
from vpjax.types import UserError

# Values as they may stand in a file, most of which no program would write.
JUNK = [
    *(b"null", b"true", b"0", b"-1", b"1e999", b"NaN", b"-Infinity", b'""', b"[]", b"{}", b"[[]]", b"[null]"),
    *(b'"\\ud83d"', b'"\xed\xa0\xbd"', b'"\xff\xfe"', b'"a\\u0000b"', b'"a\x00b"', b'"\\u2028"', b'"\\x"'),
    *(b"9" * 400, b"9" * 5000, b"-1e-400", b"[" * 3000 + b"]" * 3000, b'{"a":' * 200 + b"1" + b"}" * 200),
    b'"' + b"word " * 250_000 + b'"',
    *(
        b'"foo://x/a.mp4"',
        b'"ftp://x/a.mp4"',
        b'"zip://a::ftp://x"',
        b'"../../../../etc/passwd"',
        b'"/dev/null"',
    ),
    *(b'"' + b"a" * 5000 + b'.mp4"', b"'single'", b"undefined", b"", b'{"a": 1, "a": 2}', b"01", b"1.", b'"'),
]
MARK = "@@junk@@"
STRUCTURE = b'[]{},:"'


class Content(NamedTuple):
    """A mutated file. rows: that it holds, as lines or as JSON count them; None: nobody can tell."""

    content: bytes
    rows: int | None


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a JSON value."""
    children: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def replace_value(rng: np.random.Generator, seed: Seed) -> Content:
    """A value, or the name of a field, replaced by something that does not belong there."""
    junk = JUNK[rng.integers(len(JUNK))]
    if seed.form in ("csv", "text"):
        words = seed.content.split(b"," if seed.form == "csv" else b" ")
        place = int(rng.integers(len(words)))
        words[place] = junk.replace(b"\n", b" ")
        content = (b"," if seed.form == "csv" else b" ").join(words)
        return Content(content, lines_of(content, seed))
    value: Any = copy.deepcopy(seed.value)
    every = list(places(value))
    *path, last = every[rng.integers(len(every))]
    parent = value
    for key in path:
        parent = parent[key]
    if isinstance(parent, dict) and rng.integers(8) == 0:
        parent[MARK] = parent.pop(last)
        junk = json.dumps(junk.decode(errors="replace")[:200]).encode()
    else:
        parent[last] = MARK
    content = seed.write(value).replace(json.dumps(MARK).encode(), junk)
    return Content(content, lines_of(content, seed) if seed.form == "lines" else seed.rows)


def flip(rng: np.random.Generator, seed: Seed) -> Content:
    """A few bytes changed."""
    content = bytearray(seed.content)
    for _ in range(rng.integers(1, 9)):
        content[rng.integers(len(content))] ^= int(rng.integers(1, 256))
    return counted(bytes(content), seed)


def cut(rng: np.random.Generator, seed: Seed) -> Content:
    """The beginning of the file, or it without a part of its middle."""
    first, last = sorted(rng.integers(1, len(seed.content), 2).tolist())
    content = seed.content[:last] if rng.integers(2) else seed.content[:first] + seed.content[last:]
    rows = lines_of(content, seed) if seed.form not in ("list", "table") else None
    return Content(content, rows)


def drop_structure(rng: np.random.Generator, seed: Seed) -> Content:
    """Brackets, quotation marks, commas or colons lost or doubled."""
    marks = [place for place, byte in enumerate(seed.content) if byte in STRUCTURE]
    content = bytearray(seed.content)
    for _ in range(rng.integers(1, 4)):
        place = marks[rng.integers(len(marks))] if marks else int(rng.integers(len(content)))
        place = min(place, len(content) - 1)
        if rng.integers(2):
            del content[place]
        else:
            content.insert(place, content[place])
    return counted(bytes(content), seed)


def move_lines(rng: np.random.Generator, seed: Seed) -> Content:
    """Lines lost, doubled or in another order."""
    lines = seed.content.split(b"\n")
    number = int(rng.integers(len(lines)))
    choice = rng.integers(3)
    if choice == 0:
        del lines[number]
    elif choice == 1:
        lines.insert(number, lines[number])
    else:
        lines = [lines[i] for i in rng.permutation(len(lines))]
    content = b"\n".join(lines)
    rows = lines_of(content, seed) if seed.form not in ("list", "table") else None
    return Content(content, rows)


def encode_otherwise(rng: np.random.Generator, seed: Seed) -> Content:
    """Another encoding, other line ends, marks of byte order, NUL bytes."""
    text = seed.content.decode()
    made = [
        lambda: text.encode("utf-16"),
        lambda: text.replace("e", "é").encode("latin-1", "replace"),
        lambda: b"\xef\xbb\xbf" + seed.content,
        lambda: seed.content.replace(b"\n", b"\r\n"),
        lambda: seed.content.replace(b"\n", b"\r"),
        lambda: text.replace(" ", "\u2028").encode(),
        lambda: seed.content + bytes(rng.integers(1, 4096)),
        lambda: bytes(len(seed.content)),
        lambda: b"",
        lambda: bytes(rng.integers(1, 64)) + seed.content,
    ]
    return Content(made[rng.integers(len(made))](), None)


def bad_sector(rng: np.random.Generator, seed: Seed) -> Content:
    """A block of zeros or of noise."""
    content, size = bytearray(seed.content), int(rng.integers(1, 257))
    place = int(rng.integers(len(content)))
    block = bytes(size) if rng.integers(2) else rng.bytes(size)
    content[place : place + size] = block[: len(content) - place]
    rows = lines_of(bytes(content), seed) if seed.form not in ("list", "table") else None
    return Content(bytes(content), rows)


def lines_of(content: bytes, seed: Seed) -> int:
    """The rows of a file of lines: those that have more than spaces, but for the names above a table."""
    return sum(bool(line.strip()) for line in content.split(b"\n")) - (seed.form == "csv")


def counted(content: bytes, seed: Seed) -> Content:
    """A file some of whose bytes were changed, lost or doubled: a list or table has as many rows as before,
    or as many as JSON finds."""
    if seed.form not in ("list", "table"):
        return Content(content, lines_of(content, seed))
    try:
        value = parse_json(content, distinct_keys=True)
    except ValueError:
        return Content(content, seed.rows)
    if isinstance(value, dict):
        value = value.get("database", value)
    return Content(content, len(value) if isinstance(value, list | dict) else None)


MUTATIONS: dict[str, Callable[[np.random.Generator, Seed], Content]] = {
    "a value replaced": replace_value,
    "bytes changed": flip,
    "cut": cut,
    "brackets, quotes lost, doubled": drop_structure,
    "lines lost, doubled, moved": move_lines,
    "another encoding": encode_otherwise,
    "a block of zeros or noise": bad_sector,
}


def mutated(number: int, seed: int) -> tuple[Seed, Content]:
    rng = np.random.default_rng([seed, number])
    whole = FILES[rng.integers(len(FILES))]
    return whole, MUTATIONS[kind_at(MUTATIONS, number)](rng, whole)


def attempt(number: int, folder: Path, seed: int) -> tuple[str, str, str]:
    """A trial: the file is read, and what it gave is written, looked for and encoded, as the commands do."""
    whole, (content, rows) = mutated(number, seed)
    place = folder / "texts"
    place.mkdir(exist_ok=True)
    for name, beside in whole.beside.items():
        (place / name).write_bytes(beside)
    file = place / whole.name
    file.write_bytes(content)
    what = f"{whole.reader}, {whole.name}"
    try:
        found, said = READERS[whole.reader.partition(" ")[0]](file, whole)
    except UserError as error:
        return kind_at(MUTATIONS, number), refusal(error), f"{what}: {error}"
    detail = f"{what}: {found} of {rows} rows; {said}"[:400]
    if rows is not None and found < rows:
        return kind_at(MUTATIONS, number), "lost", detail
    return kind_at(MUTATIONS, number), "told" if said else "read", detail


def read_as_build(file: Path, seed: Seed) -> tuple[int, str]:
    """(rows, why some were skipped)"""
    annotations = read_annotations(file)
    hashlib.sha256(repr(annotations.items).encode())
    json.dumps([dataclasses.asdict(item) for item in annotations.items])
    clips = [item.clip for item in annotations.items if item.clip]
    write_clips(file.with_name("written.jsonl"), clips)
    for clip in clips:
        for medium in clip.media:
            if not is_remote(medium):
                try:
                    find_video(medium, str(file.parent))
                except Rejected as error:
                    assert "\n" not in str(error)
    return annotations.rows, "; ".join(item.skipped for item in annotations.items if item.skipped)


def read_as_training(file: Path, seed: Seed) -> tuple[int, str]:
    """The same of a file of clips."""
    said: list[str] = []
    clips = read_clips(file, max_fault_share=1.0, say=said.append)
    for clip in clips:
        for text in clip.texts:
            text.encode()
    left_out = int(said[0].partition(": ")[2].split()[0]) if said else 0
    return len(clips) + left_out, "; ".join(said)


def read_as_evaluation(file: Path, seed: Seed) -> tuple[int, str]:
    """The same of a benchmark's file, each of whose rows has one question."""
    clips, left_out = read_benchmark(seed.reader.partition(" ")[2], file)
    return len(clips) + left_out.total(), "; ".join(left_out)


READERS = {"build": read_as_build, "train": read_as_training, "evaluate": read_as_evaluation}
