"""Makes the part of a row that belongs to one clip: its units, tokens, positions, key slots and V~."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from vpjax.data.keyframes import identity_source, moved_mask, slots_of, source_of, widened
from vpjax.data.positions import is_visual, positions, slot_seconds
from vpjax.data.sampling import seconds_per_slot
from vpjax.data.text import Stamps, Tokens, places_with_media, with_media
from vpjax.data.units import Capacity, cut, grid_of, lay_out, places_of
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
LATER_FRAMES = "clip without V~: its frame rate varies, and the event is in an earlier frame than planned"
NO_TOKENS = np.zeros(0, np.int32)


@dataclasses.dataclass(frozen=True)
class Row:
    """One clip of s slots and p prompt tokens; its arrays are those of ``types`` without the leading axis.

    video: its units. prompt: its tokens up to the answer. shows_degraded i32[p]: the units that V~ shows.
    answer i32[c]. earlier i32[n]: the places in the prompt of earlier answers that are trained on.
    degraded_answer i32[e]: the tokens that follow V~'s prompt, empty: none. degraded_target, compared i32[d]:
    the places in V~'s prompt and these of the tokens that are trained on or compared, and the places in
    ``target`` of those that are compared, -1: the others. slots bool[J,s]: the slots that show each keyword.
    hidden bool[J]: V~ replaces some of them. keywords i32[J,W]; lemma i32[J]. clip, data_set: their numbers.
    notes: remarks.
    """

    video: Units
    prompt: Strip
    shows_degraded: np.ndarray
    answer: np.ndarray
    earlier: np.ndarray
    degraded_answer: np.ndarray
    degraded_target: np.ndarray
    compared: np.ndarray
    slots: np.ndarray
    hidden: np.ndarray
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
            notes=self.notes + notes,
        )

    @property
    def has_degraded(self) -> bool:
        return bool((self.shows_degraded != self.prompt.shows).any())

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
        unit up to the last target. Without targets it ends at its last visual token. Empty without a V~."""
        whole = answered(dataclasses.replace(self.prompt, shows=self.shows_degraded), self.degraded_answer)
        end = 0
        if len(self.degraded_target):
            end = int(self.degraded_target.max()) + 1
        elif self.has_degraded:
            end = int(np.flatnonzero(whole.shows >= 0)[-1]) + 1
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


