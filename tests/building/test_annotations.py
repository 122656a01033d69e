"""Annotation files -> clips: every format with its traps, and rows that are broken in every way."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from vpjax.building.annotations import FORMATS, read_annotations
from vpjax.building.questions import letter_of
from vpjax.data.clips import read_clips, write_clips
from vpjax.files import write_whole
from vpjax.types import Clip, Keyword, Turn, UserError

LLAVA = {
    "id": "academic-1",
    "data_source": "0_30_s",
    "video": "a/b.mp4",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat happens?"},
        {"from": "gpt", "value": "A cup falls."},
        {"from": "human", "value": "Does it break?"},
        {"from": "gpt", "value": "Yes, it breaks."},
    ],
}
QWEN = {
    "video": ["b.mp4"],
    "conversations": [{"from": "human", "value": "<video>What now?"}, {"from": "gpt", "value": "It rains."}],
}
VIDEO_R1 = {
    "problem_id": 7,
    "problem": "What does she do?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. She sits, then stands", "B. She runs"],
    "process": "<think>She hurries.</think>",
    "solution": "<answer>B</answer>",
    "path": "./NeXT-QA/1.mp4",
    "data_source": "NeXT-QA",
}
CAPTIONS = {
    "v_1": {
        "duration": 30.0,
        "timestamps": [[0.25, 10.5], [10.5, 30.0]],
        "sentences": ["A man kneels.", " He throws a ball. "],
    }
}
NEXT_GQA = {
    "id": "q1",
    "video": "1164/32387",
    "question": "why did he bend",
    "options": ["(A) to rest", "(B) to pick up a toy"],
    "duration": 50,
    "glue": [[1.5, 4], [9, 10]],
    "answer": "(B)",
}
GOT10K = {
    "path": "GOT-10k/train/GOT-10k_Train_000048",
    "object": "push-bike",
    "gt": [[0.417, 0.379, 0.596, 0.669], [0.403, 0.371, 0.58, 0.671]],
}
TARSIER = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "video", "video": {"video_file": "c.mp4", "start_time": 2.5, "end_time": 9}},
                {"type": "text", "text": "Describe the video."},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "said", "reference": "A dog jumps."}]},
    ],
    "dataset": "DREAM",
}
TRL = {
    "prompt": [{"role": "user", "content": "What is it?"}],
    "completion": [{"role": "assistant", "content": "A bird lands."}],
    "video": "d.mp4",
}
# The same in the forms in which their authors publish them, in words of our own.
CHARADES_TEXT = b"""\
A1B2C 24.3 30.4##person sets a cup on a shelf.
A1B2C 7.3 9.0##the person waves at someone   ##twice.
D3E4F 12.5 4.3##a person sits down.
D3E4F 1.0 x##a person gets up.
"""
YOUCOOK2 = {
    "database": {
        "aB3_x-9": {
            "duration": 241.62,
            "subset": "training",
            "recipe_type": "113",
            "annotations": [
                {"segment": [90, 102], "id": 0, "sentence": "butter two slices of toast"},
                {"segment": [114, 127], "id": 1, "sentence": "put the ham on top"},
                {"id": 2, "sentence": "serve"},
            ],
            "video_url": "https://www.youtube.com/watch?v=aB3_x-9",
        },
        "cD4": None,
    }
}
NEXT_GQA_TABLE = b"""\
video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4
11,900,640,480,why did he bend,to tie a lace,3,CW,to rest,to tie a lace,to hide,to jump,to nod
11,900,640,480,what fell,nothing,4,TN,a cup,a hat,a ball,a book,a pen
11,900,640,480,"what, then,he left,5,TN,he left,he ran,he sat,he fell,he hid
12,900,640,480,what did she do,she waved,0,TC,she waved,she ran,she sat,she fell,she hid
"""
NEXT_GQA_SPANS = {"11": {"duration": 30, "location": {"3": [[1.5, 4]], "4": [[9, 10]]}, "fps": 29.97}}
NEXT_GQA_PATHS = {"11": "1101/11", "12": "0004/12"}
TVBENCH = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "video", "video": {"video_file": "<placeholder>"}},
                {"type": "text", "text": "Question: What does he do?\n(A) Put on a coat.\n(B) Take it off."},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": " Answer: ("},
                {"type": "text", "text": "", "reference": "B"},
            ],
        },
    ],
    "dataset": "TVBench/Action Antonym",
    "task": "video/QA",
    "idx": 0,
    "vid": "action_antonym/S1_rgb.avi",
}
DREAM_1K = {
    "messages": [
        {
            "content": [
                {"reference": None, "text": None, "type": "video", "video": {"video_file": "<placeholder>"}},
                {"reference": None, "text": "Describe the video.", "type": "text", "video": None},
            ],
            "role": "user",
        },
        {
            "content": [{"reference": "A dog jumps.", "text": "", "type": "text", "video": None}],
            "role": "assistant",
        },
    ],
    "dataset": "DREAM/youtube",
    "idx": 7,
    "extra_info": {"duration": 5.09, "events": ["A dog jumps."]},
    "vid": 7,
}
NATIVE = {"id": "n", "video": "e.mp4", "question": "What?", "answer": "It rolls.", "spans": [[1, 2]]}
ROWS = {
    "conversations": LLAVA,
    "video-r1": VIDEO_R1,
    "next-gqa": NEXT_GQA,
    "captions": {"video": "v_1", **CAPTIONS["v_1"]},
    "got10k": GOT10K,
    "messages": TARSIER,
    "clips": NATIVE,
}


@pytest.fixture
def read(tmp_path):
    """read_annotations of what is written as JSON, or as bytes."""

    def read(content, format="", name="a.json"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return read_annotations(file, format)

    return read


def clips_of(annotations):
    assert not [item.skipped for item in annotations.items if item.skipped]
    return [item.clip for item in annotations.items]


def reasons(annotations):
    assert all((item.clip is None) == bool(item.skipped) for item in annotations.items)
    return [item.skipped for item in annotations.items]


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


@pytest.mark.parametrize(
    ("problem_type", "solution", "task"),
    [
        ("numerical", "<answer>1,250</answer>", "numerical"),
        ("regression", "<answer>3.2</answer>", "regression"),
        ("OCR", "<answer>STOP</answer>", "ocr"),
        ("free-form", "<answer>It rains.</answer>", "caption"),
        ("numerical", "<answer>many</answer>", "answer is not one number"),
    ],
)
def test_video_r1_problem_types_are_tasks(read, problem_type, solution, task):
    (item,) = read([VIDEO_R1 | dict(problem_type=problem_type, options=[], solution=solution)]).items
    assert (item.clip.task == task) if item.clip else item.skipped.startswith(task)


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
    assert reasons(read([VIDEO_R1 | dict(solution="<answer>E</answer>")])) == [
        "answer not among the options: E of 2"
    ]


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


def test_next_gqa_carries_the_spans_of_its_evidence(read):
    (clip,) = clips_of(read([NEXT_GQA]))
    assert clip.spans == ((1.5, 4.0), (9.0, 10.0)) and clip.task == "choice" and clip.answer == "(B)"
    assert clip.question.splitlines() == ["why did he bend", "(A) to rest", "(B) to pick up a toy"]


def test_got10k_has_a_box_per_moment(read):
    (clip,) = clips_of(read([GOT10K]))
    assert clip.boxes == tuple(map(tuple, GOT10K["gt"])) and clip.task == "tracking"
    assert json.loads(clip.answer) == GOT10K["gt"] and "2 moments" in clip.question
    pixels = GOT10K | {"gt": [[417, 379, 596, 669]]}
    assert "shares of width and height" in reasons(read([pixels]))[0]


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
    frames = copy.deepcopy(TARSIER)
    frames["messages"][0]["content"][0]["video"]["video_file"] = ["1.jpg", "2.jpg"]
    assert reasons(read([frames])) == ["part of one of several videos: {'start': 2.5, 'end': 9}"]


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


def test_own_clips_come_back_whole(tmp_path, read):
    whole = Clip(
        "a", "a.mp4", "q", "It falls.", (Keyword("falls", "fall", ((1.0, 2.0),)),), start=0.5, end=3.0
    )
    whole = dataclasses.replace(whole, system="Be brief.", turns=(Turn("Who?", "A cup."),))
    for name in ("c.jsonl", "c.array_record"):
        write_clips(tmp_path / name, [whole, dataclasses.replace(whole, id="b")])
        annotations = read_annotations(tmp_path / name)
        assert annotations.format == "clips"
        assert clips_of(annotations) == [whole, dataclasses.replace(whole, id="b")]
    (item,) = read([{"id": "a", "video": "a.mp4", "question": "q", "answer": "a", "end": 0}], "clips").items
    assert item.skipped == "broken row: the part from 0 to 0 s has no length"


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "grounding"])
def test_formats_are_told_from_their_content(read, format):
    """Whatever the first row lacks; as a list, as lines, as a single row, and after a byte order mark."""
    row = ROWS[format]
    lines = json.dumps(row).encode() + b"\n\n" + json.dumps(row).encode() + b"\n"
    for content in ([row, row], [{"x": 1}, row], row, lines, b"\xef\xbb\xbf" + lines):
        annotations = read(content)
        assert annotations.format == format
        assert annotations.items[-1].clip is not None
    assert read(lines).items[-1].place.split(",")[0] == "line 3" and read(lines).rows == 2


def test_every_clip_has_an_id_of_its_own_that_never_changes(tmp_path, read):
    rows = [LLAVA, LLAVA, QWEN, LLAVA | {"id": "academic-1~2"}, QWEN | {"id": 5}]
    names = [clip.id for clip in clips_of(read(rows))]
    assert len(set(names)) == len(names) and names == [clip.id for clip in clips_of(read(rows))]
    write_clips(tmp_path / "out.jsonl", clips_of(read(rows)))
    assert [clip.id for clip in read_clips(tmp_path / "out.jsonl")] == names  # which refuses a second one


def test_broken_lines_are_rows_that_are_skipped(read):
    good = json.dumps(QWEN).encode()
    lines = [good, good[:-5], b"\xff\xfe", b"[1]", b'{"video": "a", "video": "b"}', good]
    annotations = read(b"\n".join(lines), name="a.jsonl")
    assert annotations.rows == 6
    assert [bool(reason) for reason in reasons(annotations)] == [False, True, True, True, True, False]
    assert [item.place for item in annotations.items] == [f"line {n}" for n in range(1, 7)]
    assert "the same key twice" in annotations.items[4].skipped


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "a.json: no rows"),
        (b"[]", "a.json: no rows"),
        (
            json.dumps([QWEN, QWEN]).encode()[:-9],
            "a.json: no JSON: Unterminated string.* a quotation mark is",
        ),
        (b'{"data": []}', "a.json: in no known format .its first row has data.; --format takes one of conv"),
        (b"id,video\n1,a.mp4", "a.json: in no known format .no JSON: Expecting value"),
        (b'{"v_1": {"duration": 3}, "v_1": {"duration": 3}}', "the same key twice"),
    ],
)
def test_files_that_are_none_are_named(read, content, message):
    with pytest.raises(UserError, match=message):
        read(content)


def test_files_elsewhere_are_read(read):
    write_whole("memory://annotations/a.json", json.dumps([QWEN]).encode())
    assert read_annotations("memory://annotations/a.json") == read([QWEN])


def test_wrong_flags_are_named(read, tmp_path):
    with pytest.raises(UserError, match="--format=llava: choose one of conversations, messages"):
        read([LLAVA], "llava")
    with pytest.raises(UserError, match="none.json: no such annotation file"):
        read_annotations(tmp_path / "none.json")
    assert reasons(read([QWEN], "captions")) == ["broken row: field 'sentences' is missing, not a list"]


JUNK = (None, 0, -1.5, True, "", "x", [], {}, [None], [[]], [{}], {"x": 1}, float("inf"))


@pytest.mark.parametrize("format", ROWS)
def test_no_broken_row_breaks_the_file(read, format):
    """A value of a row replaced by junk or left out: each row still gives items, each a clip or a reason."""

    def paths(value):
        children = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, child in children:
            yield (key,)
            yield from ((key, *path) for path in paths(child))

    rows = [ROWS[format]]
    for *path, last in paths(ROWS[format]):
        for junk in (*JUNK, "absent"):
            row = copy.deepcopy(ROWS[format])
            parent = row
            for key in path:
                parent = parent[key]
            if junk == "absent":
                del parent[last]
            else:
                parent[last] = junk
            rows.append(row)
    annotations = read(rows, format)
    places = {item.place.split(",")[0] for item in annotations.items}
    assert places == {f"row {number}" for number in range(1, len(rows) + 1)}
    assert all((item.clip is None) == bool(item.skipped) for item in annotations.items)
    for item in annotations.items:
        if item.clip:
            assert isinstance(item.clip.video, str) and item.clip.question and item.clip.answer
            assert np.isfinite(item.clip.spans).all()


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("(C)", "C"),
        ("B", "B"),
        ("A.", "A"),
        ("<answer> D </answer>", "D"),
        ("A dog", ""),
        ("", ""),
        ("AB", ""),
    ],
)
def test_letters(answer, letter):
    assert letter_of(answer) == letter
