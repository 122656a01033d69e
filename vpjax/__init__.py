"""vpjax: teach video language models to see brief actions and transient events."""

from __future__ import annotations

import importlib
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
