"""Scores of the built-in event clips beside accuracy: what an answer takes from the colour, or invents.

Colour and event belong together in training clips with a prior (``EventSpec.prior``). The metrics are

    against       accuracy on the clips whose colour predicts another event than the one they show
    shortcut      share of the answers about these clips that name the event that the colour predicts
    seen          recall of an event minus its false positives, mean over the events
    false alarms  share of the answers about clips without an event that name an event
    invented      likewise of the answers about all clips, under the controls that hide the event
"""

from collections.abc import Iterable, Sequence
from typing import Any

from vpjax.evaluation.ask import Prediction
from vpjax.evaluation.bootstrap import DIFFERENCES, Scored, difference, summary
from vpjax.events.clips import predicted_event
from vpjax.events.drawing import COLOURS
from vpjax.types import Clip

OF_A_PRIOR = ("against", "shortcut")
OF_INVENTION = ("seen", "false alarms", "invented")
HIDING = ("key", "blind")  # the controls that show no event


def event_values(clip: Clip, prediction: Prediction, named: Sequence[str]) -> dict[str, float]:
    """The metrics that apply to one answer, by name. named: the events that it names."""
    event = clip.extra["event"]
    values = {}
    if event and clip.extra.get("colour") in COLOURS:
        predicted = predicted_event(clip.extra["colour"])
        if predicted != event:
            values["against"] = float(list(named) == [event])
            values["shortcut"] = float(list(named) == [predicted])
    if not prediction.ranked:  # ranked answers all name an event
        if not event:
            values["false alarms"] = float(len(named) > 0)
        if prediction.control in HIDING:
            values["invented"] = float(len(named) > 0)
    return values


def seen(rows: Iterable[Scored]) -> dict[str, Any] | None:
    """The mean over the events of recall minus false positives, as {"mean", "low", "high"}. None where the
    rows do not show two events, or one and none.

    rows: with ``named``, and the event that they show, or "", as ``second_group``.
    """
    parts = _parts(rows)
    return summary(parts, DIFFERENCES)["metrics"]["seen"]["macro"] if parts else None


def seen_difference(ours: Iterable[Scored], theirs: Iterable[Scored]) -> dict[str, Any] | None:
    """Ours minus theirs in ``seen`` on the rows that both sides have, in the same form."""
    return difference(_parts(ours), _parts(theirs), mean="macro")["metrics"].get("seen")


def _parts(rows: Iterable[Scored]) -> list[Scored]:
    """One row for each answer and event, in two groups per event: answers about clips with it, and others.

    An answer that names the event has the value 2 in the first group and -2 in the second. So the mean of the
    groups' means is (sum of the recalls - sum of the false positives) / number of events.
    """
    rows = [row for row in rows if row.named is not None]
    shown = {row.second_group for row in rows}
    if len(shown) < 2:
        return []
    parts = []
    for row in rows:
        for event in sorted(shown - {""}):
            group, value = f"{event}, not shown", -2.0
            if row.second_group == event:
                group, value = f"{event}, shown", 2.0
            if event not in (row.named or ()):
                value = 0.0
            part = row._replace(id=f"{row.id}, {event}", group=group, second_group="", values={"seen": value})
            parts.append(part)
    return parts
