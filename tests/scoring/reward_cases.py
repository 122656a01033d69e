"""Clips of every task, and the kinds of text that models answer with, for the tests of rewards."""

import itertools
import string

import numpy as np

from vpjax.events.clips import EventSpec, describe, tokenizer_sentences
from vpjax.types import Clip, Keyword

SPEC = EventSpec(caption=2, choice=1, order=1, grounding=1)


def make_clip(answer, task="caption", **fields):
    return Clip("c", "c.mp4", "?", answer, task=task, **fields)


def spanned_keywords(*words):
    """Keywords, given as (text, lemma), with a known span."""
    return tuple(Keyword(text, lemma, ((0.0, 1.0),)) for text, lemma in words)


STORY = make_clip(
    "<think>A ball.</think><answer>A man picks up the red ball, runs away, then falls and drops it.</answer>",
    keywords=spanned_keywords(("picks up", "pick up"), ("runs", "run"), ("falls", "fall"), ("drops", "drop")),
)
TRACK = make_clip("", "tracking", boxes=((0.1, 0.2, 0.5, 0.6), (0.2, 0.2, 0.6, 0.6), (0.25, 0.3, 0.65, 0.7)))
PROOF = make_clip(
    "(C)",
    "choice",
    choices=("a cat", "a dog", "a man", "a car"),
    spans=((5.2, 10.4), (12.0, 15.0), (14.0, 18.5)),
)
# On V~, or where nothing happens: no keyword.
STILL = make_clip("A red square moves left and suddenly stays the same.")
COUNT = make_clip("<answer>12.5</answer>", "numerical")
SIZE = make_clip("1,250", "regression")
SIGN = make_clip("STOP, No. 5!", "ocr")
CHINESE = make_clip("\u4e00\u4e2a\u7537\u4eba\u5728\u8dd1 caf\u00e9 \u041c\u043e\u0441\u043a\u0432\u0430")
LABELS = make_clip("Caption B", "choice", choices=("Caption A: It slows.", "Caption B: It speeds up."))
CLIPS = (
    *(describe(SPEC, "train", index)[0] for index in range(15)),
    COUNT,
    SIZE,
    SIGN,
    CHINESE,
    LABELS,
    STILL,
    STORY,
    TRACK,
    PROOF,
    make_clip("3.5 to 7.25", "grounding", spans=((3.5, 7.25),)),
)


def template_answer(rng, clip):
    """A text that a model may answer a clip with, right or wrong, by templates of all tasks."""
    a, b, c, d = np.round(rng.uniform(0, 20, 4), rng.integers(0, 4))
    letter = rng.choice(list("ABCDEab"))
    box = ", ".join(f"{x:.2f}" for x in rng.uniform(0, 1, 4))
    other = CLIPS[rng.integers(len(CLIPS))]
    boxes = [f"[{x0}, {y0}, {x1}, {y1}]" for x0, y0, x1, y1 in clip.boxes or TRACK.boxes]
    templates = [
        clip.answer,
        other.answer,
        f"{clip.answer} {other.answer}",
        " ".join(rng.permutation((clip.answer + " " + other.answer).split())),
        letter,
        f"({letter})",
        f"{letter}.",
        f"The answer is {letter}.",
        f"{letter}: it",
        f"So {letter} it is",
        f"{letter} or {rng.choice(list('ABCD'))}",
        f"{letter} is right, not {rng.choice(list('ABCD'))}",
        f"I think that A person is falling: {letter}",
        f"Option {letter}",
        f"the best option is {letter} and/or {rng.choice(list('ABC'))}",
        f"'{letter}' A's T-shirt",
        *clip.choices,
        *(f"{letter} {option}" for option in clip.choices),
        *(f"{option} or {clip.choices[0]}" for option in clip.choices),
        f"start {a}, end {b}",
        f"-{a} {b:.0f},{c:.0f} {d:.1f}e-{rng.integers(12)} .{b:.0f} {a:.0f}. to {b:.0f}.",
        f"{a:.0f},{100 + b:.0f} to 1,{100 + c:.0f},500.5",
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
        f"[{', '.join(boxes)}]",
        f"<think>t</think><answer>[{', '.join(boxes)}]</answer>",
        f"<think>t</think><answer>{letter}</answer><glue>[({a}, {b}), ({c}, {d})]</glue>",
        f"<think>t</think><answer>{letter}</answer>",
        f"Frame 1: ({box}) Frame 2: [ {box} ] [{box}, 1] [1.2.3, {box}]",
        "the the the the the ball ball ball the ball",
    ]
    if rng.random() < 0.5:  # a text that suits the task
        if clip.boxes:
            templates = templates[-8:]
        elif clip.task in ("numerical", "regression"):
            templates = [clip.answer, "1250.0", "12.50", f"{a}", f"-{a}", f"{a} or {b}", "1,300 m", "1.25e3"]
        elif clip.task == "ocr":
            templates = ["STOP, No. 5!", "Stop No. 5", "STOP, No. 5! No. 5", "STOP,", other.answer]
        elif len(clip.keywords) > 1:
            templates = templates[:4]
    text = templates[rng.integers(len(templates))]
    wrap = rng.integers(6)
    if wrap == 0:
        return f"<think>{other.answer}</think> <answer>{text}</answer>"
    if wrap == 1:  # cut anywhere
        return f"<think>{other.answer}" + f"</think>\n<answer>{text}"[: rng.integers(30)]
    return text


def garbled(rng, text):
    """``text`` with a few of its characters removed, doubled, swapped or replaced."""
    characters = list(text)
    for _ in range(rng.integers(1, 6)):
        place = rng.integers(len(characters) + 1)
        characters[place : place + rng.integers(3)] = rng.choice(list(NOISE), rng.integers(3))
    return "".join(characters)


PIECES = [f"<{slash}{tag}>" for tag in ("think", "answer", "glue") for slash in ("", "/")]
PIECES += [
    " to ",
    " and ",
    "1:05",
    "A",
    "B",
    "s",
    "\n\n  ",
    " or ",
    "answer is ",
    "option ",
    "e-",
    ".5",
    "1,000",
    "[[",
    "]]",
]
NOISE = (
    string.digits
    + "..::,,--[]()<>/  \tABab sto"
    + "\u2013\u2014\u2212\u00e9\u0416\u4e2d\uff11\uff0c\uff21\U00020000\U0001f600\u212a\u0130\u00a0\u00b2\x00"
)


def noise(rng):
    return "".join(rng.choice([*NOISE, *PIECES], rng.integers(0, 40)))


def event_texts():
    return list(itertools.islice(tokenizer_sentences(SPEC), 2000))


def odd_texts():
    """Digits, tags, accents, Chinese, and a few English words."""
    rng = np.random.default_rng(1)
    texts = [f"{a}, {a}, na\u00efve caf\u00e9 \u4e2d\u6587 ---- ==== <answer>" for a in range(200)]
    texts += [noise(rng) for _ in range(500)]
    return [*texts, *STORY.answer.split() * 20]
