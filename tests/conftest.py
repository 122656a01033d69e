"""Eight virtual CPU devices for every test, programs compiled once, and tiny checkpoints written once."""

import dataclasses
import gc
import importlib
import os
import sys
from pathlib import Path

import pytest

# Tracing makes many objects that stay, and Python looks through all of them whenever so many are new. At its
# default of 700 that takes a quarter of the time of tracing.
gc.set_threshold(20_000, 20, 20)

# Read when jax and transformers are first imported, so set before any test module is.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8"
    # Tests compute little and compile much: programs that are not optimised are compiled in half the time.
    " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    # Cut into parts for threads, a program costs more, and there is a test for each core.
    " --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Many tests, and the commands that they start, compile the same programs, and all write them to one folder.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@pytest.fixture(scope="module", autouse=True)
def no_program_outlives_its_file():
    """A process may hold 65,530 memory maps, and every compiled program takes some: those of all files would
    be too many."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """``checkpoint(name)``: the folder of the tiny model ``tiny.MODELS[name]``, which no test may change."""
    from tests import tiny  # brings torch, which most tests do without

    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = tiny.write_checkpoint(tmp_path_factory.mktemp(name), tiny.MODELS[name])
        return folders[name]

    return folder


def empty_curves(workdir):
    """Stands for ``vpjax.training.report.draw_curves``."""
    file = workdir / "curves.png"
    file.touch()
    return file


@pytest.fixture(scope="module")
def quick_runs():
    """Spares runs what no test of them asks for: models that have learned nothing do not end their answers,
    so these are cut after 8 tokens and not after 256; the texts for a tokenizer are drawn once; and curves,
    which take longer than the steps that they show, are an empty file."""
    from tests.runs import tokenizer_sentences
    from vpjax.evaluation.benchmarks import BENCHMARKS
    from vpjax.events import clips

    train = importlib.import_module("vpjax.train")  # the module; ``vpjax.train`` is the function
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BENCHMARKS, "events", dataclasses.replace(BENCHMARKS["events"], new_tokens=8))
        patch.setattr(clips, "tokenizer_sentences", tokenizer_sentences)
        patch.setattr(train, "draw_curves", empty_curves)
        yield
