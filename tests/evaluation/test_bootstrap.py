"""Means against numbers by hand, intervals against known sampling theory."""

import numpy as np
import pytest

from vpjax.evaluation.bootstrap import Scored, difference, summary


def rows(values, *, videos=None, groups=None, control="none"):
    videos = videos or [f"v{i}" for i in range(len(values))]
    groups = groups or ["g"] * len(values)
    return [
        Scored(f"r{i}", video, group, control, value > 0, {"accuracy": float(value)})
        for i, (value, video, group) in enumerate(zip(values, videos, groups, strict=True))
    ]


def test_micro_and_macro_by_hand():
    got = summary(rows([1, 1, 0, 1, 0, 0], groups=["a", "a", "a", "a", "b", "b"], videos=list("uvwxyz")))
    assert (got["rows"], got["videos"], got["readable"]) == (6, 6, 0.5)
    accuracy = got["metrics"]["accuracy"]
    assert accuracy["micro"]["mean"] == 0.5 and accuracy["macro"]["mean"] == pytest.approx((3 / 4 + 0) / 2)
    assert {g: (x["mean"], x["rows"]) for g, x in accuracy["groups"].items()} == {"a": (0.75, 4), "b": (0, 2)}


def width(estimate):
    return estimate["high"] - estimate["low"]


def test_an_interval_is_that_of_the_mean():
    """For one answer a video, about 1.96 standard errors to either side (the central limit theorem); 2,000
    resamples give the width to a few per cent."""
    values = np.random.default_rng(1).random(400) < 0.3
    got = summary(rows(values))["metrics"]["accuracy"]["micro"]
    expected = 2 * 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / 400)
    assert width(got) == pytest.approx(expected, rel=0.08)
    assert got["low"] < values.mean() < got["high"]


def test_answers_about_one_video_are_one_draw():
    """Four equal answers a video: as wide as one answer a video, twice as wide as if all were independent."""
    values = np.random.default_rng(2).random(100) < 0.5
    alone = summary(rows(values))["metrics"]["accuracy"]["micro"]
    four = rows(np.repeat(values, 4), videos=[f"v{i // 4}" for i in range(400)])
    together = summary(four)["metrics"]["accuracy"]["micro"]
    independent = summary(rows(np.repeat(values, 4)))["metrics"]["accuracy"]["micro"]
    assert width(together) == pytest.approx(width(alone), rel=0.08)
    assert width(together) == pytest.approx(2 * width(independent), rel=0.1)


def test_metrics_have_rows_of_their_own():
    """A metric's mean and interval are those of the rows that have it alone; so are its differences."""
    values = np.random.default_rng(4).random(200) < 0.4
    every = rows(values)
    some = [
        row._replace(values=row.values | {"on even rows": row.values["accuracy"]}) if i % 2 == 0 else row
        for i, row in enumerate(every)
    ]
    got, even = summary(some)["metrics"], summary(every[::2])["metrics"]["accuracy"]
    assert got["accuracy"] == summary(every)["metrics"]["accuracy"] and got["on even rows"] == even
    assert summary(some[1::2])["metrics"].keys() == {"accuracy"}
    zero = [row._replace(values=dict.fromkeys(row.values, 0.0)) for row in some]
    assert difference(some, zero)["metrics"]["on even rows"] == even["micro"]
    assert difference(some, every)["metrics"].keys() == {"accuracy"}


def test_rows_without_a_second_group_are_in_none():
    grouped = [row._replace(second_group="ab  "[i].strip()) for i, row in enumerate(rows([1, 0, 1, 1]))]
    accuracy = summary(grouped)["metrics"]["accuracy"]
    assert accuracy["micro"]["mean"] == 0.75
    assert {g: x["mean"] for g, x in accuracy["second_groups"].items()} == {"a": 1, "b": 0}


def test_one_video_has_no_interval():
    got = summary(rows([1, 0], videos=["v", "v"]))["metrics"]["accuracy"]["micro"]
    assert got == {"mean": 0.5, "low": None, "high": None}


@pytest.mark.parametrize("value", [1, 0])
def test_the_best_and_the_worst_have_an_interval(value):
    """Clopper and Pearson's for 4 of 4: the share at which 4 of 4 has a probability of 2.5 %."""
    got = summary(rows([value] * 4))["metrics"]["accuracy"]
    ends = sorted([value, value + (1 - 2 * value) * (1 - 0.025 ** (1 / 4))])
    for estimate in (got["micro"], got["macro"], got["groups"]["g"]):
        assert [estimate["low"], estimate["high"]] == pytest.approx(ends)
    assert ends == pytest.approx([0.398, 1] if value else [0, 0.602], abs=1e-3)
    # Four answers about one video are one draw, and eight videos in two groups as good as eight in one.
    again = summary(rows([value] * 16, videos=[f"v{i // 4}" for i in range(16)]))["metrics"]["accuracy"]
    assert again["micro"] == got["micro"]
    eight = summary(rows([value] * 8, groups=list("aaaabbbb")))["metrics"]["accuracy"]
    assert eight["macro"] == pytest.approx(eight["micro"]) and width(eight["micro"]) < width(got["micro"])
    assert width(eight["groups"]["a"]) == pytest.approx(width(got["micro"]))


def test_such_an_interval_covers_the_truth():
    """At a share of .95, all of 20 videos are right in .36 of the draws. The bootstrap alone would then be
    certain of 1."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        values = rng.random(20) < 0.95
        got = summary(rows(values))["metrics"]["accuracy"]["micro"]
        if values.all():
            assert got["low"] < 0.95 < got["high"]
    # A difference of all answers lies between -1 and 1.
    gain = difference(rows([1] * 4), rows([0] * 4))["metrics"]["accuracy"]
    assert (gain["low"], gain["high"]) == pytest.approx((1 - 2 * 0.602, 1), abs=1e-3)


def test_a_paired_difference_is_narrower():
    rng = np.random.default_rng(3)
    theirs = rng.random(300) < 0.5
    ours = theirs.copy()
    ours[:30] = True  # 30 answers mended at most, all others the same
    got = difference(rows(ours), rows(theirs))
    gain = got["metrics"]["accuracy"]
    assert gain["mean"] == pytest.approx(ours.mean() - theirs.mean())
    assert gain["low"] > 0  # while the two intervals overlap:
    apart = [summary(rows(x))["metrics"]["accuracy"]["micro"] for x in (ours, theirs)]
    assert apart[0]["low"] < apart[1]["high"]
    same = difference(rows(ours), rows(ours))["metrics"]["accuracy"]
    assert same == {"mean": 0, "low": 0, "high": 0}


def test_rows_of_one_side_only_are_counted():
    got = difference(rows([1, 1, 1]), rows([0, 0]))
    assert (got["rows"], got["unmatched"], got["metrics"]["accuracy"]["mean"]) == (2, 1, 1)
    assert difference(rows([1]), [])["rows"] == 0
