"""What a model is shown of a benchmark's clips: the section ``data`` of an evaluation, clips within their
files, and clips without their answers."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vpjax.data.cache import cache_folder
from vpjax.data.probing import probe_sources
from vpjax.data.sampling import NO_LIMIT
from vpjax.models.vlm import VideoLM
from vpjax.types import Clip, Keyword

# Benchmarks need more room than training: long texts beside the videos, and spans of any number of events.
# Videos that cannot be used are counted in the results instead of ending the command.
ROOM = dict(
    length_multiple=64,
    max_tokens=32768,
    max_answer=8192,
    keywords=16,
    keyword_tokens=64,
    train_turns="last",
    max_fault_share=1.0,
    widen=0,
)
UNNAMED = "event"  # the keyword of a clip that has spans but no keywords, for the controls key and random
OWN = ("events", "clips")  # benchmarks in vpjax's format, whose questions get the run's instructions


def with_options(data_fields: Mapping[str, Any], options: Mapping[str, Any]) -> ConfigDict:
    """The section ``data`` with some fields replaced, of which a limit that is asked for comes before the
    run's: max_pixels before its min_pixels, min_pixels before its max_pixels, and total_pixels before its
    budget of tokens (max_tokens 0: total_pixels is the only budget)."""
    fields = {**data_fields, **options}
    if "max_pixels" in options and "min_pixels" not in options:
        fields["min_pixels"] = min(fields["min_pixels"], fields["max_pixels"])
    if "min_pixels" in options and "max_pixels" not in options:
        fields["max_pixels"] = max(fields["min_pixels"], fields["max_pixels"])
    if "total_pixels" in options:
        fields["max_tokens"] = 0
    return ConfigDict(fields)


def evaluation_data(data_config: ConfigDict, benchmark: str, model: VideoLM) -> ConfigDict:
    """The section ``data`` of an evaluation: that of the run, with ROOM.

    Videos have the run's budget of tokens, or that of ``with_options``. Its own clips share the run's with
    their texts, as in training; those of other benchmarks leave it to the videos alone."""
    fields = data_config.to_dict() | ROOM
    budget = data_config.get("max_tokens")
    if benchmark in OWN:
        fields["length_multiple"] = data_config.get("length_multiple", ROOM["length_multiple"])
    if budget == 0:
        fields["max_tokens"] = NO_LIMIT
    elif budget and benchmark in OWN:
        fields["max_tokens"] = budget
    elif budget:
        pixels = budget * model.config.vision.factor**2
        fields["total_pixels"] = min(data_config.get("total_pixels") or pixels, pixels)
        fields["max_tokens"] += budget
    return ConfigDict(fields)


def without_answer(clip: Clip) -> Clip:
    """The clip without its answer. If no keyword has spans, those of a clip of one video mark key frames."""
    keywords = clip.keywords if any(keyword.spans for keyword in clip.keywords) else ()
    if not keywords and clip.spans and not clip.others:
        keywords = (Keyword(UNNAMED, UNNAMED, clip.spans),)
    return dataclasses.replace(clip, answer="", keywords=keywords)


def within_files(clips: Sequence[Clip], data_config: ConfigDict, say: Callable[[str], None]) -> list[Clip]:
    """The clips, of which a part that ends after its file ends with it, as in MVBench's own code. How many
    these are is told to ``say``."""
    paths = sorted({clip.video for clip in clips if clip.end is not None})
    probed = probe_sources(paths, cache_folder(data_config), data_config.max_side) if paths else {}
    found, cut = [], []
    for clip in clips:
        info = None if clip.end is None else probed[clip.video].info
        if info is not None and (clip.start or 0.0) < info.duration < (clip.end or 0.0):
            cut.append(clip.id)
            clip = dataclasses.replace(clip, end=None)
        found.append(clip)
    if cut:
        say(f"{len(cut)} clips end after their files, and are shown up to there, such as {cut[0]}")
    return found
