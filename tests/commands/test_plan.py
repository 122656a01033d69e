"""The plan of a run: what its step is and takes, what to change where it does not fit, and mistakes."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests import joint
from tests.commands.call import call
from tests.joint import mesh_of
from vpjax import plan
from vpjax.chips import CHIPS, find_devices, memory_of, spelled_out
from vpjax.data.mixture import Mixture
from vpjax.data.packing import PackedPlan, Sizes
from vpjax.data.units import Capacity, empty_units
from vpjax.estimate import StepPlan, as_json, costs, fits, phase_times, step_seconds
from vpjax.hlo import Collective, flops
from vpjax.models import vision
from vpjax.models.sharding import replicated
from vpjax.models.vision import VisionTower
from vpjax.planned_row import PlannedClips, PlannedRow, contents, planned_row
from vpjax.recipes import grpo_long, grpo_qwen2_5_vl_7b, sft, sft_lora_qwen2_5_vl_7b, sft_qwen2_5_vl_7b
from vpjax.types import UserError

ROOT = Path(__file__).parents[2]
GIB = 2**30
RECIPES = {"sft": sft_qwen2_5_vl_7b, "grpo": grpo_qwen2_5_vl_7b}


@pytest.mark.parametrize("method", RECIPES)
def test_the_work_of_a_7b_step(method):
    """Against parameters times tokens: 2 operations forward, and for what is trained 2 again (remat, but for
    the last product of a layer) and 4 backward; GRPO rolls out on V and V~ before, and encodes V again to
    train the merger. That leaves out attention's scores and the merger, some 3 % at this length."""
    config = RECIPES[method].get_config()
    model, mesh = plan.read_model(config), mesh_of(1, 8, 1)
    config.contrast.weight = 0.0
    config.attention = "xla"
    config.data.row_tokens = 0
    row = planned_row(config, model, PlannedClips(1.0, 1280, 720, text=64, answer=128))
    assert row.clips == 1
    step, *shapes = plan.abstract_step(config, model, mesh, row)
    c, v = model.decoder, model.vision
    last = c.hidden * c.intermediate
    layer = 2 * c.hidden * c.heads * c.head_dim + 2 * c.hidden * c.kv_heads * c.head_dim + 3 * last
    tower = v.depth * (4 * v.hidden**2 + 3 * v.hidden * v.intermediate)
    options = config.grpo
    targets, tokens, encodings = 128, row.sizes.tokens, 1
    sampled, rolled_out = 0, 0
    if method == "grpo":
        sampled = (options.groups + options.degraded) * options.max_new
        rolled_out, encodings = 2 * tokens + sampled, 2
        targets = options.groups * options.max_new
        tokens += targets
    decoder = c.layers * ((4 * layer - last) * tokens + layer * rolled_out)
    decoder += c.vocab * c.hidden * (4 * targets + sampled)
    expected = config.batch * 2 * (decoder + encodings * tower * 4 * row.sizes.units)
    ours = flops(step.trace(*shapes).jaxpr.jaxpr, while_trips=options.max_new)
    assert 1 < ours / expected < 1.05
    state, batch = shapes
    assert batch.video.pixels.shape == (config.batch, row.sizes.units, 4, 3 * 2 * 14**2)
    assert state.params["decoder.layers.q.kernel"].sharding.shard_shape((28, 3584, 3584)) == (28, 448, 3584)


def test_work_counts_what_is_computed_again():
    """Where ``remat`` is "auto", by the memory of each of the chips: here it is enough for an eighth of the
    batch and not for all of it."""
    config = sft.get_config()
    model = plan.read_model(config)
    row = planned_row(config, model, PlannedClips(2.0, 56, 56, text=16, answer=12))

    def work(remat, devices):
        config.remat, config.memory = remat, 0.05
        return devices * plan.work_of_step(config, model, mesh_of(1, devices, 1), row)[0]

    assert work("auto", 8) == work("products", 1) < work("auto", 1) == work("layers", 1)


