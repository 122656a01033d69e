"""The config of a run: checks of its values, and its file in the work directory."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from ml_collections import ConfigDict

from vpjax.data.looks import TwoLooks, prompts_a_clip
from vpjax.data.processors import read_sampling
from vpjax.data.sampling import FACTOR, MAX_PIXELS, MIN_PIXELS, Pick
from vpjax.data.text import TrainTurns
from vpjax.data.video import MAX_SIDE
from vpjax.files import read_object, write_whole
from vpjax.models.attention import BACKENDS
from vpjax.models.lora import BASE_DTYPES
from vpjax.models.remat import REMATS
from vpjax.recipes import base
from vpjax.scoring.judge import weights_of
from vpjax.training.judged import correct_reward
from vpjax.training.losses import ANSWER_KINDS, NEGATIVES
from vpjax.training.optimizer import OPTIMIZERS
from vpjax.training.policy import AGGREGATIONS
from vpjax.training.relative import NEEDS, REWARD_AGGREGATIONS, SCALES
from vpjax.training.writer import TRACKERS
from vpjax.types import TASKS, UserError

FILE = "config.json"
# Fields that may differ when a run is resumed: they change no result, except that another mesh rounds
# differently.
MAY_CHANGE = tuple(
    """
    log_every checkpoint_every keep max_nonfinite grpo.show_every mesh. attention remat memory data.workers
    data.cache data.max_missed_share data.schemes compile_cache eval_every patience log_to profile
    """.split()
)
DTYPES = ("float32", "bfloat16")
ONE_OF = {
    "method": ("sft", "grpo"),
    "dtype": DTYPES,
    "attention": BACKENDS,
    "remat": REMATS,
    "data.train_turns": get_args(TrainTurns),
    "data.pick": get_args(Pick),
    "looks.pick": get_args(Pick),
    "optim.name": OPTIMIZERS,
    "optim.moments_dtype": DTYPES,
    "lora.base_dtype": BASE_DTYPES,
    "contrast.answer_kind": ANSWER_KINDS,
    "grpo.rollout_dtype": BASE_DTYPES,
    "grpo.scale": SCALES,
    "grpo.aggregation": AGGREGATIONS,
    "grpo.reward_aggregation": REWARD_AGGREGATIONS,
    "grpo.relative.kind": tuple(NEEDS),
}
# What GRPO of two looks has of fields that say how prompts are rolled out and updated on. V~ has no part in
# it: the windows that do not show the event are what hides it.
LOOKS_HAVE: dict[str, Any] = {
    "grpo.aggregation": "dr_grpo",
    "grpo.reward_aggregation": "sum_then_normalize",
    "grpo.degraded": 0,
    "grpo.relative.kind": "none",
    "grpo.oversample": 1,
    "grpo.num_iterations": 1,
    "grpo.num_minibatches": 1,
    "grpo.beta": 0,
    "mesh.context": 1,  # windows are short, and of a window's score there are two answers only
}
ABOVE_0 = """
    steps batch log_every checkpoint_every keep eval_clips eval_part data.length_multiple data.keywords
    data.keyword_tokens optim.lr optim.clip contrast.width contrast.answer_beta
    grpo.temperature grpo.max_new grpo.eps_high grpo.num_iterations grpo.num_minibatches
    grpo.looks.temperature
    grpo.oversample grpo.show_every grpo.degraded_weight grpo.relative.scale loss.chunk data.min_frames
    data.min_pixels lora.alpha looks.tokens looks.again looks.frames looks.scan_pixels looks.pixels
""".split()
AT_LEAST_0 = """
    memory max_nonfinite eval_every patience tokens_per_second data.workers data.widen data.total_pixels
    contrast.weight contrast.lr contrast.answer contrast.truth grpo.degraded grpo.top_k grpo.beta lora.rank
    looks.windows looks.wrong looks.closer grpo.looks.overlap grpo.looks.gain
