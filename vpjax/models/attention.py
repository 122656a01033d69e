"""The attention of the project: one static text layout, and groups of patches for the vision tower.

A text sequence is a causal prefix of P tokens followed by G completions of C tokens that each see the prefix
and themselves; GRPO has G > 1, decoding is the same with a cache::

    P=3 G=2 C=2      prefix  c1   c2
      prefix         1..     ..   ..
                     11.     ..   ..
                     111     ..   ..
      c1             111     1.   ..
                     111     11   ..
      c2             111     ..   1.
                     111     ..   11

Scores between completions are never computed. The prefix may hold several clips: its tokens see only those of
their own segment, and completions see segment 1. SFT has packed rows of many segments and no completions.
Segment 0 is padding, whose output means nothing.

In place of completions, packed rows may have a branch: for each segment, a second ending that sees the
segment's first tokens and itself. So V~ begins where it differs from V.

Whole sequences have three back ends, which agree except at padded tokens: ``xla`` everywhere, ``splash``
(Pallas) on TPU and ``cudnn`` on GPU. The latter two never hold the scores in memory. Where the tokens of a
row are split over devices (``models.context``), each computes what its own queries see.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.models import context
from vpjax.models.mask import sees
from vpjax.models.remat import keep
from vpjax.models.sharding import on_own_tokens
from vpjax.types import Array, UserError

BACKENDS = ("auto", "xla", "splash", "cudnn")  # auto: chosen by platform and dtype (``backend_of``)
QUERIES, PARTS = 96, 64  # xla: tokens of a prefix that attend at once, but in no more parts than so many
SCOPE = "attention"  # in which whole sequences attend, for those who count its work

_backend = contextvars.ContextVar("attention", default="auto")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static shape of a text sequence: ``prefix`` + ``groups`` * ``suffix`` tokens. packed: the prefix may
    hold several segments, so that being causal is not enough. devices: over which the tokens of a row are
    split, see ``models.context``."""

    prefix: int
    groups: int = 1
    suffix: int = 0
    packed: bool = False
    devices: int = 1


class Branch(NamedTuple):
    """The branch of packed rows. segment i32[B, C]: of its tokens, 0: padding. shared i32[B, P]: the segment
    whose branch sees a token of the prefix, 0: none does."""

    segment: Array
    shared: Array


class KeyValues(NamedTuple):
    """Keys and values [..., K, H] of tokens. A cache has them for every layer, on a leading axis."""

    k: jax.Array
    v: jax.Array


