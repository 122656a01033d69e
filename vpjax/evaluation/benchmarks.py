"""Reads public benchmarks in their published form as Clips, and holds the numbers that others reported.

A reader gets one record of a file (an element of a list, a line, or a key with its value) and yields its
Clips: the question for the model, the answer, the options, and in ``extra["group"]`` the name by which scores
are grouped, or what is left out, and why (``Unasked``).
"""

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

from vpjax.data.clips import parse_box, parse_clip
from vpjax.data.json_rows import check_path, check_row, reason_of
from vpjax.data.published import charades_row, tarsier_video
from vpjax.data.video import VIDEOS
from vpjax.evaluation.questions import (
    ANSWER_LETTERS,
    Unasked,
    favor,
    longvideobench,
    mlvu,
    motionbench,
    mvbench,
    next_gqa,
    tarsier_question,
    tempcompass,
    tvbench,
    video_mme,
    vru_vqa,
    with_suffix,
)
from vpjax.evaluation.records import Record, records
from vpjax.evaluation.shown import OWN
from vpjax.events.clips import EIGHTHS
from vpjax.events.text import caption_variants, events_named
from vpjax.files import AnyPath, exists, folder_of, is_folder, join_path
from vpjax.scoring.answers import read_choice
from vpjax.scoring.metrics import (
    AnswerScore,
    score_caption,
    score_choice,
    score_description,
    score_span,
    score_told_option,
)
from vpjax.scoring.references import answer_type
from vpjax.scoring.tasks import score_built_in, score_by_task, score_grounded_choice, score_tracking
from vpjax.types import Clip, UserError

REPORTED = "VideoChat-R1 (Qwen2.5-VL-7B), arXiv 2504.06958"
NO_EVENT = "no event to name"
REVERSED = "its span ends before it starts"
MOTIONBENCH_FOLDERS = ("", "public-dataset", "self-collected", "videos")
DESCRIBE_SCENE = (
    "Describe the traffic scene in detail: the surroundings, the road users, the accident and its cause."
)
WHEN = (
    'When does "{}" happen in the video? Answer with its start and end in seconds: from ... to ... seconds.'
)
TRACK = (
    'Track the "{}", which begins at {}. Answer with a list of {} boxes [x0, y0, x1, y1], in shares of width '
    "and height: where it is at {} moments spread evenly from the first frame to the last, as in "
    "[[0.10, 0.52, 0.31, 0.85], [0.12, 0.50, 0.33, 0.84], ...]."
)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """read: yields the Clips of a record. score: scores an answer. new_tokens: the most tokens of an answer.
    folders: where videos may lie below their root; ``{file}`` is the annotation file's name. published:
    metric -> per cent, by ``REPORTED``. second_group: a field of ``Clip.extra`` that groups scores too.
    names_events: its captions name events, which have the scores of event_scores.py as well.
    """

    read: Callable[[Record], Iterator[Clip | Unasked]]
    score: Callable[[Clip, str], AnswerScore]
    new_tokens: int
    folders: tuple[str, ...] = ("", "video", "videos")
    published: dict[str, float] = dataclasses.field(default_factory=dict)
    second_group: str = ""
    names_events: bool = False


def read_benchmark(
    name: str, data: AnyPath, videos: AnyPath | None = None
) -> tuple[list[Clip], Counter[str]]:
    """The Clips of a benchmark's file or folder of files, and the number of rows left out by reason.

    As ``read_all``. UserError, too, if all rows are left out.
    """
    clips, unasked = read_all(name, data, videos)
    left_out = Counter(row.reason for row in unasked)
    if not clips:
        reasons = "".join(f"; {count}: {reason}" for reason, count in left_out.items())
        raise UserError(f"{data}: no row to ask about{reasons}")
    return clips, left_out


