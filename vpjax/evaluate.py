"""Measure a model on a benchmark, with controls that show whether it used the video:

    python -m vpjax.evaluate --model DIR --benchmark NAME --data PATH [--controls none,blind,...] [--limit N]

The same command again goes on where it was stopped: no prediction is computed twice.

    <out>/request.json        what was asked of which model; another request needs another folder
    <out>/predictions.jsonl   the answers, one a line, as they came
    <out>/results.json        scores with 95 % intervals, overall and of every row
    <out>/results.html        the same as a page, with sample rows and their frames
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from vpjax import cli
from vpjax.cli import say
from vpjax.evaluation import run as evaluation
from vpjax.evaluation.ask import CONTROLS
from vpjax.evaluation.benchmarks import BENCHMARKS
from vpjax.evaluation.results import format_results
from vpjax.training import run_config
from vpjax.types import UserError


def main() -> None:
    parser = cli.Parser(__doc__)
    positive = cli.at_least(1)
    parser.add_argument(
        "--model", type=Path, required=True, help="work directory of a run, or Hugging Face folder"
    )
    parser.add_argument(
        "--step", type=cli.at_least(0), help="checkpoint of a work directory; default: the newest"
    )
    parser.add_argument("--benchmark", required=True, choices=BENCHMARKS, metavar="NAME", help="one of ...")
    parser.add_argument("--data", help="its annotations: a file, or a folder of one file a task")
    parser.add_argument("--videos", help="root of its videos; default: where the annotations are")
    parser.add_argument(
        "--controls",
        type=cli.comma_list,
        default=["none"],
        help=f"what the model sees, with commas between: {', '.join(CONTROLS)}; default: none",
    )
    parser.add_argument("--rank", action="store_true", help="also rank a question's candidate answers")
    parser.add_argument(
        "--limit", type=positive, help="ask about this many rows only, evenly spread over all"
    )
    parser.add_argument(
        "--missing", choices=["apart", "wrong"], default="apart", help="how rows with unusable videos count"
    )
    parser.add_argument("--against", type=Path, help="results.json of another model, compared row by row")
    parser.add_argument("--out", type=Path, help="folder of the results; default: by model and benchmark")
    parser.add_argument("--batch", type=positive, default=32, help="rows at a time")
    parser.add_argument("--max_new_tokens", type=positive, help="of an answer at most; default: by benchmark")
    parser.add_argument(
        "--frames", type=positive, help="frames a video, evenly spaced; default: as in training"
    )
    parser.add_argument("--fps", type=cli.at_least(0.0), help="frames a second, in place of --frames")
    parser.add_argument("--max_pixels", type=positive, help="of a frame after resizing")
    parser.add_argument("--dtype", choices=run_config.DTYPES, help="of the weights; default: as in training")
    parser.add_argument("--fsdp", type=positive, default=1, help="devices that share a copy of the weights")
    flags = parser.parse_args()
    if not flags.controls or set(flags.controls) - set(CONTROLS):
        raise UserError(f"--controls={','.join(flags.controls)}: choose some of {', '.join(CONTROLS)}")
    if flags.frames and flags.fps:
        raise UserError("--frames and --fps: give one of them")
    if jax.process_count() > 1:
        raise UserError("vpjax.evaluate runs in one process, on all of its devices")
    video_options: dict[str, Any] = {}
    if flags.frames or flags.fps:
        video_options |= dict(frames=flags.frames or 0, fps=flags.fps or 0.0)
    if flags.max_pixels:
        least = min(run_config.HF_VIDEO_DEFAULTS["min_pixels"], flags.max_pixels)
        video_options |= dict(max_pixels=flags.max_pixels, min_pixels=least)
    request = evaluation.Request(
        model=flags.model,
        benchmark=flags.benchmark,
        out=flags.out,
        data=flags.data,
        videos=flags.videos,
        step=flags.step,
        controls=[control for control in CONTROLS if control in flags.controls],
        rank=flags.rank,
        limit=flags.limit,
        missing=flags.missing,
        against=flags.against,
        batch=flags.batch,
        new_tokens=flags.max_new_tokens,
        mesh=dict(data=-1, fsdp=flags.fsdp, tensor=1),
        video_options=video_options,
        dtype=flags.dtype,
    )
    out, results = evaluation.evaluate(request, say)
    say(format_results(results), "", f"in {out}: results.html, results.json, predictions.jsonl")


if __name__ == "__main__":
    cli.run(main)
