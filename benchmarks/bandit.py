"""Which relative rewards change GRPO's advantages at all? A bandit that shows it before any model is trained.

    python -m benchmarks.bandit [--picture FILE.png] [--out FILE.md]                       seconds

A prompt is two numbers: a rollout names the event with probability p on V and q on V~. A completion has 8
tokens; one of them is the event's word, with the log-probabilities that p and q give and some scatter, for
phrasings differ in how well they can be guessed. The reward is 0/1 (the event was named) or graded (a
caption's score: half of it the event, half the other words). Rewards, recall of the keyword and gaps go
through vpjax/training/relative.py with the defaults of configs/base.py, as they do in training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks.timing import keep
from vpjax.recipes import base
from vpjax.training.relative import KINDS, Evidence, advantages, relative

GROUP, DEGRADED, TOKENS, EVENT = 8, 4, 8, 3  # G, rollouts on V~, C, and the place of the event's word
SCATTER = 0.5  # nats, of the gap between phrasings
REWARDS = ("0/1", "graded")
# Okabe and Ito's colours, which the colour-blind can tell apart.
INK, QUIET, BLUE, ORANGE = "#22313f", "#8a949c", "#0072b2", "#e69f00"
# Kinds with the colour and style of their curve and the height of its label.
CURVES = {
    "gate": ("#d55e00", "-", 0.68),
    "token": ("#009e73", "-", 1.21),
    "likelihood": ("#0072b2", "-", 1.135),
    "keyword_winrate": ("#cc79a7", "-", 1.07),
    "winrate": ("#56b4e9", "--", 1.005),
    "hinge": ("#e69f00", "--", 0.95),
    "tgrpo": ("#000000", ":", 0.895),
}


def rollouts(key: jax.Array, p_B: jax.Array, q_B: jax.Array, reward: str) -> tuple[Evidence, jax.Array]:
    """Evidence of prompts with success ``p`` on V and ``q`` on V~; which rollouts on V named the event."""
    keys = jax.random.split(key, 5)
    shape, degraded = (len(p_B), GROUP), (len(p_B), DEGRADED)
    right = jax.random.bernoulli(keys[0], p_B[:, None], shape)
    right_degraded = jax.random.bernoulli(keys[1], q_B[:, None], degraded)

    def score(key, named):
        other_words = jax.random.uniform(key, named.shape)
        return named.astype(jnp.float32) if reward == "0/1" else (named + other_words) / 2

    p, q = p_B[:, None], q_B[:, None]
    gap = jnp.where(right, jnp.log(p / q), jnp.log((1 - p) / (1 - q)))
    gap += SCATTER * jax.random.normal(keys[2], shape)
    event = jnp.arange(TOKENS) == EVENT
    evidence = Evidence(
        rewards=score(keys[3], right),
        has=jnp.ones(len(p_B), bool),
        degraded=score(keys[4], right_degraded),
        recall=right.astype(jnp.float32),
        degraded_recall=right_degraded.astype(jnp.float32),
        gap=gap[..., None] * event,
        mask=jnp.ones((*shape, TOKENS), bool),
        keyword=right[..., None] & event,
    )
    return evidence, right


def shaped(evidence: Evidence, kind: str) -> jax.Array:
    """Advantages f32[B, G, C] under group scaling."""
    options = base.get_config().grpo.relative
    options.kind = kind
    a = advantages(evidence.rewards, relative(evidence, options), scale="group", eps=0.0)
    return jnp.broadcast_to(a, evidence.mask.shape)


def changes(kind: str, reward: str, *, prompts: int = 4096, seed: int = 0) -> tuple[float, float]:
    """How far the kind takes advantages from plain GRPO's, over p and q that are uniform in (0, 1): the norm
    of the difference as a share of the plain ones' norm, and their correlation."""
    keys = jax.random.split(jax.random.key(seed), 3)
    p, q = (jax.random.uniform(key, (prompts,), minval=0.02, maxval=0.98) for key in keys[:2])
    evidence, _ = rollouts(keys[2], p, q, reward)
    new, plain = shaped(evidence, kind), shaped(evidence, "none")
    share = jnp.linalg.norm((new - plain).ravel()) / jnp.linalg.norm(plain.ravel())
    return float(share), float(jnp.corrcoef(new.ravel(), plain.ravel())[0, 1])


