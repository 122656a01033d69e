"""Indexes clips before training: the file, the tokens, the shape and the sizes of each clip's row."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from vpjax.data.cache import PIXELS_VERSION, cache_folder
from vpjax.data.images import is_image
from vpjax.data.keyframes import slots_of
from vpjax.data.packing import Sizes
from vpjax.data.positions import is_visual
from vpjax.data.rows import NO_ANSWERS, SHARED_TIMES, DegradedAnswers, compared_places
from vpjax.data.sampling import Part, Sampling, Shape, VideoInfo, fit, frame_times, seconds_per_slot
from vpjax.data.text import Media, Text, Tokens, tokenize
from vpjax.data.units import Capacity, choose_capacity, grid_of, laid_out_sizes
from vpjax.data.video import probe, probe_image
from vpjax.files import stamp, write_whole
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
class Source:
    """A file when it was indexed. media: None for a clip without a file. size: bytes. modified: time in ns.
    fault: why the file cannot be used, or ""."""

    path: str
    media: Media | None
    size: int = 0
    modified: int = 0
    info: VideoInfo | None = None
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A clip that is used. number: its index among all clips. part: its start and end, as in Clip. shape: of
    its frames. data_set: the number of its data set. sizes: how much of a row it takes at most."""

    number: int
    id: str
    source: Source
    part: Part
    tokens: Tokens
    shape: Shape
    data_set: int
    sizes: Sizes


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
    follows the prompts of V~. A clip whose file cannot be used is kept, with its fault, at the most common
    shape, and is left out of its row. If all files are of one size, the order of the other clips is therefore
    the same as without the fault.
    """
    paths = sorted({clip.video for clip in clips})
    probed = probe_sources(paths, cache_folder(data_config), data_config.max_side)
    options = dict(
        keywords=data_config.keywords,
        keyword_tokens=data_config.keyword_tokens,
        train_turns=data_config.train_turns,
    )
    sources = [probed[clip.video] for clip in clips]
    tokens: list[Tokens | UserError] = []
    for clip, source in zip(clips, sources, strict=True):
        try:
            tokens.append(tokenize(clip, text, media=source.media, **options))
        except UserError as error:
            tokens.append(error)
    return index_clips(clips, sources, tokens, model_config, data_config, data_set_of, answers)


def index_clips(
    clips: Sequence[Clip],
    sources: Sequence[Source],
    tokens: Sequence[Tokens | UserError],
    model_config: VLMConfig,
    data_config: ConfigDict,
    data_set_of: Sequence[int] | None = None,
    answers: DegradedAnswers = NO_ANSWERS,
) -> Index:
    """``build_index`` of clips whose files are probed. tokens: of each clip, or why it has none. UserError if
    no clip can be used."""
    sampling = Sampling.of(data_config)
    longest = max((source.info.duration for source in sources if source.info), default=0.0)
    planned: list[tuple[int, Source, Tokens, Shape | None]] = []
    rejected: dict[str, list[str]] = {}
    noted: dict[str, list[str]] = {}
    for number, (clip, source, own) in enumerate(zip(clips, sources, tokens, strict=True)):
        if isinstance(own, UserError):
            rejected.setdefault(str(own), []).append(clip.id)
            continue
        shape = None
        try:
            budget = text_budget(own, data_config, answers)
            if source.info is not None:
                beside = stamp_tokens(own, longest, model_config)
                part = clip.start, clip.end
                limits = dict(factor=model_config.vision.factor, max_tokens=budget, slot_tokens=beside)
                shape = fit(sampling, source.info, part, **limits)
                for remark in shape_remarks(source.info, part, shape, sampling, model_config):
                    noted.setdefault(remark, []).append(clip.id)
            elif not source.fault:
                shape = 0, 0, 0
        except UserError as error:
            rejected.setdefault(str(error), []).append(clip.id)
            continue
        except ValueError as error:
            source = dataclasses.replace(source, fault=f"{clip.video}: {error}")
        planned.append((number, source, own, shape))
    common = Counter(shape for *_, shape in planned if shape is not None).most_common(1)
    if not common:
        faults = [source.fault for _, source, _, _ in planned]
        reasons = [f"{reason} (so {len(ids)} clips)" for reason, ids in rejected.items()]
        raise UserError(f"none of {len(clips)} clips can be used; the first: {(faults + reasons)[0]}")

    shapes = [shape or common[0][0] for *_, shape in planned]
    common_info = next(source.info for _, source, _, shape in planned if shape == common[0][0])
    capacity = choose_capacity((grid_of(shape, model_config.vision) for shape in shapes), model_config.vision)
    entries = []
    for (number, source, own, _), shape in zip(planned, shapes, strict=True):
        beside = stamp_tokens(own, longest, model_config) if source.media == "video" else 0
        part = clips[number].start, clips[number].end
        first_slot = 0
        info = common_info if source.fault else source.info
        if data_config.replacement == "key" and info is not None:
            times = frame_times(sampling, info, (None, None) if source.fault else part, shape[0])
            temporal = model_config.vision.temporal
            first_slot = earliest_replaced(own, times, info.frame_seconds, temporal, data_config.widen)
        sizes = row_sizes(own, shape, beside, model_config, capacity, answers, first_slot)
        data_set = 0 if data_set_of is None else data_set_of[number]
        entries.append(Entry(number, clips[number].id, source, part, own, shape, data_set, sizes))
    check_answers([entry.tokens for entry in entries], answers)
    return Index(entries, capacity, rejected, noted)


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


def text_budget(tokens: Tokens, data_config: ConfigDict, answers: DegradedAnswers = NO_ANSWERS) -> int:
    """The tokens that a clip's text leaves to its video. UserError if an answer that is read is too long."""
    lengths = {"answer": max(map(len, [tokens.answer, *tokens.earlier]))}
    if answers.truth_share:
        lengths["degraded_answer"] = len(tokens.degraded_answer)
    for name, length in lengths.items():
        if length > data_config.max_answer:
            raise UserError(f"{name} above {data_config.max_answer} tokens (data.max_answer)")
    answer = max(len(tokens.answer), lengths.get("degraded_answer", 0))
    budget = data_config.max_tokens - len(tokens.prompt) - answer + 1  # for the placeholder
    if budget <= 0:
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
    shape: Shape,
    slot_tokens: int,
    model_config: VLMConfig,
    capacity: Capacity,
    answers: DegradedAnswers = NO_ANSWERS,
    first_slot: int = 0,
) -> Sizes:
    """How much of a row a clip takes at most. slot_tokens: text beside each slot. first_slot: before which V~
    replaces none."""
    slots, rows, columns = grid = grid_of(shape, model_config.vision)
    pads = (model_config.image_token, model_config.video_token)
    places = np.flatnonzero(is_visual(tokens.prompt, pads))
    before = int(places[0]) if len(places) else 0
    visual = slots * (rows * columns + slot_tokens)
    units, bins = laid_out_sizes(grid, model_config.vision, capacity)
    prompt = len(tokens.prompt) - len(places) + visual
    shown_J = timed_keywords(tokens)
    shown = int(shown_J.sum())
    degraded = degraded_targets = 0
    if shown:
        end, degraded_targets = degraded_answer_sizes(tokens, before, shown_J, answers)
        if degraded_targets or answers.alone:
            degraded = (slots - first_slot) * (rows * columns + slot_tokens)
        if degraded_targets:
            degraded += end - before - len(places)
    return Sizes(
        tokens=prompt + len(tokens.answer),
        units=units,
        bins=bins,
        degraded=degraded,
        targets=len(tokens.targets),
        degraded_targets=degraded_targets,
        keywords=int((tokens.lemma >= 0).sum()),
        slots=slots,
        windows=shown * slots,
    )


