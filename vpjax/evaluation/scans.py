"""The first look at a long video: its windows, and how likely each shows what a question is about."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from vpjax.data.collate import coarse, single_prompt, window_prompts
from vpjax.data.looks import NO, YES, Span, TwoLooks, relevance_of, scan_of
from vpjax.data.picking import changes_of
from vpjax.data.sampling import Sampling, looked_at
from vpjax.data.text import Text
from vpjax.data.video import Video, probe, read_frames
from vpjax.evaluation.ranking import answer_logprobs, pad_answers
from vpjax.models.vlm import VideoLM
from vpjax.types import Clip, Look, UserError

WINDOWS_AT_ONCE = 32  # that go through the model together
AHEAD = 2  # clips that are read while others are scored

# Scores the windows of a scan, f32[W], high where one shows what the clip asks for.
Localiser = Callable[[VideoLM, Text, Clip, Sequence[Video]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Scan:
    """windows: parts of a video in seconds. scores: of each, higher where it is likelier to show what is
    asked for. videos: their frames, as the first look sees them. again: the numbers of the windows that got a
    second look, the likeliest first. again_scores: of these, by what it shows."""

    windows: list[Span]
    scores: np.ndarray
    videos: list[Video]
    again: list[int]
    again_scores: np.ndarray

    @property
    def best(self) -> int:
        """The number of the window that is answered about: of several that are best, the first."""
        return self.again[int(np.argmax(self.again_scores))]


def relevance_scores(model: VideoLM, text: Text, clip: Clip, videos: Sequence[Video]) -> np.ndarray:
    """log p(yes) - log p(no) of the question whether a window shows what is asked for, in nats."""
    prompt = text.prompt(relevance_of(clip))
    answers = [text.answer(YES), text.answer(NO)]
    length = max(map(len, answers))
    scores = []
    for first in range(0, len(videos), WINDOWS_AT_ONCE):
        part = videos[first : first + WINDOWS_AT_ONCE]
        rows = min(len(videos), WINDOWS_AT_ONCE)  # the last part is padded, so that one program does for all
        prompts = window_prompts(prompt, part, model.config, rows=rows, stamps=text.stamps_of(prompt))
        tokens, valid = pad_answers([answers] * rows, len(answers), length)
        logprobs_BG = np.asarray(answer_logprobs(model, prompts, tokens, valid))
        scores.append(logprobs_BG[: len(part), 0] - logprobs_BG[: len(part), 1])
    return np.concatenate(scores)


def motion_scores(model: VideoLM, text: Text, clip: Clip, videos: Sequence[Video]) -> np.ndarray:
    """The largest change of a frame against the median picture of its window, whatever is asked for."""
    return np.array([changes_of(video.frames).max() for video in videos], np.float32)


def random_scores(model: VideoLM, text: Text, clip: Clip, videos: Sequence[Video]) -> np.ndarray:
    """Nothing but chance, always the same for a clip's id."""
    seed = list(clip.id.encode())
    return np.random.default_rng(seed).random(len(videos), np.float32)


LOCALISERS: Mapping[str, Localiser] = {
    "relevance": relevance_scores,
    "motion": motion_scores,
    "random": random_scores,
}


def likelihoods(
    model: VideoLM, text: Text, clip: Clip, videos: Sequence[Video], answers: Sequence[str]
) -> np.ndarray:
    """The sum over videos of log p f64[G] of each of some answers to a clip's question about one of them."""
    prompt = text.prompt(clip)
    ids = [text.answer(answer) for answer in answers]
    tokens, valid = pad_answers([ids], len(ids), coarse(max(map(len, ids))))
    total = np.zeros(len(answers))
    for video in videos:
        prompts = single_prompt(prompt, [video], model.config, stamps=text.stamps_of(prompt))[1]
        total += np.asarray(answer_logprobs(model, prompts, tokens, valid))[0]
    return total


def read_scan(
    path: str, looks: TwoLooks, sampling: Sampling, factor: int, max_side: int
) -> tuple[list[Span], list[Video]]:
    """The windows of a scan of a file, and the frames of each. UserError if the file cannot be used."""
    windows = scan_of(probe(path, max_side=max_side), looks, sampling, factor)
    return windows, [read_look(path, looks.first(part), sampling, factor, max_side) for part in windows]


def read_look(path: str, look: Look, sampling: Sampling, factor: int, max_side: int) -> Video:
    """The frames of a look at a file. UserError if it cannot be used."""
    own, (start, end) = looked_at(look, sampling)
    return read_frames(path, own, start=start, end=end, factor=factor, max_side=max_side)


def scans_of(
    model: VideoLM,
    text: Text,
    clips: Sequence[Clip],
    looks: TwoLooks,
    sampling: Sampling,
    *,
    localise: Localiser,
    max_side: int,
) -> Iterator[Scan | UserError]:
    """The scan of each clip's video, or why it cannot be scanned. The next videos are read meanwhile."""
    factor = model.config.vision.factor
    waiting: collections.deque[Future] = collections.deque()
    later = iter(clips)
    with ThreadPoolExecutor() as pool:
        for clip in clips:
            while len(waiting) <= AHEAD and (following := next(later, None)) is not None:
                waiting.append(pool.submit(read_scan, following.video, looks, sampling, factor, max_side))
            try:
                windows, videos = waiting.popleft().result()
            except UserError as error:
                yield error
                continue
            scores = jax.device_get(localise(model, text, clip, videos))
            again = np.argsort(-scores, kind="stable")[: looks.again].tolist()
            again_scores = scores[again]
            if len(again) > 1:
                seconds = [looks.second(windows[number]) for number in again]
                closer = [read_look(clip.video, look, sampling, factor, max_side) for look in seconds]
                again_scores = jax.device_get(localise(model, text, clip, closer))
            yield Scan(windows, scores, videos, again, again_scores)
