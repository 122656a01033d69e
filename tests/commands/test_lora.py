"""Runs with adapters from start to end: resumed, merged for us and for transformers, alone for PEFT, and
started from again."""

import importlib
import json
import shutil

import chex
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import PeftModel

from tests import runs, tiny
from tests.commands.call import call
from tests.commands.test_train import everything, small
from vpjax import export as exporting
from vpjax.models import hf, peft
from vpjax.models.lora import is_adapter
from vpjax.models.vlm import leaves
from vpjax.predict import ask, load
from vpjax.training import checkpoint
from vpjax.types import UserError

train = importlib.import_module("vpjax.train")  # the module; ``vpjax.train`` is the function
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_runs")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def base(folder):
    """A Hugging Face folder, of wide weights."""
    exporting.export(runs.make_run(folder / "start"), folder / "base")
    return folder / "base"


def lora_config(base, **changes):
    fields = {
        "init_from": str(base),
        "data.heldout": "",
        "contrast.weight": 0.0,
        "lora.rank": 4,
        "lora.targets": ("decoder.layers.*", "vision.*"),
        "optim.name": "adamw",
        "optim.lr": 1e-2,
    }
    return small(str(base.parent), **fields | changes)


@pytest.fixture(scope="module")
def workdir(folder, base, quick_runs):
    """A run of 4 steps."""
    train.train(lora_config(base), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def merged(folder, workdir):
    exporting.export(workdir, folder / "merged")
    return folder / "merged"


@pytest.fixture(scope="module")
def adapters(folder, workdir):
    exporting.export_adapters(workdir, folder / "adapters")
    return folder / "adapters"


def test_a_stopped_run_goes_on_bit_for_bit(workdir, base, tmp_path):
    stopped = shutil.copytree(workdir, tmp_path / "stopped")
    shutil.rmtree(stopped / "checkpoints" / "4")
    train.train(lora_config(base), stopped)
    chex.assert_trees_all_equal(everything(stopped), everything(workdir))


def test_only_adapters_were_trained(workdir, base):
    state = everything(workdir)
    assert state["params"] and all(map(is_adapter, state["params"]))
    chex.assert_trees_all_equal(state["frozen"], leaves(hf.load_pretrained(base)))


def test_peft_and_the_merged_folder_agree(workdir, base, merged, adapters):
    """As two models of transformers, in float64: merging rounded the weights to float32, by 6e-8 of each."""
    assert {file.name for file in adapters.iterdir()} == {peft.CONFIG, peft.WEIGHTS}
    assert json.loads((adapters / peft.CONFIG).read_text())["base_model_name_or_path"] == str(base)
    models = tiny.reference(merged), PeftModel.from_pretrained(tiny.reference(base), adapters)
    ids = torch.tensor(np.random.default_rng(0).integers(0, 300, (2, 20)))
    with torch.no_grad():
        ours, theirs, before = (m.double()(input_ids=ids).logits for m in (*models, tiny.reference(base)))
    assert (ours - theirs).abs().max() < 1e-5 * theirs.std()
    assert (before - theirs).abs().max() > 0.1 * theirs.std()


def test_a_run_answers_as_its_merged_folder(workdir, merged):
    answers = [ask(load(path), "What does the shape do?", max_new_tokens=8) for path in (workdir, merged)]
    assert answers[0].samples == answers[1].samples
    model, _ = checkpoint.load_model(workdir)
    chex.assert_trees_all_equal(leaves(model), leaves(hf.load_pretrained(merged)))


def test_adapters_are_trained_further(workdir, base, adapters, tmp_path):
    """From PEFT's folder, on the same model: they begin where they were; at a rate of 0 they stay there."""
    config = lora_config(base, **{"lora.init_from": str(adapters), "steps": 1, "optim.lr": 1e-30})
    train.train(config, tmp_path / "further")
    chex.assert_trees_all_equal(everything(tmp_path / "further", 1)["params"], everything(workdir)["params"])


def test_grpo_starts_from_a_run_with_adapters(workdir, folder):
    """Its model is the merged one, which is the reference too, and its adapters are new."""
    grpo = {
        "method": "grpo",
        "steps": 1,
        "grpo.beta": 0.1,
        "grpo.groups": 2,
        "grpo.degraded": 1,
        "grpo.max_new": 8,
        "grpo.rewards": {"event": 1.0},
    }
    train.train(lora_config(workdir, **grpo), folder / "grpo")
    state, (model, _) = everything(folder / "grpo", 1), checkpoint.load_model(workdir)
    chex.assert_trees_all_equal(state["frozen"], leaves(model))
    assert all(not np.any(x) for path, x in state["reference"].items() if path.endswith(".lora_b"))
    line = json.loads((folder / "grpo" / "metrics.jsonl").read_text())
    assert line["kl"] == 0 and line["nonfinite"] == 0


def test_a_bfloat16_export_is_rounded_once(workdir, tmp_path):
    exporting.export(workdir, tmp_path / "half", dtype="bfloat16")
    full, _ = checkpoint.load_model(workdir)
    half = leaves(hf.load_pretrained(tmp_path / "half"))
    for path, x in leaves(full).items():
        np.testing.assert_array_equal(half[path], x.astype(jnp.bfloat16), err_msg=path)


def test_a_run_on_an_int8_base(base, tmp_path):
    """It goes on bit for bit, with the weights of the first checkpoint, and is merged into these."""
    config, run = lora_config(base, **{"lora.base_dtype": "int8"}), tmp_path / "run"
    train.train(config, run)
    state = everything(run)
    (path, half) = "decoder.layers.gate.kernel", tmp_path / "half"
    stopped = shutil.copytree(run, half)
    shutil.rmtree(stopped / "checkpoints" / "4")
    train.train(config, stopped)
    chex.assert_trees_all_equal(everything(stopped), state)

    w, kernel, scale = (
        np.asarray(x)
        for x in (
            leaves(hf.load_pretrained(base))[path],
            state["frozen"][path],
            state["frozen"][f"{path}_scale"],
        )
    )
    assert kernel.dtype == np.int8 and np.abs(kernel * scale - w).max() <= 0.5001 * scale.max()
    a, b = (np.asarray(state["params"][path.replace("kernel", name)]) for name in ("lora_a", "lora_b"))
    expected = kernel * scale + config.lora.alpha / config.lora.rank * a @ b
    model, _ = checkpoint.load_model(run)
    # Sums of 4 products of order 1e-2 in another order.
    np.testing.assert_allclose(leaves(model)[path], expected, rtol=0, atol=1e-6)
    assert leaves(model).keys() == leaves(hf.load_pretrained(base)).keys()


def test_mistakes(workdir, base, folder, merged, tmp_path):
    with pytest.raises(UserError, match=f"--adapters: the run in {folder / 'start'} has none"):
        exporting.export_adapters(folder / "start", tmp_path / "out")
    with pytest.raises(UserError, match="has files of something else"):
        exporting.export_adapters(workdir, merged)
    code, _, err = call(exporting.main, "--adapters", "--check", workdir=workdir, out=tmp_path / "out")
    assert code == 2 and "leave out --check" in err
    for fields, message in (
        ({"lora.rank": -1}, "config.lora.rank is 0 or more; it is -1"),
        ({"optim.name": "muon"}, "config.optim.name is 'adamw' where lora.rank is above 0"),
        ({"lora.targets": ()}, "config.lora.targets holds patterns of layers"),
        ({"lora.base_dtype": "int4"}, "config.lora.base_dtype is one of dtype, int8; it is 'int4'"),
        (
            {"lora.rank": 0, "lora.base_dtype": "int8"},
            "config.lora.base_dtype is 'dtype' where lora.rank is 0",
        ),
        ({"lora.rank": 0, "lora.init_from": "x"}, "config.lora.init_from is '' where lora.rank is 0"),
        ({"lora.targets": ("visual.*",)}, r"config.lora.targets: 'visual.\*' matches no linear layer"),
        ({"lora.init_from": str(tmp_path)}, "adapter_config.json: No such file"),
    ):
        with pytest.raises(UserError, match=message):
            train.train(lora_config(base, **fields), tmp_path / "run")
