"""Sentences with their times -> clips: ActivityNet Captions, Charades-STA, TACoS, YouCook2."""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from vpjax.building.fields import JsonObject, field, short
from vpjax.building.items import Item, clip_item, skipped_item
from vpjax.data.clips import parse_span


def sentence_items(row: JsonObject, *, grounding: bool) -> Iterator[Item]:
    """ActivityNet Captions, Charades-STA, TACoS and YouCook2: what happens in each span or, for grounding,
    when each sentence happens."""
    if "annotations" in row:  # YouCook2
        parts = [part if isinstance(part, dict) else {} for part in field(row, "annotations", list)]
        texts, spans = [part.get("sentence") for part in parts], [part.get("segment") for part in parts]
    else:
        texts, spans = field(row, "sentences", list), field(row, "timestamps", list)
    if len(texts) != len(spans):
        raise ValueError(f"{len(texts)} sentences for {len(spans)} timestamps")
    video, rate = field(row, "video"), time_units(row)
    for number, (text, span) in enumerate(zip(texts, spans, strict=True), 1):
        try:
            start, end = (moment / rate for moment in parse_span(span))
            yield sentence_item(f"{PurePosixPath(video).stem}-{number}", video, text, (start, end), grounding)
        except ValueError as error:
            yield skipped_item(error)


def time_units(row: JsonObject) -> float:
    """How many units of a row's times are a second: 1, but for TACoS the frames, of which such a row tells
    the number and the rate, and no duration. ValueError if it tells no rate."""
    if "num_frames" not in row or "duration" in row:
        return 1.0
    rate = row.get("fps")
    if not isinstance(rate, int | float) or not rate > 0:
        raise ValueError(f"field 'fps' is {short(rate)}, by which its times, in frames, are no seconds")
    return rate


def sentence_item(id: str, video: str, text: Any, span: tuple[float, float], grounding: bool) -> Item:
    """The clip of one sentence. ValueError if it has no text."""
    sentence = field({"sentence": text}, "sentence").strip()
    shown: JsonObject = dict(id=id, video=video, spans=(span,))
    if not grounding:
        return clip_item(question=times_question((span,)), answer=sentence, **shown)
    question = f"From when to when: {sentence}" if sentence else ""
    return clip_item(question=question, answer=times_answer((span,)), task="grounding", **shown)


def times_question(spans: Sequence[tuple[float, float]]) -> str:
    """The question for what happens in the first of some spans, in seconds; "" if there is none."""
    return "What happens from {:.2f} to {:.2f} seconds?".format(*spans[0]) if spans else ""


def times_answer(spans: Sequence[tuple[float, float]]) -> str:
    """The answer that names the first of some spans, in seconds; "" if there is none."""
    return "From {:.2f} to {:.2f} seconds.".format(*spans[0]) if spans else ""
