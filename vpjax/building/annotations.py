"""Annotation files that users already have -> Clips, by one small reader for each format.

A row with several turns becomes one clip per turn; a row about several videos or images is rejected. Why
something is left out is said as ``reason: detail``, so that it can be counted by reason.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from vpjax.data.clips import (
    ARRAY_RECORD_SUFFIXES,
    FIELDS,
    parse_box,
    parse_clip,
    parse_part,
    parse_span,
    read_records,
)
from vpjax.files import exists, is_folder, open_file
from vpjax.types import Clip, UserError

Row = dict[str, Any]

TAG = re.compile(r"\s*<(?:video|image)>\s*")  # LLaVA-Video writes <image> for its videos, too
ROLES = dict(human="user", user="user", gpt="assistant", assistant="assistant", system="system")
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
TRACK = (
    "Track the {}, which begins at {}: give its box [x0, y0, x1, y1], in shares of width and height, "
    "at {} moments evenly spread over the video."
)
LETTER = re.compile(r"\(?([A-Z])\)?[.:]?")


class Rejected(ValueError):
    """A row that is whole, and yet not one clip: its text is ``reason: detail``."""


@dataclasses.dataclass(frozen=True)
class Item:
    """What became of one question of an annotation file.

    place: where it stands, such as ``row 3, question 2``. clip: None where ``skipped`` says why there is
    none, as ``reason: detail``. notes: remarks about a clip that is kept, in the same form.
    """

    place: str
    clip: Clip | None
    skipped: str = ""
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Annotations:
    """A file that was read. format: a name in FORMATS. rows: how many it has; each gave at least one item."""

    format: str
    rows: int
    items: tuple[Item, ...]


def read_annotations(path: str | Path, format: str = "") -> Annotations:
    """Read an annotation file: JSON, JSON lines or (of clips) ArrayRecord, with or without a byte order mark.

    format: a name in FORMATS; "" takes that of the first row that fits one. Paths of videos stay as they are
    written; a clip has an id of its own even where the file gives none, or the same one twice. A broken row
    is a skipped item. UserError where the file cannot be read at all or is in no known format.
    """
    if format and format not in FORMATS:
        raise UserError(f"--format={format}: choose one of {', '.join(FORMATS)}")
    rows = list(rows_of(path))
    if not rows:
        raise UserError(f"{path}: no rows in this file")
    format = format or detect(path, [row for _, row in rows])
    items: list[Item] = []
    taken: set[str] = set()
    for place, row in rows:
        found = items_of(row, FORMATS[format].read)
        for number, item in enumerate(found, 1):
            where = f"{place}, question {number}" if len(found) > 1 else place
            clip = item.clip and dataclasses.replace(item.clip, id=new_id(item.clip, taken))
            items.append(dataclasses.replace(item, place=where, clip=clip))
    return Annotations(format, len(rows), tuple(items))


def rows_of(path: str | Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file, each with its place; a ValueError in place of one that is no JSON."""
    if str(path).endswith(ARRAY_RECORD_SUFFIXES):
        yield from ((f"record {number}", parsed(record)) for number, record in read_records(path))
        return
    if not exists(path) or is_folder(path):
        raise UserError(f"{path}: no such annotation file")
    with open_file(path) as file:
        content = file.read().removeprefix(b"\xef\xbb\xbf")
    whole = parsed(content)
    if isinstance(whole, list):
        yield from ((f"row {number}", row) for number, row in enumerate(whole, 1))
    elif isinstance(whole, dict) and all(isinstance(row, dict) for row in whole.values()):
        # A table of videos; the name becomes a field like any other.
        yield from ((f"video {name!r}", {"video": name} | row) for name, row in whole.items())
    elif content.lstrip().startswith(b"["):
        raise UserError(f"{path}: {whole}")
    else:
        lines = enumerate(content.splitlines(), 1)
        yield from ((f"line {number}", parsed(line)) for number, line in lines if line.strip())