@pytest.mark.parametrize(
    "seconds, row_tokens", [(2.0, 16384), (8.0, 16384), (8.0, 0), (60.0, 8192), (0.0, 16384)]
)
def test_rows_are_filled_with_clips(seconds, row_tokens):
    """Another clip would not fit, and the loader's own plan puts so many into a row."""
    config = sft_qwen2_5_vl_7b.get_config()
    config.data.row_tokens = row_tokens
    row = planned_row(config, plan.read_model(config), PlannedClips(seconds))
    clip, sizes = row.entry.sizes, row.sizes
    for one, whole in zip(clip._replace(tokens=0), sizes._replace(tokens=0), strict=True):
        assert row.clips * one <= whole
    assert row.clips * clip.tokens <= sizes.tokens < (row.clips + 1) * clip.tokens
    assert sizes.tokens == row_tokens or (
        not row_tokens and row.clips == 1 and sizes.tokens - clip.tokens < 128
    )
    # V~ is planned, from the middle of the clip on and with a slot to spare.
    assert clip.keywords == 1 and clip.units / 2 - row.capacity.block < clip.degraded <= clip.units
    mixture = Mixture([0] * 5 * row.clips, (1.0,), seed=0)
    multiples = Sizes(128, row.capacity.block, row.capacity.bin, 128, 1, 1, 1, 1, degraded_targets=1)
    filled = PackedPlan([clip] * 5 * row.clips, mixture, 1, multiples, row_tokens)
    assert [len(entries) for _, entries in filled.rows(0)] == [row.clips]
    assert filled.capacity(0) == sizes
    printed = contents(row, config)
    assert f"{row.clips * clip.tokens:,} of {sizes.tokens:,} tokens" in printed


def test_prompts_stand_alone_in_their_rows():
    config = grpo_qwen2_5_vl_7b.get_config()
    row = planned_row(config, plan.read_model(config), PlannedClips(8.0, text=64, answer=128))
    prompt = row.units + 64 + 3 - 1  # vision_start, vision_end and the text
    assert row.clips == 1 and 0 <= row.sizes.tokens - prompt < 128
    assert f"1 clip of 64 frames of 560 x 336: {prompt:,} of" in contents(row, config)
    config.batch, config.grpo.groups, config.grpo.degraded, config.grpo.max_new = 2, 8, 4, 16
    step, mesh = StepPlan(flops=1e9), mesh_of(1, 8, 1)
    assert plan.work_of_token(step, row, config, mesh) == 8e9 / (2 * (2 * prompt + 12 * 16))
    config.grpo.degraded = 0
    assert plan.work_of_token(step, row, config, mesh) == 8e9 / (2 * (prompt + 8 * 16))


@pytest.mark.parametrize("dtype, size", [("dtype", 2), ("int8", 1)])
def test_what_a_sampled_token_reads(dtype, size):
    """By hand, of a 7B on 8 chips, 4 of which hold a copy: a quarter of the kernels and of the output, all
    norms (and scales), and the caches of one key/value head of half of the rows."""
    config = grpo_qwen2_5_vl_7b.get_config()
    config.grpo.rollout_dtype, config.grpo.importance_cap = dtype, 2.0
    model = plan.read_model(config)
    row = planned_row(config, model, PlannedClips(2.0))
    sides = [
        (3584, 3584),
        (3584, 512),
        (3584, 512),
        (3584, 3584),
        (3584, 18944),
        (3584, 18944),
        (18944, 3584),
    ]
    layer = size * sum(a * b for a, b in sides) / 4 + 2 * (3584 + 2 * 512) / 4 + 2 * 2 * 3584
    if size == 1:
        layer += 4 * sum(out for _, out in sides)
    tokens = 2 * row.sizes.tokens + 12 * 256
    expected = 28 * layer + 2 * 152064 * 3584 / 4 + config.batch / 2 * tokens * 28 * 2 * 128 * 2
    assert plan.read_for_token(config, model, mesh_of(1, 8, 1, 4), row) == expected


