"""SFT of Qwen2.5-VL-7B by adapters (LoRA) on your own clips, on a few chips.

    python -m vpjax.train --config sft_lora_qwen2_5_vl_7b --workdir runs/7b-lora \\
        --config.init_from=/data/Qwen2.5-VL-7B-Instruct --config.data.train=/data/train.jsonl

What it does: as configs/sft_qwen2_5_vl_7b.py, but only adapters of rank 16 beside the decoder's linear layers
are trained, in rows of 8,192 tokens, 8 a step. ``vpjax.export --workdir runs/7b-lora --out DIR`` merges them;
with ``--adapters`` it writes a folder for PEFT.
Hardware and cost: meant for 8 chips of TPU v5e (16 GB each) or one GPU of 80 GB (--config.accumulate=8). By
the compiler's count (vpjax.plan, v5e:2x4) a step fills a chip as far as ``remat`` lets it, takes 4.2 to 4.4 s
and .060 TFLOP a useful token, with 42 M of 8,335 M parameters trained. ``--config.lora.base_dtype=int8``
freezes the adapted weights as int8: the state then takes 1.6 GiB of a chip instead of 2.3. For one H100 the
plan (--topology h100:1) estimates 73 of 79 GiB, 3.2 s at its peak. No accelerator has run it.
"""

from vpjax.recipes import sft_qwen2_5_vl_7b


def get_config():
    c = sft_qwen2_5_vl_7b.get_config()
    c.batch = 8
    c.data.row_tokens = 8192

    c.lora.rank = 16
    c.lora.alpha = 32.0
    c.lora.targets = ("decoder.layers.*",)
    c.optim.freeze = ()  # the adapters are all that is trained
    c.optim.lr_multipliers = ()
    c.optim.lr = 1e-4
    c.optim.moments_dtype = "float32"  # of adapters they are small
    return c
