"""Operations counted by hand, and collectives as XLA writes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vpjax.hlo import Collective, collectives, cycles, flops, phase
from vpjax.models.sharding import make_mesh

# As libtpu writes a scan: a collective in two overlapping parts of one channel, one that is started and done,
# and one behind a condition. (Shortened.)
TEXT = """
HloModule jit_step, entry_computation_layout={()->()}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
}

%part.1 (p: bf16[2,8]) -> bf16[16,8] {
  %all-gather.1 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, GROUPS
}

%part.2 (p: bf16[2,8]) -> bf16[16,8] {
  %all-gather.2 = bf16[16,8]{1,0} all-gather(%p), channel_id=7, GROUPS
}

%branch (p: f32[4]) -> f32[4] {
  %all-reduce.1 = (f32[4], f32[2]) all-reduce(%p, %p), channel_id=8, replica_groups=[4,2]<=[8]
}

%inner.cond (s: (s32[])) -> pred[] {
  %constant.2 = s32[]{:T(128)} constant(3)
}

%inner.body (s: (s32[])) -> (s32[]) {
  %c = f32[4] conditional(%i, %p, %p), branch_computations={%branch, %branch}
}

%outer.cond (s: (s32[])) -> pred[] {
  %constant.1 = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %constant.1), direction=LT
}

%outer.body (s: (s32[])) -> (s32[]) {
  %f1 = bf16[16,8] fusion(%p), kind=kLoop, calls=%part.1
  %f2 = bf16[16,8] fusion(%p), kind=kLoop, calls=%part.2
  %w = (s32[]) while(%t), condition=%inner.cond, body=%inner.body
}

ENTRY %main (p: f32[]) -> f32[] {
  %w = (s32[]) while(%t), condition=%outer.cond, body=%outer.body
  %start = (f32[1,4], f32[8,4]) all-gather-start(%p), channel_id=9, replica_groups={{0,1,2,3,4,5,6,7}}
  %done = f32[8,4]{1,0} all-gather-done(%start)
  ROOT %rs = f32[2]{0} reduce-scatter(%p), channel_id=10, replica_groups={{0,1},{2,3}}, to_apply=%add
}
""".replace("GROUPS", "replica_groups=mesh['x'=8,'y'=2] {'x'}")


def test_collectives_of_a_text():
    assert sorted(collectives(TEXT), key=lambda found: (found.kind, found.result)) == [
        Collective("all-gather", result=8 * 4 * 4, sent=7 * 16, loops=()),
        Collective("all-gather", result=16 * 8 * 2, sent=7 * 32, loops=(5,)),
        Collective("all-reduce", result=24, sent=2 * 12, loops=(5, 3)),
        Collective("reduce-scatter", result=8, sent=8, loops=()),
    ]
    assert Collective("all-reduce", 0, 0, (5, 3)).times == 15


def test_collectives_of_a_scan_on_eight_devices():
    """A product over a split dimension, in a scan of 6 steps: each step sums once over the devices."""
    mesh = make_mesh(dict(data=1, fsdp=8, tensor=1))
    split = NamedSharding(mesh, P(None, None, "fsdp")), NamedSharding(mesh, P(None, "fsdp"))

    def run(w_LDD, x):
        def layer(x, w):
            x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, "fsdp")))
            return jnp.tanh(x @ w.T), None

        return jax.lax.scan(layer, x, w_LDD)[0]

    shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((6, 16, 16), (4, 16))]
    program = jax.jit(run, in_shardings=split).lower(*shapes).compile()
    inside = [found for found in collectives(program.as_text()) if found.loops]
    assert [(found.kind, found.loops) for found in inside] == [("all-reduce", (6,))]
    assert inside[0].result == 4 * 16 * 4 and inside[0].sent == 2 * 7 * 32


def body(x, w):
    return jnp.tanh(x @ w), None


def loss(x, w_LDD):
    return jax.lax.scan(jax.checkpoint(body), x, w_LDD)[0].sum()


@pytest.mark.parametrize(
    "function, count",
    [
        (lambda x, w: jax.lax.scan(body, x, w)[0], 3),
        (jax.jit(lambda x, w: jax.lax.scan(body, x, w)[0]), 3),
        (lambda x, w: jax.lax.while_loop(lambda y: y[0, 0] > 0, lambda y: y @ w[0], x), 10),
        (lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w[0] @ w[1], lambda: x @ w[0]), 2),
        (jax.grad(loss, 1), 3 + 3 + 6),  # forward, recomputed, and two products backward
    ],
)
def test_flops(function, count):
    """Products of [4, 8] with [8, 8]: 2 * 4 * 8 * 8 operations each."""
    jaxpr = jax.make_jaxpr(function)(jnp.zeros((4, 8)), jnp.zeros((3, 8, 8)))
    assert flops(jaxpr.jaxpr, while_trips=10) == count * 2 * 4 * 8 * 8


def test_flops_of_a_scope():
    """Of three products forward those of the first, and as many again for each of its two gradients."""

    @jax.named_scope("first")
    def first(x, w):
        return x @ w

    def loss(x, w):
        return jnp.tanh(jnp.tanh(first(x, w) @ w) @ w).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(jnp.zeros((8, 8)), jnp.zeros((8, 8))).jaxpr
    assert flops(jaxpr, scope="first") == 3 * 2 * 8**3 and flops(jaxpr) == 9 * 2 * 8**3


def test_cycles_and_collectives_by_phase():
    """The compiler writes estimates for the instructions that it schedules, and where each came from."""
    text = (
        TEXT.replace(
            "%f1 = bf16[16,8] fusion(%p), kind=kLoop, calls=%part.1",
            '%f1 = bf16[16,8] fusion(%p), kind=kLoop, calls=%part.1, metadata={op_name="phase_decode/x"},'
            ' backend_config={"estimated_cycles":"100"}',
        )
        .replace(
            "%c = f32[4] conditional(%i, %p, %p),",
            '%c = f32[4] conditional(%i, %p, %p), metadata={op_name="jvp(phase_update)/phase_encode/x"},'
            ' backend_config={"estimated_cycles":"7"},',
        )
        .replace("%done = ", '%g = f32[] fusion(%p), backend_config={"estimated_cycles":"1000"}\n  %done = ')
    )
    assert cycles(text) == {"decode": 5 * 100, "update": 5 * 3 * 7, "other": 1000}
    assert cycles(TEXT) == {}


BRANCHES = """
%cheap (p: f32[4]) -> f32[4] {
  %r = f32[4] all-reduce(%p), channel_id=1, GROUPS, backend_config={"estimated_cycles":"1"}
}

