"""Which annotated events no sampled slot shows: known from the clips' plans, before anything is decoded."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vpjax.data.keyframes import slots_of
from vpjax.data.sampling import Part, Sampling, Shape, VideoInfo, frame_times, resolve_part
from vpjax.types import UserError

EVENT_EDGES = (0.125, 0.25, 0.5, 1.0, 2.0)  # seconds: the rows of the table
CLIP_EDGES = (10.0, 30.0, 60.0)  # seconds: its columns
SHORT = 30.0  # seconds: of the clips whose share is given apart

Spans = tuple[tuple[float, float], ...]


class PlannedClip(NamedTuple):
    """A clip as it will be read. events: the spans (start, end) of each event (as those of a ``Keyword``), in
    seconds of the file; equal ones are one event. shape: as ``fit`` plans it for the part of the file.
    sampling: of that part; None: that of all."""

    events: Iterable[Spans]
    info: VideoInfo
    part: Part
    shape: Shape
    sampling: Sampling | None = None


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Of N annotated events, which are shown.

    event_seconds, clip_seconds f64[N]: of an event's longest span, and of its clip. missed bool[N]: whether
    no slot shows it. thinned bool[N]: whether its clip has fewer frames than ``sampling`` asks for, by one of
    its limits. outside: the number of other events, which are not in the part of the file that is the clip.
    """

    sampling: Sampling
    event_seconds: np.ndarray
    clip_seconds: np.ndarray
    missed: np.ndarray
    thinned: np.ndarray
    outside: int

    def share(self, longest_clip: float = np.inf) -> float:
        """The share of events that are missed, in clips up to ``longest_clip`` seconds; 0 without events."""
        missed = self.missed[self.clip_seconds <= longest_clip]
        return float(missed.mean()) if len(missed) else 0.0

    def table(self) -> list[list[str]]:
        """The names of columns, and a row for each length of event: its name and, for each length of clip,
        the per cent of events that are missed, and how many events there are."""
        event_bins = np.digitize(self.event_seconds, EVENT_EDGES)
        clip_bins = np.digitize(self.clip_seconds, CLIP_EDGES, right=True)
        every = np.ones(len(self.missed), bool)
        columns = [clip_bins == number for number in range(len(CLIP_EDGES) + 1)] + [every]
        rows = [event_bins == number for number in range(len(EVENT_EDGES) + 1)] + [every]
        table = [["% missed (events)", *(f"clips {name}" for name in _ranges("to", CLIP_EDGES)), "all clips"]]
        names = [*(f"events {name}" for name in _ranges("below", EVENT_EDGES)), "all events"]
        for name, in_row in zip(names, rows, strict=True):
            cells = []
            for in_column in columns:
                missed = self.missed[in_row & in_column]
                cells.append(f"{100 * missed.mean():.1f} ({len(missed)})" if len(missed) else "-")
            table.append([name, *cells])
        return table

    def lines(self) -> list[str]:
        """The table, if an event is missed, and its sum, to be printed; [] without events."""
        lines = []
        if self.missed.any():
            table = self.table()
            widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
            for name, *cells in table:
                aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
                lines.append("  ".join([name.ljust(widths[0]), *aligned]))
        if len(self.missed):
            lines.append(f"{self.total()}; in clips up to {SHORT:g} s {100 * self.share(SHORT):.1f} %")
        if self.outside:
            lines.append(f"{self.outside} annotated events lie outside of their clips and are not counted")
        return lines

    def total(self) -> str:
        """The number and share of events that are missed, in words."""
        count = f"{self.missed.sum()} of {len(self.missed)} annotated events"
        return f"{count} ({100 * self.share():.1f} %) are in no slot"


def measure(clips: Iterable[PlannedClip], sampling: Sampling) -> Coverage:
    """Which events of the clips are shown, if the frame rates of their files are constant. Images are left
    out, for nothing happens in them. Where frames are read by what they show, none of a part's events is
    missed, though it may be if more than one falls into one part."""
    events: list[_Event] = []
    outside = 0
    for clip_events, info, part, shape, own in clips:
        distinct = {spans for spans in clip_events if spans}
        if not distinct or not info.duration:
            continue
        first, last = resolve_part(info.duration, info.frame_seconds, *part)
        own = own or sampling
        times = frame_times(own, info, part, shape[0])
        asked = own.frames or (last - first) * (own.fps or 0.0)
        shown = info.frame_seconds
        if own.pick != "first":  # whatever changes most in a part stands for it, whenever it happens
            shown = max(shown, (last - first) / len(times))
        for spans in distinct:
            seconds = [end - start for start, end in spans if start < last and end >= first]
            if not seconds:
                outside += 1
                continue
            is_missed = not slots_of(spans, times, shown).any()
            events.append(_Event(max(seconds), last - first, is_missed, is_thinned=shape[0] < asked - 1))
    return Coverage(
        sampling,
        event_seconds=np.array([event.seconds for event in events], float),
        clip_seconds=np.array([event.clip_seconds for event in events], float),
        missed=np.array([event.is_missed for event in events], bool),
        thinned=np.array([event.is_thinned for event in events], bool),
        outside=outside,
    )


class _Event(NamedTuple):
    """An event of a clip, see ``Coverage``."""

    seconds: float
    clip_seconds: float
    is_missed: bool
    is_thinned: bool


def check(coverage: Coverage, max_missed_share: float) -> None:
    """UserError, which says what to change, if a larger share of the events is missed."""
    if coverage.share() <= max_missed_share:
        return
    sampling, count = coverage.sampling, int(coverage.missed.sum())
    thinned = int((coverage.missed & coverage.thinned).sum())
    remedies = []
    if count > thinned:
        rate = f"raise data.fps={sampling.fps:g}" if sampling.fps else "set data.fps in place of data.frames"
        remedies.append(f"{rate} for {count - thinned} of them")
    if thinned:
        remedies.append(
            f"lower data.min_pixels={sampling.min_pixels}, or raise data.max_tokens, data.total_pixels or "
            f"data.max_frames, for {thinned} whose clips have fewer frames than asked for"
        )
    limit = f"more than data.max_missed_share={max_missed_share:g} allows"
    raise UserError(f"{coverage.total()}, {limit}: {'; '.join(remedies)}")


def _ranges(below: str, edges: Sequence[float]) -> list[str]:
    """The names of the ranges below the first edge, from each edge to the next, and above the last."""
    between = [f"{low:g} to {high:g} s" for low, high in itertools.pairwise(edges)]
    return [f"{below} {edges[0]:g} s", *between, f"above {edges[-1]:g} s"]
