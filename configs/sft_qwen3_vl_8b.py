"""SFT with the joint loss of Qwen3-VL-8B on your own clips.

    python -m vpjax.train --config configs/sft_qwen3_vl_8b.py --workdir runs/8b \\
        --config.init_from=/data/Qwen3-VL-8B-Instruct --config.data.train=/data/train.jsonl

What it does: one pass of the usual size over annotated clips (JSON lines of ``vpjax.types.Clip``) at 2 frames
per second, the vision tower frozen, its mergers (DeepStack too) trained at a tenth of the decoder's learning
rate. The dense 2B, 4B and 32B models differ in ``init_from`` alone.
Hardware and cost: made for 64 chips of TPU v5e (16 GB each), parameters and optimizer sharded over all of
them. Not measured yet: no accelerator has run it.
"""

from configs import sft_qwen2_5_vl_7b


def get_config():
    c = sft_qwen2_5_vl_7b.get_config()
    c.init_from = "/path/to/Qwen3-VL-8B-Instruct"
    c.data.min_pixels = 128 * 32 * 32  # 128 to 256 tokens of a slot, as there: here a token is 32 x 32 pixels
    c.data.max_pixels = 256 * 32 * 32
    c.optim.freeze = ("vision.patch_embed*", "vision.positions", "vision.blocks*")
    c.optim.lr_multipliers = (("vision.merger*", 0.1), ("vision.deepstack*", 0.1))
    return c
