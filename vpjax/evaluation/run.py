"""One evaluation: reads a model and a benchmark's clips, writes predictions and results."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vpjax.data.looks import TwoLooks
from vpjax.data.mixture import EVENTS, LONG
from vpjax.data.sampling import Sampling
from vpjax.data.text import Text
from vpjax.evaluation.ask import FINAL_FAULTS, ClipPredictor, KeyFinder, Predictions, Query, contrast_control
from vpjax.evaluation.benchmarks import BENCHMARKS, answers_to, read_benchmark
from vpjax.evaluation.looks import LookPredictor, scan_records, window_scores
from vpjax.evaluation.looks_page import looked_samples, write_looks_page
from vpjax.evaluation.page import write_page
from vpjax.evaluation.results import compare, make_results, read_other
from vpjax.evaluation.scans import Localiser, relevance_scores
from vpjax.evaluation.shown import OWN, evaluation_data, with_options, within_files, without_answer
from vpjax.files import AnyPath, exists, read_object, write_whole
from vpjax.models.attention import backend
from vpjax.models.sharding import make_mesh
from vpjax.models.vlm import VideoLM
from vpjax.scoring.metrics import missing_for_meteor, score_caption
from vpjax.training import checkpoint, run_config
from vpjax.training.setup import instructed, split_file
from vpjax.types import Clip, UserError

# Ways to find key frames, by name: a function of the model and its tokenizer; None: those that clips give.
KeyFrames = Mapping[str, Callable[[VideoLM, Text], KeyFinder] | None]
REQUEST, PREDICTIONS, RESULTS, PAGE = "request.json", "predictions.jsonl", "results.json", "results.html"
LOOKS_PAGE = "scans.html"


@dataclasses.dataclass(frozen=True)
class Request:
    """What to evaluate, and how.

    benchmark: a key of ``BENCHMARKS``. model: a work directory or a Hugging Face folder. out: the folder of
    the results; None: ``default_out``. data, videos: see ``read_benchmark``; data None: the held-out clips of
    a run on event clips. step: of a work directory's checkpoint. controls: some of
    ``CONTROLS``, in that order. rank: predict the likeliest of a question's candidate answers too. contrasts:
    rank them against V~ too, once for each of these ways to find the key frames that it replaces. limit: the
    most clips, evenly spread over all. missing: see ``make_results``. against: the results.json of another
    model to compare with. batch: clips at a time. max_new_tokens: of an answer; None: the benchmark's. mesh:
    devices per axis, as ``config.mesh``. video_options: fields of the section ``data`` that replace those of
    training, see ``with_options``. dtype: of the weights; None: as in training, or as stored. looks: answer
    by two looks at each video, under some of ``LOOK_CONTROLS``; None: by one. localise, localiser: the name
    of the way in which the window of the second look is found, and that way. UserError for contrasts without
    rank, and for two looks that rank.
    """

    benchmark: str
    model: Path = Path()
    out: Path | None = None
    data: AnyPath | None = None
    videos: AnyPath | None = None
    step: checkpoint.Step = None
    controls: Sequence[str] = ("none",)
    rank: bool = False
    contrasts: KeyFrames = dataclasses.field(default_factory=dict)
    limit: int | None = None
    missing: str = "apart"
    against: Path | None = None
    batch: int = 32
    max_new_tokens: int | None = None
    mesh: Mapping[str, int] = dataclasses.field(default_factory=lambda: dict(data=-1, fsdp=1, tensor=1))
    video_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str | None = None
    looks: TwoLooks | None = None
    localise: str = "relevance"
    localiser: Localiser = relevance_scores

    def __post_init__(self) -> None:
        if self.looks and self.rank:
            raise UserError("--looks=2 --rank: answers are ranked by one look only; leave one of them out")
        if self.contrasts and not self.rank:
            raise UserError(f"--contrast={','.join(self.contrasts)} ranks candidate answers: give --rank too")

    @property
    def new_tokens(self) -> int:
        """The most tokens of an answer."""
        return self.max_new_tokens or BENCHMARKS[self.benchmark].new_tokens


def evaluate(
    request: Request, say: Callable[[str], None], *, writes: bool = True
) -> tuple[Path, dict[str, Any]]:
    """Make the predictions that do not exist yet, score all and write ``REQUEST``, ``PREDICTIONS``,
    ``RESULTS`` and ``PAGE``, and ``LOOKS_PAGE`` for two looks. Returns their folder and the results.

    say: prints a line. writes: whether this process writes; of several processes all compute and one writes.
    UserError for a mistake in the request, the data or the model.
    """
    checkpoint.check_model(request.model)
    if request.against:  # read once more at the end; what is wrong with it is told before
        read_other(request.against, request.benchmark)
    clips, left_out = requested_clips(request)
    digest = _digest(repr([identity(clip) for clip in clips]))
    if request.limit and request.limit < len(clips):
        left_out[f"beyond a limit of {request.limit}"] = len(clips) - request.limit
        clips = spread(clips, request.limit)
    check_videos(clips, say)

    run = run_of(request.model)
    mesh = make_mesh(request.mesh, kv_heads=checkpoint.read_model_config(request.model).decoder.kv_heads)
    data_config = with_options(run_config.data_of(Path(request.model)).to_dict(), request.video_options)
    if request.benchmark not in OWN:
        clips = within_files(clips, data_config, say)
    step = checkpoint.step_of(request.model, request.step, say)
    dtype = request.dtype or run.get("dtype")
    model, text = checkpoint.load_model(request.model, step=step, mesh=mesh, dtype=dtype)
    description = describe_request(request, digest, step, model, data_config)
    out = request.out or default_out(request, step)
    check_request(out, description)
    if prior := run.get("events", {}).get("prior"):  # of the training clips: decides on columns of the tables
        description["prior"] = prior
    if BENCHMARKS[request.benchmark].score is score_caption and missing_for_meteor():
        say(f"without METEOR: {missing_for_meteor()}")

    if writes:
        write_json(out / REQUEST, description)
    predictions = Predictions(out / PREDICTIONS, writes=writes)
    multihost_utils.sync_global_devices("predictions are read")  # by every process, before one of them writes
    with predictions, backend(run.get("attention", "auto")):
        results = evaluate_model(
            model,
            text,
            clips,
            request,
            data_config,
            mesh=mesh,
            predictions=predictions,
            left_out=left_out,
            description=description,
        )
    if request.against:
        results = compare(results, request.against)
    if writes:
        write_json(out / RESULTS, results)
        write_page(out / PAGE, results, clips, predictions.known.values())
        if request.looks:
            shown = evaluation_data(data_config, request.benchmark, model)
            factor = model.config.vision.factor
            samples = looked_samples(results, clips, predictions.known.values(), request.looks, shown, factor)
            title = f"{request.model}, {request.looks.tokens} visual tokens"
            write_looks_page(out / LOOKS_PAGE, title, samples)
    return out, results


def describe_request(
    request: Request, digest: str, step: int | None, model: VideoLM, data_config: ConfigDict
) -> dict[str, Any]:
    """What determines the predictions, ready for JSON. digest: of the clips before the limit."""
    shown = evaluation_data(data_config, request.benchmark, model)
    return {
        "looks": dataclasses.asdict(request.looks) if request.looks else None,
        "localise": request.localise if request.looks else None,
        "benchmark": request.benchmark,
        "rows": digest,
        "model": str(request.model),
        "step": step,
        "weights": fingerprint(model),
        "dtype": str(model.decoder.embed.dtype),
        "shown": dataclasses.asdict(Sampling.of(shown)) | {"max_tokens": shown.max_tokens},
        "new_tokens": request.new_tokens,
    }


def evaluate_model(
    model: VideoLM,
    text: Text,
    clips: Sequence[Clip],
    request: Request,
    data_config: ConfigDict,
    *,
    mesh: Mesh | None = None,
    predictions: Predictions | None = None,
    left_out: Mapping[str, int] | None = None,
    description: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The results of a model in memory on a benchmark's clips, as ``make_results`` returns them.

    clips: from ``read_benchmark``. request: its benchmark, controls, rank, contrasts, batch, max_new_tokens
    and missing are read. data_config: the run's ``data``. mesh: where the model is. predictions: those made
    before, to which new ones are added. left_out, description (the request): see ``make_results``. Results of
    two looks have besides what ``scan_results`` returns, in ``looks``. UserError if answers are to be ranked
    and no clip has any.
    """
    if predictions is None:
        predictions = Predictions()
    candidates: dict[str, Sequence[str]] = {}
    if request.rank:
        candidates = {clip.id: answers_to(clip) for clip in clips if answers_to(clip)}
        if not candidates:
            raise UserError(f"--rank: no question of {request.benchmark} has candidate answers: leave it out")
    predictor: ClipPredictor | LookPredictor
    if request.looks:
        predictor = look_predictor(model, text, clips, request, data_config, mesh)
    else:
        predictor = clip_predictor(model, text, clips, request, data_config, mesh, candidates, predictions)
    for prediction in predictor.predictions():
        if prediction != predictions.known.get(prediction.query):
            predictions.append(prediction)
    results = make_results(
        description or {"benchmark": request.benchmark},
        BENCHMARKS[request.benchmark],
        clips,
        [predictions.known[query] for query in queries_of(request, clips, candidates)],
        left_out or {},
        missing=request.missing,
    )
    if isinstance(predictor, LookPredictor):
        results["looks"] = scan_results(results, predictor)
    return results


