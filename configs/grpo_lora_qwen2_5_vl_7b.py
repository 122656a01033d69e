"""GRPO of Qwen2.5-VL-7B by adapters (LoRA) on your own clips, on a few chips.

    python -m vpjax.train --config grpo_lora_qwen2_5_vl_7b --workdir runs/7b-grpo-lora \\
        --config.init_from=runs/7b-lora --config.data.train=/data/train.jsonl

What it does: as configs/grpo_qwen2_5_vl_7b.py, but only adapters of rank 16 beside the decoder's linear
layers are trained, on 8 prompts a step. From a run with adapters it starts with these merged. The reference
of the KL is the model without the new adapters, which is kept once.
Hardware and cost: meant for 8 chips of TPU v5e (16 GB each) or one GPU of 80 GB (--config.accumulate=8). By
the compiler's count (vpjax.plan, v5e:2x4) a step takes 15.1 of 16 GiB a chip, 2.4 of them the state, 10 to 11
seconds and .048 TFLOP a useful token, with 40 M of 8,333 M parameters trained.
``--config.lora.base_dtype=int8`` freezes the adapted weights as int8: 8.8 of 16 GiB, as long. For one H100 in
bfloat16 the plan (--topology h100:1) estimates 43 of 79 GiB, 8.9 s at its peak. No accelerator has run it.
"""

from vpjax.recipes import grpo_qwen2_5_vl_7b, sft_lora_qwen2_5_vl_7b


def get_config():
    c = grpo_qwen2_5_vl_7b.get_config()
    c.batch = 8
    c.grpo.beta = 0.01

    c.lora = sft_lora_qwen2_5_vl_7b.get_config().lora
    c.optim.freeze = ()
    c.optim.lr_multipliers = ()
    c.optim.lr = 1e-5
    c.optim.moments_dtype = "float32"
    return c
