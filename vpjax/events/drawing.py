"""A scene of one moving shape -> pixels -> an H.264 file."""

from __future__ import annotations

import dataclasses
import io
from fractions import Fraction

import av
import numpy as np

EVENTS = ("flash", "jump", "flip", "shrink", "grow", "vanish", "split", "spin")
SHAPES = ("square", "triangle", "cross")
# Each colour's opposite, into which an event flips it, stands three places further on.
COLOURS = {
    "red": (225, 45, 45),
    "green": (40, 190, 60),
    "blue": (60, 90, 245),
    "cyan": (40, 205, 215),
    "purple": (170, 60, 215),
    "yellow": (230, 210, 45),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

WHITE = (250, 250, 250)
GLOW = 70  # grey levels that a flash adds around the shape
SHRINK, GROW = 0.45, 1.7  # times the radius
JUMP = 0.36  # of the frame's size, across the motion and past the middle
GAP = 0.9  # of the radius, by which each half of a split shape moves aside
# Half of the turn that brings a shape back onto itself: as different as a turn can make it.
SPIN = {"square": np.pi / 4, "triangle": np.pi / 3, "cross": np.pi / 4}


@dataclasses.dataclass(frozen=True)
class Event:
    """What happens to the shape, from frame ``start`` on, for ``length`` frames."""

    kind: str
    start: int
    length: int

    @property
    def frames(self) -> slice:
        return slice(self.start, self.start + self.length)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A clip but for its size in pixels and its rate: all lengths are shares of the frame's size.

    centre: (x, y) of the shape halfway through the clip. travel: the way it goes over the clip. background:
    grey level 0-255. flickers: frames in which the whole picture's brightness is multiplied by ``flicker``.
    noise: seed of the pixel noise.
    """

    shape: str
    colour: str
    direction: str
    radius: float
    centre: tuple[float, float]
    travel: float
    background: int
    events: tuple[Event, ...]
    flickers: tuple[int, ...]
    flicker: float
    noise: int


def draw(scene: Scene, *, size: int, frames: int, noise: float) -> np.ndarray:
    """The clip's frames u8[F,h,w,3]. noise: standard deviation in grey levels."""
    step = np.array(DIRECTIONS[scene.direction])
    centre = np.array(scene.centre) + np.outer(np.linspace(-0.5, 0.5, frames) * scene.travel, step)
    radius = np.full(frames, scene.radius)
    angle, gap, glow = np.zeros((3, frames), np.float32)
    shown = np.ones(frames, np.float32)
    colour = np.tile(np.array(COLOURS[scene.colour], np.float32), (frames, 1))
    for event in scene.events:
        at = event.frames
        match event.kind:
            case "flash":
                colour[at], glow[at] = WHITE, GLOW
            case "jump":
                aside = np.where(centre[at] > 0.5, -1, 1) * (step == 0)
                centre[at] += JUMP * aside
            case "flip":
                names = list(COLOURS)
                colour[at] = COLOURS[names[(names.index(scene.colour) + 3) % len(names)]]
            case "shrink":
                radius[at] *= SHRINK
            case "grow":
                radius[at] *= GROW
            case "vanish":
                shown[at] = 0
            case "split":
                gap[at] = GAP * scene.radius
            case "spin":
                angle[at] = SPIN[scene.shape]

    def px(values: np.ndarray) -> np.ndarray:
        return (np.asarray(values, np.float32) * size)[:, None, None]

    pixels = np.arange(size, dtype=np.float32) + 0.5
    x = pixels - px(centre[:, 0])
    y = pixels[:, None] - px(centre[:, 1])
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    u, v = np.abs(cos * x + sin * y), cos * y - sin * x  # every shape is its own mirror image in u
    outside = distance(scene.shape, u - px(gap), v, px(radius))
    outside = np.where(px(gap) > 0, np.maximum(outside, px(gap) - u), outside)
    cover_FHW1 = np.clip(0.5 - outside, 0, 1)[..., None] * shown[:, None, None, None]
    halo_FHW1 = np.clip(2 - np.hypot(x, y) / px(radius), 0, 1)[..., None] * glow[:, None, None, None]
    picture = (scene.background + halo_FHW1) * (1 - cover_FHW1) + colour[:, None, None] * cover_FHW1
    picture[list(scene.flickers)] *= scene.flicker
    grain = np.random.default_rng(scene.noise).standard_normal((frames, size, size, 1), np.float32)
    return np.clip(picture + noise * grain, 0, 255).round().astype(np.uint8)


def distance(shape: str, u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How far (u, v) lies outside a shape, negative inside, in the unit of the arguments; v points down."""
    across, along = np.abs(u), np.abs(v)
    match shape:
        case "square":
            return np.maximum(across, along) - 0.9 * radius
        case "cross":
            arm = 0.4 * radius
            return np.minimum(
                np.maximum(across - 1.1 * radius, along - arm), np.maximum(across - arm, along - 1.1 * radius)
            )
        case "triangle":
            return np.maximum(v, np.sqrt(np.float32(0.75)) * across - v / 2) - 0.7 * radius
    raise ValueError(shape)


def encode(frames_FHW3: np.ndarray, *, fps: int, crf: int) -> bytes:
    """An mp4 file of u8 frames at a constant rate, the same bytes for the same frames. crf: H.264's quality,
    0 (lossless) to 51."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # Short groups keep seeking cheap; x264's own threads only cost on frames this small; and its rate
        # control by macroblock tree gives other bytes from run to run.
        options = {"crf": str(crf), "preset": "veryfast", "g": "8", "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.height, stream.width = frames_FHW3.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in frames_FHW3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()
