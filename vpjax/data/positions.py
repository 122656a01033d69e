"""The visual tokens of a prompt, its rotary positions on three axes, and the times of slots."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from vpjax.types import UserError

if TYPE_CHECKING:
    from vpjax.models.config import VLMConfig

Grid = tuple[int, int, int]  # slots, rows and columns
Rule = Literal["qwen", "transformers5"]


def is_visual(ids: np.ndarray, pads: tuple[int, int]) -> np.ndarray:
    """bool[p]: whether each token is visual. pads: ids of the image and the video placeholder."""
    return (ids == pads[0]) | (ids == pads[1])


@dataclasses.dataclass(frozen=True)
class Stamps:
    """The token ids of the pieces of a slot's time in words, ``<0.2 seconds>``. Data workers, which write
    such times, have these instead of the tokenizer.

    openings: for the place of a video in a prompt whose text before it is tokenized together with the "<" of
    its first time: how many tokens of that text these tokens replace, and the "<"."""

    pieces: Mapping[str, tuple[int, ...]]
    openings: Mapping[int, tuple[int, tuple[int, ...]]] = dataclasses.field(default_factory=dict)

    def write(self, seconds: float) -> list[int]:
        return [*self.pieces["<"], *self.without_opening(seconds)]

    def without_opening(self, seconds: float) -> list[int]:
        return [i for piece in (*f"{seconds:.1f}", " seconds>") for i in self.pieces[piece]]


def with_media(
    prompt: np.ndarray,
    grids: Sequence[Grid],
    seconds: Sequence[np.ndarray],
    model_config: VLMConfig,
    stamps: Stamps | None,
) -> tuple[np.ndarray, np.ndarray]:
    """``prompt`` with the placeholder of each video or image repeated for its visual tokens, and the place in
    it i32[p] at which each token of ``prompt``, or what is in place of it, ends.

    grids: (slots, rows, columns) of each. seconds: f64[S] of each, its slots' times. For a model that reads
    times in words, every slot of a video follows its time and stands between its own vision_start and
    vision_end, in place of the one pair that the chat template writes. UserError if such a model has no
    ``stamps``. Source: ``Qwen3VLProcessor`` of transformers 4.57.
    """
    pieces: list[list[int]] = [[token] for token in prompt.tolist()]
    places = np.flatnonzero(is_visual(prompt, (model_config.image_token, model_config.video_token)))
    for at, grid, seconds_S in zip(places.tolist(), grids, seconds, strict=True):
        token = int(prompt[at])
        if token == model_config.image_token or model_config.tokens_per_second is not None:
            pieces[at] = [token] * math.prod(grid)
            continue
        if stamps is None:
            raise UserError(
                "the model reads times digit by digit, which its tokenizer merges; use the model's own"
            )
        start, end = model_config.vision_start, model_config.vision_end
        slot = [start, *[token] * (grid[1] * grid[2]), end]
        text_end = at
        if pieces[at - 1 : at] == [[start]] and pieces[at + 1 : at + 2] == [[end]]:
            pieces[at - 1] = pieces[at + 1] = []
            text_end = at - 1
        rewritten, opening = stamps.openings.get(at, (0, stamps.pieces["<"]))
        pieces[text_end - rewritten : text_end] = [[]] * rewritten
        written = [*opening, *stamps.without_opening(seconds_S[0]), *slot]
        for moment in seconds_S[1:]:
            written += [*stamps.write(moment), *slot]
        pieces[at] = written
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int32)
    return np.array([token for piece in pieces for token in piece], np.int32), ends - 1


def positions(
    ids: np.ndarray,
    grids: Sequence[Grid],
    seconds_per_slot: Sequence[float],
    tokens_per_second: float | None,
    *,
    pads: tuple[int, int],
    rule: Rule = "qwen",
) -> np.ndarray:
    """Time, height and width positions i32[3, p] of a prompt with videos and images.

    ids: i32[p], the prompt with one id per visual token. grids: (slots, rows, columns) of the visual tokens
    of each video or image after merging, in order; seconds_per_slot: of each. tokens_per_second: of time
    positions; None: each slot is an image of its own that follows its time in words. pads: see ``is_visual``.
    rule: what follows visual tokens, be it text or another video, continues at the largest position so far +
    1 (``qwen``: Qwen's own code, with which the weights were trained) or at their first position + max(rows,
    columns) (``transformers5``: its Qwen2_5_VLModel.get_rope_index; for comparison only); for separate slots
    the two are the same. ValueError if the visual tokens are not one run of each video, or one of each of its
    slots, that fills its grid.
    """
    visual = np.flatnonzero(is_visual(ids, pads))
    out = np.tile(np.arange(len(ids), dtype=np.int32), (3, 1))
    problem = f"{len(visual)} visual tokens do not fill the grids {list(grids)}, each in one run"
    if len(visual) != sum(math.prod(grid) for grid in grids):
        raise ValueError(problem)
    used = 0
    for grid, seconds in zip(grids, seconds_per_slot, strict=True):
        slots, rows, columns = grid
        if tokens_per_second is None:  # each slot is a run of its own
            runs, place = slots, np.indices((1, rows, columns)).reshape(3, -1)
        else:
            runs, place = 1, np.indices(grid).reshape(3, -1)
            place[0] = time_ids(slots, seconds, tokens_per_second)[place[0]]
        extent = place.max() + 1 if rule == "qwen" else max(rows, columns)
        end = -1
        for _ in range(runs):
            run = visual[used : used + place.shape[1]]
            used += len(run)
            if run[-1] - run[0] != len(run) - 1 or run[0] == end:
                raise ValueError(problem)
            start, end = out[0, run[0]], run[-1] + 1
            out[:, run] = start + place
            out[:, end:] = start + extent + np.arange(len(ids) - end)
    return out


def time_ids(slots: int, seconds_per_slot: float, tokens_per_second: float) -> np.ndarray:
    """The time position i64[S] of each slot, the first at 0. Slots closer than one token share a position.

    The slack keeps a slot at a whole token there, although measured times carry rounding errors."""
    return np.floor(np.arange(slots) * (seconds_per_slot * tokens_per_second) + 1e-4).astype(np.int64)


def slot_seconds(times: np.ndarray, temporal: int) -> np.ndarray:
    """The time of each slot, f64[S] in seconds: halfway between its first and last of ``times`` f64[F].

    Rounded to the microsecond, so that a time halfway between two decimals is later rounded as if exact."""
    return times.reshape(-1, temporal)[:, [0, -1]].mean(axis=1).round(6)
