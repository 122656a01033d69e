"""Predicts a model's answers about clips: on their videos, on changed videos and without a video.

Every video is encoded once: a changed video is another list of the units that its visual tokens show. Of
several processes each decodes the videos of the rows that its devices hold, and all know all predictions.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from vpjax.data import keyframes
from vpjax.data.collate import collate_prompts
from vpjax.data.packing import PromptPlan, Sizes, round_up
from vpjax.data.pipeline import make_batch_maker, read_ahead
from vpjax.data.rows import prompt_row, seen_through
from vpjax.data.text import Text, without_media
from vpjax.data.units import Capacity
from vpjax.data.video import Video
from vpjax.evaluation.controls import control_shows
from vpjax.evaluation.ranking import answer_logprobs, best_answer, pad_answers
from vpjax.files import named
from vpjax.models.generate import check_numbers, generate
from vpjax.models.sharding import (
    all_rows,
    all_texts,
    global_rows,
    on_mesh,
    put_whole,
    row_numbers_here,
    row_parts,
)
from vpjax.models.vision import Features
from vpjax.models.vlm import VideoLM
from vpjax.types import Array, Clip, Prompts, UserError

NO_KEY = "no key frames that can be replaced"
NO_BEST = "none of its candidate answers is ahead of the others"
FINAL_FAULTS = (NO_KEY, NO_BEST)  # that asking again would not mend
# Finds the key frames of a video from the question and the candidate answers, without an annotation: their
# (start, end) in seconds.
KeyFinder = Callable[[Video, Clip, Sequence[str]], Sequence[tuple[float, float]]]
SEED = 0  # of the order of batches, and of the controls random and shuffle


def contrast_control(key_frames: str) -> str:
    """The name under which the contrast stands beside the controls. key_frames: how they are found."""
    return f"contrast by {key_frames}"


class Query(NamedTuple):
    """A question about the clip ``id``. ranked: predict the likeliest of the clip's candidate answers instead
    of a greedy completion. Under a contrast it is the one with the highest log p given V - log p given V~."""

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
    """Predictions by query (``known``), and the file that keeps them, one JSON line each.

    path: None keeps them in memory only. writes: whether this process adds to the file. An unfinished last
    line, left by a killed process, is dropped. UserError for a line that is not a prediction.
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
            with named(self._file.name):
                self._file.write(json.dumps(prediction._asdict()).encode() + b"\n")
                self._file.flush()  # to the system: it survives this process

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()


class QueryBatch(NamedTuple):
    """A batch of prompts under one control.

    clips: the clips of each row: none for padding, several if their prompts are equal. prompts: without their
    videos. features: of V. shows: i32[B, P], the units of V that the control's video shows. has_control:
    bool[B], whether the row's clip has this control. is_contrast: whether that video is V~, whose
    log-probabilities are subtracted from those given V. logprobs: those of the candidates f32[B, G], by the
    control that they were computed under; the queries about the same videos share it.
    """

    clips: list[list[Clip]]
    control: str
    ranked: bool
    prompts: Prompts
    features: Features | None
    shows: Array
    has_control: np.ndarray
    logprobs: dict[str, np.ndarray]
    is_contrast: bool = False


@functools.cache
def programs(mesh: Mesh | None, max_new: int, eos: tuple[int, ...]) -> tuple[Callable[..., Any], ...]:
    """Three programs, cached so that they stay compiled.

    encode: model, units -> features of V. complete: model, prompts, features, shows -> greedy Completions.
    score: the same arguments and candidate tokens -> log p f32[B, G] of the candidates."""

    def encode(model, units):
        return model.encode(units)

    def complete(model, prompts, features, shows):
        changed = prompts.showing(shows)
        return generate(model, changed, jax.random.key(0), max_new=max_new, eos=eos, features=features)

    def score(model, prompts, features, shows, tokens_BGC, valid_BGC):
        changed = prompts.showing(shows)
        return answer_logprobs(model, changed, tokens_BGC, valid_BGC, features=features)

    return on_mesh(mesh, jax.jit(encode), rows=True), on_mesh(mesh, complete), on_mesh(mesh, score)


