"""What a run's real step is and takes on given chips, compiled from shapes alone.

The model's sizes are those of the folder ``config.init_from``, of which only config.json is read, or else of
``config.model``.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vpjax.data.index import Source, bucket_for, frame_shape
from vpjax.data.rows import collate, masked_row
from vpjax.data.text import Stamps, Tokens
from vpjax.data.video import Sampling, VideoInfo
from vpjax.hlo import Collective, collectives, flops
from vpjax.models import hf
from vpjax.models.sharding import batch_sharding, row_parts
from vpjax.models.vlm import VLMConfig, abstract_model
from vpjax.training import checkpoint, grpo, sft
from vpjax.training.setup import initial_params
from vpjax.training.state import State, create_state
from vpjax.types import Array, Batch, Bucket, UserError

GIB = 2**30


class Chip(NamedTuple):
    """What its maker publishes. memory: GiB of HBM. flops: bfloat16, per second. links: bytes per second that
    a chip sends to others, over all its links. grids: sizes of a slice."""

    memory: float
    flops: float
    links: float
    grids: tuple[str, ...]


class Clips(NamedTuple):
    """The clips that a plan supposes. width, height: pixels. text: tokens of a prompt beside the video's."""

    seconds: float = 8.0
    width: int = 1280
    height: int = 720
    text: int = 64
    answer: int = 128


SQUARES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
# cloud.google.com/tpu/docs/v5e, /v5p and /v6e; of the interchip bandwidth, which counts both ways, half.
CHIPS = {
    "v5e": Chip(16, 197e12, 100e9, SQUARES),
    "v5p": Chip(95, 459e12, 300e9, CUBES),
    "v6e": Chip(32, 918e12, 224e9, SQUARES),
}
# Times in words, in as many tokens as Qwen's tokenizer takes for them.
STAMPS = Stamps({**dict.fromkeys("<0123456789.", (0,)), " seconds>": (0, 0)})


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step as it was compiled. Bytes and floating-point operations are of one chip; seconds: of compiling.

    arguments: state and batch; temporaries: what the step needs beside them; needed: both, the program, and
    what of the result does not take the state's place. over: what the compiler said where this is more than
    the chip has; then the rest is 0.
    """

    arguments: int = 0
    temporaries: int = 0
    needed: int = 0
    flops: float = 0.0
    collectives: tuple[Collective, ...] = ()
    seconds: float = 0.0
    over: str = ""


def with_batch(config: ConfigDict, batch: int) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    changed.batch = batch
    return changed


def find_devices(topology: str) -> tuple[Chip | None, list[jax.Device]]:
    """The chip (None: a CPU, whose memory is the machine's) and the devices of a topology. UserError for an
    unknown one, which lists the known, and where libtpu is missing."""
    name, _, grid = topology.partition(":")
    if name == "cpu" and grid.isdigit() and int(grid):
        try:
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", int(grid))
        except RuntimeError:  # they exist already
            pass
        if len(jax.devices("cpu")) < int(grid):
            raise UserError(
                f"--topology={topology}: this process has {len(jax.devices('cpu'))} devices already"
            )
        return None, jax.devices("cpu")[: int(grid)]
    if name not in CHIPS or grid not in CHIPS[name].grids:
        known = "; ".join(f"{name}:{{{','.join(chip.grids)}}}" for name, chip in CHIPS.items())
        raise UserError(f"--topology={topology} is not known; known are {known}; cpu:N")
    os.environ.setdefault(
        "ALLOW_MULTIPLE_LIBTPU_LOAD", "1"
    )  # no chip is taken: others may plan at the same time
    try:
        jax.config.update("jax_platforms", "cpu")  # nothing is run, so that no TPU is looked for
        return CHIPS[name], list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except (ImportError, RuntimeError) as error:
        raise UserError(f"--topology={topology} needs libtpu: pip install 'vpjax[tpu]' ({error})") from error


def read_model(config: ConfigDict) -> VLMConfig:
    """The sizes of the model. UserError where neither a folder nor the config gives them."""
    folder = checkpoint.model_folder(config.init_from)
    if config.init_from and (folder / "config.json").is_file():
        return hf.read_config(folder)
    if not config.model:
        raise UserError(
            f"config.init_from: {config.init_from} has no config.json; give a folder that has one"
        )
    return VLMConfig.from_hf(config.model.to_dict())


def bucket_of(config: ConfigDict, model: VLMConfig, clips: Clips) -> Bucket:
    """The shape of a batch of ``clips``. UserError where their prompts or answers are too long."""
    info = VideoInfo(clips.width, clips.height, clips.seconds, fps=30.0, frames=int(30 * clips.seconds))
    shape = frame_shape(Source("", "video", info=info), model, config.data, Sampling.of(config.data))
    video = [model.vision_start, model.video_token, model.vision_end]
    nothing = masked_row()
    tokens = Tokens(
        prompt=np.array([*video, *[0] * clips.text], np.int32),
        answer=np.zeros(clips.answer, np.int32),
        keywords=nothing.keywords,
        lemma=nothing.lemma,
        spans=(),
        stamps=STAMPS,
    )
    return bucket_for(tokens, shape, clips.seconds, model, config.data)


@dataclasses.dataclass(frozen=True)
class NoJudge:
    """Stands for the rewards, whose work is nothing beside the model's."""

    weights: dict[str, float]
    host_scores: dict[str, Any] = dataclasses.field(default_factory=dict)

    def score(self, batch: Batch, tokens_BXC: Array, mask_BXC: Array) -> dict[str, Array]:
        return {name: self.recall(batch, tokens_BXC, mask_BXC) for name in self.weights}

    def recall(self, batch: Batch, tokens_BXC: Array, mask_BXC: Array) -> Array:
        return mask_BXC.mean(axis=-1, dtype=jnp.float32)


def prepare(config: ConfigDict, model: VLMConfig, mesh: Mesh, clips: Clips) -> tuple[Any, State, Batch]:
    """The run's step, and the shapes of what it is called with on ``mesh``."""
    params = initial_params(config, model, mesh, only_shapes=True)
    state, optimizer, layout = create_state(params, config, mesh)
    one = collate(
        [masked_row(config.data.keywords, config.data.keyword_tokens)], bucket_of(config, model, clips), model
    )
    where = batch_sharding(mesh)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((config.batch, *x.shape[1:]), x.dtype, sharding=where), one
    )
    if config.method == "grpo":
        judge = NoJudge(dict.fromkeys(config.grpo.rewards, 1.0))
        step = grpo.make_step(abstract_model(model), config, optimizer, layout, judge=judge, eos=(0,))
    else:
        step = sft.make_step(abstract_model(model), config, optimizer, layout)
    return step, state, batch


