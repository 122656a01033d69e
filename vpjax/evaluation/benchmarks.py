"""Public benchmarks as they are published -> Clips to be asked about, and numbers that others reported.

A reader gets one record of a file (an element of a list, a line, or a key with its value) and yields its
Clips: the question as it is put to the model, the answer, the options, and in ``extra["group"]`` what scores
are grouped by. What it yields as plain text is why a row is not asked.
"""

from __future__ import annotations

import dataclasses
import json
import os
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from vpjax.data.clips import ARRAY_RECORD_SUFFIXES, parse_clip, read_records
from vpjax.events.text import caption_variants, event_of
from vpjax.files import exists, folder_of, is_folder, join_path, names_in, open_file
from vpjax.scoring.answers import choice_of, options_in, unlettered
from vpjax.scoring.metrics import (
    Score,
    caption,
    choice_made,
    described_events,
    event_named,
    span_found,
    task_score,
)
from vpjax.types import Clip, UserError

REPORTED = "VideoChat-R1 (Qwen2.5-VL-7B), arXiv 2504.06958"
LETTERS = string.ascii_uppercase
LETTER = "Answer with only the option's letter."
HIDDEN = "its answer is hidden (a test split)"
NO_EVENT = "no event to name"
VRU = "Describe the traffic scene in detail: the surroundings, the road users, the accident and its cause."
WHEN = (
    'When does "{}" happen in the video? Answer with its start and end in seconds: from ... to ... seconds.'
)


class Record(NamedTuple):
    """file: without folder and suffix. place: for messages. key: of a JSON object's entry, or its number."""

    file: str
    place: str
    key: str
    row: Any


Reader = Callable[[Record], Iterator[Clip | str]]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """read: yields the Clips of a record. score: what an answer is worth. new_tokens: of an answer at most.
    folders: where below the videos' root a file may lie, ``{file}`` being the annotation file's name.
    published: metric -> per cent, by ``REPORTED``. second_group: the field of ``Clip.extra`` by which scores
    are grouped as well.
    """

    read: Reader
    score: Callable[[Clip, str], Score]
    new_tokens: int
    folders: tuple[str, ...] = ("", "video", "videos")
    published: dict[str, float] = dataclasses.field(default_factory=dict)
    second_group: str | None = None


def read_benchmark(
    name: str, data: str | os.PathLike, videos: str | os.PathLike | None = None
) -> tuple[list[Clip], Counter[str]]:
    """The Clips of a benchmark's file, or of a folder of its files, and how many rows are left out for which
    reason.

    videos: the root of the videos; default: beside the annotations. UserError for a row that is not as
    published, a question without options, an answer that is none of them, or an id that comes twice."""
    benchmark = BENCHMARKS[name]
    root = videos or (data if is_folder(data) else folder_of(data))
    clips, places = [], {}
    left_out: Counter[str] = Counter()
    for record in _records(data):
        try:
            for clip in benchmark.read(record):
                if isinstance(clip, str):
                    left_out[clip] += 1
                    continue
                if clip.task == "choice":
                    _check_choices(clip)
                if clip.id in places:
                    raise ValueError(f"id {clip.id!r} stands at {places[clip.id]} too")
                places[clip.id] = record.place
                folders = [join_path(root, folder.format(file=record.file)) for folder in benchmark.folders]
                clips.append(dataclasses.replace(clip, video=_found(folders, clip.video)))
        except KeyError as error:
            raise UserError(f"{record.place}: no field {error}: not a row of {name}") from error
        except (TypeError, AttributeError, IndexError, ValueError) as error:
            raise UserError(f"{record.place}: not a row of {name}: {error}") from error
    if not clips:
        reasons = "".join(f"; {count}: {reason}" for reason, count in left_out.items())
        raise UserError(f"{data}: no row to ask about{reasons}")
    return clips, left_out


def _records(data: str | os.PathLike) -> Iterator[Record]:
    """The records of a file, or of the files of a folder."""
    files = [os.fspath(data)]
    if is_folder(data):
        files = [join_path(data, name) for name in sorted(names_in(data)) if ".json" in name]
        if not files:
            raise UserError(f"{data}: no .json or .jsonl file in this folder")
    for file in files:
        suffix = PurePath(file).suffix
        if suffix not in (".json", ".jsonl", *ARRAY_RECORD_SUFFIXES):
            raise UserError(f"{file}: give .json or .jsonl (of a data set of Hugging Face: its to_json)")
        try:
            if suffix == ".json":
                with open_file(file) as opened:
                    whole = json.load(opened)
            else:
                whole = [json.loads(line) for _, line in read_records(file)]
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{file}: not JSON: {error}") from error
        entries = whole.items() if isinstance(whole, dict) else enumerate(whole, 1)
        for key, row in entries:
            yield Record(PurePath(file).stem, f"{file}, row {key}", str(key), row)


