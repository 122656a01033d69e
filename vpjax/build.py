"""Make a data set of clips with key frames from videos and an annotation file:

python -m vpjax.build --annotations FILE --videos DIR --out DIR [--scorer span,motion] [...]

<out>/clips.jsonl    one clip a line, which vpjax.train takes as --config.data.train (or .array_record)
<out>/skipped.jsonl  the questions that gave no clip: where they stand and why
<out>/report.html    counts, histograms and sample clips: look at it before you train
<out>/manifest.json  what it was made from and with
<out>/parts/         what was done so far: the same command again goes on, and tries again the videos that
                     were missing or could not be read
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from absl import flags
from tqdm import tqdm

from vpjax import cli
from vpjax.building import report
from vpjax.building.annotations import FORMATS, Item, read_annotations
from vpjax.building.examine import SCORERS, Options
from vpjax.building.keywords import load_extractor
from vpjax.building.parts import is_whole, make_part, parts_of, read_part
from vpjax.data.clips import write_clips
from vpjax.files import exists, folder_of, is_remote, join_path, open_file, write_whole
from vpjax.types import Clip, UserError

Job = tuple[list[Item], Options, str]  # what make_part takes
DEFAULTS = Options(videos="")

ANNOTATIONS = flags.DEFINE_string("annotations", None, "Annotation file: .json, .jsonl or .array_record.")
FORMAT = flags.DEFINE_string("format", "", f"Its format, one of {', '.join(FORMATS)}; '': as it looks.")
VIDEOS = flags.DEFINE_string("videos", "", "Root of its relative paths; '': its own folder.")
OUT = flags.DEFINE_string("out", None, "Folder of the data set.")
ARRAY_RECORD = flags.DEFINE_bool("array_record", False, "Write clips.array_record in place of clips.jsonl.")
SPACY = flags.DEFINE_string("spacy", "", "Trained spaCy pipeline, name or path; '': rules.")
KEYWORDS = flags.DEFINE_string(
    "keywords", "", "File of your own keywords, one a line, in place of all others."
)
SCORER = flags.DEFINE_list(
    "scorer", list(DEFAULTS.scorers), f"How key frames are found: some of {', '.join(SCORERS)}, multiplied."
)
TEXT_MODEL = flags.DEFINE_string("text_model", "", "Folder of a SigLIP or CLIP model, for the scorer text.")
MODEL = flags.DEFINE_string("model", "", "Work directory or Hugging Face folder, for the scorer self.")
FPS = flags.DEFINE_float("fps", DEFAULTS.fps, "Frames per second that are looked at.", 0.0)
MAX_FRAMES = flags.DEFINE_integer("max_frames", DEFAULTS.max_frames, "Of a clip; a longer one gets fewer.", 2)
MAX_PIXELS = flags.DEFINE_integer("max_pixels", DEFAULTS.max_pixels, "Of a frame that is looked at.", 1)
CAP = flags.DEFINE_float(
    "cap", DEFAULTS.cap, "Largest share of a clip that a keyword's frames are.", 0.0, 1.0
)
TFIO_PYTHON = flags.DEFINE_string(
    "tfio_python", "", "A Python with tensorflow-io, to decode in place of PyAV."
)
WORKERS = flags.DEFINE_integer("workers", os.cpu_count(), "Processes.", 1)
RUNNER = flags.DEFINE_string("runner", "", "Apache Beam runner in place of local processes, as FlinkRunner.")
BEAM = flags.DEFINE_multi_string("beam", [], "An option of Beam's own, as --beam=--flink_master=HOST:PORT.")
SAMPLES = flags.DEFINE_integer("samples", 24, "Clips that the report shows.", 0)
MAX_SKIPPED = flags.DEFINE_float(
    "max_skipped_share", 0.1, "Of the questions; beyond it, no data set.", 0.0, 1.0
)
flags.adopt_module_key_flags(cli)


def main() -> int:
    cli.require(ANNOTATIONS, OUT)
    annotations = read_annotations(ANNOTATIONS.value, FORMAT.value)
    options = options_of_flags()
    questions = len(annotations.items)
    print(f"{ANNOTATIONS.value}: {annotations.format}, {annotations.rows} rows, {questions} questions")
    check_skipped(report.summarize(annotations.items, annotations.rows))
    about = {
        "annotations": f"{ANNOTATIONS.value} ({annotations.format})",
        "videos": options.videos,
        "keywords": load_extractor(options.spacy, options.keywords).describe(),
        "key frames": " x ".join(options.scorers) + " (span: where there are annotated spans)",
    }
    folder = join_path(OUT.value, "parts")
    claim(folder, annotations.items, options, about["keywords"])
    with worker_processes() as pool:
        numbered = enumerate(parts_of(annotations.items))
        parts = {join_path(folder, f"{number:05d}.jsonl"): places for number, places in numbered}
        jobs = [
            ([annotations.items[place] for place in places], options, file)
            for file, places in parts.items()
            if not (exists(file) and is_whole(file))
        ]
        if RUNNER.value:
            examine_on_beam(jobs)
        else:
            examine_here(pool, jobs, sum(map(len, parts.values())))
        items = list(annotations.items)
        for file, places in parts.items():
            for place, item in zip(places, read_part(file), strict=True):
                items[place] = item
        summary = report.summarize(items, annotations.rows)
        sheets = sampled(pool, annotations.items, items, options)
    write(OUT.value, items, summary, sheets, options, about)
    return cli.OK


def options_of_flags() -> Options:
    """The options that the flags say. UserError for one that cannot be."""
    unknown = set(SCORER.value) - set(SCORERS)
    if unknown or not SCORER.value:
        raise UserError(f"--scorer={','.join(SCORER.value)}: choose some of {', '.join(SCORERS)}")
    for scorer, name, folder in (("text", "text_model", TEXT_MODEL.value), ("self", "model", MODEL.value)):
        if scorer in SCORER.value and not folder:
            raise UserError(f"--scorer={','.join(SCORER.value)} needs --{name}")
    if not FPS.value:
        raise UserError("--fps must be above 0")
    keywords = ()
    if KEYWORDS.value:
        with open_file(KEYWORDS.value, "rb") as file:
            keywords = tuple(line.strip() for line in file.read().decode().splitlines() if line.strip())
        if not keywords:
            raise UserError(f"--keywords={KEYWORDS.value}: no keywords in this file")
    return Options(
        videos=VIDEOS.value or folder_of(ANNOTATIONS.value),
        spacy=SPACY.value,
        keywords=keywords,
        scorers=tuple(SCORER.value),
        text_model=TEXT_MODEL.value,
        model=MODEL.value,
        fps=FPS.value,
        max_frames=MAX_FRAMES.value,
        max_pixels=MAX_PIXELS.value,
        cap=CAP.value,
        tfio_python=TFIO_PYTHON.value,
    )


@contextlib.contextmanager
def worker_processes() -> Iterator[Executor]:
    """The local worker processes, started when they are first needed."""
    context = get_context("spawn")  # JAX may run threads, which a fork would not survive
    pool = ProcessPoolExecutor(WORKERS.value, context, initializer=ignore_interrupts)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for want of memory: the same command goes on where it was; "
            "--workers, --max_frames and --max_pixels say how much it needs"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent, which ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def claim(folder: str, items: Sequence[Item], options: Options, keywords: str) -> None:
    """Make ``folder`` that of this build. UserError where it is another one's."""
    made_from = {
        "items": hashlib.sha256(repr(items).encode()).hexdigest(),
        "options": dataclasses.asdict(options),
        "keywords": keywords,
    }
    record, file = json.dumps(made_from, indent=1), join_path(folder, "made_from.json")
    if not exists(file):
        write_whole(file, record.encode())
        return
    with open_file(file, "rb") as known:
        theirs = json.load(known)
    changed = [name for name, value in json.loads(record).items() if theirs.get(name) != value]
    if changed:
        what = "annotations" if "items" in changed else " and ".join(changed)
        raise UserError(
            f"--out={OUT.value} holds a build with other {what}: delete it or choose another folder"
        )


