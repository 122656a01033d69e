"""Ask a model about a video or an image:

    python -m vpjax.predict --model DIR --video FILE --prompt TEXT [--json] [--looks 2 --page FILE]

Without ``--video`` the prompt is all that it sees. ``--video`` may be given several times: the files are
shown in this order where ``<video>`` stands in the prompt, or before it. Answers go to stdout, notes to
stderr. ``--looks 2`` first scans a long video in few pixels, window by window, and then answers about
the window that is likeliest to show what is asked for, in more pixels (docs/long.md); ``--page`` shows both.

``--json`` prints one object instead. With ``--num_samples`` above 1 its first four fields are lists
of one entry per sample, and with several files ``frame_times`` and ``grid`` are lists of one entry per file:

    text         the answer
    token_ids    its tokens, with the one that ended it
    logprobs     of these tokens, at the temperature and before top-k and top-p
    cut          whether --max_new_tokens ended it
    frame_times  seconds, one per frame that the model sees
    grid         [slots, rows, columns] of the video's patches, Hugging Face's video_grid_thw; or null
    looks        of two looks: the window [start, end] in seconds, its score, the number of windows
    timings      seconds to load the model, read the video, compile and generate
"""

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vpjax import cli, localisers, programs
from vpjax.data.collate import single_prompt
from vpjax.data.images import is_image
from vpjax.data.index import stamp_tokens
from vpjax.data.looks import TwoLooks
from vpjax.data.positions import Grid
from vpjax.data.sampling import File, Reading, Sampling, fit_all, looked_at
from vpjax.data.text import Media, Text, Tokens, tokenize
from vpjax.data.video import MAX_SIDE, Video, probe, probe_image, read_frames, read_image
from vpjax.evaluation.looks_page import Looked, write_looks_page
from vpjax.evaluation.ranking import likeliest_first
from vpjax.evaluation.scans import Localiser, Scan, likelihoods, relevance_scores, scans_of
from vpjax.files import local_folder
from vpjax.models.config import VisionConfig
from vpjax.models.generate import Completions, check_numbers, generate
from vpjax.models.vlm import VideoLM
from vpjax.training import checkpoint, run_config
from vpjax.types import Clip, Look, UserError


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer. data_config: the section ``data`` by which videos are read for it. looks:
    how it looks twice at one."""

    model: VideoLM
    text: Text
    data_config: ConfigDict
    looks: TwoLooks


@dataclasses.dataclass(frozen=True)
class Sample:
    """One answer. token_ids: including the stop token. logprobs: of these tokens, at the temperature and
    before top-k and top-p. cut: whether ``max_new_tokens`` ended the answer."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    cut: bool


@dataclasses.dataclass(frozen=True)
class Answer:
    """The samples of one prompt. frame_times: seconds, one per frame. grid: slots, rows and columns of the
    frames' patches; None without a video. Both are lists of those of each file if there are several. notes:
    remarks about the videos. timings: seconds to read the videos, compile and generate. videos: the frames
    that were seen of each file."""

    samples: list[Sample]
    frame_times: list[float] | list[list[float]]
    grid: Grid | list[Grid] | None
    notes: tuple[str, ...]
    timings: dict[str, float]
    videos: list[Video]

    @property
    def text(self) -> str:
        """The text of the first sample."""
        return self.samples[0].text


def load(folder: str | Path, *, step: checkpoint.Step = None) -> LoadedModel:
    """The model of a run's work directory or of a Hugging Face folder. step: of the run's checkpoint, or
    "best"; None: the newest that is whole. UserError if the folder is neither."""
    say = functools.partial(print, file=sys.stderr)  # the answer alone goes to stdout
    model, text = checkpoint.load_model(folder, step=step, say=say)
    folder = Path(folder)
    return LoadedModel(model, text, run_config.data_of(folder), run_config.looks_of(folder))


