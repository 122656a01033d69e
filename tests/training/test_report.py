"""Pages of rollouts."""

from types import SimpleNamespace

import numpy as np

from vpjax.models.generate import Completions
from vpjax.training.judged import JudgedRollouts
from vpjax.training.report import rollouts_page
from vpjax.types import Clip


def test_each_video_has_the_rewards_for_what_is_true_of_it():
    """One completion on V and two on V~, whose own rewards stand in columns of their own; no padding row."""
    mask = np.array([[[[True], [False]], [[True], [True]]]] * 2)
    completions = Completions(np.ones(mask.shape, np.int32), mask, None)
    event = np.array([[[1.0, np.nan], [0.0, 0.25]]] * 2)
    absent = np.array([[0.5, 0.75]] * 2)
    rollouts = JudgedRollouts(completions, {"event": event}, event, {"absent": absent}, 2 * event, None)
    clip = Clip("a", "", "What?", "It spins.", degraded_answer="It stays the same.")
    page = rollouts_page(rollouts, [clip, None], SimpleNamespace(decode=lambda ids: "word"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "word" in line]
    assert "| video | completion | event | total | absent on V~ | advantage |" in page
    assert rows == [
        ["V", "word", "1.00", "1.00", "", "+2.00"],
        ["V~", "word", "0.00", "0.00", "0.50", "+0.00"],
        ["V~", "word", "0.25", "0.25", "0.75", "+0.50"],
    ]
    assert "It spins." in page and "It stays the same." in page and page.count("## ") == 1
