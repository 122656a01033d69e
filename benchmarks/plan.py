"""What the 7B and 8B recipes need on TPU slices, and how depth affects compile time; no TPU is needed.

    pip install -e '.[tpu]' && python -m benchmarks.plan [--out FILE]

Each row is ``python -m vpjax.plan`` on one recipe and topology, with that command's default clips. Compiling
takes minutes a row on a few cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.timing import environment, write_result
from vpjax import cli
from vpjax import plan as planning
from vpjax.chips import find_devices
from vpjax.estimate import GIB, StepPlan, step_seconds
from vpjax.models.sharding import make_mesh
from vpjax.planned_row import PlannedClips, contents, planned_row
from vpjax.recipes import grpo_qwen2_5_vl_7b, grpo_qwen3_vl_8b, sft_qwen2_5_vl_7b, sft_qwen3_vl_8b

SMALL, LARGE = "v5e:8x8", "v5p:2x4x4"  # chips of 16 and 95 GiB
ROWS = (  # recipe, topology, layers (None: all)
    (sft_qwen2_5_vl_7b, SMALL, None),
    (sft_qwen2_5_vl_7b, SMALL, 4),
    (grpo_qwen2_5_vl_7b, SMALL, None),
    (sft_qwen2_5_vl_7b, LARGE, None),
    (grpo_qwen2_5_vl_7b, LARGE, None),
    (sft_qwen3_vl_8b, SMALL, None),
    (grpo_qwen3_vl_8b, SMALL, None),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    clips = PlannedClips()
    lines = [
        "# Plans",
        "",
        environment("jax", "jaxlib", "libtpu", "flax"),
        f"clips of {clips.seconds:g} s, {clips.width} x {clips.height}; text {clips.text} + {clips.answer}; "
        "GiB and TFLOP of a chip; TFLOP of a token: of all chips, padding left out; sent: by a chip in a "
        "step, in the decode loop: for one token",
        "",
        "| recipe | topology | mesh | batch | a row holds | arguments | temporaries | needed / HBM | TFLOP "
        "| TFLOP of a token | sent | decode loop: sent, largest all-gather | estimated "
        "seconds | compiled in s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)

    seconds: dict[int | None, float] = {}  # of compiling the first recipe, by number of layers
    for recipe, topology, layers in ROWS:
        config = recipe.get_config()
        name = recipe.__name__.removeprefix("vpjax.recipes.")
        if layers:
            config.model.text_config.num_hidden_layers = layers
            name += f", {layers} layers"
        chip, devices = find_devices(topology)
        assert chip is not None, topology
        config.memory = chip.memory
        model_config = planning.read_model(config)
        mesh = make_mesh(config.mesh, devices, kv_heads=model_config.decoder.kv_heads)
        row = planned_row(config, model_config, clips)
        plan = planning.plan_step(config, model_config, mesh, row)
        if layers not in seconds:
            seconds[layers] = plan.seconds
        needed = plan.over or f"{plan.needed / GIB:.2f}"
        cells = [
            name,
            topology,
            str(tuple(mesh.shape.values())),
            str(config.batch),
            contents(row, config),
            f"{plan.arguments / GIB:.2f}",
            f"{plan.temporaries / GIB:.2f}",
            f"{needed} / {chip.memory:g}",
            f"{plan.flops / 1e12:.1f}",
            f"{planning.work_of_token(plan, row, config, mesh) / 1e12:.3f}",
            f"{plan.sent / GIB:.1f}",
            decode_traffic(plan, config.grpo.max_new) if config.method == "grpo" else "",
            "" if plan.over else "{:.2f} to {:.2f}".format(*step_seconds(plan, chip)),
            f"{plan.seconds:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"28 layers compile in {seconds[None] / seconds[4]:.2f} times the time of 4 (target: at most 1.5).",
    ]
    print(lines[-1])
    write_result(lines, args.out)


def decode_traffic(plan: StepPlan, tokens: int) -> str:
    """What is sent in the decode loop for one token. The weights of a layer would be some 400 MiB."""
    collectives = [c for c in plan.collectives if c.loops and c.loops[0] == tokens]
    sent = sum(c.sent * c.times for c in collectives) / tokens
    gathered = max((c.result for c in collectives if c.kind == "all-gather"), default=0)
    return f"{sent / GIB:.2f}, {gathered / 2**20:.1f} MiB"


if __name__ == "__main__":
    cli.run(main)
