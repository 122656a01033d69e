"""``events.long``: a long clip shows its event in its span and nowhere else."""

import dataclasses

import numpy as np
import pytest

from vpjax.data.video import Sampling, read_frames
from vpjax.events.drawing import EVENTS, Event
from vpjax.events.long import LongSpec, describe_long, draw_long, make_long_clips
from vpjax.events.text import events_named
from vpjax.types import UserError

SPEC = LongSpec(frames=96, noise=0.0)


@pytest.mark.parametrize("index", range(len(EVENTS)))
def test_the_event_is_seen_in_its_span_and_nowhere_else(index):
    clip, scene = describe_long(SPEC, "train", index)
    start, end = (round(SPEC.fps * second) for second in clip.spans[0])
    assert (start, end) == (scene.event.start, scene.event.end)
    # The same scene, whose event has no length: all distractors stay where they are.
    quiet = dataclasses.replace(scene, event=Event(scene.event.kind, 0, 0))
    differs = (draw_long(scene) != draw_long(quiet)).any(axis=(1, 2, 3))
    assert np.flatnonzero(differs).tolist() == list(range(start, end))
    assert events_named(clip.answer) == (EVENTS[index],)
    assert events_named(clip.degraded_answer) == () == events_named(clip.question)


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
    with pytest.raises(UserError, match="no task"):
        LongSpec(caption=0.0)
