"""From annotations to a data set: what becomes of each kind of row, parts, the report, the verb."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vpjax.building import examine as examine_module
from vpjax.building import parts as parts_module
from vpjax.building import report
from vpjax.building.annotations import Item
from vpjax.building.examine import MISSING, UNREADABLE, Options, caption_of, examine
from vpjax.building.parts import is_whole, make_part, parts_of, read_part
from vpjax.data.clips import read_clips
from vpjax.events.clips import EventSpec, make_event_clips
from vpjax.types import Clip, Keyword

ROOT = Path(__file__).parents[2]
SECONDS, FPS = 4.0, 8  # of the video that tests look at
FLASH = 20, 22  # its bright frames: 2.5 to 2.75 s


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """flash.mp4: a lamp in the dark that is on for two frames of 4 s; p.png; broken.mp4."""
    folder = tmp_path_factory.mktemp("videos")
    with av.open(str(folder / "flash.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 56, 56, "yuv420p"
        for i in range(int(SECONDS * FPS)):
            pixels = np.full((56, 56, 3), 60, np.uint8)
            pixels[8:24, 8:24] = 220 if FLASH[0] <= i < FLASH[1] else 60
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    Image.new("RGB", (56, 28), (200, 0, 0)).save(folder / "p.png")
    (folder / "broken.mp4").write_bytes((folder / "flash.mp4").read_bytes()[:400])
    return folder


@pytest.fixture
def options(videos):
    return Options(videos=str(videos), scorers=("motion",))


def item(place="row 1", **fields):
    fields = dict(id="a", video="flash.mp4", question="What happens?", answer="The lamp flashes.") | fields
    return Item(place, Clip(**fields))


def look(options, **fields):
    (examined,) = examine([item(**fields)], options)
    return examined


def test_an_action_in_the_caption_gets_its_key_frames(options):
    result = look(options, extra={"mine": 1})
    clip = result.item.clip
    (keyword,) = clip.keywords
    assert keyword.text == "flashes" and result.item.notes == ()
    ((start, end),) = keyword.spans
    # The flash and no more than the frame that ends it.
    assert start == pytest.approx(FLASH[0] / FPS, abs=0.01) and FLASH[1] / FPS - 0.01 <= end <= 2.9
    assert clip.extra["mine"] == 1 and 0 <= clip.extra["confidence"][0] <= 1
    assert len(result.scores[0]) == len(result.video.times) == SECONDS * FPS


def test_times_stay_those_of_the_file_where_a_clip_is_a_part_of_it(options):
    clip = look(options, start=2.0, end=3.5).item.clip
    ((start, end),) = clip.keywords[0].spans
    assert start == pytest.approx(2.5, abs=0.01) and end <= 3.0 and (clip.start, clip.end) == (2.0, 3.5)


def test_key_frames_that_the_user_gave_stay(options):
    given = Keyword("flashes", "flash", ((1.0, 1.5),))
    result = look(options, keywords=(given,))
    assert result.item.clip.keywords == (given,) and result.video is None and result.scores == (None,)


@pytest.mark.parametrize(
    "fields, reason",
    [
        (dict(video="none.mp4"), MISSING),
        (dict(video="none"), MISSING),
        (dict(video="broken.mp4"), UNREADABLE),
        (dict(start=4.5), "part outside the video: it starts at 4.5 of 4 s"),
        (dict(spans=((5.0, 6.0), (7.0, 7.0))), "spans outside the video: "),
    ],
)
def test_what_cannot_be_used_is_skipped_with_its_reason(options, fields, reason):
    result = look(options, **fields)
    assert result.item.clip is None and result.item.skipped.startswith(reason)
    assert result.item.notes == () and result.item.place == "row 1"


@pytest.mark.parametrize(
    "fields, note",
    [
        (dict(answer="A dark room."), "without V~ (no action in the caption): 'A dark room.'"),
        (dict(answer="Ein Ball fällt um."), "without V~ (no action in the caption): 'Ein Ball fällt um.'"),
        (dict(answer="一个球掉了下来。"), "without V~ (no action in the caption): '一个球掉了下来。'"),
        (dict(video="p.png"), "without V~ (image)"),
        (dict(video=""), "without V~ (text alone)"),
        (
            dict(keywords=(Keyword("flashes", "flash", ((0.0, 3.0),)),)),
            "without V~ (key frames are more than half of the clip)",
        ),
        (dict(end=5.0), "part cut at the end of the video: 5 of 4 s"),
        (dict(spans=((2.0, 5.0),)), "span cut at the end of the video: (2.0, 5.0) of 4 s"),
        (dict(spans=((2.6, 2.6),)), "span without length, taken as a moment: (2.6, 2.6)"),
        (dict(spans=((2.0, 3.0), (9.0, 10.0))), "span outside the video: (9.0, 10.0) of 4 s"),
    ],
)
def test_what_is_odd_about_a_clip_is_noted(options, fields, note):
    result = look(options, **fields).item
    assert result.clip is not None and note in result.notes
    ends = [end for keyword in result.clip.keywords for _, end in keyword.spans]
    assert all(end <= SECONDS for end in [*ends, *(end for _, end in result.clip.spans)])


def test_a_video_is_found_without_its_suffix_and_decoded_once(options, monkeypatch):
    count = []
    read = examine_module.read_frames
    monkeypatch.setattr(examine_module, "read_frames", lambda *a, **k: count.append(a) or read(*a, **k))
    results = list(examine([item(video="flash"), item(video="flash", answer="It flashes twice.")], options))
    assert [Path(r.item.clip.video).name for r in results] == ["flash.mp4"] * 2 and len(count) == 1


def test_long_videos_are_looked_at_in_a_bounded_number_of_frames(options):
    result = look(dataclasses.replace(options, max_frames=10))
    assert len(result.video.times) == 10


@pytest.mark.parametrize(
    "fields, caption",
    [
        (dict(answer="He runs."), "He runs."),
        (dict(answer="(B)", choices=("(A) sits", "(B) runs off")), "runs off"),
        (dict(answer="(C)", choices=("(A) sits",)), "(C)"),
        (dict(answer="<think>Hm.</think>\n<answer>A</answer>", choices=("A. sits",)), "sits"),
        (dict(answer="<think>It may jump.</think><answer>It runs.</answer>"), "It runs."),
        (dict(answer="From 1 to 2.", question="From when to when: he runs.", task="grounding"), None),
    ],
)
def test_the_caption_is_what_says_what_happens(fields, caption):
    clip = item(**fields).clip
    assert caption_of(clip) == (caption or clip.question)


def many(count):
    return [item(f"row {n}", id=str(n), video=f"{n * 7 % 5}.mp4") for n in range(count)]


def test_parts_hold_every_clip_once_and_keep_files_together():
    items = many(200)
    items[3] = Item("row 3", None, "broken row: x")
    parts = list(parts_of(items))
    assert sorted(n for part in parts for n in part) == [n for n in range(200) if n != 3]
    assert all(len(part) < 2 * parts_module.ITEMS for part in parts)
    files = [items[n].clip.video for part in parts for n in part]
    assert len([1 for one, other in zip(files, files[1:], strict=False) if one != other]) == 4


def test_a_part_made_twice_is_the_same_and_only_tries_again_what_may_have_changed(options, tmp_path, videos):
    items = [item(), item("row 2", video="later.mp4"), item("row 3", answer="A dark room.")]
    options = dataclasses.replace(options, videos=str(tmp_path))
    (tmp_path / "flash.mp4").write_bytes((videos / "flash.mp4").read_bytes())
    file = str(tmp_path / "part.jsonl")
    make_part(items, options, file)
    first = Path(file).read_bytes()
    assert not is_whole(file) and [bool(i.skipped) for i in read_part(file)] == [False, True, False]
    make_part(items, options, file)
    assert Path(file).read_bytes() == first
    (tmp_path / "flash.mp4").rename(tmp_path / "later.mp4")  # what was done is not done again
    make_part(items, options, file)
    assert is_whole(file) and [Path(i.clip.video).name for i in read_part(file)] == [
        "flash.mp4",
        "later.mp4",
        "flash.mp4",
    ]


def test_counts_add_up_or_the_build_stops():
    items = [item(), Item("row 2", None, "broken row: x"), Item("row 3", None, "broken row: y")]
    items[0] = dataclasses.replace(items[0], notes=("without V~ (image)",))
    summary = report.summarize(items, 3)
    assert (summary.rows, summary.questions, summary.clips, summary.degraded) == (3, 3, 1, 0)
    assert summary.skipped == (report.Reason("broken row", 2, ("row 2: x", "row 3: y")),)
    assert summary.noted == (report.Reason("without V~ (image)", 1, ("row 1",)),)
    with pytest.raises(AssertionError):
        report.summarize(items[:2], 3)  # a row that was lost
    with pytest.raises(AssertionError):
        report.summarize([dataclasses.replace(items[0], skipped="x")], 1)


def test_the_page_shows_the_clip_and_needs_no_other_file(options):
    one = item(answer="The <b>lamp</b> flashes & stays.", spans=((2.0, 3.0),))
    sheet = report.sheet_of(one, options)
    assert len(sheet.frames) == len(sheet.degraded) == report.STRIP
    assert [f.marked for f in sheet.frames] == [f.marked for f in sheet.degraded]
    key = [f.seconds for f in sheet.frames if f.marked]
    assert key and all(2.0 <= seconds <= 3.0 for seconds in key)
    assert [f.seconds for f in sheet.degraded] == [f.seconds for f in sheet.frames]  # V~ keeps its times
    assert ("flashes", True) in sheet.answer
    items = [sheet.item, Item("row 2", None, "several media: 2 in one row")]
    page = report.page(report.summarize(items, 2), items, [sheet], {"annotations": "a.json"})
    assert page.count("data:image/jpeg;base64,") == 2 * report.STRIP
    assert "<b>lamp" not in page and "&lt;b&gt;lamp" in page and "<mark>flashes</mark>" in page
    assert not re.search(r'(src|href)="(?!data:)|@import|url\(', page)
    assert "skipped: several media" in page and "row 2: 2 in one row" in page


def test_samples_show_all_sorts():
    items = [item(f"row {n}", id=str(n), extra={"confidence": [n / 100]}) for n in range(90)]
    items += [dataclasses.replace(item(f"row {n}"), notes=("without V~ (x)",)) for n in range(90, 100)]
    items += [Item("row 101", None, "broken row: x")]
    chosen = report.samples(items, 24)
    assert len(set(chosen)) == 24 and chosen == report.samples(items, 24)
    assert {0, 1, 2, 3} <= set(chosen) and sum(90 <= n < 100 for n in chosen) == 4 and 100 not in chosen
    assert report.samples(items[:3], 24) == [0, 1, 2]


def build(*arguments, code=0):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "vpjax.build", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_a_build_from_end_to_end_which_goes_on(tmp_path):
    spec = EventSpec(frames=16, noise=1.0, flicker=0.0)
    file = make_event_clips(spec, tmp_path, {"train": 6})["train"]
    truth = read_clips(file)
    rows = [
        {
            "video": os.path.relpath(clip.video, file.parent),
            "conversations": [
                {"from": "human", "value": f"<video>\n{clip.question}"},
                {"from": "gpt", "value": clip.answer},
            ],
        }
        for clip in truth
    ]
    rows[1] |= {"video": "later.mp4"}
    rows.append(rows[0] | {"video": ["a.mp4", "b.mp4"]})
    annotations = file.parent / "a.json"
    annotations.write_text(json.dumps(rows))
    out = tmp_path / "out"
    flags = [f"--annotations={annotations}", f"--out={out}", "--workers=1", "--max_skipped_share=0.3"]

    assert "7 questions = 5 clips (5 with V~) + 2 skipped" in build(*flags, "--samples=2")
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [row["place"] for row in skipped] == ["row 2", "row 7"] and "later.mp4" in skipped[0]["reason"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (
        manifest["counts"]["clips"] == 5 and manifest["options"]["scorers"] and manifest["about"]["keywords"]
    )
    assert "data:image/jpeg" in (out / "report.html").read_text()
    five = read_clips(out / "clips.jsonl")

    os.link(truth[1].video, file.parent / "later.mp4")
    told = build(*flags, "--samples=0", "--array_record")
    assert "7 questions = 6 clips (6 with V~) + 1 skipped" in told
    clips = read_clips(out / "clips.array_record")
    assert [clip for clip in clips if clip.id != "later"] == five
    assert [clip.answer for clip in clips] == [clip.answer for clip in truth]
    hits = 0
    for clip, true in zip(clips, truth, strict=True):
        assert Path(clip.video).is_file()
        (start, end), found = true.spans[0], [span for keyword in clip.keywords for span in keyword.spans]
        hits += any(first < end and last > start for first, last in found)
    assert hits >= 5  # of 6 events, without noise or flicker to be taken for one


def test_parts_on_beam_are_those_of_local_processes(videos, tmp_path):
    pytest.importorskip("apache_beam", reason="extra beam")
    (tmp_path / "a.jsonl").write_text(
        "".join(
            json.dumps(dict(id=str(n), video=name, question="What happens?", answer="The lamp flashes."))
            + "\n"
            for n, name in enumerate(["flash.mp4", "none.mp4", "flash.mp4"])
        )
    )
    flags = [
        f"--annotations={tmp_path}/a.jsonl",
        f"--videos={videos}",
        "--max_skipped_share=0.5",
        "--samples=0",
    ]
    build(*flags, f"--out={tmp_path}/here", "--workers=1")
    build(*flags, f"--out={tmp_path}/beam", "--runner=DirectRunner", "--beam=--direct_num_workers=1")
    for name in ("clips.jsonl", "skipped.jsonl", "parts/00000.jsonl"):
        assert (tmp_path / "beam" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
