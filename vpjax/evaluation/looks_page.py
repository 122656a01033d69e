"""Two looks as one self-contained HTML file: the scan with its scores, the chosen window, and its frames."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from ml_collections import ConfigDict

from vpjax.data.looks import TwoLooks
from vpjax.data.picking import changes_of
from vpjax.data.sampling import Sampling
from vpjax.data.video import Video
from vpjax.evaluation.ask import Prediction
from vpjax.evaluation.page import data_url, sample_answers
from vpjax.evaluation.scans import Scan, read_look, read_scan
from vpjax.files import write_whole
from vpjax.types import Clip

PAGE_TEMPLATE = Path(__file__).with_suffix(".html")
MOST_COLUMNS = 32
QUALITY = 90  # of JPEG: these frames are small


class Looked(NamedTuple):
    """A clip of which a page shows both looks. second: the frames of the second look. answers: (control,
    text, score or None) of each."""

    clip: Clip
    scan: Scan
    second: Video
    answers: Sequence[tuple[str, str, float | None]]


def write_looks_page(path: Path, about: str, looked: Sequence[Looked]) -> None:
    """Write what was seen in two looks at some clips to ``path``."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    html = environment.from_string(PAGE_TEMPLATE.read_text()).render(
        about=about,
        clips=[_clip(each) for each in looked],
        columns=min(max((len(each.scan.windows) for each in looked), default=1), MOST_COLUMNS),
        has_spans=any(each.clip.spans for each in looked),
    )
    write_whole(path, html.encode())


def looked_samples(
    results: Mapping[str, Any],
    clips: Sequence[Clip],
    predictions: Iterable[Prediction],
    looks: TwoLooks,
    data_config: ConfigDict,
    factor: int,
) -> list[Looked]:
    """What was seen in two looks at clips that were answered wrongly, and at others, from the results of an
    evaluation. data_config: by which the videos were read. factor: pixels along a side of a visual token."""
    sampling, side = Sampling.of(data_config), data_config.max_side
    scans = results["looks"]["scans"]
    scanned = [clip for clip in clips if clip.id in scans]  # whose videos could be used
    first = next(control for control, scores in results["controls"].items() if scores["rows"])
    samples = []
    for clip, answers in sample_answers(results, scanned, predictions, first):
        record = scans[clip.id]
        windows, videos = read_scan(clip.video, looks, sampling, factor, side, (clip.start, clip.end))
        scores, again_scores = np.array(record["scores"]), np.array(record["again_scores"])
        scan = Scan(windows, scores, videos, record["again"], again_scores)
        second = read_look(clip.video, looks.second(windows[scan.best]), sampling, factor, side)
        samples.append(Looked(clip, scan, second, answers))
    return samples


def _clip(looked: Looked) -> Mapping[str, Any]:
    clip, scan = looked.clip, looked.scan
    low, high = float(scan.scores.min()), float(scan.scores.max())
    windows = []
    for number, (part, score, video) in enumerate(zip(scan.windows, scan.scores, scan.videos, strict=True)):
        windows.append(
            dict(
                start=part[0],
                score=score,
                height=round(100 * (float(score) - low) / max(high - low, 1e-6)),
                chosen=number == scan.best,
                again=number in scan.again,
                key=_shows(clip, *part),
                url=data_url(video.frames[np.argmax(changes_of(video.frames))], quality=QUALITY),
            )
        )
    second = looked.second
    frames = zip(second.frames, second.times.tolist(), strict=True)
    return dict(
        name=clip.id or clip.video,
        question=clip.question,
        truth=clip.answer,
        seconds=scan.windows[-1][1] - scan.windows[0][0],
        scan=windows,
        part=scan.windows[scan.best],
        look=[
            (data_url(frame, quality=QUALITY), at, _shows(clip, at, at + second.frame_seconds))
            for frame, at in frames
        ],
        answers=looked.answers,
    )


def _shows(clip: Clip, start: float, end: float) -> bool:
    """Whether a span of the clip is seen from ``start`` to ``end``."""
    return any(a < end - 1e-3 and b > start + 1e-3 for a, b in clip.spans)
