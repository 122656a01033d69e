"""Annotation files -> clips: every format with its traps."""

import copy
import dataclasses
import json

import pytest

from tests.building.annotation_rows import (
    CAPTIONS,
    CHARADES_TEXT,
    DREAM_1K,
    LLAVA,
    NEXT_GQA_PATHS,
    NEXT_GQA_SPANS,
    NEXT_GQA_TABLE,
    QWEN,
    TARSIER,
    TRL,
    TVBENCH,
    YOUCOOK2,
    clips_of,
    reasons,
)
from vpjax.building.annotations import read_annotations
from vpjax.types import Clip, Turn, UserError


def test_a_conversation_is_one_clip_with_all_of_its_turns(read):
    third = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "It is glass."}]
    system = {"from": "system", "value": " You are a bird. "}
    row = LLAVA | {"conversations": [system, *LLAVA["conversations"], *third]}
    (clip,) = clips_of(read([row]))
    assert clip == Clip(
        "academic-1",
        "a/b.mp4",
        "Why?",
        "It is glass.",
        system="You are a bird.",
        turns=(Turn("What happens?", "A cup falls."), Turn("Does it break?", "Yes, it breaks.")),
        extra={"data_source": "0_30_s"},
    )
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    messages = [{"role": roles[x["from"]], "content": x["value"]} for x in row["conversations"]]
    (same,) = clips_of(read([{"id": "academic-1", "messages": messages, "videos": "a/b.mp4"}]))
    assert same == dataclasses.replace(clip, extra={})


def test_a_system_message_beside_the_turns_is_theirs_unless_they_have_one(read):
    """As LLaMA-Factory reads its rows."""
    turns = LLAVA["conversations"]
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    own = {"from": "system", "value": "Sing."}
    rows = [LLAVA, {"messages": messages}, LLAVA | {"conversations": [own, *turns]}]
    for row, expected in zip(rows, ["Be brief.", "Be brief.", "Sing."], strict=True):
        (clip,) = clips_of(read([row | {"system": " Be brief. "}]))
        assert clip.system == expected
    (clip,) = clips_of(read([LLAVA | {"system": None}]))
    assert clip.system == ""


def test_a_list_of_one_video_is_a_video_and_names_the_clip(read):
    (clip,) = clips_of(read([QWEN]))
    assert (clip.id, clip.video, clip.question) == ("b", "b.mp4", "What now?")


def test_images_and_text_alone_are_clips_too(read):
    picture = {"image": "p.jpg", "conversations": QWEN["conversations"]}
    plain = {"id": 3, "conversations": LLAVA["conversations"][2:]}
    first, second = clips_of(read([picture, plain]))
    assert first.video == "p.jpg" and (second.video, second.id) == ("", "3")


@pytest.mark.parametrize(
    "change, reason",
    [
        (dict(video=["a.mp4", "b.mp4"]), "broken row: 1 media tags for 2 videos or images"),
        (dict(image="p.jpg"), "broken row: 1 media tags for 2 videos or images"),
        (dict(video=""), "broken row: 1 media tags for 0 videos or images"),
        (dict(video={"path": "a.mp4"}), "broken row: {'path': 'a.mp4'} is not the path of a video"),
        (dict(conversations=LLAVA["conversations"][2:]), "broken row: 0 media tags for 1 videos or images"),
        (dict(conversations=LLAVA["conversations"][:3]), "broken row: the turns of its dialogue are ["),
        (
            dict(conversations=[{"from": "x", "value": "y"}]),
            "broken row: {'from': 'x', 'value': 'y'} has none of the roles",
        ),
        (dict(conversations=[]), "broken row: 0 media tags"),
        (dict(conversations="x"), "broken row: field 'conversations' is 'x', not a list"),
    ],
)
def test_conversations_that_cannot_be_a_clip(read, change, reason):
    bad, *good = read([LLAVA | change, LLAVA]).items
    assert bad.clip is None and bad.skipped.startswith(reason) and bad.place == "row 1"
    assert len(good) == 1 and not any(item.skipped for item in good)


@pytest.mark.parametrize("turn, reason", [(0, "empty question"), (1, "empty answer"), (2, "empty question")])
def test_a_conversation_with_an_empty_turn_is_skipped(read, turn, reason):
    turns = copy.deepcopy(LLAVA["conversations"])
    turns[turn]["value"] = "<image> \n" if turn == 0 else " \n"
    assert reasons(read([LLAVA | {"conversations": turns}])) == [reason]


