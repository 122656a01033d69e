"""What a build did: its counts, and a page of them, of histograms and of sample clips as strips of frames."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from vpjax.building.annotations import Item
from vpjax.building.examine import NO_VTILDE, Examined, Options, examine, is_image
from vpjax.data.keyframes import identity, slots_of, source_of
from vpjax.data.video import Sampling, Video, probe, read_frames, read_image, resolve_part
from vpjax.types import Clip

Span = tuple[float, float]

TEMPLATE = Path(__file__).with_suffix(".html")
STRIP = 16  # frames of a strip: as many as training looks at by default
WIDTH = 120  # of a frame in a strip, in pixels
EXAMPLES = 3  # places that are named for each reason
LEMMAS = 30  # bars of the keywords' histogram
SECONDS = (0.25, 0.5, 1, 2, 4, 8)  # edges of the histogram of how long key frames last


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why some questions were skipped, or what is to be said about them. examples: "place: detail"."""

    text: str
    count: int
    examples: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """rows of the annotation file hold so many questions; each is a clip or skipped. degraded: clips with a
    V~."""

    rows: int
    questions: int
    clips: int
    degraded: int
    skipped: tuple[Reason, ...]
    noted: tuple[Reason, ...]


def summarize(items: Sequence[Item], rows: int) -> Summary:
    """Count what became of the questions. AssertionError if one is neither a clip nor skipped, or both."""
    assert all((item.clip is None) == bool(item.skipped) for item in items)
    skipped = reasons((item.place, item.skipped) for item in items if item.skipped)
    clips = sum(item.clip is not None for item in items)
    assert clips + sum(reason.count for reason in skipped) == len(items) >= rows
    return Summary(
        rows=rows,
        questions=len(items),
        clips=clips,
        degraded=sum(has_degraded(item) for item in items),
        skipped=skipped,
        noted=reasons((item.place, note) for item in items for note in item.notes),
    )


def has_degraded(item: Item) -> bool:
    return item.clip is not None and not any(note.startswith(NO_VTILDE) for note in item.notes)


def reasons(said: Iterable[tuple[str, str]]) -> tuple[Reason, ...]:
    """(place, "reason: detail") pairs by reason, the most frequent first."""
    examples: dict[str, list[str]] = {}
    for place, text in said:
        reason, _, detail = text.partition(": ")
        examples.setdefault(reason, []).append(f"{place}: {detail}" if detail else place)
    found = [Reason(text, len(some), tuple(some[:EXAMPLES])) for text, some in examples.items()]
    return tuple(sorted(found, key=lambda reason: -reason.count))


def samples(items: Sequence[Item], count: int) -> list[int]:
    """The places of clips to be looked at: most at random, some of those with the least confidence and some
    without a V~."""
    rng = np.random.default_rng(0)
    with_degraded = [n for n, item in enumerate(items) if has_degraded(item)]
    without = [n for n, item in enumerate(items) if item.clip and item.clip.video and not has_degraded(item)]
    unsure = sorted(with_degraded, key=lambda n: min(confidences(items[n].clip), default=1.0))
    some = count // 6
    chosen = dict.fromkeys(unsure[:some])
    chosen |= dict.fromkeys(rng.permutation(without)[:some].tolist())
    chosen |= dict.fromkeys(rng.permutation(with_degraded).tolist()[: max(0, count - len(chosen))])
    return sorted(itertools.islice(chosen, count))


def confidences(clip: Clip) -> list[float]:
    """Of the keywords whose key frames were looked for and found."""
    known = zip(clip.keywords, clip.extra.get("confidence", ()), strict=False)
    return [value for keyword, value in known if keyword.spans and value is not None]


@dataclasses.dataclass(frozen=True)
class Frame:
    """image: JPEG, base64. seconds: of the file. marked: a key frame or, in V~, one in place of it."""

    image: str
    seconds: float
    marked: bool


