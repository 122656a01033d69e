"""What the GRPO step costs: vpjax, the same code with every prompt repeated, and transformers (torch).

    python -m benchmarks.grpo_step [--rounds N] [--layers L] [--out FILE]

One process, with the same weights, video and lengths for all; the calls take turns, and tables have medians.
A step samples G completions of one prompt with a video, rewards them and updates (forward, backward, AdamW);
no completion stops early. "Repeated" is what TRL and Video-R1 do: the video is encoded and the prompt
prefilled for each completion, and the update runs over G whole sequences. TRL itself takes no video: if it is
installed (``pip install trl``), its GRPOTrainer is measured on text of the same lengths.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import ConfigDict

from benchmarks.sft_step import (
    SIDE,
    START,
    VIDEO,
    VOCAB,
    prompt_batch,
    random_prompt,
    torch_videos,
    write_model,
)
from benchmarks.timing import environment, medians, publish
from vpjax import cli
from vpjax.data.video import Video
from vpjax.models.generate import Completions, generate
from vpjax.models.hf import load_pretrained
from vpjax.models.sharding import make_mesh, put_batch
from vpjax.models.vlm import VideoLM, leaves, rebuild
from vpjax.recipes import base
from vpjax.training import grpo
from vpjax.training.losses import token_logprobs
from vpjax.training.optimizer import Optimizer
from vpjax.training.policy import denominator, policy_loss
from vpjax.training.relative import NO_TERM, advantages
from vpjax.training.state import State, advance, create_state, optimize
from vpjax.types import Array, Prompts

GROUPS = (1, 4, 8, 16)  # G, completions of a prompt
COMPARED = 8  # the G at which torch and TRL are measured too
FRAMES, QUESTION, NEW = 32, 24, 32  # 256 visual tokens and 26 others, then 32 new ones

Run = Callable[[], object]


def video_prompt(model: VideoLM) -> tuple[Prompts, Video]:
    """A question about a video, and the video."""
    prompt, video = random_prompt(np.random.default_rng(0), FRAMES, QUESTION)
    return prompt_batch(model, prompt, video), video


def text_prompt(model: VideoLM) -> Prompts:
    """As many tokens of text."""
    count = video_prompt(model)[0].text.tokens.shape[1]
    prompt = np.random.default_rng(0).integers(2, START, count, dtype=np.int32)
    return prompt_batch(model, prompt, None)


def configure(groups: int) -> ConfigDict:
    config = base.get_config()
    config.method = "grpo"
    config.batch = 1
    config.grpo.groups = groups
    config.grpo.degraded = 0
    config.grpo.max_new = NEW
    config.grpo.relative.kind = "none"
    return config


class OddTokens:
    """Rewards completions by their share of odd tokens, which differs between them and costs nothing."""

    def __init__(self) -> None:
        self.weights = {"odd": 1.0}
        self.degraded_weights: dict[str, float] = {}
        self.host_scores: dict[str, Any] = {}

    def score(self, prompts: Prompts, tokens_BXC: Array, mask_BXC: Array) -> dict[str, jax.Array]:
        return {"odd": self.recall(prompts, tokens_BXC, mask_BXC)}

    def score_degraded(self, prompts: Prompts, tokens_BXC: Array, mask_BXC: Array) -> dict[str, jax.Array]:
        return {}

    def answers(self, prompts: Prompts, tokens_BXC: Array, mask_BXC: Array) -> jax.Array:
        return jnp.sum(tokens_BXC, axis=-1)

    def recall(self, prompts: Prompts, tokens_BXC: Array, mask_BXC: Array) -> jax.Array:
        return jnp.mean(tokens_BXC % 2, axis=-1)

    def overlap(self, prompts: Prompts) -> Array:
        return jnp.zeros(prompts.clip.shape)


def repeated_step(model: VideoLM, config: ConfigDict, optimizer: Optimizer) -> Callable[..., Any]:
    """A GRPO step of vpjax's parts in which each prompt stands in the batch G times."""
    options = config.grpo

    def step(state: State, prompts: Prompts) -> tuple[State, dict[str, Array], None]:
        rows = repeat_rows(prompts, options.groups)
        completions = sample(rebuild(model, state.params), rows, state.step, 1)
        rewards = OddTokens().recall(rows, completions.tokens, completions.mask)
        rewards_BG = rewards.reshape(-1, options.groups)
        advantages_B11 = advantages(rewards_BG, NO_TERM, scale=options.scale).reshape(-1, 1, 1)

        def loss(params: dict[str, Array]) -> Array:
            current = rebuild(model, params)
            h_BGCD = current.predicting(current.encode(rows.video), rows, completions.tokens)
            logprobs = token_logprobs(h_BGCD, current.unembed, completions.tokens, chunk=config.loss.chunk)
            sums = policy_loss(logprobs, None, completions.mask, advantages_B11, None, options)
            return sums.loss / denominator(completions.mask, options)

        value, gradient = jax.value_and_grad(loss)(state.params)
        finite = jnp.isfinite(value)
        params, opt = optimize(optimizer, state.params, state.opt, gradient, finite)
        return advance(state, params, opt, finite), {"loss": value}, None

    return jax.jit(step, donate_argnums=0)


