"""Two looks against one at equal visual tokens, on long built-in clips with events of one frame.

    python -m benchmarks.long --model runs/sft_long [--frames 1024] [--tokens 512] [--clips 256] [--rows ...]

The clips are held-out ones of the model's run, of so many frames; with --hatched their events are hatchings,
which only whole pixels tell from one another. Every row answers the same questions.
Prints a table in Markdown: the share of the events that are named, with 95 % intervals over videos; how many
more two looks name, paired by video, if their row ("two" or "answer") comes first; the share of the windows
found that show the event, that of both, and the seconds of CPU time a clip.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vpjax import cli
from vpjax.data.cache import cache_folder
from vpjax.data.looks import TwoLooks
from vpjax.evaluation.benchmarks import read_benchmark
from vpjax.evaluation.bootstrap import Scored, difference
from vpjax.evaluation.results import by_control, interval
from vpjax.evaluation.run import Request, evaluate_model, with_options
from vpjax.events.long import make_long_clips
from vpjax.files import local_folder
from vpjax.localisers import localiser_of
from vpjax.training import checkpoint, run_config
from vpjax.training.setup import long_spec
from vpjax.types import UserError

FULL, SMALL = 56 * 56, 28 * 28  # pixels of a frame: 4 visual tokens a slot, and 1
TWO_LOOKS = "two looks"


class Row(NamedTuple):
    """A way to look. looks: two of them; None: one, read as ``options`` of the section ``data`` say.
    controls: of two looks. names: of the lines that these give."""

    names: Sequence[str]
    looks: TwoLooks | None = None
    localise: str = "relevance"
    controls: Sequence[str] = ("none",)
    options: dict[str, Any] = {}


def rows_of(looks: TwoLooks, frames: int) -> dict[str, Row]:
    """The rows by name. looks: of the run, with the table's tokens. frames: of a clip."""
    tokens = looks.tokens

    def by_windows(pixels: int, pick: str) -> TwoLooks:
        # All tokens for one look: those of a second one, which is not asked about, come on top.
        second = looks.frames // 2 * (pixels // SMALL)
        own: dict[str, Any] = dict(
            tokens=tokens + second, again=1, scan_pixels=pixels, pixels=pixels, pick=pick
        )
        return dataclasses.replace(looks, **own)

    def one_prompt(pixels: int, pick: str) -> dict[str, Any]:
        most = 2 * tokens // (pixels // SMALL)
        sides = dict(min_pixels=pixels, max_pixels=pixels, total_pixels=0)
        return dict(frames=min(most, frames), fps=0.0, pick=pick, max_tokens=tokens + 256) | sides

    uniform = dataclasses.replace(looks, pick="first")
    return {
        "two": Row(
            (
                TWO_LOOKS,
                "first look at the window alone",
                "second look at it alone",
                "V~: event hidden",
                "wrong window",
                "right window",
                "blind",
            ),
            looks,
            controls=("none", "first", "second", "key", "wrong", "right", "blind"),
        ),
        "answer": Row((TWO_LOOKS,), looks),
        "once": Row(("two looks, one window again",), dataclasses.replace(looks, again=1)),
        "merge": Row(("two looks, frames that look alike merged",), dataclasses.replace(looks, pick="merge")),
        "motion": Row(("two looks, window by motion",), looks, "motion"),
        "contrast": Row(("two looks, window by the contrastive head",), looks, "contrast"),
        "glue": Row(("two looks, window named in one prompt",), looks, "glue"),
        "random": Row(("two looks, window by chance",), looks, "random"),
        "uniform": Row(("two looks, uniform frames",), uniform),
        "windows-full": Row(
            ("one look, uniform, full pixels, by windows",), by_windows(FULL, "first"), controls=("first",)
        ),
        "windows-small": Row(
            ("one look, uniform, few pixels, by windows",), by_windows(SMALL, "first"), controls=("first",)
        ),
        "change-full": Row(
            ("one look, by change, full pixels, by windows",), by_windows(FULL, "change"), controls=("first",)
        ),
        "change-small": Row(
            ("one look, by change, few pixels, by windows",), by_windows(SMALL, "change"), controls=("first",)
        ),
        "merge-full": Row(
            ("one look, merged, full pixels, by windows",), by_windows(FULL, "merge"), controls=("first",)
        ),
        "prompt-full": Row(
            ("one look, uniform, full pixels, one prompt",), options=one_prompt(FULL, "first")
        ),
        "prompt-small": Row(
            ("one look, uniform, few pixels, one prompt",), options=one_prompt(SMALL, "first")
        ),
        "prompt-change": Row(
            ("one look, by change, full pixels, one prompt",), options=one_prompt(FULL, "change")
        ),
    }


