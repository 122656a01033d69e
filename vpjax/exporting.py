"""A run's model as a Hugging Face folder: weights, config, tokenizer, processors and a model card."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vpjax.data.rows import bucket_of, collate, prompt_row
from vpjax.data.text import Text
from vpjax.data.video import Sampling, Video
from vpjax.evaluation.results import interval
from vpjax.models import hf
from vpjax.models.names import FAMILIES
from vpjax.models.patches import patchify
from vpjax.models.vlm import VideoLM, leaves
from vpjax.training import checkpoint, run_config
from vpjax.types import Batch, UserError

IMAGE, VIDEO = "preprocessor_config.json", "video_preprocessor_config.json"
POSITIONS = (
    "Text after a video continues at its largest position + 1, as in Qwen's own code, transformers 4 and "
    "vLLM: these agree with the training.",
    "transformers 5 restarts lower, at the video's first position + its longer side, so its answers about "
    "videos can differ: hand its forward the `position_ids` of the rule above.",
)


def export(workdir: Path, out: Path, *, step: int | None = None, dtype: str | None = None) -> VideoLM:
    """Write the model of a run to ``out``, which ``transformers`` loads; the model as it was written.

    step: of the checkpoint; None: the newest. dtype: of the weights; None: as the checkpoint has them. The
    training-only heads stay behind. UserError for a folder that is no run, or an ``out`` that has other files
    than an earlier export.
    """
    if not (workdir / checkpoint.MODEL).is_dir() or not (workdir / run_config.FILE).is_file():
        raise UserError(f"--workdir={workdir}: no run in it; give the folder that vpjax.train wrote")
    if out.exists() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise UserError(f"--out={out}: has files of something else in it; give another folder")
    model, text = checkpoint.load(workdir, step=step, dtype=dtype)
    config = ConfigDict(json.loads((workdir / run_config.FILE).read_text()))
    hf.save_pretrained(model, out, like=workdir / checkpoint.MODEL)
    if not (out / "generation_config.json").exists():
        _write(out / "generation_config.json", generation_config(text))
    images, videos = processors(model, config.data)
    for name, own, sizes in ((IMAGE, *images), (VIDEO, *videos)):
        there = json.loads((out / name).read_text()) if (out / name).exists() else own
        _write(out / name, there | sizes)
    (out / "README.md").write_text(card(workdir, config, model, step))
    return model


def generation_config(text: Text) -> dict[str, Any]:
    return {"do_sample": False, "eos_token_id": list(text.stops), "pad_token_id": text.pad}


def processors(model: VideoLM, data: ConfigDict) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Of images and of videos, the processor's config and what of it says the sizes that the run saw."""
    vision, family = model.config.vision, FAMILIES[model.config.family]
    own = {
        "processor_class": family.processor,
        "patch_size": vision.patch,
        "temporal_patch_size": vision.temporal,
        "merge_size": vision.merge,
        "image_mean": list(vision.pixel_mean),
        "image_std": list(vision.pixel_std),
    }
    sampling = {"num_frames": data.frames} if data.frames else {"fps": data.fps}
    size = {"shortest_edge": data.min_pixels, "longest_edge": data.max_pixels}
    per_frame = per_video = {"min_pixels": data.min_pixels, "max_pixels": data.max_pixels, "size": size}
    if family.whole_video and data.frames:
        per_video = {"size": {edge: data.frames * pixels for edge, pixels in size.items()}}
    elif family.whole_video:  # of a number of frames that is not known, only the upper limit can be said
        per_video = {
            "size": size | {"longest_edge": Sampling.max_frames * data.max_pixels},
            "cap_pixels_per_frame": True,
            "max_video_tokens": data.max_pixels // vision.factor**2,
        }
    images = own | {"image_processor_type": "Qwen2VLImageProcessor"}
    videos = own | {"video_processor_type": family.video_processor, "do_sample_frames": True} | sampling
    return [(images, per_frame), (videos, per_video)]


def card(workdir: Path, config: ConfigDict, model: VideoLM, step: int | None) -> str:
    """README.md: what the model is, how it was trained, what was measured, how to ask it."""
    manager = checkpoint.Manager(workdir, keep=None)
    step = step or max(manager.steps())
    manager.close()
    data = config.data
    shown = f"{data.frames} frames, evenly spaced" if data.frames else f"{data.fps:g} frames a second"
    size = sum(math.prod(leaf.shape) for leaf in leaves(model).values()) / 1e6
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: video-text-to-text",
        "tags: [video, vpjax]",
        "---",
        "",
        f"# {workdir.resolve().name}, step {step}",
        "",
        f"A {model.config.family} of {size:,.1f} M parameters, post-trained with vpjax (VideoPerceiver, "
        "arXiv 2511.18823).",
        "",
        "## Training",
        "",
        "| | |",
        "|---|---|",
        f"| start | {config.get('init_from') or 'random weights'} |",
        f"| method | {config.get('method', 'sft')} |",
        f"| data | {data.train} |",
        f"| steps | {step} of {config.steps}, {config.batch} clips each |",
        f"| videos | {shown}, {data.min_pixels} to {data.max_pixels} pixels a frame |",
        f"| optimizer | AdamW, learning rate {config.optim.lr:g}, {config.dtype} |",
    ]
    lines += [f"| {name} at step {step} | {value:.4g} |" for name, value in _metrics(workdir, step).items()]
    measured = _measured(workdir, step)
    if measured:
        lines += [
            "",
            "## Measured",
            "",
            "| benchmark | shown | metric | % [95 % interval] | rows |",
            "|---|---|---|---|---|",
        ]
        lines += measured
    if model.config.tokens_per_second is not None:  # else all runtimes agree
        lines += ["", "## Positions after a video", "", *POSITIONS]
    return "\n".join([*lines, ""])


