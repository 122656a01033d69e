"""Which frames of a clip show a keyword: a score per sampled frame, and the runs of frames that stand out
(docs/method.md, section 1).

Each scorer is one function with a unit of its own: ``key_runs`` only compares the scores of a clip with one
another. The scorer that queries the model under training is in ``vpjax.building.self_scorer``.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vpjax.data.keyframes import runs_of, slots_of
from vpjax.data.video import Video
from vpjax.types import Clip, Keyword, UserError

# Returns a score per frame f32[F], high where the frame shows the keyword.
Scorer = Callable[[Video, Clip, Keyword], np.ndarray]
Spans = tuple[tuple[float, float], ...]  # (start, end) in seconds

# All chosen here: the paper gives no values.
STANDS_OUT = 3.0  # spreads above the median: a lower peak is noise
PEAK = 0.5  # of a peak's height above the median: higher frames belong to its run
CUT = 0.5  # share of the pixels that change at a cut
FLASH = 1.5  # a frame this many times brighter or darker than the one before is a cut too: pixels saturate
DARK = 8.0  # grey levels: a darker picture is not made brighter to compare it
CHANGED = 0.2  # of the picture's median level: a pixel that changes by more counts
NOISE = 1e-3  # of the squared median level: the least spread of changes
LONGEST_EVENT = 4.0  # seconds between the start and the end of a brief event
LASTING = 0.4  # weight of a change that is not reversed, relative to one that is: below PEAK
IMAGES_AT_ONCE = 32  # through the image tower of ``text_scorer``


def span_scorer(video: Video, clip: Clip, keyword: Keyword) -> np.ndarray:
    """Score frames by annotated spans.

    Returns f32[F]: 1 where a frame shows one of the keyword's spans, or one of the clip's if the keyword has
    none, else 0. Annotations tend to be wide: if the motion inside them stands out, its scores are returned.
    """
    spans = keyword.spans or clip.spans
    inside = slots_of(spans, video.times, video.frame_seconds, temporal=1).astype(np.float32)
    motion = inside * motion_scorer(video, clip, keyword)
    return motion / motion.max() if motion.max() > STANDS_OUT else inside


def motion_scorer(video: Video, clip: Clip, keyword: Keyword) -> np.ndarray:
    """``motion_scores``, whatever the keyword."""
    return motion_scores(video)


def motion_scores(video: Video) -> np.ndarray:
    """Score frames by how sharply the picture changes around them.

    Returns f32[F]: the smaller of the sharpest change shortly before a frame and the sharpest one shortly
    after it, which is high between the start and the end of a brief event. The two frames beside a change
    that is not reversed score too, but less. Changes are in spreads above their shot's median, so steady
    motion scores 0. Frames are compared at equal median brightness, so flicker scores 0. A cut scores 0, and
    changes beyond it do not count.
    """
    change, cuts = _changes(video.frames)
    scores = np.zeros(len(video.times), np.float32)
    for t, now in enumerate(video.times):
        # Change n is the one between frames n and n + 1.
        first = np.searchsorted(video.times, now - LONGEST_EVENT)
        first = max([first, *(np.flatnonzero(cuts[:t]) + 1)])
        last = np.searchsorted(video.times, now + LONGEST_EVENT)
        last = min([last, *(np.flatnonzero(cuts[t:]) + t)])
        before, after = change[first:t], change[t:last]
        on_both_sides = min(before.max(initial=0), after.max(initial=0))
        right_beside = max(before[-1:].max(initial=0), after[:1].max(initial=0))
        scores[t] = max(on_both_sides, LASTING * right_beside)
    return scores


def find_by_motion(video: Video, clip: Clip, answers: Sequence[str]) -> Spans:
    """The key frames of a video by ``motion_scores``, whatever a clip asks about it."""
    return key_runs(motion_scores(video), video.times)[0]


def _changes(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare each of the frames u8[F,h,w,3] with the next one.

    Returns the change f64[F-1] in spreads above its shot's median, 0 where it does not stand out, and whether
    there is a cut, bool[F-1].
    """
    change, cuts = np.zeros(len(frames) - 1), np.zeros(len(frames) - 1, bool)
    last_picture, last_light = _normalize(frames[0])
    for t, frame in enumerate(frames[1:]):
        picture, light = _normalize(frame)
        difference = np.abs(picture - last_picture).mean(axis=-1)
        flash = max(light, last_light) > FLASH * min(light, last_light)
        # Squares: an event changes few pixels by much, noise and slow motion many by little.
        change[t] = np.square(difference).mean()
        cuts[t] = flash or (difference > CHANGED).mean() > CUT
        last_picture, last_light = picture, light
    for first, end in runs_of(~cuts):  # each shot by itself: the next may be livelier
        middle, spread = _median_and_spread(change[first:end])
        above = (change[first:end] - middle) / max(spread, NOISE)
        change[first:end] = np.where(above > STANDS_OUT, above, 0.0)
    return np.where(cuts, 0.0, change), cuts


