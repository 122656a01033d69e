"""Key slots from spans, and the laws of the sources made from them (docs/method.md, section 1)."""

import numpy as np
import pytest

from vpjax.data import keyframes as kf

TIMES = np.arange(16) / 8  # 16 frames at 8 fps, 8 slots of 2


def slots(*spans, times=TIMES, seconds=1 / 8):
    return np.flatnonzero(kf.slots_of(spans, times, seconds)).tolist()


def mask(text):
    """bool[J, S] of rows such as "..xx...."."""
    return np.array([[c == "x" for c in row] for row in text.split()])


def test_an_event_of_one_frame_marks_its_slot_only():
    for frame in range(16):
        assert slots((frame / 8, (frame + 1) / 8)) == [frame // 2]


def test_spans_become_slots():
    assert slots((0.25, 0.5)) == [1]  # frames 2, 3
    assert slots((0.375, 0.625)) == [1, 2]  # frames 3, 4
    assert slots((0.0, 0.1), (1.9, 5.0)) == [0, 7]
    assert slots((0.3, 0.3)) == [1]  # a moment inside frame 2
    assert slots((0.25, 0.25)) == [1]  # a moment on a frame's edge
    assert slots((2.0, 3.0)) == []  # after the end
    assert slots() == []


def test_times_that_carry_rounding_do_not_mark_the_neighbour():
    for noise in (1e-7, 4e-4):
        assert slots((0.5 - noise, 0.75 - noise)) == slots((0.5 + noise, 0.75 + noise)) == [2]


def test_an_event_between_sampled_frames_is_missed():
    """2 frames a second out of a file of 8 a second: each is on screen for 1/8 s."""
    sparse = np.arange(8) / 2
    assert slots((0.2, 0.4), times=sparse) == []
    assert slots((0.2, 0.6), times=sparse) == [0]  # frame 1, at 0.5 s
    assert slots((0.6, 0.62), times=sparse) == [0]
    assert slots((0.63, 0.99), times=sparse) == []


@pytest.mark.parametrize(
    "marked, source",
    [
        ("..x.....", [0, 1, 1, 3, 4, 5, 6, 7]),  # one slot: from before
        ("..xx....", [0, 1, 1, 4, 4, 5, 6, 7]),  # half from each side
        ("..xxx...", [0, 1, 1, 1, 5, 5, 6, 7]),
        ("xx......", [2, 2, 2, 3, 4, 5, 6, 7]),  # at the edge: the only side
        ("......xx", [0, 1, 2, 3, 4, 5, 5, 5]),
        ("x..xx..x", [1, 1, 2, 2, 5, 5, 6, 6]),
        ("..xx.... ...xx...", [0, 1, 1, 1, 5, 5, 6, 7]),  # the union of two keywords is one run
        ("xxxx....", [4, 4, 4, 4, 4, 5, 6, 7]),  # exactly half is kept
        ("xxxxx...", [0, 1, 2, 3, 4, 5, 6, 7]),  # less: no V~
        ("xxxxxxxx", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("........", [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_source(marked, source):
    assert kf.source_of(mask(marked)).tolist() == source


def random_masks(count=300, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        slots, keywords = rng.integers(1, 24), rng.integers(0, 4)
        marked = np.zeros((keywords, slots), bool)
        for row in marked:
            start = rng.integers(slots)
            row[start : start + rng.integers(0, 4)] = True
        yield marked, rng


def test_laws_of_the_source():
    replaced = 0
    for marked, _ in random_masks():
        source = kf.source_of(marked)
        union, slots = marked.any(0), np.arange(marked.shape[1])
        changed = source != slots
        assert source.dtype == np.int32
        assert not changed[~union].any()  # identity outside the marked slots
        np.testing.assert_array_equal(source[source], source)  # V~ of V~ is V~
        if changed.any():
            replaced += 1
            assert (changed == union).all()  # a run is never trimmed
            assert not union[source].any()  # every replaced slot shows one outside
            assert (~union).sum() * 2 >= len(slots)
            nearest = np.abs(slots[:, None] - np.flatnonzero(~union)).min(1)
            np.testing.assert_array_equal(np.abs(source - slots), nearest)
        elif union.any():
            assert (~union).sum() * 2 < len(slots)
    assert replaced > 100


def lengths(marked):
    return sorted(end - first for first, end in kf.runs_of(marked))


def test_laws_of_the_random_control():
    moved_count = 0
    for marked, rng in random_masks():
        moved = kf.moved_mask(marked, rng)
        assert moved.shape == marked.shape
        if moved.any():
            moved_count += 1
            assert not (moved & marked.any(0)).any()  # elsewhere
            assert lengths(moved.any(0)) == lengths(marked.any(0))  # runs of the same lengths
            np.testing.assert_array_equal(moved.sum(1), marked.sum(1))  # of each keyword too
    assert moved_count > 100


def test_a_random_control_shows_an_event_only_in_its_own_place():
    replaced = 0
    for marked, rng in random_masks(1000):
        source = kf.random_source(marked, [marked.shape[1]], rng)
        elsewhere = source != np.arange(len(source))
        assert not marked.any(0)[source[elsewhere]].any()
        replaced += elsewhere.any()
    assert replaced > 200


def test_random_control_is_seeded_and_reaches_every_place():
    marked = mask("...xx.......")
    places = set()
    for seed in range(100):
        moved = kf.moved_mask(marked, np.random.default_rng(seed))
        np.testing.assert_array_equal(moved, kf.moved_mask(marked, np.random.default_rng(seed)))
        places.add(int(np.flatnonzero(moved[0])[0]))
        source = kf.random_source(marked, [marked.shape[1]], np.random.default_rng(seed))
        np.testing.assert_array_equal(np.flatnonzero(source != np.arange(12)), np.flatnonzero(moved[0]))
    assert places == {0, 6, 7, 8, 9, 10}


def test_no_room_means_no_control():
    assert not kf.moved_mask(mask(".xxx.."), np.random.default_rng(0)).any()
    assert kf.random_source(mask(".xxx.."), [6], np.random.default_rng(0)).tolist() == list(range(6))


def test_widening_keeps_seventy_percent():
    grow = lambda text, by: "".join(".x"[int(x)] for x in kf.widened(mask(text)[0], by))  # noqa: E731
    assert grow("....x.....", 0) == "....x....."
    assert grow("....x.....", 1) == "...xxx...."
    assert grow("....x.....", 2) == "...xxx...."  # five of ten would be too many
    assert grow("x.........", 2) == "xxx......."
    assert grow("....xxx...", 1) == "....xxx..."
    assert grow("...xxxxx..", 1) == "...xxxxx.."  # too long already: not trimmed
    assert kf.widened(np.zeros(0, bool), 1).shape == (0,)  # a clip without a video


@pytest.mark.parametrize(
    "marked, windows",
    [
        ("..x.....", [(0, 0, 1), (0, 1, 2), *((0, s, s + 1) for s in range(3, 8))]),
        ("..xx....", [(0, 0, 2), (0, 4, 6), (0, 6, 8)]),
        ("...xx...", [(0, 0, 2), (0, 6, 8)]),  # they start at multiples of the length
        ("..xxx...", []),  # 0, 3 and 6: the first two show the event, the last is cut
        ("x..x....", [(0, 4, 6), (0, 6, 8)]),  # two slots: runs of two
        ("..xx.... ........ .....x..", [(0, 0, 2), (0, 6, 8), *((2, s, s + 1) for s in (0, 1, 4, 6, 7))]),
        ("........", []),
        ("xxxxxxxx", []),
    ],
)
def test_windows_show_no_keyword(marked, windows):
    found = kf.windows_of(mask(marked), [mask(marked).shape[1]])
    assert [tuple(window) for window in found.tolist()] == windows
    assert found.dtype == np.int32 and found.shape[1:] == (3,)


def test_windows_by_trying_every_place():
    for marked, _ in random_masks():
        free = ~marked.any(0)
        expected = []
        for number, length in enumerate(marked.sum(1)):
            for start in range(len(free)):
                fits = length and start % length == 0 and start + length <= len(free)
                if fits and free[start : start + length].all():
                    expected.append([number, start, start + length])
        assert kf.windows_of(marked, [marked.shape[1]]).tolist() == expected


def test_controls():
    assert kf.reverse_source(4).tolist() == [3, 2, 1, 0]
    assert kf.single_source(4).tolist() == [2, 2, 2, 2]
    shuffled = kf.shuffle_source(6, np.random.default_rng(1))
    assert sorted(shuffled.tolist()) == list(range(6)) != shuffled.tolist()
    for slots in (0, 1, 5):
        rng = np.random.default_rng(0)
        orders = kf.identity_source(slots), kf.reverse_source(slots), kf.shuffle_source(slots, rng)
        for source in (*orders, kf.single_source(slots)):
            assert source.shape == (slots,) and source.dtype == np.int32
