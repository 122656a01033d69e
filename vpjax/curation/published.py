"""Readers of public action data sets that name their videos' events in words, in the files as they are
published. Those of vpjax.build (``building.annotations.FORMATS``) are readers of sources too.

Data sets that give the name of a class only (HACS, FineAction, FineGym, Moments in Time) have no caption from
which an answer could be learned, and no reader.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vpjax.building.annotations import FORMATS
from vpjax.building.fields import JsonObject, field
from vpjax.building.items import Item, clip_item
from vpjax.building.sentences import times_question
from vpjax.data.published import table_rows
from vpjax.files import open_file
from vpjax.types import Keyword, UserError

WHAT = "What happens?"
DIDEMO_SECONDS = 5  # of the chunks in which DiDeMo's times are counted
NARRATED_WORDS = 6  # of a narration that is a keyword as a whole


def something_items(row: JsonObject) -> Iterator[Item]:
    """Something-Something v2: a label with its objects, such as "holding potato next to bottle"."""
    number = field(row, "id")
    yield clip_item(id=number, video=f"{number}.webm", question=WHAT, answer=sentence(field(row, "label")))


def didemo_items(row: JsonObject) -> Iterator[Item]:
    """DiDeMo: a description, and the chunks of 5 s that annotators marked, of which the median counts."""
    times = sorted(tuple(map(int, chunk)) for chunk in field(row, "times", list))
    first, last = times[(len(times) - 1) // 2]
    span = (float(first * DIDEMO_SECONDS), float((last + 1) * DIDEMO_SECONDS))
    yield clip_item(
        id=row.get("annotation_id"),
        video=field(row, "video"),
        question=times_question((span,)),
        answer=sentence(field(row, "description")),
        spans=(span,),
    )


def epic_items(row: JsonObject) -> Iterator[Item]:
    """EPIC-KITCHENS-100: a narration ("open door"), its verb and its times, of a row of the table. Videos lie
    where their authors' script puts them."""
    span = (seconds_of(field(row, "start_timestamp")), seconds_of(field(row, "stop_timestamp")))
    if span[1] < span[0]:
        raise ValueError(f"span {span} does not start before it ends")
    answer = sentence(field(row, "narration"))
    yield clip_item(
        id=field(row, "narration_id"),
        video=f"{field(row, 'participant_id')}/videos/{field(row, 'video_id')}.MP4",
        question=times_question((span,)),
        answer=answer,
        spans=(span,),
        keywords=narrated(answer, field(row, "verb")),
    )


def narrated(answer: str, verb: str) -> tuple[Keyword, ...]:
    """The keyword of a narration, which has no articles by which "Open door." could be told from a thing.
    verb: its dictionary form, as in ``turn-on``. None if the narration does not begin with it."""
    first, *particles = verb.split("-")
    words = answer.rstrip(".").split()
    if not (first and words and words[0].lower().startswith(first)):
        return ()
    text = " ".join(words) if len(words) <= NARRATED_WORDS else words[0]
    return (Keyword(text, " ".join([first, *particles])),)


def sentence(text: str) -> str:
    """A label as a sentence: with a capital and a full stop."""
    text = text.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def seconds_of(timestamp: str) -> float:
    """The seconds of HH:MM:SS.ss."""
    hours, minutes, seconds = timestamp.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def epic_rows(path: str) -> Iterator[tuple[str, Any]]:
    """The rows of EPIC-KITCHENS' table (csv), one at a time, each with its place; a ValueError for one that
    is none. UserError if the file is no text."""
    with open_file(path, "rb") as file:
        try:
            for number, row in enumerate(table_rows(line.decode() for line in file), 1):
                yield f"row {number}", ValueError(f"no CSV: {row}") if isinstance(row, ValueError) else row
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not CSV: {error}") from error


# Name -> what makes the questions of a row.
READERS: dict[str, Callable[[JsonObject], Iterable[Item]]] = {
    **{name: read for name, (read, _) in FORMATS.items()},
    "something-something": something_items,
    "didemo": didemo_items,
    "epic-kitchens": epic_items,
}
