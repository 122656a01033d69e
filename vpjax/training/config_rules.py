"""The rules that a config must meet (``run_config.check``), one after another, each with its message."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, get_args

from ml_collections import ConfigDict

from vpjax.data.looks import prompts_a_clip
from vpjax.data.sampling import Pick
from vpjax.data.text import TrainTurns
from vpjax.models.attention import BACKENDS
from vpjax.models.lora import BASE_DTYPES
from vpjax.models.remat import REMATS
from vpjax.scoring.judge import weights_of
from vpjax.training.judged import correct_reward
from vpjax.training.losses import ANSWER_KINDS, NEGATIVES
from vpjax.training.optimizer import OPTIMIZERS
from vpjax.training.policy import AGGREGATIONS
from vpjax.training.relative import NEEDS, REWARD_AGGREGATIONS, SCALES
from vpjax.training.writer import TRACKERS
from vpjax.types import TASKS

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
    data.keyword_tokens optim.lr optim.eps optim.clip contrast.width contrast.answer_beta
    grpo.temperature grpo.max_new grpo.eps_high grpo.num_iterations grpo.num_minibatches
    grpo.looks.temperature
    grpo.oversample grpo.show_every grpo.degraded_weight grpo.relative.scale loss.chunk data.min_frames
    data.min_pixels lora.alpha looks.tokens looks.again looks.frames looks.scan_pixels looks.pixels
""".split()
AT_LEAST_0 = """
    seed memory max_nonfinite eval_every patience tokens_per_second data.workers data.widen data.total_pixels
    data.cache_gb data.row_tokens optim.weight_decay optim.end_lr_share
    events.train events.heldout events.unseen long.train long.heldout
    contrast.weight contrast.lr contrast.answer contrast.truth grpo.degraded grpo.top_k grpo.beta lora.rank
    grpo.relative.clip looks.windows looks.wrong looks.closer grpo.looks.overlap grpo.looks.gain
""".split()
SHARES = """
    contrast.warmup_share data.max_fault_share data.max_missed_share grpo.relative.w0 grpo.control_share
""".split()
# Limits, of which infinity is none. No other number may be infinite, and none NaN.
LIMITS = ("optim.clip", "grpo.eps_high", "grpo.importance_cap", "grpo.relative.clip")


class Rule(NamedTuple):
    """What a field must be. requirement: the end of a sentence that begins with ``config.<field>``."""

    field: str
    is_met: bool
    requirement: str


def rules(config: ConfigDict) -> Iterator[Rule]:
    """All rules. Each is made only once those before it are known to be met, so that it may rely on them."""
    yield from _rules_of_one_field(config)
    yield from _rules_of_batches(config)
    yield from _rules_of_data(config)
    yield from _rules_of_evaluation(config)
    yield from _rules_of_optimizer(config)
    yield from _rules_of_adapters(config)
    yield from _rules_of_contrast(config)
    yield from _rules_of_rollouts(config)
    if config.method == "grpo":
        yield from _rules_of_rewards(config)
        yield from _rules_of_degraded_rewards(config)
        if config.looks.windows:
            yield from _rules_of_looks(config)


def _rules_of_one_field(config: ConfigDict) -> Iterator[Rule]:
    for field, value in by_dotted_name(config.to_dict()).items():
        if isinstance(value, int | float):
            is_finite = math.isfinite(value) or (field in LIMITS and value == math.inf)
            yield Rule(field, is_finite, "is a finite number")
    for field in ABOVE_0:
        yield Rule(field, value_of(config, field) > 0, "is a number above 0")
    for field in AT_LEAST_0:
        yield Rule(field, value_of(config, field) >= 0, "is 0 or more")
    for field in SHARES:
        yield Rule(field, 0 <= value_of(config, field) <= 1, "lies in [0, 1]")
    for field, choices in ONE_OF.items():
        yield Rule(field, value_of(config, field) in choices, f"is one of {', '.join(choices)}")


def _rules_of_batches(config: ConfigDict) -> Iterator[Rule]:
    batch, accumulate = config.batch, config.accumulate
    divides = accumulate > 0 and batch % accumulate == 0
    yield Rule("accumulate", divides, f"divides batch, {batch}")
    if config.method == "grpo":
        divides = batch % (config.grpo.num_minibatches * accumulate) == 0
        product = f"times accumulate, {accumulate}, divides batch, {batch}"
        yield Rule("grpo.num_minibatches", divides, product)


