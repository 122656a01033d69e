"""``events.long``: a long clip shows its event in its span and nowhere else."""

import dataclasses

import numpy as np
import pytest

from vpjax.data.video import Sampling, read_frames, resize
from vpjax.events.drawing import EVENTS, Event
from vpjax.events.long import HATCHINGS, LongSpec, describe_long, draw_long, lines_of, make_long_clips
from vpjax.events.text import caption_variants, events_named
from vpjax.types import UserError

SPEC = LongSpec(frames=96, noise=0.0)
HATCHED = dataclasses.replace(SPEC, hatched=1.0)
CASES = [(SPEC, i, kind) for i, kind in enumerate(EVENTS)]
CASES += [(HATCHED, i, kind) for i, kind in enumerate(HATCHINGS)]


@pytest.mark.parametrize(("spec", "index", "kind"), CASES)
def test_the_event_is_seen_in_its_span_and_nowhere_else(spec, index, kind):
    clip, scene = describe_long(spec, "train", index)
    start, end = (round(SPEC.fps * second) for second in clip.spans[0])
    assert (start, end) == (scene.event.start, scene.event.end)
    # The same scene, whose event has no length: all distractors stay where they are.
    quiet = dataclasses.replace(scene, event=Event(scene.event.kind, 0, 0))
    differs = (draw_long(scene) != draw_long(quiet)).any(axis=(1, 2, 3))
    assert np.flatnonzero(differs).tolist() == list(range(start, end))
    assert events_named(clip.answer) == (kind,)
    assert events_named(clip.degraded_answer) == () == events_named(clip.question)


def test_few_pixels_show_that_a_shape_is_hatched_and_not_how():
    """Halved, the lines average to the same grey: exactly inside the shape, for the filter weighs both of a
    pair alike, and nearly at its edges, where what a pair is weighed against is another shape or none."""
    _, scene = describe_long(HATCHED, "train", 0)
    event = Event("plain", 40, 1)

    def drawn(kind):
        own = dataclasses.replace(scene, event=dataclasses.replace(event, kind=kind))
        return draw_long(own)[40]

    whole = {kind: drawn(kind).astype(float) for kind in HATCHINGS}
    few = {kind: resize(drawn(kind), (28, 28)).astype(float) for kind in HATCHINGS}
    quiet = dataclasses.replace(scene, event=Event("plain", 0, 0))
    before = resize(draw_long(quiet)[40], (28, 28)).astype(float)
    seen = np.abs(few["plain"] - before).mean()
    for kind in HATCHINGS[1:]:
        assert np.abs(few[kind] - few["plain"]).mean() < 0.1 * seen
        assert np.abs(whole[kind] - whole["plain"]).mean() > seen
        assert np.ptp(lines_of(kind, (56, 56)).reshape(28, 2, 28, 2).mean(axis=(1, 3))) == 0


def test_hatched_clips_are_a_share_and_the_others_stay_the_same():
    mixed = dataclasses.replace(SPEC, hatched=0.25)
    pairs = [(describe_long(mixed, "train", i)[0], describe_long(SPEC, "train", i)[0]) for i in range(400)]
    hatched = [ours for ours, _ in pairs if ours.extra["event"] in HATCHINGS]
    assert 70 < len(hatched) < 130  # 100, and three standard deviations
    assert all(ours == theirs for ours, theirs in pairs if ours not in hatched)
    variants = caption_variants(hatched[0].answer)
    assert [events_named(variant) for variant in variants] == [(kind,) for kind in HATCHINGS]


def test_what_distracts_neither_begins_nor_ends_during_the_event():
    for index in range(200):
        _, scene = describe_long(
            LongSpec(frames=64, passing=120.0, flickers=60.0, lengths=(4,)), "train", index
        )
        event = range(scene.event.start, scene.event.end)
        passing = [x for x in scene.bystanders if x.length <= 2]
        assert not any(x.start in event or x.start + x.length in event for x in passing)
        assert not {frame for frame, _ in scene.flickers} & set(event)


def test_files_hold_the_clips(tmp_path):
    spec = dataclasses.replace(SPEC, crf=0, choice=1.0, grounding=1.0)
    files = make_long_clips(spec, tmp_path, {"heldout": 6})
    first = files["heldout"].read_bytes()
    clip, scene = describe_long(spec, "heldout", 0)
    video = read_frames(
        tmp_path / spec.key / clip.video, Sampling(spec.frames, min_pixels=1, max_pixels=56 * 56)
    )
    # Lossless but for the colours, which H.264 stores at half the resolution.
    assert np.abs(video.frames.astype(int) - draw_long(scene)).mean() < 2.0
    assert make_long_clips(spec, tmp_path, {"heldout": 6})["heldout"].read_bytes() == first
    assert {describe_long(spec, "heldout", index)[0].task for index in range(40)} == {
        "caption",
        "choice",
        "grounding",
    }


def test_a_spec_that_cannot_be_drawn_is_refused():
    with pytest.raises(UserError, match="long.frames"):
        LongSpec(frames=4)
    for field in ("size", "lengths", "radius"):
        for value in ((), ("x", "y"), (float("nan"), 1.0)):
            with pytest.raises(UserError, match=rf"long\.{field} is .* and must be"):
                LongSpec(**{field: value})
    with pytest.raises(UserError, match="no task"):
        LongSpec(caption=0.0)
