"""The configuration of a VideoLM, read from a Hugging Face ``config.json``, one function for each family.

It is read here and not by transformers' classes, which take longer to import than all else of a start (they
import PyTorch where that is installed). A test compares every field with theirs.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from vpjax.models.decoder import DecoderConfig
from vpjax.models.rope import interleaved_axes, section_axes
from vpjax.models.vision import VisionConfig
from vpjax.types import UserError


@dataclasses.dataclass(frozen=True)
class VLMConfig:
    """Sizes and special tokens of a VideoLM.

    tokens_per_second: time positions per second; None: the prompt gives the time of each slot in words,
    ``<0.2 seconds>``. hf: the text of its ``config.json``, which is written back unchanged.
    """

    family: str
    vision: VisionConfig
    decoder: DecoderConfig
    image_token: int
    video_token: int
    vision_start: int
    vision_end: int
    tokens_per_second: float | None
    hf: str

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> VLMConfig:
        """Read a ``config.json`` in the spelling of the hub (``rope_scaling``; flat for Qwen2.5-VL) or of
        transformers 5 (``text_config``, ``rope_parameters``). UserError for a model that is not supported."""
        family = raw.get("model_type")
        if family not in READERS:
            raise UserError(f"model_type {family!r} is not supported; supported: {', '.join(READERS)}")
        parsed = parse(raw)
        return cls(
            family=family,
            **READERS[family](parsed),
            image_token=parsed.image_token_id,
            video_token=parsed.video_token_id,
            vision_start=parsed.vision_start_token_id,
            vision_end=parsed.vision_end_token_id,
            hf=json.dumps(raw, sort_keys=True),
        )

    def to_hf(self) -> dict[str, Any]:
        """The ``config.json`` that ``from_hf`` read."""
        return json.loads(self.hf)


# The fields that are read, with the values that transformers' classes give them where a file lacks them.
# ``save_pretrained`` writes no field that has its default.
MODEL = dict(
    image_token_id=151655,
    video_token_id=151656,
    vision_start_token_id=151652,
    vision_end_token_id=151653,
    tie_word_embeddings=False,
)
VISION: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": dict(
        depth=32,
        hidden_size=3584,
        hidden_act="silu",
        intermediate_size=3420,
        num_heads=16,
        in_channels=3,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
        tokens_per_second=4,
        window_size=112,
        out_hidden_size=3584,
        fullatt_block_indexes=[7, 15, 23, 31],
    ),
    "qwen3_vl": dict(
        depth=27,
        hidden_size=1152,
        hidden_act="gelu_pytorch_tanh",
        intermediate_size=4304,
        num_heads=16,
        in_channels=3,
        patch_size=16,
        spatial_merge_size=2,
        temporal_patch_size=2,
        out_hidden_size=3584,
        num_position_embeddings=2304,
        deepstack_visual_indexes=[8, 16, 24],
    ),
}
TEXT: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": dict(
        vocab_size=152064,
        hidden_size=8192,
        intermediate_size=29568,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=0,  # hidden_size / num_attention_heads
        hidden_act="silu",
        rms_norm_eps=1e-5,
        use_sliding_window=False,
        rope_theta=1e6,
    ),
    "qwen3_vl": dict(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=22016,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        attention_bias=False,
        rope_theta=5e5,
    ),
}

# Of the text: null means that it is not given.
NULLABLE = {"qwen2_5_vl": ("head_dim", "use_sliding_window"), "qwen3_vl": ()}


def parse(raw: Mapping[str, Any]) -> SimpleNamespace:
    """The fields of MODEL, and those of VISION and TEXT as ``vision_config`` and ``text_config``, of a
    supported model, by the names of transformers 5. UserError for a value of another type."""
    family = raw["model_type"]
    own_text = raw.get("text_config")
    text: Any = own_text
    if own_text is None:
        text = raw if family == "qwen2_5_vl" else {}  # the hub's files of Qwen2.5-VL are flat
    vision = raw.get("vision_config") or {}
    for name, section in (("text_config", text), ("vision_config", vision)):
        if not isinstance(section, Mapping):
            raise UserError(f"{name} is {section!r}, and must be an object")
    parsed = SimpleNamespace(**_fields(raw, MODEL, ""))
    parsed.vision_config = SimpleNamespace(**_fields(vision, VISION[family], "vision_config."))
    parsed.vision_config.rope_parameters = vision.get("rope_parameters")
    if text.get("num_key_value_heads", 0) is None:  # as many as there are heads
        heads = text.get("num_attention_heads", TEXT[family]["num_attention_heads"])
        text = {**text, "num_key_value_heads": heads}
    empty = NULLABLE[family]
    text = {name: value for name, value in text.items() if value is not None or name not in empty}
    fields = _fields(text, TEXT[family], "text_config.")
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise UserError(f"text_config.rope_parameters is {rope!r}, and must be an object")
    rope = dict(rope)
    rope.setdefault("rope_type", rope.get("type", "default"))
    if family == "qwen2_5_vl" and rope["rope_type"] == "mrope":
        rope["rope_type"] = "default"
    rope.setdefault("rope_theta", fields.pop("rope_theta"))
    parsed.text_config = SimpleNamespace(**fields, rope_parameters=rope)
    if family == "qwen2_5_vl" and own_text is not None:  # where transformers 4 saved it
        parsed.tie_word_embeddings |= bool(text.get("tie_word_embeddings"))
    return parsed


def _fields(section: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The fields of ``defaults``, of their types."""
    fields = {}
    for name, default in defaults.items():
        value = section.get(name, default)
        wanted: Any = type(default)
        if wanted is float:
            wanted = float | int
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise UserError(f"{prefix}{name} is {value!r}, and must be of type {type(default).__name__}")
        fields[name] = value
    return fields


