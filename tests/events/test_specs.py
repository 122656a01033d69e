"""Specs of the event clips: what can be drawn, and the names of fields that cannot."""

import math

import pytest

from vpjax.events.clips import EventSpec, describe
from vpjax.events.drawing import draw
from vpjax.types import UserError


@pytest.mark.parametrize(
    "wrong",
    [
        dict(sizes=()),
        dict(sizes=((56, 57),)),
        dict(sizes=(56, 56)),
        dict(seed=-1),
        dict(seconds=(0.9, 2.0)),
        dict(seconds=(2.0, 1.0)),
        dict(lengths=()),
        dict(lengths=(0, 1)),
        dict(rates=()),
        dict(rates=(0,)),
        dict(details=(2, 1)),
        dict(details=(0, 9)),
        dict(radius=(0.2, 0.1)),
        dict(noise=-1.0),
        dict(flicker=1.5),
        dict(crf=60),
        dict(prior=2.0),
        dict(eventless=-0.1),
        dict(texture=-1.0),
        dict(camera=-0.1),
        dict(clutter=-1),
        dict(distractors=-1),
        dict(blur=-0.1),
        dict(rough=-0.1),
        dict(paired=True, eventless=0.5),
        dict(paired=True, prior=0.5),
        dict(choice=-1.0),
        dict(tracking=-1.0),
        dict(caption=0.0),
    ],
    ids=str,
)
def test_specs_that_cannot_be_drawn_are_refused(wrong):
    with pytest.raises(
        UserError, match="events: no task" if "caption" in wrong else rf"events\.{next(iter(wrong))} "
    ):
        EventSpec(**wrong)


def test_other_sizes_can_be_drawn():
    spec = EventSpec(sizes=((28, 30),), seconds=(5 / 8, 5 / 8), lengths=(1,), order=1.0, caption=0.0)
    _, scene = describe(spec, "train", 0)
    assert draw(scene, noise=0.0).shape == (8, 28, 30, 3)  # no shorter than two events and three margins
    assert [event.start for event in scene.events] == [2, 5]


@pytest.mark.parametrize("field", ["sizes", "seconds", "rates", "lengths", "details", "radius", "travel"])
@pytest.mark.parametrize("value", [(), ("x", "y"), (math.nan, math.nan), (4.0, 3.0, 2.0, 1.0, -1.0)])
def test_lists_that_cannot_be_drawn_from_are_named(field, value):
    with pytest.raises(UserError, match=rf"events\.{field} is .* and must be"):
        EventSpec(**{field: value})


@pytest.mark.parametrize("field", ["noise", "blur", "rough", "caption"])
def test_numbers_that_cannot_be_drawn_from_are_named(field):
    with pytest.raises(UserError, match=rf"events\.{field} is inf and must be"):
        EventSpec(**{field: math.inf})
