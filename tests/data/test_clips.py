"""Files of clips: round trips, and every broken line named."""

import dataclasses
import functools
import json
import unicodedata
from pathlib import Path

import pytest

from vpjax.data.clips import read_clips, relative_to, write_clips
from vpjax.scoring.metrics import score_caption
from vpjax.types import Clip, Keyword, Turn, UserError

QUESTION = "What happens?"


@pytest.mark.parametrize("name", ["clips.jsonl", "clips.array_record"])
def test_clips_round_trip_where_fsspec_reaches(name):
    root = "memory://clips"
    written = [
        Clip("a", "sub/a.mp4", "q", "a"),
        Clip("b", "gs://bucket/b.mp4", "q", "a"),
        Clip("c", "", "q", "a"),
    ]
    write_clips(f"{root}/{name}", written)
    videos = [clip.video for clip in read_clips(f"{root}/{name}")]
    assert videos == [f"{root}/sub/a.mp4", "gs://bucket/b.mp4", ""]
    assert read_clips(f"{root}/{name}", videos="/local")[0].video == "/local/sub/a.mp4"
    with pytest.raises(UserError, match="memory://clips/none.jsonl: no such file"):
        read_clips(f"{root}/none.jsonl")


@pytest.mark.parametrize("name", ["clips.jsonl", "clips.array_record"])
def test_clips_round_trip(tmp_path, name):
    whole = Clip(
        "a",
        "sub/a.mp4",
        QUESTION,
        "(A) é",
        (Keyword("flashes", "flash", ((0.5, 0.75),)), Keyword("x", "y")),
        ((0.5, 0.75),),
        "choice",
        ("(A)", "(B)"),
        ((0.0, 0.25, 0.5, 1.0), (0.0, 0.0, 0.0, 0.0)),
        0.25,
        1.5,
        {"event": "flash", "length": 1},
    )
    write_clips(tmp_path / name, [whole, Clip("b", "", "q", "a")])
    first, second = read_clips(tmp_path / name)
    assert first == dataclasses.replace(whole, video=str(tmp_path / "sub/a.mp4"))
    assert second == Clip("b", "", "q", "a")
    assert read_clips(tmp_path / name, videos="/root")[0].video == "/root/sub/a.mp4"


def test_texts_are_composed_and_paths_are_not(tmp_path):
    """Files of macOS often have letters and accents apart; models write them as one, and rewards compare."""
    text, keyword = "Élodie jette une bûche; 한국어 ガラス", "jette une bûche"
    apart = functools.partial(unicodedata.normalize, "NFD")
    turn = {"question": apart("Où?"), "answer": apart(text)}
    record = {"id": "a", "video": apart("é.mp4"), "question": apart("Où?"), "answer": apart(text)}
    record |= {
        "system": apart("é"),
        "degraded_answer": apart(text),
        "choices": [apart(text)],
        "turns": [turn],
    }
    record |= {"keywords": [{"text": apart(keyword), "lemma": apart("bûche")}]}
    (tmp_path / "clips.jsonl").write_text(json.dumps(record, ensure_ascii=False))
    (clip,) = read_clips(tmp_path / "clips.jsonl")
    assert clip.video == str(tmp_path / apart("é.mp4"))
    assert (clip.answer, clip.degraded_answer, clip.choices, clip.system) == (text, text, (text,), "é")
    assert clip.turns == (Turn("Où?", text),) and clip.question == "Où?"
    assert clip.keywords == (Keyword(keyword, "bûche"),) and keyword in clip.answer
    assert score_caption(clip, text).values["rougeL"] == 1


LLAVA = {"id": 1, "video": "a.mp4", "conversations": [{"from": "human", "value": "What?"}]}


