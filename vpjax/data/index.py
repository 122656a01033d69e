"""Indexes clips before training: the file, the tokens, the shape and the sizes of each clip's row."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vpjax.data.cache import cache_folder
from vpjax.data.keyframes import slots_of
from vpjax.data.packing import Sizes
from vpjax.data.positions import is_visual
from vpjax.data.probing import Source, fault_of, probe_sources
from vpjax.data.rows import NO_ANSWERS, SHARED_TIMES, DegradedAnswers, compared_places
from vpjax.data.sampling import (
    File,
    Reading,
    Sampling,
    Shape,
    VideoInfo,
    fit,
    fit_all,
    frame_interval,
    frame_times,
    readings_of,
)
from vpjax.data.text import Text, Tokens, tokenize
from vpjax.data.units import Capacity, choose_capacity, grid_of, laid_out_sizes
from vpjax.types import Clip, UserError

if TYPE_CHECKING:
    from vpjax.models.config import VLMConfig

LOST = "their files lack frames by their own times: a part of them was perhaps lost"
SMALLER = "frames are smaller than data.max_pixels allows, for data.max_tokens or data.total_pixels"
FEWER = (
    "frames are fewer than data.fps or data.frames asks for, for data.max_tokens, data.total_pixels or "
    "data.max_frames"
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A clip that is used. number: its index among all clips. sources: the files of its media. readings: what
    is read of each. shapes: of the frames of each. data_set: the number of its data set. sizes: how much of a
    row it takes at most."""

    number: int
    id: str
    sources: tuple[Source, ...]
    readings: tuple[Reading, ...]
    tokens: Tokens
    shapes: tuple[Shape, ...]
    data_set: int
    sizes: Sizes

    @property
    def fault(self) -> str:
        """Why one of its files cannot be used, or ""."""
        return fault_of(self.sources)


@dataclasses.dataclass(frozen=True)
class Index:
    """entries: the clips that are used, in order. capacity: of the blocks and bins of their units. rejected:
    reason -> ids of the clips that are not used. noted: remark -> ids of clips."""

    entries: list[Entry]
    capacity: Capacity
    rejected: dict[str, list[str]]
    noted: dict[str, list[str]]


def build_index(
    clips: Sequence[Clip],
    text: Text,
    model_config: VLMConfig,
    data_config: ConfigDict,
    data_set_of: Sequence[int] | None = None,
    answers: DegradedAnswers = NO_ANSWERS,
) -> Index:
    """Probe every file, tokenize every clip and plan its shape.

    data_config: ``data`` of configs/base.py. data_set_of: the number of each clip's data set. answers: what
    follows the prompts of V~. A clip one of whose files cannot be used is kept, with its fault, at the most
    common shape, and is left out of its row. If all files are of one size, the order of the other clips is
    therefore the same as without the fault.
    """
    paths = sorted({path for clip in clips for path in clip.media})
    probed = probe_sources(paths, cache_folder(data_config), data_config.max_side)
    options = dict(
        keywords=data_config.keywords,
        keyword_tokens=data_config.keyword_tokens,
        train_turns=data_config.train_turns,
    )
    sources = [tuple(probed[path] for path in clip.media) for clip in clips]
    tokens: list[Tokens | UserError] = []
    for clip, own in zip(clips, sources, strict=True):
        try:
            tokens.append(tokenize(clip, text, media=tuple(source.media for source in own), **options))
        except UserError as error:
            tokens.append(error)
    return index_clips(clips, sources, tokens, model_config, data_config, data_set_of, answers)


