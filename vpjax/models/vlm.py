"""VideoLM: the vision tower and the decoder as one model."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vpjax.hlo import phase
from vpjax.models import context
from vpjax.models.attention import Branch, KeyValues, Layout
from vpjax.models.config import VLMConfig
from vpjax.models.decoder import Decoder
from vpjax.models.gather import take
from vpjax.models.linear import Linear
from vpjax.models.lora import Lora, add_adapters
from vpjax.models.sharding import split_rows
from vpjax.models.vision import Features, VisionTower
from vpjax.types import Array, Prompts, Strip, Units


class Degraded(NamedTuple):
    """V~ of packed rows. text: its tokens from the first on in which it differs from V. target i32[R, C]:
    tokens of it that are predicted. shared i32[R, T]: see ``attention.Branch``."""

    text: Strip
    target: Array
    shared: Array


class Inputs(NamedTuple):
    """What goes through the decoder: V alone or, with ``branch``, V and V~ after it.

    x [R, T, D]: input embeddings. deep: additions to the states after the first layers. positions i32[R, 3,
    T]. All in the order of ``context.spread`` or ``context.joined``."""

    x: jax.Array
    deep: tuple[jax.Array, ...]
    positions: Array
    branch: Branch | None = None


class Hidden(NamedTuple):
    """Hidden states of packed rows. target [R, A, D]: after the final norm, the state that predicts each
    target token. tap [R, T, D]: after layer l, of tokens in the order of ``context.spread``. degraded,
    degraded_tap: the same of V~."""

    target: jax.Array
    tap: jax.Array | None = None
    degraded: jax.Array | None = None
    degraded_tap: jax.Array | None = None


def leaves(model: Any) -> dict[str, jax.Array]:
    """The parameters of a model by dotted path, such as ``decoder.layers.q.kernel``."""
    flat, _ = jax.tree_util.tree_flatten_with_path(model)
    return {".".join(key.name for key in path[:-1]): leaf for path, leaf in flat}


def rebuild(model: VideoLM, params: Mapping[str, Array]) -> VideoLM:
    """``model`` (arrays or abstract) with the parameters of ``params``, which holds every path."""
    structure = jax.tree.structure(model)
    return jax.tree.unflatten(structure, [params[path] for path in leaves(model)])


class VideoLM(nnx.Module):
    """A video language model: units of uint8 pixels and tokens in, hidden states out (never logits for all
    tokens)."""

    def __init__(self, config: VLMConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config = config
        self.vision = VisionTower(config.vision, rngs=rngs, dtype=dtype)
        self.decoder = Decoder(config.decoder, rngs=rngs, dtype=dtype)

    @property
    def unembed(self) -> jax.Array:
        """The output projection [O, D]: logits are ``hidden @ unembed.T``."""
        return (self.decoder.embed if self.config.decoder.tied else self.decoder.lm_head)[...]

    @phase("encode")
    def encode(self, units: Units, *, recompute: float | None = None) -> Features | None:
        """The visual features [R, U, D] of rows of units; None if U is 0. recompute: see ``VisionTower``."""
        return self.vision(units, recompute=recompute) if units.count else None

    def embed(
        self, features: Features | None, text: Strip, devices: int = 1
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Input embeddings [R, T, D] of rows of tokens, with visual features at the tokens that show a unit,
        and the additions to the states after the first decoder layers, 0 at other tokens. All of them in the
        order of ``context.spread`` over ``devices``."""
        text = context.spread_strip(text, devices)
        x_RTD = self.decoder.embed_tokens(text.tokens, devices)
        if features is None:
            return x_RTD, ()
        if context.devices_along(context.AXIS) > 1:  # a token may show a unit of another device
            features = jax.tree.map(split_rows, features)
        is_visual_RT1 = jnp.asarray(text.shows)[..., None] >= 0
        seen_RTD = take(features.tokens, text.shows).astype(x_RTD.dtype)
        deep = tuple(take(f, text.shows).astype(x_RTD.dtype) for f in features.deep)
        return jnp.where(is_visual_RT1, seen_RTD, x_RTD), deep

    @phase("decoder")
    def hidden(
        self,
        features: Features | None,
        text: Strip,
        target_RA: Array,
        *,
        degraded: Degraded | None = None,
        tap: int | None = None,
        recompute: float | None = None,
        devices: int = 1,
    ) -> Hidden:
        """Hidden states of packed rows of whole clips. This is where targets shift by one: the state of a
        token predicts the next one. ``tap`` = l also returns all states after l layers. degraded: run V~
        beside V, above layer l only where it has targets. devices: over which the tokens of a row are split,
        see ``models.context``."""
        count = text.tokens.shape[1]
        layout = Layout(count, packed=True, devices=devices)
        alone = self._inputs(features, text, devices)
        inputs = alone
        if degraded is not None:
            inputs = self._with_branch(alone, features, degraded, devices)

        def run(h: jax.Array, inputs: Inputs, layers: slice) -> jax.Array:
            return self.decoder.run(
                h,
                inputs.positions,
                layout,
                text.segment,
                branch=inputs.branch,
                deep=inputs.deep,
                layers=layers,
                recompute=recompute,
            )

        def apart(h: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array | None]:
            """The states of V, and those of V~ if it runs beside V."""
            if inputs.branch is None:
                return h, None
            of_video, of_degraded = context.apart(h, (count, h.shape[1] - count), devices)
            return of_video, of_degraded

        h, tapped, degraded_tap, degraded_target = inputs.x, None, None, None
        if tap is not None:
            h = run(h, inputs, slice(0, tap))
            tapped, degraded_tap = apart(h, inputs)
        if degraded is not None and not degraded.target.shape[1]:  # nothing reads V~ above layer l
            h, inputs = apart(h, inputs)[0], alone
        h = run(h, inputs, slice(tap or 0, None))
        states, degraded_states = apart(h, inputs)
        if degraded is not None and degraded_states is not None:
            degraded_target = self._predicting(degraded_states, degraded.target, devices)
        return Hidden(self._predicting(states, target_RA, devices), tapped, degraded_target, degraded_tap)

    def _inputs(self, features: Features | None, text: Strip, devices: int) -> Inputs:
        x_RTD, deep = self.embed(features, text, devices)
        return Inputs(x_RTD, deep, context.spread(jnp.asarray(text.positions), devices, axis=2))

    def _with_branch(
        self, alone: Inputs, features: Features | None, degraded: Degraded, devices: int
    ) -> Inputs:
        """The inputs of V with those of V~ after them."""
        after = self._inputs(features, degraded.text, devices)
        return Inputs(
            context.joined([alone.x, after.x], devices),
            tuple(context.joined(pair, devices) for pair in zip(alone.deep, after.deep, strict=True)),
            context.joined([alone.positions, after.positions], devices, axis=2),
            Branch(degraded.text.segment, degraded.shared),
        )

    def _predicting(self, h_RTD: jax.Array, target_RA: Array, devices: int) -> jax.Array:
        """The states [R, A, D] that predict the target tokens, after the final norm."""
        before_RA = jnp.where(jnp.asarray(target_RA) < 0, -1, target_RA - 1)
        return self.decoder.norm(take(h_RTD, context.placed(before_RA, h_RTD.shape[1], devices)))

    def states_after(
        self, features: Features | None, text: Strip, *, layers: int, recompute: float | None = None
    ) -> jax.Array:
        """The states [R, T, D] of packed rows after the first layers, which alone are computed."""
        x_RTD, deep = self.embed(features, text)
        layout = Layout(x_RTD.shape[1], packed=True)
        first = slice(0, layers)
        return self.decoder.run(
            x_RTD, text.positions, layout, text.segment, deep=deep, layers=first, recompute=recompute
        )

    def predicting(
        self,
        features: Features | None,
        prompts: Prompts,
        tokens_BGC: Array,
        *,
        recompute: float | None = None,
    ) -> jax.Array:
        """The states [B, G, C, D] that predict each token of G completions of each prompt: the prompt's last
        state predicts a completion's first token, and so on."""
        text, (rows, groups, length) = prompts.text, tokens_BGC.shape
        counts = prefix, own = text.tokens.shape[1], groups * length
        devices = context.devices_for(*counts)
        x_BPD, deep = self.embed(features, text, devices)
        own_BX = context.spread(tokens_BGC.reshape(rows, own), devices)
        x_BXD = self.decoder.embed_tokens(own_BX, devices)
        own_B3C = jnp.repeat((next_position(text)[:, None] + jnp.arange(length))[:, None], 3, axis=1)
        positions: tuple[Array, ...] = jnp.asarray(text.positions), jnp.tile(own_B3C, (1, 1, groups))
        if devices > 1:
            positions = tuple(context.spread(x, devices, axis=2) for x in positions)
            deep = tuple(context.joined([added, jnp.zeros_like(x_BXD)], devices) for added in deep)
        h_BTD = self.decoder.run(
            context.joined([x_BPD, x_BXD], devices),
            context.joined(positions, devices, axis=2),
            Layout(prefix, groups, length, devices=devices),
            text.segment,
            deep=deep,
            recompute=recompute,
        )
        h_BPD, h_BXD = context.apart(h_BTD, counts, devices)
        if devices > 1:
            h_BXD = split_rows(h_BXD)[:, context.places_of(own, devices)]
        last_BD = _last(h_BPD, text, devices)
        own_BGCD = h_BXD.reshape(rows, groups, length, -1)
        first = jnp.broadcast_to(last_BD[:, None, None], (rows, groups, 1, last_BD.shape[-1]))
        return self.decoder.norm(jnp.concatenate([first, own_BGCD[:, :, :-1]], axis=2))

    @phase("prefill")
    def prefill(
        self, features: Features | None, prompts: Prompts, devices: int = 1
    ) -> tuple[jax.Array, KeyValues]:
        """The state [B, D] at each prompt's last token, and the prefix cache, whose tokens are in the order
        of ``context.spread`` over ``devices``."""
        text = prompts.text
        x_BPD, deep = self.embed(features, text, devices)
        positions = context.spread(text.positions, devices, axis=2)
        h_BPD, cache = self.decoder.prefill(x_BPD, positions, text.segment, deep, devices)
        return self.decoder.norm(_last(h_BPD, text, devices)), cache


