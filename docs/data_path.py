"""Draws data_path.png: a clip's way from its frames to the SFT loss.

python docs/data_path.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from vpjax.data.keyframes import slots_of, source_of
from vpjax.events.clips import EventSpec, describe
from vpjax.events.drawing import draw
from vpjax.types import Clip

INK, KEY, DEGRADED, GREY = "#22313f", "#d35400", "#2471a3", "#7f8c8d"
SPEC = EventSpec()
INDEX = 21  # a training clip in which the shape disappears for 4 frames
LETTER = 0.0905  # width of a monospaced letter at size 10.5


def draw_slots(
    axes: Axes, frames: np.ndarray, left: float, bottom: float, side: float, marked: np.ndarray, color: str
) -> None:
    """Draw slots side by side as squares of ``side``, with a frame around the marked ones."""
    for slot, frame in enumerate(frames):
        x = left + slot * side
        axes.imshow(frame, extent=(x + 0.02, x + side - 0.02, bottom, bottom + side - 0.04), zorder=2)
        if marked[slot]:
            corner = (x, bottom - 0.02)
            axes.add_patch(
                Rectangle(corner, side, side, fill=False, edgecolor=color, linewidth=2.4, zorder=3)
            )


def draw_box(axes: Axes, x: float, y: float, text: str, color: str = INK, width: float = 2.35) -> None:
    height = 0.62
    style = "round,pad=0.02,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor="white", edgecolor=color))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8.5, color=color)


def draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=color, linewidth=1.2)
    )


def draw_caption(axes: Axes, left: float, clip: Clip) -> None:
    """Draw the caption with its keyword in colour."""
    y = 3.98
    axes.text(left, y, "caption", fontsize=8.5, color=GREY, va="center")
    before, keyword, after = clip.answer.partition(clip.keywords[0].text)
    x = left + 0.75
    parts = ((f"“{before}", INK, "normal"), (keyword, KEY, "bold"), (f"{after}”", INK, "normal"))
    for text, color, weight in parts:
        axes.text(x, y, text, fontsize=10.5, color=color, va="center", family="monospace", weight=weight)
        x += LETTER * len(text)


def main() -> None:
    clip, scene = describe(SPEC, "train", INDEX)
    frames = draw(scene, noise=SPEC.noise)
    times = np.arange(scene.frames) / scene.fps
    key = slots_of(clip.spans, times, 1 / scene.fps)
    source = source_of(key[None])
    slots = frames[1::2]  # the second frame of each slot

    figure = Figure(figsize=(11, 4.3))
    axes = figure.add_axes((0, 0, 1, 1))
    left, width = 0.3, 6.6
    side = width / len(slots)
    draw_slots(axes, slots, left, 2.72, side, key, KEY)
    draw_slots(axes, slots[source], left, 0.62, side, key, DEGRADED)
    draw_caption(axes, left, clip)
    title = "V: the video, 8 slots of 2 frames; key slots boxed"
    axes.text(left, 2.72 + side + 0.08, title, fontsize=9, color=INK)
    title = "V~ = V[source]: key slots show their neighbours"
    axes.text(left, 0.62 + side + 0.08, title, fontsize=9, color=DEGRADED)
    axes.text(left, 0.36, f"source = {source.tolist()}", fontsize=8.5, color=GREY, family="monospace")
    for slot in np.flatnonzero(key):
        x = left + (float(slot) + 0.5) * side
        draw_arrow(axes, (x, 2.66), (x, 0.62 + side + 0.34), DEGRADED)

    x = 8.35
    draw_box(axes, x, 3.4, "vision tower, once")
    draw_box(axes, x, 2.5, "decoder: all layers,\nlayer l tapped", width=1.75)
    draw_box(axes, x + 0.6, 1.6, "V~: gather, then\nlayers up to l only", DEGRADED, width=1.75)
    draw_box(axes, x, 0.35, "L = L_lm + λ L_contrast", KEY)
    draw_arrow(axes, (left + width + 0.1, 3.15), (x - 0.06, 3.66))
    draw_arrow(axes, (left + width + 0.1, 1.05), (x + 0.53, 1.85), DEGRADED)
    draw_arrow(axes, (x + 0.9, 3.36), (x + 0.9, 3.16))
    draw_arrow(axes, (x + 2.1, 3.36), (x + 2.1, 2.26), DEGRADED)
    draw_arrow(axes, (x + 0.3, 2.46), (x + 0.3, 1.01))
    draw_arrow(axes, (x + 1.5, 1.56), (x + 1.5, 1.01), DEGRADED)
    axes.text(x + 0.22, 1.22, "answer,\nkey slots", fontsize=7.5, color=GREY, ha="right", va="center")
    axes.text(x + 1.42, 1.28, "same slots", fontsize=7.5, color=GREY, ha="right", va="center")
    axes.set(xlim=(0, 11), ylim=(0, 4.3), aspect="equal")
    axes.axis("off")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
