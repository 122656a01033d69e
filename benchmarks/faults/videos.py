"""Mutated videos: what ``probe`` and ``read_frames`` make of them, as every command reads videos."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from benchmarks.faults.pool import kind_at
from benchmarks.faults.tally import refusal
from vpjax.building.examine import Options
from vpjax.data.decode import GAP
from vpjax.data.sampling import Sampling
from vpjax.data.video import probe, read_frames
from vpjax.types import UserError

FRAMES, RATE, HEIGHT, WIDTH = 75, 25, 64, 96
# Of the files that are mutated: suffix, codec, options of the muxer.
SEEDS = {
    "H.264, mp4": (".mp4", "libx264", {}),
    "H.264, mp4, header first": (".mp4", "libx264", {"movflags": "faststart"}),
    "H.264, fragmented mp4": (".mp4", "libx264", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "H.264, fragmented mp4 with an index": (
        ".mp4",
        "libx264",
        {"movflags": "frag_keyframe+dash+global_sidx"},
    ),
    "HEVC, mp4": (".mp4", "libx265", {}),
    "VP9, webm": (".webm", "libvpx-vp9", {}),
    "AV1, mp4": (".mp4", "libsvtav1", {}),
    "H.264, mkv": (".mkv", "libx264", {}),
    "MPEG-4, avi": (".avi", "mpeg4", {}),
    "H.264, transport stream": (".ts", "libx264", {}),
}
ENCODING = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": {"preset": "12"},
    "mpeg4": {},
}
CONTAINERS = (
    b"moov",
    b"trak",
    b"mdia",
    b"minf",
    b"stbl",
    b"moof",
    b"traf",
    b"mvex",
    b"edts",
    b"dinf",
    b"udta",
)
ABSURD = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE)


class Seed(NamedTuple):
    """A whole file and how many frames it shows."""

    name: str
    suffix: str
    content: bytes
    frames: int


class Box(NamedTuple):
    """A box of an mp4 file. start, end: its bytes."""

    kind: bytes
    start: int
    end: int


@functools.cache
def seeds(folder: Path) -> tuple[Seed, ...]:
    """The whole files, made once in a folder."""
    made = []
    for number, (name, (suffix, codec, muxer)) in enumerate(SEEDS.items()):
        file = folder / f"seed{number}{suffix}"
        if not file.exists():
            part = file.with_name(f"part{suffix}")
            write_seed(part, codec, muxer)
            part.replace(file)
        made.append(Seed(name, suffix, file.read_bytes(), probe(file).frames))
    return tuple(made)


def write_seed(path: Path, codec: str, muxer: dict[str, str]) -> None:
    """A pattern that moves over noise, a keyframe every half second."""
    noise = np.random.default_rng(0).integers(0, 60, (HEIGHT, WIDTH, 3), np.uint8)
    with av.open(str(path), "w", options=muxer) as file:
        stream: Any = file.add_stream(codec, rate=RATE, options=ENCODING[codec])
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", 12
        for number in range(FRAMES):
            picture = noise.copy()
            picture[16:48, number % 64 : number % 64 + 32] += 120
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        file.mux(stream.encode())


def boxes(content: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes of an mp4 file, those that hold others before these."""
    end = len(content) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", content[start : start + 8])
        if size < 8 or start + size > end:
            return
        yield Box(kind, start, start + size)
        if kind in CONTAINERS:
            yield from boxes(content, start + 8, start + size)
        start += size


def flip(rng: np.random.Generator, seed: Seed) -> bytes:
    """Up to 64 bytes changed, anywhere."""
    content = np.frombuffer(seed.content, np.uint8).copy()
    places = rng.integers(0, len(content), rng.integers(1, 65))
    content[places] ^= rng.integers(1, 256, len(places), np.uint8)
    return content.tobytes()


def flip_header(rng: np.random.Generator, seed: Seed) -> bytes:
    """A few bytes changed in the headers."""
    content, begin, end = bytearray(seed.content), *header(seed)
    for _ in range(rng.integers(1, 6)):
        content[rng.integers(begin, end)] ^= int(rng.integers(1, 256))
    return bytes(content)


def header(seed: Seed) -> tuple[int, int]:
    """Where a file's header is: mp4's ``moov``, else its first kilobyte."""
    for box in boxes(seed.content):
        if box.kind == b"moov":
            return box.start, box.end
    return 0, min(1024, len(seed.content))


def absurd_header(rng: np.random.Generator, seed: Seed) -> bytes:
    """Up to three numbers of the headers made absurd: sizes, counts, times, widths."""
    content, begin, end = bytearray(seed.content), *header(seed)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(begin, end - 4))
        if seed.suffix == ".mp4":
            place -= (place - begin) % 4
        content[place : place + 4] = struct.pack(">I", ABSURD[rng.integers(len(ABSURD))])
    return bytes(content)


