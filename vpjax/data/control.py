"""A V~ that hides nothing, for a share of the prompts: the control of docs/method.md, section 3."""

import dataclasses

import numpy as np

from vpjax.data.keyframes import random_source
from vpjax.data.rows import replaced_slots, seen_through, slot_counts
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
        replaced = replaced_slots(shows, shows_degraded[row], slot)
        counts = slot_counts(slot, prompts.medium[row])
        shows_degraded[row] = seen_through(shows, slot, random_source(replaced, counts, rng))
        hidden[row] = False
    return dataclasses.replace(prompts, shows_degraded=shows_degraded, hidden=hidden)
