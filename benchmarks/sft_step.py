"""What the SFT step costs: plain, joint and naive joint, and the same plain step in transformers (torch).

    python -m benchmarks.sft_step [--rounds N] [--batch B] [--layers L] [--out FILE]

One run, the same weights and batch for all, calls in turns, medians of whole updates (forward, backward,
AdamW).
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from benchmarks.timing import environment, keep, medians
from vpjax.data.rows import Tokens, bucket_of, collate, training_row
from vpjax.data.video import Video
from vpjax.models.attention import Layout
from vpjax.models.hf import load_pretrained
from vpjax.models.patches import patchify
from vpjax.models.sharding import make_mesh, put_batch
from vpjax.models.vlm import VideoLM, leaves, rebuild
from vpjax.recipes import base
from vpjax.training import sft
from vpjax.training.losses import causal_lm, contrastive, pool_slots, token_logprobs, windows_of
from vpjax.training.state import create_state
from vpjax.types import Batch

VOCAB, START, END, VIDEO, IMAGE = 8192, 8180, 8181, 8182, 8183
FRAMES, SIDE, QUESTION, ANSWER = 16, 112, 24, 24

ROWS = {
    "plain": "causal LM on V, logits of the answer only",
    "joint": "plain and contrast; V~ by gather, through half of the decoder, up to its last visual token",
    "naive": "joint with V~ as a second full forward (its frames replaced, encoded and run to the end)",
    "all logits": "plain with the logits of every token, as transformers computes them",
    "torch": "transformers (torch), the logits of every token",
    "torch, answer": "transformers (torch), logits_to_keep = the answer",
}
RATIOS = (
    ("joint", "plain", "the joint loss costs (target: at most 1.5)"),
    ("naive", "joint", "two full forwards cost, over the joint step"),
    ("torch", "all logits", "like for like: transformers over vpjax (target: at least 1)"),
    ("torch, answer", "plain", "the answer's logits only in both"),
    ("torch", "plain", "by doing less: transformers as it comes over vpjax as it comes"),
)


def write_model(folder: str, layers: int) -> Qwen2_5_VLForConditionalGeneration:
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


def make_batch(model: VideoLM, rows: int) -> Batch:
    rng = np.random.default_rng(0)

    def row(index: int):
        video = Video(
            frames=rng.integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8),
            times=np.arange(FRAMES) / 8,
            frame_seconds=1 / 8,
        )
        question, answer = (rng.integers(2, START, n, dtype=np.int32) for n in (QUESTION, ANSWER))
        prompt = np.concatenate([question[:4], [START, VIDEO, END], question[4:]]).astype(np.int32)
        tokens = Tokens(prompt, answer, answer[None, 4:6], np.array([index], np.int32), (((0.5, 1.0),),))
        return training_row(tokens, video, model.config, clip=index)

    many = [row(i) for i in range(rows)]
    return collate(many, bucket_of(many), model.config)


def all_logits(model: VideoLM, heads, batch: Batch) -> jax.Array:
    prompt, suffix = batch.prompt.shape[1], batch.suffix.shape[1]
    x, deep = model.embed_prompt(model.encode(batch.frames), batch.prompt, batch.visual)
    x = jnp.concatenate([x, model.embed_tokens(batch.suffix)], axis=1)
    h = model.decoder.run(x, batch.positions, Layout(prompt, 1, suffix), batch.prompt_valid, deep=deep)
    logits = (model.decoder.norm(h) @ model.unembed.T)[:, :-1]
    labels = jnp.concatenate([batch.prompt, batch.suffix], axis=1)[:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses[:, prompt - 1 :].mean() + 0 * losses[:, : prompt - 1].sum()


def naive_joint(model: VideoLM, heads, batch: Batch, config) -> jax.Array:
    slots = batch.frames.reshape(*batch.source.shape, -1, *batch.frames.shape[2:])
    replaced = jax.vmap(lambda x, source: x[source])(slots, batch.source).reshape(batch.frames.shape)
    tap = sft.tap_layer(model, config)
    clean, degraded = (model.hidden(model.encode(x), batch, tap=tap) for x in (batch.frames, replaced))

    def lm(hidden):
        scores = token_logprobs(
            hidden.last, hidden.suffix, model.unembed, batch.suffix[:, None], chunk=config.loss.chunk
        )
        total, count = causal_lm(scores[:, 0], batch.target)
        return total / count

    def pooled(states, marked):
        return sft.project(heads, "visual", pool_slots(states, marked))

    keywords = sft.keywords_of(model, heads, batch, config)
    inside, exists = windows_of(batch.slots, batch.slot_valid)
    windows = pooled(clean.tap, inside.reshape(len(inside), -1, inside.shape[-1])).reshape(*exists.shape, -1)
    z, other = pooled(clean.tap, batch.slots), pooled(degraded.tap, batch.slots)
    tau = jnp.exp(heads[sft.LOG_TAU])
    c = contrastive(z, other, windows, exists, keywords, keywords, tau)
    # V~'s own loss is what a second full forward is run for elsewhere; without it the compiler drops half.
    return lm(clean) + config.contrast.weight * c.loss / c.count + 0 * lm(degraded)


def jax_runs(folder: str, rows: int) -> tuple[dict, Batch, VideoLM]:
    config = base.get_config()
    config.steps = 1000
    config.data.keywords = 1
    mesh = make_mesh(config.mesh)
    model = load_pretrained(folder)
    batch = put_batch(make_batch(model, rows), mesh)

    def real(weight):
        data_config = copy.deepcopy(config)
        data_config.contrast.weight = weight
        params = leaves(model) | sft.init_heads(data_config, model.config.decoder.hidden, jax.random.key(0))
        state, optimizer, where = create_state(params, data_config, mesh)
        return state, sft.make_step(model, data_config, optimizer, where)

    def other(loss):
        params = leaves(model) | sft.init_heads(config, model.config.decoder.hidden, jax.random.key(0))
        state, optimizer, _ = create_state(params, config, mesh)

        @jax.jit
        def step(state, batch):
            def whole(params):
                heads = {path: x for path, x in params.items() if path.startswith(sft.HEADS)}
                return loss(rebuild(model, {p: x for p, x in params.items() if p not in heads}), heads, batch)

            value, gradient = jax.value_and_grad(whole)(state.params)
            updates, opt = optimizer.tx.update(gradient, state.opt, state.params)
            state.params, state.opt = optax.apply_updates(state.params, updates), opt
            return state, {"loss": value}

        return state, jax.jit(step, donate_argnums=0)

    def runner(state, step):
        box = [state]

        def run():
            box[0], metrics = step(box[0], batch)
            return float(metrics["loss"])

        return run

    runs = {
        "plain": runner(*real(0.0)),
        "joint": runner(*real(0.1)),
        "naive": runner(*other(lambda m, h, b: naive_joint(m, h, b, config))),
        "all logits": runner(*other(all_logits)),
    }
    return runs, batch, model


def torch_runs(model: Qwen2_5_VLForConditionalGeneration, batch: Batch, ours: VideoLM) -> dict:
    vision = ours.config.vision
    patches = patchify(
        batch.frames, patch=vision.patch, merge=vision.merge, temporal=vision.temporal,
        mean=vision.pixel_mean, std=vision.pixel_std,
    )  # fmt: skip
    ids = torch.tensor(np.concatenate([batch.prompt, batch.suffix], axis=1)).long()
    side = SIDE // vision.patch
    inputs = dict(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values_videos=torch.tensor(np.asarray(patches).reshape(-1, patches.shape[-1])),
        video_grid_thw=torch.tensor([[FRAMES // vision.temporal, side, side]] * len(ids)),
        position_ids=torch.tensor(np.asarray(batch.positions)).permute(1, 0, 2).long(),
        mm_token_type_ids=2 * (ids == VIDEO).long(),
    )
    answer = ids[:, -ANSWER:]

    def runner(keep: int):
        mine = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(mine.parameters(), lr=1e-6, weight_decay=0.01)

        def run():
            logits = mine(**inputs, use_cache=False, logits_to_keep=keep).logits
            scores = logits[:, -ANSWER - 1 : -1].float().flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(scores, answer.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(mine.parameters(), 1.0)
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
        theirs = write_model(folder, args.layers)
        runs, batch, ours = jax_runs(folder, args.batch)
    runs |= torch_runs(theirs, batch, ours)
    first = {name: run() for name, run in runs.items()}
    seconds = medians(runs, rounds=args.rounds)

    size = sum(x.size for x in jax.tree.leaves(ours)) / 1e6
    lines = [
        "# SFT step",
        "",
        environment("jax", "flax", "transformers", "torch"),
        f"{size:.0f} M parameters, {args.layers} decoder layers; batch {args.batch}, {FRAMES} frames of "
        f"{SIDE} x {SIDE}, prompt {batch.prompt.shape[1]} + answer {ANSWER} tokens, vocabulary {VOCAB}; "
        f"median of {args.rounds} updates in turns",
        "",
        "| step | seconds | first loss | what it is |",
        "|---|---|---|---|",
        *(f"| {name} | {seconds[name]:.3f} | {first[name]:.4f} | {ROWS[name]} |" for name in runs),
        "",
        "| ratio | | |",
        "|---|---|---|",
        *(f"| {a} / {b} | {seconds[a] / seconds[b]:.2f} | {what} |" for a, b, what in RATIOS),
    ]
    print("\n".join(lines))
    keep(lines, args.out)


if __name__ == "__main__":
    main()
