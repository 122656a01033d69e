"""SFT of Qwen2.5-VL-7B on long clips: 768 frames of 448 x 448, 98,304 visual tokens.

    python -m vpjax.train --config sft_qwen2_5_vl_7b_long --workdir runs/long \\
        --config.init_from=/data/Qwen2.5-VL-7B-Instruct --config.data.train=/data/train.jsonl

What it does: as configs/sft_qwen2_5_vl_7b.py, on rows of one clip of a minute and a half at 8 frames a
second, or of a longer one at fewer, whose tokens are split over 8 chips.
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
