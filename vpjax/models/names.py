"""The one name table: what checkpoints call each parameter. ``models.hf`` reads it in both directions."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Family:
    """The names in the checkpoints of one architecture.

    names: (theirs, ours); ``{i}`` counts the layers that stand on the leading axis of our parameter.
    spellings: prefixes that are read as well -> the prefix in ``names``, which is the one that is written.
    processor, video_processor: the classes of transformers. whole_video: the latter limits the pixels
    of all frames together, not of each.
    """

    names: tuple[tuple[str, str], ...]
    spellings: dict[str, str]
    processor: str
    video_processor: str
    whole_video: bool


def _linear(theirs: str, ours: str, *, bias: bool) -> tuple[tuple[str, str], ...]:
    weight = (f"{theirs}.weight", f"{ours}.kernel")
    return (weight, (f"{theirs}.bias", f"{ours}.bias")) if bias else (weight,)


def _norm(theirs: str, ours: str, *, bias: bool) -> tuple[tuple[str, str], ...]:
    scale = (f"{theirs}.weight", f"{ours}.scale")
    return (scale, (f"{theirs}.bias", f"{ours}.bias")) if bias else (scale,)


def _decoder(prefix: str, *, qkv_bias: bool, qk_norm: bool) -> tuple[tuple[str, str], ...]:
    """The names of a decoder whose own stand below ``prefix``."""
    layer = f"{prefix}.layers.{{i}}"
    norms = [(f"{layer}.self_attn.{x}_norm.weight", f"decoder.layers.{x}_norm.scale") for x in "qk"]
    return (
        (f"{prefix}.embed_tokens.weight", "decoder.embed"),
        (f"{layer}.input_layernorm.weight", "decoder.layers.norm1.scale"),
        *_linear(f"{layer}.self_attn.q_proj", "decoder.layers.q", bias=qkv_bias),
        *_linear(f"{layer}.self_attn.k_proj", "decoder.layers.k", bias=qkv_bias),
        *_linear(f"{layer}.self_attn.v_proj", "decoder.layers.v", bias=qkv_bias),
        *(norms if qk_norm else ()),
        *_linear(f"{layer}.self_attn.o_proj", "decoder.layers.o", bias=False),
        (f"{layer}.post_attention_layernorm.weight", "decoder.layers.norm2.scale"),
        *_linear(f"{layer}.mlp.gate_proj", "decoder.layers.gate", bias=False),
        *_linear(f"{layer}.mlp.up_proj", "decoder.layers.up", bias=False),
        *_linear(f"{layer}.mlp.down_proj", "decoder.layers.down", bias=False),
        (f"{prefix}.norm.weight", "decoder.norm.scale"),
        ("lm_head.weight", "decoder.lm_head"),
    )


def _tower(prefix: str, *, mlp: dict[str, str], bias: bool) -> tuple[tuple[str, str], ...]:
    """The names of a tower up to its mergers. mlp: theirs -> ours; bias: of the patch embedding and norms."""
    block = f"{prefix}.blocks.{{i}}"
    return (
        *_linear(f"{prefix}.patch_embed.proj", "vision.patch_embed", bias=bias),
        *_norm(f"{block}.norm1", "vision.blocks.norm1", bias=bias),
        *_linear(f"{block}.attn.qkv", "vision.blocks.qkv", bias=True),
        *_linear(f"{block}.attn.proj", "vision.blocks.proj", bias=True),
        *_norm(f"{block}.norm2", "vision.blocks.norm2", bias=bias),
        *(
            pair
            for theirs, ours in mlp.items()
            for pair in _linear(f"{block}.mlp.{theirs}", f"vision.blocks.{ours}", bias=True)
        ),
    )


def _merger(
    theirs: str, ours: str, *, norm: str, fc1: str, fc2: str, bias: bool
) -> tuple[tuple[str, str], ...]:
    """The names of a merger and, in it, of its norm and layers. bias: of the norm."""
    return (
        *_norm(f"{theirs}.{norm}", f"{ours}.norm", bias=bias),
        *_linear(f"{theirs}.{fc1}", f"{ours}.fc1", bias=True),
        *_linear(f"{theirs}.{fc2}", f"{ours}.fc2", bias=True),
    )


_QWEN3_MERGER = dict(norm="norm", fc1="linear_fc1", fc2="linear_fc2", bias=True)
FAMILIES = {
    "qwen2_5_vl": Family(
        names=(
            *_tower("visual", mlp=dict(gate_proj="gate", up_proj="up", down_proj="down"), bias=False),
            *_merger("visual.merger", "vision.merger", norm="ln_q", fc1="mlp.0", fc2="mlp.2", bias=False),
            *_decoder("model", qkv_bias=True, qk_norm=False),
        ),
        spellings={"model.visual.": "visual.", "model.language_model.": "model."},
        processor="Qwen2_5_VLProcessor",
        video_processor="Qwen2VLVideoProcessor",
        whole_video=False,
    ),
    "qwen3_vl": Family(
        names=(
            ("model.visual.pos_embed.weight", "vision.positions"),
            *_tower("model.visual", mlp=dict(linear_fc1="up", linear_fc2="down"), bias=True),
            *_merger("model.visual.merger", "vision.merger", **_QWEN3_MERGER),
            *_merger("model.visual.deepstack_merger_list.{i}", "vision.deepstack", **_QWEN3_MERGER),
            *_decoder("model.language_model", qkv_bias=False, qk_norm=True),
        ),
        spellings={},
        processor="Qwen3VLProcessor",
        video_processor="Qwen3VLVideoProcessor",
        whole_video=True,
    ),
}
