"""Pages of rollouts, and curves."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from vpjax.models.generate import Completions
from vpjax.training.judged import JudgedRollouts
from vpjax.training.report import draw_curves, panels_of, rollouts_page
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


def test_a_metric_is_drawn_once_in_the_first_panel_that_has_it():
    names = ["step", "loss", "loss/lm", "loss/lm/general", "heldout/loss", "heldout/key/loss", "lr"]
    names += ["heldout/accuracy", "heldout/key/R@0.5", "loss/contrast"]
    assert panels_of(names) == {
        "loss": ["loss", "loss/lm", "heldout/loss", "heldout/key/loss"],
        "held-out answers": ["heldout/accuracy", "heldout/key/R@0.5"],
        "contrast loss": ["loss/contrast"],
        "learning rate": ["lr"],
    }


@pytest.mark.parametrize("lowest, scale", [(0.5, "log"), (0.0, "linear"), (-0.5, "linear")])
def test_losses_have_a_logarithmic_axis_with_held_out_points_on_it(tmp_path, monkeypatch, lowest, scale):
    """Unless GRPO's loss, which has both signs, is drawn there. Points stand where they were measured."""
    lines = [{"step": step, "loss": lowest + step, "lr": 1.0} for step in range(5)]
    lines[2] |= {"heldout/loss": 2.5}
    lines[4] |= {"heldout/loss": 1.5}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    draw_curves(tmp_path)
    panels = {panel.get_title(): panel for panel in figures[0].axes}
    assert panels["loss"].get_yscale() == scale and panels["learning rate"].get_yscale() == "linear"
    drawn = {line.get_label(): line for line in panels["loss"].get_lines()}
    np.testing.assert_array_equal(drawn["heldout/loss"].get_xydata(), [[2, 2.5], [4, 1.5]])
    assert drawn["heldout/loss"].get_marker() == "o"
