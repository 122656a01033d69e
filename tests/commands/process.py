"""``vpjax.train`` as one of the processes of tests/commands/test_processes.py: the second one gets SIGTERM
before its third step. From there on steps take longer, so that the notice arrives before the run's end."""

import dataclasses
import importlib
import os
import signal
import time

import jax

from vpjax import cli
from vpjax.evaluation.benchmarks import BENCHMARKS

train = importlib.import_module("vpjax.train")  # the module; ``vpjax.train`` is the function
put_batch, calls = train.put_batch, []


def put_batch_with_signal(batch, mesh):
    calls.append(batch)
    if len(calls) == 3 and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    if len(calls) >= 3:
        time.sleep(0.5)
    return put_batch(batch, mesh)


if __name__ == "__main__":
    train.put_batch = put_batch_with_signal
    BENCHMARKS["events"] = dataclasses.replace(BENCHMARKS["events"], new_tokens=8)  # as in tests/conftest.py
    cli.run(train.main)
