"""From an annotated item to one with key frames; parts and the report."""

import dataclasses
import itertools
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.building import spacy_without_torch  # noqa: F401
from tests.building.flash_video import END, FIRST, FPS, SECONDS
from tests.videos import greys, write
from vpjax.building import examine as examine_module
from vpjax.building import parts as parts_module
from vpjax.building import report
from vpjax.building.examine import UNREADABLE, VIDEO_MISSING, caption_of, examine, find_video
from vpjax.building.fields import Rejected
from vpjax.building.items import Item
from vpjax.building.parts import is_damaged, is_finished, make_part, parts_of, read_part
from vpjax.data.coverage import PlannedClip, measure
from vpjax.data.sampling import Sampling, VideoInfo
from vpjax.types import Clip, Keyword, Turn


def make_item(place="row 1", **fields):
    fields = dict(id="a", video="flash.mp4", question="What happens?", answer="The lamp flashes.") | fields
    return Item(place, Clip(**fields))


def examine_one(options, **fields):
    (examined,) = examine([make_item(**fields)], options)
    return examined


def test_an_action_in_the_caption_gets_its_key_frames(options):
    result = examine_one(options, extra={"mine": 1})
    clip = result.item.clip
    (keyword,) = clip.keywords
    assert keyword.text == "flashes" and result.item.notes == ()
    ((start, end),) = keyword.spans
    # The flash and no more than the frame that ends it.
    assert start == pytest.approx(FIRST, abs=0.01) and END - 0.01 <= end <= 2.9
    assert clip.extra["mine"] == 1 and 0 <= clip.extra["confidence"][0] <= 1
    assert len(result.scores[0]) == len(result.video.times) == SECONDS * FPS


def test_times_are_those_of_the_file_if_a_clip_is_a_part_of_it(options):
    clip = examine_one(options, start=2.0, end=3.5).item.clip
    ((start, end),) = clip.keywords[0].spans
    assert start == pytest.approx(2.5, abs=0.01) and end <= 3.0 and (clip.start, clip.end) == (2.0, 3.5)


def test_key_frames_that_the_user_gave_stay(options):
    given = Keyword("flashes", "flash", ((1.0, 1.5),))
    result = examine_one(options, keywords=(given,))
    assert result.item.clip.keywords == (given,) and result.video is None and result.scores == (None,)


@pytest.mark.parametrize(
    "fields, reason",
    [
        (dict(video="none.mp4"), VIDEO_MISSING),
        (dict(video="none"), VIDEO_MISSING),
        (dict(video="broken.mp4"), UNREADABLE),
        (dict(start=4.5), "part outside the video: it starts at 4.5 of 4 s"),
        (dict(spans=((5.0, 6.0), (7.0, 7.0))), "spans outside the video: "),
    ],
)
def test_unusable_items_are_skipped_with_a_reason(options, fields, reason):
    result = examine_one(options, **fields)
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
        (dict(spans=((-1.0, 3.0),)), "span cut at the start of the video: (-1.0, 3.0)"),
        (dict(spans=((2.6, 2.6),)), "span without length, taken as a moment: (2.6, 2.6)"),
        (dict(spans=((2.0, 3.0), (9.0, 10.0))), "span outside the video: (9.0, 10.0) of 4 s"),
    ],
)
def test_oddities_of_a_clip_are_noted(options, fields, note):
    result = examine_one(options, **fields).item
    assert result.clip is not None and note in result.notes
    ends = [end for keyword in result.clip.keywords for _, end in keyword.spans]
    assert all(end <= SECONDS for end in [*ends, *(end for _, end in result.clip.spans)])


def test_a_video_is_found_without_its_suffix_and_decoded_once(options, monkeypatch):
    count = []
    read = examine_module.read_frames
    monkeypatch.setattr(examine_module, "read_frames", lambda *a, **k: count.append(a) or read(*a, **k))
    items = [make_item(video="flash"), make_item(video="flash", answer="It flashes twice.")]
    results = list(examine(items, options))
    assert [Path(r.item.clip.video).name for r in results] == ["flash.mp4"] * 2 and len(count) == 1


def test_a_name_with_times_in_it_has_no_suffix(tmp_path):
    """QVHighlights names its videos by the parts that were cut out."""
    write(tmp_path / "RoripwjYFp8_360.0_510.0.mp4", greys(8))
    path, info = find_video("RoripwjYFp8_360.0_510.0", str(tmp_path))
    assert Path(path).name == "RoripwjYFp8_360.0_510.0.mp4" and info.frames == 8
    with pytest.raises(Rejected, match="video missing: .*/b.MP4$"):
        find_video("b.MP4", str(tmp_path))


def test_long_videos_are_examined_in_a_bounded_number_of_frames(options):
    result = examine_one(dataclasses.replace(options, max_frames=10))
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
def test_the_caption_is_the_text_that_describes_the_event(fields, caption):
    clip = make_item(**fields).clip
    assert caption_of(clip) == (caption or clip.question)


