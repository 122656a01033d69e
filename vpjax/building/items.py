"""What a row of annotations becomes: clips, or the reason why it is skipped."""

import dataclasses
from typing import Any

from vpjax.building.fields import Rejected
from vpjax.data.json_rows import reason_of
from vpjax.types import MEDIA_TAG, Clip


@dataclasses.dataclass(frozen=True)
class Item:
    """One question of an annotation file, or a conversation, and its clip.

    place: where the question is in the file, such as ``row 3, question 2``. clip: None if the question is
    skipped. skipped: why, as ``reason: detail``. notes: remarks about a clip that is kept, in the same form.
    """

    place: str
    clip: Clip | None
    skipped: str = ""
    notes: tuple[str, ...] = ()

    @property
    def media(self) -> tuple[str, ...]:
        """The paths of the clip's videos and images."""
        return self.clip.media if self.clip is not None else ()


def skipped_item(error: Exception) -> Item:
    reason = reason_of(error)
    return Item("", None, reason if isinstance(error, Rejected) else f"broken row: {reason}")


def clip_item(*, id: Any, question: str, answer: str, **fields: Any) -> Item:
    """The item of a clip. Rejected if a question or an answer of it is empty."""
    name = "" if id is None else str(id)
    clip = Clip(id=name, question=question.strip(), answer=answer.strip(), **fields)
    for turn in clip.dialogue:
        if not turn.question.replace(MEDIA_TAG, "").strip():
            raise Rejected("empty question")
        if not turn.answer.strip():
            raise Rejected("empty answer")
    return Item("", clip)
