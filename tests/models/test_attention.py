"""The back ends of attention agree in values and gradients on ragged layouts, with and without a mesh."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import joint
from vpjax.models import attention, context, splash
from vpjax.models.attention import KeyValues, Layout, attend
from vpjax.models.sharding import in_use, make_mesh, replicated
from vpjax.types import UserError

# Ragged on purpose: no length is a multiple of the kernel's blocks, and no block begins where a part does.
PACKED = Layout(500, packed=True)
LAYOUTS = [Layout(100, 1, 37), Layout(131, 3, 50), Layout(140), PACKED]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Blocks of 128, so that short sequences have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splash, "BLOCK", splash.LANES)
        yield


@pytest.fixture(scope="module", autouse=True)
def even_numbers():
    """What cuDNN asks of its arguments, whose kernel has gradients under a mask for even numbers only."""
    computed = jax.nn.dot_product_attention

    def checked(q, k, v, *, mask=None, **options):
        assert mask is None or q.shape[1] % 2 == k.shape[1] % 2 == 0
        return computed(q, k, v, mask=mask, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.nn, "dot_product_attention", checked)
        yield


def inputs(layout, heads=4, kv_heads=2, width=16, rows=4):
    """Queries, keys, values, segments, weights of the outputs in a loss, and which outputs mean something."""
    rng = np.random.default_rng(0)
    count = layout.prefix + layout.groups * layout.suffix
    q, k, v, weight = (
        rng.standard_normal((rows, count, n, width)).astype(np.float32)
        for n in (heads, kv_heads, kv_heads, heads)
    )
    lengths = np.linspace(layout.prefix, layout.prefix // 3, rows, dtype=int)
    segment = (np.arange(layout.prefix) < lengths[:, None]).astype(np.int32)
    if layout.packed:  # rows of 1, 3, 5 and 7 segments
        for row, end in enumerate(lengths):
            starts = np.sort(rng.choice(np.arange(1, end), 2 * row, replace=False))
            segment[row, :end] += np.searchsorted(starts, np.arange(end), side="right")
    real = np.concatenate([segment > 0, np.ones((rows, count - layout.prefix), bool)], axis=1)
    return q, k, v, segment, weight * real[:, :, None, None], real


def by_hand(q, k, v, segment, layout):
    """Attention in float64 by the picture in models/attention.py, a row and a head at a time."""
    count, prefix = q.shape[1], layout.prefix
    i, j = np.indices((count, count))
    group = np.where(np.arange(count) < prefix, -1, (np.arange(count) - prefix) // max(layout.suffix, 1))
    out = np.zeros(q.shape)
    for b in range(len(q)):
        own = np.pad(segment[b], (0, count - prefix), constant_values=1)
        seen = (j <= i) & ((j < prefix) | (group[i] == group[j])) & (own[i] == own[j])
        for n in range(q.shape[2]):
            head = n * k.shape[2] // q.shape[2]
            x = np.float64(q[b, :, n]) @ np.float64(k[b, :, head]).T / np.sqrt(q.shape[-1])
            x = np.where(seen, np.exp(x - x.max(axis=1, keepdims=True)), 0)
            out[b, :, n] = x / x.sum(axis=1, keepdims=True) @ np.float64(v[b, :, head])
    return out


def attended(name, layout, q, k, v, segment):
    if name == "cudnn":  # all but the kernel itself, which needs a GPU
        return attention._attend_cudnn(q, KeyValues(k, v), layout, segment, "xla")
    with attention.backend(name):
        return attend(q, KeyValues(k, v), layout, segment)


def values_and_gradients(name, layout, q, k, v, segment, weight):
    def loss(q, k, v):
        out = attended(name, layout, q, k, v, segment)
        return (out * weight).sum(), out

    gradients, out = jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return out, *gradients


@functools.cache
def results(name, layout):
    """``values_and_gradients`` of ``inputs(layout)`` as NumPy arrays."""
    q, k, v, segment, weight, _ = inputs(layout)
    program = jax.jit(functools.partial(values_and_gradients, name, layout))
    return jax.tree.map(np.asarray, program(q, k, v, segment, weight))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_attention_is_what_the_picture_says(layout):
    q, k, v, segment, _, real = inputs(layout)
    ours = results("xla", layout)[0]
    np.testing.assert_allclose(ours[real], by_hand(q, k, v, segment, layout)[real], rtol=0, atol=2e-6)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["splash", "cudnn"])
def test_back_ends_are_equal(name, layout):
    """In float32, values and gradients of order 1 to 10: 2e-5 is some roundings of sums over 500 keys."""
    real = inputs(layout)[-1]
    ours, theirs = results(name, layout), results("xla", layout)
    np.testing.assert_allclose(ours[0][real], theirs[0][real], rtol=0, atol=2e-5)
    for x, y in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5)


TAIL = 170  # tokens of the branch


def branch_inputs():
    """``inputs(PACKED)`` with a branch after it: every second segment has one, which sees a part of it."""
    rng = np.random.default_rng(1)
    q, k, v, segment, weight, real = inputs(PACKED)
    shared, own = np.zeros_like(segment), np.zeros((len(segment), TAIL), np.int32)
    for row in range(len(segment)):
        chosen = range(1 + row % 2, segment[row].max() + 1, 2)
        for number in chosen:
            at = np.flatnonzero(segment[row] == number)
            shared[row, at[: rng.integers(0, len(at) + 1)]] = number
        ends = np.sort(rng.choice(np.arange(1, TAIL), len(chosen), replace=False))
        for number, start, end in zip(chosen, [0, *ends], ends, strict=False):
            own[row, start:end] = number
    more = (rng.standard_normal((len(q), TAIL, *x.shape[2:])).astype(np.float32) for x in (q, k, v, weight))
    q, k, v, weight = (np.concatenate(pair, axis=1) for pair in zip((q, k, v, weight), more, strict=True))
    real = np.concatenate([real, own > 0], axis=1)
    return q, k, v, segment, attention.Branch(own, shared), weight * real[:, :, None, None], real


def branch_attended(name, q, k, v, segment, branch):
    kv = KeyValues(k, v)
    if name == "cudnn":  # see ``attended``
        prefix = KeyValues(*(x[:, : PACKED.prefix] for x in kv))
        own = attention._attend_cudnn(q[:, : PACKED.prefix], prefix, PACKED, segment, "xla")
        tail = attention._branch_cudnn(q[:, PACKED.prefix :], kv, branch, "xla")
        return jnp.concatenate([own, tail], axis=1)
    with attention.backend(name):
        return attend(q, kv, PACKED, segment, branch)


@functools.cache
def branch_results(name):
    q, k, v, segment, branch, weight, _ = branch_inputs()

    def loss(q, k, v):
        out = branch_attended(name, q, k, v, segment, branch)
        return (out * weight).sum(), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x) for x in (out, *gradients)]


def test_a_branch_sees_what_it_shares_and_itself():
    """By hand: a segment's shared tokens with the branch's own tokens after them are a row of their own."""
    q, k, v, segment, branch, _, _ = branch_inputs()
    ours = branch_results("xla")[0]
    checked, shares = 0, set()
    for row in range(len(q)):
        for number in set(branch.segment[row]) - {0}:
            before = np.flatnonzero(branch.shared[row] == number)
            own = PACKED.prefix + np.flatnonzero(branch.segment[row] == number)
            at = np.concatenate([before, own])
            alone = [x[row : row + 1, at] for x in (q, k, v)]
            whole = by_hand(*alone, np.ones((1, len(at)), int), Layout(len(at)))[0]
            np.testing.assert_allclose(ours[row, own], whole[len(before) :], rtol=0, atol=2e-6)
            checked += len(own)
            shares.add((len(before) > 0, len(own) > 0))
    assert checked > 300 and {(True, True), (False, True)} <= shares
    prefix = results("xla", PACKED)[0]
    np.testing.assert_array_equal(ours[:, : PACKED.prefix], prefix)  # which a branch does not change


@pytest.mark.parametrize("name", ["splash", "cudnn"])
def test_back_ends_agree_about_a_branch(name):
    real = branch_inputs()[-1]
    ours, theirs = branch_results(name), branch_results("xla")
    np.testing.assert_allclose(ours[0][real], theirs[0][real], rtol=0, atol=2e-5)
    for x, y in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5)


def test_a_branch_on_a_mesh():
    q, k, v, segment, branch, _, real = branch_inputs()
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))

    def run(*arguments):
        with in_use(mesh):
            return branch_attended("splash", *arguments)

    split = jax.jit(run)(*jax.device_put((q, k, v, segment, branch), replicated(mesh)))
    np.testing.assert_allclose(np.asarray(split)[real], branch_results("splash")[0][real], rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", [LAYOUTS[0], PACKED], ids=str)
def test_splash_on_a_mesh_is_splash(layout):
    """Each device computes its rows and heads, with the values that one device computes for them."""
    q, k, v, segment, weight, _ = inputs(layout)
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))

    def run(*arguments):
        with in_use(mesh):
            return values_and_gradients("splash", layout, *arguments)

    program = jax.jit(run)
    split = program(*jax.device_put((q, k, v, segment, weight), replicated(mesh)))
    whole = results("splash", layout)
    for x, y in zip(split, whole, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)


def attended_apart(name, layout, devices, q, k, v, segment, branch=None):
    """``attend`` where the tokens of a row are split over devices, brought there and back."""
    counts = layout.prefix, q.shape[1] - layout.prefix

    def lead(x):
        parts = jnp.split(x, [layout.prefix], axis=1)
        return context.joined([context.spread(part, devices) for part in parts], devices)

    with attention.backend(name):
        apart = dataclasses.replace(layout, devices=devices)
        out = attend(lead(q), KeyValues(lead(k), lead(v)), apart, segment, branch)
    parts = zip(context.apart(out, counts, devices), counts, strict=True)
    return jnp.concatenate([part[:, context.places_of(count, devices)] for part, count in parts], axis=1)


@pytest.mark.parametrize("name", ["xla", "splash"])
@pytest.mark.parametrize(("layout", "devices"), [(PACKED, 4), (Layout(130, 4, 35), 2)], ids=str)
def test_tokens_of_a_row_on_several_devices(name, layout, devices):
    """A packed row with a branch over four devices, and a prompt with completions over two, whose tokens do
    not divide by twice as many: values and gradients are those of one device."""
    mesh = make_mesh(dict(data=4 // devices, fsdp=1, context=devices, tensor=2))
    branch = None
    if layout == PACKED:
        q, k, v, segment, branch, weight, real = branch_inputs()
        extra = -q.shape[1] % devices  # a row holds a whole number of tokens of each device
        q, k, v, weight = (np.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))) for x in (q, k, v, weight))
        branch = branch._replace(segment=np.pad(branch.segment, ((0, 0), (0, extra))))
        real = np.pad(real, ((0, 0), (0, extra)))
    else:
        q, k, v, segment, weight, real = inputs(layout)

    def run(attended, arrays):
        def loss(q, k, v):
            out = attended(q, k, v)
            return (out * weight).sum(), out

        gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
        return [np.asarray(x) for x in (out, *gradients)]

    def apart(q, k, v):
        with in_use(mesh):
            return attended_apart(name, layout, devices, q, k, v, segment, branch)

    def whole(q, k, v):
        with attention.backend("xla"):
            return attend(q, KeyValues(k, v), layout, segment, branch)

    ours = run(apart, jax.device_put((q, k, v), replicated(mesh)))
    theirs = run(whole, (q, k, v))
    np.testing.assert_allclose(ours[0][real], theirs[0][real], rtol=0, atol=2e-5)
    for x, y in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["xla", "splash", "cudnn"])
def test_another_segment_changes_nothing(name):
    """To the bit, whatever its keys and values are; and a token of another segment changes something."""
    q, k, v, segment, _, _ = inputs(PACKED)
    row = 2
    others = segment[row] != 2
    program = jax.jit(functools.partial(attended, name, PACKED))
    expected = np.asarray(program(q, k, v, segment))[row, ~others]
    q, k, v = (x.copy() for x in (q, k, v))
    for x in (q, k, v):
        x[row, others] = 1 - x[row, others]
    changed = np.asarray(program(q, k, v, segment))
    np.testing.assert_array_equal(changed[row, ~others], expected)
    segment[row, np.flatnonzero(segment[row] == 1)[-1]] = 2
    assert np.abs(np.asarray(program(q, k, v, segment))[row, ~others] - expected).max() > 0.1


def test_splash_computes_no_scores_between_segments(monkeypatch):
    """NaNs are seen wherever they are computed with, masked or not. Here segments end where blocks do."""
    monkeypatch.setattr(splash, "BLOCK", splash.LANES)
    lengths = np.array([2, 1, 3]) * splash.LANES
    layout = Layout(int(lengths.sum()) + 100, packed=True)
    q, k, v, _, weight, _ = inputs(layout, rows=2)
    segment = np.pad(np.repeat([1, 2, 3], lengths), (0, 100))
    segment = np.stack([segment, np.where(segment > 0, 1, 0)])
    own = (segment == 2) | (segment == 0)
    program = jax.jit(functools.partial(values_and_gradients, "splash", layout))
    expected = program(q, k, v, segment, weight)
    k, v = (np.where(own[:, :, None, None], x, np.nan).astype(np.float32) for x in (k, v))
    for x, y in zip(program(q, k, v, segment, weight), expected, strict=True):
        assert np.isnan(x[~own]).all()
        np.testing.assert_array_equal(np.asarray(x)[segment == 2], np.asarray(y)[segment == 2])


def test_groups_of_blocks_by_hand():
    """Attention inside groups, in any order, padding among itself."""
    rng = np.random.default_rng(0)
    group = rng.integers(-1, 3, (2, 3, 12))
    q, k, v = (rng.standard_normal((2, 3, 12, 2, 8)).astype(np.float32) for _ in range(3))
    ours = np.asarray(attention.attend_blocks(q, k, v, group))
    for at in np.ndindex(2, 3, 12, 2):
        *block, i, n = at
        seen = np.flatnonzero(group[*block] == group[*block, i])
        x = np.float64(q[at]) @ np.float64(k[*block][seen, n]).T / np.sqrt(8)
        x = np.exp(x - x.max())
        np.testing.assert_allclose(ours[at], x / x.sum() @ v[*block][seen, n], rtol=0, atol=2e-6)


def test_the_platform_chooses(monkeypatch):
    chosen = {}
    for platform in ("cpu", "tpu", "gpu"):
        monkeypatch.setattr(attention, "platform", lambda platform=platform: platform)
        chosen[platform] = [attention.backend_of(jnp.dtype(x)) for x in ("float32", "bfloat16")]
    assert chosen == {"cpu": ["xla"] * 2, "tpu": ["splash"] * 2, "gpu": ["xla", "cudnn"]}
    with attention.backend("xla"):
        assert attention.backend_of(jnp.dtype("bfloat16")) == "xla"
    with attention.backend("cudnn"):
        assert attention.backend_of(jnp.dtype("bfloat16")) == "cudnn"
        for platform, dtype in (("gpu", "float32"), ("cpu", "bfloat16"), ("tpu", "bfloat16")):
            monkeypatch.setattr(attention, "platform", lambda platform=platform: platform)
            with pytest.raises(UserError, match="config.attention='cudnn' needs an NVIDIA GPU"):
                attention.backend_of(jnp.dtype(dtype))


def test_the_platform_is_that_of_the_mesh():
    assert attention.platform() == jax.default_backend()
    with in_use(joint.ONE):
        assert attention.platform() == joint.ONE.devices.flat[0].platform


@pytest.mark.parametrize(
    "kind, platform",
    [("cpu", "cpu"), ("TPU v5 lite", "tpu"), ("TPU7x", "tpu"), ("NVIDIA H100 80GB HBM3", "gpu")],
)
def test_devices_have_the_platform_of_their_kind(kind, platform, monkeypatch):
    """Also where a program is compiled for devices that are not there."""
    device = SimpleNamespace(device_kind=kind)
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: SimpleNamespace(abstract_device=device))
    assert attention.platform() == platform


def test_splash_holds_no_scores():
    """No array of tokens x tokens is in its program, nor in its kernel's."""
    layout, tokens = Layout(1024, packed=True), 1024
    q, k, v, segment, _, _ = inputs(layout)

    def largest(name):
        return joint.largest(
            jax.make_jaxpr(functools.partial(attended, name, layout))(q, k, v, segment).jaxpr
        )

    assert largest("splash") < tokens**2 <= largest("xla")
