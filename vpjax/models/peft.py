"""Adapters as folders of PEFT: ``adapter_config.json`` and ``adapter_model.safetensors``, which
``peft.PeftModel.from_pretrained`` puts on the model from which the run started. Read and written by the name
table of checkpoints (``models.names``), whose shapes of matrices are those of PEFT too."""

import re
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np

from vpjax.files import AnyPath
from vpjax.models.config import VLMConfig
from vpjax.models.hf import (
    Place,
    match,
    places_of,
    read_header,
    read_json,
    read_shard,
    write_json_file,
    write_tensors,
)
from vpjax.models.lora import Lora, adapted_layers, is_adapter
from vpjax.models.names import FAMILIES
from vpjax.models.vlm import abstract_model, leaves
from vpjax.types import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the names of tensors, before the model's own
# Options of PEFT that change what adapters compute, and that are not supported.
UNSUPPORTED = """
    use_rslora use_dora lora_bias rank_pattern alpha_pattern modules_to_save alora_invocation_tokens
""".split()
# Ways in which adapters begin, after which they belong to other weights than those of the base model.
OTHER_WEIGHTS = ("olora", "pissa", "corda", "loftq", "lora_ga")


def save_adapters(
    params: dict[str, jax.Array],
    lora: Lora,
    model_config: VLMConfig,
    folder: AnyPath,
    *,
    base_model: str = "",
) -> None:
    """Write the adapters among ``params`` as a folder of PEFT. base_model: the folder or the name on the hub
    of the model that they belong to."""
    folder, family = Path(folder), FAMILIES[model_config.family]
    folder.mkdir(parents=True, exist_ok=True)
    members = {
        PREFIX + family.in_transformers(name): (place, params[place.path].dtype)
        for name, place in _places(lora, model_config).items()
    }
    write_tensors(folder / WEIGHTS, params, members)
    config = dict(
        peft_type="LORA",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model or None,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=False,
        target_modules=target_modules(adapted_layers(params), model_config),
        inference_mode=True,
    )
    write_json_file(folder / CONFIG, config)


def target_modules(layers: list[str], model_config: VLMConfig) -> str:
    """A regular expression of the modules of transformers that are ``layers`` here. Names alone would not do:
    ``gate_proj`` is in the decoder and in a tower."""
    family = FAMILIES[model_config.family]
    names = [family.in_transformers(theirs) for theirs, ours in family.modules.items() if ours in layers]
    return "|".join(re.escape(name).replace(re.escape("{i}"), r"\d+") for name in names)


def load_adapters(folder: AnyPath, lora: Lora, model_config: VLMConfig) -> dict[str, np.ndarray]:
    """The adapters, float32 by path, of a folder of PEFT. UserError if they are not those of ``lora``."""
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    unsupported = [name for name in UNSUPPORTED if config.get(name)]
    if str(config.get("init_lora_weights")).lower().startswith(OTHER_WEIGHTS):
        unsupported.append(f"init_lora_weights={config['init_lora_weights']}")
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or unsupported:
        what = unsupported or ["peft_type other than LORA, or bias"]
        raise UserError(f"{folder / CONFIG}: {', '.join(what)} is not supported; give plain LoRA adapters")
    for theirs, ours, asked in (("r", "rank", lora.rank), ("lora_alpha", "alpha", lora.alpha)):
        if config.get(theirs) != asked:
            raise UserError(
                f"{folder / CONFIG}: {theirs} is {config.get(theirs)}, but config.lora.{ours} is {asked}; "
                f"set --config.lora.{ours}={config.get(theirs)}"
            )
    tensors = [
        tensor._replace(key=tensor.key.removeprefix(PREFIX)) for tensor in read_header(folder / WEIGHTS)
    ]
    sources = defaultdict(list)
    places = _places(lora, model_config)
    for tensor, place in match(tensors, places, model_config, folder, asks="config.lora"):
        sources[place.path].append((tensor, place))
    shapes = leaves(abstract_model(model_config, lora=lora))
    return {
        path: read_shard(found, shapes[path].shape, np.float32, (slice(None),) * shapes[path].ndim)
        for path, found in sources.items()
    }


def _places(lora: Lora, model_config: VLMConfig) -> dict[str, Place]:
    """The tensors of the adapters, by their names without ``PREFIX``."""
    places = places_of(abstract_model(model_config, lora=lora))
    return {name: place for name, place in places.items() if is_adapter(place.path)}
