"""Readers of questions with options, each on a small file in the published form, with its trap in it."""

import copy
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tests.evaluation.benchmark_rows import (
    CAPTION_A,
    CAPTION_B,
    CAPTIONING,
    DREAM,
    DREAM_TARSIER,
    GQA_PATHS,
    GQA_R1,
    GQA_SPANS,
    GQA_TABLE,
    LVB,
    MLVU,
    MLVU_PUBLISHED,
    MME,
    MOTION,
    MVBENCH,
    TEMPCOMPASS,
    TVBENCH_TARSIER,
)
from tests.evaluation.reading import groups, leading, read, write
from tests.videos import greys
from tests.videos import write as write_video
from vpjax.evaluation.benchmarks import BENCHMARKS, answers_to, read_benchmark
from vpjax.evaluation.questions import HIDDEN, NO_OPTION, OPEN, PARTLESS
from vpjax.evaluation.results import chance_of
from vpjax.evaluation.shown import within_files
from vpjax.types import UserError

CAPTION_SCORE = "caption accuracy (our matcher)"


def test_motionbench(tmp_path):
    clips, left_out = read("motionbench", write(tmp_path, video_info_meta_jsonl=MOTION))
    assert [c.id for c in clips] == ["m1", "m3"] and left_out == {HIDDEN: 1}
    assert clips[0].video == f"{tmp_path}/self/a.mp4" and clips[0].choices == ("a cat", "a dog", "a car")
    assert (
        clips[0].question
        == "What moves?\nA. a cat\nB. a dog\nC. a car\nAnswer with only the option's letter."
    )
    assert groups(clips) == ["Motion Recognition", "Repetition Count"] and answers_to(clips[0]) == (
        "A",
        "B",
        "C",
    )


def test_the_videos_of_motionbench_lie_in_two_folders(tmp_path):
    data = write(tmp_path, video_info_meta_jsonl=[MOTION[0] | {"video_path": "a.mp4"}, MOTION[1]])
    places = [tmp_path / "self-collected/a.mp4", tmp_path / "public-dataset/b.mp4"]
    for place in places:
        place.parent.mkdir()
        place.touch()
    assert [clip.video for clip in read("motionbench", data)[0]] == list(map(str, places))


def test_tempcompass(tmp_path):
    for name, value in TEMPCOMPASS.items():
        (tmp_path / name).write_text(json.dumps(value))
    clips, _ = read("tempcompass", tmp_path)
    tasks = {clip.id.split("/")[0]: clip for clip in clips}
    assert set(tasks) == {"multi-choice", "yes_no", "caption_matching", "captioning"}
    assert tasks["caption_matching"].choices == (CAPTION_A, CAPTION_B)
    assert tasks["yes_no"].choices == ("yes", "no") and tasks["captioning"].choices == ("up", "down", "left")
    assert leading(BENCHMARKS["tempcompass"].score(tasks["captioning"], "The balloon flies up.")) == 1
    # Guesses are those of the tasks whose accuracy it is: of two options each.
    assert chance_of(BENCHMARKS["tempcompass"], clips) == 1 / 2
    # Its own evaluation gives a number for each task, of which a language model judges the captions.
    assert {clip.extra[BENCHMARKS["tempcompass"].second_group] for clip in clips} == set(tasks)
    assert {clip.extra["group"] for clip in clips} == {"speed", "action", "order", "direction"}
    assert {Path(clip.video).name for clip in clips} == {"10.mp4"}
    (tmp_path / "other.json").write_text(json.dumps(TEMPCOMPASS["yes_no.json"]))
    with pytest.raises(UserError, match="other.json, row 10: .*caption_matching"):
        read_benchmark("tempcompass", tmp_path, None)


def test_captioning_of_tempcompass_as_published(tmp_path):
    """A caption is scored by the piece of information that it tells, whatever its words, by a number of its
    own."""
    (clip,), _ = read("tempcompass", write(tmp_path, captioning_json=CAPTIONING))
    assert clip.choices == ("from left to right", "from the car's left") and clip.answer == clip.choices[0]
    assert clip.question == CAPTIONING["10"]["direction"][0]["question"]
    score = BENCHMARKS["tempcompass"].score
    told, name = ["The man walks from left to right.", "A man goes to the right."], CAPTION_SCORE
    assert [score(clip, text) for text in told] == [(True, {name: 1})] * 2
    assert score(clip, "The man comes from the car's left.") == (True, {name: 0})
    assert score(clip, "A man and a dog.") == (False, {name: 0})
    wrong = {"10": {"direction": [CAPTIONING["10"]["direction"][0] | {"answer": "C. up"}]}}
    with pytest.raises(UserError, match="'C. up' is none of 2 pieces of information"):
        read("tempcompass", write(tmp_path, captioning_json=wrong))


