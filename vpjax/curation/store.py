"""What a curation knows so far: a SQLite file on this machine, so that memory does not grow with the rows.

Each chunk of rows is one transaction: a process that is killed leaves whole chunks, and the same command goes
on after the last one. What is dropped later (``drops``) follows from the rows alone and is found anew by each
command.
"""

import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vpjax.curation.rows import Row
from vpjax.types import UserError

CACHE_KB = 65_536  # of the file's pages that SQLite holds
COLUMNS = [name for name in Row._fields if name != "bands"]
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, made_from TEXT, rows INTEGER, finished INTEGER);
CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, {", ".join(COLUMNS)});
CREATE TABLE IF NOT EXISTS bands (kind TEXT, band INTEGER, row INTEGER);
CREATE TABLE IF NOT EXISTS pictures (row INTEGER PRIMARY KEY, signature BLOB);
CREATE TABLE IF NOT EXISTS examined (row INTEGER PRIMARY KEY, made_from TEXT, skipped TEXT, clip TEXT);
CREATE TABLE IF NOT EXISTS drops (row INTEGER PRIMARY KEY, fate TEXT, value REAL, other INTEGER,
    detail TEXT);
"""
# Each row has one: the filter of rows that dropped it, what dropped it later, or "" if it is chosen.
FATES = """SELECT rows.id AS id, IIF(dropped != '', dropped, COALESCE(fate, '')) AS fate,
    COALESCE(drops.value, rows.value) AS value, other, COALESCE(drops.detail, rows.detail) AS detail
    FROM rows LEFT JOIN drops ON drops.row = rows.id"""


class Open(NamedTuple):
    """A row that nothing has dropped so far."""

    id: int
    source: str
    video: str
    action: str
    seconds: float | None


class OpenClip(NamedTuple):
    """The clip of such a row. number, place: see ``rows.Row``. record: its JSON object, as text."""

    id: int
    source: str
    number: int
    place: str
    record: str


class Drop(NamedTuple):
    """Why a row is dropped. value: what was measured. other: the row of which it is a copy. detail: what is
    wrong with its video."""

    row: int
    fate: str
    value: float | None = None
    other: int | None = None
    detail: str = ""


class Member(NamedTuple):
    """A row in a band, with its signature."""

    id: int
    video: str
    clip: str
    signature: bytes


class Store:
    """The file ``path`` of the curation that is made from ``made_from``. UserError if it holds another."""

    def __init__(self, path: Path, made_from: dict[str, Any]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.counts_of: dict[str, int] = {}
        self.sql = sqlite3.connect(path)
        try:
            self.sql.execute("PRAGMA journal_mode=WAL")  # a power cut leaves the last transactions out
            self.sql.execute("PRAGMA synchronous=NORMAL")
            self.sql.execute(f"PRAGMA cache_size=-{CACHE_KB}")
            self.sql.executescript(SCHEMA)
            known = dict(self.sql.execute("SELECT name, value FROM about"))
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: damaged ({error}): delete it and curate again") from error
        wanted = {name: json.dumps(value) for name, value in made_from.items()}
        if changed := [name for name, value in wanted.items() if known.get(name, value) != value]:
            raise UserError(
                f"{path}: holds a curation with another {' and '.join(changed)}: delete its folder or choose "
                "another one"
            )
        with self.sql:
            self.sql.executemany("INSERT OR IGNORE INTO about VALUES (?, ?)", wanted.items())

    def close(self) -> None:
        self.sql.close()

    def claim_files(self, made_from: Mapping[str, Any]) -> None:
        """Record the annotation files that are to be read, with what tells each from another of its name.
        UserError if rows of others were read, or of these when they were others."""
        wanted = {path: json.dumps(value) for path, value in made_from.items()}
        known = dict(self.sql.execute("SELECT path, made_from FROM files"))
        for path, value in known.items():
            if wanted.get(path) != value:
                problem = "is another file now" if path in wanted else "is no file of the recipe any more"
                raise UserError(f"{self.path}: {path} {problem}: delete its folder or choose another one")
        with self.sql:
            rows = [(path, value) for path, value in wanted.items()]
            self.sql.executemany("INSERT OR IGNORE INTO files VALUES (?, ?, 0, 0)", rows)

    def rows_read(self, file: str) -> tuple[int, bool]:
        """How many rows of an annotation file are read, and whether these are all."""
        rows, finished = self.sql.execute(
            "SELECT rows, finished FROM files WHERE path = ?", (file,)
        ).fetchone()
        return rows, bool(finished)

    def add(self, file: str, read: int, judged: Sequence[Sequence[Row]]) -> None:
        """Add the questions of the rows that follow the first ``read`` ones of a file, in one transaction."""
        questions = [row for rows in judged for row in rows]
        (last,) = self.sql.execute("SELECT COALESCE(MAX(id), 0) FROM rows").fetchone()
        number = self._count_of(questions[0].source)
        records, bands = [], []
        for place, row in enumerate(questions, 1):
            *values, row_bands = row._replace(number=number + place)
            records.append((last + place, *values))
            bands += [("caption", band, last + place) for band in row_bands]
        with self.sql:
            marks = ", ".join("?" * (1 + len(COLUMNS)))
            self.sql.executemany(f"INSERT INTO rows VALUES ({marks})", records)
            self.sql.executemany("INSERT INTO bands VALUES (?, ?, ?)", bands)
            self.sql.execute("UPDATE files SET rows = ? WHERE path = ?", (read + len(judged), file))
        self.counts_of[questions[0].source] = number + len(questions)

    def _count_of(self, source: str) -> int:
        """How many questions of a source are known."""
        if source not in self.counts_of:
            query = "SELECT COUNT(*) FROM rows WHERE source = ?"
            (self.counts_of[source],) = self.sql.execute(query, (source,)).fetchone()
        return self.counts_of[source]

    def finish(self, file: str) -> None:
        """Record that a file has no more rows."""
        with self.sql:
            self.sql.execute("UPDATE files SET finished = 1 WHERE path = ?", (file,))

    def forget_drops(self) -> None:
        with self.sql:
            self.sql.execute("DELETE FROM drops")
            self.sql.execute("DELETE FROM pictures")
            self.sql.execute("DELETE FROM bands WHERE kind = 'picture'")

    def drop(self, drops: Iterable[Drop]) -> None:
        """Drop rows; one that is dropped already keeps its fate."""
        with self.sql:
            self.sql.executemany("INSERT OR IGNORE INTO drops VALUES (?, ?, ?, ?, ?)", drops)

    def open_rows(self) -> Iterator[Open]:
        """The rows that nothing has dropped so far, in the order of the draw."""
        query = f"""SELECT {", ".join(Open._fields)} FROM rows LEFT JOIN drops ON drops.row = rows.id
            WHERE dropped = '' AND drops.row IS NULL ORDER BY draw, id"""
        return map(Open._make, self.sql.execute(query))

    def open_clips(self) -> Iterator[OpenClip]:
        """The clips of the rows that nothing has dropped so far, in their order."""
        query = """SELECT rows.id, source, number, place, clip FROM rows
            LEFT JOIN drops ON drops.row = rows.id
            WHERE dropped = '' AND drops.row IS NULL ORDER BY rows.id"""
        return map(OpenClip._make, self.sql.execute(query))

    def examined(self, made_from: str) -> dict[int, tuple[str, str]]:
        """(skipped, clip) of the rows that nothing has dropped so far and whose videos were examined, as
        ``made_from`` says."""
        query = """SELECT examined.row, skipped, examined.clip FROM examined
            LEFT JOIN drops ON drops.row = examined.row WHERE made_from = ? AND drops.row IS NULL"""
        return {row: (skipped, clip) for row, skipped, clip in self.sql.execute(query, (made_from,))}

    def add_examined(self, made_from: str, results: Iterable[tuple[int, str, str]]) -> None:
        """Add (row, skipped, clip) of rows whose videos were examined."""
        with self.sql:
            records = ((row, made_from, skipped, clip) for row, skipped, clip in results)
            self.sql.executemany("INSERT OR REPLACE INTO examined VALUES (?, ?, ?, ?)", records)

    def add_pictures(self, pictures: Iterable[tuple[int, bytes, list[int]]]) -> None:
        """Add the signatures of rows' videos, and their bands."""
        with self.sql:
            for row, signature, bands in pictures:
                self.sql.execute("INSERT INTO pictures VALUES (?, ?)", (row, signature))
                self.sql.executemany("INSERT INTO bands VALUES ('picture', ?, ?)", [(x, row) for x in bands])

    def bands(self, kind: str) -> Iterator[Iterator[Member]]:
        """The open rows of each band of a kind (caption, picture) that several rows share, in the order of
        the draw."""
        self.sql.execute("CREATE INDEX IF NOT EXISTS by_band ON bands (kind, band)")
        signature, join = "rows.signature", ""
        if kind == "picture":
            signature, join = "pictures.signature", "JOIN pictures ON pictures.row = rows.id"
        query = f"""SELECT band, rows.id, video, clip, {signature} FROM bands
            JOIN rows ON rows.id = bands.row {join} LEFT JOIN drops ON drops.row = rows.id
            WHERE kind = ? AND drops.row IS NULL AND band IN
                (SELECT band FROM bands WHERE kind = ? GROUP BY band HAVING COUNT(*) > 1)
            ORDER BY band, draw, rows.id"""
        found = self.sql.execute(query, (kind, kind))
        for _, members in itertools.groupby(found, key=lambda row: row[0]):
            yield (Member(*member[1:]) for member in members)

    # For the report

    def counts(self) -> dict[tuple[str, str], int]:
        """The number of rows by (source, fate)."""
        query = f"""SELECT source, fate, COUNT(*) FROM ({FATES}) AS fates JOIN rows USING (id)
            GROUP BY source, fate"""
        return {(source, fate): count for source, fate, count in self.sql.execute(query)}

    def values(self, column: str) -> Iterator[tuple[Any, int]]:
        """The values of a column of the chosen rows, with how many rows have each, the commonest first."""
        query = f"""SELECT {column}, COUNT(*) FROM ({FATES}) AS fates JOIN rows USING (id) WHERE fate = ''
            GROUP BY {column} ORDER BY COUNT(*) DESC, {column}"""
        return iter(self.sql.execute(query))

    def samples(self, fate: str, count: int) -> list[dict[str, Any]]:
        """The first rows of a fate in the order of the draw, as dicts of their columns, with what was
        measured, why its video cannot be used, and the caption and the place of ``other``."""
        query = f"""SELECT rows.*, fates.value, fates.detail, others.caption,
                others.source || ', ' || others.place
            FROM ({FATES}) AS fates JOIN rows USING (id) LEFT JOIN rows AS others ON others.id = other
            WHERE fate = ? ORDER BY rows.draw, rows.id LIMIT ?"""
        names = ["id", *COLUMNS, "measured", "why", "other_caption", "other_place"]
        return [dict(zip(names, row, strict=True)) for row in self.sql.execute(query, (fate, count))]
