"""Draws a scene of one moving shape as pixels, and encodes them as an H.264 file."""

import dataclasses
import io
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

EVENTS = ("flash", "jump", "flip", "shrink", "grow", "vanish", "split", "spin")
SHAPES = ("square", "triangle", "cross")
# In the order of the colour wheel: the colour four places further on is the opposite, to which the event
# ``flip`` changes.
COLOURS = {
    "red": (215, 30, 35),
    "orange": (240, 130, 25),
    "yellow": (235, 225, 50),
    "green": (40, 180, 50),
    "cyan": (40, 205, 215),
    "blue": (55, 80, 240),
    "purple": (140, 45, 200),
    "pink": (245, 130, 195),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

WHITE = (250, 250, 250)
GLOW = 70  # grey levels that a flash adds around the shape
SHRINK, GROW = 0.45, 1.7  # times the radius
JUMP = 0.36  # of the frame's width or height, across the motion and past the middle
GAP = 0.9  # of the radius, by which each half of a split shape moves aside
# Half of the turn that brings a shape back onto itself: as different as a turn can make it.
SPIN = {"square": np.pi / 4, "triangle": np.pi / 3, "cross": np.pi / 4}
# The outermost corners (u, v) of each shape on the side u >= 0, which the other side mirrors, in units of its
# radius; v points down.
CORNERS = {
    "square": ((0.9, -0.9), (0.9, 0.9)),
    "cross": ((1.1, -0.4), (1.1, 0.4), (0.4, -1.1), (0.4, 1.1)),
    "triangle": ((0.0, -1.4), (0.7 * np.sqrt(3), 0.7)),
}
WAVES = 12  # of which the background's texture is the sum
WAVE_NUMBERS = (1.5, 5.0)  # least and most waves per shorter side of the frame


@dataclasses.dataclass(frozen=True)
class Event:
    """An event of the shape: from frame ``start`` on, for ``length`` frames."""

    kind: str
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclasses.dataclass(frozen=True)
class Bystander:
    """A grey shape behind the coloured one, which is seen from frame ``start`` on, for ``length`` frames.

    place: (x, y) halfway through the clip, as shares of the frame's width and height. drift: the way (x, y)
    that it moves over the clip, in the same unit. level: grey level 0-255. radius: as that of a ``Scene``.
    """

    shape: str
    level: int
    radius: float
    place: tuple[float, float]
    drift: tuple[float, float]
    start: int
    length: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that a clip shows.

    height, width: of a frame in pixels. frames: of the clip. fps: frames per second. radius: of the shape, as
    a share of the frame's shorter side. centre: (x, y) of the shape halfway through the clip, as shares of
    the width and the height. travel: the distance that the shape moves over the clip, as a share of the side
    along which it moves. background: grey level 0-255. flickers: frames in which the whole picture's
    brightness is multiplied by ``flicker``. noise: seed of the pixel noise and the texture. texture: standard
    deviation of the background in grey levels. view: (x, y) to which the camera has moved in each frame, as
    shares of the frame's shorter side. bystanders: the later ones stand before the earlier ones. blur:
    standard deviation of the lens's Gaussian blur, as a share of the frame's shorter side.
    """

    height: int
    width: int
    frames: int
    fps: int
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
    texture: float
    view: tuple[tuple[float, float], ...]
    bystanders: tuple[Bystander, ...]
    blur: float


def draw(scene: Scene, *, noise: float) -> np.ndarray:
    """The clip's frames u8[F,h,w,3]. noise: standard deviation in grey levels."""
    frames, height, width = scene.frames, scene.height, scene.width
    glow = np.zeros((frames, 1, 1), np.float32)
    visible = np.ones((frames, 1, 1), np.float32)
    colour = np.tile(np.array(COLOURS[scene.colour], np.float32), (frames, 1, 1, 1))
    for event in scene.events:
        during = slice(event.start, event.end)
        match event.kind:
            case "flash":
                colour[during], glow[during] = WHITE, GLOW
            case "flip":
                colour[during] = COLOURS[opposite(scene.colour)]
            case "vanish":
                visible[during] = 0

    poses = _poses(scene)
    radius, angle, gap = (x[:, None, None] for x in (poses.radius, poses.angle, poses.gap))
    side = min(height, width)
    radius, gap = radius.astype(np.float32) * side, gap * side
    column, row = _pixels(scene)
    x, y = _from(poses.centre, column, row, scene)
    u = np.abs(np.cos(angle) * x + np.sin(angle) * y)  # every shape is its own mirror image in u
    v = np.cos(angle) * y - np.sin(angle) * x
    cover_FHW1 = (covered(scene.shape, u, v, radius, gap) * visible)[..., None]
    halo_FHW1 = (np.clip(2 - np.hypot(x, y) / radius, 0, 1) * glow)[..., None]
    backdrop_FHW1 = _backdrop(scene, column, row)
    picture = (backdrop_FHW1 + halo_FHW1) * (1 - cover_FHW1) + colour * cover_FHW1
    picture[list(scene.flickers)] *= scene.flicker
    picture = blurred(picture, scene.blur * side)
    grain = np.random.default_rng(scene.noise).standard_normal((frames, height, width, 1), np.float32)
    return np.clip(picture + noise * grain, 0, 255).round().astype(np.uint8)


def boxes(scene: Scene) -> np.ndarray:
    """The smallest box (x0, y0, x1, y1) around the shape in each frame, f64[F,4], as shares of the frame's
    width and height, cut off at its edges. A shape that has vanished keeps its place."""
    poses, side = _poses(scene), min(scene.height, scene.width)
    size = np.array([scene.width, scene.height])
    corners_P2 = np.array(CORNERS[scene.shape])
    u = corners_P2[:, 0] * poses.radius[:, None] + poses.gap[:, None]
    u = np.concatenate([u, -u], axis=1)
    v = np.tile(corners_P2[:, 1] * poses.radius[:, None], 2)
    cos, sin = np.cos(poses.angle)[:, None], np.sin(poses.angle)[:, None]
    corners_FP2 = np.stack([cos * u - sin * v, sin * u + cos * v], axis=-1) * side / size
    middle_F2 = poses.centre - np.array(scene.view) * side / size
    low, high = corners_FP2.min(1) + middle_F2, corners_FP2.max(1) + middle_F2
    return np.concatenate([low, high], axis=-1).clip(0, 1)


class _Poses(NamedTuple):
    """Where and how the shape stands in each frame. centre f64[F,2]: in the world, as shares of the frame's
    width and height. radius f64[F], angle f32[F] in radians, gap f32[F]: by which either half moves aside,
    as a share of the frame's shorter side."""

    centre: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    gap: np.ndarray


def _poses(scene: Scene) -> _Poses:
    frames, step = scene.frames, np.array(DIRECTIONS[scene.direction])
    centre_F2 = np.array(scene.centre) + np.outer(np.linspace(-0.5, 0.5, frames) * scene.travel, step)
    radius = np.full(frames, scene.radius)
    angle, gap = np.zeros((2, frames), np.float32)
    for event in scene.events:
        during = slice(event.start, event.end)
        match event.kind:
            case "jump":
                centre_F2[during] += JUMP * np.where(centre_F2[during] > 0.5, -1, 1) * (step == 0)
            case "shrink":
                radius[during] *= SHRINK
            case "grow":
                radius[during] *= GROW
            case "split":
                gap[during] = GAP * scene.radius
            case "spin":
                angle[during] = SPIN[scene.shape]
    return _Poses(centre_F2, radius, angle, gap)


def _pixels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The middles of the pixels' columns f32[F,1,w] and rows f32[F,h,1] in the world, in pixels."""
    view_x, view_y = (np.array(scene.view, np.float32) * min(scene.height, scene.width)).T[:, :, None, None]
    column = np.arange(scene.width, dtype=np.float32) + 0.5
    row = np.arange(scene.height, dtype=np.float32)[:, None] + 0.5
    return column + view_x, row + view_y


def _from(
    place_F2: np.ndarray, column: np.ndarray, row: np.ndarray, scene: Scene
) -> tuple[np.ndarray, np.ndarray]:
    """The ways x, y in pixels from a place in each frame, as shares of the width and the height, to the
    pixels."""
    place_x, place_y = place_F2.T[:, :, None, None].astype(np.float32)
    return column - place_x * scene.width, row - place_y * scene.height


def _backdrop(scene: Scene, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """All that is seen behind the coloured shape, f32[F,h,w,1] in grey levels."""
    side = min(scene.height, scene.width)
    backdrop = np.full((scene.frames, scene.height, scene.width), scene.background, np.float32)
    if scene.texture:
        rng = np.random.default_rng([scene.noise, 1])
        angles, phases = rng.uniform(0, 2 * np.pi, (2, WAVES))
        for angle, phase, waves in zip(angles, phases, rng.uniform(*WAVE_NUMBERS, WAVES), strict=True):
            way = (np.cos(angle) * column + np.sin(angle) * row) / side
            backdrop += scene.texture * np.sqrt(2 / WAVES) * np.cos(2 * np.pi * waves * way + phase)
    times = np.linspace(-0.5, 0.5, scene.frames)
    for other in scene.bystanders:
        during = slice(other.start, other.start + other.length)
        x, y = _from(np.array(other.place) + np.outer(times, other.drift), column, row, scene)
        outside = distance(other.shape, x[during], y[during], np.array(other.radius * side, np.float32))
        cover = np.clip(0.5 - outside, 0, 1)
        backdrop[during] = backdrop[during] * (1 - cover) + other.level * cover
    return backdrop[..., None]


def blurred(picture_FHWC: np.ndarray, deviation: float) -> np.ndarray:
    """The pictures f32[F,h,w,C] after a Gaussian blur, whose standard deviation is given in pixels. Beyond an
    edge they go on as at the edge."""
    if not deviation:
        return picture_FHWC
    reach = int(np.ceil(3 * deviation))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2).astype(np.float32)
    weights /= weights.sum()
    for axis in (1, 2):
        widths = [(0, 0)] * 4
        widths[axis] = (reach, reach)
        padded = np.moveaxis(np.pad(picture_FHWC, widths, mode="edge"), axis, 0)
        size = picture_FHWC.shape[axis]
        parts = [weight * padded[first : first + size] for first, weight in enumerate(weights)]
        picture_FHWC = np.moveaxis(sum(parts), 0, axis)
    return picture_FHWC


def opposite(colour: str) -> str:
    """The colour on the other side of the colour wheel."""
    names = list(COLOURS)
    return names[(names.index(colour) + len(names) // 2) % len(names)]


def covered(shape: str, u: np.ndarray, v: np.ndarray, radius: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """How much of each pixel a shape covers, from 0 to 1, each half of which has moved aside by ``gap``. (u,
    v): of the pixel, as of ``distance``, u at least 0."""
    outside = distance(shape, u - gap, v, radius)
    outside = np.where(gap > 0, np.maximum(outside, gap - u), outside)
    return np.clip(0.5 - outside, 0, 1)


def distance(shape: str, u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The distance of (u, v) from a shape, negative inside, in the unit of the arguments; v points down."""
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
    """An mp4 file of u8 frames; the same frames give the same bytes. crf: H.264's quality, 0 (lossless) to
    51."""
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
