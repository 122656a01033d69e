"""Which frame of each part of a video is read, where that is the one that changes most.

A frame that is chosen by its time misses what is brief. Of all frames of a part, the one that differs most
from what is usually seen around it shows it, unless something else in the same part differs more.
"""

import itertools
from collections.abc import Iterable

import numpy as np

BLOCK = 16  # parts, over which a pixel has one usual value
USUAL = 9  # frames of a block, evenly spread, whose median that is
SPARSE = 4  # of so many pixels along each side one is enough to tell how light a picture is
DARK = 8.0  # grey levels: a darker picture is not made brighter to compare it


def changed_most(
    frames: Iterable[np.ndarray], starts: np.ndarray, end: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The numbers i64[P] of the frames that change most, one in each part, and these frames.

    frames: u8[h,w,3], one after another, from the first of the first part to the one before ``end``. starts:
    i64[P], the number of the first frame of each part. Frames of one BLOCK are held at once.
    """
    ahead = iter(frames)
    bounds = [*starts.tolist(), end]
    numbers: list[int] = []
    kept: list[np.ndarray] = []
    for first in range(0, len(starts), BLOCK):
        edges = bounds[first : first + BLOCK + 1]
        block = list(itertools.islice(ahead, edges[-1] - edges[0]))
        changes = changes_of(np.stack(block)) if len(block) > len(edges) - 1 else np.zeros(len(block))
        for low, high in itertools.pairwise(edges):
            number = low + int(np.argmax(changes[low - edges[0] : high - edges[0]]))
            numbers.append(number)
            kept.append(block[number - edges[0]])
    return np.array(numbers), kept


def changes_of(frames: np.ndarray) -> np.ndarray:
    """How much each of the frames u8[F,h,w,3] differs from the usual picture, f32[F]: the mean absolute
    difference, after each was divided by its median level, so that a change of the light counts little."""
    sparse = frames[:, ::SPARSE, ::SPARSE].reshape(len(frames), -1)
    level = np.median(sparse, axis=1).clip(DARK).astype(np.float32)
    pictures = frames.reshape(len(frames), -1) / level[:, None]
    spread = np.linspace(0, len(frames) - 1, min(USUAL, len(frames))).round().astype(int)
    usual = np.median(pictures[spread], axis=0)
    return np.abs(pictures - usual).mean(axis=1)
