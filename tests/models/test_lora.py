"""Adapters: new ones change nothing, merged ones compute the same, and PEFT agrees about folders, logits and
gradients. Errors are in units of the spread, as in test_parity.py, whose tolerances and reasons are these."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file

from tests import tiny
from tests.models.cases import DIFFERENT, TOLERANCE, answer_loss, case, error, load_both, logits
from tests.models.test_parity import their_logits
from vpjax.models.lora import Lora, first_adapters, is_adapter, merge
from vpjax.models.peft import CONFIG, WEIGHTS, load_adapters, save_adapters
from vpjax.models.vlm import abstract_model, leaves, rebuild
from vpjax.types import UserError

pytestmark = pytest.mark.slow

LORA = Lora(rank=4, alpha=12.0, targets=("decoder.*", "vision.*"))


@pytest.fixture(scope="module", params=tiny.ONE_OF_EACH)
def folder(request, checkpoint):
    return checkpoint(request.param)


@pytest.fixture(scope="module")
def model(folder):
    return load_both(folder)[0]


def shapes(model):
    """The parameters of a model with adapters everywhere, by path."""
    return leaves(abstract_model(model.config, lora=LORA))


@pytest.fixture(scope="module")
def adapted(model):
    """The model with adapters that add a fifth to the weights, which are wide (see tests/tiny.py)."""
    rng, adapters = np.random.default_rng(0), {}
    for path, x in shapes(model).items():
        if is_adapter(path):
            width = x.shape[-2] if path.endswith(".lora_a") else 100 * LORA.rank
            adapters[path] = jnp.asarray(rng.standard_normal(x.shape) / width**0.5, jnp.float32)
    return rebuild(abstract_model(model.config, lora=LORA), leaves(model) | adapters)


def adapters_of(model):
    return {path: x for path, x in leaves(model).items() if is_adapter(path)}


@pytest.fixture(scope="module")
def theirs(folder, adapted, tmp_path_factory):
    """PEFT's model of the same weights, from a folder of ours."""
    out = tmp_path_factory.mktemp("adapters")
    save_adapters(leaves(adapted), LORA, adapted.config, out)
    base = copy.deepcopy(load_both(folder)[1])
    return PeftModel.from_pretrained(base, out, is_trainable=True)


def test_new_adapters_change_nothing(model):
    """Not a bit: B is 0, and A is not."""
    adapters = first_adapters(shapes(model), jax.random.key(0))
    assert adapters and all(np.any(x) == path.endswith(".lora_a") for path, x in adapters.items())
    new = rebuild(abstract_model(model.config, lora=LORA), leaves(model) | adapters)
    _, batch = case(DIFFERENT, model)
    np.testing.assert_array_equal(logits(new, batch), logits(model, batch))


def test_merged_adapters_compute_the_same(model, adapted):
    _, batch = case(DIFFERENT, model)
    merged = rebuild(model, merge(leaves(adapted), LORA, jnp.float32))
    assert error(logits(merged, batch), logits(adapted, batch)) < TOLERANCE
    assert error(logits(model, batch), logits(adapted, batch)) > 100 * TOLERANCE


@torch.no_grad()
def test_peft_computes_the_same_logits(adapted, theirs):
    """From the folder, in float64, so that all rounding is ours: 1e-5 in the mean."""
    clips, batch = case(DIFFERENT, adapted)
    ours = logits(adapted, batch)
    reference = their_logits(copy.deepcopy(theirs.base_model.model).double(), clips)
    assert error(ours, reference) < TOLERANCE
    assert np.sqrt(np.mean((ours - reference.numpy()) ** 2)) < 1e-5 * reference.std()


def test_gradients_are_those_of_peft(adapted, theirs, tmp_path):
    """Of every adapter, vision and text, and of nothing else, against autograd in float64."""
    exact = copy.deepcopy(theirs).double()
    clips, batch = case(DIFFERENT, adapted)
    answers = np.concatenate([clip.answer for clip in clips])

    @jax.jit
    @jax.grad
    def loss(adapters):
        model = rebuild(adapted, leaves(adapted) | adapters)
        return answer_loss(model, batch, answers)

    gradient = loss(adapters_of(adapted))
    scores = their_logits(exact.base_model.model, clips)
    torch.nn.functional.cross_entropy(scores, torch.tensor(answers).long()).backward()

    save_adapters(gradient, LORA, adapted.config, tmp_path)
    gradients = load_file(tmp_path / WEIGHTS)
    worst, rms = {}, {}
    for name, parameter in exact.named_parameters():
        if not parameter.requires_grad:
            continue
        name, reference = name.replace(".default.", "."), parameter.grad.numpy()
        worst[name] = error(gradients[name], reference)
        rms[name] = np.sqrt(np.mean((gradients.pop(name) - reference) ** 2)) / reference.std()
    assert not gradients
    assert {name: e for name, e in rms.items() if not e < TOLERANCE} == {}
    assert {name: e for name, e in worst.items() if not e < 3 * TOLERANCE} == {}


def test_a_folder_is_read_as_it_was_written(adapted, tmp_path):
    """To the bit, and likewise under the names of transformers 4."""
    save_adapters(leaves(adapted), LORA, adapted.config, tmp_path)
    expected = adapters_of(adapted)
    for older in (False, adapted.config.family == "qwen2_5_vl"):
        if older:
            tensors = load_file(tmp_path / WEIGHTS)
            for name in list(tensors):
                old = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
                tensors[old] = tensors.pop(name)
            save_file(tensors, tmp_path / WEIGHTS)
        again = load_adapters(tmp_path, LORA, adapted.config)
        assert again.keys() == expected.keys()
        for path, x in again.items():
            np.testing.assert_array_equal(x, expected[path])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(r=8), r"adapter_config.json: r is 8, but config.lora.rank is 4; set --config.lora.rank=8"),
        (dict(lora_alpha=16), r"lora_alpha is 16, but config.lora.alpha is 12.0; set --config.lora.alpha=16"),
        (dict(use_dora=True), r"adapter_config.json: use_dora is not supported"),
        (dict(bias="all"), r"adapter_config.json: peft_type other than LORA, or bias is not supported"),
    ],
)
def test_folders_that_do_not_fit_the_config(adapted, tmp_path, fields, message):
    save_adapters(leaves(adapted), LORA, adapted.config, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | fields))
    with pytest.raises(UserError, match=message):
        load_adapters(tmp_path, LORA, adapted.config)


def test_other_layers_are_named(adapted, tmp_path):
    save_adapters(leaves(adapted), LORA, adapted.config, tmp_path)
    fewer = dataclasses.replace(LORA, targets=("decoder.*",))
    with pytest.raises(UserError, match=r"do not fit config.lora: unexpected: .*visual\.blocks"):
        load_adapters(tmp_path, fewer, adapted.config)
    with pytest.raises(UserError, match=r"config.lora.targets: 'encoder.\*' matches no linear layer; there"):
        abstract_model(adapted.config, lora=dataclasses.replace(LORA, targets=("encoder.*",)))
