"""Make a data set of clips with key frames from videos and an annotation file:

    python -m vpjax.build --annotations FILE --videos DIR --out DIR [--scorer span,motion] [...]

The same command again continues, and retries the videos that were missing or could not be read. At its end
it says which events no frame shows if a run samples the videos as the recipe ``--config`` does.

    <out>/clips.jsonl    one clip a line, for vpjax.train as --config.data.train (or clips.array_record)
    <out>/skipped.jsonl  the questions that gave no clip: their places and the reasons
    <out>/report.html    counts, histograms and sample clips: look at it before you train
    <out>/manifest.json  what it was made from, and how
    <out>/parts/         the work that is finished so far

Or one that is chosen among the rows of many sources, by a recipe (configs/data/vp80k.py, docs/curation.md):

    python -m vpjax.build --recipe vp80k --root DIR --out DIR [--dry_run]
"""

import argparse
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from vpjax import cli
from vpjax.building import report
from vpjax.building.annotations import FORMATS, read_annotations
from vpjax.building.examine import SCORERS, Options
from vpjax.building.items import Item
from vpjax.data import coverage
from vpjax.data.cache import cache_folder
from vpjax.data.clips import relative_to, write_clips
from vpjax.data.images import is_image
from vpjax.data.json_rows import SCHEMES
from vpjax.data.probing import Source, fault_of, probe_sources
from vpjax.data.sampling import File, Sampling, fit_all, readings_of
from vpjax.engines import examine_in_parts, worker_processes
from vpjax.files import exists, folder_of, join_path, names_in, open_file, read_object, write_whole
from vpjax.recipes import sft_qwen2_5_vl_7b
from vpjax.types import Clip, UserError

RECIPE = "sft_qwen2_5_vl_7b"  # the one for clips of your own
BYTES_PER_TOKEN = 4  # of English text, roughly
FOR_ANNOTATIONS = ("format", "videos", "array_record", "samples", "max_skipped_share")  # flags of no recipe
STAMP_TOKENS = 11  # of a slot whose time is written before it, as Qwen3-VL's are, and of the marks around it


def build(
    annotations: str,
    out: str,
    options: Options | None = None,
    *,
    format: str = "",
    array_record: bool = False,
    workers: int | None = None,
    runner: str = "",
    beam: Sequence[str] = (),
    samples: int = 24,
    max_skipped_share: float = 0.1,
    schemes: Sequence[str] = SCHEMES,
    config: ConfigDict | None = None,
) -> report.Summary:
    """Make the data set ``out`` from a file of annotations and return its counts.

    options: how clips are examined; without ``videos``, paths start at the folder of the annotations. format:
    a name in FORMATS; "" detects it. workers: local processes, by default one per core. runner, beam: an
    Apache Beam runner that replaces them, and Beam's own options. samples: clips that the report shows.
    max_skipped_share: of the questions; if more are skipped, no clips are written. schemes: of the URLs that
    annotations may name. config: the recipe of the run for which the events that no frame shows are counted;
    None: RECIPE. UserError if too many questions are skipped, for files that cannot be used, if ``out`` holds
    another build and, once all is written, if more than ``config.data.max_missed_share`` of the events are
    missed.
    """
    from vpjax.building.keywords import load_extractor  # spaCy, which --help does not wait for

    options = options or Options()
    if not options.videos:
        options = dataclasses.replace(options, videos=folder_of(annotations))
    source = read_annotations(annotations, format, schemes)
    print(f"{annotations}: {source.format}, {source.rows} rows, {len(source.items)} questions", flush=True)
    check_skipped(report.summarize(source.items, source.rows), max_skipped_share)
    about = {
        "annotations": f"{annotations} ({source.format})",
        "videos": options.videos,
        "keywords": load_extractor(options.spacy, options.keywords).describe(),
        "key frames": " x ".join(options.scorers) + " (span: where there are annotated spans)",
    }
    claim_folder(out, source.items, options, about["keywords"])
    with worker_processes(workers or os.cpu_count() or 1) as pool:
        items = examine_in_parts(pool, source.items, options, out, runner, beam)
        chosen = [source.items[n] for n in report.choose_samples(items, samples)]
        sheets = make_sheets(pool, chosen, options)
    summary = report.summarize(items, source.rows)
    config = config or sft_qwen2_5_vl_7b.get_config()
    seen, problems = coverage_of([item.clip for item in items if item.clip], config)
    page = report.render_report(summary, items, sheets, about, seen)
    manifest = dict(about=about, options=dataclasses.asdict(options), counts=dataclasses.asdict(summary))
    write_findings(out, items, page, manifest)
    skipped = summary.questions - summary.clips
    print(
        f"{summary.rows} rows, {summary.questions} questions = {summary.clips} clips "
        f"({summary.degraded} with V~) of {summary.turns} turns + {skipped} skipped; "
        f"look at {join_path(out, 'report.html')}"
    )
    check_skipped(summary, max_skipped_share)
    clips = [relative_to(item.clip, out) for item in items if item.clip]
    write_clips(join_path(out, "clips.array_record" if array_record else "clips.jsonl"), clips)
    if lines := seen.lines():
        sampling = f"{Sampling.of(config.data).describe()}, at most {config.data.max_tokens} tokens a clip"
        print(f"with {sampling} (--config):", *lines, sep="\n")
    if problems:
        print(f"{len(problems)} clips could not be looked at again for this, such as {problems[0]}")
    coverage.check(seen, config.data.max_missed_share)
    return summary


def write_findings(out: str, items: Sequence[Item], page: str, manifest: dict[str, Any]) -> None:
    """Write what there is to know of a data set beside its clips. page: the report."""
    skipped = [dict(place=item.place, reason=item.skipped) for item in items if item.skipped]
    write_whole(join_path(out, "skipped.jsonl"), "".join(json.dumps(row) + "\n" for row in skipped).encode())
    write_whole(join_path(out, "report.html"), page.encode())
    write_whole(join_path(out, "manifest.json"), json.dumps(manifest, indent=1).encode())


def coverage_of(clips: Sequence[Clip], config: ConfigDict) -> tuple[coverage.Coverage, list[str]]:
    """Which of the clips' events a run of ``config`` will see, and why some clips are not counted. Texts, for
    which there is no tokenizer here, count by BYTES_PER_TOKEN."""
    sampling = Sampling.of(config.data)
    timed = [clip for clip in clips if clip.media and any(keyword.spans for keyword in clip.keywords)]
    timed = [clip for clip in timed if not all(map(is_image, clip.media))]
    if not timed:
        return coverage.measure([], sampling), []
    from vpjax.plan import read_model  # brings the model's code

    model_config = read_model(config)
    slot_tokens = STAMP_TOKENS if model_config.tokens_per_second is None else 0
    paths = sorted({path for clip in timed for path in clip.media})
    sources = probe_sources(paths, cache_folder(config.data), config.data.max_side)
    planned: list[coverage.PlannedClip] = []
    problems: list[str] = []
    for clip in timed:
        text_tokens = sum(len(text.encode()) for text in clip.texts) // BYTES_PER_TOKEN
        limits = dict(factor=model_config.vision.factor, max_tokens=config.data.max_tokens - text_tokens)
        try:
            planned += plan_media(clip, [sources[path] for path in clip.media], sampling, slot_tokens, limits)
        except (UserError, ValueError) as error:
            problems.append(f"{clip.id}: {error}")
    return coverage.measure(planned, sampling), problems


