"""Whole text files of every layout that vpjax reads, to be mutated: small ones, in words of our own."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

ROWS = 12  # of each file
VERBS = "opens closes lifts drops turns throws catches pours cuts folds pushes pulls".split()
THINGS = "door box lamp cup page ball rope water bread towel cart chair".split()


class Seed(NamedTuple):
    """A whole file. reader: the command that reads it, and the benchmark. form: lines (of JSON), list, table
    (a JSON object of rows), csv or text. value: of JSON; of lines the list of their values. beside: the
    files that it needs."""

    reader: str
    name: str
    form: str
    value: Any
    content: bytes
    rows: int = ROWS
    beside: dict[str, bytes] = {}

    def write(self, value: Any) -> bytes:
        return written(self.form, value)


def written(form: str, value: Any) -> bytes:
    """A JSON value as a file of this form, which may be a value that json.loads would not give."""
    if form == "lines":
        return b"".join(json.dumps(row).encode() + b"\n" for row in value)
    if form == "list" and isinstance(value, list):
        return b"[" + b",\n ".join(json.dumps(row).encode() for row in value) + b"]\n"
    return json.dumps(value, indent=1).encode() + b"\n"


def sentence(number: int) -> str:
    return f"A person {VERBS[number]} the {THINGS[number]}, then walks away – twice."


def seed(reader: str, name: str, form: str, value: Any, **others: Any) -> Seed:
    return Seed(reader, name, form, value, written(form, value), **others)


def conversation(number: int) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<video>\nWhat happens?"}, {"from": "gpt", "value": sentence(number)}]
    return {"id": f"c{number}", "video": f"{number}.mp4", "conversations": turns}


def message(number: int, **others: Any) -> dict[str, Any]:
    shown = {"type": "video", "video": {"video_file": f"{number}.mp4", "start_time": 1, "end_time": 4}}
    asked = {"type": "text", "text": "Describe the video."}
    told = {"type": "text", "text": "", "reference": sentence(number)}
    return {
        "messages": [
            {"role": "user", "content": [shown, asked]},
            {"role": "assistant", "content": [told]},
        ],
        "dataset": "DREAM/youtube",
        "idx": number,
    } | others


def video_r1(number: int) -> dict[str, Any]:
    return {
        "problem_id": number,
        "problem": "What does she do?",
        "problem_type": "multiple choice",
        "options": ["A. She sits", "B. She runs"],
        "process": "<think>She hurries.</think>",
        "solution": "<answer>B</answer>",
        "path": f"{number}.mp4",
    }


def gqa(number: int) -> dict[str, Any]:
    return {
        "id": f"{number}_0",
        "video": f"{number}.mp4",
        "question": "why did he bend",
        "options": ["(A) to rest", "(B) to look", "(C) to run", "(D) to eat", "(E) to nod"],
        "glue": [[1.5, 4], [9, 10]],
        "type": "CW",
        "answer": "(B)",
    }


def captions(number: int) -> dict[str, Any]:
    return {"duration": 30.0, "timestamps": [[number, number + 2.5]], "sentences": [sentence(number)]}


def clip(number: int) -> dict[str, Any]:
    return {
        "id": f"n{number}",
        "video": f"{number}.mp4",
        "question": "What happens?",
        "answer": sentence(number),
        "keywords": [{"text": VERBS[number], "lemma": VERBS[number], "spans": [[1, 2]]}],
        "extra": {"a": [1, {"b": None}]},
    }


def youcook2(number: int) -> dict[str, Any]:
    parts = [{"segment": [number, number + 9], "id": 0, "sentence": sentence(number)}]
    return {"duration": 241.6, "subset": "training", "recipe_type": "113", "annotations": parts}


def choice(number: int, **others: Any) -> dict[str, Any]:
    asked = {"video": f"{number}.mp4", "question": "What?", "candidates": ["one", "two"], "answer": "two"}
    return asked | others


def motion(number: int) -> dict[str, Any]:
    qa = [{"uid": f"m{number}", "question": "What?\nA. a cat\nB. a dog", "answer": "B"}]
    return {"key": f"k{number}", "video_path": "a.mp4", "question_type": "Motion", "qa": qa}


def lvb(number: int) -> dict[str, Any]:
    options = {f"option{place}": word for place, word in enumerate(("a cat", "a dog", "a cow", "N/A", "N/A"))}
    row = {"id": f"l{number}", "video_path": "l.mp4", "question": "What?", "correct_choice": 2}
    return row | options | {"duration_group": 600}


NUMBERS = range(ROWS)
CHARADES = "".join(f"A{n}B {n}.5 {n + 2}.0##{sentence(n)}\n" for n in NUMBERS).encode()
NAMES = "video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
TABLE = NAMES + "".join(f'{n},9,64,48,"what, then",he left,{n},TN,he left,b,c,d,e\n' for n in NUMBERS)
SPANS = {str(n): {"duration": 30, "location": {str(n): [[1.5, 4]]}, "fps": 25} for n in NUMBERS}
BESIDE = {
    "map_vid_vidorID.json": json.dumps({str(n): f"11/{n}" for n in NUMBERS}).encode(),
    "gsub_val.json": json.dumps(SPANS).encode(),
}
COMPASS = {
    str(n): {"action": [{"question": "What?\nA. runs\nB. sits", "answer": "A. runs"}]} for n in NUMBERS
}
MME = {"question": "Which?", "options": ["A. one", "B. two"], "answer": "B", "duration": "short"}
FILES = [
    seed("build", "llava.json", "list", [conversation(n) for n in NUMBERS]),
    seed("build", "llava.jsonl", "lines", [conversation(n) for n in NUMBERS]),
    seed("build", "tarsier.jsonl", "lines", [message(n) for n in NUMBERS]),
    seed("build", "r1.json", "list", [video_r1(n) for n in NUMBERS]),
    seed("build", "gqa.json", "list", [gqa(n) for n in NUMBERS]),
    seed("build", "anet.json", "table", {f"v_{n}": captions(n) for n in NUMBERS}),
    seed("build", "yc2.json", "table", {"database": {f"y{n}": youcook2(n) for n in NUMBERS}}),
    seed("build", "clips.json", "list", [clip(n) for n in NUMBERS]),
    Seed("build", "charades.txt", "text", None, CHARADES),
    Seed("build", "val.csv", "csv", None, TABLE.encode(), beside=BESIDE),
    seed("train", "clips.jsonl", "lines", [clip(n) for n in NUMBERS]),
    seed("evaluate clips", "own.jsonl", "lines", [clip(n) for n in NUMBERS]),
    seed("evaluate motionbench", "motion.jsonl", "lines", [motion(n) for n in NUMBERS]),
    seed("evaluate tempcompass", "multi-choice.json", "table", COMPASS),
    seed("evaluate tvbench", "action_count.json", "list", [choice(n) for n in NUMBERS]),
    seed(
        "evaluate video-mme",
        "mme.json",
        "list",
        [MME | {"videoID": f"v{n}", "question_id": f"q{n}"} for n in NUMBERS],
    ),
    seed("evaluate longvideobench", "lvb.json", "list", [lvb(n) for n in NUMBERS]),
    seed("evaluate charades-sta", "anet.json", "table", {f"v_{n}": captions(n) for n in NUMBERS}),
    Seed("evaluate charades-sta", "charades.txt", "text", None, CHARADES),
    Seed("evaluate next-gqa", "val.csv", "csv", None, TABLE.encode(), beside=BESIDE),
    seed("evaluate next-gqa", "gqa.json", "list", [gqa(n) for n in NUMBERS]),
    seed(
        "evaluate dream-1k",
        "dream.jsonl",
        "lines",
        [message(n, extra_info={"events": ["He runs."]}) for n in NUMBERS],
    ),
]
