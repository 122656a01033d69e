"""The configuration of a VideoLM, read from a Hugging Face ``config.json``, one function for each family."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from huggingface_hub.errors import StrictDataclassError

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
        from transformers import AutoConfig  # takes seconds to import

        hf = json.dumps(raw, sort_keys=True)
        try:
            parsed = AutoConfig.for_model(**json.loads(hf))  # a copy, for AutoConfig changes its arguments
        except StrictDataclassError as error:
            raise UserError(" ".join(str(error).split())) from error
        _check_sizes(parsed.vision_config, parsed.text_config)
        return cls(
            family=family,
            **READERS[family](parsed),
            image_token=parsed.image_token_id,
            video_token=parsed.video_token_id,
            vision_start=parsed.vision_start_token_id,
            vision_end=parsed.vision_end_token_id,
            hf=hf,
        )

    def to_hf(self) -> dict[str, Any]:
        """The ``config.json`` that ``from_hf`` read."""
        return json.loads(self.hf)


VISION_SIZES = "depth hidden_size intermediate_size num_heads patch_size spatial_merge_size".split()
TEXT_SIZES = """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
""".split()


def _check_sizes(vision: Any, text: Any) -> None:
    """UserError for a size that is below 1, and for heads that do not share out what they have."""
    for section, sizes in (("vision_config", VISION_SIZES), ("text_config", TEXT_SIZES)):
        config = vision if section == "vision_config" else text
        for size in sizes:
            if getattr(config, size) < 1:
                raise UserError(f"{section}.{size} {getattr(config, size)} must be 1 or more")
    if vision.temporal_patch_size != 2:  # two frames make a slot
        raise UserError(f"vision_config.temporal_patch_size {vision.temporal_patch_size} must be 2")
    if text.num_attention_heads % text.num_key_value_heads:
        raise UserError(
            f"num_key_value_heads {text.num_key_value_heads} must divide num_attention_heads "
            f"{text.num_attention_heads}"
        )
    if vision.hidden_size % (4 * vision.num_heads):  # a head's width is rows and columns, each in pairs
        raise UserError(
            f"vision_config.hidden_size {vision.hidden_size} must be a multiple of {4 * vision.num_heads}, "
            "four times its num_heads"
        )


def _qwen2_5_vl(parsed: Any) -> dict[str, Any]:
    """The fields of VLMConfig that differ between families, for ``Qwen2_5_VLConfig``."""
    vision, text = parsed.vision_config, parsed.text_config
    if text.use_sliding_window or vision.hidden_act != "silu" or text.hidden_act != "silu":
        raise UserError("sliding windows and activations other than silu are not supported")
    window = vision.spatial_merge_size * vision.patch_size
    if vision.window_size < window:
        raise UserError(f"vision_config.window_size {vision.window_size} must be {window}, a unit's, or more")
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
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
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