def cut(rng: np.random.Generator, seed: Seed) -> bytes:
    """The beginning of the file, or its end, or it without a part of its middle."""
    first, last = sorted(rng.integers(1, len(seed.content), 2).tolist())
    choice = rng.integers(4)
    if choice == 0:
        return seed.content[first:]
    if choice == 1:
        return seed.content[:first] + seed.content[last:]
    return seed.content[:last]


def bad_sector(rng: np.random.Generator, seed: Seed) -> bytes:
    """A block of zeros, or of noise, as a disk gives back."""
    content = bytearray(seed.content)
    size = int(rng.integers(1, 4097))
    place = int(rng.integers(0, len(content)))
    block = bytes(size) if rng.integers(2) else rng.bytes(size)
    content[place : place + size] = block[: len(content) - place]
    return bytes(content)


def change_boxes(rng: np.random.Generator, seed: Seed) -> bytes:
    """Boxes of mp4 swapped, left out, written twice, or with another size."""
    found = list(boxes(seed.content))
    if len(found) < 2:
        return bad_sector(rng, seed)
    content, box = seed.content, found[rng.integers(len(found))]
    choice = rng.integers(4)
    if choice == 0:
        return content[: box.start] + content[box.end :]
    if choice == 1:
        return content[: box.end] + content[box.start :]
    if choice == 2:
        sizes = (*ABSURD, box.end - box.start + 8, (box.end - box.start) // 2)
        size = struct.pack(">I", sizes[rng.integers(len(sizes))])
        return content[: box.start] + size + content[box.start + 4 :]
    other = found[rng.integers(len(found))]
    first, second = sorted((box, other), key=lambda b: b.start)
    if first.end > second.start:  # one holds the other
        return content[: box.start] + content[other.start : other.end] + content[box.end :]
    parts = (content[: first.start], content[second.start : second.end], content[first.end : second.start])
    return b"".join((*parts, content[first.start : first.end], content[second.end :]))


def change_fragments(rng: np.random.Generator, seed: Seed) -> bytes:
    """Fragments, or pieces of a file of another kind, lost, written twice or in another order."""
    top = [box for box in boxes(seed.content) if box.kind in (b"moof", b"mdat")]
    starts = [box.start for box in top if box.kind == b"moof"]
    if len(starts) < 3:
        size = max(len(seed.content) // 8, 1)
        starts = list(range(size, len(seed.content), size))
    pieces = [seed.content[a:b] for a, b in zip(starts, [*starts[1:], len(seed.content)], strict=True)]
    number, choice = int(rng.integers(len(pieces))), rng.integers(3)
    if choice == 0:
        del pieces[number]
    elif choice == 1:
        pieces.insert(number, pieces[number])
    else:
        pieces = [pieces[i] for i in rng.permutation(len(pieces))]
    return seed.content[: starts[0]] + b"".join(pieces)


MUTATIONS: dict[str, Callable[[np.random.Generator, Seed], bytes]] = {
    "bytes changed": flip,
    "bytes of headers changed": flip_header,
    "absurd numbers in headers": absurd_header,
    "cut": cut,
    "a block of zeros or noise": bad_sector,
    "boxes swapped, lost, doubled": change_boxes,
    "fragments lost, doubled, moved": change_fragments,
}


def mutated(number: int, folder: Path, seed: int) -> tuple[Seed, bytes]:
    """The whole file of a trial, and the mutated one."""
    rng = np.random.default_rng([seed, number])
    whole = seeds(folder)[rng.integers(len(SEEDS))]
    return whole, MUTATIONS[kind_at(MUTATIONS, number)](rng, whole)


def attempt(number: int, folder: Path, seed: int) -> tuple[str, str, str]:
    """A trial: the file is probed, and its frames are read as ``vpjax.build`` reads them."""
    whole, content = mutated(number, folder, seed)
    file = folder / f"mutated{whole.suffix}"
    file.write_bytes(content)
    options = Options()
    sampling = Sampling(fps=options.fps, max_frames=options.max_frames, max_pixels=options.max_pixels)
    try:
        info = probe(file)
        read_frames(file, sampling)
    except UserError as error:
        return kind_at(MUTATIONS, number), refusal(error), f"{whole.name}: {error}"
    detail = f"{whole.name}: {info.frames} of {whole.frames} frames, {info.lost} counted as lost"
    missing = whole.frames - info.frames
    if info.lost:
        return kind_at(MUTATIONS, number), "told", detail
    return kind_at(MUTATIONS, number), "lost" if missing >= GAP else "read", detail
