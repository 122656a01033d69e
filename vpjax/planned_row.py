"""A row of the batch that a plan assumes: clips of one kind, as the loader of a run packs them."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vpjax.data.index import Entry, index_clips
from vpjax.data.packing import Sizes
from vpjax.data.pipeline import make_plan
from vpjax.data.positions import Stamps
from vpjax.data.probing import Source
from vpjax.data.sampling import VideoInfo
from vpjax.data.text import Tokens
from vpjax.data.units import Capacity, grid_of
from vpjax.models.vlm import VLMConfig
from vpjax.training import run_config, sft
from vpjax.types import Clip

EVENT = 0.5  # seconds that the planned event lasts
# Stand-in ids for times in words: as many tokens as Qwen's tokenizer makes of them.
STAMPS = Stamps({**dict.fromkeys("<0123456789.", (0,)), " seconds>": (0, 0)})


class PlannedClips(NamedTuple):
    """The clips that a plan assumes. width, height: pixels. text: tokens of a prompt beside the video's."""

    seconds: float = 8.0
    width: int = 1280
    height: int = 720
    text: int = 64
    answer: int = 128


class PlannedRow(NamedTuple):
    """A row of the batch: ``clips`` clips, all like ``entry``, each of so many ``units`` without padding.
    sizes: how much the row could hold. capacity: of the blocks and bins of its units."""

    entry: Entry
    clips: int
    units: int
    sizes: Sizes
    capacity: Capacity


def planned_row(config: ConfigDict, model_config: VLMConfig, clips: PlannedClips) -> PlannedRow:
    """A row of a batch of ``clips``, as the loader of a run plans it. UserError if a clip's text leaves no
    room for its video."""
    count = max(1, int(30 * clips.seconds))
    info = VideoInfo(clips.width, clips.height, clips.seconds, fps=30.0, frames=count)
    video = [model_config.vision_start, model_config.video_token, model_config.vision_end]
    keywords = min(1, config.data.keywords)
    tokens = Tokens(
        prompt=np.array([*video, *[0] * clips.text], np.int32),
        answer=np.zeros(clips.answer, np.int32),
        keywords=np.zeros((keywords, config.data.keyword_tokens), np.int32),
        lemma=np.zeros(keywords, np.int32),
        spans=(((clips.seconds / 2, clips.seconds / 2 + EVENT),),) * keywords,
        videos=(0,) * keywords,
        places=((clips.answer - 1,),) * keywords,
        degraded_answer=np.zeros(clips.answer, np.int32),
        stamps=STAMPS,
    )
    clip, source = Clip("planned", "", "", ""), Source("--video", "video", info=info)
    packed = config.method == "sft"
    answers = sft.degraded_answers(config)
    index = index_clips([clip], [[source]], [tokens], model_config, config.data, answers=answers)

    def sizes(repeats: int) -> Sizes:
        """How much a row holds if there are so many clips."""
        filled = dataclasses.replace(index, entries=index.entries * repeats)
        plan = make_plan(
            filled, config.data, packed=packed, seed=config.seed, rows=run_config.rows_per_step(config)
        )
        return plan.capacity(0)

    entry, fitting = index.entries[0], 1
    if packed:
        fitting = sizes(1).tokens // entry.sizes.tokens
    units = math.prod(grid_of(entry.shapes[0], model_config.vision))
    return PlannedRow(entry, fitting, units, sizes(fitting), index.capacity)


def contents(row: PlannedRow, config: ConfigDict) -> str:
    """What a row holds, in words."""
    (frames, height, width), clip = row.entry.shapes[0], row.entry.sizes
    tokens = clip.tokens if config.method == "sft" else clip.tokens - clip.targets
    clips = f"{row.clips} clip{'s' * (row.clips > 1)} of {frames} frames of {width} x {height}"
    return (
        f"{clips}: {row.clips * tokens:,} of {row.sizes.tokens:,} tokens, "
        f"{row.clips * row.units:,} of {row.sizes.units:,} units"
    )