def ask(
    loaded: LoadedModel,
    prompt: str,
    video: str | Path | Sequence[str | Path] | None = None,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    num_samples: int = 1,
    frames: int | None = None,
    fps: float | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    total_pixels: int | None = None,
    max_side: int | None = None,
    look: Look | None = None,
    seed: int = 0,
) -> Answer:
    """Answer a prompt about a video or image file, about several, or about none.

    temperature: 0 is greedy. top_p, top_k: the tokens to sample from; 1 and 0: all. num_samples: answers,
    which share one cache of the prompt. frames, fps, min_pixels, max_pixels, total_pixels (see ``Sampling``)
    and max_side: how the video is read; None: as in the run that made the model. total_pixels replaces all of
    its budgets, which otherwise hold for other frames too. look: the part of the one video that is seen, and
    how. UserError for a file that cannot be used.
    """
    model, text = loaded.model, loaded.text
    start = time.perf_counter()
    paths = [video] if isinstance(video, str | Path) else list(video or ())
    media: tuple[Media, ...] = tuple("image" if is_image(path) else "video" for path in paths)
    tokens = tokenize(Clip(id="", video="", question=prompt, answer=""), text, media=media)
    sampling = _sampling(loaded, frames, fps, min_pixels, max_pixels, total_pixels)
    max_tokens = None
    if total_pixels is None and "max_tokens" in loaded.data_config:
        max_tokens = loaded.data_config.max_tokens - len(tokens.prompt) + len(paths)  # for the placeholders
    readings = [looked_at(look or Look(), sampling) for _ in paths]
    videos = _read(loaded, paths, tokens, readings, max_tokens, max_side)
    row, prompts = single_prompt(tokens.prompt, videos, model.config, stamps=tokens.stamps)
    arguments = model, prompts, jax.random.key(seed)
    video_read = time.perf_counter()

    program = generate.lower(
        *arguments,
        max_new=max_new_tokens,
        eos=text.stops,
        groups=(num_samples,),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
    ).compile()
    compiled = time.perf_counter()
    completions = jax.device_get(program(*arguments))
    generated = time.perf_counter()
    timings = dict(video=video_read - start, compile=compiled - video_read, generate=generated - compiled)
    frame_times, grid = _shown(videos, model.config.vision)
    return Answer(_samples_of(completions, text), frame_times, grid, row.notes, timings, videos)


def ask_twice(
    loaded: LoadedModel,
    prompt: str,
    video: str | Path,
    *,
    localise: Localiser = relevance_scores,
    max_side: int | None = None,
    page: str | Path | None = None,
    **options: Any,
) -> tuple[Answer, Scan]:
    """Answer a prompt about a long video by two looks, as ``loaded.looks`` says, and the scan.

    Both looks at the likeliest window of the scan are asked. Of their samples those are returned that both
    looks together find likeliest, with the times and the grid of the second look. localise: what
    finds the window. page: an HTML file that shows both looks. options: of ``ask``, but how
    the video is read. UserError for a file that cannot be used.
    """
    start = time.perf_counter()
    clip = Clip(id="", video=str(video), question=prompt, answer="")
    side = max_side or loaded.data_config.get("max_side", MAX_SIDE)
    if is_image(video):
        raise UserError(f"{video}: an image, which is no video to look at twice; ask with one look")
    sampling = Sampling.of(loaded.data_config)
    arguments = loaded.model, loaded.text, [clip], loaded.looks, sampling
    (scan,) = scans_of(*arguments, localise=localise, max_side=side)
    if isinstance(scan, UserError):
        raise scan
    scanned = time.perf_counter()
    part = scan.windows[scan.best]
    second, first = (
        ask(loaded, prompt, video, look=look, max_side=max_side, **options)
        for look in (loaded.looks.second(part), loaded.looks.first(part))
    )
    videos, samples = [*first.videos, *second.videos], [*second.samples, *first.samples]
    texts = [sample.text for sample in samples]
    order = likeliest_first(likelihoods(loaded.model, loaded.text, clip, videos, texts))
    kept = [samples[number] for number in order[: len(second.samples)]]
    if page:
        about = f"{video}, at most {loaded.looks.tokens} visual tokens"
        answers = [("answer", sample.text, None) for sample in kept]
        write_looks_page(Path(page), about, [Looked(clip, scan, second.videos[0], answers)])
    timings = {name: second.timings[name] + first.timings[name] for name in second.timings}
    timings = {"scan": scanned - start} | timings
    notes = tuple(dict.fromkeys(first.notes + second.notes))  # of which both looks have most
    return dataclasses.replace(second, samples=kept, notes=notes, timings=timings), scan


