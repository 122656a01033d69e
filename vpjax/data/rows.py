"""Makes rows of tokens and frames, and Batches of rows: positions, loss mask, key slots, padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from vpjax.data.keyframes import identity_source, moved_mask, slots_of, source_of, widened
from vpjax.data.positions import is_visual, positions, slot_seconds
from vpjax.data.text import Stamps, Tokens, with_media
from vpjax.data.video import seconds_per_slot
from vpjax.types import Batch, Bucket

if TYPE_CHECKING:
    from vpjax.data.video import Video
    from vpjax.models.config import VLMConfig

SlotChoice = Literal["key", "random", "none"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a Batch before padding: f frames, s slots, v visual tokens, p prompt and c suffix tokens.

    frames u8[f,h,w,3]; prompt i32[p]; positions i32[3,p]; visual i32[v]; suffix i32[c] (all of it a target);
    source i32[s]; slots bool[J,s]; keywords i32[J,W]; lemma i32[J]; clip: see Batch. notes: remarks.
    """

    frames: np.ndarray
    prompt: np.ndarray
    positions: np.ndarray
    visual: np.ndarray
    suffix: np.ndarray
    source: np.ndarray
    slots: np.ndarray
    keywords: np.ndarray
    lemma: np.ndarray
    clip: int = 0
    notes: tuple[str, ...] = ()


def masked_row(keywords: int = 0, keyword_tokens: int = 0) -> Row:
    """A row that is wholly padding."""
    none = np.zeros(0, np.int32)
    return Row(
        frames=np.zeros((0, 0, 0, 3), np.uint8),
        prompt=none,
        positions=np.zeros((3, 0), np.int32),
        visual=none,
        suffix=none,
        source=none,
        slots=np.zeros((keywords, 0), bool),
        keywords=np.full((keywords, keyword_tokens), -1, np.int32),
        lemma=np.full(keywords, -1, np.int32),
        clip=-1,
    )


