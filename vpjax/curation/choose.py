"""Chooses among the rows that the filters of rows keep: copies go, then a draw under caps.

Everything follows the order of the draw, a hash of the seed and of what a row says, so that the same rows are
chosen on every machine, in whatever order the sources' files have them.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from vpjax.curation.recipe import Filter, Recipe
from vpjax.curation.signatures import likeness
from vpjax.curation.store import Drop, Member, Open, Store

# Why the draw leaves a row out, in the order in which it looks.
CAPS = ("cap of the video", "cap of the action", "cap of the length", "share of the source")


def drop_copies(store: Store, kind: str, filter: Filter) -> None:
    """Drop the rows that are too like an earlier one in the order of the draw. kind: of the signatures.

    In each band all rows are compared with its first, and with those that are ``is_elsewhere`` of all that
    are compared with: hardly more comparisons than rows. What is like a row that is itself a copy goes too.
    """
    store.drop(list(copies(store.bands(kind), kind, filter)))


def copies(bands: Iterable[Iterable[Member]], kind: str, filter: Filter) -> Iterator[Drop]:
    found: set[int] = set()
    for members in bands:
        firsts: list[Member] = []
        for other in members:
            compared = [first for first in firsts if not is_elsewhere(first, other, kind)]
            if not compared:
                firsts.append(other)
            for first in compared:
                if other.id in found:
                    break
                value = likeness(*(np.frombuffer(row.signature, np.uint32) for row in (first, other)))
                if not filter.keeps(value):
                    found.add(other.id)
                    yield Drop(other.id, filter.measure, value, first.id)


def is_elsewhere(first: Member, other: Member, kind: str) -> bool:
    """Whether two rows are no copies, however alike: of one video and of other times, or, where pictures are
    compared, of one video at all."""
    if first.video != other.video:
        return False
    return kind == "picture" or not overlap(json.loads(first.clip)["spans"], json.loads(other.clip)["spans"])


def overlap(first: list[list[float]], other: list[list[float]]) -> bool:
    """Whether spans share a moment; those that are unknown may."""
    if not first or not other:
        return True
    return any(a[0] <= b[1] and b[0] <= a[1] for a in first for b in other)


def draw(rows: Iterable[Open], recipe: Recipe, total: int) -> Iterator[Drop]:
    """The rows that a draw of ``total`` leaves out. Each row is taken if no cap is reached."""
    caps = recipe.caps
    places = recipe.places(total)
    of_action, of_length = max(1, round(caps.action * total)), max(1, round(caps.length * total))
    taken: Counter[tuple[str, object]] = Counter()
    for row in rows:
        kinds = (row.video, row.action, length_bin(row.seconds, caps.edges), row.source)
        limits = (caps.video, of_action, of_length, places[row.source])
        keys = list(zip(CAPS, kinds, strict=True))
        full = [key for key, limit in zip(keys, limits, strict=True) if taken[key] >= limit]
        if full:
            yield Drop(row.id, full[0][0])
        else:
            taken.update(keys)


def length_bin(seconds: float | None, edges: tuple[float, ...]) -> int:
    """The number of the edges that a length has passed; -1: it is unknown."""
    return -1 if seconds is None else int(np.searchsorted(edges, seconds, "right"))
