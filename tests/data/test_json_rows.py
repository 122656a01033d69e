"""What passes the boundary for rows can be handled; what does not is one row's fault, in every reader."""

import dataclasses
import hashlib
import json
import os

import pytest

from vpjax.building.annotations import new_id, read_annotations
from vpjax.data.clips import read_clips
from vpjax.data.json_rows import MAX_DEPTH, MAX_TEXT, SCHEMES, check_path, check_row, elements_of
from vpjax.evaluation.benchmarks import read_benchmark
from vpjax.types import Clip, UserError

GOOD = {"id": "a", "video": "a.mp4", "question": "q", "answer": "a"}
# Rows as JSON texts, for most are not what json.dumps would write, and what is said of them.
HOSTILE = {
    "surrogate in an answer": (
        '{"id": "b", "video": "b", "question": "q", "answer": "\\ud83d"}',
        "surrogate",
    ),
    "surrogate in a question": ('{"id": "b", "video": "b", "question": "\\udc00", "answer": "a"}', "surrog"),
    "surrogate in a path": ('{"id": "b", "video": "\\ud83d.mp4", "question": "q", "answer": "a"}', "surrog"),
    "surrogate in a key": (json.dumps(GOOD)[:-1] + ', "extra": {"\\ud83d": 1}}', "surrogate"),
    "no extra": (json.dumps(GOOD | {"extra": None}), "field 'extra' is None, not an object"),
    "400 digits": (json.dumps(GOOD)[:-1] + f', "end": {"9" * 400}}}', "a number has 13"),
    "5,000 digits": (json.dumps(GOOD)[:-1] + f', "extra": {{"x": {"9" * 5000}}}}}', "digits"),
    "nested": (json.dumps(GOOD)[:-1] + f', "extra": {{"x": {"[" * 3000 + "]" * 3000}}}}}', "nested too deep"),
    "nested less": (json.dumps(GOOD)[:-1] + f', "extra": {{"x": {"[" * 200 + "]" * 200}}}}}', "nested more"),
    "long caption": (json.dumps(GOOD | {"answer": "word " * 250_000}), "1,250,000 characters, more than"),
    "unknown scheme": (json.dumps(GOOD | {"video": "foo://x/a.mp4"}), "foo://.*rows may name local paths"),
    "ftp": (json.dumps(GOOD | {"video": "ftp://x/a.mp4"}), "videos at ftp:// are not fetched"),
    "chain": (json.dumps(GOOD | {"video": "zip://a.mp4::ftp://x/a.zip"}), "has '::'"),
    "chain in https": (json.dumps(GOOD | {"video": "https://x::ftp://x/a"}), "has '::'"),
    "NUL in a path": (json.dumps(GOOD | {"video": "a\0.mp4"}), "has a NUL character"),
    "invalid UTF-8": (json.dumps(GOOD).replace("a.mp4", "\xff"), "utf-8"),
}


@pytest.fixture(params=HOSTILE)
def hostile(request):
    """(a row's bytes, a pattern of what is said of it)"""
    text, said = HOSTILE[request.param]
    return text.encode("latin-1"), said


def good_rows(count):
    return [json.dumps(GOOD | {"id": f"good {number}"}).encode() for number in range(count)]


@pytest.mark.parametrize("form", ["lines", "list"])
def test_a_build_skips_the_row_and_names_it(tmp_path, hostile, form):
    row, said = hostile
    rows = [*good_rows(2), row, *good_rows(1)]
    content = b"\n".join(rows) if form == "lines" else b"[" + b",\n".join(rows) + b"]"
    file = tmp_path / "rows.json"
    file.write_bytes(content)
    annotations = read_annotations(file, "clips")
    assert annotations.rows == 4
    assert [item.clip is None for item in annotations.items] == [False, False, True, False]
    skipped = annotations.items[2]
    assert skipped.place == ("line 3" if form == "lines" else "row 3")
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(skipped.skipped)
    assert len(skipped.skipped) < 300 and "\n" not in skipped.skipped
    hashlib.sha256(repr(annotations.items).encode())  # as the build does with all of them
    json.dumps([dataclasses.asdict(item) for item in annotations.items])


