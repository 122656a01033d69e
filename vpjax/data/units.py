"""Cuts a clip's frames into merged units and lays them out for the vision tower.

A unit is 2 x 2 patches of one slot, and becomes one visual token. Most layers of a Qwen2.5-VL tower attend
inside windows of units, the others inside whole slots. The tower sees a row as a flat list of units, so the
sizes of frames are no part of its shape: whole windows stand in blocks of equal size, and for the other
layers whole slots are gathered into bins of equal size. What is left over in a block or bin is padding.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from vpjax.data.packing import Sizes
from vpjax.data.positions import Grid
from vpjax.data.sampling import Shape
from vpjax.types import Array, Units

if TYPE_CHECKING:
    from vpjax.data.video import Video
    from vpjax.models.config import VLMConfig
    from vpjax.models.vision import VisionConfig

GATHER = 1.15  # times which a layer's linear parts cost where units are gathered into bins and back
LARGEST = 4  # blocks and bins of up to so many times the largest window and slot are considered


WindowCounts = tuple[tuple[int, int], ...]  # of a slot: (units of a window, number of such windows)


class Capacity(NamedTuple):
    """Units in a block and in a bin. bin = 0: every slot is one window, so blocks serve all layers."""

    block: int
    bin: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """The places of a clip's units. unit i32[u]: the unit at each place, counted slot by slot and row by row,
    -1: padding. window i32[u]: its window's number, -1: padding. bins i32[z]: the places of the units in the
    bins, -1: padding."""

    unit: np.ndarray
    window: np.ndarray
    bins: np.ndarray


def grid_of(shape: Shape, vision: VisionConfig) -> Grid:
    """Slots, rows and columns of the units of frames of a shape (F, height, width)."""
    return shape[0] // vision.temporal, shape[1] // vision.factor, shape[2] // vision.factor


def cut(frames_Fhw3: np.ndarray, vision: VisionConfig) -> np.ndarray:
    """The units u8[S * M, 4, X] of frames u8[F,h,w,3], slot by slot and row by row. X values of a patch stand
    in the order (channel, frame, row, column) of the HF image processor."""
    channels = frames_Fhw3.shape[-1]
    slots, rows, columns = grid_of(frames_Fhw3.shape[:3], vision)
    side = vision.merge, vision.patch
    x = frames_Fhw3.reshape(slots, vision.temporal, rows, *side, columns, *side, channels)
    x = x.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(x).reshape(-1, vision.merge**2, channels * vision.temporal * vision.patch**2)


@functools.lru_cache
def windows_of_slot(rows: int, columns: int, vision: VisionConfig) -> tuple[np.ndarray, ...]:
    """The units i32[w] of each window of a slot; smaller at the edges. A tower without windows has one.

    Source: ``get_window_index`` of transformers' Qwen2_5_VisionTransformerPretrainedModel."""
    side = vision.window // vision.factor or max(rows, columns)
    units = np.arange(rows * columns).reshape(rows, columns)
    starts = [(r, c) for r in range(0, rows, side) for c in range(0, columns, side)]
    return tuple(units[r : r + side, c : c + side].ravel() for r, c in starts)


