"""Call a command in this process."""

import contextlib
import io
import signal
from unittest import mock

import pytest

from vpjax import cli

# That a command is the only process of its run. Without these flags, train and evaluate look for others,
# which must happen before JAX is used.
ALONE = dict(coordinator="nowhere:1", processes=1, process=0)


def call(main, *arguments, **flags):
    """The exit code, stdout and stderr of ``main`` with these arguments; ``steps=3`` stands for --steps=3."""
    command_line = ["command", *arguments, *(f"--{name}={value}" for name, value in flags.items())]
    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with (
            mock.patch("sys.argv", command_line),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as exit,
        ):
            cli.run(main)
    finally:
        signal.signal(signal.SIGTERM, before)
    return exit.value.code or 0, out.getvalue(), err.getvalue()
