"""A finished run of a tiny random model on a few event clips."""

import dataclasses
import functools

import jax
from ml_collections import ConfigDict

from tests import tiny
from vpjax.data.text import Text
from vpjax.data.tokenizer import train_tokenizer
from vpjax.events import clips as events
from vpjax.events.clips import tokenizer_sentences as draw_sentences
from vpjax.models import hf
from vpjax.models.vlm import leaves
from vpjax.recipes import base
from vpjax.training import checkpoint, run_config
from vpjax.training.state import State

FRAMES = 14
SPEC = events.EventSpec(sizes=((56, 56),), seconds=(FRAMES / 8, FRAMES / 8))


@functools.cache
def tokenizer_sentences(spec):
    """Those of vpjax.events.clips; drawing them takes seconds."""
    return tuple(draw_sentences(spec))


def make_run(folder, *, clips=10, seed=0, spec=SPEC, kind="tied"):
    """The work directory ``folder``, its checkpoint after 3 steps, with ``clips`` held-out clips; wide random
    weights of the model ``kind``, drawn with ``seed``. Clips and frames are kept beside it."""
    model = folder / checkpoint.MODEL
    train_tokenizer(tokenizer_sentences(spec), model, 400)
    text = Text.load(model)
    raw = tiny.MODELS[kind] | dict(
        image_token_id=text.image_pad,
        video_token_id=text.video_pad,
        vision_start_token_id=text.vision_start,
        vision_end_token_id=text.vision_end,
    )
    raw["text_config"] = raw["text_config"] | dict(
        vocab_size=400, eos_token_id=text.end, pad_token_id=text.pad
    )
    if "tokens_per_second" in raw["vision_config"]:
        raw["vision_config"] = raw["vision_config"] | dict(tokens_per_second=4)
    config = base.get_config()
    config.data.cache, config.data.frames, config.data.max_pixels = (
        str(folder.parent),
        FRAMES,
        spec.sizes[0][0] ** 2,
    )
    config.model = raw
    config.events = ConfigDict(dataclasses.asdict(spec) | dict(train=0, heldout=clips, unseen=0))
    run_config.write(folder, config)
    tiny.torch_model(raw, seed).save_pretrained(model)
    params = leaves(hf.load_pretrained(model))
    for file in ("model.safetensors", "generation_config.json"):
        (model / file).unlink()
    manager = checkpoint.Manager(folder, keep=1)
    zero = jax.numpy.int32(0)
    # A training-only head stays behind in the checkpoint.
    params |= {"heads.visual.0.kernel": jax.numpy.ones((4, 4))}
    manager.save(3, State(zero, params, {}, {"count": zero}, zero), config.to_dict())
    manager.wait()
    manager.close()
    return folder
