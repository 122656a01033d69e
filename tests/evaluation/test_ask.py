"""What each control shows, and predictions on disk."""

from types import SimpleNamespace

import numpy as np
import pytest

from vpjax.evaluation.ask import CONTROLS, Prediction, Predictions, Query, pad_answers, sources
from vpjax.types import UserError

SLOTS = 7
IDENTITY = np.arange(SLOTS)
VIDEO_CONTROLS = [control for control in CONTROLS if control != "blind"]


@pytest.fixture
def batch():
    """Rows with 5 and 7 slots and a V~, a row without a V~, and a row of padding."""
    source = np.tile(IDENTITY, (4, 1))
    source[0, 2:4] = 1
    source[1, 5] = 6
    valid = IDENTITY < [[5], [7], [7], [7]]
    return SimpleNamespace(clip=np.array([3, 0, 5, -1]), slot_valid=valid, source=source)


@pytest.mark.parametrize("control", VIDEO_CONTROLS)
def test_only_slots_of_the_clip_are_changed(batch, control):
    source, has_control = sources(batch, control, seed=3)
    assert not has_control[3]
    for row, valid in zip(source, batch.slot_valid, strict=True):
        np.testing.assert_array_equal(row[~valid], IDENTITY[~valid])
        assert set(row[valid]) <= set(IDENTITY[valid])


def test_key_and_random_replace_as_many_slots(batch):
    replaced = batch.source != IDENTITY
    changed = {}
    for control in ("key", "random"):
        source, has_control = sources(batch, control, seed=3)
        changed[control] = source != IDENTITY
        np.testing.assert_array_equal(has_control, [True, True, False, False])
    np.testing.assert_array_equal(changed["key"], replaced)
    np.testing.assert_array_equal(changed["random"].sum(1), replaced.sum(1))
    assert not (changed["random"] & replaced).any()


def test_other_controls_are_orders_of_all_slots(batch):
    source = {}
    for control in ("none", "shuffle", "reverse", "single"):
        source[control], has_control = sources(batch, control, seed=3)
        np.testing.assert_array_equal(has_control, [True, True, True, False])
    for row, count in enumerate((5, 7, 7)):
        np.testing.assert_array_equal(source["none"][row], IDENTITY)
        np.testing.assert_array_equal(np.sort(source["shuffle"][row]), IDENTITY)
        np.testing.assert_array_equal(source["reverse"][row][:count], IDENTITY[:count][::-1])
        assert set(source["single"][row][:count]) == {count // 2}


def test_shuffle_depends_on_the_seed_alone(batch):
    shuffled = [sources(batch, "shuffle", seed)[0] for seed in (3, 3, 4)]
    np.testing.assert_array_equal(shuffled[0], shuffled[1])
    assert (shuffled[0] != shuffled[2]).any()


def test_candidates_are_padded():
    tokens, valid = pad_answers([[np.array([5, 6]), np.array([7])], []], 2, 3)
    np.testing.assert_array_equal(tokens, [[[5, 6, 0], [7, 0, 0]], np.zeros((2, 3))])
    assert valid.sum((1, 2)).tolist() == [3, 0]


def test_predictions_are_read_back(tmp_path):
    """What was appended, without the line that a killed process left unfinished."""
    predictions = [Prediction("a", "none", False, "spins\u2028"), Prediction("b", "key", True, fault="gone")]
    file = tmp_path / "predictions.jsonl"
    with Predictions(file) as written:
        for prediction in predictions:
            written.append(prediction)
    with file.open("ab") as half_written:
        half_written.write(b'{"id": "c')
    for writes in (False, True):
        with Predictions(file, writes=writes) as read:
            assert list(read.known.values()) == predictions and Query("b", "key", True) in read.known
            if not writes:
                read.append(Prediction("c", "none", False))  # kept in memory
    assert file.read_bytes().count(b"\n") == 2 and file.read_bytes().endswith(b"}\n")
    file.write_text("[]\n")
    with pytest.raises(UserError, match=r"predictions.jsonl, line 1"):
        Predictions(file)
