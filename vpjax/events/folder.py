"""The folder of built-in clips: its name tells what they look like, and each file is written once, whole."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from vpjax.files import read_object, write_whole
from vpjax.types import Clip, UserError

Described = TypeVar("Described")  # a scene
SENTENCES = "sentences.json"  # in a folder of clips: what a tokenizer is trained on


def folder_name(kind: str, version: int, fields: Mapping[str, Any]) -> str:
    """The name of the folder of clips of a kind whose appearance these fields describe."""
    text = json.dumps([version, fields], sort_keys=True)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def write_event_clips(
    describe: Callable[[str, int], tuple[Clip, Described]],
    video_of: Callable[[Described], bytes],
    home: Path,
    splits: Mapping[str, int],
) -> dict[str, Path]:
    """Write the clips that the folder ``home`` does not hold yet: split -> its file of Clips, one JSON line
    each.

    describe: split, index -> the clip and the scene that its video shows. video_of: scene -> its file.
    splits: the number of clips of each. A file gets its name when it is complete, and never changes
    afterwards: a killed run continues where it stopped, several processes can share the folder, and the first
    clips of a split are the same whatever its length. UserError if a file cannot be written.
    """

    def make_clip(split: str, index: int) -> str:
        clip, scene = describe(split, index)
        video = home / clip.video
        if not video.exists() or not video.stat().st_size:  # a power cut leaves empty files
            write_whole(video, video_of(scene), keep=False)
        return json.dumps(clip.record()) + "\n"

    files = {split: home / f"{split}-{count}.jsonl" for split, count in splits.items()}
    # Threads: drawing and encoding run mostly outside Python's lock, and new processes would have to start
    # without a fork (JAX may already run threads), each importing the caller's main module.
    pool = ThreadPoolExecutor()
    try:
        for split, file in files.items():
            if not file.exists():
                lines = pool.map(functools.partial(make_clip, split), range(splits[split]))
                bar = tqdm(lines, f"event clips ({split})", total=splits[split], unit="clip")
                write_whole(file, "".join(bar).encode())
    except OSError as error:
        raise UserError(f"{home}: event clips cannot be written: {error.strerror or error}") from error
    finally:
        pool.shutdown(cancel_futures=True)
    return files


def kept_sentences(home: Path, draw: Callable[[], Iterable[str]]) -> list[str]:
    """The texts that a tokenizer for the clips of the folder ``home`` is trained on: those of ``draw``, which
    takes a second, and from then on those of a file. UserError if that is damaged."""
    file = home / SENTENCES
    if not file.exists():
        write_whole(file, json.dumps({"sentences": list(draw())}).encode())
    return read_object(file, "delete it, and the same command makes it anew")["sentences"]
