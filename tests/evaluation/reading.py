"""Reads small files of benchmarks in their published form."""

import json
from pathlib import Path

from vpjax.evaluation.benchmarks import BENCHMARKS, read_benchmark
from vpjax.scoring.answers import read_choice


def write(folder: Path, **files):
    """Files by name, ``_json`` and ``_jsonl`` standing for their suffix: the only one, or their folder."""
    folder.mkdir(exist_ok=True)
    for name, value in files.items():
        stem, _, suffix = name.rpartition("_")
        lines = "\n".join(map(json.dumps, value)) if suffix == "jsonl" else json.dumps(value)
        (folder / f"{stem}.{suffix}").write_text(lines)
    return folder / f"{stem}.{suffix}" if len(files) == 1 else folder


def read(name, data, videos=None):
    clips, left_out = read_benchmark(name, data, videos)
    for clip in clips:
        if clip.task == "choice":
            assert leading(BENCHMARKS[name].score(clip, clip.answer)) == 1
            wrong = [c for i, c in enumerate(clip.choices) if i != read_choice(clip.answer, clip.choices)]
            scores = [BENCHMARKS[name].score(clip, c) for c in wrong]
            assert all(score.readable and leading(score) == 0 for score in scores)
    return clips, left_out


def leading(score):
    return next(iter(score.values.values()))


def groups(clips):
    return [clip.extra["group"] for clip in clips]
