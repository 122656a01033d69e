"""What an evaluation costs: greedy answers about event clips, by vpjax and by transformers' ``generate``.

    python -m benchmarks.evaluate --workdir runs/sft [--clips N] [--batch B] [--rounds N] [--out FILE]

One process, with the same weights, frames and batches for both; the calls take turns. Each call encodes,
prefills and decodes until every row has ended. Both start from decoded frames; vpjax is then measured once
more from files to answers. transformers 5 gives the text after a video lower positions than training did, so
the table also reports how often the answers differ.
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
from ml_collections import ConfigDict
from transformers import AutoModelForImageTextToText

from benchmarks.sft_step import torch_videos
from benchmarks.timing import environment, medians, publish
from vpjax import cli
from vpjax.data.cache import cache_folder
from vpjax.data.clips import read_clips
from vpjax.data.index import Entry
from vpjax.data.packing import PromptPlan
from vpjax.data.pipeline import make_batch_maker
from vpjax.data.text import Text
from vpjax.data.video import Video
from vpjax.evaluation.ask import ClipPredictor
from vpjax.evaluation.run import evaluation_data, without_answer
from vpjax.events.clips import make_event_clips
from vpjax.events.text import event_of
from vpjax.export import export
from vpjax.models.generate import generate
from vpjax.models.vlm import VideoLM
from vpjax.training import checkpoint, run_config
from vpjax.training.setup import event_spec
from vpjax.types import Prompts

NEW = 32  # most tokens of an answer; answers about event clips end earlier


def jax_run(model: VideoLM, text: Text, batches: list[Prompts]) -> Callable[[], list[str]]:
    def run() -> list[str]:
        answers = []
        for prompts in batches:
            out = generate(model, prompts, jax.random.key(0), max_new=NEW, eos=text.stops)
            ids, masks = np.asarray(out.tokens)[:, 0], np.asarray(out.mask)[:, 0]
            real = np.flatnonzero(prompts.clip >= 0)  # the others are padding
            answers += [text.decode(ids[row][masks[row]]) for row in real]
        return answers

    return run


def torch_inputs(model: VideoLM, prompts: Prompts, videos: list[Video]) -> dict[str, torch.Tensor]:
    """A batch as transformers' ``generate`` takes it: its prompts are padded on the left."""
    is_prompt = np.asarray(prompts.text.segment)[np.asarray(prompts.clip) >= 0] > 0
    length = is_prompt.sum(axis=1).max()
    ids, mask = np.zeros((2, len(is_prompt), length), np.int64)
    for row, valid in enumerate(is_prompt):
        start = length - valid.sum()
        ids[row, start:] = prompts.text.tokens[row][valid]
        mask[row, start:] = 1
    seconds_per_slot = model.config.vision.temporal / 8  # event clips have 8 frames a second
    return dict(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        **torch_videos(model.config.vision, videos),
        second_per_grid_ts=torch.full((len(ids),), seconds_per_slot),
        mm_token_type_ids=torch.tensor(2 * (ids == model.config.video_token)),
    )


def torch_run(torch_model: Any, text: Text, inputs: list[dict[str, torch.Tensor]]) -> Callable[[], list[str]]:
    def run() -> list[str]:
        answers = []
        for batch in inputs:
            torch_model.model.rope_deltas = None
            out = torch_model.generate(**batch, do_sample=False, max_new_tokens=NEW)
            prompt_length = batch["input_ids"].shape[1]
            answers += [text.decode(ids) for ids in out[:, prompt_length:].tolist()]
        return answers

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="of a run on event clips")
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()

    checkpoint.check_model(args.workdir)
    config = ConfigDict(run_config.read(args.workdir))
    folder = cache_folder(config.data)
    file = make_event_clips(event_spec(config), folder, {"heldout": args.clips})["heldout"]
    clips = [without_answer(clip) for clip in read_clips(file)]
    with tempfile.TemporaryDirectory() as exported:
        export(args.workdir, Path(exported), dtype="float32")
        torch_model = AutoModelForImageTextToText.from_pretrained(exported, dtype=torch.float32).eval()
        model, text = checkpoint.load_model(exported)
    data_config = evaluation_data(config.data, "events", model)
    maker, index = make_batch_maker(
        clips, text, model.config, data_config, packed=False, seed=0, batch_size=args.batch
    )
    plan = maker.plan
    assert isinstance(plan, PromptPlan)
    entries: list[Entry] = []
    batches, inputs = [], []
    for step in range(plan.steps_per_epoch):
        shown = [index.entries[number] for row in plan.rows(step) for number in row.entries]
        prompts = maker(step).batch
        assert isinstance(prompts, Prompts)
        entries += shown
        batches.append(prompts)
        inputs.append(torch_inputs(model, prompts, [maker.videos(entry)[0][0] for entry in shown]))
    runs = {
        "vpjax": jax_run(model, text, batches),
        "transformers": torch_run(torch_model, text, inputs),
    }
    answers = {name: run() for name, run in runs.items()}
    events = [clips[entry.number].extra["event"] for entry in entries]
    named = {}
    for name, texts in answers.items():
        named[name] = np.mean([event_of(x) == event for x, event in zip(texts, events, strict=True)])
    equal = np.mean([a == b for a, b in zip(*answers.values(), strict=True)])
    seconds = medians(runs, rounds=args.rounds, warmup=1)

    def from_files() -> None:
        predictor = ClipPredictor(
            model, text, clips, data_config, controls=["none"], batch_size=args.batch, max_new=NEW
        )
        assert not any(prediction.fault for prediction in predictor.predictions())

    from_files_seconds = medians({"vpjax": from_files}, rounds=args.rounds, warmup=1)["vpjax"]
    shapes = sorted({entry.shapes[0] for entry in entries})
    frames = ", ".join(f"{count} frames of {height} x {width}" for count, height, width in shapes)
    size = sum(x.size for x in jax.tree.leaves(model)) / 1e6
    lines = [
        "# Evaluation",
        "",
        environment("jax", "flax", "transformers", "torch"),
        f"{size:.1f} M parameters, float32; {len(clips)} event clips of {frames}, "
        f"batches of {args.batch}, at most {NEW} new tokens; median of {args.rounds} rounds in turns",
        "",
        "| | answers/s | over transformers |",
        "|---|---|---|",
        *(
            f"| {name} | {len(clips) / seconds[name]:.1f} | {seconds['transformers'] / seconds[name]:.2f} |"
            for name in runs
        ),
        f"| vpjax, from files (frames cached) to answers | {len(clips) / from_files_seconds:.1f} | |",
        "",
        f"{equal:.0%} of the answers are equal. The event is named in {named['vpjax']:.2f} of vpjax's "
        f"answers and in {named['transformers']:.2f} of those of transformers, which gives the text after a "
        "video lower positions.",
    ]
    publish(lines, args.out)


if __name__ == "__main__":
    cli.run(main)
