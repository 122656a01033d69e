"""Which clips stand in which row of which step: a pure function of their sizes, the seed and the step.

Training with answers packs several clips into each row (``PackedPlan``). Generation has one clip in a row and
a few lengths of rows (``PromptPlan``). Either way the shape of a batch is fixed before the first step, so the
number of compiled programs does not grow with the variety of the clips.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from vpjax.data.mixture import Mixture

WINDOW = 1024  # clips among which the largest are packed first
OPEN_ROWS = 512  # rows that are filled at the same time
SAMPLE = 2 * WINDOW  # clips from which the capacity of rows is estimated
SPARE = (1.0, 1.03, 1.1, 1.25)  # of a list beside the tokens, see ``row_capacity``
COMPUTED = 4  # the first so many fields of Sizes, with which the model computes; others cost nearly nothing
LENGTHS = 4  # prompt lengths at most, each of which is a program
WORTH = 0.05  # share of the computed tokens that another length must save

T = TypeVar("T")
PLANNING = threading.Lock()


class Sizes(NamedTuple):
    """What a clip takes of a row, or how much a row holds.

    tokens: T, of the decoder. units, bins: places for the vision tower. degraded: tokens that are computed
    again for V~. targets, keywords, slots, windows, clips, degraded_targets: lengths of the lists of
    ``types.Batch``."""

    tokens: int
    units: int = 0
    bins: int = 0
    degraded: int = 0
    targets: int = 0
    keywords: int = 0
    slots: int = 0
    windows: int = 0
    clips: int = 1
    degraded_targets: int = 0


class PlannedRow(NamedTuple):
    """The entries of a row, and the epoch to which it belongs."""

    epoch: int
    entries: Sequence[int]


def round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def pack(sizes_NK: np.ndarray, capacity_K: np.ndarray, order: np.ndarray) -> list[list[int]]:
    """Rows of entries such that the sizes in a row add up to no more than the capacity.

    Of each WINDOW of entries in ``order`` the largest come first. Each goes into that open row whose emptiest
    COMPUTED list it leaves fullest, so that no list stays empty because another one is full. ValueError if
    one entry alone exceeds the capacity.
    """
    if not len(order):
        return []
    sizes_NK = sizes_NK[order]
    if (sizes_NK.max(axis=0) > capacity_K).any():
        raise ValueError("an entry is larger than a row")
    if (2 * sizes_NK.min(axis=0) > capacity_K).any():  # no two fit
        return [[int(entry)] for entry in order]
    shares_NK = sizes_NK[:, :COMPUTED] / np.maximum(capacity_K[:COMPUTED], 1)
    window_N = np.arange(len(order)) // WINDOW
    largest_first = np.lexsort((-shares_NK.max(axis=1), window_N))

    rows: list[list[int]] = []
    free_OK = np.zeros((OPEN_ROWS, len(capacity_K)), np.int64)
    free_shares_OK = np.zeros((OPEN_ROWS, shares_NK.shape[1]))
    row_of = np.full(OPEN_ROWS, -1)
    for i in largest_first:
        fits_O = (free_OK >= sizes_NK[i]).all(axis=1) & (row_of >= 0)
        if fits_O.any():
            emptiest_O = (free_shares_OK - shares_NK[i]).max(axis=1)
            at = int(np.where(fits_O, emptiest_O, np.inf).argmin())
        else:  # the fullest row is closed, or an unused place is taken
            at = int(free_shares_OK.min(axis=1).argmin())
            free_OK[at], free_shares_OK[at], row_of[at] = capacity_K, 1.0, len(rows)
            rows.append([])
        rows[row_of[at]].append(int(order[i]))
        free_OK[at] -= sizes_NK[i]
        free_shares_OK[at] -= shares_NK[i]
    return rows


def row_capacity(sizes_NK: np.ndarray, order: np.ndarray, row_tokens: int, multiples: Sizes) -> Sizes:
    """The capacity of packed rows of ``row_tokens`` tokens (0: as many as the longest clip has).

    A row that is full of the average clip shows how much of each COMPUTED list it needs. With a little to
    spare more clips fit, and more is computed: of SPARE that is taken with which a sample in ``order`` costs
    the fewest tokens, units and tokens of V~. All else gets as much as the fullest row takes. multiples: to
    which capacities are rounded up."""
    largest = sizes_NK.max(axis=0)
    tokens = round_up(max(row_tokens, int(largest[0])), multiples.tokens)
    sample = order[:SAMPLE]
    average = sizes_NK[sample].sum(axis=0) / sizes_NK[sample, 0].sum() * tokens
    rows = pack(sizes_NK[:, :1], np.array([tokens]), sample)
    fullest = np.max([sizes_NK[row].sum(axis=0) for row in rows], axis=0)

    def capacity_with(spare: float) -> Sizes:
        needed = fullest.copy()
        needed[:COMPUTED] = np.minimum(spare * average, fullest)[:COMPUTED]
        rounded = [round_up(int(n), m) for n, m in zip(np.maximum(needed, largest), multiples, strict=True)]
        return Sizes(*rounded)._replace(tokens=tokens)

    def cost(capacity: Sizes) -> int:
        count = len(pack(sizes_NK, np.array(capacity), sample))
        return count * (capacity.tokens + capacity.units + capacity.degraded)

    return min(dict.fromkeys(capacity_with(spare) for spare in SPARE), key=cost)


class Usage(NamedTuple):
    """How full the batches of the first epoch are. programs: shapes of a batch. batches, rows: their numbers.
    rows_filled: the share of rows that hold a clip. text, degraded, vision: useful / computed tokens of V,
    tokens of V~, patches, and tokens of both."""

    programs: int
    batches: float
    rows: int
    rows_filled: float
    text: float
    degraded: float
    vision: float
    all_text: float


def usage_of(used: Sizes, computed: Sizes, rows: int, filled: int, per_batch: int, programs: int) -> Usage:
    """used: the sums over all clips, of which ``units`` counts no padding. computed: over all rows."""
    degraded = used.degraded / max(computed.degraded, 1)
    vision = used.units / max(computed.units, 1)
    text = used.tokens / max(computed.tokens, 1)
    both = (used.tokens + used.degraded) / max(computed.tokens + computed.degraded, 1)
    return Usage(programs, rows / per_batch, rows, filled / max(rows, 1), text, degraded, vision, both)


class Epochs(Generic[T]):
    """The plan of each epoch, which is made once: of the threads that make batches, one plans and the others
    wait. The newest two are kept."""

    def __init__(self, plan: Callable[[int], T]):
        self.plan, self.kept = plan, dict[int, T]()

    def __getitem__(self, epoch: int) -> T:
        with PLANNING:
            if epoch not in self.kept:
                before = {e: planned for e, planned in self.kept.items() if e == epoch - 1}
                self.kept = before | {epoch: self.plan(epoch)}
            return self.kept[epoch]


class PackedPlan:
    """The rows of each step. An epoch has every clip as often as its data set's weight says, in an order of
    its own; the rows of the epochs follow one another without a gap, so that no row is empty."""

    programs = 1

    def __init__(
        self,
        sizes: Sequence[Sizes],
        mixture: Mixture,
        rows: int,
        multiples: Sizes,
        row_tokens: int,
    ):
        """rows: of a batch. multiples, row_tokens: see ``row_capacity``."""
        self.sizes, self.mixture, self.row_count = np.array(sizes), mixture, rows
        order = mixture.order(mixture.rng(0))
        self._capacity = row_capacity(self.sizes, order, row_tokens, multiples)
        self.epochs = Epochs(self._rows_of)
        self._rows_in: dict[int, int] = {}  # of each epoch so far

    def capacity(self, step: int) -> Sizes:
        """How much each row of a step holds."""
        return self._capacity

    def _rows_of(self, epoch: int) -> list[list[int]]:
        rng = self.mixture.rng(epoch)
        rows = pack(self.sizes, np.array(self._capacity), self.mixture.order(rng))
        # Rows that were opened late are less full, and short clips stand in rows that were opened early.
        return [rows[i] for i in rng.permutation(len(rows))]

    def usage(self, units_N: np.ndarray) -> Usage:
        """units: of each entry, without padding."""
        rows = self.epochs[0]
        entries = np.concatenate(rows)
        used = Sizes(*self.sizes[entries].sum(axis=0))._replace(units=units_N[entries].sum())
        computed = Sizes(*(len(rows) * np.array(self._capacity)))
        return usage_of(used, computed, len(rows), len(rows), self.row_count, self.programs)

    def rows(self, step: int) -> list[PlannedRow]:
        """The rows of a step."""
        first = step * self.row_count
        out: list[PlannedRow] = []
        epoch = start = 0
        while len(out) < self.row_count:
            if epoch not in self._rows_in:
                self._rows_in[epoch] = len(self.epochs[epoch])
            end = start + self._rows_in[epoch]
            if end > first:
                rows = self.epochs[epoch][max(first - start, 0) : first + self.row_count - start]
                out += [PlannedRow(epoch, row) for row in rows]
            epoch, start = epoch + 1, end
        return out


class PromptPlan:
    """The rows of each step of an epoch, one clip each: clips of neighbouring lengths together.

    The clips of a block stand beside each other in one step. Blocks that are left over of one length go with
    those of the next one, so that only the last batch of an epoch has empty rows."""

    def __init__(
        self,
        sizes: Sequence[Sizes],
        mixture: Mixture,
        rows: int,
        multiples: Sizes,
        blocks: np.ndarray | None = None,
    ):
        """mixture: of the blocks. rows: of a batch. multiples: to which the capacities of rows are rounded
        up. blocks i64[n, k]: the entries of each, -1: an empty row; None: each entry is one."""
        self.sizes, self.mixture, self.row_count = np.array(sizes), mixture, rows
        self.blocks = np.arange(len(sizes))[:, None] if blocks is None else blocks
        self.blocks_a_batch = rows // self.blocks.shape[1]
        own = np.array([round_up(int(tokens), multiples.tokens) for tokens in self.sizes[:, 0]])
        lengths = np.where(self.blocks < 0, 0, own[self.blocks]).max(axis=1)
        limits = choose_lengths(lengths, LENGTHS)
        self.class_of = np.searchsorted(limits, lengths)
        self.capacities = []
        for number in range(len(limits)):
            largest = self.sizes[self._entries(np.flatnonzero(self.class_of <= number))].max(axis=0)
            rounded = [round_up(int(n), multiple) for n, multiple in zip(largest, multiples, strict=True)]
            self.capacities.append(Sizes(*rounded))
        self.steps_per_epoch = -(-len(mixture.order(mixture.rng(0))) // self.blocks_a_batch)
        self.epochs = Epochs(self._batches_of)

    def _entries(self, blocks: np.ndarray) -> np.ndarray:
        """The entries of some blocks, without empty rows."""
        entries = self.blocks[blocks].ravel()
        return entries[entries >= 0]

    def capacity(self, step: int) -> Sizes:
        """How much each row of a step holds."""
        return self.capacities[self._batch(step)[0]]

    @property
    def programs(self) -> int:
        """Number of shapes that the first epoch has."""
        return len({number for number, _ in self.epochs[0]})

    def usage(self, units_N: np.ndarray) -> Usage:
        """units: of each entry, without padding."""
        batches = self.epochs[0]
        rows = len(batches) * self.row_count
        entries = np.concatenate([self._entries(np.array(blocks)) for _, blocks in batches])
        used = Sizes(*self.sizes[entries].sum(axis=0))._replace(units=units_N[entries].sum())
        capacities = np.array([self.capacities[number] for number, _ in batches])
        computed = Sizes(*(self.row_count * capacities.sum(axis=0)))
        return usage_of(used, computed, rows, len(entries), self.row_count, self.programs)

    def rows(self, step: int) -> list[PlannedRow]:
        """The rows of a step; those without an entry are padding, and stand at its end unless a block lacks
        one."""
        entries = self.blocks[self._batch(step)[1]].ravel().tolist()
        entries += [-1] * (self.row_count - len(entries))
        return [PlannedRow(step // self.steps_per_epoch, [n] if n >= 0 else []) for n in entries]

    def _batch(self, step: int) -> tuple[int, list[int]]:
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return self.epochs[epoch][step_in_epoch]

    def _batches_of(self, epoch: int) -> list[tuple[int, list[int]]]:
        """The batches of an epoch: the number of their capacity, and their blocks."""
        rng = self.mixture.rng(epoch)
        order = self.mixture.order(rng)
        batches: list[tuple[int, list[int]]] = []
        waiting: list[int] = []
        last = len(self.capacities) - 1
        for number in range(last + 1):
            waiting += order[self.class_of[order] == number].tolist()
            while len(waiting) >= self.blocks_a_batch or (waiting and number == last):
                batches.append((number, waiting[: self.blocks_a_batch]))
                waiting = waiting[self.blocks_a_batch :]
        return [batches[i] for i in rng.permutation(len(batches))]


def blocks_of(numbers: Sequence[int], together: int) -> np.ndarray:
    """The entries i64[n, k] of each block of k = ``together`` clips, whose numbers follow one another, -1: a
    clip that is not used. numbers: of the clip of each entry."""
    places = {block: place for place, block in enumerate(sorted({n // together for n in numbers}))}
    blocks = np.full((len(places), together), -1)
    for entry, number in enumerate(numbers):
        blocks[places[number // together], number % together] = entry
    return blocks


def choose_lengths(lengths_N: np.ndarray, most: int) -> np.ndarray:
    """Up to ``most`` lengths, ascending, such that rows padded to the next of them compute the fewest tokens.
    Another length must save the share WORTH of them.

    Each of Q candidates may be the longest of some rows. The best k lengths up to a candidate are it and the
    best k - 1 up to an earlier one, whichever that is (dynamic programming)."""
    candidates_Q = np.unique(np.quantile(lengths_N, np.linspace(0, 1, 129), method="higher"))
    rows_upto = np.concatenate([[0], np.searchsorted(np.sort(lengths_N), candidates_Q, "right")])
    # [i, j]: the tokens of the rows from candidate i to candidate j, all padded to j; those longer than
    # candidate i - 1, that is.
    padded_QQ = ((rows_upto[1:] - rows_upto[:-1, None]) * candidates_Q).astype(float)
    padded_QQ[np.tril_indices(len(candidates_Q), -1)] = np.inf

    cost_before_Q = np.full(len(candidates_Q), np.inf)  # of the rows below each candidate, with k lengths
    cost_before_Q[0] = 0
    best, chosen = np.inf, candidates_Q[-1:]
    firsts: list[np.ndarray] = []  # for each k and candidate j, the i of the rows that are padded to j
    for _ in range(most):
        costs_QQ = cost_before_Q[:, None] + padded_QQ
        firsts.append(costs_QQ.argmin(axis=0))
        cost_upto_Q = costs_QQ.min(axis=0)
        if not cost_upto_Q[-1] < (1 - WORTH) * best:
            break
        best, cost_before_Q = cost_upto_Q[-1], np.concatenate([[np.inf], cost_upto_Q[:-1]])
        ends = [len(candidates_Q) - 1]
        for first_Q in reversed(firsts[1:]):
            ends.append(int(first_Q[ends[-1]]) - 1)
        chosen = candidates_Q[ends[::-1]]
    return chosen
