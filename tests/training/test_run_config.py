"""Configs: values that no run can have, and work directories that belong to one run."""

import functools
import importlib
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from vpjax.data.sampling import Sampling, VideoInfo, fit
from vpjax.training import run_config
from vpjax.training.config_rules import by_dotted_name
from vpjax.types import UserError

RECIPES = [
    path.stem
    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
    if path.stem not in ("__init__", "base")
]


def recipe(name="sft"):
    return importlib.import_module(f"vpjax.recipes.{name}").get_config()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_pass(name):
    run_config.check(recipe(name))


@pytest.mark.parametrize(
    "field, value",
    [
        ("steps", 0),
        ("accumulate", 5),
        ("dtype", "float16"),
        ("checkpoint_every", 0),
        ("keep", 0),
        ("optim.lr_multipliers", (("vision.*",),)),
        ("optim.lr_multipliers", ("vision.*", 0.1)),
        ("optim.lr_multipliers", (("vision.*", "0.1"),)),
        ("optim.lr_multipliers", (("vision.*", float("inf")),)),
        ("optim.freeze", (1,)),
        ("contrast.layer", 0.0),
        ("contrast.truth_share", 0.0),
        ("contrast.truth_share", 1.5),
        ("contrast.answer_kind", "word"),
        ("contrast.tau_range", (0.1, 0.5)),
        ("contrast.tau_range", (0.5, 0.01)),
        ("contrast.tau_range", (0.01,)),
        ("looks.seconds", (2.0,)),
        ("looks.seconds", (2.0, 4.0, 6.0)),
        ("looks.seconds", ("2", "6")),
        ("contrast.negatives", ("batch,degraded",)),
        ("loss.chunk", 0),
        ("data.replacement", "none"),
        ("data.min_frames", 0),
        ("data.max_frames", 3),
        ("data.min_pixels", 0),
        ("data.max_pixels", 56 * 55),
        ("data.total_pixels", -1),
        ("data.max_missed_share", 1.5),
        ("mesh.context", 0),
        ("data.instructions", {"chioce": "Answer."}),
        ("method", "dpo"),
        ("grpo.groups", 1),
        ("grpo.degraded", 0),
        ("grpo.relative.kind", "gates"),
        ("grpo.temperature", 0.0),
        ("grpo.num_iterations", 0),
        ("grpo.num_minibatches", 0),
        ("grpo.oversample", 0),
        ("grpo.reward_aggregation", "gdpo"),
        ("grpo.eps_low", 0.0),
        ("grpo.rollout_dtype", "int4"),
        ("grpo.importance_cap", 0.5),
        ("contrast.lr", -1.0),
        ("contrast.warmup_share", -1.0),
        ("contrast.warmup_share", 1.5),
        ("seed", -1),
        ("optim.b1", 1.0),
        ("optim.b2", -0.5),
        ("optim.eps", 0.0),
        ("optim.weight_decay", -0.01),
        ("optim.end_lr_share", -0.1),
        ("grpo.relative.clip", -1.0),
        ("data.cache_gb", -1.0),
        ("data.max_fault_share", -0.1),
        ("data.row_tokens", -1),
        ("events.train", -1),
        ("long.heldout", -1),
        ("profile", ("1", "2")),
        ("profile", (1.5, 2.5)),
        ("profile", (2, 10**6)),
    ],
)
def test_impossible_values_are_named(field, value):
    config = recipe()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as error:
        run_config.check(config)
    assert f"config.{field}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ("c.optim.learning_rate = 3.0", "config.optim.learning_rate is no field; there are b1, b2,"),
        ("c.checkpoint_evry = 3", "config.checkpoint_evry is no field; did you mean checkpoint_every?"),
        ("del c.grpo.relative.lam", "config.grpo.relative.lam is missing: let the config begin with"),
        ("c.optim = 3", "config.optim is a section of fields; it is 3"),
    ],
)
def test_fields_of_a_users_own_config_are_those_that_there_are(change, message):
    """A misspelt one would be read by nobody, without saying so."""
    config = recipe()
    with config.unlocked(), config.ignore_type():
        exec(change, {"c": config})
    with pytest.raises(UserError) as error:
        run_config.check(config)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_users_name_rewards_instructions_and_what_differs_in_heldout_clips():
    config = recipe("grpo")
    with config.unlocked():
        config.grpo.rewards.mine = "my_module:fn"
        config.grpo.relative.correct = "event"
        config.data.instructions.caption = "Be brief."
        config.events_heldout.noise = 1.0
        config.model.use_cache = True
    run_config.check(config)


def test_every_number_is_finite():
    """NaN passes most comparisons and spoils a run unseen. Infinity is no limit where a field is one."""
    numbers = []
    for name, value in by_dotted_name(recipe("grpo").to_dict()).items():
        if isinstance(value, float):
            numbers.append(name)
    assert {"optim.weight_decay", "grpo.relative.margin", "data.cache_gb", "events.noise"} <= set(numbers)
    limits = {"optim.clip", "grpo.eps_high", "grpo.importance_cap", "grpo.relative.clip"}
    for name in numbers:
        for value in (float("nan"), float("inf")):
            config = recipe("grpo")
            config.update_from_flattened_dict({name: value})
            if name in limits and value == float("inf"):
                run_config.check(config)
            else:
                with pytest.raises(UserError, match=rf"config\.{name} is a finite number; it is {value}"):
                    run_config.check(config)


