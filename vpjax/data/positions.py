"""Rotary positions of a prompt: one line for text, three axes for the visual tokens."""

from __future__ import annotations

from typing import Literal

import numpy as np

Rule = Literal["qwen", "transformers5"]


def is_visual(ids: np.ndarray, pads: tuple[int, int]) -> np.ndarray:
    """bool[p]: which tokens stand for visual ones. pads: ids of the image and the video placeholder."""
    return (ids == pads[0]) | (ids == pads[1])


def positions(
    ids: np.ndarray,
    grid: tuple[int, int, int] | None,
    seconds_per_slot: float,
    tokens_per_second: float,
    *,
    pads: tuple[int, int],
    rule: Rule = "qwen",
) -> np.ndarray:
    """Time, height and width positions i32[3, p] of a prompt with at most one run of visual tokens.

    ids: i32[p], the prompt with one id per visual token. grid: (slots, rows, columns) of its visual tokens
    after merging; None: text only. pads: see ``is_visual``. rule: text after the video
    continues at the largest position so far + 1 (``qwen``: Qwen's own code, with which the weights were
    trained) or at the video's first position + max(rows, columns) (``transformers5``: its
    Qwen2_5_VLModel.get_rope_index; for comparison only). ValueError where the visual tokens are not one run
    that fills the grid.
    """
    visual = np.flatnonzero(is_visual(ids, pads))
    out = np.tile(np.arange(len(ids), dtype=np.int32), (3, 1))
    if grid is None and len(visual) == 0:
        return out
    if grid is None or len(visual) != np.prod(grid) or np.any(np.diff(visual) != 1):
        raise ValueError(f"{len(visual)} visual tokens do not stand as one run that fills the grid {grid}")
    first, end = visual[0], visual[-1] + 1
    place = np.indices(grid).reshape(3, -1)
    place[0] = time_ids(grid[0], seconds_per_slot, tokens_per_second)[place[0]]
    extent = place.max() + 1 if rule == "qwen" else max(grid[1:])
    out[:, first:end] = first + place
    out[:, end:] = first + extent + np.arange(len(ids) - end)
    return out


def time_ids(slots: int, seconds_per_slot: float, tokens_per_second: float) -> np.ndarray:
    """The time position i64[S] of each slot, the first at 0. Slots closer than one token share a position.

    The slack keeps a slot that lies on a whole token there although measured times carry rounding."""
    return np.floor(np.arange(slots) * (seconds_per_slot * tokens_per_second) + 1e-4).astype(np.int64)
