"""Where the parts of a build are made: in processes of this machine, or on a cluster by Apache Beam."""

import contextlib
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from tqdm import tqdm

from vpjax.building.examine import Options, examine
from vpjax.building.items import Item
from vpjax.building.parts import Examiner, is_damaged, is_finished, make_part, parts_of, read_part
from vpjax.files import join_path
from vpjax.types import UserError

Job = tuple[list[Item], Options, str, Examiner]  # the arguments of make_part


def examine_in_parts(
    pool: Executor,
    items: Sequence[Item],
    options: Options,
    out: str,
    runner: str = "",
    beam: Sequence[str] = (),
    examine: Examiner = examine,
) -> list[Item]:
    """The results of all items. Only parts that are not finished in ``out`` are made. runner, beam: see
    ``build``; "" is this machine's ``pool``. examine: what finds the results, picklable."""
    parts = {}
    for number, indices in enumerate(parts_of(items)):
        parts[join_path(out, f"parts/{number:05d}.jsonl")] = indices
    for file, indices in parts.items():
        if is_damaged(file, len(indices)):
            print(f"{file}: damaged; it is made anew", flush=True)
    pending = [file for file, indices in parts.items() if not is_finished(file, len(indices))]
    jobs = [([items[n] for n in parts[file]], options, file, examine) for file in pending]
    if runner:
        run_on_beam(jobs, runner, beam)
    else:
        run_locally(pool, jobs, sum(len(indices) for indices in parts.values()))
    results = list(items)
    for file, indices in parts.items():
        for n, item in zip(indices, read_part(file, len(indices)), strict=True):
            results[n] = item
    return results


@contextlib.contextmanager
def worker_processes(count: int) -> Iterator[Executor]:
    """Local worker processes, started when they are first needed."""
    context = get_context("spawn")  # JAX may run threads, which a fork would not survive
    pool = ProcessPoolExecutor(count, context, initializer=ignore_interrupts)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory: the same command goes on where it was; "
            "lower --workers, --max_frames or --max_pixels to need less"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent, which ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_locally(pool: Executor, jobs: Sequence[Job], total: int) -> None:
    """Make the parts in local processes. total: the number of clips in all parts."""
    clips = {pool.submit(make_part, *job): len(job[0]) for job in jobs}
    with tqdm(desc="clips", total=total, initial=total - sum(clips.values()), unit="clip") as bar:
        for future in as_completed(clips):
            future.result()
            bar.update(clips[future])


def run_on_beam(jobs: Sequence[Job], runner: str, beam_options: Sequence[str]) -> None:
    """Make the parts on an Apache Beam runner, whose workers must see the same files."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(f"--runner={runner} needs Apache Beam: pip install 'vpjax[beam]'") from error
    with beam.Pipeline(options=PipelineOptions([f"--runner={runner}", *beam_options])) as pipeline:
        _ = pipeline | beam.Create(jobs) | beam.Reshuffle() | beam.MapTuple(make_part)
