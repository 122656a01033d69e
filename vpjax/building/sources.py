"""Files of annotations -> their rows, each with its place.

JSON, JSON lines, a table of videos in one JSON object, lists of clips (ArrayRecord), NExT-GQA's table (csv)
and Charades-STA's text. A row that cannot be read is a ValueError with the reason, in its place.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vpjax.data import clips, json_rows
from vpjax.data.published import charades_row, next_gqa_row, next_gqa_spans, table_rows
from vpjax.files import exists, folder_of, is_folder, join_path, open_file
from vpjax.types import UserError


def read_rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file, each with its place. UserError if it cannot be read at all."""
    if str(path).endswith(clips.ARRAY_RECORD_SUFFIXES):
        for number, record in clips.read_records(path):
            yield f"record {number}", parse_json(record)
        return
    if not exists(path) or is_folder(path):
        raise UserError(f"{path}: no such annotation file")
    with open_file(path) as file:
        content = file.read().removeprefix(b"\xef\xbb\xbf")
    if str(path).endswith(".csv"):
        yield from rows_of_table(path, content)
        return
    whole = parse_json(content)
    if isinstance(whole, list):
        for number, row in enumerate(whole, 1):
            yield f"row {number}", row
    elif isinstance(whole, dict) and (table := table_of(whole)) is not None:
        for name, row in table.items():  # whose name becomes a field
            yield f"video {name!r}", {"video": name} | row if isinstance(row, dict) else row
    elif isinstance(whole, dict):
        yield "row 1", whole
    elif content.lstrip().startswith(b"["):
        yield from rows_of_broken_list(path, content, whole)
    else:
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                yield f"line {number}", parse_line(line)


def table_of(whole: dict[str, Any]) -> dict[str, Any] | None:
    """The videos of a JSON object: of YouCook2's file those of its ``database``, of another one the object
    itself, if most of its values are objects. None if it is a row."""
    database = whole.get("database")
    if isinstance(database, dict):
        return database
    objects = sum(isinstance(row, dict) for row in whole.values())
    return whole if objects * 2 > len(whole) else None


def rows_of_broken_list(path: str | Path, content: bytes, error: Any) -> Iterator[tuple[str, Any]]:
    """The rows of a list with a row that is no JSON, or cannot be read. UserError if its brackets and quotes
    do not close, for then nobody can tell where the next row begins, and how many are lost."""
    try:
        elements = list(json_rows.elements_of(content))
    except ValueError as unclosed:
        raise UserError(
            f"{path}: {error}, and {unclosed}: the rows from there on cannot be told apart; get the file "
            "again, or mend it there"
        ) from unclosed
    for number, row in enumerate(elements, 1):
        yield f"row {number}", parse_json(row)


def rows_of_table(path: str | Path, content: bytes) -> Iterator[tuple[str, Any]]:
    """The rows of a table, with their evidence if its file lies beside."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not CSV: {error}") from error
    table = str(path)
    spans = exists(join_path(folder_of(table), next_gqa_spans(table)))
    for number, row in enumerate(table_rows(text.split("\n")), 1):
        yield f"row {number}", converted_row(row, table, spans)


def converted_row(row: dict[str, str] | ValueError, table: str, spans: bool) -> Any:
    """A row of a table in the form that its reader takes, or a ValueError with the reason."""
    if isinstance(row, ValueError):
        return ValueError(f"no CSV: {row}")
    try:
        return next_gqa_row(row, table, spans=spans)
    except KeyError as error:
        return ValueError(f"there is no {error} for it")
    except (ValueError, TypeError) as error:
        return ValueError(str(error))


def parse_line(line: bytes) -> Any:
    """A line's JSON value, or that of a line of Charades-STA's text; a ValueError if it is neither."""
    value = parse_json(line)
    if isinstance(value, ValueError) and b"##" in line:
        try:
            return charades_row(line.decode())
        except ValueError as error:
            return error
    return value


def parse_json(text: bytes) -> Any:
    """A JSON value; a ValueError with the reason if the text is no JSON, or cannot be read."""
    try:
        return json_rows.parse_json(text, distinct_keys=True)
    except ValueError as error:
        return ValueError(f"no JSON: {error}")