def queries_of(request: Request, clips: Sequence[Clip], candidates: Iterable[str]) -> list[Query]:
    """All that a request asks, in the order of its results. candidates: ids of the clips with candidate
    answers."""
    queries: list[Query] = []
    for control in request.controls:
        queries += [Query(clip.id, control) for clip in clips]
        queries += [Query(clip, control, ranked=True) for clip in candidates]
    for name in request.contrasts:
        queries += [Query(clip, contrast_control(name), ranked=True) for clip in candidates]
    return queries


def clip_predictor(
    model: VideoLM,
    text: Text,
    clips: Sequence[Clip],
    request: Request,
    data_config: ConfigDict,
    mesh: Mesh | None,
    candidates: Mapping[str, Sequence[str]],
    predictions: Predictions,
) -> ClipPredictor:
    """What answers a request by one look at each video, but for what ``predictions`` have already."""
    finders = {name: make and make(model, text) for name, make in request.contrasts.items()}
    return ClipPredictor(
        model,
        text,
        [without_answer(clip) for clip in clips],
        evaluation_data(data_config, request.benchmark, model),
        controls=request.controls,
        batch_size=request.batch,
        max_new=request.new_tokens,
        mesh=mesh,
        candidates=candidates,
        contrasts=finders,
        # A video that could not be used may have been mended since.
        done={query for query, known in predictions.known.items() if known.fault in ("", *FINAL_FAULTS)},
    )


