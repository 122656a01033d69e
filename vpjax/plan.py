"""Say before anything is rented whether a run fits, and what it would take:

    python -m vpjax.plan --config configs/sft_qwen2_5_vl_7b.py --topology v5e:8x8 [--find_batch]

Compiles the run's real step for these chips, from shapes alone and without the chips (TPUs: ``pip install
'vpjax[tpu]'``), and prints each chip's memory against what it has, the work, the collectives, an estimate of
the step's time, and what to change where it does not fit. cpu:N takes N virtual devices of this machine.

The model's sizes are those of the folder ``config.init_from``, of which only config.json is read, or else of
``config.model``. The batch is what clips of ``--seconds`` and ``--video`` make of ``config.data``.
"""

from __future__ import annotations

import re

from absl import flags

from vpjax import cli
from vpjax.models.sharding import make_mesh, row_parts
from vpjax.planning import Clips, find_devices, fit, largest, plan_step, read_model, report, with_batch
from vpjax.training import run_config
from vpjax.types import UserError

CONFIG = cli.define_config()
TOPOLOGY = flags.DEFINE_string("topology", None, "Chips, such as v5e:8x8, v5p:4x4x4, v6e:4x4 or cpu:8.")
FIND = flags.DEFINE_bool("find_batch", False, "Find the largest batch that fits; each try compiles anew.")
USUAL = Clips()
SECONDS = flags.DEFINE_float("seconds", USUAL.seconds, "Length of a clip.", 0.0)
VIDEO = flags.DEFINE_string("video", f"{USUAL.width}x{USUAL.height}", "Width and height of a clip in pixels.")
TEXT = flags.DEFINE_integer("text", USUAL.text, "Tokens of a prompt beside the video's.", 1)
ANSWER = flags.DEFINE_integer(
    "answer", USUAL.answer, "Tokens of an answer; GRPO's completions have config.grpo.max_new.", 1
)
flags.adopt_module_key_flags(cli)


def main() -> int:
    cli.require(TOPOLOGY)
    config = CONFIG.value
    run_config.check(config)
    chip, devices = find_devices(TOPOLOGY.value)
    mesh = make_mesh(config.mesh, devices)
    model = read_model(config)
    if not re.fullmatch(r"\d+x\d+", VIDEO.value):
        raise UserError(f"--video={VIDEO.value}: give width x height in pixels, such as 1280x720")
    clips = Clips(SECONDS.value, *map(int, VIDEO.value.split("x")), TEXT.value, ANSWER.value)
    if FIND.value:
        unit = row_parts(mesh) * config.accumulate

        def fits(batch: int) -> bool:
            plan = plan_step(with_batch(config, batch), model, mesh, clips)
            print(f"batch {batch}: {'fits' if fit(plan, chip) else 'does not fit'}", flush=True)
            return fit(plan, chip)

        best = largest(fits, unit)
        if not best:
            raise UserError(f"not even a batch of {unit}, one row for each chip, fits {TOPOLOGY.value}")
        config = with_batch(config, best)
    plan = plan_step(config, model, mesh, clips)
    print(report(plan, config, chip, mesh, TOPOLOGY.value))
    return cli.OK


if __name__ == "__main__":
    cli.run(main)
