"""A small model, its run's config and a batch with keywords, for tests of the losses' step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests import tiny
from vpjax.hlo import inner_jaxprs
from vpjax.models.decoder import DecoderConfig
from vpjax.models.rope import section_axes
from vpjax.models.sharding import make_mesh, put_batch
from vpjax.models.vision import VisionConfig
from vpjax.models.vlm import VideoLM, VLMConfig, leaves
from vpjax.recipes import base
from vpjax.training.sft import init_heads, make_step
from vpjax.training.state import create_state, state_shardings

LAYERS = 4
MODEL = VLMConfig(
    family="qwen2_5_vl",
    vision=VisionConfig(depth=1, hidden=16, intermediate=32, heads=2, out_hidden=32, full_attention=(0,)),
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


def mesh_of(data, fsdp, tensor):
    return make_mesh(dict(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])


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


def batch(rows=8, *, suffix=6, seed=0):
    """Rows of different lengths with 1 to ``suffix`` target tokens and up to two keywords; the last has no
    keyword and no V~."""
    rng = np.random.default_rng(seed)
    slots = [5, 4, 5, 3] * (rows // 4)
    layout = [tiny.Row(slots=s, before=2 + b % 3) for b, s in enumerate(slots)]
    out = tiny.batch(layout, size=(28, 56), suffix=suffix)
    keywords = rng.integers(0, 100, (rows, 2, 3), dtype=np.int32)
    keywords[..., 1:][rng.random((rows, 2, 2)) < 0.4] = -1
    marked = np.zeros((rows, 2, 5), bool)
    source = np.tile(np.arange(5, dtype=np.int32), (rows, 1))
    marked[:-1, 0, 1] = True
    source[:-1, 1] = 2
    marked[:-1:2, 1, 0] = True
    source[:-1:2, 0] = 2
    return dataclasses.replace(
        out,
        target=np.arange(suffix) < rng.integers(1, suffix + 1, (rows, 1)),
        source=source,
        slots=marked,
        keywords=keywords,
        lemma=np.where(marked.any(-1), rng.integers(0, 3, (rows, 2)), -1).astype(np.int32),
    )


def setup(c, *, mesh=ONE, tx=None, shapes=MODEL):
    """(state, step) of the small model under ``c``; tx: another optimizer than the config's."""
    m = model(shapes)
    params = leaves(m) | init_heads(c, shapes.decoder.hidden, jax.random.key(1))
    state, optimizer, layout = create_state(params, c, mesh)
    if tx is not None:
        optimizer = optimizer._replace(tx=tx)
        state = dataclasses.replace(state, opt=tx.init(state.params))
        layout = state_shardings(tx, state, mesh)
        state = jax.device_put(state, layout)
    return state, make_step(m, c, optimizer, layout)


def compiled(c, b, *, mesh=ONE, **options):
    """(state, step, b on the mesh); the step is compiled, and takes no other bucket and no other sharding."""
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
