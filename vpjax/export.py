"""Write a run's model as a Hugging Face folder, which transformers, vLLM, SGLang and lmms-eval load:

python -m vpjax.export --workdir DIR --out DIR [--step N] [--dtype bfloat16] [--check]
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from vpjax import cli, exporting
from vpjax.training import run_config

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a run.")
OUT = flags.DEFINE_string("out", None, "Folder to write.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint; default: the newest.", 0)
DTYPE = flags.DEFINE_enum("dtype", None, run_config.DTYPES, "Of the weights; default: as in the checkpoint.")
CHECK = flags.DEFINE_bool("check", False, "Load the folder back and compare logits, with transformers' too.")
flags.adopt_module_key_flags(cli)


def main() -> int:
    cli.require(WORKDIR, OUT)
    out = Path(OUT.value)
    model = exporting.export(Path(WORKDIR.value), out, step=STEP.value, dtype=DTYPE.value)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}", flush=True)
    if CHECK.value:
        print(*exporting.check(model, out), sep="\n")
    return cli.OK


if __name__ == "__main__":
    cli.run(main)
