"""``picking``: frames are read by what they show, wherever it stands."""

import numpy as np
import pytest

from vpjax.data.picking import BLOCK, changed_most, merged

STARTS = np.arange(0, 60, 3)  # 20 parts of 3 frames: more than one block


def still(frames=60):
    """A picture with some noise, frame by frame."""
    rng = np.random.default_rng(0)
    return rng.integers(95, 106, (frames, 28, 28, 3), np.uint8)


@pytest.mark.parametrize("number", range(1, 60, 7))
def test_a_frame_that_differs_is_read_wherever_it_stands(number):
    frames = still()
    frames[number, 5:12, 5:12] = 250
    numbers, kept = changed_most(iter(frames), STARTS, 60)
    assert number in numbers
    assert np.array_equal(np.stack(kept), frames[numbers])
    parts = np.append(STARTS, 60)
    assert ((parts[:-1] <= numbers) & (numbers < parts[1:])).all()


def test_a_change_of_the_light_counts_less_than_one_of_the_picture():
    frames = still()
    frames[30] = (frames[30] * 0.7).astype(np.uint8)
    frames[31, 5:12, 5:12] = 250
    assert 31 in changed_most(iter(frames), STARTS, 60)[0]


def test_no_frame_is_left_out_where_each_part_has_one():
    frames = still(BLOCK + 3)
    numbers, kept = changed_most(iter(frames), np.arange(len(frames)), len(frames))
    assert np.array_equal(numbers, np.arange(len(frames)))
    assert np.array_equal(np.stack(kept), frames)


@pytest.mark.parametrize("count", [1, 2, 7, 20, 59, 60])
def test_a_still_video_is_merged_into_its_equal_parts(count):
    numbers = merged(iter(np.repeat(still(1), 60, axis=0)), count)
    edges = np.linspace(0, 60, count + 1)
    assert len(numbers) == count
    assert ((edges[:-1] - 0.5 <= numbers) & (numbers < edges[1:] + 0.5)).all()  # edges are whole frames
    assert (np.diff(numbers) > 0).all()


def test_changes_divide_a_video_into_one_run_more():
    """Noise is no change, nor is the light; what lasts one frame is a run of its own."""
    frames = still()
    changes = [9, 10, 31, 52]
    frames[9, 5:12, 5:12] = 250
    frames[31:52, 14:, 14:] = 0
    frames[40] = (frames[40] * 0.7).astype(np.uint8)
    assert merged(iter(frames), len(changes) + 1).tolist() == [4, 9, 20, 41, 55]
    # With more frames to read the longest runs are divided, and no frame stands for both sides of a change.
    numbers = merged(iter(frames), 20)
    assert len(set(numbers)) == 20 and 9 in numbers
    assert set(np.searchsorted(changes, numbers, "right")) == {0, 1, 2, 3, 4}
    # With fewer, the smallest changes are no longer seen as such.
    assert merged(iter(frames), 3).tolist() == [15, 41, 55]