def test_training_leaves_the_record_out_and_names_it(tmp_path, hostile):
    row, said = hostile
    file, heard = tmp_path / "clips.jsonl", []
    file.write_bytes(b"\n".join([*good_rows(2), row, *good_rows(4)[2:]]))
    clips = read_clips(file, max_fault_share=0.2, say=heard.append)
    assert [clip.id for clip in clips] == [f"good {number}" for number in range(4)]
    (line,) = heard
    assert line.startswith(f"{file}: 1 of 5 records are left out: line 3: ")
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(line)
    for strict in (dict(max_fault_share=0.19, say=heard.append), dict(max_fault_share=0.2), {}):
        with pytest.raises(UserError, match=f"clips.jsonl, line 3: .*{said}") as error:
            read_clips(file, **strict)
        assert "\n" not in str(error.value)


def test_evaluation_leaves_out_nothing(tmp_path, hostile):
    """Scores of fewer rows would not be those of the benchmark: one line, and no traceback."""
    row, said = hostile
    for name, content in (
        ("rows.jsonl", b"\n".join([*good_rows(2), row])),
        ("rows.json", b"[" + b",".join([*good_rows(2), row]) + b"]"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*({said}|recursion)") as error:
            read_benchmark("clips", tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_long_cell_of_a_table_is_one_line(tmp_path):
    (tmp_path / "rows.csv").write_text("id,question\n1," + "x" * 200_000 + "\n")
    with pytest.raises(UserError, match="rows.csv: not CSV: field larger"):
        read_benchmark("next-gqa", tmp_path / "rows.csv")


def test_the_first_record_may_be_the_broken_one(tmp_path, hostile):
    file = tmp_path / "clips.jsonl"
    file.write_bytes(b"\n".join([hostile[0], *good_rows(2)]))
    assert len(read_clips(file, max_fault_share=0.5, say=lambda line: None)) == 2
    file.write_bytes(hostile[0])
    with pytest.raises(UserError):
        read_clips(file, max_fault_share=1.0, say=lambda line: None)


def test_what_is_just_within_the_limits_passes():
    nested = []
    for _ in range(MAX_DEPTH - 1):
        nested = [nested]
    check_row(nested)
    check_row(
        {"x" * MAX_TEXT: "é" * MAX_TEXT, "n": [10**300, -(10**300), 1e308, None, True, "\N{GRINNING FACE}"]}
    )
    float(10**300)


@pytest.mark.parametrize(
    "path", ["a.mp4", "/a b/c:d.mp4", "a:/b", *(f"{scheme}://b/a.mp4" for scheme in SCHEMES)]
)
def test_paths_that_rows_may_name(path):
    check_path(path)
    check_path("memory://a/b.mp4", ["memory"])


@pytest.mark.parametrize("scheme", ["ftp", "sftp", "webhdfs", "github", "memory", "http", "filecache"])
def test_other_places_need_to_be_allowed(tmp_path, scheme):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([GOOD | {"video": f"{scheme}://x/a.mp4"}]))
    assert read_annotations(file, "clips").items[0].clip is None
    assert read_annotations(file, "clips", [scheme]).items[0].clip is not None


def test_elements_of_a_list_are_those_that_json_reads():
    values = [{"a": [1, {"b": "],{"}]}, 'x"\\', [], {}, 3.5, None, "é, [", [[["]"]]]]
    for text in (json.dumps(values), json.dumps(values, indent=1), "[]", "[ ]", "[[]]"):
        assert [json.loads(x) for x in elements_of(text.encode())] == json.loads(text)
    for end, reason in ((-3, "does not end"), (None, "too soon")):
        with pytest.raises(ValueError, match=reason):
            list(elements_of(json.dumps(values).encode()[:end] + b" 1 ]"[4 if end else 0 :]))


def test_a_row_that_breaks_its_list_is_skipped_if_its_brackets_and_quotes_close(tmp_path):
    """So every other row is a clip; where they do not close, the file is refused and the row named."""
    file, good = tmp_path / "rows.json", good_rows(6)
    for broken in (
        b'{"id": "b" "video": "b"}',
        b'{"id": , "video": "b"}',
        b"{'id': 'b', 'video': 'b'}",
        b"nothing",
        HOSTILE["nested"][0].encode(),
    ):
        file.write_bytes(b"[" + b",\n".join([*good[:2], broken, *good[2:]]) + b"]\n")
        annotations = read_annotations(file, "clips")
        assert annotations.rows == 7
        assert [item.clip is None for item in annotations.items] == [False] * 2 + [True] + [False] * 4
    file.write_bytes(b"[" + b", ".join(good[:3]) + b" " + b", ".join(good[3:]) + b"]")  # a comma is missing
    assert read_annotations(file, "clips").rows == 6
    whole = b"[" + b",\n".join(good) + b"]"
    for number, broken in {
        3: whole.replace(b'"good 2"', b'"good 2'),
        4: whole.replace(b'{"id": "good 3"', b'"id": "good 3"'),
        5: whole.replace(b'"good 4", ', b'"good 4"}, '),
        6: whole[:-9],
    }.items():
        file.write_bytes(broken)
        with pytest.raises(UserError, match=f"rows.json: no JSON: .*line {number} .*cannot be told apart"):
            read_annotations(file, "clips")


def test_what_is_said_of_a_row_is_one_short_line(tmp_path):
    """Whatever the row holds that it quotes."""
    text, lines = tmp_path / "sta.txt", tmp_path / "clips.jsonl"
    text.write_text(f"A1 0 1##a person runs.\nA2 {'x' * 5000} 3##a person sits.\n")
    (_, skipped) = read_annotations(text).items
    said = [skipped.skipped]
    with pytest.raises(UserError, match="row 2: not a row of charades-sta") as error:
        read_benchmark("charades-sta", text)
    said.append(str(error.value))
    lines.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"id": "b", "y" * 5000: 1}) + "\n")
    read_clips(lines, max_fault_share=0.5, say=said.append)
    assert len(said) == 3 and all(len(line) < 600 and "\n" not in line for line in said)


