"""How well are key frames found? On built-in event clips, where the truth is known.

python -m benchmarks.keyframes --model runs/sft [--clips 200] [--out FILE.md]
python -m benchmarks.keyframes --ladder [--clips 200] [--out FILE.md]

The table has recall of the true event slots, their intersection over union with the slots that were found,
and the share of clips in which any were found, as means over clips. ``self`` uses the model of a finished run
of configs/sft.py. ``span`` is given annotations as people make them, WIDE seconds too long at either end;
``annotated`` takes these as they are. ``random`` is a run of the true length anywhere in the clip. The clips
are the last held-out ones, because the scorers' constants were chosen on the first. ``--ladder`` makes these
clips at each level of LADDER, from a camera that stands still to one that shakes while other shapes come and
go, and asks those finders that need no model.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.timing import environment, publish
from vpjax import cli
from vpjax.building.scorers import Scorer, Spans, key_runs, motion_scorer, product, span_scorer
from vpjax.building.self_scorer import self_scorer
from vpjax.data.keyframes import slots_of
from vpjax.data.sampling import Sampling
from vpjax.data.video import Video, read_frames
from vpjax.recipes import sft as recipe
from vpjax.training import checkpoint
from vpjax.training.setup import read_split
from vpjax.types import Clip

WIDE = 0.25  # seconds
LADDER: tuple[dict[str, float], ...] = (  # fields of EventSpec at each level of difficulty
    {},
    dict(texture=8.0, camera=0.05),
    dict(texture=8.0, camera=0.05, clutter=4),
    dict(texture=8.0, camera=0.05, clutter=4, distractors=1),
    dict(texture=12.0, camera=0.1, clutter=4, distractors=2, blur=0.015, rough=WIDE),
)

Finder = Callable[[Video, Clip], Spans]  # the spans of a clip's event


def widen_spans(video: Video, clip: Clip) -> Clip:
    """The clip with spans that are too long."""
    video_end = float(video.times[-1]) + video.frame_seconds
    spans = tuple((max(0.0, start - WIDE), min(video_end, end + WIDE)) for start, end in clip.spans)
    keywords = tuple(dataclasses.replace(keyword, spans=spans) for keyword in clip.keywords)
    return dataclasses.replace(clip, spans=spans, keywords=keywords)


def finder(scorer: Scorer) -> Finder:
    def find(video: Video, clip: Clip) -> Spans:
        spans, _ = key_runs(scorer(video, clip, clip.keywords[0]), video.times)
        return spans

    return find


def annotated_spans(video: Video, clip: Clip) -> Spans:
    return clip.keywords[0].spans


WITHOUT_MODEL: dict[str, Finder] = {
    "annotated": annotated_spans,
    "span": finder(span_scorer),
    "motion": finder(motion_scorer),
}


def random_run(true: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask bool[S] with as many slots as ``true`` has, in one run."""
    length = int(true.sum())
    start = rng.integers(len(true) - length + 1)
    mask = np.zeros(len(true), bool)
    mask[start : start + length] = True
    return mask


def measure(clips: list[Clip], finders: dict[str, Finder], *, widen: bool) -> Iterator[dict[str, Any]]:
    """A record for each clip and finder: recall, intersection over union, whether anything was found. widen:
    the clips' spans before the finders see them."""
    rng = np.random.default_rng(0)
    for clip in tqdm(clips, "clips", unit="clip"):
        video = read_frames(clip.video, Sampling(frames=16, min_pixels=1, max_pixels=56 * 56))
        true = slots_of(clip.extra["spans"], video.times, video.frame_seconds)
        annotated = widen_spans(video, clip) if widen else clip
        masks = {}
        for name, find in finders.items():
            masks[name] = slots_of(find(video, annotated), video.times, video.frame_seconds)
        masks["random"] = random_run(true, rng)
        for name, mask in masks.items():
            both = (mask & true).sum()
            yield {
                "found by": name,
                "length": clip.extra["length"],
                "recall": both / true.sum(),
                "iou": both / (mask | true).sum(),
                "found": mask.any(),
            }


def table(records: list[dict[str, Any]]) -> list[str]:
    """A line for each finder."""
    lengths = sorted({record["length"] for record in records})
    headings = ["found by", "recall", "IoU", "found in"]
    for length in lengths:
        headings.append("IoU, 1 frame" if length == 1 else f"IoU, {length} frames")
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for name in dict.fromkeys(record["found by"] for record in records):
        own = [record for record in records if record["found by"] == name]
        means = [np.mean([record[column] for record in own]) for column in ("recall", "iou", "found")]
        for length in lengths:
            means.append(np.mean([record["iou"] for record in own if record["length"] == length]))
        lines.append(f"| {name} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    return lines


def ladder_table(clip_count: int) -> list[str]:
    """A line for each level of LADDER: recall and intersection over union of each finder."""
    names = (*WITHOUT_MODEL, "random")
    headings = ["level", *(f"{name}: recall, IoU" for name in names), "fields"]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for level, fields in enumerate(LADDER):
        config = recipe.get_config()
        config.events.update(fields)
        if "rough" in fields:  # which held-out clips are spared
            config.events_heldout.rough = fields["rough"]
        clips = read_split(config, "heldout", "events")[-clip_count:]
        records = list(measure(clips, WITHOUT_MODEL, widen=False))
        cells = []
        for name in names:
            own = [record for record in records if record["found by"] == name]
            recall, iou = (np.mean([record[column] for record in own]) for column in ("recall", "iou"))
            cells.append(f"{recall:.2f}, {iou:.2f}")
        described = ", ".join(f"{field} {value:g}" for field, value in fields.items())
        lines.append("| " + " | ".join([str(level), *cells, described or "the default"]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, help="work directory of a run of configs/sft.py")
    what.add_argument("--ladder", action="store_true", help="harder and harder clips, without a model")
    parser.add_argument("--clips", type=int, default=200, help="the last held-out clips")
    parser.add_argument("--out", type=Path, help="write the table to this file")
    args = parser.parse_args()
    if args.ladder:
        title = "# Key frames found on harder and harder event clips"
        about = f"{args.clips} held-out clips of 8 slots a level, 56 x 56 pixels"
        publish([title, "", environment("numpy", "av"), about, "", *ladder_table(args.clips)], args.out)
        return
    model, text = checkpoint.load_model(args.model)
    by_model = self_scorer(model, text)
    finders = WITHOUT_MODEL | {
        "self": finder(by_model),
        "span x self": finder(product(span_scorer, by_model)),
    }
    clips = read_split(recipe.get_config(), "heldout", "events")[-args.clips :]
    records = list(measure(clips, finders, widen=True))
    lines = [
        "# Key frames found on event clips",
        "",
        environment("jax", "flax", "numpy"),
        f"{args.clips} held-out clips of 8 slots; annotations {WIDE} s too long at either end",
        "",
        *table(records),
    ]
    publish(lines, args.out)


if __name__ == "__main__":
    cli.run(main)
