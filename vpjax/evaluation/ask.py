"""A model's answers to questions about clips, with the video whole, changed and absent.

Every clip is encoded once: a changed video is a gather of its slots.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from vpjax.data import keyframes
from vpjax.data.pipeline import make_batch_maker, read_ahead
from vpjax.data.rows import bucket_of, collate, masked_row, prompt_row, round_up
from vpjax.data.text import Text
from vpjax.evaluation.likelihood import answer_logprobs, pad_answers
from vpjax.models.generate import Completions, generate
from vpjax.models.sharding import on_mesh, put_whole, row_parts
from vpjax.models.vlm import VideoLM, VLMConfig, gather_slots
from vpjax.types import Array, Batch, Clip

# What the model is shown. none: the clip; key: V~, the event's slots replaced by those beside them; random:
# as many slots replaced elsewhere; single: the middle slot throughout; blind: no video, the question alone.
CONTROLS = ("none", "key", "random", "shuffle", "reverse", "single", "blind")
NO_KEY = "no key frames that can be replaced"


class Query(NamedTuple):
    """One asking. ranked: the answer is not written freely but the likeliest of those that are given."""

    clip: str
    control: str
    ranked: bool = False


class Prediction(NamedTuple):
    """The answer, or why there is none."""

    query: Query
    text: str = ""
    fault: str = ""


class View(NamedTuple):
    """What a batch of rows is shown: the features of V, of which ``source`` i32[B, S] makes another video; or
    neither. clips: those that each row asks about, none where it is padding, several where their prompts are
    equal. there: which rows have this control. ways: of being asked, see Query."""

    clips: list[list[Clip]]
    control: str
    ways: tuple[bool, ...]
    batch: Batch
    features: Any
    source: Any
    there: np.ndarray


class Programs(NamedTuple):
    """encode: model, frames -> the features of V. write, rank: model, batch, features, source (and given
    answers) -> greedy Completions, and the place i32[B] of the likeliest."""

    encode: Callable[..., Any]
    write: Callable[..., Completions]
    rank: Callable[..., Array]


@functools.cache
def programs(mesh: Mesh | None, max_new: int, eos: tuple[int, ...]) -> Programs:
    """Made once, so that whoever asks again finds them compiled."""

    def write(model, batch, features, source):
        seen = gather_slots(features, source)
        return generate(model, batch, jax.random.key(0), max_new=max_new, eos=eos, features=seen)

    def rank(model, batch, features, source, tokens_BGC, valid_BGC):
        seen = gather_slots(features, source)
        return answer_logprobs(model, batch, tokens_BGC, valid_BGC, features=seen).argmax(1)

    encode = jax.jit(lambda model, frames: model.encode(frames))
    return Programs(on_mesh(mesh, encode, rows=True), on_mesh(mesh, write), on_mesh(mesh, rank))


def predict_clips(
    model: VideoLM,
    text: Text,
    clips: Sequence[Clip],
    data_config: ConfigDict,
    *,
    controls: Sequence[str],
    batch_size: int,
    max_new: int,
    seed: int = 0,
    mesh: Mesh | None = None,
    candidates: Mapping[str, Sequence[str]] | None = None,
    done: Collection[Query] = (),
) -> Iterator[Prediction]:
    """The greedy answer about each clip under each control, or why there is none.

    data_config: the fields ``data`` of configs/base.py; V~ replaces the key slots whatever its ``replacement`` says.
    batch_size: rows at a time, rounded up to the devices that share them. max_new: tokens of an answer at
    most. seed: of the order, of random and shuffle. candidates: answers to each clip, by its id, of which the
    likeliest is given as well. done: what is not given again. Which clips share a batch, and the order, do not
    depend on it: two goes give what one gives, bit for bit. UserError where no clip can be
    asked about.
    """
    given = candidates or {}
    batch_size = round_up(batch_size, row_parts(mesh))
    data_config = ConfigDict(data_config.to_dict() | dict(replacement="key", pool="key"))
    make, index = make_batch_maker(clips, text, model.config, data_config, seed=seed, batch_size=batch_size)
    faults = {name: reason for reason, names in index.rejected.items() for name in names}
    faults |= {entry.id: entry.source.fault for entry in index.entries if entry.source.fault}
    ways = (False, True) if given else (False,)
    run = programs(mesh, max_new, text.stops)
    answer = _answerer(model, text, run, mesh, given, data_config.length_multiple)

    def missing(row: Sequence[Clip], control: str, way: bool) -> list[Query]:
        keys = [Query(clip.id, control, way) for clip in row if clip.id not in faults]
        return [key for key in keys if key not in done and (not way or key.clip in given)]

    def with_video() -> Iterator[View]:
        rows = {
            step: [[clips[index.entries[n].number]] if n >= 0 else [] for n in make.plan.rows(step)]
            for step in range(make.plan.steps_per_epoch)
        }
        shown = [control for control in controls if control != "blind"]
        steps = [
            step
            for step, some in rows.items()
            if any(missing(row, control, way) for row in some for control in shown for way in ways)
        ]
        with contextlib.closing(read_ahead(make, steps, data_config.workers)) as elements:
            for step, element in zip(steps, tqdm(elements, "videos", len(steps), leave=False), strict=True):
                faults.update(element.faults)
                batch = put_whole(element.batch, mesh)
                features = run.encode(model, batch.frames) if batch.frames.shape[1] else None
                for control in shown:
                    source_BS, there_B = sources(element.batch, control, seed)
                    source = put_whole(source_BS, mesh)
                    yield View(rows[step], control, ways, batch, features, source, there_B)

    def without_video() -> Iterator[View]:
        usable = [clip for clip in clips if clip.id not in faults]
        by_question = collections.defaultdict(list)
        for clip in usable:
            by_question[clip.question].append(clip)
        free = [by_question[question] for question in sorted(by_question)]
        for way, rows in zip(ways, (free, [[clip] for clip in usable]), strict=False):
            for some, batch in _text_batches(
                rows, text, model.config, data_config.length_multiple, batch_size
            ):
                there_B = batch.clip >= 0
                yield View(some, "blind", (way,), put_whole(batch, mesh), None, None, there_B)

    for view in itertools.chain(with_video(), without_video() if "blind" in controls else ()):
        for way in view.ways:
            keys = [missing(row, view.control, way) for row in view.clips]
            asked = any(some and there for some, there in zip(keys, view.there, strict=True))
            texts = answer(view, way) if asked else []
            for row, some in enumerate(keys):
                yield from (
                    Prediction(k, texts[row]) if view.there[row] else Prediction(k, fault=NO_KEY)
                    for k in some
                )
    for clip in clips:
        if clip.id in faults:
            ways_of = ways if clip.id in given else ways[:1]
            keys = [Query(clip.id, control, way) for control in controls for way in ways_of]
            yield from (Prediction(key, fault=faults[clip.id]) for key in keys if key not in done)


def sources(batch: Batch, control: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The gather i32[B, S] that makes a control's video out of V, and the rows bool[B] that have it: those
    that hold a clip and, for ``key`` and ``random``, have a V~."""
    slots = batch.source.shape[1]
    same = keyframes.identity(slots)
    out = np.tile(same, (len(batch.clip), 1))
    for row, (number, valid, key) in enumerate(zip(batch.clip, batch.slot_valid, batch.source, strict=True)):
        count, rng = int(valid.sum()), np.random.default_rng([seed, max(number, 0)])
        match control:
            case "key":
                out[row] = key
            case "random":
                out[row] = keyframes.random_source((key != same)[None], count, rng)
            case "shuffle":
                out[row] = keyframes.shuffle_source(slots, count, rng)
            case "reverse":
                out[row] = keyframes.reverse_source(slots, count)
            case "single":
                out[row] = keyframes.single_source(slots, count)
    changed = (out != same).any(axis=1) | (control not in ("key", "random"))
    return out, changed & (batch.clip >= 0)


