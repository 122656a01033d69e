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
from vpjax.models.hf import save_pretrained
from vpjax.models.linear import quantise
from vpjax.models.lora import Lora, first_adapters, is_adapter, merge, quantised
from vpjax.models.peft import CONFIG, WEIGHTS, load_adapters, save_adapters
from vpjax.models.vlm import abstract_model, leaves, rebuild
from vpjax.types import UserError

pytestmark = pytest.mark.slow

LORA = Lora(rank=4, alpha=12.0, targets=("decoder.*", "vision.*"))
INT8 = dataclasses.replace(LORA, is_int8=True)


@pytest.fixture(scope="module", params=tiny.ONE_OF_EACH)
def folder(request, checkpoint):
    return checkpoint(request.param)


@pytest.fixture(scope="module")
def model(folder):
    return load_both(folder)[0]


def shapes(model, lora=LORA):
    """The parameters of a model with adapters everywhere, by path."""
    return leaves(abstract_model(model.config, lora=lora))


@pytest.fixture(scope="module")
def adapted(model):
    """The model with adapters that add a fifth to the weights, which are wide (see tests/tiny.py)."""
    rng, adapters = np.random.default_rng(0), {}
    for path, x in shapes(model).items():
        if is_adapter(path):
            width = x.shape[-2] if path.endswith(".lora_a") else 100 * LORA.rank
            adapters[path] = jnp.asarray(rng.standard_normal(x.shape) / width**0.5, jnp.float32)
    return rebuild(abstract_model(model.config, lora=LORA), leaves(model) | adapters)


def int8_params(model):
    """The parameters of a model whose linear layers are int8."""
    params, of_int8 = {}, shapes(model, INT8)
    for path, x in leaves(model).items():
        params |= quantised(path, x, of_int8)
    return params


@pytest.fixture(scope="module")
def int8_adapted(model, adapted):
    """The same adapters beside int8 weights."""
    return rebuild(abstract_model(model.config, lora=INT8), int8_params(model) | adapters_of(adapted))


@pytest.fixture(scope="module")
def dequantised(model):
    """The model whose weights are those that the int8 ones stand for, computed with NumPy."""
    params, plain = int8_params(model), dict(leaves(model))
    for path in plain:
        if params[path].dtype == jnp.int8:
            product = np.asarray(params[path], np.float32) * np.asarray(params[f"{path}_scale"])
            plain[path] = jnp.asarray(product)
    return rebuild(model, plain)


def adapters_of(model):
    return {path: x for path, x in leaves(model).items() if is_adapter(path)}


def peft_model(base, adapted, out):
    """PEFT's model of the same adapters on ``base``, from a folder of ours."""
    save_adapters(leaves(adapted), LORA, adapted.config, out)
    return PeftModel.from_pretrained(base, out, is_trainable=True)


@pytest.fixture(scope="module")
def theirs(folder, adapted, tmp_path_factory):
    return peft_model(copy.deepcopy(load_both(folder)[1]), adapted, tmp_path_factory.mktemp("adapters"))


def test_new_adapters_change_nothing(model):
    """Not a bit: B is 0, and A is not."""
    adapters = first_adapters(shapes(model), jax.random.key(0))
    assert adapters and all(np.any(x) == path.endswith(".lora_a") for path, x in adapters.items())
    new = rebuild(abstract_model(model.config, lora=LORA), leaves(model) | adapters)
    _, batch = case(DIFFERENT, model)
    np.testing.assert_array_equal(logits(new, batch), logits(model, batch))


def test_merged_adapters_compute_the_same(model, adapted, int8_adapted, dequantised):
    """Those beside int8 weights are merged into the dequantised ones, not into those before."""
    _, batch = case(DIFFERENT, model)
    for ours, lora, base in ((adapted, LORA, model), (int8_adapted, INT8, dequantised)):
        merged = rebuild(model, merge(leaves(ours), lora, jnp.float32))
        assert error(logits(merged, batch), logits(ours, batch)) < TOLERANCE
        assert error(logits(base, batch), logits(ours, batch)) > 100 * TOLERANCE
    assert error(logits(int8_adapted, batch), logits(adapted, batch)) > 30 * TOLERANCE


@pytest.mark.parametrize("shape", [(10, 6), (3, 10, 6), (2, 10, 3, 5)])
def test_int8_weights_are_within_half_a_step(shape):
    """Of an output's own step, 1/127 of its largest weight, which is hit exactly; by hand in float64.
    Rounding in float32 may add 127 times 1e-7 of a step."""
    rng, axis = np.random.default_rng(0), 0 if len(shape) == 2 else 1
    w = (rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 3, shape[-1])).astype(np.float32)
    w[..., 2] = 0.0  # an output without weights
    kernel, scale = map(np.asarray, quantise(jnp.asarray(w), axis))
    assert (kernel.dtype, scale.dtype) == (np.int8, np.float32)
    step = np.abs(w.astype(np.float64)).max(axis, keepdims=True) / 127
    assert scale.shape == step.shape
    difference = np.abs(kernel * scale.astype(np.float64) - w)
    assert (difference <= (0.5 + 1e-4) * step).all()
    assert (np.abs(kernel).max(axis)[step.squeeze(axis) > 0] == 127).all()
    assert not kernel[..., 2].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_int8_model_is_that_of_the_dequantised_weights(model, dequantised, dtype):
    """To the bit, with new adapters, which change nothing."""
    params = int8_params(model) | first_adapters(shapes(model, INT8), jax.random.key(0))
    frozen = {
        path: x if x.dtype == jnp.int8 or path.endswith("_scale") else x.astype(dtype)
        for path, x in params.items()
    }
    plain = rebuild(model, {path: x.astype(dtype) for path, x in leaves(dequantised).items()})
    _, batch = case(DIFFERENT, model)
    ours = logits(rebuild(abstract_model(model.config, lora=INT8), frozen), batch)
    np.testing.assert_array_equal(ours, logits(plain, batch))
    assert error(logits(model, batch), ours.astype(np.float32)) > 30 * TOLERANCE


@torch.no_grad()
def test_peft_computes_the_same_logits(adapted, theirs):
    """From the folder, in float64, so that all rounding is ours: 1e-5 in the mean."""
    clips, batch = case(DIFFERENT, adapted)
    ours = logits(adapted, batch)
    reference = their_logits(copy.deepcopy(theirs.base_model.model).double(), clips)
    assert error(ours, reference) < TOLERANCE
    assert np.sqrt(np.mean((ours - reference.numpy()) ** 2)) < 1e-5 * reference.std()


@pytest.mark.parametrize("is_int8", [False, True])
def test_gradients_are_those_of_peft(adapted, theirs, int8_adapted, dequantised, folder, tmp_path, is_int8):
    """Of every adapter, vision and text, and of nothing else, against autograd in float64; beside int8
    weights, those of PEFT on the dequantised ones."""
    exact = copy.deepcopy(theirs).double()
    if is_int8:
        save_pretrained(dequantised, tmp_path / "base", like=folder)
        base, adapted = tiny.reference(tmp_path / "base"), int8_adapted
        exact = peft_model(base, adapted, tmp_path / "adapters").double()
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
        (dict(alora_invocation_tokens=[5, 7]), "alora_invocation_tokens is not supported"),
        (dict(init_lora_weights="pissa_niter_4"), "init_lora_weights=pissa_niter_4 is not supported"),
        (dict(init_lora_weights="lora_ga"), "init_lora_weights=lora_ga is not supported"),
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
