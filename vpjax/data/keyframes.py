"""Key slots, and the sources by which V~ and every control are made out of V (docs/method.md, section 1).

A mask bool[J, S] marks the slots of a clip that show each keyword. A source i32[S] gives, for each slot of
the changed video, the slot of V that it shows. Where a clip has several videos and images, their slots follow
one another, and a slot shows one of its own video: ``sources_of``.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

EDGE = 1e-3  # seconds by which a span and a frame may disagree about the time at which the frame begins
KEEP = 0.5  # share of the slots that V~ must keep; otherwise there is no V~
KEEP_WIDENED = 0.7  # share that must be kept for a run to be widened
TRIES = 32  # random placements before a clip counts as too full for the control


def slots_of(
    spans: Sequence[tuple[float, float]], times: np.ndarray, frame_seconds: float, temporal: int = 2
) -> np.ndarray:
    """The slots bool[S] with a frame that shows one of ``spans``; all False if the spans fall between frames.

    spans: (start, end) in seconds. times: f64[F] presentation times, F a multiple of ``temporal``.
    frame_seconds: duration of one frame in the file; sampled frames may lie farther apart.
    """
    edge = min(EDGE, frame_seconds / 4)
    marked = np.zeros(len(times), bool)
    for start, end in spans:
        end = max(end, start + 2 * edge)  # a single moment is on screen too
        marked |= (start <= times + frame_seconds - edge) & (end > times + edge)
    return np.any(marked.reshape(-1, temporal), axis=1)


def lasting(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans of which a single moment lasts EDGE, for it is on screen too."""
    return [(start, max(end, start + EDGE)) for start, end in spans]


def runs_of(marked: np.ndarray) -> list[tuple[int, int]]:
    """The runs of True in bool[S], each as (first slot, slot past its end)."""
    steps = np.flatnonzero(np.diff(marked.astype(np.int8), prepend=0, append=0))
    return [(int(first), int(end)) for first, end in steps.reshape(-1, 2)]


def widened(marked: np.ndarray, by: int) -> np.ndarray:
    """The mask bool[S] with its runs grown by up to ``by`` slots at either end, while KEEP_WIDENED of the
    slots stay unmarked. For spans that are known only roughly."""
    for _ in range(by):
        wider = marked | np.append(marked[1:], False) | np.append(False, marked[:-1])
        if not marked.any() or np.mean(~wider) < KEEP_WIDENED:
            break
        marked = wider
    return marked


def identity_source(slots: int) -> np.ndarray:
    """The source i32[S] of V itself."""
    return np.arange(slots, dtype=np.int32)


def parts_of(counts: Sequence[int]) -> list[slice]:
    """The slots of each video among those of its clip. counts: how many slots each has."""
    ends = itertools.accumulate(counts, initial=0)
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def sources_of(counts: Sequence[int], source: Callable[[slice], np.ndarray]) -> np.ndarray:
    """The source i32[S] of a clip of several videos. source: gives that of one, of which it is told the
    slots. counts: see ``parts_of``."""
    parts = parts_of(counts)
    return np.concatenate([np.zeros(0, np.int32), *(part.start + source(part) for part in parts)])


def source_of(mask_JS: np.ndarray) -> np.ndarray:
    """The source i32[S] of V~: each run of marked slots shows the unmarked slots beside it, half from each
    side, or all from one side at the clip's edge (docs/method.md, section 1). The identity (no V~) if nothing
    is marked or less than KEEP of the clip would remain."""
    marked = np.any(mask_JS, axis=0)
    source = identity_source(len(marked))
    if np.sum(~marked) < KEEP * len(marked):
        return source
    for first, end in runs_of(marked):
        middle = (first + end + 1) // 2
        if first == 0:
            middle = 0
        elif end == len(marked):
            middle = end
        source[first:middle] = first - 1
        source[middle:end] = end
    return source


def moved_masks(mask_JS: np.ndarray, counts: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """``moved_mask`` in each video of a clip. All False if one has no room. counts: see ``parts_of``."""
    parts = [mask_JS[:, part] for part in parts_of(counts)]
    moved = [moved_mask(part, rng) for part in parts]
    if any(part.any() and not other.any() for part, other in zip(parts, moved, strict=True)):
        return np.zeros_like(mask_JS)
    return np.concatenate([mask_JS[:, :0], *moved], axis=1)


def moved_mask(mask_JS: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The random control of a mask: bool[J, S] with the runs of its union moved, at their length, to random
    free slots of the video, adjacent neither to one another nor to marked slots, which ``source_of`` would
    show once more. All False if there is no room."""
    union = np.any(mask_JS, axis=0)
    runs = sorted(runs_of(union), key=lambda run: run[0] - run[1])  # the longest, hardest to place, first
    for _ in range(TRIES):
        moved = np.zeros_like(mask_JS)
        taken = union | np.append(union[1:], False) | np.append(False, union[:-1])
        for first, end in runs:
            length = end - first
            starts = [s for s in range(len(union) - length + 1) if not taken[s : s + length].any()]
            if not starts:
                break
            start = int(rng.choice(starts))
            moved[:, start : start + length] = mask_JS[:, first:end]
            taken[max(0, start - 1) : start + length + 1] = True
        else:
            return moved
    return np.zeros_like(mask_JS)


def windows_of(slots_JS: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """The windows i32[y,3] of the keywords, as (keyword, first slot, slot past the end): runs of as many
    slots as the keyword has, in its video, starting at multiples of that number, that show no keyword of the
    clip. counts: see ``parts_of``."""
    shown = np.any(slots_JS, axis=0)
    found = []
    for number, marked in enumerate(slots_JS):
        for part in parts_of(counts):
            length = int(marked[part].sum())
            if not length:
                continue
            for start in range(part.start, part.stop - length + 1, length):
                if not shown[start : start + length].any():
                    found.append((number, start, start + length))
    return np.array(found, np.int32).reshape(-1, 3)


def random_source(mask_JS: np.ndarray, counts: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """The source of V~ for runs of the same lengths in other places: the effect of frozen frames alone.
    counts: see ``parts_of``."""
    moved = moved_masks(mask_JS, counts, rng)
    return sources_of(counts, lambda part: source_of(moved[:, part]))


def shuffle_source(slots: int, rng: np.random.Generator) -> np.ndarray:
    """The source i32[S] of the clip with its slots in random order."""
    return rng.permutation(slots).astype(np.int32)


def reverse_source(slots: int) -> np.ndarray:
    """The source i32[S] of the clip with its slots in reverse order."""
    return identity_source(slots)[::-1]


def single_source(slots: int) -> np.ndarray:
    """The source i32[S] of the clip that shows its middle slot throughout."""
    return np.full(slots, slots // 2, np.int32)
