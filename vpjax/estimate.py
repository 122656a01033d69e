"""What a compiled step needs of a chip: memory, work, traffic, and its time by phase at published rates."""

import collections
import dataclasses
from typing import Any, NamedTuple

from vpjax.chips import Chip
from vpjax.hlo import OTHER, Collective

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """The cost of a compiled step in bytes and floating-point operations of one chip.

    arguments: state and batch. temporaries: memory beside them. needed: both, the program, and the part of
    the result that does not take the place of the state. cycles: by phase, see ``hlo.cycles``; no kernel is
    in them. attention: of ``flops``, those of whole sequences that attend, of which the kernel of a TPU does
    at least as many. read: at
    least, from memory, for a token of each of its completions, which have ``sampled`` tokens. seconds: the
    time of compiling. over: the compiler's message if the step needs more memory than the chip has; all
    fields but ``seconds`` are then 0.
    """

    arguments: int = 0
    temporaries: int = 0
    needed: int = 0
    flops: float = 0.0
    collectives: tuple[Collective, ...] = ()
    cycles: dict[str, int] = dataclasses.field(default_factory=dict)
    attention: float = 0.0
    read: int = 0
    sampled: int = 0
    seconds: float = 0.0
    over: str = ""

    @property
    def sent(self) -> int:
        """Bytes that a chip sends in the step."""
        return sum(collective.sent * collective.times for collective in self.collectives)


class PhaseTime(NamedTuple):
    """Seconds of a phase of a step: of the compiler's cycles, which count products and memory, and of sending
    over links. sent: bytes, by a chip. Where the two overlap, the longer one bounds the phase."""

    name: str
    cycles: float
    sending: float
    sent: int

    @property
    def bound(self) -> str:
        return "links" if self.sending > self.cycles else "chip"


def fits(plan: StepPlan, chip: Chip | None) -> bool:
    return not plan.over and (chip is None or plan.needed <= chip.memory * GIB)


def phase_times(plan: StepPlan, chip: Chip) -> list[PhaseTime]:
    """The phases of a step, the longest first; what belongs to none is one of them, and so is attention's
    kernel, at the chip's peak rate. [] for chips whose compiler estimates no cycles."""
    if not plan.cycles or not chip.products:
        return []
    sent: collections.Counter[str] = collections.Counter()
    for collective in plan.collectives:
        sent[collective.phase] += collective.sent * collective.times
    times = [
        PhaseTime(name, plan.cycles.get(name, 0) / chip.clock, sent[name] / chip.links, sent[name])
        for name in {*plan.cycles, *sent}
    ]
    if plan.attention:
        times.append(PhaseTime("attention", plan.attention / chip.flops, 0.0, 0))
    return sorted(times, key=lambda phase: -max(phase.cycles, phase.sending))


def step_seconds(plan: StepPlan, chip: Chip) -> tuple[float, float]:
    """The least and the most seconds of a step: if sending and computing overlap in every phase, and if they
    never do. Without cycles, of its products at the chip's peak, and of what sampling reads."""
    phases = phase_times(plan, chip)
    if phases:
        return sum(max(p.cycles, p.sending) for p in phases), sum(p.cycles + p.sending for p in phases)
    compute = plan.flops / chip.flops + plan.sampled * plan.read / chip.reading
    sending = plan.sent / chip.links
    return max(compute, sending), compute + sending


def costs(plan: StepPlan, chip: Chip | None) -> list[str]:
    """Memory, work, collectives and time of a step that compiled, in lines."""
    available = f" of {chip.memory:g} GiB" if chip else ""
    lines = [
        f"memory of a chip      arguments {gib(plan.arguments)}, temporaries {gib(plan.temporaries)}, "
        f"in all {gib(plan.needed)}{available}",
        f"work of a chip        {plan.flops / 1e12:.2f} TFLOP (matrix products)",
    ]
    sent: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    for collective in plan.collectives:
        sent[collective.kind] += collective.sent * collective.times
        calls[collective.kind] += collective.times
    for kind, count in sent.most_common():
        lines.append(f"  {kind:<20}{gib(count)} sent by a chip in {calls[kind]} calls")
    if plan.sampled:
        seconds = f", {1000 * plan.read / chip.reading:.2f} ms at the published rate" if chip else ""
        lines.append(f"a sampled token       a chip reads at least {gib(plan.read)}{seconds}")
    if chip:
        least, most = step_seconds(plan, chip)
        phases = phase_times(plan, chip)
        source = "by the compiler's cycles" if phases else "at published peak rates, which no step reaches"
        lines.append(f"estimated step time   {least:.2f} to {most:.2f} s {source}")
        for phase in phases:
            if phase.name == "attention":
                lines.append(
                    f"  {phase.name:<20}{phase.cycles:.2f} s at least: its kernel's at the peak rate"
                )
                continue
            name = phase.name if phase.name != OTHER else "the rest"
            lines.append(
                f"  {name:<20}{phase.cycles:.2f} s of the chip, {phase.sending:.2f} s of links for "
                f"{gib(phase.sent)}: bound by {'its links' if phase.bound == 'links' else 'the chip'}"
            )
    return lines


def as_json(plan: StepPlan, chip: Chip | None) -> dict[str, Any]:
    """The plan as numbers: bytes, operations and seconds of a chip."""
    out = dataclasses.asdict(plan) | {"fits": fits(plan, chip), "sent": plan.sent}
    del out["collectives"]
    if chip and not plan.over:
        least, most = step_seconds(plan, chip)
        phases = {p.name: {**p._asdict(), "bound": p.bound} for p in phase_times(plan, chip)}
        out |= {"step_seconds": [least, most], "phases": phases}
    return out


def gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"
