"""GRPO with completions on the complete and the degraded video, of Qwen2.5-VL-7B on your own clips.

    python -m vpjax.train --config grpo_qwen2_5_vl_7b --workdir runs/7b-grpo \\
        --config.init_from=runs/7b --config.data.train=/data/train.jsonl

What it does: starts from a run of configs/sft_qwen2_5_vl_7b.py (or a Hugging Face folder), samples 8 captions
of each clip on the video and 4 on V~, and rewards captions for the reference's keywords, for their order, and
for their overlap with the reference.
Hardware and cost: made for 64 chips of TPU v5e (16 GB each). By the compiler's count (vpjax.plan) a step on
clips of 8 s takes 11.7 of 16 GiB and 11 to 12 s. Not measured yet: no accelerator has run it.
"""

from vpjax.recipes import sft_qwen2_5_vl_7b


def get_config():
    c = sft_qwen2_5_vl_7b.get_config()
    c.method = "grpo"
    c.steps = 500
    c.batch = 64
    c.remat = "layers"

    c.grpo.rewards = dict(keyword_f1=1.0, keyword_order=0.2, rouge_l=0.5, overlong=0.5)
    c.grpo.relative.correct = "keyword_f1"
    c.grpo.max_new = 256

    c.optim.lr = 1e-6
    c.optim.warmup_share = 0.02
    return c
