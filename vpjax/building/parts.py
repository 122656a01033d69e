"""A build in parts: each is a file with the results of some items, written whole by one worker.

Making a part twice gives the same file, so a worker that dies or runs twice changes nothing. A later run
examines only those videos again that could not be used.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence

from vpjax.building.examine import UNREADABLE, VIDEO_MISSING, Examined, Options, examine
from vpjax.building.items import Item
from vpjax.data.clips import parse_clip
from vpjax.files import exists, open_file, write_whole

ITEMS = 32  # of a part, about
Examiner = Callable[[Sequence[Item], Options], Iterator[Examined]]  # of items of the same files


def parts_of(items: Sequence[Item]) -> Iterator[list[int]]:
    """Split the items with clips into parts of about ITEMS.

    Yields the indices of a part's items; those of the same videos follow one another.
    """
    videos: dict[tuple[str, ...], list[int]] = {}
    for number, item in enumerate(items):
        if item.clip is not None:
            videos.setdefault(item.media, []).append(number)
    part: list[int] = []
    for numbers in videos.values():
        for first in range(0, len(numbers), ITEMS):
            part += numbers[first : first + ITEMS]
            if len(part) >= ITEMS:
                yield part
                part = []
    if part:
        yield part


def make_part(items: Sequence[Item], options: Options, file: str, examine: Examiner = examine) -> None:
    """Examine the items whose results ``file`` does not hold or that may change, and write it."""
    results, pending = list(items), list(range(len(items)))
    known = known_part(file, len(items))
    if known is not None:
        results = known
        pending = [number for number, item in enumerate(results) if may_change(item)]
    for _, numbers in itertools.groupby(pending, key=lambda number: items[number].media):
        same_media = list(numbers)
        examined = examine([items[number] for number in same_media], options)
        for number, result in zip(same_media, examined, strict=True):
            results[number] = result.item
    lines = []
    for item in results:
        clip = None if item.clip is None else item.clip.record()
        lines.append(json.dumps(dataclasses.asdict(item) | dict(clip=clip)) + "\n")
    write_whole(file, "".join(lines).encode())


def read_part(file: str, count: int) -> list[Item]:
    """The ``count`` items of a part. ValueError if the file is damaged."""
    items = []
    with open_file(file, "rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
                clip = parse_clip(record["clip"]) if record["clip"] else None
                items.append(Item(record["place"], clip, record["skipped"], tuple(record["notes"])))
            except (TypeError, KeyError) as error:
                raise ValueError(f"not the result of an item: {error!r}") from error
    if len(items) != count:
        raise ValueError(f"{len(items)} items instead of {count}")
    return items


def known_part(file: str, count: int) -> list[Item] | None:
    """The items of a part; None if it does not exist or is damaged."""
    if not exists(file):
        return None
    try:
        return read_part(file, count)
    except ValueError:
        return None


def is_damaged(file: str, count: int) -> bool:
    """Whether the part exists and cannot be read."""
    return exists(file) and known_part(file, count) is None


def is_finished(file: str, count: int) -> bool:
    """Whether the part exists and none of its items may change."""
    known = known_part(file, count)
    return known is not None and not any(map(may_change, known))


def may_change(item: Item) -> bool:
    """Whether an item was skipped because of its video, which may be mended by the next run."""
    return item.skipped.startswith((VIDEO_MISSING, UNREADABLE))
