"""Questions about videos -> clips: Video-R1, NExT-GQA, GOT-10k."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from vpjax.building.fields import (
    TAG,
    JsonObject,
    Rejected,
    extra_fields,
    field,
    in_shown_order,
    media_of,
    short,
    shown_fields,
    with_marks,
)
from vpjax.building.items import Item, clip_item
from vpjax.data.clips import parse_box, parse_span
from vpjax.files import exists
from vpjax.scoring.answers import LETTERED, LETTERS, read_choice, read_number, read_spans

ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
TRACK_QUESTION = (
    "Track the {}, which begins at {}: give its box [x0, y0, x1, y1], in shares of width and height, "
    "at {} moments evenly spread over the video."
)
# The problem types of Video-R1 and EasyVideoR1, in small letters.
VIDEO_R1_TASKS = {
    "multiple choice": "choice",
    "numerical": "numerical",
    "regression": "regression",
    "ocr": "ocr",
    "temporal grounding": "grounding",
    "free-form": "caption",
    "open-ended": "caption",
    "caption": "caption",
    "": "caption",
}
LETTER_ANSWER = re.compile(r"\(?([A-Z])\)?[.:]?")
NO_TASK = "scored as a caption: its problem type has no task of its own"
NO_EVIDENCE = "no evidence: without spans that show the answer"


def video_r1_items(row: JsonObject) -> Iterator[Item]:
    """Video-R1 and EasyVideoR1: the answer is the reasoning (``process``), if there is any, and the solution;
    the task follows from the problem type (VIDEO_R1_TASKS). Rows of other types are captions, and noted."""
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
    problem_type = field(row, "problem_type", default="")
    task = VIDEO_R1_TASKS.get(problem_type.lower().replace("_", " "))
    fields: JsonObject = dict(
        others=shown["others"],
        answer=f"{process}\n{solution}",
        task=task or "caption",
        extra=extra_fields(row, "problem_type", "data_source"),
    )
    if task in ("numerical", "regression") and read_number(solution) is None:
        raise Rejected(f"answer is not one number: {short(solution)}")
    if task == "grounding":
        fields["spans"] = tuple(read_spans(solution)[:1])
        if not fields["spans"]:
            raise Rejected(f"answer is no span of time: {short(solution)}")
    item = choice_item(row.get("problem_id"), shown["video"], question, options, solution, **fields)
    yield item if task else dataclasses.replace(item, notes=(f"{NO_TASK}: {problem_type}",))


def next_gqa_items(row: JsonObject) -> Iterator[Item]:
    """NExT-GQA as VideoChat-R1 has it: a choice, with the spans of its evidence (``glue``)."""
    video, question = field(row, "video"), field(row, "question")
    options, solution = field(row, "options", list, default=[]), field(row, "answer")
    spans = tuple(parse_span(span) for span in field(row, "glue", list, default=[]))
    item = choice_item(row.get("id"), video, question, options, solution, spans=spans)
    yield item if spans else dataclasses.replace(item, notes=(NO_EVIDENCE,))


def choice_item(
    id: Any, video: str, question: str, options: Sequence[Any], solution: str, **fields: Any
) -> Item:
    """A question with its options in lines below it, which get letters if the solution is one and they have
    none. The answer is the solution unless ``fields`` has one. Rejected if the solution of a choice is none
    of them."""
    letter = letter_of(solution)
    choices = tuple(str(option) for option in options)
    if letter and not any(LETTERED.match(choice) for choice in choices):
        choices = tuple(f"{mark}. {choice}" for mark, choice in zip(LETTERS, choices, strict=False))
    question = "\n".join([question.strip(), *choices])
    fields = dict(answer=solution, task="choice") | fields
    chosen = solution.strip() in choices or read_choice(solution, choices) is not None
    if fields["task"] == "choice" and not chosen:
        raise Rejected(f"answer not among the options: {letter or short(solution)} of {len(options)}")
    return clip_item(id=id, video=video, question=question, choices=choices, **fields)


def letter_of(answer: str) -> str:
    """The letter of an answer such as ``(C)`` or ``<answer>C</answer>``; "" if it is none."""
    inside = ANSWER_TAG.search(answer)
    letter = LETTER_ANSWER.fullmatch((inside[1] if inside else answer).strip())
    return letter[1] if letter else ""


def got10k_items(row: JsonObject) -> Iterator[Item]:
    """GOT-10k as VideoChat-R1 has it: a folder of frames, and boxes at evenly spread moments. Of a path of
    the authors' machine, which is not on this one, the folder's name counts."""
    path, name, boxes = field(row, "path"), field(row, "object"), field(row, "gt", list)
    if not boxes:
        raise Rejected("empty answer")
    question = TRACK_QUESTION.format(name, boxes[0], len(boxes))
    fields = dict(task="tracking", boxes=tuple(parse_box(box) for box in boxes))
    folder = PurePosixPath(path).name
    video = folder if path.startswith("/") and not exists(path) else path
    yield clip_item(id=folder, video=video, question=question, answer=str(boxes), **fields)
