"""What the GRPO step costs: vpjax, the same code with every prompt repeated, and transformers (torch).

    python -m benchmarks.grpo_step [--rounds N] [--layers L] [--out FILE]

One run, the same weights, video and lengths for all, calls in turns, medians. A step rolls out G completions
of one prompt with a video, rewards them and updates (forward, backward, AdamW); no completion stops early.
"Repeated" is how TRL and Video-R1 do it: the video is encoded and the prompt prefilled for each rollout, and
the update runs over G whole sequences. TRL itself takes no video: its GRPOTrainer is measured on text of the
same lengths where it is installed (``pip install trl``), and left out where it is not.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.sft_step import END, SIDE, START, VIDEO, VOCAB, write_model
from benchmarks.timing import environment, keep, medians
from vpjax.data.rows import bucket_of, collate, prompt_row
from vpjax.data.video import Video
from vpjax.models.generate import generate
from vpjax.models.hf import load_pretrained
from vpjax.models.patches import patchify
from vpjax.models.sharding import make_mesh, put_batch
from vpjax.models.vlm import VideoLM, leaves, rebuild
from vpjax.recipes import base
from vpjax.training import grpo
from vpjax.training.losses import token_logprobs
from vpjax.training.policy import denominator, policy_loss
from vpjax.training.relative import NOTHING, advantages
from vpjax.training.state import create_state
from vpjax.training.update import advance, optimize
from vpjax.types import Batch

GROUPS, COMPARED = (1, 4, 8, 16), 8  # G; where torch and TRL are measured too
FRAMES, QUESTION, NEW = 32, 24, 32  # 256 visual tokens and 27 others before 32 new ones


def make_batch(model: VideoLM, *, video: bool) -> Batch:
    """One prompt: a video and a question, or as many tokens of text."""
    rng = np.random.default_rng(0)
    clip = Video(rng.integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8), np.arange(FRAMES) / 8, 1 / 8)
    question = rng.integers(2, START, QUESTION, dtype=np.int32)
    row = prompt_row(np.concatenate([question[:4], [START, VIDEO, END], question[4:]]), clip, model.config)
    if not video:
        row = prompt_row(rng.integers(2, START, len(row.prompt), dtype=np.int32), None, model.config)
    return collate([row], bucket_of([row], suffix=NEW), model.config)


def settings(groups: int):
    c = base.get_config()
    c.method, c.batch = "grpo", 1
    c.grpo.groups, c.grpo.degraded, c.grpo.max_new, c.grpo.relative.kind = groups, 0, NEW, "none"
    return c


class Odd:
    """Judges completions by a reward that differs between them and costs nothing: the share of odd tokens."""

    weights, host_scores = {"odd": 1.0}, {}

    def score(self, batch: Batch, tokens, mask) -> dict:
        return {"odd": self.recall(batch, tokens, mask)}

    def recall(self, batch: Batch, tokens, mask):
        return (tokens % 2).mean(-1)


def repeated_step(model: VideoLM, config, optimizer) -> Callable:
    """vpjax's parts put together the usual way: each prompt stands in the batch G times."""
    options = config.grpo

    def step(state, batch: Batch):
        rows = jax.tree.map(lambda x: jnp.repeat(x, options.groups, axis=0), batch)
        said = roll(rebuild(model, state.params), rows, state.step, 1)
        rewards = Odd().recall(rows, said.tokens, said.mask).reshape(-1, options.groups)
        merit = advantages(rewards, NOTHING, scale=options.scale).reshape(-1, 1, 1)

        def loss(params):
            m = rebuild(model, params)
            hidden = m.hidden(m.encode(rows.frames), dataclasses.replace(rows, suffix=said.tokens))
            logprobs = token_logprobs(
                hidden.last, hidden.suffix, m.unembed, said.tokens, chunk=config.loss.chunk
            )
            sums = policy_loss(logprobs, None, said.mask, merit, None, options)
            return sums.loss / denominator(said.mask, options)

        value, gradient = jax.value_and_grad(loss)(state.params)
        params, opt = optimize(optimizer, state.params, state.opt, gradient)
        return advance(state, params, opt, jnp.isfinite(value)), {"loss": value}, None

    return jax.jit(step, donate_argnums=0)


