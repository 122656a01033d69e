"""Rotary positions of a prompt, on three axes for the visual tokens, and the times of slots."""

from typing import Literal

import numpy as np

Grid = tuple[int, int, int]  # slots, rows and columns
Rule = Literal["qwen", "transformers5"]


def is_visual(ids: np.ndarray, pads: tuple[int, int]) -> np.ndarray:
    """bool[p]: whether each token is visual. pads: ids of the image and the video placeholder."""
    return (ids == pads[0]) | (ids == pads[1])


def positions(
    ids: np.ndarray,
    grid: Grid | None,
    seconds_per_slot: float,
    tokens_per_second: float | None,
    *,
    pads: tuple[int, int],
    rule: Rule = "qwen",
) -> np.ndarray:
    """Time, height and width positions i32[3, p] of a prompt with at most one video or image.

    ids: i32[p], the prompt with one id per visual token. grid: (slots, rows, columns) of its visual tokens
    after merging; None: text only. tokens_per_second: of time positions; None: each slot is an image of its
    own that follows its time in words. pads: see ``is_visual``. rule: text after visual tokens continues at
    the largest position so far + 1 (``qwen``: Qwen's own code, with which the weights were trained) or at
    their first position + max(rows, columns) (``transformers5``: its Qwen2_5_VLModel.get_rope_index; for
    comparison only); for separate slots the two are the same. ValueError if the visual tokens are not one
    run, or one run of each slot, that fills the grid.
    """
    visual = np.flatnonzero(is_visual(ids, pads))
    out = np.tile(np.arange(len(ids), dtype=np.int32), (3, 1))
    if grid is None and len(visual) == 0:
        return out
    runs = np.split(visual, np.flatnonzero(np.diff(visual) != 1) + 1)
    count = 1 if grid is None or tokens_per_second is not None else grid[0]
    if grid is None or [len(run) for run in runs] != [np.prod(grid) // count] * count:
        raise ValueError(f"{len(visual)} visual tokens do not fill the grid {grid} in {count} run(s)")
    place = np.indices((grid[0] // count, *grid[1:])).reshape(3, -1)
    if tokens_per_second is not None:
        place[0] = time_ids(grid[0], seconds_per_slot, tokens_per_second)[place[0]]
    extent = place.max() + 1 if rule == "qwen" else max(grid[1:])
    for run in runs:
        start, end = out[0, run[0]], run[-1] + 1
        out[:, run] = start + place
        out[:, end:] = start + extent + np.arange(len(ids) - end)
    return out


def time_ids(slots: int, seconds_per_slot: float, tokens_per_second: float) -> np.ndarray:
    """The time position i64[S] of each slot, the first at 0. Slots closer than one token share a position.

    The slack keeps a slot at a whole token there, although measured times carry rounding errors."""
    return np.floor(np.arange(slots) * (seconds_per_slot * tokens_per_second) + 1e-4).astype(np.int64)


def slot_seconds(times: np.ndarray, temporal: int) -> np.ndarray:
    """The time of each slot, f64[S] in seconds: halfway between its first and last of ``times`` f64[F].

    Rounded to the microsecond, so that a time halfway between two decimals is later rounded as if exact."""
    return times.reshape(-1, temporal)[:, [0, -1]].mean(axis=1).round(6)
