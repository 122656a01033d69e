"""Readers of public benchmarks that ask for one of several options, in their published form.

Each gets a record of a file and yields its Clips, or what is left out, and why (``benchmarks.py``).
"""

import dataclasses
import re
import string
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from vpjax.data.clips import parse_span
from vpjax.data.published import next_gqa_row, tarsier_video
from vpjax.evaluation.records import Record
from vpjax.scoring.answers import parse_options, without_letter
from vpjax.types import Clip

ANSWER_LETTERS = string.ascii_uppercase
BY_LETTER = "Answer with only the option's letter."
AS_WRITTEN = "Answer with the one right option, as it is written."
HIDDEN = "its answer is hidden (a test split)"
OPEN = "an open question, whose answers a language model judges"
NO_OPTION = "its answer is none of its options"
PARTLESS = "about a part of its video that this file does not tell: take TVBench's own files"
WITH_EVIDENCE = (
    "Answer with the option's letter between <answer> and </answer>, then with the seconds that show it "
    "between <glue> and </glue>, as in <answer>A</answer> <glue>[(5.2, 10.4)]</glue>."
)


class Unasked(NamedTuple):
    """A question that is left out. clip: what it shows and says, so that no training row says it too."""

    reason: str
    clip: Clip


def with_letters(question: str, options: Sequence[str], instruction: str = BY_LETTER) -> str:
    """The question with its options, and the instruction to answer with a letter."""
    lines = [f"{ANSWER_LETTERS[number]}. {option}" for number, option in enumerate(options)]
    return "\n".join([question, *lines, instruction])


def letter_of(answer: str, options: Sequence[str]) -> str:
    """The letter of the option that is the answer; of several, the last, as in the code of MVBench, TVBench
    and MLVU. ValueError if there is none."""
    places = [place for place, option in enumerate(options) if option == answer]
    if not places:
        raise ValueError(f"its answer {answer!r} is none of {list(options)}")
    return ANSWER_LETTERS[places[-1]]


def choice_clip(id: str, video: str, question: str, answer: str, options: Iterable[str], group: str) -> Clip:
    if not isinstance(answer, str):
        raise ValueError(f"{id}: its answer is {answer!r}")
    extra = {"group": group}
    return Clip(id, video, question, answer, task="choice", choices=tuple(options), extra=extra)


def with_suffix(video: str) -> str:
    """The name of a video's file, where annotations leave its suffix out, as of ``v_360.0_510.0``."""
    return video if re.search(r"[a-z]", PurePosixPath(video).suffix, re.IGNORECASE) else f"{video}.mp4"


def motionbench(record: Record) -> Iterator[Clip | Unasked]:
    row = record.row
    for qa in row["qa"]:
        question, options = f"{qa['question']}\n{BY_LETTER}", parse_options(qa["question"])
        group = row["question_type"]
        clip = choice_clip(qa["uid"], row["video_path"], question, qa["answer"], options, group)
        yield Unasked(HIDDEN, clip) if clip.answer == "NA" else clip


def vru_vqa(record: Record) -> Iterator[Clip]:
    for category, qa in record.row.items():
        # The options go to the model as they are: they hold commas.
        question, options = f"{qa['question']}\n{qa['options']}", parse_options(qa["options"])
        yield choice_clip(f"{record.key}/{category}", record.key, question, qa["GT"], options, category)


def tempcompass(record: Record) -> Iterator[Clip]:
    """One file per task, named after it: the published nesting {video: {aspect: [row]}} or flat rows."""
    file = record.file.replace("-", "_")
    tasks = [task for task in TEMPCOMPASS_SUFFIXES if task.replace("-", "_") in file]
    if not tasks:
        raise ValueError(f"its file is named after none of the tasks {', '.join(TEMPCOMPASS_SUFFIXES)}")
    task = tasks[0]
    rows: list[tuple[str, str, Any, dict[str, Any]]] = []
    if "video_id" in record.row:
        rows = [(record.row["video_id"], record.row["dim"], record.key, record.row)]
    else:
        for aspect, aspect_rows in record.row.items():
            rows += [(record.key, aspect, number, row) for number, row in enumerate(aspect_rows, 1)]
    for video, aspect, number, row in rows:
        question, answer = row["question"], row["answer"]
        options = parse_options(question)
        if task == "yes_no":
            options = ("yes", "no")
        elif task == "caption_matching":
            options = tuple(question.split("\n")[1:])
        elif task == "captioning":  # scored by the one option that it holds
            options, answer = captioning_options(row)
        question = f"{question}\n{TEMPCOMPASS_SUFFIXES[task]}".strip()
        id = f"{task}/{video}/{aspect}/{number}"
        clip = choice_clip(id, f"{video}.mp4", question, answer, options, aspect)
        yield dataclasses.replace(clip, extra=clip.extra | {"task": task})