def test_a_system_message_in_between_is_none_that_a_clip_has(read):
    turns = [*LLAVA["conversations"], {"from": "system", "value": "Be brief."}, *LLAVA["conversations"][2:]]
    (reason,) = reasons(read([LLAVA | {"conversations": turns}]))
    assert reason.startswith("broken row: the turns of its dialogue are ['user', 'assistant', 'user',")


def test_a_media_tag_stays_at_its_place(read):
    turns = [
        {"from": "human", "value": "Look at\n<image>\nand say what happens."},
        {"from": "gpt", "value": "A <image> tag in an answer stays."},
    ]
    (item,) = read([{"video": "a.mp4", "conversations": turns}]).items
    assert item.notes == ()
    assert item.clip.question == "Look at\n<video>\nand say what happens."
    assert item.clip.answer == "A <image> tag in an answer stays."
    later = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hello."}, *turns]
    (clip,) = clips_of(read([{"video": "a.mp4", "conversations": later}]))
    assert (clip.turns, clip.question) == ((Turn("Hello", "Hello."),), item.clip.question)


def test_captions_of_spans_are_a_clip_each(read):
    first, second = clips_of(read(CAPTIONS))
    assert second == Clip(
        id="v_1-2",
        video="v_1",
        question="What happens from 10.50 to 30.00 seconds?",
        answer="He throws a ball.",
        spans=((10.5, 30.0),),
    )
    assert first.answer == "A man kneels." and read(CAPTIONS).rows == 1
    lines = "\n".join(json.dumps({"video": "v_1", **CAPTIONS["v_1"]}) for _ in range(2))
    assert [clip.id for clip in clips_of(read(lines.encode()))] == ["v_1-1", "v_1-2", "v_1-1~2", "v_1-2~2"]


def test_grounding_asks_for_the_spans_of_the_same_file(read):
    annotations = read(CAPTIONS, "grounding")
    clip = clips_of(annotations)[1]
    assert (clip.question, clip.answer) == (
        "From when to when: He throws a ball.",
        "From 10.50 to 30.00 seconds.",
    )
    assert clip.task == "grounding" and clip.spans == ((10.5, 30.0),)


def test_the_times_of_tacos_are_frames(read):
    row = {
        "timestamps": [[294, 441], [0, 29]],
        "sentences": ["He peels it.", "He cuts it."],
        "num_frames": 900,
    }
    first, second = clips_of(read({"s1-d1.avi": row | {"fps": 29.4}}))
    assert first.video == "s1-d1.avi" and first.spans == ((10.0, 15.0),)
    assert first.question == "What happens from 10.00 to 15.00 seconds?"
    assert second.spans[0][1] == pytest.approx(29 / 29.4)
    (clip, _) = clips_of(read({"s1-d1.avi": row | {"fps": 29.4, "duration": 900.0}}))  # it has seconds
    assert clip.spans == ((294.0, 441.0),)
    assert "field 'fps' is None" in reasons(read({"s1-d1.avi": row}))[0]


def test_a_broken_sentence_leaves_its_neighbours(read):
    rows = copy.deepcopy(CAPTIONS)
    rows["v_1"]["timestamps"][0] = [9.0, 3.0]
    rows["v_2"] = CAPTIONS["v_1"] | {"sentences": ["One."]}
    rows["v_3"] = CAPTIONS["v_1"] | {"timestamps": [[float("nan"), 1], [2, 2]]}
    annotations = read(rows)
    assert reasons(annotations) == [
        "broken row: span [9.0, 3.0] does not start before it ends",
        "",
        "broken row: 1 sentences for 2 timestamps",
        "broken row: span [nan, 1] does not start before it ends",
        "",
    ]
    assert [item.place for item in annotations.items[1:4]] == [
        "video 'v_1', question 2",
        "video 'v_2'",
        "video 'v_3', question 1",
    ]
    assert annotations.items[4].clip.spans == ((2, 2),)


def test_tarsier_means_the_reference_and_a_part_of_the_file(read):
    (clip,) = clips_of(read([TARSIER]))
    assert (clip.video, clip.start, clip.end) == ("c.mp4", 2.5, 9)
    assert (clip.question, clip.answer) == ("Describe the video.", "A dog jumps.")
    whole = copy.deepcopy(TARSIER)
    whole["messages"][0]["content"][0]["video"] |= dict(start_time=0, end_time=-1)
    (clip,) = clips_of(read([whole]))
    assert (clip.start, clip.end) == (None, None)
    whole["messages"][0]["content"][0]["video"] |= dict(start_time=9, end_time=3)
    assert reasons(read([whole])) == ["broken row: the part from 9 to 3 s has no length"]
    for some in (dict(start_frame=40, end_frame=100), dict(frame_indices=[0, 1]), dict(time_indices=[2.5])):
        part = copy.deepcopy(TARSIER)
        part["messages"][0]["content"][0]["video"] = {"video_file": "c.mp4", "start_frame": 0} | some
        (reason,) = reasons(read([part]))
        assert reason.startswith("some frames of a video, by number: {")
    frames = copy.deepcopy(TARSIER)
    frames["messages"][0]["content"][0]["video"]["video_file"] = ["1.jpg", "2.jpg"]
    assert reasons(read([frames])) == ["part of one of several videos: {'start': 2.5, 'end': 9}"]