def look_predictor(
    model: VideoLM,
    text: Text,
    clips: Sequence[Clip],
    request: Request,
    data_config: ConfigDict,
    mesh: Mesh | None,
) -> LookPredictor:
    """What answers a request by two looks at each video. All predictions are made anew."""
    if jax.process_count() > 1:
        raise UserError("--looks=2 runs in one process: start it without --processes")
    assert request.looks is not None
    return LookPredictor(
        model,
        text,
        [without_answer(clip) for clip in clips],
        evaluation_data(data_config, request.benchmark, model),
        request.looks,
        controls=request.controls,
        localise=request.localiser,
        batch_size=request.batch,
        max_new=request.new_tokens,
        mesh=mesh,
    )


def scan_results(results: Mapping[str, Any], predictor: LookPredictor) -> dict[str, Any]:
    """How well the windows were found, of how many clips the localiser found none, and each clip's scan."""
    unnamed = sum(not scan.is_named for scan in predictor.scans.values())
    windows = window_scores(results, predictor.found())
    return {"windows": windows, "unnamed": unnamed, "scans": scan_records(predictor.scans)}


def spread(clips: Sequence[Clip], limit: int) -> list[Clip]:
    """At most ``limit`` of the clips, evenly spread over all."""
    places = np.linspace(0, len(clips) - 1, min(limit, len(clips))).round().astype(int)
    return [clips[place] for place in places]


