"""Checkpoint folders in and out: load then save is the identity, and an error names what does not fit."""

import copy
import json
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from tests import tiny
from vpjax.models import hf, vlm
from vpjax.models.config import READERS, VLMConfig
from vpjax.models.hf import load_pretrained, read_config, save_pretrained
from vpjax.models.sharding import make_mesh, spec_of
from vpjax.models.vlm import leaves
from vpjax.types import UserError

pytestmark = pytest.mark.slow


def contents(folder):
    """The tensors of a folder, as bytes: {file: {key: (dtype, shape, bytes)}}."""
    files = {}
    for file in folder.glob("*.safetensors"):
        tensors = safetensors.deserialize(file.read_bytes())
        files[file.name] = {key: (t["dtype"], t["shape"], bytes(t["data"])) for key, t in tensors}
    return files


def edited(folder, out, edit):
    """A copy of a checkpoint with one weight file, its tensors changed in place by ``edit``."""
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    edit(tensors)
    tensors = {key: x.contiguous() for key, x in tensors.items()}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def renamed(tensors):
    """The names of ``state_dict()`` in transformers 5 in place of those of its files."""
    for key in list(tensors):
        new = key.replace("model.", "model.language_model.", 1) if key.startswith("model.") else key
        new = f"model.{new}" if new.startswith("visual.") else new
        tensors[new] = tensors.pop(key)


def hub_spelling(config):
    """A ``config.json`` of transformers 5 as the folders on the hub have it."""
    return flat(config) if config["model_type"] == "qwen2_5_vl" else nested(config)


def nested(config):
    text = {k: v for k, v in config["text_config"].items() if k != "rope_parameters"}
    rope = config["text_config"]["rope_parameters"]
    scaling = {"mrope_interleaved": True, "mrope_section": rope["mrope_section"], "rope_type": "default"}
    text |= {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}
    vision = {**config["vision_config"], "model_type": "qwen3_vl"}
    del vision["rope_parameters"]
    return {**config, "text_config": text, "vision_config": vision}


def flat(config):
    text = {k: v for k, v in config["text_config"].items() if k not in ("model_type", "dtype", "layer_types")}
    vision = {**config["vision_config"], "in_chans": 3, "spatial_patch_size": 14, "model_type": "qwen2_5_vl"}
    rope = text.pop("rope_parameters")
    return {
        **text,
        **{k: v for k, v in config.items() if k not in ("text_config", "dtype")},
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "torch_dtype": config["dtype"],
        "vision_config": vision,
    }


def sharded(folder, out):
    return tiny.write_checkpoint(out, tiny.MODELS["one_kv"], max_shard_size="60KB")


def mixed(folder, out):
    """Types that change inside a stack, in both orders, as in checkpoints that keep some layers exact."""

    def edit(tensors):
        for i, kind in enumerate((torch.bfloat16, torch.float32, torch.float16)):
            for name in ("mlp.up_proj.weight", "self_attn.k_proj.bias"):
                key = f"model.layers.{i}.{name}"
                tensors[key] = tensors[key].to(kind)
        for name in ("visual.patch_embed.proj", "model.embed_tokens", "visual.blocks.0.attn.qkv"):
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"].bfloat16()

    return edited(folder, out, edit)


def with_a_copy_of_the_embedding(folder, out):
    def edit(tensors):
        (embed,) = (x for key, x in tensors.items() if key.endswith("embed_tokens.weight"))
        tensors["lm_head.weight"] = embed.clone()

    return edited(folder, out, edit)


def as_on_the_hub(folder, out):
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(hub_spelling(config)))
    return out


FOLDERS = {
    "as saved": lambda folder, out: folder,
    "in shards": sharded,
    "of mixed types": mixed,
    "with the new names": lambda folder, out: edited(folder, out, renamed),
    "with a tied head": with_a_copy_of_the_embedding,
    "as on the hub": as_on_the_hub,
}
FORMS = [
    *(("tied", form) for form in FOLDERS),
    *(("deep", form) for form in ("as saved", "with a tied head", "as on the hub")),
    ("deep_throughout", "as saved"),
]


