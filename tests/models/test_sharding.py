"""Every parameter has its place on a mesh, errors name the mistake, and devices change only rounding."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import AbstractMesh, NamedSharding

from tests import joint, tiny
from tests.joint import mesh_of
from vpjax.models import vision
from vpjax.models.lora import Lora
from vpjax.models.sharding import AXES, TABLE, make_mesh, put_batch, shardings, spec_of
from vpjax.models.vlm import VLMConfig, abstract_model, leaves
from vpjax.recipes import sft_qwen2_5_vl_7b, sft_qwen3_vl_8b
from vpjax.training.sft import init_heads
from vpjax.types import UserError

SIZES = ("data", "fsdp", "tensor")  # of a config


@functools.cache
def qwen():
    return leaves(abstract_model(VLMConfig.from_hf(sft_qwen2_5_vl_7b.SIZES)))


@functools.cache
def qwen3():
    return leaves(abstract_model(VLMConfig.from_hf(sft_qwen3_vl_8b.SIZES)))


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((1, -1, 1), (1, 8, 1)), ((-1, 2, 2), (2, 2, 2)), ((2, 4, 1), (2, 4, 1)), ((2, 4, -1), (2, 4, 1))],
)
def test_mesh_sizes(sizes, shape):
    data, fsdp, tensor = shape
    assert make_mesh(dict(zip(SIZES, sizes, strict=True))).shape == dict(
        zip(AXES, (data, fsdp, 1, 1, tensor), strict=True)
    )


@pytest.mark.parametrize(
    ("sizes", "kv_heads", "group"),
    [
        (dict(data=1, fsdp=8, tensor=1), 4, 4),
        (dict(data=1, fsdp=8, tensor=1), 16, 8),
        (dict(data=1, fsdp=8, tensor=1, rollout=2), 4, 2),
        (dict(data=2, fsdp=2, tensor=2), 4, 2),
        (dict(data=4, fsdp=1, tensor=2), 4, 1),
        (dict(data=1, fsdp=4, tensor=2), 1, 1),
        (dict(data=1, fsdp=8, tensor=1), 3, 1),
    ],
)
def test_groups_of_a_rollout(sizes, kv_heads, group):
    """As many devices as the heads that tensor leaves, and fsdp, divide by."""
    mesh = make_mesh(sizes, kv_heads=kv_heads)
    assert mesh.shape["group"] == group and mesh.shape["fsdp"] == sizes["fsdp"] // group


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        (3, "config.mesh.rollout=3 does not divide config.mesh.fsdp=4"),
        (0, "config.mesh.rollout=0 does not divide"),
        (4, "rollout=4 does not divide the 2 key/value heads that config.mesh.tensor=2 leaves of .* 4"),
    ],
)
def test_groups_that_do_not_fit(rollout, message):
    with pytest.raises(UserError, match=message):
        make_mesh(dict(data=1, fsdp=4, tensor=2, rollout=rollout), kv_heads=4)


@pytest.mark.parametrize("sizes", [(1, 3, 1), (1, -1, 3), (-1, -1, 1), (0, -1, 1), (2, 2, 1), (-2, -4, 1)])
def test_meshes_that_do_not_fit(sizes):
    with pytest.raises(UserError, match=f"config.mesh: data={sizes[0]}, fsdp={sizes[1]}, .* 8 devices"):
        make_mesh(dict(zip(SIZES, sizes, strict=True)))


@pytest.mark.parametrize(("sizes", "expected"), [((2, -1, 1), (2, 4, 1, 1, 1)), ((4, 1, 2), (4, 1, 1, 1, 2))])
def test_slices_lie_along_data(sizes, expected, monkeypatch):
    """On two slices of four TPU chips each, fsdp and tensor stay inside a slice."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = topologies.get_topology_desc("v5e:2x2", platform="tpu", num_slices=2)
    mesh = make_mesh(dict(zip(SIZES, sizes, strict=True)), topology.devices)
    assert tuple(mesh.shape.values()) == expected
    half = expected[0] // 2
    for part in (mesh.devices[:half], mesh.devices[half:]):
        assert len({device.slice_index for device in part.flat}) == 1
    with pytest.raises(
        UserError, match="config.mesh.data=1 must be a multiple of 2, the number of TPU slices"
    ):
        make_mesh(dict(data=1, fsdp=-1, tensor=1), topology.devices)


@pytest.mark.parametrize(("model", "billions"), [(qwen, 8.29), (qwen3, 8.77)])
@pytest.mark.parametrize("sizes", [(1, 64, 1, 1), (4, 16, 1, 1), (2, 8, 1, 4), (1, 1, 1, 4), (1, 8, 8, 1)])
def test_billions_of_parameters_fit(sizes, model, billions):
    """Every parameter divides, and a device holds its share: all but norms and biases are split, over context
    too."""
    data, fsdp, context, tensor = sizes
    mesh, held, whole = AbstractMesh((data, fsdp, 1, context, tensor), AXES), 0, 0
    for path, x in model().items():
        spec = spec_of(path, x.shape, mesh)
        held += math.prod(NamedSharding(mesh, spec).shard_shape(x.shape))
        whole += math.prod(x.shape)
    assert whole == pytest.approx(billions * 1e9, rel=1e-3)  # as their model cards say
    assert whole / held > 0.98 * fsdp * context * (1 if tensor == 1 else 0.9 * tensor)


