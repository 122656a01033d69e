"""Checkpoint folders that do not fit: one line that names the file and the mistake."""

import json
import shutil

import pytest
import torch

from tests.models.test_hf import edited, sharded
from vpjax.models import hf
from vpjax.models.hf import load_pretrained, save_pretrained
from vpjax.types import UserError

pytestmark = pytest.mark.slow


def message(folder):
    with pytest.raises(UserError) as caught:
        load_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_that_does_not_fit_is_in_one_error(checkpoint, tmp_path):
    def edit(tensors):
        del tensors["model.norm.weight"]
        for i in range(3):
            del tensors[f"model.layers.{i}.self_attn.q_proj.bias"]
            tensors[f"model.layers.{i}.self_attn.q_norm.weight"] = torch.ones(4)
        tensors["visual.merger.mlp.0.weight"] = torch.ones(3, 5)
        tensors["visual.patch_embed.proj.weight"] = tensors["visual.patch_embed.proj.weight"].transpose(1, 2)
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(96, 64, dtype=torch.int8)
        tensors["model.visual.merger.ln_q.weight"] = tensors["visual.merger.ln_q.weight"].clone()

    error = message(edited(checkpoint("tied"), tmp_path / "in", edit))
    for part in (
        "missing: model.layers.{0,1,2}.self_attn.q_proj.bias, model.norm.weight",
        "unexpected: model.layers.{0,1,2}.self_attn.q_norm.weight",
        "shape (3, 5) where config.json asks for (128, 128): visual.merger.mlp.{0}.weight",
        "shape (32, 2, 3, 14, 14) where config.json asks for (32, 3, 2, 14, 14): visual.patch_embed.proj",
        "type I8 that is none of F32, F16, BF16: model.layers.{1}.mlp.up_proj.weight",
        "more than once: visual.merger.ln_q.weight",
    ):
        assert part in error


def test_a_config_of_other_sizes(checkpoint, tmp_path):
    shutil.copytree(checkpoint("tied"), tmp_path / "in")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    config["text_config"].update(num_hidden_layers=4, layer_types=None)
    config["tie_word_embeddings"] = False
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    error = message(tmp_path / "in")
    assert "lm_head.weight" in error
    assert "model.layers.{3}.mlp.up_proj.weight" in error


def test_a_head_that_is_not_the_embedding_it_is_tied_to(checkpoint, tmp_path):
    def edit(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["lm_head.weight"][-1, -1] += 1

    error = message(edited(checkpoint("tied"), tmp_path / "in", edit))
    assert "lm_head.weight" in error
    assert "ties" in error


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_truncated_file(checkpoint, tmp_path, keep):
    shutil.copytree(checkpoint("tied"), tmp_path / "in")
    file = tmp_path / "in" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file}: cannot be read" in message(tmp_path / "in")


def test_a_shard_that_is_not_there(tmp_path):
    folder = sharded(None, tmp_path / "in")
    gone = sorted(folder.glob("*.safetensors"))[2]
    gone.unlink()
    assert f"{gone}: cannot be read" in message(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 1'])
def test_a_broken_index(tmp_path, text):
    folder = sharded(None, tmp_path / "in")
    (folder / hf.INDEX).write_text(text)
    assert f"{hf.INDEX}: " in message(folder)


def test_a_folder_without_weights_or_config(checkpoint, tmp_path):
    assert "config.json: No such file" in message(tmp_path)
    shutil.copy(checkpoint("tied") / "config.json", tmp_path)
    assert "no model.safetensors" in message(tmp_path)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"model_type": "llama"}', "'llama' is not supported; supported: qwen2_5_vl, qwen3_vl"),
        ('{"model_type": "qwen2_vl"}', "'qwen2_vl' is not supported; supported: qwen2_5_vl, qwen3_vl"),
        (
            '{"model_type": "qwen3_vl_moe"}',
            "'qwen3_vl_moe' is not supported; supported: qwen2_5_vl, qwen3_vl",
        ),
        ('{"model_type": "qwen3_vl", "vision_config": 3}', "vision_config"),
        ('{"model_type": "qwen3_vl", "text_config": {"attention_bias": true}}', "attention_bias"),
        ('{"model_type": "qwen3_vl", "vision_config": {"hidden_act": "gelu"}}', "gelu_pytorch_tanh"),
        (
            '{"model_type": "qwen3_vl", "vision_config": {"num_position_embeddings": 50}}',
            "50 must be a square",
        ),
        ('{"model_type": "qwen3_vl", "vision_config": {"deepstack_visual_indexes": [9, 3]}}', "[9, 3] must"),
        ('{"model_type": "qwen3_vl", "vision_config": {"deepstack_visual_indexes": [27]}}', "[27] must"),
        ('{"model_type": "qwen2_5_vl", "vision_config": 3}', "vision_config"),
        ('{"model_type": "qwen2_5_vl", "tie_word_embeddings": "yes"}', "tie_word_embeddings"),
        ('{"model_type": "qwen2_5_vl", "text_config": {"hidden_size": "wide"}}', "hidden_size"),
        ('{"model_type": "qwen2_5_vl", "rope_scaling": {"rope_type": "linear", "factor": 2}}', "rope_type"),
        (
            '{"model_type": "qwen2_5_vl", "text_config": {"num_attention_heads": 0}}',
            "heads 0 must be 1 or more",
        ),
        ('{"model_type": "qwen2_5_vl", "text_config": {"num_key_value_heads": 3}}', "3 must divide"),
        ('{"model_type": "qwen2_5_vl", "vision_config": {"num_heads": 9}}', "3584 must be a multiple of 36"),
        ('{"model_type": "qwen2_5_vl", "vision_config": {"window_size": 27}}', "window_size 27 must be 28"),
        ('{"model_type": "qwen3_vl", "vision_config": {"depth": -1}}', "vision_config.depth -1 must be 1"),
        ('{"model_type": "qwen3_vl", "vision_config": {"temporal_patch_size": 4}}', "4 must be 2"),
        ("{}", "None is not supported"),
        ("[]", "no JSON object"),
        ("{", "no JSON"),
        ("", "no JSON"),
    ],
)
def test_a_config_of_something_else(tmp_path, text, error):
    (tmp_path / "config.json").write_text(text)
    assert f"{tmp_path / 'config.json'}: " in message(tmp_path)
    assert error in message(tmp_path)


def test_like_of_another_model(checkpoint, tmp_path):
    with pytest.raises(UserError, match="do not fit"):
        save_pretrained(load_pretrained(checkpoint("tied")), tmp_path, like=checkpoint("one_kv"))
