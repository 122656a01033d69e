"""The start of a run: its clips, its model/ folder and its first parameters."""

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vpjax.data.cache import cache_folder
from vpjax.data.clips import read_clips
from vpjax.data.images import is_image
from vpjax.data.looks import NO, RELEVANCE, YES, has_windows, rollout_windows, training_windows
from vpjax.data.mixture import BUILT_IN, EVENTS, LONG, data_sets
from vpjax.data.processors import IMAGE_PROCESSOR, frame_sizes, separate_processors
from vpjax.data.text import Text
from vpjax.data.tokenizer import train_tokenizer
from vpjax.events import clips as events
from vpjax.events import long
from vpjax.events.folder import kept_sentences
from vpjax.files import named, read_object, sync, sync_tree, write_json
from vpjax.models import hf
from vpjax.models.lora import Lora, first_adapters, quantised
from vpjax.models.peft import load_adapters
from vpjax.models.sharding import shardings
from vpjax.models.vlm import VideoLM, VLMConfig, abstract_model, leaves
from vpjax.training import checkpoint, run_config, sft
from vpjax.training.sums import steps_in
from vpjax.types import Array, Clip, UserError

MADE_FOR = "made_for.json"  # in model/: the config by which it was made


def split_file(config: ConfigDict, split: str, source: str) -> str:
    """The file of clips that ``source`` names. "events" stands for the built-in clips of a split, which are
    made if they do not exist."""
    if source == LONG:
        counts = {split: config.long[split]}
        return str(long.make_long_clips(long_spec(config, split), cache_folder(config.data), counts)[split])
    if source != EVENTS:
        return source
    counts = {split: config.events[split]}
    spec = event_spec(config, split)
    return str(events.make_event_clips(spec, cache_folder(config.data), counts)[split])


def read_split(config: ConfigDict, split: str, source: str) -> list[Clip]:
    """The clips of a split with the instructions of their tasks."""
    videos = "" if source in BUILT_IN else config.data.videos
    clips = read_clips(split_file(config, split, source), videos)
    return [instructed(clip, config.data.instructions) for clip in clips]


def read_training(
    config: ConfigDict, say: Callable[[str], None] | None = None
) -> tuple[list[Clip], list[int]]:
    """The clips of ``data.train`` with their instructions, and the number of each one's data set.

    say: is told of broken records, which are left out up to ``data.max_fault_share`` of a file; None: they
    are an error. UserError if two data sets have a clip of the same id."""
    faults = dict(max_fault_share=config.data.max_fault_share, schemes=config.data.schemes, say=say)
    clips: list[Clip] = []
    data_set_of: list[int] = []
    of_id: dict[str, str] = {}
    for number, data_set in enumerate(data_sets(config.data)):
        videos = "" if data_set.file in BUILT_IN else data_set.videos
        own = read_clips(split_file(config, "train", data_set.file), videos, **faults)
        own = [instructed(clip, config.data.instructions) for clip in own]
        own = [with_instruction(clip, data_set.instruction) for clip in own]
        if config.looks.windows:
            own = clips_of_windows(own, config, say)
        for clip in own:
            if of_id.setdefault(clip.id, data_set.name) != data_set.name:
                raise UserError(
                    f"data.train: {of_id[clip.id]} and {data_set.name} both have a clip {clip.id!r}: "
                    "give the clips of one of them other ids"
                )
            if config.method == "grpo":
                clip = with_own_keywords(clip)
            clips.append(clip)
            data_set_of.append(number)
    return clips, data_set_of


def clips_of_windows(
    clips: Sequence[Clip], config: ConfigDict, say: Callable[[str], None] | None
) -> list[Clip]:
    """What is trained on of long clips: windows of them. say: is told of clips that have none, which are an
    error if it is None, as is a file without any other; and of those that are trained on as they are."""
    if config.method == "grpo":
        found, left_out = rollout_windows(clips, config.looks, config.data, config.seed)
        why = (
            "are not about one video with an event of known time (spans) and room for windows with and "
            "without it (looks.seconds)"
        )
    else:
        found, left_out = training_windows(clips, config.looks, config.data, config.seed)
        why = "have an event that no window shows as a whole (looks.seconds)"
        whole = [clip.id for clip in clips if not has_windows(clip)]
        if whole and say is not None:
            say(
                f"looks.windows: {len(whole)} of {len(clips)} clips are trained on as they are, because they "
                f"are not about one video with an event of known time (spans): {', '.join(whole[:3])}"
            )
    if left_out:
        message = f"{len(left_out)} of {len(clips)} clips {why}: {', '.join(left_out[:3])}"
        if say is None or not found:
            raise UserError(f"data.train: {message}; leave them out, or set looks.windows=0")
        say(f"left out: {message}")
    return found


