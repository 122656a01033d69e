"""Annotated clips -> clips with the key frames of their keywords (docs/method.md, section 1).

A clip that cannot be used is skipped, and a clip without a V~ is noted, each with a text ``reason: detail``.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vpjax.building.fields import Rejected, short
from vpjax.building.items import Item
from vpjax.building.questions import ANSWER_TAG, letter_of
from vpjax.building.scorers import Scorer, Spans, key_runs, motion_scorer, product, span_scorer, text_scorer
from vpjax.building.sentences import times_answer, times_question
from vpjax.data import tfio
from vpjax.data.images import is_image
from vpjax.data.keyframes import KEEP
from vpjax.data.sampling import FACTOR, MIN_PIXELS, Sampling, VideoInfo, resolve_part
from vpjax.data.video import VIDEOS, Video, probe, probe_image, read_frames
from vpjax.files import exists, join_path
from vpjax.types import Clip, Keyword, UserError

if TYPE_CHECKING:
    from vpjax.building.keywords import Extractor
    from vpjax.data.text import Text
    from vpjax.models.vlm import VideoLM

# Returns the frames of a file from a start to an end.
FrameReader = Callable[[str, float | None, float | None], Video]
SCORERS = ("span", "motion", "text", "self")
SELF_FRAMES = 64  # at most, for the scorer that queries a model again for each window of them
KEYWORD_BLIND = {"span", "motion"}  # score all keywords of a clip alike
VIDEO_MISSING, UNREADABLE = "video missing", "video unreadable"  # a later run examines these videos again
NO_VTILDE = "without V~"
OPTION_LETTER = re.compile(r"^\(?[A-Z][).:]\s*")


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of an examination, all of which change the data set.

    videos: the folder that relative paths start at. spacy: name or path of a trained pipeline; "" uses rules.
    keywords: the user's own list, which replaces the keywords that would be found. scorers: names in SCORERS,
    which are multiplied. text_model, model: folders of a SigLIP or CLIP model (for the scorer ``text``) and
    of the model under training (for ``self``). fps, max_frames, max_pixels: the frames that are examined.
    cap: the largest share of them that are key frames of one keyword. tfio_python: see ``vpjax.data.tfio``;
    "" decodes with PyAV. UserError for values that cannot be.
    """

    videos: str = ""
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

    def __post_init__(self) -> None:
        scorers = ",".join(self.scorers)
        if not self.scorers or not set(self.scorers) <= set(SCORERS):
            raise UserError(f"--scorer={scorers}: choose some of {', '.join(SCORERS)}")
        if "text" in self.scorers and not self.text_model:
            raise UserError(f"--scorer={scorers} needs --text_model")
        if "self" in self.scorers and not self.model:
            raise UserError(f"--scorer={scorers} needs --model")
        if not self.fps > 0:
            raise UserError("--fps must be above 0")


@dataclasses.dataclass(frozen=True)
class Examined:
    """An item after its examination. video: the frames that were examined; None if none were. scores: f32[F]
    for each keyword; None for one whose spans were given."""

    item: Item
    video: Video | None = None
    scores: tuple[np.ndarray | None, ...] = ()


class Tools(NamedTuple):
    """The functions that find keywords and key frames, and the frames that they need: their sampling, and a
    factor of their height and width."""

    extract: "Extractor"
    score: Scorer
    sampling: Sampling
    factor: int


@functools.cache
def load_model(folder: str) -> "tuple[VideoLM, Text]":
    """The model of a run or a Hugging Face folder, and its texts, once per process."""
    from vpjax.training import checkpoint  # imported here because it brings the model

    return checkpoint.load_model(folder)