def index_clips(
    clips: Sequence[Clip],
    sources: Sequence[Sequence[Source]],
    tokens: Sequence[Tokens | UserError],
    model_config: VLMConfig,
    data_config: ConfigDict,
    data_set_of: Sequence[int] | None = None,
    answers: DegradedAnswers = NO_ANSWERS,
) -> Index:
    """``build_index`` of clips whose files are probed. sources: the files of each clip. tokens: of each clip,
    or why it has none. UserError if no clip can be used."""
    planned, rejected, noted = plan_clips(clips, sources, tokens, model_config, data_config, answers)
    if all(plan.fault for plan in planned):
        reasons = [plan.fault for plan in planned]
        reasons += [f"{reason} (so {len(ids)} clips)" for reason, ids in rejected.items()]
        raise UserError(f"none of {len(clips)} clips can be used; the first: {reasons[0]}")

    common_shape, common_info = most_common(planned)
    planned = [
        plan._replace(shapes=(common_shape,) * len(plan.sources)) if plan.fault else plan for plan in planned
    ]
    grids = [grid_of(shape, model_config.vision) for plan in planned for shape in plan.shapes]
    capacity = choose_capacity(grids, model_config.vision)
    entries = []
    for plan in planned:
        slot_tokens = [plan.slot_tokens if source.media == "video" else 0 for source in plan.sources]
        first = first_replaced_slot(plan, common_info, model_config.vision.temporal, data_config)
        sizes = row_sizes(plan.tokens, plan.shapes, slot_tokens, model_config, capacity, answers, first)
        entries.append(
            Entry(
                number=plan.number,
                id=clips[plan.number].id,
                sources=plan.sources,
                readings=plan.readings,
                tokens=plan.tokens,
                shapes=plan.shapes,
                data_set=0 if data_set_of is None else data_set_of[plan.number],
                sizes=sizes,
            )
        )
    check_answers([entry.tokens for entry in entries], answers)
    return Index(entries, capacity, rejected, noted)


class Planned(NamedTuple):
    """A clip that is used, before it is known what it takes of a row. slot_tokens: text beside each slot of
    its videos. shapes: of its media; () until they are known."""

    number: int
    sources: tuple[Source, ...]
    readings: tuple[Reading, ...]
    tokens: Tokens
    slot_tokens: int
    shapes: tuple[Shape, ...] = ()

    @property
    def fault(self) -> str:
        """Why one of its files cannot be used, or ""."""
        return fault_of(self.sources)


def plan_clips(
    clips: Sequence[Clip],
    sources: Sequence[Sequence[Source]],
    tokens: Sequence[Tokens | UserError],
    model_config: VLMConfig,
    data_config: ConfigDict,
    answers: DegradedAnswers,
) -> tuple[list[Planned], dict[str, list[str]], dict[str, list[str]]]:
    """The clips that are used, and those that are ``rejected`` and ``noted``, as in ``Index``. Arguments as
    in ``index_clips``."""
    sampling = Sampling.of(data_config)
    infos = [source.info for files in sources for source in files if source.info]
    longest = max((info.duration for info in infos), default=0.0)
    planned: list[Planned] = []
    rejected: dict[str, list[str]] = {}
    noted: dict[str, list[str]] = {}
    for number, (clip, files, own) in enumerate(zip(clips, sources, tokens, strict=True)):
        if isinstance(own, UserError):
            rejected.setdefault(str(own), []).append(clip.id)
            continue
        readings = readings_of(clip, sampling, len(files))
        plan = Planned(number, tuple(files), readings, own, stamp_tokens(own, longest, model_config))
        try:
            budget = media_budget(own, len(files), data_config, answers)
            plan, remarks = with_shapes(plan, sampling, budget, model_config)
        except UserError as error:
            rejected.setdefault(str(error), []).append(clip.id)
            continue
        planned.append(plan)
        for remark in remarks:
            noted.setdefault(remark, []).append(clip.id)
    return planned, rejected, noted


def with_shapes(
    plan: Planned, sampling: Sampling, budget: int, model_config: VLMConfig
) -> tuple[Planned, list[str]]:
    """A clip with the shapes of its media, and remarks about these. budget: tokens of all media together. If
    a file cannot be read as is asked for, the clip has that as its fault, and no shapes, as where a file was
    faulty before. UserError if the budget is too small."""
    if plan.fault:
        return plan, []
    files = [
        File(source.info, reading.part, plan.slot_tokens, reading.sampling)
        for source, reading in zip(plan.sources, plan.readings, strict=True)
        if source.info
    ]
    try:
        shapes = fit_all(sampling, files, factor=model_config.vision.factor, max_tokens=budget)
        remarks = set[str]()
        for file, reading, shape in zip(files, plan.readings, shapes, strict=True):
            remarks.update(shape_remarks(file.info, reading, shape, model_config))
    except ValueError as error:
        fault = f"{' and '.join(source.path for source in plan.sources)}: {error}"
        first, *others = plan.sources
        return plan._replace(sources=(dataclasses.replace(first, fault=fault), *others)), []
    return plan._replace(shapes=tuple(shapes)), sorted(remarks)


