"""Measure a model on a benchmark, with controls that show whether it used the video:

    python -m vpjax.evaluate --model DIR --benchmark NAME --data PATH [--controls none,blind,...] [--limit N]

``--rank`` also takes, of a question's candidate answers a, the one with the highest log p(a given V). With
``--rank --contrast=motion`` it stands beside the one with the highest log p(a given V) - log p(a given V~),
where V~ replaces the key frames that motion finds (motion), that the model finds, asked again with each few
frames replaced (self), or that the clips' annotation names (key). Rows without such frames are counted apart.

The same command again goes on where it was stopped: no prediction is computed twice. It may run as several
processes, as training does (launch/README.md): each decodes its share of the videos, and process 0 writes.

    <out>/request.json        the model, the data and the options; another request needs another folder
    <out>/predictions.jsonl   the answers, one per line
    <out>/results.json        scores with 95 % intervals, and the score of every row
    <out>/results.html        the same as a page, with sample rows and their frames
"""

import signal
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax

from vpjax import cli, distributed, localisers, programs
from vpjax.building.scorers import find_by_motion
from vpjax.building.self_scorer import self_finder
from vpjax.evaluation import run as evaluation
from vpjax.evaluation.benchmarks import BENCHMARKS
from vpjax.evaluation.controls import CONTROLS
from vpjax.evaluation.looks import LOOK_CONTROLS
from vpjax.evaluation.results import format_results
from vpjax.files import local_folder
from vpjax.models.sharding import own_copy
from vpjax.training import config_rules, run_config
from vpjax.types import UserError

# How the key frames of --contrast are found, as ``evaluation.Request`` takes it.
KEY_FRAMES: evaluation.KeyFrames = {
    "key": None,
    "motion": lambda model, text: find_by_motion,
    # Each process finds the key frames of the videos that it decodes, with a model of its own.
    "self": lambda model, text: self_finder(own_copy(model), text),
}


def _parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add, positive = parser.add_argument, cli.at_least(1)
    add("--model", type=local_folder, required=True, help="work directory of a run, or Hugging Face folder")
    add("--step", type=cli.step, help="checkpoint of a work directory, or best; default: the newest")
    add("--benchmark", choices=list(BENCHMARKS), required=True, help="what to measure it on")
    add("--data", help="its annotations: a file, or a folder of one file a task")
    add("--videos", help="root of its videos; default: where the annotations are")
    several = f"some of {','.join(CONTROLS)}; with --looks=2 of {','.join(LOOK_CONTROLS)}"
    add("--controls", type=cli.comma_list, default=["none"], help=several)
    add("--rank", action="store_true", help="also predict the likeliest of a question's candidate answers")
    add(
        "--contrast", type=cli.comma_list, help=f"with --rank: and against V~; some of {','.join(KEY_FRAMES)}"
    )
    add("--limit", type=positive, help="ask about this many rows only, evenly spread over all")
    add("--missing", choices=["apart", "wrong"], default="apart", help="how unusable videos count")
    add("--against", type=Path, help="results.json of another model, compared row by row")
    add("--out", type=local_folder, help="folder of the results; default: by model and benchmark")
    add("--batch", type=positive, default=32, help="rows at a time")
    add("--max_new_tokens", type=positive, help="of an answer, at most; default: by benchmark")
    add("--frames", type=positive, help="frames a video, evenly spaced; default: as in training")
    add("--fps", type=cli.at_least(0.0), help="frames a second, in place of --frames")
    add("--min_pixels", type=positive, help="of a frame after resizing, at least")
    add("--max_pixels", type=positive, help="of a frame after resizing, at most")
    add("--total_pixels", type=cli.at_least(0), help="of one frame in two, summed; replaces all budgets")
    parser.add_looks(localisers.NAMES)
    add("--dtype", choices=config_rules.DTYPES, help="of the weights; default: as in training")
    add("--fsdp", type=positive, default=1, help="devices that share a copy of the weights")
    parser.add_processes()
    return parser


def _check_names(flag: str, names: Sequence[str] | None, known: Collection[str]) -> None:
    """UserError if a flag is given without names or with one that is not known."""
    if names is not None and (not names or set(names) - set(known)):
        raise UserError(f"--{flag}={','.join(names)}: choose some of {', '.join(known)}")


def _take_video_options(flags: dict[str, Any]) -> dict[str, float]:
    """Take the flags of how videos are read out of others: the fields of the section ``data`` that they
    replace. UserError for frames and fps at once."""
    frames, fps = flags.pop("frames"), flags.pop("fps")
    if frames and fps:
        raise UserError("--frames and --fps: give one of them")
    if fps == 0.0:
        raise UserError("--fps must be above 0")
    options: dict[str, float] = {}
    if frames or fps:
        options |= dict(frames=frames or 0, fps=fps or 0.0)
    for limit in ("min_pixels", "max_pixels", "total_pixels"):
        if (pixels := flags.pop(limit)) is not None:
            options[limit] = pixels
    return options


def main() -> None:
    flags = vars(_parser().parse_args())
    processes = [flags.pop(name) for name in ("coordinator", "processes", "process", "join_timeout")]
    look_fields, localise = cli.take_looks(flags, localisers.NAMES)
    controls, contrast = flags.pop("controls"), flags.pop("contrast")
    all_controls = CONTROLS if look_fields is None else LOOK_CONTROLS
    _check_names("controls", controls, all_controls)
    _check_names("contrast", contrast, KEY_FRAMES)
    video_options = _take_video_options(flags)
    distributed.join(*processes)
    if jax.process_count() > 1:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # which JAX takes as a notice to training
    request = evaluation.Request(
        controls=[control for control in all_controls if control in controls],
        contrasts={name: find for name, find in KEY_FRAMES.items() if name in (contrast or ())},
        mesh=dict(data=-1, fsdp=flags.pop("fsdp"), tensor=1),
        video_options=video_options,
        looks=None if look_fields is None else run_config.looks_of(flags["model"], look_fields),
        localise=localise,
        localiser=localisers.localiser_of(localise, Path(flags["model"]), flags["step"]),
        **flags,
    )
    programs.keep_as_in_run(Path(request.model))
    out, results = evaluation.evaluate(request, cli.say, writes=jax.process_index() == 0)
    cli.say(format_results(results), "", f"in {out}: results.html, results.json, predictions.jsonl")


if __name__ == "__main__":
    cli.run(main)
