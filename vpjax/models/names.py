"""The names of parameters in checkpoints. ``models.hf`` reads this table in both directions."""

import dataclasses
from collections.abc import Collection

# How a parameter's path ends, ours -> theirs; "" for a parameter that is an entry of ``modules`` itself.
ENDINGS = {
    "": ".weight",
    ".kernel": ".weight",
    ".scale": ".weight",
    ".bias": ".bias",
    ".lora_a": ".lora_A.weight",  # as PEFT names adapters
    ".lora_b": ".lora_B.weight",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """The names in the checkpoints of one architecture, and its processors in transformers.

    modules: theirs -> ours, in the order in which tensors are written; ``{i}`` counts the layers that our
    parameters stack on their leading axis.
    spellings: prefixes that are read as well, which are those in transformers 5 -> the prefix in ``modules``,
    which is the one that is written.
    whole_video: the video processor limits the pixels of all frames together, not of each frame.
    """

    modules: dict[str, str]
    spellings: dict[str, str]
    processor: str
    video_processor: str
    whole_video: bool

    def names(self, paths: Collection[str]) -> dict[str, str]:
        """The parameters of a model by their names in a checkpoint, theirs -> ours."""
        names = {}
        for theirs, ours in self.modules.items():
            for our_end, their_end in ENDINGS.items():
                if ours + our_end in paths:
                    names[theirs + their_end] = ours + our_end
        return names

    def in_transformers(self, name: str) -> str:
        """The name in a model of transformers 5 of what a checkpoint calls ``name``."""
        for theirs, written in self.spellings.items():
            if name.startswith(written):
                return theirs + name.removeprefix(written)
        return name

    def name_of(self, path: str) -> str:
        """The name of a parameter that is an entry of ``modules`` itself."""
        return {ours: theirs for theirs, ours in self.modules.items()}[path] + ENDINGS[""]


def _decoder_modules(prefix: str, *, qk_norm: bool) -> dict[str, str]:
    """The modules of a decoder, which checkpoints keep below ``prefix``."""
    layer = f"{prefix}.layers.{{i}}"
    norms = {f"{layer}.self_attn.{x}_norm": f"decoder.layers.{x}_norm" for x in "qk"} if qk_norm else {}
    return {
        f"{prefix}.embed_tokens": "decoder.embed",
        f"{layer}.input_layernorm": "decoder.layers.norm1",
        f"{layer}.self_attn.q_proj": "decoder.layers.q",
        f"{layer}.self_attn.k_proj": "decoder.layers.k",
        f"{layer}.self_attn.v_proj": "decoder.layers.v",
        **norms,
        f"{layer}.self_attn.o_proj": "decoder.layers.o",
        f"{layer}.post_attention_layernorm": "decoder.layers.norm2",
        f"{layer}.mlp.gate_proj": "decoder.layers.gate",
        f"{layer}.mlp.up_proj": "decoder.layers.up",
        f"{layer}.mlp.down_proj": "decoder.layers.down",
        f"{prefix}.norm": "decoder.norm",
        "lm_head": "decoder.lm_head",
    }


def _tower_modules(prefix: str, mlp: dict[str, str]) -> dict[str, str]:
    """The modules of a vision tower up to its mergers. mlp: the layers of an MLP, theirs -> ours."""
    block = f"{prefix}.blocks.{{i}}"
    return {
        f"{prefix}.patch_embed.proj": "vision.patch_embed",
        f"{block}.norm1": "vision.blocks.norm1",
        f"{block}.attn.qkv": "vision.blocks.qkv",
        f"{block}.attn.proj": "vision.blocks.proj",
        f"{block}.norm2": "vision.blocks.norm2",
        **{f"{block}.mlp.{theirs}": f"vision.blocks.{ours}" for theirs, ours in mlp.items()},
    }


FAMILIES = {
    "qwen2_5_vl": Family(
        modules={
            **_tower_modules("visual", {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}),
            "visual.merger.ln_q": "vision.merger.norm",
            "visual.merger.mlp.0": "vision.merger.fc1",
            "visual.merger.mlp.2": "vision.merger.fc2",
            **_decoder_modules("model", qk_norm=False),
        },
        spellings={"model.visual.": "visual.", "model.language_model.": "model."},
        processor="Qwen2_5_VLProcessor",
        video_processor="Qwen2VLVideoProcessor",
        whole_video=False,
    ),
    "qwen3_vl": Family(
        modules={
            "model.visual.pos_embed": "vision.positions",
            **_tower_modules("model.visual", {"linear_fc1": "up", "linear_fc2": "down"}),
            "model.visual.merger.norm": "vision.merger.norm",
            "model.visual.merger.linear_fc1": "vision.merger.fc1",
            "model.visual.merger.linear_fc2": "vision.merger.fc2",
            "model.visual.deepstack_merger_list.{i}.norm": "vision.deepstack.norm",
            "model.visual.deepstack_merger_list.{i}.linear_fc1": "vision.deepstack.fc1",
            "model.visual.deepstack_merger_list.{i}.linear_fc2": "vision.deepstack.fc2",
            **_decoder_modules("model.language_model", qk_norm=True),
        },
        spellings={},
        processor="Qwen3VLProcessor",
        video_processor="Qwen3VLVideoProcessor",
        whole_video=True,
    ),
}