def most_common(planned: Sequence[Planned]) -> tuple[Shape, VideoInfo | None]:
    """The most common shape of what clips show, and the first such file; nothing if all are of text alone."""
    shown = [
        (shape, source.info)
        for plan in planned
        if not plan.fault
        for shape, source in zip(plan.shapes, plan.sources, strict=True)
    ]
    if not shown:
        return (0, 0, 0), None
    shape = Counter(shape for shape, _ in shown).most_common(1)[0][0]
    return shape, next(info for other, info in shown if other == shape)


def first_replaced_slot(
    plan: Planned, common_info: VideoInfo | None, temporal: int, data_config: ConfigDict
) -> tuple[int, int]:
    """The medium of a clip and its slot before which V~ replaces none. common_info: the file by which clips
    with a fault are planned."""
    tokens = plan.tokens
    medium = min((n for spans, n in zip(tokens.spans, tokens.videos, strict=True) if spans), default=0)
    if data_config.replacement != "key" or not plan.sources:
        return medium, 0
    sampling, part = plan.readings[medium]
    info = plan.sources[medium].info
    if plan.fault:
        info, part = common_info, (None, None)
    # Which frames stand for runs is not known before they are seen: V~ may begin with the first slot.
    if info is None or sampling.pick == "merge":
        return medium, 0
    times = frame_times(sampling, info, part, plan.shapes[medium][0])
    spans = [span for own in tokens.spans_in(medium) for span in own]
    marked = slots_of(spans, times, info.frame_seconds, temporal)
    if not marked.any():
        return medium, 0
    # With a slot to spare, for files whose frame rate varies.
    return medium, max(int(marked.argmax()) - data_config.widen - 1, 0)


def check_answers(all_tokens: Sequence[Tokens], answers: DegradedAnswers) -> None:
    """UserError if no clip has what a loss on the answers of V~ reads."""
    timed = [tokens for tokens in all_tokens if any(tokens.spans)]
    if answers.truth_share and not any(len(tokens.degraded_answer) for tokens in timed):
        raise UserError(
            "contrast.truth: no clip with key frames has a degraded_answer, which is what is true of its V~; "
            "add it to the clips, or set contrast.truth=0"
        )
    if answers.compared != "none" and answers.truth_share < 1:
        if not any(len(compared_places(x, timed_keywords(x), answers.compared)) for x in timed):
            raise UserError(
                "contrast.answer: no clip has a keyword with a known time (spans) that stands in its answer; "
                "build the clips with vpjax.build, or set contrast.answer=0"
            )


def media_budget(
    tokens: Tokens, media: int, data_config: ConfigDict, answers: DegradedAnswers = NO_ANSWERS
) -> int:
    """The tokens that a clip's text leaves to its videos and images, of which there are ``media``. UserError
    if an answer that is read is too long."""
    lengths = {"answer": max(map(len, [tokens.answer, *tokens.earlier]))}
    if answers.truth_share:
        lengths["degraded_answer"] = len(tokens.degraded_answer)
    for name, length in lengths.items():
        if length > data_config.max_answer:
            raise UserError(f"{name} above {data_config.max_answer} tokens (data.max_answer)")
    answer = max(len(tokens.answer), lengths.get("degraded_answer", 0))
    budget = data_config.max_tokens - len(tokens.prompt) - answer + media  # for the placeholders
    if budget < media:
        raise UserError(f"question and answer above {data_config.max_tokens} tokens (data.max_tokens)")
    return budget


def timed_keywords(tokens: Tokens) -> np.ndarray:
    """bool[J]: the keywords whose time is known."""
    return np.array([bool(spans) for spans in tokens.spans], bool)


def stamp_tokens(tokens: Tokens, longest: float, model_config: VLMConfig) -> int:
    """The text tokens that stand beside each slot of a video, for a model that reads times in words, at most.
    longest: seconds of the longest video."""
    if model_config.tokens_per_second is not None or tokens.stamps is None:
        return 0
    return len(tokens.stamps.write(longest)) + len(("vision_start", "vision_end"))


