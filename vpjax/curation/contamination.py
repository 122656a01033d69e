"""What benchmarks hold, so that no training row holds it too: their videos, and runs of words of their texts.

A row is known by the name of its video, and by the share of its runs of RUN words that also stand in a
benchmark: the rule by which language models' training texts are cleaned (GPT-3, arXiv 2005.14165, appendix C,
with runs of 13). No order of a template, of question or options, matters to it.
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np

from vpjax.curation.signatures import hash_of
from vpjax.types import Clip

RUN = 10  # words: captions are short, so 13 would miss most of them (chosen here)
WORD = re.compile(r"\w+")
# What data sets put around the name of a video: ActivityNet's v_, LLaVA-Video's ytb_, and the times of a part
# that was cut out.
PREFIX = re.compile(r"^(v|ytb)_(?=.{11}$)")
PART = re.compile(r"(_\d+(\.\d+)?){2}$")


@dataclasses.dataclass(frozen=True)
class Known:
    """videos: the names of all benchmarks' videos. runs: the hashes u64[n] of their runs of words, sorted."""

    videos: frozenset[str]
    runs: np.ndarray

    def has_video(self, media: Iterable[str]) -> bool:
        return any(not self.videos.isdisjoint(names_of(path)) for path in media)


def known_of(clips: Iterable[Clip]) -> Known:
    """What the clips of benchmarks hold."""
    videos: set[str] = set()
    runs: set[int] = set()
    for clip in clips:
        for path in clip.media:
            videos |= names_of(path)
        for text in (clip.question, clip.answer, *clip.choices):
            runs |= runs_of(text)
    return Known(frozenset(videos), np.array(sorted(runs), np.uint64))


def names_of(path: str) -> set[str]:
    """The names by which data sets may call a video: that of its file, and without what some put around."""
    name = PurePosixPath(path).stem
    return {name, PREFIX.sub("", name), PREFIX.sub("", PART.sub("", name))} - {""}


def runs_of(text: str) -> set[int]:
    """The hashes of all runs of RUN words of a text."""
    words = WORD.findall(text.lower())
    runs = [" ".join(words[first : first + RUN]) for first in range(len(words) - RUN + 1)]
    return {hash_of(run.encode()) for run in runs}


def shared_share(text: str, known: Known) -> float:
    """The share of a text's runs of words that benchmarks hold; 0 for a text that is shorter than a run."""
    runs = np.array(sorted(runs_of(text)), np.uint64)
    if not len(runs) or not len(known.runs):
        return 0.0
    places = np.searchsorted(known.runs, runs).clip(max=len(known.runs) - 1)
    return float(np.mean(known.runs[places] == runs))