""".split()
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
    """UserError, naming the field, for an invalid value. Values that depend on a file or a device are checked
    where they are used."""
    data, optim, lora = config.data, config.optim, config.lora
    contrast, grpo = config.contrast, config.grpo

    def require(field: str, valid: bool, requirement: str) -> None:
        if not valid:
            raise UserError(f"config.{field} {requirement}; it is {_value(config, field)!r}")

    for field in ABOVE_0:
        require(field, _value(config, field) > 0, "is a number above 0")
    for field in AT_LEAST_0:
        require(field, _value(config, field) >= 0, "is 0 or more")
    for field, choices in ONE_OF.items():
        require(field, _value(config, field) in choices, f"is one of {', '.join(choices)}")

    divides = config.accumulate > 0 and config.batch % config.accumulate == 0
    require("accumulate", divides, f"divides batch, {config.batch}")
    whole = f"times accumulate, {config.accumulate}, divides batch, {config.batch}"
    require("grpo.num_minibatches", config.batch % micro_batches(config) == 0, whole)
    is_given = bool(config.init_from or config.model)
    require("init_from", is_given, "is a folder with weights, or '' where config.model gives sizes")
    require("data.train", bool(data.train), "is a file of clips, or 'events'")
    for unit in ("frames", "pixels"):
        least = data[f"min_{unit}"]
        require(f"data.max_{unit}", data[f"max_{unit}"] >= least, f"is data.min_{unit}, {least}, or more")
    parts = 2 * config.mesh.get("context", 1)
    require("mesh.context", parts >= 2, "is 1 or more")
    is_whole = parts == 2 or data.length_multiple % parts == 0
    require("data.length_multiple", is_whole, f"is a multiple of {parts}, twice config.mesh.context")
    require("data.max_missed_share", 0 <= data.max_missed_share <= 1, "lies in [0, 1]")
    tasks = f"has texts for some of {', '.join(TASKS)}"
    require("data.instructions", set(data.instructions) <= set(TASKS), tasks)

    least, most = config.looks.seconds
    require("looks.seconds", 0 < least <= most, "is (least, most) with 0 < least <= most")

    _check_evaluation(config, require)
    require("optim.warmup_share", 0 <= optim.warmup_share < 1, "lies in [0, 1)")
    are_patterns = all(isinstance(pattern, str) for pattern in optim.freeze)
    require("optim.freeze", are_patterns, "holds path patterns")
    are_pairs = all(len(x) == 2 and isinstance(x[0], str) and x[1] >= 0 for x in optim.lr_multipliers)
    require("optim.lr_multipliers", are_pairs, "holds pairs such as ('vision.*', 0.1)")

    require("lora.rank", isinstance(lora.rank, int), "is a whole number")
    targets = bool(lora.targets) and all(isinstance(pattern, str) for pattern in lora.targets)
    require("lora.targets", targets, "holds patterns of layers, such as ('decoder.layers.*',)")
    has_base = lora.base_dtype == "dtype" or lora.rank > 0
    require("lora.base_dtype", has_base, "is 'dtype' where lora.rank is 0")
    require("lora.init_from", not lora.init_from or lora.rank > 0, "is '' where lora.rank is 0")

    require("contrast.layer", 0 < contrast.layer <= 1, "lies in (0, 1]")
    lowest, highest = contrast.tau_range
    around = f"is (least, most), above 0, around contrast.tau, {contrast.tau}"
    require("contrast.tau_range", 0 < lowest <= contrast.tau <= highest, around)
    negatives = set(contrast.negatives)
    known = bool(negatives) and negatives <= set(NEGATIVES)
    require("contrast.negatives", known, f"holds some of {', '.join(NEGATIVES)}")
    needs_degraded = config.method == "sft" and contrast.weight and "degraded" in negatives
    require(
        "data.replacement",
        data.replacement != "none" or not needs_degraded,
        "is 'none', which leaves no V~, only where contrast.negatives does not name 'degraded'",
    )
    require("contrast.truth_share", 0 < contrast.truth_share <= 1, "lies above 0 and up to 1")
    leaves_some = contrast.truth_share < 1 or not (contrast.truth and contrast.answer)
    rest = "is below 1 where contrast.answer compares the clips that are left"
    require("contrast.truth_share", leaves_some, rest)
    has_degraded = data.replacement != "none" or config.method != "sft" or not contrast.answer
    require("contrast.answer", has_degraded, "compares V with V~, which data.replacement='none' leaves out")
    hides_event = data.replacement == "key" or config.method != "sft" or not contrast.truth
    require("contrast.truth", hides_event, "needs data.replacement='key': only that V~ hides the event")

    enough = "is 2 or more: advantages compare the completions of a prompt"
    require("grpo.groups", grpo.groups >= 2, enough)
    devices = config.mesh.get("context", 1)
    splits = config.method == "sft" or max(grpo.groups, grpo.degraded) % devices == 0
    shared = f"or grpo.degraded, whichever is more, is a multiple of config.mesh.context, {devices}"
    require("grpo.groups", splits, shared)
    kind = grpo.relative.kind
    minimum = 1 if {"rollouts", "recall"} & set(NEEDS[kind]) else 0
    reads = f"is 1 or more where grpo.relative.kind is {kind!r}, which looks at rollouts on V~"
    require("grpo.degraded", grpo.degraded >= minimum, reads)
    require("grpo.stop_share", 0 < grpo.stop_share <= 1, "lies above 0 and up to 1")
    cap = grpo.importance_cap
    require("grpo.importance_cap", cap == 0 or cap >= 1, "is 0, for no weights, or 1 or more")
    weighs = "is 1 or more where grpo.rollout_dtype='int8' samples with other weights than are trained"
    require("grpo.importance_cap", cap > 0 or grpo.rollout_dtype == "dtype", weighs)
    require("grpo.top_p", 0 < grpo.top_p <= 1, "lies in (0, 1]")
    require("grpo.eps_low", 0 < grpo.eps_low <= 1, "lies above 0 and up to 1")
    require("grpo.relative.w0", 0 <= grpo.relative.w0 <= 1, "lies in [0, 1]")
    require("grpo.control_share", 0 <= grpo.control_share <= 1, "lies in [0, 1]")
    if config.method == "grpo":
        _check_rewards(config, require)
        if config.looks.windows:
            _check_looks(config, require)


def _check_evaluation(config: ConfigDict, require: Callable[[str, bool, str], None]) -> None:
    """The part of ``check`` that is about what a run tells while it trains."""
    needs = "is 0 unless data.heldout names clips to evaluate"
    require("eval_every", bool(config.data.heldout) or not config.eval_every, needs)
    measured = "is '' unless eval_every has the held-out clips evaluated"
    require("keep_best", bool(config.eval_every) or not config.keep_best, measured)
    followed = "is 0 unless keep_best names the metric that it waits for"
    require("patience", bool(config.keep_best) or not config.patience, followed)
    places = ("tensorboard", *TRACKERS)
    require("log_to", set(config.log_to) <= set(places), f"holds some of {', '.join(places)}")
    first, last = config.profile if len(config.profile) == 2 else (1, 1)
    is_range = len(config.profile) in (0, 2) and 1 <= first <= last
    require("profile", is_range, "is (first, last), two steps of the run, or ()")


def rows_per_step(config: ConfigDict) -> int:
    """The rows that a step reads: those of its update or, in GRPO, the prompts that are rolled out for it."""
    return config.batch * config.grpo.oversample if config.method == "grpo" else config.batch


def micro_batches(config: ConfigDict) -> int:
    """The parts of a batch that are computed one after another: the micro-batches of all its mini-batches."""
    return config.accumulate * config.grpo.num_minibatches if config.method == "grpo" else config.accumulate


def _check_rewards(config: ConfigDict, require: Callable[[str, bool, str], None]) -> None:
    """The part of ``check`` that is about the rewards of completions on V and on V~."""
    grpo, replacement, kind = config.grpo, config.data.replacement, config.grpo.relative.kind
    require("grpo.rewards", len(grpo.rewards) > 0, "names rewards, such as dict(event=1.0)")
    for name, value in grpo.rewards.items():
        forms = "is a weight, 'my_module:fn', or ('my_module:fn', weight)"
        require(f"grpo.rewards.{name}", _is_reward(value), forms)
    own = "names keyword_absent, which is for completions on V~: move it to grpo.degraded_rewards"
    require("grpo.rewards", "keyword_absent" not in grpo.rewards, own)

    correct, names = correct_reward(grpo), ", ".join(grpo.rewards)
    means_right = f"names the reward that means right, one of {names}"
    require("grpo.relative.correct", correct is None or correct in grpo.rewards, means_right)
    known = correct is not None or "right" not in NEEDS[kind]
    require("grpo.relative.correct", known, f"{means_right}, where grpo.relative.kind is {kind!r}")
    weighs = correct is None or weights_of(grpo.rewards)[correct] > 0
    require("grpo.rewards", weighs, f"gives {correct}, which means right, a weight above 0")

    degraded = grpo.degraded_rewards
    has_group = not degraded or grpo.degraded >= 2
    require("grpo.degraded", has_group, "is 2 or more where grpo.degraded_rewards trains groups on V~")
    are_numbers = all(isinstance(weight, int | float) for weight in degraded.values())
    require("grpo.degraded_rewards", are_numbers, "has a number for each built-in reward that it names")
    trains = not degraded or any(weight != 0 for weight in degraded.values())
    require("grpo.degraded_rewards", trains, "gives one of its rewards a weight other than 0")
    weighs_groups = bool(degraded) or grpo.degraded_weight == 1
    require("grpo.degraded_weight", weighs_groups, "is 1 unless grpo.degraded_rewards trains groups on V~")
    shown = "does not name keyword_removed: V~ shows no hidden keyword"
    require("grpo.degraded_rewards", "keyword_removed" not in degraded, shown)

    require("data.pool", config.data.pool == "key", "is 'key' in GRPO, which pools nothing")
    uses_degraded = kind != "none" or bool(degraded)
    without = "is not 'none', which leaves no V~, where grpo.relative.kind or grpo.degraded_rewards need it"
    require("data.replacement", replacement != "none" or not uses_degraded, without)
    readers = {
        f"grpo.relative.kind={kind!r}": bool({"recall", "keyword", "same"} & set(NEEDS[kind])),
        "grpo.rewards.keyword_removed": "keyword_removed" in grpo.rewards,
        "grpo.degraded_rewards": bool(degraded),
        "grpo.control_share": grpo.control_share > 0,
    }
    for reader, is_used in readers.items():
        hides = f"is 'key' where {reader} is used: a V~ of any other kind hides no keyword"
        require("data.replacement", replacement == "key" or not is_used, hides)
    reads_controls = bool(degraded) or "same" in NEEDS[kind]
    unread = (
        "is 0 unless grpo.degraded_rewards or grpo.relative.kind='relation' read clips whose V~ hides nothing"
    )
    require("grpo.control_share", reads_controls or not grpo.control_share, unread)


def prompts_together(config: ConfigDict) -> int:
    """The prompts of a batch that belong together: in GRPO of two looks those of a long clip."""
    if config.method == "grpo" and config.looks.windows:
        return prompts_a_clip(config.looks)
    return 1


def _check_looks(config: ConfigDict, require: Callable[[str, bool, str], None]) -> None:
    """The part of ``check`` that is about GRPO of two looks."""
    clip = prompts_together(config)
    enough = "is 1 or more in GRPO of two looks (looks.windows), which learns to choose between windows"
    require("looks.wrong", config.looks.wrong >= 1, enough)
    part = clip * config.accumulate
    whole = f"is a multiple of {part}: looks.windows and looks.wrong make {clip} prompts a clip"
    require("batch", config.batch % part == 0, f"{whole}, in accumulate parts")
    for field, only in LOOKS_HAVE.items():
        rule = f"is {only!r} in GRPO of two looks (looks.windows above 0)"
        require(field, _value(config, field) == only, rule)
    is_known = correct_reward(config.grpo) is not None
    names = ", ".join(config.grpo.rewards)
    gains = f"names the reward that means right, one of {names}, by which second looks gain on first ones"
    require("grpo.relative.correct", is_known, gains)


def _is_reward(value: Any) -> bool:
    """Whether ``value`` has one of the forms of ``config.grpo.rewards``."""
    if isinstance(value, str):
        return ":" in value
    if isinstance(value, tuple | list):
        return len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int | float)
    return isinstance(value, int | float)


def _value(config: ConfigDict, field: str) -> Any:
    """The value of a field such as ``optim.lr``."""
    value = config
    for name in field.split("."):
        value = value[name]
    return value.to_dict() if isinstance(value, ConfigDict) else value


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
        if requested.get(name) != stored.get(name) and not name.startswith(MAY_CHANGE)
    ]
    if differences:
        path = workdir / FILE
        raise UserError(f"{path} is of another run ({'; '.join(differences)}): give another --workdir")


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


def by_dotted_name(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            fields |= by_dotted_name(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields
