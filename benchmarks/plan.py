"""What the 7B and 8B recipes need on TPU slices, and what their depth costs to compile; no TPU is needed.

    pip install -e '.[tpu]' && python -m benchmarks.plan [--out FILE]

Each row is ``python -m vpjax.plan`` on one recipe and topology, with that command's default clips. Compiling
takes minutes a row on a few cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.timing import environment, keep
from vpjax import plan as planning
from vpjax.models.sharding import make_mesh
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
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    clips = planning.StepPlannedClips()
    lines = [
        "# Plans",
        "",
        environment("jax", "jaxlib", "libtpu", "flax"),
        f"clips of {clips.seconds:g} s, {clips.width} x {clips.height}; text {clips.text} + {clips.answer}; "
        "GiB and TFLOP of a chip; sent: by a chip in a step, in the decode loop: for one token",
        "",
        "| recipe | topology | mesh | batch | arguments | temporaries | needed / HBM | TFLOP | sent "
        "| decode loop: sent, largest all-gather | compiled in s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print(*lines, sep="\n", flush=True)

    seconds = []
    for recipe, topology, layers in ROWS:
        config = recipe.get_config()
        if layers:
            config.model.text_config.num_hidden_layers = layers
        chip, devices = planning.find_devices(topology)
        mesh = make_mesh(config.mesh, devices)
        made = planning.plan_step(config, planning.read_model(config), mesh, clips)
        sent = sum(one.sent * one.times for one in made.collectives)
        cells = [
            f"{recipe.__name__.removeprefix('vpjax.recipes.')}{f', {layers} layers' if layers else ''}",
            topology,
            tuple(mesh.shape.values()),
            config.batch,
            f"{made.arguments / GIB:.2f}",
            f"{made.temporaries / GIB:.2f}",
            f"{made.over or f'{made.needed / GIB:.2f}'} / {chip.memory:g}",
            f"{made.flops / 1e12:.1f}",
            f"{sent / GIB:.1f}",
            decoding(made, config.grpo.max_new) if config.method == "grpo" else "",
            f"{made.seconds:.0f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
        print(lines[-1], flush=True)
        seconds.append(made.seconds)
    lines.append(
        f"\n28 layers compile in {seconds[0] / seconds[1]:.2f} times the time of 4 (target: at most 1.5)."
    )
    print(lines[-1])
    keep(lines, args.out)


def decoding(made: planning.StepPlan, tokens: int) -> str:
    """What moves in the decode loop for one token. The weights of a layer would be some 400 MiB."""
    inside = [one for one in made.collectives if one.loops and one.loops[0] == tokens]
    sent = sum(one.sent * one.times for one in inside) / tokens
    gathered = max((one.result for one in inside if one.kind == "all-gather"), default=0)
    return f"{sent / GIB:.2f}, {gathered / 2**20:.1f} MiB"


if __name__ == "__main__":
    main()
