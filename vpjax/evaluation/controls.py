"""The videos on which a model is evaluated beside V: which units of V each of them shows."""

import functools

import numpy as np

from vpjax.data import keyframes
from vpjax.data.rows import replaced_slots, seen_through, slot_counts
from vpjax.types import Prompts

# The videos on which a model is evaluated. none: V itself; key: V~, the event's slots replaced by those
# beside them; random: as many slots replaced elsewhere; shuffle, reverse: the slots in another order; single:
# the middle slot throughout; blind: no video, the question alone.
CONTROLS = ("none", "key", "random", "shuffle", "reverse", "single", "blind")


def reordered(control: str, rng: np.random.Generator, slots: slice) -> np.ndarray:
    """The source of a control of one video, of which it is told the slots."""
    count = slots.stop - slots.start
    match control:
        case "shuffle":
            return keyframes.shuffle_source(count, rng)
        case "reverse":
            return keyframes.reverse_source(count)
        case _:
            return keyframes.single_source(count)


def control_shows(prompts: Prompts, control: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The units that a control's video shows, i32[B, P], and whether each row has that video, bool[B]:
    padding has none, and ``key`` and ``random`` need key slots that can be replaced. prompts: on the host."""
    shows_BP, slot_BP = np.asarray(prompts.text.shows), np.asarray(prompts.text.slot)
    key_BP, clip_B = np.asarray(prompts.shows_degraded), np.asarray(prompts.clip)
    changed_BP = (key_BP if control == "key" else shows_BP).copy()
    for row, number in enumerate(clip_B):
        counts = slot_counts(slot_BP[row], prompts.medium[row])
        if not counts:
            continue
        rng = np.random.default_rng([seed, max(number, 0)])
        match control:
            case "random":
                replaced = replaced_slots(shows_BP[row], key_BP[row], slot_BP[row])
                source = keyframes.random_source(replaced, counts, rng)
            case "shuffle" | "reverse" | "single":
                source = keyframes.sources_of(counts, functools.partial(reordered, control, rng))
            case _:
                continue
        changed_BP[row] = seen_through(shows_BP[row], slot_BP[row], source)
    has_control_B = clip_B >= 0
    if control in ("key", "random"):
        has_control_B &= (changed_BP != shows_BP).any(axis=1)
    return changed_BP, has_control_B
