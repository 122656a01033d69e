"""GRPO with rollouts on the complete and the degraded video: the built-in event clips, after configs/sft.py.

What it does: takes the model that `python -m vpjax.train --config configs/sft.py` left in runs/sft (or
--config.init_from=DIR), lets it answer each question 8 times on the video and 4 times on V~, rewards answers
that name the event, and reports how often it names the event in held-out clips.
Hardware and cost: 2 CPU cores, 8 to 12 minutes.
Expected: the event named in .95 of 768 held-out clips (from .93), and in .88 of 240 unseen pairs of shape and
event (from .76).
"""

from vpjax.recipes import sft


def get_config():
    c = sft.get_config()
    c.method = "grpo"
    c.init_from = "runs/sft"
    c.steps = 160
    c.batch = 48
    c.events.train = 12288  # those of configs/sft.py and as many that its model has not seen

    c.grpo.rewards = dict(event=1.0)
    c.grpo.max_new = 32

    c.optim.lr = 2e-4
    return c
