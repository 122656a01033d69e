"""Answers of two looks at each clip's video, and controls that show what they rest on.

none    the second look at the likeliest window of the scan
first   the same window as the scan saw it: what the second look is worth
key     the second look at V~, which hides the event in that window
wrong   the second look at the likeliest window that does not show the event
right   the second look at the window that shows most of the event: what a better scan would be worth
blind   no video
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vpjax.data.looks import Span, TwoLooks
from vpjax.data.sampling import Sampling
from vpjax.data.text import Text
from vpjax.evaluation.ask import NO_KEY, ClipPredictor, Prediction
from vpjax.evaluation.bootstrap import Scored, summary
from vpjax.evaluation.scans import LOCALISERS, Scan, scans_of
from vpjax.models.vlm import VideoLM
from vpjax.types import Clip, UserError

LOOK_CONTROLS = ("none", "first", "key", "wrong", "right", "blind")
NEED_SPANS = ("wrong", "right")  # which need to know when the event happens


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
        localise: str,
        batch_size: int,
        max_new: int,
        mesh: Mesh | None = None,
    ):
        """clips: without their answers. data_config: as for ``ClipPredictor``. localise: one of LOCALISERS.
        UserError for a clip that is not about one video."""
        for clip in clips:
            if len(clip.media) != 1 or clip.looks:
                raise UserError(f"two looks: clip {clip.id} is not about one whole video")
        self.model, self.text, self.clips, self.data_config = model, text, clips, data_config
        self.looks, self.controls, self.localise = looks, controls, localise
        self.options: dict[str, Any] = dict(batch_size=batch_size, max_new=max_new, mesh=mesh)
        self.scans: dict[str, Scan] = {}
        self.faults: dict[str, str] = {}

    def predictions(self) -> Iterator[Prediction]:
        """The prediction about each clip under each control, or why there is none."""
        sampling = Sampling.of(self.data_config)
        options = dict(localise=LOCALISERS[self.localise], max_side=self.data_config.max_side)
        found = scans_of(self.model, self.text, self.clips, self.looks, sampling, **options)
        for clip, scan in zip(self.clips, found, strict=True):
            if isinstance(scan, UserError):
                self.faults[clip.id] = str(scan)
            else:
                self.scans[clip.id] = dataclasses.replace(scan, videos=[])  # which are many
        for control in self.controls:
            asked = {clip.id: self.asked(clip, control) for clip in self.clips}
            for clip in self.clips:
                if fault := self.faults.get(clip.id, "" if asked[clip.id] else NO_KEY):
                    yield Prediction(clip.id, control, ranked=False, fault=fault)
            usable = [window for window in asked.values() if window]
            if not usable:
                continue
            own = control if control in ("key", "blind") else "none"
            arguments = self.model, self.text, usable, self.data_config
            for prediction in ClipPredictor(*arguments, controls=[own], **self.options).predictions():
                yield prediction._replace(control=control)

    def asked(self, clip: Clip, control: str) -> Clip | None:
        """What is asked about a clip under a control; None if it cannot be asked."""
        scan = self.scans.get(clip.id)
        if scan is None or (control in NEED_SPANS and not clip.spans):
            return None
        shown = seconds_shown(clip, scan.windows)
        number = scan.best
        if control == "right":
            number = int(np.argmax(shown))
        elif control == "wrong":
            number = int(np.argmax(np.where(shown > 0, -np.inf, scan.scores)))
        part = scan.windows[number]
        look = self.looks.first(part) if control == "first" else self.looks.second(part)
        return dataclasses.replace(clip, start=None, end=None, looks=(look,))

    def found(self) -> dict[str, Any] | None:
        """The share of the clips with known spans whose chosen window shows a part of the event, as
        {"mean", "low", "high"}; None without such clips."""
        rows = [
            Scored(
                clip.id,
                clip.video,
                "",
                "none",
                readable=True,
                values={"found": float(seconds_shown(clip, scan.windows)[scan.best] > 0)},
            )
            for clip in self.clips
            if clip.spans and (scan := self.scans.get(clip.id))
        ]
        return summary(rows)["metrics"]["found"]["micro"] if rows else None


def seconds_shown(clip: Clip, windows: Sequence[Span]) -> np.ndarray:
    """How many seconds of a clip's spans each window shows, f64[W]."""
    return np.array(
        [sum(max(min(b, end) - max(a, start), 0.0) for start, end in clip.spans) for a, b in windows]
    )


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
