"""Predictions become the means that are counted here by hand, and tables and a page that hold them."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.videos import greys, write
from vpjax.data.looks import TwoLooks
from vpjax.evaluation import run
from vpjax.evaluation.ask import NO_KEY, Prediction
from vpjax.evaluation.benchmarks import BENCHMARKS
from vpjax.evaluation.page import write_page
from vpjax.evaluation.results import compare, format_results, make_results
from vpjax.evaluation.run import REQUEST, check_request
from vpjax.recipes import base
from vpjax.types import Clip, Look, UserError

EVENTS = {"spin": "spins", "grow": "grows"}
CLIPS = [
    Clip(
        id=f"c{number}",
        video=f"v{number}.mp4",
        question="<script>",
        answer=f"The red circle {phrase}.",
        extra={"event": event, "group": group},
    )
    for number, (event, phrase, group) in enumerate(
        (event, phrase, group)
        for group in ("1 frame", "1 frame", "2 frames")
        for event, phrase in EVENTS.items()
    )
]
RIGHT = [clip.answer for clip in CLIPS]
# The last three name another event, two of them, and none.
HALF_RIGHT = [*RIGHT[:3], "It spins.", "It spins and grows.", "It is red."]


def predictions(control, texts):
    return [Prediction(clip.id, control, False, text) for clip, text in zip(CLIPS, texts, strict=True)]


def test_answers_to_another_request_are_kept(tmp_path):
    check_request(tmp_path, {"step": 3})
    for content, said in (
        ('{"step": 2}', "another request .step."),
        ('{"step": 3', "damaged .*give another --out"),
    ):
        (tmp_path / REQUEST).write_text(content)
        with pytest.raises(UserError, match=said):
            check_request(tmp_path, {"step": 3})
    (tmp_path / REQUEST).write_text('{"step": 3, "prior": 1}')
    check_request(tmp_path, {"step": 3})


def results(predictions, *, clips=CLIPS, missing="apart", left_out=None):
    shown = {"frames": 8, "fps": 0.0, "max_frames": 8}
    request = {"benchmark": "events", "model": "m", "step": 3, "weights": "w", "dtype": "float32"}
    request |= {"shown": shown, "new_tokens": 8}
    return make_results(request, BENCHMARKS["events"], clips, predictions, left_out or {}, missing=missing)


def test_answers_of_two_looks_are_none_of_one(tmp_path, monkeypatch):
    """Whichever came first into a folder, the other needs one of its own."""
    monkeypatch.setattr(run, "fingerprint", lambda model: "weights")
    model = SimpleNamespace(decoder=SimpleNamespace(embed=np.zeros(1)))
    asked = [run.Request("clips"), run.Request("clips", looks=TwoLooks())]
    one, two = (run.describe_request(x, "rows", 3, model, base.get_config().data) for x in asked)
    for first, second in ((one, two), (two, one)):
        (tmp_path / REQUEST).write_text(json.dumps(first))
        check_request(tmp_path, first)
        with pytest.raises(UserError, match="answers to another request .looks, localise."):
            check_request(tmp_path, second)


@pytest.fixture
def half_right():
    """Controls: all clips with a video, one of them and five without key frames, and all without a video."""
    keyless = [Prediction(clip.id, "key", False, fault=NO_KEY) for clip in CLIPS[1:]]
    key = [Prediction("c0", "key", False, "It jumps."), *keyless]
    every = [*predictions("none", HALF_RIGHT), *key, *predictions("blind", [""] * 6)]
    return results(every, left_out={"no event to name": 2})


def test_means_by_hand(half_right):
    none, key, blind = (half_right["controls"][control] for control in ("none", "key", "blind"))
    accuracy = none["metrics"]["accuracy"]
    assert (none["rows"], none["videos"], none["readable"]) == (6, 6, 4 / 6)
    assert accuracy["micro"]["mean"] == 3 / 6
    assert {group: (x["mean"], x["rows"]) for group, x in accuracy["groups"].items()} == {
        "1 frame": (3 / 4, 4),
        "2 frames": (0, 2),
    }
    assert {event: (x["mean"], x["rows"]) for event, x in accuracy["second_groups"].items()} == {
        "grow": (1 / 3, 3),
        "spin": (2 / 3, 3),
    }
    assert (key["rows"], key["without_key_frames"], key["readable"]) == (1, 5, 1)
    assert blind["readable"] == blind["metrics"]["accuracy"]["micro"]["mean"] == 0
    assert half_right["chance"] == 1 / 8 and half_right["unasked"] == {"no event to name": 2}


def test_an_option_that_is_ranked_names_no_evidence():
    """So it has no score of any, where a completion without evidence has 0."""
    fields = dict(task="choice", choices=("runs", "sits"), spans=((1.0, 2.0),), extra={"group": "CW"})
    clip = Clip("a", "a.mp4", "What?", "B", **fields)
    made = [Prediction("a", "none", ranked, "B") for ranked in (False, True)]
    for name in ("next-gqa", "clips"):
        found = make_results({"benchmark": name}, BENCHMARKS[name], [clip], made, {}, missing="apart")
        whole, ranked = (found["controls"][control]["metrics"] for control in ("none", "none, ranked"))
        assert list(ranked) == ["accuracy"] and ranked["accuracy"]["micro"]["mean"] == 1
        assert whole["evidence IoU"]["micro"]["mean"] == whole["grounded@0.5"]["micro"]["mean"] == 0
        assert format_results(found)


def test_tables(half_right):
    lines = format_results(half_right).splitlines()
    assert "events" in lines[0] and "chance is 12.5" in lines[0]
    assert lines[1].split() == "accuracy mean of groups readable rows".split()
    low, high = (
        100 * half_right["controls"]["none"]["metrics"]["accuracy"]["micro"][end] for end in ("low", "high")
    )
    assert lines[2].split() == f"none 50.0 [{low:.1f}, {high:.1f}] 37.5 66.7 6".split()
    assert lines[3].split() == "key 0.0 0.0 100.0 1".split()  # one video has no interval
    by_group = lines.index("accuracy by group (rows)")
    assert lines[by_group + 1].split() == "1 frame 2 frames".split()
    assert lines[by_group + 2].startswith("none") and "75.0 [" in lines[by_group + 2]
    assert "] (4)" in lines[by_group + 2] and lines[by_group + 3].split() == "key 0.0 (1) -".split()
    by_event = lines.index("accuracy by event (rows)")
    assert lines[by_event + 1].split() == ["grow", "spin"]
    assert lines[-2:] == ["2 rows left out: no event to name", f"5 rows left out under key: {NO_KEY}"]


def test_questions_about_text_alone_are_independent_of_one_another():
    """Their interval is that of as many videos; they are not all about one."""
    texts = [dataclasses.replace(clip, video="") for clip in CLIPS]
    alone, shown = (results(predictions("none", HALF_RIGHT), clips=clips) for clips in (texts, CLIPS))
    for own in (alone, shown):
        assert own["controls"]["none"]["videos"] == len(CLIPS)
    metrics = [own["controls"]["none"]["metrics"]["accuracy"]["micro"] for own in (alone, shown)]
    assert metrics[0] == metrics[1] and metrics[0]["low"] < 0.5 < metrics[0]["high"]


def test_many_groups_are_lines_of_their_own():
    """Without intervals, for which there would be no room."""
    clips = [dataclasses.replace(clip, extra=clip.extra | {"group": f"group {clip.id}"}) for clip in CLIPS]
    lines = format_results(results(predictions("none", HALF_RIGHT), clips=clips)).splitlines()
    assert "group c0  100.0 (1)" in lines and "group c5    0.0 (1)" in lines


@pytest.mark.parametrize(("missing", "rows"), [("apart", 5), ("wrong", 6)])
def test_unusable_videos_are_counted(missing, rows):
    faulty = [Prediction("c0", control, False, fault="v0.mp4: broken") for control in ("none", "blind")]
    every = [*faulty, *predictions("none", RIGHT)[1:], *predictions("blind", RIGHT)[1:]]
    got = results(every, missing=missing)
    assert got["unusable"] == {"v0.mp4: broken": 1}
    for scores in got["controls"].values():
        assert scores["rows"] == rows
        assert scores["metrics"]["accuracy"]["micro"]["mean"] == 5 / rows
    counted = "not counted" if missing == "apart" else "counted as wrong"
    assert f"1 rows {counted}: v0.mp4: broken" in format_results(got)
    with pytest.raises(UserError, match="no row was answered: v0.mp4: broken"):
        results(faulty[:1])


def test_difference_to_other_results(tmp_path, half_right):
    file = tmp_path / "results.json"
    file.write_text(json.dumps(half_right))
    got = compare(results(predictions("none", RIGHT)), file)
    gain = got["against"]["controls"]["none"]
    assert (gain["rows"], gain["unmatched"], gain["metrics"]["accuracy"]["mean"]) == (6, 0, 0.5)
    lines = format_results(got).splitlines()
    assert "minus m on the same rows, in points [95 % interval]" in lines and "accuracy +50.0 [+" in lines[-1]
    other_clips = half_right | {"request": half_right["request"] | {"rows": "another"}}
    file.write_text(json.dumps(other_clips))
    got = compare(results(predictions("none", RIGHT)), file)
    assert "minus m on rows of the same ids, not all of which have" in format_results(got)
    for content, message in (
        ("{}", "not a results.json"),
        (json.dumps(half_right).replace('"events"', '"mlvu"'), "it is of mlvu, not of events"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            compare(half_right, file)
    with pytest.raises(UserError, match="No such file"):
        compare(half_right, tmp_path / "none.json")


def test_a_page_holds_tables_and_rows(tmp_path, half_right):
    """Both groupings, wrong and right rows, hostile text escaped; no frames of a missing video."""
    other_request = [Prediction("c0", "reverse", False, "not of this request")]
    write_page(tmp_path / "results.html", half_right, CLIPS, predictions("none", HALF_RIGHT) + other_request)
    html = (tmp_path / "results.html").read_text()
    assert "By group: accuracy" in html and "By event: accuracy" in html and html.count('"sample"') == 6
    assert "http" not in html and "<script" not in html and "&lt;script&gt;" in html
    assert "It spins and grows." in html and "not of this request" not in html and "data:image" not in html


def test_a_page_shows_the_part_that_a_look_sees(tmp_path, half_right):
    path = str(write(tmp_path / "a.mp4", greys(40), rate=8))
    seen = dataclasses.replace(CLIPS[0], video=path, looks=(Look(2.0, 4.0, pixels=784),))
    write_page(tmp_path / "a.html", half_right, [seen, *CLIPS[1:]], predictions("none", HALF_RIGHT))
    html = (tmp_path / "a.html").read_text()
    assert [f"frame at {at:.2f} s" in html for at in (0, 1.875, 2, 3.875, 4)] == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_tasks_with_scores_of_their_own(tmp_path):
    """Each task's scores are means over its own rows, also under a control that has no row of the task whose
    score leads."""
    boxes = ((0.0, 0.0, 0.5, 0.5),) * 2
    tracking = Clip("t", "t.mp4", "?", "", task="tracking", boxes=boxes, extra={"group": "tracking"})
    options, spans = ("spins", "grows"), ((0.0, 1.0),)
    choices = [
        Clip(
            f"c{i}",
            f"c{i}.mp4",
            "?",
            "A",
            task="choice",
            choices=options,
            spans=spans,
            extra={"group": "choice"},
        )
        for i in range(2)
    ]
    answers = {
        "t": "[[0, 0, 0.5, 0.5], [0, 0, 0.25, 0.5]]",
        "c0": "A <glue>[(0, 0.5)]</glue>",
        "c1": "B <glue>[(0, 1)]</glue>",
    }
    given = [Prediction(name, "none", False, text) for name, text in answers.items()]
    given += [Prediction("t", "key", False, fault=NO_KEY), *(x._replace(control="key") for x in given[1:])]
    request = {"benchmark": "clips", "model": "m", "step": 3, "weights": "w", "dtype": "float32"}
    request["shown"] = {"frames": 8, "fps": 0.0, "max_frames": 8}
    clips = [tracking, *choices]
    got = make_results(request, BENCHMARKS["clips"], clips, given, {}, missing="apart")
    for control, own in (("none", {"AO": 0.5, "success@0.5": 1, "box IoU": 0.75}), ("key", {})):
        metrics = got["controls"][control]["metrics"]
        expected = own | {"accuracy": 1 / 2, "evidence IoU": 3 / 4, "grounded@0.5": 1 / 2}
        assert {name: x["micro"]["mean"] for name, x in metrics.items()} == expected
    lines = format_results(got).splitlines()
    assert lines[3].split()[:4] == ["key", "-", "-", "-"] and lines[3].split()[-3:] == ["-", "100.0", "2"]
    write_page(tmp_path / "page.html", got, clips, given)