def push(kind: str, p: float, q_X: np.ndarray, reward: str, *, prompts: int = 8192) -> np.ndarray:
    """The policy gradient on the log-odds of naming the event, over plain GRPO's, at each q: f32[X]."""

    def mean(key, q):
        evidence, right = rollouts(key, jnp.full(prompts, p), jnp.full(prompts, q), reward)
        slope = right - p  # of the log-probability of what was said
        return [(shaped(evidence, k)[..., EVENT] * slope).mean() for k in (kind, "none")]

    new, plain = jax.lax.map(lambda x: mean(*x), (jax.random.split(jax.random.key(1), len(q_X)), q_X))
    return np.asarray(new / plain)


def draw(path: Path) -> None:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    names = [*CURVES]
    for reward, colour, shift in zip(REWARDS, (BLUE, ORANGE), (0.16, -0.16), strict=True):
        for y, kind in enumerate(reversed(names)):
            share, correlation = changes(kind, reward)
            left.plot([0, share], [y + shift] * 2, color=colour, linewidth=2.2, solid_capstyle="butt")
            none = share < 1e-4
            left.plot(
                share,
                y + shift,
                "o",
                color=colour,
                markersize=6.5,
                markerfacecolor="white" if none else colour,
            )
            text = "cancels" if none else f"r = {correlation:.2f}"
            left.text(share + 0.022, y + shift, text, fontsize=7.5, va="center", color=QUIET if none else INK)
        left.plot([], [], "o-", color=colour, label=f"{reward} reward")
    left.set(
        yticks=range(len(names)), xlim=(-0.015, 0.78),
        xlabel="change of the advantages, as a share of plain GRPO's (r: correlation)",
    )  # fmt: skip
    left.set_yticklabels(reversed(names))
    left.legend(frameon=False, loc="lower right", fontsize=8.5)
    left.set_title("What normalisation leaves of each kind", fontsize=10.5, loc="left", color=INK)

    p, q = 0.5, np.linspace(0.02, 0.98, 49, dtype=np.float32)
    right.axhline(1, color=QUIET, linewidth=1)
    right.text(-0.48, 0.99, "plain GRPO", fontsize=8, color=QUIET, va="top")
    for kind, (colour, style, height) in CURVES.items():
        right.plot(p - q, push(kind, p, q, "graded"), style, color=colour, linewidth=2)
        right.text(0.5, height, kind, fontsize=9, color=colour, va="center")
    right.set(
        xlabel=f"what the hidden frames are worth: p − q, at p = {p}", xlim=(-0.49, 0.49),
        ylabel="push towards naming the event,\nover plain GRPO's",
    )  # fmt: skip
    right.set_title("Where each kind pushes (graded reward)", fontsize=10.5, loc="left", color=INK)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
    figure.savefig(path, dpi=120, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--picture", type=Path, help="draw it to this file")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    lines = [
        "# Relative rewards on a bandit",
        "",
        f"4096 prompts with p and q uniform in (0, 1), {GROUP} rollouts on V and {DEGRADED} on V~, group "
        "scaling. Change: norm of the difference to plain GRPO's advantages, over theirs; r: correlation.",
        "",
        "| kind | " + " | ".join(f"{reward}: change | r" for reward in REWARDS) + " |",
        "|---" * (1 + 2 * len(REWARDS)) + "|",
    ]
    for kind in KINDS:
        cells = [f"{x:.3f}" for reward in REWARDS for x in changes(kind, reward)]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    print("\n".join(lines))
    keep(lines, args.out)
    if args.picture:
        draw(args.picture)


if __name__ == "__main__":
    main()
