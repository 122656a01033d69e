"""Positions worked by hand, and compared with transformers where its rule and Qwen's agree."""

from types import SimpleNamespace

import numpy as np
import pytest

from vpjax.data.positions import positions, slot_seconds, time_ids

PADS = (7, 8)  # image, video


def place(layout, grid=None, seconds=0.0, per_second=2.0, rule="qwen"):
    """positions() of a layout such as "ttvvt": t text, i image token, v video token."""
    ids = np.array([{"t": 1, "i": 7, "v": 8}[kind] for kind in layout], np.int32)
    grids = [] if grid is None else [grid]
    return positions(ids, grids, [seconds] * len(grids), per_second, pads=PADS, rule=rule).tolist()


# Each table: the layout and its grid, seconds per slot, tokens per second; then the three axes.
TABLES = {
    "text only": (("ttttt", None, 0.0, 2.0), "01234", "01234", "01234"),
    "image: one time, rows, columns; text at 2 + 2": (
        ("ttiiiitt", (1, 2, 2), 0.0, 2.0),
        "01222245",
        "01223345",
        "01232345",
    ),
    "image wider than high: text at 1 + 3": (
        ("tiiiiiitt", (1, 2, 3), 0.0, 2.0),
        "011111145",
        "011122245",
        "012312345",
    ),
    "video at 1 fps: 2 s a slot are 4 ids": (
        ("tvvvvvvt", (3, 1, 2), 2.0, 2.0),
        [0, 1, 1, 5, 5, 9, 9, 10],
        [0, 1, 1, 1, 1, 1, 1, 10],
        [0, 1, 2, 1, 2, 1, 2, 10],
    ),
    "video at 2 fps: 1 s a slot is 2 ids": (
        ("tvvvttt", (3, 1, 1), 1.0, 2.0),
        "0135678",
        "0111678",
        "0111678",
    ),
    "video at 8 fps: half an id a slot, so pairs share one": (
        ("ttvvvvtt", (4, 1, 1), 0.25, 2.0),
        "01223345",
        "01222245",
        "01222245",
    ),
    "the same with 4 tokens per second: distinct": (
        ("ttvvvvtt", (4, 1, 1), 0.25, 4.0),
        "01234567",
        "01222267",
        "01222267",
    ),
    "video at 16 fps: four slots share one": (
        ("tvvvvvvvvt", (8, 1, 1), 0.125, 2.0),
        "0111122223",
        "0111111113",
        "0111111113",
    ),
    "video at 16 fps, 25 tokens per second: 3.125 a slot, rounded down": (
        ("tvvvvvt", (5, 1, 1), 0.125, 25.0),
        [0, 1, 4, 7, 10, 13, 14],
        [0, 1, 1, 1, 1, 1, 14],
        [0, 1, 1, 1, 1, 1, 14],
    ),
    "video higher than long: its height decides where text goes on": (
        ("ttvvvvvvtt", (2, 3, 1), 0.25, 2.0),
        "0122222256",
        "0123423456",
        "0122222256",
    ),
    "slots apart, as Qwen3-VL has them: each an image; between them text at + 2": (
        ("tvvtvvt", (2, 1, 2), 0.25, None),
        "0113446",
        "0113446",
        "0123456",
    ),
    "slots apart, three words between them": (
        ("ttvvtttvvt", (2, 2, 1), 9.0, None),
        "0122456779",
        "0123456789",
        "0122456779",
    ),
    "slots apart, one token each: a line": (("vtvtv", (3, 1, 1), 1.0, None), "01234", "01234", "01234"),
    "an image where slots stand apart": (("tiiiit", (1, 2, 2), 0.0, None), "011113", "011223", "012123"),
    "video first": (("vvvvt", (2, 1, 2), 1.0, 2.0), "00223", "00003", "01013"),
    "video last": (("tvv", (2, 1, 1), 1.0, 2.0), "013", "011", "011"),
    "30000/1001 fps, 30 tokens per second: 2.002 ids a slot": (
        ("vvvt", (3, 1, 1), 2002 / 30000, 30.0),
        "0245",
        "0005",
        "0005",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name):
    arguments, *axes = TABLES[name]
    assert place(*arguments) == [[int(x) for x in axis] for axis in axes]


def test_transformers_5_restarts_text_after_the_spatial_extent():
    arguments = ("tvvvvvvt", (3, 1, 2), 2.0, 2.0)
    ours, theirs = np.array(place(*arguments)), np.array(place(*arguments, rule="transformers5"))
    np.testing.assert_array_equal(ours[:, :-1], theirs[:, :-1])
    assert theirs[:, -1].tolist() == [3, 3, 3]  # 1 + max(1, 2)
    assert ours[:, -1].tolist() == [10, 10, 10]


def test_measured_times_do_not_push_a_slot_below_its_id():
    assert time_ids(4, 0.25 - 1e-9, 4.0).tolist() == [0, 1, 2, 3]
    assert time_ids(4, 0.24, 4.0).tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(
    "layout, grid, per_second",
    [
        ("tvvt", None, 2.0),
        ("tttt", (1, 1, 2), 2.0),
        ("tvvt", (1, 1, 3), 2.0),
        ("vtv", (1, 1, 2), 2.0),
        ("vtv", (2, 1, 1), 2.0),
        ("tvvt", (2, 1, 1), None),
        ("vvvtv", (2, 1, 2), None),
        ("tttt", (2, 1, 2), None),
    ],
)
def test_visual_tokens_that_do_not_fill_their_grid_are_refused(layout, grid, per_second):
    with pytest.raises(ValueError, match="visual tokens"):
        place(layout, grid, per_second=per_second)


def huggingface(ids, mask, grids, seconds, per_second, images=()):
    """get_rope_index of transformers, without building a model. ids [B, T] -> [3, B, T]. grids, seconds: of
    videos. per_second: None: of Qwen3-VL. images: their grids."""
    torch = pytest.importorskip("torch")
    if per_second is None:
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel as Model
    else:
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel as Model

    vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=per_second)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    model.get_vision_position_ids = lambda *a, **k: Model.get_vision_position_ids(model, *a, **k)
    kinds = torch.tensor(np.select([ids == PADS[0], ids == PADS[1]], [1, 2], 0))
    out, _ = Model.get_rope_index(
        model,
        torch.tensor(ids),
        kinds,
        image_grid_thw=torch.tensor([(s, 2 * h, 2 * w) for s, h, w in images]) if images else None,
        video_grid_thw=torch.tensor([(s, 2 * h, 2 * w) for s, h, w in grids]) if grids else None,
        second_per_grid_ts=seconds,
        attention_mask=torch.tensor(mask),
    )
    return out.numpy()