def row_sizes(
    tokens: Tokens,
    shapes: Sequence[Shape],
    slot_tokens: Sequence[int],
    model_config: VLMConfig,
    capacity: Capacity,
    answers: DegradedAnswers = NO_ANSWERS,
    first_replaced: tuple[int, int] = (0, 0),
) -> Sizes:
    """How much of a row a clip takes at most. shapes, slot_tokens: of each of its media, and the text beside
    each of its slots. first_replaced: the medium and its slot before which V~ replaces none."""
    grids = [grid_of(shape, model_config.vision) for shape in shapes]
    pads = (model_config.image_token, model_config.video_token)
    places = np.flatnonzero(is_visual(tokens.prompt, pads)).tolist()
    per_slot = [
        rows * columns + beside for (_, rows, columns), beside in zip(grids, slot_tokens, strict=True)
    ]
    visual = [slots * count for (slots, _, _), count in zip(grids, per_slot, strict=True)]
    laid_out = [laid_out_sizes(grid, model_config.vision, capacity) for grid in grids]
    prompt = len(tokens.prompt) - len(places) + sum(visual)
    shown_J = timed_keywords(tokens)
    shown, slots = int(shown_J.sum()), sum(grid[0] for grid in grids)
    degraded = degraded_targets = 0
    if shown and places:
        medium, slot = first_replaced
        target_end, degraded_targets = degraded_answer_sizes(tokens, places[medium], shown_J, answers)
        if degraded_targets or answers.alone:
            # From the first replaced slot to the last target or visual token. ``places`` are those of a
            # prompt in which each medium is still one placeholder.
            end = max(target_end, places[-1] + 1)
            text = end - places[medium] - len(places[medium:])
            degraded = sum(visual[medium:]) - slot * per_slot[medium] + text
    return Sizes(
        tokens=prompt + len(tokens.answer),
        units=sum(units for units, _ in laid_out),
        bins=sum(bins for _, bins in laid_out),
        degraded=degraded,
        targets=len(tokens.targets),
        degraded_targets=degraded_targets,
        keywords=int((tokens.lemma >= 0).sum()),
        slots=slots,
        windows=shown * slots,
    )


def degraded_answer_sizes(
    tokens: Tokens, before: int, shown_J: np.ndarray, answers: DegradedAnswers
) -> tuple[int, int]:
    """The place in V~'s prompt and the answer after it that follows the last target, and the number of
    targets, at most. before: the tokens before the video. shown: the keywords that V~ may hide."""
    end = targets = 0
    if answers.compared != "none":
        places = tokens.targets[compared_places(tokens, shown_J, answers.compared)]
        places = places[places > before]
        end, targets = int(places.max(initial=-1)) + 1, len(places)
    if answers.truth_share and len(tokens.degraded_answer):
        end = max(end, len(tokens.prompt) + len(tokens.degraded_answer))
        targets = max(targets, len(tokens.degraded_answer))
    return end, targets


def prompt_sizes(entry: Entry) -> Sizes:
    """The part of a clip's sizes that its prompt takes."""
    sizes = entry.sizes
    return Sizes(sizes.tokens - len(entry.tokens.answer), sizes.units, sizes.bins)


def shape_remarks(info: VideoInfo, reading: Reading, shape: Shape, model_config: VLMConfig) -> list[str]:
    """What the summary counts about the shape of a clip."""
    sampling, part = reading
    remarks = [LOST] if info.lost else []
    factor = model_config.vision.factor
    unlimited = dataclasses.replace(sampling, total_pixels=0, max_frames=max(sampling.max_frames, 1 << 20))
    frames, height, width = fit(unlimited, info, part, factor=factor)
    if shape[1] * shape[2] < height * width:
        remarks.append(SMALLER)
    if shape[0] < frames:
        remarks.append(FEWER)
    if model_config.tokens_per_second and shape[0] > model_config.vision.temporal and info.duration:
        seconds = frame_interval(sampling, info, part, shape[0]) * model_config.vision.temporal
        if seconds * model_config.tokens_per_second < 1 - 1e-4:
            remarks.append(SHARED_TIMES)
    return remarks
