"""Annotation files -> Clips, by one small reader for each format.

A conversation becomes one clip with all of its turns, and with all the videos and images that it shows.
Reasons have the form ``reason: detail``, so that they can be counted.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vpjax.building.fields import (
    TAG,
    JsonObject,
    Medium,
    Rejected,
    as_list,
    extra_fields,
    field,
    in_shown_order,
    media_of,
    short,
    shown_fields,
    with_marks,
)
from vpjax.data import clips, json_rows
from vpjax.data.clips import FIELDS, parse_box, parse_clip, parse_part, parse_span
from vpjax.data.json_rows import SCHEMES
from vpjax.files import exists, is_folder, open_file
from vpjax.scoring.answers import read_number
from vpjax.types import MEDIA_TAG, Clip, Turn, UserError

ROLES = dict(human="user", user="user", gpt="assistant", assistant="assistant", system="system")
MEDIA_TAGS = ("<video>", "<image>")
ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
TRACK_QUESTION = (
    "Track the {}, which begins at {}: give its box [x0, y0, x1, y1], in shares of width and height, "
    "at {} moments evenly spread over the video."
)
# The problem types of Video-R1 that are tasks of their own; the others are captions.
VIDEO_R1_TASKS = {
    "multiple choice": "choice",
    "numerical": "numerical",
    "regression": "regression",
    "OCR": "ocr",
}
LETTER_ANSWER = re.compile(r"\(?([A-Z])\)?[.:]?")


@dataclasses.dataclass(frozen=True)
class Item:
    """One question of an annotation file, or a conversation, and its clip.

    place: where the question is in the file, such as ``row 3, question 2``. clip: None if the question is
    skipped. skipped: why, as ``reason: detail``. notes: remarks about a clip that is kept, in the same form.
    """

    place: str
    clip: Clip | None
    skipped: str = ""
    notes: tuple[str, ...] = ()

    @property
    def media(self) -> tuple[str, ...]:
        """The paths of the clip's videos and images."""
        return self.clip.media if self.clip is not None else ()


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The items of a file. format: a name in FORMATS. rows: their number; each has at least one item."""

    format: str
    rows: int
    items: tuple[Item, ...]


def read_annotations(path: str | Path, format: str = "", schemes: Collection[str] = SCHEMES) -> Annotations:
    """Read an annotation file: JSON, JSON lines or (of clips) ArrayRecord, with or without a byte order mark.

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


def read_rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file, each with its place. A row that is no JSON is a ValueError."""
    if str(path).endswith(clips.ARRAY_RECORD_SUFFIXES):
        for number, record in clips.read_records(path):
            yield f"record {number}", parse_json(record)
        return
    if not exists(path) or is_folder(path):
        raise UserError(f"{path}: no such annotation file")
    with open_file(path) as file:
        content = file.read().removeprefix(b"\xef\xbb\xbf")
    whole = parse_json(content)
    is_list = content.lstrip().startswith(b"[")
    if isinstance(whole, list):
        for number, row in enumerate(whole, 1):
            yield f"row {number}", row
    elif isinstance(whole, dict) and all(isinstance(row, dict) for row in whole.values()):
        for name, row in whole.items():  # a table of videos, whose name becomes a field
            yield f"video {name!r}", {"video": name} | row
    elif is_list and isinstance(whole, BrokenRow):
        try:
            for number, row in enumerate(json_rows.elements_of(content), 1):
                yield f"row {number}", parse_json(row)
        except ValueError as error:
            raise UserError(f"{path}: no JSON: {error}") from error
    elif is_list:
        raise UserError(f"{path}: {whole}")
    else:
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                yield f"line {number}", parse_json(line)


class BrokenRow(ValueError):
    """JSON that breaks no rule of JSON's, but has a value that cannot be read."""


def parse_json(text: bytes) -> Any:
    """A JSON value; a ValueError with the reason if the text is no JSON, or cannot be read."""
    try:
        return json_rows.parse_json(text, distinct_keys=True)
    except json.JSONDecodeError as error:
        return ValueError(f"no JSON: {error}")
    except ValueError as error:
        return BrokenRow(f"no JSON: {error}")


def detect_format(path: str | Path, rows: Sequence[Any]) -> str:
    """The format of the first row that fits one."""
    for row in rows:
        keys = row.keys() if isinstance(row, dict) else set()
        for format, (_, alternatives) in FORMATS.items():
            if format == "clips" and not keys <= FIELDS:
                continue
            if any(fields <= keys for fields in alternatives):
                return format
    first = f"its first row has {', '.join(sorted(rows[0]))}" if isinstance(rows[0], dict) else short(rows[0])
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


