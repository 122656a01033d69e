"""Compiled programs: announced when they are made, and kept on disk for the next start."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from vpjax.cli import say
from vpjax.data.cache import cache_folder
from vpjax.training import run_config
from vpjax.types import Batch, Prompts

LEAST_SECONDS = 0.2  # of compiling, for a program to be kept
MOST_BYTES = 10 * 10**9  # of the folder; beyond it, the programs that were not used for longest are deleted


def keep_in(folder: Path) -> None:
    """Keep compiled programs in ``folder``, and use those that are there. Where JAX_COMPILATION_CACHE_DIR is
    set, that folder is used instead, as JAX's other variables say."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)


def keep_as_in_run(folder: Path) -> None:
    """``keep_in`` the cache of the run in ``folder``, unless its config says otherwise; for a Hugging Face
    folder, in the usual place."""
    if run_config.read(folder).get("compile_cache", True):
        keep_in(cache_folder(run_config.data_of(folder)) / "programs")


class Announced:
    """A jitted function of a state and a batch that prints two lines for every new shape of batch. count: how
    many shapes there are."""

    def __init__(self, function: Callable[..., Any], count: int):
        self.function, self.count = function, count
        self.known: set[tuple[tuple[int, ...], ...]] = set()

    def __call__(self, state: Any, batch: Batch | Prompts) -> Any:
        shape = tuple(x.shape for x in jax.tree.leaves(batch))
        if shape in self.known:
            return self.function(state, batch)
        self.known.add(shape)
        rows, tokens = batch.text.tokens.shape
        name = f"program {len(self.known)} of {self.count}"
        say(f"compiling {name}: {rows} rows of {tokens} tokens and {batch.video.count} units")
        start = time.perf_counter()
        out = self.function(state, batch)
        say(f"{name} is ready after {time.perf_counter() - start:.1f} s")
        return out