def test_of_options_of_the_same_text_the_last_is_right(tmp_path):
    """Some rows of TVBench and MLVU have them, and their own code takes the last."""
    same = {"candidates": ["Three", "Six", "Three"], "answer": "Three"}
    data = write(tmp_path / "a", a_json=[MLVU_PUBLISHED["1_plotQA"] | same])
    assert read_benchmark("mlvu", data)[0][0].answer == "C"
    data = write(tmp_path / "b", action_count_json=[MVBENCH | same])
    assert read_benchmark("tvbench", data)[0][0].answer == "C"
    none = write(tmp_path / "c", action_count_json=[MVBENCH | {"answer": "four"}])
    with pytest.raises(UserError, match="row 1: .*'four' is none of"):
        read_benchmark("tvbench", none)


def test_the_benchmarks_that_tarsier_ships(tmp_path):
    """They are the clips of the published files."""
    published = write(tmp_path / "json", action_antonym_json=[MVBENCH | {"video": "x.avi"}])
    ours, theirs = (
        read("tvbench", data, tmp_path)[0][0]
        for data in (published, write(tmp_path / "a", TVBench_jsonl=[TVBENCH_TARSIER]))
    )
    assert (ours.question, ours.answer, ours.choices) == (theirs.question, theirs.answer, theirs.choices)
    assert ours.extra == theirs.extra and theirs.video.endswith("action_antonym/x.avi")
    data = write(tmp_path / "b", dream_jsonl=[DREAM]), write(tmp_path / "c", dream_jsonl=[DREAM_TARSIER])
    assert read("dream-1k", data[0], tmp_path) == read("dream-1k", data[1], tmp_path)


def test_parts_that_tarsiers_copy_of_tvbench_lacks(tmp_path):
    """TVBench's own code shows a part of the video for two of its tasks."""
    parts = [
        TVBENCH_TARSIER | {"vid": f"{task}/x.mp4"} for task in ("action_sequence", "action_localization")
    ]
    clips, left_out = read("tvbench", write(tmp_path, TVBench_jsonl=[*parts, TVBENCH_TARSIER]), tmp_path)
    assert groups(clips) == ["action_antonym"] and left_out == {PARTLESS: 2}
    filled = copy.deepcopy(TVBENCH_TARSIER)  # as its authors' notebook does it
    filled["messages"][0]["content"][0]["video"]["video_file"] = "/data/TVBench/action_sequence/x.mp4"
    antonym = copy.deepcopy(filled)
    antonym["messages"][0]["content"][0]["video"]["video_file"] = "/data/TVBench/action_antonym/x.mp4"
    clips, left_out = read("tvbench", write(tmp_path / "filled", TVBench_jsonl=[filled, antonym]))
    assert groups(clips) == ["action_antonym"] and left_out == {PARTLESS: 1}


def test_mvbench_and_tvbench(tmp_path):
    timed = MVBENCH | {"start": 1.5, "end": 7}
    data = write(tmp_path / "json", action_sequence_json=[timed], action_count_json=[MVBENCH, MVBENCH])
    clips, _ = read("mvbench", data, tmp_path)
    assert [c.answer for c in clips] == ["C"] * 3 and clips[0].choices == tuple(MVBENCH["candidates"])
    assert groups(clips) == ["action_count", "action_count", "action_sequence"]
    assert clips[2].video == f"{tmp_path}/star/Charades_v1_480/x.mp4"
    assert (clips[2].start, clips[2].end, clips[0].start) == (1.5, 7, None)
    video = tmp_path / "video/action_count/x.mp4"
    video.parent.mkdir(parents=True)
    video.touch()
    clips, _ = read("tvbench", data, tmp_path)
    assert clips[0].video == str(video) and clips[2].video == f"{tmp_path}/action_sequence/x.mp4"


def test_a_part_that_ends_after_its_file_ends_with_it(tmp_path):
    """As in MVBench's own code; one that is not in its file at all stays what it is, and is a fault."""
    videos = tmp_path / "star/Charades_v1_480"
    videos.mkdir(parents=True)
    write_video(videos / "x.mp4", greys(25))  # 1 s
    parts = [(0.2, 7), (0.2, 0.8), (None, 1.0), (3, 7), (None, None)]
    rows = [MVBENCH | {"start": start, "end": end} for start, end in parts]
    rows.append(MVBENCH | {"video": "none.mp4", "start": 0.2, "end": 7})
    clips, _ = read("mvbench", write(tmp_path / "json", action_sequence_json=rows), tmp_path)
    said, data = [], ConfigDict(dict(cache=str(tmp_path / "cache"), max_side=8192))
    within = within_files(clips, data, said.append)
    ends = [(0.2, None), *parts[1:], (0.2, 7)]
    assert [(clip.start, clip.end) for clip in within] == ends
    assert said == ["1 clips end after their files, and are shown up to there, such as action_sequence/1"]


