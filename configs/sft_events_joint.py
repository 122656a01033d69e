"""SFT on the built-in event clips about times, places and options: the start of configs/grpo_events_joint.py.

    python -m vpjax.train --config sft_events_joint

What it does: trains the small Qwen3-VL of configs/sft_qwen3_vl_small.py from scratch on captions and on three
tasks: when an event happens (grounding), where the shape is at 8 moments (tracking), and what it does and
when (a choice with its evidence). The answers stand between VideoChat-R1's tags. That model reads the time of
each slot in words. Few clips are trackings, whose answers are seven times as long as the others, and few are
choices: the model learns events from captions, and the form of the answers here; GRPO brings the rest.
Hardware and cost: 2 CPU cores, 10 minutes of CPU time.
Expected, of the 768 held-out clips of that recipe: grounding mIoU .46 (the best constant span has .39), AO
.38, the right option in .56 (benchmarks/results/2026-11-29-grpo-events-joint.md).
"""

from vpjax.recipes import sft_qwen3_vl_small


def get_config():
    c = sft_qwen3_vl_small.get_config()
    c.steps = 600
    c.batch = 8  # rows, about 14 clips

    c.data.replacement = "none"
    c.contrast.negatives = ("batch", "windows")

    c.events.caption = 1.0
    c.events.grounding = 1.0
    c.events.tracking = 0.4  # its answers have seven times as many tokens
    c.events.grounded = 0.25
    c.events.tags = True
    c.events.lengths = (2, 4, 6)  # eighths of a second
    c.events.heldout = 768

    c.optim.name = "adamw"  # with which the numbers above were measured
    c.optim.lr = 1.2e-3
    return c