@dataclasses.dataclass(frozen=True)
class Track:
    """Keywords that are seen at the same times. runs: (left, width) of their key frames, in percent of the
    strip. curve: their score as an SVG polyline of 100 x 100; "" where their spans were given."""

    texts: tuple[str, ...]
    confidence: float | None
    spans: tuple[Span, ...]
    runs: tuple[Span, ...]
    curve: str


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A clip as the report shows it. question, answer: pieces and whether each is a keyword. missed: whether
    the key frames fall between the frames of the strip, which then has no V~."""

    item: Item
    question: tuple[tuple[str, bool], ...]
    answer: tuple[tuple[str, bool], ...]
    frames: tuple[Frame, ...]
    degraded: tuple[Frame, ...]
    tracks: tuple[Track, ...]
    annotated: tuple[Span, ...]
    missed: bool


def sheet_of(item: Item, options: Options) -> Sheet | None:
    """Look at an item as it was annotated once more; None where it cannot be used (any more)."""
    (examined,) = examine([item], options)
    clip = examined.item.clip
    if clip is None:
        return None
    video, first, last = strip_of(clip)
    spans = [span for keyword in clip.keywords for span in keyword.spans]
    slots = slots_of(spans, video.times, video.frame_seconds)
    source = source_of(slots[None], len(slots))
    changed = np.repeat(source != identity(len(source)), 2)
    shown = 2 * np.repeat(source, 2) + np.arange(len(video.times)) % 2

    def along(spans: Iterable[tuple[float, float]]) -> tuple[Span, ...]:
        share = 100 / (last - first)
        return tuple(((start - first) * share, max(end - start, 0.0) * share) for start, end in spans)

    return Sheet(
        item=examined.item,
        question=pieces(clip.question, clip),
        answer=pieces(clip.answer, clip),
        frames=frames_of(video.frames, video.times, np.repeat(slots, 2)),
        degraded=frames_of(video.frames[shown], video.times, changed) if changed.any() else (),
        tracks=tracks_of(examined, along, first, last),
        annotated=along(clip.spans),
        missed=bool(spans) and not slots.any(),
    )


def strip_of(clip: Clip) -> tuple[Video, float, float]:
    """The frames of a strip and the seconds at which the clip begins and ends."""
    if is_image(clip.video):
        return read_image(clip.video), 0.0, 1.0
    info = probe(clip.video)
    first, last = resolve_part(info.duration, 1 / info.fps, clip.start, clip.end)
    video = read_frames(clip.video, Sampling(frames=STRIP), start=clip.start, end=clip.end)
    return video, first, last


def frames_of(frames: np.ndarray, times: np.ndarray, marked: np.ndarray) -> tuple[Frame, ...]:
    """frames u8[F,h,w,3], times f64[F], marked bool[F]: as small images."""
    all_of_each = zip(frames, times.tolist(), marked.tolist(), strict=True)
    return tuple(Frame(jpeg(frame), seconds, mark) for frame, seconds, mark in all_of_each)


def jpeg(frame: np.ndarray) -> str:
    image = Image.fromarray(frame)
    image.thumbnail((WIDTH, 2 * WIDTH))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()


def pieces(text: str, clip: Clip) -> tuple[tuple[str, bool], ...]:
    """A text cut at the keywords of its clip: (piece, whether it is one)."""
    words = sorted({keyword.text for keyword in clip.keywords if keyword.text}, key=len, reverse=True)
    if not words:
        return ((text, False),)
    cut = re.split(f"({'|'.join(map(re.escape, words))})", text)
    return tuple((piece, bool(number % 2)) for number, piece in enumerate(cut) if piece)


def tracks_of(
    examined: Examined, along: Callable[[Iterable[Span]], tuple[Span, ...]], first: float, last: float
) -> tuple[Track, ...]:
    clip, video = examined.item.clip, examined.video
    known = clip.extra.get("confidence") or [None] * len(clip.keywords)
    texts: dict[Track, list[str]] = {}
    for keyword, confidence, scores in zip(clip.keywords, known, examined.scores, strict=True):
        curve = ""
        if scores is not None:
            x = 100 * (np.append(video.times, last) - first) / (last - first)
            y = 100 - 100 * np.maximum(scores, 0) / (scores.max() if scores.max() > 0 else 1)
            steps = zip(x[:-1], x[1:], y, strict=True)  # a frame stays on screen until the next
            curve = " ".join(f"{left:.1f},{at:.1f} {right:.1f},{at:.1f}" for left, right, at in steps)
        track = Track((), confidence, keyword.spans, along(keyword.spans), curve)
        texts.setdefault(track, []).append(keyword.text)
    return tuple(dataclasses.replace(track, texts=tuple(some)) for track, some in texts.items())


def bars(counts: Iterable[tuple[str, int]]) -> list[tuple[str, int, float]]:
    """(label, count, percent of the highest)."""
    counts = list(counts)
    highest = max((count for _, count in counts), default=1) or 1
    return [(label, count, 100 * count / highest) for label, count in counts]


def histogram(values: Sequence[float], edges: Sequence[float], unit: str) -> list[tuple[str, int, float]]:
    """Bars of the values below each edge, at or above the one before, and of those above all."""
    place = Counter(np.searchsorted(edges, values, "right").tolist())
    labels = [f"below {edges[0]:g}{unit}"]
    labels += [f"{low:g} to {high:g}{unit}" for low, high in itertools.pairwise(edges)]
    labels += [f"{edges[-1]:g}{unit} and above"]
    return bars((label, place[number]) for number, label in enumerate(labels))


def page(summary: Summary, items: Sequence[Item], sheets: Sequence[Sheet], about: dict[str, str]) -> str:
    """The report as one HTML page that needs no other file. about: what it says of the build, by name."""
    clips = [item.clip for item in items if item.clip]
    keywords = [keyword for clip in clips for keyword in clip.keywords]
    lemmas = Counter(keyword.lemma for keyword in keywords)
    lengths = [end - start for keyword in keywords for start, end in keyword.spans]
    histograms = {
        f"keywords: {lemmas.total()} of {len(lemmas)} kinds": bars(lemmas.most_common(LEMMAS)),
        f"{len(lengths)} runs of key frames, by length": histogram(lengths, SECONDS, " s"),
        "confidence of key frames that were found": histogram(
            [value for clip in clips for value in confidences(clip)], [n / 10 for n in range(1, 10)], ""
        ),
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text())
    return template.render(summary=summary, histograms=histograms, sheets=sheets, about=about, strip=STRIP)
