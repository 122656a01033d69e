"""GRPO with rollouts on the complete and the degraded video: the built-in event clips, after configs/sft.py.

What it does: takes the model that `python -m vpjax.train --config configs/sft.py` left in runs/sft (or
--config.init_from=DIR), lets it answer each question 8 times on the video and 4 times on V~, rewards answers
that name the event and the rest of the caption, and reports how often it names the event in held-out clips.
Hardware and cost: 2 CPU cores, about 5 minutes.
Expected: the event named in .94 of 768 held-out clips (from .93, each .02 either way: the model has little to
gain).
"""

from configs import sft


def get_config():
    c = sft.get_config()
    c.method = "grpo"
    c.init_from = "runs/sft"
    c.steps = 150
    c.batch = 16

    c.grpo.rewards = dict(event=1.0, caption_recall=0.5)
    c.grpo.max_new = 32

    c.optim.lr = 1e-4
    return c
