"""The rows of the sources, one after another, and what the filters of rows find in each."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vpjax.building.annotations import detect_format, items_of
from vpjax.building.sources import parse_json, read_rows
from vpjax.curation.contamination import known_of
from vpjax.curation.measures import ROW, Candidate, Tools, video_name
from vpjax.curation.published import READERS, epic_rows
from vpjax.curation.recipe import Benchmark, Filter, Recipe
from vpjax.curation.signatures import bands_of, hash_of, minhash, shingles
from vpjax.data.json_rows import SCHEMES
from vpjax.evaluation.benchmarks import read_all
from vpjax.files import exists, is_folder, join_path, open_file
from vpjax.types import Clip, UserError

if TYPE_CHECKING:
    from vpjax.building.keywords import Extractor
    from vpjax.building.verbs import Tagger

READER = "readable"  # the first filter of all: rows that are broken, empty or in another form
COMMON_WORDS = 12  # a caption of fewer is common, and a copy only beside another one of the same video
DETECTED = 100  # rows by which a format is detected


class Row(NamedTuple):
    """What is kept of a question of a source. number: among those of its source. draw: the place in the order
    of the draw, by content. dropped: the measure of the filter that dropped it, "" for none; value: what that
    measured; detail: what a reader says of a row that it cannot use. caption: what it says of its video.
    clip: JSON, "" for a row that cannot be read. action, seconds: see ``Candidate``; NaN is None. signature,
    bands: of its caption, without which a row is no copy of another."""

    source: str
    number: int
    place: str
    draw: int
    dropped: str
    value: float | None
    detail: str
    caption: str
    clip: str
    video: str
    action: str
    seconds: float | None
    signature: bytes
    bands: list[int]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What rows are judged by; hashable, so that each process loads its tools once. root: the folder of all
    sources. spacy, keywords: see ``building.examine.Options``."""

    recipe: Recipe
    root: str
    spacy: str = ""
    keywords: tuple[str, ...] = ()
    schemes: tuple[str, ...] = SCHEMES


def stream_rows(path: str, format: str) -> Iterator[tuple[str, Any]]:
    """The rows of an annotation file, each with its place. JSON lines and tables of EPIC-KITCHENS are read
    one at a time."""
    if not exists(path) or is_folder(path):
        raise UserError(f"{path}: no such annotation file")
    if not path.endswith(".jsonl"):
        yield from (epic_rows if format == "epic-kitchens" else read_rows)(path)
        return
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            if text := line.removeprefix(b"\xef\xbb\xbf").strip():
                yield f"line {number}", parse_json(text)


def chunks_of(path: str, format: str, size: int, skip: int) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """The rows of a file from number ``skip`` on, in chunks of at most ``size``, each with the format.
    format: "" detects it."""
    rows = stream_rows(path, format)
    first = list(itertools.islice(rows, DETECTED))
    format = format or (detect_format(path, [row for _, row in first]) if first else "")
    rows = itertools.islice(itertools.chain(first, rows), skip, None)
    while chunk := list(itertools.islice(rows, size)):
        yield format, chunk


@functools.cache
def load_tools(settings: Settings) -> Tools:
    """Load what rows are measured with, once per process. UserError for what cannot be loaded."""
    clips = (clip for benchmark in settings.recipe.benchmarks for clip in held(settings.root, benchmark))
    return Tools(*load_words(settings.spacy, settings.keywords), known_of(clips))


@functools.cache
def load_words(spacy: str, keywords: tuple[str, ...]) -> "tuple[Extractor, Tagger, Callable[[str], bool]]":
    from vpjax.building.keywords import load_extractor  # spaCy, which takes a while to import
    from vpjax.building.verbs import Tagger

    tagger = Tagger()
    return load_extractor(spacy, keywords), tagger, functools.lru_cache(1 << 16)(tagger.is_known)


def held(root: str, benchmark: Benchmark) -> list[Clip]:
    """All that a benchmark shows and says, of the questions without a public answer, too."""
    clips, unasked = read_all(benchmark.name, join_path(root, benchmark.file))
    return [*clips, *(row.clip for row in unasked)]


def judge(settings: Settings, source: str, format: str, rows: Sequence[tuple[str, Any]]) -> list[list[Row]]:
    """What the filters of rows find in each question of each row. Their numbers are still 0."""
    read, tools = READERS[format], load_tools(settings)
    judged = []
    for place, row in rows:
        items = items_of(row, read, settings.schemes)
        found = []
        for number, item in enumerate(items, 1):
            where = f"{place}, question {number}" if len(items) > 1 else place
            if item.clip is None:
                found.append(unreadable(settings.recipe.seed, source, where, item.skipped))
            else:
                found.append(judge_clip(settings.recipe, source, where, Candidate(item.clip, tools)))
        judged.append(found)
    return judged


def unreadable(seed: int, source: str, place: str, reason: str) -> Row:
    draw = hash_of(f"{seed} {source} {place}".encode())
    return Row(source, 0, place, draw, READER, None, reason, "", "", "", "", None, b"", [])


def judge_clip(recipe: Recipe, source: str, place: str, candidate: Candidate) -> Row:
    """A clip after the filters of rows: those behind the first that drops it measure nothing."""
    dropped, value = first_failure(recipe.filters_at("row"), candidate)
    clip = candidate.clip
    said = repr((source, clip.media, clip.question, clip.answer, clip.spans, clip.start, clip.end))
    signature, bands, action, seconds = b"", list[int](), "", None
    if not dropped:
        action, seconds = candidate.action, none_for_nan(candidate.event_seconds)
        if recipe.has("caption_copy"):
            entries = minhash(shingles(candidate.words))
            salt = video_name(clip) if len(candidate.words) < COMMON_WORDS else ""
            signature, bands = entries.tobytes(), bands_of(entries, salt)
    return Row(
        source=source,
        number=0,
        place=place,
        draw=hash_of(f"{recipe.seed} {said}".encode()),
        dropped=dropped,
        value=value,
        detail="",
        caption=candidate.told,
        clip=json.dumps(clip.record()),
        video=video_name(clip),
        action=action,
        seconds=seconds,
        signature=signature,
        bands=bands,
    )


def first_failure(filters: Iterable[Filter], candidate: Candidate) -> tuple[str, float | None]:
    """The measure of the first filter that drops a candidate, and its value; ("", None): none does."""
    for filter in filters:
        value = ROW[filter.measure](candidate)
        if not filter.keeps(value):
            return filter.measure, value
    return "", None


def none_for_nan(value: float) -> float | None:
    return None if value != value else value
