"""A GRPO step of the small model: its config, its judges, and completions that are given and not sampled."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests import joint
from vpjax.models.generate import Completions
from vpjax.models.sharding import in_use, put_batch
from vpjax.models.vlm import leaves, rebuild
from vpjax.training import grpo
from vpjax.training.state import create_state, state_shardings

EOS = (7, 8, 9)
ROWS, GROUPS, DEGRADED, LENGTH = 8, 4, 2, 5
SGD = optax.sgd(1.0)  # so that the parameters move by the gradient
CLIPS = joint.prompt_contents(ROWS)


def config(**fields):
    c = joint.config(method="grpo", batch=ROWS)
    c.grpo.groups, c.grpo.degraded, c.grpo.max_new = GROUPS, DEGRADED, LENGTH
    c.grpo.relative.correct = "small"
    with c.unlocked():
        for name, value in fields.items():
            *sections, field = name.split("__")
            setattr(functools.reduce(getattr, sections, c), field, value)
    return c


class Judge:
    """Rewards the share of a completion's tokens with an id below 64."""

    host_scores = {}
    weights = {"small": 1.0}
    degraded_weights = {}

    def score(self, prompts, tokens, mask):
        return {"small": self.recall(prompts, tokens, mask)}

    def recall(self, prompts, tokens, mask):
        return ((tokens < 64) & mask).sum(-1) / jnp.maximum(mask.sum(-1), 1)

    def answers(self, prompts, tokens, mask):
        """A completion says its first token."""
        return tokens[..., 0]


class TruthJudge(Judge):
    """On V~, the share of tokens with an even id, in clips of an even number."""

    degraded_weights = {"even": 1.0}

    def score_degraded(self, prompts, tokens, mask):
        share = ((tokens % 2 == 0) & mask).sum(-1) / jnp.maximum(mask.sum(-1), 1)
        return {"even": jnp.where((prompts.clip % 2 == 0)[:, None], share, jnp.nan)}


class TenfoldJudge(Judge):
    weights = {"small": 10.0}


class HostJudge(Judge):
    """The same reward, computed on the host, and a second one that weighs nothing. failing: the names of
    those whose function fails."""

    def __init__(self):
        self.failing = set()
        self.weights = {"small": 1.0, "logged": 0.0}
        self.host_scores = {name: functools.partial(self.host_score, name) for name in self.weights}

    def score(self, prompts, tokens, mask):
        return {}

    def host_score(self, name, clip, completions):
        tokens, mask = completions.tokens, completions.mask
        share = ((tokens < 64) & mask).sum(-1) / np.maximum(mask.sum(-1), 1)
        return np.full_like(share, np.inf) if name in self.failing else share.astype(np.float32)


def wide():
    """Wide kernels, so that the model's answers depend on the video."""
    m = joint.model()
    return rebuild(m, {path: 2 * x if path.endswith("kernel") else x for path, x in leaves(m).items()})


def setup(c, m, *, mesh=joint.ONE, judge=None):
    """(state, parts of the step, the step) of a model, with plain gradient descent."""
    state, optimizer, _ = create_state(leaves(m), c, mesh)
    optimizer = optimizer._replace(tx=SGD)
    state = dataclasses.replace(state, opt=SGD.init(state.params))
    where = state_shardings(SGD, state, mesh)
    state = jax.device_put(state, where)
    judge = judge or Judge()
    step = grpo.make_step(m, c, optimizer, where, judge=judge, eos=EOS)
    return state, grpo.GRPOStep(m, c, optimizer, judge, EOS), step


def compiled(function, *args):
    """Compiling is what these tests wait for, and tiny matrices gain nothing from it."""
    return jax.jit(function).lower(*args).compile()


@functools.cache
def learner(mesh=joint.ONE, rows=ROWS, judge=Judge, **fields):
    """``learn(prompts, completions) -> gradient by path, metrics, judged``: one step on given completions."""
    state, parts, _ = setup(config(**fields), joint.model(), mesh=mesh, judge=judge())

    def step(state, prompts, completions):
        with in_use(mesh):
            features = parts.policy.compute_model(state.params, {}).encode(prompts.video)
            return parts.judge_and_update(state, prompts, completions, features, {})

    some = jax.tree.map(lambda x: x[:rows], (joint.prompts(ROWS), random_completions()))
    program = compiled(step, state, put_batch(some[0], mesh), some[1])

    def learn(prompts, completions):
        after, metrics, judged = program(state, put_batch(prompts, mesh), completions)
        gradient = {path: np.asarray(x) - np.asarray(after.params[path]) for path, x in state.params.items()}
        return gradient, {name: float(x) for name, x in metrics.items()}, judged

    return learn


def assert_close(gradient, expected, tolerance):
    """Every element within ``tolerance`` of its leaf's largest, and of 1e-3 where that is smaller."""
    for path, x in gradient.items():
        spread = max(np.abs(expected[path]).max(), 1e-3)
        np.testing.assert_allclose(x, expected[path], rtol=0, atol=tolerance * spread, err_msg=path)


def stepped(c, prompts):
    """(state before, after, metrics, judged) of one whole step, compiled as above."""
    state, _, step = setup(c, wide())
    before = jax.tree.map(np.array, state)
    p = put_batch(prompts, joint.ONE)
    step = step.lower(state, p).compile()
    after, metrics, judged = step(state, p)
    return before, after, {name: float(x) for name, x in metrics.items()}, judged


def random_completions(seed=0, branches=2):
    """Random completions; an eighth of the tokens are stop tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 128, (ROWS, branches, GROUPS, LENGTH), dtype=np.int32)
    tokens[rng.random(tokens.shape) < 1 / 8] = EOS[0]
    mask = np.cumsum(np.isin(tokens, EOS), -1) - np.isin(tokens, EOS) == 0
    mask[:, 1:, DEGRADED:] = False
    return Completions(tokens * mask, mask, np.zeros(tokens.shape, np.float32))
