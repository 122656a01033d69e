"""Rows of published data sets that are no JSON of one's own, for training and evaluation alike.

Each function turns what its authors wrote into the row that the readers of that data set take.
"""

import csv
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from vpjax.data.json_rows import parse_json
from vpjax.files import exists, folder_of, join_path, open_file
from vpjax.types import UserError

# A line of Charades-STA: ``3MSZA 24.3 30.4##person turn a light on.``
CHARADES_LINE = re.compile(r"\s*(\S+)\s+(\S+)\s+(\S+?)\s*##(.*)", re.DOTALL)
PLACEHOLDER = "<placeholder>"  # what Tarsier's files have in place of a video's path
NEXT_GQA_LETTERS = "ABCDE"


def table_rows(lines: Iterable[str]) -> Iterator[dict[str, str] | ValueError]:
    """The rows of a table (csv) with a line of names above it, each a line, so that a quote that is not
    closed is the fault of its own line. A line that does not fit the names is a ValueError."""
    names: list[str] = []
    for number, line in enumerate(lines):
        if number == 0:
            line = line.removeprefix("\ufeff")
        if not line.strip():
            continue
        try:
            cells = next(csv.reader([line.rstrip("\r\n")], strict=True))
            if names and len(cells) != len(names):
                raise ValueError(f"it has {len(cells)} cells below {len(names)} names")
        except (ValueError, csv.Error) as error:
            yield ValueError(str(error))
            continue
        if names:
            yield dict(zip(names, cells, strict=True))
        names = names or cells


def charades_row(line: str) -> dict[str, Any]:
    """A line of Charades-STA's original text, in the form of ActivityNet Captions. ValueError if it is
    none."""
    match = CHARADES_LINE.fullmatch(line)
    if match is None:
        raise ValueError("it is not of the form VIDEO START END##SENTENCE")
    video, start, end, sentence = match.groups()
    return {"video": video, "timestamps": [[float(start), float(end)]], "sentences": [sentence.strip()]}


def next_gqa_row(row: dict[str, str], table: str, *, spans: bool) -> dict[str, Any]:
    """A row of NExT-GQA's published table, in the form that VideoChat-R1 gave it.

    The paths of the videos are in ``map_vid_vidorID.json`` beside the table. spans: with ``glue``, the spans
    of its evidence, which are in ``gsub_test.json`` beside ``test.csv``. ValueError or KeyError if it is no
    row of that table, or has no path or spans there; UserError if there is no such file.
    """
    video, number = row["video_id"], row["qid"]
    options = [row[f"a{option}"] for option in range(len(NEXT_GQA_LETTERS))]
    if row["answer"] not in options:
        raise ValueError(f"its answer {row['answer']!r} is none of {options}")
    converted = {
        "id": f"{video}_{number}",
        "video": f"{beside(table, 'map_vid_vidorID.json')[video]}.mp4",
        "question": row["question"],
        "options": [f"({letter}) {option}" for letter, option in zip(NEXT_GQA_LETTERS, options, strict=True)],
        "answer": f"({NEXT_GQA_LETTERS[options.index(row['answer'])]})",
        "type": row["type"],
    }
    if spans:
        converted["glue"] = beside(table, next_gqa_spans(table))[video]["location"][number]
    return converted


def next_gqa_spans(table: str) -> str:
    """The name of the file with the spans for a table; there is none for that of training."""
    return f"gsub_{PurePath(table).stem}.json"


def tarsier_video(row: Mapping[str, Any], video: str) -> str:
    """The path of a video in a row of Tarsier's. Where the file has a placeholder, the path is what its
    ``vid`` says: of DREAM-1k the name without suffix, of others the path. ValueError if it says none."""
    if video != PLACEHOLDER:
        return video
    name, data_set = row.get("vid"), str(row.get("dataset", ""))
    if data_set.startswith("DREAM/") and isinstance(name, int | str):
        return f"{name}.mp4"
    if isinstance(name, str) and "." in name:
        return name
    raise ValueError("its video_file is still a placeholder: put the video's path there")


@functools.lru_cache(4)
def beside(path: str, name: str) -> Any:
    """The JSON value of the file ``name`` in the folder of the file ``path``. UserError if there is no such
    file, or if it is none of JSON."""
    file = join_path(folder_of(path), name)
    if not exists(file):
        raise UserError(f"{path}: needs {name} beside it")
    with open_file(file) as opened:
        try:
            return parse_json(opened.read())
        except ValueError as error:
            raise UserError(f"{file}: no JSON: {error}") from error
