"""Probes the files of clips: how large, long and fast they are, or why they cannot be used."""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vpjax.data.cache import PIXELS_VERSION
from vpjax.data.images import is_image
from vpjax.data.sampling import VideoInfo
from vpjax.data.text import Media
from vpjax.data.video import probe, probe_image
from vpjax.files import stamp, write_whole
from vpjax.types import UserError


@dataclasses.dataclass(frozen=True)
class Source:
    """A file when it was indexed. size: bytes. modified: time in ns. fault: why the file cannot be used, or
    ""."""

    path: str
    media: Media
    size: int = 0
    modified: int = 0
    info: VideoInfo | None = None
    fault: str = ""


def fault_of(sources: Sequence[Source]) -> str:
    """Why one of the files of a clip cannot be used, or ""."""
    return next((source.fault for source in sources if source.fault), "")


def probe_sources(paths: Sequence[str], cache: Path, max_side: int) -> dict[str, Source]:
    """Probe files in parallel; ``cache`` keeps the results for later runs, for files that do not change."""
    fields = [field.name for field in dataclasses.fields(VideoInfo)]  # a cache of other fields is another one
    parts = [*paths, str(max_side), *fields, str(PIXELS_VERSION)]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    file = cache / "index" / f"{name}.json"
    known = read_probed(file, len(fields))

    def probe_source(path: str) -> Source:
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
        path: [source.size, source.modified, *(getattr(source.info, field) for field in fields)]
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
