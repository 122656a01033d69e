"""Tokens and frames -> rows -> a Batch: positions, loss mask, key slots, padding to a bucket; in NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from vpjax.data.keyframes import elsewhere, identity, slots_of, source_of, widened
from vpjax.data.positions import Rule, is_visual, positions, slot_seconds
from vpjax.data.text import Stamps, Tokens, with_media
from vpjax.data.video import seconds_per_slot
from vpjax.types import Batch, Bucket, UserError

if TYPE_CHECKING:
    from vpjax.data.video import Video
    from vpjax.models.vlm import VLMConfig

Choice = Literal["key", "random", "none"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a Batch before padding: f frames, s slots, v visual tokens, p prompt and c suffix tokens.

    frames u8[f,h,w,3]; prompt i32[p]; positions i32[3,p]; visual i32[v]; suffix i32[c] (all of it a target);
    source i32[s]; slots bool[J,s]; keywords i32[J,W]; lemma i32[J]; clip: see Batch. notes: to be counted.
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
    prompt: np.ndarray,
    video: Video | None,
    config: VLMConfig,
    *,
    stamps: Stamps | None = None,
    rule: Rule = "qwen",
) -> Row:
    """A row without an answer, for generation. prompt: i32[p], with one placeholder or all of them. stamps:
    of the tokenizer (``Text.stamps``)."""
    pads = (config.image_token, config.video_token)
    if video is None:
        place = positions(prompt, None, 0.0, config.tokens_per_second, pads=pads)
        return dataclasses.replace(masked_row(), prompt=prompt, positions=place, clip=0)
    unit = config.vision.patch * config.vision.merge
    frames, height, width, _ = video.frames.shape
    grid = (frames // config.vision.temporal, height // unit, width // unit)
    if is_visual(prompt, pads).sum() == 1:
        prompt = with_media(prompt, grid, slot_seconds(video.times, config.vision.temporal), config, stamps)
    seconds = seconds_per_slot(video.times, config.vision.temporal)
    place = positions(prompt, grid, seconds, config.tokens_per_second, pads=pads, rule=rule)
    visual = np.flatnonzero(is_visual(prompt, pads)).astype(np.int32)
    shared = grid[0] - len(np.unique(place[0, visual]))
    return dataclasses.replace(
        masked_row(),
        frames=video.frames,
        prompt=prompt,
        positions=place,
        visual=visual,
        source=np.arange(grid[0], dtype=np.int32),
        slots=np.zeros((0, grid[0]), bool),
        clip=0,
        notes=("clip with slots that share a time position (denser than tokens_per_second)",) * (shared > 0),
    )


def training_row(
    tokens: Tokens,
    video: Video | None,
    config: VLMConfig,
    *,
    replacement: Choice = "key",
    pool: Choice = "key",
    widen: int = 0,
    seed: Sequence[int] = (0,),
    clip: int = 0,
) -> Row:
    """A row with its answer, its keywords and its V~.

    replacement, pool: the slots that V~ replaces and those pooled for a keyword: its ``key`` slots, as many
    at ``random`` elsewhere, or (replacement only) ``none``. widen: see ``widened``. seed: of random choices.
    """
    row = prompt_row(tokens.prompt, video, config, stamps=tokens.stamps)
    count = len(row.source)
    key = np.zeros((len(tokens.spans), count), bool)
    missed = 0
    for j, spans in enumerate(tokens.spans if video is not None else ()):
        key[j] = slots_of(spans, video.times, video.frame_seconds, config.vision.temporal)
        missed += bool(spans) and not key[j].any()
    # What V~ replaces travels as one more row, so that a random choice moves it and the pooled slots alike.
    masks = {"key": np.concatenate([key, widened(key.any(0), widen)[None]])}
    if "random" in (replacement, pool):
        masks["random"] = elsewhere(masks["key"], count, np.random.default_rng(list(seed)))
    return dataclasses.replace(
        row,
        suffix=tokens.answer,
        source=identity(count) if replacement == "none" else source_of(masks[replacement][-1:], count),
        slots=masks[pool][:-1],
        keywords=tokens.keywords,
        lemma=tokens.lemma,
        clip=clip,
        notes=row.notes + tokens.notes + ("keyword whose event falls between the sampled frames",) * missed,
    )


def bucket_of(rows: Sequence[Row], *, multiple: int = 1, suffix: int = 0) -> Bucket:
    """The smallest bucket that holds ``rows`` and ``suffix`` tokens after their prompts, its P and C
    multiples of ``multiple``. ValueError where rows differ in the size of their frames."""
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


def collate(rows: Sequence[Row], bucket: Bucket, config: VLMConfig) -> Batch:
    """Pad rows of the same J and W to a bucket. ValueError where one does not fit."""
    unit = config.vision.patch * config.vision.merge
    slots = bucket.frames // config.vision.temporal
    visual = slots * (bucket.height // unit) * (bucket.width // unit)
    keywords, keyword_tokens = rows[0].keywords.shape

    def pad(values: Sequence[np.ndarray], *shape: int, fill: int = 0) -> np.ndarray:
        out = np.full((len(rows), *shape), fill, values[0].dtype)
        for target, value in zip(out, values, strict=True):
            if any(has > room for has, room in zip(value.shape, shape, strict=True)):
                raise ValueError(f"{value.shape} does not fit {shape} of {bucket}")
            target[tuple(slice(n) for n in value.shape)] = value
        return out

    def valid(values: Sequence[np.ndarray], length: int) -> np.ndarray:
        return np.arange(length) < np.array([len(value) for value in values])[:, None]

    prompts = [row.prompt for row in rows]
    suffixes = [row.suffix for row in rows]
    sources = [row.source for row in rows]
    slot_valid = valid(sources, slots)
    starts = [row.positions[:, -1:].max(initial=-1) + 1 for row in rows]
    suffix_positions = np.add.outer(np.array(starts, np.int32), np.arange(bucket.suffix, dtype=np.int32))
    return Batch(
        frames=pad([row.frames for row in rows], bucket.frames, bucket.height, bucket.width, 3),
        slot_valid=slot_valid,
        prompt=pad(prompts, bucket.prompt),
        prompt_valid=valid(prompts, bucket.prompt),
        positions=np.concatenate(
            [
                pad([row.positions for row in rows], 3, bucket.prompt),
                np.repeat(suffix_positions[:, None], 3, axis=1),
            ],
            axis=2,
        ),
        visual=pad([row.visual for row in rows], visual, fill=bucket.prompt),
        suffix=pad(suffixes, bucket.suffix),
        target=valid(suffixes, bucket.suffix),
        source=np.where(slot_valid, pad(sources, slots), np.arange(slots, dtype=np.int32)),
        slots=pad([row.slots for row in rows], keywords, slots),
        keywords=pad([row.keywords for row in rows], keywords, keyword_tokens, fill=-1),
        lemma=pad([row.lemma for row in rows], keywords, fill=-1),
        clip=np.array([row.clip for row in rows], np.int32),
        video_end=bucket.video_end,
    )


def unpad(
    input_ids: np.ndarray, attention_mask: np.ndarray, labels: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Hugging Face's padded rows, padded on whichever side, as (prompt i32[p], answer i32[c]) pairs.

    input_ids, attention_mask: [B, T]. labels: [B, T], -100 outside the answer; None: no answer.
    UserError for a row whose answer does not stand at its end (several turns: one clip per turn).
    """
    pairs = []
    masks = np.asarray(attention_mask, bool)
    for i, (ids, mask) in enumerate(zip(np.asarray(input_ids), masks, strict=True)):
        scored = np.zeros(mask.sum(), bool) if labels is None else np.asarray(labels)[i][mask] != -100
        start = len(scored) - scored.sum()
        if not scored[start:].all():
            raise UserError(f"row {i}: its labels are not one answer at the end; write one row per turn")
        pairs.append((ids[mask][:start].astype(np.int32), ids[mask][start:].astype(np.int32)))
    return pairs