@functools.cache
def load_tools(options: Options) -> Tools:
    """Load the extractor and the scorers, once per process. UserError for a model that cannot be loaded.

    Key frames are where all scorers agree (their product). ``span`` scores only clips with annotated spans.
    """
    from vpjax.building.keywords import load_extractor  # spaCy, which takes a while to import

    if options.tfio_python:
        tfio.worker(options.tfio_python)  # if it cannot serve, that is no fault of a video
    factor, max_frames = FACTOR, options.max_frames
    scorers: list[Scorer] = []
    if "motion" in options.scorers:
        scorers.append(motion_scorer)
    if "text" in options.scorers:
        scorers.append(text_scorer(options.text_model))
    if "self" in options.scorers:
        from vpjax.building.self_scorer import self_scorer  # imported here because it brings the model

        model, text = load_model(options.model)
        scorers.append(self_scorer(model, text))
        factor, max_frames = model.config.vision.factor, min(max_frames, SELF_FRAMES)
    annotated_scorers = scorers
    if "span" in options.scorers:
        # The span scorer uses motion itself; if nothing moves in the spans, they are still right.
        annotated_scorers = [span_scorer, *(scorer for scorer in scorers if scorer is not motion_scorer)]

    def score(video: Video, clip: Clip, keyword: Keyword) -> np.ndarray:
        chosen = annotated_scorers if clip.spans else scorers
        scorer = chosen[0] if len(chosen) == 1 else product(*chosen)
        return scorer(video, clip, keyword)

    sampling = Sampling(
        fps=options.fps,
        max_frames=max_frames,
        min_pixels=min(MIN_PIXELS, options.max_pixels),
        max_pixels=options.max_pixels,
    )
    return Tools(load_extractor(options.spacy, options.keywords), score, sampling, factor)


def examine(items: Sequence[Item], options: Options) -> Iterator[Examined]:
    """Examine items whose clips are all of the same files, in order. The frames of clips that show the same
    part of a video and follow one another are decoded once."""
    tools = load_tools(options)

    @functools.lru_cache(1)
    def frames(path: str, start: float | None, end: float | None) -> Video:
        return read_frames(
            path,
            tools.sampling,
            factor=tools.factor,
            start=start,
            end=end,
            tfio_python=options.tfio_python,
        )

    files: list[tuple[str, VideoInfo]] = []
    failure = None
    try:
        files = [find_video(path, options.videos) for path in items[0].media]
    except Rejected as error:
        failure = error
    for item in items:
        try:
            if failure is not None:
                raise failure
            yield with_key_frames(item, files, frames, options)
        except (Rejected, UserError) as error:
            reason = str(error) if isinstance(error, Rejected) else f"{UNREADABLE}: {error}"
            yield Examined(dataclasses.replace(item, clip=None, skipped=reason, notes=()))


def find_video(video: str, root: str) -> tuple[str, VideoInfo]:
    """The path of a video, whose annotation may leave its suffix out, and its info. Rejected if there is none
    or it cannot be read."""
    path = join_path(root, video)
    has_suffix = PurePosixPath(video).suffix.lower() in VIDEOS or is_image(video)
    suffixes = ("",) if has_suffix else ("", *VIDEOS)  # of a name such as v_360.0_510.0, too
    for suffix in suffixes:
        file = path + suffix
        try:
            is_there = exists(file)
        except OSError as error:  # of a place elsewhere
            raise Rejected(f"{UNREADABLE}: {file}: {error.strerror or error}") from error
        if not is_there:
            continue
        try:
            return file, probe_image(file) if is_image(file) else probe(file)
        except UserError as error:
            raise Rejected(f"{UNREADABLE}: {error}") from error
    raise Rejected(f"{VIDEO_MISSING}: {path}")


