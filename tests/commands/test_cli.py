"""The command line: a mistake is one line on stderr, exit code 2, no traceback."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from tests.commands.call import call as call_main
from vpjax import cli
from vpjax.recipes import base
from vpjax.scoring import judge
from vpjax.training import run_config
from vpjax.types import UserError

RECIPE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(steps=10, optim=dict(lr=1e-3), negatives=("batch", "windows")))
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call a command with a config, which does ``work(config, workdir)``: (code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.py").write_text(RECIPE)

    def call(*arguments, work=lambda config, workdir: print(config.steps, config.negatives, workdir)):
        def main():
            parser = cli.Parser("A command.")
            parser.add_config()
            parser.add_argument("--workdir", help="a folder")
            flags, config = parser.parse_config()
            work(config, flags.workdir)

        return call_main(main, *arguments)

    return call


def test_overrides(call):
    code, out, err = call("--config", "recipe.py", "--config.steps=3")
    assert (code, out, err) == (0, "3 ('batch', 'windows') None\n", "")
    code, out, _ = call("--config=recipe.py", "--config.negatives=('degraded',)", "--workdir=here")
    assert (code, out) == (0, "10 ('degraded',) here\n")


def test_a_path_below_the_users_folder_is_found_behind_a_flag(call, monkeypatch):
    """Shells replace "~" at the beginning of a word only, so --workdir=~/runs made a folder named "~"."""
    monkeypatch.setenv("HOME", "/home/me")
    flags = "--config=recipe.py", "--config.negatives=('~/a',)"
    assert call(*flags, "--workdir=~/runs/a")[1] == "10 ('~/a',) /home/me/runs/a\n"
    assert call(*flags, "--workdir=runs/~/a")[1] == "10 ('~/a',) runs/~/a\n"
    code, _, err = call("--config=~/recipe.py")
    assert code == 2 and "no file '/home/me/recipe.py'" in err


def test_rewards_are_named_by_the_user(call):
    """With a weight, with a function, with both; in place of one of another type, and beside the others. The
    last one counts."""

    def work(config, workdir):
        run_config.check(config)
        print(config.grpo.rewards.to_dict(), judge.weights_of(config.grpo.rewards))

    flags = ["mine=my_module:fn", "format=0.5", "event=my_module:event", "event=('my_module:event', 2)"]
    flags = [f"--config.grpo.rewards.{flag}" for flag in flags]
    code, out, err = call("--config=grpo", *flags, "--config.grpo.relative.correct=event", work=work)
    rewards = {"event": ("my_module:event", 2), "format": 0.5, "mine": "my_module:fn"}
    assert (code, out, err) == (0, f"{rewards} {dict(event=2.0, format=0.5, mine=1.0)}\n", "")
    for flag, named in (
        ("--config.grpo.rewards.mine", "--config.grpo.rewards.mine"),
        ("--config.grpo.reward.mine=my_module:fn", "--config.grpo.reward"),
        ("--config.grpo.rewards.mine=my_module", "config.grpo.rewards.mine"),
        ("--config.grpo.rewards.mine=(1, 2)", "config.grpo.rewards.mine"),
    ):
        code, _, err = call("--config=grpo", flag, "--config.grpo.relative.correct=event", work=work)
        assert code == 2 and err.count("\n") == 1 and named in err, err
    code, _, err = call("--config=recipe.py", "--config.grpo.rewards.mine=my_module:fn")
    assert code == 2 and "has no grpo.rewards" in err


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--config=recipe.py", "--config.nope=1"], ["--config.nope", "recipe.py"]),
        (["--config=recipe.py", "--config.stesp=1"], ["--config.stesp", "--config.steps?"]),
        (["--config=recipe.py", "--config.optim.momentum=1"], ["--config.optim.momentum"]),
        (["--config=recipe.py", "--config.steps.x=1"], ["--config.steps.x"]),
        (["--config=recipe.py", "--config.steps=many"], ["--config.steps=many"]),
        (["--config=recipe.py", "--config.steps=1.5"], ["--config.steps=1.5"]),
        (["--config=recipe.py", "--config.optim=1"], ["--config.optim=1"]),
        (["--config=missing.py"], ["missing.py", "sft, "]),
        (["--config=missing.py", "--config.steps=1"], ["missing.py"]),
        (["--config.steps=1"], ["--config"]),
        ([], ["--config"]),
        (["--config=recipe.py", "--nope"], ["nope"]),
        (["--config=recipe.py", "--steps=3"], ["--steps", "did you mean --config.steps?"]),
        (["--config=recipe.py", "--steps", "3"], ["--steps", "did you mean --config.steps?"]),
        (["--config=recipe.py", "--config.lr=1"], ["--config.lr", "did you mean --config.optim.lr?"]),
        (["--config=recipe.py", "--config.optim.learning_rate=1"], ["did you mean --config.optim.lr?"]),
        (["--config=recipe.py", "--learning-rate=1"], ["did you mean --config.optim.lr?"]),
        (["--config=configs/sft"], ["configs/sft", "did you mean sft?"]),
        (["--config=sft.yaml"], ["sft.yaml", "did you mean sft?"]),
        (["--config=SFT_mixed"], ["did you mean sft_mix?"]),
        (["--config=recipe.py", "more"], ["'more'"]),
    ],
)
def test_mistakes_are_one_line(call, arguments, named):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(name in err for name in named), err


@pytest.mark.parametrize(
    "content, named",
    [
        ("x = 1", "KeyError: 'get_config'"),
        ('{"steps": 3}', "KeyError: 'get_config'"),
        ("def get_config(:", "SyntaxError"),
        ("def get_config():\n    return 1 / 0", ", line 2: ZeroDivisionError"),
        ("import nowhere_to_be_found", ", line 1: ModuleNotFoundError"),
        ("def get_config():\n    return dict(steps=3)", "returns {'steps': 3}, which is no ConfigDict"),
    ],
)
def test_a_users_own_config_that_is_none(call, tmp_path, content, named):
    (tmp_path / "mine.py").write_text(content)
    code, out, err = call("--config=mine.py")
    assert (code, out) == (2, "")
    assert err.startswith("error: --config=mine.py") and err.count("\n") == 1 and named in err


def test_user_error_is_one_line(call):
    def work(config, workdir):
        raise UserError("clips.jsonl:3: no answer")

    assert call("--config=recipe.py", work=work) == (2, "", "error: clips.jsonl:3: no answer\n")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space"),
        OSError(errno.EFBIG, "Too large"),
        NotADirectoryError(errno.ENOTDIR, "x"),
    ],
)
def test_a_full_disk_is_one_line(call, error):
    def work(config, workdir):
        raise error

    code, out, err = call("--config=recipe.py", work=work)
    assert (code, out, err.count("\n")) == (2, "", 1) and error.strerror in err


@pytest.mark.parametrize("error", [ZeroDivisionError(), FileNotFoundError(errno.ENOENT, "x")])
def test_defects_keep_their_traceback(call, error):
    def work(config, workdir):
        raise error

    with pytest.raises(type(error)):
        call("--config=recipe.py", work=work)


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also where a shell started the tests in the background, deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_unless_it_is_held(call, number):
    done = []

    def work(config, workdir):
        with cli.held_signals() as received:
            os.kill(os.getpid(), number)
            done.append(received[:])
        os.kill(os.getpid(), number)
        done.append("not reached")

    assert call("--config=recipe.py", work=work) == (130, "", "interrupted\n")
    assert done == [[number.name]]


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_is_not_held():
    with pytest.raises(KeyboardInterrupt), cli.held_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", "train build predict evaluate export plan".split())
@pytest.mark.parametrize(
    "handler, code, err", [(signal.default_int_handler, 130, "interrupted\n"), (signal.SIG_IGN, 7, "")]
)
def test_a_signal_while_modules_are_imported(tmp_path, name, handler, code, err):
    """It comes inside a library, in whose place there is one that sends it. A shell that started the command
    in the background made it deaf to it."""
    (tmp_path / "jax.py").write_text("import os\nos.kill(os.getpid(), 2)\nos._exit(7)\n")
    before = signal.signal(signal.SIGINT, handler)
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"vpjax.{name}"], cwd=tmp_path, capture_output=True, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", err)


def test_help_is_no_mistake(call):
    code, out, err = call("--help")
    assert (code, err) == (0, "") and "A command." in out and "--config FILE" in out and "--workdir" in out


def test_a_shipped_recipe_goes_by_its_name(call):
    code, out, _ = call("--config=sft", "--config.steps=7", work=lambda config, _: print(config.steps))
    assert (code, out) == (0, "7\n")


def test_names_of_other_trainers_lead_to_fields():
    """Each name here, and none of them is taken for a field by itself."""
    config = base.get_config()
    fields = cli.field_names(config)
    assert set(cli.OTHER_NAMES.values()) <= set(fields)
    for name, field in cli.OTHER_NAMES.items():
        assert cli.similar_field(name, config) == cli.similar_field(f"optim.{name}", config) == field
    assert cli.similar_field("entirely_different", config) == ""


@pytest.mark.parametrize("text, step", [("best", "best"), ("0", 0), ("250", 250)])
def test_a_step_is_a_number_or_the_best(text, step):
    assert cli.step(text) == step


@pytest.mark.parametrize("text", ["0", "x", "-1"])
def test_numbers_have_a_least_value(text):
    parser = cli.Parser("A command.")
    parser.add_argument("--count", type=cli.at_least(1))
    with pytest.raises(UserError, match="--count"):
        parser.parse_args([f"--count={text}"])