def plan_media(
    clip: Clip, sources: Sequence[Source], sampling: Sampling, slot_tokens: int, limits: dict[str, int]
) -> list[coverage.PlannedClip]:
    """How each of a clip's videos and images will be read. slot_tokens: text beside each slot. limits: see
    ``fit_all``, which may raise ValueError or UserError. UserError for a file that cannot be used."""
    if fault := fault_of(sources):
        raise UserError(fault)
    files = [
        File(source.info, reading.part, slot_tokens, reading.sampling)
        for source, reading in zip(sources, readings_of(clip, sampling, len(sources)), strict=True)
        if source.info is not None
    ]
    shapes = fit_all(sampling, files, **limits)
    planned = []
    for number, (file, shape) in enumerate(zip(files, shapes, strict=True)):
        events = [keyword.spans for keyword in clip.keywords if keyword.video == number]
        planned.append(coverage.PlannedClip(events, file.info, file.part, shape, file.sampling))
    return planned


def claim_folder(out: str, items: Sequence[Item], options: Options, keywords: str) -> None:
    """Record in ``out`` what this build is made from. UserError if another build, of which some part is
    finished, is recorded there."""
    made_from = {
        "items": hashlib.sha256(repr(items).encode()).hexdigest(),
        "options": dataclasses.asdict(options),
        "keywords": keywords,
    }
    record, parts = json.dumps(made_from, indent=1), join_path(out, "parts")
    file = join_path(parts, "made_from.json")
    if not exists(file) or names_in(parts) == ["made_from.json"]:
        write_whole(file, record.encode())
    recorded = read_object(file, f"delete the folder {out} and build again")
    changed = [name for name, value in json.loads(record).items() if recorded.get(name) != value]
    if changed:
        names = "annotations" if "items" in changed else " and ".join(changed)
        raise UserError(f"--out={out} holds a build with other {names}: delete it or choose another folder")


def make_sheets(pool: Executor, items: Sequence[Item], options: Options) -> list[report.Sheet]:
    sheets = pool.map(report.make_sheet, items, [options] * len(items))
    return [sheet for sheet in tqdm(sheets, "report", total=len(items), unit="clip") if sheet is not None]


def check_skipped(summary: report.Summary, max_share: float) -> None:
    """UserError if more than ``max_share`` of the questions are skipped, or all."""
    skipped = summary.questions - summary.clips
    if skipped > max_share * summary.questions or not summary.clips:
        why = "; ".join(f"{reason.text} {reason.count} ({reason.examples[0]})" for reason in summary.skipped)
        allowed = f"--max_skipped_share={max_share:g} allows fewer"
        raise UserError(f"{skipped} of {summary.questions} questions give no clip, where {allowed}: {why}")


def read_keywords(file: str) -> tuple[str, ...]:
    """The lines of a file of keywords, with a byte order mark or without. UserError if it has none, is no
    text or cannot be read."""
    try:
        with open_file(file, "rb") as content:
            lines = content.read().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"--keywords={file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--keywords={file}: no text in UTF-8: {error}") from error
    keywords = tuple(line.strip() for line in lines if line.strip())
    if not keywords:
        raise UserError(f"--keywords={file}: no keywords in this file")
    return keywords


def make_parser() -> cli.Parser:
    """The parser of the command's flags."""
    parser, default = cli.Parser(__doc__), Options()
    add, number = parser.add_argument, cli.at_least
    formats, scorers = ", ".join(FORMATS), ", ".join(SCORERS)
    add("--annotations", default="", help="annotation file: .json, .jsonl, .csv, .txt or .array_record")
    add("--recipe", default="", help="in place of --annotations: a recipe's file, or its name")
    add("--root", default="", help="folder of the recipe's sources")
    add("--sources", type=cli.comma_list, default=[], help="some of the recipe's sources; default: all")
    add("--dry_run", action="store_true", help="choose by the annotations alone, and open no video")
    add("--format", default="", help=f"its format, one of {formats}; '': as detected")
    add("--videos", default="", help="root of its relative paths; '': its own folder")
    add("--out", required=True, help="folder of the data set")
    add("--array_record", action="store_true", help="write clips.array_record in place of clips.jsonl")
    add("--spacy", default="", help="trained spaCy pipeline, name or path; '': rules")
    add("--keywords", default="", help="file of your own keywords, one a line, in place of all others")
    add("--scorer", type=cli.comma_list, default=list(default.scorers), help=f"some of {scorers}, multiplied")
    add("--text_model", default="", help="folder of a SigLIP or CLIP model, for the scorer text")
    add("--model", default="", help="work directory or Hugging Face folder, for the scorer self")
    add("--fps", type=number(0.0), default=default.fps, help="frames per second that are examined")
    add("--max_frames", type=number(2), default=default.max_frames, help="of a clip; a longer one gets fewer")
    add("--max_pixels", type=number(1), default=default.max_pixels, help="of a frame that is examined")
    add(
        "--cap",
        type=cli.share,
        default=default.cap,
        help="largest share of a clip that a keyword's frames are",
    )
    add("--tfio_python", default="", help="a Python with tensorflow-io, to decode in place of PyAV")
    add("--workers", type=number(1), default=os.cpu_count(), help="local processes")
    add("--runner", default="", help="Apache Beam runner in place of local processes, such as FlinkRunner")
    add("--beam", action="append", default=[], help="an option of Beam, as --beam=--flink_master=HOST:PORT")
    add("--samples", type=number(0), default=24, help="clips that the report shows")
    add(
        "--schemes",
        type=cli.comma_list,
        default=SCHEMES,
        help=f"of the URLs that annotations may name besides local paths; default: {','.join(SCHEMES)}",
    )
    add("--max_skipped_share", type=cli.share, default=0.1, help="of the questions; beyond it, no data set")
    add(
        "--config",
        default=RECIPE,
        help="recipe whose run is to see the events; --config.FIELD=VALUE changes it",
    )
    return parser


def check_flags(arguments: argparse.Namespace, config: ConfigDict, defaults: cli.Parser) -> None:
    """UserError for flags that do not go together."""
    if bool(arguments.recipe) == bool(arguments.annotations):
        raise UserError("give --annotations or --recipe")
    if arguments.annotations and (arguments.root or arguments.sources or arguments.dry_run):
        raise UserError("--root, --sources and --dry_run belong to --recipe")
    if arguments.recipe:
        changed = [name for name in FOR_ANNOTATIONS if getattr(arguments, name) != defaults.get_default(name)]
        if config.to_dict() != sft_qwen2_5_vl_7b.get_config().to_dict():
            changed.append("config")
        if changed:
            raise UserError(f"--{changed[0]} belongs to --annotations")


def main() -> None:
    parser = make_parser()
    arguments, config = parser.parse_config()
    check_flags(arguments, config, parser)
    fields = vars(arguments) | dict(
        scorers=tuple(arguments.scorer),
        keywords=read_keywords(arguments.keywords) if arguments.keywords else (),
    )
    options = Options(**{field.name: fields[field.name] for field in dataclasses.fields(Options)})
    if arguments.recipe:
        build_by_recipe(arguments, options)
        return
    build(
        annotations=arguments.annotations,
        out=arguments.out,
        options=options,
        format=arguments.format,
        array_record=arguments.array_record,
        workers=arguments.workers,
        runner=arguments.runner,
        beam=arguments.beam,
        samples=arguments.samples,
        max_skipped_share=arguments.max_skipped_share,
        schemes=arguments.schemes,
        config=config,
    )


def build_by_recipe(arguments: argparse.Namespace, options: Options) -> None:
    """Make a data set that ``--recipe`` chooses among the rows of many sources."""
    from vpjax.curate import curate  # brings the readers of benchmarks
    from vpjax.curation.recipe import load_recipe

    recipe = load_recipe(arguments.recipe)
    if arguments.sources:
        recipe = recipe.of(arguments.sources)
    with worker_processes(arguments.workers) as pool:
        curate(
            recipe,
            arguments.root,
            arguments.out,
            pool=pool,
            workers=arguments.workers,
            options=options,
            runner=arguments.runner,
            beam=arguments.beam,
            dry_run=arguments.dry_run,
            schemes=arguments.schemes,
        )


if __name__ == "__main__":
    cli.run(main)
