"""What makes key frames hard to find: each field of the spec changes its own part of a clip and no other."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from benchmarks.keyframes import LADDER
from vpjax.events.clips import EventSpec, describe
from vpjax.events.drawing import EVENTS, Bystander, Event, blurred, draw

PLAIN = EventSpec(choice=1, order=1, grounding=1)
HARD = EventSpec(**LADDER[-1])
# Each field, and the only field of a scene that it changes.
PARTS = dict(texture="texture", camera="view", clutter="bystanders", distractors="bystanders", blur="blur")
VALUES = dict(texture=10.0, camera=0.1, clutter=3, distractors=2, blur=0.02, rough=0.2)


def pairs(count=60, split="train", **fields):
    """Plain clips and their scenes, each beside the one with other ``fields``."""
    other = dataclasses.replace(PLAIN, **fields)
    for index in range(count):
        yield (*describe(PLAIN, split, index), *describe(other, split, index))


def frames(scene, noise=0.0):
    return draw(scene, noise=noise).astype(np.float32)


@pytest.mark.parametrize("field", PARTS)
def test_a_field_changes_one_part_of_the_scene(field):
    """And no word or time of the clip."""
    for clip, scene, other_clip, other in pairs(**{field: VALUES[field]}):
        assert other_clip == clip
        plain = getattr(scene, PARTS[field])
        assert getattr(other, PARTS[field]) != plain
        assert dataclasses.replace(other, **{PARTS[field]: plain}) == scene


def test_a_moved_camera_is_a_shape_moved_the_other_way():
    _, scene = describe(EventSpec(flicker=0.0), "train", 1)
    seen = dataclasses.replace(scene, view=((0.1, -0.05),) * scene.frames)
    x, y = scene.centre
    expected = dataclasses.replace(scene, centre=(x - 0.1, y + 0.05))
    for kind in set(EVENTS) - {"jump"}:  # whose way depends on the place
        events = (Event(kind, 4, 4),)
        moved, same = (frames(dataclasses.replace(s, events=events)) for s in (seen, expected))
        assert np.abs(moved - same).max() <= 1  # grey level, by rounding


def test_the_background_moves_with_the_camera():
    """A camera that is three pixels further shows the same texture and clutter three columns to the left."""
    _, scene = describe(EventSpec(texture=10.0, clutter=3, flicker=0.0), "train", 0)
    still = dataclasses.replace(scene, events=(), travel=0.0)
    moved = dataclasses.replace(still, view=((3 / scene.width, 0.0),) * scene.frames)
    assert np.abs(frames(moved)[:, :, :-3] - frames(still)[:, :, 3:]).max() <= 1  # grey level
    assert frames(still)[0, :, :, 0].std() > 8


def test_a_camera_pans_and_shakes_within_its_way():
    for _, _, _, scene in pairs(camera=0.2):
        path = np.array(scene.view)
        assert path.shape == (scene.frames, 2) and np.abs(path).max() <= 0.2 * (0.5 + 0.3)
        assert len(np.unique(np.diff(path, axis=0), axis=0)) == scene.frames - 1  # no two steps are alike


def test_places_in_captions_are_those_on_the_screen():
    spec = EventSpec(camera=0.25, details=(5, 5), flicker=0.0)
    for index in range(60):
        clip, scene = describe(spec, "heldout", index)
        shown = frames(scene).astype(int)
        places = re.search(
            r"in the (\w+ \w+) quarter of the picture, at the end in the (\w+ \w+)", clip.answer
        )
        for frame, place in ((shown[0], places[1]), (shown[-1], places[2])):
            y, x = (np.mean(axis) for axis in np.nonzero(np.ptp(frame, axis=-1) > 60))
            if min(abs(x - 28), abs(y - 28)) > 3:  # the middle of what is seen of the shape is known so well
                assert place == f"{'upper' if y < 28 else 'lower'} {'left' if x < 28 else 'right'}"


def test_clutter_is_grey_and_behind_the_shape():
    for _, scene, _, other in pairs(20, clutter=6):
        alone, among = frames(scene), frames(other)
        dark, bright = (frames(dataclasses.replace(scene, background=level)) for level in (0, 200))
        covered = (dark == bright).all(-1)  # by the shape, wholly
        changed = (among != alone).any(-1)
        assert covered.any() and changed.any() and not changed[covered].any()
        assert np.ptp(among[changed & (np.ptp(alone, axis=-1) == 0)], axis=-1).max() <= 1  # by rounding


@pytest.mark.parametrize("rate", [1, 5, 8, 10, 12, 30])
def test_distractors_come_when_no_event_happens(rate):
    """Also in the shortest clips, at every frame rate, and beside two events."""
    least = (2 * 2 + 4) / 8
    for tasks in (dict(), dict(order=1.0, caption=0.0)):
        spec = EventSpec(rates=(rate,), seconds=(least, 2.0), distractors=3, **tasks)
        for index in range(60):
            _, scene = describe(spec, "train", index)
            assert len(scene.bystanders) == 3
            for other, event in itertools.product(scene.bystanders, scene.events):
                assert other.start + other.length <= event.start or event.end <= other.start
                assert 0 <= other.start and other.start + other.length <= scene.frames
                assert other.length in (-(-rate // 8), -(-rate // 4))  # one or two eighths, whole frames


def test_distractors_change_their_own_frames_only():
    for _, scene, _, other in pairs(20, distractors=1):
        (distractor,) = other.bystanders
        changed = np.flatnonzero(np.abs(frames(other) - frames(scene)).max((1, 2, 3)) > 1)
        assert changed.tolist() == list(range(distractor.start, distractor.start + distractor.length))


def test_later_bystanders_hide_earlier_ones():
    _, scene = describe(EventSpec(), "train", 0)
    both = [Bystander("square", level, 0.1, (0.1, 0.1), (0.0, 0.0), 0, scene.frames) for level in (100, 200)]
    second = frames(dataclasses.replace(scene, bystanders=both[1:]))[:, 3:8, 3:8]
    np.testing.assert_array_equal(frames(dataclasses.replace(scene, bystanders=both))[:, 3:8, 3:8], second)


def test_blur_is_gaussian():
    """A point becomes a bell with the given spread and the same sum; an even picture stays as it is."""
    point = np.zeros((1, 61, 61, 1), np.float32)
    point[0, 30, 30] = 1
    for deviation in (0.8, 2.0, 4.0):
        bell = blurred(point, deviation)[0, :, :, 0]
        assert bell.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(bell, bell.T, atol=1e-7)
        spread = np.sqrt(np.sum(bell.sum(0) * (np.arange(61) - 30.0) ** 2))
        assert spread == pytest.approx(deviation, rel=0.02)  # it is cut off beyond three deviations
    even = np.full((2, 9, 12, 3), 77, np.float32)
    np.testing.assert_allclose(blurred(even, 3.0), even, rtol=1e-5)


def test_rough_spans_are_near_the_true_ones():
    """In the annotation of keywords only: what is shown, asked and right stays."""
    by, lengths = VALUES["rough"], []
    for clip, scene, other_clip, other in pairs(400, rough=by):
        assert other == scene and clip.extra["spans"] == clip.spans
        assert dataclasses.replace(other_clip, keywords=clip.keywords) == clip
        assert [keyword.text for keyword in other_clip.keywords] == [k.text for k in clip.keywords]
        for keyword, (true_start, true_end) in zip(other_clip.keywords, clip.spans, strict=True):
            ((start, end),) = keyword.spans
            assert 0 <= start and end <= scene.frames / scene.fps
            assert -2 * by <= start - true_start <= by and -by <= end - true_end <= 2 * by
            lengths.append(end - start - (true_end - true_start))
    assert min(lengths) >= -1e-9 and np.mean(lengths) == pytest.approx(by, abs=0.02)  # by / 2 at either end


@pytest.mark.slow
def test_events_stay_visible_at_the_top():
    """Each kind changes clearly more than the noise, in its own frames and in no other."""
    for index in range(len(EVENTS) * len(HARD.lengths)):
        clip, scene = describe(HARD, "heldout", index)
        without = dataclasses.replace(scene, events=())
        change = np.abs(frames(scene, HARD.noise) - frames(without, HARD.noise)).max(-1)
        ((start, end),) = clip.extra["spans"]
        inside = np.zeros(scene.frames, bool)
        inside[round(start * scene.fps) : round(end * scene.fps)] = True
        visible = (change > 40).sum((1, 2))  # pixels
        assert (visible[inside] > 25).all() and not visible[~inside].any(), (clip.answer, visible)
