"""The config of a run: whether its values make sense, what follows from them, and its file in the work
directory."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vpjax.data.looks import TwoLooks, prompts_a_clip
from vpjax.data.processors import read_sampling
from vpjax.data.sampling import FACTOR, MAX_PIXELS, MIN_PIXELS
from vpjax.data.video import MAX_SIDE
from vpjax.files import read_object, write_whole
from vpjax.recipes import base
from vpjax.training.config_rules import by_dotted_name, rules, value_of
from vpjax.types import UserError

FILE = "config.json"
# Fields, and sections with a dot after them, that may differ when a run is resumed: they change no result,
# except that another mesh rounds differently.
MAY_CHANGE = frozenset(
    """
    log_every checkpoint_every keep max_nonfinite grpo.show_every mesh. attention remat memory data.workers
    data.cache data.cache_gb data.max_missed_share data.schemes compile_cache eval_every patience log_to
    profile
    """.split()
)
# Sections whose fields have names of the user's own, of a config.json, or are some of another section's.
OWN_NAMES = tuple(
    f"config.{name}"
    for name in """
    model data.instructions events_heldout long_heldout grpo.rewards grpo.degraded_rewards
    """.split()
)
# How videos are read for the model of a Hugging Face folder that does not say: as by qwen-vl-utils, at 2
# frames per second and with at most about 25,000 visual tokens. Small frames are left small, though.
HF_VIDEO_DEFAULTS = dict(
    frames=0,
    fps=2.0,
    min_frames=4,
    max_frames=768,
    min_pixels=MIN_PIXELS,
    max_pixels=MAX_PIXELS,
    total_pixels=24576 * FACTOR**2,
    max_side=MAX_SIDE,
    tfio_python="",
    cache="",
    cache_gb=20.0,
    workers=0,
)

# How a video is looked at twice for such a model: 16 windows of 112 x 112 pixels, then one of 448 x 448.
HF_LOOKS = dict(tokens=4096, again=1, frames=16, scan_pixels=112**2, pixels=448**2, pick="change")


def check(config: ConfigDict) -> None:
    """UserError, naming the field, for an invalid value, and for a field that is unknown or missing. Values
    that depend on a file or a device are checked where they are used."""
    check_fields(config, base.get_config())
    for field, is_met, requirement in rules(config):
        if not is_met:
            raise UserError(f"config.{field} {requirement}; it is {value_of(config, field)!r}")


def check_fields(config: ConfigDict, known: ConfigDict, section: str = "config") -> None:
    """UserError unless a section of a config has the fields that are ``known``, and no others."""
    for name in config:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise UserError(f"{section}.{name} is no field; {hint}")
    for name, default in known.items():
        field = f"{section}.{name}"
        if name not in config:
            raise UserError(f"{field} is missing: let the config begin with that of vpjax.recipes.base")
        if isinstance(default, ConfigDict):
            if not isinstance(config[name], ConfigDict):
                raise UserError(f"{field} is a section of fields; it is {config[name]!r}")
            if field not in OWN_NAMES:
                check_fields(config[name], default, field)


def rows_per_step(config: ConfigDict) -> int:
    """The rows that a step reads: those of its update or, in GRPO, the prompts that are rolled out for it."""
    return config.batch * config.grpo.oversample if config.method == "grpo" else config.batch


def micro_batches(config: ConfigDict) -> int:
    """The parts of a batch that are computed one after another: the micro-batches of all its mini-batches."""
    return config.accumulate * config.grpo.num_minibatches if config.method == "grpo" else config.accumulate


def prompts_together(config: ConfigDict) -> int:
    """The prompts of a batch that belong together: in GRPO of two looks those of a long clip."""
    if config.method == "grpo" and config.looks.windows:
        return prompts_a_clip(config.looks)
    return 1


def read(folder: Path) -> dict[str, Any]:
    """The fields of ``<folder>/config.json``; {} if there is no such file. UserError if it is damaged."""
    path = folder / FILE
    if not path.is_file():
        return {}
    return read_object(path, "bring back a copy of it")


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """UserError, naming the fields that differ, if ``workdir`` holds a run with another config. A field that
    an older vpjax did not have is as if it were at its default: new ones change nothing there."""
    stored = by_dotted_name(read(workdir))
    if not stored:
        return
    requested = by_dotted_name(json.loads(config.to_json()))
    defaults = by_dotted_name(json.loads(base.get_config().to_json()))
    stored |= {name: defaults.get(name) for name in requested.keys() - stored.keys()}
    differences = [
        f"{name} is {requested.get(name)!r}, there {stored.get(name)!r}"
        for name in sorted(stored.keys() | requested.keys())
        if requested.get(name) != stored.get(name) and not may_change(name)
    ]
    if differences:
        path = workdir / FILE
        raise UserError(f"{path} is of another run ({'; '.join(differences)}): give another --workdir")


def may_change(name: str) -> bool:
    """Whether a field, by its dotted name, may differ when a run is resumed."""
    section, dot, _ = name.partition(".")
    return name in MAY_CHANGE or section + dot in MAY_CHANGE


def data_of(folder: Path) -> ConfigDict:
    """The ``data`` section (see configs/base.py) by which videos are read for the model in ``folder``: that
    of its run or, for a Hugging Face folder, what its video processor says. What neither says is as in
    HF_VIDEO_DEFAULTS."""
    own = read(folder).get("data") or read_sampling(folder)  # a Hugging Face config.json has no "data"
    return ConfigDict(HF_VIDEO_DEFAULTS | own)


def looks_of(folder: Path, fields: Mapping[str, int] | None = None) -> TwoLooks:
    """How the model in ``folder`` looks twice at a video: as its run's section ``looks`` says or, for a
    Hugging Face folder, as in HF_LOOKS. fields: that replace these."""
    own: dict[str, Any] = HF_LOOKS | read(folder).get("looks", {})
    values = {field.name: own[field.name] for field in dataclasses.fields(TwoLooks)}
    return TwoLooks(**values | dict(fields or {}))


def write(workdir: Path, config: ConfigDict) -> None:
    """Write ``<workdir>/config.json``, which reserves ``workdir`` for this run."""
    write_whole(workdir / FILE, (config.to_json(indent=2) + "\n").encode())
