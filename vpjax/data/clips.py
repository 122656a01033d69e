"""Files of clips: JSON lines or ArrayRecord, one clip a record.

The fields are those of ``types.Clip``, with one exception: a clip of several videos or images has the list of
their paths as its ``video``, in the order in which they are shown:

    {"id": "c", "video": ["before.jpg", "a.mp4"],
     "question": "<video> is the table before <video>. What fell?", "answer": "The cup falls.",
     "keywords": [{"text": "falls", "lemma": "fall", "spans": [[2, 3]], "video": 1}]}

``<video>`` in a question, whichever turn's, is the place of the next of them, be it a video or an image.
Without such marks all stand before the first question. The ``video`` of a keyword is the number of the one in
which its spans are seen, counted from 0 as all are; it may be left out if that is the first. ``looks`` has,
for each of them, an object with the part and the frames that are seen of it (``types.Look``), so that one
file can be shown several times: first all of it in few pixels, then a part of it in more.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, get_args

from vpjax.data.json_rows import SCHEMES, check_path, check_row, parse_json, reason_of
from vpjax.data.sampling import Pick
from vpjax.files import (
    AnyPath,
    exists,
    fetched,
    folder_of,
    is_folder,
    is_remote,
    join_path,
    open_file,
    written,
)
from vpjax.types import MEDIA_TAG, TASKS, Clip, Keyword, Look, Turn, UserError

ARRAY_RECORD_SUFFIXES = (".array_record", ".arrayrecord")
FIELDS = {field.name for field in dataclasses.fields(Clip)} - {"others"}  # of a record
NEEDED = {"id", "video", "question", "answer"}


def read_clips(
    path: AnyPath,
    videos: AnyPath = "",
    *,
    max_fault_share: float = 0.0,
    schemes: Collection[str] = SCHEMES,
    say: Callable[[str], None] | None = None,
) -> list[Clip]:
    """Read a file of clips, ``.jsonl`` or ``.array_record``.

    Relative video paths start at ``videos``, by default at the file's own folder. max_fault_share: the share
    of broken records up to which they are left out and told to ``say``. schemes: of the URLs that records may
    name. UserError for more broken records, with the file, the first one's line and the reason; for a file
    whose first record is no clip at all, with the command that makes clips of annotations."""
    root = videos or folder_of(path)
    clips: list[Clip] = []
    line_of_id: dict[str, int] = {}
    faults: list[str] = []
    for number, record in read_records(path):
        parsed = None
        try:
            parsed = parse_json(record)
            check_row(parsed)
            clip = parse_clip(parsed)
            for medium in clip.media:
                check_path(medium, schemes)
            if clip.id in line_of_id:
                raise ValueError(f"id {clip.id!r} stands in line {line_of_id[clip.id]} too")
        except ValueError as error:
            has_fields = isinstance(parsed, dict) and NEEDED <= set(parsed)
            if not has_fields and not clips and not faults:  # the first record
                _check_is_clips(path, error)
            faults.append(f"line {number}: {reason_of(error)}")
            continue
        line_of_id[clip.id] = number
        clips.append(clip.with_media([join_path(root, path) for path in clip.media]))
    records = len(faults) + len(clips)
    may_be_left_out = say is not None and len(faults) <= max_fault_share * records
    if faults and not (clips and may_be_left_out):
        more = f" ({len(faults)} of {records} records are broken)" if len(faults) > 1 else ""
        raise UserError(f"{path}, {faults[0]}{more}")
    if faults and say is not None:
        examples = "; ".join(faults[:3]) + ("; ..." if len(faults) > 3 else "")
        say(f"{path}: {len(faults)} of {records} records are left out: {examples}")
    if not clips:
        raise UserError(f"{path}: no clips in this file")
    return clips


def _check_is_clips(path: AnyPath, error: ValueError) -> None:
    """UserError if the file, whose first record is broken by ``error``, has no other record that is a clip
    either."""
    for _, record in itertools.islice(read_records(path), 100):
        with contextlib.suppress(ValueError):
            parse_clip(parse_json(record))
            return
    raise UserError(
        f"{path}: no file of clips, whose lines have {', '.join(sorted(NEEDED))}; if it has annotations: "
        f"python -m vpjax.build --annotations {path} --videos DIR --out DIR"
    ) from error


def relative_to(clip: Clip, out: str) -> Clip:
    """The clip with the paths of its media relative to ``out``, the folder of its data set, so that both can
    be moved together; absolute, if these are on this machine and the data set is not."""
    return clip.with_media([path if is_remote(path) else path_from(out, path) for path in clip.media])


def path_from(folder: str, path: str) -> str:
    """A local path as it is found from a folder, which may be a link to another place, where ".." leads
    elsewhere than its name says."""
    if is_remote(folder):
        return os.path.abspath(path)
    relative = os.path.relpath(path, folder)
    real = os.path.realpath(path)
    if os.path.realpath(os.path.join(folder, relative)) != real:
        return os.path.relpath(real, os.path.realpath(folder))
    return relative


def write_clips(path: AnyPath, clips: Iterable[Clip]) -> None:
    """Write clips as ``.jsonl`` or ``.array_record``, video paths unchanged; it appears whole."""
    records = [json.dumps(clip.record()).encode() for clip in clips]
    with written(path) as file:
        if not str(path).endswith(ARRAY_RECORD_SUFFIXES):
            file.write_bytes(b"".join(record + b"\n" for record in records))
            return
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(file), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()


def read_records(path: AnyPath) -> Iterator[tuple[int, bytes]]:
    """The unparsed records of a file of clips, and their numbers from 1 (lines in ``.jsonl``)."""
    if not exists(path) or is_folder(path):
        raise UserError(f"{path}: no such file of clips")
    if not str(path).endswith(ARRAY_RECORD_SUFFIXES):
        with open_file(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
        return
    from array_record.python.array_record_module import ArrayRecordReader

    with fetched(path) as file:
        try:
            reader = ArrayRecordReader(str(file))
            yield from enumerate(reader.read_all(), 1)
            reader.close()
        except RuntimeError as error:
            raise UserError(f"{path}: not a whole ArrayRecord file: {error}") from error


def parse_clip(record: Any) -> Clip:
    """A Clip from its JSON object. ValueError naming the field that is wrong."""
    if not isinstance(record, dict):
        raise ValueError("a clip is a JSON object")
    unknown = sorted(set(record) - FIELDS)
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; what training does not read belongs in 'extra'")
    paths = record.get("video")
    if isinstance(paths, list):
        if not paths or not all(isinstance(path, str) and path for path in paths):
            raise ValueError(f"field 'video' is {paths!r}, not a list of the paths of videos and images")
    else:
        paths = [_string(record, "video")]
    task = _string(record, "task", "caption")
    if task not in TASKS:
        raise ValueError(f"field 'task' is {task!r}, not one of {', '.join(TASKS)}")
    clip = Clip(
        id=_string(record, "id"),
        video=paths[0],
        others=tuple(paths[1:]),
        question=_text(record, "question"),
        answer=_text(record, "answer"),
        keywords=tuple(_parse_keyword(keyword) for keyword in _list(record, "keywords")),
        spans=_spans(record),
        task=task,
        choices=tuple(composed(str(choice)) for choice in _list(record, "choices")),
        boxes=tuple(parse_box(box) for box in _list(record, "boxes")),
        degraded_answer=_text(record, "degraded_answer", ""),
        **parse_part(record),
        extra=_extra(record),
        system=_text(record, "system", ""),
        turns=tuple(_parse_turn(turn) for turn in _list(record, "turns")),
        looks=tuple(_parse_look(look) for look in _list(record, "looks")),
    )
    check_media(clip)
    return clip


def check_media(clip: Clip) -> None:
    """ValueError if the marks in a clip's questions, the videos of its keywords or its part do not fit its
    videos and images."""
    count, questions = len(clip.media), [turn.question for turn in clip.dialogue]
    marks = sum(question.count(MEDIA_TAG) for question in questions)
    if count and marks not in (0, count):
        several = f"{count} videos or images" if count > 1 else "one video or image"
        raise ValueError(f"{marks} marks {MEDIA_TAG} in its questions for {several}")
    if count > 1 and any("<image>" in question for question in questions):
        raise ValueError(f"mark <image> in a question: {MEDIA_TAG} is the place of an image, too")
    if count > 1 and not (clip.start is clip.end is None):
        raise ValueError("fields 'start' and 'end' are those of a clip of one video")
    if clip.looks and len(clip.looks) != count:
        raise ValueError(f"field 'looks' has {len(clip.looks)} looks at {count} videos or images")
    if clip.looks and not (clip.start is clip.end is None):
        raise ValueError("fields 'start' and 'end' are those of a clip without 'looks', which have their own")
    for keyword in clip.keywords:
        if keyword.video not in range(max(count, 1)):
            raise ValueError(
                f"keyword {keyword.text!r} is seen in video {keyword.video}, of {count} counted from 0"
            )


def _parse_keyword(record: Any) -> Keyword:
    if not isinstance(record, dict):
        raise ValueError(f"keyword {record!r} is not an object with text, lemma and spans")
    known = [field.name for field in dataclasses.fields(Keyword)]
    if unknown := sorted(set(record) - set(known)):
        raise ValueError(f"unknown field {unknown[0]!r} of a keyword, which has {', '.join(known)}")
    if not _text(record, "text").strip():
        raise ValueError("field 'text' of a keyword is empty")
    video = record.get("video", 0)
    if type(video) is not int:
        raise ValueError(f"field 'video' of a keyword is {video!r}, not the number of a video, from 0")
    return Keyword(_text(record, "text"), _text(record, "lemma"), _spans(record), video)


def _parse_turn(record: Any) -> Turn:
    if not isinstance(record, dict) or set(record) != {"question", "answer"}:
        raise ValueError(f"turn {record!r} is not an object with question and answer")
    return Turn(_text(record, "question"), _text(record, "answer"))


def _parse_look(record: Any) -> Look:
    fields = {field.name for field in dataclasses.fields(Look)}
    if not isinstance(record, dict) or set(record) - fields:
        raise ValueError(f"look {record!r} is not an object with some of {', '.join(sorted(fields))}")
    for field in ("frames", "pixels"):
        value = record.get(field, 0)
        if type(value) is not int or value < 0:
            raise ValueError(f"field {field!r} of a look is {value!r}, not a number of them")
    pick = _string(record, "pick", "")
    if pick and pick not in get_args(Pick):
        raise ValueError(f"field 'pick' of a look is {pick!r}, not one of {', '.join(get_args(Pick))}")
    part = parse_part(record)
    return Look(part["start"], part["end"], record.get("frames", 0), record.get("pixels", 0), pick)


def _string(record: dict[str, Any], field: str, default: str | None = None) -> str:
    value = record.get(field, default)
    if isinstance(value, str):
        return value
    raise ValueError(f"field {field!r} is {value!r}, not a string")


def _text(record: dict[str, Any], field: str, default: str | None = None) -> str:
    return composed(_string(record, field, default))


def composed(text: str) -> str:
    """A text whose letters and accents are one character each where there is one (NFC), as Qwen's tokenizers
    read it and models write it. To rewards and scores the same text in two characters is made of other
    words."""
    return unicodedata.normalize("NFC", text)


def _list(record: dict[str, Any], field: str) -> list[Any]:
    value = record.get(field, [])
    if isinstance(value, list):
        return value
    raise ValueError(f"field {field!r} is {value!r}, not a list")


def _extra(record: dict[str, Any]) -> dict[str, Any]:
    value = record.get("extra", {})
    if isinstance(value, dict):
        return value
    raise ValueError(f"field 'extra' is {value!r}, not an object")


def _spans(record: dict[str, Any]) -> tuple[tuple[float, float], ...]:
    return tuple(parse_span(span) for span in _list(record, "spans"))


def _are_numbers(value: Any, count: int) -> bool:
    """Whether a JSON value is a list of ``count`` numbers, of which true and false are none."""
    return isinstance(value, list) and len(value) == count and all(type(x) in (int, float) for x in value)


def parse_span(span: Any) -> tuple[float, float]:
    """(start, end) in seconds from its JSON list. ValueError if it is not a span."""
    if not _are_numbers(span, 2):
        raise ValueError(f"span {span!r} is not [start, end] in seconds")
    start, end = map(float, span)
    if not -math.inf < start <= end < math.inf:
        raise ValueError(f"span {span!r} does not start before it ends")
    return start, end


def parse_box(box: Any) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) in shares of width and height from its JSON list. ValueError if it is not a box."""
    if not _are_numbers(box, 4):
        raise ValueError(f"box {box!r} is not [x0, y0, x1, y1]")
    x0, y0, x1, y1 = map(float, box)
    if not (0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1):
        raise ValueError(f"box {box!r} is not [x0, y0, x1, y1] in shares of width and height, 0 to 1")
    return x0, y0, x1, y1


def parse_part(record: dict[str, Any]) -> dict[str, float | None]:
    """``start`` and ``end`` of a JSON object, in seconds or None. ValueError if they are no part."""
    for field in ("start", "end"):
        value = record.get(field)
        if value is not None and not (type(value) in (int, float) and 0 <= value < math.inf):
            raise ValueError(f"field {field!r} is {value!r}, not seconds of the video")
    start, end = record.get("start"), record.get("end")
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"the part from {start or 0.0:g} to {end:g} s has no length")
    return dict(start=start, end=end)