def parsed(text: bytes) -> Any:
    """A JSON value, or the ValueError that says why it is none."""

    def distinct(pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) < len(pairs):
            raise ValueError("an object has the same key twice")
        return row

    try:
        return json.loads(text.decode(), object_pairs_hook=distinct)
    except ValueError as error:  # of JSON and of UTF-8
        return ValueError(f"no JSON: {error}")


def detect(path: str | Path, rows: Sequence[Any]) -> str:
    """The format of the first row that fits one."""
    for row in rows:
        for name, format in FORMATS.items():
            if isinstance(row, dict) and format.fits(row):
                return name
    first = f"its first row has {', '.join(sorted(rows[0]))}" if isinstance(rows[0], dict) else short(rows[0])
    raise UserError(f"{path}: in no known format ({first}); --format takes one of {', '.join(FORMATS)}")


def items_of(row: Any, read: Callable[[Row], Iterable[Item]]) -> list[Item]:
    """The items of a row, at least one."""
    try:
        if isinstance(row, ValueError):
            raise row
        if not isinstance(row, dict):
            raise ValueError(f"{short(row)} is not a JSON object")
        return list(read(row)) or [skip(Rejected("empty row: it asks nothing"))]
    except ValueError as error:
        return [skip(error)]


def new_id(clip: Clip, taken: set[str]) -> str:
    """The clip's id, or its video's name where it has none; with a number where that is taken already."""
    stem = clip.id or PurePosixPath(clip.video).stem or "text"
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}~{number}"
    taken.add(name)
    return name


def skip(error: ValueError) -> Item:
    return Item("", None, str(error) if isinstance(error, Rejected) else f"broken row: {error}")


def keep(*notes: str, id: Any, question: str, answer: str, **fields: Any) -> Item:
    """The item of a clip. Rejected where there is nothing to ask or to say."""
    question, answer = question.strip(), answer.strip()
    if not (question and answer):
        raise Rejected(f"empty {'answer' if question else 'question'}")
    name = "" if id is None else str(id)
    return Item("", Clip(id=name, question=question, answer=answer, **fields), notes=notes)


def field(row: Row, name: str, kind: type = str) -> Any:
    """A field of a row. ValueError where it is not of its kind."""
    if not isinstance(value := row.get(name), kind):
        says = f"is {short(value)}" if name in row else "is missing"
        raise ValueError(f"field {name!r} {says}, not a {'string' if kind is str else kind.__name__}")
    return value


def short(value: Any) -> str:
    text = str(value) if isinstance(value, ValueError) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def media_of(row: Row) -> list[Any]:
    """All that a row's own fields name as its videos and images."""
    values = (row.get(name) or [] for name in ("video", "videos", "image", "images"))
    return [path for value in values for path in (value if isinstance(value, list) else [value])]


def only(media: Sequence[Any]) -> str:
    """The path of a row's one video or image; "" where it has none."""
    if len(media) > 1:
        raise Rejected(f"several media: {len(media)} in one row")
    if not all(isinstance(path, str) and path for path in media):
        raise ValueError(f"{short(media[0])} is not the path of a video")
    return media[0] if media else ""


def listed(row: Row, name: str) -> list[Any]:
    """A list that a row need not have."""
    return [] if row.get(name) is None else field(row, name, list)


def rest(row: Row, *names: str) -> Row:
    """Fields that go with a clip as they are."""
    return {name: row[name] for name in names if name in row}


