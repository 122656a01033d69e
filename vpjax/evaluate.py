"""Measure a model on a benchmark, with controls that show whether it used the video:

    python -m vpjax.evaluate --model DIR --benchmark NAME --data PATH [--controls none,blind,...] [--limit N]

The same command again goes on where it was stopped: no answer is computed twice.

    <out>/request.json        what was asked of which model; another request needs another folder
    <out>/predictions.jsonl   one answer a line, as it came
    <out>/results.json        scores with 95 % intervals, and every row's
    <out>/results.html        the same to look at, with sample rows and their frames
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from vpjax import checkpoint, cli, settings
from vpjax.asking import CONTROLS, Key, Said, ask
from vpjax.data import events
from vpjax.data.benchmarks import BENCHMARKS, answers_to, read_benchmark
from vpjax.data.cache import cache_folder
from vpjax.models.vlm import VideoLM
from vpjax.predictions import Predictions
from vpjax.results import compare, make_results, told
from vpjax.scores import meteor_lacks
from vpjax.sharding import make_mesh
from vpjax.types import Clip, Keyword, UserError

MODEL = flags.DEFINE_string("model", None, "Work directory of a run, or Hugging Face folder.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint of a work directory; default: the newest.", 0)
BENCHMARK = flags.DEFINE_string("benchmark", None, f"One of {', '.join(BENCHMARKS)}.")
DATA = flags.DEFINE_string("data", None, "Its annotations: a file, or a folder of one file a task.")
VIDEOS = flags.DEFINE_string("videos", None, "Root of its videos; default: where the annotations are.")
CONTROL = flags.DEFINE_list("controls", ["none"], f"What the model is shown: some of {', '.join(CONTROLS)}.")
RANK = flags.DEFINE_bool("rank", False, "Also let the model rank the answers that a question leaves to choose.")
LIMIT = flags.DEFINE_integer("limit", None, "Ask about this many rows only, evenly spread over all.", 1)
MISSING = flags.DEFINE_enum("missing", "apart", ["apart", "wrong"], "How unusable videos count.")
AGAINST = flags.DEFINE_string("against", None, "results.json of another model, to be compared row by row.")
OUT = flags.DEFINE_string("out", None, "Folder of the results; default: by model and benchmark.")
BATCH = flags.DEFINE_integer("batch", 32, "Rows at a time.", 1)
NEW = flags.DEFINE_integer("max_new_tokens", None, "Tokens of an answer at most; default: by benchmark.", 1)
FRAMES = flags.DEFINE_integer("frames", None, "Frames a video, evenly spaced; default: as in training.", 1)
FPS = flags.DEFINE_float("fps", None, "Frames a second, in place of --frames.")
PIXELS = flags.DEFINE_integer("max_pixels", None, "Of a frame after resizing.", 1)
DTYPE = flags.DEFINE_enum("dtype", None, settings.DTYPES, "Of the weights; default: as in training.")
FSDP = flags.DEFINE_integer("fsdp", 1, "Devices over which the weights are split; the rest hold copies.", 1)
flags.adopt_module_key_flags(cli)

# What an evaluation needs beyond what the model was trained with: long prompts, spans of any number of
# events, prompts in few lengths (each is compiled once); the reader sees to unusable videos.
ROOM = dict(
    length_multiple=64, max_prompt=32768, max_answer=8192, keywords=16, keyword_tokens=64, max_fault_share=1.0
)
SPAN = "event"  # stands for a span without a keyword, for the controls key and random


def main() -> int:
    for flag in (MODEL, BENCHMARK):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing; --help lists the flags")
    if BENCHMARK.value not in BENCHMARKS:
        raise UserError(f"--benchmark={BENCHMARK.value}: choose one of {', '.join(BENCHMARKS)}")
    if not CONTROL.value or set(CONTROL.value) - set(CONTROLS):
        raise UserError(f"--controls={','.join(CONTROL.value)}: choose some of {', '.join(CONTROLS)}")
    if jax.process_count() > 1:
        raise UserError("vpjax.evaluate runs in one process, on all of its devices")
    evaluate(Path(MODEL.value), BENCHMARK.value, [c for c in CONTROLS if c in CONTROL.value])
    return cli.OK


def evaluate(folder: Path, name: str, controls: Sequence[str]) -> dict[str, Any]:
    """Ask, score and report, as the flags say; the results. UserError for a mistake in them or in the data."""
    cfg = shown(folder)
    data, videos = DATA.value and Path(DATA.value), VIDEOS.value and Path(VIDEOS.value)
    if not data:
        if name != "events":
            raise UserError(f"--data is missing: where the annotations of {name} are")
        data = event_file(folder, cfg)
    clips, unasked = read_benchmark(name, data, videos)
    digest = hashlib.sha256(repr([(c.id, c.question, c.answer, c.video) for c in clips]).encode()).hexdigest()
    if LIMIT.value and LIMIT.value < len(clips):
        unasked[f"beyond --limit={LIMIT.value}"] = len(clips) - LIMIT.value
        clips = [clips[i] for i in np.linspace(0, len(clips) - 1, LIMIT.value).round().astype(int)]
    report_missing(clips)

    step = step_of(folder)
    mesh = make_mesh(dict(data=-1, fsdp=FSDP.value, tensor=1))
    model, text = checkpoint.load(folder, step=step, mesh=mesh, dtype=DTYPE.value or dtype_of(folder))
    benchmark = BENCHMARKS[name]
    new = NEW.value or benchmark.new_tokens
    request = {
        "benchmark": name,
        "rows": digest,
        "model": str(folder),
        "step": step,
        "weights": fingerprint(model),
        "dtype": str(model.decoder.embed.dtype),
        "shown": {field: cfg[field] for field in ("frames", "fps", "max_frames", "min_pixels", "max_pixels")},
        "max_new_tokens": new,
    }
    out = Path(OUT.value) if OUT.value else default_out(folder, name, step)
    claim(out, request)
    if name.endswith("captions") and meteor_lacks():
        say(f"without METEOR: {meteor_lacks()}")

    given = {clip.id: answers_to(clip) for clip in clips if answers_to(clip)} if RANK.value else None
    with Predictions(out / "predictions.jsonl") as predictions:
        asked = ask(
            model,
            text,
            [for_asking(clip) for clip in clips],
            cfg,
            controls=controls,
            batch_size=BATCH.value,
            max_new=new,
            mesh=mesh,
            given=given,
            done={key: said.fault for key, said in predictions.known.items()},
        )
        for said in asked:
            predictions.append(said)
        wanted = [
            Key(clip.id, control, ranked)
            for control in controls
            for ranked in (False, True)[: 1 + RANK.value]
            for clip in clips
            if not ranked or clip.id in given
        ]
        answers = [predictions.known[key] for key in wanted]
    results = make_results(request, benchmark, clips, answers, unasked, missing=MISSING.value)
    if AGAINST.value:
        results = compare(results, Path(AGAINST.value))
    write_json(out / "results.json", results)
    say(told(results), "", f"{out}/results.json, results.html, predictions.jsonl")
    return results


def shown(folder: Path) -> ConfigDict:
    """The fields ``data`` of configs/base.py for the evaluation of a model."""
    cfg = ConfigDict(settings.SHOWN | settings.data_of(folder).to_dict() | ROOM | dict(widen=0))
    if FRAMES.value and FPS.value:
        raise UserError("--frames and --fps: give one of them")
    if FRAMES.value or FPS.value:
        cfg.frames, cfg.fps = FRAMES.value or 0, FPS.value or 0.0
    if PIXELS.value:
        cfg.max_pixels, cfg.min_pixels = PIXELS.value, min(cfg.min_pixels, PIXELS.value)
    return cfg


def event_file(folder: Path, cfg: ConfigDict) -> Path:
    """The held-out event clips of a run, made if need be."""
    run = folder / settings.FILE
    config = json.loads(run.read_text()) if run.is_file() else {}
    if "events" not in config:
        raise UserError(f"--data is missing: {folder} is no run on event clips, so name a file of them")
    fields = {field.name: config["events"][field.name] for field in dataclasses.fields(events.EventSpec)}
    made = events.make(
        events.EventSpec(**fields), cache_folder(cfg), {"heldout": config["events"]["heldout"]}
    )
    return made["heldout"]


def step_of(folder: Path) -> int | None:
    """The checkpoint that is evaluated; None: a Hugging Face folder has none."""
    if not (folder / checkpoint.CHECKPOINTS).is_dir():
        return None
    manager = checkpoint.Manager(folder, keep=None)
    newest = max(manager.steps(), default=None)
    manager.close()
    return newest if STEP.value is None else STEP.value


def dtype_of(folder: Path) -> str | None:
    """The type that a run computes in; None: as stored."""
    return json.loads((folder / settings.FILE).read_text())["dtype"] if step_of(folder) is not None else None


def fingerprint(model: VideoLM) -> str:
    """A name of the weights: the same for the same numbers, on any number of devices."""

    @jax.jit
    def bits(x: jax.Array) -> jax.Array:
        whole = jax.lax.bitcast_convert_type(x, jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint32)
        return jnp.sum(whole, dtype=jnp.uint32)  # modulo 2^32: no order of summation changes it

    sums = [int(bits(x)) for x in jax.tree.leaves(model)]
    return hashlib.sha256(repr(sums).encode()).hexdigest()[:16]


def default_out(folder: Path, name: str, step: int | None) -> Path:
    if step is not None:
        return folder / "evaluate" / f"{name}-{step}"
    return Path("runs", "evaluate", f"{folder.resolve().name}-{name}")


def claim(out: Path, request: dict[str, Any]) -> None:
    """Make ``out`` the home of ``request``. UserError where it is that of another, naming what differs."""
    path = out / "request.json"
    if path.exists():
        there = json.loads(path.read_text())
        differ = [name for name in request if request[name] != there.get(name)]
        if differ:
            raise UserError(f"{out} has answers to another request ({', '.join(differ)}): give another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, request)


def report_missing(clips: Sequence[Clip]) -> None:
    """Say, before any work, which videos are not there. UserError where none is."""
    rows = Counter(clip.video for clip in clips if clip.video)
    gone = [video for video in rows if not Path(video).exists()]
    if rows and len(gone) == len(rows):
        raise UserError(f"none of {len(rows)} videos is there, such as {gone[0]}: give their root as --videos")
    if gone:
        count = sum(rows[video] for video in gone)
        some = ", ".join(gone[:5]) + ", ..." * (len(gone) > 5)
        say(f"{len(gone)} of {len(rows)} videos are missing, with {count} of {len(clips)} rows: {some}")


def for_asking(clip: Clip) -> Clip:
    """The clip as the model is asked about it: without its answer, its key frames those of its keywords or,
    where these have no spans, its own."""
    keywords = clip.keywords if any(keyword.spans for keyword in clip.keywords) else ()
    if not keywords and clip.spans:
        keywords = (Keyword(SPAN, SPAN, clip.spans),)
    return dataclasses.replace(clip, answer="", keywords=keywords)


def write_json(path: Path, value: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    cli.run(main)
