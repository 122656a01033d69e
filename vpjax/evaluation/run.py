"""One evaluation: a model, a benchmark's rows, answers on disk, results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vpjax.data.cache import cache_folder
from vpjax.evaluation.ask import NO_KEY, Prediction, Query, ask
from vpjax.evaluation.benchmarks import BENCHMARKS, answers_to, read_benchmark
from vpjax.evaluation.predictions import Predictions
from vpjax.evaluation.results import compare, make_results
from vpjax.events import clips as events
from vpjax.files import write_whole
from vpjax.models.sharding import make_mesh
from vpjax.models.vlm import VideoLM
from vpjax.scoring.metrics import caption, meteor_lacks
from vpjax.training import checkpoint, run_config
from vpjax.training import setup as start
from vpjax.types import Clip, Keyword, UserError

# What is asked about needs more room than what is trained on: long prompts, of few lengths (each is compiled
# once), and spans of any number of events. Unusable videos are counted here.
ROOM = dict(
    length_multiple=64,
    max_prompt=32768,
    max_answer=8192,
    keywords=16,
    keyword_tokens=64,
    max_fault_share=1.0,
    widen=0,
)
SPAN = "event"  # stands for a span without a keyword, for the controls key and random
OWN = ("events", "clips")  # asked with the instructions that the run was trained with
REQUEST, PREDICTIONS, RESULTS = "request.json", "predictions.jsonl", "results.json"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is to be measured. model: a work directory, or a Hugging Face folder. data, videos: see
    ``read_benchmark``; no data: the held-out clips of a run on event clips. step: of a work directory's
    checkpoint; None: the newest. controls: some of ``asking.CONTROLS``, in that order. rank: whether the
    answers that a question leaves to choose are ranked as well. limit: rows, evenly spread. missing: see
    ``make_results``. batch: rows at a time. new_tokens: of an answer; None: as the benchmark has it. fsdp:
    devices that share one copy of the weights. shown: fields ``data`` of configs/base.py that are to differ
    from how the model was trained. dtype: of the weights; None: as in training, or as stored.
    """

    model: Path
    benchmark: str
    out: Path | None = None
    data: Path | None = None
    videos: Path | None = None
    step: int | None = None
    controls: Sequence[str] = ("none",)
    rank: bool = False
    limit: int | None = None
    missing: str = "apart"
    against: Path | None = None
    batch: int = 32
    new_tokens: int | None = None
    fsdp: int = 1
    shown: dict[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str | None = None


def run(
    e: Evaluation, say: Callable[[str], None]
) -> tuple[Path, dict[str, Any], list[Clip], list[Prediction]]:
    """Ask what has not been asked, score, and write ``RESULTS``: the folder, the results, the clips and the
    answers. UserError for a mistake in the request, the data or the model."""
    trained_with = _trained_with(e.model)
    data_config = ConfigDict(
        run_config.HF_VIDEO_DEFAULTS | run_config.data_of(e.model).to_dict() | ROOM | e.shown
    )
    data = e.data or event_file(e, trained_with, data_config)
    every, unasked = read_benchmark(e.benchmark, data, e.videos)
    if e.benchmark in OWN:
        instructions = trained_with.get("data", {}).get("instructions", {})
        every = [start.instructed(clip, instructions) for clip in every]
    clips = every
    if e.limit and e.limit < len(every):
        unasked[f"beyond a limit of {e.limit}"] = len(every) - e.limit
        clips = [every[i] for i in np.linspace(0, len(every) - 1, e.limit).round().astype(int)]
    check_videos(clips, say)

    step = _newest(e.model) if e.step is None else e.step
    mesh = make_mesh(dict(data=-1, fsdp=e.fsdp, tensor=1))
    dtype = e.dtype or trained_with.get("dtype") if step is not None else e.dtype
    model, text = checkpoint.load(e.model, step=step, mesh=mesh, dtype=dtype)
    benchmark = BENCHMARKS[e.benchmark]
    request = {
        "benchmark": e.benchmark,
        "rows": _digest(repr([(c.id, c.question, c.answer, c.video) for c in every])),
        "model": str(e.model),
        "step": step,
        "weights": fingerprint(model),
        "dtype": str(model.decoder.embed.dtype),
        "shown": {
            field: data_config[field] for field in ("frames", "fps", "max_frames", "min_pixels", "max_pixels")
        },
        "new_tokens": e.new_tokens or benchmark.new_tokens,
    }
    out = e.out or default_out(e, step)
    claim(out, request)
    if benchmark.score is caption and meteor_lacks():
        say(f"without METEOR: {meteor_lacks()}")

    given = {clip.id: answers_to(clip) for clip in clips if e.rank and answers_to(clip)}
    with Predictions(out / PREDICTIONS) as predictions:
        for said in ask(
            model,
            text,
            [without_answer(clip) for clip in clips],
            data_config,
            controls=e.controls,
            batch_size=e.batch,
            max_new=request["new_tokens"],
            mesh=mesh,
            given=given,
            # What could not be asked about may have been mended since.
            done={key for key, said in predictions.known.items() if said.fault in ("", NO_KEY)},
        ):
            if said != predictions.known.get(said.key):
                predictions.append(said)
    answers = [
        predictions.known[Query(clip.id, control, ranked)]
        for control in e.controls
        for ranked in (False, True)
        for clip in clips
        if not ranked or clip.id in given
    ]
    results = make_results(request, benchmark, clips, answers, unasked, missing=e.missing)
    results = compare(results, e.against) if e.against else results
    write_json(out / RESULTS, results)
    return out, results, clips, answers


def _trained_with(folder: Path) -> dict[str, Any]:
    """The config of the run whose work directory ``folder`` is; {} for a Hugging Face folder."""
    path = folder / run_config.FILE
    return json.loads(path.read_text()) if (folder / checkpoint.MODEL).is_dir() and path.is_file() else {}


def event_file(e: Evaluation, trained_with: dict[str, Any], data_config: ConfigDict) -> Path:
    """The held-out event clips of the run, made if need be."""
    if e.benchmark != "events":
        raise UserError(f"--data is missing: the annotations of {e.benchmark}, a file or a folder")
    if "events" not in trained_with:
        raise UserError(f"--data is missing: {e.model} is no run on event clips, so name a file of them")
    config = ConfigDict(trained_with)
    return events.make(
        start.event_spec(config), cache_folder(data_config), {"heldout": config.events.heldout}
    )["heldout"]


def check_videos(clips: Sequence[Clip], say: Callable[[str], None]) -> None:
    """Tell, before any work, which videos are not there. UserError where none is."""
    rows = Counter(clip.video for clip in clips if clip.video)
    gone = [video for video in rows if not Path(video).exists()]
    if rows and len(gone) == len(rows):
        raise UserError(
            f"none of {len(rows)} videos is there, such as {gone[0]}: give their root as --videos"
        )
    if gone:
        count = sum(rows[video] for video in gone)
        some = ", ".join(gone[:5]) + ", ..." * (len(gone) > 5)
        say(f"{len(gone)} of {len(rows)} videos are missing, with {count} of {len(clips)} rows: {some}")


def without_answer(clip: Clip) -> Clip:
    """The clip without its answer; its key frames are those of its keywords or, where these have no spans,
    its own."""
    keywords = clip.keywords if any(keyword.spans for keyword in clip.keywords) else ()
    if not keywords and clip.spans:
        keywords = (Keyword(SPAN, SPAN, clip.spans),)
    return dataclasses.replace(clip, answer="", keywords=keywords)


def _newest(folder: Path) -> int | None:
    """The newest checkpoint of a work directory; None: there is none, as in a Hugging Face folder."""
    if not (folder / checkpoint.CHECKPOINTS).is_dir():
        return None
    manager = checkpoint.Manager(folder, keep=None)
    steps = manager.steps()
    manager.close()
    return max(steps, default=None)


def fingerprint(model: VideoLM) -> str:
    """A name of the weights: the same for the same numbers, on any number of devices."""
    return _digest(repr([int(x) for x in _bits(model)]))


@jax.jit
def _bits(model: VideoLM) -> list[jax.Array]:
    """The bits of each parameter summed as numbers modulo 2^32, in which no order of summation matters."""
    unsigned = {2: jnp.uint16, 4: jnp.uint32}
    whole = [jax.lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize]) for x in jax.tree.leaves(model)]
    return [jnp.sum(x, dtype=jnp.uint32) for x in whole]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def default_out(e: Evaluation, step: int | None) -> Path:
    if step is not None:
        return e.model / "evaluate" / f"{e.benchmark}-{step}"
    return Path("runs", "evaluate", f"{e.model.resolve().name}-{e.benchmark}")


def claim(out: Path, request: dict[str, Any]) -> None:
    """Make ``out`` the home of ``request``. UserError where it is that of another, naming what differs."""
    path = out / REQUEST
    if path.exists():
        there = json.loads(path.read_text())
        differ = [name for name in request if request[name] != there.get(name)]
        if differ:
            raise UserError(f"{out} has answers to another request ({', '.join(differ)}): give another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, request)


def write_json(path: Path, value: Any) -> None:
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode())
