"""The held-out clips of a run: its evaluations at the end, and those of a part of them while it trains."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vpjax.data.cache import cache_folder
from vpjax.data.clips import read_clips
from vpjax.data.looks import TwoLooks, scan_of
from vpjax.data.mixture import BUILT_IN, EVENTS
from vpjax.data.probing import probe_sources
from vpjax.data.sampling import Sampling
from vpjax.data.text import Text
from vpjax.evaluation.ask import NO_KEY, ClipPredictor, Prediction
from vpjax.evaluation.benchmarks import BENCHMARKS
from vpjax.evaluation.controls import CONTROLS
from vpjax.evaluation.looks import LOOK_CONTROLS, check_clips
from vpjax.evaluation.results import make_results, metric_columns
from vpjax.evaluation.run import (
    Request,
    check_videos,
    evaluation_data,
    requested_clips,
    spread,
    without_answer,
)
from vpjax.models.attention import backend
from vpjax.models.config import VLMConfig
from vpjax.models.vlm import VideoLM, abstract_model
from vpjax.training.setup import split_file
from vpjax.types import Clip, UserError

SPLIT = "heldout"  # that is evaluated while a run trains, and the first part of its metrics' names


def heldout_splits(config: ConfigDict) -> list[str]:
    """The splits that are evaluated when the run ends: unseen pairs of shape and event are built in, unless
    there are to be none."""
    if not config.data.heldout:
        return []
    return [SPLIT, "unseen"] if config.data.heldout == EVENTS and config.events.unseen else [SPLIT]


def heldout_folder(workdir: Path, split: str, step: int) -> Path:
    return workdir / "evaluate" / f"{split}-{step}"


def heldout_request(config: ConfigDict, workdir: Path, split: str, step: int | None = None) -> Request:
    """The evaluation of a split, the same as that of ``vpjax.evaluate --benchmark events`` or, for clips of
    which none is known to show an event, ``--benchmark clips``. step: after which it is made."""
    file = split_file(config, split, config.data.heldout)
    is_built_in = config.data.heldout in BUILT_IN
    videos = "" if is_built_in else config.data.videos
    names_events = is_built_in or any("event" in clip.extra for clip in read_clips(file, videos))
    looks = TwoLooks.of(config.looks) if config.looks.windows else None
    controls: Sequence[str] = LOOK_CONTROLS if looks else CONTROLS
    return Request(
        model=workdir,
        benchmark="events" if names_events else "clips",
        data=file,
        videos=videos or None,
        step=step,
        out=None if step is None else heldout_folder(workdir, split, step),
        controls=controls if split == SPLIT else ("none",),
        limit=config.eval_clips,
        mesh=config.mesh,
        looks=looks,
    )


def check_heldout(config: ConfigDict, workdir: Path, say: Callable[[str], None]) -> None:
    """UserError if the held-out clips of a run that is about to start could not be evaluated."""
    for split in heldout_splits(config):
        try:
            request = heldout_request(config, workdir, split)
            clips, _ = requested_clips(request, config.to_dict())
            clips = spread(clips, config.eval_clips)
            check_videos(clips, say)
            if request.looks:
                check_looks(clips)
        except UserError as error:
            raise UserError(f"{error}; set data.heldout to '' for no evaluation") from error


def check_looks(clips: Sequence[Clip]) -> None:
    """UserError if clips could not be evaluated by two looks."""
    check_clips(clips)
    if jax.process_count() > 1:
        raise UserError("two looks (looks.windows) are evaluated in one process, and this run has several")


def check_scans(config: ConfigDict, workdir: Path, factor: int) -> None:
    """UserError if ``looks.tokens`` are too few for two looks at the first held-out clip. factor: pixels
    along a side of a visual token."""
    if not config.looks.windows:
        return
    for split in heldout_splits(config):
        request = heldout_request(config, workdir, split)
        clip = requested_clips(request, config.to_dict())[0][0]
        source = probe_sources([clip.video], cache_folder(config.data), config.data.max_side)[clip.video]
        if source.info is None:
            continue  # it is a fault of the clip's
        with contextlib.suppress(ValueError):  # likewise
            sampling = Sampling.of(config.data)
            scan_of(source.info, TwoLooks.of(config.looks), sampling, factor, (clip.start, clip.end))


class HeldOut:
    """Evaluates a part of the held-out clips again and again while a run trains. The clips and their batches
    are the same each time, and so are the compiled programs."""

    def __init__(
        self, config: ConfigDict, workdir: Path, text: Text, model_config: VLMConfig, mesh: Mesh | None
    ):
        """UserError if ``config.eval_controls`` or ``config.keep_best`` names what does not exist, and for a
        run that looks twice."""
        self.config = config
        if config.looks.windows:
            raise UserError(
                "config.eval_every: two looks (looks.windows) are evaluated at the end only; set it to 0"
            )
        if not config.eval_controls or set(config.eval_controls) - set(CONTROLS):
            raise UserError(
                f"config.eval_controls={tuple(config.eval_controls)}: choose some of {', '.join(CONTROLS)}"
            )
        controls = [control for control in CONTROLS if control in config.eval_controls]
        request = heldout_request(config, workdir, SPLIT)
        self.request = dataclasses.replace(request, controls=controls)
        clips, _ = requested_clips(self.request, config.to_dict())
        self.clips = spread(clips, config.eval_part)
        self.shapes = abstract_model(model_config)
        self.predictor = ClipPredictor(
            self.shapes,
            text,
            [without_answer(clip) for clip in self.clips],
            evaluation_data(config.data, self.request.benchmark, self.shapes),
            controls=self.request.controls,
            batch_size=self.request.batch,
            max_new=self.request.new_tokens,
            mesh=mesh,
            candidates={clip.id: (clip.answer,) for clip in self.clips},
        )
        if config.keep_best and config.keep_best not in self.names():
            raise UserError(
                f"config.keep_best={config.keep_best!r} is no metric of the held-out clips; choose one of "
                f"{', '.join(self.names())}"
            )

    def __call__(self, model: VideoLM) -> dict[str, float]:
        """The metrics of the model, by their names in the log: ``heldout/loss``, the mean of -log p over the
        tokens of the clips' answers; ``heldout/readable`` and the benchmark's own metrics of greedy answers;
        and those under a control, such as ``heldout/key/loss``."""
        self.predictor.model = model
        with backend(self.config.attention):
            predictions = list(self.predictor.predictions())
        self.predictor.model = self.shapes  # the arrays of a model in training do not last
        return self._losses(predictions) | self._answers(x for x in predictions if not x.ranked)

    def names(self) -> list[str]:
        """The names of the metrics, which are those of the right answers."""
        right = [
            Prediction(clip.id, control, ranked=False, text=clip.answer)
            for control in self.request.controls
            for clip in self.clips
        ]
        losses = [_name(control, "loss") for control in self.request.controls]
        return losses + list(self._answers(right))

    def _losses(self, predictions: Iterable[Prediction]) -> dict[str, float]:
        """The loss on the clips' own answers, which are the only candidates of their questions."""
        sums = {control: [0.0, 0] for control in self.request.controls}
        for prediction in predictions:
            query = prediction.query
            if query in self.predictor.scores and prediction.fault != NO_KEY:
                sums[query.control][0] -= float(self.predictor.scores[query][0])
                sums[query.control][1] += len(self.predictor.candidate_ids[query.id][0])
        return {_name(control, "loss"): loss / count for control, (loss, count) in sums.items() if count}

    def _answers(self, predictions: Iterable[Prediction]) -> dict[str, float]:
        """The means of the metrics that a table of these answers would show."""
        benchmark = self.request.benchmark
        description: dict[str, Any] = {"benchmark": benchmark}
        if benchmark == "events" and self.config.events.get("prior"):
            description["prior"] = self.config.events.prior
        results = make_results(
            description, BENCHMARKS[benchmark], self.clips, predictions, {}, missing="apart"
        )
        values: dict[str, float] = {}
        for control, scores in results["controls"].items():
            if scores["rows"]:
                values[_name(control, "readable")] = scores["readable"]
                means = scores["metrics"]
                for metric in metric_columns(results):
                    if metric in means:
                        values[_name(control, metric)] = means[metric]["micro"]["mean"]
        return values


def _name(control: str, metric: str) -> str:
    """The name of a metric in the log."""
    return f"{SPLIT}/{metric}" if control == "none" else f"{SPLIT}/{control}/{metric}"
