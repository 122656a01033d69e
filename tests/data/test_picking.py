"""``picking``: of each part of a video, the frame that changes most is read, wherever it stands."""

import numpy as np
import pytest

from vpjax.data.picking import BLOCK, changed_most

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
