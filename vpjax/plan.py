"""Will a run fit on these chips, and what will a step take:

    python -m vpjax.plan --config sft_qwen2_5_vl_7b --topology v5e:8x8 [--find_batch] [--json]

Compiles the run's real step for these chips, from shapes alone and without the chips (TPUs: ``pip install
'vpjax[tpu]'``). Prints each chip's memory against what it has, the work, the collectives, an estimate of the
step's time by phase, and what to change where it does not fit. Topologies may be named as Google Cloud does
(v5litepod-64, v5p-64). One GPU or eight, a100 (80 GB), h100 or h200, as in h100:8, are estimates: the program
is compiled for TPU chips in their place. cpu:N takes N virtual devices of this machine.

The model's sizes are those of the folder ``config.init_from``, of which only config.json is read, or else of
``config.model``. The batch is what ``config.data`` makes of clips of ``--seconds``, ``--video``, ``--text``
and ``--answer``: in SFT as many in a row as fit, in GRPO one prompt in a row. Each has a keyword whose event
is in its middle, so that its V~ is planned too.
"""

import json
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from vpjax import cli
from vpjax.chips import Chip, find_devices
from vpjax.data.collate import empty_batch, empty_prompts
from vpjax.data.looks import KINDS
from vpjax.data.packing import Sizes
from vpjax.estimate import StepPlan, as_json, costs, fits
from vpjax.hlo import collectives, cycles, flops
from vpjax.models import hf
from vpjax.models.attention import SCOPE
from vpjax.models.lora import Lora
from vpjax.models.sampling_layout import HEADS, groups_for, sampling_specs
from vpjax.models.sharding import batch_sharding, devices_along, make_mesh, row_parts
from vpjax.models.vlm import VLMConfig, abstract_model, leaves, with_int8_decoder
from vpjax.planned_row import PlannedClips, PlannedRow, contents, planned_row
from vpjax.training import checkpoint, grpo, run_config, sft
from vpjax.training.judged import FreeRewards
from vpjax.training.looks import LOOKS
from vpjax.training.setup import initial_params
from vpjax.training.state import State, create_state
from vpjax.types import Batch, Prompts, UserError


def with_batch(config: ConfigDict, batch: int) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    changed.batch = batch
    return changed


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


def parameters(config: ConfigDict, model_config: VLMConfig, mesh: Mesh) -> str:
    """How many parameters a run trains, in words."""
    state, _, _ = create_state(initial_params(config, model_config, mesh, only_shapes=True), config, mesh)
    trained, frozen = (sum(x.size for x in part.values()) for part in (state.params, state.frozen))
    return f"{trained / 1e6:,.1f} M trained, {frozen / 1e6:,.1f} M frozen"


def abstract_step(
    config: ConfigDict, model_config: VLMConfig, mesh: Mesh, row: PlannedRow
) -> tuple[Any, State, Batch | Prompts]:
    """The run's step, and the shapes of its arguments on ``mesh``."""
    params = initial_params(config, model_config, mesh, only_shapes=True)
    state, optimizer, shardings = create_state(params, config, mesh)
    shape, keyword_tokens = (1, row.sizes, row.capacity, model_config), config.data.keyword_tokens
    one_row: Batch | Prompts
    if config.method == "grpo":
        one_row = empty_prompts(*shape, config.data.keywords, keyword_tokens)
    else:
        one_row = empty_batch(*shape, keyword_tokens)
    sharding = batch_sharding(mesh)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (run_config.rows_per_step(config), *x.shape[1:]), x.dtype, sharding=sharding
        ),
        one_row,
    )
    model = abstract_model(model_config, lora=Lora.of(config.lora))
    step: Any
    if config.method == "grpo":
        names, degraded_names = config.grpo.rewards, config.grpo.degraded_rewards
        rewards = FreeRewards(dict.fromkeys(names, 1.0), dict.fromkeys(degraded_names, 1.0))
        yes_no = (0,), (1,)
        step = grpo.make_step(model, config, optimizer, shardings, judge=rewards, eos=(0,), yes_no=yes_no)
    else:
        step = sft.make_step(model, config, optimizer, shardings)
    return step, state, batch


