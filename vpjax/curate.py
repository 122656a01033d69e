"""``vpjax.build --recipe``: chooses clips among the rows of many sources (docs/curation.md).

    <out>/curation.sqlite    every row, what was measured on it, and what dropped it
    <out>/report.html        the funnel, and samples of what each step dropped: look at it before you train
    <out>/chosen/            with --dry_run: the chosen rows of each source, for vpjax.build --annotations
    <out>/clips/             the chosen clips of each source, with key frames
    <out>/config.py          a recipe for vpjax.train that mixes them
    <out>/videos/            the parts of the videos that are examined so far

Rows first: each is judged by its own text, then copies go, and a draw under caps takes the rows whose videos
are worth examining. Then their videos, by the engines of ``vpjax.engines``; a second draw takes the clips.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vpjax.building.examine import Options
from vpjax.building.items import Item
from vpjax.building.parts import may_change
from vpjax.curation import choose, funnel, mixture
from vpjax.curation.recipe import Filter, Recipe, Source
from vpjax.curation.rows import Settings, chunks_of, judge, load_tools
from vpjax.curation.signatures import bands_of
from vpjax.curation.store import Drop, OpenClip, Store
from vpjax.curation.videos import NEEDS, PICTURE, Measurer, picture_of
from vpjax.data.clips import parse_clip, relative_to
from vpjax.data.json_rows import SCHEMES
from vpjax.engines import examine_in_parts
from vpjax.files import exists, join_path, local_folder, stamp, write_whole, written
from vpjax.types import Clip, UserError

CHUNK = 500  # rows that a process judges at once, and that are kept or lost together
CLIPS_PER_SECOND = 4.0  # of one process, 10 s of 320 x 240 each (benchmarks/results/2026-11-21-build.md)
HOUR = 3600


def curate(
    recipe: Recipe,
    root: str,
    out: str,
    *,
    pool: Executor,
    workers: int,
    options: Options | None = None,
    runner: str = "",
    beam: Sequence[str] = (),
    dry_run: bool = False,
    schemes: Sequence[str] = SCHEMES,
) -> dict[str, Any]:
    """Choose among the rows of the sources below ``root`` by a recipe, and write what is chosen to ``out``.

    The same command again continues, and one with other caps, shares or limits of copies and videos chooses
    anew. pool: of ``workers`` processes. options: how videos are examined. runner, beam: see ``vpjax.build``.
    dry_run: read the annotations only, also where those of some sources are missing. Returns the funnel's
    counts. UserError for a missing file, if ``out`` holds rows that were judged otherwise and, once all is
    written, if no row is chosen.
    """
    start = time.perf_counter()
    options = options or Options()
    recipe = with_present_sources(without_models(recipe, options), root, dry_run)
    if not dry_run:
        for general in recipe.general:
            mixture.clips_in(general.file)  # which is counted again when all else is done
    settings = Settings(recipe, root, options.spacy, options.keywords, tuple(schemes))
    made_from = recipe.rows_made_from() | {
        "keywords": load_tools(settings).extract.describe(),
        "benchmark file": [stamp(join_path(root, x.file))[0] for x in recipe.benchmarks],
    }
    with contextlib.closing(Store(local_folder(out) / "curation.sqlite", made_from)) as store:
        store.claim_files(
            {
                path: (source.name, source.format, stamp(path)[0])
                for source in recipe.sources
                for path in files_of(source, root)
            }
        )
        read = read_sources(store, settings, pool, workers)
        drop_copies_of_captions(store, recipe)
        examined = round(recipe.total * (1 if dry_run else recipe.oversample))
        store.drop(choose.draw(store.open_rows(), recipe, examined))
        print(f"{read:,} rows judged and drawn in {time.perf_counter() - start:.0f} s", flush=True)
        clips: dict[int, Clip] = {}
        if dry_run:
            write_chosen(store, recipe, root, out)
            print(*forecast(store, recipe, root, workers), sep="\n")
        else:
            clips = examine_videos(store, recipe, root, out, options, pool, runner, beam)
            store.drop(choose.draw(store.open_rows(), recipe, recipe.total))
            write_clips(store, recipe, clips, out)
        summary = funnel.summarize(store, recipe)
        page = join_path(out, "report.html")
        write_whole(page, funnel.render_report(store, recipe, summary, clips, pool).encode())
    print(*funnel.lines(summary), f"look at {page}", sep="\n")
    if not any(summary["chosen"].values()):
        raise UserError(f"no row is chosen: {page} says what dropped them")
    return summary


def without_models(recipe: Recipe, options: Options) -> Recipe:
    """The recipe without the filters whose model is not given, which is told."""
    kept = []
    for filter in recipe.filters:
        flag = NEEDS.get(filter.measure, "")
        if flag and not getattr(options, flag.removeprefix("--")):
            print(f"the filter {filter.measure} is left out: it needs {flag}", flush=True)
        else:
            kept.append(filter)
    return dataclasses.replace(recipe, filters=tuple(kept))


def with_present_sources(recipe: Recipe, root: str, dry_run: bool) -> Recipe:
    """The recipe with those of its sources whose annotations are there. The others are told, or, but for a
    dry run, a UserError."""
    missing = missing_files(recipe, root)
    if missing and not dry_run:
        raise UserError(f"{'; '.join(missing)}; --sources leaves sources out, --dry_run counts without them")
    for line in missing:
        print(line, flush=True)
    present = [source.name for source in recipe.sources if all(map(exists, files_of(source, root)))]
    if not present:
        raise UserError(f"--root={root}: no source has its annotation files there")
    return recipe.of(present)


def files_of(source: Source, root: str) -> list[str]:
    return [join_path(root, f"{source.name}/{file}") for file in source.files]


def missing_files(recipe: Recipe, root: str) -> list[str]:
    """What to get for each source and each benchmark that lacks a file."""
    found = []
    for source in recipe.sources:
        if absent := [path for path in files_of(source, root) if not exists(path)]:
            found.append(f"{source.name}: {', '.join(absent)} is missing: get it at {source.url}")
    for benchmark in recipe.benchmarks:
        path = join_path(root, benchmark.file)
        if not exists(path):
            raise UserError(f"{path} is missing: the recipe keeps the rows of {benchmark.name} out by it")
    return found


def read_sources(store: Store, settings: Settings, pool: Executor, workers: int) -> int:
    """Judge the rows of all sources that ``store`` does not hold yet, and return how many it holds."""
    total = 0
    for source in settings.recipe.sources:
        for path in files_of(source, settings.root):
            read, finished = store.rows_read(path)
            if not finished:
                with tqdm(desc=source.name, initial=read, unit="row", mininterval=1.0) as bar:
                    for judged in judged_chunks(settings, source, path, read, pool, workers):
                        store.add(path, read, judged)
                        read += len(judged)
                        bar.update(len(judged))
                store.finish(path)
            total += read
    return total


def judged_chunks(
    settings: Settings, source: Source, path: str, skip: int, pool: Executor, workers: int
) -> Iterator[list[list[Any]]]:
    """The rows of a file from a number on, judged, chunk by chunk in their order. No more chunks are read
    than the workers need."""
    waiting: collections.deque[Future] = collections.deque()
    for format, rows in chunks_of(path, source.format, CHUNK, skip):
        waiting.append(pool.submit(judge, settings, source.name, format, rows))
        if len(waiting) > 2 * workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def drop_copies_of_captions(store: Store, recipe: Recipe) -> None:
    """Forget what an earlier command dropped after the rows were judged, and drop the copies."""
    store.forget_drops()
    for filter in recipe.filters_at("copies"):
        choose.drop_copies(store, "caption", filter)


def located(row: OpenClip, folders: Mapping[str, str]) -> Clip:
    """A chosen row as a clip with an id of its own, its paths below the folder of its source's videos."""
    clip = parse_clip(json.loads(row.record))
    paths = [join_path(folders[row.source], path) for path in clip.media]
    return dataclasses.replace(clip, id=f"{row.source}-{row.number}").with_media(paths)


