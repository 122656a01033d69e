"""What became of each trial, kept so that a campaign goes on where it was stopped, and the table of all."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from vpjax.data.json_rows import shortened

# read: as if nothing were wrong, and nothing is missing. told: gone on, and a line says what is missing or
# was mended. lost: something is missing and no line says so. The last three are defects.
OUTCOMES = ("refused in one line", "read", "told", "lost", "crashed", "hung")
DEFECTS = OUTCOMES[3:]
MAX_LINE = 1000  # characters of a refusal, which is to be read


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial and its outcome. kind: of the fault, a row of the table. number: of the trial in its campaign.
    detail: what was done, and what was said. seconds, megabytes: what it took, at most."""

    kind: str
    number: int
    outcome: str
    detail: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0


class Log:
    """The trials of a campaign, one JSON line each."""

    def __init__(self, path: Path):
        self.path = path
        self.trials: list[Trial] = []
        if path.exists():
            lines = path.read_text().splitlines()
            self.trials = [Trial(**json.loads(line)) for line in lines if line.endswith("}")]
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, trial: Trial) -> None:
        assert trial.outcome in OUTCOMES, trial
        self.trials.append(trial)
        with self.path.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(trial)) + "\n")


def refusal(error: Exception) -> str:
    """The outcome of a UserError: refused, if it is one line of a length that is read."""
    text = str(error)
    return "refused in one line" if "\n" not in text and len(text) <= MAX_LINE else "crashed"


def table(campaigns: Sequence[tuple[str, Iterable[Trial]]]) -> list[str]:
    """The table of several campaigns in Markdown, a row for each kind of fault."""
    lines = [
        "| | fault | tried | " + " | ".join(OUTCOMES) + " | longest, s | memory, MB |",
        "|---" * (5 + len(OUTCOMES)) + "|",
    ]
    for name, trials in campaigns:
        kinds: dict[str, list[Trial]] = {}
        for trial in trials:
            kinds.setdefault(trial.kind, []).append(trial)
        every = [trial for of_kind in kinds.values() for trial in of_kind]
        for kind, of_kind in sorted(kinds.items()):
            lines.append(row(name, kind, of_kind))
        if len(kinds) > 1:
            lines.append(row(f"**{name}**", "all", every))
    return lines


def row(name: str, kind: str, trials: Sequence[Trial]) -> str:
    counts = Counter(trial.outcome for trial in trials)
    numbers = [str(counts[outcome]) for outcome in OUTCOMES]
    longest = max((trial.seconds for trial in trials), default=0.0)
    most = max((trial.megabytes for trial in trials), default=0.0)
    memory = f"{most:.0f}" if most else ""
    return f"| {name} | {kind} | {len(trials)} | " + " | ".join(numbers) + f" | {longest:.1f} | {memory} |"


def defects(trials: Iterable[Trial]) -> list[str]:
    """A line for each trial that shows a defect."""
    return [
        f"* {trial.kind}, {trial.number}: {trial.outcome}: {shortened(trial.detail)}"
        for trial in trials
        if trial.outcome in DEFECTS
    ]
