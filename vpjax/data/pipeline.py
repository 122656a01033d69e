"""Batches of clips by grain: their buckets and order, made by several workers and processes.

The batch of a step is a pure function of (clips, seed, step). The data state of a run is therefore one
integer, and a loader that starts at step k yields the same batches from there as an uninterrupted one, with
any number of workers and processes.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from vpjax.data import coverage, tfio
from vpjax.data.cache import DamagedPage, FrameCache, cache_folder
from vpjax.data.collate import collate, collate_prompts
from vpjax.data.index import Entry, Index, build_index, prompt_sizes
from vpjax.data.mixture import Mixture
from vpjax.data.packing import PackedPlan, PromptPlan, Sizes, blocks_of
from vpjax.data.probing import Source
from vpjax.data.rows import LATER_FRAMES, NO_ANSWERS, DegradedAnswers, Row, training_row
from vpjax.data.sampling import Reading, Sampling, Shape
from vpjax.data.text import Text
from vpjax.data.units import Capacity, grid_of
from vpjax.data.video import Video, read_frames, read_image
from vpjax.types import Batch, Clip, Prompts, UserError

if TYPE_CHECKING:
    from vpjax.models.config import VLMConfig

DAMAGED_PAGE = "their page in the cache of frames was damaged, and they were decoded again"
FOREVER = 1 << 40  # steps: a loader has no end


class Element(NamedTuple):
    """A batch, and the faults and remarks that came up while it was made, as (id, reason) pairs."""

    batch: Batch | Prompts
    faults: list[tuple[str, str]]
    notes: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True, repr=False)  # grain would print all clips to find a name for it
class BatchMaker:
    """Maps a step to the Element with some rows of its batch, whose numbers are ``part``; runs in workers."""

    plan: PackedPlan | PromptPlan
    entries: Sequence[Entry]
    capacity: Capacity
    model_config: VLMConfig
    data_config: ConfigDict
    cache: FrameCache
    part: Sequence[int]
    seed: int
    answers: DegradedAnswers = NO_ANSWERS

    def __call__(self, step: int) -> Element:
        rows: list[list[Row]] = []
        faults: list[tuple[str, str]] = []
        notes: list[tuple[str, str]] = []
        planned = self.plan.rows(step)
        for epoch, numbers in (planned[row] for row in self.part):
            rows.append([])
            for number in numbers:
                entry = self.entries[number]
                try:
                    row = self.row(entry, epoch)
                except UserError as error:
                    faults.append((entry.id, str(error)))
                else:
                    rows[-1].append(row)
                    notes.extend((entry.id, note) for note in row.notes)
        shape = self.plan.capacity(step), self.capacity, self.model_config
        batch: Batch | Prompts
        if isinstance(self.plan, PackedPlan):
            batch = collate(rows, *shape, self.data_config.keyword_tokens)
        else:
            keywords = self.data_config.keywords, self.data_config.keyword_tokens
            batch = collate_prompts([row[0] if row else None for row in rows], *shape, *keywords)
        return Element(batch, faults, notes)

    def row(self, entry: Entry, epoch: int) -> Row:
        """The row of a clip. UserError if its video cannot be used."""
        if entry.fault:
            raise UserError(entry.fault)
        videos, notes = self.videos(entry)
        row = training_row(
            entry.tokens,
            videos,
            self.model_config,
            self.capacity,
            replacement=self.data_config.replacement,
            pool=self.data_config.pool,
            widen=self.data_config.widen,
            answers=self.answers,
            seed=(self.seed, epoch, entry.number),
            clip=entry.number,
            data_set=entry.data_set,
        )
        if isinstance(self.plan, PackedPlan) and len(row.degraded.tokens) > entry.sizes.degraded:
            row = row.without_degraded(LATER_FRAMES)
        return dataclasses.replace(row, notes=row.notes + notes)

    def videos(self, entry: Entry) -> tuple[list[Video], tuple[str, ...]]:
        """The frames of each of a clip's media, from the cache if they are there, and remarks."""
        media = zip(entry.sources, entry.shapes, entry.readings, strict=True)
        videos = [self.video(*medium) for medium in media]
        return [video for video, _ in videos], tuple(note for _, notes in videos for note in notes)

    def video(self, source: Source, shape: Shape, reading: Reading) -> tuple[Video, tuple[str, ...]]:
        """The frames of a file in a planned shape, from the cache if they are there, and remarks."""
        key = self.cache.key(source.path, source.size, source.modified, reading.sampling, shape, reading.part)
        notes: tuple[str, ...] = ()
        try:
            video = self.cache.get(key)
            if video is not None:
                return video, ()
        except DamagedPage:
            notes = (DAMAGED_PAGE,)
        video = self.decoded(source, shape, reading)
        try:
            self.cache.put(key, video)
        except OSError as error:
            notes += (f"decoded frames not kept in {self.cache.folder}: {error.strerror}",)
        return video, notes

    def decoded(self, source: Source, shape: Shape, reading: Reading) -> Video:
        """The frames of a file in a planned shape. UserError if it cannot be used."""
        frames, height, width = shape
        max_side = self.data_config.max_side
        if source.media == "image":
            return read_image(source.path, size=(height, width), max_side=max_side)
        start, end = reading.part
        return read_frames(
            source.path,
            reading.sampling,
            frames=frames,
            size=(height, width),
            start=start,
            end=end,
            max_side=max_side,
            tfio_python=self.data_config.tfio_python,
        )


