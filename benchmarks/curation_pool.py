"""A pool of rows whose truth is known: built-in event clips, and what a curation should drop.

Each row has its kind in ``extra["truth"]``. A row of the kind ``good`` has a brief event, a right caption and
a span a little wider than the event. The other kinds differ from it in one thing. Of two copies, either may
be kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vpjax.curation.contamination import RUN
from vpjax.events.clips import EventSpec, describe, make_event_clips
from vpjax.events.drawing import EVENTS, Event, draw, encode
from vpjax.events.text import QUESTIONS, caption_variants
from vpjax.files import write_whole
from vpjax.types import Clip

# A background of its own: on plain ones two videos of a few hundred are alike by chance.
SPEC = EventSpec(seed=101, texture=12.0)
WIDER = 0.125  # seconds by which an annotated span is wider than its event, at either end
SERIES = "Describe the video of series {}."  # a question whose number tells the event
SCENES = ("a tree in a garden", "the red wall of a house", "a table with two chairs", "the sky over the sea")
FRENCH = (
    "Un {} rouge saute au milieu de la piste puis disparait.",
    "Le petit {} bleu tourne sur lui-meme pendant un instant.",
)


def pool_row(clip: Clip, **changes) -> Clip:
    """A row as a user's annotation would have it: no keywords, the span a little too wide."""
    spans = tuple((max(0.0, start - WIDER), end + WIDER) for start, end in clip.spans)
    fields = dict(keywords=(), spans=spans, degraded_answer="", extra={}, task="caption") | changes
    return dataclasses.replace(clip, **fields)


def with_series(clip: Clip) -> Clip:
    """A clip whose question tells its event to whoever knows the series."""
    number = EVENTS.index(clip.extra["event"]) + 1
    return dataclasses.replace(clip, question=SERIES.format(number))


def in_capitals(clip: Clip) -> Clip:
    """A clip that says the same in capitals."""

    def louder(text: str) -> str:
        return text.upper().replace(".", " !")

    keywords = tuple(dataclasses.replace(x, text=louder(x.text)) for x in clip.keywords)
    return dataclasses.replace(
        clip, answer=louder(clip.answer), degraded_answer=louder(clip.degraded_answer), keywords=keywords
    )


def lasting_scene(index: int) -> tuple[Clip, float, bytes]:
    """A clip whose event begins early and does not end, its length in seconds, and its video."""
    clip, scene = describe(SPEC, "train", index)
    start = 3
    event = Event(scene.events[0].kind, start, scene.frames - start)
    scene = dataclasses.replace(scene, events=(event,), flickers=())
    content = encode(draw(scene, noise=SPEC.noise), fps=scene.fps, crf=SPEC.crf)
    return dataclasses.replace(clip, spans=((start / scene.fps, scene.frames / scene.fps),)), 2.0, content


def copied_video(index: int) -> bytes:
    """The video of a clip once more, darker and more strongly compressed."""
    _, scene = describe(SPEC, "train", index)
    darker = (draw(scene, noise=SPEC.noise) * 0.92).astype(np.uint8)
    return encode(darker, fps=scene.fps, crf=26)


def elsewhere(clip: Clip, seconds: float = 2.0) -> tuple[tuple[float, float], ...]:
    """A span of the usual length at the end of the clip that is farther from its event."""
    start, end = clip.spans[0]
    length = end - start + 2 * WIDER
    return ((0.0, length),) if start > seconds - end else ((seconds - length, seconds),)


def make_pool(folder: Path, count: int) -> Path:
    """Write the pool, ``count`` rows of each kind and five times as many good ones, as a source ``pool`` with
    one annotation file, and a benchmark's file. Returns the folder of all sources."""
    rng = random.Random(0)
    home, videos = folder / "pool", folder / "pool" / "videos"
    kinds = ("good",) * 5 + tuple(KINDS)
    scenes = unlike_scenes(count * len(kinds))
    file = make_event_clips(SPEC, folder / "clips", {"train": max(scenes) + 1})["train"]
    lines, asked = [], []
    for number, (index, clip) in enumerate(scenes.items()):
        kind = kinds[number % len(kinds)]
        name = f"{index:06d}.mp4"
        write_whole(videos / name, (file.parent / clip.video).read_bytes(), keep=False)
        row = pool_row(clip, video=name)
        if kind == "good":
            lines.append(line_of(row, kind))
            continue
        lines += KINDS[kind](row, clip, index, videos, rng)
        if kind == "benchmark":
            asked.append(json.dumps(dataclasses.replace(clip, video=name).record()))
    rng.shuffle(lines)
    write_whole(home / "rows.jsonl", "".join(f"{line}\n" for line in lines).encode())
    write_whole(folder / "asked.jsonl", "".join(f"{line}\n" for line in asked).encode())
    return folder


