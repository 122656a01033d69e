"""Results as one self-contained HTML file: tables, bars by group, and sample rows with their frames."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from vpjax.data.video import IMAGES, Sampling, read_frames, read_image
from vpjax.evaluation.ask import Prediction
from vpjax.evaluation.results import interval, label, per_cent, remarks
from vpjax.files import write_whole
from vpjax.types import Clip, UserError

TEMPLATE = Path(__file__).with_suffix(".html")
SAMPLES = 6  # rows of either kind, right and wrong, under the first control
STRIP, PIXELS = 16, 112 * 112  # frames of a sample and pixels of each at most


def write_page(
    path: Path, results: Mapping[str, Any], clips: Sequence[Clip], answers: Sequence[Prediction]
) -> None:
    """Write ``results`` of these clips and answers as ``path``. A sample's video that cannot be read leaves
    its row without frames."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= dict(per_cent=per_cent, interval=interval)
    template = environment.from_string(TEMPLATE.read_text())
    controls = {name: x for name, x in results["controls"].items() if x["rows"]}
    first = next(iter(controls.values()))
    html = template.render(
        results=results,
        controls=controls,
        metrics=list(first["metrics"]),
        leading=next(iter(first["metrics"])),
        groups=list(next(iter(first["metrics"].values()))["groups"]),
        remarks=remarks(results),
        samples=_samples(results, clips, answers, next(iter(controls))),
    )
    write_whole(path, html.encode())


def _samples(
    results: Mapping[str, Any], clips: Sequence[Clip], answers: Sequence[Prediction], first: str
) -> list[dict[str, Any]]:
    """Rows that came out wrong under the control ``first``, evenly spread, then some that came out right."""
    score = {(row["id"], row["control"]): next(iter(row["values"].values())) for row in results["rows"]}
    asked = [clip for clip in clips if (clip.id, first) in score]
    samples = []
    for right in (False, True):
        some = [clip for clip in asked if (score[clip.id, first] >= 0.5) == right]
        for place in np.unique(np.linspace(0, len(some) - 1, SAMPLES).round().astype(int)) if some else ():
            clip = some[place]
            said = [
                (label(x.key), x.text, score.get((clip.id, label(x.key))))
                for x in answers
                if x.key.clip == clip.id
            ]
            samples.append({"clip": clip, "said": said, "frames": _strip(clip)})
    return samples


def _strip(clip: Clip) -> list[tuple[str, float, bool]]:
    """Frames of a clip as (data URL, seconds, whether a span of the clip holds it)."""
    try:
        if Path(clip.video).suffix.lower() in IMAGES:
            video = read_image(clip.video, max_pixels=PIXELS, min_pixels=1, factor=2)
        elif clip.video:
            part = dict(start=clip.start, end=clip.end, max_pixels=PIXELS, min_pixels=1, factor=2)
            video = read_frames(clip.video, Sampling(frames=STRIP), **part)
        else:
            return []
    except UserError:
        return []
    spans = [span for keyword in clip.keywords for span in keyword.spans] or clip.spans
    return [
        (_jpeg(frame), float(at), any(start <= at + 1e-3 and at < end for start, end in spans))
        for frame, at in zip(video.frames, video.times, strict=True)
    ]


def _jpeg(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
