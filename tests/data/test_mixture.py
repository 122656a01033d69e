"""The data sets of a run, and how often their clips come."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from vpjax.data.mixture import DataSet, Mixture, data_sets
from vpjax.types import UserError


def sets_of(train, videos=""):
    return data_sets(ConfigDict(dict(train=train, videos=videos)))


def test_one_file_is_a_mixture_of_one():
    expected = [DataSet("gs://a/train.jsonl", "train", 1.0, "", "/videos")]
    assert sets_of("gs://a/train.jsonl", "/videos") == expected
    assert sets_of(dict(file="gs://a/train.jsonl"), "/videos") == expected
    assert sets_of("events") == [DataSet("events", "events")]


def test_each_data_set_may_say_more():
    train = ("a.jsonl", dict(file="b/c.array_record", weight=0.5, instruction="Be brief.", videos="/v"))
    assert sets_of(train, "/all") == [
        DataSet("a.jsonl", "a", 1.0, "", "/all"),
        DataSet("b/c.array_record", "c", 0.5, "Be brief.", "/v"),
    ]
    assert [
        s.name for s in sets_of([dict(file="x/a.jsonl", name="x"), dict(file="y/a.jsonl", name="y")])
    ] == [
        "x",
        "y",
    ]


@pytest.mark.parametrize(
    "train, message",
    [
        ((), "data.train has the data sets []: give at least one"),
        ("", "data.train[0] is {'file': ''}: give file, and any of name, weight, instruction, videos"),
        ((dict(weight=1.0),), "data.train[0] is {'weight': 1.0}: give file"),
        (("a.jsonl", dict(file="b.jsonl", wait=2)), "data.train[1] is {'file': 'b.jsonl', 'wait': 2}"),
        ((3,), "data.train[0] is {'file': 3}: give file"),
        ((dict(file=3),), "data.train[0] is {'file': 3}: give file"),
        ((dict(file="a.jsonl", name=3),), "as texts but for weight, a number"),
        ((dict(file="a.jsonl", weight=0),), "data.train[0]: weight=0: set it to a number above 0"),
        ((dict(file="a.jsonl", weight=-1.0),), "weight=-1.0: set it to a number above 0"),
        ((dict(file="a.jsonl", weight="much"),), "weight='much': set it to a number above 0"),
        ((dict(file="a.jsonl", weight=float("nan")),), "weight=nan: set it to a number above 0"),
        ((dict(file="a.jsonl", weight=float("inf")),), "weight=inf: set it to a number above 0"),
        (("x/a.jsonl", "y/a.jsonl"), "['a', 'a']: give at least one, and each a name of its own"),
    ],
)
def test_what_cannot_be_mixed_is_named(train, message):
    with pytest.raises(UserError) as error:
        sets_of(train)
    assert message in str(error.value)


WEIGHTS = (1.0, 2.0, 0.5, 1.25)
DATA_SET_OF = np.repeat([0, 1, 2, 3], [7, 5, 8, 12])


def test_entries_come_as_often_as_their_weight_says():
    mixture = Mixture(DATA_SET_OF.tolist(), WEIGHTS, seed=3)
    fractions = []
    for epoch in range(20):
        order = mixture.order(mixture.rng(epoch))
        times = np.bincount(order, minlength=len(DATA_SET_OF))
        assert (times[DATA_SET_OF == 0] == 1).all() and (times[DATA_SET_OF == 1] == 2).all()
        assert times[DATA_SET_OF == 2].sum() == 4 and times[DATA_SET_OF == 2].max() == 1
        assert times[DATA_SET_OF == 3].sum() == 15 and set(times[DATA_SET_OF == 3]) == {1, 2}
        fractions.append(times[DATA_SET_OF == 2])
        np.testing.assert_array_equal(order, mixture.order(mixture.rng(epoch)))
    # In the long run every clip of a fraction comes: none is left out in 20 epochs but once in 2 ** 20.
    assert (np.sum(fractions, axis=0) > 0).all()


def test_the_order_is_another_in_each_epoch_and_with_each_seed():
    one, other = Mixture([0] * 50, (1.0,), 0), Mixture([0] * 50, (1.0,), 1)
    orders = [m.order(m.rng(epoch)).tolist() for m in (one, other) for epoch in (0, 1)]
    assert len({str(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_data_sets_are_mixed_evenly():
    """Each half of an epoch has its share of each, to within five standard deviations."""
    mixture = Mixture([0] * 1000 + [1] * 3000, (1.0, 1.0), 0)
    first = mixture.order(mixture.rng(0))[:2000]
    deviation = np.sqrt(2000 * 0.25 * 0.75 * 0.5)  # without replacement, from twice as many
    assert abs((first < 1000).sum() - 500) < 5 * deviation


def test_a_weight_that_takes_nothing_is_refused():
    with pytest.raises(UserError, match=r"data.train\[1\]: weight=0.1 takes none of 4 clips; raise it"):
        Mixture([0, 1, 1, 1, 1], (1.0, 0.1), 0)
    assert len(Mixture([0] * 3, (1.0, 0.1), 0).order(np.random.default_rng(0))) == 3  # none to take from
