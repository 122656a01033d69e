"""Broken surroundings: damaged files of a run, a full or read-only disk, two writers, several processes."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.faults import commands
from benchmarks.faults.commands import COMMANDS, LIMIT, ROOT
from benchmarks.faults.kills import whole_state
from benchmarks.faults.tally import MAX_LINE, Log, Trial

MANY = 1_000_000  # rows without ids
NAMED_IN = 20.0  # seconds


class End(NamedTuple):
    """How a command ended. said: what it printed."""

    code: int
    said: str

    def refused(self) -> tuple[str, str]:
        """The outcome of a command that is to end with one line."""
        lines = [line for line in self.said.splitlines() if line.startswith("error: ")]
        if "Traceback" in self.said or self.code != 2 or len(lines) != 1 or len(lines[0]) > MAX_LINE:
            return "crashed", f"code {self.code}: {self.said[-1500:]}"
        return "refused in one line", lines[0]

    def went_on(self, state: str, whole: str, told: str = "") -> tuple[str, str]:
        """The outcome of a command that is to reach the end state of the whole run, and to say ``told``."""
        if "Traceback" in self.said or self.code:
            return "crashed", f"code {self.code}: {self.said[-1500:]}"
        if state != whole:
            return "lost", "another end state than that of the whole run"
        said = [line for line in self.said.splitlines() if told and told in line]
        if told and not said:
            return "lost", f"nothing about {told!r} was said"
        return ("told", said[0][:300]) if said else ("read", "the end state of the whole run")


def run(log: Log, work: Path) -> None:
    commands.prepare(work)
    for number, (name, attempt) in enumerate(TRIALS.items()):
        if any(trial.kind == name for trial in log.trials):
            continue
        begin = time.monotonic()
        try:
            outcome, detail = attempt(work)
        except Exception:
            outcome, detail = "crashed", traceback.format_exc(limit=-4)
        log.add(Trial(name, number, outcome, detail, time.monotonic() - begin))


def finish(arguments: list[str], log: Path, **options: Any) -> End:
    """Run ``python -m`` with these arguments to its end."""
    log.unlink(missing_ok=True)
    code = commands.start(arguments, log, **options).wait(LIMIT)
    return End(code, log.read_text(errors="replace"))


def copy_of(name: str, work: Path) -> tuple[Path, str]:
    """A copy of the whole run of a command, beside it, and its end state."""
    state, folder = whole_state(name, work), work / f"copy-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / f"whole-{name}", folder)
    return folder, state


def damaged(name: str, change: Callable[[Path], None], told: str = "", refused: bool = False) -> Any:
    """The trial of a run whose files are changed before it goes on. refused: it is to end with one line."""

    def attempt(work: Path) -> tuple[str, str]:
        folder, whole = copy_of(name, work)
        change(folder)
        end = finish(COMMANDS[name].arguments(folder), work / "trial.log")
        return end.refused() if refused else end.went_on(COMMANDS[name].state(folder), whole, told)

    return attempt


def newest(folder: Path) -> Path:
    """The largest file of the newest checkpoint."""
    last = max(commands.checkpoints(folder), key=lambda path: int(path.name))
    return max((file for file in last.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def cut_power(folder: Path) -> None:
    """As a power cut leaves a run: its log ends in NUL bytes, its newest checkpoint was not yet there."""
    file = folder / "metrics.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[:-200] + bytes(200))
    shutil.rmtree(max(commands.checkpoints(folder), key=lambda path: int(path.name)))


def zero_lock(folder: Path) -> None:
    (folder / "lock.json").write_bytes(bytes(80))


def truncate_all(folder: Path) -> None:
    for path in commands.checkpoints(folder):
        for file in path.rglob("*"):
            if file.is_file():
                truncate(file)


def without_end(folder: Path) -> None:
    """An evaluation that was stopped: half of its answers, the last one cut short, and no results."""
    truncate(folder / "predictions.jsonl")
    (folder / "results.json").unlink()


def lose_part(folder: Path) -> None:
    truncate(sorted(folder.glob("parts/0*.jsonl"))[0])
    (folder / "clips.jsonl").unlink()


def broken_cache(change: Callable[[Path], None], told: str) -> Any:
    """The trial of a run from its start, on a cache whose files are changed."""

    def attempt(work: Path) -> tuple[str, str]:
        whole, folder = whole_state("sft", work), work / "copy-sft"
        shutil.rmtree(folder, ignore_errors=True)
        kept = work / "kept-cache"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(work / "cache", kept)
        try:
            change(work / "cache")
            end = finish(commands.train("sft", folder), work / "trial.log")
            return end.went_on(commands.trained(folder), whole, told)
        finally:
            shutil.rmtree(work / "cache")
            kept.rename(work / "cache")

    return attempt


def flip_pages(cache: Path) -> None:
    for file in (cache / "frames").rglob("*"):
        if file.is_file():
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)


def truncate_in(part: str) -> Callable[[Path], None]:
    def change(cache: Path) -> None:
        for file in (cache / part).rglob("*"):
            if file.is_file():
                truncate(file)

    return change


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(name: str, size: str) -> Any:
    """The trial of a disk that fills while a command works: it ends with one line; with room, it goes on."""

    def attempt(work: Path) -> tuple[str, str]:
        whole, folder = whole_state(name, work), work / "small-disk"
        with mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
            out, log = folder / f"full-{name}", work / "trial.log"
            arguments = relocated(name, work, out)
            first = finish(arguments, log)
            outcome, detail = first.refused()
            if outcome == "crashed":
                return outcome, detail
            subprocess.run(["mount", "-o", "remount,size=500m", str(folder)], check=True)
            return finish(arguments, log).went_on(COMMANDS[name].state(out), whole) and (outcome, detail)

    return attempt


def relocated(name: str, work: Path, out: Path) -> list[str]:
    """The arguments of a command whose results go to ``out`` and whose data stay where they are."""
    usual = COMMANDS[name].arguments(work / "elsewhere")
    return [str(out) if argument == str(work / "elsewhere") else argument for argument in usual]


def small_files(work: Path) -> tuple[str, str]:
    """A limit of the size of a file (ulimit -f), which is below that of a checkpoint."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    log, folder = work / "trial.log", work / "limited-sft"
    shutil.rmtree(folder, ignore_errors=True)
    log.unlink(missing_ok=True)
    with subprocess.Popen(
        [commands.sys.executable, "-m", *commands.train("sft", folder)],
        cwd=ROOT,
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=limit,
    ) as process:
        said, _ = process.communicate(timeout=LIMIT)
    return End(process.returncode, said.decode(errors="replace")).refused()


