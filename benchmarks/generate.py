"""What generation costs: vpjax and transformers' ``generate`` (torch), with equal weights, prompt and video.

    python -m benchmarks.generate [--rounds N] [--new C] [--layers L] [--out FILE]

One process; the calls take turns. The table has medians of whole calls: encode the video, prefill, decode C
tokens without a stop token. One completion is greedy, several are sampled at temperature 1. A call for one
token measures the encoding and prefill alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.sft_step import (
    FRAMES,
    QUESTION,
    SIDE,
    VIDEO,
    prompt_batch,
    random_prompt,
    torch_videos,
    write_model,
)
from benchmarks.timing import environment, medians, publish
from vpjax import cli
from vpjax.data.video import Video
from vpjax.models.generate import generate
from vpjax.models.hf import load_pretrained
from vpjax.models.vlm import VideoLM
from vpjax.types import Prompts

COMPARED = (1, 8)  # completions of a prompt, for vpjax and transformers
GROUPS = (1, 2, 4, 8, 16)  # the same, for vpjax alone


def jax_run(model: VideoLM, prompts: Prompts, groups: int, new: int) -> Callable[[], object]:
    temperature = 0.0 if groups == 1 else 1.0

    def run() -> object:
        out = generate(
            model, prompts, jax.random.key(0), max_new=new, eos=(), groups=(groups,), temperature=temperature
        )
        return jax.block_until_ready(out)

    return run


def torch_run(torch_model: Any, inputs: dict[str, Any], groups: int, new: int) -> Callable[[], None]:
    sampling: dict[str, Any] = dict(do_sample=False)
    if groups > 1:
        sampling = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)

    def run() -> None:
        torch_model.model.rope_deltas = None
        out = torch_model.generate(**inputs, **sampling, num_return_sequences=groups, max_new_tokens=new)
        assert out.shape == (groups, inputs["input_ids"].shape[1] + new)

    return run


def torch_inputs(model: VideoLM, prompts: Prompts, video: Video) -> dict[str, Any]:
    """A prompt with its video as the arguments of transformers' ``generate``."""
    ids = torch.tensor(np.asarray(prompts.text.tokens)).long()
    return dict(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **torch_videos(model.config.vision, [video]),
        mm_token_type_ids=2 * (ids == VIDEO).long(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=64, help="tokens of each completion")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        torch_model = write_model(folder, args.layers).eval()
        model = load_pretrained(folder)
    torch_model.generation_config.eos_token_id = None
    prompt, video = random_prompt(np.random.default_rng(0), FRAMES, QUESTION)
    prompts = prompt_batch(model, prompt, video)
    inputs = torch_inputs(model, prompts, video)
    runs: dict[tuple[str, int, int], Callable[[], object]] = {}
    for new in (1, args.new):
        for groups in GROUPS:
            runs["vpjax", groups, new] = jax_run(model, prompts, groups, new)
        for groups in COMPARED:
            runs["transformers", groups, new] = torch_run(torch_model, inputs, groups, new)
    seconds = medians(runs, rounds=args.rounds, warmup=1)
    whole = {(name, groups): value for (name, groups, new), value in seconds.items() if new == args.new}

    def row(name: str, groups: int) -> str:
        call, prefill = whole[name, groups], seconds[name, groups, 1]
        step = (call - prefill) / (args.new - 1)
        return (
            f"| {groups} | {name} | {call:.2f} | {prefill:.3f} | {step * 1e3:.1f} | {groups / step:.0f} "
            f"| {groups * args.new / call:.0f} | {whole['transformers', groups] / call:.2f} |"
        )

    length = prompts.text.tokens.shape[1]
    size = sum(x.size for x in jax.tree.leaves(model)) / 1e6
    lines = [
        "# Generation",
        "",
        environment("jax", "flax", "transformers", "torch"),
        f"{size:.0f} M parameters, {args.layers} layers, float32; {FRAMES} frames of {SIDE} x {SIDE}; "
        f"prompt of {length} tokens, {args.new} new; median of {args.rounds} calls in turns",
        "",
        "| G | | call, s | prefill, s | step, ms | decoded tokens/s | tokens/s | over transformers |",
        "|---|---|---|---|---|---|---|---|",
        *(row(name, groups) for groups in COMPARED for name in ("transformers", "vpjax")),
        "",
        "Target: at least 2 at G = 8. tokens/s is of whole calls. transformers encodes and prefills a prompt "
        "once per completion, vpjax once per prompt.",
        "",
        "| G | " + " | ".join(map(str, GROUPS)) + " |",
        "|---|" + "---|" * len(GROUPS),
        "| vpjax, s | " + " | ".join(f"{whole['vpjax', g]:.2f}" for g in GROUPS) + " |",
        "| over G = 1 | " + " | ".join(f"{whole['vpjax', g] / whole['vpjax', 1]:.2f}" for g in GROUPS) + " |",
    ]
    publish(lines, args.out)


if __name__ == "__main__":
    cli.run(main)
