"""The plan of rows: what fits, what comes when, and how full it is."""

import itertools
import pickle
import threading
import time

import numpy as np
import pytest

from vpjax.data.mixture import Mixture
from vpjax.data.packing import (
    LENGTHS,
    WORTH,
    Epochs,
    PackedPlan,
    PromptPlan,
    Sizes,
    blocks_of,
    choose_lengths,
    pack,
)

MULTIPLES = Sizes(16, 4, 6, 1, 1, 1, 1, 1, degraded_targets=1)
CLIPS = 600


def population(count=CLIPS, seed=0):
    """Clips of 40 to 2,000 tokens, most of them short, as real ones are; what else they take varies too."""
    rng = np.random.default_rng(seed)
    tokens = np.clip(rng.lognormal(5.5, 0.8, count), 40, 2000).astype(int)
    out = []
    for length in tokens:
        units = 4 * int(length * rng.uniform(0.1, 0.25))
        shown = int(rng.integers(0, 3))
        slots = units // 4
        degraded = int(length * 0.9) if shown else 0
        targets, keywords = int(rng.integers(5, 30)), int(rng.integers(0, 4))
        out.append(Sizes(int(length), units, 6 * slots, degraded, targets, keywords, slots, shown * slots))
    return out


def plan_of(sizes, *, packed=True, rows=8, weights=(1.0,), data_set_of=None, seed=3, row_tokens=4096):
    mixture = Mixture(data_set_of or [0] * len(sizes), weights, seed)
    if not packed:
        return PromptPlan(sizes, mixture, rows, MULTIPLES)
    return PackedPlan(sizes, mixture, rows, MULTIPLES, row_tokens)


def first_epoch(plan):
    """The rows of the first epoch, in order, and the steps from which they are."""
    rows, step = [], 0
    while True:
        now = plan.rows(step)
        rows += [(step, list(row.entries)) for row in now if row.epoch == 0]
        if now[-1].epoch:
            return rows
        step += 1


def taken(sizes, entries):
    return np.array([sizes[entry] for entry in entries]).sum(axis=0)


KINDS = pytest.mark.parametrize("packed", [True, False], ids=["packed", "prompts"])


def test_blocks_of_prompts_are_never_torn():
    """A clip that is not used leaves its row empty, and the others of its block where they are."""
    sizes = population(200)
    numbers = [n for n in range(210) if n % 21 != 20][: len(sizes)]
    blocks = blocks_of(numbers, 7)
    assert blocks.shape == (30, 7) and (blocks < 0).sum() == 10 and not (blocks[0::3] < 0).any()
    mixture = Mixture([0] * len(blocks), (1.0,), 3)
    plan = PromptPlan(sizes, mixture, 28, MULTIPLES, blocks)
    seen = []
    for step in range(plan.steps_per_epoch):
        rows = [list(row.entries) for row in plan.rows(step)]
        assert len(rows) == 28
        for place in range(0, 28, 7):
            own = [row[0] if row else -1 for row in rows[place : place + 7]]
            if max(own) >= 0:
                block = numbers[max(own)] // 7
                assert own == blocks[block].tolist()
                seen.append(block)
        entries = [row[0] for row in rows if row]
        assert max(sizes[entry].tokens for entry in entries) <= plan.capacity(step).tokens
    assert sorted(seen) == list(range(30))
    np.testing.assert_array_equal(blocks_of(range(5), 1), np.arange(5)[:, None])


@KINDS
def test_no_row_holds_more_than_its_capacity(packed):
    sizes = population()
    plan = plan_of(sizes, packed=packed)
    for step, entries in first_epoch(plan):
        capacity = plan.capacity(step)
        assert all(n % multiple == 0 for n, multiple in zip(capacity, MULTIPLES, strict=True))
        if entries:
            assert (taken(sizes, entries) <= capacity).all()
        if not packed:
            assert len(entries) <= 1


@KINDS
@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5), (1.25, 3.0)])
def test_clips_come_as_often_as_their_weight_says(packed, weights):
    """So in every epoch, with other clips for the fraction of a weight in each."""
    count = 80
    plan = plan_of(population(2 * count), packed=packed, weights=weights, data_set_of=[0, 1] * count, rows=4)
    epochs = [np.zeros(2 * count, int) for _ in range(3)]
    step = 0
    while True:
        rows = plan.rows(step)
        for row in rows:
            if row.epoch < 3:
                np.add.at(epochs[row.epoch], list(row.entries), 1)
        if rows[-1].epoch >= 3:
            break
        step += 1
    for data_set, weight in enumerate(weights):
        for epoch in epochs:
            times = epoch[data_set::2]
            assert times.sum() == round(weight * count)
            assert set(times) <= {int(weight), int(np.ceil(weight))}
        if weight % 1:
            assert any((epochs[0] != epoch)[data_set::2].any() for epoch in epochs[1:])


