"""SFT with the joint loss of Qwen2.5-VL-7B on your own clips.

    python -m vpjax.train --config sft_qwen2_5_vl_7b --workdir runs/7b \\
        --config.init_from=/data/Qwen2.5-VL-7B-Instruct --config.data.train=/data/train.jsonl

What it does: 2,000 updates of 64 rows of annotated clips (JSON lines of ``vpjax.types.Clip``), 8 frames a
second within 8,192 tokens a clip, two clips and more in a row. The vision tower is frozen; its merger is
trained at a tenth of the decoder's learning rate.
Hardware and cost: made for 64 chips of TPU v5e (16 GB each), parameters and optimizer sharded over all of
them. Not measured yet: no accelerator has run it.
"""

from vpjax.recipes import base

# The part of its config.json that sets shapes.
SIZES = dict(
    model_type="qwen2_5_vl",
    tie_word_embeddings=False,
    text_config=dict(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]),
    ),
    vision_config=dict(
        depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584, patch_size=14
    ),
)


def get_config():
    c = base.get_config()
    c.init_from = "/path/to/Qwen2.5-VL-7B-Instruct"
    c.model = SIZES  # for vpjax.plan, which does not need the folder
    c.steps = 2000
    c.batch = 64
    c.dtype = "bfloat16"
    c.remat = "auto"

    c.data.train = "/path/to/train.jsonl"
    c.data.heldout = ""
    c.data.frames = 0
    c.data.fps = 8.0  # at 2 frames a second, half of the events of a quarter second fall between the frames
    c.data.min_pixels = 48 * 28 * 28
    c.data.max_pixels = 256 * 28 * 28
    c.data.max_tokens = 8192
    c.data.row_tokens = 16384  # a multiple of max_tokens: two of the longest clips fill a row
    c.data.length_multiple = 128  # as the TPU's attention kernel requires
    c.data.cache_gb = 500.0
    c.data.workers = 16

    c.optim.lr = 1e-5
    c.contrast.lr = 1e-3  # the heads and the temperature are new
    c.optim.warmup_share = 0.03
    c.optim.weight_decay = 0.0
    c.optim.b2 = 0.95
    c.optim.freeze = ("vision.patch_embed*", "vision.blocks*")
    c.optim.lr_multipliers = (("vision.merger*", 0.1),)
    c.optim.moments_dtype = "bfloat16"

    c.mesh.fsdp = -1
    c.checkpoint_every = 200
    return c
