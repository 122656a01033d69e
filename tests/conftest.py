"""Eight virtual CPU devices for every test, and tiny checkpoints written once per session."""

import os

# Read when jax and transformers are first imported, so set before any test module is.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402

from tests import tiny  # noqa: E402


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """``checkpoint(name)``: the folder of the tiny model ``tiny.MODELS[name]``, which no test may change."""
    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = tiny.write_checkpoint(tmp_path_factory.mktemp(name), tiny.MODELS[name])
        return folders[name]

    return folder
