"""``vpjax.train`` as one of the processes of tests/commands/test_processes.py, which meets with an accident.

ACCIDENT=<process>:<step>:<signal> sends that process the signal before the step; from there on steps take
longer, so that the notice of it arrives before the run's end.
"""

import os
import signal
import time

import jax
from absl import flags

from vpjax import cli, train
from vpjax import distributed as processes

put_batch, calls = train.put_batch, []


def put(batch, mesh):
    number, step, name = os.environ["ACCIDENT"].split(":")
    calls.append(batch)
    if len(calls) == int(step) and jax.process_index() == int(number):
        os.kill(os.getpid(), signal.Signals[name])
    time.sleep(0.5 * (len(calls) >= int(step)))
    return put_batch(batch, mesh)


if __name__ == "__main__":
    train.put_batch = put
    flags.FLAGS.set_default("join_timeout", 60)
    cli.run(train.main, before=processes.join)
