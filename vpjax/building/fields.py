"""The fields of a row of annotations, and the videos and images that it names."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vpjax.types import MEDIA_TAG

JsonObject = dict[str, Any]
Medium = tuple[str, Any]  # "video" or "image", and its path

TAG = re.compile(r"\s*<(video|image)>\s*")  # LLaVA-Video writes <image> for its videos, too


class Rejected(ValueError):
    """A whole row that cannot be a clip. Its text is ``reason: detail``."""


def field(row: JsonObject, name: str, kind: type = str, default: Any = None) -> Any:
    """A field of a row, or ``default`` if it is missing. ValueError if it is not of its kind."""
    value = default if row.get(name) is None else row[name]
    if isinstance(value, kind):
        return value
    found = f"is {short(value)}" if name in row else "is missing"
    raise ValueError(f"field {name!r} {found}, not a {'string' if kind is str else kind.__name__}")


def short(value: Any) -> str:
    text = str(value) if isinstance(value, ValueError) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def media_of(row: JsonObject) -> list[Medium]:
    """All that the fields of a row name as its videos and images. NaN is what pandas writes for none."""
    return [
        (kind, path)
        for kind in ("video", "image")
        for name in (kind, f"{kind}s")
        if row.get(name) and row[name] == row[name]
        for path in as_list(row[name])
    ]


def shown_fields(media: Sequence[Medium]) -> JsonObject:
    """The fields of a clip that shows these videos and images."""
    for _, path in media:
        if not (isinstance(path, str) and path):
            raise ValueError(f"{short(path)} is not the path of a video")
    paths = [path for _, path in media]
    return dict(video="".join(paths[:1]), others=tuple(paths[1:]))


def in_shown_order(media: Sequence[Medium], questions: Sequence[str], *, tagged: bool) -> list[Medium]:
    """Videos and images in the order of the tags in the questions that show them.

    If a row has both, a tag shows the next one of its kind, else the next one, for some files write <image>
    for videos. tagged: there must be as many tags as media; if False, there may be none.
    """
    tags = [tag for question in questions for tag in TAG.findall(question)]
    if len(tags) != len(media) and (tagged or tags):
        raise ValueError(f"{len(tags)} media tags for {len(media)} videos or images")
    kinds = Counter(kind for kind, _ in media)
    if not tags or len(kinds) < 2:
        return list(media)
    if Counter(tags) != kinds:
        raise ValueError(f"{tags.count('image')} <image> tags for {kinds['image']} images and other videos")
    waiting = {kind: [medium for medium in media if medium[0] == kind] for kind in kinds}
    return [waiting[tag].pop(0) for tag in tags]


def with_marks(questions: Sequence[str], count: int) -> list[str]:
    """Questions with a MEDIA_TAG in place of each tag. If all ``count`` of them begin the first question,
    which is their place anyway, they are left out."""
    marked = [question.replace("<image>", MEDIA_TAG).strip() for question in questions]
    text = marked[0]
    for _ in range(count):
        if not text.startswith(MEDIA_TAG):
            return marked
        text = text.removeprefix(MEDIA_TAG).strip()
    return [text, *marked[1:]]


def extra_fields(row: JsonObject, *names: str) -> JsonObject:
    return {name: row[name] for name in names if name in row}
