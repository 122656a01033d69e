"""Readers of public action data sets: a few rows in the published layouts, and rows with their traps."""

import json

import pytest

from vpjax.building.annotations import items_of
from vpjax.curation.published import READERS, epic_rows, narrated
from vpjax.curation.rows import chunks_of
from vpjax.types import Keyword, UserError

SOMETHING = {
    "id": "78687",
    "label": "holding potato next to vicks vaporub bottle",
    "template": "Holding [something] next to [something]",
    "placeholders": ["potato", "vicks vaporub bottle"],
}
DIDEMO = {
    "num_segments": 6,
    "description": "the dog jumps into the water.",
    "dl_link": "https://a",
    "times": [[0, 0], [1, 2], [1, 2], [5, 5]],
    "video": "10015567@N08_3655084291_f8b58559e4.mov",
    "annotation_id": 1,
}
EPIC = """narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration,verb,noun,all_nouns
P01_01_0,P01,P01_01,00:00:00.14,00:00:03.37,open door,open,door,['door']
P01_01_1,P01,P01_01,01:01:04.37,00:00:06.17,"pick up, then put down lid",pick-up,lid,['lid']
"""


def read(format, row):
    (item,) = items_of(row, READERS[format])
    return item


def test_something_something():
    clip = read("something-something", SOMETHING).clip
    assert (clip.video, clip.answer) == ("78687.webm", "Holding potato next to vicks vaporub bottle.")
    assert not clip.spans


def test_didemo_takes_the_median_of_its_annotators():
    clip = read("didemo", DIDEMO).clip
    assert clip.spans == ((5.0, 15.0),) and clip.answer == "The dog jumps into the water."
    assert "times" in read("didemo", DIDEMO | {"times": None}).skipped
    assert (
        read("didemo", DIDEMO | {"times": []}).skipped and read("didemo", DIDEMO | {"times": [[1]]}).skipped
    )


def test_epic_kitchens(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text(EPIC)
    ((format, rows),) = chunks_of(str(file), "epic-kitchens", 10, 0)
    items = [read(format, row) for _, row in rows]
    assert items[0].clip.video == "P01/videos/P01_01.MP4" and items[0].clip.spans == ((0.14, 3.37),)
    assert items[0].clip.answer == "Open door." and "does not start before it ends" in items[1].skipped
    file.write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(UserError, match="train.csv: not CSV"):
        list(epic_rows(str(file)))


@pytest.mark.parametrize(
    "narration, verb, keyword",
    [
        ("open door", "open", Keyword("Open door", "open")),  # not the thing "open door"
        ("wash hands", "wash", Keyword("Wash hands", "wash")),  # nor what "hands" does
        ("turn tap on", "turn-on", Keyword("Turn tap on", "turn on")),
        ("washing pan", "wash", Keyword("Washing pan", "wash")),
        ("put container on top of the counter", "put", Keyword("Put", "put")),
    ],
)
def test_a_narration_of_epic_kitchens_is_the_event_of_its_verb(narration, verb, keyword):
    row = dict(narration_id="1", participant_id="P01", video_id="P01_01", narration=narration, verb=verb)
    item = read("epic-kitchens", row | dict(start_timestamp="00:00:01.00", stop_timestamp="00:00:02.00"))
    assert item.clip.keywords == (keyword,) and keyword.text in item.clip.answer


def test_a_narration_that_begins_with_another_word_has_the_keywords_of_its_caption():
    assert narrated("Still stirring.", "stir") == ()


@pytest.mark.parametrize("format, row", [("something-something", SOMETHING), ("didemo", DIDEMO)])
def test_whatever_is_missing_makes_a_skipped_row(format, row):
    for name in ("label", "description", "id", "video", "times"):
        if name in row:
            assert read(format, {key: x for key, x in row.items() if key != name}).skipped
    assert read(format, json.loads(json.dumps(row))).clip