def roll(model: VideoLM, batch: Batch, step, groups: int):
    key = jax.random.fold_in(jax.random.key(0), step)
    return generate(model, batch, key, max_new=NEW, eos=(), groups=groups, temperature=1.0)


def jax_runs(folder: str, who: str, groups: int, *, video: bool) -> tuple[dict, float]:
    """Calls of the whole step and of its rollout alone, and the step's peak memory in MiB."""
    model, config = load_pretrained(folder), settings(groups)
    mesh = make_mesh(config.mesh)
    batch = put_batch(make_batch(model, video=video), mesh)
    state, optimizer, where = create_state(leaves(model), config, mesh)
    if who == "vpjax":
        step = grpo.make_step(model, config, optimizer, where, judge=Odd(), eos=())
    else:
        step = repeated_step(model, config, optimizer)
    step = step.lower(state, batch).compile()
    memory = step.memory_analysis()
    peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    rolled = batch, 0, groups
    if who == "repeated":
        rolled = jax.tree.map(lambda x: jnp.repeat(x, groups, axis=0), batch), 0, 1
    box = [state]

    def total():
        box[0], metrics, _ = step(box[0], batch)
        return float(metrics["loss"])

    def rollout():
        jax.block_until_ready(roll(rebuild(model, box[0].params), *rolled))

    return {"total": total, "rollout": rollout}, peak / 2**20


