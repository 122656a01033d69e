"""kill -9 at random moments of commands that have something to go on from, some inside a save."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np

from benchmarks.faults import commands
from benchmarks.faults.commands import COMMANDS, LIMIT, Command
from benchmarks.faults.tally import Log, Trial

IN_A_ROW = 5  # kills of one run, before it may end
INSIDE_A_SAVE = 3  # every third kill of what saves
LONGEST = {"sft": 6.0, "grpo": 8.0, "build": 3.0, "evaluate": 6.0}  # seconds of work before a kill


def run(count: int, log: Log, work: Path, seed: int) -> None:
    """Make kills until ``log`` has so many, the same number of each command; each chain of them ends in a run
    that is finished and compared."""
    commands.prepare(work)
    wanted = {name: count // len(COMMANDS) for name in COMMANDS}
    wanted["sft"] += count - sum(wanted.values())
    for place, name in enumerate(COMMANDS):
        whole = whole_state(name, work)
        done = sum(trial.kind.startswith(name) for trial in log.trials)
        while done < wanted[name]:
            number = 1000 * place + done
            kills = min(IN_A_ROW, wanted[name] - done)
            for trial in chain(name, number, kills, whole, work, seed):
                log.add(trial)
            done += kills


def whole_state(name: str, work: Path) -> str:
    """The end state of the run that nothing disturbs, which is made once."""
    file = work / f"whole-{name}.state"
    for needed in COMMANDS[name].needs:
        whole_state(needed, work)
    if not file.exists():
        file.write_text(commands.run_whole(name, work / f"whole-{name}"))
    return file.read_text()


def chain(name: str, number: int, kills: int, whole: str, work: Path, seed: int) -> list[Trial]:
    """A run that is killed so many times and then ends, and the trials that it stands for."""
    rng = np.random.default_rng([seed, number])
    command, folder = COMMANDS[name], work / f"killed-{name}"
    output = folder.with_name(f"{folder.name}.log")
    shutil.rmtree(folder, ignore_errors=True)
    output.unlink(missing_ok=True)
    begin, kinds = time.monotonic(), []
    for kill in range(kills):
        inside = command.saving is not None and kill % INSIDE_A_SAVE == 0
        hit = killed(command, folder, output, inside, float(rng.uniform(0, LONGEST[name])))
        kinds.append(f"{name}, killed {'inside a save' if hit == 'save' else 'at work'}" if hit else "")
    try:
        state = commands.run_whole(name, folder)
    except RuntimeError as error:
        outcome, detail = "crashed", str(error)
    else:
        outcome, detail = "lost", "another end state than that of the whole run"
        if state == whole:
            outcome, detail = "told", "the end state of the whole run, bit by bit"
    if "Traceback" in output.read_text(errors="replace"):
        outcome, detail = "crashed", output.read_text(errors="replace")[-2000:]
    seconds = time.monotonic() - begin
    missed, each = f"{name}, ended before its kill", seconds / kills
    return [Trial(kind or missed, number + i, outcome, detail, each) for i, kind in enumerate(kinds)]


def killed(command: Command, folder: Path, output: Path, inside: bool, after: float) -> str:
    """Start the command and kill it: where it has a checkpoint and, if ``inside``, is writing another one, or
    so many seconds ``after`` it has one and works. "save", "work", or "" if it had ended before."""
    before = output.stat().st_size if output.exists() else 0
    process = commands.start(command.arguments(folder), output)
    end, works = time.monotonic() + LIMIT, 0.0
    while process.poll() is None and time.monotonic() < end:
        begun = command.begun(folder)
        if begun and inside and command.saving is not None and command.saving(folder):
            process.kill()
            process.wait()
            return "save"
        if begun and not works and output.stat().st_size > before:  # it says that it works
            works = time.monotonic()
        if works and not inside and time.monotonic() - works > after:
            process.kill()
            process.wait()
            return "work"
        time.sleep(0.001 if inside else 0.02)
    process.kill()
    process.wait()
    return ""
