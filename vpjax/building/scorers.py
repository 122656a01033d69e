"""Which frames of a clip show a keyword: a score per sampled frame, and the runs in seconds that stand out
(METHOD section 1).

A scorer is one function, in a unit of its own: ``runs`` only asks by how much some frames exceed the others.
The one that asks the model under training is in ``vpjax.building.self_scorer``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vpjax.data.keyframes import runs_of, slots_of
from vpjax.data.video import Video
from vpjax.types import Clip, Keyword, UserError

Scorer = Callable[[Video, Clip, Keyword], np.ndarray]  # -> f32[F]: a score per frame, high where it is seen
Spans = tuple[tuple[float, float], ...]

# All ours: the paper's abstract is silent.
STANDS_OUT = 3.0  # spreads above the median: a lower peak is noise
PEAK = 0.5  # of a peak's height above the median: higher frames belong to its run
CUT = 0.5  # share of the pixels that change at a cut
FLASH = 1.5  # times as bright or as dark as the frame before, which makes it a cut as well: pixels saturate
DARK = 8.0  # grey levels: a darker picture is not made brighter to compare it
CHANGED = 0.2  # of the picture's median level: a pixel that changes by more counts
NOISE = 1e-3  # of the median level: the least spread of changes
LONGEST = 4.0  # seconds between the coming and the going of a brief event
LASTING = 0.4  # what a change that does not go back is worth, of one that does: below PEAK
IMAGES_AT_ONCE = 32  # through the image tower of ``text_scorer``


def span_scorer(video: Video, clip: Clip, keyword: Keyword) -> np.ndarray:
    """f32[F]: 1 where a frame shows the keyword's annotated spans, the clip's where it has none; else 0.
    Annotations tend to be wide: where the motion inside stands out, it narrows them."""
    spans = keyword.spans or clip.spans
    inside = slots_of(spans, video.times, video.frame_seconds, temporal=1).astype(np.float32)
    motion = inside * motion_scorer(video, clip, keyword)
    return motion / motion.max() if motion.max() > STANDS_OUT else inside


def motion_scorer(video: Video, clip: Clip, keyword: Keyword) -> np.ndarray:
    """f32[F]: the smaller of the sharpest changes of the picture shortly before and shortly after a frame:
    high between the coming and the going of something brief, whatever the keyword.

    A change counts in spreads above its shot's median, so a steady motion is none. Frames are compared at
    equal median brightness, so a flicker is none either; nor is a cut, and nothing is seen across one. The
    two frames beside a change that does not go back score too, but less.
    """
    change, cuts = _changes(video.frames)
    scores = np.zeros(len(video.times), np.float32)
    for t, now in enumerate(video.times):
        first = max([np.searchsorted(video.times, now - LONGEST), *(np.flatnonzero(cuts[:t]) + 1)])
        last = min([np.searchsorted(video.times, now + LONGEST), *(np.flatnonzero(cuts[t:]) + t)])
        before, after = change[first:t], change[t:last]
        beside = max(before[-1:].max(initial=0), after[:1].max(initial=0))
        scores[t] = max(min(before.max(initial=0), after.max(initial=0)), LASTING * beside)
    return scores


def _changes(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much each of the frames u8[F,h,w,3] differs from the next, f64[F-1] in spreads above its shot's
    median and 0 below; and where there is a cut, bool[F-1]."""
    change, cuts = np.zeros(len(frames) - 1), np.zeros(len(frames) - 1, bool)
    last, light = _level(frames[0])
    for t, frame in enumerate(frames[1:]):
        (level, lit), before = _level(frame), light
        difference = np.abs(level - last).mean(axis=-1)
        flash = max(lit, before) > FLASH * min(lit, before)
        change[t], cuts[t] = difference.mean(), flash or (difference > CHANGED).mean() > CUT
        last, light = level, lit
    for first, end in runs_of(~cuts):  # each shot by itself: the next may be livelier
        middle, spread = _spread(change[first:end])
        change[first:end] = np.maximum((change[first:end] - middle) / max(spread, NOISE), 0.0)
    return np.where(cuts, 0.0, change), cuts


def _level(frame: np.ndarray) -> tuple[np.ndarray, float]:
    """A frame over its median, f32, and the median: the mean would move with a bright object."""
    light = max(float(np.median(frame)), DARK)
    return frame.astype(np.float32) / light, light


def _spread(values: np.ndarray) -> tuple[float, float]:
    """The median and the spread around it, the standard deviation of normal values, which outliers leave."""
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle)))


