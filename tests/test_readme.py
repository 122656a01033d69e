"""The README's commands and its example do what it says, with fewer steps and clips; its map is true."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vpjax import cli
from vpjax.scoring.judge import weights_of
from vpjax.scoring.user import load_user_reward
from vpjax.training import run_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))
SMALL = {
    "steps": 2,
    "batch": 4,
    "events.train": 24,
    "events.heldout": 8,
    "events.unseen": 8,
}
# What the run above gave on 2026-11-29: a change of these says that the default run has become another one.
# They are float32 sums, which processors round differently.
FIRST_LOSSES = {
    "loss": (6.487716, 5.948774),
    "loss/lm": (6.487716, 5.724642),
    "loss/contrast": (2.309654, 2.241322),
}
# A command, given without -m, whose evaluation cuts answers early: a model that has learned nothing does not
# end them.
QUICK = """
import dataclasses, runpy, sys
from vpjax.evaluation.benchmarks import BENCHMARKS

BENCHMARKS["events"] = dataclasses.replace(BENCHMARKS["events"], new_tokens=8)
sys.argv.pop(0)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def run(*command, folder=ROOT):
    """Run Python in ``folder``, on one device as users have; what it prints."""
    env = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def block(language):
    """The first block of code in ``language``."""
    return re.search(rf"^```{language}\n(.*?)^```", README, re.M | re.S).group(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The README's first command: its folder, with the run in run/, and what it printed."""
    folder = tmp_path_factory.mktemp("readme")
    install, train = re.search(
        r"^(pip install \S+ \S+) && (python -m vpjax\.train .*)$", README, re.M
    ).groups()
    assert install == "pip install -e ." and (ROOT / "setup.py").exists()
    changes = [f"--config.{field}={value}" for field, value in SMALL.items()]
    python, m, *command = shlex.split(train)
    assert (python, m) == ("python", "-m")
    out = run(
        "-c", QUICK, *command, f"--workdir={folder}/run", f"--config.data.cache={folder}/cache", *changes
    )
    return folder, out


@pytest.mark.slow
def test_the_first_command_trains_and_the_model_answers(trained):
    folder, out = trained
    assert "step 2/2" in out and "chance is 12.5" in out
    for file in ("config.json", "metrics.jsonl", "curves.png", "model/tokenizer.json"):
        assert (folder / "run" / file).exists(), file
    assert (folder / "run/evaluate/heldout-2/results.json").exists()

    ask = re.search(r"`python (-m vpjax\.predict .*?)`", README).group(1)
    video = next((folder / "cache").glob("**/*.mp4"))
    ask = ask.replace("runs/sft", f"{folder}/run").replace("FILE", str(video))
    assert run(*shlex.split(ask), "--json", "--max_new_tokens=4").startswith("{")


@pytest.mark.slow
def test_the_first_steps_are_what_they_always_were(trained):
    lines = [json.loads(line) for line in (trained[0] / "run/metrics.jsonl").read_text().splitlines()]
    for name, values in FIRST_LOSSES.items():
        np.testing.assert_allclose([line[name] for line in lines], values, rtol=1e-5)


@pytest.mark.slow
def test_the_example_runs(trained, tmp_path):
    """As it stands, on a smaller run and in a folder that has a clip."""
    folder, _ = trained
    shutil.copy(next((folder / "cache").glob("**/*.mp4")), tmp_path / "clip.mp4")
    changes = SMALL | {"data.cache": f"{folder}/cache", "data.heldout": ""}
    example = block("python").replace(
        "config.steps = 400\n", f"config.update_from_flattened_dict({changes!r})\n"
    )
    assert repr(changes) in example
    (tmp_path / "example.py").write_text(example)
    assert "step 2/2" in run("example.py", folder=tmp_path)


def test_the_reward_of_ones_own(tmp_path, monkeypatch):
    """The function is found where the text says, and the flags name it."""
    page = (ROOT / "docs" / "training.md").read_text()
    code = re.search(r"^```python\n(# my_rewards.py.*?)^```", page, re.M | re.S).group(1)
    flags = re.search(r"^python -m vpjax.train (.*my_rewards:short.*)$", page, re.M).group(1)
    (tmp_path / "my_rewards.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)  # another test's
    monkeypatch.setattr(sys, "argv", ["train", *shlex.split(flags)])
    parser = cli.Parser("train")
    parser.add_config()
    _, config = parser.parse_config()
    run_config.check(config)
    assert weights_of(config.grpo.rewards) == {"event": 1.0, "short": 1.0}
    reward = load_user_reward(config.grpo.rewards.short)
    np.testing.assert_allclose(reward(["a " * 5, "a " * 50], [None] * 2), [0.75, 0.0])


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_config_and_file_that_is_named_is_there(page):
    named = re.findall(r"(?:configs|docs|benchmarks)/[\w./-]+\.\w+", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_readme_leads_to_every_page():
    assert not [page.name for page in PAGES if f"(docs/{page.name})" not in README]


def test_the_map_shows_every_module():
    """Each folder's line names its modules, and a line says what the folder is for."""
    tree = re.search(r"^```\n(vpjax/ .*?)^```", README, re.M | re.S).group(1)
    lines = iter(tree.splitlines())
    shown = {"": next(lines).removeprefix("vpjax/").replace("·", "").split()}
    for line in lines:
        if match := re.match(r"  (\w+)/ +(.*)", line):
            shown[match[1]] = match[2].split()
            assert len(next(lines).split()) > 3, f"{match[1]}/: what it is for"
    package = ROOT / "vpjax"
    modules = {"": [path.stem for path in package.glob("*.py") if path.stem != "__init__"]}
    for folder in package.iterdir():
        if (folder / "__init__.py").exists():
            modules[folder.name] = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
    assert {name: sorted(names) for name, names in shown.items()} == {
        name: sorted(names) for name, names in modules.items()
    }


IMPORTS = ("import vpjax.train", "from vpjax.train import fit", "from vpjax import train")


@pytest.mark.slow
def test_vpjax_is_imported_quickly_and_has_a_version():
    """The package alone brings no library. Its functions come when they are used, in whatever order the
    commands' modules are imported."""
    code = "import sys, vpjax; print(vpjax.__version__, 'jax' in sys.modules, vpjax.ask.__name__)"
    version = re.search(r'version="(.*?)"', (ROOT / "setup.py").read_text()).group(1)
    assert run("-c", code).split() == [version, "False", "ask"]
    # Neither do the commands bring what takes long and what they may not need: --help answers at once.
    code = f"""
import sys, vpjax.train, vpjax.build

print({{"torch", "matplotlib", "spacy"}} & {{*sys.modules}})
for first in {IMPORTS}:
    for name in [name for name in sys.modules if name.partition(".")[0] == "vpjax"]:
        del sys.modules[name]
    exec(first + "; from vpjax import train; import vpjax.train; print(train is vpjax.train, train)")
"""
    brought, *functions = run("-c", code).splitlines()
    assert brought == "set()" and len(functions) == len(IMPORTS)
    for first, function in zip(IMPORTS, functions, strict=True):
        assert function.startswith("True <function train "), first
