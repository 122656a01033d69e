"""Reads annotation files one record at a time: JSON, JSON lines, ArrayRecord, tables (csv), lines of text."""

import os
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, NamedTuple

from vpjax.data.clips import ARRAY_RECORD_SUFFIXES, read_records
from vpjax.data.json_rows import parse_json, shortened
from vpjax.data.published import table_rows
from vpjax.files import AnyPath, is_folder, join_path, names_in, open_file
from vpjax.types import UserError

SUFFIXES = (".json", ".jsonl", ".csv", ".txt", *ARRAY_RECORD_SUFFIXES)


class Record(NamedTuple):
    """file: its name without suffix. place: for messages. key: of a JSON object's entry, or its number. row:
    its JSON value, a table's row as a dict of strings, or a line of text. path: of the file."""

    file: str
    place: str
    key: str
    row: Any
    path: str


def records(data: AnyPath) -> Iterator[Record]:
    """The records of a file, or of the .json and .jsonl files of a folder. UserError if one is unreadable."""
    files = [os.fspath(data)]
    if is_folder(data):
        files = [join_path(data, name) for name in sorted(names_in(data)) if ".json" in name]
        if not files:
            raise UserError(f"{data}: no .json or .jsonl file in this folder")
    for file in files:
        for key, row in _rows(file):
            yield Record(PurePath(file).stem, f"{file}, row {shortened(key)}", key, row, file)


def _rows(file: str) -> Iterator[tuple[str, Any]]:
    suffix = PurePath(file).suffix
    if suffix not in SUFFIXES:
        kinds = ", ".join(SUFFIXES[:4])
        raise UserError(f"{file}: give one of {kinds} (of a data set of Hugging Face: its to_json)")
    try:
        if suffix == ".json":
            whole = parse_json(_bytes(file), distinct_keys=True)
        elif suffix == ".csv":
            whole = list(table_rows(_text(file).split("\n")))
            for row in whole:
                if isinstance(row, ValueError):
                    raise row
        elif suffix == ".txt":
            whole = [line for line in _text(file).split("\n") if line.strip()]
        else:
            whole = [parse_json(line) for _, line in read_records(file)]
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file}: not {suffix[1:].upper()}: {error}") from error
    entries = whole.items() if isinstance(whole, dict) else enumerate(whole, 1)
    for key, row in entries:
        yield str(key), row


def _bytes(file: str) -> bytes:
    with open_file(file) as opened:
        return opened.read()


def _text(file: str) -> str:
    return _bytes(file).decode("utf-8-sig")
