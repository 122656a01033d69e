"""Which relative rewards change GRPO's advantages at all? A bandit answers this before any model is trained.

    python -m benchmarks.bandit [--picture FILE.png] [--out FILE.md]                       seconds

A prompt is two numbers: a completion names the event with probability p on V and with q on V~. A completion
has 8 tokens. One of them is the event's word; its log-probability gap follows from p and q, plus some noise,
because phrasings differ in how well they can be guessed. The reward is 0/1 (the event was named) or graded
(a caption's score: one half for the event, one half for the other words). Rewards, recall of the keyword and
gaps go through vpjax/training/relative.py with the defaults of configs/base.py, as they do in training. The
figure is explained in docs/method.md, section 3.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.timing import publish
from vpjax import cli
from vpjax.recipes import base
from vpjax.training.relative import RELATIVE_KINDS, Evidence, advantages, relative_term, reward_gap

GROUP = 8  # G, completions on V
DEGRADED = 4  # completions on V~
TOKENS = 8  # C, tokens of a completion
EVENT = 3  # index of the event's word among them
NOISE = 0.5  # nats, standard deviation of the gap between phrasings
REWARDS = ("0/1", "graded")
# Prompts by how often the event is named on V and on V~. The last kind has no V~.
PROMPTS = {
    "hard, needs the frames": (0.05, 0.01),
    "open, needs the frames": (0.5, 0.05),
    "easy, needs the frames": (0.9, 0.05),
    "hard, guessed": (0.125, 0.125),
    "open, guessed": (0.5, 0.5),
    "easy, guessed": (0.9, 0.9),
    "no V~": (0.5, 0.5),
}
# Okabe and Ito's colours, which the colour-blind can tell apart.
INK, GREY, BLUE, ORANGE = "#22313f", "#8a949c", "#0072b2", "#e69f00"
# For each kind: colour and line style of its curve, and the height of its label.
CURVES = {
    "gate": ("#d55e00", "-", 1.7),
    "need": ("#9467bd", "-", 0.745),
    "token": ("#009e73", "-", 1.27),
    "likelihood": ("#0072b2", "-", 1.2),
    "keyword_winrate": ("#cc79a7", "-", 1.135),
    "relation": ("#8c564b", "-", 1.07),
    "winrate": ("#56b4e9", "--", 1.005),
    "hinge": ("#e69f00", "--", 0.95),
    "tgrpo": ("#000000", ":", 0.895),
}


def rollouts(key: jax.Array, p_B: jax.Array, q_B: jax.Array, reward: str) -> tuple[Evidence, jax.Array]:
    """Evidence for prompts with success ``p`` on V and ``q`` on V~, and which completions on V name the
    event, bool[B, G]. A wrong completion names one of two other events."""
    keys = jax.random.split(key, 5)
    shape, degraded_shape = (len(p_B), GROUP), (len(p_B), DEGRADED)
    right = jax.random.bernoulli(keys[0], p_B[:, None], shape)
    right_degraded = jax.random.bernoulli(keys[1], q_B[:, None], degraded_shape)

    def score(key: jax.Array, named: jax.Array) -> jax.Array:
        if reward == "0/1":
            return named.astype(jnp.float32)
        return (named + jax.random.uniform(key, named.shape)) / 2

    p, q = p_B[:, None], q_B[:, None]
    gap = jnp.where(right, jnp.log(p / q), jnp.log((1 - p) / (1 - q)))
    gap += NOISE * jax.random.normal(keys[2], shape)
    event = jnp.arange(TOKENS) == EVENT
    rewards = score(keys[3], right)
    other, other_degraded = jax.random.split(jax.random.fold_in(key, len(keys)))
    said = jnp.where(right, 2, jax.random.bernoulli(other, 0.5, shape))
    said_degraded = jnp.where(right_degraded, 2, jax.random.bernoulli(other_degraded, 0.5, degraded_shape))
    evidence = Evidence(
        rewards=rewards,
        has_degraded=jnp.ones(len(p_B), bool),
        right=rewards,
        right_degraded=score(keys[4], right_degraded),
        same=(said[:, :, None] == said_degraded[:, None]).astype(jnp.float32),
        hides=jnp.ones(len(p_B), bool),
        recall=right.astype(jnp.float32),
        degraded_recall=right_degraded.astype(jnp.float32),
        gap=gap[..., None] * event,
        mask=jnp.ones((*shape, TOKENS), bool),
        keyword=right[..., None] & event,
    )
    return evidence, right


def token_advantages(evidence: Evidence, kind: str) -> jax.Array:
    """Advantages f32[B, G, C] under group scaling."""
    options = base.get_config().grpo.relative
    options.kind = kind
    term = relative_term(evidence, options)
    per_token = advantages(evidence.rewards, term, scale="group", eps=0.0)
    return jnp.broadcast_to(per_token, (*evidence.rewards.shape, TOKENS))


def changes(kind: str, reward: str, *, prompts: int = 4096, seed: int = 0) -> tuple[float, float]:
    """How much the kind changes advantages, over p and q that are uniform in (0, 1): the norm of the
    difference to plain GRPO's advantages as a share of their norm, and the correlation of the two."""
    keys = jax.random.split(jax.random.key(seed), 3)
    p, q = (jax.random.uniform(key, (prompts,), minval=0.02, maxval=0.98) for key in keys[:2])
    evidence, _ = rollouts(keys[2], p, q, reward)
    new, plain = token_advantages(evidence, kind), token_advantages(evidence, "none")
    share = jnp.linalg.norm((new - plain).ravel()) / jnp.linalg.norm(plain.ravel())
    return float(share), float(jnp.corrcoef(new.ravel(), plain.ravel())[0, 1])


