"""Clips as they were annotated -> clips with the key frames of their keywords (METHOD section 1).

What cannot be used is skipped and what is used without a V~ is noted, each as ``reason: detail``.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from vpjax.building.annotations import ANSWER, Item, Rejected, letter_of, short
from vpjax.building.keywords import Extractor, load_extractor
from vpjax.building.scorers import Scorer, motion_scorer, product, runs, span_scorer, text_scorer
from vpjax.data import tfio
from vpjax.data.keyframes import KEEP
from vpjax.data.video import (
    FACTOR,
    IMAGES,
    Sampling,
    Video,
    VideoInfo,
    probe,
    probe_image,
    read_frames,
    resolve_part,
)
from vpjax.files import exists, join_path
from vpjax.types import Clip, Keyword, UserError

Span = tuple[float, float]

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")  # tried where an annotation names a video without one
SCORERS = ("span", "motion", "text", "self")
SELF_FRAMES = 64  # at most, for the scorer that asks a model again for each window of them
KEYWORD_BLIND = {"span", "motion"}  # score all keywords of a clip alike
MISSING, UNREADABLE = "video missing", "video unreadable"  # reasons that are gone when the file is mended
NO_VTILDE = "without V~"
OPTION = re.compile(r"^\(?[A-Z][).:]\s*")  # the letter before an option


@dataclasses.dataclass(frozen=True)
class Options:
    """How clips are examined. Everything here changes the data set that comes out.

    videos: the root of relative paths. spacy: name or path of a trained pipeline, "": rules. keywords: the
    user's own list, which replaces what would be found. scorers: some of SCORERS, see ``tools``. text_model,
    model: folders of a SigLIP or CLIP model (for ``text``) and of the model under training (for ``self``).
    fps, max_frames, max_pixels: the frames that are looked at. cap: the largest share of them that a keyword
    gets. tfio_python: see ``vpjax.data.tfio``; "": PyAV decodes.
    """

    videos: str
    spacy: str = ""
    keywords: tuple[str, ...] = ()
    scorers: tuple[str, ...] = ("span", "motion")
    text_model: str = ""
    model: str = ""
    fps: float = 8.0
    max_frames: int = 512
    max_pixels: int = 64 * FACTOR**2
    cap: float = 0.3
    tfio_python: str = ""


@dataclasses.dataclass(frozen=True)
class Examined:
    """What became of an item. video: the frames that were looked at; None where none were. scores: of each
    keyword f32[F]; None where its spans were given."""

    item: Item
    video: Video | None = None
    scores: tuple[np.ndarray | None, ...] = ()


class Tools(NamedTuple):
    """What finds keywords and key frames, and which frames it wants: their sampling, and the factor of which
    their sides are multiples."""

    extract: Extractor
    score: Scorer
    sampling: Sampling
    factor: int


@functools.cache
def tools(options: Options) -> Tools:
    """Made once per process. UserError where a model cannot be loaded.

    Key frames are where all scorers agree (their product), ``span`` being asked about clips with annotated
    spans only.
    """
    if options.tfio_python:
        tfio.worker(options.tfio_python)  # one that cannot serve is no fault of a video
    factor, most = FACTOR, options.max_frames
    found, annotated = [], [span_scorer] if "span" in options.scorers else []
    if "motion" in options.scorers:
        found.append(motion_scorer)
    if "text" in options.scorers:
        found.append(text_scorer(options.text_model))
    if "self" in options.scorers:
        from vpjax.building import self_scorer  # only where they are asked for: they bring the model
        from vpjax.training import checkpoint

        model, text = checkpoint.load(options.model)
        found.append(self_scorer.self_scorer(model, text))
        factor, most = model.config.vision.factor, min(most, SELF_FRAMES)
    # Annotated spans are narrowed by motion already; where nothing moves in them, they are still right.
    annotated += [scorer for scorer in found if not (annotated and scorer is motion_scorer)]

    def scorer(video: Video, clip: Clip, keyword: Keyword) -> np.ndarray:
        some = annotated if clip.spans else found
        return (some[0] if len(some) == 1 else product(*some))(video, clip, keyword)

    extractor = load_extractor(options.spacy, options.keywords)
    return Tools(extractor, scorer, Sampling(fps=options.fps, max_frames=most), factor)


def examine(items: Sequence[Item], options: Options) -> Iterator[Examined]:
    """What becomes of items with clips of one and the same file, in their order. Nothing is decoded twice in
    a row."""
    video = items[0].clip.video
    _, _, sampling, factor = tools(options)

    @functools.lru_cache(1)
    def frames(start: float | None, end: float | None) -> Video:
        how = dict(max_pixels=options.max_pixels, factor=factor, tfio_python=options.tfio_python)
        return read_frames(path, sampling, start=start, end=end, **how)

    try:
        path, info = file_of(video, options.videos) if video else ("", None)
    except Rejected as error:
        yield from (Examined(without_clip(item, error)) for item in items)
        return
    for item in items:
        try:
            yield with_key_frames(item, path, info, frames, options)
        except Rejected as error:
            yield Examined(without_clip(item, error))
        except UserError as error:
            yield Examined(without_clip(item, Rejected(f"{UNREADABLE}: {error}")))


def without_clip(item: Item, error: Rejected) -> Item:
    return dataclasses.replace(item, clip=None, skipped=str(error), notes=())


def file_of(video: str, root: str) -> tuple[str, VideoInfo]:
    """The path of a video, whose annotation may leave its suffix out, and what it holds. Rejected where there
    is none or it cannot be read."""
    path = join_path(root, video)
    suffixes = ("",) if PurePosixPath(video).suffix else ("", *SUFFIXES)
    found = next((path + suffix for suffix in suffixes if exists(path + suffix)), None)
    if found is None:
        raise Rejected(f"{MISSING}: {path}")
    try:
        return found, (probe_image if is_image(found) else probe)(found)
    except UserError as error:
        raise Rejected(f"{UNREADABLE}: {error}") from error


def is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in IMAGES


def with_key_frames(
    item: Item,
    path: str,
    info: VideoInfo | None,
    frames: Callable[[float | None, float | None], Video],
    options: Options,
) -> Examined:
    """An item with its file, its keywords and their key frames. Rejected where its times are not in the file;
    UserError where that cannot be decoded."""
    clip = dataclasses.replace(item.clip, video=path)
    if info is None or is_image(path):
        what = "text alone" if info is None else "image"
        return Examined(dataclasses.replace(item, clip=clip, notes=(*item.notes, f"{NO_VTILDE} ({what})")))
    clip, notes = inside(clip, info)
    extract, scorer, *_ = tools(options)
    keywords = clip.keywords or tuple(extract(caption_of(clip)))
    video, latest, scores, found, confidences = None, None, [], [], []
    for keyword in keywords:
        if keyword.spans:
            scores.append(None)
            found.append(keyword)
            confidences.append(None)
            continue
        video = frames(clip.start, clip.end)
        if latest is None or not KEYWORD_BLIND.issuperset(options.scorers):
            latest = scorer(video, clip, keyword)
        spans, confidence = runs(latest, video.times, cap=options.cap)
        scores.append(latest)
        # A run lasts as long as its last frame usually would, which the end of the file may cut short.
        spans = tuple((start, min(end, info.duration)) for start, end in spans)
        found.append(dataclasses.replace(keyword, spans=spans))
        confidences.append(confidence)
    if not keywords:
        notes.append(f"{NO_VTILDE} (no action in the caption): {short(caption_of(clip))}")
    elif not any(keyword.spans for keyword in found):
        notes.append(f"{NO_VTILDE} (no key frames found)")
    elif share_of(found, clip, info) > 1 - KEEP:
        notes.append(f"{NO_VTILDE} (key frames are more than half of the clip)")
    extra = clip.extra | ({"confidence": confidences} if any(score is not None for score in scores) else {})
    clip = dataclasses.replace(clip, keywords=tuple(found), extra=extra)
    return Examined(dataclasses.replace(item, clip=clip, notes=(*item.notes, *notes)), video, tuple(scores))


def caption_of(clip: Clip) -> str:
    """The text that says what happens: the answer, of a choice the option that it names, of grounding the
    question."""
    if clip.task == "grounding":
        return clip.question
    letter = letter_of(clip.answer)
    for place, option in enumerate(clip.choices):
        if letter == chr(ord("A") + place):
            return OPTION.sub("", option)
    said = ANSWER.search(clip.answer)
    return said[1] if said else clip.answer


def inside(clip: Clip, info: VideoInfo) -> tuple[Clip, list[str]]:
    """A clip with its times cut to those of its file, and what there is to say about that. Rejected where
    nothing is left of them."""
    start, end, notes = clip.start, clip.end, []
    if start is not None and start >= info.duration:
        raise Rejected(f"part outside the video: it starts at {start:g} of {info.duration:g} s")
    if end is not None and end > info.duration:
        notes.append(f"part cut at the end of the video: {end:g} of {info.duration:g} s")
        end = None
    spans = [cut(span, info, notes) for span in clip.spans]
    if spans and not any(spans):
        raise Rejected(f"spans outside the video: {clip.spans} of {info.duration:g} s")
    keywords = [
        dataclasses.replace(
            keyword, spans=tuple(filter(None, (cut(span, info, notes) for span in keyword.spans)))
        )
        for keyword in clip.keywords
    ]
    changes = dict(spans=tuple(filter(None, spans)), keywords=tuple(keywords), start=start, end=end)
    return dataclasses.replace(clip, **changes), notes


def cut(span: Span, info: VideoInfo, notes: list[str]) -> Span | None:
    """A span's part inside its file, with remarks; None: there is none."""
    start, end = max(span[0], 0.0), min(span[1], info.duration)
    if start >= info.duration or end < start:
        notes.append(f"span outside the video: {span} of {info.duration:g} s")
        return None
    if span[1] > info.duration + 1 / info.fps:
        notes.append(f"span cut at the end of the video: {span} of {info.duration:g} s")
    if start == end:
        notes.append(f"span without length, taken as a moment: {span}")
    return start, end


def share_of(keywords: Sequence[Keyword], clip: Clip, info: VideoInfo) -> float:
    """The share of a clip that is key frames of some keyword."""
    first, last = resolve_part(info.duration, 1 / info.fps, clip.start, clip.end)
    moments = np.linspace(first, last, 1000, endpoint=False)
    shown = np.zeros(len(moments), bool)
    for start, end in (span for keyword in keywords for span in keyword.spans):
        shown |= (start <= moments) & (moments < end)
    return float(shown.mean())
