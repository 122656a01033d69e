"""Rewards for naming a clip's event-action keywords, in any of their forms.

Of one clip: J keywords, X forms of at most Y words each; of the completion W words.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from vpjax.scoring.forms import Form
from vpjax.scoring.words import distinct
from vpjax.types import Array


def places(words: Array, forms: Array) -> Array:
    """Where each keyword is first said, i32[J], in words u32[W]; W where it is not. forms: u32[J, X, Y], 0
    after the last word of each and throughout where there is no form."""
    w, y = len(words), forms.shape[-1]
    ahead = jnp.stack([jnp.pad(words, (0, k))[k:][:w] for k in range(y)])  # [Y, W]
    match = (forms[..., None] == ahead) | (forms[..., None] == 0)
    hits = match.all(-2) & (forms[..., :1] != 0)
    return jnp.where(hits, jnp.arange(w), w).min((1, 2), initial=w)


def host_place(words: Sequence[bytes], forms: frozenset[Form]) -> int | None:
    """Where one of ``forms`` is first said in ``words``."""
    for place in range(len(words)):
        if any(tuple(words[place : place + len(form)]) == form for form in forms):
            return place
    return None


def recall(named: Array, asked: Array) -> Array:
    """The share of the keywords ``asked`` bool[J] that are ``named`` bool[J]; NaN where none is asked."""
    return (named & asked).sum() / jnp.where(asked.any(), asked.sum(), jnp.nan)


def host_recall(named: Sequence[bool]) -> float:
    return sum(named) / len(named) if named else np.nan


def strays(words: Array, others: Array) -> Array:
    """Those of words u32[W] that are among ``others`` u32[M], in order of size; else 0."""
    place = jnp.minimum(jnp.searchsorted(others, words), len(others) - 1)
    return jnp.where(others[place] == words, words, 0)


def f1(named: Array, asked: Array, stray: Array) -> Array:
    """F1 of the keywords: what is said but not asked are the different words of ``stray`` u32[W]."""
    both, wanted = (named & asked).sum(), asked.sum()
    return 2.0 * both / jnp.where(asked.any(), both + distinct(stray) + wanted, jnp.nan)


def host_f1(named: Sequence[bool], stray: frozenset[bytes]) -> float:
    return 2 * sum(named) / (sum(named) + len(stray) + len(named)) if named else np.nan


def exact(named: Array, asked: Array, stray: Array) -> Array:
    """1.0 where every keyword that is asked and no other known one is named. To name all events is no way to
    name the right one."""
    right = ~(asked & ~named).any() & (stray == 0).all()
    return jnp.where(asked.any(), right, jnp.nan)


def host_exact(named: Sequence[bool], stray: frozenset[bytes]) -> float:
    return float(all(named) and not stray) if named else np.nan


def order(place: Array, wanted: Array, named: Array) -> Array:
    """The share of pairs of keywords that are named in the order in which the reference names them. place: as
    said i32[J]; wanted: in the reference i32[J], -1: not asked. NaN where there is no pair."""
    pairs = (wanted[:, None] < wanted) & (wanted[:, None] >= 0)
    right = pairs & (place[:, None] < place) & named[:, None] & named
    return right.sum() / jnp.where(pairs.any(), pairs.sum(), jnp.nan)


def host_order(place: Sequence[int | None], wanted: Sequence[int]) -> float:
    pairs = [(a, b) for a in range(len(wanted)) for b in range(len(wanted)) if wanted[a] < wanted[b]]
    right = [place[a] is not None and place[b] is not None and place[a] < place[b] for a, b in pairs]
    return sum(right) / len(pairs) if pairs else np.nan
