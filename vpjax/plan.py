"""Will a run fit on these chips, and what will a step take:

    python -m vpjax.plan --config sft_qwen2_5_vl_7b --topology v5e:8x8 [--find_batch]

Compiles the run's real step for these chips, from shapes alone and without the chips (TPUs: ``pip install
'vpjax[tpu]'``). Prints each chip's memory against what it has, the work, the collectives, an estimate of the
step's time, and what to change where it does not fit. cpu:N takes N virtual devices of this machine.

The model's sizes are those of the folder ``config.init_from``, of which only config.json is read, or else of
``config.model``. The batch is what clips of ``--seconds`` and ``--video`` make of ``config.data``.
"""

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

from vpjax import cli
from vpjax.data.index import Source, bucket_for, frame_shape
from vpjax.data.rows import collate, masked_row
from vpjax.data.text import Stamps, Tokens
from vpjax.data.video import Sampling, VideoInfo
from vpjax.hlo import Collective, collectives, flops
from vpjax.models import hf
from vpjax.models.sharding import batch_sharding, make_mesh, row_parts
from vpjax.models.vlm import VLMConfig, abstract_model
from vpjax.training import checkpoint, grpo, run_config, sft
from vpjax.training.setup import initial_params
from vpjax.training.state import State, create_state
from vpjax.types import Batch, Bucket, UserError

GIB = 2**30


class Chip(NamedTuple):
    """Published figures of a chip. memory: GiB of HBM. flops: bfloat16, per second. links: bytes per second
    sent over all links together. grids: sizes of a slice."""

    memory: float
    flops: float
    links: float
    grids: tuple[str, ...]


class PlannedClips(NamedTuple):
    """The clips that a plan assumes. width, height: pixels. text: tokens of a prompt beside the video's."""

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
# Stand-in ids for times in words: as many tokens as Qwen's tokenizer makes of them.
STAMPS = Stamps({**dict.fromkeys("<0123456789.", (0,)), " seconds>": (0, 0)})


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """The cost of a compiled step in bytes and floating-point operations of one chip.

    arguments: state and batch. temporaries: memory beside them. needed: both, the program, and the part of
    the result that does not take the place of the state. seconds: the time of compiling. over: the compiler's
    message if the step needs more memory than the chip has; all fields but ``seconds`` are then 0.
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
    """The chip (None: a CPU) and the devices of a topology. UserError for an unknown topology, or if libtpu
    is missing."""
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
    # No chip is taken, so others may plan at the same time; nothing runs, so no TPU is looked for.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        jax.config.update("jax_platforms", "cpu")
        return CHIPS[name], list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except (ImportError, RuntimeError) as error:
        raise UserError(f"--topology={topology} needs libtpu: pip install 'vpjax[tpu]' ({error})") from error


def read_model(config: ConfigDict) -> VLMConfig:
    """The sizes of the model. UserError if neither a folder nor the config gives them."""
    folder = checkpoint.model_folder(config.init_from)
    if config.init_from and (folder / "config.json").is_file():
        return hf.read_config(folder)
    if not config.model:
        raise UserError(
            f"config.init_from: {config.init_from} has no config.json; give a folder that has one"
        )
    return VLMConfig.from_hf(config.model.to_dict())


def planned_bucket(config: ConfigDict, model_config: VLMConfig, clips: PlannedClips) -> Bucket:
    """The shape of a batch of ``clips``. UserError if their prompts or answers are too long."""
    info = VideoInfo(clips.width, clips.height, clips.seconds, fps=30.0, frames=int(30 * clips.seconds))
    source, sampling = Source("", "video", info=info), Sampling.of(config.data)
    shape = frame_shape(source, model_config, config.data, sampling)
    video = [model_config.vision_start, model_config.video_token, model_config.vision_end]
    empty = masked_row()
    tokens = Tokens(
        prompt=np.array([*video, *[0] * clips.text], np.int32),
        answer=np.zeros(clips.answer, np.int32),
        keywords=empty.keywords,
        lemma=empty.lemma,
        spans=(),
        stamps=STAMPS,
    )
    return bucket_for(tokens, shape, clips.seconds, model_config, config.data)


@dataclasses.dataclass(frozen=True)
class FreeRewards:
    """Stands in for the rewards, whose cost is negligible beside that of the model."""

    weights: dict[str, float]
    host_scores: dict[str, Any] = dataclasses.field(default_factory=dict)

    def score(self, batch: Batch, tokens_BXC: jax.Array, mask_BXC: jax.Array) -> dict[str, jax.Array]:
        return {name: self.recall(batch, tokens_BXC, mask_BXC) for name in self.weights}

    def recall(self, batch: Batch, tokens_BXC: jax.Array, mask_BXC: jax.Array) -> jax.Array:
        return mask_BXC.mean(axis=-1, dtype=jnp.float32)


def abstract_step(
    config: ConfigDict, model_config: VLMConfig, mesh: Mesh, clips: PlannedClips
) -> tuple[Any, State, Batch]:
    """The run's step, and the shapes of its arguments on ``mesh``."""
    params = initial_params(config, model_config, mesh, only_shapes=True)
    state, optimizer, shardings = create_state(params, config, mesh)
    row = masked_row(config.data.keywords, config.data.keyword_tokens)
    one_row = collate([row], planned_bucket(config, model_config, clips), model_config)
    sharding = batch_sharding(mesh)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((config.batch, *x.shape[1:]), x.dtype, sharding=sharding), one_row
    )
    model = abstract_model(model_config)
    step: Any
    if config.method == "grpo":
        rewards = FreeRewards(dict.fromkeys(config.grpo.rewards, 1.0))
        step = grpo.make_step(model, config, optimizer, shardings, judge=rewards, eos=(0,))
    else:
        step = sft.make_step(model, config, optimizer, shardings)
    return step, state, batch


