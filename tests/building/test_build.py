"""The command and the function that build a data set."""

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.building.flash_video import END, FIRST, write_videos
from vpjax import build
from vpjax.building.examine import Options
from vpjax.building.items import Item
from vpjax.data.clips import read_clips
from vpjax.events.clips import EventSpec, make_event_clips
from vpjax.recipes import sft_qwen2_5_vl_7b
from vpjax.types import Clip, Keyword, Look, Turn, UserError

ROOT = Path(__file__).parents[2]
BUILD = build.build  # which tests of the flags replace


def run_command(*flags):
    """Run ``python -m vpjax.build`` and return what it prints."""
    process = subprocess.run(
        [sys.executable, "-m", "vpjax.build", *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def run_main(monkeypatch, *flags):
    """The arguments that ``main`` gives to ``build``."""
    calls = []
    monkeypatch.setattr(build, "build", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(sys, "argv", ["build", *flags])
    build.main()
    return calls[0]


def test_flags_have_the_defaults_of_the_function(monkeypatch):
    arguments = run_main(monkeypatch, "--annotations=a.json", "--out=o")
    assert arguments.pop("options") == Options()
    assert (arguments.pop("annotations"), arguments.pop("out")) == ("a.json", "o")
    assert arguments.pop("config").to_dict() == sft_qwen2_5_vl_7b.get_config().to_dict()
    assert arguments.pop("workers") == os.cpu_count() and arguments.pop("beam") == []
    parameters = inspect.signature(BUILD).parameters
    assert arguments == {name: parameters[name].default for name in arguments}
    assert {
        "format",
        "array_record",
        "runner",
        "samples",
        "max_skipped_share",
        "schemes",
    } == arguments.keys()


@pytest.mark.parametrize("name", ["spacy", "spacy_lookups_data"])
def test_without_spacy_one_line_says_what_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "vpjax.building.keywords", raising=False)
    with pytest.raises(UserError, match=rf"{name} is not installed: pip install 'vpjax\[build\]'") as error:
        build.build(annotations="a.json", out="o")
    assert "\n" not in str(error.value)


def test_flags_become_options(monkeypatch, tmp_path):
    (tmp_path / "keywords.txt").write_text("tip over\n\n goal kick \n")
    options = Options(
        videos="v",
        spacy="s",
        keywords=("tip over", "goal kick"),
        scorers=("text", "self"),
        text_model="t",
        model="m",
        fps=2.5,
        max_frames=9,
        max_pixels=99,
        cap=0.5,
        tfio_python="p",
    )
    flags = dataclasses.asdict(options) | dict(keywords=tmp_path / "keywords.txt", scorer="text,self")
    del flags["scorers"]
    flags = [f"--{name}={value}" for name, value in flags.items()]
    arguments = run_main(
        monkeypatch,
        "--annotations=a",
        "--out=o",
        "--array_record",
        "--beam=--x=1",
        "--beam=--y=2",
        "--config=sft",
        "--config.data.frames=6",
        *flags,
    )
    assert arguments["config"].data.frames == 6
    assert arguments["options"] == options
    assert arguments["array_record"] and arguments["beam"] == ["--x=1", "--y=2"]


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--scorer=nope", "--scorer=nope: choose some of span, motion, text, self"),
        ("--scorer=", "--scorer=: choose some of"),
        ("--scorer=text", "--scorer=text needs --text_model"),
        ("--scorer=span,self", "--scorer=span,self needs --model"),
        ("--fps=0", "--fps must be above 0"),
        ("--cap=1.5", "--cap: 1.5 is above 1"),
        ("--max_skipped_share=-0.5", "--max_skipped_share: -0.5 is below 0"),
        ("--max_frames=1", "--max_frames: 1 is below 2"),
        ("--keywords=/dev/null", "--keywords=/dev/null: no keywords in this file"),
        ("--keywords=/dev/none", "--keywords=/dev/none: No such file"),
        (f"--keywords={sys.executable}", "no text in UTF-8"),
        ("--nope=1", "--nope: no such flag"),
        ("--config=nope", "no recipe of that name"),
        ("--config.data.nope=1", "--config.data.nope: sft_qwen2_5_vl_7b has no such field"),
    ],
)
def test_wrong_flags_are_named(monkeypatch, flag, message):
    with pytest.raises(UserError, match=message):
        run_main(monkeypatch, "--annotations=a.json", "--out=o", flag)


