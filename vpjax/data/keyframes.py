"""Keyword -> key slots -> ``source``, the gather that makes V~ and every control out of V.

A mask bool[J, S] says which slots show each keyword; a source i32[S] says which slot of V each slot of the
other video shows. Only the first ``slot_count`` of the S slots are part of the clip: the rest stay where they
are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EDGE = 1e-3  # seconds by which a span and a frame may disagree on where the frame begins
KEEP = 0.5  # with less than this share of its slots kept there is no V~
KEEP_WIDENED = 0.7  # share that must be kept for a run to be widened
TRIES = 32  # random placements before a clip counts as too full for the control


def slots_of(
    spans: Sequence[tuple[float, float]], times: np.ndarray, frame_seconds: float, temporal: int = 2
) -> np.ndarray:
    """The slots bool[S] with a frame that shows one of ``spans``; all False where they fall between frames.

    spans: (start, end) in seconds. times: f64[F] presentation times, F a multiple of ``temporal``.
    frame_seconds: how long the file shows one frame; sampled frames may lie farther apart.
    """
    edge = min(EDGE, frame_seconds / 4)
    seen = np.zeros(len(times), bool)
    for start, end in spans:
        end = max(end, start + 2 * edge)  # a single moment is on screen too
        seen |= (start <= times + frame_seconds - edge) & (end > times + edge)
    return seen.reshape(-1, temporal).any(1)


def runs_of(marked: np.ndarray) -> list[tuple[int, int]]:
    """The runs of True in bool[S], each as (first slot, slot past its end)."""
    steps = np.flatnonzero(np.diff(marked.astype(np.int8), prepend=0, append=0))
    return [(int(first), int(end)) for first, end in steps.reshape(-1, 2)]


def widened(marked: np.ndarray, by: int) -> np.ndarray:
    """The runs of bool[S] grown by up to ``by`` slots at either end, as long as 70 % of the slots stay
    unmarked; never smaller than they are. For spans that are known only roughly."""
    for _ in range(by):
        wider = marked | np.append(marked[1:], False) | np.append(False, marked[:-1])
        if np.mean(~wider) < KEEP_WIDENED:
            break
        marked = wider
    return marked


def identity(slots: int) -> np.ndarray:
    """The source i32[S] of V itself."""
    return np.arange(slots, dtype=np.int32)


def source_of(mask_JS: np.ndarray, slot_count: int) -> np.ndarray:
    """The source i32[S] of V~: each run of marked slots shows the unmarked slots beside it, half from each
    side, at the clip's edge all from the only side there is (METHOD section 1). The identity (no V~) where
    nothing is marked or less than half of the clip would be kept."""
    marked = mask_JS[:, :slot_count].any(0)
    source = identity(mask_JS.shape[1])
    if np.sum(~marked) < KEEP * slot_count:
        return source
    for first, end in runs_of(marked):
        before, after = first - 1, end
        middle = first if before < 0 else end if after == slot_count else (first + end + 1) // 2
        source[first:middle] = before
        source[middle:end] = after
    return source


def elsewhere(mask_JS: np.ndarray, slot_count: int, rng: np.random.Generator) -> np.ndarray:
    """The random control of a mask: bool[J, S] with the runs of its union moved, at their length, to places
    of the clip that the mask leaves free and where they do not touch one another. All False where none are
    found."""
    union = mask_JS[:, :slot_count].any(0)
    runs = sorted(runs_of(union), key=lambda run: run[0] - run[1])  # the longest first: it has fewest places
    for _ in range(TRIES):
        moved = np.zeros_like(mask_JS)
        taken = union.copy()
        for first, end in runs:
            length = end - first
            starts = [s for s in range(slot_count - length + 1) if not taken[s : s + length].any()]
            if not starts:
                break
            start = int(rng.choice(starts))
            moved[:, start : start + length] = mask_JS[:, first:end]
            taken[max(0, start - 1) : start + length + 1] = True
        else:
            return moved
    return np.zeros_like(mask_JS)


def random_source(mask_JS: np.ndarray, slot_count: int, rng: np.random.Generator) -> np.ndarray:
    """``source_of`` for runs of the same lengths elsewhere: shows what freezing frames does by itself."""
    return source_of(elsewhere(mask_JS, slot_count, rng), slot_count)


def shuffle_source(slots: int, slot_count: int, rng: np.random.Generator) -> np.ndarray:
    """The source i32[S] of the clip with its slots in random order."""
    return np.append(rng.permutation(slot_count), np.arange(slot_count, slots)).astype(np.int32)


def reverse_source(slots: int, slot_count: int) -> np.ndarray:
    """The source i32[S] of the clip with its slots in reverse order."""
    return np.append(np.arange(slot_count)[::-1], np.arange(slot_count, slots)).astype(np.int32)


def single_source(slots: int, slot_count: int) -> np.ndarray:
    """The source i32[S] of the clip with its middle slot shown throughout."""
    return np.where(np.arange(slots) < slot_count, slot_count // 2, np.arange(slots)).astype(np.int32)