def read_all(name: str, data: AnyPath, videos: AnyPath | None = None) -> tuple[list[Clip], list[Unasked]]:
    """The Clips of a benchmark's file or folder of files, and what is left out.

    videos: the root of the videos; None: the folder of the annotations. UserError for a row that is not in
    the published form, a question without options, an answer that is none of them, or a repeated id.
    """
    benchmark = BENCHMARKS[name]
    root = videos or (data if is_folder(data) else folder_of(data))
    found = functools.cache(_found_as_named if name in OWN else _found)
    clips: list[Clip] = []
    places: dict[str, str] = {}
    unasked: list[Unasked] = []
    for record in records(data):
        try:
            check_row(record.row)
            asked = list(benchmark.read(record))
            if not asked:
                raise ValueError("it asks nothing")
            for clip in asked:
                if isinstance(clip, Unasked):
                    unasked.append(clip)
                    continue
                if clip.task == "choice":
                    _check_choices(clip)
                if clip.id in places:
                    raise ValueError(f"id {clip.id!r} stands at {places[clip.id]} too")
                for path in clip.media:
                    check_path(path)
                places[clip.id] = record.place
                folders = tuple(
                    join_path(root, folder.format(file=record.file)) for folder in benchmark.folders
                )
                clips.append(clip.with_media([found(folders, path) for path in clip.media]))
        except KeyError as error:
            missing = reason_of(error)
            raise UserError(f"{record.place}: no field {missing}: not a row of {name}") from error
        except (TypeError, AttributeError, IndexError, ValueError) as error:
            raise UserError(f"{record.place}: not a row of {name}: {reason_of(error)}") from error
    return clips, unasked


def answers_to(clip: Clip) -> tuple[str, ...]:
    """The candidate answers of a clip, in the form of its own answer; () for an open question."""
    if clip.task == "caption" and "event" in clip.extra:
        try:
            return caption_variants(clip.answer)
        except ValueError:  # a caption in words of the user's own
            return ()
    letters = ANSWER_LETTERS[: len(clip.choices)]
    if "<glue>" in clip.answer:  # every option would have evidence of its own
        return ()
    for form in ("{}", "({})", "<answer>{}</answer>"):
        if clip.answer in (marks := tuple(map(form.format, letters))):
            return marks
    marked = tuple(f"({letter}) {choice}" for letter, choice in zip(letters, clip.choices, strict=False))
    return marked if clip.answer in marked else clip.choices


def _check_choices(clip: Clip) -> None:
    """One option is enough: five questions of MVBench and one of MotionBench have no other, in EasyVideoR1's
    copies at least."""
    if not clip.choices or not all(choice.strip() for choice in clip.choices):
        raise ValueError(f"{clip.id}: its options are {list(clip.choices)}; a choice has one or more")
    if clip.answer not in clip.choices and read_choice(clip.answer, clip.choices) is None:
        raise ValueError(f"{clip.id}: its answer {clip.answer!r} is none of {list(clip.choices)}")


def _found(folders: Sequence[str], video: str) -> str:
    """As ``_found_as_named``; if there is no such file, one of the same name in another format, for copies of
    a benchmark have their videos in others than its annotations say (of Video-MME, some are MP4 and mkv)."""
    path = _found_as_named(folders, video)
    stem, suffix = os.path.splitext(video)
    if suffix.lower() not in VIDEOS or exists(path):
        return path
    names = [stem + other for known in VIDEOS for other in (known, known.upper())]
    others = [join_path(folder, name) for name in names for folder in folders]
    return next((other for other in others if exists(other)), path)


def _found_as_named(folders: Sequence[str], video: str) -> str:
    """The video's path in the first folder that holds it, or in the first folder if none does."""
    paths = [join_path(folder, video) for folder in folders]
    return next((path for path in paths if exists(path)), paths[0])


def vru_captions(record: Record) -> Iterator[Clip]:
    extra = {"group": "captions"}
    yield Clip(record.key, f"{record.key}.mp4", DESCRIBE_SCENE, record.row["gt"], extra=extra)


def score_tempcompass(clip: Clip, text: str) -> AnswerScore:
    """Whether it chooses the right option; of captions, whether it tells it."""
    captions = clip.extra["task"] == "captioning"
    return score_told_option(clip, text) if captions else score_choice(clip, text)


def charades_sta(record: Record) -> Iterator[Clip | Unasked]:
    """A line of the original text (``3MSZA 24.3 30.4##person turn a light on.``), a video with all its spans
    and sentences (VideoChat-R1), or a query in a row of its own."""
    row = charades_row(record.row) if isinstance(record.row, str) else record.row
    if "sentences" in row:
        video = row.get("video", record.key)
        queries = list(zip(row["timestamps"], row["sentences"], strict=True))
    else:
        video, queries = row["video"], [(row["timestamp"], row["caption"])]
    for number, (span, caption) in enumerate(queries, 1):
        start, end = map(float, span)
        clip = Clip(
            id=f"{record.file}/{record.key}" if number == 1 else f"{record.file}/{record.key}/{number}",
            video=with_suffix(video),
            question=WHEN.format(caption.strip().rstrip(".")),
            answer=f"From {start} to {end} seconds.",
            spans=((start, end),),
            task="grounding",
            extra={"group": "queries"},
        )
        yield Unasked(REVERSED, clip) if start > end else clip