def read_only(name: str) -> Any:
    """The trial of a folder that cannot be written to."""

    def attempt(work: Path) -> tuple[str, str]:
        for needed in COMMANDS[name].needs:
            whole_state(needed, work)
        folder = work / "read-only"
        with mounted(folder, "-t", "tmpfs", "-o", "ro", "tmpfs"):
            return finish(relocated(name, work, folder / "out"), work / "trial.log").refused()

    return attempt


def two_trainers(work: Path) -> tuple[str, str]:
    """A second trainer, and a third, while the first one works: they are turned away, it is not disturbed."""
    whole, folder = whole_state("sft", work), work / "copy-sft"
    shutil.rmtree(folder, ignore_errors=True)
    log = work / "first.log"
    log.unlink(missing_ok=True)
    first = commands.start(commands.train("sft", folder), log)
    while not (folder / "lock.json").exists() and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGSTOP)  # so that it does not end before the others come
    ends = [finish(commands.train("sft", folder), work / "trial.log") for _ in range(2)]
    first.send_signal(signal.SIGCONT)
    end = End(first.wait(LIMIT), log.read_text())
    for other in ends:
        outcome, detail = other.refused()
        if outcome == "crashed" or "another trainer works here" not in detail:
            return "crashed", detail
    gone_on = end.went_on(commands.trained(folder), whole)
    return gone_on if gone_on[0] != "read" else (outcome, detail)


