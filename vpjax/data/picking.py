"""Which frames of a video are read by what they show: those that change most, or one of all that look alike.

A frame that is chosen by its time misses what is brief. Of all frames of a part, the one that differs most
from what is usually seen around it shows it, unless something else in the same part differs more. Or frames
that look alike are merged into runs, each of which is shown by one of them.
"""

import heapq
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

BLOCK = 16  # parts, over which a pixel has one usual value
USUAL = 9  # frames of a block, evenly spread, whose median that is
SPARSE = 4  # of so many pixels along each side one is enough to tell how light a picture is
DARK = 8.0  # grey levels: a darker picture is not made brighter to compare it
NOTICED = 2.0  # times the usual difference of neighbours, above which they do not look alike


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
    difference of ``levelled`` pictures."""
    pictures = levelled(frames)
    spread = np.linspace(0, len(frames) - 1, min(USUAL, len(frames))).round().astype(int)
    usual = np.median(pictures[spread], axis=0)
    return np.abs(pictures - usual).mean(axis=1)


def merged(frames: Iterable[np.ndarray], count: int) -> np.ndarray:
    """The numbers i64[count] of the frames that stand for so many runs of frames that look alike, ascending.

    Neighbours that differ NOTICED times more than usual are in different runs; of more such pairs than there
    can be ends of runs, the ones that differ most. Where fewer runs are left than frames are to be read, the
    longest are divided into equal ones, so that of a still video the runs are its equal parts. Each run is
    shown by its middle. frames: u8[h,w,3], one after another, at least ``count``; two of them are held at
    once.
    """
    differences = np.array([0.0, *neighbour_differences(frames)])
    usual = np.median(differences[1:]) if len(differences) > 1 else 0.0
    noticed = np.flatnonzero(differences > NOTICED * usual)
    sharpest_first = noticed[np.argsort(-differences[noticed], kind="stable")]
    cuts = np.sort(sharpest_first[: count - 1])
    edges = [0, *cuts.tolist(), len(differences)]
    middles = []
    for (low, high), parts in zip(itertools.pairwise(edges), divided(np.diff(edges), count), strict=True):
        part_edges = np.linspace(low, high, parts + 1).round().astype(int)
        middles.append((part_edges[:-1] + part_edges[1:] - 1) // 2)
    return np.concatenate(middles)


def divided(lengths: np.ndarray, count: int) -> list[int]:
    """Into how many parts each of some runs is divided, so that there are ``count`` and the longest part is
    as short as can be. lengths: frames of each run, of which there are at most ``count``."""
    shares = [1] * len(lengths)
    longest = [(-int(length), run) for run, length in enumerate(lengths)]
    heapq.heapify(longest)
    for _ in range(count - len(lengths)):
        _, run = longest[0]
        shares[run] += 1
        heapq.heapreplace(longest, (-lengths[run] / shares[run], run))
    return shares


def neighbour_differences(frames: Iterable[np.ndarray]) -> Iterator[float]:
    """The mean absolute difference of each frame from the one before, after both are ``levelled``."""
    pictures = (levelled(frame[None])[0] for frame in frames)
    for before, after in itertools.pairwise(pictures):
        yield float(np.abs(after - before).mean())


def levelled(frames: np.ndarray) -> np.ndarray:
    """Frames u8[F,h,w,3] as f32[F, h * w * 3] that were divided by their median level, so that a change of
    the light counts little."""
    sparse = frames[:, ::SPARSE, ::SPARSE].reshape(len(frames), -1)
    level = np.median(sparse, axis=1).clip(DARK).astype(np.float32)
    return frames.reshape(len(frames), -1) / level[:, None]