def with_key_frames(
    item: Item, files: Sequence[tuple[str, VideoInfo]], frames: FrameReader, options: Options
) -> Examined:
    """Add to an item its files, its keywords and their key frames. They are looked for if the clip has one
    video, beside which images may stand; the key frames of several videos must be given.

    Rejected if the clip's times are not in the file; UserError if the file cannot be decoded.
    """
    assert item.clip is not None
    clip = item.clip.with_media([path for path, _ in files])
    videos = [number for number, (path, _) in enumerate(files) if not is_image(path)]
    if not videos:
        kind = "image" if files else "text alone"
        return Examined(dataclasses.replace(item, clip=clip, notes=(*item.notes, f"{NO_VTILDE} ({kind})")))
    infos = [info for _, info in files]
    clip, notes = cut_times(clip, infos, videos)
    if item.clip.spans and item.clip.question == times_question(item.clip.spans):
        clip = dataclasses.replace(clip, question=times_question(clip.spans))  # of the file, too
    if clip.task == "grounding" and item.clip.answer == times_answer(item.clip.spans):
        clip = dataclasses.replace(clip, answer=times_answer(clip.spans))  # likewise
    extract, number = load_tools(options).extract, videos[0]
    asked = list(keywords_of(clip, extract, number))
    unknown = unknown_video(files, videos, options)
    video: Video | None = None
    if not unknown and not all(keyword.spans for _, keyword in asked):
        video = frames(clip.media[number], clip.start, clip.end)
    found = find_key_frames(asked, number, video, infos[number].duration, options)
    clip = dataclasses.replace(clip, keywords=tuple(keyword for keyword, _, _ in found))
    notes += why_no_degraded(clip, infos, unknown)
    if clip.task == "caption" and not clip.degraded_answer:
        clip = dataclasses.replace(clip, degraded_answer=true_of_degraded(clip, extract))
    if video is not None:
        confidences = [confidence for _, _, confidence in found]
        clip = dataclasses.replace(clip, extra=clip.extra | {"confidence": confidences})
    item = dataclasses.replace(item, clip=clip, notes=(*item.notes, *notes))
    return Examined(item, video, tuple(scores for _, scores, _ in found))


class Found(NamedTuple):
    """A keyword with its spans; and where these were looked for, the scores f32[F] of the frames, and the
    confidence, see ``key_runs``."""

    keyword: Keyword
    scores: np.ndarray | None = None
    confidence: float | None = None


def find_key_frames(
    asked: Sequence[tuple[Clip, Keyword]], number: int, video: Video | None, duration: float, options: Options
) -> list[Found]:
    """The keywords of a clip, see ``keywords_of``; those without spans with the ones that are found in its
    video of a number. video: its frames; None: nothing is looked for. duration: of its file, in seconds."""
    score = load_tools(options).score
    is_blind = KEYWORD_BLIND.issuperset(options.scorers)
    scores: np.ndarray | None = None
    found = []
    for clip, keyword in asked:
        if keyword.spans or video is None:
            found.append(Found(keyword))
            continue
        if scores is None or not is_blind:
            scores = score(video, clip, keyword)
        spans, confidence = key_runs(scores, video.times, cap=options.cap)
        # A run lasts as long as its last frame usually would, which the end of the file may cut short.
        spans = tuple((start, min(end, duration)) for start, end in spans)
        keyword = dataclasses.replace(keyword, spans=spans, video=number)
        found.append(Found(keyword, scores, confidence))
    return found


def why_no_degraded(clip: Clip, infos: Sequence[VideoInfo], unknown: str) -> list[str]:
    """The note that says why a clip has no V~; none if it has one. unknown: see ``unknown_video``."""
    if not clip.keywords:
        return [f"{NO_VTILDE} (no action in the caption): {short(caption_of(clip))}"]
    videos = {keyword.video for keyword in clip.keywords if keyword.spans}
    if not videos:
        return [f"{NO_VTILDE} ({unknown or 'no key frames found'})"]
    if all(key_share(clip, infos, number) > 1 - KEEP for number in videos):
        return [f"{NO_VTILDE} (key frames are more than half of the clip)"]
    return []


def unknown_video(files: Sequence[tuple[str, VideoInfo]], videos: Sequence[int], options: Options) -> str:
    """Why the key frames of a clip are not looked for, or "". videos: the numbers of the files that are."""
    if len(videos) > 1:
        return "several videos, of which one must be given"
    if len(files) > 1 and "self" in options.scorers:
        return "--scorer=self reads no images beside a video"
    return ""


def keywords_of(
    clip: Clip, extract: Callable[[str], list[Keyword]], video: int
) -> Iterator[tuple[Clip, Keyword]]:
    """The keywords of a clip or, if it has none, those of its captions after its video of a number, each with
    the clip until the turn to which it belongs. What an earlier turn names is no keyword of a later one."""
    for keyword in clip.keywords:
        yield clip.until(clip.turn_naming(keyword.text)), keyword
    if clip.keywords:
        return
    named: set[str] = set()
    for number in range(clip.turn_showing(video), len(clip.dialogue)):
        asked = clip.until(number)
        keywords = [keyword for keyword in extract(caption_of(asked)) if keyword.lemma not in named]
        named.update(keyword.lemma for keyword in keywords)
        for keyword in keywords:
            yield asked, keyword


