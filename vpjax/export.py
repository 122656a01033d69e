"""Write a run's model as a Hugging Face folder, which transformers, vLLM, SGLang and lmms-eval load:

    python -m vpjax.export --workdir DIR --out DIR [--step N] [--dtype bfloat16] [--check | --adapters]

The folder has weights, config, tokenizer, processors and a model card, which says how to load and serve it.
``--check`` reads it back, and lets transformers answer questions from it. Adapters of a run are merged into
the weights; ``--adapters`` writes them alone, for PEFT to put on the model from which the run started.
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
from vpjax.data.processors import (
    IMAGE_PROCESSOR,
    VIDEO_PROCESSOR,
    image_processor,
    read_processors,
    separate_processors,
    video_processor,
)
from vpjax.data.text import Text
from vpjax.evaluation.exported import AS_TRAINED, check_folder
from vpjax.evaluation.results import interval
from vpjax.files import local_folder, read_object, write_json
from vpjax.models import hf, peft
from vpjax.models.lora import is_adapter
from vpjax.models.names import FAMILIES
from vpjax.models.vlm import VideoLM, abstract_model, leaves
from vpjax.training import checkpoint, config_rules, run_config
from vpjax.training.writer import read_metrics
from vpjax.types import UserError

LICENSE = ("license", "license_name", "license_link")  # in a card's header, the latter two of "other" ones
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

    step: of the checkpoint, see ``checkpoint.Step``. dtype: of the weights; None: that of the weights from
    which the run started. base_model, license: for the card; "": as the model from which the run started
    says. The heads of the contrast are not exported. UserError for a folder that is no run, or if ``out``
    holds files that are not an earlier export.
    """
    _check_folders(workdir, out, AS_TRAINED)
    source = workdir / checkpoint.MODEL
    step = checkpoint.existing_step(workdir, step, cli.say)
    model, text = checkpoint.load_model(workdir, step=step, dtype=dtype or hf.stored_dtype(source))
    config = ConfigDict(run_config.read(workdir))
    out.mkdir(parents=True, exist_ok=True)
    # First, for by it the folder is known as an export, also if this one is interrupted.
    shutil.copyfile(Path(hf.__file__).with_name(AS_TRAINED), out / AS_TRAINED)
    hf.save_pretrained(model, out, like=source)
    if not (out / "generation_config.json").exists():
        write_json(out / "generation_config.json", generation_config(text))
    separate_processors(out)
    came_along = read_processors(out)
    if IMAGE_PROCESSOR not in came_along:  # one that came with the weights has the run's sizes already
        write_json(out / IMAGE_PROCESSOR, image_processor(model.config, config.data))
    defaults, sizes = video_processor(model.config, config.data)
    write_json(out / VIDEO_PROCESSOR, came_along.get(VIDEO_PROCESSOR, defaults) | sizes)
    origin = origin_of(source)
    if license:
        origin = {field: value for field, value in origin.items() if field not in LICENSE}
    named = {"base_model": base_model, "license": license}
    origin |= {name: value for name, value in named.items() if value}
    (out / "README.md").write_text(model_card(workdir, config, model, step, origin))
    return model


def export_adapters(
    workdir: Path,
    out: Path,
    *,
    step: checkpoint.Step = None,
    dtype: str | None = None,
    base_model: str = "",
) -> None:
    """Write the adapters of a run to ``out`` as a folder of PEFT.

    PEFT puts them on the weights from which the run started; if these were frozen as int8, it does not answer
    to the bit as the run does, which a merged folder does.

    step: of the checkpoint, see ``checkpoint.Step``. dtype: of the adapters; None: float32. base_model: the
    model from which the run started; "": its name on the hub if that is known, else ``init_from``. UserError
    as in ``export``, and for a run without adapters.
    """
    _check_folders(workdir, out, peft.CONFIG)
    source = workdir / checkpoint.MODEL
    lora, model_config = checkpoint.adapters_of(workdir), hf.read_config(source)
    if lora is None:
        raise UserError(f"--adapters: the run in {workdir} has none; leave it out for the whole model")
    paths = leaves(abstract_model(model_config, lora=lora))
    adapters = {path: x for path, x in paths.items() if is_adapter(path)}
    params = checkpoint.read_params(workdir, step, adapters, None, cli.say)
    params = {path: x.astype(dtype or "float32") for path, x in params.items()}
    base = base_model or origin_of(source).get("base_model") or run_config.read(workdir)["init_from"]
    peft.save_adapters(params, lora, model_config, out, base_model=base)


