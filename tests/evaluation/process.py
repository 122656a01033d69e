"""``vpjax.evaluate`` as a process of tests/evaluation/test_processes.py: it says what it decodes."""

import sys

import vpjax.evaluate
from vpjax import cli
from vpjax.data import pipeline

read_frames = pipeline.read_frames


def read_frames_and_say(path, *arguments, **options):
    print(f"\ndecodes {path}", file=sys.stderr)
    return read_frames(path, *arguments, **options)


if __name__ == "__main__":
    pipeline.read_frames = read_frames_and_say
    cli.run(vpjax.evaluate.main)