def test_a_list_of_keywords_may_come_from_windows(tmp_path):
    file = tmp_path / "keywords.txt"
    file.write_bytes("\ufefftips over\r\n\r\n jumps \r\nfällt".encode())
    assert build.read_keywords(str(file)) == ("tips over", "jumps", "fällt")
    file.write_bytes("fällt".encode("latin-1"))
    with pytest.raises(UserError, match="keywords.txt: no text in UTF-8"):
        build.read_keywords(str(file))


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "give --annotations or --recipe"),
        (["--annotations=a", "--recipe=b"], "give --annotations or --recipe"),
        (["--annotations=a", "--dry_run"], "--root, --sources and --dry_run belong to --recipe"),
        (["--recipe=vp80k", "--samples=3"], "--samples belongs to --annotations"),
        (["--recipe=vp80k", "--config.steps=3"], "--config belongs to --annotations"),
        (["--recipe=nope"], "--recipe: there is no file 'nope' and no recipe of that name; recipes: vp80k"),
        (["--recipe=vp80k", "--root=/none", "--dry_run", "--sources=x"], "--sources: the recipe has no 'x'"),
    ],
)
def test_a_recipe_and_annotations_have_flags_of_their_own(monkeypatch, flags, message):
    with pytest.raises(UserError, match=message):
        run_main(monkeypatch, "--out=o", *flags)


def test_a_folder_belongs_to_the_build_that_began_it(tmp_path):
    items = [Item("row 1", Clip("a", "a.mp4", "q", "It falls."))]
    build.claim_folder(str(tmp_path), items, Options(fps=2.0), "a slip")  # which finished nothing
    for _ in range(2):
        build.claim_folder(str(tmp_path), items, Options(), "rules")
    (tmp_path / "parts" / "00000.jsonl").write_text("")
    build.claim_folder(str(tmp_path), items, Options(), "rules")
    with pytest.raises(UserError, match="holds a build with other annotations: delete it or choose another"):
        build.claim_folder(str(tmp_path), [*items, *items], Options(), "rules")
    with pytest.raises(UserError, match="holds a build with other options and keywords"):
        build.claim_folder(str(tmp_path), items, Options(fps=1.0), "a list")


