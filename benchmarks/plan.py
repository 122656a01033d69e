"""What the 7B recipes need on TPU slices, and what their depth costs to compile; no TPU is needed.

    pip install -e '.[tpu]' && python -m benchmarks.plan [--out FILE]

Each row is ``python -m vpjax.plan`` on one recipe and topology, with that command's default clips. Compiling
takes minutes a row on a few cores.
"""

from __future__ import annotations

import argparse
import collections
from pathlib import Path

from benchmarks.timing import environment, keep
from configs import grpo_qwen2_5_vl_7b, sft_qwen2_5_vl_7b
from vpjax import planning
from vpjax.sharding import make_mesh

RECIPES = {"sft": sft_qwen2_5_vl_7b, "grpo": grpo_qwen2_5_vl_7b}
TOPOLOGIES = ("v5e:8x8", "v5p:2x4x4")
DEPTHS = (4, 28)
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    clips = planning.Clips(seconds=8.0, width=1280, height=720, text=64, answer=128)
    lines = [
        "# Plans",
        "",
        environment("jax", "jaxlib", "libtpu", "flax"),
        f"clips of {clips.seconds:g} s, {clips.width} x {clips.height}; text {clips.text} + {clips.answer}",
        "",
        "| recipe | topology | mesh | batch | arguments GiB | temporaries GiB | needed / HBM GiB "
        "| TFLOP a chip | all-gather, all-reduce GiB a chip | compiled in s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print(*lines, sep="\n", flush=True)

    def planned(method: str, topology: str, layers: int | None = None) -> planning.Plan:
        config = RECIPES[method].get_config()
        if layers:
            config.model.text_config.num_hidden_layers = layers
        chip, devices = planning.find_devices(topology)
        mesh = make_mesh(config.mesh, devices)
        made = planning.plan_step(config, planning.read_model(config), mesh, clips)
        sent = collections.Counter()
        for one in made.collectives:
            sent[one.kind] += one.sent * one.times
        row = (
            f"| {method}{f', {layers} layers' if layers else ''} | {topology} | {tuple(mesh.shape.values())} "
            f"| {config.batch} | {made.arguments / GIB:.2f} | {made.temporaries / GIB:.2f} "
            f"| {made.over or f'{made.needed / GIB:.2f}'} / {chip.memory:g} | {made.flops / 1e12:.1f} "
            f"| {sent['all-gather'] / GIB:.1f}, {sent['all-reduce'] / GIB:.1f} | {made.seconds:.0f} |"
        )
        print(row, flush=True)
        lines.append(row)
        return made

    for method in RECIPES:
        for topology in TOPOLOGIES:
            planned(method, topology)
    shallow, deep = (planned("sft", TOPOLOGIES[0], layers).seconds for layers in DEPTHS)
    lines.append(f"\n28 layers compile in {deep / shallow:.2f} times the time of 4 (target: at most 1.5).")
    print(lines[-1])
    keep(lines, args.out)


if __name__ == "__main__":
    main()