def caption_of(clip: Clip) -> str:
    """The text that describes the event: for grounding the question, for a choice the option that the answer
    names, else the answer."""
    if clip.task == "grounding":
        return clip.question
    letter = letter_of(clip.answer)
    place = ord(letter) - ord("A") if letter else len(clip.choices)
    if place < len(clip.choices):
        return OPTION_LETTER.sub("", clip.choices[place])
    answer = ANSWER_TAG.search(clip.answer)
    return answer[1] if answer else clip.answer


def true_of_degraded(clip: Clip, extract: "Extractor") -> str:
    """The answer about V~ to a clip's question: what of its caption tells no event. Reasoning, which leads to
    all of the caption, is left out, and tags stand around the rest as around the caption."""
    caption = caption_of(clip)
    rest = extract.uneventful(caption, clip.keywords)
    is_tagged = rest and ANSWER_TAG.search(clip.answer)
    return f"<answer>{rest}</answer>" if is_tagged else rest


def cut_times(clip: Clip, infos: Sequence[VideoInfo], videos: Sequence[int]) -> tuple[Clip, list[str]]:
    """Cut the times of a clip to those of its files. Of several videos it is unknown to which its own spans
    belong, and they stay. videos: the numbers of the files that are.

    Returns the clip, and notes about what was cut. Rejected if nothing is left of its part or of its spans.
    """
    info, end, notes = infos[videos[0]], clip.end, list[str]()
    for of_file in (infos[number] for number in videos):
        if of_file.lost:
            notes.append(f"file lacks frames: {of_file.lost} beside {of_file.frames}, by its own times")
    if clip.start is not None and clip.start >= info.duration:
        raise Rejected(f"part outside the video: it starts at {clip.start:g} of {info.duration:g} s")
    if end is not None and end > info.duration:
        notes.append(f"part cut at the end of the video: {end:g} of {info.duration:g} s")
        end = None
    spans = cut_spans(clip.spans, info, notes) if len(videos) == 1 else clip.spans
    if clip.spans and not spans:
        raise Rejected(f"spans outside the video: {clip.spans} of {info.duration:g} s")
    keywords = tuple(
        dataclasses.replace(keyword, spans=cut_spans(keyword.spans, infos[keyword.video], notes))
        for keyword in clip.keywords
    )
    return dataclasses.replace(clip, end=end, spans=spans, keywords=keywords), notes


def cut_spans(spans: Spans, info: VideoInfo, notes: list[str]) -> Spans:
    """The parts of spans that are inside their file. Adds remarks to ``notes``."""
    inside: list[tuple[float, float]] = []
    for span in spans:
        start, end = max(span[0], 0.0), min(span[1], info.duration)
        if start >= info.duration or end < start:
            notes.append(f"span outside the video: {span} of {info.duration:g} s")
            continue
        if span[0] < 0:
            notes.append(f"span cut at the start of the video: {span}")
        if span[1] > info.duration + 1 / info.fps:
            notes.append(f"span cut at the end of the video: {span} of {info.duration:g} s")
        if start == end:
            notes.append(f"span without length, taken as a moment: {span}")
        inside.append((start, end))
    return tuple(inside)


def key_share(clip: Clip, infos: Sequence[VideoInfo], video: int) -> float:
    """The share of a clip's video of a number that is key frames of any keyword."""
    info = infos[video]
    first, last = resolve_part(info.duration, 1 / info.fps, clip.start, clip.end)
    moments = np.linspace(first, last, 1000, endpoint=False)
    is_key = np.zeros(len(moments), bool)
    for keyword in clip.keywords:
        if keyword.video == video:
            for start, end in keyword.spans:
                is_key |= (start <= moments) & (moments < end)
    return float(is_key.mean())
