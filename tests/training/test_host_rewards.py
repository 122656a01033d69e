"""Rewards that are computed on the host: by threads, and by every process for its own rows."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vpjax.models.generate import Completions
from vpjax.training.judged import host_rewards_of

ROOT = Path(__file__).parents[2]
PROMPTS = SimpleNamespace(clip=np.arange(2))
COMPLETIONS = Completions(*[np.zeros((2, 1, 3, 4))] * 3)


def test_rewards_run_at_the_same_time():
    """Each waits until the other has begun."""
    both = threading.Barrier(2, timeout=30)

    def score(numbers, completions):
        both.wait()
        return np.full(completions.mask.shape[:3], numbers[0] + 1.0)

    rewards = host_rewards_of({"a": score, "b": score}, PROMPTS, COMPLETIONS, None)
    assert list(rewards) == ["a", "b"] and all((x == 1).all() for x in rewards.values())


def test_a_mistake_in_one_of_them_is_raised():
    def fail(numbers, completions):
        raise ValueError("not like this")

    with pytest.raises(ValueError, match="not like this"):
        host_rewards_of({"a": lambda *_: 0, "b": fail}, PROMPTS, COMPLETIONS, None)


@pytest.mark.slow
def test_every_process_scores_its_own_rows():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-m", "tests.training.host_process", address]
    processes = [
        subprocess.Popen(
            [*command, str(i)], cwd=ROOT, env=env, text=True, stdout=-1, stderr=subprocess.STDOUT
        )
        for i in range(2)
    ]
    for process in processes:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and "largest difference 0.0" in out, out
