"""Answers of two looks at each clip's video, and controls that show what they rest on.

none    both looks at the likeliest window of the scan: of their answers, the one that both find likelier
first   the first look at it alone, in few pixels
second  the second look at it alone, in more
key     both looks at V~, which hides the event in that window
wrong   both looks at the likeliest window that does not show the event
right   both looks at the window that shows most of the event: what a better scan would be worth
blind   no video
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from vpjax.data.images import is_image
from vpjax.data.looks import Span, TwoLooks, seconds_seen
from vpjax.data.sampling import Sampling
from vpjax.data.text import Text
from vpjax.evaluation.ask import NO_KEY, ClipPredictor, Prediction, Query
from vpjax.evaluation.bootstrap import Scored, summary
from vpjax.evaluation.ranking import likeliest_first
from vpjax.evaluation.scans import Localiser, Scan, scans_of
from vpjax.models.vlm import VideoLM
from vpjax.types import Clip, Look, UserError

LOOK_CONTROLS = ("none", "first", "second", "key", "wrong", "right", "blind")
ONE_LOOK = ("first", "second", "blind")
NEED_SPANS = ("wrong", "right")  # which need to know when the event happens


def check_clips(clips: Sequence[Clip]) -> None:
    """UserError for a clip that cannot be looked at twice, because it is not about one video."""
    for clip in clips:
        if len(clip.media) != 1 or is_image(clip.video) or clip.looks:
            raise UserError(f"two looks: clip {clip.id} is not about one video")


class LookPredictor:
    """Predicts answers about clips by two looks at each.

    scans: by clip id, once ``predictions`` has begun. faults: why a clip has none, by its id.
    """

    def __init__(
        self,
        model: VideoLM,
        text: Text,
        clips: Sequence[Clip],
        data_config: ConfigDict,
        looks: TwoLooks,
        *,
        controls: Sequence[str],
        localise: Localiser,
        batch_size: int,
        max_new: int,
        mesh: Mesh | None = None,
    ):
        """clips: without their answers. data_config: as for ``ClipPredictor``. localise: as for
        ``scans_of``. UserError as ``check_clips``."""
        check_clips(clips)
        self.model, self.text, self.clips, self.data_config = model, text, clips, data_config
        self.looks, self.controls, self.localise = looks, controls, localise
        self.options: dict[str, Any] = dict(batch_size=batch_size, max_new=max_new, mesh=mesh)
        self.scans: dict[str, Scan] = {}
        self.faults: dict[str, str] = {}

    def predictions(self) -> Iterator[Prediction]:
        """The prediction about each clip under each control, or why there is none."""
        sampling = Sampling.of(self.data_config)
        options = dict(localise=self.localise, max_side=self.data_config.max_side)
        found = scans_of(self.model, self.text, self.clips, self.looks, sampling, **options)
        bar = tqdm(zip(self.clips, found, strict=True), "scans", len(self.clips), leave=False)
        for clip, scan in bar:
            if isinstance(scan, UserError):
                self.faults[clip.id] = str(scan)
            else:
                self.scans[clip.id] = dataclasses.replace(scan, videos=[])  # which are many
        for control in self.controls:
            parts = {clip.id: self.part(clip, control) for clip in self.clips}
            for name, part in parts.items():
                if part is None:
                    yield Prediction(name, control, ranked=False, fault=self.faults.get(name, NO_KEY))
            looked = {name: part for name, part in parts.items() if part is not None}
            own = control if control in ("key", "blind") else "none"
            if not looked:
                continue
            if control in ONE_LOOK:
                look = self.looks.first if control == "first" else self.looks.second
                answers = list(self.predictor(looked, look, own).predictions())
            else:
                answers = list(self.answers_of_both(looked, own))
            for prediction in answers:
                yield prediction._replace(control=control)

    def part(self, clip: Clip, control: str) -> Span | None:
        """The window of a clip's video that is shown under a control; None if there is none, as where every
        window shows the event."""
        scan = self.scans.get(clip.id)
        if scan is None or (control in NEED_SPANS and not clip.spans):
            return None
        shown = seconds_shown(clip, scan.windows)
        number = scan.best
        if control == "right":
            number = int(np.argmax(shown))
        elif control == "wrong":
            number = int(np.argmax(np.where(shown > 0, -np.inf, scan.scores)))
        if control in NEED_SPANS and (shown[number] > 0) != (control == "right"):
            return None
        return scan.windows[number]

    def predictor(
        self,
        parts: Mapping[str, Span],
        look: Callable[[Span], Look],
        control: str,
        candidates: Mapping[str, Sequence[str]] | None = None,
    ) -> ClipPredictor:
        """What predicts answers by one look at a part of each clip's video, by the clip's id. candidates: the
        answers to rank; None: it completes."""
        asked = [
            dataclasses.replace(clip, start=None, end=None, looks=(look(parts[clip.id]),))
            for clip in self.clips
            if clip.id in parts
        ]
        done = {Query(clip.id, control, ranked=False) for clip in asked} if candidates else ()
        options = self.options | dict(controls=[control], candidates=candidates, done=done)
        return ClipPredictor(self.model, self.text, asked, self.data_config, **options)

    def answers_of_both(self, parts: Mapping[str, Span], control: str) -> Iterator[Prediction]:
        """Of the answers of the two looks at a part of each clip's video, the one with the higher sum of its
        log-probabilities given either look."""
        looks = (self.looks.first, self.looks.second)
        answers = [
            {prediction.id: prediction for prediction in self.predictor(parts, look, control).predictions()}
            for look in looks
        ]
        differing: dict[str, tuple[str, str]] = {}
        for name in parts:
            first, second = (of_look[name] for of_look in answers)
            if first.fault or second.fault or first.text == second.text:
                yield second if second.fault else first
            else:
                differing[name] = first.text, second.text
        if not differing:
            return
        logprobs: dict[str, list[np.ndarray]] = {name: [] for name in differing}
        for look in looks:
            predictor = self.predictor({name: parts[name] for name in differing}, look, control, differing)
            for _ in predictor.predictions():  # which fills in the scores
                pass
            for name in differing:
                logprobs[name].append(predictor.scores[Query(name, control, ranked=True)])
        for name, texts in differing.items():
            best = likeliest_first(np.stack(logprobs[name]))[0]
            yield Prediction(name, control, ranked=False, text=texts[best])

    def found(self) -> dict[str, bool]:
        """Whether the chosen window shows a part of the event, of each clip with known spans, by its id."""
        return {
            clip.id: bool(seconds_shown(clip, scan.windows)[scan.best] > 0)
            for clip in self.clips
            if clip.spans and (scan := self.scans.get(clip.id))
        }


def window_scores(results: Mapping[str, Any], found: Mapping[str, bool]) -> dict[str, Any]:
    """How well the windows were found, as {"mean", "low", "high"}. found: the share of them that show the
    event. right: the share of clips whose window was found and whose answer is right as well: an answer about
    another window can only be right by chance, or because nothing else is left. {} without known windows.

    results: of the predictions, as ``make_results`` returns them. found: see ``LookPredictor.found``.
    """
    rows = []
    for row in results["rows"]:
        if row["control"] == "none" and row["id"] in found:
            right = next(iter(row["values"].values()))
            is_found = float(found[row["id"]])
            values = {"found": is_found, "right": is_found * right}
            rows.append(Scored(row["id"], row["video"], "", "none", readable=True, values=values))
    if not rows:
        return {}
    return {name: means["micro"] for name, means in summary(rows)["metrics"].items()}


def seconds_shown(clip: Clip, windows: Sequence[Span]) -> np.ndarray:
    """How many seconds of a clip's spans each window shows, f64[W]."""
    return np.array([seconds_seen(window, clip.spans) for window in windows])


def scan_records(scans: Mapping[str, Scan]) -> dict[str, dict[str, Any]]:
    """The scan of each clip, ready for JSON: the edges of its windows and their scores, and those of
    the windows that got a second look."""
    return {
        name: dict(
            edges=[scan.windows[0][0], *(end for _, end in scan.windows)],
            scores=[round(float(score), 4) for score in scan.scores],
            again=scan.again,
            again_scores=[round(float(score), 4) for score in scan.again_scores],
        )
        for name, scan in scans.items()
    }