def _rules_of_data(config: ConfigDict) -> Iterator[Rule]:
    """Weights, clips, and the tokens of a row, which may lie on several devices."""
    data, devices = config.data, config.mesh.get("context", 1)
    has_model = bool(config.init_from or config.model)
    yield Rule("init_from", has_model, "is a folder with weights, or '' where config.model gives sizes")
    yield Rule("data.train", bool(data.train), "is a file of clips, or 'events'")
    for unit in ("frames", "pixels"):
        least, most = data[f"min_{unit}"], data[f"max_{unit}"]
        yield Rule(f"data.max_{unit}", most >= least, f"is data.min_{unit}, {least}, or more")
    yield Rule("mesh.context", devices >= 1, "is 1 or more")
    if devices > 1:
        part = 2 * devices
        multiple = f"is a multiple of {part}, twice config.mesh.context"
        yield Rule("data.length_multiple", data.length_multiple % part == 0, multiple)
    tasks = f"has texts for some of {', '.join(TASKS)}"
    yield Rule("data.instructions", set(data.instructions) <= set(TASKS), tasks)
    seconds = config.looks.seconds
    is_range = _are_two_numbers(seconds) and 0 < seconds[0] <= seconds[1]
    yield Rule("looks.seconds", is_range, "is (least, most) with 0 < least <= most")


def _rules_of_evaluation(config: ConfigDict) -> Iterator[Rule]:
    """What a run tells while it trains."""
    if config.eval_every:
        needs = "is 0 unless data.heldout names clips to evaluate"
        yield Rule("eval_every", bool(config.data.heldout), needs)
    if config.keep_best:
        measured = "is '' unless eval_every has the held-out clips evaluated"
        yield Rule("keep_best", bool(config.eval_every), measured)
    if config.patience:
        followed = "is 0 unless keep_best names the metric that it waits for"
        yield Rule("patience", bool(config.keep_best), followed)
    places = ("tensorboard", *TRACKERS)
    yield Rule("log_to", set(config.log_to) <= set(places), f"holds some of {', '.join(places)}")
    steps = config.profile
    if steps:
        are_whole = all(isinstance(step, int) for step in steps)
        is_range = are_whole and len(steps) == 2 and 1 <= steps[0] <= steps[1] <= config.steps
        yield Rule("profile", is_range, "is (first, last), two steps of the run, or ()")


def _rules_of_optimizer(config: ConfigDict) -> Iterator[Rule]:
    optim = config.optim
    for field in ("warmup_share", "b1", "b2"):
        yield Rule(f"optim.{field}", 0 <= optim[field] < 1, "lies in [0, 1)")
    yield Rule("optim.freeze", _are_texts(optim.freeze), "holds path patterns")
    are_pairs = all(map(_is_multiplier, optim.lr_multipliers))
    yield Rule("optim.lr_multipliers", are_pairs, "holds pairs such as ('vision.*', 0.1)")


def _rules_of_adapters(config: ConfigDict) -> Iterator[Rule]:
    lora = config.lora
    yield Rule("lora.rank", isinstance(lora.rank, int), "is a whole number")
    are_patterns = bool(lora.targets) and _are_texts(lora.targets)
    yield Rule("lora.targets", are_patterns, "holds patterns of layers, such as ('decoder.layers.*',)")
    if lora.rank > 0:
        frozen = "is 'adamw' where lora.rank is above 0: adapters freeze the weights that Muon is for"
        yield Rule("optim.name", config.optim.name == "adamw", frozen)
    if lora.rank == 0:
        yield Rule("lora.base_dtype", lora.base_dtype == "dtype", "is 'dtype' where lora.rank is 0")
        yield Rule("lora.init_from", not lora.init_from, "is '' where lora.rank is 0")


