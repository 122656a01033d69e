"""The first look at a long video: its windows, and how likely each shows what a question is about."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from vpjax.data.collate import coarse, single_prompt, window_prompts
from vpjax.data.looks import NO, YES, Span, TwoLooks, moment_of, relevance_of, scan_of
from vpjax.data.picking import changes_of
from vpjax.data.sampling import Part, Sampling, looked_at
from vpjax.data.text import Text
from vpjax.data.video import Video, probe, read_frames
from vpjax.evaluation.ranking import answer_logprobs, pad_answers
from vpjax.models.generate import generate
from vpjax.models.vlm import VideoLM
from vpjax.scoring.answers import read_evidence, read_spans
from vpjax.types import Clip, Look, Prompts, UserError

WINDOWS_AT_ONCE = 32  # that go through the model together
LONGEST_ANSWER = 64  # tokens of what a localiser has the model say, at most
AHEAD = 2  # clips that are read while others are scored

# Scores the windows of a scan, f32[W], high where one shows what the clip asks for. NaN: it finds none.
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
    is_named: bool = True

    @property
    def best(self) -> int:
        """The number of the window that is answered about: of several that are best, the first."""
        return self.again[int(np.argmax(self.again_scores))]


def relevance_scores(model: VideoLM, text: Text, clip: Clip, videos: Sequence[Video]) -> np.ndarray:
    """log p(yes) - log p(no) of the question whether a window shows what is asked for, in nats."""
    answers = [text.answer(YES), text.answer(NO)]
    length = max(map(len, answers))
    scores = []
    for rows, prompts in asked_about(model, text, text.prompt(relevance_of(clip)), videos):
        tokens, valid = pad_answers([answers] * len(prompts.clip), len(answers), length)
        logprobs_BG = np.asarray(answer_logprobs(model, prompts, tokens, valid))[: len(videos[rows])]
        scores.append(logprobs_BG[:, 0] - logprobs_BG[:, 1])
    return np.concatenate(scores)


def asked_about(
    model: VideoLM, text: Text, prompt: np.ndarray, videos: Sequence[Video]
) -> Iterator[tuple[slice, Prompts]]:
    """A prompt about each of some windows, as batches of the same size, and which windows they are about; the
    last batch is padded, so that one program does for all."""
    for first in range(0, len(videos), WINDOWS_AT_ONCE):
        part = slice(first, first + WINDOWS_AT_ONCE)
        rows = min(len(videos), WINDOWS_AT_ONCE)
        stamps = text.stamps_of(prompt)
        yield part, window_prompts(prompt, videos[part], model.config, rows=rows, stamps=stamps)


def answers_about(
    model: VideoLM, text: Text, clip: Clip, videos: Sequence[Video], *, max_new: int
) -> list[str]:
    """The greedy answer to the clip's question about each window by itself."""
    answers: list[str] = []
    for rows, prompts in asked_about(model, text, text.prompt(clip), videos):
        said = generate(model, prompts, jax.random.key(0), max_new=max_new, eos=text.stops)
        tokens, mask = np.asarray(said.tokens)[:, 0], np.asarray(said.mask)[:, 0]
        count = len(videos[rows])
        answers += [text.decode(ids[own]) for ids, own in zip(tokens[:count], mask[:count], strict=True)]
    return answers


def glue_scores(model: VideoLM, text: Text, clip: Clip, videos: Sequence[Video]) -> np.ndarray:
    """How near the middle of a window is to that of a span that the model names when it is asked, once and
    about all windows together, when it is: minus their distance in seconds, to the nearest of several. NaN if
    it names none. For a model that was trained on such prompts."""
    whole = Video(
        np.concatenate([video.frames for video in videos]),
        np.concatenate([video.times for video in videos]),
        videos[0].frame_seconds,
    )
    (said,) = answers_about(model, text, moment_of(clip), [whole], max_new=LONGEST_ANSWER)
    spans = [span for span in read_evidence(said) or read_spans(said) if span[0] <= span[1]]
    if not spans:
        return np.full(len(videos), np.nan, np.float32)
    named = np.array(spans).mean(axis=1)
    middles = np.array([(video.times[0] + video.times[-1] + video.frame_seconds) / 2 for video in videos])
    return -np.abs(middles[:, None] - named).min(axis=1)


def motion_scores(model: VideoLM, text: Text, clip: Clip, videos: Sequence[Video]) -> np.ndarray:
    """The largest change of a frame against the median picture of its window, whatever is asked for."""
    return np.array([changes_of(video.frames).max() for video in videos], np.float32)


def random_scores(model: VideoLM, text: Text, clip: Clip, videos: Sequence[Video]) -> np.ndarray:
    """Nothing but chance, always the same for a clip's id."""
    seed = list(clip.id.encode())
    return np.random.default_rng(seed).random(len(videos), np.float32)


LOCALISERS: Mapping[str, Localiser] = {
    "relevance": relevance_scores,
    "glue": glue_scores,
    "motion": motion_scores,
    "random": random_scores,
}


def likelihoods(
    model: VideoLM, text: Text, clip: Clip, videos: Sequence[Video], answers: Sequence[str]
) -> np.ndarray:
    """log p f64[L, G] of each of some answers to a clip's question about each of L videos."""
    prompt = text.prompt(clip)
    ids = [text.answer(answer) for answer in answers]
    tokens, valid = pad_answers([ids], len(ids), coarse(max(map(len, ids))))
    rows = []
    for video in videos:
        prompts = single_prompt(prompt, [video], model.config, stamps=text.stamps_of(prompt))[1]
        rows.append(np.asarray(answer_logprobs(model, prompts, tokens, valid))[0].astype(np.float64))
    return np.stack(rows)


def read_scan(
    path: str, looks: TwoLooks, sampling: Sampling, factor: int, max_side: int, part: Part = (None, None)
) -> tuple[list[Span], list[Video]]:
    """The windows of a scan of a part of a file, and the frames of each. UserError if the file cannot be
    used."""
    info = probe(path, max_side=max_side)
    try:
        windows = scan_of(info, looks, sampling, factor, part)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
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
                part = following.start, following.end
                arguments = following.video, looks, sampling, factor, max_side, part
                waiting.append(pool.submit(read_scan, *arguments))
            try:
                windows, videos = waiting.popleft().result()
            except UserError as error:
                yield error
                continue
            scores = jax.device_get(localise(model, text, clip, videos))
            is_named = not np.isnan(scores).any()
            if not is_named:
                scores = -np.abs(np.arange(len(windows)) - (len(windows) - 1) / 2)
            again = np.argsort(-scores, kind="stable")[: looks.again].tolist()
            again_scores = scores[again]
            if len(again) > 1 and is_named:
                seconds = [looks.second(windows[number]) for number in again]
                closer = [read_look(clip.video, look, sampling, factor, max_side) for look in seconds]
                closer_scores = jax.device_get(localise(model, text, clip, closer))
                again_scores = np.where(np.isnan(closer_scores), again_scores, closer_scores)
            yield Scan(windows, scores, videos, again, again_scores, is_named)