class Loader:
    """An endless iterator of batches, which counts the faults and remarks of this process's rows so far.

    step: of the next batch; the whole state. faults: id of a clip that is left out -> why its video cannot be
    used, including faults found while indexing. notes: remark -> ids of its clips. usage, coverage: of the
    first epoch.
    """

    def __init__(self, maker: BatchMaker, index: Index, start_step: int = 0):
        self.step = start_step
        self.faults = {entry.id: entry.fault for entry in index.entries if entry.fault}
        self.index = index
        self.notes = {note: set(ids) for note, ids in index.noted.items()}
        self.plan = maker.plan
        self.max_fault_share = maker.data_config.max_fault_share
        self.usage = maker.plan.usage(useful_units(index.entries, maker.model_config))
        self.coverage = coverage_of(index, maker.data_config)
        self._batches = read_ahead(maker, range(start_step, FOREVER), maker.data_config.workers)
        self._stop_at_faults()

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch | Prompts:
        element = next(self._batches)
        self.step += 1
        for name, note in element.notes:
            self.notes.setdefault(note, set()).add(name)
        self.faults.update(element.faults)
        if element.faults:
            self._stop_at_faults()
        return element.batch

    def _stop_at_faults(self) -> None:
        clips = len(self.index.entries)
        if len(self.faults) > self.max_fault_share * clips:
            self.close()
            name, reason = next(iter(self.faults.items()))
            raise UserError(
                f"{len(self.faults)} of {clips} clips cannot be read, more than data.max_fault_share="
                f"{self.max_fault_share:g} allows; the first, {name}: {reason}"
            )

    def summary(self) -> list[str]:
        """Lines about the data so far: sizes, rejected clips, remarks and faults."""
        use, clips = self.usage, len(self.index.entries)
        of_degraded = f", {use.degraded:.1%} of those of V~" if use.degraded else ""
        lines = [
            f"{clips} clips in {use.rows} rows of {use.programs} shape{'s' * (use.programs > 1)}, "
            f"{use.batches:.1f} batches an epoch; {use.rows_filled:.1%} of the rows hold a clip",
            f"useful: {use.text:.1%} of the tokens{of_degraded}, {use.vision:.1%} of the patches",
        ]
        for label, counts in (("rejected", self.index.rejected), ("noted", self.notes)):
            for reason, ids in sorted(counts.items()):
                examples = ", ".join(sorted(ids)[:3])
                if len(ids) > 3:
                    examples += ", ..."
                lines.append(f"{len(ids)} clips {label}: {reason} ({examples})")
        lines.extend(f"left out: {name}: {reason}" for name, reason in self.faults.items())
        return lines

    def warnings(self) -> list[str]:
        """A line for a batch that is larger than the data."""
        batch, clips = self.plan.row_count, len(self.index.entries)
        is_packed = isinstance(self.plan, PackedPlan)
        rows = self.usage.rows if is_packed else clips
        if rows >= batch:
            return []
        what = f"{batch - rows} rows of every step are empty"
        if is_packed:
            what = f"each step sees each clip about {batch / rows:.1f} times"
        return [
            f"WARNING: the batch is larger than the data: a step has {batch} rows, and {clips} clips fill "
            f"{rows}, so {what}; set config.batch to {rows} or less, or give more clips"
        ]

    def close(self) -> None:
        """End the workers."""
        self._batches.close()


def useful_units(entries: Sequence[Entry], model_config: VLMConfig) -> np.ndarray:
    """The visual tokens of each clip, i64[n]."""
    grids = [[grid_of(shape, model_config.vision) for shape in entry.shapes] for entry in entries]
    return np.array([sum(map(math.prod, own)) for own in grids], np.int64)


def coverage_of(index: Index, data_config: ConfigDict) -> coverage.Coverage:
    """Which of the events that the clips' keywords name will be seen."""
    planned = []
    for entry in index.entries:
        if entry.fault:
            continue
        media = zip(entry.sources, entry.shapes, entry.readings, strict=True)
        for number, (source, shape, reading) in enumerate(media):
            if source.info is not None:
                spans = entry.tokens.spans_in(number)
                planned.append(
                    coverage.PlannedClip(spans, source.info, reading.part, shape, reading.sampling)
                )
    return coverage.measure(planned, Sampling.of(data_config))