def _shown(
    videos: Sequence[Video], vision: VisionConfig
) -> tuple[list[float] | list[list[float]], Grid | list[Grid] | None]:
    """The ``frame_times`` and the ``grid`` of an Answer."""
    frame_times: list[list[float]] = [video.times.tolist() for video in videos]
    grids: list[Grid] = []
    for video in videos:
        count, height, width, _ = video.frames.shape
        grids.append((count // vision.temporal, height // vision.patch, width // vision.patch))
    if not videos:
        return [], None
    return (frame_times[0], grids[0]) if len(videos) == 1 else (frame_times, grids)


def _samples_of(completions: Completions, text: Text) -> list[Sample]:
    """The completions of one prompt, as NumPy arrays, as samples."""
    samples = []
    check_numbers(completions.logprobs[completions.mask])
    arrays = completions.tokens[0], completions.mask[0], completions.logprobs[0]
    for tokens, mask, logprobs in zip(*arrays, strict=True):
        ids = tokens[mask]
        is_cut = int(ids[-1]) not in text.stops
        samples.append(Sample(text.decode(ids), ids.tolist(), logprobs[mask].tolist(), is_cut))
    return samples


def _sampling(
    loaded: LoadedModel,
    frames: int | None,
    fps: float | None,
    min_pixels: int | None,
    max_pixels: int | None,
    total_pixels: int | None,
) -> Sampling:
    """The run's sampling but for what is asked for. UserError for frames and fps at once."""
    sampling = Sampling.of(loaded.data_config)
    if frames is not None or fps is not None:
        sampling = dataclasses.replace(sampling, frames=frames, fps=fps)
    # A limit of the run gives way to one that is asked for.
    most = max_pixels or max(sampling.max_pixels, min_pixels or 0)
    least = min_pixels or min(sampling.min_pixels, most)
    total = sampling.total_pixels if total_pixels is None else total_pixels
    return dataclasses.replace(sampling, min_pixels=least, max_pixels=most, total_pixels=total)


def _read(
    loaded: LoadedModel,
    paths: Sequence[str | Path],
    tokens: Tokens,
    readings: Sequence[Reading],
    max_tokens: int | None,
    max_side: int | None,
) -> list[Video]:
    """The frames of files, in shapes within the budgets. tokens: of the question. readings: what is read of
    each, all with one total_pixels. max_tokens: visual ones, with the times in words between them."""
    model_config = loaded.model.config
    side = max_side or loaded.data_config.get("max_side", MAX_SIDE)
    infos = [(probe_image if is_image(path) else probe)(path, max_side=side) for path in paths]
    longest = max((info.duration for info in infos), default=0.0)
    beside = stamp_tokens(tokens, longest, model_config)
    files = [
        File(info, reading.part, beside, reading.sampling)
        for info, reading in zip(infos, readings, strict=True)
    ]
    shared = readings[0].sampling if readings else Sampling.of(loaded.data_config)
    try:
        shapes = fit_all(shared, files, factor=model_config.vision.factor, max_tokens=max_tokens)
    except ValueError as error:  # an aspect ratio that no model takes
        raise UserError(f"{' and '.join(map(str, paths))}: {error}") from error
    videos = []
    for path, (count, height, width), (sampling, (start, end)) in zip(paths, shapes, readings, strict=True):
        size = (height, width)
        if is_image(path):
            video = read_image(path, size=size, max_side=side)
        else:
            video = read_frames(path, sampling, size=size, frames=count, start=start, end=end, max_side=side)
        videos.append(video)
    return videos


def _parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    number = cli.at_least
    parser.add_argument(
        "--model", type=local_folder, required=True, help="work directory of a run, or Hugging Face folder"
    )
    parser.add_argument("--step", type=cli.step, help="checkpoint of a run, or best; default: the newest")
    parser.add_argument(
        "--video", action="append", default=[], help="video or image file; once for each, in their order"
    )
    parser.add_argument("--prompt", required=True, help="what to ask")
    parser.add_argument("--max_new_tokens", type=number(1), default=128, help="of an answer, at most")
    parser.add_argument("--temperature", type=number(0.0), default=0.0, help="of the sampling; 0: greedy")
    parser.add_argument(
        "--top_p", type=cli.share, default=1.0, help="sample from the fewest tokens of this share"
    )
    parser.add_argument(
        "--top_k", type=number(0), default=0, help="sample from so many likeliest tokens; 0: all"
    )
    parser.add_argument("--num_samples", type=number(1), default=1, help="answers; all read one cache")
    parser.add_argument("--frames", type=number(1), help="frames to look at, evenly spaced")
    parser.add_argument("--fps", type=float, help="frames to look at per second, in place of --frames")
    parser.add_argument("--min_pixels", type=number(1), help="of a frame after resizing, at least")
    parser.add_argument("--max_pixels", type=number(1), help="of a frame after resizing, at most")
    parser.add_argument(
        "--total_pixels",
        type=number(0),
        help="of one frame in two, summed, at most, in place of the run's budgets; 0: no limit",
    )
    parser.add_argument("--max_side", type=number(1), help="a file with more pixels a side is refused")
    parser.add_looks(localisers.NAMES)
    parser.add_argument(
        "--page", type=local_folder, help="with --looks=2: an HTML file that shows both looks"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _take_one_look(flags: dict[str, Any]) -> None:
    """Take the flags that are of one look, none of which is given, out of others. UserError if there is not
    one video."""
    for name in cli.ONE_LOOK_FLAGS:
        del flags[name]
    if len(flags["video"]) != 1:
        raise UserError("--looks=2: give one --video")


def _notes(answer: Answer, scan: Scan | None, flags: Mapping[str, Any], localise: str) -> list[str]:
    """What the user may want to know beside the answer. flags: those of ``ask``."""
    notes = []
    if scan is not None:
        start, end = scan.windows[scan.best]
        notes.append(f"second look at {start:.2f} to {end:.2f} s, of {len(scan.windows)} windows")
        if not scan.is_named:
            notes.append(f"--localise={localise} found no window, so it is the middle one")
    notes += [f"{', '.join(flags['video'])}: {note}" for note in answer.notes]
    if cut := sum(sample.cut for sample in answer.samples):
        limit = f"--max_new_tokens={flags['max_new_tokens']}"
        notes.append(f"{limit} cut {cut} of {len(answer.samples)} answers")
    return notes


def _record(answer: Answer, scan: Scan | None, timings: Mapping[str, float]) -> dict[str, Any]:
    """The object of ``--json``."""
    record = dataclasses.asdict(answer.samples[0])
    if len(answer.samples) > 1:
        record = {name: [getattr(sample, name) for sample in answer.samples] for name in record}
    record |= {"frame_times": answer.frame_times, "grid": answer.grid}
    if scan is not None:
        window, score = scan.windows[scan.best], float(scan.scores[scan.best])
        record["looks"] = {"window": window, "score": score, "windows": len(scan.windows)}
    return record | {"timings": timings}


def main() -> None:
    flags = vars(_parser().parse_args())
    folder, step, prompt = Path(flags.pop("model")), flags.pop("step"), flags.pop("prompt")
    as_json, page = flags.pop("json"), flags.pop("page")
    look_fields, localise = cli.take_looks(flags, localisers.NAMES)
    if look_fields is not None:
        _take_one_look(flags)
    elif page:
        raise UserError("--page shows two looks: give --looks=2 too")

    start = time.perf_counter()
    programs.keep_as_in_run(folder)
    loaded = load(folder, step=step)
    timings = {"load": time.perf_counter() - start}
    scan = None
    if look_fields is None:
        answer = ask(loaded, prompt, **flags)
    else:
        loaded = dataclasses.replace(loaded, looks=run_config.looks_of(folder, look_fields))
        find = localisers.localiser_of(localise, folder, step)
        (file,), options = flags["video"], {name: x for name, x in flags.items() if name != "video"}
        answer, scan = ask_twice(loaded, prompt, file, localise=find, page=page, **options)

    for note in _notes(answer, scan, flags, localise):
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(_record(answer, scan, timings | answer.timings)))
    else:
        print(*(sample.text for sample in answer.samples), sep="\n")


if __name__ == "__main__":
    cli.run(main)
