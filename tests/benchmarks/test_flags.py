"""The scripts of benchmarks/: a mistake is one line and exit code 2, before any work is done."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import repeats
from benchmarks.mix import read_population
from vpjax.types import UserError

BENCHMARKS = Path(repeats.__file__).parent
# Run by another Python, without vpjax.
OTHERS = ("clients_trl_side.py",)
SCRIPTS = [path for path in BENCHMARKS.rglob("*.py") if '"__main__"' in path.read_text()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(BENCHMARKS)))
def test_a_script_is_run_as_the_commands_are(path):
    if path.name not in OTHERS:
        assert path.read_text().endswith('\nif __name__ == "__main__":\n    cli.run(main)\n')


def arguments_of(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["ablation", *flags])
    return repeats.ablation_arguments("", ["a", "b"], steps=400, quick=dict(steps=20, seeds=[0], rows=["a"]))


def test_what_is_given_comes_before_what_quick_sets(monkeypatch):
    quick = arguments_of(monkeypatch, "--quick")
    assert (quick.steps, quick.seeds, quick.rows, quick.clips) == (20, [0], ["a"], 4096)
    some = arguments_of(monkeypatch, "--quick", "--steps=9", "--rows", "b")
    assert (some.steps, some.seeds, some.rows) == (9, [0], ["b"])
    assert arguments_of(monkeypatch).steps == 400


def test_a_log_in_a_folder_that_is_not_there_yet(tmp_path):
    """The first run of hours would be lost."""
    log = tmp_path / "new" / "runs.jsonl"
    repeats.repeat(["a"], [0], str, lambda row, seed: {repeats.MAIN: 0.5}, log)
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.parametrize("text, message", [(None, "no such file"), ("id,width\na,3\n", "no column height, ")])
def test_a_population_that_is_none(tmp_path, text, message):
    file = tmp_path / "mix.csv"
    if text:
        file.write_text(text)
    marks = SimpleNamespace(vision_start=0, video_token=1, vision_end=2)
    with pytest.raises(UserError, match=f"--population={file}: {message}"):
        read_population(file, marks)
