"""Write a run's model as a Hugging Face folder, which transformers, vLLM, SGLang and lmms-eval load:

    python -m vpjax.export --workdir DIR --out DIR [--step N] [--dtype bfloat16] [--check]

The folder has weights, config, tokenizer, processors and a model card.
"""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jinja2
import numpy as np
from ml_collections import ConfigDict

from vpjax import cli
from vpjax.data.collate import single_prompt
from vpjax.data.rows import Row
from vpjax.data.sampling import SLOT, Sampling
from vpjax.data.text import Text
from vpjax.data.units import cut, grid_of
from vpjax.data.video import Video
from vpjax.evaluation.results import interval
from vpjax.models import hf
from vpjax.models.names import FAMILIES
from vpjax.models.patches import normalised
from vpjax.models.vlm import VideoLM, leaves
from vpjax.training import checkpoint, run_config
from vpjax.types import Prompts, UserError

IMAGE_PROCESSOR, VIDEO_PROCESSOR = "preprocessor_config.json", "video_preprocessor_config.json"
MODEL_CARD = Path(__file__).with_name("model_card.md")


def export(workdir: Path, out: Path, *, step: int | None = None, dtype: str | None = None) -> VideoLM:
    """Write the model of a run to ``out`` for ``transformers``. Returns the model as it was written.

    step: of the checkpoint; None: the newest. dtype: of the weights; None: the checkpoint's. The heads of the
    contrast are not exported. UserError for a folder that is no run, or if ``out`` holds files that are not
    an earlier export.
    """
    if not (workdir / checkpoint.MODEL).is_dir() or not (workdir / run_config.FILE).is_file():
        raise UserError(f"--workdir={workdir}: no run in it; give the folder that vpjax.train wrote")
    if out.exists() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise UserError(f"--out={out}: has files of something else in it; give another folder")
    model, text = checkpoint.load_model(workdir, step=step, dtype=dtype)
    config = ConfigDict(run_config.read(workdir))
    hf.save_pretrained(model, out, like=workdir / checkpoint.MODEL)
    if not (out / "generation_config.json").exists():
        _write_json(out / "generation_config.json", generation_config(text))
    for name, processor in ((IMAGE_PROCESSOR, image_processor), (VIDEO_PROCESSOR, video_processor)):
        defaults, sizes = processor(model, config.data)
        if (out / name).exists():
            defaults = json.loads((out / name).read_text())
        _write_json(out / name, defaults | sizes)
    (out / "README.md").write_text(model_card(workdir, config, model, step))
    return model


def generation_config(text: Text) -> dict[str, Any]:
    return {"do_sample": False, "eos_token_id": list(text.stops), "pad_token_id": text.pad}


def image_processor(model: VideoLM, data_config: ConfigDict) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of the image processor in two parts: all but sizes, and the sizes of the run's frames."""
    defaults = _processor(model) | {"image_processor_type": "Qwen2VLImageProcessor"}
    return defaults, _frame_sizes(Sampling.of(data_config))


