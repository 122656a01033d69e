"""SFT of two looks on the long built-in clips: an event of a frame or a few in minutes of video, on a laptop.

    python -m vpjax.train --config sft_long

What it does: makes 3,072 clips of 128 frames, trains the model of configs/sft.py from scratch on windows of
them, and evaluates two looks at 256 held-out clips of 1,024 frames, with an event of one frame in each.
Hardware and cost: 2 CPU cores, 2 GB of memory, 3 GB of cache. More than 15 minutes: about half an hour of CPU
time, on a busy machine.
Expected: docs/long.md has the tables of this run and 700 more steps.
"""

from vpjax.recipes import sft


def get_config():
    c = sft.get_config()
    c.data.train = "events.long"
    c.data.heldout = "events.long"
    c.long.frames = 128
    c.long.train = 3072
    c.long_heldout.frames = 1024
    c.long_heldout.lengths = (1,)

    c.looks.again = 4
    c.looks.windows = 3
    c.looks.wrong = 3
    c.looks.closer = 1

    c.steps = 1800
    c.batch = 12
    c.optim.lr = 1.2e-3
    c.data.min_pixels = 28 * 28
    c.data.row_tokens = 144
    c.data.max_missed_share = 1.0
    c.contrast.negatives = ("batch", "windows")
    return c
