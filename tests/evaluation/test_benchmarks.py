"""Each reader on a small file in the published format, with that format's trap in it."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tests.evaluation.benchmark_rows import (
    CAPTION_A,
    CAPTION_B,
    CAPTIONING,
    CHARADES,
    CHARADES_R1,
    CHARADES_TEXT,
    DREAM,
    DREAM_TARSIER,
    FAVOR,
    GOT,
    GQA_PATHS,
    GQA_R1,
    GQA_SPANS,
    GQA_TABLE,
    LVB,
    MLVU,
    MME,
    MOTION,
    MVBENCH,
    TEMPCOMPASS,
    TVBENCH_TARSIER,
    VRU,
    VRU_CAPTIONS,
)
from tests.videos import greys
from tests.videos import write as write_video
from vpjax.data.clips import write_clips
from vpjax.evaluation.benchmarks import BENCHMARKS, HIDDEN, NO_EVENT, REVERSED, answers_to, read_benchmark
from vpjax.evaluation.shown import within_files
from vpjax.events import clips as events
from vpjax.scoring.answers import read_choice
from vpjax.scoring.references import right_option
from vpjax.scoring.tasks import score_by_task
from vpjax.types import Clip, UserError


def write(folder: Path, **files):
    """Files by name, ``_json`` and ``_jsonl`` standing for their suffix: the only one, or their folder."""
    folder.mkdir(exist_ok=True)
    for name, value in files.items():
        stem, _, suffix = name.rpartition("_")
        lines = "\n".join(map(json.dumps, value)) if suffix == "jsonl" else json.dumps(value)
        (folder / f"{stem}.{suffix}").write_text(lines)
    return folder / f"{stem}.{suffix}" if len(files) == 1 else folder


def read(name, data, videos=None):
    clips, left_out = read_benchmark(name, data, videos)
    for clip in clips:
        if clip.task == "choice":
            assert BENCHMARKS[name].score(clip, clip.answer).values["accuracy"] == 1
            wrong = [c for i, c in enumerate(clip.choices) if i != read_choice(clip.answer, clip.choices)]
            scores = [BENCHMARKS[name].score(clip, c) for c in wrong]
            assert all(readable and values["accuracy"] == 0 for readable, values in scores)
    return clips, left_out


def groups(clips):
    return [clip.extra["group"] for clip in clips]


def test_lines_end_where_those_of_json_do(tmp_path):
    """Not at U+2028, which may stand in a string as it is."""
    odd = json.dumps(DREAM | {"dataset": "one\u2028two"}, ensure_ascii=False)
    (tmp_path / "dream.jsonl").write_text(odd + "\n", encoding="utf-8")
    assert len(read("dream-1k", tmp_path / "dream.jsonl")[0]) == 1


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


def test_vru_accident(tmp_path):
    clips, _ = read("vru-accident-vqa", write(tmp_path / "a", vqa_json=VRU), tmp_path)
    assert (
        clips[0].question == "Why?\n" + VRU["./VRU_videos/CAP_DATA/VRU_1.mp4"]["accident reason"]["options"]
    )
    assert clips[0].choices == (
        "wet, and dark",
        "vision is blocked, no time to brake",
        "speed",
        "rain.",
    )
    assert groups(clips) == ["accident reason", "location"]
    assert Path(clips[0].video) == tmp_path / "VRU_videos/CAP_DATA/VRU_1.mp4"
    captions, _ = read("vru-accident-captions", write(tmp_path / "b", c_json=VRU_CAPTIONS))
    # Paired by key: the order in the file differs.
    assert {Path(c.video).name: c.answer for c in captions} == {"VRU_2.mp4": "Two.", "VRU_1.mp4": "One."}


def test_tempcompass(tmp_path):
    for name, value in TEMPCOMPASS.items():
        (tmp_path / name).write_text(json.dumps(value))
    clips, _ = read("tempcompass", tmp_path)
    tasks = {clip.id.split("/")[0]: clip for clip in clips}
    assert set(tasks) == {"multi-choice", "yes_no", "caption_matching", "captioning"}
    assert tasks["caption_matching"].choices == (CAPTION_A, CAPTION_B)
    assert tasks["yes_no"].choices == ("yes", "no") and tasks["captioning"].choices == ("up", "down")
    assert (
        BENCHMARKS["tempcompass"].score(tasks["captioning"], "The balloon flies up.").values["accuracy"] == 1
    )
    assert {clip.extra["group"] for clip in clips} == {"speed", "action", "order", "direction"}
    assert {Path(clip.video).name for clip in clips} == {"10.mp4"}
    (tmp_path / "other.json").write_text(json.dumps(TEMPCOMPASS["yes_no.json"]))
    with pytest.raises(UserError, match="other.json, row 10: .*caption_matching"):
        read_benchmark("tempcompass", tmp_path, None)


def test_captioning_of_tempcompass_as_published(tmp_path):
    """A caption is scored by the one piece of information that it holds."""
    (clip,), _ = read("tempcompass", write(tmp_path, captioning_json=CAPTIONING))
    assert clip.choices == ("from left to right", "from the car's left") and clip.answer == clip.choices[0]
    assert clip.question == CAPTIONING["10"]["direction"][0]["question"]
    score = BENCHMARKS["tempcompass"].score
    assert score(clip, "The man walks from left to right.") == (True, {"accuracy": 1})
    assert score(clip, "The man comes from the car's left.") == (True, {"accuracy": 0})
    wrong = {"10": {"direction": [CAPTIONING["10"]["direction"][0] | {"answer": "C. up"}]}}
    with pytest.raises(UserError, match="'C. up' is none of 2 pieces of information"):
        read("tempcompass", write(tmp_path, captioning_json=wrong))


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


def test_charades_sta(tmp_path):
    (clip,), _ = read("charades-sta", write(tmp_path, charades_sta_test_jsonl=[CHARADES]))
    assert (
        clip.spans == ((0.0, 6.9),)
        and clip.video.endswith("AO8RW.mp4")
        and '"a person sits down"' in clip.question
    )
    readable, values = BENCHMARKS["charades-sta"].score(clip, clip.answer)
    assert readable and set(values.values()) == {1.0} and not answers_to(clip)


def test_charades_sta_as_published(tmp_path):
    text = tmp_path / "charades_sta_test.txt"
    text.write_text(CHARADES_TEXT)
    (first,), left_out = read("charades-sta", text)
    assert left_out == {REVERSED: 1} and first.spans == ((24.3, 30.4),)
    clips, _ = read("charades-sta", write(tmp_path, charades_test_json=CHARADES_R1))
    assert [Path(clip.video).name for clip in clips] == ["3MSZA.mp4", "3MSZA.mp4", "AMT7R.mp4"]
    assert len({clip.id for clip in clips}) == 3 and clips[2].spans == ((4.3, 12.5),)
    assert (clips[0].question, clips[0].spans) == (first.question, first.spans)


def test_got_10k(tmp_path):
    frames = tmp_path / "val/GOT-10k_Val_000010"
    frames.mkdir(parents=True)
    (clip,), _ = read("got-10k", write(tmp_path, got_val_json=[GOT]))
    assert clip.video == str(frames) and clip.task == "tracking" and not answers_to(clip)
    assert [list(box) for box in clip.boxes] == GOT["gt"]
    assert (
        '"sloth", which begins at [0.093, 0.0, 0.8, 0.797]' in clip.question and "3 moments" in clip.question
    )
    score = BENCHMARKS["got-10k"].score
    assert score(clip, clip.answer) == (True, {"AO": 1, "success@0.5": 1, "box IoU": 1})
    assert score(clip, "It is a sloth.") == (False, {"AO": 0, "success@0.5": 0, "box IoU": 0})
    with pytest.raises(UserError, match="got.json, row 1: .*box"):
        read("got-10k", write(tmp_path, got_json=[GOT | {"gt": [[0.9, 0, 0.8, 1]]}]))


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


def test_favor_and_dream(tmp_path):
    clips, _ = read("favor-bench", write(tmp_path / "a", favor_json=[FAVOR]))
    assert clips[0].question.split("\n")[1:3] == ["runs", "runs and jumps"]
    assert answers_to(clips[0]) == ("runs", "runs and jumps")
    answer = "The man runs and jumps."  # holds both options; the longer one counts
    assert BENCHMARKS["favor-bench"].score(clips[0], answer).values["accuracy"] == 1
    (clip,), _ = read("dream-1k", write(tmp_path / "b", dream_jsonl=[DREAM]))
    assert clip.extra["events"] == ["A cat runs.", "The cat falls."] and groups([clip]) == [
        "DREAM/movie_animation"
    ]
    with pytest.raises(UserError, match="placeholder"):
        read("dream-1k", write(tmp_path / "c", dream_jsonl=[DREAM | {"video_file": "<placeholder>"}]))


def test_event_clips(tmp_path):
    made = events.make_event_clips(events.EventSpec(), tmp_path, {"heldout": 9})["heldout"]
    clips, _ = read("events", made)
    assert groups(clips) == ["0.125 s"] * 8 + ["0.25 s"] and all(Path(c.video).exists() for c in clips)
    for clip in clips:
        given = answers_to(clip)
        assert clip.answer in given and len(set(given)) == 8
        right = [BENCHMARKS["events"].score(clip, text).values["accuracy"] for text in given]
        assert sum(right) == 1 and right[given.index(clip.answer)] == 1
    own, _ = read("clips", made)
    assert groups(own) == ["caption"] * 9


def test_groups_are_names(tmp_path):
    """Whatever a file has there, for means are taken by them."""
    clips = [Clip(f"{n}", "", "q", "a", extra={"group": x}) for n, x in enumerate((3, "b", None, [1]))]
    write_clips(tmp_path / "clips.jsonl", clips)
    assert groups(read_benchmark("clips", tmp_path / "clips.jsonl")[0]) == ["3", "b", "caption", "[1]"]


@pytest.mark.parametrize(
    "task, said", [("grounding", "needs spans"), ("tracking", "needs boxes"), ("numerical", "not one number")]
)
def test_clips_that_cannot_be_scored_are_named(tmp_path, task, said):
    """Before they are asked about: grounding would always be wrong, and tracking a mean of nothing."""
    write_clips(tmp_path / "clips.jsonl", [Clip("a", "a.mp4", "q", "about five", task=task)])
    with pytest.raises(UserError, match=f"clip a: .*{said}"):
        read_benchmark("clips", tmp_path / "clips.jsonl")


def test_event_clips_about_times_places_and_evidence(tmp_path):
    """Each has an accuracy and its task's own scores, 1 of the true answer; no caption's candidates."""
    spec = events.EventSpec(caption=0, grounding=1, tracking=1, grounded=1, tags=True)
    clips, left_out = read("events", events.make_event_clips(spec, tmp_path, {"heldout": 24})["heldout"])
    own = {
        "grounding": ["accuracy", "mIoU"],
        "tracking": ["accuracy", "AO", "success@0.5", "box IoU"],
        "grounded": ["accuracy", "evidence IoU", "grounded@0.5"],
    }
    assert set(groups(clips)) == set(own) and not left_out
    for clip in clips:
        readable, values = BENCHMARKS["events"].score(clip, clip.answer)
        assert readable and list(values) == own[clip.extra["group"]] and not answers_to(clip)
        assert all(value > 0.8 for value in values.values())  # answers are rounded to hundredths
        assert not any(BENCHMARKS["events"].score(clip, "").values.values())


def test_event_clips_without_an_event(tmp_path):
    """They are right where no event is named, and have no candidates, all of which would name one."""
    spec = events.EventSpec(eventless=1.0, details=(0, 3))
    clips, left_out = read("events", events.make_event_clips(spec, tmp_path, {"heldout": 8})["heldout"])
    assert groups(clips) == ["no event"] * 8 and not left_out
    for clip in clips:
        assert not answers_to(clip) and BENCHMARKS["events"].score(clip, clip.answer) == (
            True,
            {"accuracy": 1},
        )
    named = events.describe(events.EventSpec(), "heldout", 0)[0].answer
    row = json.loads((tmp_path / spec.key / "heldout-8.jsonl").read_text().splitlines()[0])
    mixed, left_out = read("events", write(tmp_path, e_jsonl=[row, row | dict(id="x", answer=named)]))
    assert [clip.id for clip in mixed] == [row["id"]] and left_out == {NO_EVENT: 1}


@pytest.mark.parametrize(
    "change, expected",
    [
        (dict(answer="D"), ["row 1", "m1", "'D' is none of"]),
        (dict(question="What moves?"), ["row 1", "m1", "two or more"]),
        (dict(uid="m3"), ["row 2", "m3", "row 1 too"]),
        (dict(answer=2), ["row 1", "m1", "its answer is 2"]),
    ],
)
def test_broken_rows_are_named(tmp_path, change, expected):
    broken = [MOTION[0] | {"qa": [MOTION[0]["qa"][0] | change]}, MOTION[1]]
    with pytest.raises(UserError) as error:
        read_benchmark("motionbench", write(tmp_path, m_jsonl=broken), None)
    assert all(part in str(error.value) for part in ("m.jsonl", *expected)), error.value


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.parquet").touch()
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for data, message in (
        ("a.parquet", "to_json"),
        ("b.json", "not JSON"),
        ("none.json", "No such file"),
        ("none.csv", "No such file"),
        ("empty", "no .json"),
    ):
        with pytest.raises(UserError, match=message):
            read_benchmark("mlvu", tmp_path / data, None)
    with pytest.raises(UserError, match="no field 'qa'"):
        read_benchmark("motionbench", write(tmp_path / "c", m_json=[MLVU]), None)
    with pytest.raises(UserError, match="row 2: not a row of motionbench: it asks nothing"):
        read_benchmark("motionbench", write(tmp_path / "e", m_json=[MOTION[0], MOTION[1] | {"qa": []}]), None)
    with pytest.raises(UserError, match="1: its answer is hidden"):
        hidden = [MOTION[1] | {"qa": MOTION[1]["qa"][:1]}]
        read_benchmark("motionbench", write(tmp_path / "d", m_json=hidden), None)


@pytest.mark.parametrize(
    "answer, choices, candidates",
    [
        ("B", ["runs", "sits"], ["A", "B"]),
        ("(B)", ["(A) runs", "(B) sits"], ["(A)", "(B)"]),  # NExT-GQA
        ("(B) sits", ["runs", "sits"], ["(A) runs", "(B) sits"]),
        ("(B) sits", ["(A) runs", "(B) sits"], ["(A) runs", "(B) sits"]),
        ("<answer>B</answer>", ["A. runs", "B. sits"], ["<answer>A</answer>", "<answer>B</answer>"]),
        ("sits", ["runs", "sits"], ["runs", "sits"]),
        ("It is B", ["runs", "sits"], ["runs", "sits"]),
    ],
)
def test_candidates_have_the_form_of_the_answer(answer, choices, candidates):
    clip = Clip("a", "a.mp4", "What?", answer, task="choice", choices=tuple(choices))
    assert answers_to(clip) == tuple(candidates)
    assert [right_option(clip)] == [
        number
        for number, candidate in enumerate(candidates)
        if score_by_task(clip, candidate).values["accuracy"] == 1
    ]


def test_every_benchmark_has_room():
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.new_tokens > 0 and callable(benchmark.score), name
    assert answers_to(Clip("a", "", "q", "(B) two", task="choice", choices=("one", "two"))) == (
        "(A) one",
        "(B) two",
    )