def captioning_options(row: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """What a caption may tell, and the one that is right: the options of the multiple-choice question that
    copies of the file have beside it, or what the pieces of information say."""
    if "mc_question" in row:
        return parse_options(row["mc_question"]), row["mc_answer"]
    options = tuple(piece[2] for piece in INFORMATION.finditer(row["question"]))
    letter, dot, _ = row["answer"].partition(".")
    if not (dot and letter in ANSWER_LETTERS[: len(options)]):
        raise ValueError(f"its answer {row['answer']!r} is none of {len(options)} pieces of information")
    return options, options[ANSWER_LETTERS.index(letter)]


# A line of TempCompass' captioning questions: ``Information B: {'subject': 'man', 'action': 'dunking'}``
INFORMATION = re.compile(r"^Information [A-Z]: \{.*'\w+': (['\"])(.*)\1\}$", re.MULTILINE)
TEMPCOMPASS_SUFFIXES = {
    "multi-choice": BY_LETTER,
    "yes_no": "Answer yes or no.",
    "caption_matching": "Answer with the one that fits, as it is written.",
    "captioning": "",
}


def tvbench(record: Record) -> Iterator[Clip | Unasked]:
    """One file per task, named after it, or Tarsier's one file, whose videos' folders are named after it and
    which does not say what part of a video a question is about."""
    row = record.row
    if "messages" not in row:
        yield task_clip(record)
        return
    video, asked, answer = tarsier_question(row)
    task, options = PurePosixPath(video).parent.name, parse_options(asked)
    question = with_letters(asked.partition("\n(A)")[0].removeprefix("Question:").strip(), options)
    clip = choice_clip(f"{task}/{row['idx']}", video, question, answer, options, task)
    yield Unasked(PARTLESS, clip) if task in TVBENCH_PARTS else clip


def task_clip(record: Record) -> Clip:
    """The clip of a row of TVBench or MVBench, whose file is named after its task."""
    row, task, options = record.row, record.file, record.row["candidates"]
    question = with_letters(row["question"], options)
    answer = letter_of(row["answer"], options)
    clip = choice_clip(f"{task}/{record.key}", row["video"], question, answer, options, task)
    return dataclasses.replace(clip, start=row.get("start"), end=row.get("end"))


def tarsier_question(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """The video, the question and the answer (the ``reference``) of a row in Tarsier's form."""
    user, assistant = row["messages"]
    shown, asked = user["content"]
    return (
        tarsier_video(row, shown["video"]["video_file"]),
        asked["text"],
        assistant["content"][-1]["reference"],
    )


TVBENCH_PARTS = ("action_sequence", "action_localization")  # tasks about a part of each video
MVBENCH_FOLDERS = tomllib.loads(Path(__file__).with_name("mvbench_folders.toml").read_text())


def mvbench(record: Record) -> Iterator[Clip]:
    """As TVBench, each task's videos in the folder of the data set that they come from."""
    if record.file not in MVBENCH_FOLDERS:
        raise ValueError(f"its file is named after none of the tasks {', '.join(MVBENCH_FOLDERS)}")
    clip = task_clip(record)
    yield dataclasses.replace(clip, video=f"{MVBENCH_FOLDERS[record.file]}/{clip.video}")


def video_mme(record: Record) -> Iterator[Clip]:
    row = record.row
    options = [without_letter(option) for option in row["options"]]
    question, video = with_letters(row["question"], options), f"{row['videoID']}.mp4"
    yield choice_clip(row["question_id"], video, question, row["answer"], options, row["duration"])


def mlvu(record: Record) -> Iterator[Clip | Unasked]:
    """The published files, one per task, or copies that have the options in the question."""
    row, id = record.row, f"{record.file}/{record.key}"
    if "video_name" in row:
        question, answer = f"{row['question']}\n{BY_LETTER}", row["answer"]
        written = parse_options(row["question"])
        yield choice_clip(id, row["video_name"], question, answer, written, row["task_type"])
        return
    answer = row.get("answer", "")
    options = [option for option in row.get("candidates", ()) if option.strip()]  # some rows have empty ones
    clip = choice_clip(id, row["video"], row["question"], answer, options, row["question_type"])
    if not options:
        yield Unasked(OPEN, clip)
    elif "answer" not in row:
        yield Unasked(HIDDEN, clip)
    elif answer not in options:
        yield Unasked(NO_OPTION, clip)
    else:
        question = with_letters(clip.question, options)
        yield dataclasses.replace(clip, question=question, answer=letter_of(answer, options))


def longvideobench(record: Record) -> Iterator[Clip | Unasked]:
    """The published file, or a table of it (``option0`` to ``option4``)."""
    row = record.row
    options = row.get("candidates") or [row[f"option{i}"] for i in range(5) if row[f"option{i}"] != "N/A"]
    right = row.get("correct_choice")
    is_hidden = right is None or right < 0
    question, answer = with_letters(row["question"], options), "" if is_hidden else ANSWER_LETTERS[right]
    group = str(row["duration_group"])
    clip = choice_clip(row["id"], row["video_path"], question, answer, options, group)
    yield Unasked(HIDDEN, clip) if is_hidden else clip


def next_gqa(record: Record) -> Iterator[Clip]:
    """A row of the published table (``test.csv``, with the spans in ``gsub_test.json`` and the videos' paths
    in ``map_vid_vidorID.json`` beside it), or of VideoChat-R1's file."""
    row = record.row
    if "qid" in row:
        row = next_gqa_row(row, record.path, spans=True)
    options, answer = [without_letter(option) for option in row["options"]], row["answer"].strip("()")
    question = with_letters(row["question"], options, WITH_EVIDENCE)
    clip = choice_clip(row["id"], row["video"], question, answer, options, row["type"])
    yield dataclasses.replace(clip, spans=tuple(parse_span(span) for span in row["glue"]))


def favor(record: Record) -> Iterator[Clip]:
    name = record.row["video_name"]
    for number, qa in enumerate(record.row["questions"], 1):
        options, answer = qa["options"], qa["correct_answer"]
        question = "\n".join([qa["question"], *options, AS_WRITTEN])
        id, video, group = f"{name}/{number}", with_suffix(name), qa["task_type"]
        yield choice_clip(id, video, question, answer, options, group)