def plan_step(config: ConfigDict, model_config: VLMConfig, mesh: Mesh, clips: PlannedClips) -> StepPlan:
    """Compile the step of ``config`` for ``mesh``."""
    start = time.perf_counter()
    step, *shapes = abstract_step(config, model_config, mesh, clips)
    try:
        program = step.lower(*shapes).compile()
    except jax.errors.JaxRuntimeError as error:
        if "memory" not in str(error).lower():
            raise
        used = re.search(r"Used \S+ of \S+ hbm", str(error))
        message = used.group() if used else str(error).splitlines()[0]
        return StepPlan(over=message, seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    result = memory.output_size_in_bytes - memory.alias_size_in_bytes
    # Counted with plain attention, because a kernel hides its work. Causal attention is counted whole.
    plain = config.copy_and_resolve_references()
    plain.attention = "xla"
    step, *shapes = abstract_step(plain, model_config, mesh, clips)
    work = flops(step.trace(*shapes).jaxpr.jaxpr, while_trips=config.grpo.max_new)
    return StepPlan(
        arguments=arguments,
        temporaries=temporaries,
        needed=arguments + temporaries + result + memory.generated_code_size_in_bytes,
        flops=work / mesh.size,
        collectives=tuple(collectives(program.as_text())),
        seconds=seconds,
    )


def fits(plan: StepPlan, chip: Chip | None) -> bool:
    return not plan.over and (chip is None or plan.needed <= chip.memory * GIB)


def find_batch(
    config: ConfigDict, model_config: VLMConfig, mesh: Mesh, clips: PlannedClips, chip: Chip | None
) -> int:
    """The largest batch whose step fits ``chip``. UserError if not even one row for each chip fits."""
    unit = row_parts(mesh) * config.accumulate

    def batch_fits(batch: int) -> bool:
        fitting = fits(plan_step(with_batch(config, batch), model_config, mesh, clips), chip)
        print(f"batch {batch}: {'fits' if fitting else 'does not fit'}", flush=True)
        return fitting

    batch = largest(batch_fits, unit)
    if not batch:
        raise UserError(f"not even a batch of {unit}, one row for each chip, fits --topology")
    return batch


def largest(is_good: Callable[[int], bool], unit: int) -> int:
    """The largest multiple of ``unit`` that is good, by bisection; all smaller ones are good too. 0: none."""
    if not is_good(unit):
        return 0
    low, high = 1, 2
    while is_good(high * unit):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if is_good(middle * unit):
            low = middle
        else:
            high = middle
    return low * unit


def report(plan: StepPlan, config: ConfigDict, chip: Chip | None, mesh: Mesh, topology: str) -> str:
    """The report of a plan, or of a step that does not fit, with advice."""
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    lines = [
        f"{config.method} step on {topology}: mesh {sizes}; "
        f"batch {config.batch} in {config.accumulate} parts",
        f"compiled in {plan.seconds:.0f} s",
    ]
    if plan.over:
        lines.append(f"memory of a chip      {plan.over}: does not fit")
    else:
        lines += _costs(plan, chip)
    if not fits(plan, chip):
        lines.append("it does not fit; what helps, the cheapest first:")
        lines += [f"  {line}" for line in advice(config, mesh)]
    return "\n".join(lines)


def _costs(plan: StepPlan, chip: Chip | None) -> list[str]:
    """Memory, work and collectives of a step, and its time at the chip's published rates."""
    available = f" of {chip.memory:g} GiB" if chip else ""
    lines = [
        f"memory of a chip      arguments {_gib(plan.arguments)}, temporaries {_gib(plan.temporaries)}, "
        f"in all {_gib(plan.needed)}{available}",
        f"work of a chip        {plan.flops / 1e12:.2f} TFLOP (matrix products)",
    ]
    sent: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    for collective in plan.collectives:
        sent[collective.kind] += collective.sent * collective.times
        calls[collective.kind] += collective.times
    for kind, count in sent.most_common():
        lines.append(f"  {kind:<20}{_gib(count)} sent by a chip in {calls[kind]} calls")
    if chip:
        compute, move = plan.flops / chip.flops, sent.total() / chip.links
        lines.append(
            f"estimated step time   {max(compute, move):.2f} to {compute + move:.2f} s at published peak "
            f"rates, which no step reaches: products {compute:.2f} s, collectives {move:.2f} s"
        )
    return lines


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


def main() -> None:
    usual = PlannedClips()
    parser = cli.Parser(__doc__)
    parser.add_config()
    parser.add_argument(
        "--topology", required=True, help="chips, such as v5e:8x8, v5p:4x4x4, v6e:4x4 or cpu:8"
    )
    parser.add_argument(
        "--find_batch", action="store_true", help="find the largest batch that fits; each try compiles anew"
    )
    parser.add_argument("--seconds", type=cli.at_least(0.0), default=usual.seconds, help="length of a clip")
    parser.add_argument("--video", default=f"{usual.width}x{usual.height}", help="size of a clip in pixels")
    parser.add_argument(
        "--text", type=cli.at_least(1), default=usual.text, help="tokens of a prompt beside the video's"
    )
    parser.add_argument(
        "--answer",
        type=cli.at_least(1),
        default=usual.answer,
        help="tokens of an answer; GRPO's completions have config.grpo.max_new",
    )
    flags, config = parser.parse_config()
    if not re.fullmatch(r"\d+x\d+", flags.video):
        raise UserError(f"--video={flags.video}: give width x height in pixels, such as 1280x720")
    width, height = map(int, flags.video.split("x"))
    clips = PlannedClips(flags.seconds, width, height, flags.text, flags.answer)
    run_config.check(config)
    chip, devices = find_devices(flags.topology)
    mesh = make_mesh(config.mesh, devices)
    model_config = read_model(config)
    if flags.find_batch:
        config = with_batch(config, find_batch(config, model_config, mesh, clips, chip))
    plan = plan_step(config, model_config, mesh, clips)
    print(report(plan, config, chip, mesh, flags.topology))


if __name__ == "__main__":
    cli.run(main)
