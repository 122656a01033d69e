"""Batches of clips by grain: their buckets and order, made by several workers and processes.

The batch of a step is a pure function of (clips, seed, step). The data state of a run is therefore one
integer, and a loader that starts at step k yields the same batches from there as an uninterrupted one, with
any number of workers and processes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from vpjax.data import tfio
from vpjax.data.cache import FrameCache, cache_folder
from vpjax.data.index import Entry, Index, build_index
from vpjax.data.rows import Row, collate, masked_row, round_up, training_row
from vpjax.data.text import Text
from vpjax.data.video import Sampling, Video, read_frames, read_image
from vpjax.types import Batch, Bucket, Clip, UserError

if TYPE_CHECKING:
    from vpjax.models.config import VLMConfig

FOREVER = 1 << 40  # steps: a loader has no end


class EpochPlan:
    """The entries in the batch of each step.

    In every epoch each entry comes once: the entries of each bucket are permuted and cut into batches, of
    which the last is filled up with masked rows, and the batches of all buckets are permuted.
    """

    def __init__(self, groups: Sequence[np.ndarray], batch_size: int, seed: int):
        """groups: the entries i64[n] of each bucket."""
        self.groups = groups
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = sum(-(-len(group) // batch_size) for group in groups)
        self._latest: tuple[int, np.ndarray] = (-1, np.zeros(0))

    def rows(self, step: int) -> np.ndarray:
        """The entries i64[batch_size] of a step, all of one bucket; -1: a masked row, never the first."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        latest_epoch, batches = self._latest
        if latest_epoch != epoch:
            batches = self.epoch(epoch)
            self._latest = epoch, batches
        return batches[step_in_epoch]

    def epoch(self, epoch: int) -> np.ndarray:
        """The entries i64[steps_per_epoch, batch_size] of an epoch."""
        rng = np.random.default_rng((self.seed, epoch))
        batches = []
        for group in self.groups:
            order = np.full(round_up(len(group), self.batch_size), -1)
            order[: len(group)] = rng.permutation(group)
            batches.append(order.reshape(-1, self.batch_size))
        return rng.permutation(np.concatenate(batches))