def test_ids_are_the_least_that_are_free():
    """As by trying one number after another."""

    def tried(stems):
        taken, names = set(), []
        for stem in stems:
            name, number = stem, 1
            while name in taken:
                number += 1
                name = f"{stem}~{number}"
            taken.add(name)
            names.append(name)
        return names

    stems = ["a", "a", "a~3", "a", "a", "b", "a~2", "a~2", "b~2", "b", "a~3", "a~2~2", "a", "b"] * 3
    taken = {}
    assert [new_id(Clip(stem, "", "q", "a"), taken) for stem in stems] == tried(stems)


def test_a_missing_file_is_no_row(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_clips(os.fspath(tmp_path / "none.jsonl"), max_fault_share=1.0, say=print)


def test_a_byte_order_mark_is_no_part_of_a_row(tmp_path):
    """Editors on Windows write one at the beginning of a file, in all of its readers' forms."""
    mark = b"\xef\xbb\xbf"
    lines, text = tmp_path / "clips.jsonl", tmp_path / "charades_sta_test.txt"
    lines.write_bytes(mark + b"\n".join(good_rows(2)))
    assert [clip.id for clip in read_clips(lines)] == ["good 0", "good 1"]
    assert [clip.id for clip in read_benchmark("clips", lines)[0]] == ["good 0", "good 1"]
    text.write_bytes(mark + b"3MSZA 24.3 30.4##person turn a light on.\n")
    assert read_benchmark("charades-sta", text)[0][0].video.endswith("/3MSZA.mp4")
    rows = tmp_path / "rows.json"
    rows.write_bytes(mark + b'{"3MSZA.mp4": {"timestamps": [[1, 2]], "sentences": ["It falls."]}}')
    assert read_benchmark("charades-sta", rows)[0][0].video.endswith("/3MSZA.mp4")
