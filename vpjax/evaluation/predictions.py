"""Predictions on disk, one JSON line each, as they come: no query is answered twice."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import IO

from vpjax.evaluation.ask import Prediction, Query
from vpjax.types import UserError


class Predictions(contextlib.AbstractContextManager):
    """The predictions of a file, and the place to add more.

    known: all of them, by query. path: None: they are kept in memory alone, as they are before ``open``. A
    line that a killed process left unfinished is dropped. UserError for a line that is no prediction.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.known: dict[Query, Prediction] = {}
        self._path = Path(path) if path else None
        self._file: IO[bytes] | None = None
        content = b""
        if self._path and self._path.exists():
            content = self._path.read_bytes()
        content = content[: content.rfind(b"\n") + 1]
        self._size = len(content)
        for number, line in enumerate(content.splitlines(), 1):
            try:
                row = json.loads(line)
                query = Query(row["id"], row["control"], row["ranked"])
                self.known[query] = Prediction(query, row["text"], row["fault"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not an answer ({error}): remove the file") from error

    def open(self) -> None:
        """Write to the file from here on."""
        assert self._path
        self._file = self._path.open("ab")
        self._file.truncate(self._size)

    def append(self, prediction: Prediction) -> None:
        query = prediction.query
        self.known[query] = prediction
        if self._file:
            row = {
                "id": query.clip,
                "control": query.control,
                "ranked": query.ranked,
                "text": prediction.text,
                "fault": prediction.fault,
            }
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()  # to the system: it survives this process

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()