def test_a_missing_value_of_a_table_is_no_video(read):
    """Tables of pandas that mix videos, images and text have NaN where a row has none."""
    row = {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]}
    (clip,) = clips_of(read([row | {"video": float("nan"), "image": None}]))
    assert clip.media == ()


def test_a_part_of_a_video_as_qwens_own_code_writes_it(read):
    row = copy.deepcopy(TARSIER)
    row["messages"][0]["content"][0] = {"type": "video", "video": "c.mp4", "video_start": 2, "video_end": 9}
    (clip,) = clips_of(read([row]))
    assert (clip.video, clip.start, clip.end) == ("c.mp4", 2, 9)
    for name in ("path", "url"):  # as transformers writes it
        row["messages"][0]["content"][0] = {"type": "video", name: "c.mp4"}
        (clip,) = clips_of(read([row]))
        assert (clip.video, clip.start, clip.end) == ("c.mp4", None, None)


def test_a_part_of_a_conversations_video(read):
    (clip,) = clips_of(read([LLAVA | {"start": 2, "end": 9.5}]))
    assert (clip.start, clip.end) == (2, 9.5)
    tagged = [{"from": "human", "value": "<video><video> Alike?"}, {"from": "gpt", "value": "No."}]
    two = LLAVA | {"video": ["a.mp4", "b.mp4"], "conversations": tagged}
    assert len(clips_of(read([two]))) == 1
    assert reasons(read([two | {"end": 9}])) == ["part of one of several videos: {'end': 9}"]


@pytest.mark.parametrize(
    "name, kept, left_out",
    [("weight", 1, 0), ("loss", True, False), ("loss_weight", 1.0, 0.0), ("loss_scale", "last_round", 0)],
)
def test_an_answer_that_is_not_to_be_trained_is_not(read, name, kept, left_out):
    """As OpenAI, ms-swift and LLaMA-Factory mark it."""
    messages, conversation = copy.deepcopy(TARSIER), copy.deepcopy(LLAVA)
    messages["messages"][0][name] = conversation["conversations"][0][name] = left_out  # a question never is
    for row, turn in ((messages, messages["messages"][1]), (conversation, conversation["conversations"][3])):
        assert len(clips_of(read([row]))) == 1
        turn[name] = kept
        assert len(clips_of(read([row]))) == 1
        turn[name] = left_out
        assert reasons(read([row]))[0].startswith(f"answer of {name} 0")


@pytest.mark.parametrize("row", [TRL, LLAVA], ids=["messages", "conversations"])
@pytest.mark.parametrize(
    "change, reason",
    [
        ({"label": False}, "answer that is marked as a bad one (label)"),  # TRL's and ms-swift's KTO
        ({"kto_tag": False}, "answer that is marked as a bad one (kto_tag)"),  # LLaMA-Factory's
        ({"audios": ["a.wav"]}, "row about sound, which no model here hears (audios)"),
    ],
)
def test_a_row_that_is_learned_from_otherwise_is_skipped(read, row, change, reason):
    assert reasons(read([row | change])) == [reason]


def test_boxes_beside_a_text_are_not_read_as_its_tags(read):
    """As ms-swift writes them."""
    row = {"image": "p.jpg", "prompt": "<image>Where is the <ref-object>?", "completion": "<bbox>"}
    objects = {"ref": ["cup"], "bbox": [[1, 2, 3, 4]]}
    (reason,) = reasons(read([row | {"objects": objects}]))
    assert reason.startswith("row with boxes beside its text (objects)")
    assert len(clips_of(read([TRL | {"objects": objects}]))) == 1


@pytest.mark.parametrize("row", [TRL, LLAVA], ids=["messages", "conversations"])
@pytest.mark.parametrize(
    "more", [{"label": True}, {"label": 0}, {"audio": None}, {"audios": []}, {"audio": float("nan")}]
)
def test_marks_that_say_nothing_against_a_row(read, row, more):
    assert len(clips_of(read([row | more]))) == 1


def test_a_video_in_an_answer_is_none_that_a_clip_has(read):
    row = copy.deepcopy(TARSIER)
    row["messages"][1]["content"].insert(0, {"type": "image", "image": "p.jpg"})
    row["messages"][0]["content"].pop(0)
    assert reasons(read([row])) == ["broken row: {'type': 'image', 'image': 'p.jpg'} is in no question"]