def text_scorer(folder: str | Path) -> Scorer:
    """Similarity of frame and keyword by a SigLIP or CLIP model, run by transformers with torch, offline.

    folder: the model as Hugging Face stores it. The score is contrastive: similarity (cosine) to the keyword
    minus that to the rest of the caption, in standard deviations within the video. UserError where torch is
    missing or the folder holds no such model.
    """
    try:
        import torch
        from transformers import AutoModel, AutoProcessor
    except ImportError as error:
        raise UserError("text scores are computed with PyTorch: pip install 'vpjax[text]'") from error
    try:
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"{folder}: no SigLIP or CLIP model can be read: {str(error).splitlines()[0]}"
        ) from error
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise UserError(f"{folder}: {type(model).__name__} compares no images with text; give SigLIP or CLIP")
    latest: list[tuple[Video, np.ndarray]] = []  # a clip's keywords share its frames

    def unit(features) -> np.ndarray:
        features = getattr(features, "pooler_output", features)
        return torch.nn.functional.normalize(features.float(), dim=-1).numpy()

    @torch.inference_mode()
    def images(video: Video) -> np.ndarray:
        parts = []
        for first in range(0, len(video.frames), IMAGES_AT_ONCE):
            some = list(video.frames[first : first + IMAGES_AT_ONCE])
            parts.append(unit(model.get_image_features(**processor(images=some, return_tensors="pt"))))
        return np.concatenate(parts)

    @torch.inference_mode()
    def texts(*said: str) -> np.ndarray:
        # SigLIP was trained with padding to its full length.
        inputs = processor(text=list(said), padding="max_length", truncation=True, return_tensors="pt")
        if "siglip" in model.config.model_type:  # and without a mask
            inputs.pop("attention_mask", None)
        return unit(model.get_text_features(**inputs))

    def score(video: Video, clip: Clip, keyword: Keyword) -> np.ndarray:
        if not latest or latest[0][0] is not video:
            latest[:] = [(video, images(video))]
        rest = " ".join(clip.answer.replace(keyword.text, " ", 1).split())
        similar_FX = latest[0][1] @ texts(keyword.text, *([rest] if rest else [])).T
        contrast = similar_FX[:, 0] - similar_FX[:, 1:].sum(axis=1)
        return ((contrast - contrast.mean()) / max(contrast.std(), 1e-6)).astype(np.float32)

    return score


def product(*scorers: Scorer) -> Scorer:
    """What all scorers agree on: the product of their scores, each as a share of its peak's height above its
    median, and 0 below."""

    def score(video: Video, clip: Clip, keyword: Keyword) -> np.ndarray:
        together = np.ones(len(video.times), np.float32)
        for scorer in scorers:
            scores = scorer(video, clip, keyword)
            above = np.maximum(scores - np.median(scores), 0)
            together *= above / max(float(above.max()), 1e-6)
        return together

    return score


def runs(
    scores: np.ndarray, times: np.ndarray, *, cap: float = 0.4, dilation: float = 0.0
) -> tuple[Spans, float]:
    """The runs of frames that stand out, as (start, end) in seconds, and a confidence.

    scores, times: f[F]. A frame lasts until the next one. cap: share of the frames that runs may cover; where
    more stand out, only the highest are taken. dilation: seconds by which a run grows at either end; runs
    that then touch are one. The confidence is the share of all that the scores rise above their median that
    lies in the runs, 0 to 1. ((), 0.0) where no frame stands out.
    """
    distinct = np.append(True, np.diff(times) > 0)  # a last frame that is there twice counts once
    scores, times = np.asarray(scores, np.float64)[distinct], times[distinct]
    middle, spread = _spread(scores)
    above = np.maximum(scores - middle, 0)
    peak, most = above.max(), int(cap * len(scores))
    if peak <= max(STANDS_OUT * spread, 1e-6):
        return (), 0.0
    ranked = np.sort(above)[::-1]
    marked = above > max(PEAK * peak, ranked[most] if most < len(ranked) else 0.0)
    if not marked.any():  # more frames share the peak than the cap allows
        return (), 0.0
    ends = np.append(times[1:], times[-1] + np.median(np.diff(times)) if len(times) > 1 else times[-1])
    spans: list[tuple[float, float]] = []
    for first, end in runs_of(marked):
        start = max(float(times[first]) - dilation, float(times[0]))
        stop = min(float(ends[end - 1]) + dilation, float(ends[-1]))
        if spans and start <= spans[-1][1]:
            start = spans.pop()[0]
        spans.append((start, stop))
    return tuple(spans), float(above[marked].sum() / above.sum())
