"""What a program says of itself: floating-point operations when traced, collectives when compiled."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8}  # others end in their width


@dataclasses.dataclass(frozen=True)
class Collective:
    """kind: of KINDS. result: bytes that one call leaves on a device; sent: that a device sends for it, in a
    ring. loops: how often each loop around it runs, the outermost first."""

    kind: str
    result: int
    sent: int
    loops: tuple[int, ...]

    @property
    def times(self) -> int:
        """Calls of one run of the program."""
        return math.prod(self.loops)


def flops(jaxpr: Any, *, while_trips: int = 1) -> int:
    """Floating-point operations of a jaxpr's matrix products, on all devices together: of scans as often as
    they run, of while-loops ``while_trips`` times, of a condition's branches the dearest."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
        inner = [flops(part, while_trips=while_trips) for part in _inner(eqn.params)]
        times = {"scan": eqn.params.get("length"), "while": while_trips}.get(eqn.primitive.name, 1)
        total += times * (max(inner) if eqn.primitive.name == "cond" else sum(inner))
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among an equation's parameters."""
    flat = [x for value in params.values() for x in (value if isinstance(value, tuple | list) else (value,))]
    return [getattr(x, "jaxpr", x) for x in flat if hasattr(x, "eqns") or hasattr(x, "jaxpr")]


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program's text (``compiled.as_text()``).

    A loop's count is the constant that its condition compares with, as XLA writes scans; for a loop that may
    end earlier it is the most. A collective that XLA cut into overlapping parts is one, known by its channel.
    """
    bodies = _computations(text)
    around: dict[str, tuple[int, ...]] = {}

    def visit(name: str, loops: tuple[int, ...]) -> None:
        if name not in bodies or math.prod(around.get(name, (0,))) >= math.prod(loops):
            return
        around[name] = loops
        for line in bodies[name]:
            for field, called in re.findall(r"(\w+)=\{?((?:%[\w.-]+(?:, )?)+)", line):
                for inner in re.findall(r"%([\w.-]+)", called):
                    if field == "body":
                        condition = re.search(r"condition=%([\w.-]+)", line).group(1)
                        visit(inner, (*loops, _trips(bodies, condition)))
                    elif field in (
                        "calls",
                        "to_apply",
                        "branch_computations",
                        "true_computation",
                        "false_computation",
                    ):
                        visit(inner, loops)

    visit(next(name for name in bodies if name.startswith("ENTRY ")), ())
    found: dict[Any, Collective] = {}
    for name, loops in around.items():
        for line in bodies[name]:
            match = re.match(rf"\s*(?:ROOT )?%\S+ = (.*?) ({'|'.join(KINDS)})(?:-start)?\(", line)
            if not match:
                continue
            kind = match.group(2)
            result = _bytes(match.group(1), kind, line)
            one = Collective(kind, result, _sent(kind, result, _group(line)), loops)
            channel = re.search(r"channel_id=(\d+)", line)
            key = (kind, channel.group(1)) if channel else line
            if key not in found or found[key].sent * found[key].times < one.sent * one.times:
                found[key] = one
    return list(found.values())


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation by name; the entry's begins with ``ENTRY``."""
    out: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line):
            lines = out.setdefault((head.group(1) or "") + head.group(2), [])
        else:
            lines.append(line)
    return out


def _trips(bodies: dict[str, list[str]], condition: str) -> int:
    """The largest constant of a condition and of what it calls; 1 where it has none."""
    lines = list(bodies[condition])
    for line in lines:  # grows while it is walked
        for called in re.findall(r"(?:calls|to_apply)=%([\w.-]+)", line):
            lines += bodies.get(called, [])
    return max(
        (int(x) for line in lines for x in re.findall(r"s32\[\]\S* constant\((\d+)\)", line)), default=1
    )


def _bytes(types: str, kind: str, line: str) -> int:
    """Of the result; of a started collective, whose result holds its operand too, of the larger half."""
    sizes = []
    for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", types):
        bits = BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 8)
        sizes.append(bits * math.prod(int(n) for n in shape.split(",") if n) // 8)
    return max(sizes) if f"{kind}-start(" in line else sum(sizes)


def _group(line: str) -> int:
    """How many devices a collective spans."""
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes.group(1)))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", axes.group(2)))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(iota.group(1))
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed.group(1).split(","))
    return 2


def _sent(kind: str, result: int, group: int) -> int:
    """Bytes that a device sends in a ring of ``group`` devices, by the size of the result."""
    share = (group - 1) / group
    factor = {"all-reduce": 2 * share, "reduce-scatter": group * share, "collective-permute": 1}
    return int(result * factor.get(kind, share))
