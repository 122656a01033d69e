"""The config of a run: its values checked, and a work directory kept to one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vpjax.data.video import MAX_PIXELS, MAX_SIDE, MIN_PIXELS
from vpjax.files import write_whole
from vpjax.models.attention import BACKENDS
from vpjax.training.losses import NEGATIVES
from vpjax.training.policy import AGGREGATIONS
from vpjax.training.relative import NEEDS, SCALES
from vpjax.types import TASKS, UserError

FILE = "config.json"
# Fields that may differ when a run is resumed: they change no number, except that another mesh rounds
# differently.
FREE = (
    "log_every",
    "checkpoint_every",
    "keep",
    "max_nonfinite",
    "grpo.show_every",
    "mesh.",
    "attention",
    "data.workers",
    "data.cache",
)
METHODS = ("sft", "grpo")
DTYPES = ("float32", "bfloat16")
# How the model of a Hugging Face folder is shown videos: at Qwen2.5-VL's own 2 frames per second, in no more
# frames than make about 25,000 tokens of the largest size.
HF_VIDEO_DEFAULTS = dict(
    frames=0,
    fps=2.0,
    max_frames=64,
    min_pixels=MIN_PIXELS,
    max_pixels=MAX_PIXELS,
    max_side=MAX_SIDE,
    tfio_python="",
    cache="",
    cache_gb=20.0,
    workers=0,
)


def check(config: ConfigDict) -> None:
    """UserError, naming the field, for a value that no run can have. Fields that a file or a device must be
    asked about are checked where they are used."""
    optim, contrast, grpo = config.optim, config.contrast, config.grpo
    needs = NEEDS.get(grpo.relative.kind, ())
    positive = "is a number above 0"
    wanted = {
        "method": (config.method in METHODS, f"is one of {', '.join(METHODS)}"),
        "steps": (config.steps > 0, positive),
        "batch": (config.batch > 0, positive),
        "accumulate": (
            config.accumulate > 0 and config.batch % config.accumulate == 0,
            f"divides batch, {config.batch}",
        ),
        "init_from": (
            bool(config.init_from) or bool(config.model),
            "is a folder with weights, or '' where config.model gives sizes",
        ),
        "dtype": (config.dtype in DTYPES, f"is one of {', '.join(DTYPES)}"),
        "attention": (config.attention in BACKENDS, f"is one of {', '.join(BACKENDS)}"),
        "log_every": (config.log_every > 0, positive),
        "checkpoint_every": (config.checkpoint_every > 0, positive),
        "keep": (config.keep > 0, positive),
        "eval_clips": (config.eval_clips > 0, positive),
        "max_nonfinite": (config.max_nonfinite >= 0, "is 0 or more"),
        "data.train": (bool(config.data.train), "is a file of clips, or 'events'"),
        "data.instructions": (
            set(config.data.instructions) <= set(TASKS),
            f"has texts for some of {', '.join(TASKS)}",
        ),
        "data.length_multiple": (config.data.length_multiple > 0, positive),
        "data.keywords": (config.data.keywords > 0, positive),
        "data.keyword_tokens": (config.data.keyword_tokens > 0, positive),
        "data.workers": (config.data.workers >= 0, "is 0 or more"),
        "data.widen": (config.data.widen >= 0, "is 0 or more"),
        "optim.lr": (optim.lr > 0, positive),
        "optim.warmup_share": (0 <= optim.warmup_share < 1, "lies in [0, 1)"),
        "optim.clip": (optim.clip > 0, positive),
        "optim.freeze": (all(isinstance(x, str) for x in optim.freeze), "holds path patterns"),
        "optim.lr_multipliers": (
            all(len(x) == 2 and isinstance(x[0], str) and x[1] >= 0 for x in optim.lr_multipliers),
            "holds pairs such as ('vision.*', 0.1)",
        ),
        "optim.moments_dtype": (optim.moments_dtype in DTYPES, f"is one of {', '.join(DTYPES)}"),
        "contrast.weight": (contrast.weight >= 0, "is 0 or more"),
        "contrast.layer": (0 < contrast.layer <= 1, "lies in (0, 1]"),
        "contrast.width": (contrast.width > 0, positive),
        "contrast.tau_range": (
            0 < contrast.tau_range[0] <= contrast.tau <= contrast.tau_range[1],
            f"is (least, most), above 0, around contrast.tau, {contrast.tau}",
        ),
        "contrast.negatives": (
            len(contrast.negatives) > 0 and set(contrast.negatives) <= set(NEGATIVES),
            f"holds some of {', '.join(NEGATIVES)}",
        ),
        "data.replacement": (
            config.data.replacement != "none"
            or config.method != "sft"
            or "degraded" not in contrast.negatives
            or not contrast.weight,
            "is 'none', which leaves no V~, only where contrast.negatives does not name 'degraded'",
        ),
        "grpo.groups": (grpo.groups >= 2, "is 2 or more: advantages compare the completions of a prompt"),
        "grpo.degraded": (
            grpo.degraded >= 0 and (grpo.degraded > 0 or not {"rollouts", "recall"} & set(needs)),
            f"is 1 or more where grpo.relative.kind is {grpo.relative.kind!r}, which looks at rollouts on V~",
        ),
        "grpo.train_on_degraded": (
            not grpo.train_on_degraded or grpo.degraded >= 2,
            "needs grpo.degraded of 2 or more",
        ),
        "grpo.rewards": (
            len(grpo.rewards) > 0 or config.method != "grpo",
            "names rewards, such as dict(event=1.0)",
        ),
        "grpo.temperature": (grpo.temperature > 0, positive),
        "grpo.top_p": (0 < grpo.top_p <= 1, "lies in (0, 1]"),
        "grpo.top_k": (grpo.top_k >= 0, "is 0 or more"),
        "grpo.max_new": (grpo.max_new > 0, positive),
        "grpo.scale": (grpo.scale in SCALES, f"is one of {', '.join(SCALES)}"),
        "grpo.aggregation": (grpo.aggregation in AGGREGATIONS, f"is one of {', '.join(AGGREGATIONS)}"),
        "grpo.eps_low": (0 < grpo.eps_low < 1, "lies in (0, 1)"),
        "grpo.eps_high": (grpo.eps_high > 0, positive),
        "grpo.beta": (grpo.beta >= 0, "is 0 or more"),
        "grpo.num_iterations": (grpo.num_iterations > 0, positive),
        "grpo.show_every": (grpo.show_every > 0, positive),
        "grpo.relative.kind": (grpo.relative.kind in NEEDS, f"is one of {', '.join(NEEDS)}"),
        "grpo.relative.w0": (0 <= grpo.relative.w0 <= 1, "lies in [0, 1]"),
        "grpo.relative.scale": (grpo.relative.scale > 0, positive),
        "loss.chunk": (config.loss.chunk > 0, positive),
    }
    for field, (right, what) in wanted.items():
        if not right:
            value = config
            for part in field.split("."):
                value = value[part]
            value = value.to_dict() if isinstance(value, ConfigDict) else value
            raise UserError(f"config.{field} {what}; it is {value!r}")


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """UserError where ``workdir`` holds a run with another config, naming the fields that differ."""
    path = workdir / FILE
    if not path.exists():
        return
    there, here = _flat(json.loads(path.read_text())), _flat(json.loads(config.to_json()))
    differ = [
        f"{name} is {here.get(name)!r}, there {there.get(name)!r}"
        for name in sorted(there.keys() | here.keys())
        if here.get(name) != there.get(name) and not name.startswith(FREE)
    ]
    if differ:
        raise UserError(f"{path} is of another run ({'; '.join(differ)}): give another --workdir")


def data_of(folder: Path) -> ConfigDict:
    """The fields ``data`` of configs/base.py by which the model in ``folder`` is shown videos: those of its
    run or, for a Hugging Face folder, HF_VIDEO_DEFAULTS."""
    path = folder / FILE
    run = json.loads(path.read_text()) if path.is_file() else {}
    return ConfigDict(run.get("data", HF_VIDEO_DEFAULTS))  # a Hugging Face config.json has none


def write(workdir: Path, config: ConfigDict) -> None:
    """Make ``workdir`` the home of the run of ``config``."""
    write_whole(workdir / FILE, (config.to_json(indent=2) + "\n").encode())


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    out = {}
    for name, value in config.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out
