"""Rows about several videos and images: their order in every format, and whose key frames are looked for."""

import dataclasses
import json

import pytest

from tests.building import spacy_without_torch  # noqa: F401
from tests.building.flash_video import END, FIRST
from vpjax.building import report
from vpjax.building.annotations import read_annotations
from vpjax.building.examine import examine
from vpjax.building.items import Item
from vpjax.building.parts import make_part, parts_of, read_part
from vpjax.data.clips import parse_clip
from vpjax.types import Clip, Keyword, Turn


@pytest.fixture
def read(tmp_path):
    def read(row):
        file = tmp_path / "a.json"
        file.write_text(json.dumps([row]))
        annotations = read_annotations(file)
        assert annotations.rows == len(annotations.items) == 1  # a row is a clip or skipped
        (item,) = annotations.items
        assert (item.clip is None) == bool(item.skipped)
        if item.clip is not None:  # what is built can be read
            named = dataclasses.replace(item.clip, id="a")
            assert parse_clip(json.loads(json.dumps(named.record()))) == named
        return item

    return read


def talk(*turns, names=("human", "gpt")):
    return [{"from": names[n % 2], "value": text} for n, text in enumerate(turns)]


def chat(*turns):
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]


R1 = dict(problem_type="free-form", solution="<answer>No</answer>", problem_id=1)
IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


@pytest.mark.parametrize(
    "row, media, questions",
    [
        pytest.param(
            dict(image=["p.jpg", "q.jpg"], conversations=talk("<image>\n<image>\nAlike?", "No.")),
            ["p.jpg", "q.jpg"],
            ["Alike?"],
            id="LLaVA: images before the question, which is their place anyway",
        ),
        pytest.param(
            dict(image=["p.jpg", "q.jpg"], conversations=talk("<image> or <image>?", "Q.", "Why?", "So.")),
            ["p.jpg", "q.jpg"],
            ["<video> or <video>?", "Why?"],
            id="LLaVA: interleaved",
        ),
        pytest.param(
            dict(
                video=["a.mp4", "b.mp4"], conversations=talk("<image>\nWhat?", "It.", "And <image>?", "It.")
            ),
            ["a.mp4", "b.mp4"],
            ["<video>\nWhat?", "And <video>?"],
            id="LLaVA-Video, whose tags of videos say image, in two turns",
        ),
        pytest.param(
            dict(
                video="a.mp4",
                image=["p.jpg", "q.jpg"],
                conversations=talk("<image>, <video> and <image>?", "No."),
            ),
            ["p.jpg", "a.mp4", "q.jpg"],
            ["<video>, <video> and <video>?"],
            id="Qwen-VL: both kinds",
        ),
        pytest.param(
            dict(messages=chat("In <video> as in <image>?", "No."), images=["p.jpg"], videos=["a.mp4"]),
            ["a.mp4", "p.jpg"],
            ["In <video> as in <video>?"],
            id="ms-swift",
        ),
        pytest.param(
            dict(messages=chat("Alike?", "No."), images=["p.jpg"], videos=["a.mp4"]),
            ["a.mp4", "p.jpg"],
            ["Alike?"],
            id="ms-swift without marks",
        ),
        pytest.param(
            dict(
                prompt=[dict(role="user", content=[dict(type="text", text="Is"), IMAGE, VIDEO])],
                completion=chat("", "No.")[1:],
                images=["p.jpg"],
                videos=["a.mp4"],
            ),
            ["p.jpg", "a.mp4"],
            ["Is<video><video>"],
            id="TRL: as the chat template writes parts, nothing between them",
        ),
        pytest.param(
            dict(
                messages=[
                    dict(
                        role="user",
                        content=[VIDEO | dict(video=dict(video_file="a.mp4")), IMAGE | dict(image="p.jpg")]
                        + [dict(type="text", text="Alike?"), dict(type="text", text="Be brief.")],
                    ),
                    *chat("", "No.")[1:],
                ]
            ),
            ["a.mp4", "p.jpg"],
            ["Alike?Be brief."],
            id="Tarsier",
        ),
        pytest.param(
            R1 | dict(problem="Alike?", videos=["a.mp4", "b.mp4"]),
            ["a.mp4", "b.mp4"],
            ["Alike?"],
            id="Video-R1",
        ),
        pytest.param(
            R1 | dict(problem="Is <image> in <video>?", videos=["a.mp4"], images=["p.jpg"]),
            ["p.jpg", "a.mp4"],
            ["Is <video> in <video>?"],
            id="EasyVideoR1: both kinds",
        ),
        pytest.param(
            dict(id="n", video=["p.jpg", "a.mp4"], question="What?", answer="It rolls."),
            ["p.jpg", "a.mp4"],
            ["What?"],
            id="vpjax",
        ),
    ],
)
def test_media_are_shown_in_the_order_of_their_marks(read, row, media, questions):
    item = read(row)
    assert item.skipped == "" and item.media == item.clip.media == tuple(media)
    assert [turn.question for turn in item.clip.dialogue] == questions


@pytest.mark.parametrize(
    "row, reason",
    [
        (
            dict(image=["p.jpg", "q.jpg"], conversations=talk("<image> Alike?", "No.")),
            "broken row: 1 media tags for 2 videos or images",
        ),
        (
            dict(image=["p.jpg", "q.jpg"], conversations=talk("<image><image><image>?", "No.")),
            "broken row: 3 media tags for 2 videos or images",
        ),
        (
            dict(image="p.jpg", video="a.mp4", conversations=talk("<image><image>?", "No.")),
            "broken row: 2 <image> tags for 1 images and other videos",
        ),
        (
            dict(messages=chat("<image>?", "No."), images=["p.jpg"], videos=["a.mp4"]),
            "broken row: 1 media tags for 2 videos or images",
        ),
        (
            dict(messages=chat("What?", "It."), images=[{"bytes": "x"}, "p.jpg"]),
            "broken row: {'bytes': 'x'} is not the path of a video",
        ),
        (R1 | dict(problem="<video>?", videos=["a.mp4", "b.mp4"]), "broken row: 1 media tags for 2 videos"),
        (
            dict(id="n", video=["a.mp4", "b.mp4"], question="<video>?", answer="x"),
            "broken row: 1 marks <video> in its questions for 2 videos or images",
        ),
    ],
)
def test_marks_that_fit_no_media_are_named(read, row, reason):
    assert read(row).skipped.startswith(reason)


def test_a_part_of_one_of_several_videos_is_none_that_a_clip_has(read):
    parts = [VIDEO | dict(video=dict(video_file=f"{name}.mp4", start_time=1, end_time=2)) for name in "ab"]
    content = [*parts, dict(type="text", text="Alike?")]
    item = read(dict(messages=[dict(role="user", content=content), *chat("", "No.")[1:]]))
    assert item.skipped == "part of one of several videos: {'start': 1, 'end': 2}"


def item_of(**fields):
    fields = (
        dict(id="a", video="p.png", others=("flash.mp4",), question="What?", answer="It flashes.") | fields
    )
    return Item("row 1", Clip(**fields))


def test_key_frames_are_those_of_the_one_video(options, videos):
    """An image stands before it, and a turn about the image alone has no keyword of the video."""
    turns = (Turn("Look at <video>.", "A lamp falls."),)
    (result,) = examine([item_of(question="And <video>?", turns=turns)], options)
    clip = result.item.clip
    assert clip.media == (str(videos / "p.png"), str(videos / "flash.mp4")) and result.item.notes == ()
    (keyword,) = clip.keywords
    ((start, end),) = keyword.spans
    assert (keyword.text, keyword.video) == ("flashes", 1)
    assert start == pytest.approx(FIRST, abs=0.01) and END - 0.01 <= end <= 2.9


def test_several_videos_train_without_spans(options):
    spans = ((9.0, 10.0),)  # of one of them, whichever
    (result,) = examine([item_of(video="flash", spans=spans)], options)
    clip = result.item.clip
    assert clip.spans == spans
    assert [(keyword.text, keyword.spans) for keyword in clip.keywords] == [("flashes", ())]
    assert result.item.notes == ("without V~ (several videos, of which one must be given)",)
    assert result.video is None and not report.has_degraded(result.item)


def test_spans_that_are_given_stay_in_their_videos(options):
    """And are cut to their own file."""
    given = Keyword("flashes", "flash", ((3.0, 9.0),), 1), Keyword("falls", "fall", ((1.0, 1.5),))
    (result,) = examine([item_of(video="flash.mp4", keywords=given)], options)
    assert [keyword.spans for keyword in result.item.clip.keywords] == [((3.0, 4.0),), ((1.0, 1.5),)]
    assert result.item.notes == ("span cut at the end of the video: (3.0, 9.0) of 4 s",)
    sheet = report.make_sheet(item_of(video="flash.mp4", keywords=given), options)
    assert [track.texts for track in sheet.tracks] == [["flashes"]]  # of one video, the first with key frames


def test_a_missing_file_skips_the_row(options):
    (result,) = examine([item_of(others=("none.mp4",))], options)
    assert result.item.clip is None and result.item.skipped.startswith("video missing: ")


def test_parts_keep_clips_of_the_same_files_together(options, tmp_path):
    items = [item_of(), item_of(video="flash.mp4", others=()), item_of(question="Who?")]
    ((first, second, third),) = parts_of(items)
    assert (first, second, third) == (0, 2, 1)
    make_part(items, options, str(tmp_path / "part.jsonl"))
    results = read_part(str(tmp_path / "part.jsonl"), 3)
    assert [len(item.media) for item in results] == [2, 1, 2]
    assert [item.clip.keywords[0].video for item in results] == [1, 0, 1]
    assert all(item.clip.keywords[0].spans for item in results)
