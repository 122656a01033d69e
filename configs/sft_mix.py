"""SFT with the joint loss on built-in event clips of many sizes, lengths and frame rates: a real mixture.

    python -m vpjax.train --config sft_mix

What it does: the same as configs/sft.py, on clips of six frame sizes (square, wide and upright, 56 to 84
pixels a side), 1 to 8 seconds long at 8 to 16 frames per second, whose captions have one to four sentences.
Frames are taken 8 times a second, an even number of them, so that 9 of 6,144 events fall between them, and
several clips share a row.
Hardware and cost: 2 CPU cores, 15 to 20 minutes, 3 GB of memory.
Expected: the event named in .94 of 768 held-out clips (one in eight by chance; .99 for configs/sft.py), .14
where the event's frames are replaced.
"""

from vpjax.recipes import sft


def get_config():
    c = sft.get_config()
    c.steps = 600
    c.batch = 10  # rows, about 32 clips

    c.model.text_config.vocab_size = 640  # holds the words of the longer captions whole

    c.events.sizes = ((56, 56), (68, 68), (60, 80), (80, 60), (56, 84), (84, 56))  # (height, width)
    c.events.seconds = (1.0, 8.0)
    c.events.rates = (8, 10, 12, 15, 16)
    c.events.details = (0, 2)

    c.data.frames = 0
    c.data.fps = 8.0
    c.data.min_pixels = 4 * 28 * 28  # 4 to 6 visual tokens a slot
    c.data.max_pixels = 6 * 28 * 28
    c.data.max_tokens = 384
    c.data.row_tokens = 384
    return c