@pytest.mark.slow
def test_a_build_from_end_to_end_which_continues(monkeypatch, tmp_path):
    spec = EventSpec(noise=1.0, flicker=0.0)
    file = make_event_clips(spec, tmp_path, {"train": 6})["train"]
    truth = read_clips(file)
    rows = []
    for clip in truth:
        question = {"from": "human", "value": f"<video>\n{clip.question}"}
        answer = {"from": "gpt", "value": clip.answer}
        rows.append({"video": os.path.relpath(clip.video, file.parent), "conversations": [question, answer]})
    before = [
        ("system", "Be brief."),
        ("human", "<video>Is it one?"),
        ("gpt", "Yes."),
        ("human", "Who?"),
        ("gpt", "A"),
    ]
    asked = [*before, ("human", truth[2].question), ("gpt", truth[2].answer)]
    rows[2]["conversations"] = [{"from": role, "value": value} for role, value in asked]
    rows[1] |= {"video": "later.mp4"}
    rows.append(rows[0] | {"video": ["a.mp4", "b.mp4"]})
    annotations = file.parent / "a.json"
    annotations.write_text(json.dumps(rows))
    out = tmp_path / "out"

    flags = [f"--annotations={annotations}", f"--out={out}", "--workers=1", "--max_skipped_share=0.3"]
    printed = run_command(*flags, "--samples=2", f"--config.data.cache={tmp_path}")
    assert "7 questions = 5 clips (5 with V~) of 7 turns + 2 skipped" in printed
    # The clips have 8 frames a second, and the recipe looks at as many.
    assert re.search(r"with 8 frames a second, .*\n0 of \d+ annotated events", printed)
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [row["place"] for row in skipped] == ["row 2", "row 7"] and "later.mp4" in skipped[0]["reason"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["counts"]["clips"] == 5
    assert manifest["options"]["scorers"] and manifest["about"]["keywords"]
    assert "data:image/jpeg" in (out / "report.html").read_text()
    five = read_clips(out / "clips.jsonl")
    assert [len(clip.turns) for clip in five] == [0, 2, 0, 0, 0] and five[1].system == "Be brief."
    assert (
        five[1].turns == (Turn("Is it one?", "Yes."), Turn("Who?", "A"))
        and five[1].question == truth[2].question
    )

    # The function continues what the command began, when the missing video has come. Threads start sooner.
    monkeypatch.setattr(build, "worker_processes", ThreadPoolExecutor)
    os.link(truth[1].video, file.parent / "later.mp4")
    arguments = dict(annotations=str(annotations), out=str(out), workers=1, samples=0, array_record=True)
    with pytest.raises(
        UserError, match="1 of 7 questions give no clip, where --max_skipped_share=0.1 allows"
    ):
        build.build(**arguments)
    config = sft_qwen2_5_vl_7b.get_config()
    config.data.cache, config.data.fps = str(tmp_path), 1.0
    with pytest.raises(
        UserError, match="annotated events .* data.max_missed_share=0.05 .* raise data.fps=1 for"
    ):
        build.build(**arguments, max_skipped_share=0.3, config=config)
    written = (out / "clips.array_record").read_bytes()  # for the recipe can be changed later
    config.data.max_missed_share = 1.0
    summary = build.build(**arguments, max_skipped_share=0.3, config=config)
    assert (out / "clips.array_record").read_bytes() == written
    assert (summary.questions, summary.clips, summary.degraded) == (7, 6, 6)
    clips = read_clips(out / "clips.array_record")
    assert [clip for clip in clips if clip.id != "later"] == five
    assert [clip.answer for clip in clips] == [clip.answer for clip in truth]
    hits = 0
    for clip, true_clip in zip(clips, truth, strict=True):
        assert Path(clip.video).is_file()
        start, end = true_clip.spans[0]
        spans = [span for keyword in clip.keywords for span in keyword.spans]
        hits += any(first < end and last > start for first, last in spans)
    assert hits >= 5  # of 6 events, without noise or flicker to be taken for one


@pytest.mark.slow
@pytest.mark.parametrize(
    "look, missed, outside",
    [
        (None, 0, 0),  # 8 frames a second
        (Look(), 0, 0),
        (Look(frames=2), 1, 0),  # at 0 and 2 s
        (Look(2.0, 3.0, frames=2), 0, 0),  # at 2 and 2.5 s
        (Look(0.0, 1.0), 0, 1),
    ],
)
def test_events_are_counted_by_the_looks_of_their_clips(tmp_path, monkeypatch, look, missed, outside):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keyword = Keyword("flashes", "flash", ((FIRST, END),))
    looks = (look,) if look else ()
    video = str(write_videos(tmp_path) / "flash.mp4")
    clip = Clip("a", video, "What happens?", "The lamp flashes.", (keyword,), looks=looks)
    seen, problems = build.coverage_of([clip], sft_qwen2_5_vl_7b.get_config())
    assert not problems and (int(seen.missed.sum()), seen.outside) == (missed, outside)


def test_parts_on_beam_are_those_of_local_processes(tmp_path):
    pytest.importorskip("apache_beam", reason="extra beam")
    write_videos(tmp_path)
    fields = dict(question="What happens?", answer="The lamp flashes.")
    with (tmp_path / "a.jsonl").open("w") as file:
        for number, video in enumerate(["flash.mp4", "none.mp4", "flash.mp4"]):
            print(json.dumps(dict(id=str(number), video=video, **fields)), file=file)
    flags = [f"--annotations={tmp_path}/a.jsonl", "--max_skipped_share=0.5", "--samples=0"]
    run_command(*flags, f"--out={tmp_path}/here", "--workers=1")
    run_command(*flags, f"--out={tmp_path}/beam", "--runner=DirectRunner", "--beam=--direct_num_workers=1")
    for name in ("clips.jsonl", "skipped.jsonl", "parts/00000.jsonl"):
        assert (tmp_path / "beam" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
