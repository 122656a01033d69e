"""What the verbs share: the door through which they are called, the config flag, and signals."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from vpjax.types import UserError

OK, MISTAKE, INTERRUPTED = 0, 2, 130
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


def run(main: Callable[[], int | None]) -> NoReturn:
    """Parse the command line's flags, call ``main`` and exit with what it returns (None: 0).

    A mistake of the user, in the flags, as ``UserError`` or on the disk, is one line on stderr and exit code
    2; anything else is a defect and keeps its traceback. SIGTERM acts as Ctrl-C; where ``main`` lets them
    through, the exit code is 130.
    """
    app.define_help_flags()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _parse(sys.argv)
        sys.exit(main() or OK)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISTAKE)
    except OSError as error:
        if error.errno not in SURROUNDINGS:
            raise
        print(f"error: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr)
        sys.exit(MISTAKE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def define_config() -> flags.FlagHolder[ConfigDict]:
    """The required flag ``--config FILE``; ``--config.field=value`` overrides a field of it."""
    # Without a default: ml_collections would read that file, and the overrides, while modules are imported.
    holder = config_flags.DEFINE_config_file(
        "config", None, "Config file; --config.field=value overrides a field."
    )
    flags.mark_flag_as_required("config")
    return holder


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