@pytest.mark.parametrize(
    "row",
    [
        TRL,
        dict(prompt="What is it?", completion="A bird lands.", video="d.mp4"),
        dict(messages=TRL["prompt"] + TRL["completion"], videos=["d.mp4"]),
        dict(
            prompt=[
                {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What is it?"}]}
            ],
            completion=TRL["completion"],
            videos=["d.mp4"],
        ),
        dict(prompt="<video>What is it?", completion="A bird lands.", video="d.mp4"),
    ],
)
def test_trl_in_each_of_its_forms(read, row):
    (clip,) = clips_of(read([row]))
    assert clip == Clip("d", "d.mp4", "What is it?", "A bird lands.")


def test_the_original_text_of_charades_sta(read):
    """Each line is a row: a span that ends before it starts, or is none, is skipped, and so it is a row."""
    annotations = read(CHARADES_TEXT, name="charades_sta_train.txt")
    assert annotations.format == "captions" and annotations.rows == 4
    first, second = (item.clip for item in annotations.items[:2])
    assert (first.video, first.answer, first.spans) == (
        "A1B2C",
        "person sets a cup on a shelf.",
        ((24.3, 30.4),),
    )
    assert second.answer == "the person waves at someone   ##twice."
    assert reasons(annotations)[2:] == [
        "broken row: span [12.5, 4.3] does not start before it ends",
        "broken row: could not convert string to float: 'x'",
    ]
    grounding = read(CHARADES_TEXT, "grounding", name="charades_sta_train.txt").items[0].clip
    assert (grounding.question, grounding.answer) == (
        "From when to when: person sets a cup on a shelf.",
        "From 24.30 to 30.40 seconds.",
    )


def test_the_published_database_of_youcook2(read):
    annotations = read(YOUCOOK2)
    assert annotations.format == "captions" and annotations.rows == 2
    clips = [item.clip for item in annotations.items[:2]]
    assert [(clip.id, clip.video, clip.answer, clip.spans) for clip in clips] == [
        ("aB3_x-9-1", "aB3_x-9", "butter two slices of toast", ((90, 102),)),
        ("aB3_x-9-2", "aB3_x-9", "put the ham on top", ((114, 127),)),
    ]
    assert reasons(annotations)[2:] == [
        "broken row: span None is not [start, end] in seconds",
        "broken row: None is not a JSON object",
    ]


def test_the_published_table_of_next_gqa(tmp_path, read):
    """Each line is a row, whatever is wrong with it: no such answer, an open quotation mark, no spans."""
    with pytest.raises(UserError, match="test.csv: needs map_vid_vidorID.json beside it"):
        read(NEXT_GQA_TABLE, name="test.csv")
    (tmp_path / "map_vid_vidorID.json").write_text(json.dumps(NEXT_GQA_PATHS))
    (tmp_path / "gsub_val.json").write_text(json.dumps(NEXT_GQA_SPANS))
    annotations = read(NEXT_GQA_TABLE, name="val.csv")
    assert annotations.format == "next-gqa" and annotations.rows == len(annotations.items) == 4
    clip = annotations.items[0].clip
    assert (clip.id, clip.video, clip.answer, clip.spans) == ("11_3", "1101/11.mp4", "(B)", ((1.5, 4),))
    assert clip.question.splitlines()[:3] == ["why did he bend", "(A) to rest", "(B) to tie a lace"]
    assert [reason[:42] for reason in reasons(annotations)[1:]] == [
        "broken row: its answer 'nothing' is none o",
        "broken row: no CSV: unexpected end of data",
        "broken row: there is no '12' for it",
    ]
    (tmp_path / "train.csv").write_bytes(NEXT_GQA_TABLE)  # the published files have no spans for it
    item = read_annotations(tmp_path / "train.csv").items[3]
    assert item.clip.spans == () and item.notes == ("no evidence: without spans that show the answer",)


def test_the_files_that_tarsier_ships(read):
    """Pieces of a message are joined by nothing, and a placeholder's path is that of its ``vid``."""
    tvbench, dream = clips_of(read([TVBENCH, DREAM_1K]))
    assert (tvbench.video, tvbench.answer) == ("action_antonym/S1_rgb.avi", "Answer: (B")
    assert (dream.video, dream.question, dream.answer) == ("7.mp4", "Describe the video.", "A dog jumps.")
    (reason,) = reasons(read([DREAM_1K | {"dataset": "MSVD-QA"}]))
    assert reason == "broken row: its video_file is still a placeholder: put the video's path there"