@pytest.mark.parametrize(
    "answer, truth",
    [
        ("A room is dark. The lamp flashes.", "A room is dark."),
        ("<answer>The lamp flashes. A room is dark.</answer>", "<answer>A room is dark.</answer>"),
        # The reasoning tells nothing of V~, whatever it says.
        (
            "<think>A wall. It may fall.</think>\n<answer>A room is dark. The lamp flashes.</answer>",
            "<answer>A room is dark.</answer>",
        ),
        ("<think>The room is dark.</think>\n<answer>The lamp flashes.</answer>", ""),
    ],
)
def test_what_is_true_of_the_degraded_video_has_the_form_of_the_answer(options, answer, truth):
    assert examine_one(options, answer=answer).item.clip.degraded_answer == truth


def test_an_answer_about_times_ends_with_its_file(options):
    """An annotation that ends later names no time that no one can see; other words of a user's stay."""
    fields = dict(task="grounding", spans=((2.0, 9.0),))
    for answer, expected in (
        ("From 2.00 to 9.00 seconds.", f"From 2.00 to {SECONDS:.2f} seconds."),
        ("From 2 to 9 s.", "From 2 to 9 s."),
    ):
        clip = examine_one(options, answer=answer, **fields).item.clip
        assert (clip.answer, clip.spans) == (expected, ((2.0, SECONDS),))


def test_a_question_about_times_ends_with_its_file(options):
    fields = dict(spans=((2.0, 9.0),))
    asked, other = "What happens from 2.00 to {:.2f} seconds?".format, "What happens from 2 to 9?"
    for question, expected in ((asked(9), asked(SECONDS)), (other, other)):
        assert examine_one(options, question=question, **fields).item.clip.question == expected


def test_every_answer_of_a_conversation_gives_keywords(options, monkeypatch):
    """Each is scored in its own turn, and none is found twice."""
    tools, scored = examine_module.load_tools(options), []

    def score(video, clip, keyword):
        scored.append((keyword.text, clip.question, clip.answer, len(clip.turns)))
        return tools.score(video, clip, keyword)

    monkeypatch.setattr(examine_module, "load_tools", lambda _: tools._replace(score=score))
    monkeypatch.setattr(examine_module, "KEYWORD_BLIND", set())
    turns = (Turn("What happens?", "The lamp flashes."), Turn("Where?", "On the left."))
    last = dict(question="And then?", answer="The lamp flashes again and falls.")
    clip = examine_one(options, turns=turns, **last).item.clip
    assert [keyword.lemma for keyword in clip.keywords] == ["flash", "fall"]
    expected = [("What happens?", "The lamp flashes.", 0), (last["question"], last["answer"], 2)]
    assert [(asked, answer, count) for _, asked, answer, count in scored] == expected
    scored.clear()
    given = tuple(dataclasses.replace(keyword, spans=()) for keyword in clip.keywords)
    again = examine_one(options, turns=turns, keywords=given, **last).item.clip
    assert [(asked, answer, count) for _, asked, answer, count in scored] == expected
    assert again == clip


def test_parts_hold_every_clip_once_and_keep_files_together():
    items = [make_item(f"row {n}", id=str(n), video=f"{n * 7 % 5}.mp4") for n in range(200)]
    items[3] = Item("row 3", None, "broken row: x")
    parts = list(parts_of(items))
    assert sorted(n for part in parts for n in part) == [n for n in range(200) if n != 3]
    assert all(len(part) < 2 * parts_module.ITEMS for part in parts)
    files = [items[n].clip.video for part in parts for n in part]
    assert len(list(itertools.groupby(files))) == 5


def test_a_part_made_twice_is_the_same_and_only_repeats_what_may_have_changed(options, tmp_path, videos):
    items = [make_item(), make_item("row 2", video="later.mp4"), make_item("row 3", answer="A dark room.")]
    options = dataclasses.replace(options, videos=str(tmp_path))
    (tmp_path / "flash.mp4").write_bytes((videos / "flash.mp4").read_bytes())
    file = str(tmp_path / "part.jsonl")
    make_part(items, options, file)
    first = Path(file).read_bytes()
    assert not is_finished(file, 3) and [bool(i.skipped) for i in read_part(file, 3)] == [False, True, False]
    make_part(items, options, file)
    assert Path(file).read_bytes() == first
    (tmp_path / "flash.mp4").rename(tmp_path / "later.mp4")  # finished work is not redone
    make_part(items, options, file)
    assert is_finished(file, 3) and [Path(i.clip.video).name for i in read_part(file, 3)] == [
        "flash.mp4",
        "later.mp4",
        "flash.mp4",
    ]