%dear (p: f32[4]) -> f32[4] {
  %w = (s32[]) while(%t), condition=%cond, body=%body
}

%body (s: (s32[])) -> (s32[]) {
  %r = f32[8] all-reduce(%p), channel_id=2, GROUPS, backend_config={"estimated_cycles":"20"}
}

%cond (s: (s32[])) -> pred[] {
  %constant.1 = s32[] constant(3)
}

ENTRY %main (p: f32[]) -> f32[] {
  CONDITION
}
""".replace("GROUPS", "replica_groups=[4,2]<=[8]")


@pytest.mark.parametrize(
    "called",
    [
        "branch_computations={%cheap, %dear, %cheap}",
        "true_computation=%dear, false_computation=%cheap",
        "true_computation=%cheap, false_computation=%dear",
    ],
)
def test_one_branch_of_a_condition_counts(called):
    """The most expensive one: by cycles or, where there are none, by what it sends."""
    text = BRANCHES.replace("CONDITION", f"%c = f32[4] conditional(%i, %p, %p), {called}")
    assert cycles(text) == {"other": 60}
    for written in (text, text.replace("estimated_cycles", "unknown")):
        assert collectives(written) == [Collective("all-reduce", result=32, sent=32, loops=(3,))]


def test_cycles_that_are_not_known_do_not_count():
    """The compiler writes the largest integer for what another unit of the chip computes."""
    known = '%a = f32[4] add(%p, %p), backend_config={"estimated_cycles":"7"}'
    unknown = known.replace("%a", "%b").replace('"7"', f'"{2**63 - 1}"')
    assert cycles(f"ENTRY %main (p: f32[4]) -> f32[4] {{\n  {known}\n  {unknown}\n}}\n") == {"other": 7}


def test_phases_are_in_the_program():
    """In loops and in gradients too; of one inside another the outer one counts."""

    @phase("inner")
    def inner(x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, None, length=3)[0]

    def outer(x):
        with phase("outer"):
            return jax.grad(lambda x: inner(x).sum())(x)

    x = jnp.ones((64, 64))
    text = jax.jit(outer).lower(x).compile().as_text()
    products = [line for line in text.splitlines() if " dot(" in line]
    assert products and all("phase_outer" in line.split("phase_inner")[0] for line in products)
    text = jax.jit(jax.grad(lambda x: inner(x).sum())).lower(x).compile().as_text()
    assert all("phase_inner" in line for line in text.splitlines() if " dot(" in line)
