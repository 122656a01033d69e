"""VideoChat-R1 (arXiv 2504.06958): GRPO of Qwen2.5-VL-7B with spatio-temporal rule rewards, without V~.

    python -m vpjax.train --config grpo_videochat_r1 --workdir runs/videochat-r1 \\
        --config.init_from=/data/Qwen2.5-VL-7B-Instruct --config.data.train=/data/train.jsonl

What it does: temporal grounding (Charades-STA), tracking (GOT-10k) and grounded question answering (NExT-GQA)
in one run. Every completion is rewarded for its format and by its task: IoU of spans, mean IoU of boxes, or
the right choice and the IoU of its evidence.
Data: the training files that the authors published are read by vpjax.build, as `grounding`, `got10k` and
`next-gqa`; their clips become one file. To evaluate the run on the files that they evaluated on:

    python -m vpjax.evaluate --model runs/videochat-r1 --benchmark charades-sta --data charades_test.json
    python -m vpjax.evaluate --model runs/videochat-r1 --benchmark got-10k --data got_val.json
    python -m vpjax.evaluate --model runs/videochat-r1 --benchmark next-gqa --data nextgqa_test.json

each with --videos and the root of its videos. The original files are read too: charades_sta_test.txt, and
NExT-GQA's test.csv with its JSON files beside it.
Hyper-parameters: as in the authors' launch script, G = 8, completions of up to 1,024 tokens, prompts of up to
8,192 and one epoch of 8 prompts a step. Learning rate 1e-6, KL weight 0.04 and one mean per completion are
the defaults of the trainer that the script builds on (TRL of early 2025). The instructions are ours; those of
the authors ask for the same tags in other words.
Hardware and cost: the authors used 8 GPUs. Not measured yet here: no accelerator has run it.
"""

from vpjax.recipes import base

THINK = "First think about the video between <think> and </think>, then answer between <answer> and </answer>"


def get_config():
    c = base.get_config()
    c.method = "grpo"
    c.init_from = "/path/to/Qwen2.5-VL-7B-Instruct"
    c.steps = 2250  # one epoch of the paper's 18,031 clips
    c.batch = 8
    c.dtype = "bfloat16"
    c.remat = "layers"

    c.data.train = "/path/to/train.jsonl"
    c.data.heldout = ""
    c.data.frames = 0
    c.data.fps = 2.0
    c.data.min_pixels = 16 * 28 * 28
    c.data.max_pixels = 128 * 28 * 28
    c.data.max_tokens = 8192
    c.data.length_multiple = 128
    c.data.cache_gb = 500.0
    c.data.workers = 16
    c.data.replacement = "none"
    c.data.instructions = dict(
        grounding=f"{THINK}: the seconds at which it starts and ends, as in <answer>12.5 to 17.0</answer>.",
        tracking=f"{THINK}: one box [x0, y0, x1, y1] for each of 8 moments spread evenly over the video, in "
        "shares of its width and height.",
        choice=f"{THINK}: the letter of the right option. Then give the seconds that show it between <glue> "
        "and </glue>, as in <glue>[(3.0, 5.5)]</glue>.",
    )

    c.grpo.rewards = dict(format=1.0, span_iou=1.0, box_iou=1.0, choice=1.0, evidence_iou=1.0)
    c.grpo.max_new = 1024
    c.grpo.groups = 8
    c.grpo.degraded = 0
    c.grpo.relative.kind = "none"
    c.grpo.aggregation = "grpo"
    c.grpo.eps_high = 0.2
    c.grpo.beta = 0.04

    c.optim.lr = 1e-6
    c.optim.warmup_share = 0.0
    c.optim.weight_decay = 0.0
    c.optim.b2 = 0.999
    c.optim.moments_dtype = "bfloat16"

    c.mesh.fsdp = -1
    c.checkpoint_every = 200
    return c
