"""GRPO with completions on the complete and the degraded video: built-in event clips, after configs/sft.py.

    python -m vpjax.train --config grpo

What it does: takes the model that `python -m vpjax.train --config sft` left in runs/sft (or another one by
--config.init_from=DIR), samples 8 answers to each question on the video and 4 on V~, rewards answers that
name the event, and reports how often the event is named in held-out clips.
Hardware and cost: 2 CPU cores, 6 to 12 minutes.
Expected after configs/sft.py as it is: .99 of 768 held-out clips, as before it, for all answers to most
prompts are right already; .73 of 240 unseen pairs of shape and event (.68 before). After a run of
configs/sft.py with --config.optim.name=adamw --config.optim.lr=1e-3: .95 of the held-out clips (.93 before),
.88 of the pairs (.76).
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

    c.optim.name = "adamw"
    c.optim.lr = 2e-4
    return c