def dialogue(
    row: Row, turns: Sequence[tuple[str, str]], media: Sequence[Any], *, tagged: bool, **fields: Any
) -> Iterator[Item]:
    """One item for each turn of a user and its answer; a later one is asked without those before it.

    turns: (role, text). Tags of media are taken out of the questions: the video comes first, which is noted
    where its tag did not. tagged: whether there must be as many tags as media, or may be none.
    """
    video = only(media)
    tags = sum(len(TAG.findall(text)) for role, text in turns if role == "user")
    if tags != len(media) and (tagged or tags):
        raise ValueError(f"{tags} media tags for {len(media)} videos or images")
    said = [(role, text) for role, text in turns if role != "system"]
    if [role for role, _ in said] != ["user", "assistant"] * (len(said) // 2):
        raise ValueError(f"the turns of its dialogue are {short([role for role, _ in said])}")
    system = ("system message left out",) * (len(said) < len(turns))
    for (_, question), (_, answer) in zip(said[::2], said[1::2], strict=True):
        tag = TAG.search(question)
        moved = ("media tag was not at the start",) * bool(tag and question[: tag.start()].strip())
        question = TAG.sub("\n", question)
        try:
            yield keep(
                *system, *moved, id=row.get("id"), video=video, question=question, answer=answer, **fields
            )
        except Rejected as error:
            yield skip(error)


def role_of(turn: Any, name: str) -> str:
    """Who says a turn, by its field ``name``."""
    role = turn.get(name) if isinstance(turn, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{short(turn)} is not said by one of {', '.join(ROLES)}")
    return ROLES[role]


def conversations(row: Row) -> Iterator[Item]:
    """LLaVA, LLaVA-Video and Qwen-VL's fine-tuning: as many media tags as media."""
    turns = []
    for turn in field(row, "conversations", list):
        turns.append((role_of(turn, "from"), field(turn, "value")))
    yield from dialogue(row, turns, media_of(row), tagged=True, extra=rest(row, "data_source"))


def messages(row: Row) -> Iterator[Item]:
    """Tarsier (``reference`` is the target, a time of 0 or -1 the video's own) and TRL's conversations
    (messages, or prompt and completion)."""
    turns, media, part = [], media_of(row), {}
    for turn in spoken(row):
        role, content, texts = role_of(turn, "role"), turn.get("content"), []
        for piece in (
            [dict(type="text", text=content)] if isinstance(content, str) else field(turn, "content", list)
        ):
            kind = piece.get("type") if isinstance(piece, dict) else None
            if kind == "text":
                texts.append(field(piece, "reference" if piece.get("reference") else "text"))
                continue
            if kind not in ("video", "image"):
                raise ValueError(f"{short(piece)} is neither text nor video nor image")
            texts.append("<video>")
            medium = piece.get(kind)
            if isinstance(medium, dict):
                times = dict(start=medium.get("start_time"), end=medium.get("end_time"))
                part |= {name: value for name, value in times.items() if value not in (None, 0, -1)}
                medium = medium.get(f"{kind}_file")
            media += medium if isinstance(medium, list) else [] if medium is None else [medium]
        turns.append((role, "\n".join(texts)))
    yield from dialogue(row, turns, media, tagged=False, **parse_part(part), extra=rest(row, "dataset", "task"))


def spoken(row: Row) -> list[Any]:
    """The turns of a row in Tarsier's or in either of TRL's forms."""
    if "messages" in row:
        return field(row, "messages", list)
    halves = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        half = row.get(name)
        halves += [dict(role=role, content=half)] if isinstance(half, str) else field(row, name, list)
    return halves


def video_r1(row: Row) -> Iterator[Item]:
    """Video-R1 and EasyVideoR1: the answer is the reasoning (``process``), where there is one, and the
    solution."""
    solution = field(row, "solution" if "solution" in row else "answer")
    process = field(row, "process") if row.get("process") else ""
    kind = row.get("problem_type", "")
    yield choice(
        row.get("problem_id"),
        only(media_of(row) or [field(row, "path")]),
        TAG.sub("\n", field(row, "problem")),
        listed(row, "options"),
        solution,
        answer=f"{process}\n{solution}",
        task="choice" if kind == "multiple choice" else "caption",
        extra=rest(row, "problem_type", "data_source"),
    )


def next_gqa(row: Row) -> Iterator[Item]:
    """NExT-GQA as VideoChat-R1 has it: a choice, with the spans of its evidence (``glue``)."""
    yield choice(
        row.get("id"),
        field(row, "video"),
        field(row, "question"),
        listed(row, "options"),
        field(row, "answer"),
        spans=tuple(parse_span(span) for span in listed(row, "glue")),
    )


def choice(
    id: Any,
    video: str,
    question: str,
    options: Sequence[Any],
    solution: str,
    *,
    answer: str = "",
    task: str = "choice",
    **fields: Any,
) -> Item:
    """A question with its options in lines below it. Rejected where the solution is the letter of none."""
    letter = letter_of(solution)
    if options and letter and ord(letter) - ord("A") >= len(options):
        raise Rejected(f"answer not among the options: {letter} of {len(options)}")
    choices = tuple(map(str, options))
    question = "\n".join([question.strip(), *choices])
    return keep(
        id=id, video=video, question=question, answer=answer or solution, task=task, choices=choices, **fields
    )


def letter_of(answer: str) -> str:
    """The letter that an answer such as ``(C)`` or ``<answer>C</answer>`` is, or ""."""
    inside = ANSWER.search(answer)
    letter = LETTER.fullmatch((inside[1] if inside else answer).strip())
    return letter[1] if letter else ""


def sentences(row: Row, *, grounding: bool = False) -> Iterator[Item]:
    """ActivityNet Captions, Charades-STA and YouCook2: what happens in each span or, for grounding, when each
    sentence happens."""
    texts, spans = field(row, "sentences", list), field(row, "timestamps", list)
    if len(texts) != len(spans):
        raise ValueError(f"{len(texts)} sentences for {len(spans)} timestamps")
    video = field(row, "video")
    for number, (text, span) in enumerate(zip(texts, spans, strict=True), 1):
        try:
            start, end = parse_span(span)
            sentence = field({"sentence": text}, "sentence").strip()
            if grounding:
                question = f"From when to when: {sentence}" if sentence else ""
                answer = f"From {start:.2f} to {end:.2f} seconds."
            else:
                question, answer = f"What happens from {start:.2f} to {end:.2f} seconds?", sentence
            yield keep(
                id=f"{PurePosixPath(video).stem}-{number}",
                video=video,
                question=question,
                answer=answer,
                spans=((start, end),),
                task="grounding" if grounding else "caption",
            )
        except ValueError as error:
            yield skip(error)


def got10k(row: Row) -> Iterator[Item]:
    """GOT-10k as VideoChat-R1 has it: a folder of frames, and boxes at evenly spread moments."""
    path, name, boxes = field(row, "path"), field(row, "object"), field(row, "gt", list)
    if not boxes:
        raise Rejected("empty answer")
    yield keep(
        id=PurePosixPath(path).name,
        video=path,
        question=TRACK.format(name, boxes[0], len(boxes)),
        answer=str(boxes),
        task="tracking",
        boxes=tuple(map(parse_box, boxes)),
    )


def native(row: Row) -> Iterator[Item]:
    """vpjax's own clips."""
    yield keep(**vars(parse_clip(row)))


class Format(NamedTuple):
    """fits: whether a row looks like it. read: a row's items; ValueError where it is broken."""

    fits: Callable[[Row], bool]
    read: Callable[[Row], Iterable[Item]]


def has(*fields: str) -> Callable[[Row], bool]:
    return lambda row: row.keys() >= set(fields)


# In the order in which they are tried. ``grounding`` must be asked for: its files are those of ``captions``.
FORMATS = {
    "conversations": Format(has("conversations"), conversations),
    "messages": Format(lambda row: has("messages")(row) or has("prompt", "completion")(row), messages),
    "video-r1": Format(has("problem"), video_r1),
    "next-gqa": Format(has("video", "question", "options", "answer"), next_gqa),
    "captions": Format(has("timestamps", "sentences"), sentences),
    "grounding": Format(lambda row: False, functools.partial(sentences, grounding=True)),
    "got10k": Format(has("path", "object", "gt"), got10k),
    "clips": Format(lambda row: {"id", "question", "answer"} <= row.keys() <= FIELDS, native),
}
