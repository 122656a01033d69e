"""What each control shows, and predictions on disk."""

import numpy as np
import pytest

from vpjax.data.collate import empty_prompts
from vpjax.data.packing import Sizes
from vpjax.data.units import Capacity
from vpjax.evaluation.ask import Prediction, Predictions, Query
from vpjax.evaluation.controls import CONTROLS, control_shows
from vpjax.evaluation.ranking import best_answer, pad_answers
from vpjax.models.config import VLMConfig
from vpjax.types import UserError

VIDEO_CONTROLS = [control for control in CONTROLS if control != "blind"]
TOKENS = 30
SLOTS, UNITS = (5, 7, 7, 0, 0), (2, 3, 1, 0, 0)  # of each row, and of each of its slots
KEY = {0: [0, 1, 1, 1, 4], 1: [0, 1, 2, 3, 4, 6, 6]}  # the slots that V~ shows
CLIPS = [3, 0, 5, 4, -1]


def visual(row):
    """The places of a row's visual tokens: after some words, with a word between its slots."""
    return np.arange(SLOTS[row])[:, None] * (UNITS[row] + 1) + 2 + np.arange(UNITS[row])


def units(row):
    """The unit [S, M] that each token of V shows: in an order of its own, as windows have."""
    return np.random.default_rng(row).permutation(SLOTS[row] * UNITS[row]).reshape(SLOTS[row], UNITS[row])


def seen(row, source):
    """The ``shows`` of a row, worked token by token."""
    out = np.full(TOKENS, -1)
    for slot, shown in enumerate(source):
        for m, place in enumerate(visual(row)[slot]):
            out[place] = units(row)[shown, m]
    return out


@pytest.fixture
def prompts():
    """Rows of 5 and 7 slots and a V~, a row without a V~, a row of text and one of padding."""
    from tests import tiny

    model_config = VLMConfig.from_hf(tiny.MODELS["tied"])
    prompts = empty_prompts(len(CLIPS), Sizes(TOKENS), Capacity(1, 0), model_config)
    prompts.clip[:] = CLIPS
    for row, slots in enumerate(SLOTS):
        prompts.text.shows[row] = seen(row, range(slots))
        prompts.shows_degraded[row] = seen(row, KEY.get(row, range(slots)))
        for slot, places in enumerate(visual(row)):
            prompts.text.slot[row, places], prompts.medium[row, places] = slot, 0
    return prompts


def sources(prompts, control, seed):
    """The slot of V that each slot of a control's video shows, of each row, found by its units; None for a
    slot that mixes them or shows them in another order."""
    shows, has_control = control_shows(prompts, control, seed)
    found = []
    for row, slots in enumerate(SLOTS):
        of_units = {tuple(units(row)[slot]): slot for slot in range(slots)}
        found.append([of_units.get(tuple(shows[row, places])) for places in visual(row)])
        is_text = np.setdiff1d(np.arange(TOKENS), visual(row).ravel())
        assert (shows[row, is_text] == -1).all()
    return found, has_control.tolist()


@pytest.mark.parametrize("control", VIDEO_CONTROLS)
def test_every_slot_shows_a_whole_slot_of_its_clip(prompts, control):
    found, has_control = sources(prompts, control, seed=3)
    assert all(None not in row for row in found) and not has_control[4]
    assert [len(row) for row in found] == list(SLOTS)


def test_key_and_random_replace_as_many_slots(prompts):
    replaced = {}
    for control in ("key", "random"):
        found, has_control = sources(prompts, control, seed=3)
        # Row 0 replaces 2 of 5 slots, which leaves no other two that do not touch them.
        assert has_control == [control == "key", True, False, False, False]
        replaced[control] = [{slot for slot, shown in enumerate(row) if slot != shown} for row in found]
        if control == "key":
            assert found == [KEY.get(row, list(range(slots))) for row, slots in enumerate(SLOTS)]
    assert replaced["key"] == [{2, 3}, {5}, set(), set(), set()]
    for key, random in zip(replaced["key"], replaced["random"], strict=True):
        assert not random & key
    assert len(replaced["random"][1]) == 1


def test_other_controls_are_orders_of_all_slots(prompts):
    found = {}
    for control in ("none", "shuffle", "reverse", "single"):
        found[control], has_control = sources(prompts, control, seed=3)
        assert has_control == [True, True, True, True, False]
    for row, slots in enumerate(SLOTS):
        in_order = list(range(slots))
        assert found["none"][row] == sorted(found["shuffle"][row]) == in_order
        assert found["reverse"][row] == in_order[::-1]
        assert found["single"][row] == [slots // 2] * slots


def test_shuffle_depends_on_the_seed_and_the_clip_alone(prompts):
    first, again, other = (sources(prompts, "shuffle", seed)[0] for seed in (3, 3, 4))
    assert first == again != other
    prompts.clip[1] = 9
    changed = sources(prompts, "shuffle", 3)[0]
    assert changed[1] != first[1] and changed[0] == first[0] and changed[2] == first[2]


def test_candidates_are_padded():
    tokens, valid = pad_answers([[np.array([5, 6]), np.array([7])], []], 2, 3)
    np.testing.assert_array_equal(tokens, [[[5, 6, 0], [7, 0, 0]], np.zeros((2, 3))])
    assert valid.sum((1, 2)).tolist() == [3, 0]


def test_the_best_answer_has_the_highest_score():
    answers = ("spins", "grows", "spins")
    for scores, best in (
        ([0.5, 0.25, 0.0], "spins"),
        ([-3.0, -2.0, -9.0], "grows"),
        ([1.0, 0.0, 1.0], "spins"),  # the same answer twice
        ([1.0, 1.0, 0.0], None),
        ([0.0, 0.0, 0.0], None),
        ([np.nan, np.nan, np.nan], None),
    ):
        assert best_answer(answers, np.array(scores)) == best
    assert best_answer(("spins",), np.zeros(1)) == "spins"


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
