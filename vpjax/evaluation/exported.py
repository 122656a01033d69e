"""Whether a Hugging Face folder answers as the model that was written to it: its weights, its logits, and the
answers that a stranger gets from ``generate`` of transformers."""

import importlib.util
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.data.collate import single_prompt
from vpjax.data.rows import Row
from vpjax.data.text import Media, Text
from vpjax.data.units import cut, grid_of
from vpjax.data.video import Video
from vpjax.models import hf
from vpjax.models.generate import generate
from vpjax.models.patches import normalised
from vpjax.models.vlm import VideoLM, leaves
from vpjax.types import Prompts, UserError

QUESTION = "What happens?"
MAX_NEW = 16  # tokens of an answer that are compared
# Fields of a generation_config.json by which greedy answers are as here.
PLAIN = set(
    """
    bos_token_id eos_token_id pad_token_id do_sample use_cache output_attentions output_hidden_states
    transformers_version _from_model_config
    """.split()
)
AS_TRAINED = "as_trained.py"  # the file by which transformers 5 does what Qwen's own code does


class Case(NamedTuple):
    """A prompt about noise. media: None, without any. row, prompts: the same, for our model."""

    media: Media | None
    video: Video | None
    row: Row
    prompts: Prompts


def check_folder(model: VideoLM, out: Path) -> list[str]:
    """Read ``out`` back and compare it with ``model``, and if torch is installed also with transformers.
    Returns a line for each comparison. UserError if they differ."""
    loaded, text = hf.load_pretrained(out), Text.load(out)
    for (name, a), b in zip(leaves(model).items(), leaves(loaded).values(), strict=True):
        if not np.array_equal(np.asarray(a), np.asarray(b)):
            raise UserError(f"{out}: {name} was read back with other numbers; export again")
    cases = [noise_case(loaded, text, media) for media in (None, "image", "video")]
    if not np.array_equal(_logits(loaded, cases[-1].prompts), _logits(model, cases[-1].prompts)):
        raise UserError(f"{out}: read back, the model gives other logits; export again")
    lines = [f"read back: the same {len(leaves(model))} parameters and logits, bit for bit"]
    try:
        import torch
        from transformers import AutoModelForImageTextToText
    except ImportError:
        return [*lines, "not compared with transformers: torch is not installed"]
    # In float32, whatever the type of the weights, because transformers rounds bfloat16 in other places.
    ours = hf.load_pretrained(out, dtype=jnp.float32)
    theirs = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    lines.append(_compare_logits(theirs, ours, cases[-1], out))
    return [*lines, _compare_answers(theirs, ours, text, cases, out)]


def noise_case(model: VideoLM, text: Text, media: Media | None) -> Case:
    """A question about noise: a small picture, or four slots of a second each, whose last time position is
    above their rows and columns."""
    video = None
    if media is not None:
        vision = model.config.vision
        side = 2 * vision.patch * vision.merge
        slots = 4 if media == "video" else 1
        frames = np.random.default_rng(0).integers(0, 256, (slots, 1, side, side, 3), np.uint8)
        frames = np.repeat(frames, vision.temporal, axis=1).reshape(-1, side, side, 3)
        seconds = 1 / vision.temporal if media == "video" else 0.0
        video = Video(frames, np.arange(len(frames)) * seconds, seconds)
    prompt = text.chat(QUESTION, () if media is None else (media,))
    videos = [] if video is None else [video]
    return Case(media, video, *single_prompt(prompt, videos, model.config, stamps=text.stamps_of(prompt)))


def _logits(model: VideoLM, prompts: Prompts) -> np.ndarray:
    """f32[O] of the first token of the answer."""
    last_D = _last_state(model, prompts)
    return np.asarray(last_D.astype(jnp.float32) @ model.unembed.T.astype(jnp.float32))


@jax.jit
def _last_state(model: VideoLM, prompts: Prompts) -> jax.Array:
    last_BD, _ = model.prefill(model.encode(prompts.video), prompts)
    return last_BD[0]


def _compare_logits(theirs: Any, ours: VideoLM, case: Case, out: Path) -> str:
    """The logits of transformers, given our tokens, positions and patches, against ours."""
    import torch

    places = torch.tensor(case.row.prompt.positions[:, None]).long()
    with torch.no_grad():
        logits = theirs(**torch_inputs(ours, case), position_ids=places).logits[0, -1].numpy()
    expected = _logits(ours, case.prompts)
    apart = float(np.abs(logits - expected).max() / expected.std())
    if not apart <= 1e-3:
        raise UserError(f"{out}: transformers' logits are {apart:.1g} of their spread apart from ours")
    return f"transformers loads it; its logits are within {apart:.1g} of their spread"


