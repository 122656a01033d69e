"""``vpjax.train`` as one of the processes of tests/commands/test_processes.py, to which an accident happens.

ACCIDENT=<process>:<step>:<signal> sends that process the signal before the step. From there on steps take
longer, so that the notice of it arrives before the run's end.
"""

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


def put_batch_with_accident(batch, mesh):
    process, step, name = os.environ["ACCIDENT"].split(":")
    calls.append(batch)
    if len(calls) == int(step) and jax.process_index() == int(process):
        os.kill(os.getpid(), signal.Signals[name])
    if len(calls) >= int(step):
        time.sleep(0.5)
    return put_batch(batch, mesh)


if __name__ == "__main__":
    train.put_batch = put_batch_with_accident
    BENCHMARKS["events"] = dataclasses.replace(BENCHMARKS["events"], new_tokens=8)  # as in tests/conftest.py
    cli.run(train.main)
