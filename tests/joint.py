"""A small model, its run's config and batches with keywords, for tests of the steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests import batches, tiny
from vpjax.data.packing import Sizes
from vpjax.hlo import inner_jaxprs
from vpjax.models.decoder import DecoderConfig
from vpjax.models.lora import Lora, first_adapters, quantised
from vpjax.models.rope import section_axes
from vpjax.models.sharding import make_mesh, put_batch
from vpjax.models.vision import VisionConfig
from vpjax.models.vlm import VideoLM, VLMConfig, abstract_model, leaves
from vpjax.recipes import base
from vpjax.training.sft import init_heads, make_step
from vpjax.training.state import create_state, state_shardings

LAYERS = 4
MODEL = VLMConfig(
    family="qwen2_5_vl",
    vision=VisionConfig(
        depth=2, hidden=16, intermediate=32, heads=2, out_hidden=32, window=56, full_attention=(1,)
    ),
    decoder=DecoderConfig(
        vocab=128,
        hidden=32,
        intermediate=64,
        layers=LAYERS,
        heads=4,
        kv_heads=2,
        head_dim=8,
        rope_theta=1e4,
        rope_axes=section_axes((1, 1, 2)),
        rms_eps=1e-6,
        tied=False,
    ),
    image_token=tiny.IMAGE,
    video_token=tiny.VIDEO,
    vision_start=tiny.START,
    vision_end=tiny.END,
    tokens_per_second=2.0,
    hf="{}",
)


def mesh_of(data, fsdp, tensor, rollout=1, context=1):
    sizes = dict(data=data, fsdp=fsdp, context=context, tensor=tensor, rollout=rollout)
    devices = jax.devices()[: data * fsdp * context * tensor]
    return make_mesh(sizes, devices, kv_heads=rollout * tensor)


ONE = mesh_of(1, 1, 1)


@functools.cache
def _initialise(model_config):
    return jax.jit(lambda: VideoLM(model_config, rngs=nnx.Rngs(0)))


def model(model_config=MODEL):
    """A model with arrays of its own, which a step may donate."""
    return _initialise(model_config)()


def config(**fields):
    """A run's config without warm-ups; ``optim__lr=1`` sets ``optim.lr``."""
    c = base.get_config()
    c.steps = 10
    c.contrast.width = 16
    c.optim.warmup_share = c.contrast.warmup_share = 0.0
    with c.unlocked():
        for name, value in fields.items():
            section, _, field = name.rpartition("__")
            setattr(c[section] if section else c, field, value)
    return c


GRIDS = (1, 2), (2, 3), (3, 1), (2, 2), (1, 1)
# All batches of small clips have one shape, so that a step is compiled once: so much of everything, and room
# for the largest window and slot in a block and a bin.
LEAST = Sizes(
    tokens=80, units=63, bins=65, degraded=56, targets=12, keywords=4, slots=10, windows=16, clips=2
)
LAYOUT = dict(block=9, bin=13)


def contents(count=16, *, answer=6, seed=0, answers=False):
    """Clips of several sizes with 1 to ``answer`` tokens in the answer and up to two keywords. Of each eight,
    the third is text only, the fourth has keywords and no V~, and the last two have neither: an image, and a
    video. answers: V~ has a truth of its own or, every second time, up to two tokens that are compared."""
    rng = np.random.default_rng(seed)
    clips = []
    for n in range(count):
        kind = dict(slots=3 + n % 3)
        if n % 8 == 2:
            kind = {}
        elif n % 8 == 6:
            kind = dict(slots=1, image=True)
        length = int(rng.integers(1, answer + 1))
        clips.append(batches.Clip(**kind, grid=GRIDS[n % 5], before=2 + n % 3, answer=length))
    out = []
    for n, content in enumerate(batches.contents(clips, seed=seed)):
        slots = len(content.source)
        count_J = 0 if n % 8 in (2, 6, 7) else 1 + n % 2
        keywords = rng.integers(0, 100, (count_J, 3), dtype=np.int32)
        keywords[:, 1:][rng.random((count_J, 2)) < 0.4] = -1
        marked, source = np.zeros((count_J, slots), bool), content.source.copy()
        for j, at in zip(range(count_J), (1, 0), strict=False):
            marked[j, at] = True
            source[at] = 2 if n % 8 != 3 else at
        lemma = rng.integers(0, 3, count_J).astype(np.int32)
        changed = dict(keywords=keywords, lemma=lemma, marked=marked, source=source)
        content = dataclasses.replace(content, **changed)
        if answers and content.has_degraded:
            own_rng = np.random.default_rng([seed, n])  # the other contents are the same with and without
            content = dataclasses.replace(content, **degraded_answer(content, n % 2 == 0, own_rng))
        out.append(content)
    return out


