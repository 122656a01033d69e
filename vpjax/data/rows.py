"""Makes the part of a row that belongs to one clip: its units, tokens, positions, key slots and V~."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from vpjax.data.keyframes import (
    identity_source,
    moved_masks,
    parts_of,
    slots_of,
    source_of,
    sources_of,
    widened,
)
from vpjax.data.positions import Grid, Stamps, is_visual, positions, slot_seconds, with_media
from vpjax.data.text import Tokens
from vpjax.data.units import Capacity, grid_of, joined_units, units_of
from vpjax.types import Array, Strip, Units

if TYPE_CHECKING:
    from vpjax.data.video import Video
    from vpjax.models.config import VLMConfig

SlotChoice = Literal["key", "random", "none"]
Compared = Literal["none", "keywords", "all"]
TRUTH = 1  # a stream of random numbers of its own
SHARED_TIMES = "clip with slots that share a time position (denser than tokens_per_second)"


@dataclasses.dataclass(frozen=True)
class DegradedAnswers:
    """What follows the prompts of V~. compared: the clip's answers, to compare the likelihoods of their
    ``keywords``, or of ``all`` tokens that are trained on, with those given V. truth_share: share of the
    clips that have V~'s own truth instead, drawn anew in each epoch. alone: prompts that nothing follows are
    kept too, for a contrast that reads their states."""

    compared: Compared = "none"
    truth_share: float = 0.0
    alone: bool = True


NO_ANSWERS = DegradedAnswers()
MISSED_EVENT = "keyword whose event falls between the sampled frames"
LATER_FRAMES = "clip without V~: its frame rate varies, and the event is in an earlier frame than planned"
NO_TOKENS = np.zeros(0, np.int32)


@dataclasses.dataclass(frozen=True)
class Row:
    """One clip of s slots and p prompt tokens; its arrays are those of ``types`` without the leading axis.

    video: its units. prompt: its tokens up to the answer. counts: slots of each of its videos and images.
    shows_degraded i32[p]: the units that V~ shows. answer i32[c]. earlier i32[n]: the places in the prompt of
    earlier answers that are trained on. degraded_answer i32[e]: the tokens that follow V~'s prompt, empty:
    none. degraded_target, compared i32[d]: the places in V~'s prompt and these of the tokens that are trained
    on or compared, and the places in ``target`` of those that are compared, -1: the others. slots bool[J,s]:
    the slots that show each keyword. hidden bool[J]: V~ replaces some of them. in_degraded bool[J]: V~
    differs from V in the keyword's video. keywords i32[J,W]; lemma i32[J]. clip, data_set: their numbers.
    notes: remarks.
    """

    video: Units
    prompt: Strip
    counts: tuple[int, ...]
    shows_degraded: np.ndarray
    answer: np.ndarray
    earlier: np.ndarray
    degraded_answer: np.ndarray
    degraded_target: np.ndarray
    compared: np.ndarray
    slots: np.ndarray
    hidden: np.ndarray
    in_degraded: np.ndarray
    keywords: np.ndarray
    lemma: np.ndarray
    clip: int = 0
    data_set: int = 0
    notes: tuple[str, ...] = ()

    def without_degraded(self, *notes: str) -> Row:
        """The clip without V~, and remarks that say why."""
        return dataclasses.replace(
            self,
            shows_degraded=np.asarray(self.prompt.shows),
            degraded_answer=NO_TOKENS,
            degraded_target=NO_TOKENS,
            compared=NO_TOKENS,
            hidden=np.zeros_like(self.hidden),
            in_degraded=np.zeros_like(self.in_degraded),
            notes=self.notes + notes,
        )

    @property
    def has_degraded(self) -> bool:
        return bool((self.shows_degraded != self.prompt.shows).any())

    @property
    def medium(self) -> np.ndarray:
        """i32[p]: the number of the video or image that each token of the prompt shows, -1: text."""
        slot = np.asarray(self.prompt.slot)
        return np.where(slot < 0, -1, np.searchsorted(np.cumsum(self.counts), slot, "right")).astype(np.int32)

    @property
    def target(self) -> np.ndarray:
        """The tokens that are trained on: their places i32[a] in the prompt and the answer after it."""
        own = len(self.prompt.tokens) + np.arange(len(self.answer), dtype=np.int32)
        return np.concatenate([self.earlier, own])

    @property
    def text(self) -> Strip:
        """The prompt and the answer after it."""
        return answered(self.prompt, self.answer)

    @property
    def degraded(self) -> Strip:
        """The prompt as it sees V~ and the tokens that follow it, from the first token that shows another
        unit up to the last target or visual token, whichever is later. Empty without a V~."""
        whole = answered(dataclasses.replace(self.prompt, shows=self.shows_degraded), self.degraded_answer)
        end = 0
        if self.has_degraded:
            last_shown = np.flatnonzero(whole.shows >= 0)[-1]
            end = int(max(last_shown, self.degraded_target.max(initial=0))) + 1
        part = slice(self.shared, end)
        return Strip(
            whole.tokens[part],
            whole.segment[part],
            whole.positions[:, part],
            whole.shows[part],
            whole.slot[part],
        )

    @property
    def shared(self) -> int:
        """The number of tokens before the first that shows another unit in V~; 0 without a V~."""
        return int((self.shows_degraded != self.prompt.shows).argmax()) if self.has_degraded else 0


def answered(prompt: Strip, answer: np.ndarray) -> Strip:
    """A clip's prompt and an answer after it."""
    own = np.zeros(len(answer), np.int32)
    start = int(prompt.positions.max(initial=-1)) + 1
    answer_positions = np.tile(np.arange(start, start + len(own), dtype=np.int32), (3, 1))
    return Strip(
        tokens=np.concatenate([prompt.tokens, answer]),
        segment=np.concatenate([prompt.segment, own + 1]),
        positions=np.concatenate([prompt.positions, answer_positions], axis=1),
        shows=np.concatenate([prompt.shows, own - 1]),
        slot=np.concatenate([prompt.slot, own - 1]),
    )