def examine_here(pool: Executor, jobs: Sequence[Job], total: int) -> None:
    """Make the parts in local processes. total: clips of all parts."""
    done = {pool.submit(make_part, *job): len(job[0]) for job in jobs}
    with tqdm(desc="clips", total=total, initial=total - sum(done.values()), unit="clip") as bar:
        for future in as_completed(done):
            future.result()
            bar.update(done[future])


def examine_on_beam(jobs: Sequence[Job]) -> None:
    """Make the parts on an Apache Beam runner, whose workers must see the same files."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(f"--runner={RUNNER.value} needs Apache Beam: pip install 'vpjax[beam]'") from error
    options = PipelineOptions([f"--runner={RUNNER.value}", *BEAM.value])
    with beam.Pipeline(options=options) as pipeline:
        _ = pipeline | beam.Create(jobs) | beam.Reshuffle() | beam.MapTuple(make_part)


def sampled(
    pool: ProcessPoolExecutor, annotated: Sequence[Item], items: Sequence[Item], options: Options
) -> list[report.Sheet]:
    """The sheets of a report's sample clips."""
    chosen = report.samples(items, SAMPLES.value)
    sheets = pool.map(report.sheet_of, [annotated[place] for place in chosen], [options] * len(chosen))
    return [sheet for sheet in tqdm(sheets, "report", total=len(chosen), unit="clip") if sheet is not None]