def test_a_row_on_several_devices_is_cut_into_whole_pieces():
    config = recipe()
    config.mesh.context, config.data.length_multiple = 8, 16
    run_config.check(config)
    config.data.length_multiple = 24
    with pytest.raises(UserError, match="data.length_multiple is a multiple of 16, twice config.mesh"):
        run_config.check(config)


def test_completions_on_several_devices_are_shared_out_evenly():
    config = recipe("grpo")
    config.mesh.context, config.data.length_multiple, config.grpo.groups = 4, 16, 8
    run_config.check(config)
    config.grpo.groups = 6
    with pytest.raises(UserError, match="grpo.groups or .* is a multiple of config.mesh.context, 4; it is 6"):
        run_config.check(config)


@pytest.mark.parametrize(
    "changes, field",
    [
        (
            {"contrast.answer": 0.2, "contrast.truth": 0.1, "contrast.truth_share": 1.0},
            "contrast.truth_share",
        ),
        (
            {"contrast.answer": 0.2, "contrast.negatives": ("batch",), "data.replacement": "none"},
            "contrast.answer",
        ),
        ({"contrast.truth": 0.1, "data.replacement": "random"}, "contrast.truth"),
    ],
)
def test_losses_on_v_degraded_that_contradict_each_other_are_named(changes, field):
    config = recipe()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=rf"config\.{field} "):
        run_config.check(config)


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"batch": 96}, "batch"),
        ({"accumulate": 9}, "batch"),
        ({"looks.wrong": 0}, "looks.wrong"),
        ({"grpo.aggregation": "dapo"}, "grpo.aggregation"),
        ({"grpo.degraded": 4}, "grpo.degraded"),
        ({"grpo.beta": 0.04}, "grpo.beta"),
        ({"grpo.num_iterations": 2}, "grpo.num_iterations"),
        ({"grpo.looks.temperature": 0.0}, "grpo.looks.temperature"),
        ({"grpo.looks.gain": -1.0}, "grpo.looks.gain"),
        ({"mesh.context": 2}, "mesh.context"),
        ({"grpo.rewards": {"event": 1.0, "format": 1.0}}, "grpo.relative.correct"),
    ],
)
def test_what_two_looks_cannot_have_is_named(changes, field):
    """Their loss is the gradient of one expectation, which these would not leave it."""
    config = recipe("grpo_long")
    config.batch, config.looks.windows, config.looks.wrong = 54, 2, 1
    run_config.check(config)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=rf"config\.{field} "):
        run_config.check(config)


