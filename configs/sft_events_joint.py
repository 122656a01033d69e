"""SFT on the built-in event clips about times, places and options: the start of configs/grpo_events_joint.py.

    python -m vpjax.train --config sft_events_joint

What it does: trains the small model of configs/sft.py from scratch on three tasks in equal shares: when an
event happens (grounding), where the shape is at 8 moments (tracking), and what it does and when (a choice
with its evidence). The answers stand between VideoChat-R1's tags. It ends early, while the model's samples
still differ, so that GRPO has something to choose from.
Hardware and cost: 2 CPU cores, 9 minutes of CPU time.
Expected, of 384 held-out clips: grounding mIoU .2 to .4, AO .5, the right option in .7.
"""

from vpjax.recipes import sft


def get_config():
    c = sft.get_config()
    c.steps = 400
    c.batch = 16  # rows, about 28 clips

    c.data.replacement = "none"
    c.contrast.negatives = ("batch", "windows")

    c.events.caption = 0.0
    c.events.grounding = 1.0
    c.events.tracking = 1.0
    c.events.grounded = 1.0
    c.events.tags = True
    c.events.lengths = (2, 4, 6)  # eighths of a second
    c.events.heldout = 384

    c.optim.lr = 1.5e-3
    return c
