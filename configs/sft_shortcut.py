"""SFT with the joint loss on built-in event clips whose colour nearly tells the event: a shortcut.

    python -m vpjax.train --config sft_shortcut

What it does: the same as configs/sft.py, on 4,096 training clips, nine of ten of which have the colour that
belongs to their event. In the held-out clips the colour says nothing about the event. A model that reads the
colour instead does well in training only, and the held-out table shows how often the model does.
Hardware and cost: 2 CPU cores, 4 to 6 minutes, 2 GB of memory.
Expected, of the recipe with --config.contrast.negatives="('batch',)": the event named in .25 of the held-out
clips, and the colour's event in .74 of those whose colour misleads. With --config.contrast.answer=0.2 too:
.39 and .39.
"""

from vpjax.recipes import sft


def get_config():
    c = sft.get_config()
    c.steps = 400
    c.events.train = 4096
    c.events.prior = 0.9
    c.events_heldout = dict(prior=0.0)
    c.optim.name = "adamw"  # with which the tables of docs/results.md were made
    c.optim.lr = 1e-3
    return c