def requested_clips(
    request: Request, run: Mapping[str, Any] | None = None
) -> tuple[list[Clip], Counter[str]]:
    """The clips of a request, before its limit, and the number of rows left out by reason. The model need not
    exist yet. run: the config of the model's run; None: that in its work directory. UserError if there are no
    clips, or no such file."""
    run = run_of(request.model) if run is None else run
    data = request.data
    if data is None:
        if request.benchmark != "events":
            raise UserError(f"--data is missing: the annotations of {request.benchmark}, a file or a folder")
        if "events" not in run:
            raise UserError(
                f"--data is missing: {request.model} is no run on event clips, so name a file of them"
            )
        own = run["data"]["heldout"]
        data = split_file(ConfigDict(run), "heldout", own if own == LONG else EVENTS)
    clips, left_out = read_benchmark(request.benchmark, data, request.videos)
    if request.benchmark in OWN:
        instructions = run.get("data", {}).get("instructions", {})
        clips = [instructed(clip, instructions) for clip in clips]
    return clips, left_out


def run_of(folder: Path) -> dict[str, Any]:
    """The config of the run whose work directory ``folder`` is; {} for a Hugging Face folder."""
    return run_config.read(folder) if (folder / checkpoint.MODEL).is_dir() else {}


def check_videos(clips: Sequence[Clip], say: Callable[[str], None]) -> None:
    """Print which videos are missing, before any work is done. UserError if all are."""
    paths = dict.fromkeys(path for clip in clips for path in clip.media)
    missing = [path for path in paths if not exists(path)]
    if paths and len(missing) == len(paths):
        raise UserError(
            f"none of {len(paths)} videos is there, such as {missing[0]}: give their root as --videos"
        )
    if missing:
        absent = set(missing)
        count = sum(not absent.isdisjoint(clip.media) for clip in clips)
        names = ", ".join(missing if len(missing) <= 5 else [*missing[:5], "..."])
        say(f"{len(missing)} of {len(paths)} videos are missing, with {count} of {len(clips)} rows: {names}")


def identity(clip: Clip) -> tuple[str, ...]:
    """What makes a clip's predictions and their scores those of this clip: what is asked and what is seen.
    The spans are what controls replace."""
    own = clip.id, clip.question, clip.answer, clip.video, *clip.others
    if clip.system or clip.turns:
        own = *own, clip.system, repr(clip.turns)
    if any(choice not in clip.question for choice in clip.choices):  # which may be ranked
        own = *own, repr(clip.choices)
    parts = clip.start, clip.end, clip.looks
    spans = clip.spans, tuple((keyword.video, keyword.spans) for keyword in clip.keywords if keyword.spans)
    return (*own, repr((parts, spans))) if any(parts) or any(spans) else own


def fingerprint(model: VideoLM) -> str:
    """A hash of the weights that does not depend on the number of devices."""
    return _digest(repr([int(x) for x in _bits(model)]))


@jax.jit
def _bits(model: VideoLM) -> list[jax.Array]:
    """The bits of each parameter summed as numbers modulo 2^32, in which no order of summation matters."""
    unsigned = {2: jnp.uint16, 4: jnp.uint32}
    whole = [jax.lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize]) for x in jax.tree.leaves(model)]
    return [jnp.sum(x, dtype=jnp.uint32) for x in whole]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def default_out(request: Request, step: int | None) -> Path:
    if step is not None:
        return request.model / "evaluate" / f"{request.benchmark}-{step}"
    return Path("runs", "evaluate", f"{request.model.resolve().name}-{request.benchmark}")


def check_request(out: Path, description: Mapping[str, Any]) -> None:
    """UserError, naming the fields that differ, if ``out`` holds the predictions of another request."""
    path = out / REQUEST
    if not path.exists():
        return
    known = read_object(path, f"delete the folder {out}, or give another --out")
    different = [name for name in description if description[name] != known.get(name)]
    if different:
        raise UserError(f"{out} has answers to another request ({', '.join(different)}): give another --out")


def write_json(path: Path, value: Any) -> None:
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode())