def test_of_two_looks_two_prompts_of_three_are_answered():
    """A step of 144 prompts reads for its tokens, and samples, as much as one of 96 prompts of one look."""
    two_looks = grpo_long.get_config()
    two_looks.init_from, two_looks.batch = "", 144
    one_look = two_looks.copy_and_resolve_references()
    one_look.looks.windows, one_look.batch = 0, 96
    model = plan.read_model(two_looks)
    row = planned_row(two_looks, model, PlannedClips(2.0))
    mesh = mesh_of(1, 1, 1)
    read = [plan.read_for_token(config, model, mesh, row) for config in (two_looks, one_look)]
    assert read[0] == read[1]
    prompt = row.entry.sizes.tokens - row.entry.sizes.targets
    options = two_looks.grpo
    step, sampled = StepPlan(flops=1e9), 96 * options.groups * options.max_new
    assert plan.work_of_token(step, row, two_looks, mesh) == pytest.approx(1e9 / (144 * prompt + sampled))
    assert plan.work_of_token(step, row, one_look, mesh) == pytest.approx(1e9 / (96 * prompt + sampled))


def test_a_tower_in_chunks_is_counted_whole(monkeypatch):
    units = jax.tree.map(jnp.asarray, empty_units(2, Sizes(1, 96, 96), Capacity(4, 16), joint.MODEL))
    tower = jax.eval_shape(lambda: VisionTower(joint.MODEL.vision, rngs=nnx.Rngs(0)))

    def work():
        return flops(jax.make_jaxpr(lambda tower: tower(units).tokens)(tower).jaxpr)

    whole = work()
    for chunk in (16, 20, 48):  # of 20, the last one is smaller
        monkeypatch.setattr(vision, "CHUNK", chunk)
        assert work() == whole


def test_memory_of_a_program(monkeypatch):
    """A step whose arguments and temporaries are known: 8 MiB of state a device, updated in place."""
    mesh = mesh_of(1, 8, 1)
    split = NamedSharding(mesh, P("fsdp"))
    shape = jax.ShapeDtypeStruct((64, 2**18), jnp.float32, sharding=split)
    step = jax.jit(
        lambda state, batch: state + batch @ (batch.T @ state), donate_argnums=0, out_shardings=split
    )
    batch = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=replicated(mesh))
    monkeypatch.setattr(plan, "abstract_step", lambda *_: (step, shape, batch))
    row = PlannedRow(None, 1, 0, Sizes(1), None)
    compiled = plan.plan_step(joint.config(), None, mesh, row)
    assert compiled.arguments == 2**23 + 64 * 64 * 4
    assert compiled.flops == 2 * (2 * 64 * 64 * 2**18) / 8
    assert compiled.needed >= compiled.arguments + compiled.temporaries
    assert fits(compiled, CHIPS["v5e"]) and fits(compiled, None)


def test_what_does_not_fit_is_printed_with_what_helps():
    recipe = sft_qwen2_5_vl_7b.get_config()
    row = planned_row(recipe, plan.read_model(recipe), PlannedClips(2.0))
    config, chip, mesh = joint.config(batch=32, data__row_tokens=16384), CHIPS["v5e"], mesh_of(2, 2, 2)
    big = StepPlan(10 * GIB, 6 * GIB, 17 * GIB, 1e15, (Collective("all-gather", 0, GIB, (3,)),))
    assert not fits(big, chip) and fits(big, CHIPS["v5p"]) and not fits(StepPlan(over="x"), chip)
    printed = plan.report(big, row, config, chip, mesh, "v5e:2x4")
    for part in ("in all 17.00 GiB of 16 GiB", "1000.00 TFLOP", "3.00 GiB sent by a chip in 3 calls"):
        assert part in printed
    # 1e15 operations at 197e12 a second; 3 GiB at 100e9 bytes a second.
    assert "estimated step time   5.08 to 5.11 s at published peak rates" in printed
    for change in (
        "remat=layers",
        "mesh.data=1",
        "accumulate=8",
        "moments_dtype=bfloat16",
        "row_tokens",
        "max_pixels",
    ):
        assert change in printed
    # 8 devices; 7 clips of 64 + 128 + 2 tokens and 8 slots of 12 x 21 in each of 32 rows.
    assert f"work of a token       {8 * 1000 / (32 * 7 * (194 + 8 * 252)):.3g} TFLOP" in printed
    assert "does not fit" not in plan.report(big, row, config, CHIPS["v5p"], mesh, "v5p:2x2x2")
    assert "Used 20G of 15.75G hbm: does not fit" in plan.report(
        StepPlan(over="Used 20G of 15.75G hbm"), row, config, chip, mesh, "v5e:2x4"
    )