def video_processor(model: VideoLM, data_config: ConfigDict) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of the video processor in two parts: what it is, and the frames of the run's videos.

    A budget makes frames smaller there as here, but never fewer, and counts visual tokens only.
    """
    family, factor = FAMILIES[model.config.family], model.config.vision.factor
    defaults = _processor(model) | {
        "video_processor_type": family.video_processor,
        "do_sample_frames": True,
    }
    sampling = Sampling.of(data_config)
    # Either is null, for together with a default of the other kind they are an error there.
    fields = {"num_frames": sampling.frames, "fps": sampling.fps}
    fields |= {"min_frames": sampling.min_frames, "max_frames": sampling.max_frames}
    budgets = [sampling.total_pixels, data_config.get("max_tokens", 0) * factor**2]
    budget = min((pixels for pixels in budgets if pixels), default=0)  # of one frame of each slot
    if not family.whole_video:
        fields |= _frame_sizes(sampling)
        if budget:  # of max_video_tokens, nine tenths are the budget there
            tokens = math.ceil(budget / factor**2 / 0.9)
            fields |= {"cap_pixels_per_frame": True, "max_video_tokens": tokens}
        return defaults, fields
    frames = sampling.frames or sampling.max_frames
    least, most = sampling.min_pixels, frames * sampling.max_pixels
    if sampling.frames:
        least *= frames
    else:  # the number of frames is not known, so only the upper limit can be given for each of them
        fields |= {"cap_pixels_per_frame": True, "max_video_tokens": sampling.max_pixels // factor**2}
    if budget:
        most = max(least, min(most, SLOT * budget))
    return defaults, fields | {"size": {"shortest_edge": least, "longest_edge": most}}


def _processor(model: VideoLM) -> dict[str, Any]:
    """The fields that both processors share."""
    vision = model.config.vision
    return {
        "processor_class": FAMILIES[model.config.family].processor,
        "patch_size": vision.patch,
        "temporal_patch_size": vision.temporal,
        "merge_size": vision.merge,
        "image_mean": list(vision.pixel_mean),
        "image_std": list(vision.pixel_std),
    }


def _frame_sizes(sampling: Sampling) -> dict[str, Any]:
    least, most = sampling.min_pixels, sampling.max_pixels
    return {
        "min_pixels": least,
        "max_pixels": most,
        "size": {"shortest_edge": least, "longest_edge": most},
    }


def model_card(workdir: Path, config: ConfigDict, model: VideoLM, step: int | None) -> str:
    """The text of README.md: what the model is, how it was trained, and its evaluations."""
    manager = checkpoint.Manager(workdir, keep=None)
    step = step or max(manager.steps())
    manager.close()
    if config.data.frames:
        sampling = f"{config.data.frames} frames, evenly spaced"
    else:
        sampling = f"{config.data.fps:g} frames a second"
    template = jinja2.Template(MODEL_CARD.read_text(), trim_blocks=True, keep_trailing_newline=True)
    return template.render(
        name=workdir.resolve().name,
        step=step,
        family=model.config.family,
        size=sum(math.prod(leaf.shape) for leaf in leaves(model).values()),
        config=config,
        sampling=sampling,
        metrics=_metrics(workdir, step),
        evaluations=_evaluations(workdir, step),
        time_positions=model.config.tokens_per_second is not None,  # without them, all runtimes agree
    )


def _metrics(workdir: Path, step: int) -> dict[str, float]:
    """The losses logged last at or before ``step``."""
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    earlier = [line for line in lines if line["step"] <= step]
    if not earlier:
        return {}
    return {name: x for name, x in earlier[-1].items() if name.startswith("loss") and isinstance(x, float)}


def _evaluations(workdir: Path, step: int) -> list[tuple[Any, ...]]:
    """A row for every evaluation of this step in the work directory."""
    rows = []
    for file in sorted(workdir.glob("evaluate/*/results.json")):
        results = json.loads(file.read_text())
        name, folder = results["request"]["benchmark"], file.parent.name
        if not folder.startswith(name):  # a split that was evaluated when the run ended
            name += f", {folder.rpartition('-')[0]}"
        for control, scores in results["controls"].items():
            if results["request"]["step"] == step and scores["rows"]:
                metric, values = next(iter(scores["metrics"].items()))
                rows.append((name, control, metric, interval(values["micro"]), scores["rows"]))
    return rows


def check_export(model: VideoLM, out: Path) -> list[str]:
    """Read ``out`` back and compare weights and logits with those of ``model`` and, if torch is installed, of
    transformers. Returns a line for each comparison. UserError if they differ."""
    loaded, text = hf.load_pretrained(out), Text.load(out)
    for (name, a), b in zip(leaves(model).items(), leaves(loaded).values(), strict=True):
        if not np.array_equal(np.asarray(a), np.asarray(b)):
            raise UserError(f"{out}: {name} was read back with other numbers; export again")
    video, row, prompts = noise_prompt(loaded, text)
    if not np.array_equal(_logits(loaded, prompts), _logits(model, prompts)):
        raise UserError(f"{out}: read back, the model gives other logits; export again")
    lines = [f"read back: the same {len(leaves(model))} parameters and logits, bit for bit"]
    try:
        import torch
    except ImportError:
        return [*lines, "not compared with transformers: torch is not installed"]
    # In float32, whatever the type of the weights, because transformers rounds bfloat16 in other places.
    ours = _logits(hf.load_pretrained(out, dtype=jnp.float32), prompts)
    apart = float(np.abs(_torch_logits(torch, loaded, video, row, out) - ours).max() / ours.std())
    if not apart <= 1e-3:
        raise UserError(f"{out}: transformers' logits are {apart:.1g} of their spread apart from ours")
    return [*lines, f"transformers loads it; its logits are within {apart:.1g} of their spread"]


def noise_prompt(model: VideoLM, text: Text) -> tuple[Video, Row, Prompts]:
    """A question about a small video of noise."""
    vision = model.config.vision
    side = 2 * vision.patch * vision.merge
    noise = np.random.default_rng(0).integers(0, 256, (4 * vision.temporal, side, side, 3), np.uint8)
    video = Video(noise, np.arange(len(noise)) / 2, 0.5)
    chat = text.chat("What happens in the video?")
    return video, *single_prompt(chat, video, model.config, stamps=text.stamps)


def _logits(model: VideoLM, prompts: Prompts) -> np.ndarray:
    """f32[O] of the first token of the answer."""
    last_D = _last_state(model, prompts)
    return np.asarray(last_D.astype(jnp.float32) @ model.unembed.T.astype(jnp.float32))


@jax.jit
def _last_state(model: VideoLM, prompts: Prompts) -> jax.Array:
    last_BD, _ = model.prefill(model.encode(prompts.video), prompts)
    return last_BD[0]


def _torch_logits(torch: Any, model: VideoLM, video: Video, row: Row, folder: Path) -> np.ndarray:
    """The logits f32[O] of transformers, given our tokens, positions and patches."""
    from transformers import AutoModelForImageTextToText

    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    vision = model.config.vision
    patches = np.asarray(normalised(cut(video.frames, vision), vision.pixel_mean, vision.pixel_std))
    slots, rows, columns = grid_of(video.frames.shape[:3], vision)
    ids = torch.tensor(row.prompt.tokens[None]).long()
    with torch.no_grad():
        out = theirs(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=torch.tensor(row.prompt.positions[:, None]).long(),
            pixel_values_videos=torch.tensor(patches.reshape(-1, patches.shape[-1])),
            video_grid_thw=torch.tensor([[slots, rows * vision.merge, columns * vision.merge]]),
            mm_token_type_ids=2 * (ids == model.config.video_token).long(),
        )
    return out.logits[0, -1].numpy()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--workdir", required=True, help="work directory of a run")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--step", type=cli.at_least(0), help="checkpoint; default: the newest")
    parser.add_argument(
        "--dtype", choices=run_config.DTYPES, help="of the weights; default: as in the checkpoint"
    )
    parser.add_argument(
        "--check", action="store_true", help="load the folder back and compare logits, with transformers' too"
    )
    flags = parser.parse_args()
    out = Path(flags.out)
    model = export(Path(flags.workdir), out, step=flags.step, dtype=flags.dtype)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}", flush=True)
    if flags.check:
        print(*check_export(model, out), sep="\n")


if __name__ == "__main__":
    cli.run(main)
