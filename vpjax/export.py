"""Write a run's model as a Hugging Face folder, which transformers, vLLM, SGLang and lmms-eval load:

    python -m vpjax.export --workdir DIR --out DIR [--step N] [--dtype bfloat16] [--check]

The folder has weights, config, tokenizer, processors and a model card, which says how to load and serve it.
``--check`` reads it back, and lets transformers answer questions from it.
"""

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from ml_collections import ConfigDict

from vpjax import cli
from vpjax.data.mixture import data_sets
from vpjax.data.sampling import SLOT, Sampling
from vpjax.data.text import Text
from vpjax.evaluation.exported import AS_TRAINED, check_folder
from vpjax.evaluation.results import interval
from vpjax.files import local_folder
from vpjax.models import hf
from vpjax.models.names import FAMILIES
from vpjax.models.vlm import VideoLM, leaves
from vpjax.training import checkpoint, run_config
from vpjax.training.setup import IMAGE_PROCESSOR, frame_sizes
from vpjax.types import UserError

VIDEO_PROCESSOR = "video_preprocessor_config.json"
MODEL_CARD = Path(__file__).with_name("model_card.md")


def export(
    workdir: Path,
    out: Path,
    *,
    step: checkpoint.Step = None,
    dtype: str | None = None,
    base_model: str = "",
    license: str = "",
) -> VideoLM:
    """Write the model of a run to ``out`` for ``transformers``. Returns the model as it was written.

    step: of the checkpoint; None: the newest. dtype: of the weights; None: that of the weights from which the
    run started. base_model, license: for the card; "": as the model from which the run started says. The
    heads of the contrast are not exported. UserError for a folder that is no run, or if ``out`` holds files
    that are not an earlier export.
    """
    if not (workdir / checkpoint.MODEL).is_dir() or not (workdir / run_config.FILE).is_file():
        raise UserError(f"--workdir={workdir}: no run in it; give the folder that vpjax.train wrote")
    if out.exists() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise UserError(f"--out={out}: has files of something else in it; give another folder")
    source = workdir / checkpoint.MODEL
    step = checkpoint.step_of(workdir, step)
    model, text = checkpoint.load_model(workdir, step=step, dtype=dtype or hf.stored_dtype(source))
    config = ConfigDict(run_config.read(workdir))
    hf.save_pretrained(model, out, like=source)
    if not (out / "generation_config.json").exists():
        _write_json(out / "generation_config.json", generation_config(text))
    if not (out / IMAGE_PROCESSOR).exists():  # one that came with the weights has the run's sizes already
        _write_json(out / IMAGE_PROCESSOR, image_processor(model, config.data))
    defaults, sizes = video_processor(model, config.data)
    if (out / VIDEO_PROCESSOR).exists():
        defaults = json.loads((out / VIDEO_PROCESSOR).read_text())
    _write_json(out / VIDEO_PROCESSOR, defaults | sizes)
    shutil.copyfile(Path(hf.__file__).with_name(AS_TRAINED), out / AS_TRAINED)
    named = {"base_model": base_model, "license": license}
    origin = origin_of(source) | {name: value for name, value in named.items() if value}
    (out / "README.md").write_text(model_card(workdir, config, model, step, origin))
    return model


def origin_of(folder: Path) -> dict[str, str]:
    """What a model folder tells of its ``license`` and ``base_model``, a name on the hub: from the header of
    its README.md and from config.json. What it does not tell is missing."""
    found = {}
    card = folder / "README.md"
    if card.is_file():
        header = re.match(r"---\n(.*?)\n---\n", card.read_text(errors="replace"), re.DOTALL)
        license = re.search(r"^license: *(\S+)$", header[1], re.MULTILINE) if header else None
        if license:
            found["license"] = license[1]
    name = json.loads((folder / "config.json").read_text()).get("_name_or_path")
    if name and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        found["base_model"] = name
    return found


def generation_config(text: Text) -> dict[str, Any]:
    return {"do_sample": False, "eos_token_id": list(text.stops), "pad_token_id": text.pad}


def image_processor(model: VideoLM, data_config: ConfigDict) -> dict[str, Any]:
    """The config of the image processor of a model from scratch, with the sizes of the run's frames."""
    fields = _processor(model) | {"image_processor_type": "Qwen2VLImageProcessor"}
    return fields | frame_sizes(data_config)


def video_processor(model: VideoLM, data_config: ConfigDict) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of the video processor in two parts: what it is, and the frames of the run's videos.

    A budget makes frames smaller there as here, but never fewer, and counts visual tokens only. Whether the
    processor chooses frames is left as it is in the family's own folders: many clients bring frames that they
    have chosen.
    """
    family, factor = FAMILIES[model.config.family], model.config.vision.factor
    defaults = _processor(model) | {"video_processor_type": family.video_processor}
    sampling = Sampling.of(data_config)
    # Either is null, for together with a default of the other kind they are an error there.
    fields = {"num_frames": sampling.frames, "fps": sampling.fps}
    fields |= {"min_frames": sampling.min_frames, "max_frames": sampling.max_frames}
    budgets = [sampling.total_pixels, data_config.get("max_tokens", 0) * factor**2]
    budget = min((pixels for pixels in budgets if pixels), default=0)  # of one frame of each slot
    if not family.whole_video:
        fields |= frame_sizes(data_config)
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


def model_card(
    workdir: Path, config: ConfigDict, model: VideoLM, step: int | None, origin: Mapping[str, str]
) -> str:
    """The text of README.md: what the model is, how to load and serve it, how it was trained, and its
    evaluations. origin: its license and base_model, as far as they are known. Folders of this machine are
    named by their last part."""
    manager = checkpoint.Manager(workdir, keep=None)
    step = step or max(manager.steps())
    manager.close()
    if config.data.frames:
        sampling, rate = f"{config.data.frames} frames, evenly spaced", {"num_frames": config.data.frames}
    else:
        sampling, rate = f"{config.data.fps:g} frames a second", {"fps": config.data.fps}
    template = jinja2.Template(MODEL_CARD.read_text(), trim_blocks=True, keep_trailing_newline=True)
    return template.render(
        name=workdir.resolve().name,
        step=step,
        family=model.config.family,
        size=sum(math.prod(leaf.shape) for leaf in leaves(model).values()),
        config=config,
        origin=origin,
        start=Path(config.init_from).name or "random weights",
        data=", ".join(Path(data_set.file).name for data_set in data_sets(config.data)),
        sampling=sampling,
        rate=json.dumps(rate),
        frames=config.data.frames or config.data.max_frames,
        metrics=_metrics(workdir, step),
        evaluations=_evaluations(workdir, step),
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


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--workdir", type=local_folder, required=True, help="work directory of a run")
    parser.add_argument("--out", type=local_folder, required=True, help="folder to write")
    parser.add_argument("--step", type=cli.step, help="checkpoint, or best; default: the newest")
    parser.add_argument(
        "--dtype", choices=run_config.DTYPES, help="of the weights; default: as the run found them"
    )
    parser.add_argument("--base_model", default="", help="its name on the hub, for the card")
    parser.add_argument("--license", default="", help="for the card; default: that of the base model's card")
    parser.add_argument(
        "--check", action="store_true", help="load the folder back, and let transformers answer from it"
    )
    flags = parser.parse_args()
    workdir, out = flags.workdir, flags.out
    about = {"base_model": flags.base_model, "license": flags.license}
    model = export(workdir, out, step=flags.step, dtype=flags.dtype, **about)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}", flush=True)
    if flags.check:
        print(*check_folder(model, out), sep="\n")


if __name__ == "__main__":
    cli.run(main)
