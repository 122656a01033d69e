"""Two looks at a long video: windows of a scan in few pixels, then one of them in more (docs/long.md).

A scan is a row of windows that do not see one another, each a short clip of its own, so a model needs no
longer rows for a longer video. Of each window it is asked whether it shows what the question is about; the
likeliest one is looked at again. Both looks together cost a fixed number of visual tokens.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from vpjax.data.cache import cache_folder
from vpjax.data.keyframes import EDGE, lasting
from vpjax.data.probing import probe_sources
from vpjax.data.sampling import SLOT, Part, Sampling, VideoInfo, fit, looked_at, resolve_part
from vpjax.data.text import Text
from vpjax.types import Clip, Look, UserError

# What a window of a scan is asked, and the two answers that are compared.
RELEVANCE = "{question} Is it in the video: yes or no?"
YES, NO = "yes", "no"
# What is asked of a whole scan in one prompt, to be answered as in <glue>[(3.0, 5.5)]</glue>.
MOMENT = "{question} When is it in the video?"
# The prompts of a window in GRPO, in this order: whether the first look shows what is asked for, and the
# question of the long clip about either look.
KINDS = ("relevance", "first", "second")
ROUNDING = EDGE / 4  # seconds, of times that are written with a few decimals
DRAWS = 16  # of a window's length, most of which may be too long for a short clip
Span = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class TwoLooks:
    """How a video is looked at twice.

    tokens: visual ones, of the scan and all second looks together. again: the likeliest windows of the scan
    that get a second look; the answer is about the one that is likeliest then. frames: of a window, in both
    looks. scan_pixels, pixels: of a frame in the scan and in a second look, at most. pick: of each equal part
    of a window, the frame that is read, as ``data.pick``.
    """

    tokens: int = 512
    again: int = 1
    frames: int = 16
    scan_pixels: int = 28 * 28
    pixels: int = 56 * 56
    pick: str = "change"

    @classmethod
    def of(cls, looks_config: ConfigDict) -> "TwoLooks":
        """From the fields ``looks`` of configs/base.py."""
        return cls(**{field.name: looks_config[field.name] for field in dataclasses.fields(cls)})

    def first(self, part: Span) -> Look:
        """The first look at a window."""
        return Look(*part, frames=self.frames, pixels=self.scan_pixels, pick=self.pick)

    def second(self, part: Span) -> Look:
        """The second look at a window."""
        return Look(*part, frames=self.frames, pixels=self.pixels, pick=self.pick)


def scan_of(
    info: VideoInfo, looks: TwoLooks, sampling: Sampling, factor: int, part: Part = (None, None)
) -> list[Span]:
    """The windows of a scan of a part of a file, as equal parts of it in seconds: as many as the tokens allow
    that the second looks leave, but none that has fewer frames than are read of it. UserError if the tokens
    are too few for a window in each look; ValueError for a file or a part that ``fit`` refuses."""
    start, end = resolve_part(info.duration, info.frame_seconds, *part)
    first, second = (
        _tokens(looked_at(look, sampling).sampling, info, factor)
        for look in (looks.first((0, info.duration)), looks.second((0, info.duration)))
    )
    affordable = (looks.tokens - looks.again * second) // first
    if affordable < 1:
        raise UserError(
            f"two looks within {looks.tokens} visual tokens: {looks.again} second looks take {second} each, "
            f"a window of the first {first}: allow more tokens, or look at fewer frames or pixels"
        )
    frames = round((end - start) / info.frame_seconds)
    count = max(min(affordable, frames // looks.frames), 1)
    edges = np.linspace(start, end, count + 1)
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _tokens(sampling: Sampling, info: VideoInfo, factor: int) -> int:
    """The visual tokens of a whole file."""
    frames, height, width = fit(sampling, info, factor=factor)
    return frames // SLOT * (height * width // factor**2)


def training_windows(
    clips: Sequence[Clip], looks_config: ConfigDict, data_config: ConfigDict, seed: int
) -> tuple[list[Clip], list[str]]:
    """The clips of both looks at windows of long clips, and the ids of the clips that have none: no window
    that was drawn has room for their event.

    Of each of ``looks.windows`` windows that show the event there are three: either look with the question of
    the long clip, and the first with the question whether it shows what is asked for. Of each of
    ``looks.wrong`` windows that show none, on purpose, there is the last. ``looks.closer`` windows of either
    kind are asked that in the second look too. As many wrong ones are asked the question of the long clip, in
    either look: what is true of them is its ``degraded_answer``, if it has one. A clip that is none of
    ``has_windows`` stays as it is.
    """
    looks = TwoLooks.of(looks_config)
    paths = sorted({clip.video for clip in clips if has_windows(clip)})
    probed = probe_sources(paths, cache_folder(data_config), data_config.max_side)
    found, left_out = list[Clip](), list[str]()
    for number, clip in enumerate(clips):
        info = probed[clip.video].info if has_windows(clip) else None
        if info is None or not info.duration:
            found.append(clip)
            continue
        rng = np.random.default_rng([seed, number])
        right = [window_of(clip, info, looks_config.seconds, True, rng) for _ in range(looks_config.windows)]
        wrong = [window_of(clip, info, looks_config.seconds, False, rng) for _ in range(looks_config.wrong)]
        if not any(right):
            left_out.append(clip.id)
            continue
        for window, part in enumerate(right):
            if part is not None:
                is_closer = window < looks_config.closer
                found += right_window(clip, looks, part, f"{clip.id}/{window}", closer=is_closer)
        for window, part in enumerate(wrong):
            if part is not None:
                is_closer = window < looks_config.closer
                found += wrong_window(clip, looks, part, f"{clip.id}/wrong{window}", closer=is_closer)
    return found, left_out


def has_windows(clip: Clip) -> bool:
    """Whether a clip is about one video, or a part of it, with an event of known time (spans), and does not
    say itself how it is looked at."""
    return bool(clip.spans) and not clip.others and not clip.looks


def prompts_a_clip(looks_config: ConfigDict) -> int:
    """The number of prompts that GRPO has of a long clip."""
    return len(KINDS) * (looks_config.windows + looks_config.wrong)


def rollout_windows(
    clips: Sequence[Clip], looks_config: ConfigDict, data_config: ConfigDict, seed: int
) -> tuple[list[Clip], list[str]]:
    """The prompts of GRPO about windows of long clips, ``prompts_a_clip`` of each, and the ids of the clips
    that have none: which are none of ``has_windows``, or have no room for a window that shows the event and
    one that does not.

    The windows that show the event come first, ``looks.windows`` of them, and then ``looks.wrong`` others.
    Each has the prompts of KINDS beside each other. The keywords of a window that does not show the event
    have no times, because nothing of them can be seen there.
    """
    looks = TwoLooks.of(looks_config)
    timed = [clip for clip in clips if has_windows(clip)]
    paths = sorted({clip.video for clip in timed})
    probed = probe_sources(paths, cache_folder(data_config), data_config.max_side)
    is_right = [True] * looks_config.windows + [False] * looks_config.wrong
    found: list[Clip] = []
    left_out = {clip.id for clip in clips} - {clip.id for clip in timed}
    for number, clip in enumerate(timed):
        info, rng = probed[clip.video].info, np.random.default_rng([seed, number])
        parts: list[Span] = []
        if info is not None and info.duration:
            parts = drawn_windows(clip, info, looks_config.seconds, is_right, rng)
        if len(parts) < len(is_right):
            left_out.add(clip.id)
            continue
        timeless = tuple(dataclasses.replace(keyword, spans=()) for keyword in clip.keywords)
        for window, (part, right) in enumerate(zip(parts, is_right, strict=True)):
            shown = clip if right else dataclasses.replace(clip, keywords=timeless)
            asked = dataclasses.replace(relevance_of(clip), answer=YES if right else NO)
            id = f"{clip.id}/{window}"
            found += [
                seen_by(looks.first(part), asked, f"{id}/relevance"),
                seen_by(looks.first(part), shown, f"{id}/first"),
                seen_by(looks.second(part), shown, f"{id}/second"),
            ]
    return found, sorted(left_out)


def seen_by(look: Look, clip: Clip, id: str) -> Clip:
    """A clip as one look sees it."""
    return dataclasses.replace(clip, id=id, start=None, end=None, looks=(look,))


def drawn_windows(
    clip: Clip, info: VideoInfo, seconds: Span, is_right: Sequence[bool], rng: np.random.Generator
) -> list[Span]:
    """A ``window_of`` each kind of ``is_right``, but for those that are not found in DRAWS draws."""
    found = []
    for right in is_right:
        for _ in range(DRAWS):
            part = window_of(clip, info, seconds, right, rng)
            if part is not None:
                found.append(part)
                break
    return found


def window_of(
    clip: Clip, info: VideoInfo, seconds: Span, is_right: bool, rng: np.random.Generator
) -> Span | None:
    """A window of a clip's part of its file that shows one of its spans as a whole, or is off all of them by
    a frame at least; None if there is no such window. Its length is drawn log-uniformly from ``seconds``, and
    where it stands uniformly. It begins and ends with a frame."""
    frame = info.frame_seconds
    length = math.exp(rng.uniform(*np.log(seconds)))
    low = math.ceil((clip.start or 0.0) / frame - 1e-3)
    high = info.frames if clip.end is None else min(math.floor(clip.end / frame + 1e-3), info.frames)
    count = min(max(round(length / frame), 1), max(high - low, 1))
    events = [event_frames(span, info) for span in clip.spans]
    first, last = events[int(rng.integers(len(events)))]
    firsts = np.arange(low, high - count + 1)
    if is_right:
        fits = (first < last) & (firsts <= first) & (last <= firsts + count)
    else:
        fits = np.ones(len(firsts), bool)
        for first, last in events:
            fits &= (last <= firsts) | (firsts + count <= first)
    places = firsts[fits]
    if not len(places):
        return None
    first = int(places[rng.integers(len(places))])
    return first * frame, (first + count) * frame


def event_frames(span: Span, info: VideoInfo) -> tuple[int, int]:
    """The first frame of a file that shows a span, and the one after the last: one at least, for a single
    moment is on screen too. An annotation may begin a little before its file, and end after it."""
    start, end = span[0] / info.frame_seconds, span[1] / info.frame_seconds
    first = math.floor(start + 1e-3)
    last = max(math.ceil(end - 1e-3), first + 1)
    return max(first, 0), min(last, info.frames)


def seconds_seen(part: Span, spans: Sequence[Span]) -> float:
    """How many seconds of some spans a window shows. Where they begin as it ends, rounding makes them overlap
    by less than ROUNDING, of which nothing is seen."""
    seen = [min(part[1], end) - max(part[0], start) for start, end in lasting(spans)]
    return sum(seconds for seconds in seen if seconds > ROUNDING)


def right_window(clip: Clip, looks: TwoLooks, part: Span, id: str, *, closer: bool) -> list[Clip]:
    """The clips of a window that shows the event, see ``training_windows``."""
    first, second = looks.first(part), looks.second(part)
    asked = dataclasses.replace(relevance_of(clip), answer=YES)
    found = [
        seen_by(second, clip, f"{id}/second"),
        seen_by(first, clip, f"{id}/first"),
        seen_by(first, asked, f"{id}/first/relevance"),
    ]
    if closer:
        found.append(seen_by(second, asked, f"{id}/second/relevance"))
    return found


def wrong_window(clip: Clip, looks: TwoLooks, part: Span, id: str, *, closer: bool) -> list[Clip]:
    """The clips of a window that shows no event, see ``training_windows``."""
    first, second = looks.first(part), looks.second(part)
    asked = dataclasses.replace(relevance_of(clip), answer=NO)
    found = [seen_by(first, asked, f"{id}/first/relevance")]
    if closer:
        found.append(seen_by(second, asked, f"{id}/second/relevance"))
    if closer and clip.degraded_answer:
        truth = clip.degraded_answer
        quiet = dataclasses.replace(clip, answer=truth, keywords=(), spans=(), degraded_answer="")
        found += [seen_by(second, quiet, f"{id}/second"), seen_by(first, quiet, f"{id}/first")]
    return found


def yes_no_of(text: Text) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of the two answers to ``relevance_of``."""
    yes, no = (tuple(text.answer(answer).tolist()) for answer in (YES, NO))
    return yes, no


def relevance_of(clip: Clip) -> Clip:
    """The question whether a part of a clip's video shows what the clip asks for."""
    return Clip(clip.id, clip.video, RELEVANCE.format(question=clip.question), answer="")


def moment_of(clip: Clip) -> Clip:
    """The question when a clip's video shows what the clip asks for."""
    return Clip(clip.id, clip.video, MOMENT.format(question=clip.question), answer="")