def read_ahead(maker: BatchMaker, steps: Sequence[int], workers: int) -> grain.DatasetIterator[Element]:
    """The Elements of ``steps`` in order, made by ``workers`` processes (0: threads). The caller closes
    it."""
    dataset = grain.MapDataset.source(steps).map(maker)
    if workers == 0:
        # Decoding releases the interpreter's lock, so threads suffice; each works on a batch of its own.
        threads = min(8, os.cpu_count() or 1)
        return iter(dataset.to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=threads)))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags
    batches = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    return iter(batches.mp_prefetch(grain.MultiprocessingOptions(workers)))


def make_batch_maker(
    clips: Sequence[Clip],
    text: Text,
    model_config: VLMConfig,
    data_config: ConfigDict,
    *,
    packed: bool,
    seed: int,
    batch_size: int,
    data_set_of: Sequence[int] | None = None,
    weights: Sequence[float] = (1.0,),
    answers: DegradedAnswers = NO_ANSWERS,
    together: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> tuple[BatchMaker, Index]:
    """The maker of batches and the index of the clips, from which a ``Loader`` is made.

    data_config: the fields ``data`` of configs/base.py. packed: several clips in a row, with their answers;
    otherwise one prompt in a row. batch_size: rows over all processes, of which process p makes the p-th
    part. data_set_of: the number of each clip's data set, of which ``weights`` says how often its clips come
    in an epoch; None: all are of one. answers: what follows the prompts of V~ in packed rows. together:
    prompts of so many neighbouring clips stand beside each other in one step, of whose rows it is a divisor.
    UserError if the config contradicts itself or no clip can be used."""
    check_fits(text, model_config, data_config, batch_size, process_count)
    if data_config.tfio_python:
        tfio.worker(data_config.tfio_python)  # raises here, because it is no fault of a clip
    index = build_index(clips, text, model_config, data_config, data_set_of, answers)
    plan = make_plan(
        index,
        data_config,
        packed=packed,
        seed=seed,
        rows=batch_size,
        weights=weights,
        together=together,
    )
    rows = batch_size // process_count
    maker = BatchMaker(
        plan=plan,
        entries=index.entries,
        capacity=index.capacity,
        model_config=model_config,
        data_config=data_config,
        cache=FrameCache(cache_folder(data_config) / "frames", int(data_config.cache_gb * 1e9)),
        part=range(process_index * rows, (process_index + 1) * rows),
        seed=seed,
        answers=answers,
    )
    return maker, index


def check_fits(
    text: Text, model_config: VLMConfig, data_config: ConfigDict, batch_size: int, process_count: int
) -> None:
    """UserError if the config contradicts itself, or the tokenizer the model."""
    if bool(data_config.frames) == bool(data_config.fps):
        raise UserError(
            f"data.frames={data_config.frames} and data.fps={data_config.fps}: "
            "give one of them, and 0 for the other"
        )
    if batch_size % process_count:
        raise UserError(f"batch={batch_size} does not divide by {process_count} processes")
    for field, allowed in (("replacement", ("key", "random", "none")), ("pool", ("key", "random"))):
        if data_config[field] not in allowed:
            raise UserError(f"data.{field}={data_config[field]!r}: choose one of {', '.join(allowed)}")
    if (text.image_pad, text.video_pad) != (model_config.image_token, model_config.video_token):
        raise UserError(
            f"the tokenizer's image and video tokens are {text.image_pad} and {text.video_pad}, the model's "
            f"{model_config.image_token} and {model_config.video_token}: they do not belong together"
        )


def make_plan(
    index: Index,
    data_config: ConfigDict,
    *,
    packed: bool,
    seed: int,
    rows: int,
    weights: Sequence[float] = (1.0,),
    together: int = 1,
) -> PackedPlan | PromptPlan:
    """The plan of batches of so many ``rows``, see ``make_batch_maker``."""
    block, bin = index.capacity.block, max(index.capacity.bin, 1)
    multiple = data_config.length_multiple
    ones = Sizes(*[1] * len(Sizes._fields))
    multiples = ones._replace(tokens=multiple, units=block, bins=bin, degraded=multiple)
    data_set_of = [entry.data_set for entry in index.entries]
    if packed:
        sizes = [entry.sizes for entry in index.entries]
        mixture = Mixture(data_set_of, weights, seed)
        return PackedPlan(sizes, mixture, rows, multiples, data_config.row_tokens)
    blocks = blocks_of([entry.number for entry in index.entries], together)
    mixture = Mixture([data_set_of[max(block)] for block in blocks], weights, seed)
    return PromptPlan([prompt_sizes(entry) for entry in index.entries], mixture, rows, multiples, blocks)