def _qwen2_5_vl(parsed: Any) -> dict[str, Any]:
    """The fields of VLMConfig that differ between families, for ``Qwen2_5_VLConfig``."""
    vision, text = parsed.vision_config, parsed.text_config
    if text.use_sliding_window or vision.hidden_act != "silu" or text.hidden_act != "silu":
        raise UserError("sliding windows and activations other than silu are not supported")
    return dict(
        decoder=_decoder_config(parsed, section_axes),
        vision=_vision_config(
            parsed, window=vision.window_size, full_attention=tuple(vision.fullatt_block_indexes)
        ),
        tokens_per_second=float(vision.tokens_per_second),
    )


def _qwen3_vl(parsed: Any) -> dict[str, Any]:
    """The same for ``Qwen3VLConfig``."""
    vision, text = parsed.vision_config, parsed.text_config
    side, deep = math.isqrt(vision.num_position_embeddings), tuple(vision.deepstack_visual_indexes)
    if text.attention_bias or (text.hidden_act, vision.hidden_act) != ("silu", "gelu_pytorch_tanh"):
        raise UserError(
            "attention_bias and activations other than silu and gelu_pytorch_tanh are not supported"
        )
    if side**2 != vision.num_position_embeddings:
        raise UserError(f"num_position_embeddings {vision.num_position_embeddings} must be a square")
    ascending = list(deep) == sorted(set(deep)) and all(0 <= layer < vision.depth for layer in deep)
    if not ascending or len(deep) > text.num_hidden_layers:
        raise UserError(
            f"deepstack_visual_indexes {list(deep)} must ascend below depth {vision.depth}, no more than "
            f"num_hidden_layers {text.num_hidden_layers}"
        )
    half = (0.5, 0.5, 0.5)
    return dict(
        decoder=_decoder_config(parsed, interleaved_axes, qkv_bias=False, qk_norm=True),
        vision=_vision_config(
            parsed,
            window=0,
            full_attention=(),
            pixel_mean=half,
            pixel_std=half,
            layer_norm=True,
            gated=False,
            patch_bias=True,
            position_side=side,
            deepstack=deep,
        ),
        tokens_per_second=None,
    )


def _vision_config(parsed: Any, **special: Any) -> VisionConfig:
    vision, width = parsed.vision_config, parsed.text_config.hidden_size
    rope = getattr(vision, "rope_parameters", None) or {}  # transformers before 5.17 knows no other value
    if rope.get("rope_theta", 10000) != 10000:
        raise UserError("a rope_theta of the vision tower other than 10000 is not supported")
    if vision.out_hidden_size != width:
        raise UserError(f"out_hidden_size {vision.out_hidden_size} must be {width}")
    return VisionConfig(
        depth=vision.depth,
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        heads=vision.num_heads,
        out_hidden=vision.out_hidden_size,
        patch=vision.patch_size,
        merge=vision.spatial_merge_size,
        temporal=vision.temporal_patch_size,
        channels=vision.in_channels,
        **special,
    )


def _decoder_config(parsed: Any, axes: Any, **special: Any) -> DecoderConfig:
    """axes: a function from the sections of the rotary embedding to the axis of each channel pair."""
    text = parsed.text_config
    rope = text.rope_parameters
    if rope.get("rope_type", "default") != "default" or "mrope_section" not in rope:
        raise UserError(f"rope_parameters {rope}: rope_type must be 'default', with an mrope_section")
    head_dim = text.head_dim or text.hidden_size // text.num_attention_heads
    if 2 * sum(rope["mrope_section"]) != head_dim:
        raise UserError(f"mrope_section {rope['mrope_section']} must sum to {head_dim // 2}")
    return DecoderConfig(
        vocab=text.vocab_size,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=head_dim,
        rope_theta=float(rope["rope_theta"]),
        rope_axes=axes(tuple(rope["mrope_section"])),
        rms_eps=text.rms_norm_eps,
        tied=parsed.tie_word_embeddings,
        **special,
    )


READERS = {"qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl}