def _compare_answers(theirs: Any, ours: VideoLM, text: Text, cases: list[Case], out: Path) -> str:
    """The greedy answers of transformers' ``generate``, which finds the positions by itself, against ours."""
    from transformers import GenerationConfig

    theirs, processor = as_trained(theirs, load_processor(out), out)
    unused = sorted(theirs.generation_config.to_diff_dict().keys() - PLAIN)
    options = dict(do_sample=False, max_new_tokens=MAX_NEW, eos_token_id=list(text.stops))
    theirs.generation_config = GenerationConfig(**options, pad_token_id=text.pad)
    for case in cases:
        inputs: Mapping[str, Any]
        if processor is None:
            inputs = torch_inputs(ours, case)
        else:
            inputs = processed_inputs(processor, case)
        expected = greedy_tokens(ours, case.prompts, text.stops)
        answer = theirs.generate(**inputs)
        found = answer[0, inputs["input_ids"].shape[1] :].tolist()
        if found != expected:
            raise UserError(
                f"{out}: about {case.media or 'no media'}, transformers' generate answers "
                f"{text.decode(found)!r} and vpjax {text.decode(expected)!r}"
            )
    through = "its processor and generate" if processor is not None else "its generate"
    note = "" if processor is not None else " (its processor needs torchvision)"
    if unused:
        note += f"; greedily, without what its generation_config.json adds: {', '.join(unused)}"
    return f"transformers answers the same about text, an image and a video, through {through}{note}"


def as_trained(theirs: Any, processor: Any, folder: Path) -> tuple[Any, Any]:
    """A model and a processor of transformers as the folder's card says to load them."""
    module = runpy.run_path(str(folder / AS_TRAINED))  # which, unlike an import, leaves no file in the folder
    return module["as_trained"](theirs, processor)


def greedy_tokens(model: VideoLM, prompts: Prompts, stops: tuple[int, ...]) -> list[int]:
    """The tokens of our greedy answer, the one that ends it included."""
    out = generate(model, prompts, jax.random.key(0), max_new=MAX_NEW, eos=stops)
    return np.asarray(out.tokens)[0, 0][np.asarray(out.mask)[0, 0]].tolist()


def torch_inputs(model: VideoLM, case: Case) -> dict[str, Any]:
    """What transformers' model takes for a case, cut and normalised by our own code."""
    import torch

    config, vision = model.config, model.config.vision
    ids = torch.tensor(case.row.prompt.tokens[None]).long()
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if case.video is None:
        return inputs
    patches = np.asarray(normalised(cut(case.video.frames, vision), vision.pixel_mean, vision.pixel_std))
    pixels = torch.tensor(patches.reshape(-1, patches.shape[-1]))
    slots, rows, columns = grid_of(case.video.frames.shape[:3], vision)
    grid = torch.tensor([[slots, rows * vision.merge, columns * vision.merge]])
    if case.media == "image":
        types = (ids == config.image_token).long()
        return inputs | {"pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": types}
    types = 2 * (ids == config.video_token).long()
    inputs |= {"pixel_values_videos": pixels, "video_grid_thw": grid, "mm_token_type_ids": types}
    if config.tokens_per_second is not None:
        inputs["second_per_grid_ts"] = torch.tensor([case.video.frame_seconds * vision.temporal])
    return inputs


def load_processor(folder: Path) -> Any:
    """The folder's processor; None without torchvision, which processors of videos need."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder)


def processed_inputs(processor: Any, case: Case) -> Mapping[str, Any]:
    """The same through the folder's chat template and processor, from frames that are chosen and resized."""
    content: list[dict[str, str]] = [{"type": "text", "text": QUESTION}]
    if case.media is not None:
        content.insert(0, {"type": case.media})
    chat = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    options: dict[str, Any] = {"do_resize": False}
    if case.video is not None and case.media == "image":
        options |= {"images": [case.video.frames[0]]}
    elif case.video is not None:
        count, fps = len(case.video.frames), 1 / case.video.frame_seconds
        metadata = {"total_num_frames": count, "fps": fps, "frames_indices": list(range(count))}
        options |= {"videos": [case.video.frames], "video_metadata": [metadata], "do_sample_frames": False}
    return processor(text=[chat], return_tensors="pt", **options)
