"""What the SFT step costs: plain, joint and naive joint, and the same plain step in transformers (torch).

    python -m benchmarks.sft_step [--rounds N] [--batch B] [--layers L] [--out FILE]

One process, with the same weights and batch for all, one clip in a row; the calls take turns. The table has
medians of whole updates (forward, backward, AdamW).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from ml_collections import ConfigDict
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from benchmarks.timing import environment, medians, publish
from vpjax import cli
from vpjax.data.collate import collate, collate_prompts
from vpjax.data.index import row_sizes
from vpjax.data.packing import Sizes
from vpjax.data.rows import NO_ANSWERS, DegradedAnswers, prompt_row, training_row
from vpjax.data.text import Tokens
from vpjax.data.units import choose_capacity, cut, grid_of
from vpjax.data.video import Video
from vpjax.models.config import VisionConfig
from vpjax.models.gather import take
from vpjax.models.hf import load_pretrained
from vpjax.models.patches import normalised
from vpjax.models.sharding import make_mesh, put_batch
from vpjax.models.vlm import Hidden, VideoLM, leaves, rebuild
from vpjax.recipes import base
from vpjax.training import sft
from vpjax.training.losses import causal_lm, contrastive, pool_slots, slot_means, token_logprobs
from vpjax.training.optimizer import HEADS_PREFIX, Optimizer
from vpjax.training.state import State, create_state, optimize
from vpjax.types import Array, Batch, Prompts, Units

VOCAB, START, END, VIDEO, IMAGE = 8192, 8180, 8181, 8182, 8183
FRAMES, SIDE, QUESTION, ANSWER = 16, 112, 24, 24
EVENT = 0.75  # second at which the event of each clip of 2 s begins: on average, it is in the middle

# What each step is.
ROWS = {
    "plain": "language-model loss on V, logits of the answer only",
    "joint": "plain and contrast; V~ by gather, from its first own token through half of the decoder",
    "margin": "joint and the margin on the answer; V~ runs through the whole decoder",
    "naive": "joint with V~ as a second full forward pass (frames replaced, encoded and run to the end)",
    "all logits": "plain with the logits of every token, as transformers computes them",
    "torch": "transformers (torch), the logits of every token",
    "torch, answer": "transformers (torch), logits_to_keep = the answer",
}
# Numerator, denominator, and what their ratio is.
RATIOS = (
    ("joint", "plain", "cost of the joint loss (target: at most 1.5)"),
    ("margin", "plain", "cost of the margin (target: at most 1.6)"),
    ("naive", "joint", "cost of two full forward passes, over the joint step"),
    ("torch", "all logits", "the same work: transformers over vpjax (target: at least 1)"),
    ("torch, answer", "plain", "the answer's logits only, in both"),
    ("torch", "plain", "the defaults of both: transformers over vpjax"),
)


def write_model(folder: str, layers: int) -> Any:
    """Write a model of random weights and return it, as transformers' class. (Typed as Any, since the types
    of its ``generate`` do not fit the class itself.)"""
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=VOCAB, hidden_size=512, intermediate_size=1408, num_hidden_layers=layers,
            num_attention_heads=8, num_key_value_heads=2, bos_token_id=None, eos_token_id=1,
            rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[8, 12, 12]),
        ),
        vision_config=dict(
            depth=4, hidden_size=256, intermediate_size=704, num_heads=4, out_hidden_size=512,
            window_size=112, fullatt_block_indexes=[1, 3], patch_size=14, tokens_per_second=4,
        ),
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    model.save_pretrained(folder)
    return model


def random_prompt(rng: np.random.Generator, frames: int, question: int) -> tuple[np.ndarray, Video]:
    """A prompt of ``question`` random tokens with a placeholder after the fourth, and a random video."""
    video = Video(
        frames=rng.integers(0, 256, (frames, SIDE, SIDE, 3), dtype=np.uint8),
        times=np.arange(frames) / 8,
        frame_seconds=1 / 8,
    )
    tokens = rng.integers(2, START, question, dtype=np.int32)
    return np.concatenate([tokens[:4], [START, VIDEO, END], tokens[4:]]).astype(np.int32), video


def prompt_batch(model: VideoLM, prompt: np.ndarray, video: Video | None) -> Prompts:
    """A batch of one prompt without any padding."""
    vision = model.config.vision
    capacity = choose_capacity([grid_of(video.frames.shape[:3], vision)] if video else [], vision)
    row = prompt_row(prompt, [video] if video else [], model.config, capacity)
    sizes = Sizes(len(row.prompt.tokens), len(row.video.window), len(row.video.bins))
    return collate_prompts([row], sizes, capacity, model.config)


def torch_videos(vision: VisionConfig, videos: Sequence[Video]) -> dict[str, torch.Tensor]:
    """Videos as the arguments of a transformers model."""
    patches = [
        np.asarray(normalised(cut(video.frames, vision), vision.pixel_mean, vision.pixel_std))
        for video in videos
    ]
    grids = [grid_of(video.frames.shape[:3], vision) for video in videos]
    return dict(
        pixel_values_videos=torch.tensor(np.concatenate(patches).reshape(-1, patches[0].shape[-1])),
        video_grid_thw=torch.tensor(
            [[s, rows * vision.merge, columns * vision.merge] for s, rows, columns in grids]
        ),
    )


def make_batch(model: VideoLM, size: int, answers: DegradedAnswers = NO_ANSWERS) -> tuple[Batch, list[Video]]:
    """A batch of so many clips, one in a row, and their videos. answers: what follows the prompts of V~."""
    rng = np.random.default_rng(0)
    shape = FRAMES, SIDE, SIDE
    capacity = choose_capacity([grid_of(shape, model.config.vision)], model.config.vision)
    rows, videos = [], []
    for index in range(size):
        prompt, video = random_prompt(rng, FRAMES, QUESTION)
        answer = rng.integers(2, START, ANSWER, dtype=np.int32)
        tokens = Tokens(
            prompt=prompt,
            answer=answer,
            keywords=answer[None, 4:6],
            lemma=np.array([index], np.int32),
            spans=(((EVENT, EVENT + 0.5),),),
            videos=(0,),
            places=((4, 5),),
            degraded_answer=answer[:0],
        )
        rows.append([training_row(tokens, [video], model.config, capacity, answers=answers, clip=index)])
        videos.append(video)
    first_slot = int(rows[0][0].degraded.slot[0])
    # The same for all.
    sizes = row_sizes(tokens, [shape], [0], model.config, capacity, answers, (0, first_slot))
    return collate(rows, sizes, capacity, model.config, keyword_tokens=2), videos


def all_logits(model: VideoLM, heads: dict[str, Array], batch: Batch) -> Array:
    """The loss of ``plain``, computed from the logits of every token."""
    features = model.encode(batch.video)
    h_RTD = model.states_after(features, batch.text, layers=model.config.decoder.layers)
    logits = (model.decoder.norm(h_RTD) @ model.unembed.T)[:, :-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.text.tokens[:, 1:])
    # The prompt's losses are computed too and count for nothing.
    return take(losses, batch.target - 1).mean() + 0 * losses.sum()


def seen_units(batch: Batch) -> np.ndarray:
    """For each unit of V, i32[R, U], the one that V~ shows in its place."""
    index = np.tile(np.arange(batch.video.count), (len(batch.text.tokens), 1))
    for r, own in enumerate(np.asarray(batch.degraded.shows)):
        first = int((np.asarray(batch.shared[r]) > 0).sum())
        replaced = np.asarray(batch.text.shows)[r, first : first + len(own)]
        index[r, replaced[own >= 0]] = own[own >= 0]
    return index


def naive_joint(
    model: VideoLM, heads: dict[str, Array], batch: Batch, index: np.ndarray, config: ConfigDict
) -> Array:
    """The loss of ``joint`` with V~ as a second full forward pass. index: see ``seen_units``."""
    tap, slots = sft.tap_layer(model, config), batch.slots.shape[-1]

    def forward(video: Units) -> Hidden:
        return model.hidden(model.encode(video), batch.text, batch.target, tap=tap)

    def lm(hidden: Hidden) -> Array:
        targets = take(batch.text.tokens, batch.target)
        logprobs = token_logprobs(
            hidden.target[:, None], model.unembed, targets[:, None], chunk=config.loss.chunk
        )
        total, count = causal_lm(logprobs[:, 0], batch.origin, 1)
        return total.sum() / count.sum()

    def pooled(hidden: Hidden, marked: Array) -> Array:
        assert hidden.tap is not None  # the layer is tapped
        return sft.project(
            heads, "visual", pool_slots(slot_means(hidden.tap, batch.text.slot, slots), marked)
        )

    clean = forward(batch.video)
    degraded = forward(dataclasses.replace(batch.video, pixels=take(batch.video.pixels, index)))
    keywords = sft.batch_keywords(model, heads, batch, config)
    window_of, first, end = (jnp.asarray(batch.windows)[..., i, None] for i in range(3))
    inside = (jnp.arange(slots) >= first) & (jnp.arange(slots) < end)
    contrast = contrastive(
        pooled(clean, batch.slots),
        pooled(degraded, batch.slots),
        pooled(clean, inside),
        window_of[..., 0],
        keywords,
        keywords,
        jnp.exp(heads[sft.LOG_TAU]),
    )
    joint = lm(clean) + config.contrast.weight * contrast.loss / contrast.keywords
    # A second full forward computes V~'s own loss as well; without it the compiler would drop half of it.
    return joint + 0 * lm(degraded)


def jax_runs(model: VideoLM, batch: Batch, answered: Batch) -> dict[str, Callable[[], float]]:
    """A call for each step of vpjax. answered: the batch with answers on V~."""
    config = base.get_config()
    config.steps = 1000
    config.data.keywords = 1
    mesh = make_mesh(config.mesh)
    index = seen_units(batch)
    batch, answered = put_batch(batch, mesh), put_batch(answered, mesh)

    def start(config: ConfigDict) -> tuple[State, Optimizer, State]:
        heads = sft.init_heads(config, model.config.decoder.hidden, jax.random.key(0))
        return create_state(leaves(model) | heads, config, mesh)

    def shipped(weight: float, answer: float = 0.0) -> Callable[[], float]:
        """The step of vpjax.training.sft."""
        weighted = copy.deepcopy(config)
        weighted.contrast.weight, weighted.contrast.answer = weight, answer
        state, optimizer, shardings = start(weighted)
        step = sft.make_step(model, weighted, optimizer, shardings)
        return runner(state, step, answered if answer else batch)

    def simple(loss: Callable[[VideoLM, dict[str, Array], Batch], Array]) -> Callable[[], float]:
        """A step of any loss, with the same optimizer."""
        state, optimizer, _ = start(config)

        def step(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
            def loss_of(params: dict[str, Array]) -> Array:
                heads = {path: x for path, x in params.items() if path.startswith(HEADS_PREFIX)}
                rest = {path: x for path, x in params.items() if path not in heads}
                return loss(rebuild(model, rest), heads, batch)

            value, gradient = jax.value_and_grad(loss_of)(state.params)
            finite = jnp.isfinite(value)
            state.params, state.opt = optimize(optimizer, state.params, state.opt, gradient, finite)
            return state, {"loss": value}

        return runner(state, jax.jit(step, donate_argnums=0), batch)

    def runner(
        state: State, step: Callable[[State, Batch], tuple[State, dict[str, Array]]], batch: Batch
    ) -> Callable[[], float]:
        def run() -> float:
            nonlocal state
            state, metrics = step(state, batch)
            return float(metrics["loss"])

        return run

    return {
        "plain": shipped(0.0),
        "joint": shipped(0.1),
        "margin": shipped(0.1, 0.2),
        "naive": simple(lambda model, heads, batch: naive_joint(model, heads, batch, index, config)),
        "all logits": simple(all_logits),
    }


def torch_runs(
    torch_model: Any, batch: Batch, videos: Sequence[Video], vision: VisionConfig
) -> dict[str, Callable[[], float]]:
    """A call for each step of transformers."""
    ids = torch.tensor(np.asarray(batch.text.tokens)).long()
    inputs = dict(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **torch_videos(vision, videos),
        position_ids=torch.tensor(np.asarray(batch.text.positions)).permute(1, 0, 2).long(),
        mm_token_type_ids=2 * (ids == VIDEO).long(),
    )
    answer = ids[:, -ANSWER:]

    def runner(logits_to_keep: int) -> Callable[[], float]:
        """logits_to_keep: 0 keeps the logits of every token."""
        trained = copy.deepcopy(torch_model)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-6, weight_decay=0.01)

        def run() -> float:
            logits = trained(**inputs, use_cache=False, logits_to_keep=logits_to_keep).logits
            predicted = logits[:, -ANSWER - 1 : -1].float().flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(predicted, answer.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            return loss.item()

        return run

    return {"torch": runner(0), "torch, answer": runner(ANSWER + 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        torch_model = write_model(folder, args.layers)
        model = load_pretrained(folder)
    batch, videos = make_batch(model, args.batch)
    answered, _ = make_batch(model, args.batch, DegradedAnswers("keywords"))
    runs = jax_runs(model, batch, answered) | torch_runs(torch_model, batch, videos, model.config.vision)
    first_loss = {name: run() for name, run in runs.items()}
    seconds = medians(runs, rounds=args.rounds)

    size = sum(x.size for x in jax.tree.leaves(model)) / 1e6
    prompt = batch.text.tokens.shape[1] - ANSWER
    lines = [
        "# SFT step",
        "",
        environment("jax", "flax", "transformers", "torch"),
        f"{size:.0f} M parameters, {args.layers} decoder layers; batch {args.batch}, {FRAMES} frames of "
        f"{SIDE} x {SIDE}, prompt {prompt} + answer {ANSWER} tokens, vocabulary {VOCAB}; "
        f"median of {args.rounds} updates in turns",
        "",
        "| step | seconds | first loss | what it is |",
        "|---|---|---|---|",
        *(f"| {name} | {seconds[name]:.3f} | {first_loss[name]:.4f} | {ROWS[name]} |" for name in runs),
        "",
        "| ratio | | |",
        "|---|---|---|",
        *(f"| {a} / {b} | {seconds[a] / seconds[b]:.2f} | {meaning} |" for a, b, meaning in RATIOS),
    ]
    publish(lines, args.out)


if __name__ == "__main__":
    cli.run(main)