def _answerer(
    model: VideoLM,
    text: Text,
    run: Programs,
    mesh: Mesh | None,
    given: Mapping[str, Sequence[str]],
    multiple: int,
) -> Callable[[View, bool], list[str]]:
    """``answer(view, ranked)``: what is said, row by row. Given answers are padded to a multiple."""
    tokens = {clip: [text.answer(answer) for answer in some] for clip, some in given.items()}
    groups = max((len(some) for some in tokens.values()), default=0)
    length = round_up(max((len(ids) for some in tokens.values() for ids in some), default=0), multiple)

    def answer(view: View, ranked: bool) -> list[str]:
        shown = model, view.batch, view.features, view.source
        if not ranked:
            out = run.write(*shown)
            ids_BC, mask_BC = np.asarray(out.tokens)[:, 0], np.asarray(out.mask)[:, 0]
            return [text.decode(ids[mask]) for ids, mask in zip(ids_BC, mask_BC, strict=True)]
        rows = [tokens.get(row[0].id, []) if row else [] for row in view.clips]
        best = np.asarray(run.rank(*shown, *(put_whole(x, mesh) for x in pad_answers(rows, groups, length))))
        texts = [given.get(row[0].id, ()) if row else () for row in view.clips]
        return [some[i] if some else "" for some, i in zip(texts, best, strict=True)]

    return answer


def _text_batches(
    rows: Sequence[list[Clip]], text: Text, config: VLMConfig, multiple: int, batch_size: int
) -> Iterator[tuple[list[list[Clip]], Batch]]:
    """The questions of ``rows``, whose clips ask the same one, without a video, in batches of one shape."""
    prompts = [prompt_row(text.chat(row[0].question, None), None, config) for row in rows]
    bucket = bucket_of(prompts, multiple=multiple) if prompts else None
    for first in range(0, len(rows), batch_size):
        some = slice(first, first + batch_size)
        empty = batch_size - len(rows[some])
        batch = collate(prompts[some] + [masked_row()] * empty, bucket, config)
        yield [*rows[some], *[[]] * empty], batch
