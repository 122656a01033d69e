"""Clips -> what a worker needs to make a row of each: its file, its tokens and its bucket, fixed once."""

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

from PIL import ExifTags, Image
from tqdm import tqdm

from vpjax.data.rows import round_up
from vpjax.data.text import Media, Text, Tokens, tokenize
from vpjax.data.video import Sampling, VideoInfo, probe
from vpjax.ops.patches import smart_resize
from vpjax.types import Bucket, Clip, UserError

if TYPE_CHECKING:
    from vpjax.models.vlm import VLMConfig

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclasses.dataclass(frozen=True)
class Source:
    """A file as it was when it was indexed: bytes, time of its last change in ns. media: None where a clip
    has no file. fault: why it cannot be used, or "".
    """

    path: str
    media: Media | None
    size: int = 0
    modified: int = 0
    info: VideoInfo | None = None
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A clip that is used. number: its place among all clips."""

    number: int
    id: str
    source: Source
    tokens: Tokens
    bucket: Bucket


@dataclasses.dataclass(frozen=True)
class Index:
    """entries: the clips that are used, in their order. rejected: reason -> ids of clips that are not."""

    entries: list[Entry]
    rejected: dict[str, list[str]]


def build_index(
    clips: Sequence[Clip],
    text: Text,
    config: VLMConfig,
    *,
    sampling: Sampling,
    min_pixels: int,
    max_pixels: int,
    multiple: int,
    max_prompt: int,
    max_answer: int,
    keywords: int,
    keyword_tokens: int,
    cache: Path,
) -> Index:
    """Probe every file (in parallel; what was learnt is kept in ``cache``), tokenize every clip, give each
    its bucket and reject those that are too long. See configs/base.py, ``data``, for the limits.

    A clip whose file cannot be probed stays, with its fault, at the size that most files have: it becomes a
    masked row, and where all files are alike the order of the others is what it would be without the fault.
    """
    factor = config.vision.patch * config.vision.merge
    sources = sources_of(sorted({clip.video for clip in clips}), cache)

    def shape(source: Source) -> tuple[int, int, int]:
        if source.media is None:
            return 0, 0, 0
        size = smart_resize(
            source.info.height, source.info.width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels
        )
        return (frame_count(source, sampling), *size)

    shapes = {}
    for path, source in sources.items():
        if not source.fault:
            try:
                shapes[path] = shape(source)
            except ValueError as error:
                sources[path] = dataclasses.replace(source, fault=str(error))
    common = Counter(shapes[clip.video] for clip in clips if clip.video in shapes).most_common(1)
    if not common:
        first = next(source for source in sources.values() if source.fault)
        raise UserError(f"none of {len(sources)} videos can be read; the first: {first.fault}")

    entries, rejected = [], {}
    for number, clip in enumerate(clips):
        source = sources[clip.video]
        frames, height, width = shapes.get(clip.video, common[0][0])
        try:
            tokens = tokenize(
                clip, text, media=source.media, keywords=keywords, keyword_tokens=keyword_tokens
            )
        except UserError as error:
            rejected.setdefault(str(error), []).append(clip.id)
            continue
        visual = frames // config.vision.temporal * (height // factor) * (width // factor)
        prompt = len(tokens.prompt) - (source.media is not None) + visual
        if prompt > max_prompt:
            rejected.setdefault(f"prompt above {max_prompt} tokens (data.max_prompt)", []).append(clip.id)
        elif len(tokens.answer) > max_answer:
            rejected.setdefault(f"answer above {max_answer} tokens (data.max_answer)", []).append(clip.id)
        else:
            pads = (config.image_token, config.video_token)
            before = next((i for i, token in enumerate(tokens.prompt) if token in pads), 0)
            bucket = Bucket(
                frames,
                height,
                width,
                prompt=round_up(prompt, multiple),
                suffix=round_up(len(tokens.answer), multiple),
                video_end=before + visual,
            )
            entries.append(Entry(number, clip.id, source, tokens, bucket))
    if not entries:
        reasons = "; ".join(f"{reason}: {len(ids)}" for reason, ids in rejected.items())
        raise UserError(f"every one of {len(clips)} clips is rejected: {reasons}")
    return Index(entries, rejected)


def frame_count(source: Source, sampling: Sampling) -> int:
    """F of a file's bucket, even. By ``fps`` it depends on the file's length and is rounded up in steps of at
    most a quarter, so that there are few buckets."""
    if source.media == "image":
        return 2
    if sampling.frames is not None:
        return round_up(sampling.frames, 2)
    count = min(math.ceil(source.info.duration * sampling.fps), source.info.frames, sampling.max_frames)
    return round_up(count, max(2, 2 ** (count.bit_length() - 3)))


def probe_image(path: str) -> VideoInfo:
    """The size of an image, upright, without decoding it. OSError where it is none."""
    with Image.open(path) as image:
        size = image.size[::-1] if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5 else image.size
        return VideoInfo(*size, duration=0.0, fps=0.0, frames=1)


def sources_of(paths: Sequence[str], cache: Path) -> dict[str, Source]:
    """Probe files, or take what an earlier run learnt of those that have not changed since."""
    kept = cache / "index" / (hashlib.sha256("\n".join(paths).encode()).hexdigest()[:32] + ".json")
    known = json.loads(kept.read_text()) if kept.is_file() else {}

    def look(path: str) -> Source:
        if not path:
            return Source(path, None)
        media: Media = "image" if Path(path).suffix.lower() in IMAGES else "video"
        try:
            status = os.stat(path)
            stamp = [status.st_size, status.st_mtime_ns]
            look_at = probe_image if media == "image" else probe
            info = known[path][2:] if known.get(path, [])[:2] == stamp else dataclasses.astuple(look_at(path))
        except (OSError, UserError) as error:
            return Source(path, media, fault=str(error))
        return Source(path, media, *stamp, info=VideoInfo(*info))

    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        bar = tqdm(pool.map(look, paths), total=len(paths), desc="probing videos", unit="file", delay=2)
        sources = dict(zip(paths, bar, strict=True))
    found = {
        path: [source.size, source.modified, *dataclasses.astuple(source.info)]
        for path, source in sources.items()
        if source.info is not None
    }
    if found != known:
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(found))
        unfinished.replace(kept)
    return sources
