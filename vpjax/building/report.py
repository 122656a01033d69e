"""The counts of a build, and a page with them, histograms, and sample clips as strips of frames."""

import base64
import dataclasses
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from PIL import Image

from vpjax.building.examine import NO_VTILDE, Examined, Options, examine
from vpjax.building.items import Item
from vpjax.building.scorers import Spans
from vpjax.data.coverage import Coverage
from vpjax.data.images import is_image
from vpjax.data.keyframes import identity_source, slots_of, source_of
from vpjax.data.sampling import SLOT, Sampling, resolve_part
from vpjax.data.video import Video, probe, read_frames, read_image
from vpjax.types import Clip

REPORT_TEMPLATE = Path(__file__).with_suffix(".html")
STRIP_FRAMES = 16  # of a strip: as many as training samples by default
THUMBNAIL_WIDTH = 120  # of a frame in a strip, in pixels
EXAMPLES = 3  # places that are named for each reason
LEMMAS = 30  # bars of the keywords' histogram
LENGTH_EDGES = (0.25, 0.5, 1, 2, 4, 8)  # seconds: of the histogram of how long key frames last
CONFIDENCE_EDGES = tuple(n / 10 for n in range(1, 10))


@dataclasses.dataclass(frozen=True)
class Reason:
    """A reason why questions were skipped, or a note about them. examples: "place: detail"."""

    text: str
    count: int
    examples: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """Counts: rows of the annotation file, the questions in them (a conversation counts as one), the clips
    that these gave, their turns, and the clips that have a V~ (degraded). Every question is a clip or
    skipped."""

    rows: int
    questions: int
    clips: int
    turns: int
    degraded: int
    skipped: tuple[Reason, ...]
    noted: tuple[Reason, ...]


def summarize(items: Sequence[Item], rows: int) -> Summary:
    """Count the results of the questions. AssertionError if one is neither a clip nor skipped, or both."""
    assert all((item.clip is None) == bool(item.skipped) for item in items)
    skipped = count_reasons((item.place, item.skipped) for item in items if item.skipped)
    turns = [len(item.clip.dialogue) for item in items if item.clip is not None]
    clips = len(turns)
    assert clips + sum(reason.count for reason in skipped) == len(items) >= rows
    degraded = sum(has_degraded(item) for item in items)
    noted = count_reasons((item.place, note) for item in items for note in item.notes)
    return Summary(rows, len(items), clips, sum(turns), degraded, skipped, noted)


def has_degraded(item: Item) -> bool:
    return item.clip is not None and not any(note.startswith(NO_VTILDE) for note in item.notes)


def count_reasons(texts: Iterable[tuple[str, str]]) -> tuple[Reason, ...]:
    """Count (place, "reason: detail") pairs by reason, the most frequent first."""
    examples: dict[str, list[str]] = {}
    for place, text in texts:
        reason, _, detail = text.partition(": ")
        examples.setdefault(reason, []).append(f"{place}: {detail}" if detail else place)
    reasons = [Reason(text, len(places), tuple(places[:EXAMPLES])) for text, places in examples.items()]
    return tuple(sorted(reasons, key=lambda reason: -reason.count))


def choose_samples(items: Sequence[Item], count: int) -> list[int]:
    """The indices of the clips that the report shows: a sixth are those with the least confidence, a sixth
    have no V~, and the rest are random ones with a V~."""
    rng = np.random.default_rng(0)
    with_degraded = [n for n, item in enumerate(items) if has_degraded(item)]
    without = [n for n, item in enumerate(items) if item.media and not has_degraded(item)]
    unsure = sorted(with_degraded, key=lambda n: min(confidences(items[n].clip), default=1.0))
    sixth = count // 6
    chosen = dict.fromkeys(unsure[:sixth])
    chosen |= dict.fromkeys(rng.permutation(without)[:sixth].tolist())
    chosen |= dict.fromkeys(rng.permutation(with_degraded).tolist()[: max(0, count - len(chosen))])
    return sorted(itertools.islice(chosen, count))


def confidences(clip: Clip | None) -> list[float]:
    """The confidences of the keywords whose key frames were found by scorers."""
    if clip is None:
        return []
    known = zip(clip.keywords, confidence_of_keywords(clip), strict=True)
    return [value for keyword, value in known if keyword.spans and value is not None]


def confidence_of_keywords(clip: Clip) -> list[float | None]:
    """The confidence of each keyword, None where its spans were given: what this build or an earlier one put
    into ``extra``, where anything may stand in clips that a user wrote or changed since."""
    known = clip.extra.get("confidence")
    if not isinstance(known, list) or len(known) != len(clip.keywords):
        return [None] * len(clip.keywords)
    return [value if isinstance(value, float) else None for value in known]


class Frame(NamedTuple):
    """image: JPEG in base64. seconds: of the file. marked: a key frame or, in V~, one that replaces it."""

    image: str
    seconds: float
    marked: bool


