"""Batches of one shape: wholly padding at first, into which the clips are written one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vpjax.data.keyframes import windows_of
from vpjax.data.packing import Sizes, round_up
from vpjax.data.rows import Row, prompt_row
from vpjax.data.units import Capacity, empty_units, grid_of, shifted, windows_of_slot
from vpjax.types import Batch, Prompts, Strip, Units

if TYPE_CHECKING:
    from vpjax.data.positions import Stamps
    from vpjax.data.video import Video
    from vpjax.models.config import VLMConfig


def empty_strip(rows: int, tokens: int) -> Strip:
    shows, slot = np.full((2, rows, tokens), -1, np.int32)
    zero, segment = np.zeros((2, rows, tokens), np.int32)
    return Strip(zero, segment, np.zeros((rows, 3, tokens), np.int32), shows, slot)


def empty_batch(
    rows: int, sizes: Sizes, capacity: Capacity, model_config: VLMConfig, keyword_tokens: int
) -> Batch:
    """Packed rows that are wholly padding."""

    def none(*shape: int) -> np.ndarray:
        return np.full((rows, *shape), -1, np.int32)

    return Batch(
        video=empty_units(rows, sizes, capacity, model_config),
        text=empty_strip(rows, sizes.tokens),
        degraded=empty_strip(rows, sizes.degraded),
        shared=np.zeros((rows, sizes.tokens), np.int32),
        target=none(sizes.targets),
        origin=none(sizes.targets),
        degraded_target=none(sizes.degraded_targets),
        compared=none(sizes.degraded_targets),
        keywords=none(sizes.keywords, keyword_tokens),
        lemma=none(sizes.keywords),
        owner=none(sizes.keywords),
        slots=np.zeros((rows, sizes.keywords, sizes.slots), bool),
        has_degraded=np.zeros((rows, sizes.keywords), bool),
        windows=none(sizes.windows, 3),
        clip=none(sizes.clips),
    )


def empty_prompts(
    rows: int,
    sizes: Sizes,
    capacity: Capacity,
    model_config: VLMConfig,
    keywords: int = 0,
    keyword_tokens: int = 0,
) -> Prompts:
    """Rows of prompts that are wholly padding."""
    medium, shows_degraded = np.full((2, rows, sizes.tokens), -1, np.int32)
    return Prompts(
        video=empty_units(rows, sizes, capacity, model_config),
        text=empty_strip(rows, sizes.tokens),
        medium=medium,
        shows_degraded=shows_degraded,
        keywords=np.full((rows, keywords, keyword_tokens), -1, np.int32),
        hidden=np.zeros((rows, keywords), bool),
        clip=np.full(rows, -1, np.int32),
    )


def collate(
    rows: Sequence[Sequence[Row]],
    sizes: Sizes,
    capacity: Capacity,
    model_config: VLMConfig,
    keyword_tokens: int = 0,
) -> Batch:
    """Packed rows, each with the clips of one of ``rows``. sizes: how much a row holds. ValueError if the
    clips of a row are too many."""
    batch = empty_batch(len(rows), sizes, capacity, model_config, keyword_tokens)
    for r, clips in enumerate(rows):
        used = Sizes(*[0] * len(Sizes._fields))
        for row in clips:
            used = _add(batch, r, row, used, sizes)
    return batch


def collate_prompts(
    rows: Sequence[Row | None],
    sizes: Sizes,
    capacity: Capacity,
    model_config: VLMConfig,
    keywords: int = 0,
    keyword_tokens: int = 0,
) -> Prompts:
    """Prompts of clips with J = ``keywords``, one in a row; None: a row of padding. sizes, ValueError: as in
    ``collate``."""
    prompts = empty_prompts(len(rows), sizes, capacity, model_config, keywords, keyword_tokens)
    for r, row in enumerate(rows):
        if row is None:
            continue
        _write_units(prompts.video, r, row.video, 0, 0, 0)
        _write_strip(prompts.text, r, row.prompt, 0, 0, 0, segment=1)
        prompts.medium[r, : len(row.medium)] = row.medium
        prompts.shows_degraded[r, : len(row.shows_degraded)] = row.shows_degraded
        prompts.keywords[r], prompts.hidden[r] = row.keywords, row.hidden
        prompts.clip[r] = row.clip
    return prompts


def single_prompt(
    prompt: np.ndarray,
    videos: Sequence[Video],
    model_config: VLMConfig,
    *,
    stamps: Stamps | None = None,
) -> tuple[Row, Prompts]:
    """One prompt about its videos, as a row and as a batch. Arguments as in ``prompt_row``.

    All sizes of the batch are ``coarse``, so that videos of many sizes and lengths share a few programs."""
    capacity = coarse_capacity(videos, model_config)
    row = prompt_row(prompt, videos, model_config, capacity, stamps=stamps)
    return row, collate_prompts([row], coarse_sizes([row], capacity), capacity, model_config)


def window_prompts(
    prompt: np.ndarray,
    windows: Sequence[Video],
    model_config: VLMConfig,
    *,
    rows: int,
    stamps: Stamps | None = None,
) -> Prompts:
    """One prompt about each of some windows of a video, as a batch of so many ``rows``, of which the last are
    padding. Arguments and sizes as in ``single_prompt``."""
    capacity = coarse_capacity(windows, model_config)
    asked = [prompt_row(prompt, [window], model_config, capacity, stamps=stamps) for window in windows]
    padding = [None] * (rows - len(asked))
    return collate_prompts([*asked, *padding], coarse_sizes(asked, capacity), capacity, model_config)


def coarse_capacity(videos: Sequence[Video], model_config: VLMConfig) -> Capacity:
    """Blocks and bins that hold the windows and slots of these videos."""
    if not videos:
        return Capacity(1, 0)
    grids = [grid_of(video.frames.shape[:3], model_config.vision) for video in videos]
    windows = [windows_of_slot(rows, columns, model_config.vision) for _, rows, columns in grids]
    bin = 0
    if any(len(of_slot) > 1 for of_slot in windows):
        bin = coarse(max(rows * columns for _, rows, columns in grids))
    return Capacity(coarse(max(len(window) for of_slot in windows for window in of_slot)), bin)


def coarse_sizes(rows: Sequence[Row], capacity: Capacity) -> Sizes:
    """How much a row holds of which these are the longest."""
    places = coarse(max(max(len(row.video.window), len(row.video.bins)) for row in rows))
    units, bins = round_up(places, capacity.block), 0
    if capacity.bin:
        bins = round_up(places, capacity.bin)
    return Sizes(coarse(max(len(row.prompt.tokens) for row in rows)), units, bins)


def coarse(count: int) -> int:
    """``count`` rounded up to a multiple of 16 and, above 128, to one of four sizes an octave, which adds
    less than a quarter."""
    return round_up(count, max(16, 1 << max(count.bit_length() - 3, 0)))


def _add(batch: Batch, r: int, row: Row, used: Sizes, most: Sizes) -> Sizes:
    """Write a clip into row ``r`` after what is ``used`` of it. Returns what is used then: no more than
    ``most``."""
    text, degraded = row.text, row.degraded
    named = row.lemma >= 0  # the other keywords were left out
    slots_QS = row.slots[named]
    windows = windows_of(slots_QS, row.counts)
    count, slots = slots_QS.shape
    taken = Sizes(
        tokens=len(text.tokens),
        units=len(row.video.window),
        bins=len(row.video.bins),
        degraded=len(degraded.tokens),
        targets=len(row.target),
        degraded_targets=len(row.degraded_target),
        keywords=count,
        slots=slots,
        windows=len(windows),
    )
    used_then = Sizes(*(a + b for a, b in zip(used, taken, strict=True)))
    if any(a > b for a, b in zip(used_then, most, strict=True)):
        raise ValueError(f"with clip {row.clip} a row has {used_then}, which is more than {most}")

    _write_units(batch.video, r, row.video, used.units, used.bins, used.slots)
    shift = dict(units=used.units, slots=used.slots, segment=used.clips + 1)
    _write_strip(batch.text, r, text, used.tokens, **shift)
    _write_strip(batch.degraded, r, degraded, used.degraded, **shift)
    batch.shared[r, used.tokens : used.tokens + row.shared] = used.clips + 1

    targets = slice(used.targets, used.targets + len(row.target))
    batch.target[r, targets] = used.tokens + row.target
    batch.origin[r, targets] = row.data_set
    degraded_targets = slice(used.degraded_targets, used.degraded_targets + len(row.degraded_target))
    batch.degraded_target[r, degraded_targets] = used.degraded - row.shared + row.degraded_target
    batch.compared[r, degraded_targets] = shifted(row.compared, used.targets)

    keywords = slice(used.keywords, used.keywords + count)
    batch.keywords[r, keywords] = row.keywords[named]
    batch.lemma[r, keywords] = row.lemma[named]
    batch.owner[r, keywords] = row.clip
    batch.slots[r, keywords, used.slots : used.slots + slots] = slots_QS
    batch.has_degraded[r, keywords] = row.in_degraded[named]
    shift_windows = np.array([used.keywords, used.slots, used.slots], np.int32)
    batch.windows[r, used.windows : used.windows + len(windows)] = windows + shift_windows
    batch.clip[r, used.clips] = row.clip
    return used_then


def _write_units(out: Units, r: int, units: Units, first: int, first_bin: int, first_slot: int) -> None:
    """Write a clip's units into row ``r``, from place ``first`` and bin place ``first_bin`` on."""
    here = slice(first, first + len(units.window))
    out.pixels[r, here], out.place[r, here], out.grid[r, here] = units.pixels, units.place, units.grid
    # Windows of other clips never share a block, so any number that differs inside the block would do.
    out.window[r, here] = shifted(units.window, first)
    out.slot[r, here] = shifted(units.slot, first_slot)
    out.bins[r, first_bin : first_bin + len(units.bins)] = shifted(units.bins, first)
    out.binned[r, here] = shifted(units.binned, first_bin)


def _write_strip(out: Strip, r: int, strip: Strip, first: int, units: int, slots: int, segment: int) -> None:
    """Write a clip's tokens into row ``r``, from token ``first`` on, as a segment that shows the units and
    slots from these numbers on."""
    here = slice(first, first + len(strip.tokens))
    out.tokens[r, here], out.segment[r, here] = strip.tokens, segment
    out.positions[r, :, here] = strip.positions
    out.shows[r, here], out.slot[r, here] = shifted(strip.shows, units), shifted(strip.slot, slots)
