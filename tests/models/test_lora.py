"""Adapters: new ones change nothing, merged ones compute the same, and PEFT agrees about folders, logits and
gradients. Errors are in units of the spread, as in test_parity.py."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.models.cases import TOLERANCE, case, error, load_both, logits
from vpjax.models.lora import Lora, first_adapters, is_adapter, merge
from vpjax.models.peft import load_adapters, save_adapters
from vpjax.models.vlm import abstract_model, leaves, rebuild
from vpjax.types import UserError

pytestmark = pytest.mark.slow

EVERYWHERE = Lora(rank=4, alpha=12.0, targets=("decoder.*", "vision.*"))


@pytest.fixture(scope="module", params=tiny.ONE_OF_EACH)
def folder(request, checkpoint):
    return checkpoint(request.param)


def random_adapters(model_config, lora=EVERYWHERE, seed=0):
    """Adapters that add about as much as there is: A B has a spread of about 1 / sqrt(in)."""
    rng, shapes = np.random.default_rng(seed), leaves(abstract_model(model_config, lora=lora))
    adapters = {}
    for path, x in shapes.items():
        if is_adapter(path):
            adapters[path] = jnp.asarray(rng.standard_normal(x.shape), jnp.float32) / x.shape[-2] ** 0.5 / (2 if path.endswith("a") else 1)
    return adapters


def with_adapters(model, adapters, lora=EVERYWHERE):
    return rebuild(abstract_model(model.config, lora=lora), leaves(model) | adapters)


def test_new_adapters_change_nothing(folder):
    """Not a bit, for B is 0; and A is not."""
    model, _ = load_both(folder)
    adapters = first_adapters(leaves(abstract_model(model.config, lora=EVERYWHERE)), jax.random.key(0))
    assert all(np.any(x) == path.endswith(".lora_a") for path, x in adapters.items())
    _, batch = case("mixed", model)
    np.testing.assert_array_equal(logits(with_adapters(model, adapters), batch), logits(model, batch))


def test_merged_is_unmerged(folder):
    model, _ = load_both(folder)
    adapters = random_adapters(model.config)
    _, batch = case("mixed", model)
    apart = with_adapters(model, adapters)
    merged = rebuild(model, merge(leaves(apart), EVERYWHERE, jnp.float32))
    assert error(logits(merged, batch), logits(apart, batch)) < TOLERANCE
    print("MERGED", error(logits(merged, batch), logits(apart, batch)))
    # The adapters matter.
    assert error(logits(model, batch), logits(apart, batch)) > 1


def test_peft_agrees(folder, tmp_path):
    import torch
    from peft import PeftModel
    from tests.models.cases import clips_of
    model, _ = load_both(folder)
    theirs = tiny.reference(folder)
    adapters = random_adapters(model.config)
    ours = with_adapters(model, adapters)
    save_adapters(adapters, EVERYWHERE, model.config, tmp_path)
    print(json.loads((tmp_path/"adapter_config.json").read_text())["target_modules"])
    peft = PeftModel.from_pretrained(theirs, str(tmp_path), is_trainable=True)
    print(len(peft.peft_config), peft)
    clips, batch = case("mixed", model)
    inputs = tiny.reference_inputs(clips, model.config.family)
    with torch.no_grad():
        out = peft(**inputs).logits
    print(out.shape)
