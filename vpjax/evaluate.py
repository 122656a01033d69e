"""Measure a model on a benchmark, with controls that show whether it used the video:

    python -m vpjax.evaluate --model DIR --benchmark NAME --data PATH [--controls none,blind,...] [--limit N]

The same command again goes on where it was stopped: no answer is computed twice.

    <out>/request.json        what was asked of which model; another request needs another folder
    <out>/predictions.jsonl   the answers, one a line, as they came
    <out>/results.json        scores with 95 % intervals, in all and of every row
    <out>/results.html        the same to look at, with some rows and their frames
"""

from __future__ import annotations

from pathlib import Path

import jax
from absl import flags

from vpjax import cli
from vpjax.evaluation import run as evaluation
from vpjax.evaluation.ask import CONTROLS
from vpjax.evaluation.benchmarks import BENCHMARKS
from vpjax.evaluation.page import write_page
from vpjax.evaluation.results import format_results
from vpjax.training import run_config
from vpjax.types import UserError

MODEL = flags.DEFINE_string("model", None, "Work directory of a run, or Hugging Face folder.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint of a work directory; default: the newest.", 0)
BENCHMARK = flags.DEFINE_string("benchmark", None, f"One of {', '.join(BENCHMARKS)}.")
DATA = flags.DEFINE_string("data", None, "Its annotations: a file, or a folder of one file a task.")
VIDEOS = flags.DEFINE_string("videos", None, "Root of its videos; default: where the annotations are.")
CONTROL = flags.DEFINE_list("controls", ["none"], f"What the model is shown: some of {', '.join(CONTROLS)}.")
RANK = flags.DEFINE_bool("rank", False, "Also rank the answers that a question leaves to choose.")
LIMIT = flags.DEFINE_integer("limit", None, "Ask about this many rows only, evenly spread over all.", 1)
MISSING = flags.DEFINE_enum("missing", "apart", ["apart", "wrong"], "How rows with unusable videos count.")
AGAINST = flags.DEFINE_string("against", None, "results.json of another model, compared row by row.")
OUT = flags.DEFINE_string("out", None, "Folder of the results; default: by model and benchmark.")
BATCH = flags.DEFINE_integer("batch", 32, "Rows at a time.", 1)
NEW = flags.DEFINE_integer("max_new_tokens", None, "Tokens of an answer at most; default: by benchmark.", 1)
FRAMES = flags.DEFINE_integer("frames", None, "Frames a video, evenly spaced; default: as in training.", 1)
FPS = flags.DEFINE_float("fps", None, "Frames a second, in place of --frames.", 0.0)
PIXELS = flags.DEFINE_integer("max_pixels", None, "Of a frame after resizing.", 1)
DTYPE = flags.DEFINE_enum("dtype", None, run_config.DTYPES, "Of the weights; default: as in training.")
FSDP = flags.DEFINE_integer("fsdp", 1, "Devices that share a copy of the weights.", 1)
flags.adopt_module_key_flags(cli)


def main() -> int:
    cli.require(MODEL, BENCHMARK)
    if BENCHMARK.value not in BENCHMARKS:
        raise UserError(f"--benchmark={BENCHMARK.value}: choose one of {', '.join(BENCHMARKS)}")
    if not CONTROL.value or set(CONTROL.value) - set(CONTROLS):
        raise UserError(f"--controls={','.join(CONTROL.value)}: choose some of {', '.join(CONTROLS)}")
    if FRAMES.value and FPS.value:
        raise UserError("--frames and --fps: give one of them")
    if jax.process_count() > 1:
        raise UserError("vpjax.evaluate runs in one process, on all of its devices")
    shown = {}
    if FRAMES.value or FPS.value:
        shown |= dict(frames=FRAMES.value or 0, fps=FPS.value or 0.0)
    if PIXELS.value:
        shown |= dict(
            max_pixels=PIXELS.value, min_pixels=min(run_config.HF_VIDEO_DEFAULTS["min_pixels"], PIXELS.value)
        )
    wanted = evaluation.Evaluation(
        model=Path(MODEL.value),
        benchmark=BENCHMARK.value,
        out=_path(OUT),
        data=_path(DATA),
        videos=_path(VIDEOS),
        step=STEP.value,
        controls=[control for control in CONTROLS if control in CONTROL.value],
        rank=RANK.value,
        limit=LIMIT.value,
        missing=MISSING.value,
        against=_path(AGAINST),
        batch=BATCH.value,
        new_tokens=NEW.value,
        fsdp=FSDP.value,
        shown=shown,
        dtype=DTYPE.value,
    )
    out, results, clips, answers = evaluation.run(wanted, say)
    write_page(out / "results.html", results, clips, answers)
    say(format_results(results), "", f"in {out}: results.html, results.json, predictions.jsonl")
    return cli.OK


def _path(flag: flags.FlagHolder[str | None]) -> Path | None:
    return Path(flag.value) if flag.value else None


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    cli.run(main)