@pytest.mark.parametrize("kept", ["nothing", "a line", "all but a byte", "zeros", "other lines"])
def test_a_damaged_part_is_made_anew(options, tmp_path, kept):
    items, file = [make_item(), make_item("row 3", answer="A dark room.")], tmp_path / "part.jsonl"
    make_part(items, options, str(file))
    whole = file.read_bytes()
    first, second = whole.splitlines(keepends=True)
    left = {"nothing": b"", "a line": first, "all but a byte": whole[:-2], "zeros": bytes(len(whole))}
    file.write_bytes(left.get(kept, b"[]\n{}\n"))
    assert is_damaged(str(file), 2) and not is_finished(str(file), 2)
    make_part(items, options, str(file))
    assert file.read_bytes() == whole and is_finished(str(file), 2) and not is_damaged(str(file), 2)
    assert not is_damaged(str(tmp_path / "none.jsonl"), 2)


def test_counts_add_up_or_the_build_stops():
    items = [make_item(), Item("row 2", None, "broken row: x"), Item("row 3", None, "broken row: y")]
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
    annotated = make_item(answer="The <b>lamp</b> flashes & stays.", spans=((2.0, 3.0),))
    sheet = report.make_sheet(annotated, options)
    assert len(sheet.frames) == len(sheet.degraded) == report.STRIP_FRAMES
    assert [f.marked for f in sheet.frames] == [f.marked for f in sheet.degraded]
    key_seconds = [f.seconds for f in sheet.frames if f.marked]
    assert key_seconds and all(2.0 <= seconds <= 3.0 for seconds in key_seconds)
    assert [f.seconds for f in sheet.degraded] == [f.seconds for f in sheet.frames]  # V~ keeps its times
    assert [keyword for track in sheet.tracks for keyword in track.texts] == ["flashes"]
    items = [sheet.item, Item("row 2", None, "several media: 2 in one row")]
    sampling, info, span = Sampling(fps=1.0), VideoInfo(56, 56, 10.0, 8.0, 80), (3.3, 3.6)
    seen = measure([PlannedClip([(span,)], info, (None, None), (10, 56, 56))], sampling)
    page = report.render_report(report.summarize(items, 2), items, [sheet], {"annotations": "a.json"}, seen)
    assert "1 of 1 annotated events (100.0 %) are in no slot" in page
    assert re.search(r"<th>events 0.25 to 0.5 s</th><td class=.number.>100.0 \(1\)</td>", page)
    assert page.count('class="run given"') == page.count('class="run"') == 1
    assert page.count("data:image/jpeg;base64,") == 2 * report.STRIP_FRAMES
    assert "<b>lamp" not in page and "&lt;b&gt;lamp" in page and "<mark>flashes</mark>" in page
    assert not re.search(r'(src|href)="(?!data:)|@import|url\(', page)
    assert "skipped: several media" in page and "row 2: 2 in one row" in page


@pytest.mark.parametrize("confidence", [0.9, [0.9], [0.9, "high"], [0.5, None, 0.7], {"a": 1}, None])
def test_what_users_keep_in_extra_breaks_no_page(options, confidence):
    """A clip of theirs may say ``confidence`` of something else, or have other keywords since its build."""
    keywords = tuple(Keyword(text, text, ((2.0, 3.0),)) for text in ("flashes", "stays"))
    annotated = make_item(keywords=keywords, extra={"confidence": confidence})
    sheet = report.make_sheet(annotated, options)
    assert [track.texts for track in sheet.tracks] in ([["flashes", "stays"]], [["flashes"], ["stays"]])
    assert report.choose_samples([sheet.item], 6) == [0]
    measured = isinstance(confidence, list) and len(confidence) == 2
    assert report.confidences(sheet.item.clip) == ([0.9] if measured else [])


def test_an_image_may_have_keywords(options, videos):
    Image.new("RGB", (56, 56)).save(videos / "still.png")
    annotated = make_item(video="still.png", keywords=(Keyword("stays", "stay"),))
    assert [track.texts for track in report.make_sheet(annotated, options).tracks] == [["stays"]]


def test_histograms_count_from_each_edge_to_the_next():
    counts = report.histogram([0.1, 0.25, 0.3, 0.5, 9.0], (0.25, 0.5, 1), " s")
    assert counts == [("below 0.25 s", 1), ("0.25 to 0.5 s", 2), ("0.5 to 1 s", 1), ("1 s and above", 1)]
    assert [count for _, count in report.histogram([], (1, 2), "")] == [0, 0, 0]


def test_samples_have_low_confidence_no_degraded_video_and_random_clips():
    items = [make_item(f"row {n}", id=str(n), extra={"confidence": [n / 100]}) for n in range(90)]
    items += [dataclasses.replace(make_item(f"row {n}"), notes=("without V~ (x)",)) for n in range(90, 100)]
    items += [Item("row 101", None, "broken row: x")]
    chosen = report.choose_samples(items, 24)
    assert len(set(chosen)) == 24 and chosen == report.choose_samples(items, 24)
    assert {0, 1, 2, 3} <= set(chosen) and sum(90 <= n < 100 for n in chosen) == 4 and 100 not in chosen
    assert report.choose_samples(items[:3], 24) == [0, 1, 2]
