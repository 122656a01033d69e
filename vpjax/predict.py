"""Ask a model about a video or an image:

    python -m vpjax.predict --model DIR --video FILE --prompt TEXT [--json]

Without ``--video`` the prompt is all that it sees. Answers go to stdout, remarks to stderr. ``--json`` prints
one object instead; with ``--num_samples`` above 1 its first four fields are lists of one entry per sample:

    text         the answer
    token_ids    its tokens, with the one that ended it
    logprobs     of these tokens, at the temperature and before top-k and top-p
    cut          whether --max_new_tokens ended it
    frame_times  seconds, one per frame that the model sees
    grid         [slots, rows, columns] of the video's patches, Hugging Face's video_grid_thw; or null
    timings      seconds to load the model, read the video, compile and generate
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from vpjax import cli
from vpjax.data.rows import bucket_of, collate, prompt_row
from vpjax.data.text import Media
from vpjax.data.video import IMAGES, MAX_SIDE, Sampling, Video, read_frames, read_image
from vpjax.models.generate import generate
from vpjax.training import checkpoint, run_config

MODEL = flags.DEFINE_string("model", None, "Work directory of a run, or Hugging Face folder.")
VIDEO = flags.DEFINE_string("video", None, "Video or image file.")
PROMPT = flags.DEFINE_string("prompt", None, "What to ask.")
MAX_NEW = flags.DEFINE_integer("max_new_tokens", 128, "Tokens of an answer, at most.", 1)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Of the sampling; 0: greedy.", 0.0)
TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample from the fewest tokens that hold this share.", 0.0, 1.0)
TOP_K = flags.DEFINE_integer("top_k", 0, "Sample from this many likeliest tokens; 0: from all.", 0)
SAMPLES = flags.DEFINE_integer("num_samples", 1, "Answers; all read one cache of the prompt.", 1)
FRAMES = flags.DEFINE_integer("frames", None, "Frames to look at, evenly spaced.", 1)
FPS = flags.DEFINE_float("fps", None, "Frames to look at per second, in place of --frames.")
PIXELS = flags.DEFINE_integer("max_pixels", None, "Of a frame after resizing.", 1)
SIDE = flags.DEFINE_integer("max_side", None, "A file with more pixels a side is refused.", 1)
SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.")
JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
flags.adopt_module_key_flags(cli)


def main() -> int:
    cli.require(MODEL, PROMPT)
    times = [time.perf_counter()]
    model, text = checkpoint.load(MODEL.value)
    times.append(time.perf_counter())

    vision, media, video, grid = model.config.vision, None, None, None
    if VIDEO.value:
        media = "image" if Path(VIDEO.value).suffix.lower() in IMAGES else "video"
        video = look(VIDEO.value, media, vision.factor)
        frames, height, width, _ = video.frames.shape
        grid = frames // vision.temporal, height // vision.patch, width // vision.patch
    row = prompt_row(text.chat(PROMPT.value, media), video, model.config, stamps=text.stamps)
    arguments = model, collate([row], bucket_of([row]), model.config), jax.random.key(SEED.value)
    times.append(time.perf_counter())

    compiled = generate.lower(
        *arguments,
        max_new=MAX_NEW.value,
        eos=text.stops,
        groups=SAMPLES.value,
        temperature=TEMPERATURE.value,
        top_p=TOP_P.value,
        top_k=TOP_K.value,
    ).compile()
    times.append(time.perf_counter())
    tokens, mask, logprobs = (np.asarray(x)[0] for x in compiled(*arguments))
    times.append(time.perf_counter())

    samples = [
        {
            "text": text.decode(ids[valid]),
            "token_ids": ids[valid].tolist(),
            "logprobs": scores[valid].tolist(),
            "cut": int(ids[valid][-1]) not in text.stops,
        }
        for ids, valid, scores in zip(tokens, mask, logprobs, strict=True)
    ]
    for remark in row.notes:
        print(f"note: {VIDEO.value}: {remark}", file=sys.stderr)
    if cut := sum(sample["cut"] for sample in samples):
        print(f"note: --max_new_tokens={MAX_NEW.value} cut {cut} of {len(samples)} answers", file=sys.stderr)
    if JSON.value:
        several = {name: [sample[name] for sample in samples] for name in samples[0]}
        record = {
            **(several if len(samples) > 1 else samples[0]),
            "frame_times": [] if video is None else video.times.tolist(),
            "grid": grid,
            "timings": dict(
                zip(("load", "video", "compile", "generate"), np.diff(times).tolist(), strict=True)
            ),
        }
        print(json.dumps(record))
    else:
        print(*(sample["text"] for sample in samples), sep="\n")
    return cli.OK


def look(path: str, media: Media, factor: int) -> Video:
    """The frames of a file. What the flags leave open is as the model's run saw its videos."""
    data = run_config.data_of(Path(MODEL.value))
    most = PIXELS.value or data.max_pixels
    size = dict(min_pixels=min(data.min_pixels, most), max_pixels=most, factor=factor)
    size["max_side"] = SIDE.value or data.get("max_side", MAX_SIDE)
    if media == "image":
        return read_image(path, **size)
    if FRAMES.value is not None or FPS.value is not None:
        sampling = Sampling(FRAMES.value, FPS.value)
    else:
        sampling = Sampling.of(data)
    return read_frames(path, sampling, **size)


if __name__ == "__main__":
    cli.run(main)