def with_int8_decoder(model: VideoLM) -> VideoLM:
    """A copy of the model in which the weights of the decoder's linear layers are int8 (``models.linear``),
    for sampling, which reads all of them for each token."""
    light = jax.tree.map(lambda x: x, model)
    for _, layer in nnx.iter_modules(light.decoder):
        if isinstance(layer, Linear) and layer.kernel.dtype != jnp.int8:
            layer.make_int8()
    return light


def last_token(text: Strip) -> jax.Array:
    """The index i32[B] of the last token of rows of one prompt; 0 for a row of padding."""
    return jnp.maximum((jnp.asarray(text.segment) > 0).sum(axis=1) - 1, 0)


def next_position(text: Strip) -> jax.Array:
    """The position i32[B] of a completion's first token: 1 + the position of the prompt's last token, for a
    visual token on its largest axis."""
    last_B11 = last_token(text)[:, None, None]
    return jnp.take_along_axis(jnp.asarray(text.positions), last_B11, axis=2).max(axis=(1, 2)) + 1


def _last(h_BPD: jax.Array, text: Strip, devices: int) -> jax.Array:
    """``h`` at each prompt's last token; for a row of only padding, at its first token."""
    last_B = context.placed(last_token(text), h_BPD.shape[1], devices)
    return jnp.take_along_axis(h_BPD, jnp.asarray(last_B)[:, None, None], axis=1)[:, 0]


@functools.cache
def abstract_model(model_config: VLMConfig, dtype=jnp.float32, *, lora: Lora | None = None) -> VideoLM:
    """A model of shapes, without arrays, which nothing may change. lora: its adapters, float32."""

    def create() -> VideoLM:
        model = VideoLM(model_config, rngs=nnx.Rngs(0), dtype=dtype)
        if lora is not None:
            add_adapters(model, lora)
        return model

    return jax.eval_shape(create)