def skipped_item(error: Exception) -> Item:
    return Item("", None, str(error) if isinstance(error, Rejected) else f"broken row: {error}")


def clip_item(*, id: Any, question: str, answer: str, **fields: Any) -> Item:
    """The item of a clip. Rejected if a question or an answer of it is empty."""
    name = "" if id is None else str(id)
    clip = Clip(id=name, question=question.strip(), answer=answer.strip(), **fields)
    for turn in clip.dialogue:
        if not turn.question.replace(MEDIA_TAG, "").strip():
            raise Rejected("empty question")
        if not turn.answer.strip():
            raise Rejected("empty answer")
    return Item("", clip)


def dialogue_items(
    row: JsonObject, turns: Sequence[tuple[str, str]], media: Sequence[Medium], *, tagged: bool, **fields: Any
) -> Iterator[Item]:
    """The item of a conversation, if it has turns.

    turns: (role, text). tagged: see ``in_shown_order``.
    """
    media = in_shown_order(media, [text for role, text in turns if role == "user"], tagged=tagged)
    shown = shown_fields(media)
    system = ""
    if turns and turns[0][0] == "system":
        system, turns = turns[0][1].strip(), turns[1:]
    roles = [role for role, _ in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError(f"the turns of its dialogue are {short(roles)}")
    if not turns:
        return
    questions = with_marks([text for _, text in turns[::2]], len(media))
    answers = [text.strip() for _, text in turns[1::2]]
    yield clip_item(
        id=row.get("id"),
        question=questions[-1],
        answer=answers[-1],
        system=system,
        turns=tuple(map(Turn, questions[:-1], answers[:-1])),
        **shown,
        **fields,
    )


def role_of(turn: Any, name: str) -> str:
    """The role of a turn's speaker, from its field ``name``."""
    role = turn.get(name) if isinstance(turn, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{short(turn)} has none of the roles {', '.join(ROLES)}")
    return ROLES[role]


def conversation_items(row: JsonObject) -> Iterator[Item]:
    """LLaVA, LLaVA-Video and the fine-tuning format of Qwen-VL: as many media tags as media."""
    turns = [(role_of(turn, "from"), field(turn, "value")) for turn in field(row, "conversations", list)]
    extra = extra_fields(row, "data_source")
    yield from dialogue_items(row, turns, media_of(row), tagged=True, extra=extra)


def message_items(row: JsonObject) -> Iterator[Item]:
    """Tarsier (``reference`` is the target, a time of 0 or -1 the video's own) and TRL's conversations
    (messages, or prompt and completion)."""
    turns: list[tuple[str, str]] = []
    media = media_of(row)
    parts: list[dict[str, Any]] = []
    for turn in message_turns(row):
        role = role_of(turn, "role")
        texts: list[str] = []
        pieces = [dict(type="text", text=turn.get("content"))]
        if not isinstance(turn.get("content"), str):
            pieces = field(turn, "content", list)
        for piece in pieces:
            kind = piece.get("type") if isinstance(piece, dict) else None
            if kind == "text":
                # Between a text and a video or image a chat template writes nothing.
                follows_text = bool(texts) and texts[-1] not in MEDIA_TAGS
                text = field(piece, "reference" if piece.get("reference") else "text")
                texts.append(f"\n{text}" if follows_text else text)
                continue
            if kind not in ("video", "image"):
                raise ValueError(f"{short(piece)} is neither text nor video nor image")
            if role != "user":
                raise ValueError(f"{short(piece)} is in no question")
            texts.append(f"<{kind}>")
            medium = piece.get(kind)
            if isinstance(medium, dict):
                times = dict(start=medium.get("start_time"), end=medium.get("end_time"))
                parts.append({name: at for name, at in times.items() if at not in (None, 0, -1)})
                medium = medium.get(f"{kind}_file")
            if medium is not None:
                media += [(kind, path) for path in as_list(medium)]
        turns.append((role, "".join(texts)))
    if len(media) > 1 and any(parts):
        raise Rejected(f"part of one of several videos: {short(next(filter(None, parts)))}")
    fields = parse_part(next(filter(None, parts), {})) | {"extra": extra_fields(row, "dataset", "task")}
    yield from dialogue_items(row, turns, media, tagged=False, **fields)


def message_turns(row: JsonObject) -> list[Any]:
    """The turns of a row in the form of Tarsier or in either of TRL's."""
    if "messages" in row:
        return field(row, "messages", list)
    turns: list[Any] = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(row.get(name), str):
            turns.append(dict(role=role, content=row[name]))
        else:
            turns += field(row, name, list)
    return turns


def video_r1_items(row: JsonObject) -> Iterator[Item]:
    """Video-R1 and EasyVideoR1: the answer is the reasoning (``process``), if there is any, and the solution;
    the task follows from the problem type (VIDEO_R1_TASKS)."""
    solution = field(row, "solution" if "solution" in row else "answer")
    process = field(row, "process") if row.get("process") else ""
    media = media_of(row) or [("video", field(row, "path"))]
    question = field(row, "problem")
    if len(media) > 1:
        media = in_shown_order(media, [question], tagged=False)
        (question,) = with_marks([question], len(media))
    else:
        question = TAG.sub("\n", question)
    shown = shown_fields(media)
    options = field(row, "options", list, default=[])
    fields: JsonObject = dict(
        others=shown["others"],
        answer=f"{process}\n{solution}",
        task=VIDEO_R1_TASKS.get(field(row, "problem_type", default=""), "caption"),
        extra=extra_fields(row, "problem_type", "data_source"),
    )
    if fields["task"] in ("numerical", "regression") and read_number(solution) is None:
        raise Rejected(f"answer is not one number: {short(solution)}")
    yield choice_item(row.get("problem_id"), shown["video"], question, options, solution, **fields)


def next_gqa_items(row: JsonObject) -> Iterator[Item]:
    """NExT-GQA as VideoChat-R1 has it: a choice, with the spans of its evidence (``glue``)."""
    video, question = field(row, "video"), field(row, "question")
    options, solution = field(row, "options", list, default=[]), field(row, "answer")
    spans = tuple(parse_span(span) for span in field(row, "glue", list, default=[]))
    yield choice_item(row.get("id"), video, question, options, solution, spans=spans)


def choice_item(
    id: Any, video: str, question: str, options: Sequence[Any], solution: str, **fields: Any
) -> Item:
    """A question with its options in lines below it. The answer is the solution unless ``fields`` has one.
    Rejected if the solution is a letter of no option."""
    letter = letter_of(solution)
    if options and letter and ord(letter) - ord("A") >= len(options):
        raise Rejected(f"answer not among the options: {letter} of {len(options)}")
    choices = tuple(str(option) for option in options)
    question = "\n".join([question.strip(), *choices])
    fields = dict(answer=solution, task="choice") | fields
    return clip_item(id=id, video=video, question=question, choices=choices, **fields)


def letter_of(answer: str) -> str:
    """The letter of an answer such as ``(C)`` or ``<answer>C</answer>``; "" if it is none."""
    inside = ANSWER_TAG.search(answer)
    letter = LETTER_ANSWER.fullmatch((inside[1] if inside else answer).strip())
    return letter[1] if letter else ""


def sentence_items(row: JsonObject, *, grounding: bool) -> Iterator[Item]:
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
            fields = dict(id=f"{PurePosixPath(video).stem}-{number}", video=video, spans=((start, end),))
            if grounding:
                question = f"From when to when: {sentence}" if sentence else ""
                answer = f"From {start:.2f} to {end:.2f} seconds."
                yield clip_item(question=question, answer=answer, task="grounding", **fields)
            else:
                question = f"What happens from {start:.2f} to {end:.2f} seconds?"
                yield clip_item(question=question, answer=sentence, **fields)
        except ValueError as error:
            yield skipped_item(error)


def got10k_items(row: JsonObject) -> Iterator[Item]:
    """GOT-10k as VideoChat-R1 has it: a folder of frames, and boxes at evenly spread moments."""
    path, name, boxes = field(row, "path"), field(row, "object"), field(row, "gt", list)
    if not boxes:
        raise Rejected("empty answer")
    question = TRACK_QUESTION.format(name, boxes[0], len(boxes))
    fields = dict(task="tracking", boxes=tuple(parse_box(box) for box in boxes))
    yield clip_item(id=PurePosixPath(path).name, video=path, question=question, answer=str(boxes), **fields)


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
    "captions": (functools.partial(sentence_items, grounding=False), [{"timestamps", "sentences"}]),
    "grounding": (functools.partial(sentence_items, grounding=True), []),
    "got10k": (got10k_items, [{"path", "object", "gt"}]),
    "clips": (vpjax_items, [{"id", "question", "answer"}]),
}
