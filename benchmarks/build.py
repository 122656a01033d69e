"""What vpjax.build costs: clips per second by worker processes, the share of decoding, and peak memory.

    python -m benchmarks.build [--clips N] [--seconds S] [--out FILE]

Synthetic videos (320 x 240, 25 frames per second), keywords by rules, key frames by motion. The time to start
the workers is not counted, because building a data set takes far longer.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np

from benchmarks.timing import environment, publish
from vpjax import cli
from vpjax.building.examine import Options, examine
from vpjax.building.items import Item
from vpjax.building.parts import make_part
from vpjax.data.sampling import Sampling
from vpjax.data.video import probe, read_frames
from vpjax.types import Clip

WIDTH, HEIGHT, RATE = 320, 240, 25
WORKERS = (1, 2)
PART = 8  # clips of a part
HOUR, MINUTE = 3600, 60  # seconds


def write_video(path: Path, seconds: float, width: int = WIDTH, height: int = HEIGHT) -> None:
    """A square that moves over noise and flashes once, in the fourth second."""
    rng = np.random.default_rng(0)
    background = rng.integers(60, 90, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "crf": "28"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(int(seconds * RATE)):
            frame = background.copy()
            left = i % (width - height // 4)
            brightness = 250 if i // RATE == 3 else 140
            frame[height // 3 : height // 2, left : left + height // 6] = brightness
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def make_items(count: int) -> list[Item]:
    return [
        Item(f"row {n}", Clip(str(n), f"{n}.mp4", "What happens?", "A square moves right and flashes."))
        for n in range(count)
    ]


def clips_per_second(items: list[Item], options: Options, folder: Path, workers: int) -> float:
    """Clips per second of ``workers`` processes that have already done some work."""
    parts = [items[first : first + PART] for first in range(0, len(items), PART)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:

        def make_parts(parts: list[list[Item]], name: str) -> None:
            files = [str(folder / f"{name}-{workers}-{n}") for n in range(len(parts))]
            list(pool.map(make_part, parts, [options] * len(parts), files))

        make_parts([items[:1]] * (2 * workers), "warm")
        start = time.perf_counter()
        make_parts(parts, "part")
        return len(items) / (time.perf_counter() - start)


def decoding_share(items: list[Item], options: Options) -> float:
    """The share of one process's time that probing, decoding and resizing take."""
    sampling = Sampling(fps=options.fps, max_frames=options.max_frames, max_pixels=options.max_pixels)
    list(examine([items[0]], options))  # loads what all of them need
    examined = decoded = 0.0
    for item in items:
        assert item.clip is not None
        path = str(Path(options.videos, item.clip.video))
        start = time.perf_counter()
        list(examine([item], options))
        middle = time.perf_counter()
        probe(path)
        read_frames(path, sampling)
        examined += middle - start
        decoded += time.perf_counter() - middle
    return decoded / examined


def peak_memory(item: Item, options: Options) -> float:
    """Peak memory in MB of the process that calls this, after it has examined ``item``."""
    list(examine([item], options))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each clip")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_video(folder / "0.mp4", args.seconds)
        for n in range(1, args.clips):
            (folder / f"{n}.mp4").symlink_to(folder / "0.mp4")
        items, options = make_items(args.clips), Options(videos=name)
        rates = {workers: clips_per_second(items, options, folder, workers) for workers in WORKERS}
        share = decoding_share(items[: min(16, len(items))], options)
        peaks = {}
        for seconds in (MINUTE, HOUR):
            write_video(folder / f"long-{seconds}.mp4", seconds, 64, 48)
            long = Item("row 1", Clip("a", f"long-{seconds}.mp4", "What happens?", "A square flashes."))
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                peaks[seconds] = pool.submit(peak_memory, long, options).result()

    lines = [
        "# Building a data set",
        "",
        environment("av", "numpy", "spacy"),
        f"{args.clips} clips of {args.seconds:g} s, {WIDTH} x {HEIGHT}, {RATE} frames/s, {options.fps:g} "
        "of them examined",
        "",
        "| workers | clips/s | over one |",
        "|---|---|---|",
        *(f"| {n} | {rates[n]:.2f} | {rates[n] / rates[WORKERS[0]]:.2f} |" for n in WORKERS),
        "",
        f"Decoding and resizing take {share:.0%} of the time. The peak memory of a process is "
        f"{peaks[MINUTE]:.0f} MB for a clip of a minute and {peaks[HOUR]:.0f} MB for one of an hour (64 x 48 "
        f"pixels, at most {options.max_frames} frames).",
    ]
    publish(lines, args.out)


if __name__ == "__main__":
    cli.run(main)