def unlike_scenes(count: int) -> dict[int, Clip]:
    """The first ``count`` clips by number, of which no two have the same caption of RUN words or more: by
    chance they would be copies of one another, or have a benchmark's words."""
    numbers, told, chosen = itertools.count(), set[str](), dict[int, Clip]()
    while len(chosen) < count:
        index = next(numbers)
        clip, _ = describe(SPEC, "train", index)
        if clip.answer not in told:
            chosen[index] = clip
        if len(clip.answer.split()) >= RUN:
            told.add(clip.answer)
    return chosen


def line_of(row: Clip, kind: str) -> str:
    return json.dumps(dataclasses.replace(row, extra={"truth": kind}).record())


Maker = Callable[[Clip, Clip, int, Path, random.Random], list[str]]


def unreadable(row, clip, index, videos, rng):
    line = line_of(row, "unreadable")
    return [line[: len(line) // 2]]


def french(row, clip, index, videos, rng):
    thing = ("carre", "triangle", "ballon")[index % 3]
    text = FRENCH[index % 2].format(thing)
    return [line_of(dataclasses.replace(row, answer=text), "french")]


def no_event(row, clip, index, videos, rng):
    return [line_of(dataclasses.replace(row, answer=f"We see {SCENES[index % 4]}."), "no event")]


def benchmark(row, clip, index, videos, rng):
    return [line_of(row, "benchmark")]


def goes_on(row, clip, index, videos, rng):
    words = clip.extra
    text = f"A {words['colour']} {words['shape']} drifts to the {words['direction']} all the time."
    return [line_of(dataclasses.replace(row, answer=text), "goes on")]


def lasting_change(row, clip, index, videos, rng):
    lasting, _, content = lasting_scene(index)
    write_whole(videos / row.video, content, keep=False)
    return [line_of(dataclasses.replace(row, spans=lasting.spans), "lasting change")]


def lasting_onset(row, clip, index, videos, rng):
    lasting, _, content = lasting_scene(index)
    write_whole(videos / row.video, content, keep=False)
    start = lasting.spans[0][0]
    return [line_of(dataclasses.replace(row, spans=((start - WIDER, start + 3 * WIDER),)), "lasting onset")]


def caption_copy(row, clip, index, videos, rng):
    return [line_of(row, "caption copy"), line_of(in_capitals(row), "caption copy")]


def picture_copy(row, clip, index, videos, rng):
    name = f"again-{rng.randrange(10**9)}.mp4"
    write_whole(videos / name, copied_video(index), keep=False)
    question = QUESTIONS[QUESTIONS.index(row.question) - 1]  # another one
    other = dataclasses.replace(row, video=name, question=question)
    return [line_of(row, "picture copy"), line_of(other, "picture copy")]


def broken_file(row, clip, index, videos, rng):
    path = videos / row.video
    content = path.read_bytes()
    path.unlink()
    if index % 2:
        write_whole(path, content[: len(content) // 3], keep=False)
    return [line_of(row, "broken file")]


def misplaced(row, clip, index, videos, rng):
    return [line_of(dataclasses.replace(row, spans=elsewhere(clip)), "misplaced")]


def prior(row, clip, index, videos, rng):
    return [line_of(dataclasses.replace(row, question=with_series(clip).question), "prior")]


def wrong(row, clip, index, videos, rng):
    others = [text for text in caption_variants(clip.answer) if text != clip.answer]
    return [line_of(dataclasses.replace(row, answer=rng.choice(others)), "wrong caption")]


KINDS: dict[str, Maker] = {
    "unreadable": unreadable,
    "french": french,
    "no event": no_event,
    "benchmark": benchmark,
    "goes on": goes_on,
    "lasting change": lasting_change,
    "lasting onset": lasting_onset,
    "caption copy": caption_copy,
    "picture copy": picture_copy,
    "broken file": broken_file,
    "misplaced": misplaced,
    "prior": prior,
    "wrong caption": wrong,
}
