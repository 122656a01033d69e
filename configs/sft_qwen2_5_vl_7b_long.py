"""SFT of Qwen2.5-VL-7B on long clips: 768 frames of 448 x 448, 98,304 visual tokens.

    python -m vpjax.train --config sft_qwen2_5_vl_7b_long --workdir runs/long \\
        --config.init_from=/data/Qwen2.5-VL-7B-Instruct --config.data.train=/data/train.jsonl

What it does: as configs/sft_qwen2_5_vl_7b.py, on rows of one clip of a minute and a half at 8 frames a
second, or of a longer one at fewer, whose tokens are split over 8 chips.
Hardware and cost: made for 64 chips of TPU v5e (16 GB each), for which ``vpjax.plan`` counts 11.1 GiB and 16
to 17 seconds a step of 8 clips, and more as far as the attention kernel stays below the chip's peak. 3,600
frames of 336 x 336, 262,144 tokens over 32 chips, need 13.1 GiB: benchmarks/results/2026-11-29-context.md has
the fields. Not measured yet: no accelerator has run it.
"""

from vpjax.recipes import sft_qwen2_5_vl_7b


def get_config():
    c = sft_qwen2_5_vl_7b.get_config()
    c.batch = 8  # one row for each 8 chips of a slice of 64
    c.remat = "layers"

    c.data.max_frames = 768
    c.data.max_pixels = 448 * 448
    c.data.length_multiple = 2048  # 128 for the TPU's attention kernel, of each of 16 pieces of a row
    c.data.max_tokens = 49 * 2048
    c.data.row_tokens = 0  # as the longest clip

    c.mesh.context = 8
    return c
