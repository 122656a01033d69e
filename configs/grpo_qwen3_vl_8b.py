"""GRPO with completions on the complete and the degraded video, of Qwen3-VL-8B on your own clips.

    python -m vpjax.train --config grpo_qwen3_vl_8b --workdir runs/8b-grpo \\
        --config.init_from=runs/8b --config.data.train=/data/train.jsonl

What it does: starts from a run of configs/sft_qwen3_vl_8b.py (or a Hugging Face folder) and does the same as
configs/grpo_qwen2_5_vl_7b.py, with its rewards and hyper-parameters.
Hardware and cost: made for 64 chips of TPU v5e (16 GB each). By the compiler's count (vpjax.plan) a step on
clips of 8 s takes 12.7 of 16 GiB and 12 to 13 s. Not measured yet: no accelerator has run it.
"""

from vpjax.recipes import grpo_qwen2_5_vl_7b, sft_qwen3_vl_8b


def get_config():
    return sft_qwen3_vl_8b.with_model(grpo_qwen2_5_vl_7b.get_config())