def _rules_of_contrast(config: ConfigDict) -> Iterator[Rule]:
    """What SFT learns from V~. Only its own runs need the V~ that a loss reads."""
    contrast, replacement, is_sft = config.contrast, config.data.replacement, config.method == "sft"
    yield Rule("contrast.layer", 0 < contrast.layer <= 1, "lies in (0, 1]")
    taus = contrast.tau_range
    is_range = _are_two_numbers(taus) and 0 < taus[0] <= contrast.tau <= taus[1]
    around = f"is (least, most), above 0, around contrast.tau, {contrast.tau}"
    yield Rule("contrast.tau_range", is_range, around)
    negatives = set(contrast.negatives)
    are_known = bool(negatives) and negatives <= set(NEGATIVES)
    yield Rule("contrast.negatives", are_known, f"holds some of {', '.join(NEGATIVES)}")
    if is_sft and contrast.weight and "degraded" in negatives:
        unread = "is 'none', which leaves no V~, only where contrast.negatives does not name 'degraded'"
        yield Rule("data.replacement", replacement != "none", unread)
    yield Rule("contrast.truth_share", 0 < contrast.truth_share <= 1, "lies above 0 and up to 1")
    if contrast.truth and contrast.answer:
        rest = "is below 1 where contrast.answer compares the clips that are left"
        yield Rule("contrast.truth_share", contrast.truth_share < 1, rest)
    if is_sft and contrast.answer:
        compares = "compares V with V~, which data.replacement='none' leaves out"
        yield Rule("contrast.answer", replacement != "none", compares)
    if is_sft and contrast.truth:
        hides = "needs data.replacement='key': only that V~ hides the event"
        yield Rule("contrast.truth", replacement == "key", hides)


def _rules_of_rollouts(config: ConfigDict) -> Iterator[Rule]:
    """How GRPO samples completions and updates on them."""
    grpo, kind = config.grpo, config.grpo.relative.kind
    enough = "is 2 or more: advantages compare the completions of a prompt"
    yield Rule("grpo.groups", grpo.groups >= 2, enough)
    if config.method == "grpo":
        devices, most = config.mesh.get("context", 1), max(grpo.groups, grpo.degraded)
        shared = f"or grpo.degraded, whichever is more, is a multiple of config.mesh.context, {devices}"
        yield Rule("grpo.groups", most % devices == 0, shared)
    if {"rollouts", "recall"} & set(NEEDS[kind]):
        reads = f"is 1 or more where grpo.relative.kind is {kind!r}, which looks at rollouts on V~"
        yield Rule("grpo.degraded", grpo.degraded >= 1, reads)
    yield Rule("grpo.stop_share", 0 < grpo.stop_share <= 1, "lies above 0 and up to 1")
    cap = grpo.importance_cap
    yield Rule("grpo.importance_cap", cap == 0 or cap >= 1, "is 0, for no weights, or 1 or more")
    if grpo.rollout_dtype == "int8":
        weighs = "is 1 or more where grpo.rollout_dtype='int8' samples with other weights than are trained"
        yield Rule("grpo.importance_cap", cap > 0, weighs)
    yield Rule("grpo.top_p", 0 < grpo.top_p <= 1, "lies in (0, 1]")
    yield Rule("grpo.eps_low", 0 < grpo.eps_low <= 1, "lies above 0 and up to 1")


def _rules_of_rewards(config: ConfigDict) -> Iterator[Rule]:
    """The rewards of completions, and which of them means that an answer is right."""
    grpo, kind = config.grpo, config.grpo.relative.kind
    yield Rule("grpo.rewards", len(grpo.rewards) > 0, "names rewards, such as dict(event=1.0)")
    for name, value in grpo.rewards.items():
        forms = "is a weight, 'my_module:fn', or ('my_module:fn', weight)"
        yield Rule(f"grpo.rewards.{name}", _is_reward(value), forms)
    own = "names keyword_absent, which is for completions on V~: move it to grpo.degraded_rewards"
    yield Rule("grpo.rewards", "keyword_absent" not in grpo.rewards, own)

    correct = correct_reward(grpo)
    means_right = f"names the reward that means right, one of {', '.join(grpo.rewards)}"
    if correct is not None:
        yield Rule("grpo.relative.correct", correct in grpo.rewards, means_right)
        has_weight = weights_of(grpo.rewards)[correct] > 0
        yield Rule("grpo.rewards", has_weight, f"gives {correct}, which means right, a weight above 0")
    elif "right" in NEEDS[kind]:
        reads = f"{means_right}, where grpo.relative.kind is {kind!r}"
        yield Rule("grpo.relative.correct", False, reads)


