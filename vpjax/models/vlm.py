"""VideoLM: the vision tower and the decoder as one model."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vpjax.models.attention import KeyValues, Layout
from vpjax.models.config import VLMConfig
from vpjax.models.decoder import Decoder
from vpjax.models.patches import patchify
from vpjax.models.vision import Features, VisionTower
from vpjax.types import Array, Batch


class Hidden(NamedTuple):
    """Hidden states after the final norm, which score completions, and those after layer l.

    last [B, D]: at the prompt's last valid token, predicts the first token of each completion.
    suffix [B, G, C, D]. tap [B, V, D]: after layer l at the visual tokens, 0 if their slot is invalid.
    """

    last: jax.Array
    suffix: jax.Array
    tap: jax.Array | None


def gather_slots(features: Features, source_BS: Array) -> Features:
    """The features of V~: slot s shows slot ``source[s]`` of V. Exact, for slots never see one another."""
    return jax.tree.map(lambda f: jax.vmap(lambda slots, source: slots[source])(f, source_BS), features)


def leaves(model: Any) -> dict[str, jax.Array]:
    """The parameters of a model by dotted path, such as ``decoder.layers.q.kernel``."""
    flat, _ = jax.tree_util.tree_flatten_with_path(model)
    return {".".join(key.name for key in path[:-1]): leaf for path, leaf in flat}


def rebuild(model: VideoLM, params: dict[str, Array]) -> VideoLM:
    """``model`` (arrays or abstract) with the parameters of ``params``, which holds every path."""
    structure = jax.tree.structure(model)
    return jax.tree.unflatten(structure, [params[path] for path in leaves(model)])


class VideoLM(nnx.Module):
    """A video language model: uint8 frames and tokens in, hidden states out (never logits for all tokens)."""

    def __init__(self, config: VLMConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config = config
        self.vision = VisionTower(config.vision, rngs=rngs, dtype=dtype)
        self.decoder = Decoder(config.decoder, rngs=rngs, dtype=dtype)

    @property
    def unembed(self) -> jax.Array:
        """The output projection [O, D]: logits are ``hidden @ unembed.T``."""
        return (self.decoder.embed if self.config.decoder.tied else self.decoder.lm_head)[...]

    def encode(self, frames_BFhw3: Array, *, remat: bool = False) -> Features:
        """Visual features [B, S, M, D] of uint8 frames, F a multiple of the temporal patch."""
        c = self.config.vision
        dtype = self.vision.patch_embed.kernel.dtype
        cut = dict(patch=c.patch, merge=c.merge, temporal=c.temporal)
        patches_BSNP = patchify(frames_BFhw3, **cut, mean=c.pixel_mean, std=c.pixel_std).astype(dtype)
        batch, slots = patches_BSNP.shape[:2]
        grid = frames_BFhw3.shape[2] // c.patch, frames_BFhw3.shape[3] // c.patch
        flat = self.vision(patches_BSNP.reshape(batch * slots, *patches_BSNP.shape[2:]), grid, remat=remat)
        return jax.tree.map(lambda f: f.reshape(batch, slots, *f.shape[1:]), flat)

    def embed_prompt(
        self, features: Features | None, prompt_BP: Array, visual_BV: Array
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Input embeddings [B, P, D] of a prompt with the visual features at their tokens, and the additions
        to the states after the first decoder layers, 0 at other tokens."""
        x_BPD = self.decoder.embed_tokens(prompt_BP)
        if features is None:
            return x_BPD, ()

        def placed(x_BPD, f_BSMD):
            f_BVD = f_BSMD.reshape(f_BSMD.shape[0], -1, f_BSMD.shape[-1]).astype(x_BPD.dtype)
            # An invalid slot's index is P, outside the prompt: dropped.
            return jax.vmap(lambda x, at, f: x.at[at].set(f, mode="drop"))(x_BPD, visual_BV, f_BVD)

        zeros = jnp.zeros_like(x_BPD)
        return placed(x_BPD, features.tokens), tuple(placed(zeros, f) for f in features.deep)

    def hidden(
        self, features: Features | None, batch: Batch, *, tap: int | None = None, remat: bool = False
    ) -> Hidden:
        """Hidden states of a batch whose ``suffix`` is [B, C] (one completion) or [B, G, C]. ``tap`` = l also
        returns the states at the visual tokens after l layers and the additions there."""
        suffix_BGC = batch.suffix if batch.suffix.ndim == 3 else batch.suffix[:, None]
        rows, groups, length = suffix_BGC.shape
        prefix = batch.prompt.shape[1]
        layout = Layout(prefix, groups, length)
        x_BXD = self.decoder.embed_tokens(suffix_BGC.reshape(rows, groups * length))
        x_BPD, deep = self.embed_prompt(features, batch.prompt, batch.visual)
        x_BTD = jnp.concatenate([x_BPD, x_BXD], axis=1)
        own = [batch.positions[:, :, prefix:]] * groups
        positions = jnp.concatenate([batch.positions[:, :, :prefix], *own], axis=-1)

        def run(x, layers):
            return self.decoder.run(
                x, positions, layout, batch.prompt_valid, deep=deep, layers=layers, remat=remat
            )

        tapped = None
        if tap is not None:
            x_BTD = run(x_BTD, slice(0, tap))
            tapped = _at(x_BTD[:, :prefix], batch.visual)
        h_BTD = self.decoder.norm(run(x_BTD, slice(tap or 0, None)))
        last = _last(h_BTD[:, :prefix], batch.prompt_valid)
        return Hidden(last, h_BTD[:, prefix:].reshape(rows, groups, length, -1), tapped)

    def visual_hidden(
        self, features: Features, batch: Batch, *, layers: int, remat: bool = False
    ) -> jax.Array:
        """``hidden(..., tap=layers).tap`` [B, V, D] at less cost: only these layers run, and only over the
        prompt up to its last visual token."""
        end = batch.video_end
        visual = jnp.where(batch.visual < end, batch.visual, end)
        x_BPD, deep = self.embed_prompt(features, batch.prompt[:, :end], visual)
        positions, valid, first = batch.positions[:, :, :end], batch.prompt_valid[:, :end], slice(0, layers)
        h = self.decoder.run(x_BPD, positions, Layout(end, 1, 0), valid, deep=deep, layers=first, remat=remat)
        return _at(h, visual)

    def prefill(self, features: Features | None, batch: Batch) -> tuple[jax.Array, KeyValues]:
        """The state [B, D] at the prompt's last valid token, and the prefix cache."""
        x_BPD, deep = self.embed_prompt(features, batch.prompt, batch.visual)
        h_BPD, cache = self.decoder.prefill(x_BPD, batch.positions[:, :, : batch.prompt.shape[1]], deep)
        return self.decoder.norm(_last(h_BPD, batch.prompt_valid)), cache


def _at(h_BPD: jax.Array, index_BV: Array) -> jax.Array:
    """``h`` at the given tokens, 0 for an index outside ``h``."""
    return jnp.take_along_axis(h_BPD, index_BV[..., None], axis=1, mode="fill", fill_value=0)


def _last(h_BPD: jax.Array, valid_BP: Array) -> jax.Array:
    """``h`` at each row's last valid token; for a row of only padding, at its first token."""
    last = jnp.maximum(valid_BP.sum(axis=1) - 1, 0)
    return jnp.take_along_axis(h_BPD, last[:, None, None], axis=1)[:, 0]


def abstract_model(model_config: VLMConfig, dtype=jnp.float32) -> VideoLM:
    """A model of shapes, without arrays."""
    return jax.eval_shape(lambda: VideoLM(model_config, rngs=nnx.Rngs(0), dtype=dtype))
