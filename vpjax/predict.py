"""Ask a model about a video or an image:

    python -m vpjax.predict --model DIR --video FILE --prompt TEXT [--json]

Without ``--video`` the prompt is all that it sees. Answers go to stdout, notes to stderr. ``--json`` prints
one object instead. With ``--num_samples`` above 1 its first four fields are lists of one entry per sample:

    text         the answer
    token_ids    its tokens, with the one that ended it
    logprobs     of these tokens, at the temperature and before top-k and top-p
    cut          whether --max_new_tokens ended it
    frame_times  seconds, one per frame that the model sees
    grid         [slots, rows, columns] of the video's patches, Hugging Face's video_grid_thw; or null
    timings      seconds to load the model, read the video, compile and generate
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from vpjax import cli
from vpjax.data.images import is_image
from vpjax.data.rows import bucket_of, collate, prompt_row
from vpjax.data.text import Media, Text
from vpjax.data.video import MAX_SIDE, Sampling, Video, read_frames, read_image
from vpjax.models.generate import Completions, generate
from vpjax.models.vlm import VideoLM
from vpjax.training import checkpoint, run_config


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer. data_config: the section ``data`` by which videos are read for it."""

    model: VideoLM
    text: Text
    data_config: ConfigDict


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
    frames' patches; None without a video. notes: remarks about the video. timings: seconds to read the video,
    compile and generate."""

    samples: list[Sample]
    frame_times: list[float]
    grid: tuple[int, int, int] | None
    notes: tuple[str, ...]
    timings: dict[str, float]

    @property
    def text(self) -> str:
        """The text of the first sample."""
        return self.samples[0].text


def load(folder: str | Path) -> LoadedModel:
    """The model of a run's work directory or of a Hugging Face folder. UserError if it is neither."""
    model, text = checkpoint.load_model(folder)
    return LoadedModel(model, text, run_config.data_of(Path(folder)))


def ask(
    loaded: LoadedModel,
    prompt: str,
    video: str | Path | None = None,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    num_samples: int = 1,
    frames: int | None = None,
    fps: float | None = None,
    max_pixels: int | None = None,
    max_side: int | None = None,
    seed: int = 0,
) -> Answer:
    """Answer a prompt about a video or image file, or about none.

    temperature: 0 is greedy. top_p, top_k: the tokens to sample from; 1 and 0: all. num_samples: answers,
    which share one cache of the prompt. frames, fps, max_pixels, max_side: how the video is read; None: as in
    the run that made the model. UserError for a file that cannot be used.
    """
    model, text = loaded.model, loaded.text
    start = time.perf_counter()
    vision = model.config.vision
    media: Media | None = None
    decoded: Video | None = None
    grid: tuple[int, int, int] | None = None
    if video is not None:
        media = "image" if is_image(video) else "video"
        decoded = _read(loaded, video, frames, fps, max_pixels, max_side)
        count, height, width, _ = decoded.frames.shape
        grid = count // vision.temporal, height // vision.patch, width // vision.patch
    row = prompt_row(text.chat(prompt, media), decoded, model.config, stamps=text.stamps)
    arguments = model, collate([row], bucket_of([row]), model.config), jax.random.key(seed)
    video_read = time.perf_counter()

    program = generate.lower(
        *arguments,
        max_new=max_new_tokens,
        eos=text.stops,
        groups=num_samples,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
    ).compile()
    compiled = time.perf_counter()
    completions = jax.device_get(program(*arguments))
    generated = time.perf_counter()
    return Answer(
        _samples_of(completions, text),
        frame_times=[] if decoded is None else decoded.times.tolist(),
        grid=grid,
        notes=row.notes,
        timings={
            "video": video_read - start,
            "compile": compiled - video_read,
            "generate": generated - compiled,
        },
    )


def _samples_of(completions: Completions, text: Text) -> list[Sample]:
    """The completions of one prompt, as NumPy arrays, as samples."""
    samples = []
    arrays = completions.tokens[0], completions.mask[0], completions.logprobs[0]
    for tokens, mask, logprobs in zip(*arrays, strict=True):
        ids = tokens[mask]
        is_cut = int(ids[-1]) not in text.stops
        samples.append(Sample(text.decode(ids), ids.tolist(), logprobs[mask].tolist(), is_cut))
    return samples


def _read(
    loaded: LoadedModel,
    path: str | Path,
    frames: int | None,
    fps: float | None,
    max_pixels: int | None,
    max_side: int | None,
) -> Video:
    """The frames of a file."""
    data = loaded.data_config
    most = max_pixels or data.max_pixels
    size = dict(
        min_pixels=min(data.min_pixels, most),
        max_pixels=most,
        factor=loaded.model.config.vision.factor,
        max_side=max_side or data.get("max_side", MAX_SIDE),
    )
    if is_image(path):
        return read_image(path, **size)
    sampling = Sampling.of(data) if frames is None and fps is None else Sampling(frames, fps)
    return read_frames(path, sampling, **size)


def main() -> None:
    parser = cli.Parser(__doc__)
    number = cli.at_least
    parser.add_argument("--model", required=True, help="work directory of a run, or Hugging Face folder")
    parser.add_argument("--video", help="video or image file")
    parser.add_argument("--prompt", required=True, help="what to ask")
    parser.add_argument("--max_new_tokens", type=number(1), default=128, help="of an answer, at most")
    parser.add_argument("--temperature", type=number(0.0), default=0.0, help="of the sampling; 0: greedy")
    parser.add_argument(
        "--top_p", type=number(0.0), default=1.0, help="sample from the fewest tokens of this share"
    )
    parser.add_argument(
        "--top_k", type=number(0), default=0, help="sample from so many likeliest tokens; 0: all"
    )
    parser.add_argument("--num_samples", type=number(1), default=1, help="answers; all read one cache")
    parser.add_argument("--frames", type=number(1), help="frames to look at, evenly spaced")
    parser.add_argument("--fps", type=float, help="frames to look at per second, in place of --frames")
    parser.add_argument("--max_pixels", type=number(1), help="of a frame after resizing")
    parser.add_argument("--max_side", type=number(1), help="a file with more pixels a side is refused")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags = vars(parser.parse_args())
    as_json, folder, prompt = flags.pop("json"), flags.pop("model"), flags.pop("prompt")

    start = time.perf_counter()
    loaded = load(folder)
    timings = {"load": time.perf_counter() - start}
    answer = ask(loaded, prompt, **flags)

    samples = answer.samples
    for note in answer.notes:
        print(f"note: {flags['video']}: {note}", file=sys.stderr)
    if cut := sum(sample.cut for sample in samples):
        limit = f"--max_new_tokens={flags['max_new_tokens']}"
        print(f"note: {limit} cut {cut} of {len(samples)} answers", file=sys.stderr)
    if not as_json:
        print(*(sample.text for sample in samples), sep="\n")
        return
    record = dataclasses.asdict(samples[0])
    if len(samples) > 1:
        record = {name: [getattr(sample, name) for sample in samples] for name in record}
    about_video = {"frame_times": answer.frame_times, "grid": answer.grid}
    print(json.dumps(record | about_video | {"timings": timings | answer.timings}))


if __name__ == "__main__":
    cli.run(main)