def _rules_of_degraded_rewards(config: ConfigDict) -> Iterator[Rule]:
    """The rewards of completions on V~, and the V~ that these and others need."""
    grpo, kind, replacement = config.grpo, config.grpo.relative.kind, config.data.replacement
    degraded = grpo.degraded_rewards
    if degraded:
        groups = "is 2 or more where grpo.degraded_rewards trains groups on V~"
        yield Rule("grpo.degraded", grpo.degraded >= 2, groups)
        are_numbers = all(isinstance(weight, int | float) for weight in degraded.values())
        numbers = "has a number for each built-in reward that it names"
        yield Rule("grpo.degraded_rewards", are_numbers, numbers)
        trains = any(weight != 0 for weight in degraded.values())
        yield Rule("grpo.degraded_rewards", trains, "gives one of its rewards a weight other than 0")
    else:
        weighs = "is 1 unless grpo.degraded_rewards trains groups on V~"
        yield Rule("grpo.degraded_weight", grpo.degraded_weight == 1, weighs)
    shown = "does not name keyword_removed: V~ shows no hidden keyword"
    yield Rule("grpo.degraded_rewards", "keyword_removed" not in degraded, shown)

    yield Rule("data.pool", config.data.pool == "key", "is 'key' in GRPO, which pools nothing")
    if kind != "none" or degraded:
        reads = "is not 'none', which leaves no V~, where grpo.relative.kind or grpo.degraded_rewards need it"
        yield Rule("data.replacement", replacement != "none", reads)
    hides = {
        f"grpo.relative.kind={kind!r}": bool({"recall", "keyword", "same"} & set(NEEDS[kind])),
        "grpo.rewards.keyword_removed": "keyword_removed" in grpo.rewards,
        "grpo.degraded_rewards": bool(degraded),
        "grpo.control_share": grpo.control_share > 0,
    }
    for reader, is_used in hides.items():
        if is_used:
            key = f"is 'key' where {reader} is used: a V~ of any other kind hides no keyword"
            yield Rule("data.replacement", replacement == "key", key)
    if not degraded and "same" not in NEEDS[kind]:
        unread = (
            "is 0 unless grpo.degraded_rewards or grpo.relative.kind='relation' read clips whose V~ hides "
            "nothing"
        )
        yield Rule("grpo.control_share", not grpo.control_share, unread)


def _rules_of_looks(config: ConfigDict) -> Iterator[Rule]:
    """GRPO of two looks: its batches, and the fields that it leaves no choice of."""
    prompts = prompts_a_clip(config.looks)
    enough = "is 1 or more in GRPO of two looks (looks.windows), which learns to choose between windows"
    yield Rule("looks.wrong", config.looks.wrong >= 1, enough)
    part = prompts * config.accumulate
    whole = f"is a multiple of {part}: looks.windows and looks.wrong make {prompts} prompts a clip"
    yield Rule("batch", config.batch % part == 0, f"{whole}, in accumulate parts")
    for field, only in LOOKS_HAVE.items():
        rule = f"is {only!r} in GRPO of two looks (looks.windows above 0)"
        yield Rule(field, value_of(config, field) == only, rule)
    is_known = correct_reward(config.grpo) is not None
    names = ", ".join(config.grpo.rewards)
    gains = f"names the reward that means right, one of {names}, by which second looks gain on first ones"
    yield Rule("grpo.relative.correct", is_known, gains)


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _are_two_numbers(values: Sequence[Any]) -> bool:
    return len(values) == 2 and all(isinstance(value, int | float) for value in values)


def _is_multiplier(value: Any) -> bool:
    """Whether ``value`` is a pair of ``config.optim.lr_multipliers``."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    pattern, factor = value
    return isinstance(pattern, str) and isinstance(factor, int | float) and 0 <= factor < math.inf


def _is_reward(value: Any) -> bool:
    """Whether ``value`` has one of the forms of ``config.grpo.rewards``."""
    if isinstance(value, str):
        return ":" in value
    if isinstance(value, tuple | list):
        is_pair = len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int | float)
        return is_pair and math.isfinite(value[1])
    return isinstance(value, int | float)


def by_dotted_name(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            fields |= by_dotted_name(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def value_of(config: ConfigDict, field: str) -> Any:
    """The value of a field such as ``optim.lr``."""
    value = config
    for name in field.split("."):
        value = value[name]
    return value.to_dict() if isinstance(value, ConfigDict) else value