def plan_step(config: ConfigDict, model: VLMConfig, mesh: Mesh, clips: Clips) -> Plan:
    """Compile the step of ``config`` for ``mesh``."""
    start = time.perf_counter()
    step, *shapes = prepare(config, model, mesh, clips)
    try:
        program = step.lower(*shapes).compile()
    except jax.errors.JaxRuntimeError as error:
        if "memory" not in str(error).lower():
            raise
        said = re.search(r"Used \S+ of \S+ hbm", str(error))
        return Plan(
            over=said.group() if said else str(error).splitlines()[0], seconds=time.perf_counter() - start
        )
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    result = memory.output_size_in_bytes - memory.alias_size_in_bytes
    # Counted with plain attention, for a kernel does not tell its work: causal attention is counted whole.
    plain = config.copy_and_resolve_references()
    plain.attention = "xla"
    step, *shapes = prepare(plain, model, mesh, clips)
    work = flops(step.trace(*shapes).jaxpr.jaxpr, while_trips=config.grpo.max_new)
    return Plan(
        arguments=arguments,
        temporaries=temporaries,
        needed=arguments + temporaries + result + memory.generated_code_size_in_bytes,
        flops=work / mesh.size,
        collectives=tuple(collectives(program.as_text())),
        seconds=seconds,
    )


def fit(plan: Plan, chip: Chip | None) -> bool:
    return not plan.over and (chip is None or plan.needed <= chip.memory * GIB)


def largest(fits: Callable[[int], bool], unit: int) -> int:
    """The largest multiple of ``unit`` that fits, by bisection: a smaller one fits as well. 0: none."""
    if not fits(unit):
        return 0
    low, high = 1, 2
    while fits(high * unit):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * unit) else (low, middle)
    return low * unit


def report(plan: Plan, config: ConfigDict, chip: Chip | None, mesh: Mesh, topology: str) -> str:
    """The lines to print."""
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    lines = [
        f"{config.method} step on {topology}: mesh {sizes}; batch {config.batch} in {config.accumulate} parts"
    ]
    lines.append(f"compiled in {plan.seconds:.0f} s")
    if plan.over:
        lines.append(f"memory of a chip      {plan.over}: does not fit")
    else:
        lines.append(
            f"memory of a chip      arguments {_gib(plan.arguments)}, temporaries {_gib(plan.temporaries)}, "
            f"in all {_gib(plan.needed)}" + (f" of {chip.memory:g} GiB" if chip else "")
        )
        lines.append(f"work of a chip        {plan.flops / 1e12:.2f} TFLOP (matrix products)")
        totals: collections.Counter = collections.Counter()
        calls: collections.Counter = collections.Counter()
        for one in plan.collectives:
            totals[one.kind] += one.sent * one.times
            calls[one.kind] += one.times
        for kind, moved in totals.most_common():
            lines.append(f"  {kind:<20}{_gib(moved)} sent by a chip in {calls[kind]} calls")
        if chip:
            compute, move = plan.flops / chip.flops, totals.total() / chip.links
            lines.append(
                f"estimated step time   {max(compute, move):.2f} to {compute + move:.2f} s at published peak "
                f"rates, which no step reaches: products {compute:.2f} s, collectives {move:.2f} s"
            )
    if not fit(plan, chip):
        lines += [
            "it does not fit; what helps, the cheapest first:",
            *(f"  {line}" for line in advice(config, mesh)),
        ]
    return "\n".join(lines)


def advice(config: ConfigDict, mesh: Mesh) -> list[str]:
    """What to change in a config whose step does not fit."""
    rows = config.batch // config.accumulate // row_parts(mesh)
    out = []
    if not config.remat:
        out.append("--config.remat=True (a third more time)")
    if mesh.shape["data"] > 1:
        out.append("--config.mesh.data=1 --config.mesh.fsdp=-1 (parameters are split further)")
    if rows > 1:
        out.append(
            f"--config.accumulate={config.accumulate * rows} (one row a chip at a time; the same numbers)"
        )
    if config.optim.moments_dtype == "float32":
        out.append("--config.optim.moments_dtype=bfloat16")
    if config.dtype == "float32":
        out.append("--config.dtype=bfloat16")
    if config.method == "grpo" and config.grpo.groups > 2:
        out.append("fewer completions: --config.grpo.groups and --config.grpo.max_new")
    out.append("smaller or fewer frames: --config.data.max_pixels, --config.data.fps or --config.data.frames")
    out.append("freeze more: --config.optim.freeze; or take more chips")
    return out


def _gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"
