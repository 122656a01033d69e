"""Questions about videos -> clips: Video-R1, NExT-GQA, GOT-10k, each with its traps."""

import json

import pytest

from tests.building.annotation_rows import (
    GOT10K,
    NEXT_GQA,
    VIDEO_R1,
    clips_of,
    reasons,
)
from vpjax.building.questions import NO_TASK
from vpjax.scoring.references import right_option


@pytest.mark.parametrize(
    ("problem_type", "solution", "task"),
    [
        ("numerical", "<answer>1,250</answer>", "numerical"),
        ("regression", "<answer>3.2</answer>", "regression"),
        ("OCR", "<answer>STOP</answer>", "ocr"),
        ("free-form", "<answer>It rains.</answer>", "caption"),
        ("numerical", "<answer>many</answer>", "answer is not one number"),
        ("multiple_choice", "<answer>B</answer>", "choice"),
        (
            "temporal grounding",
            '<answer>{"time": [24.3, 30.4], "boxes": {"24": [1, 2, 3, 4]}}</answer>',
            "grounding",
        ),
        (
            "temporal grounding",
            '<think>{"time": [24.3, 30.4]}</think><[PLHD21]>',
            "answer is no span of time",
        ),
    ],
)
def test_video_r1_problem_types_are_tasks(read, problem_type, solution, task):
    (item,) = read([VIDEO_R1 | dict(problem_type=problem_type, options=[], solution=solution)]).items
    assert (item.clip.task == task) if item.clip else item.skipped.startswith(task)
    assert not item.notes and (task != "grounding" or item.clip.spans == ((24.3, 30.4),))


def test_video_r1_problem_types_without_a_task_are_noted(read):
    """They were captions without a word."""
    boxes = '<answer>{"boxes": {"18": [440, 135, 493, 246]}}</answer>'
    row = VIDEO_R1 | dict(problem_type="tracking", options=[], solution=boxes)
    (item,) = read([row]).items
    assert item.clip.task == "caption" and item.notes == (f"{NO_TASK}: tracking",)


@pytest.mark.parametrize(
    "options, solution, shown",
    [
        (["he runs", "he sits"], "<answer>B</answer>", ["A. he runs", "B. he sits"]),
        (["(A) he runs", "(B) he sits"], "<answer>B</answer>", ["(A) he runs", "(B) he sits"]),
        (["A. he runs", "B. he sits"], "B", ["A. he runs", "B. he sits"]),
        (["he runs", "he sits"], "<answer>he sits</answer>", ["he runs", "he sits"]),
    ],
)
def test_a_letter_that_is_asked_for_stands_before_its_option(read, options, solution, shown):
    (clip,) = clips_of(read([VIDEO_R1 | {"options": options, "solution": solution}]))
    assert clip.question.split("\n")[-2:] == shown and list(clip.choices) == shown
    assert right_option(clip) == 1


def test_video_r1_trains_on_reasoning_and_solution(read):
    free = VIDEO_R1 | dict(
        problem_type="free-form", options=[], process="", solution="<answer>It rains.</answer>"
    )
    easy = dict(problem="How many?", problem_type="numerical", answer="<answer>4</answer>", videos=["f.mp4"])
    first, second, third = clips_of(read([VIDEO_R1, free, easy]))
    assert first.answer == "<think>She hurries.</think>\n<answer>B</answer>"
    assert first.question == "What does she do?\nA. She sits, then stands\nB. She runs"
    assert (first.task, first.choices) == ("choice", ("A. She sits, then stands", "B. She runs"))
    assert (first.id, first.video, first.extra["problem_type"]) == ("7", "./NeXT-QA/1.mp4", "multiple choice")
    assert (second.task, second.answer) == ("caption", "<answer>It rains.</answer>")
    assert (third.video, third.answer) == ("f.mp4", "<answer>4</answer>")


@pytest.mark.parametrize(
    "solution, named",
    [
        ("<answer>E</answer>", "E of 2"),
        ("<answer>b</answer>", "'<answer>b</answer>' of 2"),
        ("<answer>She swims</answer>", "'<answer>She swims</answer>' of 2"),
        ("<answer>A or B</answer>", "'<answer>A or B</answer>' of 2"),
    ],
)
def test_an_answer_that_chooses_no_option_is_skipped(read, solution, named):
    """It stopped a run of GRPO before its first step, and SFT learned it."""
    broken, whole = read([VIDEO_R1 | dict(solution=solution), VIDEO_R1]).items
    assert broken.skipped == f"answer not among the options: {named}" and right_option(whole.clip) == 1
    free = VIDEO_R1 | dict(problem_type="free-form", options=[], solution=solution)
    assert len(clips_of(read([free]))) == 1


def test_next_gqa_carries_the_spans_of_its_evidence(read):
    (clip,) = clips_of(read([NEXT_GQA]))
    assert clip.spans == ((1.5, 4.0), (9.0, 10.0)) and clip.task == "choice" and clip.answer == "(B)"
    assert clip.question.splitlines() == ["why did he bend", "(A) to rest", "(B) to pick up a toy"]


def test_got10k_has_a_box_per_moment(read):
    (clip,) = clips_of(read([GOT10K]))
    assert clip.boxes == tuple(map(tuple, GOT10K["gt"])) and clip.task == "tracking"
    assert json.loads(clip.answer) == GOT10K["gt"] and "2 moments" in clip.question
    assert clip.video == GOT10K["path"]
    pixels = GOT10K | {"gt": [[417, 379, 596, 669]]}
    assert "shares of width and height" in reasons(read([pixels]))[0]


def test_folders_of_got10k_are_found_on_this_machine(read, tmp_path):
    """The published paths are those of the authors' machine."""
    theirs, ours = "/mnt/share/GOT/raw/GOT-10k/train/GOT-10k_Train_000048", tmp_path / "GOT-10k_Train_000048"
    ours.mkdir()
    clips = clips_of(read([GOT10K | {"path": path} for path in (theirs, str(ours))]))
    assert [clip.video for clip in clips] == [ours.name, str(ours)]