def _normalize(frame: np.ndarray) -> tuple[np.ndarray, float]:
    """A frame divided by its median, f32, and the median. The mean would move with a bright object."""
    light = max(float(np.median(frame)), DARK)
    return frame.astype(np.float32) / light, light


def _median_and_spread(values: np.ndarray) -> tuple[float, float]:
    """The median and a robust spread, which for normal values is their standard deviation."""
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle)))


def load_text_model(folder: str | Path) -> tuple[Any, Any]:
    """A SigLIP or CLIP model and its processor, see ``text_scorer``."""
    try:
        import torch  # noqa: F401 (transformers would fail later, and in other words)
        from transformers import AutoModel, AutoProcessor
    except ImportError as error:
        raise UserError("text scores are computed with PyTorch: pip install 'vpjax[text]'") from error
    try:
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}: no SigLIP or CLIP model can be read: {reason}") from error
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise UserError(f"{folder}: {type(model).__name__} compares no images with text; give SigLIP or CLIP")
    return model, processor


@functools.cache
def text_scorer(folder: str | Path) -> Scorer:
    """Score frames by their similarity to the keyword, with SigLIP or CLIP, transformers and torch, offline.

    folder: the model as Hugging Face stores it. The score is contrastive: the cosine similarity to the
    keyword minus that to the rest of the caption, in standard deviations within the video. UserError if torch
    is missing or the folder holds no such model.
    """
    model, processor = load_text_model(folder)
    import torch

    latest: list[tuple[Video, np.ndarray]] = []  # the keywords of a clip share its frames

    def normalized(output: Any) -> np.ndarray:
        features = getattr(output, "pooler_output", output)  # transformers 5 returns an object
        return torch.nn.functional.normalize(features.float(), dim=-1).numpy()

    @torch.inference_mode()
    def image_features(video: Video) -> np.ndarray:
        parts = []
        for first in range(0, len(video.frames), IMAGES_AT_ONCE):
            inputs = processor(images=list(video.frames[first : first + IMAGES_AT_ONCE]), return_tensors="pt")
            parts.append(normalized(model.get_image_features(**inputs)))
        return np.concatenate(parts)

    @torch.inference_mode()
    def text_features(texts: list[str]) -> np.ndarray:
        # SigLIP was trained with padding to its full length and without a mask.
        inputs = processor(text=texts, padding="max_length", truncation=True, return_tensors="pt")
        if "siglip" in model.config.model_type:
            inputs.pop("attention_mask", None)
        return normalized(model.get_text_features(**inputs))

    def score(video: Video, clip: Clip, keyword: Keyword) -> np.ndarray:
        if not latest or latest[0][0] is not video:
            latest[:] = [(video, image_features(video))]
        texts = [keyword.text]
        rest = " ".join(clip.answer.replace(keyword.text, " ", 1).split())
        if rest:
            texts.append(rest)
        similar_FX = latest[0][1] @ text_features(texts).T
        contrast = similar_FX[:, 0] - similar_FX[:, 1:].sum(axis=1)
        return ((contrast - contrast.mean()) / max(contrast.std(), 1e-6)).astype(np.float32)

    return score


def product(*scorers: Scorer) -> Scorer:
    """The scorer that multiplies the scores of ``scorers``, each as a share of its peak's height above its
    median, and 0 below: high where all agree."""

    def score(video: Video, clip: Clip, keyword: Keyword) -> np.ndarray:
        together = np.ones(len(video.times), np.float32)
        for scorer in scorers:
            scores = scorer(video, clip, keyword)
            above = np.maximum(scores - np.median(scores), 0)
            together *= above / max(float(above.max()), 1e-6)
        return together

    return score


def key_runs(scores: np.ndarray, times: np.ndarray, *, cap: float = 0.4) -> tuple[Spans, float]:
    """The runs of frames that stand out, as (start, end) in seconds, and a confidence.

    scores, times: f[F]. A frame lasts until the next one. cap: share of the frames that runs may cover; if
    more stand out, only the highest are taken. The confidence, 0 to 1, is the share of the scores' total
    height above their median that lies in the runs. ((), 0.0) if no frame stands out.
    """
    distinct = np.append(True, np.diff(times) > 0)  # a last frame that is repeated counts once
    scores, times = np.asarray(scores, np.float64)[distinct], times[distinct]
    middle, spread = _median_and_spread(scores)
    above = np.maximum(scores - middle, 0)
    peak, most = above.max(), int(cap * len(scores))
    if peak <= max(STANDS_OUT * spread, 1e-6):
        return (), 0.0
    ranked = np.sort(above)[::-1]
    threshold = PEAK * peak
    if most < len(ranked):
        threshold = max(threshold, ranked[most])
    marked = above > threshold
    if not marked.any():  # more frames share the peak than the cap allows
        return (), 0.0
    last_length = np.median(np.diff(times)) if len(times) > 1 else 0.0
    ends = np.append(times[1:], times[-1] + last_length)
    spans = tuple((float(times[first]), float(ends[end - 1])) for first, end in runs_of(marked))
    return spans, float(above[marked].sum() / above.sum())
