"""SFT of two looks on the long built-in clips: an event of a frame or a few in minutes of video, on a laptop.

python -m vpjax.train --config sft_long
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