def with_own_keywords(clip: Clip) -> Clip:
    """The clip with the keywords of its last turn, which alone is asked in GRPO: what an earlier answer names
    is neither looked for in completions nor hidden by V~."""
    own = [keyword for keyword in clip.keywords if clip.turn_naming(keyword.text) == len(clip.turns)]
    return dataclasses.replace(clip, keywords=tuple(own))


def instructed(clip: Clip, instructions: Mapping[str, str]) -> Clip:
    """A clip with the instruction of its task after its question."""
    return with_instruction(clip, instructions.get(clip.task, ""))


def with_instruction(clip: Clip, instruction: str) -> Clip:
    """A clip with ``instruction``, if it is not "", after its question."""
    if not instruction:
        return clip
    return dataclasses.replace(clip, question=f"{clip.question}\n{instruction}")


def event_spec(config: ConfigDict, split: str = "train") -> events.EventSpec:
    """The appearance of a split's built-in clips: ``config.events``, and for clips that are not trained on
    also ``config.events_heldout``. UserError for a field that ``EventSpec`` lacks, and for the config of an
    older vpjax, which drew other clips."""
    names = [field.name for field in dataclasses.fields(events.EventSpec)]
    missing = [name for name in names if name not in config.events]
    if missing:
        raise UserError(
            f"the run's config has no events.{missing[0]}: an older vpjax drew its clips, and this one draws "
            "others; name a file of clips"
        )
    values = {name: config.events[name] for name in names}
    if split != "train":
        values["rough"] = 0.0  # the V~ of an evaluation hides the event, wherever training thinks it is
        values |= heldout_fields(config.events_heldout, "events_heldout", names)
    return events.EventSpec(**values)


def long_spec(config: ConfigDict, split: str = "train") -> long.LongSpec:
    """The appearance of a split's long built-in clips: ``config.long``, and for clips that are not trained on
    also ``config.long_heldout``. A run of an older version may lack some fields. UserError for one that
    ``LongSpec`` lacks."""
    names = [field.name for field in dataclasses.fields(long.LongSpec)]
    values = {name: config.long[name] for name in names if name in config.long}
    if split != "train":
        values |= heldout_fields(config.long_heldout, "long_heldout", names)
    return long.LongSpec(**values)


def heldout_fields(section: ConfigDict, name: str, known: Sequence[str]) -> dict[str, Any]:
    """The fields of a section by which built-in clips that are not trained on differ. UserError for one that
    is not ``known``."""
    unknown = sorted(set(section) - set(known))
    if unknown:
        raise UserError(f"config.{name}: no field {unknown[0]}; give some of {', '.join(known)}")
    return section.to_dict()


def forget_unstarted(config: ConfigDict, workdir: Path) -> None:
    """Remove the model/ folder that was made for another config, by a run that ended before its first step:
    its tokenizer and its time positions are those of that config."""
    made_for = workdir / checkpoint.MODEL / MADE_FOR
    has_begun = (workdir / run_config.FILE).is_file() or steps_in(workdir)
    if has_begun or not made_for.is_file():
        return
    if read_object(made_for, f"delete {made_for.parent}") != json.loads(config.to_json()):
        shutil.rmtree(made_for.parent)


def prepare_model(config: ConfigDict, workdir: Path, clips: Sequence[Clip]) -> tuple[VLMConfig, Text]:
    """The model's sizes and its tokenizer, from the run's model/ folder.

    The folder is made once: copied from ``config.init_from``, or written from ``config.model`` with a
    tokenizer that is trained on the run's texts. UserError if ``config.init_from`` is no model.
    """
    folder, part = workdir / checkpoint.MODEL, workdir / f"{checkpoint.MODEL}.part"
    if not folder.exists():
        if config.init_from:
            try:
                checkpoint.check_model(config.init_from)
            except UserError as error:
                raise UserError(f"config.init_from: {error}") from error
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        with named(part):
            fill_model_folder(config, part, clips)
        sync_tree(part)
        part.replace(folder)
        sync(workdir)
    model_config = hf.read_config(folder)
    return model_config, checkpoint.text_of(folder, model_config)


def check_template(text: Text, folder: str) -> None:
    """UserError for a chat template that begins the answers itself, of which the model would be trained on
    the rest alone, inside a thought."""
    if text.opening:
        raise UserError(
            f"config.init_from={folder}: its chat template begins every answer with {text.opening!r}, as "
            "those of Thinking models do, and answers would be trained inside that thought: take the "
            "Instruct model, or end the template with the assistant's header, and write thoughts into answers"
        )


