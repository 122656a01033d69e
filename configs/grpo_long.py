"""GRPO of two looks on the long built-in clips, after configs/sft_long.py: which window, and what it shows.

    python -m vpjax.train --config grpo_long

What it does: takes the model that `python -m vpjax.train --config sft_long` left in runs/sft_long (or another
one by --config.init_from=DIR) and clips of 128 frames that it has not seen. Of each it takes 2 windows that
show the event and 4 that do not, samples 8 answers to either look at each, and rewards them for naming the
event, for the window's IoU and, of second looks, for what they gain over first ones.
Hardware and cost: 2 CPU cores, 4 GB of memory; a step takes 8 CPU seconds, all 80 about 12 minutes of CPU
time with compiling, and the evaluation of 256 clips some 4 more.
Expected, after 60 steps (--config.steps=60) and of 64 held-out clips: two looks name the event in .95 (.84
before), nearly all of it by naming the spin where neither look sees anything, at wrong windows too.
"""

from vpjax.recipes import sft_long


def get_config():
    c = sft_long.get_config()
    c.method = "grpo"
    c.init_from = "runs/sft_long"
    c.steps = 80
    c.batch = 144  # 8 clips of 6 windows, with 3 prompts each

    c.long.seed = 1  # other clips than those of configs/sft_long.py
    c.long.train = 512
    c.long.hatched = 0.0
    c.long_heldout.seed = 0
    c.looks.windows = 2
    c.looks.wrong = 4
    c.data.length_multiple = 64  # holds every prompt, so that one program is compiled

    c.grpo.rewards = dict(event=1.0)
    c.grpo.aggregation = "dr_grpo"
    c.grpo.degraded = 0
    c.grpo.relative.kind = "none"
    c.grpo.max_new = 24

    c.optim.name = "adamw"
    c.optim.lr = 2e-4
    return c