class Track(NamedTuple):
    """Keywords with the same key frames. confidence: None if their spans were given. curve: their scores as
    the points of an SVG polyline in a box of 100 x 100; "" if their spans were given."""

    texts: list[str]
    confidence: float | None
    spans: Spans
    curve: str


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A clip in the report; of several videos, that with key frames. first, last: seconds at which it begins
    and ends. degraded: the frames of V~; empty without one. missed: whether all key frames fall between the
    frames of the strip."""

    item: Item
    first: float
    last: float
    frames: list[Frame]
    degraded: list[Frame]
    tracks: list[Track]
    missed: bool


def make_sheet(item: Item, options: Options) -> Sheet | None:
    """Examine an annotated item once more for the report. None if it cannot be used (any more)."""
    (examined,) = examine([item], options)
    clip = examined.item.clip
    if clip is None:
        return None
    number = next((keyword.video for keyword in clip.keywords if keyword.spans), 0)
    video, first, last = read_strip(clip, number)
    spans = [span for keyword in clip.keywords if keyword.video == number for span in keyword.spans]
    slots = slots_of(spans, video.times, video.frame_seconds)
    source = source_of(slots[None])
    is_replaced = source != identity_source(len(source))
    degraded = []
    if is_replaced.any():
        frames_of_slots = video.frames.reshape(-1, SLOT, *video.frames.shape[1:])
        shown = frames_of_slots[source].reshape(video.frames.shape)
        degraded = thumbnails(shown, video.times, np.repeat(is_replaced, SLOT))
    return Sheet(
        item=examined.item,
        first=first,
        last=last,
        frames=thumbnails(video.frames, video.times, np.repeat(slots, SLOT)),
        degraded=degraded,
        tracks=tracks_of(examined, clip, number, first, last),
        missed=bool(spans) and not slots.any(),
    )


def read_strip(clip: Clip, number: int) -> tuple[Video, float, float]:
    """The frames of a strip of a clip's video of a number, and the seconds at which it begins and ends."""
    path = clip.media[number]
    if is_image(path):
        return read_image(path), 0.0, 1.0
    info = probe(path)
    first, last = resolve_part(info.duration, 1 / info.fps, clip.start, clip.end)
    video = read_frames(path, Sampling(frames=STRIP_FRAMES), start=clip.start, end=clip.end)
    return video, first, last


def thumbnails(frames: np.ndarray, times: np.ndarray, marked: np.ndarray) -> list[Frame]:
    """Small images of frames u8[F,h,w,3]. times: f64[F]. marked: bool[F]."""
    strip = []
    for pixels, seconds, is_marked in zip(frames, times.tolist(), marked.tolist(), strict=True):
        image = Image.fromarray(pixels)
        image.thumbnail((THUMBNAIL_WIDTH, 2 * THUMBNAIL_WIDTH))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
        strip.append(Frame(base64.b64encode(file.getvalue()).decode(), seconds, is_marked))
    return strip


def tracks_of(examined: Examined, clip: Clip, number: int, first: float, last: float) -> list[Track]:
    """The tracks of a clip's video of a number, which begins and ends at these seconds."""
    known = confidence_of_keywords(clip)
    # Of a clip that was not looked at again, as of an image, no scores are there.
    all_scores = examined.scores or (None,) * len(clip.keywords)
    tracks: dict[tuple, Track] = {}
    for keyword, confidence, scores in zip(clip.keywords, known, all_scores, strict=True):
        if keyword.video != number:
            continue
        curve = ""
        if scores is not None and examined.video is not None:
            x = 100 * (np.append(examined.video.times, last) - first) / (last - first)
            y = 100 - 100 * np.maximum(scores, 0) / (scores.max() if scores.max() > 0 else 1)
            steps = zip(x[:-1], x[1:], y, strict=True)  # a frame stays on screen until the next
            curve = " ".join(f"{left:.1f},{at:.1f} {right:.1f},{at:.1f}" for left, right, at in steps)
        track = Track([], confidence, keyword.spans, curve)
        tracks.setdefault(track[1:], track).texts.append(keyword.text)
    return list(tracks.values())


def pieces(text: str, clip: Clip) -> list[tuple[str, bool]]:
    """A text cut at the keywords of its clip: (piece, whether it is a keyword)."""
    words = sorted({keyword.text for keyword in clip.keywords if keyword.text}, key=len, reverse=True)
    if not words:
        return [(text, False)]
    parts = re.split(f"({'|'.join(re.escape(word) for word in words)})", text)
    return [(piece, number % 2 == 1) for number, piece in enumerate(parts) if piece]


def histogram(values: Sequence[float], edges: Sequence[float], unit: str) -> list[tuple[str, int]]:
    """The labels and counts of the values below the first edge, from each edge to the next, and above."""
    counts, _ = np.histogram(values, [-np.inf, *edges, np.inf])
    labels = [f"below {edges[0]:g}{unit}"]
    labels += [f"{low:g} to {high:g}{unit}" for low, high in itertools.pairwise(edges)]
    labels += [f"{edges[-1]:g}{unit} and above"]
    return list(zip(labels, counts.tolist(), strict=True))


def render_report(
    summary: Summary, items: Sequence[Item], sheets: Sequence[Sheet], about: dict[str, str], seen: Coverage
) -> str:
    """The report as one HTML page that needs no other file. about: facts about the build, by name. seen: the
    events that a run will see."""
    clips = [item.clip for item in items if item.clip]
    keywords = [keyword for clip in clips for keyword in clip.keywords]
    lemmas = Counter(keyword.lemma for keyword in keywords)
    lengths = [end - start for keyword in keywords for start, end in keyword.spans]
    known = [value for clip in clips for value in confidences(clip)]
    histograms = {
        f"keywords: {lemmas.total()} of {len(lemmas)} kinds": lemmas.most_common(LEMMAS),
        f"{len(lengths)} runs of key frames, by length": histogram(lengths, LENGTH_EDGES, " s"),
        "confidence of key frames that were found": histogram(known, CONFIDENCE_EDGES, ""),
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(REPORT_TEMPLATE.read_text(encoding="utf-8"))
    about_page = dict(summary=summary, sheets=sheets, about=about, pieces=pieces, strip=STRIP_FRAMES)
    return template.render(about_page, histograms=histograms, seen=seen)