def video_folders(recipe: Recipe, root: str) -> dict[str, str]:
    return {source.name: join_path(root, f"{source.name}/{source.videos}") for source in recipe.sources}


def write_by_source(
    store: Store, recipe: Recipe, folder: str, clip_of: Callable[[OpenClip], Clip]
) -> dict[str, int]:
    """Write ``clip_of`` each chosen row to a file for each source, and count them. Of a source without any
    the file of an earlier choice is deleted."""
    counts = {}
    for name, rows in itertools.groupby(store.open_clips(), key=lambda row: row.source):
        counts[name] = 0
        with written(join_path(folder, f"{name}.jsonl")) as part, part.open("w") as file:
            for row in rows:
                file.write(json.dumps(relative_to(clip_of(row), folder).record()) + "\n")
                counts[name] += 1
    for source in recipe.sources:
        if source.name not in counts:
            Path(folder, f"{source.name}.jsonl").unlink(missing_ok=True)
    return counts


def write_chosen(store: Store, recipe: Recipe, root: str, out: str) -> None:
    """Write the chosen rows of each source as clips without key frames."""
    folders = video_folders(recipe, root)
    write_by_source(store, recipe, join_path(out, "chosen"), lambda row: located(row, folders))


def forecast(store: Store, recipe: Recipe, root: str, workers: int) -> Iterator[str]:
    """Lines that say which sources have no videos, and how long the videos will take."""
    for source, folder in video_folders(recipe, root).items():
        if not exists(folder):
            yield f"{source}: its videos are missing ({folder})"
    count = round(recipe.oversample * sum(1 for _ in store.open_rows()))
    hours = count / CLIPS_PER_SECOND / workers / HOUR
    yield (
        f"without --dry_run, about {count:,} videos are examined: {hours:.1f} hours with {workers} processes "
        f"at {CLIPS_PER_SECOND:g} clips a second each, the rate of small videos of 10 s; a model comes on top"
    )