def prompt_row(
    prompt: np.ndarray,
    videos: Sequence[Video],
    model_config: VLMConfig,
    capacity: Capacity,
    *,
    stamps: Stamps | None = None,
    earlier: np.ndarray = NO_TOKENS,
) -> Row:
    """A row without an answer, for generation.

    prompt: i32[p], with one placeholder for each of the videos, or one for each visual token. stamps: see
    ``Text.stamps``. earlier: places in ``prompt``, see ``Row``."""
    pads = (model_config.image_token, model_config.video_token)
    vision = model_config.vision
    grids: list[Grid] = [grid_of(video.frames.shape[:3], vision) for video in videos]
    seconds = [video.seconds_per_slot(vision.temporal) for video in videos]
    moments = [slot_seconds(video.times, vision.temporal) for video in videos]
    tokens, ends = prompt, np.arange(len(prompt), dtype=np.int32)
    if is_visual(prompt, pads).sum() == len(videos):
        tokens, ends = with_media(prompt, grids, moments, model_config, stamps)
    prompt_positions = positions(tokens, grids, seconds, model_config.tokens_per_second, pads=pads)

    laid_out = [units_of(video, model_config, capacity) for video in videos]
    visual = np.flatnonzero(is_visual(tokens, pads))
    shows, slot = np.full((2, len(tokens)), -1, np.int32)
    shows[visual], slot[visual] = shown_units(laid_out)
    counts = tuple(grid[0] for grid in grids)
    notes: tuple[str, ...] = ()
    if len(np.unique(prompt_positions[0, visual])) < sum(counts):
        notes = (SHARED_TIMES,)
    return Row(
        video=joined_units([units for units, _ in laid_out], model_config, capacity),
        prompt=Strip(tokens, np.ones(len(tokens), np.int32), prompt_positions, shows, slot),
        counts=counts,
        shows_degraded=shows,
        answer=NO_TOKENS,
        earlier=ends[earlier],
        degraded_answer=NO_TOKENS,
        degraded_target=NO_TOKENS,
        compared=NO_TOKENS,
        slots=np.zeros((0, sum(counts)), bool),
        hidden=np.zeros(0, bool),
        in_degraded=np.zeros(0, bool),
        keywords=np.zeros((0, 0), np.int32),
        lemma=NO_TOKENS,
        notes=notes,
    )