def test_the_time_of_phases():
    """By hand: 3e9 cycles at 1.5 GHz are 2 s; 100e9 bytes at 100e9 a second 1 s. What overlaps in a phase
    does not add up, phases do."""
    second = int(CHIPS["v5e"].clock)
    moves = (
        Collective("all-gather", 0, 10**10, (5, 2), "update"),
        Collective("all-reduce", 0, 3 * 10**11, (), "decode"),
    )
    step = StepPlan(collectives=moves, cycles={"update": 2 * second, "decode": second, "other": second // 2})
    phases = phase_times(step, CHIPS["v5e"])
    assert [(p.name, p.bound) for p in phases] == [("decode", "links"), ("update", "chip"), ("other", "chip")]
    assert step_seconds(step, CHIPS["v5e"]) == pytest.approx((3 + 2 + 0.5, 4 + 3 + 0.5))
    assert "decode              1.00 s of the chip, 3.00 s of links" in "\n".join(costs(step, CHIPS["v5e"]))
    # Attention's kernel, whose cycles the compiler does not know: 197e12 operations at the peak rate.
    with_kernel = dataclasses.replace(step, attention=CHIPS["v5e"].flops)
    assert step_seconds(with_kernel, CHIPS["v5e"]) == pytest.approx((3 + 2 + 0.5 + 1, 4 + 3 + 0.5 + 1))
    assert "attention           1.00 s at least" in "\n".join(costs(with_kernel, CHIPS["v5e"]))
    assert phase_times(step, CHIPS["h100"]) == [] and not as_json(step, CHIPS["h100"])["phases"]
    found = as_json(step, CHIPS["v5e"])
    assert found["phases"]["update"]["cycles"] == pytest.approx(2) and found["sent"] == 4 * 10**11
    assert as_json(StepPlan(over="x"), CHIPS["v5e"])["fits"] is False
    # A GPU, of whose program nothing is known but its products: 1 s of these, and 500 tokens of 2 ms.
    chip = CHIPS["h100"]
    step = StepPlan(flops=chip.flops, read=int(0.002 * chip.reading), sampled=500)
    assert step_seconds(step, chip) == pytest.approx((2, 2))
    assert "reads at least 6.24 GiB, 2.00 ms at the published rate" in "\n".join(costs(step, chip))


@pytest.mark.parametrize(
    "name, topology",
    [
        ("v5litepod-64", "v5e:8x8"),
        ("v5e-8", "v5e:2x4"),
        ("v6e-256", "v6e:16x16"),
        ("v5p-64", "v5p:2x4x4"),
        ("v5p-7", "v5p-7"),
        ("v5e:4x4", "v5e:4x4"),
        ("v4-8", "v4-8"),
    ],
)
def test_names_of_google_cloud(name, topology):
    """Of v5p they count cores, two a chip."""
    assert spelled_out(name) == topology


@pytest.mark.parametrize(
    "topology, gigabytes",
    [
        ("v5e:8x8", 100),  # a quarter of 400
        ("v5e:8x16", 150),
        ("v5e:16x16", 200),
        ("v6e:16x16", 400),
        ("v5p:2x4x4", 300),
        ("v5p:4x4x8", 600),
        ("h200:8", 450),
    ],
)
def test_links_count_both_ways_where_an_axis_wraps(topology, gigabytes):
    name, _, grid = topology.partition(":")
    assert CHIPS[name].in_slice(grid).links == gigabytes * 1e9


@pytest.mark.parametrize("limit", [0, 7, 8, 9, 100, 1000])
def test_the_largest_batch(limit):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= limit

    assert plan.largest(fits, 8) == limit // 8 * 8
    assert len(tried) == len(set(tried)) <= 16


@pytest.mark.parametrize("topology", ["v5e:3x3", "v5e", "v4:2x2", "8x8", "cpu:0", "cpu:many", "v5p:8x8"])
def test_unknown_topologies(topology):
    with pytest.raises(
        UserError, match=f"--topology={topology} is not known; .*v5e:.*8x8.*v5p:.*v6e:.*cpu:N"
    ):
        find_devices(topology)


@pytest.mark.parametrize("topology", ["h100:8", "v5litepod-64"])
def test_without_libtpu_the_topology_is_named_as_it_was_given(topology, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no TPU support")

    monkeypatch.setattr(topologies, "get_topology_desc", fail)
    with pytest.raises(UserError, match=f"--topology={topology} needs libtpu: pip install"):
        find_devices(topology)


@pytest.mark.parametrize("count", [1, 8])
def test_gpus_are_planned_as_chips(count):
    pytest.importorskip("libtpu")
    chip, devices = find_devices(f"h100:{count}")
    assert chip.is_gpu and len(devices) == count


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_memory_of_a_device(topology):
    """Chips are known by what JAX calls them. A CPU has no memory of its own."""
    assert memory_of(jax.devices("cpu")[0]) == 0
    pytest.importorskip("libtpu")
    chip, devices = find_devices(topology)
    assert memory_of(devices[0]) == chip.memory


def test_the_parameters_of_a_7b_with_adapters():
    """By hand: of rank 16 in 28 layers, 16 times the sum of both sides of each of 7 matrices."""
    config, mesh = sft_lora_qwen2_5_vl_7b.get_config(), mesh_of(1, 8, 1)
    config.contrast.weight = 0.0
    sides = 2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944)
    expected = f"{16 * 28 * sides / 1e6:,.1f} M trained, 8,292.2 M frozen"
    assert plan.parameters(config, plan.read_model(config), mesh) == expected


def test_more_virtual_devices_than_there_are():
    chip, devices = find_devices("cpu:4")
    assert chip is None and len(devices) == 4
    with pytest.raises(UserError, match="cpu:64: this process has 8 devices"):
        find_devices("cpu:64")


def test_a_model_that_is_not_there():
    config = sft_qwen2_5_vl_7b.get_config()
    assert plan.read_model(config).decoder.layers == 28
    config.model = {}
    with pytest.raises(UserError, match="config.init_from: /path/to/.* has no config.json"):
        plan.read_model(config)


def test_clips_that_are_too_long():
    config = sft_qwen2_5_vl_7b.get_config()
    model = plan.read_model(config)
    assert planned_row(config, model, PlannedClips(600.0)).entry.sizes.tokens <= 8192
    with pytest.raises(UserError, match=r"question and answer above 8192 tokens \(data.max_tokens\)"):
        planned_row(config, model, PlannedClips(600.0, text=8000, answer=200))
    with pytest.raises(UserError, match=r"answer above 512 tokens \(data.max_answer\)"):
        planned_row(config, model, PlannedClips(8.0, answer=513))
    with pytest.raises(UserError, match="first: --video: aspect ratio of 2001 x 10 is above 200"):
        planned_row(config, model, PlannedClips(8.0, width=10, height=2001))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "error: the following arguments are required: --topology"),
        (["--topology=cpu:8", "--video=720p"], "error: --video=720p: give width x height"),
        (["--topology=cpu:8", "--video=0x720"], "error: --video=0x720: give width x height"),
        (["--topology=cpu:8", "--find_batch"], "error: --find_batch: on --topology=cpu:8 any batch fits"),
        (["--topology=v9:8x8"], "error: --topology=v9:8x8 is not known; known are v5e:"),
    ],
)
def test_flags_that_are_wrong(arguments, message):
    code, out, err = call(plan.main, "--config=sft_qwen2_5_vl_7b", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(message)