def fill_model_folder(config: ConfigDict, folder: Path, clips: Sequence[Clip]) -> None:
    """Write the files of a run's model/ folder, see ``prepare_model``."""
    if config.init_from:
        source = checkpoint.model_folder(config.init_from)
        hf.read_config(source)
        own = [source / name for name in ("config.json", "README.md")]
        for file in [*filter(Path.is_file, own), *hf.companions(source)]:
            shutil.copyfile(file, folder / file.name)
        check_template(Text.load(folder), config.init_from)
        separate_processors(folder)
        if any(is_image(path) for clip in clips for path in clip.media):
            set_image_sizes(folder / IMAGE_PROCESSOR, config)
    else:
        new_model(config, folder, clips)
    set_tokens_per_second(folder / "config.json", config)
    (folder / MADE_FOR).write_text(config.to_json())


def set_image_sizes(file: Path, config: ConfigDict) -> None:
    """Write the sizes of the run's frames into the config of an image processor, if there is one. A run
    without images leaves it as it came with the weights."""
    if file.exists():
        fields = hf.read_json(file) | frame_sizes(config.data)
        write_json(file, fields)


def set_tokens_per_second(file: Path, config: ConfigDict) -> None:
    """Write ``config.tokens_per_second`` into a config.json; 0 raises a new model's own value where the slots
    of ``data.fps`` need it. UserError for a model that reads times in words."""
    raw = hf.read_json(file)
    vision, wanted = raw["vision_config"], config.tokens_per_second
    reads_words = raw["model_type"] != "qwen2_5_vl"
    if wanted and reads_words:
        raise UserError(
            f"config.tokens_per_second={wanted:g}: {raw['model_type']} reads times in words; set it to 0"
        )
    if reads_words or (not wanted and config.init_from):
        return
    slots_per_second = config.data.fps / vision.get("temporal_patch_size", 2)
    # A quarter more, for a file's own frames are not exactly 1 / data.fps apart.
    rate = wanted or max(vision.get("tokens_per_second", 2), math.ceil(1.25 * slots_per_second))
    vision["tokens_per_second"] = int(rate) if rate == int(rate) else rate  # as an integer for other clients
    file.write_text(json.dumps(raw, indent=2) + "\n")


def new_model(config: ConfigDict, folder: Path, clips: Sequence[Clip]) -> None:
    """Train a tokenizer and write the config.json of a model from scratch, with the tokenizer's ids.
    UserError if ``config.model`` is no model's."""
    texts: Iterable[str] = (text for clip in clips for text in clip.texts)
    if [data_set.file for data_set in data_sets(config.data)] == [EVENTS]:
        spec = event_spec(config)
        draw = functools.partial(events.tokenizer_sentences, spec)
        texts = kept_sentences(cache_folder(config.data) / spec.key, draw)
    if [data_set.file for data_set in data_sets(config.data)] == [LONG]:
        texts = long.tokenizer_sentences(long_spec(config), asides=[RELEVANCE.format(question=""), YES, NO])
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
    try:
        VLMConfig.from_hf(model)
    except UserError as error:
        raise UserError(f"config.model: {error}") from error
    (folder / "config.json").write_text(json.dumps(model, indent=2) + "\n")


def initial_params(
    config: ConfigDict, model_config: VLMConfig, mesh: Mesh, *, only_shapes: bool = False
) -> dict[str, Any]:
    """Parameters by path: those of ``config.init_from`` or random ones, the heads of SFT's contrast, and the
    adapters of ``config.lora``. Weights that are to be int8 are quantised one after another, as they are
    read."""
    key = jax.random.key(config.seed)
    lora = Lora.of(config.lora)
    shapes = leaves(abstract_model(model_config, lora=lora))

    def kept(params: Iterable[tuple[str, Array]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for path, x in params:
            keep = functools.partial(quantised, path, shapes=shapes)
            layout = shardings(jax.eval_shape(keep, x), mesh)
            out |= {path: x} if len(layout) == 1 else jax.jit(keep, out_shardings=layout)(x)
        return out

    def heads() -> dict[str, Any]:
        if config.method != "sft":
            return {}
        return sft.init_heads(config, model_config.decoder.hidden, jax.random.fold_in(key, 0))

    def adapters() -> dict[str, Any]:
        if lora is None:
            return {}
        return first_adapters(shapes, jax.random.fold_in(key, 3))  # 2 is the rollouts' (``rollout.ROLE``)

    def random_params() -> dict[str, Any]:
        model = VideoLM(model_config, rngs=nnx.Rngs(jax.random.fold_in(key, 1)))
        return kept(leaves(model).items()) | heads()

    def made(create: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return jax.jit(create, out_shardings=shardings(jax.eval_shape(create), mesh))()

    if only_shapes:
        return jax.eval_shape(lambda: random_params() | adapters())
    if config.init_from:
        params = kept(checkpoint.load_params(config.init_from, mesh=mesh)) | heads()
    else:
        params = made(random_params)
    if lora is None:
        return params
    if config.lora.init_from:
        return params | load_adapters(config.lora.init_from, lora, model_config)
    return params | made(adapters)