@KINDS
def test_a_step_is_a_pure_function_of_sizes_seed_and_step(packed):
    """In any order of the steps: a plan that starts at a later step goes on as the uninterrupted one."""
    sizes = population(120)
    whole = plan_of(sizes, packed=packed)
    expected = [(whole.rows(step), whole.capacity(step)) for step in range(60)]
    assert {row.epoch for rows, _ in expected for row in rows} >= {0, 1, 2}
    for order in (range(59, -1, -1), [37, 2, 58, 0, 21], np.random.default_rng(0).permutation(60)):
        plan = plan_of(sizes, packed=packed)
        for step in order:
            assert (plan.rows(int(step)), plan.capacity(int(step))) == expected[step]
    other = plan_of(sizes, packed=packed, seed=4)
    assert [other.rows(step) for step in range(5)] != [rows for rows, _ in expected[:5]]


def in_threads(work, count=8):
    """Run ``work(number)`` in threads that start together."""
    start = threading.Barrier(count)

    def run(number):
        start.wait()
        work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_an_epoch_is_planned_once():
    """Whichever thread comes first; those that are still in the epoch before find it kept."""
    planned = []

    def plan(epoch):
        time.sleep(1e-3)  # other threads run meanwhile
        planned.append(epoch)
        return epoch

    epochs = Epochs(plan)

    def work(_):
        assert [epochs[epoch] for epoch in (0, 1, 1, 0, 1)] == [0, 1, 1, 0, 1]

    in_threads(work)
    assert planned == [0, 1]


@KINDS
def test_threads_and_copies_see_the_same_rows(packed, monkeypatch):
    """Batches are made by several threads, which come to a new epoch at the same time, or by processes."""
    sizes = population(60)
    one = plan_of(sizes, packed=packed)
    expected = [one.rows(step) for step in range(40)]
    copy = pickle.loads(pickle.dumps(one))
    assert [copy.rows(step) for step in range(40)] == expected

    order = Mixture.order

    def slow_order(self, rng):
        time.sleep(1e-3)  # other threads run meanwhile
        return order(self, rng)

    monkeypatch.setattr(Mixture, "order", slow_order)
    for _ in range(2):
        plan, found = plan_of(sizes, packed=packed), {}

        def work(number, plan=plan, found=found):
            found.update({step: plan.rows(step) for step in range(number, 40, 8)})

        in_threads(work)
        assert [found[step] for step in range(40)] == expected


def test_packed_epochs_follow_without_a_gap():
    plan = plan_of(population(100), rows=7)
    epochs = [row.epoch for step in range(40) for row in plan.rows(step)]
    assert all(len(row.entries) for step in range(40) for row in plan.rows(step))
    assert epochs == sorted(epochs) and set(epochs) == set(range(max(epochs) + 1))


@KINDS
def test_no_clips_come_early(packed):
    """Neither short ones nor long ones, nor those of fuller rows: over 60 epochs, the clips of the first and
    of the last tenth of the rows are as long as all, and their rows as full, to within the errors of these
    means. (If the rows came in the order in which they are packed, the last would be 8 errors less full; if
    the batches of prompts came by length, the first clips would be 190 errors shorter.)"""
    sizes = population(400)
    tokens = np.array([size.tokens for size in sizes])
    plan = plan_of(sizes, packed=packed)
    deviations = []
    for epoch in range(60):
        rows = plan.epochs[epoch] if packed else [entries for _, entries in plan.epochs[epoch]]
        full = np.array([tokens[row].sum() for row in rows])
        tenth = len(rows) // 10
        for part in (slice(tenth), slice(-tenth, None)):
            length = tokens[np.concatenate(rows[part])].mean()
            deviations.append((length - tokens.mean(), full[part].mean() - full.mean()))
    by_epoch = np.array(deviations).reshape(60, -1)
    errors = by_epoch.std(axis=0, ddof=1) / np.sqrt(60)
    assert (np.abs(by_epoch.mean(axis=0)) < 3.5 * errors).all()


def test_rows_are_full():
    """Of tokens, units and tokens of V~ alike, although a clip has them in any proportion; room for whatever
    the fullest rows need would cost more."""
    sizes = population(4000)
    plan = plan_of(sizes)
    use = plan.usage(np.array([size.units for size in sizes]))
    assert (use.programs, use.rows_filled) == (1, 1.0) and use.rows == len(plan.epochs[0])
    computed = ("tokens", "units", "degraded")
    shares = (use.text, use.vision, use.degraded)
    for name, share in zip(computed, shares, strict=True):
        total = sum(getattr(size, name) for size in sizes)
        assert share == total / (use.rows * getattr(plan.capacity(0), name)) > 0.94  # measured: .95 to .97

    array = np.array(sizes)
    by_tokens = pack(array[:, :1], np.array([4096]), np.random.default_rng(0).permutation(len(sizes)))
    needed = np.max([array[row].sum(axis=0) for row in by_tokens], axis=0)
    at = [Sizes._fields.index(name) for name in computed]
    assert use.rows * np.array(plan.capacity(0))[at].sum() < 0.9 * len(by_tokens) * needed[at].sum()


