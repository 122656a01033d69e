"""Results as one self-contained HTML file: tables, bars by group, and sample rows with their frames."""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from vpjax.data.images import is_image
from vpjax.data.sampling import Sampling, readings_of
from vpjax.data.video import read_frames, read_image
from vpjax.evaluation.ask import Prediction
from vpjax.evaluation.results import interval, label, metric_columns, per_cent, remarks
from vpjax.files import write_whole
from vpjax.types import Clip, UserError

PAGE_TEMPLATE = Path(__file__).with_suffix(".html")
SAMPLE_ROWS = 6  # of either kind, right and wrong, under the first control
SAMPLE_FRAMES, SAMPLE_PIXELS = 16, 112 * 112  # frames of a sample and pixels of each at most


def write_page(
    path: Path, results: Mapping[str, Any], clips: Sequence[Clip], predictions: Iterable[Prediction]
) -> None:
    """Write ``results`` of these clips to ``path``. A sample whose video cannot be read has no frames."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= dict(per_cent=per_cent, interval=interval)
    controls = {name: scores for name, scores in results["controls"].items() if scores["rows"]}
    columns = metric_columns(results)
    leading = columns[0]
    means = next(iter(controls.values()))["metrics"][leading]
    groupings = [name for name in ("groups", "second_groups") if name in means]
    html = environment.from_string(PAGE_TEMPLATE.read_text()).render(
        results=results,
        controls=controls,
        metrics=columns,
        leading=leading,
        groupings={name: list(means[name]) for name in groupings},
        remarks=remarks(results),
        samples=_samples(results, clips, predictions, next(iter(controls))),
    )
    write_whole(path, html.encode())


def _samples(
    results: Mapping[str, Any], clips: Sequence[Clip], predictions: Iterable[Prediction], first: str
) -> list[dict[str, Any]]:
    """Clips that are answered wrongly under the control ``first``, evenly spread, then right ones."""
    return [
        {"clip": clip, "answers": answers, "frames": _frames(clip)}
        for clip, answers in sample_answers(results, clips, predictions, first)
    ]


def sample_answers(
    results: Mapping[str, Any], clips: Sequence[Clip], predictions: Iterable[Prediction], first: str
) -> Iterator[tuple[Clip, list[tuple[str, str, float | None]]]]:
    """Clips that are answered wrongly under the control ``first``, evenly spread, then right ones, and the
    answers about each: (control, text, score or None)."""
    scores = {(row["id"], row["control"]): next(iter(row["values"].values())) for row in results["rows"]}
    texts = {(prediction.id, label(prediction)): prediction.text for prediction in predictions}
    scored = [clip for clip in clips if (clip.id, first) in scores]
    wrong = [clip for clip in scored if scores[clip.id, first] < 0.5]
    right = [clip for clip in scored if scores[clip.id, first] >= 0.5]
    for rows in (wrong, right):
        for place in np.linspace(0, len(rows) - 1, min(SAMPLE_ROWS, len(rows))).round().astype(int):
            clip = rows[place]
            yield (
                clip,
                [
                    (control, texts[clip.id, control], scores.get((clip.id, control)))
                    for control in results["controls"]
                    if (clip.id, control) in texts
                ],
            )


def _frames(clip: Clip) -> list[tuple[str, float, bool]]:
    """Frames of a clip's media as (data URL, seconds, whether it lies in a span of the clip)."""
    return [frame for number in range(len(clip.media)) for frame in _frames_of_medium(clip, number)]


def _frames_of_medium(clip: Clip, number: int) -> list[tuple[str, float, bool]]:
    path = clip.media[number]
    try:
        if is_image(path):
            video = read_image(path, factor=2, min_pixels=1, max_pixels=SAMPLE_PIXELS)
        else:
            sampling = Sampling(SAMPLE_FRAMES, min_pixels=1, max_pixels=SAMPLE_PIXELS)
            start, end = readings_of(clip, sampling, len(clip.media))[number].part
            video = read_frames(path, sampling, factor=2, start=start, end=end)
    except UserError:
        return []
    spans = [span for keyword in clip.keywords if keyword.video == number for span in keyword.spans]
    if not spans and number == 0:
        spans = list(clip.spans)
    frames = []
    for frame, seconds in zip(video.frames, video.times, strict=True):
        in_span = any(start <= seconds + 1e-3 and seconds < end for start, end in spans)
        frames.append((data_url(frame, quality=85), float(seconds), in_span))
    return frames


def data_url(frame: np.ndarray, *, quality: int) -> str:
    """A frame u8[h,w,3] as a JPEG that a page holds itself."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