def test_the_table_covers_parameters_and_nothing_else():
    """No parameter without a row, or with two, and no row without a parameter."""
    everywhere = Lora(4, 8.0, ("decoder.*", "vision.*"), is_int8=True)
    configs = joint.MODEL, VLMConfig.from_hf(tiny.MODELS["deep"])
    models = [abstract_model(c, lora=everywhere) for c in configs]
    heads = jax.eval_shape(lambda: init_heads(joint.config(), 32, jax.random.key(0)))
    used = set()
    for path in {*leaves(models[0]), *leaves(models[1]), *heads}:
        rows = [row for row, (pattern, _) in enumerate(TABLE) if re.fullmatch(pattern, path)]
        assert len(rows) == 1, path
        used |= set(rows)
    assert used == set(range(len(TABLE)))


def test_an_unknown_parameter_is_an_error():
    with pytest.raises(ValueError, match="no row for decoder.layers.router.kernel"):
        spec_of("decoder.layers.router.kernel", (4, 32, 8), joint.ONE)


@pytest.mark.parametrize(
    ("path", "shape", "message"),
    [
        (
            "decoder.embed",
            (127, 32),
            r"config.mesh.tensor=2 does not divide 127, .* decoder.embed \(127, 32\)",
        ),
        (
            "decoder.layers.down.kernel",
            (4, 64, 30),
            "config.mesh.fsdp=4 does not divide 30, .*layers.down.kernel",
        ),
    ],
)
def test_dimensions_that_do_not_divide(path, shape, message):
    with pytest.raises(UserError, match=message):
        shardings({path: jax.ShapeDtypeStruct(shape, np.float32)}, mesh_of(1, 4, 2))


@pytest.mark.slow
def test_rows_that_do_not_divide():
    with pytest.raises(UserError, match=r"config.batch = 8 rows .* data \* fsdp = 3"):
        put_batch(joint.batch(), mesh_of(1, 3, 1))
    with pytest.raises(UserError, match=r"config.batch / config.accumulate = 4 rows .* data \* fsdp = 8"):
        joint.setup(joint.config(batch=8, accumulate=2), mesh=mesh_of(1, 8, 1))


DESCENT = optax.sgd(1.0, momentum=0.9)  # its first update is the gradient


# All losses of SFT: the contrast, the margin on the answer and V~'s own truth.
LOSSES = dict(contrast__answer=0.3, contrast__truth=0.5)
BATCH = joint.batch(16, answers=True)


@functools.cache
def one_device_step():
    return joint.compiled(joint.config(**LOSSES), BATCH, tx=DESCENT)


@functools.cache
def one_device():
    return joint.take(*one_device_step())


@pytest.fixture
def uncached():
    """Programs are compiled and not read from the cache, which keeps no warnings."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, float("inf"))
    yield
    jax.config.update(name, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "context", "accumulate", "chunk"),
    [
        ((1, 8, 1), 1, 1, vision.CHUNK),
        ((1, 2, 4), 1, 2, 16),
        ((2, 1, 2), 2, 1, vision.CHUNK),
        ((1, 2, 1), 4, 2, 16),
    ],
)
def test_eight_devices_compute_what_one_does(sizes, context, accumulate, chunk, uncached, capfd, monkeypatch):
    """Losses and gradients; the latter of order 1, so 2e-6 is a few roundings of a float32 sum. XLA warns if
    it moves an array by copying all of it to every device: it must not. (With a context axis it warns of ways
    to compute a gather that it then does not take.) chunk: units that the tower takes at once, in two cases a
    part of a row."""
    mesh, one_step = mesh_of(*sizes, context=context), one_device_step()
    monkeypatch.setattr(vision, "CHUNK", chunk)
    config = joint.config(accumulate=accumulate, **LOSSES)
    state, step, batch = joint.compiled(config, BATCH, mesh=mesh, tx=DESCENT)
    assert context > 1 or "Involuntary full rematerialization" not in capfd.readouterr().err
    kernel = state.params["decoder.layers.q.kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (4, 32 // sizes[1] // context, 32 // sizes[2])
    # No device computes all rows: each needs little more than its part of the memory of a single device.
    held, whole = (s.memory_analysis().temp_size_in_bytes for s in (step, one_step[1]))
    assert held < 1.3 * whole / (sizes[0] * sizes[1] * context)
    before, after, metrics = joint.take(state, step, batch)
    one_before, one_after, one_metrics = one_device()
    assert metrics == pytest.approx(one_metrics, rel=1e-5, abs=1e-6)
    for path, x in one_before.params.items():
        expected = x - one_after.params[path]
        scale = max(1.0, np.abs(expected).max())
        ours = before.params[path] - after.params[path]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * scale, err_msg=path)
    # A step returns the state with the shardings that it takes, and takes no others.
    again, _ = step(step(state, batch)[0], batch)
    assert again.step == 2
    with pytest.raises(ValueError, match="sharding"):
        step(dataclasses.replace(again, params=jax.device_put(again.params, jax.devices()[0])), batch)