def test_equal_to_transformers():
    """Its own rule on random layouts; Qwen's rule too where time ids stay inside the spatial extent."""
    rng = np.random.default_rng(0)
    agreed = 0
    for _ in range(60):
        grid = tuple(int(n) for n in rng.integers(1, 6, 3))
        seconds = float(rng.choice([2.0, 1.0, 0.25, 0.125, 0.0667]))
        per_second = float(rng.choice([2, 4, 25]))
        before, after = rng.integers(0, 5), rng.integers(1, 5)
        ids = np.array([[1] * before + [8] * int(np.prod(grid)) + [1] * after])
        theirs = huggingface(ids, np.ones_like(ids), [grid], [seconds], per_second)[:, 0]
        ours = {
            rule: positions(ids[0], [grid], [seconds], per_second, pads=PADS, rule=rule)
            for rule in ("qwen", "transformers5")
        }
        np.testing.assert_array_equal(ours["transformers5"], theirs)
        if time_ids(grid[0], seconds, per_second)[-1] < max(grid[1:]):
            agreed += 1
            np.testing.assert_array_equal(ours["qwen"], theirs)
        else:
            assert (ours["qwen"][:, -1] > theirs[:, -1]).all()
    assert 10 < agreed < 50


@pytest.mark.parametrize("rule", ["qwen", "transformers5"])
def test_slots_apart_are_equal_to_transformers(rule):
    """Whatever the rule: a slot alone has no extent in time."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        slots, height, width = grid = tuple(int(n) for n in rng.integers(1, 5, 3))
        between = [[1] * int(n) for n in rng.integers(1, 6, slots + 1)]
        between[0] *= rng.integers(0, 2)  # it may begin with the video
        ids = np.array([i for words in between[:-1] for i in (*words, *[8] * height * width)] + between[-1])
        theirs = huggingface(ids[None], np.ones_like(ids[None]), [grid], [1.0], None)[:, 0]
        np.testing.assert_array_equal(positions(ids, [grid], [1.0], None, pads=PADS, rule=rule), theirs)


def test_the_time_of_a_slot():
    assert slot_seconds(np.array([0, 0.1, 0.2, 0.3, 0.4, 0.4]), 2).tolist() == [0.05, 0.25, 0.4]
    assert slot_seconds(np.array([1.0, 2.0, 6.0]), 3).tolist() == [3.5]  # the ends count
    noise = 1e-9 * np.random.default_rng(0).standard_normal(2)
    assert slot_seconds(np.array([0.2, 0.5]) + noise, 2).tolist() == [0.35]


def test_the_time_of_a_slot_is_that_of_transformers():
    """As it is written, with one decimal; a tie may fall either way, for theirs carries rounding."""
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    rng = np.random.default_rng(0)
    for fps in (8, 10, 24, 25, 30000 / 1001, 30, 60):
        indices = np.sort(rng.choice(2000, 64, replace=False))
        theirs = Qwen3VLProcessor._calculate_timestamps(None, indices, fps, 2)
        for ours, their in zip(slot_seconds(indices / fps, 2), theirs, strict=True):
            tie = abs(10 * their % 1 - 0.5) < 1e-6
            assert f"{ours:.1f}" == f"{their:.1f}" or tie
