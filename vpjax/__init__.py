"""vpjax: teach video language models to see brief actions and transient events."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpjax.predict import ask, load
    from vpjax.train import train

__version__ = "0.1.0"
__all__ = ["__version__", "ask", "load", "train"]


def __getattr__(name: str) -> Any:
    """The functions of ``__all__``, imported when they are first used: ``import vpjax`` alone stays quick."""
    homes = {"ask": "vpjax.predict", "load": "vpjax.predict", "train": "vpjax.train"}
    if name not in homes:
        raise AttributeError(f"module 'vpjax' has no attribute {name!r}")
    return getattr(importlib.import_module(homes[name]), name)


class _Package(types.ModuleType):
    """Keeps ``vpjax.train`` the function. Python sets an imported module as an attribute of its package,
    and the command's module has the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "train" and isinstance(value, types.ModuleType):
            value = value.train
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _end(number: int, frame: types.FrameType | None) -> None:
    """End the process at once."""
    os.write(2, b"interrupted\n")
    os._exit(130)


# ``python -m vpjax.train`` imports libraries for seconds, to which a Ctrl-C is a traceback, until ``cli.run``
# takes it. It stays ignored where a shell started the command so.
_module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv[:-1] else ""
if _module.startswith("vpjax.") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