def main() -> None:
    parser = cli.Parser(__doc__)
    positive = cli.at_least(1)
    parser.add_argument(
        "--model", type=local_folder, required=True, help="work directory of a run of sft_long"
    )
    parser.add_argument("--step", type=cli.step, help="checkpoint; default: the newest")
    parser.add_argument("--frames", type=positive, default=1024, help="of a clip")
    parser.add_argument("--hatched", action="store_true", help="clips whose event is a hatching")
    parser.add_argument("--tokens", type=positive, default=512, help="visual tokens, of all looks together")
    parser.add_argument("--clips", type=positive, default=256)
    parser.add_argument("--rows", type=cli.comma_list, help="some of the rows; default: all")
    parser.add_argument("--out", type=Path, help="folder for each row's results.json")
    flags = parser.parse_args()

    run = run_config.read(flags.model)
    if "long" not in run:
        raise UserError(f"--model={flags.model}: no run on long built-in clips")
    looks = run_config.looks_of(flags.model, dict(tokens=flags.tokens))
    rows = rows_of(looks, flags.frames)
    if unknown := set(flags.rows or ()) - rows.keys():
        raise UserError(f"--rows: no {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    config = ConfigDict(run)
    spec = dataclasses.replace(
        long_spec(config, "heldout"), frames=flags.frames, hatched=float(flags.hatched)
    )
    file = make_long_clips(spec, cache_folder(config.data), {"heldout": flags.clips})["heldout"]
    clips, _ = read_benchmark("events", file)
    model, text = checkpoint.load_model(flags.model, step=flags.step, dtype=run.get("dtype"))
    print(f"{len(clips)} clips of {flags.frames} frames, {flags.tokens} visual tokens, {flags.model}\n")
    print("| | event named | two looks minus it | window found | both | CPU s a clip |")
    print("|---|---|---|---|---|---|", flush=True)
    two_looks: list[Scored] = []
    for name in flags.rows or rows:
        row = rows[name]
        data = with_options(run_config.data_of(flags.model).to_dict(), row.options)
        request = Request(
            "events",
            flags.model,
            looks=row.looks,
            localise=row.localise,
            localiser=localiser_of(row.localise, flags.model, flags.step),
            controls=row.controls,
            batch=32 if row.looks else 8,
        )
        start = time.process_time()
        results = evaluate_model(model, text, clips, request, data)
        seconds = (time.process_time() - start) / len(clips)
        windows, scored_under = results.get("looks", {}).get("windows", {}), by_control(results)
        for label, control in zip(row.names, row.controls, strict=True):
            means = results["controls"][control].get("metrics", {})
            named = interval(means["accuracy"]["micro"]) if means else "no clip"
            cells = [named, "", "", "", ""]
            scored = scored_under.get(control, [])
            if two_looks and scored:
                cells[1] = interval(difference(two_looks, scored)["metrics"]["accuracy"], sign=True)
            if label == TWO_LOOKS:
                two_looks = scored
            if windows and control == "none":
                cells[2:4] = interval(windows["found"]), interval(windows["right"])
            if control == row.controls[0]:
                cells[-1] = f"{seconds:.2f}"
            print("|", " | ".join([label, *cells]), "|", flush=True)
        if flags.out:
            flags.out.mkdir(parents=True, exist_ok=True)
            (flags.out / f"{name}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    cli.run(main)
