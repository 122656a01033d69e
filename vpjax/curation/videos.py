"""What is measured on the video of a row, while ``building.examine`` finds its key frames.

The numbers stand in ``Clip.extra["measured"]``, so that a part of a build keeps them and a later run does not
compute them again. None means that a measure does not apply.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from vpjax.building.examine import SELF_FRAMES, Examined, Options, examine, load_model, load_tools
from vpjax.building.items import Item
from vpjax.building.scorers import STANDS_OUT, motion_scores, text_scorer
from vpjax.curation.measures import kind_of, spans_of
from vpjax.curation.signatures import differences, minhash
from vpjax.data.images import is_image
from vpjax.data.keyframes import slots_of, source_of
from vpjax.data.video import Video, read_frames
from vpjax.types import Clip, Keyword, UserError

Spans = Sequence[tuple[float, float]]
NEEDS = {
    "needs_key": "--model",
    "needs_video": "--model",
    "shown": "--text_model",
}  # measure -> its model's flag
PICTURE = "picture"  # the signature of a video, in hexadecimal, among its numbers


def text_of(elements: Sequence[str]) -> str | None:
    """The signature of a set as a text; None if it is empty, which is like nothing."""
    return minhash(elements).tobytes().hex() if elements else None


def picture_of(text: str) -> np.ndarray:
    """The signature u32[n] of a video from its text."""
    return np.frombuffer(bytes.fromhex(text), np.uint32)


@dataclasses.dataclass(frozen=True)
class Measurer:
    """Examines items of the same files as ``building.examine.examine`` does, and measures those that it can
    use. measures: names in ``measures.VIDEO``."""

    measures: tuple[str, ...]

    def __call__(self, items: Sequence[Item], options: Options) -> Iterator[Examined]:
        for examined in examine(items, options):
            yield self.measured(examined, options) if examined.item.clip is not None else examined

    def measured(self, examined: Examined, options: Options) -> Examined:
        clip = examined.item.clip
        assert clip is not None
        numbers: dict[str, float | str | None] = dict.fromkeys((*self.measures, PICTURE))
        if len(clip.media) == 1 and not is_image(clip.video):
            try:
                numbers |= self.numbers(clip, examined.video or frames_of(clip, options), options)
            except UserError as error:
                reason = f"video unreadable: {error}"
                return Examined(dataclasses.replace(examined.item, clip=None, skipped=reason, notes=()))
        clip = dataclasses.replace(clip, extra=clip.extra | {"measured": numbers})
        return dataclasses.replace(examined, item=dataclasses.replace(examined.item, clip=clip))

    def numbers(self, clip: Clip, video: Video, options: Options) -> dict[str, float | str | None]:
        found: dict[str, float | str | None] = {}
        if "peak" in self.measures:
            found["peak"] = motion_peak(video, clip.spans)
        if "shown" in self.measures:
            found["shown"] = shown(clip, video, options.text_model)
        if {"needs_key", "needs_video"} & set(self.measures):
            found |= needs(clip, video, options)
        if "picture_copy" in self.measures:
            found[PICTURE] = text_of(differences(video.frames))
        return {name: value for name, value in found.items() if name in (*self.measures, PICTURE)}


def frames_of(clip: Clip, options: Options, factor: int = 0, most: int = 0) -> Video:
    """The frames of a clip, as ``examine`` reads them. factor: of their height and width, and most: how many
    they are at most, where a model needs others."""
    tools = load_tools(options)
    sampling = tools.sampling
    if most:
        sampling = dataclasses.replace(sampling, max_frames=min(sampling.max_frames, most))
    return read_frames(
        clip.video,
        sampling,
        factor=factor or tools.factor,
        start=clip.start,
        end=clip.end,
        tfio_python=options.tfio_python,
    )


def events_of(clip: Clip) -> list[Keyword]:
    """The keywords of a clip but for those that go on and on, which V~ shows as well; all, if all go on."""
    brief = [keyword for keyword in clip.keywords if kind_of(keyword.lemma) != "lasting"]
    return brief or list(clip.keywords)


def motion_peak(video: Video, spans: Spans) -> float | None:
    """The highest ``motion_scores`` inside ``spans``, as a share of its sum with the highest outside: above
    .5 if the picture changes most where the event is said to be; 0 if nothing stands out there. None without
    spans."""
    if not spans:
        return None
    scores = motion_scores(video)
    inside = slots_of(spans, video.times, video.frame_seconds, temporal=1)
    within, beyond = scores[inside].max(initial=0.0), scores[~inside].max(initial=0.0)
    return float(within / (within + beyond)) if within > STANDS_OUT else 0.0


def shown(clip: Clip, video: Video, text_model: str) -> float | None:
    """How much more like its keywords, by the text scorer, the frames in their spans are than the others: in
    its standard deviations, the mean over the keywords. None if there are no such frames."""
    scorer = text_scorer(text_model)
    gaps = []
    for keyword in clip.keywords:
        inside = slots_of(keyword.spans or clip.spans, video.times, video.frame_seconds, temporal=1)
        if inside.any() and not inside.all():
            scores = scorer(video, clip, keyword)
            gaps.append(float(scores[inside].mean() - scores[~inside].mean()))
    return sum(gaps) / len(gaps) if gaps else None


def needs(clip: Clip, video: Video, options: Options) -> dict[str, float | None]:
    """How much likelier the words of a clip's events are given V: ``needs_video``, than given no video, and
    ``needs_key``, than given V~, in nats an event. None for ``needs_key`` without a V~. The words are those
    of the answer, or all of it if it contains no event."""
    # What brings the model is imported here.
    from vpjax.building.self_scorer import answer_logprobs, answers_logprobs, padded_answers
    from vpjax.data.collate import single_prompt
    from vpjax.data.rows import seen_through
    from vpjax.data.text import without_media

    model, text = load_model(options.model)
    if model.config.vision.factor != load_tools(options).factor or len(video.times) > SELF_FRAMES:
        video = frames_of(clip, options, model.config.vision.factor, SELF_FRAMES)
    answer = text.answer(clip.answer)
    events = events_of(clip)
    places = {place for keyword in events for place in text.keyword(keyword.text, clip.answer)[0]}
    answers_1C, scored_1C = padded_answers([answer], [sorted(places) or range(len(answer))])
    prompt = text.prompt(clip)
    row, prompts = single_prompt(prompt, [video], model.config, stamps=text.stamps_of(prompt))
    shows_P, slot_P = np.asarray(prompts.text.shows)[0], np.asarray(prompts.text.slot)[0]
    key_S = slots_of(spans_of(clip), video.times, video.frame_seconds, model.config.vision.temporal)
    degraded_P = seen_through(shows_P, slot_P, source_of(key_S[None]))
    whole, degraded = answers_logprobs(model, prompts, np.stack([shows_P, degraded_P]), answers_1C, scored_1C)
    _, blind_prompts = single_prompt(text.prompt(without_media(clip), ()), [], model.config)
    blind_shows = np.asarray(blind_prompts.text.shows)
    blind = answer_logprobs(model, blind_prompts, None, blind_shows, answers_1C, scored_1C)
    count = max(1, len(events))
    has_degraded = bool((degraded_P != shows_P).any())
    return {
        "needs_video": float(whole[0] - np.asarray(blind)[0, 0]) / count,
        "needs_key": float(whole[0] - degraded[0]) / count if has_degraded else None,
    }