@pytest.mark.parametrize(
    "changes, field",
    [
        # No V~, or one that hides nothing: these would silently be plain GRPO.
        ({"data.replacement": "none"}, "data.replacement"),
        ({"data.replacement": "none", "grpo.relative.kind": "token"}, "data.replacement"),
        ({"data.replacement": "random", "grpo.relative.kind": "likelihood"}, "data.replacement"),
        ({"data.replacement": "random", "grpo.relative.kind": "keyword_winrate"}, "data.replacement"),
        ({"data.replacement": "random", "grpo.rewards": {"keyword_removed": 1.0}}, "data.replacement"),
        (
            {"data.replacement": "random", "grpo.degraded_rewards": {"keyword_absent": 1.0}},
            "data.replacement",
        ),
        # Right answers about the event would be trained on V~, or had to stay.
        ({"data.replacement": "random", "grpo.degraded_rewards": {"event": 1.0}}, "data.replacement"),
        ({"data.replacement": "random", "grpo.relative.kind": "relation"}, "data.replacement"),
        ({"data.replacement": "random", "grpo.control_share": 0.5}, "data.replacement"),
        # What is sampled and what is trained would be two policies.
        ({"grpo.rollout_dtype": "int8"}, "grpo.importance_cap"),
        # Nothing would read them.
        ({"grpo.relative.kind": "none", "grpo.control_share": 0.5}, "grpo.control_share"),
        ({"grpo.relative.kind": "need", "grpo.control_share": 0.5}, "grpo.control_share"),
        ({"grpo.degraded_rewards": {"event": 0.0}}, "grpo.degraded_rewards"),
        ({"data.pool": "random"}, "data.pool"),
        # What is true of V~ is not what is true of V.
        ({"grpo.rewards": {"keyword_absent": 1.0}}, "grpo.rewards"),
        ({"grpo.degraded_rewards": {"keyword_removed": 1.0}}, "grpo.degraded_rewards"),
        ({"grpo.degraded_rewards": {"mine": "my_module:fn"}}, "grpo.degraded_rewards"),
        ({"grpo.degraded_rewards": {"event": 1.0}, "grpo.degraded": 1}, "grpo.degraded"),
        ({"grpo.control_share": 1.5}, "grpo.control_share"),
        ({"grpo.degraded_weight": 0.0}, "grpo.degraded_weight"),
        ({"grpo.degraded_weight": 2.0}, "grpo.degraded_weight"),
        # Right is a reward with a name and a weight.
        ({"grpo.rewards": {}}, "grpo.rewards"),
        ({"grpo.rewards": {"event": 1.0, "format": 1.0}}, "grpo.relative.correct"),
        ({"grpo.relative.correct": "rouge_l"}, "grpo.relative.correct"),
        ({"grpo.rewards": {"event": 0.0}}, "grpo.rewards"),
        ({"grpo.relative.kind": "need", "grpo.degraded": 0}, "grpo.degraded"),
        ({"grpo.relative.kind": "relation", "grpo.degraded": 0}, "grpo.degraded"),
        ({"grpo.rewards": {"event": "event"}}, "grpo.rewards.event"),
        ({"grpo.rewards": {"event": (1.0, "my_module:fn")}}, "grpo.rewards.event"),
        ({"grpo.rewards": {"event": ("my_module:fn", float("nan"))}}, "grpo.rewards.event"),
        # 48 prompts in parts.
        ({"grpo.num_minibatches": 5}, "grpo.num_minibatches"),
        ({"grpo.num_minibatches": 16, "accumulate": 6}, "grpo.num_minibatches"),
    ],
)
def test_rewards_that_contradict_each_other_are_named(changes, field):
    config = changed(changes)
    with pytest.raises(UserError, match=rf"config\.{field} "):
        run_config.check(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"data.replacement": "none", "grpo.relative.kind": "none", "grpo.degraded": 0},
        {"data.replacement": "random"},  # the control of gate
        {"grpo.relative.kind": "relation", "grpo.control_share": 0.5},
        {"grpo.rewards": {"event": 1.0, "format": 1.0}, "grpo.relative.correct": "event"},
        {"grpo.rewards": {"event": 1.0, "format": 1.0}, "grpo.relative.kind": "token"},
        {"grpo.degraded_rewards": {"keyword_absent": 1.0, "event": 1}, "grpo.control_share": 0.2},
        {"grpo.num_minibatches": 4, "accumulate": 6, "grpo.oversample": 3},
        {"grpo.aggregation": "cispo", "grpo.eps_low": 1.0, "grpo.eps_high": 4.0},
    ],
)
def test_rewards_that_go_together_pass(changes):
    run_config.check(changed(changes))


def changed(changes):
    """The recipe ``grpo`` with some fields replaced, whole sections of rewards among them."""
    config = recipe("grpo")
    for name, value in changes.items():
        *sections, last = name.split(".")
        section = functools.reduce(getattr, sections, config)
        section[last] = ConfigDict(value) if isinstance(value, dict) else value
    return config


def test_a_workdir_belongs_to_one_config(tmp_path):
    run_config.check_workdir(tmp_path, recipe())  # an empty one is anybody's
    run_config.write(tmp_path, recipe())
    run_config.check_workdir(tmp_path, recipe())

    other = recipe()
    other.log_every, other.mesh.data, other.data.cache = 7, 2, "elsewhere"  # changes no number
    other.data.max_missed_share, other.data.cache_gb, other.keep = 1.0, 2.0, 5
    run_config.check_workdir(tmp_path, other)

    other.keep_best = "heldout/accuracy"  # which checkpoint is kept: not a part of ``keep``
    with pytest.raises(UserError, match="keep_best is 'heldout/accuracy', there ''"):
        run_config.check_workdir(tmp_path, other)
    other.keep_best = ""

    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["optim"]["weight_decay"]  # at its default in the recipe: an older vpjax may not have had it
    (tmp_path / "config.json").write_text(json.dumps(stored))
    run_config.check_workdir(tmp_path, recipe())

    other.seed, other.optim.freeze = 1, ("vision.*",)
    with pytest.raises(UserError) as error:
        run_config.check_workdir(tmp_path, other)
    assert "(optim.freeze is ['vision.*'], there []; seed is 1, there 0)" in str(error.value)
    assert str(tmp_path / "config.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_videos_of_a_hugging_face_folder_are_read_within_a_budget(tmp_path):
    """At 2 frames a second, four at least, and 25,000 tokens at most, or 18,816 of 32 x 32 pixels."""
    sampling = Sampling.of(run_config.data_of(tmp_path))
    for seconds in (0.5, 10.0, 100.0, 1000.0, 10000.0):
        info = VideoInfo(1920, 1080, seconds, 25.0, int(25 * seconds))
        for factor in (28, 32):
            frames, height, width = fit(sampling, info, factor=factor)
            assert frames == min(max(4, 2 * seconds), 768)
            count = frames // 2 * height * width // factor**2
            assert count <= 25000 and (seconds < 100 or count > 17000)