def prompt_row(
    prompt: np.ndarray, video: Video | None, model_config: VLMConfig, *, stamps: Stamps | None = None
) -> Row:
    """A row without an answer, for generation.

    prompt: i32[p], with one placeholder or one for each visual token. stamps: see ``Text.stamps``."""
    pads = (model_config.image_token, model_config.video_token)
    rate = model_config.tokens_per_second
    if video is None:
        text_positions = positions(prompt, None, 0.0, rate, pads=pads)
        return dataclasses.replace(masked_row(), prompt=prompt, positions=text_positions, clip=0)
    vision = model_config.vision
    frames, height, width, _ = video.frames.shape
    grid = (frames // vision.temporal, height // vision.factor, width // vision.factor)
    if is_visual(prompt, pads).sum() == 1:
        prompt = with_media(prompt, grid, slot_seconds(video.times, vision.temporal), model_config, stamps)
    seconds = seconds_per_slot(video.times, vision.temporal)
    row_positions = positions(prompt, grid, seconds, rate, pads=pads)
    visual = np.flatnonzero(is_visual(prompt, pads)).astype(np.int32)
    notes: tuple[str, ...] = ()
    if len(np.unique(row_positions[0, visual])) < grid[0]:
        notes = ("clip with slots that share a time position (denser than tokens_per_second)",)
    return dataclasses.replace(
        masked_row(),
        frames=video.frames,
        prompt=prompt,
        positions=row_positions,
        visual=visual,
        source=identity_source(grid[0]),
        slots=np.zeros((0, grid[0]), bool),
        clip=0,
        notes=notes,
    )


def training_row(
    tokens: Tokens,
    video: Video | None,
    model_config: VLMConfig,
    *,
    replacement: SlotChoice = "key",
    pool: SlotChoice = "key",
    widen: int = 0,
    seed: Sequence[int] = (0,),
    clip: int = 0,
) -> Row:
    """A row with its answer, its keywords and its V~.

    replacement, pool: the slots that V~ replaces, and those that are pooled for a keyword: its ``key`` slots,
    as many ``random`` other slots, or (replacement only) ``none``. widen: see ``widened``. seed: of choices.
    """
    row = prompt_row(tokens.prompt, video, model_config, stamps=tokens.stamps)
    notes = row.notes + tokens.notes
    count = len(row.source)
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
        masks["random"] = moved_mask(masks["key"], count, np.random.default_rng(list(seed)))
    return dataclasses.replace(
        row,
        suffix=tokens.answer,
        source=identity_source(count) if replacement == "none" else source_of(masks[replacement][-1:], count),
        slots=masks[pool][:-1],
        keywords=tokens.keywords,
        lemma=tokens.lemma,
        clip=clip,
        notes=notes,
    )


def bucket_of(rows: Sequence[Row], *, multiple: int = 1, suffix: int = 0) -> Bucket:
    """The smallest bucket that holds ``rows`` and ``suffix`` tokens after their prompts, with P and C
    multiples of ``multiple``. ValueError if rows differ in the size of their frames."""
    sizes = {row.frames.shape[1:3] for row in rows if len(row.frames)} or {(0, 0)}
    if len(sizes) > 1:
        raise ValueError(f"rows of frame sizes {sorted(sizes)} share no bucket")
    height, width = sizes.pop()
    return Bucket(
        frames=max(len(row.frames) for row in rows),
        height=height,
        width=width,
        prompt=round_up(max(len(row.prompt) for row in rows), multiple),
        suffix=round_up(max(suffix, *(len(row.suffix) for row in rows)), multiple),
        video_end=max((int(row.visual[-1]) + 1 for row in rows if len(row.visual)), default=0),
    )


def round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def collate(rows: Sequence[Row], bucket: Bucket, model_config: VLMConfig) -> Batch:
    """Pad rows of the same J and W to a bucket. ValueError if a row does not fit."""
    vision = model_config.vision
    slots = bucket.frames // vision.temporal
    visual = slots * (bucket.height // vision.factor) * (bucket.width // vision.factor)
    keywords, keyword_tokens = rows[0].keywords.shape

    def pad(field: str, *shape: int, fill: int = 0) -> np.ndarray:
        values = [getattr(row, field) for row in rows]
        padded = np.full((len(rows), *shape), fill, values[0].dtype)
        for target, value in zip(padded, values, strict=True):
            if np.any(np.array(value.shape) > shape):
                raise ValueError(f"{value.shape} does not fit {shape} of {bucket}")
            target[tuple(slice(n) for n in value.shape)] = value
        return padded

    def valid(field: str, length: int) -> np.ndarray:
        return np.arange(length) < np.array([len(getattr(row, field)) for row in rows])[:, None]

    slot_valid = valid("source", slots)
    starts = np.array([row.positions[:, -1:].max(initial=-1) + 1 for row in rows], np.int32)
    suffix_positions = np.add.outer(starts, np.arange(bucket.suffix, dtype=np.int32))
    suffix_positions = np.repeat(suffix_positions[:, None], 3, axis=1)
    return Batch(
        frames=pad("frames", bucket.frames, bucket.height, bucket.width, 3),
        slot_valid=slot_valid,
        prompt=pad("prompt", bucket.prompt),
        prompt_valid=valid("prompt", bucket.prompt),
        positions=np.concatenate([pad("positions", 3, bucket.prompt), suffix_positions], axis=2),
        visual=pad("visual", visual, fill=bucket.prompt),
        suffix=pad("suffix", bucket.suffix),
        target=valid("suffix", bucket.suffix),
        source=np.where(slot_valid, pad("source", slots), identity_source(slots)),
        slots=pad("slots", keywords, slots),
        keywords=pad("keywords", keywords, keyword_tokens, fill=-1),
        lemma=pad("lemma", keywords, fill=-1),
        clip=np.array([row.clip for row in rows], np.int32),
        video_end=bucket.video_end,
    )