def repeat_rows(prompts: Prompts, count: int) -> Prompts:
    return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), prompts)


def sample(model: VideoLM, prompts: Prompts, step: Array | int, groups: int) -> Completions:
    key = jax.random.fold_in(jax.random.key(0), step)
    return generate(model, prompts, key, max_new=NEW, eos=(), groups=(groups,), temperature=1.0)


def jax_runs(folder: str, name: str, groups: int, *, video: bool) -> tuple[dict[str, Run], float]:
    """Calls of the whole step and of its sampling alone, and the step's peak memory in MiB. name: "vpjax" or
    "repeated"."""
    model, config = load_pretrained(folder), configure(groups)
    mesh = make_mesh(config.mesh)
    prompts = put_batch(video_prompt(model)[0] if video else text_prompt(model), mesh)
    state, optimizer, shardings = create_state(leaves(model), config, mesh)
    step: Any  # jitted, since all rewards are computed on the device
    if name == "vpjax":
        step = grpo.make_step(model, config, optimizer, shardings, judge=OddTokens(), eos=())
        sampled_prompts, sampled_groups = prompts, groups
    else:
        step = repeated_step(model, config, optimizer)
        sampled_prompts, sampled_groups = repeat_rows(prompts, groups), 1
    compiled = step.lower(state, prompts).compile()
    memory = compiled.memory_analysis()
    peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes

    def total() -> float:
        nonlocal state
        state, metrics, _ = compiled(state, prompts)
        return float(metrics["loss"])

    def rollout() -> None:
        jax.block_until_ready(sample(rebuild(model, state.params), sampled_prompts, 0, sampled_groups))

    return {"total": total, "rollout": rollout}, peak / 2**20