def _softmax(scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Softmax over the last axis in float32; ``mask`` is True where a query sees a key."""
    scores = scores.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


def _grouped(q: jax.Array, kv_heads: int) -> jax.Array:
    """Queries [..., N, H], scaled, as [..., K, N / K, H]."""
    *lead, heads, width = q.shape
    return (q * width**-0.5).reshape(*lead, kv_heads, heads // kv_heads, width)


def _parts(count: int) -> list[slice]:
    """The parts in which so many queries attend, one after another. Each is compiled."""
    size = max(QUERIES, -(-count // PARTS))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def causal_inside(segment_BP: Array) -> jax.Array:
    """bool[B, P, P]: whether a token sees another one, which is not later and of its own segment."""
    causal = jnp.tril(jnp.ones((segment_BP.shape[1],) * 2, bool))
    return causal & (segment_BP[:, :, None] == segment_BP[:, None])


def attend_prefix(q_BPNH: jax.Array, prefix: KeyValues, segment_BP: Array) -> jax.Array:
    """Causal attention of a prefix to itself, inside segments: [B, P, N, H].

    Some tokens at a time, to the keys up to the last of them: later keys would be masked out."""
    return _attend_in_parts(q_BPNH, prefix, causal_inside(segment_BP), 0)


def _attend_in_parts(q_BQNH: jax.Array, kv: KeyValues, mask_BQT: jax.Array, before: int) -> jax.Array:
    """Attention of some queries at a time (``_parts``) as a mask says: [B, Q, N, H]. before: the mask lets
    query number q see none but the first before + q + 1 keys."""
    q, out = _grouped(q_BQNH, kv.k.shape[-2]), []
    for part in _parts(q.shape[1]):
        seen = slice(0, before + part.stop)
        scores = jnp.einsum("bqkrh,bpkh->bkrqp", q[:, part], kv.k[:, seen])
        weights = _softmax(scores, mask_BQT[:, None, None, part, seen])
        out.append(jnp.einsum("bkrqp,bpkh->bqkrh", weights.astype(q.dtype), kv.v[:, seen]))
    return jnp.concatenate(out, axis=1).reshape(q_BQNH.shape)


def attend_suffix(q_BGCNH: jax.Array, prefix: KeyValues, suffix: KeyValues, segment_BP: Array) -> jax.Array:
    """Attention of the tokens of each completion to the prefix and to their own completion: [B, G, C, N, H].

    prefix: [B, P, K, H], shared by the G completions. suffix: [B, G, C, K, H]. Both parts share one softmax.
    """
    q = _grouped(q_BGCNH, prefix.k.shape[-2])
    rows, length = q.shape[0], q.shape[2]
    sees_prefix = jnp.broadcast_to((segment_BP == 1)[:, None], (rows, length, prefix.k.shape[1]))
    sees_own = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (rows, length, length))
    mask = jnp.concatenate([sees_prefix, sees_own], axis=-1)[:, None, None, None]
    scores = [jnp.einsum("bgqkrh,bpkh->bgkrqp", q, prefix.k), jnp.einsum("bgqkrh,bgckh->bgkrqc", q, suffix.k)]
    weights = _softmax(jnp.concatenate(scores, axis=-1), mask).astype(q.dtype)
    to_prefix, to_suffix = jnp.split(weights, [prefix.k.shape[1]], axis=-1)
    out = jnp.einsum("bgkrqp,bpkh->bgqkrh", to_prefix, prefix.v)
    return (out + jnp.einsum("bgkrqc,bgckh->bgqkrh", to_suffix, suffix.v)).reshape(q_BGCNH.shape)


def attend_cached(
    q_BGNH: jax.Array, prefix: KeyValues, before: KeyValues, own: KeyValues, seen_BP: Array, step: Array
) -> jax.Array:
    """Attention of token number ``step`` of each of G completions to the prompt, to the tokens before it in
    its own completion, and to itself: [B, G, N, H].

    prefix: [B, K, P, H], of which ``seen`` says what is no padding. before: [B, K, G, C, H], in which this
    token is not written yet. own: [B, K, G, H]. All have their heads first: so a TPU reads them as they lie,
    where it would copy them for each token and layer.
    """
    q_BKGRH = _grouped(q_BGNH, prefix.k.shape[1]).swapaxes(1, 2)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    lowest = jnp.finfo(jnp.float32).min
    to_prompt = product("bkgrh,bkph->bkgrp", q_BKGRH, prefix.k)
    to_prompt = jnp.where(jnp.asarray(seen_BP)[:, None, None, None], to_prompt, lowest)
    to_before = product("bkgrh,bkgch->bkgrc", q_BKGRH, before.k)
    to_before = jnp.where(jnp.arange(before.k.shape[3]) < step, to_before, lowest)
    to_own = product("bkgrh,bkgh->bkgr", q_BKGRH, own.k)[..., None]
    # The softmax over all, without a copy of them in one array.
    scores = to_prompt, to_before, to_own
    largest = functools.reduce(jnp.maximum, [x.max(-1, keepdims=True) for x in scores])
    to_prompt, to_before, to_own = (jnp.exp(x - largest) for x in scores)
    total = sum(x.sum(-1, keepdims=True) for x in (to_prompt, to_before, to_own))
    mixed = product("bkgrp,bkph->bkgrh", to_prompt.astype(prefix.v.dtype), prefix.v)
    mixed += product("bkgrc,bkgch->bkgrh", to_before.astype(before.v.dtype), before.v)
    mixed += to_own * own.v[:, :, :, None]
    return (mixed / total).astype(q_BGNH.dtype).swapaxes(1, 2).reshape(q_BGNH.shape)


def attend_branch(q_BCNH: jax.Array, kv: KeyValues, branch: Branch) -> jax.Array:
    """Attention of a branch to the prefix and to itself: [B, C, N, H]. kv: [B, P + C, K, H]."""
    return _attend_in_parts(q_BCNH, kv, sees_branch(branch), kv.k.shape[1] - q_BCNH.shape[1])


def sees_branch(branch: Branch) -> jax.Array:
    """bool[B, C, P + C]: whether a token of a branch sees a token of the prefix or of the branch."""
    segment_BC = jnp.asarray(branch.segment)
    sees_prefix = segment_BC[:, :, None] == jnp.asarray(branch.shared)[:, None]
    return jnp.concatenate([sees_prefix, causal_inside(segment_BC)], axis=2)


@jax.named_scope(SCOPE)
def attend(
    q_BTNH: jax.Array, kv: KeyValues, layout: Layout, segment_BP: Array, branch: Branch | None = None
) -> jax.Array:
    """Attention of a whole sequence of ``layout`` to itself, and of a branch after it: [B, T, N, H].

    UserError if the mesh in use splits the heads unevenly."""
    name = backend_of(q_BTNH.dtype)
    if name == "splash" or layout.devices > 1:
        return _attend_own(name, q_BTNH, kv, layout, segment_BP, branch)
    functions = {"xla": _attend_xla, "cudnn": _attend_cudnn}
    if branch is None:
        return functions[name](q_BTNH, kv, layout, segment_BP)
    branch_functions = {"xla": attend_branch, "cudnn": _branch_cudnn}
    own = KeyValues(kv.k[:, : layout.prefix], kv.v[:, : layout.prefix])
    out = functions[name](q_BTNH[:, : layout.prefix], own, layout, segment_BP)
    return jnp.concatenate([out, branch_functions[name](q_BTNH[:, layout.prefix :], kv, branch)], axis=1)


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """A context in which programs are traced with this back end, one of BACKENDS."""
    before = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(before)


def platform() -> str:
    """The platform for which a program is traced: that of the mesh in use, or of the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend()
    kind = device.device_kind.lower()  # "cpu", "tpu v5 lite", "tpu7x", or a GPU's product name
    return kind[:3] if kind.startswith(("cpu", "tpu")) else "gpu"


def backend_of(dtype: jnp.dtype) -> str:
    """The back end in use for queries of ``dtype``. UserError if that is cuDNN where there is none."""
    asked = _backend.get()
    has_cudnn = platform() == "gpu" and dtype in (jnp.bfloat16, jnp.float16)  # cuDNN has no float32
    if asked == "cudnn" and not has_cudnn:
        raise UserError(
            "config.attention='cudnn' needs an NVIDIA GPU and config.dtype='bfloat16': take 'auto'"
        )
    if asked != "auto":
        return asked
    if platform() == "tpu":
        return "splash"
    return "cudnn" if has_cudnn else "xla"


def _attend_xla(q_BTNH: jax.Array, kv: KeyValues, layout: Layout, segment_BP: Array) -> jax.Array:
    prefix, (q, *own) = _split(q_BTNH, kv, layout)
    out = keep(attend_prefix(q_BTNH[:, : layout.prefix], prefix, segment_BP))
    if not layout.suffix:
        return out
    suffix = keep(attend_suffix(q, prefix, KeyValues(*own), segment_BP))
    return jnp.concatenate([out, suffix.reshape(q_BTNH[:, layout.prefix :].shape)], axis=1)


def _attend_cudnn(
    q_BTNH: jax.Array,
    kv: KeyValues,
    layout: Layout,
    segment_BP: Array,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """A causal call for the prefix and a second one for the completions, each with a copy of its prefix.

    One prefix for all completions would need a merge by log-sum-exps, whose gradient JAX stops.
    """
    prefix, (q_BGCNH, *own) = _split(q_BTNH, kv, layout)
    mask = causal_inside(segment_BP)[:, None] if layout.packed else None
    options: dict[str, Any] = dict(is_causal=True, implementation=implementation)
    out = _kernel(q_BTNH[:, : layout.prefix], prefix.k, prefix.v, mask, **options)
    if not layout.suffix:
        return out
    rows, groups, length = q_BGCNH.shape[:3]
    keys, values = (
        jnp.concatenate([jnp.broadcast_to(x[:, None], (rows, groups, *x.shape[1:])), y], axis=2)
        for x, y in zip(prefix, own, strict=True)
    )
    causal = jnp.tril(jnp.ones((length, length), bool))
    sees_prefix = jnp.broadcast_to((segment_BP == 1)[:, None, None], (rows, groups, length, layout.prefix))
    sees_own = jnp.broadcast_to(causal, (rows, groups, length, length))
    mask = jnp.concatenate([sees_prefix, sees_own], axis=-1).reshape(rows * groups, 1, length, -1)
    q, k, v = (x.reshape(rows * groups, *x.shape[2:]) for x in (q_BGCNH, keys, values))
    suffix = _kernel(q, k, v, mask, implementation=implementation)
    return jnp.concatenate([out, suffix.reshape(rows, groups * length, *q_BTNH.shape[2:])], axis=1)


def _branch_cudnn(
    q_BCNH: jax.Array,
    kv: KeyValues,
    branch: Branch,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    return _kernel(q_BCNH, kv.k, kv.v, sees_branch(branch)[:, None], implementation=implementation)


def _kernel(
    q_BQNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask_B1QT: jax.Array | None, **options: Any
) -> jax.Array:
    """``jax.nn.dot_product_attention``. Under a mask cuDNN has gradients for even numbers of queries and of
    keys only: of odd ones there is one more, which is seen by none."""
    queries = q_BQNH.shape[1]
    if mask_B1QT is not None:
        none, query, key = (0, 0), (0, queries % 2), (0, k_BTKH.shape[1] % 2)
        mask_B1QT = jnp.pad(mask_B1QT, [none, none, query, key])
        q_BQNH = jnp.pad(q_BQNH, [none, query, none, none])
        k_BTKH, v_BTKH = (jnp.pad(x, [none, key, none, none]) for x in (k_BTKH, v_BTKH))
    out = jax.nn.dot_product_attention(q_BQNH, k_BTKH, v_BTKH, mask=mask_B1QT, **options)
    return out[:, :queries]


def _attend_own(
    name: str, q_BTNH: jax.Array, kv: KeyValues, layout: Layout, segment_BP: Array, branch: Branch | None
) -> jax.Array:
    """``attend`` by every device for its own rows, heads and queries, to the keys of all tokens."""
    devices, counts = layout.devices, (layout.prefix, q_BTNH.shape[1] - layout.prefix)
    own_dP, after_dX = (context.tokens_of(count, devices) for count in counts)
    after_dX = layout.prefix + after_dX

    def on_device(q, k, v, segment_BP, *branch):
        k, v = (context.gather(x, counts, devices) for x in (k, v))
        attention = functools.partial(_own_kernel(name), device=context.device_number(devices))
        if not branch:
            index_dQ = np.concatenate([own_dP, after_dX], axis=1)
            segment = jnp.pad(segment_BP, ((0, 0), (0, counts[1])), constant_values=1)
            return attention(q, k, v, index_dQ, segment, layout.prefix, layout.suffix)
        own, after = own_dP.shape[1], jnp.concatenate([branch[1], branch[0]], axis=1)
        k_own, v_own = (x[:, : layout.prefix] for x in (k, v))
        parts = [
            attention(q[:, :own], k_own, v_own, own_dP, segment_BP, layout.prefix, 0),
            attention(q[:, own:], k, v, after_dX, after, layout.prefix, 0),
        ]
        return jnp.concatenate(parts, axis=1)

    return on_own_tokens(on_device, devices, q_BTNH, *kv, segment_BP, *branch or ())


def _own_kernel(name: str) -> Callable[..., jax.Array]:
    if name != "splash":
        return functools.partial(attend_to_all, implementation=name)
    from vpjax.models import splash  # Pallas for TPUs, which takes a while to import

    return functools.partial(splash.attend, interpret=platform() != "tpu")


def attend_to_all(
    q_BQNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    index_dQ: np.ndarray,
    segment_BT: Array,
    prefix: int,
    suffix: int,
    *,
    device: jax.Array | int,
    implementation: str,
) -> jax.Array:
    """What ``splash.attend`` computes, by the back end xla or cudnn."""
    index_Q, segment_BT = jnp.asarray(index_dQ)[device], jnp.asarray(segment_BT)
    mask_BQT = sees(prefix, suffix)(index_Q[:, None], jnp.arange(k_BTKH.shape[1]))
    mask_BQT = mask_BQT & (segment_BT[:, index_Q, None] == segment_BT[:, None])
    if implementation == "cudnn":
        return _kernel(q_BQNH, k_BTKH, v_BTKH, mask_BQT[:, None], implementation="cudnn")
    return keep(_attend_in_parts(q_BQNH, KeyValues(k_BTKH, v_BTKH), mask_BQT, k_BTKH.shape[1]))


def _split(q_BTNH: jax.Array, kv: KeyValues, layout: Layout) -> tuple[KeyValues, list[jax.Array]]:
    """The prefix's keys and values, and the queries, keys and values [B, G, C, ., H] of the completions."""
    p, groups = layout.prefix, (layout.groups, layout.suffix)
    own = [x[:, p:].reshape(x.shape[0], *groups, *x.shape[2:]) for x in (q_BTNH, *kv)]
    return KeyValues(kv.k[:, :p], kv.v[:, :p]), own


def attend_blocks(q_TNH: jax.Array, k_TNH: jax.Array, v_TNH: jax.Array, group_T: Array) -> jax.Array:
    """Attention inside groups, not causal: q, k, v [..., T, N, H]; tokens see those with equal ``group``."""
    same_TT = group_T[..., :, None] == group_T[..., None, :]
    scores = jnp.einsum("...qnh,...knh->...nqk", q_TNH * q_TNH.shape[-1] ** -0.5, k_TNH)
    weights = _softmax(scores, same_TT[..., None, :, :])
    return jnp.einsum("...nqk,...knh->...qnh", weights.astype(q_TNH.dtype), v_TNH)
