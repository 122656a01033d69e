"""Scores of built-in clips whose colour suggests an event, or which show none, against counts by hand."""

import json
import re

import numpy as np
import pytest

from vpjax.evaluation.ask import Prediction
from vpjax.evaluation.benchmarks import BENCHMARKS
from vpjax.evaluation.bootstrap import Scored
from vpjax.evaluation.event_scores import OF_A_PRIOR, OF_INVENTION, seen
from vpjax.evaluation.page import write_page
from vpjax.evaluation.results import compare, format_results, make_results
from vpjax.events.drawing import COLOURS, EVENTS
from vpjax.events.text import NOTHING, PHRASES
from vpjax.types import Clip

COLOUR_OF = dict(zip(EVENTS, COLOURS, strict=True))
SAYS = {event: f"It {phrases[0]}." for event, phrases in PHRASES.items()} | {"": f"It {NOTHING[0]}."}


def clip(number, event, suggested):
    """A clip that shows ``event`` and whose colour predicts the event ``suggested``."""
    extra = dict(event=event, group="group", colour=COLOUR_OF[suggested])
    return Clip(f"c{number}", f"v{number}.mp4", "What?", SAYS[event], extra=extra)


def results(clips, answers, *, ranked=False, prior=0.9):
    """answers: by control, an event, "" or a text for each clip."""
    request = dict(benchmark="events", model="m", step=1, weights="w", dtype="float32", prior=prior)
    request["shown"] = dict(frames=8, fps=0.0, max_frames=8)
    predictions = [
        Prediction(clip.id, control, ranked, SAYS.get(answer, answer))
        for control, given in answers.items()
        for clip, answer in zip(clips, given, strict=True)
    ]
    return make_results(request, BENCHMARKS["events"], clips, predictions, {}, missing="apart")


def means(results, control="none"):
    return {name: x["micro"]["mean"] for name, x in results["controls"][control]["metrics"].items()}


# Shown, suggested by the colour, named on the whole video.
ROWS = [
    ("spin", "spin", "spin"),
    ("spin", "grow", "grow"),
    ("spin", "jump", "spin"),
    ("grow", "spin", "flash"),
    ("grow", "spin", ""),
    ("", "spin", "spin"),
    ("", "grow", ""),
    ("", "grow", "It grows and spins."),
]
CLIPS = [clip(number, shown, suggested) for number, (shown, suggested, _) in enumerate(ROWS)]
NAMED = [named for _, _, named in ROWS]


def test_by_hand():
    got = means(results(CLIPS, {"none": NAMED}))
    # Spin: named in 2 of its 3 clips and in 2 of the 5 others. Grow: in none of its 2, and in 2 of the 6.
    seen = ((2 / 3 - 2 / 5) + (0 - 2 / 6)) / 2
    expected = {"accuracy": 3 / 8, "against": 1 / 4, "shortcut": 1 / 4, "seen": seen, "false alarms": 2 / 3}
    assert got == pytest.approx(expected)


def test_extremes():
    """A model that sees has ``seen`` 1 and no false alarm, one that follows the colour has the shortcut, and
    one that always says the same has seen nothing."""
    rows = 12 * ROWS  # so many that no resample lacks an event
    clips = [clip(number, shown, suggested) for number, (shown, suggested, _) in enumerate(rows)]
    given = {
        "none": [row[0] for row in rows],
        "reverse": [row[1] for row in rows],
        "single": [""] * len(rows),
        "shuffle": ["spin"] * len(rows),
    }
    got = results(clips, given)
    assert means(got) == {"accuracy": 1, "against": 1, "shortcut": 0, "false alarms": 0, "seen": 1}
    seeing = got["controls"]["none"]["metrics"]["seen"]["micro"]
    assert seeing["low"] < 1 == seeing["high"]
    colour, silent, constant = (means(got, control) for control in ("reverse", "single", "shuffle"))
    assert (colour["against"], colour["shortcut"], colour["false alarms"]) == (0, 1, 1)
    assert (silent["seen"], silent["false alarms"], silent["accuracy"]) == (0, 0, 3 / 8)
    assert (constant["seen"], constant["false alarms"]) == (0, 1)


