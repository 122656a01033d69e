"""What the commands share: how they are called, how they end, the config flag, and signals."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib.resources
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags

from vpjax import distributed
from vpjax.types import UserError

OK, DEFECT, MISTAKE, INTERRUPTED = 0, 1, 2, 130
# A full or read-only disk, a folder of somebody else, a file where a folder should be: the user's to mend.
SURROUNDINGS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
)
RECIPES = "vpjax.recipes"  # the package that the folder configs/ is installed as


class Parser(argparse.ArgumentParser):
    """argparse with errors as ``UserError`` and flags in full."""

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

    def parse_config(self) -> tuple[argparse.Namespace, ConfigDict]:
        """The flags, and the config with its overrides. UserError for a file or a field that is not there,
        or a value of another type."""
        arguments, rest = self.parse_known_args()
        file = config_file(arguments.config)
        # ml_collections tells a missing field, or one inside a plain value, without its whole name.
        check_overrides(rest, file, arguments.config)
        values, command_line = flags.FlagValues(), ["", f"--config={file}", *rest]
        holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=command_line)
        try:
            unexpected = values(command_line)[1:]
        except flags.Error as error:
            raise UserError(" ".join(str(error).split())) from error
        if unexpected:
            raise UserError(f"unexpected argument {unexpected[0]!r}: values are given as --flag=value")
        return arguments, holder.value


def at_least(least: float) -> Callable[[str], Any]:
    """The type of a flag: a number of the type of ``least``, and no less."""

    def number(text: str) -> Any:
        value = type(least)(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} is below {least:g}")
        return value

    number.__name__ = type(least).__name__
    return number


def comma_list(text: str) -> list[str]:
    """The type of a flag: names with commas between them."""
    return [name for name in text.split(",") if name]


def config_file(name: str) -> str:
    """The file that ``--config`` names: a path, or the name of a recipe that vpjax ships. UserError where
    there is neither."""
    if Path(name).is_file():
        return name
    shipped = importlib.resources.files(RECIPES)
    recipes = sorted(Path(file.name).stem for file in shipped.iterdir() if file.name.endswith(".py"))
    recipes = [recipe for recipe in recipes if recipe not in ("__init__", "base")]
    if name in recipes:
        return str(shipped / f"{name}.py")
    raise UserError(f"--config: there is no file {name!r}, and no such recipe: {', '.join(recipes)}")


def check_overrides(arguments: Sequence[str], file: str, name: str) -> None:
    """UserError where an argument such as ``--config.optim.lr=1`` names a field that ``file`` lacks."""
    config = runpy.run_path(file)["get_config"]()
    for argument in arguments:
        flag = argument.partition("=")[0]
        if not flag.startswith("--config."):
            continue
        node = config
        for field in flag.split(".")[1:]:
            known = node.keys() if isinstance(node, ConfigDict) else ()
            if field not in known:
                close = difflib.get_close_matches(field, known, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise UserError(f"{flag}: {name} has no such field{hint}")
            node = node[field]


def run(main: Callable[[], None]) -> NoReturn:
    """Call ``main`` and exit.

    A mistake of the user, in the flags, as ``UserError`` or on the disk, is one line on stderr and exit code
    2. Anything else is a defect and keeps its traceback. SIGTERM acts as Ctrl-C; where ``main`` lets them
    through, the exit code is 130.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
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
    """Print lines, once for all processes."""
    if jax.process_index() == 0:
        for line in lines:
            print(line, flush=True)


@contextlib.contextmanager
def held_signals() -> Iterator[list[str]]:
    """Hold back the first SIGTERM or Ctrl-C: its name appears in the list that this yields, and nothing else
    happens until the caller looks. A second one is not held back."""
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
    """``received(step)``: the signal that asks for an end ("": none), at the same step in all processes. To
    be called once for every step, in order.

    Among several processes JAX takes SIGTERM as the notice of a preemption: it tells the others, and agrees
    with them on a step that none has passed. Ctrl-C acts as SIGTERM there.
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
