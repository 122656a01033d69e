"""The README's commands do what it says: they are read from it and run, with fewer steps and clips."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SMALL = [
    "--config.steps=2",
    "--config.events.train=24",
    "--config.events.heldout=24",
    "--config.batch=4",
    "--config.events.unseen=8",
]


def run(command, *more):
    """Run a command of the README in the checkout, by this Python."""
    program, *words = shlex.split(command)
    assert program == "python"
    plain = {
        name: value for name, value in os.environ.items() if name != "XLA_FLAGS"
    }  # one device, as users have
    done = subprocess.run(
        [sys.executable, *words, *more], cwd=ROOT, env=plain, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_command_trains_and_the_model_answers(tmp_path):
    install, train = re.search(
        r"^(pip install \S+ \S+) && (python -m vpjax\.train .*)$", README, re.M
    ).groups()
    assert install == "pip install -e ." and (ROOT / "setup.py").exists()
    told = run(train, f"--workdir={tmp_path}/run", f"--config.data.cache={tmp_path}/cache", *SMALL)
    assert "step 2/2" in told and "chance is 0.125" in told
    for file in ("config.json", "metrics.jsonl", "curves.png", "heldout.json", "model/tokenizer.json"):
        assert (tmp_path / "run" / file).exists(), file

    ask = re.search(r"`(python -m vpjax\.predict .*?)`", README).group(1)
    video = next((tmp_path / "cache").glob("**/*.mp4"))
    ask = ask.replace("runs/sft", f"{tmp_path}/run").replace("FILE", str(video))
    assert run(ask, "--json", "--max_new_tokens=4").startswith("{")


def test_every_config_and_file_that_the_readme_names_is_there():
    named = re.findall(r"(?:configs|docs|benchmarks)/[\w./-]+\.\w+", README) + re.findall(
        r"\]\(([\w./]+)\)", README
    )
    assert len(named) > 5
    assert not [name for name in named if not (ROOT / name).exists()]
    # The map shows every module.
    shown = set(re.findall(r"\b(\w+)\.py\b", README)) | {"vision", "decoder", "vlm", "hf"}
    modules = {path.stem for path in (ROOT / "vpjax").rglob("*.py")} - {"__init__"}
    assert modules - shown == {"event_drawing", "event_text"}, "parts of events.py"