def units_of(video: Video | None, model_config: VLMConfig, capacity: Capacity) -> tuple[Units, np.ndarray]:
    """The units of a video, without the leading axis, and the unit i32[S,M] of each visual token."""
    vision = model_config.vision
    if video is None:
        frames = np.zeros((0, vision.factor, vision.factor, vision.channels), np.uint8)
    else:
        frames = video.frames
    grid = grid_of(frames.shape[:3], vision)
    layout = lay_out(grid, vision, capacity)
    is_unit, per_slot = layout.unit >= 0, grid[1] * grid[2]
    cut_units = cut(frames, vision)
    pixels = np.zeros((len(layout.unit), *cut_units.shape[1:]), np.uint8)
    pixels[is_unit] = cut_units[layout.unit[is_unit]]
    place = np.stack(np.divmod(layout.unit % per_slot, grid[2]), axis=-1) * is_unit[:, None]
    binned = np.full(len(layout.unit), -1, np.int32)
    binned[layout.bins[layout.bins >= 0]] = np.flatnonzero(layout.bins >= 0)
    units = Units(
        pixels=pixels,
        place=place.astype(np.int32),
        grid=np.tile(np.array(grid[1:], np.int32), (len(layout.unit), 1)),
        window=layout.window,
        slot=np.where(is_unit, layout.unit // per_slot, -1).astype(np.int32),
        bins=layout.bins,
        binned=binned,
        block=capacity.block,
        bin=capacity.bin,
    )
    return units, places_of(layout.unit).reshape(grid[0], per_slot)


def prompt_row(
    prompt: np.ndarray,
    video: Video | None,
    model_config: VLMConfig,
    capacity: Capacity,
    *,
    stamps: Stamps | None = None,
) -> Row:
    """A row without an answer, for generation.

    prompt: i32[p], with one placeholder or one for each visual token. stamps: see ``Text.stamps``."""
    pads = (model_config.image_token, model_config.video_token)
    rate = model_config.tokens_per_second
    units, unit_SM = units_of(video, model_config, capacity)
    grid, seconds = None, 0.0
    notes: tuple[str, ...] = ()
    if video is not None:
        vision = model_config.vision
        _, height, width, _ = video.frames.shape
        grid = (len(unit_SM), height // vision.factor, width // vision.factor)
        seconds = seconds_per_slot(video.times, vision.temporal)
        if is_visual(prompt, pads).sum() == 1:
            prompt = with_media(
                prompt, grid, slot_seconds(video.times, vision.temporal), model_config, stamps
            )
    prompt_positions = positions(prompt, grid, seconds, rate, pads=pads)
    visual = np.flatnonzero(is_visual(prompt, pads))
    if grid is not None and len(np.unique(prompt_positions[0, visual])) < grid[0]:
        notes = (SHARED_TIMES,)
    shows, slot = np.full((2, len(prompt)), -1, np.int32)
    shows[visual] = unit_SM.ravel()
    slot[visual] = np.repeat(np.arange(len(unit_SM)), unit_SM.shape[1])
    none = np.zeros((0, 0), np.int32)
    return Row(
        video=units,
        prompt=Strip(prompt, np.ones(len(prompt), np.int32), prompt_positions, shows, slot),
        shows_degraded=shows,
        answer=none.ravel(),
        earlier=none.ravel(),
        degraded_answer=none.ravel(),
        degraded_target=none.ravel(),
        compared=none.ravel(),
        slots=np.zeros((0, len(unit_SM)), bool),
        hidden=np.zeros(0, bool),
        keywords=none,
        lemma=none.ravel(),
        notes=notes,
    )


def training_row(
    tokens: Tokens,
    video: Video | None,
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
    row = prompt_row(tokens.prompt, video, model_config, capacity, stamps=tokens.stamps)
    pads = (model_config.image_token, model_config.video_token)
    earlier = np.concatenate([NO_TOKENS, *tokens.earlier])
    notes = row.notes + tokens.notes
    count = row.slots.shape[1]
    key_JS = np.zeros((len(tokens.spans), count), bool)
    if video is not None:
        for j, spans in enumerate(tokens.spans):
            key_JS[j] = slots_of(spans, video.times, video.frame_seconds, model_config.vision.temporal)
            if spans and not key_JS[j].any():
                notes += ("keyword whose event falls between the sampled frames",)
    # The slots that V~ replaces are one more row of the mask, so that a random choice moves them and the
    # pooled slots alike.
    masks = {"key": np.concatenate([key_JS, widened(np.any(key_JS, axis=0), widen)[None]])}
    if "random" in (replacement, pool):
        masks["random"] = moved_mask(masks["key"], np.random.default_rng(list(seed)))
    source = identity_source(count)
    if replacement != "none":
        source = source_of(masks[replacement][-1:])
    slots = masks[pool][:-1]
    is_replaced = source != identity_source(count)
    # The random control compares the keywords for whose slots it replaces others.
    replaced_J = np.any(masks.get(replacement, masks["key"])[:-1] & is_replaced, axis=1)
    row = dataclasses.replace(
        row,
        shows_degraded=seen_through(row.prompt.shows, row.prompt.slot, source),
        answer=tokens.answer,
        earlier=places_with_media(earlier, tokens.prompt, len(row.prompt.tokens), pads),
        slots=slots,
        hidden=np.any(slots & is_replaced, axis=1),
        keywords=tokens.keywords,
        lemma=tokens.lemma,
        clip=clip,
        data_set=data_set,
        notes=notes,
    )
    rng = np.random.default_rng([*seed, TRUTH])
    row = with_degraded_answer(row, tokens, replaced_J, answers, rng)
    if len(row.degraded_target) or answers.alone:
        return row
    return row.without_degraded()


def with_degraded_answer(
    row: Row, tokens: Tokens, hidden_J: np.ndarray, answers: DegradedAnswers, rng: np.random.Generator
) -> Row:
    """A row and what follows the prompt of its V~, which replaces slots of these keywords.

    V~'s own truth follows only where V~ hides every keyword that is seen anywhere. The answer follows up to
    the last token that is compared. An answer before the video is none that V~ could change."""
    if not hidden_J.any():
        return row
    truth, prompt = tokens.degraded_answer, len(row.prompt.tokens)
    seen = any(spans and not hidden for hidden, spans in zip(hidden_J, tokens.spans, strict=True))
    if len(truth) and not (seen or tokens.left_out) and rng.random() < answers.truth_share:
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


def seen_through(shows_P: Array, slot_P: Array, source_S: np.ndarray) -> np.ndarray:
    """The units i32[P] that the visual tokens of a changed video show, whose slot s shows slot ``source[s]``.
    shows: the units that the tokens of V show; slot: their slots, in order."""
    out = np.array(shows_P)
    visual = np.flatnonzero(slot_P >= 0)
    per_slot = len(visual) // max(len(source_S), 1)
    out[visual] = out[visual].reshape(len(source_S), per_slot)[source_S].ravel()
    return out
