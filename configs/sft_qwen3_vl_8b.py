"""SFT with the joint loss of Qwen3-VL-8B on your own clips.

    python -m vpjax.train --config sft_qwen3_vl_8b --workdir runs/8b \\
        --config.init_from=/data/Qwen3-VL-8B-Instruct --config.data.train=/data/train.jsonl

What it does: 2,000 updates of 64 rows of annotated clips (JSON lines of ``vpjax.types.Clip``), 8 frames a
second within 8,192 tokens a clip, two clips and more in a row. The vision tower is frozen; its mergers
(DeepStack too) are trained at a tenth of the decoder's learning rate. The dense 2B, 4B and 32B models differ
in ``init_from`` alone.
Hardware and cost: made for 64 chips of TPU v5e (16 GB each), parameters and optimizer sharded over all of
them. Not measured yet: no accelerator has run it.
"""

from vpjax.recipes import sft_qwen2_5_vl_7b

# The part of its config.json that sets shapes.
SIZES = dict(
    model_type="qwen3_vl",
    tie_word_embeddings=False,
    text_config=dict(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rope_parameters=dict(rope_type="default", rope_theta=5e6, mrope_section=[24, 20, 20]),
    ),
    vision_config=dict(
        depth=27,
        hidden_size=1152,
        intermediate_size=4304,
        num_heads=16,
        out_hidden_size=4096,
        patch_size=16,
        num_position_embeddings=2304,
        deepstack_visual_indexes=[8, 16, 24],
    ),
)


def with_model(c):
    """Change ``c``, a recipe of Qwen2.5-VL-7B, into one of this model."""
    c.init_from = "/path/to/Qwen3-VL-8B-Instruct"
    c.model = SIZES  # for vpjax.plan, which does not need the folder
    c.data.min_pixels = 32 * 32 * 32  # 32 to 256 tokens a slot, of 32 x 32 pixels each
    c.data.max_pixels = 256 * 32 * 32
    c.optim.freeze = ("vision.patch_embed*", "vision.positions", "vision.blocks*")
    c.optim.lr_multipliers = (("vision.merger*", 0.1), ("vision.deepstack*", 0.1))
    return c


def get_config():
    return with_model(sft_qwen2_5_vl_7b.get_config())
