"""Whether fields of the built-in clips' appearance, which users write, are what they must be."""

import math
from collections.abc import Sequence
from typing import Any


def are_numbers(values: Any) -> bool:
    """Whether ``values`` are one or more finite numbers."""
    is_list = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
    return is_list and all(isinstance(x, int | float) and math.isfinite(x) for x in values)


def are_above_0(values: Any) -> bool:
    """Whether ``values`` are one or more numbers above 0."""
    return are_numbers(values) and min(values) > 0


def is_range(values: Any, least: float, most: float = math.inf) -> bool:
    """Whether ``values`` are two numbers from ``least`` to ``most``, the smaller one first."""
    return are_numbers(values) and len(values) == 2 and least <= values[0] <= values[1] <= most


def is_size(size: Any) -> bool:
    """Whether a shape can be drawn and encoded in frames of this (height, width)."""
    return are_numbers(size) and len(size) == 2 and all(x >= 28 and x % 2 == 0 for x in size)
