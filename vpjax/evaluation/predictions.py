"""Answers on disk, one JSON line each, as they come: what was answered once is never asked again."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vpjax.evaluation.ask import Prediction, Query
from vpjax.types import UserError


class Predictions:
    """The answers in a file, and a place to add more. known: what it holds, by what was asked.

    A line that a killed process left unfinished is dropped. UserError for a file that is none of ours.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.known: dict[Query, Prediction] = {}
        whole = self.path.read_bytes() if self.path.exists() else b""
        whole = whole[: whole.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                said = Prediction(Query(row["id"], row["control"], row["ranked"]), row["text"], row["fault"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self.path}, line {number}: not an answer ({error}): remove the file"
                ) from error
            self.known[said.key] = said
        self._file = open(self.path, "ab")
        self._file.truncate(len(whole))

    def append(self, said: Prediction) -> None:
        clip, control, ranked = said.key
        row = {"id": clip, "control": control, "ranked": ranked, "text": said.text, "fault": said.fault}
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()  # to the system: it survives this process
        self.known[said.key] = said

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
