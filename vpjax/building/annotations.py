"""Annotation files -> clips: what format they are in, and the reader of each row.

Reasons have the form ``reason: detail``, so that they can be counted.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vpjax.building.dialogues import conversation_items, message_items
from vpjax.building.fields import JsonObject, Rejected, short
from vpjax.building.items import Item, clip_item, skipped_item
from vpjax.building.questions import got10k_items, next_gqa_items, video_r1_items
from vpjax.building.sentences import sentence_items
from vpjax.building.sources import read_rows
from vpjax.data import json_rows
from vpjax.data.clips import FIELDS, parse_clip
from vpjax.data.json_rows import SCHEMES
from vpjax.types import Clip, UserError


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The items of a file. format: a name in FORMATS. rows: their number; each has at least one item."""

    format: str
    rows: int
    items: tuple[Item, ...]


def read_annotations(path: str | Path, format: str = "", schemes: Collection[str] = SCHEMES) -> Annotations:
    """Read an annotation file: JSON, JSON lines, ArrayRecord (of clips), the table of NExT-GQA or the text of
    Charades-STA, with or without a byte order mark.

    format: a name in FORMATS; "" takes that of the first row that fits one. Paths of videos stay as they are
    written; they may be URLs of ``schemes``. Every clip gets an id of its own, even if the file gives none,
    or the same one twice. A broken row is a skipped item. UserError if the file cannot be read at all or is
    in no known format.
    """
    if format and format not in FORMATS:
        raise UserError(f"--format={format}: choose one of {', '.join(FORMATS)}")
    rows = list(read_rows(path))
    if not rows:
        raise UserError(f"{path}: no rows in this file")
    format = format or detect_format(path, [row for _, row in rows])
    items: list[Item] = []
    taken: dict[str, int] = {}
    for place, row in rows:
        row_items = items_of(row, FORMATS[format][0], schemes)
        for number, item in enumerate(row_items, 1):
            question = f"{place}, question {number}" if len(row_items) > 1 else place
            clip = item.clip
            if clip is not None:
                clip = dataclasses.replace(clip, id=new_id(clip, taken))
            items.append(dataclasses.replace(item, place=question, clip=clip))
    return Annotations(format, len(rows), tuple(items))


def detect_format(path: str | Path, rows: Sequence[Any]) -> str:
    """The format of the first row that fits one."""
    for row in rows:
        keys = row.keys() if isinstance(row, dict) else set()
        for format, (_, alternatives) in FORMATS.items():
            if format == "clips" and not keys <= FIELDS:
                continue
            if any(fields <= keys for fields in alternatives):
                return format
    first = short(rows[0])
    if isinstance(rows[0], dict):
        first = f"its first row has {json_rows.shortened(', '.join(sorted(rows[0])))}"
    raise UserError(f"{path}: in no known format ({first}); --format takes one of {', '.join(FORMATS)}")


def items_of(
    row: Any, read: Callable[[JsonObject], Iterable[Item]], schemes: Collection[str] = SCHEMES
) -> list[Item]:
    """The items of a row, at least one. Whatever is wrong with it makes one skipped item of it."""
    try:
        if isinstance(row, ValueError):
            raise row
        if not isinstance(row, dict):
            raise ValueError(f"{short(row)} is not a JSON object")
        json_rows.check_row(row)
        items = list(read(row)) or [skipped_item(Rejected("empty row: it asks nothing"))]
        for item in items:
            for medium in item.media:
                json_rows.check_path(medium, schemes)
        return items
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        return [skipped_item(error)]


def new_id(clip: Clip, taken: dict[str, int]) -> str:
    """The clip's id or the name of its video, with the least number that is free if it is taken. taken: the
    ids so far, each with the last number that was put behind it; this one is added."""
    stem = clip.id or PurePosixPath(clip.video).stem or "text"
    name = stem
    while name in taken:
        taken[stem] += 1
        name = f"{stem}~{taken[stem]}"
    taken[name] = 1
    return name


def vpjax_items(row: JsonObject) -> Iterator[Item]:
    """The clips of vpjax itself."""
    yield clip_item(**vars(parse_clip(row)))


# Name -> (reader, sets of fields that identify the format), in the order in which they are tried.
# ``grounding`` has the fields of ``captions``, so it must be requested. ``clips`` have no fields but those of
# a Clip.
FORMATS: dict[str, tuple[Callable[[JsonObject], Iterable[Item]], list[set[str]]]] = {
    "conversations": (conversation_items, [{"conversations"}]),
    "messages": (message_items, [{"messages"}, {"prompt", "completion"}]),
    "video-r1": (video_r1_items, [{"problem"}]),
    "next-gqa": (next_gqa_items, [{"video", "question", "options", "answer"}]),
    "captions": (
        functools.partial(sentence_items, grounding=False),
        [{"timestamps", "sentences"}, {"annotations", "subset"}],
    ),
    "grounding": (functools.partial(sentence_items, grounding=True), []),
    "got10k": (got10k_items, [{"path", "object", "gt"}]),
    "clips": (vpjax_items, [{"id", "question", "answer"}]),
}