def got_10k(record: Record) -> Iterator[Clip]:
    """VideoChat-R1's validation file: a folder of frames, and boxes at 8 moments. Of its paths, which are
    those of the authors' machine, the folder's name counts."""
    row = record.row
    video, boxes = PurePosixPath(row["path"]).name, tuple(parse_box(box) for box in row["gt"])
    question = TRACK.format(row["object"], row["gt"][0], len(boxes), len(boxes))
    extra = {"group": "objects"}
    yield Clip(video, video, question, str(row["gt"]), task="tracking", boxes=boxes, extra=extra)


def dream_1k(record: Record) -> Iterator[Clip]:
    """The published file, or Tarsier's."""
    row = record.row
    if "messages" in row:
        video, _, answer = tarsier_question(row)
    else:
        video, answer = tarsier_video(row, row["video_file"]), row["text"]["response"]
    extra = {"group": row["dataset"], "events": row["extra_info"]["events"]}
    yield Clip(f"dream/{row['idx']}", video, "Describe the video in detail.", answer, extra=extra)


def own_clips(record: Record) -> Iterator[Clip]:
    """vpjax's own format; grouped by ``extra.group``, else by task. UserError for a clip that lacks what its
    task needs to be scored."""
    clip = parse_clip(record.row)
    answer_type(clip)
    yield dataclasses.replace(clip, extra={**clip.extra, "group": group_of(clip)})


def group_of(clip: Clip) -> str:
    """The name by which scores of a clip in vpjax's format are grouped."""
    group = clip.extra.get("group")
    return clip.task if group is None else str(group)


def event_clips(record: Record) -> Iterator[Clip | Unasked]:
    """The built-in event clips, or others with an event in ``extra``, where "" means that none is seen.
    Captions are grouped by how long the event lasts, other tasks by ``extra.group``, else by task. A clip
    whose answer should name its event, or no event, but does not is left out."""
    clip = parse_clip(record.row)
    event, length = clip.extra.get("event"), clip.extra.get("length")
    names_event = events_named(clip.answer) == ((event,) if event else ())
    asks_else = clip.task in ("choice", "grounding", "tracking")
    if event is None or length is None or not (names_event or asks_else):
        yield Unasked(NO_EVENT, clip)
        return
    group = group_of(clip)
    if clip.task == "caption":
        group = f"{length / EIGHTHS:g} s" if event else "no event"
    yield dataclasses.replace(clip, extra={**clip.extra, "group": group})


BENCHMARKS = {
    "motionbench": Benchmark(motionbench, score_choice, 32, MOTIONBENCH_FOLDERS),
    "vru-accident-vqa": Benchmark(vru_vqa, score_choice, 32),
    "vru-accident-captions": Benchmark(vru_captions, score_caption, 512),
    "tempcompass": Benchmark(
        tempcompass, score_tempcompass, 128, published={"accuracy": 73.9}, second_group="task"
    ),
    "mvbench": Benchmark(mvbench, score_choice, 32, published={"accuracy": 67.9}),
    "tvbench": Benchmark(tvbench, score_choice, 32, ("{file}", "video/{file}", "", "video")),
    "video-mme": Benchmark(video_mme, score_choice, 32, ("data", "videos", "")),
    "mlvu": Benchmark(mlvu, score_choice, 32, ("", "video", "video/{file}", "videos")),
    "longvideobench": Benchmark(longvideobench, score_choice, 32, ("videos", ""), {"accuracy": 49.1}),
    "charades-sta": Benchmark(charades_sta, score_span, 64, published={"mIoU": 60.8, "R@0.5": 71.7}),
    "got-10k": Benchmark(got_10k, score_tracking, 512, ("", "val", "videos")),
    "next-gqa": Benchmark(next_gqa, score_grounded_choice, 128),
    "favor-bench": Benchmark(favor, score_choice, 128),
    "dream-1k": Benchmark(dream_1k, score_description, 512),
    "events": Benchmark(event_clips, score_built_in, 256, second_group="event", names_events=True),
    "clips": Benchmark(own_clips, score_by_task, 512),
}