def test_video_mme_mlvu_longvideobench(tmp_path):
    clips, _ = read("video-mme", write(tmp_path / "a", videomme_jsonl=[MME]))
    assert clips[0].choices == ("Apples.", "A pear.", "Both.", "None.") and groups(clips) == ["short"]
    assert "B. A pear.\n" in clips[0].question and clips[0].video.endswith("fFj.mp4")
    clips, _ = read("mlvu", write(tmp_path / "b", mlvu_json=[MLVU]))
    assert clips[0].choices == ("x", "y") and groups(clips) == ["needle"]
    clips, _ = read("longvideobench", write(tmp_path / "c", lvb_val_json=[LVB]))
    assert (
        clips[0].choices == ("a cat", "a dog", "a cow")
        and clips[0].answer == "C"
        and groups(clips) == ["600"]
    )
    assert "N/A" not in clips[0].question
    # Others draw a random letter for an answer that cannot be read; here it is wrong.
    assert BENCHMARKS["longvideobench"].score(clips[0], "I cannot say.") == (False, {"accuracy": 0})


def test_a_question_with_one_option(tmp_path):
    """MVBench and MotionBench have a few, and were refused as a whole."""
    row = MVBENCH | {"candidates": ["one"], "answer": "one"}
    (clip,), _ = read("mvbench", write(tmp_path, counterfactual_inference_json=[row]))
    scores = [BENCHMARKS["mvbench"].score(clip, text) for text in ("A", "It is one.", "B")]
    assert [score.values["accuracy"] for score in scores] == [1, 1, 0]


def test_mlvu_as_published(tmp_path):
    """One file a task, with videos in folders of these names. The open questions have no options; the answers
    of some rows are none of theirs, some options are empty, and the test split has no answers."""
    rows, count = MLVU_PUBLISHED, MLVU_PUBLISHED["4_count"]
    odd = [count | {"answer": "3"}, {k: v for k, v in count.items() if k != "answer"}]
    blank = count | {"candidates": ["", "2", "1", ""]}
    videos = tmp_path / "video/1_plotQA"
    videos.mkdir(parents=True)
    (videos / "movie101_66.mp4").touch()
    files = {f"{name}_json": [row] for name, row in rows.items()} | {"4_count_json": [count, *odd, blank]}
    clips, left_out = read("mlvu", write(tmp_path / "json", **files), tmp_path)
    assert left_out == {OPEN: 1, NO_OPTION: 1, HIDDEN: 1} and groups(clips) == ["plotQA", "count", "count"]
    assert [clip.answer for clip in clips] == ["A", "B", "B"] and clips[2].choices == ("2", "1")
    assert clips[0].video == str(videos / "movie101_66.mp4")
    assert clips[0].question.split("\n")[:2] == [rows["1_plotQA"]["question"], "A. Yellow"]


def test_longvideobench_as_published(tmp_path):
    """The options are a list; the test split has no right one."""
    whole = {"candidates": ["a cat", "a dog", "a cow"]}
    row = {k: v for k, v in LVB.items() if not k.startswith("option")} | whole
    test = {k: v for k, v in row.items() if k != "correct_choice"} | {"id": "l2"}
    clips, left_out = read("longvideobench", write(tmp_path, lvb_val_json=[row, test]))
    assert clips == read("longvideobench", write(tmp_path, table_json=[LVB]))[0] and left_out == {HIDDEN: 1}


def test_next_gqa(tmp_path):
    (tmp_path / "test.csv").write_text(GQA_TABLE)
    with pytest.raises(UserError, match="needs map_vid_vidorID.json beside it"):
        read("next-gqa", tmp_path / "test.csv")
    write(tmp_path, gsub_test_json=GQA_SPANS, map_vid_vidorID_json=GQA_PATHS)
    published, _ = read("next-gqa", tmp_path / "test.csv")
    assert published == read("next-gqa", write(tmp_path, nextgqa_test_json=[GQA_R1]))[0]
    broken = GQA_TABLE + '1,"an open mark,\n'
    (tmp_path / "test.csv").write_text(broken)
    with pytest.raises(UserError, match="test.csv: not CSV: unexpected end of data"):
        read("next-gqa", tmp_path / "test.csv")
    (clip,) = published
    assert (clip.id, clip.answer, clip.spans) == ("2574374895_8", "C", ((23.0, 27.7),))
    assert clip.video == f"{tmp_path}/1101/2574374895.mp4" and groups([clip]) == ["TN"]
    assert clip.choices[1] == "the lady, sitting" and "\nB. the lady, sitting\n" in clip.question
    score = BENCHMARKS["next-gqa"].score
    right = {"accuracy": 1, "evidence IoU": 1, "grounded@0.5": 1}
    assert score(clip, "<answer>C</answer> <glue>[(23.0, 27.7)]</glue>") == (True, right)
    half = score(clip, "<answer>C</answer> <glue>[(23.0, 24.0)]</glue>").values
    assert half == pytest.approx({"accuracy": 1, "evidence IoU": 1 / 4.7, "grounded@0.5": 0})
    other = score(clip, "<answer>A</answer> <glue>[(23.0, 27.7)]</glue>").values
    assert other == {"accuracy": 0, "evidence IoU": 1, "grounded@0.5": 0}
    assert score(clip, "C, from 23.0 to 27.7").values["evidence IoU"] == 0  # no <glue>