def _check_folders(workdir: Path, out: Path, written: str) -> None:
    """UserError if ``workdir`` is no run, or ``out`` holds files but no ``written`` of an earlier export."""
    if not (workdir / checkpoint.MODEL).is_dir() or not (workdir / run_config.FILE).is_file():
        raise UserError(f"--workdir={workdir}: no run in it; give the folder that vpjax.train wrote")
    if out.exists() and any(out.iterdir()) and not (out / written).is_file():
        raise UserError(f"--out={out}: has files of something else in it; give another folder")


def origin_of(folder: Path) -> dict[str, str]:
    """What a model folder tells of its license (the fields of LICENSE) and ``base_model``, a name on the hub:
    from the header of its README.md and from config.json. What it does not tell is missing."""
    found = {}
    card = folder / "README.md"
    if card.is_file():
        header = re.match(r"---\n(.*?)\n---\n", card.read_text(errors="replace"), re.DOTALL)
        for field in LICENSE:
            stated = re.search(rf"^{field}: *(\S+)$", header[1] if header else "", re.MULTILINE)
            if stated:
                found[field] = stated[1]
    name = hf.read_json(folder / "config.json").get("_name_or_path")
    if name and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        found["base_model"] = name
    return found


def generation_config(text: Text) -> dict[str, Any]:
    return {"do_sample": False, "eos_token_id": list(text.stops), "pad_token_id": text.pad}


def model_card(
    workdir: Path, config: ConfigDict, model: VideoLM, step: int, origin: Mapping[str, str]
) -> str:
    """The text of README.md: what the model is, how to load and serve it, how it was trained, and its
    evaluations. origin: its license and base_model, as far as they are known. Folders of this machine are
    named by their last part."""
    if config.data.frames:
        sampling, rate = f"{config.data.frames} frames, evenly spaced", {"num_frames": config.data.frames}
    else:
        sampling, rate = f"{config.data.fps:g} frames a second", {"fps": config.data.fps}
    template = jinja2.Template(MODEL_CARD.read_text(), trim_blocks=True, keep_trailing_newline=True)
    return template.render(
        name=workdir.resolve().name,
        step=step,
        family=model.config.family,
        # vLLM would take the pixels of a frame for those of all frames; the processor has them anyway.
        whole_video=FAMILIES[model.config.family].whole_video,
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
    earlier = [line for line in read_metrics(workdir) if line["step"] <= step]
    if not earlier:
        return {}
    return {name: x for name, x in earlier[-1].items() if name.startswith("loss") and isinstance(x, float)}


def _evaluations(workdir: Path, step: int) -> list[tuple[Any, ...]]:
    """A row for every evaluation of this step in the work directory."""
    rows = []
    for file in sorted(workdir.glob("evaluate/*/results.json")):
        results = read_object(file, "delete it, or evaluate again")
        name, folder = results["request"]["benchmark"], file.parent.name
        if not folder.startswith(name):  # a split that was evaluated when the run ended
            name += f", {folder.rpartition('-')[0]}"
        for control, scores in results["controls"].items():
            if results["request"]["step"] == step and scores["rows"]:
                metric, values = next(iter(scores["metrics"].items()))
                rows.append((name, control, metric, interval(values["micro"]), scores["rows"]))
    return rows


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--workdir", type=local_folder, required=True, help="work directory of a run")
    parser.add_argument("--out", type=local_folder, required=True, help="folder to write")
    parser.add_argument("--step", type=cli.step, help="checkpoint, or best; default: the newest")
    parser.add_argument(
        "--dtype", choices=config_rules.DTYPES, help="of the weights; default: as the run found them"
    )
    parser.add_argument("--base_model", default="", help="its name on the hub, for the card")
    parser.add_argument("--license", default="", help="for the card; default: that of the base model's card")
    parser.add_argument(
        "--check", action="store_true", help="load the folder back, and let transformers answer from it"
    )
    parser.add_argument("--adapters", action="store_true", help="write only the run's adapters, for PEFT")
    flags = parser.parse_args()
    workdir, out = flags.workdir, flags.out
    options = {"step": flags.step, "dtype": flags.dtype, "base_model": flags.base_model}
    if flags.adapters and (flags.check or flags.license):
        raise UserError("--adapters writes no whole model: leave out --check and --license")
    if flags.adapters:
        export_adapters(workdir, out, **options)
    else:
        model = export(workdir, out, **options, license=flags.license)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}", flush=True)
    if flags.check:
        print(*check_folder(model, out), sep="\n")


if __name__ == "__main__":
    cli.run(main)
