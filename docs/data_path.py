"""Draws data_path.png, the README's picture: one clip's way from file to loss, with its real frames.

python docs/data_path.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from vpjax.data.keyframes import slots_of, source_of
from vpjax.events.clips import EventSpec, describe
from vpjax.events.drawing import draw

INK, KEY, DEGRADED, QUIET = "#22313f", "#d35400", "#2471a3", "#7f8c8d"
SPEC = EventSpec()
INDEX = 21  # a clip of the training split in which the shape splits for 4 frames


def strip(axes, frames: np.ndarray, left: float, bottom: float, width: float, marked, color: str) -> float:
    """Eight slots side by side, the marked ones boxed; the height that they take."""
    side = width / len(frames)
    for slot, frame in enumerate(frames):
        x = left + slot * side
        axes.imshow(frame, extent=(x + 0.02, x + side - 0.02, bottom, bottom + side - 0.04), zorder=2)
        if marked[slot]:
            axes.add_patch(
                Rectangle(
                    (x, bottom - 0.02), side, side, fill=False, edgecolor=color, linewidth=2.4, zorder=3
                )
            )
    return side


def box(
    axes, x: float, y: float, text: str, color: str = INK, width: float = 2.35, height: float = 0.62
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor="white",
            edgecolor=color,
        )
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8.5, color=color)


def arrow(axes, start, end, color: str = INK) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=color, linewidth=1.2)
    )


def main() -> None:
    clip, scene = describe(SPEC, "train", INDEX)
    frames = draw(scene, size=SPEC.size, frames=SPEC.frames, noise=SPEC.noise)
    times = np.arange(SPEC.frames) / SPEC.fps
    key = slots_of(clip.spans, times, 1 / SPEC.fps)
    source = source_of(key[None], len(key))
    shown = frames[1::2]

    figure = Figure(figsize=(11, 4.3))
    axes = figure.add_axes((0, 0, 1, 1))
    left, width = 0.3, 6.6
    side = strip(axes, shown, left, 2.72, width, key, KEY)
    strip(axes, shown[source], left, 0.62, width, key, DEGRADED)

    before, keyword, after = clip.answer.partition(clip.keywords[0].text)
    axes.text(left, 3.98, "caption", fontsize=8.5, color=QUIET, va="center")
    axes.text(
        left + 0.75, 3.98, f"“{before}", fontsize=10.5, color=INK, va="center", family="monospace", wrap=False
    )
    axes.text(
        left + 0.75 + 0.0905 * (len(before) + 1), 3.98, keyword, fontsize=10.5, color=KEY, va="center",
        family="monospace", weight="bold",
    )  # fmt: skip
    axes.text(
        left + 0.75 + 0.0905 * (len(before) + 1 + len(keyword)), 3.98, f"{after}”", fontsize=10.5, color=INK,
        va="center", family="monospace",
    )  # fmt: skip
    axes.text(
        left, 2.72 + side + 0.08, "V: the video, 8 slots of 2 frames; key slots boxed", fontsize=9, color=INK
    )
    axes.text(
        left,
        0.62 + side + 0.08,
        "V~ = V[source]: key slots show their neighbours",
        fontsize=9,
        color=DEGRADED,
    )
    axes.text(left, 0.36, f"source = {source.tolist()}", fontsize=8.5, color=QUIET, family="monospace")
    for slot in np.flatnonzero(key):
        x = left + (slot + 0.5) * side
        arrow(axes, (x, 2.66), (x, 0.62 + side + 0.34), DEGRADED)

    x = 8.35
    box(axes, x, 3.4, "vision tower, once")
    box(axes, x, 2.5, "decoder: all layers,\nlayer l tapped", width=1.75)
    box(axes, x + 0.6, 1.6, "V~: gather, then\nlayers up to l only", DEGRADED, width=1.75)
    box(axes, x, 0.35, "L = L_lm + λ L_contrast", KEY)
    arrow(axes, (left + width + 0.1, 3.15), (x - 0.06, 3.66))
    arrow(axes, (left + width + 0.1, 1.05), (x + 0.53, 1.85), DEGRADED)
    arrow(axes, (x + 0.9, 3.36), (x + 0.9, 3.16))
    arrow(axes, (x + 2.1, 3.36), (x + 2.1, 2.26), DEGRADED)
    arrow(axes, (x + 0.3, 2.46), (x + 0.3, 1.01))
    arrow(axes, (x + 1.5, 1.56), (x + 1.5, 1.01), DEGRADED)
    axes.text(x + 0.22, 1.22, "answer,\nkey slots", fontsize=7.5, color=QUIET, ha="right", va="center")
    axes.text(x + 1.42, 1.28, "same slots", fontsize=7.5, color=QUIET, ha="right", va="center")
    axes.set(xlim=(0, 11), ylim=(0, 4.3), aspect="equal")
    axes.axis("off")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
