"""SFT of two looks on the long built-in clips: one event of a frame or a few in minutes of video, on a laptop.

    python -m vpjax.train --config sft_long
"""

from vpjax.recipes import sft


def get_config():
    c = sft.get_config()
    c.data.train = "events.long"
    c.data.heldout = ""
    c.long.frames = 128
    c.long.train = 4096
    c.long_heldout.frames = 1024
    c.long_heldout.lengths = (1,)

    c.looks.windows = 4
    c.looks.wrong = 0.5

    c.steps = 1000
    c.batch = 32
    c.data.min_pixels = 28 * 28
    c.data.row_tokens = 144
    c.data.max_missed_share = 1.0
    return c
