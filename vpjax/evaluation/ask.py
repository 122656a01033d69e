"""A model's answers to questions about clips, with the video whole, changed and absent.

Every clip is encoded once: a changed video is a gather of its slots.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from vpjax.data import keyframes
from vpjax.data.pipeline import make_batch_maker, read_ahead
from vpjax.data.rows import bucket_of, collate, masked_row, prompt_row, round_up
from vpjax.data.text import Text
from vpjax.models.generate import completed, generate
from vpjax.models.sharding import on_mesh, put_whole, row_parts
from vpjax.models.vision import Features
from vpjax.models.vlm import VideoLM, gather_slots
from vpjax.training.losses import token_logprobs
from vpjax.types import Array, Batch, Clip, UserError

# What the model sees. none: the clip; key: V~, the event's slots replaced by those beside them; random:
# as many slots replaced elsewhere; single: the middle slot throughout; blind: no video, the question alone.
CONTROLS = ("none", "key", "random", "shuffle", "reverse", "single", "blind")
NO_KEY = "no key frames that can be replaced"


class Query(NamedTuple):
    """A question about the clip ``id``. ranked: the likeliest of the clip's candidate answers is predicted,
    instead of a greedy completion."""

    id: str
    control: str
    ranked: bool = False


class Prediction(NamedTuple):
    """The predicted text of a query, or in ``fault`` the reason why there is none."""

    id: str
    control: str
    ranked: bool
    text: str = ""
    fault: str = ""

    @property
    def query(self) -> Query:
        return Query(self.id, self.control, self.ranked)


class Predictions(contextlib.AbstractContextManager):
    """The predictions of a file, one JSON line each, and the place to add more.

    known: all of them, by query. path: None: they are kept in memory alone. writes: whether this process
    adds to the file. A line that a killed process left unfinished is dropped. UserError for a line that is no
    prediction.
    """

    def __init__(self, path: Path | None = None, *, writes: bool = True):
        self.known: dict[Query, Prediction] = {}
        self._file: IO[bytes] | None = None
        content = path.read_bytes() if path and path.exists() else b""
        content = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(content.splitlines(), 1):
            try:
                prediction = Prediction(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not an answer ({error}): remove the file") from error
            self.known[prediction.query] = prediction
        if path and writes:
            self._file = path.open("ab")
            self._file.truncate(len(content))

    def append(self, prediction: Prediction) -> None:
        self.known[prediction.query] = prediction
        if self._file:
            self._file.write(json.dumps(prediction._asdict()).encode() + b"\n")
            self._file.flush()  # to the system: it survives this process

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()


class QueryBatch(NamedTuple):
    """A batch of prompts under one control.

    clips: those that each row asks about: none for padding, several where their prompts are equal.
    features: of V. source: the gather i32[B, S] of their slots that makes the control's video. has_control:
    bool[B], whether the row's clip has this control.
    """

    clips: list[list[Clip]]
    control: str
    ranked: bool
    batch: Batch
    features: Any
    source: Array | None
    has_control: np.ndarray


@functools.cache
def programs(mesh: Mesh | None, max_new: int, eos: tuple[int, ...]) -> tuple[Callable[..., Any], ...]:
    """Made once, so that they stay compiled: encode, from model and frames to the features of V; complete,
    from model, batch, features and source to greedy Completions; rank, from the same and candidates to the
    number i32[B] of the likeliest."""

    def encode(model, frames):
        return model.encode(frames)

    def complete(model, batch, features, source):
        seen = gather_slots(features, source)
        return generate(model, batch, jax.random.key(0), max_new=max_new, eos=eos, features=seen)

    def rank(model, batch, features, source, tokens_BGC, valid_BGC):
        seen = gather_slots(features, source)
        return answer_logprobs(model, batch, tokens_BGC, valid_BGC, features=seen).argmax(1)

    return on_mesh(mesh, jax.jit(encode), rows=True), on_mesh(mesh, complete), on_mesh(mesh, rank)


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
    """The prediction about each clip under each control, or why there is none.

    data_config: the run's ``data``; V~ replaces the key slots whatever its ``replacement`` says. batch_size:
    rows at a time, rounded up to the devices that share them. max_new: tokens of an answer at most. seed: of
    the order, and of the controls random and shuffle. candidates: answers by clip id, the likeliest of which
    is predicted as well. done: queries to leave out; the batches and their order do not depend on it, so that
    two calls give what one gives, bit for bit. UserError where no clip can be used.
    """
    candidates = candidates or {}
    candidate_ids = {id: [text.answer(answer) for answer in answers] for id, answers in candidates.items()}
    groups = max((len(answers) for answers in candidates.values()), default=0)
    length = max((len(ids) for answers in candidate_ids.values() for ids in answers), default=0)
    length = round_up(length, data_config.length_multiple)

    batch_size = round_up(batch_size, row_parts(mesh))
    data_config = ConfigDict(data_config.to_dict() | dict(replacement="key", pool="key"))
    maker, index = make_batch_maker(clips, text, model.config, data_config, seed=seed, batch_size=batch_size)
    faults = {clip: reason for reason, rejected in index.rejected.items() for clip in rejected}
    faults |= {entry.id: entry.source.fault for entry in index.entries if entry.source.fault}
    ranked_values = (False, True) if candidates else (False,)
    video_controls = [control for control in controls if control != "blind"]
    encode, complete, rank = programs(mesh, max_new, text.stops)

    def pending(row: Sequence[Clip], control: str, ranked: bool) -> list[Query]:
        """The queries about a row's clips that have no prediction yet."""
        queries = [Query(clip.id, control, ranked) for clip in row if clip.id not in faults]
        return [query for query in queries if query not in done and (not ranked or query.id in candidates)]

    def video_batches() -> Iterator[QueryBatch]:
        rows_of_step = {}
        for step in range(maker.plan.steps_per_epoch):
            rows = [[clips[index.entries[n].number]] if n >= 0 else [] for n in maker.plan.rows(step)]
            modes = itertools.product(rows, video_controls, ranked_values)
            if any(pending(*mode) for mode in modes):
                rows_of_step[step] = rows
        steps = list(rows_of_step)
        with contextlib.closing(read_ahead(maker, steps, data_config.workers)) as elements:
            for step, element in zip(steps, tqdm(elements, "videos", len(steps), leave=False), strict=True):
                faults.update(element.faults)
                batch = put_whole(element.batch, mesh)
                features = encode(model, batch.frames) if batch.frames.shape[1] else None
                for control in video_controls:
                    source, has_control = sources(element.batch, control, seed)
                    shared = batch, features, put_whole(source, mesh), has_control
                    for ranked in ranked_values:
                        yield QueryBatch(rows_of_step[step], control, ranked, *shared)

    def blind_batches() -> Iterator[QueryBatch]:
        usable = [clip for clip in clips if clip.id not in faults]
        by_question = collections.defaultdict(list)
        for clip in usable:
            by_question[clip.question].append(clip)
        for ranked in ranked_values if usable else ():
            # Equal questions have one completion, while candidates are each clip's own.
            rows = [[clip] for clip in usable] if ranked else [by_question[q] for q in sorted(by_question)]
            prompts = [prompt_row(text.chat(row[0].question, None), None, model.config) for row in rows]
            bucket = bucket_of(prompts, multiple=data_config.length_multiple)
            for first in range(0, len(rows), batch_size):
                part = slice(first, first + batch_size)
                empty = batch_size - len(rows[part])
                batch = collate(prompts[part] + [masked_row()] * empty, bucket, model.config)
                part_rows = [*rows[part], *[[]] * empty]
                valid = np.asarray(batch.clip) >= 0
                yield QueryBatch(part_rows, "blind", ranked, put_whole(batch, mesh), None, None, valid)

    def texts(queries: QueryBatch) -> list[str]:
        """What is predicted for each row."""
        inputs = model, queries.batch, queries.features, queries.source
        if not queries.ranked:
            out = complete(*inputs)
            ids_BC, mask_BC = np.asarray(out.tokens)[:, 0], np.asarray(out.mask)[:, 0]
            return [text.decode(ids[mask]) for ids, mask in zip(ids_BC, mask_BC, strict=True)]
        names = [row[0].id if row else "" for row in queries.clips]
        padded = pad_answers([candidate_ids.get(name, []) for name in names], groups, length)
        best_B = np.asarray(rank(*inputs, *put_whole(padded, mesh)))
        return [
            candidates[name][best] if name in candidates else ""
            for name, best in zip(names, best_B, strict=True)
        ]

    batches = video_batches()
    if "blind" in controls:
        batches = itertools.chain(batches, blind_batches())
    for queries in batches:
        rows = [pending(row, queries.control, queries.ranked) for row in queries.clips]
        predicted: list[str] = []
        if any(row for row, has_control in zip(rows, queries.has_control, strict=True) if has_control):
            predicted = texts(queries)
        for number, row in enumerate(rows):
            for query in row:
                if queries.has_control[number]:
                    yield Prediction(*query, predicted[number])
                else:
                    yield Prediction(*query, fault=NO_KEY)
    for clip in clips:
        if clip.id in faults:
            for control, ranked in itertools.product(controls, ranked_values):
                query = Query(clip.id, control, ranked)
                if query not in done and (not ranked or clip.id in candidates):
                    yield Prediction(*query, fault=faults[clip.id])