class Element(NamedTuple):
    """A batch, and the faults and remarks that came up while it was made, as (id, reason) pairs."""

    batch: Batch
    faults: list[tuple[str, str]]
    notes: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class BatchMaker:
    """Maps a step to the Element with the rows ``part`` of its batch; runs in workers."""

    plan: EpochPlan
    entries: Sequence[Entry]
    model_config: VLMConfig
    data_config: ConfigDict
    cache: FrameCache
    part: slice

    def __call__(self, step: int) -> Element:
        numbers = self.plan.rows(step)
        first = self.entries[numbers[0]]
        rows: list[Row] = []
        faults: list[tuple[str, str]] = []
        notes: list[tuple[str, str]] = []
        for number in numbers[self.part]:
            row = masked_row(*first.tokens.keywords.shape)
            if number >= 0:
                entry = self.entries[number]
                try:
                    row = self.row(entry, step // self.plan.steps_per_epoch)
                    notes.extend((entry.id, note) for note in row.notes)
                except UserError as error:
                    faults.append((entry.id, str(error)))
            rows.append(row)
        return Element(collate(rows, first.bucket, self.model_config), faults, notes)

    def row(self, entry: Entry, epoch: int) -> Row:
        """The row of a clip. UserError if its video cannot be used."""
        if entry.source.fault:
            raise UserError(entry.source.fault)
        video: Video | None = None
        notes: tuple[str, ...] = ()
        if entry.source.media is not None:
            video, notes = self.video(entry)
        row = training_row(
            entry.tokens,
            video,
            self.model_config,
            replacement=self.data_config.replacement,
            pool=self.data_config.pool,
            widen=self.data_config.widen,
            seed=(self.plan.seed, epoch, entry.number),
            clip=entry.number,
        )
        return dataclasses.replace(row, notes=row.notes + notes)

    def video(self, entry: Entry) -> tuple[Video, tuple[str, ...]]:
        """The frames of a clip, from the cache if they are there, and remarks."""
        source, size = entry.source, (entry.bucket.height, entry.bucket.width)
        # No more frames than the bucket holds, whatever duration the file's header gave.
        sampling = Sampling.of(self.data_config)
        sampling = dataclasses.replace(sampling, max_frames=min(sampling.max_frames, entry.bucket.frames))
        part = dict(start=entry.start, end=entry.end)
        key = self.cache.key(source.path, source.size, source.modified, sampling, size, part)
        video = self.cache.get(key)
        if video is not None:
            return video, ()
        if source.media == "image":
            video = read_image(source.path, size=size, max_side=self.data_config.max_side)
        else:
            video = read_frames(
                source.path,
                sampling,
                size=size,
                start=entry.start,
                end=entry.end,
                max_side=self.data_config.max_side,
                tfio_python=self.data_config.tfio_python,
            )
        try:
            self.cache.put(key, video)
        except OSError as error:
            return video, (f"decoded frames not kept in {self.cache.folder}: {error.strerror}",)
        return video, ()


class Loader:
    """An endless iterator of Batches, which counts the faults and remarks of this process's rows so far.

    step: of the next batch; the whole state. faults: id of a clip whose rows are masked -> why its video
    cannot be used, including faults found while indexing. rejected: reason -> ids of clips that are not used.
    notes: remark -> ids of its clips.
    """

    def __init__(self, maker: BatchMaker, index: Index, start_step: int = 0):
        self.step = start_step
        self.faults = {entry.id: entry.source.fault for entry in index.entries if entry.source.fault}
        self.rejected = index.rejected
        self.notes: dict[str, set[str]] = {}
        self.clips = len(index.entries)
        self.plan = maker.plan
        self.max_fault_share = maker.data_config.max_fault_share
        self._batches = read_ahead(maker, range(start_step, FOREVER), maker.data_config.workers)
        self._stop_at_faults()

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        element = next(self._batches)
        self.step += 1
        for name, note in element.notes:
            self.notes.setdefault(note, set()).add(name)
        self.faults.update(element.faults)
        if element.faults:
            self._stop_at_faults()
        return element.batch

    def _stop_at_faults(self) -> None:
        if len(self.faults) > self.max_fault_share * self.clips:
            self.close()
            name, reason = next(iter(self.faults.items()))
            raise UserError(
                f"{len(self.faults)} of {self.clips} clips cannot be read, more than data.max_fault_share="
                f"{self.max_fault_share:g} allows; the first, {name}: {reason}"
            )

    def summary(self) -> list[str]:
        """Lines about the data so far: its size, rejected clips, remarks and faults."""
        size, batches = self.plan.batch_size, self.plan.steps_per_epoch
        lines = [
            f"{self.clips} clips in {len(self.plan.groups)} buckets: {batches} batches of {size} an epoch, "
            f"{batches * size - self.clips} of their rows empty"
        ]
        for label, counts in (("rejected", self.rejected), ("noted", self.notes)):
            for reason, ids in sorted(counts.items()):
                examples = ", ".join(sorted(ids)[:3])
                if len(ids) > 3:
                    examples += ", ..."
                lines.append(f"{len(ids)} clips {label}: {reason} ({examples})")
        lines.extend(f"masked: {name}: {reason}" for name, reason in self.faults.items())
        return lines

    def close(self) -> None:
        """End the workers."""
        self._batches.close()


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
    seed: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> tuple[BatchMaker, Index]:
    """The maker of batches and the index of the clips, from which a ``Loader`` is made.

    data_config: the fields ``data`` of configs/base.py. batch_size: rows over all processes, of which process
    p makes the p-th part. UserError if the config contradicts itself or no clip can be used."""
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
    if data_config.tfio_python:
        tfio.worker(data_config.tfio_python)  # raises here, because it is no fault of a clip
    index = build_index(clips, text, model_config, data_config)
    groups: dict[Bucket, list[int]] = {}
    for number, entry in enumerate(index.entries):
        groups.setdefault(entry.bucket, []).append(number)
    ordered = [np.array(groups[bucket]) for bucket in sorted(groups, key=dataclasses.astuple)]
    rows = batch_size // process_count
    maker = BatchMaker(
        plan=EpochPlan(ordered, batch_size, seed),
        entries=index.entries,
        model_config=model_config,
        data_config=data_config,
        cache=FrameCache(cache_folder(data_config) / "frames", int(data_config.cache_gb * 1e9)),
        part=slice(process_index * rows, (process_index + 1) * rows),
    )
    return maker, index