def check_skipped(summary: report.Summary) -> None:
    """UserError where more is skipped than --max_skipped_share allows, or all."""
    skipped = summary.questions - summary.clips
    if skipped > MAX_SKIPPED.value * summary.questions or not summary.clips:
        why = "; ".join(f"{reason.text} {reason.count} ({reason.examples[0]})" for reason in summary.skipped)
        raise UserError(
            f"{skipped} of {summary.questions} questions give no clip, where --max_skipped_share="
            f"{MAX_SKIPPED.value:g} allows fewer: {why}"
        )


def write(
    out: str,
    items: Sequence[Item],
    summary: report.Summary,
    sheets: Sequence[report.Sheet],
    options: Options,
    about: dict[str, str],
) -> None:
    """Write all of a data set's files, the clips last. UserError where too much was skipped: then they are
    not written."""
    left = [dict(place=item.place, reason=item.skipped) for item in items if item.skipped]
    write_whole(join_path(out, "skipped.jsonl"), "".join(json.dumps(row) + "\n" for row in left).encode())
    write_whole(join_path(out, "report.html"), report.page(summary, items, sheets, about).encode())
    manifest = dict(about=about, options=dataclasses.asdict(options), counts=dataclasses.asdict(summary))
    write_whole(join_path(out, "manifest.json"), json.dumps(manifest, indent=1).encode())
    print(
        f"{summary.rows} rows, {summary.questions} questions = {summary.clips} clips "
        f"({summary.degraded} with V~) + {summary.questions - summary.clips} skipped; "
        f"look at {join_path(out, 'report.html')}"
    )
    check_skipped(summary)
    clips = [from_folder(item.clip, out) for item in items if item.clip]
    write_clips(join_path(out, "clips.array_record" if ARRAY_RECORD.value else "clips.jsonl"), clips)


def from_folder(clip: Clip, out: str) -> Clip:
    """A clip with its video's path as seen from the folder of the data set, so that both can be moved
    together."""
    if not clip.video or is_remote(clip.video) or is_remote(out):
        return clip
    return dataclasses.replace(clip, video=os.path.relpath(clip.video, out))


if __name__ == "__main__":
    cli.run(main)