def plan_step(config: ConfigDict, model_config: VLMConfig, mesh: Mesh, row: PlannedRow) -> StepPlan:
    """Compile the step of ``config`` for ``mesh``."""
    start = time.perf_counter()
    step, *shapes = abstract_step(config, model_config, mesh, row)
    try:
        program = step.lower(*shapes).compile()
    except jax.errors.JaxRuntimeError as error:
        if "memory" not in str(error).lower():
            raise
        used = re.search(r"Used \S+ of \S+ hbm", str(error))
        message = used.group() if used else str(error).splitlines()[0]
        return StepPlan(over=message, seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    memory, text = program.memory_analysis(), program.as_text()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    result = memory.output_size_in_bytes - memory.alias_size_in_bytes
    work, attention = work_of_step(config, model_config, mesh, row)
    return StepPlan(
        arguments=arguments,
        temporaries=temporaries,
        needed=arguments + temporaries + result + memory.generated_code_size_in_bytes,
        flops=work,
        attention=attention,
        read=read_for_token(config, model_config, mesh, row) if config.method == "grpo" else 0,
        sampled=config.grpo.max_new if config.method == "grpo" else 0,
        collectives=tuple(collectives(text)),
        cycles=cycles(text),
        seconds=seconds,
    )


def work_of_step(
    config: ConfigDict, model_config: VLMConfig, mesh: Mesh, row: PlannedRow
) -> tuple[float, float]:
    """The operations of a chip in a step, and those of them that are attention's."""
    # With plain attention, because a kernel hides its work, and with each clip in a row of its own, because
    # the kernel leaves out what lies between clips.
    plain = with_batch(config, config.batch * row.clips)
    plain.attention = "xla"
    row = row._replace(sizes=Sizes(*(math.ceil(count / row.clips) for count in row.sizes)))
    counted = mesh
    if mesh.shape["context"] > 1:  # each of several devices compares its own tokens with all others
        counted = make_mesh(dict(data=1, fsdp=1, tensor=1), list(mesh.devices.flat[:1]))
    step, *shapes = abstract_step(plain, model_config, counted, row)
    jaxpr, trips = step.trace(*shapes).jaxpr.jaxpr, config.grpo.max_new
    work, attention = (flops(jaxpr, while_trips=trips, scope=scope) for scope in ("", SCOPE))
    return work / mesh.size, attention / mesh.size


def read_for_token(config: ConfigDict, model_config: VLMConfig, mesh: Mesh, row: PlannedRow) -> int:
    """The bytes that a chip reads for a token of each of its completions: its part of the decoder's weights,
    and of the caches of its rows, those of completions at full length."""
    options = config.grpo
    model = abstract_model(model_config, jnp.dtype(config.dtype), lora=Lora.of(config.lora))
    if options.rollout_dtype == "int8":
        model = jax.eval_shape(with_int8_decoder, model)
    total = 0
    for path, x in leaves(model).items():
        is_output = path == f"decoder.{'embed' if model_config.decoder.tied else 'lm_head'}"
        if path.startswith("decoder.layers.") or is_output:
            part = NamedSharding(mesh, sampling_specs(path, x.shape, mesh)[1]).shard_shape(x.shape)
            total += math.prod(part) * x.dtype.itemsize
    decoder, branches = model_config.decoder, 2 if options.degraded else 1
    tokens = branches * row.sizes.tokens + (options.groups + options.degraded) * options.max_new
    heads = decoder.kv_heads
    if heads % devices_along(HEADS, mesh) == 0:
        heads //= devices_along(HEADS, mesh)
    rows = answered_rows(config)
    rows_here = rows / devices_along(groups_for(rows, mesh), mesh)
    kept = 2 * decoder.layers * heads * decoder.head_dim * jnp.dtype(config.dtype).itemsize
    return total + int(rows_here * tokens * kept)


def answered_rows(config: ConfigDict) -> int:
    """The prompts of a GRPO step of which completions are sampled: of two looks, those that ask whether a
    window is relevant have two given answers instead."""
    rows = run_config.rows_per_step(config)
    return rows * len(LOOKS) // len(KINDS) if config.looks.windows else rows


def find_batch(
    config: ConfigDict, model_config: VLMConfig, mesh: Mesh, row: PlannedRow, chip: Chip | None
) -> int:
    """The largest batch whose step fits ``chip``. UserError if not even one row for each chip fits."""
    unit = row_parts(mesh) * run_config.micro_batches(config)

    def batch_fits(batch: int) -> bool:
        fitting = fits(plan_step(with_batch(config, batch), model_config, mesh, row), chip)
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


def work_of_token(plan: StepPlan, row: PlannedRow, config: ConfigDict, mesh: Mesh) -> float:
    """Operations of all chips for a token that is no padding: of the clips in SFT; in GRPO of the prompts of
    both branches and of completions of full length."""
    tokens = row.clips * row.entry.sizes.tokens
    if config.method == "grpo":
        options, prompt = config.grpo, tokens - row.entry.sizes.targets
        branches = 2 if options.degraded else 1
        answers = (options.groups + options.degraded) * options.max_new
        tokens = branches * prompt + answers * answered_rows(config) / run_config.rows_per_step(config)
    return plan.flops * mesh.size / (run_config.rows_per_step(config) * tokens)


def report(
    plan: StepPlan, row: PlannedRow, config: ConfigDict, chip: Chip | None, mesh: Mesh, topology: str
) -> str:
    """The report of a plan, or of a step that does not fit, with advice."""
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    lines = [
        f"{config.method} step on {topology}: mesh {sizes}; "
        f"batch {config.batch} in {config.accumulate} parts",
        f"a row holds           {contents(row, config)}",
        f"compiled in {plan.seconds:.0f} s",
    ]
    if plan.over:
        lines.append(f"memory of a chip      {plan.over}: does not fit")
    else:
        lines += costs(plan, chip)
        per_token = work_of_token(plan, row, config, mesh)
        lines.append(f"work of a token       {per_token / 1e12:.3g} TFLOP, padding left out")
    if not fits(plan, chip):
        lines.append("it does not fit; what helps, the cheapest first:")
        lines += [f"  {line}" for line in advice(config, mesh)]
    return "\n".join(lines)


def advice(config: ConfigDict, mesh: Mesh) -> list[str]:
    """What to change in a config whose step does not fit."""
    rows = config.batch // run_config.micro_batches(config) // row_parts(mesh)
    out = []
    if config.remat != "layers":
        out.append("--config.remat=layers (up to a third more time)")
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
    if config.method == "sft" and config.data.row_tokens > config.data.max_tokens:
        out.append("fewer clips in a row: --config.data.row_tokens (and a larger batch)")
    if config.method == "sft" and rows == 1 and mesh.shape["context"] < mesh.size:
        out.append(f"rows over more chips: --config.mesh.context={2 * mesh.shape['context']} (fewer rows)")
    out.append(
        "smaller or fewer frames: --config.data.max_tokens, --config.data.max_pixels or --config.data.fps"
    )
    if config.lora.rank and config.lora.base_dtype == "dtype":
        out.append("--config.lora.base_dtype=int8")
    if not config.lora.rank:
        out.append("--config.lora.rank=16 (adapters are all that is trained)")
        out.append("freeze more: --config.optim.freeze")
    out.append("take more chips")
    return out


def main() -> None:
    usual = PlannedClips()
    parser = cli.Parser(__doc__)
    parser.add_config()
    parser.add_argument(
        "--topology", required=True, help="chips, such as v5e:8x8, v5p:4x4x4, v6e:4x4, h100:1 or cpu:8"
    )
    parser.add_argument(
        "--find_batch", action="store_true", help="find the largest batch that fits; each try compiles anew"
    )
    parser.add_argument("--json", action="store_true", help="also print the plan as a last line of JSON")
    parser.add_argument(
        "--seconds", type=cli.at_least(0.0), default=usual.seconds, help="length; 0: an image"
    )
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
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", flags.video):
        raise UserError(f"--video={flags.video}: give width x height in pixels, such as 1280x720")
    width, height = map(int, flags.video.split("x"))
    clips = PlannedClips(flags.seconds, width, height, flags.text, flags.answer)
    run_config.check(config)
    chip, devices = find_devices(flags.topology)
    if chip is None and flags.find_batch:
        raise UserError(f"--find_batch: on --topology={flags.topology} any batch fits; name chips")
    if chip is not None:
        config.memory = config.memory or chip.memory
    model_config = read_model(config)
    mesh = make_mesh(config.mesh, devices, kv_heads=model_config.decoder.kv_heads)
    row = planned_row(config, model_config, clips)
    print(f"parameters            {parameters(config, model_config, mesh)}", flush=True)
    if flags.find_batch:
        config = with_batch(config, find_batch(config, model_config, mesh, row, chip))
    plan = plan_step(config, model_config, mesh, row)
    chips_named = flags.topology
    if chip is not None and chip.is_gpu:
        chips_named += " (an estimate: compiled for a chip of v5p in its place)"
    print(report(plan, row, config, chip, mesh, chips_named))
    if flags.json:
        print(json.dumps(as_json(plan, chip)))


if __name__ == "__main__":
    cli.run(main)
