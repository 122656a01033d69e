"""The parts that all commands share: flags, the config, exit codes, printing and signals."""

import argparse
import ast
import contextlib
import difflib
import errno
import gc
import importlib.resources
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import jax
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags

from vpjax import distributed
from vpjax.types import UserError

OK, DEFECT, MISTAKE, INTERRUPTED = 0, 1, 2, 130
# The user can correct these: a full, read-only or broken disk, limits of the size or number of files, missing
# permissions, a file in place of a folder, a name that is too long.
SURROUNDINGS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENAMETOOLONG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
)
RECIPES = "vpjax.recipes"  # the package that the folder configs/ is installed as
# What other trainers call a field, and its name here.
OTHER_NAMES = {
    "learning_rate": "optim.lr",
    "warmup_ratio": "optim.warmup_share",
    "max_grad_norm": "optim.clip",
    "batch_size": "batch",
    "train_batch_size": "batch",
    "per_device_train_batch_size": "batch",
    "gradient_accumulation_steps": "accumulate",
    "gradient_checkpointing": "remat",
    "max_steps": "steps",
    "num_steps": "steps",
    "epochs": "steps",
    "num_train_epochs": "steps",
    "eval_steps": "eval_every",
    "save_steps": "checkpoint_every",
    "save_total_limit": "keep",
    "logging_steps": "log_every",
    "report_to": "log_to",
    "bf16": "dtype",
    "model": "init_from",
    "model_name_or_path": "init_from",
    "data": "data.train",
    "dataset": "data.train",
    "annotations": "data.train",
    "num_generations": "grpo.groups",
    "max_completion_length": "grpo.max_new",
}
# Of two looks at a video; what they set in the section ``looks`` of a config.
LOOK_FLAGS = {
    "tokens": "visual tokens of all looks together",
    "look_again": "likeliest windows that get a second look",
    "look_frames": "frames of a window, in both looks",
    "scan_pixels": "of a frame in the first look, at most",
    "look_pixels": "of a frame in the second look, at most",
}
ONE_LOOK_FLAGS = ("frames", "fps", "min_pixels", "max_pixels", "total_pixels")  # which two looks do not read
# New objects before Python looks for garbage among them: indexing clips and tracing a step make many, which
# stay. At Python's 700 a start takes a tenth longer.
GARBAGE = (20_000, 20, 20)
# Sections of a config whose fields the user names, such as --config.grpo.rewards.mine=my_module:fn.
NAMED_BY_USER = ("grpo.rewards", "grpo.degraded_rewards")


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises ``UserError`` and does not accept abbreviated flags."""

    def __init__(self, description: str):
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")

    def add_config(self) -> None:
        """Add ``--config``, which ``parse_config`` reads together with its overrides."""
        self.add_argument("--config", required=True, metavar="FILE", help="config file, or a recipe's name")
        self.add_argument("--config.FIELD", metavar="VALUE", help="overrides a field of the config")

    def add_processes(self) -> None:
        """Add the flags that ``distributed.join`` takes."""
        self.add_argument("--coordinator", help="HOST:PORT of process 0, unless the cluster gives it")
        self.add_argument("--processes", type=at_least(1), help="how many there are, likewise")
        self.add_argument("--process", type=at_least(0), help="which of them this is, from 0, likewise")
        self.add_argument("--join_timeout", type=at_least(1), default=300, help="seconds to wait for them")

    def add_looks(self, localisers: Collection[str]) -> None:
        """Add the flags of two looks at a video, which ``take_looks`` takes. localisers: the ways to find the
        window of the second look, the default first."""
        positive = at_least(1)
        self.add_argument(
            "--looks", type=int, choices=(1, 2), default=1, help="2: scan the video, then look at a window"
        )
        for name, help in LOOK_FLAGS.items():
            self.add_argument(
                f"--{name}", type=positive, help=f"with --looks=2: {help}; default: as in training"
            )
        help = f"with --looks=2: what finds the window; default: {next(iter(localisers))}"
        self.add_argument("--localise", choices=list(localisers), help=help)

    def parse_config(self) -> tuple[argparse.Namespace, ConfigDict]:
        """The flags, and the config with its overrides. UserError for a missing file or field, or a value of
        another type."""
        arguments, rest = self.parse_known_args()
        file = config_file(arguments.config)
        rest, named = split_named(rest)
        # The errors of ml_collections would not give the whole name of a missing field.
        check_overrides(rest, file, arguments.config)
        values, command_line = flags.FlagValues(), ["", f"--config={file}", *rest]
        holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=command_line)
        try:
            unexpected = values(command_line)[1:]
        except flags.Error as error:
            raise UserError(" ".join(str(error).split())) from error
        if unexpected:
            raise UserError(f"unexpected argument {unexpected[0]!r}: values are given as --flag=value")
        for section, name, value in named:
            set_named(holder.value, section, name, value)
        return arguments, holder.value


def with_home(argument: str) -> str:
    """An argument --flag=~/file with the user's folder in place of "~", which a shell only puts at the
    beginning of a word; others as they are."""
    flag, equals, value = argument.partition("=")
    is_flag = flag.startswith("--") and value.startswith("~/")
    return f"{flag}{equals}{os.path.expanduser(value)}" if is_flag else argument


def take_looks(flags: dict[str, Any], localisers: Collection[str]) -> tuple[dict[str, int] | None, str]:
    """Take the flags of ``add_looks`` out of others: the fields of ``looks`` that are asked for, or None for
    one look, and the way to find the window. UserError for such a flag without two looks, and for one of
    ONE_LOOK_FLAGS with them."""
    looks, localise = flags.pop("looks"), flags.pop("localise")
    given = {name: value for name in LOOK_FLAGS if (value := flags.pop(name)) is not None}
    if looks == 1:
        if of_two := [*given, *(["localise"] if localise else [])]:
            raise UserError(f"--{of_two[0]}: give --looks=2 too")
        return None, next(iter(localisers))
    if of_one := [name for name in ONE_LOOK_FLAGS if flags[name] is not None]:
        others = ", ".join(f"--{name}" for name in LOOK_FLAGS)
        raise UserError(f"--{of_one[0]} is of one look: with --looks=2 give some of {others}")
    fields = {name.removeprefix("look_"): value for name, value in given.items()}
    return fields, localise or next(iter(localisers))


def at_least(least: float) -> Callable[[str], Any]:
    """The type of a flag: a number of at least ``least``, and of its type."""

    def number(text: str) -> Any:
        value = type(least)(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} is below {least:g}")
        return value

    number.__name__ = type(least).__name__
    return number


def share(text: str) -> float:
    """The type of a flag: a number from 0 to 1."""
    value = at_least(0.0)(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} is above 1")
    return value


def step(text: str) -> int | Literal["best"]:
    """The type of a flag: the step of a checkpoint."""
    return "best" if text == "best" else at_least(0)(text)


def comma_list(text: str) -> list[str]:
    """The type of a flag: names separated by commas."""
    return [name for name in text.split(",") if name]


def config_file(name: str) -> str:
    """The file that ``--config`` names, by its path or as a recipe that vpjax ships. UserError if it is
    neither."""
    if Path(name).is_file():
        return name
    shipped = importlib.resources.files(RECIPES)
    recipes = sorted(Path(file.name).stem for file in shipped.iterdir() if file.name.endswith(".py"))
    recipes = [recipe for recipe in recipes if recipe not in ("__init__", "base")]
    if name in recipes:
        return str(shipped / f"{name}.py")
    close = difflib.get_close_matches(Path(name).stem.lower(), recipes, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise UserError(
        f"--config: there is no file {name!r} and no recipe of that name{hint}; recipes: {', '.join(recipes)}"
    )


def split_named(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str, str]]]:
    """The arguments without those that name a field of NAMED_BY_USER, and (section, name, value) of these."""
    others: list[str] = []
    named: list[tuple[str, str, str]] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        section, _, name = flag.removeprefix("--config.").rpartition(".")
        if equals and flag.startswith("--config.") and section in NAMED_BY_USER:
            named.append((section, name, value))
        else:
            others.append(argument)
    return others, named


def set_named(config: ConfigDict, section: str, name: str, value: str) -> None:
    """Set a field of a section that need not have it yet, to a Python literal or else to the text ``value``.
    UserError if the config has no such section."""
    node = config
    for part in section.split("."):
        if part not in node:
            raise UserError(f"--config.{section}.{name}: the config has no {section}")
        node = node[part]
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = value
    with node.unlocked(), node.ignore_type():
        node[name] = parsed


def read_config(file: str, name: str) -> ConfigDict:
    """The config of a file that ``--config`` names so. UserError if it has none, whatever its code raises."""
    try:
        config = runpy.run_path(file)["get_config"]()
    except Exception as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file
        ]
        where = f", line {lines[-1]}" if lines else ""
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"--config={name}{where}: {reason}; a config is a Python file with get_config()"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={name}: get_config() returns {config!r}, which is no ConfigDict")
    return config


def check_overrides(arguments: Sequence[str], file: str, name: str) -> None:
    """UserError, with the flag that may be meant, if an argument such as ``--config.optim.lr=1`` names a
    field that ``file`` lacks, or ``--lr=1`` no flag."""
    config = read_config(file, name)
    for argument in arguments:
        flag = argument.partition("=")[0]
        if not flag.startswith("--") or flag.startswith("--noconfig."):
            continue
        field = flag.removeprefix("--").removeprefix("config.")
        is_override = flag.startswith("--config.")
        if is_override and field in field_names(config):
            continue
        meant = similar_field(field, config)
        hint = f"; did you mean --config.{meant}?" if meant else ""
        if is_override:
            raise UserError(f"{flag}: {name} has no such field{hint}")
        raise UserError(f"{flag}: no such flag{hint or '; --help lists them'}")


def field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    """The dotted names of all fields and sections."""
    names = []
    for name, value in config.items():
        names.append(prefix + name)
        if isinstance(value, ConfigDict):
            names += field_names(value, f"{prefix}{name}.")
    return names


def similar_field(field: str, config: ConfigDict) -> str:
    """The field that may be meant by a name that is none; "": there is no such field."""
    names = field_names(config)
    last = field.rpartition(".")[2]
    other = OTHER_NAMES.get(last.replace("-", "_"))
    if other in names:
        return other
    in_section = [name for name in names if name.rpartition(".")[2] == last]  # --config.lr
    return next(iter(in_section + difflib.get_close_matches(field, names, 1)), "")


def run(main: Callable[[], None]) -> NoReturn:
    """Call ``main`` and exit.

    A mistake of the user (``UserError``, or an error of the disk) prints one line on stderr and exits with 2.
    Any other error is a defect and keeps its traceback. SIGTERM acts as Ctrl-C, which exits with 130.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    gc.set_threshold(*GARBAGE)
    # transformers would advise to install PyTorch, which vpjax does not need.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.argv[1:] = map(with_home, sys.argv[1:])
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # while modules were imported, it ended all
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
        code = OK
    except UserError as error:
        code = _report(f"error: {error}", MISTAKE)
    except OSError as error:
        if error.errno not in SURROUNDINGS:
            raise
        code = _report(f"error: {error.filename or 'writing'}: {error.strerror}", MISTAKE)
    except KeyboardInterrupt:
        code = _report("interrupted", INTERRUPTED)
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        code = _report(distributed.explain(error), DEFECT)
    distributed.leave(code)


def _report(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def say(*lines: str) -> None:
    """Print lines in process 0 only."""
    if jax.process_index() == 0:
        for line in lines:
            print(line, flush=True)


@contextlib.contextmanager
def held_signals() -> Iterator[list[str]]:
    """Hold back the first SIGTERM or Ctrl-C and append its name to the list that this yields. A second one is
    not held back."""
    received: list[str] = []

    def receive(number: int, frame: Any) -> None:
        received.append(signal.Signals(number).name)
        release()

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}

    def release() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield received
    finally:
        release()


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], str]]:
    """Yields ``received(step)``: the name of the signal that ends the run after this step, or "", the same in
    all processes. It must be called once for every step, in order.

    With several processes, JAX takes SIGTERM as the notice of a preemption and lets all processes agree on a
    step that none of them has passed. Ctrl-C acts as SIGTERM there.
    """
    if jax.process_count() == 1:
        with held_signals() as received:
            yield lambda step: received[0] if received else ""
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    try:
        yield lambda step: "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else ""
    finally:
        signal.signal(signal.SIGINT, before)