def test_every_parameter_has_a_name_and_every_name_a_parameter(checkpoint):
    assert set(hf.FAMILIES) == set(READERS)
    models = [vlm.abstract_model(read_config(checkpoint(name))) for name in tiny.MODELS]
    for model in models:
        assert {place.path for place in hf.places_of(model).values()} == set(leaves(model))
    for family, table in hf.FAMILIES.items():
        paths = {path for model in models if model.config.family == family for path in leaves(model)}
        modules = {path.rpartition(".")[0] for path in paths}
        assert set(table.modules.values()) <= paths | modules


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_load_then_save_is_the_identity(checkpoint, tmp_path, name, form):
    folder = FOLDERS[form](checkpoint(name), tmp_path / "in")
    save_pretrained(load_pretrained(folder), tmp_path / "out", like=folder)
    assert contents(tmp_path / "out") == contents(folder)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == json.loads((folder / "config.json").read_text())
    assert len(contents(folder)) == (9 if form == "in shards" else 1)
    if form == "in shards":
        maps = [json.loads((at / hf.INDEX).read_text())["weight_map"] for at in (folder, tmp_path / "out")]
        assert maps[0] == maps[1]


@pytest.mark.parametrize("name", tiny.MODELS)
def test_without_like_the_names_of_transformers_are_written(checkpoint, tmp_path, name):
    """For Qwen2.5-VL its old ones; here from the new."""
    old = tiny.MODELS[name]["model_type"] == "qwen2_5_vl"
    folder = edited(checkpoint(name), tmp_path / "in", renamed) if old else checkpoint(name)
    save_pretrained(load_pretrained(folder), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(checkpoint(name))


def test_a_stack_of_mixed_types_is_promoted_without_loss(checkpoint, tmp_path):
    folder = mixed(checkpoint("tied"), tmp_path / "in")
    tensors = load_file(folder / "model.safetensors")
    params = leaves(load_pretrained(folder))
    up = params["decoder.layers.up.kernel"]
    assert up.dtype == jnp.float32
    for i in range(3):
        np.testing.assert_array_equal(up[i], tensors[f"model.layers.{i}.mlp.up_proj.weight"].float().T)
    assert params["vision.patch_embed.kernel"].dtype == jnp.bfloat16
    assert params["decoder.layers.gate.kernel"].dtype == jnp.float32


def test_dtype_is_that_of_every_parameter(checkpoint, tmp_path):
    exact, model = (load_pretrained(checkpoint("tied"), dtype=kind) for kind in (None, "bfloat16"))
    for path, leaf in leaves(model).items():
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, leaves(exact)[path].astype(jnp.bfloat16))
    # Without the types of another folder to follow, config.json names what is written.
    save_pretrained(model, tmp_path)
    assert Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path).dtype == torch.bfloat16


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH)
def test_a_mesh_gets_its_shards(checkpoint, tmp_path, name):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    model = load_pretrained(checkpoint(name), mesh=mesh)
    save_pretrained(model, tmp_path)
    assert contents(tmp_path) == contents(checkpoint(name))
    whole, parts = leaves(load_pretrained(checkpoint(name))), leaves(model)
    for path, part in parts.items():
        np.testing.assert_array_equal(part, whole[path])
        assert part.sharding.spec == spec_of(path, part.shape, mesh)
    gate = parts["decoder.layers.gate.kernel"]
    assert gate.addressable_shards[0].data.shape == (3, 32, 48)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder of 20 files of at most 1 MB, whose largest stack has 3."""
    folder = tmp_path_factory.mktemp("large")
    vision = dict(depth=2, hidden_size=64, intermediate_size=64, num_heads=2, fullatt_block_indexes=[1])
    text = dict(
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        rope_parameters=tiny.rope(1e4, 8, 12, 12),
    )
    config = tiny.config(vision=vision, text=text, tied=True)
    return tiny.write_checkpoint(folder, config, max_shard_size="1MB")


def peak(run):
    """The most bytes that ``run`` holds in Python and NumPy, without XLA's own buffers."""
    tracemalloc.start()
    run()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_the_host_holds_one_stack_at_a_time(large, tmp_path, monkeypatch):
    model = load_pretrained(large)
    sizes = {path: leaf.nbytes for path, leaf in leaves(model).items()}
    one, files = max(sizes.values()), [file.stat().st_size for file in large.glob("*.safetensors")]
    assert sum(sizes.values()) > 6 * one > 12 * max(files)

    save_pretrained(model, tmp_path, like=large)  # JAX allocates its own caches before the measurement
    assert peak(lambda: save_pretrained(model, tmp_path, like=large)) < 1.5 * max(files)
    # An accelerator keeps nothing on the host; on CPU, device arrays would share numpy's memory.
    monkeypatch.setattr(jax, "device_put", lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert peak(lambda: load_pretrained(large)) < 1.5 * one


def test_a_mesh_reads_only_its_part(large, monkeypatch):
    """Every call fills one shard: the sizes that are read are those of the table, not of the stack."""
    filled = []
    shard = hf.read_shard
    monkeypatch.setattr(hf, "read_shard", lambda *args: filled.append(shard(*args)) or filled[-1])
    params = leaves(load_pretrained(large, mesh=make_mesh({"data": 1, "fsdp": 4, "tensor": 2})))
    kernels = [path for path in params if path.startswith("decoder.layers") and path.endswith("kernel")]
    assert {params[path].nbytes // 8 for path in kernels} <= {x.nbytes for x in filled}
    assert max(x.nbytes for x in filled) < max(leaf.nbytes for leaf in params.values()) / 4


@pytest.mark.parametrize("name", ["tied", "one_kv", "deep", "deep_throughout"])
@pytest.mark.parametrize("follow", [False, True])
def test_transformers_loads_what_we_save(checkpoint, tmp_path, name, follow):
    model = jax.tree.map(jnp.negative, load_pretrained(checkpoint(name)))
    save_pretrained(model, tmp_path, like=checkpoint(name) if follow else None)
    kind = tiny.FAMILIES[model.config.family].model
    theirs, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    embed, head = theirs.get_input_embeddings().weight, theirs.get_output_embeddings().weight
    np.testing.assert_array_equal(embed.detach(), leaves(model)["decoder.embed"])
    np.testing.assert_array_equal(head.detach(), model.unembed)


def test_files_beside_the_weights_are_carried_along(checkpoint, tmp_path):
    """Also from a folder without weights, such as the one a run keeps its tokenizer in."""
    names = """generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json vocab.json
    merges.txt added_tokens.json chat_template.jinja preprocessor_config.json processor_config.json"""
    carried = {name: f"the text of {name}: ü" for name in names.split()}
    like = tmp_path / "like"
    like.mkdir()
    for name, text in {**carried, "training_args.bin": "no", "README.md": "no"}.items():
        (like / name).write_text(text)
    save_pretrained(load_pretrained(checkpoint("tied")), tmp_path / "out", like=like)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {*carried, "config.json", "model.safetensors"}
    assert all((tmp_path / "out" / name).read_text() == text for name, text in carried.items())


def test_saving_over_an_older_save(checkpoint, tmp_path, monkeypatch):
    """No file of the older one is left to be read; and a folder may be saved over itself."""
    model = load_pretrained(checkpoint("tied"))
    with monkeypatch.context() as patch:
        patch.setattr(hf, "SHARD_BYTES", 50_000)
        save_pretrained(model, tmp_path)
    shards = contents(tmp_path)
    assert len(shards) > 3
    index = json.loads((tmp_path / hf.INDEX).read_text())["weight_map"]
    assert index == {key: file for file, keys in shards.items() for key in keys}
    save_pretrained(load_pretrained(tmp_path), tmp_path, like=tmp_path)
    assert contents(tmp_path) == shards
    save_pretrained(load_pretrained(tmp_path), tmp_path)
    assert contents(tmp_path) == contents(checkpoint("tied"))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_a_save_that_is_cut_short_does_not_load(checkpoint, tmp_path, monkeypatch):
    model = load_pretrained(checkpoint("tied"))
    save_pretrained(model, tmp_path)
    monkeypatch.setattr(hf, "SHARD_BYTES", 50_000)

    def full(arrays, path, **_):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(hf, "save_file", full)
    with pytest.raises(UserError, match="No space"):
        save_pretrained(model, tmp_path)
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(UserError, match="config.json"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_both_spellings_of_the_config(checkpoint, name):
    raw = json.loads((checkpoint(name) / "config.json").read_text())
    before = copy.deepcopy(raw)
    new, hub = VLMConfig.from_hf(raw), VLMConfig.from_hf(hub_spelling(raw))
    assert raw == before
    assert new.to_hf() == raw
    assert hub.to_hf() == hub_spelling(raw)
    assert (new.vision, new.decoder) == (hub.vision, hub.decoder)
    assert new.tokens_per_second == hub.tokens_per_second
    assert new.tokens_per_second == (2 if raw["model_type"] == "qwen2_5_vl" else None)
    assert new.decoder.tied == (name in ("tied", "deep"))
    assert new.decoder.rope_theta == tiny.MODELS[name]["text_config"]["rope_parameters"]["rope_theta"]