def earliest_replaced(
    tokens: Tokens, times: np.ndarray, frame_seconds: float, temporal: int, widen: int
) -> int:
    """The slot before which V~ replaces none, with a slot to spare for files whose frame rate varies. times:
    planned, of the frames."""
    spans = [span for spans in tokens.spans for span in spans]
    marked = slots_of(spans, times, frame_seconds, temporal)
    return max(int(marked.argmax()) - widen - 1, 0) if marked.any() else 0


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


def shape_remarks(
    info: VideoInfo, part: Part, shape: Shape, sampling: Sampling, model_config: VLMConfig
) -> list[str]:
    """What the summary counts about the shape of a clip."""
    remarks = [LOST] if info.lost else []
    factor = model_config.vision.factor
    unlimited = dataclasses.replace(sampling, total_pixels=0, max_frames=max(sampling.max_frames, 1 << 20))
    frames, height, width = fit(unlimited, info, part, factor=factor)
    if shape[1] * shape[2] < height * width:
        remarks.append(SMALLER)
    if shape[0] < frames:
        remarks.append(FEWER)
    if model_config.tokens_per_second and shape[0] > model_config.vision.temporal and info.duration:
        seconds = seconds_per_slot(frame_times(sampling, info, part, shape[0]), model_config.vision.temporal)
        if seconds * model_config.tokens_per_second < 1 - 1e-4:
            remarks.append(SHARED_TIMES)
    return remarks


def probe_sources(paths: Sequence[str], cache: Path, max_side: int) -> dict[str, Source]:
    """Probe files in parallel; ``cache`` keeps the results for later runs, for files that do not change."""
    fields = [field.name for field in dataclasses.fields(VideoInfo)]  # a cache of other fields is another one
    parts = [*paths, str(max_side), *fields, str(PIXELS_VERSION)]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    file = cache / "index" / f"{name}.json"
    known = read_probed(file, len(fields))

    def probe_source(path: str) -> Source:
        if not path:
            return Source(path, None)
        media: Media = "image" if is_image(path) else "video"
        try:
            size, modified = stamp(path)
            if known.get(path, [])[:2] == [size, modified]:
                return Source(path, media, size, modified, VideoInfo(*known[path][2:]))
            probe_file = probe_image if media == "image" else probe
            return Source(path, media, size, modified, probe_file(path, max_side=max_side))
        except OSError as error:
            return Source(path, media, fault=f"{path}: {error.strerror or error}")
        except UserError as error:
            return Source(path, media, fault=str(error))

    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        probed = pool.map(probe_source, paths)
        bar = tqdm(probed, total=len(paths), desc="probing videos", unit="file", delay=2)
        sources = dict(zip(paths, bar, strict=True))
    found = {
        path: [source.size, source.modified, *dataclasses.astuple(source.info)]
        for path, source in sources.items()
        if source.info is not None
    }
    if found != known:
        write_whole(file, json.dumps(found).encode())
    return sources


def read_probed(file: Path, fields: int) -> dict[str, list[Any]]:
    """The results of an earlier probing: path -> size, time of change, and so many ``fields``. {} if there is
    no such file, or a damaged one, which is told and will be written anew."""
    if not file.is_file():
        return {}
    try:
        known = json.loads(file.read_bytes())
        if all(
            len(entry) == 2 + fields and all(isinstance(x, int | float) for x in entry)
            for entry in known.values()
        ):
            return known
    except (ValueError, TypeError, AttributeError):
        pass
    tqdm.write(f"{file}: damaged; its videos are probed again", file=sys.stderr)
    return {}
