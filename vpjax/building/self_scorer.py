"""Which frames a model needs to predict a keyword or to choose between answers: it is queried again with each
few of them replaced.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.building.scorers import Scorer, Spans, key_runs
from vpjax.data.collate import coarse, single_prompt
from vpjax.data.keyframes import source_of
from vpjax.data.rows import seen_through
from vpjax.data.text import Text
from vpjax.data.video import Video
from vpjax.models.vision import Features
from vpjax.models.vlm import VideoLM
from vpjax.training.losses import token_logprobs
from vpjax.types import Array, Clip, Keyword, Prompts, Units

LONGEST_WINDOW = 3  # slots (chosen here: the paper gives no value)
VIDEOS_AT_ONCE = 16  # that go through the decoder together, at most
CHUNK = 128  # answer tokens whose logits are held at once
Window = tuple[int, int]  # first slot, and slot past its end


def self_scorer(model: VideoLM, text: Text) -> Scorer:
    """Score frames by the drop of log p(keyword | V), in nats, when they are replaced by their neighbours.

    Every window of 1 to LONGEST_WINDOW slots, at most half of the clip, is replaced once, as V~ replaces its
    key slots. A slot's score is the largest additional drop when it joins a window: if two slots show the
    event, neither is missed while the other is visible, and slots beside them add nothing. Both frames of a
    slot have its score. The log-probability is that of the keyword's tokens in the answer, given the words
    before them, or of the whole answer if it does not contain the keyword.
    """

    def score(video: Video, clip: Clip, keyword: Keyword) -> np.ndarray:
        answer = text.answer(clip.answer)
        places = text.keyword(keyword.text, clip.answer)[0] or range(len(answer))
        drops = window_drops(model, text, video, clip, [answer], [places])
        return frame_scores(video, {window: float(drop_G[0]) for window, drop_G in drops.items()})

    return score


def self_finder(model: VideoLM, text: Text) -> Callable[[Video, Clip, Sequence[str]], Spans]:
    """What finds the frames on which the choice between given answers to a clip's question depends.

    Windows are replaced as in ``self_scorer``. The score of one is the standard deviation, over the answers,
    of the drops of log p(answer | V): what all answers lose alike does not tell them apart. No answer is
    preferred, so the frames that are found do not favour the one that the model believes.
    """

    def find(video: Video, clip: Clip, answers: Sequence[str]) -> Spans:
        ids = [text.answer(answer) for answer in answers]
        drops = window_drops(model, text, video, clip, ids, [range(len(answer)) for answer in ids])
        spreads = {window: float(drop_G.std()) for window, drop_G in drops.items()}
        return key_runs(frame_scores(video, spreads), video.times)[0]

    return find


def window_drops(
    model: VideoLM,
    text: Text,
    video: Video,
    clip: Clip,
    answers: Sequence[np.ndarray],
    places: Sequence[Sequence[int]],
) -> dict[Window, np.ndarray]:
    """The drop f32[G] of the log-probability of each answer's tokens i32[c] at its ``places``, after the
    clip's prompt, when a window of the video is replaced, by window; {} for a video of one slot, which has no
    neighbours."""
    prompt = text.prompt(clip)
    row, prompts = single_prompt(prompt, [video], model.config, stamps=text.stamps_of(prompt))
    slots = row.slots.shape[1]
    windows = slot_windows(slots)
    if not windows:
        return {}
    shows_P, slot_P = np.asarray(prompts.text.shows)[0], np.asarray(prompts.text.slot)[0]
    videos = [shows_P]
    for first, end in windows:
        mask_S = (first <= np.arange(slots)) & (np.arange(slots) < end)
        videos.append(seen_through(shows_P, slot_P, source_of(mask_S[None])))
    answers_GC, scored_GC = padded_answers(answers, places)
    whole_G, *degraded = answers_logprobs(model, prompts, np.stack(videos), answers_GC, scored_GC)
    return dict(zip(windows, whole_G - np.array(degraded), strict=True))


def padded_answers(
    answers: Sequence[np.ndarray], places: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Answers i32[c] as one array i32[G, C], and bool[G, C]: the tokens at the ``places`` of each."""
    answers_GC = np.zeros((len(answers), coarse(max(map(len, answers)))), np.int32)
    scored_GC = np.zeros(answers_GC.shape, bool)
    for number, (answer, scored) in enumerate(zip(answers, places, strict=True)):
        answers_GC[number, : len(answer)] = answer
        scored_GC[number, list(scored)] = True
    return answers_GC, scored_GC


def frame_scores(video: Video, drops: Mapping[Window, float]) -> np.ndarray:
    """The scores f32[F] of a video's frames from the drops of its windows; 0 without windows."""
    if not drops:
        return np.zeros(len(video.times), np.float32)
    slots = max(end for _, end in drops)
    scores = np.full(slots, -np.inf, np.float32)
    for (first, end), drop in drops.items():
        scores[first] = max(scores[first], drop - drops.get((first + 1, end), 0.0))
        scores[end - 1] = max(scores[end - 1], drop - drops.get((first, end - 1), 0.0))
    return np.repeat(scores, len(video.times) // slots)


def answers_logprobs(
    model: VideoLM, prompts: Prompts, shows_VP: np.ndarray, answers_GC: np.ndarray, scored_GC: np.ndarray
) -> np.ndarray:
    """The log-probability f32[V, G] of the tokens ``scored`` of answers to a batch of one prompt, for each of
    V videos, given as the units that its visual tokens show. The units are encoded once."""
    features, prompts = encode(model, prompts.video), prompts.without_video()
    # As few as a short clip needs, and few different numbers.
    at_once = min(VIDEOS_AT_ONCE, 1 << (len(shows_VP) - 1).bit_length())
    found = []
    for first in range(0, len(shows_VP), at_once):
        part_VP = shows_VP[first : first + at_once]
        padded_VP = np.pad(part_VP, ((0, at_once - len(part_VP)), (0, 0)), mode="edge")
        logprobs_VG = answer_logprobs(model, prompts, features, padded_VP, answers_GC, scored_GC)
        found.append(np.asarray(logprobs_VG)[: len(part_VP)])
    return np.concatenate(found)


@jax.jit
def encode(model: VideoLM, units: Units) -> Features | None:
    return model.encode(units)


@jax.jit
def answer_logprobs(
    model: VideoLM,
    prompts: Prompts,
    features: Features | None,
    shows_VP: Array,
    answers_GC: Array,
    scored_GC: Array,
) -> jax.Array:
    """``answers_logprobs`` of a few videos, in one program."""
    answers_1GC = jnp.asarray(answers_GC)[None]

    def logprobs_of(shows_P: jax.Array) -> jax.Array:
        h_1GCD = model.predicting(features, prompts.showing(shows_P[None]), answers_1GC)
        logprobs = token_logprobs(h_1GCD, model.unembed, answers_1GC, chunk=CHUNK)
        return jnp.where(scored_GC, logprobs[0], 0.0).sum(-1)

    return jax.vmap(logprobs_of)(jnp.asarray(shows_VP))


def slot_windows(slots: int) -> list[Window]:
    """All windows: every run of up to LONGEST_WINDOW slots that leaves at least half of the clip."""
    windows = []
    for length in range(1, min(LONGEST_WINDOW, slots // 2) + 1):
        for first in range(slots - length + 1):
            windows.append((first, first + length))
    return windows
