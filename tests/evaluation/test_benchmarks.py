"""Each reader on a small file in the published format, with that format's trap in it."""

import json
from pathlib import Path

import pytest

from tests.evaluation.benchmark_rows import (
    CHARADES,
    CHARADES_R1,
    CHARADES_TEXT,
    DREAM,
    FAVOR,
    GOT,
    MLVU,
    MME,
    MOTION,
    VRU,
    VRU_CAPTIONS,
)
from tests.evaluation.reading import groups, read, write
from vpjax.data.clips import write_clips
from vpjax.evaluation.benchmarks import BENCHMARKS, NO_EVENT, REVERSED, answers_to, read_benchmark
from vpjax.events import clips as events
from vpjax.scoring.references import right_option
from vpjax.scoring.tasks import score_by_task
from vpjax.types import Clip, UserError


def test_lines_end_where_those_of_json_do(tmp_path):
    """Not at U+2028, which may stand in a string as it is."""
    odd = json.dumps(DREAM | {"dataset": "one\u2028two"}, ensure_ascii=False)
    (tmp_path / "dream.jsonl").write_text(odd + "\n", encoding="utf-8")
    assert len(read("dream-1k", tmp_path / "dream.jsonl")[0]) == 1


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


def test_videos_of_a_benchmark_in_another_format(tmp_path):
    """Copies have some in others than the annotations say; files of one's own are those that are named."""
    (tmp_path / "fFj.MP4").touch()
    (clip,), _ = read("video-mme", write(tmp_path, a_jsonl=[MME]))
    assert clip.video == str(tmp_path / "fFj.MP4")
    write_clips(tmp_path / "clips.jsonl", [Clip("a", "fFj.mp4", "q", "a")])
    (own,), _ = read_benchmark("clips", tmp_path / "clips.jsonl")
    assert own.video == str(tmp_path / "fFj.mp4")


def test_charades_sta(tmp_path):
    (clip,), _ = read("charades-sta", write(tmp_path, charades_sta_test_jsonl=[CHARADES]))
    assert (
        clip.spans == ((0.0, 6.9),)
        and clip.video.endswith("AO8RW.mp4")
        and '"a person sits down"' in clip.question
    )
    readable, values = BENCHMARKS["charades-sta"].score(clip, clip.answer)
    assert readable and set(values.values()) == {1.0} and not answers_to(clip)


@pytest.mark.parametrize(
    "video, file", [("AO8RW", "AO8RW.mp4"), ("v_360.0_510.0", "v_360.0_510.0.mp4"), ("a.flv", "a.flv")]
)
def test_videos_named_without_their_suffix(tmp_path, video, file):
    (clip,), _ = read("charades-sta", write(tmp_path, a_jsonl=[CHARADES | {"video": video}]))
    assert clip.video == str(tmp_path / file)


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


def test_favor_and_dream(tmp_path):
    clips, _ = read("favor-bench", write(tmp_path / "a", favor_json=[FAVOR]))
    assert clips[0].video.endswith("a/91YZH.mp4")  # published without its suffix
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
        (dict(question="What moves?"), ["row 1", "m1", "one or more"]),
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