def torch_runs(torch_model: Any, model: VideoLM, groups: int) -> dict[str, Run]:
    """The rollout and the update of one prompt with ``groups`` copies of its video."""
    prompts, video = video_prompt(model)
    prompt = torch.tensor(np.asarray(prompts.text.tokens)).long()
    pixels = torch_videos(model.config.vision, [video])
    optimizer = torch.optim.AdamW(torch_model.parameters(), lr=1e-6, weight_decay=0.01)
    sequences = torch.zeros(0)

    def inputs(ids: torch.Tensor, copies: int) -> dict[str, torch.Tensor]:
        return dict(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values_videos=pixels["pixel_values_videos"].repeat(copies, 1),
            video_grid_thw=pixels["video_grid_thw"].repeat(copies, 1),
            mm_token_type_ids=2 * (ids == VIDEO).long(),
        )

    def rollout() -> None:
        nonlocal sequences
        torch_model.model.rope_deltas = None
        sequences = torch_model.generate(
            **inputs(prompt, 1),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=groups,
            max_new_tokens=NEW,
        )

    def update() -> float:
        tokens = sequences[:, -NEW:]
        rewards = (tokens % 2).float().mean(-1)
        advantage = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        torch_model.model.rope_deltas = None
        out = torch_model(**inputs(sequences, groups), use_cache=False, logits_to_keep=NEW + 1)
        logprobs = torch.log_softmax(out.logits[:, :-1].float(), -1)
        logprobs = logprobs.gather(-1, tokens[..., None])[..., 0]
        loss = -(torch.exp(logprobs - logprobs.detach()) * advantage[:, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(torch_model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return {"rollout": rollout, "update": update}


def trl_seconds(folder: str, groups: int, prompt: int, layers: int, rounds: int) -> float | None:
    """Median seconds of a step of TRL's GRPOTrainer on prompts of text, without the first one. None if TRL is
    not installed."""
    if importlib.util.find_spec("trl") is None:
        return None
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    vocabulary = {f"w{i}": i for i in range(VOCAB)}
    word_level = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_level, eos_token="w1", pad_token="w0")
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=512, intermediate_size=1408, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    prompts = np.random.default_rng(0).integers(2, START, (rounds + 1, prompt))
    seconds: list[float] = []
    lengths: set[int] = set()

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            seconds.append(time.perf_counter() - self.start)

    def odd(completion_ids: list[list[int]], **unused: object) -> list[float]:
        lengths.update(len(ids) for ids in completion_ids)
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


def report(
    seconds: dict[tuple[str, int, str], float],
    peak: dict[tuple[str, int], float],
    prompt: int,
    trl: float | None,
) -> list[str]:
    """The tables. seconds: by name, G and part of the step. peak: MiB by name and G. prompt: tokens. trl:
    seconds of its step."""

    def row(name: str, groups: int) -> str:
        total = seconds[name, groups, "total"]
        if name == "vpjax":
            tokens = prompt + groups * NEW
        else:
            tokens = groups * (prompt + NEW)
        memory = f"{peak[name, groups]:.0f}" if (name, groups) in peak else ""
        return (
            f"| {groups} | {name} | {total:.2f} | {seconds[name, groups, 'rollout']:.2f} "
            f"| {seconds[name, groups, 'update']:.2f} | {tokens} | {memory} "
            f"| {total / seconds['vpjax', groups, 'total']:.2f} |"
        )

    def growth(name: str) -> str:
        totals = [seconds[name, groups, "total"] for groups in GROUPS]
        return f"| {name} | 1 | " + " | ".join(f"{total / totals[0]:.2f}" for total in totals[1:]) + " |"

    text = seconds["text", COMPARED, "total"]
    against = "TRL is not installed"
    if trl is not None:
        version = importlib.metadata.version("trl")
        against = f"TRL {version}'s GRPOTrainer {trl:.2f} s, {trl / text:.2f} times as long"
    return [
        "| G | | step, s | rollout, s | update, s | tokens | peak, MiB | step over vpjax's |",
        "|---|---|---|---|---|---|---|---|",
        *(row(name, groups) for groups in GROUPS for name in ("vpjax", "repeated")),
        row("torch", COMPARED),
        "",
        f"Target: at least 3 at G = {COMPARED}. repeated: vpjax's parts, each prompt G times in the batch; "
        "torch: transformers' `generate`, forward, backward and AdamW, also with repeated prompts. Tokens go "
        "through the decoder in the rollout and again in the update; vpjax encodes the video once in each, "
        "the others G times. Peak: memory of the compiled step, weights and optimizer included.",
        "",
        "| step over that at G = 1 | " + " | ".join(f"G = {groups}" for groups in GROUPS) + " |",
        "|---" * (1 + len(GROUPS)) + "|",
        growth("vpjax"),
        growth("repeated"),
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

    runs: dict[tuple[str, int, str], Run] = {}
    peak: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        torch_model = write_model(folder, args.layers)
        model = load_pretrained(folder)
        for name in ("vpjax", "repeated"):
            for groups in GROUPS:
                calls, peak[name, groups] = jax_runs(folder, name, groups, video=True)
                runs |= {(name, groups, part): call for part, call in calls.items()}
        calls, _ = jax_runs(folder, "vpjax", COMPARED, video=False)
        runs["text", COMPARED, "total"] = calls["total"]
        torch_model.generation_config.eos_token_id = None
        calls = torch_runs(torch_model, model, COMPARED)
        runs |= {("torch", COMPARED, part): call for part, call in calls.items()}
        seconds = medians(runs, rounds=args.rounds, warmup=1)
        prompt = video_prompt(model)[0].text.tokens.shape[1]
        trl = trl_seconds(folder, COMPARED, prompt, args.layers, args.rounds)

    for name, groups in peak:
        seconds[name, groups, "update"] = seconds[name, groups, "total"] - seconds[name, groups, "rollout"]
    torch_parts = [seconds["torch", COMPARED, part] for part in ("rollout", "update")]
    seconds["torch", COMPARED, "total"] = sum(torch_parts)
    packages = ["jax", "flax", "transformers", "torch"]
    if trl is not None:
        packages.append("trl")
    size = sum(x.size for x in jax.tree.leaves(model)) / 1e6
    lines = [
        "# GRPO step",
        "",
        environment(*packages),
        f"{size:.0f} M parameters, {args.layers} decoder layers, float32; one prompt per step: {FRAMES} "
        f"frames of {SIDE} x {SIDE}, {prompt} tokens, and {NEW} new ones per completion; median of "
        f"{args.rounds} steps in turns",
        "",
        *report(seconds, peak, prompt, trl),
    ]
    publish(lines, args.out)


if __name__ == "__main__":
    cli.run(main)