def fill(counts: Mapping[int, int], capacity: int) -> list[tuple[tuple[int, ...], int]]:
    """Parts, given as {size: count}, in containers of ``capacity``, the largest first.

    Returns (sizes of the parts in a container, number of such containers) pairs."""
    left = {size: counts[size] for size in sorted(counts, reverse=True) if counts[size]}
    out = []
    while left:
        taken, space = {}, capacity
        for size, count in left.items():
            if number := min(count, space // size):
                taken[size] = number
                space -= number * size
        if not taken:
            raise ValueError(f"parts of {max(left)} do not fit containers of {capacity}")
        repeats = min(left[size] // number for size, number in taken.items())
        out.append((tuple(size for size, number in taken.items() for _ in range(number)), repeats))
        left = {size: count - repeats * taken.get(size, 0) for size, count in left.items()}
        left = {size: count for size, count in left.items() if count}
    return out


def _blocked(grid: Grid, vision: VisionConfig, capacity: Capacity) -> tuple[np.ndarray, ...]:
    """The units i32[w] of a slot that must stand in one block: those of a window. A tower without windows
    that attends in bins needs no blocks, so each unit stands for itself."""
    if not vision.window and capacity.bin:
        return tuple(np.arange(grid[1] * grid[2])[:, None])
    return windows_of_slot(*grid[1:], vision)


def _window_counts(grid: Grid, vision: VisionConfig, capacity: Capacity) -> dict[int, int]:
    """{units: number} of a clip's windows."""
    counts = collections.Counter(len(units) for units in _blocked(grid, vision, capacity))
    return {size: number * grid[0] for size, number in counts.items()}


@functools.lru_cache(1 << 16)
def laid_out_sizes(grid: Grid, vision: VisionConfig, capacity: Capacity) -> tuple[int, int]:
    """The places in blocks and in bins that a clip takes."""
    slots, rows, columns = grid
    if not slots:
        return 0, 0
    blocks = sum(count for _, count in fill(_window_counts(grid, vision, capacity), capacity.block))
    bins = 0
    if capacity.bin:
        bins = -(-slots // (capacity.bin // (rows * columns)))
    return blocks * capacity.block, bins * capacity.bin


@functools.lru_cache(1 << 8)
def lay_out(grid: Grid, vision: VisionConfig, capacity: Capacity) -> Layout:
    """The layout of a clip of ``grid`` = (slots, rows, columns) of units."""
    slots, rows, columns = grid
    windows = _blocked(grid, vision, capacity)
    # Of each size, the windows that have no place yet: number and units.
    waiting: dict[int, collections.deque[tuple[int, np.ndarray]]] = collections.defaultdict(collections.deque)
    for slot in range(slots):
        for number, window_units in enumerate(windows, slot * len(windows)):
            waiting[len(window_units)].append((number, slot * rows * columns + window_units))
    places, bin_places = laid_out_sizes(grid, vision, capacity)
    unit, window = np.full((2, places), -1, np.int32)
    block = 0
    for sizes, repeats in fill(_window_counts(grid, vision, capacity), capacity.block) if slots else ():
        for _ in range(repeats):
            at = block
            for size in sizes:
                number, units = waiting[size].popleft()
                unit[at : at + size], window[at : at + size] = units, number
                at += size
            block += capacity.block
    bins = np.full(bin_places, -1, np.int32)
    if bin_places:
        place_of = places_of(unit).reshape(slots, -1)
        slots_in_bin = capacity.bin // place_of.shape[1]
        for slot, of_slot in enumerate(place_of):
            start = slot // slots_in_bin * capacity.bin + slot % slots_in_bin * len(of_slot)
            bins[start : start + len(of_slot)] = of_slot
    return Layout(unit, window, bins)


def places_of(index: np.ndarray) -> np.ndarray:
    """The inverse of an index with padding -1: the place of each number 0, 1, ... that stands in it."""
    places = np.flatnonzero(index >= 0)
    return places[np.argsort(index[places])].astype(np.int32)


def choose_capacity(grids: Iterable[Grid], vision: VisionConfig) -> Capacity:
    """The sizes of blocks and bins that cost the tower least on clips of these grids.

    A place costs its linear layers, whatever the size, and attention in proportion to the size.
    """
    slots: collections.Counter[tuple[int, int]] = collections.Counter()  # by (rows, columns)
    for count, rows, columns in grids:
        if count:
            slots[rows, columns] += count
    if not slots:
        return Capacity(1, 0)
    windows: collections.Counter[WindowCounts] = collections.Counter()  # slots with these windows
    for (rows, columns), count in slots.items():
        sizes = collections.Counter(len(units) for units in windows_of_slot(rows, columns, vision))
        windows[tuple(sorted(sizes.items()))] += count
    largest_window = max(size for sizes in windows for size, _ in sizes)
    largest_slot = max(rows * columns for rows, columns in slots)
    blocks = range(largest_window, LARGEST * largest_window + 1)
    bins = range(largest_slot, LARGEST * largest_slot + 1)
    block = min(blocks, key=lambda size: cost_of_blocks(size, windows, vision))
    bin = min(bins, key=lambda size: cost_of_bins(size, slots, vision))
    if not vision.window:
        units = sum(rows * columns * count for (rows, columns), count in slots.items())
        in_bins = GATHER * linear_cost(vision) * units + cost_of_bins(bin, slots, vision)
        if in_bins < cost_of_blocks(block, windows, vision):
            return Capacity(1, bin)
    if all(len(sizes) == 1 and sizes[0][1] == 1 for sizes in windows):  # every slot is one window
        return Capacity(block, 0)
    return Capacity(block, bin)


def linear_cost(vision: VisionConfig) -> int:
    """Multiplications of a layer's linear parts for a patch and channel."""
    matrices = 3 if vision.gated else 2
    return 4 * vision.hidden + matrices * vision.intermediate


def cost_of_blocks(size: int, windows: Mapping[WindowCounts, int], vision: VisionConfig) -> float:
    """What a layer costs in which windows attend in blocks of a size, in the unit of ``linear_cost``."""
    many = 64  # slots whose windows share blocks: what a clip leaves over at its end does not count
    places = 0.0
    for sizes, count in windows.items():
        blocks = sum(n for _, n in fill({s: many * n for s, n in sizes}, size)) / many
        places += blocks * size * count
    return places * (linear_cost(vision) + 2 * vision.merge**2 * size)


def cost_of_bins(size: int, slots: Mapping[tuple[int, int], int], vision: VisionConfig) -> float:
    """What the attention of a layer costs in which slots attend in bins of a size, likewise."""
    places = 0.0
    for (rows, columns), count in slots.items():
        places += count / (size // (rows * columns)) * size
    return places * 2 * vision.merge**2 * size


def units_of(video: Video, model_config: VLMConfig, capacity: Capacity) -> tuple[Units, np.ndarray]:
    """The units of a video, without the leading axis, and the unit i32[S,M] of each visual token."""
    vision, frames = model_config.vision, video.frames
    grid = grid_of(frames.shape[:3], vision)
    layout = lay_out(grid, vision, capacity)
    is_unit, per_slot = layout.unit >= 0, grid[1] * grid[2]
    cut_units = cut(frames, vision)
    pixels = np.zeros((len(layout.unit), *cut_units.shape[1:]), np.uint8)
    pixels[is_unit] = cut_units[layout.unit[is_unit]]
    place = np.stack(np.divmod(layout.unit % per_slot, grid[2]), axis=-1) * is_unit[:, None]
    binned = np.full(len(layout.unit), -1, np.int32)
    binned[layout.bins[layout.bins >= 0]] = np.flatnonzero(layout.bins >= 0)
    units = Units(
        pixels=pixels,
        place=place.astype(np.int32),
        grid=np.tile(np.array(grid[1:], np.int32), (len(layout.unit), 1)),
        window=layout.window,
        slot=np.where(is_unit, layout.unit // per_slot, -1).astype(np.int32),
        bins=layout.bins,
        binned=binned,
        block=capacity.block,
        bin=capacity.bin,
    )
    return units, places_of(layout.unit).reshape(grid[0], per_slot)


def joined_units(parts: Sequence[Units], model_config: VLMConfig, capacity: Capacity) -> Units:
    """The units of several videos as those of one clip: their slots follow one another."""
    none = empty_units(1, Sizes(0), capacity, model_config)  # for clips of text alone
    moved = [jax.tree.map(lambda x: x[0], none)]
    units = slots = bins = 0  # of the videos before
    for part in parts:
        moved.append(
            dataclasses.replace(
                part,
                window=shifted(part.window, units),  # in other blocks any number that differs would do
                slot=shifted(part.slot, slots),
                bins=shifted(part.bins, units),
                binned=shifted(part.binned, bins),
            )
        )
        units += len(part.window)
        slots += int(np.max(part.slot, initial=-1)) + 1
        bins += len(part.bins)
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *moved)


def empty_units(rows: int, sizes: Sizes, capacity: Capacity, model_config: VLMConfig) -> Units:
    vision = model_config.vision
    values = vision.channels * vision.temporal * vision.patch**2
    window, slot, binned = np.full((3, rows, sizes.units), -1, np.int32)
    place, grid = np.ones((2, rows, sizes.units, 2), np.int32)
    return Units(
        pixels=np.zeros((rows, sizes.units, vision.merge**2, values), np.uint8),
        place=place,
        grid=grid,
        window=window,
        slot=slot,
        bins=np.full((rows, sizes.bins), -1, np.int32),
        binned=binned,
        block=capacity.block,
        bin=capacity.bin,
    )


def shifted(index: Array, by: int) -> np.ndarray:
    """An index whose padding is -1, of things that stand so much further on."""
    return np.where(index < 0, -1, index + by)