class ClipPredictor:
    """Predicts answers about clips under controls, in batches of a few prompt lengths."""

    def __init__(
        self,
        model: VideoLM,
        text: Text,
        clips: Sequence[Clip],
        data_config: ConfigDict,
        *,
        controls: Sequence[str],
        batch_size: int,
        max_new: int,
        mesh: Mesh | None = None,
        candidates: Mapping[str, Sequence[str]] | None = None,
        contrasts: Mapping[str, KeyFinder | None] | None = None,
        done: Collection[Query] = (),
    ):
        """data_config: the run's ``data``; V~ replaces the key slots, whatever its ``replacement`` is.
        batch_size: rows, rounded up to the devices that share them. max_new: the most tokens of an answer.
        candidates: answers by clip id, of which the likeliest is predicted too. contrasts: by name, what
        finds the key frames of the V~ that the candidates are contrasted with; None: the annotation. done:
        queries to leave out; it does not change the batches of the others, so that an interrupted evaluation
        gives the same predictions, bit for bit. UserError if no clip can be used, or if the processes find
        other videos.
        """
        self.model, self.text, self.clips, self.controls = model, text, clips, controls
        self.mesh, self.done = mesh, done
        self.batch_size = round_up(batch_size, row_parts(mesh))
        self.data_config = ConfigDict(data_config.to_dict() | dict(replacement="key", pool="key"))

        self.candidates = candidates or {}
        self.contrasts = {contrast_control(name): find for name, find in (contrasts or {}).items()}
        self.ranked_values = (False, True) if self.candidates else (False,)
        self.candidate_ids = {
            id: [text.answer(x) for x in answers] for id, answers in self.candidates.items()
        }
        self.groups = max((len(answers) for answers in self.candidates.values()), default=0)
        longest = max((len(ids) for answers in self.candidate_ids.values() for ids in answers), default=0)
        self.length = round_up(longest, data_config.length_multiple)

        maker, self.index = make_batch_maker(
            clips,
            text,
            model.config,
            self.data_config,
            packed=False,
            seed=SEED,
            batch_size=self.batch_size,
        )
        self.rows_here = row_numbers_here(self.batch_size, mesh)
        self.maker = dataclasses.replace(maker, part=self.rows_here)
        self.faults = {clip: reason for reason, rejected in self.index.rejected.items() for clip in rejected}
        self.faults |= {entry.id: entry.fault for entry in self.index.entries if entry.fault}
        found = repr([(entry.id, entry.sizes, entry.fault) for entry in self.index.entries])
        if len(set(all_texts(hashlib.sha256(found.encode()).hexdigest()))) > 1:
            raise UserError("the processes find other videos: they must see the same files")
        # What the candidates f[G] of each ranked query were ranked by, so far.
        self.scores: dict[Query, np.ndarray] = {}
        self.entry_of_clip = {entry.id: entry for entry in self.index.entries}
        self.encode, self.complete, self.score = programs(mesh, max_new, text.stops)

    def predictions(self) -> Iterator[Prediction]:
        """The prediction about each clip under each control and contrast, or why there is none."""
        batches = self._video_batches()
        if "blind" in self.controls:
            batches = itertools.chain(batches, self._blind_batches())
        for queries in batches:
            rows = [self._pending(row, queries.control, queries.ranked) for row in queries.clips]
            predicted: list[str | None] = []
            if any(row for row, has_control in zip(rows, queries.has_control, strict=True) if has_control):
                predicted = self._predict(queries)
            for number, row in enumerate(rows):
                for query in row:
                    if not queries.has_control[number]:
                        yield Prediction(*query, fault=NO_KEY)
                    elif (answer := predicted[number]) is None:
                        yield Prediction(*query, fault=NO_BEST)
                    else:
                        yield Prediction(*query, answer)
        for clip in self.clips:
            if clip.id in self.faults:
                for control, ranked in self._modes(self.controls):
                    query = Query(clip.id, control, ranked)
                    if self._is_open(query):
                        yield Prediction(*query, fault=self.faults[clip.id])

    def _modes(self, controls: Sequence[str]) -> list[tuple[str, bool]]:
        """The (control, ranked) of all queries under ``controls`` and the contrasts."""
        modes = list(itertools.product(controls, self.ranked_values))
        return modes + [(contrast, True) for contrast in self.contrasts]

    def _pending(self, row: Sequence[Clip], control: str, ranked: bool) -> list[Query]:
        """The queries about a row's clips that still need a prediction."""
        queries = [Query(clip.id, control, ranked) for clip in row if clip.id not in self.faults]
        return [query for query in queries if self._is_open(query)]

    def _is_open(self, query: Query) -> bool:
        return query not in self.done and (not query.ranked or query.id in self.candidates)

    def _video_batches(self) -> Iterator[QueryBatch]:
        """The batches of all controls but ``blind``, and of the contrasts. Each video is encoded once."""
        controls = [control for control in self.controls if control != "blind"]
        rows_of_step = self._rows_with_queries(self._modes(controls))
        steps = list(rows_of_step)
        with contextlib.closing(read_ahead(self.maker, steps, self.data_config.workers)) as elements:
            for step, element in zip(steps, tqdm(elements, "videos", len(steps), leave=False), strict=True):
                for faults in all_texts(json.dumps(element.faults)):
                    self.faults.update(json.loads(faults))
                yield from self._batches_about(element.batch, rows_of_step[step], controls)

    def _rows_with_queries(self, modes: Sequence[tuple[str, bool]]) -> dict[int, list[list[Clip]]]:
        """The clips of each row, by step of the plan, without the steps of which nothing is to be asked.
        modes: the (control, ranked) of queries."""
        rows_of_step, plan = {}, self.maker.plan
        assert isinstance(plan, PromptPlan)
        for step in range(plan.steps_per_epoch):
            rows = [
                [self.clips[self.index.entries[n].number] for n in row.entries] for row in plan.rows(step)
            ]
            if any(self._pending(row, *mode) for row in rows for mode in modes):
                rows_of_step[step] = rows
        return rows_of_step

    def _batches_about(
        self, batch: Prompts, clips: list[list[Clip]], controls: Sequence[str]
    ) -> Iterator[QueryBatch]:
        """The batches about the videos of one step under each of ``controls`` and contrast. batch: on the
        host, of the rows of this process. clips: of all rows."""
        units, on_host = batch.video, batch.without_video()
        prompts = global_rows(on_host, self.mesh)
        features = self.encode(self.model, global_rows(units, self.mesh)) if units.count else None
        logprobs: dict[str, np.ndarray] = {}

        def queries(control: str, shows: np.ndarray, has_control: np.ndarray) -> QueryBatch:
            has_control = all_rows(has_control, self.mesh)
            shown = global_rows(shows, self.mesh)
            return QueryBatch(clips, control, False, prompts, features, shown, has_control, logprobs)

        for control in controls:
            of_control = queries(control, *control_shows(on_host, control, SEED))
            for ranked in self.ranked_values:
                yield of_control._replace(ranked=ranked)
        for contrast, find in self.contrasts.items():
            if any(self._pending(row, contrast, True) for row in clips):
                clips_here = [clips[row] for row in self.rows_here]
                shows = self._degraded_shows(on_host, clips_here, contrast, find)
                differs = (shows != on_host.text.shows).any(axis=1)
                yield queries(contrast, shows, differs)._replace(ranked=True, is_contrast=True)

    def _degraded_shows(
        self, prompts: Prompts, clips: Sequence[Sequence[Clip]], contrast: str, find: KeyFinder | None
    ) -> np.ndarray:
        """The units i32[B, P] that V~ shows, its key frames annotated or found; those of V for a clip without
        key frames that can be replaced and, if they are to be found, for one of several videos or images.
        prompts: on the host, of the rows ``clips`` of at most one clip."""
        if find is None:
            return control_shows(prompts, "key", SEED)[0]
        shows_BP, slot_BP = np.array(prompts.text.shows), np.asarray(prompts.text.slot)
        temporal = self.model.config.vision.temporal
        for row, row_clips in enumerate(clips):
            for query in self._pending(row_clips, contrast, True):
                entry = self.entry_of_clip[query.id]
                if len(entry.sources) != 1:
                    continue
                (video,), _ = self.maker.videos(entry)  # which the cache of frames holds by now
                spans = find(video, self.clips[entry.number], self.candidates[query.id])
                key_S = keyframes.slots_of(spans, video.times, video.frame_seconds, temporal)
                source = keyframes.source_of(key_S[None])
                shows_BP[row] = seen_through(shows_BP[row], slot_BP[row], source)
        return shows_BP

    def _blind_batches(self) -> Iterator[QueryBatch]:
        """The batches of the control ``blind``. Clips with equal prompts share a row, because they have the
        same completion; their candidates are each clip's own, so ranking has a row for each clip."""
        usable = [clip for clip in self.clips if clip.id not in self.faults]
        if not usable:
            return
        by_prompt = collections.defaultdict(list)
        for clip in map(without_media, usable):
            by_prompt[clip.question, clip.turns, clip.system].append(clip)
        model_config, capacity = self.model.config, Capacity(1, 0)
        for ranked in self.ranked_values:
            clips = [by_prompt[key] for key in sorted(by_prompt)]
            if ranked:
                clips = [[without_media(clip)] for clip in usable]
            chats = [self.text.prompt(row[0], ()) for row in clips]
            sizes = Sizes(round_up(max(map(len, chats)), self.data_config.length_multiple))
            rows = [prompt_row(chat, (), model_config, capacity) for chat in chats]
            for first in range(0, len(rows), self.batch_size):
                part = slice(first, first + self.batch_size)
                empty = self.batch_size - len(rows[part])
                batch = collate_prompts([*rows[part], *[None] * empty], sizes, capacity, model_config)
                prompts, valid = put_whole(batch, self.mesh), np.asarray(batch.clip) >= 0
                asked = clips[part] + [[]] * empty
                yield QueryBatch(asked, "blind", ranked, prompts, None, prompts.text.shows, valid, {})

    def _predict(self, queries: QueryBatch) -> list[str | None]:
        """The text that is predicted for each row; None if no candidate is ahead of the others."""
        if not queries.ranked:
            out = self.complete(self.model, queries.prompts, queries.features, queries.shows)
            ids_BC, mask_BC = np.asarray(out.tokens)[:, 0], np.asarray(out.mask)[:, 0]
            asked = [bool(row) for row in queries.clips]  # the others are padding
            check_numbers(np.asarray(out.logprobs)[asked, 0][mask_BC[asked]])
            return [self.text.decode(ids[mask]) for ids, mask in zip(ids_BC, mask_BC, strict=True)]
        logprobs_BG = self._logprobs(queries, queries.control, queries.shows)
        if queries.is_contrast:
            whole_BG = self._logprobs(queries, "none", queries.prompts.text.shows)
        texts: list[str | None] = []
        for number, row in enumerate(queries.clips):
            answers = self.candidates.get(row[0].id, ()) if row else ()
            scores = logprobs_BG[number, : len(answers)]
            check_numbers(scores)
            if queries.is_contrast:
                scores = whole_BG[number, : len(answers)] - scores
            texts.append(best_answer(answers, scores) if answers else None)
            if answers:
                self.scores[Query(row[0].id, queries.control, ranked=True)] = scores
        return texts

    def _logprobs(self, queries: QueryBatch, control: str, shows: Array) -> np.ndarray:
        """log p f32[B, G] of each row's candidates, computed once for each video of the queries."""
        if control not in queries.logprobs:
            answers = [self.candidate_ids.get(row[0].id, []) if row else [] for row in queries.clips]
            padded = put_whole(pad_answers(answers, self.groups, self.length), self.mesh)
            logprobs = self.score(self.model, queries.prompts, queries.features, shows, *padded)
            queries.logprobs[control] = np.asarray(logprobs)
        return queries.logprobs[control]