def answers_to(clip: Clip) -> tuple[str, ...]:
    """The answers that the clip's question leaves to choose from, written as its own answer is; () where it
    asks for more than a choice."""
    if clip.task == "caption" and "event" in clip.extra:
        try:
            return caption_variants(clip.answer)
        except ValueError:  # a caption in words of the user's own
            return ()
    letters = LETTERS[: len(clip.choices)]
    if clip.answer in letters:
        return tuple(letters)
    if clip.answer[:1] == "(":
        return tuple(f"({letter}) {choice}" for letter, choice in zip(letters, clip.choices, strict=True))
    return clip.choices


def _check_choices(clip: Clip) -> None:
    if len(clip.choices) < 2 or not all(choice.strip() for choice in clip.choices):
        raise ValueError(f"{clip.id}: its options are {list(clip.choices)}; a choice has two or more")
    if choice_of(clip.answer, clip.choices) is None:
        raise ValueError(f"{clip.id}: its answer {clip.answer!r} is none of {list(clip.choices)}")


def _found(folders: Sequence[str], video: str) -> str:
    """The video's path in the first folder that has it; in the first of all where none does."""
    if not video:  # a question without one
        return ""
    paths = [join_path(folder, video) for folder in folders]
    return next((path for path in paths if exists(path)), paths[0])


def lettered(question: str, options: Sequence[str], suffix: str = LETTER) -> str:
    return "\n".join([question, *(f"{LETTERS[i]}. {option}" for i, option in enumerate(options)), suffix])


def choice(
    id: str, video: str, question: str, answer: Any, options: Iterable[str], group: str, **rest
) -> Clip:
    if not isinstance(answer, str):
        raise ValueError(f"{id}: its answer is {answer!r}")
    return Clip(
        id, video, question, answer, task="choice", choices=tuple(options), extra={"group": group}, **rest
    )


def motionbench(record: Record) -> Iterator[Clip | str]:
    row = record.row
    for qa in row["qa"]:
        question = f"{qa['question']}\n{LETTER}"
        options = options_in(qa["question"])
        if qa["answer"] == "NA":
            yield HIDDEN
        else:
            yield choice(qa["uid"], row["video_path"], question, qa["answer"], options, row["question_type"])


def vru_vqa(record: Record) -> Iterator[Clip]:
    for category, qa in record.row.items():
        # The options go to the model as they are: they hold commas.
        question = f"{qa['question']}\n{qa['options']}"
        id = f"{record.key}/{category}"
        yield choice(id, record.key, question, qa["GT"], options_in(qa["options"]), category)


def vru_captions(record: Record) -> Iterator[Clip]:
    yield Clip(record.key, f"{record.key}.mp4", VRU, record.row["gt"], extra={"group": "captions"})


def tempcompass(record: Record) -> Iterator[Clip]:
    """One file a task, named by it; either the published nesting {video: {aspect: [row]}} or flat rows."""
    if "video_id" in record.row:
        rows = [(record.row["video_id"], record.row["dim"], record.key, record.row)]
    else:
        nested = record.row.items()
        rows = [(record.key, aspect, n, row) for aspect, some in nested for n, row in enumerate(some, 1)]
    task = next((t for t in TEMPCOMPASS if t.replace("-", "_") in record.file.replace("-", "_")), None)
    if task is None:
        raise ValueError(f"its file is named after none of the tasks {', '.join(TEMPCOMPASS)}")
    for video, aspect, n, row in rows:
        asked, answer = row["question"], row["answer"]
        match task:
            case "yes_no":
                options = ("yes", "no")
            case "caption_matching":
                options = asked.split("\n")[1:]
            case "captioning":  # scored by the option of its multiple-choice question that the caption holds
                options, answer = options_in(row["mc_question"]), row["mc_answer"]
            case _:
                options = options_in(asked)
        question = f"{asked}\n{TEMPCOMPASS[task]}".strip()
        yield choice(f"{task}/{video}/{aspect}/{n}", f"{video}.mp4", question, answer, options, aspect)


TEMPCOMPASS = {
    "multi-choice": LETTER,
    "yes_no": "Answer yes or no.",
    "caption_matching": "Answer with the one that fits, as it is written.",
    "captioning": "",
}


def tvbench(record: Record) -> Iterator[Clip]:
    """One file a task, named by it."""
    row, task = record.row, record.file
    options = row["candidates"]
    answer = LETTERS[options.index(row["answer"])]
    id = f"{task}/{record.key}"
    yield choice(id, row["video"], lettered(row["question"], options), answer, options, task, **_part(row))


def mvbench(record: Record) -> Iterator[Clip]:
    """As TVBench, each task's videos in the folder of the data set that they come from."""
    for clip in tvbench(record):
        yield dataclasses.replace(clip, video=f"{MVBENCH_FOLDERS[record.file]}/{clip.video}")


