"""A way to find the window of a second look: by the head that SFT's keyword contrast trained.

The first look at each window answers the question. Where it shows what it says, its states are near to the
keywords of its answer, as the contrast has drawn them together (docs/method.md, section 2).
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vpjax.data.text import Text
from vpjax.data.video import Video
from vpjax.evaluation.scans import LONGEST_ANSWER, Localiser, answers_about, asked_about
from vpjax.models.vlm import VideoLM
from vpjax.training.losses import slot_means
from vpjax.training.sft import embed_keywords, project, tap_layer
from vpjax.types import Array, Clip, Prompts

NO_KEYWORD = -1.0  # the least similarity: of a window whose answer names no event


def keyword_localiser(
    heads: dict[str, Array], config: ConfigDict, find: Callable[[str], Sequence[str]]
) -> Localiser:
    """What scores a window by the highest cosine similarity of one of its slots and one of the keywords that
    ``find`` finds in its answer; NO_KEYWORD if there is none. heads: of the contrast, by path, in a run of
    this ``config``."""

    def scores(model: VideoLM, text: Text, clip: Clip, videos: Sequence[Video]) -> np.ndarray:
        answers = answers_about(model, text, clip, videos, max_new=LONGEST_ANSWER)
        ids = [[text.keyword(word, answer)[1] for word in find(answer)] for answer in answers]
        most = max((len(own) for own in ids), default=0)
        longest = max((len(pieces) for own in ids for pieces in own), default=0)
        if not most:
            return np.full(len(videos), NO_KEYWORD, np.float32)
        keywords = np.full((len(videos), _power_of_2(most), _power_of_2(longest)), -1, np.int32)
        for row, own in enumerate(ids):
            for number, pieces in enumerate(own):
                keywords[row, number, : len(pieces)] = pieces
        found, layer = [], tap_layer(model, config)
        for rows, prompts in asked_about(model, text, text.prompt(clip), videos):
            count, size = len(videos[rows]), len(prompts.clip)
            padding = [(0, size - count), (0, 0), (0, 0)]
            own_WJK = np.pad(keywords[rows], padding, constant_values=-1)
            slots = 1 + int(np.max(prompts.text.slot))
            similarity = similarities(model, heads, prompts, own_WJK, layer=layer, slots=slots)
            found.append(np.asarray(similarity)[:count])
        return np.concatenate(found)

    return scores


@functools.partial(jax.jit, static_argnames=("layer", "slots"))
def similarities(
    model: VideoLM,
    heads: dict[str, Array],
    prompts: Prompts,
    keywords_BJW: Array,
    *,
    layer: int,
    slots: int,
) -> jax.Array:
    """The highest cosine similarity f32[B] of a slot's states after ``layer`` and a keyword, tokens i32[B, J,
    W] padded with -1; NO_KEYWORD for a row without any."""
    text = prompts.text
    none = jnp.full((len(prompts.clip), 1), -1)
    hidden = model.hidden(model.encode(prompts.video), text, none, tap=layer)
    assert hidden.tap is not None
    z_BSE = project(heads, "visual", slot_means(hidden.tap, text.slot, slots))
    e_BJE = project(heads, "text", embed_keywords(model, keywords_BJW))
    is_slot_BSP = jnp.asarray(text.slot)[:, None] == jnp.arange(slots)[:, None]
    exists_BS1 = jnp.any(is_slot_BSP, axis=-1)[..., None]
    exists_B1J = jnp.any(jnp.asarray(keywords_BJW) >= 0, axis=-1)[:, None]
    cosine_BSJ = jnp.einsum("bse,bje->bsj", z_BSE, e_BJE)
    return jnp.where(exists_BS1 & exists_B1J, cosine_BSJ, NO_KEYWORD).max(axis=(1, 2))


def _power_of_2(count: int) -> int:
    """The next one, so that answers of many lengths share a few programs."""
    return 1 << (count - 1).bit_length()
