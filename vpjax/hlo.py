"""The cost of a program: floating-point operations of its jaxpr, the collectives of its compiled text and, on
TPUs, the compiler's own estimate of cycles; the latter two by phases of a step, which the code names."""

import collections
import dataclasses
import math
import re
from typing import Any

import jax

COLLECTIVE_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8}  # the names of other types end in their width
BRANCHES = ("branch_computations", "true_computation", "false_computation")
CALLS = ("calls", "to_apply")


PHASE = re.compile(r'op_name="[^"]*?phase_([a-z]+)')
CYCLES = re.compile(r'"estimated_cycles":"(\d{1,18})"')  # 2**63 - 1 stands for an unknown number
OTHER = "other"  # what belongs to no phase


def phase(name: str) -> Any:
    """A context or decorator: what is traced in it belongs to the phase ``name`` (small letters) of a step.
    Of phases inside one another the outermost counts."""
    return jax.named_scope(f"phase_{name}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """kind: of COLLECTIVE_KINDS. result: bytes of one call's result on a device. sent: bytes that a device
    sends for it, in a ring. loops: the iterations of each loop around it, the outermost first. phase: see
    ``phase``."""

    kind: str
    result: int
    sent: int
    loops: tuple[int, ...]
    phase: str = OTHER

    @property
    def times(self) -> int:
        """Calls of one run of the program."""
        return math.prod(self.loops)


def flops(jaxpr: Any, *, while_trips: int = 1, scope: str = "") -> int:
    """Floating-point operations of the matrix products of a jaxpr, on all devices together. The body of a
    scan counts as often as it runs, that of a while-loop ``while_trips`` times, and of the branches of a
    condition the most expensive one counts. scope: of ``jax.named_scope``, of which alone the products
    count; "": all do."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general" and scope in str(eqn.source_info.name_stack):
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
        inner = [flops(part, while_trips=while_trips, scope=scope) for part in inner_jaxprs(eqn)]
        times = {"scan": eqn.params.get("length"), "while": while_trips}.get(eqn.primitive.name, 1)
        total += times * (max(inner) if eqn.primitive.name == "cond" else sum(inner))
    return total


def inner_jaxprs(eqn: Any) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    found = []
    for value in eqn.params.values():
        for x in value if isinstance(value, tuple | list) else [value]:
            if hasattr(x, "eqns") or hasattr(x, "jaxpr"):
                found.append(getattr(x, "jaxpr", x))
    return found


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program's text (``compiled.as_text()``).

    Parts into which XLA cut a collective share a channel and count as one. Of the branches of a condition the
    most expensive one counts, as in ``flops``.
    """
    bodies = _computations(text)
    found: dict[Any, Collective] = {}
    for name, loops in _loops_around(bodies).items():
        for line in bodies[name]:
            collective = _collective(line, loops)
            if collective is None:
                continue
            channel = re.search(r"channel_id=(\d+)", line)
            key = (collective.kind, channel.group(1)) if channel else line
            if key not in found or found[key].sent * found[key].times < collective.sent * collective.times:
                found[key] = collective
    return list(found.values())


def _collective(line: str, loops: tuple[int, ...] = ()) -> Collective | None:
    """The collective that an instruction is, in ``loops``; None: it is none."""
    match = re.match(rf"\s*(?:ROOT )?%\S+ = (.*?) ({'|'.join(COLLECTIVE_KINDS)})(?:-start)?\(", line)
    if not match:
        return None
    result = _bytes(match.group(1), match.group(2), line)
    sent = _sent(match.group(2), result, _group_size(line))
    return Collective(match.group(2), result, sent, loops, _phase_of(line))


def cycles(text: str) -> dict[str, int]:
    """The cycles by phase that the compiler estimates for a TPU program's instructions. They count what is
    computed and read, and not what is sent; of the branches of a condition the most expensive one. {} for
    other chips, whose compilers estimate none."""
    bodies = _computations(text)
    found: collections.Counter[str] = collections.Counter()
    for name, loops in _loops_around(bodies).items():
        for line in bodies[name]:
            found[_phase_of(line)] += _cycles_of(line) * math.prod(loops)
    return {name: count for name, count in found.items() if count}


def _cycles_of(line: str) -> int:
    """The compiler's estimate for an instruction, 0 without one."""
    estimate = re.search(CYCLES, line)
    return int(estimate.group(1)) if estimate else 0


def _phase_of(line: str) -> str:
    named = PHASE.search(line)
    return named.group(1) if named else OTHER


def _loops_around(bodies: dict[str, list[str]]) -> dict[str, tuple[int, ...]]:
    """The iterations of the loops around each computation that is called, the outermost loop first.

    They are the constant in a loop's condition, as XLA writes scans; a loop that may end earlier counts with
    its maximum."""
    around: dict[str, tuple[int, ...]] = {}

    def visit(name: str, loops: tuple[int, ...]) -> None:
        if name not in bodies or math.prod(around.get(name, (0,))) >= math.prod(loops):
            return
        around[name] = loops
        for line in bodies[name]:
            for inner, own_loops in _called(bodies, line):
                visit(inner, (*loops, *own_loops))

    visit(next(name for name in bodies if name.startswith("ENTRY ")), ())
    return around


def _called(bodies: dict[str, list[str]], line: str) -> list[tuple[str, tuple[int, ...]]]:
    """The computations that an instruction calls, and the iterations of the loop that it is, if it is one. Of
    the branches of a condition only the most expensive one."""
    called: list[tuple[str, tuple[int, ...]]] = []
    branches: list[str] = []
    for field, listed in re.findall(r"(\w+)=\{?((?:%[\w.-]+(?:, )?)+)", line):
        names = [name for name in re.findall(r"%([\w.-]+)", listed) if name in bodies]
        if field == "body":
            condition = re.findall(r"condition=%([\w.-]+)", line)[0]
            called += [(name, (_trips(bodies, condition),)) for name in names]
        elif field in CALLS:
            called += [(name, ()) for name in names]
        elif field in BRANCHES:
            branches += names
    if branches:
        called.append((max(branches, key=lambda name: _expense(bodies, name)), ()))
    return called


def _expense(bodies: dict[str, list[str]], name: str) -> tuple[int, int]:
    """What a computation costs: estimated cycles and, where the compiler gives none, bytes that are sent."""
    cycles_spent, sent = 0, 0
    for line in bodies[name]:
        cycles_spent += _cycles_of(line)
        collective = _collective(line)
        if collective:
            sent += collective.sent
        for inner, loops in _called(bodies, line):
            inner_cycles, inner_sent = _expense(bodies, inner)
            cycles_spent += inner_cycles * math.prod(loops)
            sent += inner_sent * math.prod(loops)
    return cycles_spent, sent


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation by name; the name of the entry begins with ``ENTRY``."""
    out: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line)
        if head:
            lines = out.setdefault((head.group(1) or "") + head.group(2), [])
        else:
            lines.append(line)
    return out


def _trips(bodies: dict[str, list[str]], condition: str) -> int:
    """The largest constant of a condition and of the computations that it calls; 1 if it has none."""
    lines = list(bodies[condition])
    for line in lines:  # the list grows in the loop
        for called in re.findall(r"(?:calls|to_apply)=%([\w.-]+)", line):
            lines += bodies.get(called, [])
    return max(
        (int(x) for line in lines for x in re.findall(r"s32\[\]\S* constant\((\d+)\)", line)), default=1
    )


def _bytes(types: str, kind: str, line: str) -> int:
    """Bytes of the result. That of a started collective includes its operand: the larger one counts."""
    sizes = []
    for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", types):
        bits = BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 8)
        sizes.append(bits * math.prod(int(n) for n in shape.split(",") if n) // 8)
    return max(sizes) if f"{kind}-start(" in line else sum(sizes)


def _group_size(line: str) -> int:
    """The number of devices in a group of a collective."""
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line)
    if axes:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes.group(1)))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", axes.group(2)))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if iota:
        return int(iota.group(1))
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    return len(listed.group(1).split(",")) if listed else 2


def _sent(kind: str, result: int, group: int) -> int:
    """Bytes that a device sends in a ring of ``group`` devices for a result of ``result`` bytes."""
    share = (group - 1) / group
    factor = {"all-reduce": 2 * share, "reduce-scatter": group * share, "collective-permute": 1}
    return int(result * factor.get(kind, share))