def _part(row: dict[str, Any]) -> dict[str, float | None]:
    """The part of its file that a row is about."""
    return {"start": row.get("start"), "end": row.get("end")}


def video_mme(record: Record) -> Iterator[Clip]:
    row = record.row
    options = [unlettered(option) for option in row["options"]]
    question = lettered(row["question"], options)
    yield choice(
        row["question_id"], f"{row['videoID']}.mp4", question, row["answer"], options, row["duration"]
    )


def mlvu(record: Record) -> Iterator[Clip]:
    row = record.row
    question, options = f"{row['question']}\n{LETTER}", options_in(row["question"])
    id = f"{record.file}/{record.key}"
    yield choice(id, row["video_name"], question, row["answer"], options, row["task_type"])


def longvideobench(record: Record) -> Iterator[Clip]:
    row = record.row
    options = [option for option in (row[f"option{i}"] for i in range(5)) if option != "N/A"]
    answer = LETTERS[row["correct_choice"]]
    question = lettered(row["question"], options)
    yield choice(row["id"], row["video_path"], question, answer, options, str(row["duration_group"]))


def charades_sta(record: Record) -> Iterator[Clip]:
    row = record.row
    start, end = map(float, row["timestamp"])
    video = row["video"] if Path(row["video"]).suffix else f"{row['video']}.mp4"
    yield Clip(
        f"{record.file}/{record.key}",
        video,
        WHEN.format(row["caption"].strip().rstrip(".")),
        f"From {start} to {end} seconds.",
        spans=((start, end),),
        task="grounding",
        extra={"group": "queries"},
    )


def favor(record: Record) -> Iterator[Clip]:
    row = record.row
    for n, qa in enumerate(row["questions"], 1):
        lines = [qa["question"], *qa["options"], "Answer with the one right option, as it is written."]
        id = f"{row['video_name']}/{n}"
        yield choice(
            id, row["video_name"], "\n".join(lines), qa["correct_answer"], qa["options"], qa["task_type"]
        )


def dream_1k(record: Record) -> Iterator[Clip]:
    row = record.row
    if "placeholder" in row["video_file"]:
        raise ValueError("its video_file is still a placeholder: put the video's path there")
    extra = {"group": row["dataset"], "events": row["extra_info"]["events"]}
    question = "Describe the video in detail."
    yield Clip(f"dream/{row['idx']}", row["video_file"], question, row["text"]["response"], extra=extra)


def own_clips(record: Record) -> Iterator[Clip]:
    """vpjax's own format; grouped by ``extra.group``, else by task."""
    clip = parse_clip(record.row)
    yield dataclasses.replace(clip, extra={"group": clip.task, **clip.extra})


def event_clips(record: Record) -> Iterator[Clip | str]:
    """The built-in event clips, or others with an event in ``extra``, grouped by how many frames the event
    lasts; other tasks than captions by task. A clip whose answer should name its event and does not is left
    out."""
    clip = parse_clip(record.row)
    event, length = clip.extra.get("event"), clip.extra.get("length")
    names_event = clip.task in ("choice", "grounding") or event_of(clip.answer) == event
    if event is None or length is None or not names_event:
        yield NO_EVENT
        return
    group = clip.task
    if clip.task == "caption":
        group = "1 frame" if length == 1 else f"{length} frames"
    yield dataclasses.replace(clip, extra={**clip.extra, "group": group})


MVBENCH_FOLDERS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}

BENCHMARKS = {
    "motionbench": Benchmark(motionbench, choice_made, 32),
    "vru-accident-vqa": Benchmark(vru_vqa, choice_made, 32),
    "vru-accident-captions": Benchmark(vru_captions, caption, 512),
    "tempcompass": Benchmark(tempcompass, choice_made, 128, published={"accuracy": 73.9}),
    "mvbench": Benchmark(mvbench, choice_made, 32, published={"accuracy": 67.9}),
    "tvbench": Benchmark(tvbench, choice_made, 32, ("{file}", "video/{file}", "")),
    "video-mme": Benchmark(video_mme, choice_made, 32, ("data", "videos", "")),
    "mlvu": Benchmark(mlvu, choice_made, 32, ("", "video", "video/{file}", "videos")),
    "longvideobench": Benchmark(longvideobench, choice_made, 32, ("videos", ""), {"accuracy": 49.1}),
    "charades-sta": Benchmark(charades_sta, span_found, 64, published={"mIoU": 60.8, "R@0.5": 71.7}),
    "favor-bench": Benchmark(favor, choice_made, 128),
    "dream-1k": Benchmark(dream_1k, described_events, 512),
    "events": Benchmark(event_clips, event_named, 64, second_group="event"),
    "clips": Benchmark(own_clips, task_score, 512),
}
