"""vpjax: teach video language models to see brief actions and transient events."""

from __future__ import annotations

import importlib
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
    function = getattr(importlib.import_module(homes[name]), name)
    # To import vpjax.train puts that module in the function's place.
    globals()[name] = function
    return function
