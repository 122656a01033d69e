"""What the verbs share: the door through which they are called, the config flag, and signals."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from absl import app, flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags

from vpjax import distributed as processes
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


def run(main: Callable[[], int | None], before: Callable[[], None] = lambda: None) -> NoReturn:
    """Parse the flags, call ``before`` and ``main``, and exit with what ``main`` returns (None: 0).

    A mistake of the user, in the flags, as ``UserError`` or on the disk, is one line on stderr and exit code
    2; anything else is a defect and keeps its traceback. SIGTERM acts as Ctrl-C; where ``main`` lets them
    through, the exit code is 130.
    """
    app.define_help_flags()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _parse(sys.argv)
        before()
        code = main() or OK
    except UserError as error:
        code = _tell(f"error: {error}", MISTAKE)
    except OSError as error:
        if error.errno not in SURROUNDINGS:
            raise
        code = _tell(f"error: {error.filename or 'writing'}: {error.strerror}", MISTAKE)
    except KeyboardInterrupt:
        code = _tell("interrupted", INTERRUPTED)
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        code = _tell(processes.explain(error), DEFECT)
    processes.leave(code)


def _tell(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def define_config() -> flags.FlagHolder[ConfigDict]:
    """The required flag ``--config FILE``; ``--config.field=value`` overrides a field of it."""
    # Without a default: ml_collections would read that file, and the overrides, while modules are imported.
    holder = config_flags.DEFINE_config_file(
        "config", None, "Config file; --config.field=value overrides a field."
    )
    flags.mark_flag_as_required("config")
    return holder


def require(*holders: flags.FlagHolder[Any]) -> None:
    """UserError for the first of these flags that has no value."""
    for flag in holders:
        if not flag.value:
            raise UserError(f"--{flag.name} is missing; --help lists the flags")


def config_name() -> str:
    """The config file's name without folder and suffix: ``sft`` of ``configs/sft.py``."""
    return os.path.splitext(os.path.basename(config_flags.get_config_filename(flags.FLAGS["config"])))[0]


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
    """``asked(step)``: the signal that asks for an end ("": none), at the same step in all processes. To be
    called once for every step, in order.

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


def _parse(argv: list[str]) -> None:
    if "config" in flags.FLAGS:
        _check_config(argv)
    try:
        rest = flags.FLAGS(argv)[1:]
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: values are given as --flag=value")


def _check_config(argv: list[str]) -> None:
    """UserError if the config file or an overridden field of it does not exist: ml_collections raises
    OSError, AttributeError or KeyError for these, and without the field's whole name."""
    only = flags.FlagValues()
    flags.DEFINE_string("config", None, "", flag_values=only)
    only(argv, known_only=True)
    if only.config is None:
        return
    if not os.path.isfile(only.config):
        raise UserError(f"--config: there is no file {only.config!r}")
    config = runpy.run_path(only.config)["get_config"]()
    for name in (arg.lstrip("-").partition("=")[0] for arg in argv):
        node, path = config, name.split(".")
        for field in path[1:] if path[0] == "config" else ():
            known = node.keys() if isinstance(node, ConfigDict) else ()
            if field not in known:
                close = difflib.get_close_matches(field, known, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise UserError(f"--{name}: {only.config} has no such field{hint}")
            node = node[field]
