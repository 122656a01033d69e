"""A build in parts: each is a file that holds what became of some items, written whole by one worker.

A part that is made again is the same: a worker that dies or runs twice changes nothing, and a later run only
looks anew at videos that could not be used.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence

from vpjax.building.annotations import Item
from vpjax.building.examine import MISSING, UNREADABLE, Options, examine
from vpjax.data.clips import parse_clip
from vpjax.files import exists, open_file, write_whole

ITEMS = 32  # of a part, about


def parts_of(items: Sequence[Item]) -> Iterator[list[int]]:
    """The places of items with clips, those of one file next to one another, in lists of about ITEMS."""
    files: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        if item.clip is not None:
            files.setdefault(item.clip.video, []).append(number)
    part: list[int] = []
    for numbers in files.values():
        for first in range(0, len(numbers), ITEMS):
            part += numbers[first : first + ITEMS]
            if len(part) >= ITEMS:
                yield part
                part = []
    if part:
        yield part


def make_part(items: Sequence[Item], options: Options, file: str) -> None:
    """Examine the items that ``file`` does not hold for good, and write it."""
    known = read_part(file) if exists(file) else [None] * len(items)
    for first, end in runs_of_one_file(items, [item is None or is_passing(item) for item in known]):
        known[first:end] = (result.item for result in examine(items[first:end], options))
    lines = (json.dumps(dataclasses.asdict(item)) + "\n" for item in known)
    write_whole(file, "".join(lines).encode())


def read_part(file: str) -> list[Item]:
    with open_file(file, "rb") as lines:
        return [item_of(json.loads(line)) for line in lines]


def is_whole(file: str) -> bool:
    """Whether there is nothing left to try in a part that was made."""
    return not any(map(is_passing, read_part(file)))


def item_of(record: dict) -> Item:
    clip = record["clip"] and parse_clip(record["clip"])
    return Item(record["place"], clip, record["skipped"], tuple(record["notes"]))


def is_passing(item: Item) -> bool:
    """Whether another run may find that an item can be used after all."""
    return item.skipped.startswith((MISSING, UNREADABLE))


def runs_of_one_file(items: Sequence[Item], wanted: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """The runs (first, end) of wanted items whose clips are of one file."""
    first = 0
    for end in range(1, len(items) + 1):
        if (
            end == len(items)
            or items[end].clip.video != items[first].clip.video
            or wanted[end] != wanted[first]
        ):
            if wanted[first]:
                yield first, end
            first = end
