"""Which keys a query sees, by the indices of tokens in a sequence: see ``models.attention``."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np


@functools.lru_cache  # a kernel is compiled again for another function
def sees(prefix: int, suffix: int) -> Callable[[Any, Any], Any]:
    """A function of indices of queries and of keys that tells whether a query sees a key, in a prefix and
    completions of ``suffix`` tokens after it, 0: there are none. Segments part them further."""
    if not suffix:
        return lambda query, key: key <= query
    start, size = np.int32(prefix), np.int32(suffix)

    def is_seen(query: Any, key: Any) -> Any:
        same = (query - start) // size == (key - start) // size
        return (key <= query) & ((key < start) | same)

    return is_seen


def sees_some(prefix: int, suffix: int, queries: tuple[Any, Any], keys: tuple[Any, Any]) -> Any:
    """Whether some of the queries may see some of the keys, given the first and the last index of each."""
    (first_query, last_query), (first_key, last_key) = queries, keys
    causal = first_key <= last_query
    if not suffix:
        return causal
    ends = first_query, last_query, first_key, last_key
    first_own, last_own, first, last = ((index - prefix) // suffix for index in ends)
    return causal & ((first_key < prefix) | ((first <= last_own) & (first_own <= last)))
