"""What a run starts from: its clips, its model/ folder and its first parameters."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vpjax.data.cache import cache_folder
from vpjax.data.clips import read_clips
from vpjax.data.text import Text, train_tokenizer
from vpjax.events import clips as events
from vpjax.models import hf
from vpjax.models.sharding import shardings
from vpjax.models.vlm import VideoLM, VLMConfig, leaves
from vpjax.training import checkpoint, sft
from vpjax.types import Clip, UserError


def split_file(config: ConfigDict, split: str, source: str) -> str:
    """The file of clips that ``source`` names; "events": the built-in ones of a split, made if need be."""
    if source != "events":
        return source
    made = events.make_event_clips(event_spec(config), cache_folder(config.data), {split: config.events[split]})
    return str(made[split])


def read_split(config: ConfigDict, split: str, source: str) -> list[Clip]:
    """The clips of a split, with the instructions of their tasks; [] without a source."""
    if not source:
        return []
    videos = "" if source == "events" else config.data.videos
    clips = read_clips(split_file(config, split, source), videos)
    return [instructed(clip, config.data.instructions) for clip in clips]


def instructed(clip: Clip, instructions: Mapping[str, str]) -> Clip:
    """A clip with the instruction of its task after its question."""
    more = instructions.get(clip.task, "")
    return dataclasses.replace(clip, question=f"{clip.question}\n{more}") if more else clip


def event_spec(config: ConfigDict) -> events.EventSpec:
    return events.EventSpec(**{f.name: config.events[f.name] for f in dataclasses.fields(events.EventSpec)})


def prepare_model(config: ConfigDict, workdir: Path, clips: Sequence[Clip]) -> tuple[VLMConfig, Text]:
    """The run's model/ folder, made once: that of the run in ``config.init_from``, or this folder itself, or
    the sizes of ``config.model`` with a tokenizer trained on the run's texts. UserError where there is no
    such folder."""
    folder, part = workdir / checkpoint.MODEL, workdir / f"{checkpoint.MODEL}.part"
    if not folder.exists():
        source = Path(config.init_from)
        if not source.is_dir():
            raise UserError(
                f"config.init_from: there is no folder {config.init_from}; give a run's work directory or a "
                "Hugging Face folder (python -m vpjax.train --config configs/sft.py makes runs/sft)"
            )
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        if config.init_from:
            source = checkpoint.model_folder(source)
            hf.read_config(source)
            for pattern in ("config.json", *hf.HF_FILES):
                for file in source.glob(pattern):
                    shutil.copyfile(file, part / file.name)
        else:
            new_model(config, part, clips)
        part.replace(folder)
    return hf.read_config(folder), Text.load(folder)


def new_model(config: ConfigDict, folder: Path, clips: Sequence[Clip]) -> None:
    """Train the tokenizer of a model from scratch and write its config.json with the tokenizer's ids."""
    texts = (text for clip in clips for text in (clip.question, clip.answer))
    if config.data.train == "events":
        texts = events.tokenizer_sentences(event_spec(config))
    model = config.model.to_dict()
    train_tokenizer(texts, folder, model["text_config"]["vocab_size"])
    text = Text.load(folder)
    model |= dict(
        image_token_id=text.image_pad,
        video_token_id=text.video_pad,
        vision_start_token_id=text.vision_start,
        vision_end_token_id=text.vision_end,
    )
    model["text_config"] |= dict(bos_token_id=None, eos_token_id=text.end, pad_token_id=text.pad)
    (folder / "config.json").write_text(json.dumps(model, indent=2) + "\n")


def initial_params(
    config: ConfigDict, model_config: VLMConfig, mesh: Mesh, *, only_shapes: bool = False
) -> dict[str, Any]:
    """Parameters by path, those of ``config.init_from`` or random ones, and the heads that only SFT has."""
    key = jax.random.key(config.seed)

    def heads():
        if config.method != "sft":
            return {}
        return sft.init_heads(config, model_config.decoder.hidden, jax.random.fold_in(key, 0))

    def init():
        return leaves(VideoLM(model_config, rngs=nnx.Rngs(jax.random.fold_in(key, 1)))) | heads()

    shapes = jax.eval_shape(init)
    if only_shapes:
        return shapes
    if config.init_from:
        return leaves(checkpoint.load(config.init_from, mesh=mesh)[0]) | heads()
    return jax.jit(init, out_shardings=shardings(shapes, mesh))()