def shown_units(laid_out: Sequence[tuple[Units, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The unit i32[V] that each visual token of a prompt shows, and its slot i32[V], both counted over all of
    its videos. laid_out: of each video, as ``units_of`` gives it."""
    units_before = slots_before = 0
    shown, slot = [NO_TOKENS], [NO_TOKENS]
    for units, unit_SM in laid_out:
        slots, per_slot = unit_SM.shape
        shown.append(units_before + unit_SM.ravel())
        slot.append(slots_before + np.repeat(np.arange(slots, dtype=np.int32), per_slot))
        units_before += len(units.window)
        slots_before += slots
    return np.concatenate(shown), np.concatenate(slot)


def training_row(
    tokens: Tokens,
    videos: Sequence[Video],
    model_config: VLMConfig,
    capacity: Capacity,
    *,
    replacement: SlotChoice = "key",
    pool: SlotChoice = "key",
    widen: int = 0,
    answers: DegradedAnswers = NO_ANSWERS,
    seed: Sequence[int] = (0,),
    clip: int = 0,
    data_set: int = 0,
) -> Row:
    """A row with its answer, its keywords and its V~.

    replacement, pool: the slots that V~ replaces, and those that are pooled for a keyword: its ``key`` slots,
    as many ``random`` other slots, or (replacement only) ``none``. widen: see ``widened``. answers: what
    follows V~'s prompt, see ``with_degraded_answer``. seed: of choices.
    """
    earlier = np.concatenate([NO_TOKENS, *tokens.earlier])
    row = prompt_row(tokens.prompt, videos, model_config, capacity, stamps=tokens.stamps, earlier=earlier)
    key_JS = key_slots(tokens, videos, row.counts, model_config.vision.temporal)
    notes = row.notes + tokens.notes
    for spans, key_S in zip(tokens.spans, key_JS, strict=True):
        if videos and spans and not key_S.any():
            notes += (MISSED_EVENT,)

    # With equal seeds, random slots that are pooled and random slots that are replaced are the same.
    pooled_JS, _ = chosen_slots(pool, key_JS, row.counts, widen, seed)
    replaced_JS, replaced_S = chosen_slots(replacement, key_JS, row.counts, widen, seed)
    source = sources_of(row.counts, lambda part: source_of(replaced_S[None, part]))
    is_replaced_S = source != identity_source(len(source))
    in_degraded_J = np.zeros(len(key_JS), bool)
    if videos:
        parts = parts_of(row.counts)
        in_degraded_J[:] = [is_replaced_S[parts[number]].any() for number in tokens.videos]
    row = dataclasses.replace(
        row,
        shows_degraded=seen_through(row.prompt.shows, row.prompt.slot, source),
        answer=tokens.answer,
        slots=pooled_JS,
        hidden=np.any(pooled_JS & is_replaced_S, axis=1),
        in_degraded=in_degraded_J,
        keywords=tokens.keywords,
        lemma=tokens.lemma,
        clip=clip,
        data_set=data_set,
        notes=notes,
    )
    # The random control compares the keywords for whose slots it replaces others.
    compared_J = np.any(replaced_JS & is_replaced_S, axis=1)
    rng = np.random.default_rng([*seed, TRUTH])
    row = with_degraded_answer(row, tokens, compared_J, answers, rng)
    if len(row.degraded_target) or answers.alone:
        return row
    return row.without_degraded()


def key_slots(tokens: Tokens, videos: Sequence[Video], counts: Sequence[int], temporal: int) -> np.ndarray:
    """The slots bool[J, S] that show each keyword, in its video. counts: slots of each of the videos."""
    key_JS = np.zeros((len(tokens.spans), sum(counts)), bool)
    if videos:
        parts = parts_of(counts)
        for key_S, spans, number in zip(key_JS, tokens.spans, tokens.videos, strict=True):
            video = videos[number]
            key_S[parts[number]] = slots_of(spans, video.times, video.frame_seconds, temporal)
    return key_JS


def chosen_slots(
    choice: SlotChoice, key_JS: np.ndarray, counts: Sequence[int], widen: int, seed: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The slots bool[J, S] that stand for each keyword, and those bool[S] that V~ replaces for them, which
    are ``widened``. Arguments as in ``training_row`` and ``key_slots``."""
    replaced_S = np.zeros(key_JS.shape[1], bool)
    for part in parts_of(counts):
        replaced_S[part] = widened(np.any(key_JS[:, part], axis=0), widen)
    # Both in one mask, so that a random choice moves them alike.
    mask = np.concatenate([key_JS, replaced_S[None]])
    if choice == "random":
        mask = moved_masks(mask, counts, np.random.default_rng(list(seed)))
    elif choice == "none":
        mask = np.zeros_like(mask)
    return mask[:-1], mask[-1]


def with_degraded_answer(
    row: Row, tokens: Tokens, hidden_J: np.ndarray, answers: DegradedAnswers, rng: np.random.Generator
) -> Row:
    """A row and what follows the prompt of its V~, which replaces slots of these keywords.

    V~'s own truth follows only where V~ hides every keyword that is seen anywhere. The answer follows up to
    the last token that is compared. An answer before the video is none that V~ could change."""
    if not hidden_J.any():
        return row
    truth, prompt = tokens.degraded_answer, len(row.prompt.tokens)
    is_event_seen = tokens.left_out or any(
        spans and not hidden for hidden, spans in zip(hidden_J, tokens.spans, strict=True)
    )
    if len(truth) and not is_event_seen and rng.random() < answers.truth_share:
        target = prompt + np.arange(len(truth), dtype=np.int32)
        compared = np.full(len(truth), -1, np.int32)
        return dataclasses.replace(row, degraded_answer=truth, degraded_target=target, compared=compared)
    if answers.compared == "none":
        return row
    compared = compared_places(tokens, hidden_J, answers.compared)
    compared = compared[row.target[compared] > row.shared]
    target = row.target[compared]
    answer = tokens.answer[: max(int(target.max(initial=-1)) + 1 - prompt, 0)]
    return dataclasses.replace(row, degraded_answer=answer, degraded_target=target, compared=compared)


def compared_places(tokens: Tokens, hidden_J: np.ndarray, compared: Compared) -> np.ndarray:
    """The places i32[d] in ``tokens.targets`` of the tokens that are compared, ascending."""
    if compared == "all":
        return np.arange(len(tokens.targets), dtype=np.int32)
    places = {place for j in np.flatnonzero(hidden_J) for place in tokens.places[j]}
    return np.array(sorted(places), np.int32)


def replaced_slots(shows_P: Array, changed_P: Array, slot_P: Array) -> np.ndarray:
    """bool[1, S]: the slots that show other units in a changed video, as ``seen_through`` made it."""
    replaced = np.zeros((1, int(np.max(slot_P)) + 1), bool)
    replaced[0, np.asarray(slot_P)[np.asarray(changed_P) != np.asarray(shows_P)]] = True
    return replaced


def slot_counts(slot_P: Array, medium_P: Array) -> tuple[int, ...]:
    """How many slots each video or image of a prompt has, from the slot and the medium of its tokens."""
    medium_P, slot_P = np.asarray(medium_P), np.asarray(slot_P)
    return tuple(len(np.unique(slot_P[medium_P == number])) for number in range(int(medium_P.max()) + 1))


def seen_through(shows_P: Array, slot_P: Array, source_S: np.ndarray) -> np.ndarray:
    """The units i32[P] that the visual tokens of a changed video show, whose slot s shows slot ``source[s]``,
    which is of its size. shows: the units that the tokens of V show; slot: their slots, in order."""
    out = np.array(shows_P)
    visual = np.flatnonzero(slot_P >= 0)
    seen, slot = out[visual], np.asarray(slot_P)[visual]
    first_S = np.searchsorted(slot, np.arange(len(source_S)))
    place_in_slot = np.arange(len(visual)) - first_S[slot]
    out[visual] = seen[first_S[source_S[slot]] + place_in_slot]
    return out
