"""What an evaluation costs: greedy answers about event clips, by vpjax and by transformers' ``generate``.

    python -m benchmarks.evaluate --workdir runs/sft [--clips N] [--batch B] [--rounds N] [--out FILE]

One run, the same weights, frames and batches, all batches in turns: encode, prefill, decode until every row
has ended. Both are handed decoded frames; then vpjax alone goes from files to answers. transformers 5 places
the text after a video lower than the training did: how often that changes an answer is told too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
from ml_collections import ConfigDict
from transformers import AutoModelForImageTextToText

from benchmarks.timing import environment, keep, medians
from vpjax.data.cache import cache_folder
from vpjax.data.clips import read_clips
from vpjax.data.pipeline import prepare
from vpjax.data.text import Text
from vpjax.evaluation.ask import predict_clips
from vpjax.evaluation.run import ROOM, without_answer
from vpjax.events.clips import make_event_clips
from vpjax.events.text import event_of
from vpjax.export import export
from vpjax.models.generate import generate
from vpjax.models.patches import patchify
from vpjax.models.vlm import VideoLM
from vpjax.training import checkpoint, run_config
from vpjax.training import setup as start
from vpjax.types import Batch

NEW = 32  # tokens of an answer at most; those about event clips end before


def jax_run(model: VideoLM, text: Text, batches: list[Batch]) -> Callable[[], list[str]]:
    def run() -> list[str]:
        said = []
        for batch in batches:
            out = generate(model, batch, jax.random.key(0), max_new=NEW, eos=text.stops)
            ids, masks = np.asarray(out.tokens)[:, 0], np.asarray(out.mask)[:, 0]
            said += [text.decode(x[mask]) for x, mask in zip(ids, masks, strict=True)]
        return said

    return run


def torch_inputs(model: VideoLM, batch: Batch) -> dict[str, torch.Tensor]:
    """A batch as transformers' ``generate`` takes it, its prompts padded at the left."""
    vision = model.config.vision
    cut = dict(patch=vision.patch, merge=vision.merge, temporal=vision.temporal)
    patches = patchify(batch.frames, **cut, mean=vision.pixel_mean, std=vision.pixel_std)
    ids, mask = np.zeros(batch.prompt.shape, np.int64), np.zeros(batch.prompt.shape, np.int64)
    for row, (prompt, valid) in enumerate(zip(batch.prompt, batch.prompt_valid, strict=True)):
        ids[row, len(valid) - valid.sum() :] = prompt[valid]
        mask[row, len(valid) - valid.sum() :] = 1
    frames, height, width = batch.frames.shape[1:4]
    grid = [frames // vision.temporal, height // vision.patch, width // vision.patch]
    return dict(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        pixel_values_videos=torch.tensor(np.asarray(patches).reshape(-1, patches.shape[-1])),
        video_grid_thw=torch.tensor([grid] * len(ids)),
        second_per_grid_ts=torch.full((len(ids),), vision.temporal / 8),  # event clips have 8 frames a second
        mm_token_type_ids=torch.tensor(2 * (ids == model.config.video_token)),
    )


def torch_run(theirs, text: Text, inputs: list[dict[str, torch.Tensor]]) -> Callable[[], list[str]]:
    def run() -> list[str]:
        said = []
        for some in inputs:
            theirs.model.rope_deltas = None
            out = theirs.generate(**some, do_sample=False, max_new_tokens=NEW)
            said += [text.decode(ids) for ids in out[:, some["input_ids"].shape[1] :].tolist()]
        return said

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="of a run on event clips")
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()

    config = ConfigDict(json.loads((args.workdir / run_config.FILE).read_text()))
    data_config = ConfigDict(
        run_config.HF_VIDEO_DEFAULTS | config.data.to_dict() | ROOM | dict(replacement="none", pool="key")
    )
    file = make_event_clips(start.event_spec(config), cache_folder(data_config), {"heldout": args.clips})["heldout"]
    clips = [without_answer(clip) for clip in read_clips(file)]
    with tempfile.TemporaryDirectory() as folder:
        export(args.workdir, Path(folder), dtype="float32")
        theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        model, text = checkpoint.load(folder)
    plan, _ = prepare(clips, text, model.config, data_config, seed=0, batch_size=args.batch)
    batches = [plan(step).batch for step in range(plan.plan.steps_per_epoch)]
    inputs = [torch_inputs(model, batch) for batch in batches]
    ours, other = jax_run(model, text, batches), torch_run(theirs, text, inputs)
    said = {"vpjax": ours(), "transformers": other()}
    rows = [row for batch in batches for row in batch.clip]
    true = [clips[row].extra["event"] if row >= 0 else "" for row in rows]
    named = {
        who: np.mean([event_of(x) == event for x, event in zip(texts, true, strict=True) if event])
        for who, texts in said.items()
    }
    equal = np.mean([a == b for a, b in zip(*said.values(), strict=True)])
    seconds = medians({"vpjax": ours, "transformers": other}, rounds=args.rounds, warmup=1)

    def from_files() -> None:
        asked = predict_clips(model, text, clips, data_config, controls=["none"], batch_size=args.batch, max_new=NEW)
        assert not [answer.fault for answer in asked if answer.fault]

    whole = medians({"whole": from_files}, rounds=args.rounds, warmup=1)["whole"]
    frames, side = batches[0].frames.shape[1:3]
    size = sum(x.size for x in jax.tree.leaves(model)) / 1e6
    lines = [
        "# Evaluation",
        "",
        environment("jax", "flax", "transformers", "torch"),
        f"{size:.1f} M parameters, float32; {len(clips)} event clips of {frames} frames of {side} x {side}, "
        f"batches of {args.batch}, at most {NEW} new tokens; median of {args.rounds} rounds in turns",
        "",
        "| | answers/s | over theirs |",
        "|---|---|---|",
        *(
            f"| {name} | {len(clips) / x:.1f} | {seconds['transformers'] / x:.2f} |"
            for name, x in seconds.items()
        ),
        f"| vpjax, from files (frames cached) to answers | {len(clips) / whole:.1f} | |",
        "",
        f"{equal:.0%} of the answers are equal. The event is named in {named['vpjax']:.2f} of vpjax's and "
        f"{named['transformers']:.2f} of transformers', which places the text after a video lower.",
    ]
    print("\n".join(lines))
    keep(lines, args.out)


if __name__ == "__main__":
    main()