def two_processes(number: signal.Signals) -> Any:
    """The trial of a signal to one of two processes of a run; the same command then goes on to the end."""

    def attempt(work: Path) -> tuple[str, str]:
        whole, folder = whole_of_two(work), work / "two"
        shutil.rmtree(folder, ignore_errors=True)
        launcher, log = launch(work, folder)
        while len(commands.checkpoints(folder)) < 2 and launcher.poll() is None:
            time.sleep(0.05)
        children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True)
        os.kill(int(children.stdout.split()[1]), number)
        code = launcher.wait(LIMIT)
        said = log.read_text()
        expected = code == 0 if number == signal.SIGTERM else code != 0
        if not expected or (number == signal.SIGTERM and "Traceback" in said):
            return "crashed", f"code {code}: {said[-1500:]}"
        launcher, log = launch(work, folder)
        end = End(launcher.wait(LIMIT), log.read_text())
        outcome, detail = end.went_on(commands.trained(folder), whole)
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
        return ("told", last[:300]) if outcome == "read" else (outcome, detail)

    return attempt


def launch(work: Path, folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Two processes of the run in ``folder``, by launch/local.sh."""
    log = work / "two.log"
    log.unlink(missing_ok=True)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    env = commands.environment() | {"PYTHON": commands.sys.executable, "GRACE": "10", "PORT": str(port)}
    recipe = ["--config", str(work / "small_sft.py"), "--config.mesh.data=2", "--config.mesh.fsdp=1"]
    command = [str(ROOT / "launch" / "local.sh"), "2", *recipe, f"--workdir={folder}", "--join_timeout=120"]
    with log.open("ab") as out:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out), log


def whole_of_two(work: Path) -> str:
    file = work / "whole-two.state"
    if not file.exists():
        launcher, log = launch(work, work / "whole-two")
        if launcher.wait(LIMIT):
            raise RuntimeError(log.read_text()[-2000:])
        file.write_text(commands.trained(work / "whole-two"))
    return file.read_text()


def many_rows(work: Path) -> tuple[str, str]:
    """A million rows without ids, of the same video, are named."""
    from vpjax.building.annotations import new_id
    from vpjax.types import Clip

    clip, taken = Clip("", "videos/a.mp4", "q", "a"), dict[str, int]()
    begin = time.process_time()  # the processor's, whatever else the machine does
    names = {new_id(clip, taken) for _ in range(MANY)}
    seconds = time.process_time() - begin
    assert len(names) == MANY
    said = f"{MANY:,} rows are named in {seconds:.1f} s of one core"
    return "read" if seconds < NAMED_IN else "hung", said


TRIALS: dict[str, Callable[[Path], tuple[str, str]]] = {
    "the newest checkpoint is truncated": damaged("sft", lambda w: truncate(newest(w)), "is damaged"),
    "the newest checkpoint is zeroed": damaged("grpo", lambda w: zero(newest(w)), "is damaged"),
    "all checkpoints are truncated": damaged("sft", truncate_all, refused=True),
    "metrics.jsonl ends in zeros": damaged("sft", cut_power),
    "config.json of a run is truncated": damaged("sft", lambda w: truncate(w / "config.json"), refused=True),
    "lock.json is zeroed": damaged("sft", zero_lock),
    "predictions.jsonl is truncated": damaged("evaluate", without_end),
    "request.json is truncated": damaged("evaluate", lambda w: truncate(w / "request.json"), refused=True),
    "a part of a build is truncated": damaged("build", lose_part, "damaged; it is made anew"),
    "made_from.json is zeroed": damaged("build", lambda w: zero(w / "parts/made_from.json"), refused=True),
    "pages of the frame cache have other bits": broken_cache(flip_pages, "page in the cache"),
    "the index in the cache is truncated": broken_cache(truncate_in("index"), "probed again"),
    "a million rows without ids": many_rows,
    "a read-only disk, sft": read_only("sft"),
    "a read-only disk, build": read_only("build"),
    "a read-only disk, evaluate": read_only("evaluate"),
    "files of 100 kB at most, sft": small_files,
    "a full disk, sft, 200 kB": full_disk("sft", "200k"),
    "a full disk, build, 20 kB": full_disk("build", "20k"),
    "two more trainers on a work directory": two_trainers,
    "a full disk, sft, 2 MB": full_disk("sft", "2m"),
    "a full disk, evaluate, 12 kB": full_disk("evaluate", "12k"),
    "SIGTERM to one of two processes": two_processes(signal.SIGTERM),
    "one of two processes is killed": two_processes(signal.SIGKILL),
    "a full disk, grpo, 3 MB": full_disk("grpo", "3m"),
    "compiled programs are truncated": broken_cache(truncate_in("programs"), ""),
}