def sources(batch: Batch, control: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The gather i32[B, S] that makes a control's video out of V, and the rows bool[B] that have it: those
    that hold a clip and, for ``key`` and ``random``, have a V~."""
    key_BS, valid_BS, clip_B = (np.asarray(x) for x in (batch.source, batch.slot_valid, batch.clip))
    identity = keyframes.identity_source(key_BS.shape[1])
    source_BS = np.tile(identity, (len(clip_B), 1))
    for row, number in enumerate(clip_B):
        count = int(valid_BS[row].sum())
        rng = np.random.default_rng([seed, max(number, 0)])
        match control:
            case "key":
                source_BS[row] = key_BS[row]
            case "random":
                source_BS[row] = keyframes.random_source((key_BS[row] != identity)[None], count, rng)
            case "shuffle":
                source_BS[row] = keyframes.shuffle_source(len(identity), count, rng)
            case "reverse":
                source_BS[row] = keyframes.reverse_source(len(identity), count)
            case "single":
                source_BS[row] = keyframes.single_source(len(identity), count)
    has_control = clip_B >= 0
    if control in ("key", "random"):
        has_control &= (source_BS != identity).any(axis=1)
    return source_BS, has_control


def pad_answers(
    answers: Sequence[Sequence[np.ndarray]], groups: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens i32[B, G, C] of each row's answers i32[c], and which of them are real, bool[B, G, C]."""
    tokens_BGC = np.zeros((len(answers), groups, length), np.int32)
    valid_BGC = np.zeros(tokens_BGC.shape, bool)
    for row, of_row in enumerate(answers):
        for number, ids in enumerate(of_row):
            tokens_BGC[row, number, : len(ids)] = ids
            valid_BGC[row, number, : len(ids)] = True
    return tokens_BGC, valid_BGC


@functools.partial(jax.jit, static_argnames="chunk")
def answer_logprobs(
    model: VideoLM,
    batch: Batch,
    tokens_BGC: Array,
    valid_BGC: Array,
    *,
    features: Features | None = None,
    chunk: int = 128,
) -> jax.Array:
    """log p f32[B, G] of each whole answer after its row's prompt; -inf for one without tokens.

    features: of ``model.encode``; default: of the batch's frames. chunk: positions whose logits are held at
    once. The batch's own suffix is not read."""
    if features is None and batch.frames.shape[1]:
        features = model.encode(batch.frames)
    hidden = model.hidden(features, completed(batch, tokens_BGC))
    logprobs = token_logprobs(hidden.last, hidden.suffix, model.unembed, tokens_BGC, chunk=chunk)
    total_BG = jnp.where(valid_BGC, logprobs, 0.0).sum(-1)
    return jnp.where(valid_BGC.any(-1), total_BG, -jnp.inf)