def _metrics(workdir: Path, step: int) -> dict[str, float]:
    """The losses of the run's last line at or before ``step``."""
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    last = next((line for line in reversed(lines) if line["step"] <= step), {})
    return {name: x for name, x in last.items() if name.startswith("loss") and isinstance(x, float)}


def _measured(workdir: Path, step: int) -> list[str]:
    """A row for every evaluation of this step that lies in the work directory."""
    rows = []
    for file in sorted(workdir.glob("evaluate/*/results.json")):
        results = json.loads(file.read_text())
        for control, x in results["controls"].items():
            if results["request"]["step"] == step and x["rows"]:
                metric, scores = next(iter(x["metrics"].items()))
                name = results["request"]["benchmark"]
                rows.append(f"| {name} | {control} | {metric} | {interval(scores['micro'])} | {x['rows']} |")
    return rows


def check(model: VideoLM, out: Path) -> list[str]:
    """What reading ``out`` back gives, a line each: the same weights and logits here, and in transformers
    where torch is installed. UserError where they differ."""
    loaded, text = hf.load_pretrained(out), Text.load(out)
    for (name, a), b in zip(leaves(model).items(), leaves(loaded).values(), strict=True):
        if not np.array_equal(np.asarray(a), np.asarray(b)):
            raise UserError(f"{out}: {name} was read back with other numbers; export again")
    batch = probe(loaded, text)
    ours = _logits(loaded, batch)
    if not np.array_equal(ours, _logits(model, batch)):
        raise UserError(f"{out}: read back, the model gives other logits; export again")
    lines = [f"read back: the same {len(leaves(model))} parameters and logits, bit for bit"]
    try:
        import torch
    except ImportError:
        return [*lines, "transformers was not asked: torch is not installed"]
    # In float32, whatever the weights' type: bfloat16 would round differently here and there.
    ours = _logits(hf.load_pretrained(out, dtype=jnp.float32), batch)
    apart = float(np.abs(_torch_logits(torch, loaded, batch, out) - ours).max() / ours.std())
    if not apart <= 1e-3:
        raise UserError(f"{out}: transformers' logits are {apart:.1g} of their spread apart from ours")
    return [*lines, f"transformers loads it; its logits are within {apart:.1g} of their spread"]


def probe(model: VideoLM, text: Text) -> Batch:
    """A question about a small video of noise."""
    vision = model.config.vision
    side = 2 * vision.patch * vision.merge
    noise = np.random.default_rng(0).integers(0, 256, (4 * vision.temporal, side, side, 3), np.uint8)
    video = Video(noise, np.arange(len(noise)) / 2, 0.5)
    row = prompt_row(text.chat("What happens in the video?"), video, model.config, stamps=text.stamps)
    return collate([row], bucket_of([row]), model.config)


def _logits(model: VideoLM, batch: Batch) -> np.ndarray:
    """f32[O] of the first token of the answer."""
    last_BD, _ = jax.jit(lambda m, b: m.prefill(m.encode(b.frames), b))(model, batch)
    return np.asarray(last_BD[0].astype(jnp.float32) @ model.unembed.T.astype(jnp.float32))


def _torch_logits(torch: Any, model: VideoLM, batch: Batch, folder: Path) -> np.ndarray:
    """The same by transformers, given our pixels and positions."""
    from transformers import AutoModelForImageTextToText

    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    vision = model.config.vision
    cut = dict(patch=vision.patch, merge=vision.merge, temporal=vision.temporal)
    patches = patchify(batch.frames, **cut, mean=vision.pixel_mean, std=vision.pixel_std)
    ids = torch.tensor(batch.prompt).long()
    slots, height, width = (
        n // k
        for n, k in zip(batch.frames.shape[1:4], (vision.temporal, vision.patch, vision.patch), strict=True)
    )
    with torch.no_grad():
        out = theirs(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=torch.tensor(batch.positions[:, :, : ids.shape[1]]).long().transpose(0, 1),
            pixel_values_videos=torch.tensor(np.asarray(patches).reshape(-1, patches.shape[-1])),
            video_grid_thw=torch.tensor([[slots, height, width]]),
            mm_token_type_ids=2 * (ids == model.config.video_token).long(),
        )
    return out.logits[0, -1].numpy()


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
