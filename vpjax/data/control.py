"""A V~ that hides nothing, for a share of the prompts: the control of docs/method.md, section 3."""

import dataclasses

import numpy as np

from vpjax.data.keyframes import moved_mask, source_of
from vpjax.data.rows import seen_through
from vpjax.types import Prompts


def with_control(prompts: Prompts, share: float, seed: int) -> Prompts:
    """Prompts (NumPy) of which a ``share`` has another V~: it replaces as many slots, in runs of the same
    lengths, elsewhere, so that all that V shows of its keywords can still be seen and nothing is hidden. A
    clip without room for that has no V~ then.

    Whether it is chosen depends on (seed, the clip's number), so that a clip is always treated alike."""
    shows_degraded, hidden = np.array(prompts.shows_degraded), np.array(prompts.hidden)
    for row in np.flatnonzero(prompts.has_degraded):
        rng = np.random.default_rng([seed, int(prompts.clip[row])])
        if rng.random() >= share:
            continue
        shows, slot = np.asarray(prompts.text.shows[row]), np.asarray(prompts.text.slot[row])
        count = int(slot.max()) + 1
        replaced = np.zeros((1, count), bool)
        replaced[0, slot[shows_degraded[row] != shows]] = True
        source = source_of(moved_mask(replaced, rng))
        shows_degraded[row] = seen_through(shows, slot, source)
        hidden[row] = False
    return dataclasses.replace(prompts, shows_degraded=shows_degraded, hidden=hidden)
