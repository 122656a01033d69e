"""What generation costs: vpjax and transformers' ``generate`` (torch), the same weights, prompt and video.

    python -m benchmarks.generate [--rounds N] [--new C] [--layers L] [--out FILE]

One run, calls in turns, medians of whole calls: encode the video, prefill, decode C tokens without a stop;
greedy for one completion, at temperature 1 for several. A call for one token tells the prefill (with the
encoding) from the decoding.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch

from benchmarks.sft_step import END, FRAMES, QUESTION, SIDE, START, VIDEO, write_model
from benchmarks.timing import environment, keep, medians
from vpjax.data.rows import bucket_of, collate, prompt_row
from vpjax.data.video import Video
from vpjax.models.generate import generate
from vpjax.models.hf import load_pretrained
from vpjax.models.patches import patchify
from vpjax.models.vlm import VideoLM
from vpjax.types import Batch

COMPARED, GROUPS = (1, 8), (1, 2, 4, 8, 16)  # completions, against transformers and to see the cost grow


def make_batch(model: VideoLM) -> Batch:
    rng = np.random.default_rng(0)
    video = Video(rng.integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8), np.arange(FRAMES) / 8, 1 / 8)
    question = rng.integers(2, START, QUESTION, dtype=np.int32)
    row = prompt_row(np.concatenate([question[:4], [START, VIDEO, END], question[4:]]), video, model.config)
    return collate([row], bucket_of([row]), model.config)


def jax_run(model: VideoLM, batch: Batch, groups: int, new: int) -> Callable[[], object]:
    options = dict(max_new=new, eos=(), groups=groups, temperature=float(groups > 1))
    return lambda: jax.block_until_ready(generate(model, batch, jax.random.key(0), **options))


def torch_run(model, batch: Batch, ours: VideoLM, groups: int, new: int) -> Callable[[], object]:
    vision = ours.config.vision
    patches = patchify(
        batch.frames,
        patch=vision.patch,
        merge=vision.merge,
        temporal=vision.temporal,
        mean=vision.pixel_mean,
        std=vision.pixel_std,
    )
    ids = torch.tensor(batch.prompt).long()
    side = SIDE // vision.patch
    inputs = dict(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values_videos=torch.tensor(np.asarray(patches).reshape(-1, patches.shape[-1])),
        video_grid_thw=torch.tensor([[FRAMES // vision.temporal, side, side]]),
        mm_token_type_ids=2 * (ids == VIDEO).long(),
    )
    how = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0) if groups > 1 else dict(do_sample=False)

    def run():
        model.model.rope_deltas = None
        out = model.generate(**inputs, **how, num_return_sequences=groups, max_new_tokens=new)
        assert out.shape == (groups, ids.shape[1] + new)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=64, help="tokens of each completion")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        theirs = write_model(folder, args.layers).eval()
        ours = load_pretrained(folder)
    theirs.generation_config.eos_token_id = None
    batch = make_batch(ours)
    runs = {("vpjax", g, n): jax_run(ours, batch, g, n) for g in GROUPS for n in (1, args.new)}
    runs |= {
        ("transformers", g, n): torch_run(theirs, batch, ours, g, n) for g in COMPARED for n in (1, args.new)
    }
    seconds = medians(runs, rounds=args.rounds, warmup=1)

    def whole(who: str, groups: int) -> float:
        return seconds[who, groups, args.new]

    def row(who: str, groups: int) -> str:
        call, prefill = whole(who, groups), seconds[who, groups, 1]
        step = (call - prefill) / (args.new - 1)
        return (
            f"| {groups} | {who} | {call:.2f} | {prefill:.3f} | {step * 1e3:.1f} | {groups / step:.0f} "
            f"| {groups * args.new / call:.0f} | {whole('transformers', groups) / call:.2f} |"
        )

    size = sum(x.size for x in jax.tree.leaves(ours)) / 1e6
    lines = [
        "# Generation",
        "",
        environment("jax", "flax", "transformers", "torch"),
        f"{size:.0f} M parameters, {args.layers} layers, float32; {FRAMES} frames of {SIDE} x {SIDE}; "
        f"prompt of {batch.prompt.shape[1]} tokens, {args.new} new; median of {args.rounds} calls in turns",
        "",
        "| G | | call, s | prefill, s | decoding step, ms | decoded tokens/s | tokens/s | over theirs |",
        "|---|---|---|---|---|---|---|---|",
        *(row(who, groups) for groups in COMPARED for who in ("transformers", "vpjax")),
        "",
        "Target: at least 2 at G = 8. tokens/s is of whole calls. transformers encodes and prefills a prompt "
        "once per completion, vpjax once per prompt.",
        "",
        "| G | " + " | ".join(map(str, GROUPS)) + " |",
        "|---|" + "---|" * len(GROUPS),
        "| vpjax, s | " + " | ".join(f"{whole('vpjax', g):.2f}" for g in GROUPS) + " |",
        "| over G = 1 | " + " | ".join(f"{whole('vpjax', g) / whole('vpjax', 1):.2f}" for g in GROUPS) + " |",
    ]
    print("\n".join(lines))
    keep(lines, args.out)


if __name__ == "__main__":
    main()
