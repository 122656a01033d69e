"""How well are key frames found? On built-in event clips, where the truth is known.

python -m benchmarks.keyframes --model runs/sft [--clips 200] [--out FILE.md]

Recall of the true event slots, their intersection over union with the slots that were found, and the share of
clips where any were: means over clips. ``self`` asks the model of a finished run of configs/sft.py. ``span``
is given annotations as people make them, WIDE seconds too long at either end; ``annotated`` shows these as
they are. ``random`` is a run of the true length anywhere in the clip. Asked about are the last held-out
clips: the scorers' constants were chosen on the first.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.timing import environment, keep
from vpjax.building.scorers import Scorer, Spans, motion_scorer, product, runs, span_scorer
from vpjax.building.self_scorer import self_scorer
from vpjax.data.keyframes import slots_of
from vpjax.data.video import Sampling, Video, read_frames
from vpjax.recipes import sft as recipe
from vpjax.training import checkpoint
from vpjax.training.setup import read_split
from vpjax.types import Clip

WIDE = 0.25  # seconds


def annotated(video: Video, clip: Clip) -> Clip:
    """The clip with spans that are too long."""
    end = float(video.times[-1]) + video.frame_seconds
    spans = tuple((max(0.0, first - WIDE), min(end, last + WIDE)) for first, last in clip.spans)
    keywords = tuple(dataclasses.replace(keyword, spans=spans) for keyword in clip.keywords)
    return dataclasses.replace(clip, spans=spans, keywords=keywords)


def found_by(scorer: Scorer) -> Callable[[Video, Clip], Spans]:
    return lambda video, clip: runs(scorer(video, clip, clip.keywords[0]), video.times)[0]


def random_run(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """A mask bool[S] with as many slots as another, in one run."""

    def place(true: np.ndarray) -> np.ndarray:
        length = int(true.sum())
        start = rng.integers(len(true) - length + 1)
        return (np.arange(len(true)) >= start) & (np.arange(len(true)) < start + length)

    return place


def results(clips: list[Clip], ways: dict[str, Callable[[Video, Clip], Spans]]) -> Iterator[dict]:
    """One record a clip and way: recall, intersection over union, whether anything was found."""
    anywhere = random_run(np.random.default_rng(0))
    for clip in tqdm(clips, "clips", unit="clip"):
        video = read_frames(clip.video, Sampling(frames=16), min_pixels=1, max_pixels=56 * 56)

        def slots(spans: Spans, video: Video = video) -> np.ndarray:
            return slots_of(spans, video.times, video.frame_seconds)

        true, shown = slots(clip.spans), annotated(video, clip)
        masks = {way: slots(find(video, shown)) for way, find in ways.items()}
        for way, mask in (masks | {"random": anywhere(true)}).items():
            both, either = (mask & true).sum(), (mask | true).sum()
            yield dict(
                way=way,
                length=clip.extra["length"],
                recall=both / true.sum(),
                iou=both / either,
                found=bool(mask.any()),
            )


def table(records: list[dict]) -> list[str]:
    ways = list(dict.fromkeys(record["way"] for record in records))
    lengths = sorted({record["length"] for record in records})
    head = ["found by", "recall", "IoU", "found in", *(f"IoU, {n} frame{'s' * (n > 1)}" for n in lengths)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for way in ways:
        mine = [record for record in records if record["way"] == way]
        cells = [np.mean([record[column] for record in mine]) for column in ("recall", "iou", "found")]
        cells += [np.mean([record["iou"] for record in mine if record["length"] == n]) for n in lengths]
        lines.append(f"| {way} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="work directory of a run of configs/sft.py")
    parser.add_argument("--clips", type=int, default=200, help="the last held-out clips")
    parser.add_argument("--out", type=Path, help="write the table to this file")
    args = parser.parse_args()
    config = recipe.get_config()
    model, text = checkpoint.load(args.model)
    asked = self_scorer(model, text)
    ways = {
        "annotated": lambda video, clip: clip.spans,
        "span": found_by(span_scorer),
        "motion": found_by(motion_scorer),
        "self": found_by(asked),
        "span x self": found_by(product(span_scorer, asked)),
    }
    records = list(results(read_split(config, "heldout", "events")[-args.clips :], ways))
    lines = [
        "# Key frames found on event clips",
        "",
        environment("jax", "flax", "numpy"),
        f"{args.clips} held-out clips of 8 slots; annotations {WIDE} s too long at either end",
        "",
        *table(records),
    ]
    print("\n".join(lines))
    keep(lines, args.out)


if __name__ == "__main__":
    sys.exit(main())