def degraded_answer(content, is_truth, rng):
    """The fields of a content that say what follows V~'s prompt."""
    if is_truth:
        truth = rng.integers(0, tiny.TEXT_IDS, int(rng.integers(2, 5)), dtype=np.int32)
        places = np.arange(len(truth))
        return dict(degraded_answer=truth, degraded_target=places, compared=np.full(len(truth), -1))
    places = np.unique(rng.integers(0, len(content.answer), 2))
    own = content.answer[: places[-1] + 1]
    return dict(degraded_answer=own, degraded_target=places, compared=places)


def packed(rows):
    """A Batch of rows of contents, all of one shape if a row has about two of them."""
    return batches.packed(rows, MODEL.vision, least=LEAST, **LAYOUT)


def batch(rows=8, *, answer=6, seed=0, answers=False):
    """Packed rows of two clips each, see ``contents``."""
    clips = contents(2 * rows, answer=answer, seed=seed, answers=answers)
    return packed([clips[2 * r : 2 * r + 2] for r in range(rows)])


def prompt_contents(rows=8, *, seed=0):
    """As ``contents``, but each with a video, and only the last without keywords and V~."""
    videos = [content for content in contents(8 * rows, seed=seed) if content.has_degraded]
    clips = videos[: rows - 1] + [contents(8, seed=seed)[7]]
    return [dataclasses.replace(content, number=n) for n, content in enumerate(clips)]


def prompts_of(clips):
    """One prompt of contents in a row, all of one shape. None: a row of padding."""
    least = Sizes(tokens=40, units=45, bins=39)
    return batches.prompts(clips, MODEL.vision, least=least, **LAYOUT)


def prompts(rows=8, *, seed=0):
    """See ``prompt_contents``."""
    return prompts_of(prompt_contents(rows, seed=seed))


def setup(c, *, mesh=ONE, tx=None, shapes=MODEL):
    """(state, step) of the small model under ``c``; tx: another optimizer than the config's."""
    m = abstract_model(shapes, lora=Lora.of(c.lora))
    params = init_heads(c, shapes.decoder.hidden, jax.random.key(1))
    for path, x in leaves(model(shapes)).items():
        params |= quantised(path, x, leaves(m))
    params |= first_adapters(leaves(m), jax.random.key(2))
    state, optimizer, layout = create_state(params, c, mesh)
    if tx is not None:
        optimizer = optimizer._replace(tx=tx)
        state = dataclasses.replace(state, opt=tx.init(state.params))
        layout = state_shardings(tx, state, mesh)
        state = jax.device_put(state, layout)
    return state, make_step(m, c, optimizer, layout)


def compiled(c, b, *, mesh=ONE, **options):
    """(state, step, b on the mesh); the step is compiled, and takes no other shape and no other sharding."""
    state, step = setup(c, mesh=mesh, **options)
    b = put_batch(b, mesh)
    return state, step.lower(state, b).compile(), b


def run(c, b, **options):
    """(state before, state after, metrics) of one step, as NumPy arrays."""
    return take(*compiled(c, b, **options))


def take(state, step, b):
    """``run`` with a step that is compiled; ``state`` stays as it is."""
    before = jax.tree.map(np.array, state)
    after, metrics = step(jax.tree.map(jnp.copy, state), b)
    return before, jax.tree.map(np.array, after), {name: float(x) for name, x in metrics.items()}


def largest(jaxpr):
    """Elements of the largest array that a jaxpr, or one inside it, computes."""
    own = [out.aval.size for eqn in jaxpr.eqns for out in eqn.outvars]
    return max([*own, *(largest(part) for eqn in jaxpr.eqns for part in inner_jaxprs(eqn))], default=0)
