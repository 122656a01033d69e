"""Units: how they are cut, their places in blocks and bins, and what those cost."""

import numpy as np
import pytest

from tests.words import StubVision
from vpjax.data.units import (
    LARGEST,
    Capacity,
    choose_capacity,
    cut,
    fill,
    grid_of,
    laid_out_sizes,
    lay_out,
    places_of,
    windows_of_slot,
)

WINDOWED = StubVision(hidden=1280, intermediate=3420)  # Qwen2.5-VL's: windows of 4 x 4 units
WHOLE = StubVision(patch=16, window=0, factor=32, hidden=1152, intermediate=4304, gated=False)  # Qwen3-VL's
TOWERS = pytest.mark.parametrize("vision", [WINDOWED, WHOLE], ids=["windows", "whole slots"])


def random_grids(count, most=20, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(int(n) for n in rng.integers(1, (9, most, most))) for _ in range(count)]


def counted_windows(grid, side=4):
    """The window of each unit, counted by hand: (slot, row // side, column // side)."""
    return [(s, y // side, x // side) for s, y, x in np.ndindex(grid)]


def partition(labels):
    """Labels by the order in which they first appear."""
    first = {label: number for number, label in reversed(list(enumerate(labels)))}
    return [first[label] for label in labels]


@pytest.mark.parametrize(("patch", "grid"), [(14, (2, 3, 1)), (2, (3, 2, 5)), (1, (1, 1, 1))])
def test_a_unit_is_the_pixels_of_its_place(patch, grid):
    """Value by value: of patch (i, j) of a unit, the values of channel c, frame f, row y, column x."""
    vision = StubVision(patch=patch, factor=2 * patch)
    slots, rows, columns = grid
    frames = np.random.default_rng(0).integers(
        0, 256, (2 * slots, 2 * patch * rows, 2 * patch * columns, 3), np.uint8
    )
    assert grid_of(frames.shape[:3], vision) == grid
    units = cut(frames, vision)
    assert units.dtype == np.uint8 and units.shape == (slots * rows * columns, 4, 3 * 2 * patch**2)
    for unit, (s, r, k) in enumerate(np.ndindex(grid)):
        for i, j in np.ndindex(2, 2):
            values = units[unit, 2 * i + j].reshape(3, 2, patch, patch)
            top, left = (2 * r + i) * patch, (2 * k + j) * patch
            pixels = frames[2 * s : 2 * s + 2, top : top + patch, left : left + patch]
            np.testing.assert_array_equal(values, pixels.transpose(3, 0, 1, 2))


@pytest.mark.slow  # torch
def test_windows_are_those_of_transformers():
    import torch
    from transformers.vision_utils import get_vision_window_index

    for slots, rows, columns in random_grids(60):
        index, ends = get_vision_window_index(torch.tensor([[slots, 2 * rows, 2 * columns]]), 2, 112, 14)
        theirs = np.split(index.numpy(), ends[1:-1].numpy() // 4)
        of_slot = windows_of_slot(rows, columns, WINDOWED)
        ours = [slot * rows * columns + units for slot in range(slots) for units in of_slot]
        assert {tuple(sorted(w)) for w in ours} == {tuple(sorted(w)) for w in theirs}


@TOWERS
def test_laws_of_a_layout(vision):
    """Each unit has one place; a window stands whole in one block, a slot whole in one bin."""
    rng = np.random.default_rng(0)
    for grid in random_grids(200):
        slots, rows, columns = grid
        largest = 16 if vision.window else rows * columns
        capacity = Capacity(int(rng.integers(largest, 4 * largest)), int(rng.integers(1, 4) * rows * columns))
        if rng.random() < 0.2:
            capacity = capacity._replace(bin=0)
        layout = lay_out(grid, vision, capacity)
        assert (len(layout.unit), len(layout.bins)) == laid_out_sizes(grid, vision, capacity)
        used = layout.unit >= 0
        np.testing.assert_array_equal(used, layout.window >= 0)
        assert sorted(layout.unit[used]) == list(range(slots * rows * columns))

        place = places_of(layout.unit)  # of each unit
        np.testing.assert_array_equal(layout.unit[place], np.arange(len(place)))
        if vision.window:
            counted = counted_windows(grid)
        else:  # with bins, which all layers use then, units need not stand together
            counted = [u if capacity.bin else u // (rows * columns) for u in range(len(place))]
        assert partition(layout.window[place].tolist()) == partition(counted)
        block = place // capacity.block
        assert len(set(zip(partition(counted), block, strict=True))) == len(set(counted))
        assert set(range(len(layout.unit) // capacity.block)) == set(block)  # no block is empty

        if capacity.bin:
            binned = places_of(layout.bins)  # the bin place of each place
            assert sorted(layout.bins[layout.bins >= 0]) == sorted(place)
            in_bin = {int(p): z // capacity.bin for p, z in zip(np.sort(place), binned, strict=True)}
            for slot in place.reshape(slots, -1):
                assert len({in_bin[int(p)] for p in slot}) == 1
            assert set(in_bin.values()) == set(range(len(layout.bins) // capacity.bin))
        else:
            assert len(layout.bins) == 0


def test_no_video_takes_no_place():
    for capacity in (Capacity(16, 64), Capacity(1, 0)):
        layout = lay_out((0, 1, 1), WINDOWED, capacity)
        assert laid_out_sizes((0, 1, 1), WINDOWED, capacity) == (0, 0)
        assert len(layout.unit) == len(layout.window) == len(layout.bins) == 0


@TOWERS
def test_fewer_slots_never_take_more_places(vision):
    """So the sizes of a plan hold for a file that turns out to have fewer frames."""
    rng = np.random.default_rng(1)
    for _, rows, columns in random_grids(150):
        largest = 16 if vision.window else rows * columns
        capacity = Capacity(int(rng.integers(largest, 4 * largest)), int(rng.integers(1, 4) * rows * columns))
        sizes = np.array([laid_out_sizes((slots, rows, columns), vision, capacity) for slots in range(40)])
        assert (np.diff(sizes, axis=0) >= 0).all()


def test_containers_are_never_too_full():
    rng = np.random.default_rng(0)
    for _ in range(300):
        sizes = rng.choice(np.arange(1, 17), rng.integers(1, 5), replace=False).tolist()
        counts = {size: int(rng.integers(0, 40)) for size in sizes}
        capacity = int(rng.integers(max(sizes), 4 * max(sizes)))
        filled = fill(counts, capacity)
        assert all(0 < sum(parts) <= capacity and repeats > 0 for parts, repeats in filled)
        for size in sizes:
            assert sum(parts.count(size) * repeats for parts, repeats in filled) == counts[size]
        # First fit: the parts of one container would not have fitted another.
        used = sorted(sum(parts) for parts, repeats in filled for _ in range(min(repeats, 2)))
        assert len(used) < 2 or used[0] + used[1] > capacity
    with pytest.raises(ValueError, match="parts of 16 do not fit containers of 15"):
        fill({16: 1, 3: 2}, 15)


def cost(capacity, grids, vision):
    """What the docstring of ``choose_capacity`` says, of layers of windows and of layers of slots, if windows
    of 64 slots of a grid share blocks and any number of slots share bins."""
    linear = 4 * vision.hidden + (3 if vision.gated else 2) * vision.intermediate
    blocks = bins = 0
    for slots, rows, columns in grids:
        places, _ = laid_out_sizes((64, rows, columns), vision, capacity._replace(bin=0))
        blocks += slots * places * (linear + 2 * 4 * capacity.block)
        if capacity.bin:
            bins += slots * capacity.bin / (capacity.bin // (rows * columns)) * capacity.bin
    return blocks, bins


@TOWERS
def test_no_other_capacity_costs_less(vision):
    for seed in range(6):
        grids = random_grids(4, most=9, seed=seed)
        chosen = choose_capacity(grids, vision)
        window = max(len(w) for _, r, c in grids for w in windows_of_slot(r, c, vision))
        slot = max(r * c for _, r, c in grids)
        whole = all(len(windows_of_slot(r, c, vision)) == 1 for _, r, c in grids)
        if not vision.window and chosen.bin:  # slots of many sizes: units stand alone, bins serve all layers
            assert chosen.block == 1 and cost(chosen, grids, vision)[1] <= min(
                cost(Capacity(1, bin), grids, vision)[1] for bin in range(slot, LARGEST * slot + 1)
            ) * (1 + 1e-12)
            continue
        assert (chosen.bin == 0) == whole
        blocks, bins = cost(chosen, grids, vision)
        for block in range(window, LARGEST * window + 1):
            assert blocks <= cost(Capacity(block, 0), grids, vision)[0]
        for bin in range(slot, LARGEST * slot + 1) if not whole else ():
            assert bins <= cost(Capacity(chosen.block, bin), grids, vision)[1] * (1 + 1e-12)


def test_slots_of_one_size_stand_alone():
    """With slots of one window and one size, another block would only add pairs that attend to nothing."""
    assert choose_capacity([(8, 2, 2)] * 5 + [(0, 1, 1)], WINDOWED) == (4, 0)
    assert choose_capacity([(8, 9, 5)], WHOLE) == (45, 0)
    assert choose_capacity([(8, 4, 4), (1, 4, 4)], WINDOWED) == (16, 0)
    assert choose_capacity([(3, 8, 8)], WINDOWED) == (16, 64)
    assert choose_capacity([], WINDOWED) == choose_capacity([(0, 1, 1)], WINDOWED) == (1, 0)


def test_slots_of_many_sizes_of_a_tower_without_windows_stand_in_bins():
    """Blocks of whole slots would be emptier than gathering costs."""
    grids = [(8, rows, columns) for rows in range(7, 17) for columns in range(7, 17)]
    assert choose_capacity(grids, WHOLE).block == 1 and choose_capacity(grids, WHOLE).bin > 0
    assert waste(grids, choose_capacity(grids, WHOLE), WHOLE)[0] == 1.0


def waste(grids, capacity, vision):
    """Places for each unit, in blocks and in bins."""
    units = sum(slots * rows * columns for slots, rows, columns in grids)
    sizes = np.array([laid_out_sizes(grid, vision, capacity) for grid in grids])
    return sizes.sum(axis=0) / units


# The most places for a unit, measured and a little more: frames of one size, and of many.
@pytest.mark.parametrize(
    ("grids", "blocks", "bins"),
    [
        ([(8, 2, 2)], 1.0, 0.0),  # 56 x 56
        ([(8, 9, 16)], 1.05, 1.0),  # 252 x 448
        ([(8, 16, 9)], 1.05, 1.0),
        ([(32, 13, 13)], 1.05, 1.0),
        ([(60, 8, 14), (16, 14, 8), (40, 10, 10), (24, 9, 12), (8, 16, 16), (120, 6, 8)], 1.08, 1.3),
    ],
)
def test_little_is_wasted_on_real_sizes(grids, blocks, bins):
    places, bin_places = waste(grids, choose_capacity(grids, WINDOWED), WINDOWED)
    assert 1 <= places <= blocks and bin_places <= bins