def test_what_hidden_events_are_named():
    """Under the controls that hide the event, every named event is invented, for whichever clip."""
    got = results(CLIPS, {"none": NAMED, "key": NAMED, "blind": [""] * 8})
    assert means(got, "key")["invented"] == 6 / 8 and means(got, "blind")["invented"] == 0
    assert "invented" not in means(got)
    ranked = results(CLIPS[:5], {"key": NAMED[:5]}, ranked=True)  # a choice among events
    assert means(ranked, "key, ranked").keys() == {"accuracy", "against", "shortcut", "seen"}


def test_seen_of_random_answers():
    """Against its definition, on clips among which some events are rarer than others. Chance is 0, in 19
    of 20 intervals, and so in less than 3 of 5 with a probability of 1 in 1,000."""
    contain = 0
    for seed in range(5):
        shown, named = np.random.default_rng(seed).choice(["", "", *EVENTS, "spin", "spin"], (2, 300))
        differences = []
        for event in EVENTS:
            names_it = named == event
            differences.append(names_it[shown == event].mean() - names_it[shown != event].mean())
        got = seen(
            [
                Scored(f"c{i}", f"v{i}", "", "none", True, {}, shown[i], (named[i],) if named[i] else ())
                for i in range(300)
            ]
        )
        assert got["mean"] == pytest.approx(np.mean(differences))
        contain += got["low"] < 0 < got["high"]
    assert contain >= 3


def test_a_missing_answer_is_wrong_and_names_nothing():
    """Under ``missing="wrong"``: wrong about clips with and without an event, but neither a false alarm nor
    the lack of one."""
    request = dict(benchmark="events", model="m", step=1, weights="w", dtype="float32")
    broken = [Prediction(clip.id, "none", False, fault="broken") for clip in (CLIPS[0], CLIPS[5])]
    answers = [
        Prediction(clip.id, "none", False, SAYS[clip.extra["event"]]) for clip in CLIPS[3:5] + CLIPS[6:7]
    ]
    got = make_results(request, BENCHMARKS["events"], CLIPS, broken + answers, {}, missing="wrong")
    expected = {"accuracy": 3 / 5, "against": 1, "shortcut": 0, "seen": 1, "false alarms": 0}
    assert means(got) == pytest.approx(expected)
    assert got["controls"]["none"]["readable"] == 3 / 5
    for row in got["rows"][:2]:
        assert row["values"] == {"accuracy": 0} and row["named"] is None


def columns(results):
    """The headings of the table of results."""
    return re.split("  +", format_results(results).splitlines()[1].strip())


def test_columns_come_where_they_tell_something(tmp_path):
    """Without a prior and with an event in every clip, the table has none of them."""
    with_event = [clip for clip in CLIPS if clip.extra["event"]]
    named = NAMED[: len(with_event)]
    last = ["mean of groups", "readable", "rows"]
    for clips, given, prior, expected in (
        (with_event, {"none": named, "key": named}, 0, []),
        (CLIPS, {"none": NAMED}, 0, ["seen", "false alarms"]),
        (with_event, {"none": named}, 0.9, ["against", "shortcut", "seen"]),
        (CLIPS, {"none": NAMED, "key": NAMED}, 0.9, [*OF_A_PRIOR, *OF_INVENTION]),
    ):
        assert columns(results(clips, given, prior=prior)) == ["accuracy", *expected, *last]
    got = results(CLIPS, {"none": NAMED, "key": NAMED})
    none = next(line for line in format_results(got).splitlines() if line.startswith("none"))
    assert "  -  " in none  # nothing can be invented on the whole video
    write_page(tmp_path / "page.html", got, CLIPS, [])
    assert "<th>invented</th>" in (tmp_path / "page.html").read_text()


def test_paired_differences(tmp_path):
    """Of every metric, on the same rows."""
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results(CLIPS, {"none": NAMED})))
    ours = results(CLIPS, {"none": [row[0] for row in ROWS]})
    gains = compare(ours, file)["against"]["controls"]["none"]["metrics"]
    theirs = json.loads(file.read_text())
    for name, gain in gains.items():
        assert gain["mean"] == pytest.approx(means(ours)[name] - means(theirs)[name]), name
    assert gains.keys() == means(ours).keys() and gains["seen"]["low"] > 0