def push(kind: str, p: float, q_X: np.ndarray, reward: str, *, prompts: int = 8192) -> np.ndarray:
    """The policy gradient on the log-odds of naming the event, divided by plain GRPO's, at each q: f32[X].
    Prompts of every q share a batch, for a kind may compare prompts."""
    batches = 16
    each = prompts // batches
    q_B = jnp.repeat(jnp.asarray(q_X), each)

    def gradients(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        evidence, right = rollouts(key, jnp.full(len(q_B), p), q_B, reward)
        slope = right - p  # of a completion's log-probability, by the log-odds
        new, plain = (
            (token_advantages(evidence, name)[..., EVENT] * slope).reshape(len(q_X), -1).mean(1)
            for name in (kind, "none")
        )
        return new, plain

    new, plain = jax.lax.map(gradients, jax.random.split(jax.random.key(1), batches))
    return np.asarray(new.mean(0) / plain.mean(0))


def gate_before(evidence: Evidence) -> jax.Array:
    """The gate's weights as they were before the gap became a share, f32[B]."""
    return 0.25 + 0.75 * jax.nn.sigmoid((reward_gap(evidence) - 0.2) / 0.1)


def gate_weights(*, prompts: int = 4096, seed: int = 0) -> dict[str, tuple[float, float]]:
    """For each of PROMPTS, in a batch with as many of each, the mean weight of those whose 0/1 rewards have
    spread: before the gap became a share, and now."""
    p_B, q_B = (jnp.repeat(jnp.array(values), prompts) for values in zip(*PROMPTS.values(), strict=True))
    evidence, _ = rollouts(jax.random.key(seed), p_B, q_B, "0/1")
    has_degraded = jnp.arange(len(p_B)) < (len(PROMPTS) - 1) * prompts
    options = base.get_config().grpo.relative
    options.kind = "gate"
    after = relative_term(evidence._replace(has_degraded=has_degraded), options).weight[:, 0, 0]
    before = jnp.where(has_degraded, gate_before(evidence), 1.0)
    has_spread = np.ptp(np.asarray(evidence.rewards), axis=1) > 0
    kinds = np.repeat(np.arange(len(PROMPTS)), prompts)
    weights = {}
    for number, name in enumerate(PROMPTS):
        chosen = (kinds == number) & has_spread
        weights[name] = float(np.asarray(before)[chosen].mean()), float(np.asarray(after)[chosen].mean())
    return weights


def draw(path: Path) -> None:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    draw_changes(left)
    draw_pushes(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
    figure.savefig(path, dpi=120, facecolor="white")


def draw_changes(axes: Axes) -> None:
    """A line for each kind and reward, as long as the change of the advantages."""
    names = list(reversed(CURVES))
    for reward, colour, shift in (("0/1", BLUE, 0.16), ("graded", ORANGE, -0.16)):
        for row, kind in enumerate(names):
            share, correlation = changes(kind, reward)
            height = row + shift
            if share < 1e-4:
                label, label_colour, fill = "cancels", GREY, "white"
            else:
                label, label_colour, fill = f"r = {correlation:.2f}", INK, colour
            axes.plot([0, share], [height, height], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot(share, height, "o", color=colour, markersize=6.5, markerfacecolor=fill)
            axes.text(share + 0.022, height, label, fontsize=7.5, va="center", color=label_colour)
        axes.plot([], [], "o-", color=colour, label=f"{reward} reward")
    axes.set(
        yticks=range(len(names)),
        xlim=(-0.015, 0.78),
        xlabel="change of the advantages, as a share of plain GRPO's (r: correlation)",
    )
    axes.set_yticklabels(names)
    axes.legend(frameon=False, loc="lower right", fontsize=8.5)
    axes.set_title("What normalisation leaves of each kind", fontsize=10.5, loc="left", color=INK)


def draw_pushes(axes: Axes) -> None:
    """A curve for each kind: ``push`` by the worth of the hidden frames."""
    p, q = 0.5, np.linspace(0.02, 0.98, 49, dtype=np.float32)
    axes.axhline(1, color=GREY, linewidth=1)
    axes.text(-0.48, 0.99, "plain GRPO", fontsize=8, color=GREY, va="top")
    for kind, (colour, style, height) in CURVES.items():
        axes.plot(p - q, push(kind, p, q, "graded"), style, color=colour, linewidth=2)
        axes.text(0.5, height, kind, fontsize=9, color=colour, va="center")
    axes.set(
        xlabel=f"what the hidden frames are worth: p − q, at p = {p}",
        xlim=(-0.49, 0.49),
        ylabel="push towards naming the event,\nover plain GRPO's",
    )
    axes.set_title("Where each kind pushes (graded reward)", fontsize=10.5, loc="left", color=INK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--picture", type=Path, help="draw the figure to this file")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    lines = [
        "# Relative rewards on a bandit",
        "",
        f"4096 prompts with p and q uniform in (0, 1), {GROUP} completions on V and {DEGRADED} on V~, group "
        "scaling. Change: norm of the difference to plain GRPO's advantages, over theirs; r: correlation.",
        "",
        "| kind | " + " | ".join(f"{reward}: change | r" for reward in REWARDS) + " |",
        "|---" * (1 + 2 * len(REWARDS)) + "|",
    ]
    for kind in RELATIVE_KINDS:
        cells = [kind]
        for reward in REWARDS:
            share, correlation = changes(kind, reward)
            cells += [f"{share:.3f}", f"{correlation:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "The weight of a prompt under `gate`, of those whose 0/1 rewards have spread, in a batch with as "
        "many of each. Before: by the gap p - q, with a clip without V~ at 1. Now: by the gap as a share of "
        "the larger of the two, over the mean weight.",
        "",
        "| prompt | p | q | before | now |",
        "|---|---|---|---|---|",
    ]
    for name, (before, now) in gate_weights().items():
        p, q = PROMPTS[name]
        lines.append(f"| {name} | {p:g} | {'' if name == 'no V~' else f'{q:g}'} | {before:.2f} | {now:.2f} |")
    publish(lines, args.out)
    if args.picture:
        draw(args.picture)


if __name__ == "__main__":
    cli.run(main)