@pytest.mark.parametrize("row_tokens", [0, 100, 208])
def test_equal_clips_stand_alone_in_rows_of_their_length(row_tokens):
    """So the smallest case is what it would be without packing."""
    plan = plan_of([Sizes(200, 32, 0, 150, 20, 1, 8, 8)] * 10, rows=2, row_tokens=row_tokens)
    assert plan.capacity(0) == Sizes(208, 32, 0, 150, 20, 1, 8, 8, 1)
    assert [len(row.entries) for step in range(10) for row in plan.rows(step)] == [1] * 20


def test_what_alone_exceeds_a_row_is_refused():
    sizes = np.array([[5, 1], [3, 9]])
    assert pack(sizes, np.array([8, 10]), np.array([0, 1])) == [[1, 0]]
    assert pack(sizes, np.array([8, 9]), np.array([0, 1])) == [[1], [0]]
    with pytest.raises(ValueError, match="larger than a row"):
        pack(sizes, np.array([8, 8]), np.array([0, 1]))


def test_prompts_have_few_lengths_and_only_the_last_batch_has_empty_rows():
    for seed, count in itertools.product(range(3), (1, 5, 8, 100, 601)):
        sizes = population(count, seed)
        plan = plan_of(sizes, packed=False, seed=seed)
        assert plan.programs <= LENGTHS and plan.steps_per_epoch == -(-count // 8)
        rows = [plan.rows(step) for step in range(plan.steps_per_epoch)]
        empty = [sum(not row.entries for row in batch) for batch in rows]
        assert sum(empty) == -count % 8 and sum(n > 0 for n in empty) <= 1
        assert all(batch[0].entries for batch in rows)  # a batch is never wholly empty
        shapes = {plan.capacity(step) for step in range(plan.steps_per_epoch)}
        assert len(shapes) == plan.programs
        for step, batch in enumerate(rows):
            for row in batch:
                assert all((np.array(sizes[entry]) <= plan.capacity(step)).all() for entry in row.entries)
        use = plan.usage(np.array([size.units for size in sizes]))
        computed = 8 * sum(plan.capacity(step).tokens for step in range(plan.steps_per_epoch))
        assert use.text == sum(size.tokens for size in sizes) / computed
        assert use.rows_filled == count / (8 * len(rows))


def test_prompts_of_neighbouring_lengths_stand_together():
    """Clips longer than all lengths but the last are in batches of the last only, and so on; no more than a
    batch of each length waits for the next one."""
    sizes = population(2000)
    plan = plan_of(sizes, packed=False)
    lengths = sorted(capacity.tokens for capacity in plan.capacities)
    for shorter, length in itertools.pairwise([0, *lengths]):
        batches = [plan.rows(s) for s in range(plan.steps_per_epoch) if plan.capacity(s).tokens == length]
        tokens = [sizes[entry].tokens for batch in batches for row in batch for entry in row.entries]
        assert max(tokens) <= length and sum(n <= shorter for n in tokens) < 8


def padded(lengths, chosen):
    return sum(min(c for c in chosen if c >= length) for length in lengths)


def test_lengths_are_the_best_choice():
    """By trying all: no other choice of as many lengths computes fewer tokens, and one more would not save
    the share of them that is worth a program."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        lengths = 16 * rng.integers(1, 12, rng.integers(1, 40))
        distinct = sorted(set(lengths.tolist()))

        def best(count, lengths=lengths, distinct=distinct):
            most = distinct[-1]
            choices = itertools.combinations(distinct[:-1], count - 1)
            return min((padded(lengths, (*choice, most)) for choice in choices), default=np.inf)

        chosen = choose_lengths(lengths, LENGTHS).tolist()
        assert chosen == sorted(chosen) and chosen[-1] == distinct[-1] and set(chosen) <= set(distinct)
        assert padded(lengths, chosen) == best(len(chosen))
        for count in range(1, len(chosen)):
            assert best(count + 1) < (1 - WORTH) * best(count)
        if len(chosen) < LENGTHS:
            assert not best(len(chosen) + 1) < (1 - WORTH) * best(len(chosen))


def test_lengths_of_many_clips_are_nearly_the_best():
    """Of more than 128 lengths, only as many quantiles are candidates."""
    lengths = np.random.default_rng(0).lognormal(6, 0.7, 20_000).astype(int) + 20
    chosen = choose_lengths(lengths, LENGTHS)
    finest = np.quantile(lengths, np.linspace(0, 1, 401), method="higher")

    def tokens(limits):
        return (limits[np.searchsorted(limits, lengths)]).sum()

    rng = np.random.default_rng(1)
    for _ in range(400):
        others = np.unique([*rng.choice(finest, len(chosen) - 1, replace=False), lengths.max()])
        assert tokens(chosen) <= tokens(others) * 1.01


def test_the_smallest_data_sets():
    for count in (1, 2, 3):
        sizes = [Sizes(50, 0, 0, 0, 5)] * count
        packed, prompts = plan_of(sizes, row_tokens=100), plan_of(sizes, packed=False)
        assert packed.capacity(0).tokens == 112
        numbers = [entry for row in packed.rows(0) for entry in row.entries]
        assert set(numbers) == set(range(count)) and all(row.entries for row in packed.rows(0))
        assert sorted(e for row in prompts.rows(0) for e in row.entries) == list(range(count))
