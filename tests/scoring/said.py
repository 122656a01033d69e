"""Clips of every task and the kinds of text that models answer with, for the tests of rewards."""

import itertools
import string

import jax
import numpy as np

from vpjax.data.text import Text, train_tokenizer
from vpjax.events.clips import EventSpec, describe, tokenizer_sentences
from vpjax.scoring.references import references, sizes_of
from vpjax.scoring.rewards import REWARDS, host_score, limits_of, score
from vpjax.scoring.texts import byte_table
from vpjax.types import Clip, Keyword

SPEC = EventSpec(caption=2, choice=1, order=1, grounding=1)
KEYWORDS = 4


def clip(answer, task="caption", **fields):
    return Clip("c", "c.mp4", "?", answer, task=task, **fields)


def seen(*words):
    """Keywords given as (text, lemma)."""
    return tuple(Keyword(text, lemma, ((0.0, 1.0),)) for text, lemma in words)


STORY = clip(
    "<think>A ball.</think><answer>A man picks up the red ball, runs away, then falls and drops it.</answer>",
    keywords=seen(("picks up", "pick up"), ("runs", "run"), ("falls", "fall"), ("drops", "drop")),
)
TRACK = clip("", "tracking", boxes=((0.1, 0.2, 0.5, 0.6), (0.2, 0.2, 0.6, 0.6), (0.25, 0.3, 0.65, 0.7)))
PROOF = clip(
    "(C)",
    "choice",
    choices=("a cat", "a dog", "a man", "a car"),
    spans=((5.2, 10.4), (12.0, 15.0), (14.0, 18.5)),
)
CLIPS = (
    *(describe(SPEC, "train", index)[0] for index in range(20)),
    STORY,
    TRACK,
    PROOF,
    clip("3.5 to 7.25", "grounding", spans=((3.5, 7.25),)),
)


def spoken(rng, clip):
    """One text that a model may answer a clip with, by templates of all tasks, right or wrong."""
    a, b, c, d = np.round(rng.uniform(0, 20, 4), rng.integers(0, 4))
    letter = rng.choice(list("ABCDEab"))
    box = ", ".join(f"{x:.2f}" for x in rng.uniform(0, 1, 4))
    other = CLIPS[rng.integers(len(CLIPS))]
    templates = [
        clip.answer,
        other.answer,
        f"{clip.answer} {other.answer}",
        " ".join(rng.permutation((clip.answer + " " + other.answer).split())),
        *(way.format(letter) for way in ("{}", "({})", "{}.", "The answer is {}.", "{}: it", "So {} it is")),
        f"{letter} or {letter.upper()}",
        "A red square flashes",
        "So A is it. A dog (A) b",
        f"From {a} to {b} seconds.",
        f"{a}s - {b}s",
        f"between {a:.2f} and {b:.2f} sec",
        f"{a} seconds until {b}, or {c}\u2013{d}",
        f"1:05.5 to 1:0{rng.integers(10)}, {a} TO {b}",
        f"{a} to {b} to {c} to {d}",
        f"{a} and 1.2.3 and 1234567 to 1:2:3:4 or 00012.5 - 1:1:1.5",
        f"<think>no</think><answer>({letter})</answer><glue>[({a}, {b}), ({c}, {d})]</glue>",
        f"<glue>[{a}, {b}]</glue>{letter}",
        f"[[{box}], [{box}]]",
        f"[{', '.join(f'[{x0}, {y0}, {x1}, {y1}]' for x0, y0, x1, y1 in clip.boxes or CLIPS[-3].boxes)}]",
        f"Frame 1: ({box}) Frame 2: [ {box} ] [{box}, 1] [1.2.3, {box}]",
        "the the the the the ball ball ball the ball",
    ]
    if rng.random() < 0.5:  # what its task asks for
        templates = templates[-5:] if clip.boxes else templates[:4] if len(clip.keywords) > 1 else templates
    text = templates[rng.integers(len(templates))]
    wrap = rng.integers(6)
    if wrap == 0:
        text = f"<think>{other.answer}</think> <answer>{text}</answer>"
    elif wrap == 1:
        text = f"<think>{other.answer}" + f"</think>\n<answer>{text}"[: rng.integers(30)]
    return text


def garbled(rng, text):
    """``text`` with a few of its characters gone, doubled, swapped or new."""
    characters = list(text)
    for _ in range(rng.integers(1, 6)):
        at = rng.integers(len(characters) + 1)
        characters[at : at + rng.integers(3)] = rng.choice(list(NOISE), rng.integers(3))
    return "".join(characters)


PIECES = [f"<{slash}{tag}>" for tag in ("think", "answer", "glue") for slash in ("", "/")]
PIECES += [" to ", " and ", "1:05", "A", "s", "\n\n  "]
NOISE = (
    string.digits + "..::,,--[]()<>/  \tABab sto" + "\u2013\u2014\u00e9\u4e2d\U0001f600\u212a\u0130\u00a0\x00"
)


def noise(rng):
    return "".join(rng.choice([*NOISE, *PIECES], rng.integers(0, 40)))


class Scorer:
    """The rewards of texts, from the device and from the host, under one tokenizer."""

    shape = (len(CLIPS), 32, 160)  # B, G, C

    def __init__(self, folder, sentences, size):
        train_tokenizer(sentences, folder, size)
        self.text, self.sizes = Text.load(folder), sizes_of(CLIPS, keywords=KEYWORDS)
        self.limits = limits_of(40, 20)
        table = byte_table(self.text)
        self.score = jax.jit(
            lambda tokens, mask, refs: score(tuple(REWARDS), table, tokens, mask, refs, limits=self.limits)
        )

    def tokens(self, completions):
        """Texts, or token ids, as arrays i32[B, G, C] and their mask; anything stands after an end."""
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, len(self.text.tokenizer) + 50, self.shape).astype(np.int32)
        mask = np.zeros(self.shape, bool)
        for b, row in enumerate(completions):
            for g, said in enumerate(row):
                ids = (self.text.answer(said) if isinstance(said, str) else said)[: self.shape[2]]
                tokens[b, g, : len(ids)], mask[b, g, : len(ids)] = ids, True
        return tokens, mask

    def both(self, completions, clips):
        """The rewards of completions [B][G] of ``clips`` from the device and from the host."""
        tokens, mask = self.tokens(completions)
        rows = [*clips, *[None] * (self.shape[0] - len(clips))]
        device = self.score(tokens, mask, references(rows, self.sizes))
        host = host_score(
            tuple(REWARDS),
            self.heard(completions),
            clips,
            self.sizes,
            lengths=mask.sum(-1).tolist(),
            limits=self.limits,
        )
        count = len(completions[0])
        return {name: np.asarray(x)[: len(clips), :count] for name, x in device.items()}, host

    def heard(self, completions):
        """What the tokenizer makes of the completions' first C tokens."""
        tokens, mask = self.tokens(completions)
        known = mask & (tokens < len(self.text.tokenizer))
        return [
            [self.text.decode(tokens[b, g][known[b, g]]) for g in range(len(row))]
            for b, row in enumerate(completions)
        ]


def event_texts():
    return list(itertools.islice(tokenizer_sentences(SPEC), 2000))


def odd_texts():
    """Digits, tags, accents, Chinese, and a few English words."""
    rng = np.random.default_rng(1)
    texts = [f"{a}, {a}, na\u00efve caf\u00e9 \u4e2d\u6587 ---- ==== <answer>" for a in range(200)]
    texts += [noise(rng) for _ in range(500)]
    return [*texts, *STORY.answer.split() * 20]
