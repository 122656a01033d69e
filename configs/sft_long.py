"""SFT of two looks on the long built-in clips: an event of a frame or a few in minutes of video, on a laptop.

    python -m vpjax.train --config sft_long

What it does: makes 2,048 clips of 128 frames, trains the model of configs/sft.py from scratch on windows of
them, and evaluates two looks at 256 held-out clips of 1,024 frames, with an event of one frame in each. Of
30 % of the clips for training the shape is hatched (``long.hatched``): few pixels show that something
happens to it, and not what.
Hardware and cost: 2 CPU cores, 2 GB of memory, 3 GB of cache, 12 minutes (21 of CPU time), of which 2 make
the clips.
Expected: of one-frame events in 1,024 frames two looks name .83 within 512 visual tokens (one in eight by
chance), 0 where the event is hidden, and .87 of the hatchings (one in four). The spin is not learned: see
docs/long.md.
"""

from vpjax.recipes import sft


def get_config():
    c = sft.get_config()
    c.data.train = "events.long"
    c.data.heldout = "events.long"
    c.long.frames = 128
    c.long.train = 2048
    c.long.hatched = 0.3
    c.long_heldout.frames = 1024
    c.long_heldout.lengths = (1,)
    c.long_heldout.hatched = 0.0

    c.looks.again = 4
    c.looks.windows = 3
    c.looks.wrong = 2
    c.looks.closer = 1

    c.steps = 1600
    c.batch = 6
    c.optim.lr = 2e-3
    c.data.min_pixels = 28 * 28
    c.data.row_tokens = 192  # three to six looks, which leave least of a row empty
    c.data.max_missed_share = 1.0
    c.contrast.negatives = ("batch", "windows")
    return c
