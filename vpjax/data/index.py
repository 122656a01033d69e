"""Indexes clips before training: the file, the tokens and the bucket that a worker needs to make each row."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from vpjax.data.cache import cache_folder
from vpjax.data.images import is_image
from vpjax.data.positions import is_visual
from vpjax.data.rows import round_up
from vpjax.data.text import Media, Text, Tokens, tokenize, with_media
from vpjax.data.video import Sampling, VideoInfo, probe, probe_image, resolve_part
from vpjax.files import stamp, write_whole
from vpjax.models.patches import smart_resize
from vpjax.types import Bucket, Clip, UserError

if TYPE_CHECKING:
    from vpjax.models.config import VLMConfig


Shape = tuple[int, int, int]  # frames, height and width
Part = tuple[float | None, float | None]  # start and end of a Clip


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
    """A clip that is used. number: its index among all clips. start, end: as in Clip."""

    number: int
    id: str
    source: Source
    start: float | None
    end: float | None
    tokens: Tokens
    bucket: Bucket


@dataclasses.dataclass(frozen=True)
class Index:
    """entries: the clips that are used, in order. rejected: reason -> ids of the clips that are not used."""

    entries: list[Entry]
    rejected: dict[str, list[str]]


def build_index(clips: Sequence[Clip], text: Text, model_config: VLMConfig, data_config: ConfigDict) -> Index:
    """Probe every file, tokenize every clip, assign its bucket and reject the clips that are too long.

    data_config: ``data`` of configs/base.py. A clip whose file cannot be used is kept, with its fault, in the
    bucket for frames of the most common shape, and becomes a masked row. If all files are of one size, the
    order of the other clips is therefore the same as without the fault.
    """
    paths = sorted({clip.video for clip in clips})
    probed = probe_sources(paths, cache_folder(data_config), data_config.max_side)
    sampling = Sampling.of(data_config)
    sources: list[Source] = []
    shapes: list[Shape | None] = []
    for clip in clips:
        source, shape = probed[clip.video], None
        if not source.fault:
            try:
                shape = frame_shape(source, model_config, data_config, sampling, (clip.start, clip.end))
            except ValueError as error:
                source = dataclasses.replace(source, fault=f"{clip.video}: {error}")
        sources.append(source)
        shapes.append(shape)
    common = Counter(shape for shape in shapes if shape is not None).most_common(1)
    if not common:
        raise UserError(f"none of {len(probed)} videos can be used; the first: {sources[0].fault}")

    longest = max((source.info.duration for source in probed.values() if source.info), default=0.0)
    entries: list[Entry] = []
    rejected: dict[str, list[str]] = {}
    keyword_sizes = dict(keywords=data_config.keywords, keyword_tokens=data_config.keyword_tokens)
    for number, (clip, source, shape) in enumerate(zip(clips, sources, shapes, strict=True)):
        try:
            tokens = tokenize(clip, text, media=source.media, **keyword_sizes)
            bucket = bucket_for(tokens, shape or common[0][0], longest, model_config, data_config)
        except UserError as error:
            rejected.setdefault(str(error), []).append(clip.id)
        else:
            entries.append(Entry(number, clip.id, source, clip.start, clip.end, tokens, bucket))
    if not entries:
        reasons = "; ".join(f"{reason}: {len(ids)}" for reason, ids in rejected.items())
        raise UserError(f"every one of {len(clips)} clips is rejected: {reasons}")
    return Index(entries, rejected)


def frame_shape(
    source: Source,
    model_config: VLMConfig,
    data_config: ConfigDict,
    sampling: Sampling,
    part: Part = (None, None),
) -> Shape:
    """The (F, h, w) of the bucket for the part (start, end) of a file. ValueError for an aspect ratio that
    smart_resize refuses, and for a part that is not inside the file."""
    info = source.info
    if info is None:  # no file
        return 0, 0, 0
    factor = model_config.vision.factor
    limits = dict(min_pixels=data_config.min_pixels, max_pixels=data_config.max_pixels)
    height, width = smart_resize(info.height, info.width, factor=factor, **limits)
    if source.media == "image":
        return round_up(1, model_config.vision.temporal), height, width
    first, last = resolve_part(info.duration, 1 / info.fps, *part)
    if sampling.fps is None:
        frames = sampling.frames or 0
    else:
        frames = min(math.ceil((last - first) * sampling.fps), sampling.max_frames)
        # Clips differ in length: rounding up by at most a quarter makes few buckets out of many lengths.
        frames = round_up(frames, 2 ** max(0, frames.bit_length() - 3))
    return round_up(frames, model_config.vision.temporal), height, width


def bucket_for(
    tokens: Tokens, shape: Shape, longest: float, model_config: VLMConfig, data_config: ConfigDict
) -> Bucket:
    """The bucket of a clip with frames of ``shape``. longest: seconds of the longest video, so that there is
    room for any time in words. UserError if the clip has too many tokens."""
    frames, height, width = shape
    unit = model_config.vision.factor
    grid = (frames // model_config.vision.temporal, height // unit, width // unit)
    whole = with_media(tokens.prompt, grid, np.full(grid[0], longest), model_config, tokens.stamps)
    visual = np.flatnonzero(is_visual(whole, (model_config.image_token, model_config.video_token)))
    if len(whole) > data_config.max_prompt:
        raise UserError(f"prompt above {data_config.max_prompt} tokens (data.max_prompt)")
    if len(tokens.answer) > data_config.max_answer:
        raise UserError(f"answer above {data_config.max_answer} tokens (data.max_answer)")
    return Bucket(
        frames=frames,
        height=height,
        width=width,
        prompt=round_up(len(whole), data_config.length_multiple),
        suffix=round_up(len(tokens.answer), data_config.length_multiple),
        video_end=int(visual[-1]) + 1 if len(visual) else 0,
    )


def probe_sources(paths: Sequence[str], cache: Path, max_side: int) -> dict[str, Source]:
    """Probe files in parallel; ``cache`` keeps the results for later runs, for files that do not change."""
    name = hashlib.sha256("\n".join([*paths, str(max_side)]).encode()).hexdigest()[:32]
    file = cache / "index" / f"{name}.json"
    known = json.loads(file.read_text()) if file.is_file() else {}

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
