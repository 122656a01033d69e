"""Annotation files -> clips, whatever their format: rows that are broken in every way, ids, own clips."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from tests.building.annotation_rows import (
    LLAVA,
    QWEN,
    ROWS,
    clips_of,
    reasons,
)
from vpjax.building.annotations import FORMATS, read_annotations
from vpjax.building.questions import letter_of
from vpjax.data.clips import read_clips, write_clips
from vpjax.files import write_whole
from vpjax.types import Clip, Keyword, Turn, UserError


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