@pytest.mark.parametrize(
    "name, content",
    [
        ("llava.json", json.dumps([LLAVA, LLAVA])),
        ("indented.json", json.dumps([LLAVA, LLAVA], indent=2)),
        ("llava.jsonl", f"{json.dumps(LLAVA)}\n{json.dumps(LLAVA)}\n"),
        ("table.csv", "video,question\na.mp4,What?\n"),
        ("binary.parquet", "PAR1\x80"),
    ],
)
def test_annotations_are_told_how_they_become_clips(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    message = f"^{path}: no file of clips.*python -m vpjax.build --annotations {path} --videos DIR --out DIR$"
    with pytest.raises(UserError, match=message) as error:
        read_clips(path)
    assert "\n" not in str(error.value)


GOOD = '{"id": "a", "video": "a.mp4", "question": "q", "answer": "a"}'


@pytest.mark.parametrize(
    "line, reason",
    [
        ("{", "line 3: Expecting property name"),
        ("\x80", "line 3: "),
        ("[]", "line 3: a clip is a JSON object"),
        (GOOD, "line 3: id 'a' stands in line 1 too"),
        (GOOD.replace('"answer"', '"anser"'), "line 3: unknown field 'anser'"),
        ('{"id": "b", "question": "q", "answer": "a"}', "line 3: field 'video' is None, not a string"),
        (
            GOOD.replace('"a.mp4"', '["a.mp4", 3]'),
            r"line 3: field 'video' is \['a.mp4', 3\], not a list of the",
        ),
        (GOOD.replace('"a.mp4"', "[]"), "line 3: field 'video' is .., not a list of the paths"),
        (GOOD.replace("}", ', "spans": [[2, 1]]}'), r"line 3: span \[2, 1\] does not start before it ends"),
        (GOOD.replace("}", ', "spans": [2, 1]}'), "line 3: span 2 is not"),
        (GOOD.replace("}", ', "boxes": [[0, 0, 1]]}'), r"line 3: box \[0, 0, 1\] is not \[x0"),
        (GOOD.replace("}", ', "boxes": [[0, 0, 112, 80]]}'), "shares of width and height, 0 to 1"),
        (GOOD.replace("}", ', "task": "chioce"}'), "line 3: field 'task' is 'chioce', not one of caption, c"),
        (GOOD.replace("}", ', "start": "0:10"}'), "line 3: field 'start' is '0:10', not seconds"),
        (GOOD.replace("}", ', "end": -1}'), "line 3: field 'end' is -1, not seconds"),
        (GOOD.replace("}", ', "start": 2, "end": 2}'), "line 3: the part from 2 to 2 s has no length"),
        (GOOD.replace("}", ', "keywords": ["x"]}'), "line 3: keyword 'x' is not an object"),
        (GOOD.replace("}", ', "keywords": "x"}'), "line 3: field 'keywords' is 'x', not a list"),
        (GOOD.replace("}", ', "keywords": [{"text": "x"}]}'), "line 3: field 'lemma' is None"),
        (
            GOOD.replace("}", ', "keywords": [{"text": "x", "lemma": "x", "span": [[1, 2]]}]}'),
            "line 3: unknown field 'span' of a keyword, which has text, lemma, spans, video",
        ),
        (
            GOOD.replace("}", ', "keywords": [{"text": " ", "lemma": "x"}]}'),
            "line 3: field 'text' of a keyword is empty",
        ),
        (GOOD.replace("}", ', "spans": [[true, 2]]}'), r"line 3: span \[True, 2\] is not \[start, end\]"),
        (GOOD.replace("}", ', "end": true}'), "line 3: field 'end' is True, not seconds"),
    ],
)
def test_broken_lines_are_named(tmp_path, line, reason):
    file = tmp_path / "clips.jsonl"
    file.write_bytes(f"{GOOD}\n\n".encode() + line.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match=f"clips.jsonl, {reason}" if reason.startswith("line") else reason):
        read_clips(file)


def test_a_data_set_finds_its_videos_wherever_it_is(tmp_path, monkeypatch):
    """In a folder that is a link to another place, beside the videos, or elsewhere."""
    monkeypatch.chdir(tmp_path)
    for folder in ("videos", "disk/deep/down"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "videos/a.mp4").touch()
    (tmp_path / "link").symlink_to(tmp_path / "disk/deep/down")
    (tmp_path / "linked").symlink_to(tmp_path / "videos")
    clip = Clip("a", "videos/a.mp4", "q", "a")
    assert relative_to(clip, "disk").video == "../videos/a.mp4"
    assert relative_to(clip.with_media(["linked/a.mp4"]), "disk").video == "../linked/a.mp4"
    assert relative_to(clip, "memory://out").video == str(tmp_path / "videos/a.mp4")
    write_clips("link/clips.jsonl", [relative_to(clip, "link")])
    (read,) = read_clips("link/clips.jsonl")
    assert Path(read.video).samefile(tmp_path / "videos/a.mp4")


def test_files_that_are_none_are_named(tmp_path):
    with pytest.raises(UserError, match="none.jsonl: no such file"):
        read_clips(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="empty.jsonl: no clips"):
        read_clips(tmp_path / "empty.jsonl")
    (tmp_path / "bad.array_record").write_bytes(b"not one" * 20_000)
    with pytest.raises(UserError, match="bad.array_record"):
        read_clips(tmp_path / "bad.array_record")