def examine_videos(
    store: Store,
    recipe: Recipe,
    root: str,
    out: str,
    options: Options,
    pool: Executor,
    runner: str,
    beam: Sequence[str],
) -> dict[int, Clip]:
    """Examine the videos of the rows that are left, but for those that an earlier command examined, and drop
    those that the filters of videos do not keep. Returns the clips with key frames, by row."""
    folders = video_folders(recipe, root)
    filters = recipe.filters_at("video")
    measurer = Measurer(tuple(sorted(filter.measure for filter in filters)))
    made_from = digest_of([dataclasses.asdict(options), dataclasses.asdict(measurer)])
    known = store.examined(made_from)
    rows = [row for row in store.open_clips() if row.id not in known]
    items = [Item(f"{row.source}, {row.place}", located(row, folders)) for row in rows]
    folder = join_path(out, f"videos/{digest_of([made_from, repr(items)])}")
    results = examine_in_parts(pool, items, options, folder, runner, beam, measurer)
    examined = {
        row.id: (item.skipped, json.dumps(item.clip.record()) if item.clip is not None else "")
        for row, item in zip(rows, results, strict=True)
    }
    # Videos that are missing or broken may be mended: the next command looks at them again.
    final = [row.id for row, item in zip(rows, results, strict=True) if not may_change(item)]
    store.add_examined(made_from, ((row, *examined[row]) for row in final))
    examined |= known
    store.drop(Drop(row, funnel.USABLE, detail=reason) for row, (reason, _) in examined.items() if reason)
    clips = {row: parse_clip(json.loads(record)) for row, (_, record) in examined.items() if record}
    for filter in filters:
        drop_by_video(store, filter, clips)
    return clips


def drop_by_video(store: Store, filter: Filter, clips: Mapping[int, Clip]) -> None:
    """Drop the rows that a filter of videos does not keep. clips: those that were examined, by row."""
    if filter.measure == "picture_copy":
        texts = {row: clip.extra["measured"][PICTURE] for row, clip in clips.items()}
        signatures = {row: picture_of(text) for row, text in texts.items() if text is not None}
        store.add_pictures((row, entries.tobytes(), bands_of(entries)) for row, entries in signatures.items())
        choose.drop_copies(store, "picture", filter)
        return
    values = {row: clip.extra["measured"][filter.measure] for row, clip in clips.items()}
    failed = {row: value for row, value in values.items() if value is not None and not filter.keeps(value)}
    store.drop(Drop(row, filter.measure, value) for row, value in failed.items())


def digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def write_clips(store: Store, recipe: Recipe, clips: dict[int, Clip], out: str) -> None:
    """Write the chosen clips of each source, and the recipe of a run that mixes them."""
    folder = join_path(out, "clips")
    counts = write_by_source(store, recipe, folder, lambda row: clips[row.id])
    write_whole(join_path(out, "config.py"), mixture.config_text(recipe, counts, folder).encode())
