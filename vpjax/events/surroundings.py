"""What surrounds the coloured shape of an event clip: a moving camera, clutter and distractors."""

from collections.abc import Sequence

import numpy as np

from vpjax.events.drawing import DIRECTIONS, SHAPES, Bystander, Scene

SHAKE = 0.3  # of the way of a camera: how far it is off its straight line at most, along each axis
DRIFT = 0.3  # of the frame's width and height, which clutter drifts at most
PLACES = 16  # from which a distractor takes the one that is farthest from the coloured shape


def camera_path(way: float, frames: int, rng: np.random.Generator) -> tuple[tuple[float, float], ...]:
    """The camera's place (x, y) in each frame: it pans so far along a line through (0, 0), and shakes."""
    angle = rng.uniform(0, 2 * np.pi)
    line = np.outer(np.linspace(-0.5, 0.5, frames), (np.cos(angle), np.sin(angle)))
    path = way * (line + rng.uniform(-SHAKE, SHAKE, (frames, 2)))
    return tuple((float(x), float(y)) for x, y in path)


def clutter(frames: int, rng: np.random.Generator) -> Bystander:
    """A small shape that is seen in all frames. Half of them drift."""
    x, y = rng.uniform(0.05, 0.95, 2)
    drifts = rng.random() < 0.5
    drift_x, drift_y = rng.uniform(-DRIFT, DRIFT, 2) if drifts else (0.0, 0.0)
    return Bystander(
        shape=SHAPES[rng.integers(len(SHAPES))],
        level=int(rng.integers(90, 180)),
        radius=rng.uniform(0.05, 0.1),
        place=(x, y),
        drift=(drift_x, drift_y),
        start=0,
        length=frames,
    )


def distractor(scene: Scene, lengths: Sequence[int], rng: np.random.Generator) -> Bystander:
    """A shape that is seen for one of ``lengths``, in frames, while no event happens."""
    quiet = np.ones(scene.frames, bool)
    for event in scene.events:
        quiet[event.start : event.end] = False
    moments = []
    for length in lengths:
        starts = range(scene.frames - length + 1)
        moments += [(start, length) for start in starts if quiet[start : start + length].all()]
    start, length = moments[rng.integers(len(moments))]
    moved = ((start + length / 2) / scene.frames - 0.5) * scene.travel * np.array(DIRECTIONS[scene.direction])
    places = rng.uniform(0.1, 0.9, (PLACES, 2))
    x, y = places[np.argmax(np.linalg.norm(places - (np.array(scene.centre) + moved), axis=1))]
    return Bystander(
        shape=SHAPES[rng.integers(len(SHAPES))],
        level=int(rng.integers(120, 240)),
        radius=rng.uniform(0.1, 0.18),
        place=(float(x), float(y)),
        drift=(0.0, 0.0),
        start=start,
        length=length,
    )