def torch_runs(model, ours: VideoLM, groups: int) -> dict:
    """The rollout and the update of one prompt with ``groups`` copies of its video."""
    batch, vision = make_batch(ours, video=True), ours.config.vision
    patches = patchify(
        batch.frames, patch=vision.patch, merge=vision.merge, temporal=vision.temporal,
        mean=vision.pixel_mean, std=vision.pixel_std,
    )  # fmt: skip
    pixels = torch.tensor(np.asarray(patches).reshape(-1, patches.shape[-1]))
    prompt = torch.tensor(batch.prompt).long()
    side = SIDE // vision.patch
    grid = torch.tensor([[FRAMES // vision.temporal, side, side]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.01)
    said = []

    def inputs(ids, copies: int) -> dict:
        return dict(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values_videos=pixels.repeat(copies, 1),
            video_grid_thw=grid.repeat(copies, 1),
            mm_token_type_ids=2 * (ids == VIDEO).long(),
        )

    def rollout():
        model.model.rope_deltas = None
        how = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
        said[:] = [
            model.generate(**inputs(prompt, 1), **how, num_return_sequences=groups, max_new_tokens=NEW)
        ]

    def update():
        ids = said[0]
        tokens = ids[:, -NEW:]
        reward = (tokens % 2).float().mean(-1)
        merit = (reward - reward.mean()) / (reward.std() + 1e-4)
        model.model.rope_deltas = None
        logits = model(**inputs(ids, groups), use_cache=False, logits_to_keep=NEW + 1).logits[:, :-1].float()
        logprobs = torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]
        loss = -(torch.exp(logprobs - logprobs.detach()) * merit[:, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return {"rollout": rollout, "update": update}


def trl_seconds(folder: str, groups: int, prompt: int, layers: int, rounds: int) -> float | None:
    """Median seconds of a step of TRL's GRPOTrainer on prompts of text, the first left out; None where TRL is
    not installed."""
    if importlib.util.find_spec("trl") is None:
        return None
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w0")
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=512, intermediate_size=1408, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    prompts = np.random.default_rng(0).integers(2, START, (rounds + 1, prompt))
    seconds, lengths = [], set()

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            seconds.append(time.perf_counter() - self.start)

    def odd(completion_ids, **others) -> list[float]:
        lengths.update(map(len, completion_ids))
        return [float(np.mean(np.array(ids) % 2)) for ids in completion_ids]

    trainer = GRPOTrainer(
        Qwen2ForCausalLM(config),
        reward_funcs=odd,
        args=GRPOConfig(
            output_dir=folder, per_device_train_batch_size=groups, num_generations=groups, beta=0.0,
            max_steps=rounds + 1, max_completion_length=NEW, loss_type="dapo",
            generation_kwargs=dict(min_new_tokens=NEW),
            learning_rate=1e-6, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": [" ".join(f"w{i}" for i in row) for row in prompts]}),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    assert lengths == {NEW}
    return statistics.median(seconds[1:])


def report(seconds: dict, peak: dict, prompt: int, trl: float | None) -> list[str]:
    """The tables; seconds by (who, G, part)."""

    def row(who: str, groups: int) -> str:
        total, rollout, update = (seconds[who, groups, part] for part in ("total", "rollout", "update"))
        tokens = prompt + groups * NEW if who == "vpjax" else groups * (prompt + NEW)
        held = f"{peak[who, groups]:.0f}" if (who, groups) in peak else ""
        ahead = total / seconds["vpjax", groups, "total"]
        cells = (groups, who, f"{total:.2f}", f"{rollout:.2f}", f"{update:.2f}", tokens, held, f"{ahead:.2f}")
        return f"| {' | '.join(map(str, cells))} |"

    def growth(who: str) -> str:
        first, *others = (seconds[who, groups, "total"] for groups in GROUPS)
        return f"| {who} | 1 | {' | '.join(f'{one / first:.2f}' for one in others)} |"

    text = seconds["text", COMPARED, "total"]
    against = "TRL is not installed"
    if trl is not None:
        version = importlib.metadata.version("trl")
        against = f"TRL {version}'s GRPOTrainer {trl:.2f} s, {trl / text:.2f} times as long"
    return [
        "| G | | step, s | rollout, s | update, s | tokens | peak, MiB | step over vpjax's |",
        "|---|---|---|---|---|---|---|---|",
        *(row(who, groups) for groups in GROUPS for who in ("vpjax", "repeated")),
        row("torch", COMPARED),
        "",
        f"Target: at least 3 at G = {COMPARED}. repeated: vpjax's parts, each prompt G times in the batch; "
        "torch: transformers' `generate`, forward, backward and AdamW, likewise. Tokens go through the "
        "decoder in the rollout and again in the update; the video is encoded once in each by vpjax, G times "
        "by the others. Peak: of the compiled step, weights and optimizer included.",
        "",
        "| step over that at G = 1 | " + " | ".join(f"G = {groups}" for groups in GROUPS) + " |",
        "|---" * (1 + len(GROUPS)) + "|",
        *map(growth, ("vpjax", "repeated")),
        "",
        f"Target: at most 4 for vpjax at G = {GROUPS[-1]}.",
        "",
        f"On text, {prompt} + {NEW} tokens, G = {COMPARED}: vpjax {text:.2f} s, {against}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()

    runs, peak = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        theirs = write_model(folder, args.layers)
        ours = load_pretrained(folder)
        for who in ("vpjax", "repeated"):
            for groups in GROUPS:
                calls, peak[who, groups] = jax_runs(folder, who, groups, video=True)
                runs |= {(who, groups, part): call for part, call in calls.items()}
        calls, _ = jax_runs(folder, "vpjax", COMPARED, video=False)
        runs["text", COMPARED, "total"] = calls["total"]
        theirs.generation_config.eos_token_id = None
        calls = torch_runs(theirs, ours, COMPARED)
        runs |= {("torch", COMPARED, part): call for part, call in calls.items()}
        seconds = medians(runs, rounds=args.rounds, warmup=1)
        prompt = make_batch(ours, video=True).prompt.shape[1]
        trl = trl_seconds(folder, COMPARED, prompt, args.layers, args.rounds)

    for who, groups in peak:
        seconds[who, groups, "update"] = seconds[who, groups, "total"] - seconds[who, groups, "rollout"]
    seconds["torch", COMPARED, "total"] = sum(seconds["torch", COMPARED, p] for p in ("rollout", "update"))
    size = sum(x.size for x in jax.tree.leaves(ours)) / 1e6
    lines = [
        "# GRPO step",
        "",
        environment(*("jax", "flax", "transformers", "torch"), *(["trl"] if trl else [])),
        f"{size:.0f} M parameters, {args.layers} decoder layers, float32; one prompt per step: {FRAMES} "
        f"frames of {SIDE} x {SIDE}, {prompt} tokens, and {NEW} new ones per completion; median of "
        f"{args.rounds} steps in turns",
        "",
        *report(seconds, peak, prompt, trl),
    ]
    print("\n".join(lines))
    keep(lines, args.out)


if __name__ == "__main__":
    main()
