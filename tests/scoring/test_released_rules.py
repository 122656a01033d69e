"""10,000 completions as models write them, by our rules and by those of VideoChat-R1 and Video-R1.

At least 99 in 100 are worth the same. The others differ for a reason that docs/rewards.md lists: each has a
pattern here, and a difference without one fails.
"""

import re
from collections import Counter

import numpy as np
import pytest

from tests.scoring import released_rules
from tests.scoring.host_rewards import REWARDS, read
from vpjax.types import Clip

pytestmark = pytest.mark.slow  # a few seconds

COUNT = 10_000
OFF_FORM = 0.02  # share of completions that break the form that the prompts ask for, in each of its parts
CHOICES = ("a man runs away", "the dog jumps over a fence", "nothing happens", "two people are dancing")
BOXES = tuple((0.05 * k, 0.1, 0.05 * k + 0.3, 0.4) for k in range(8))
CAPTION = "A man quickly picks up the falling boxes and carries them outside."
THOUGHTS = (
    "Let me see. The man moves at 12.00 to 13.50, so that is it.",
    "Hmm, A or B? It can be seen that the dog jumps.",
    "First, I look at the object.\nThen I follow it.",
)


def clip_of(task, answer, **fields):
    return Clip("c", "c.mp4", "?", answer, task=task, **fields)


def seconds(rng):
    a, b = sorted(rng.uniform(0, 30, 2))
    if rng.random() < OFF_FORM:
        return f"{a:.2f}s to {b:.2f}s"
    return rng.choice([f"{a:.2f} to {b:.2f}", f"From {a:.1f} to {b:.1f} seconds.", f"{a:.2f} and {b:.2f}"])


def letter_answer(rng):
    letter, choice = "ABCD"[rng.integers(4)], CHOICES[rng.integers(4)]
    common = [letter, f"({letter})", f"{letter}.", f"{letter}. {choice}", f"The answer is {letter}."]
    rare = [f"{letter} or {'ABCD'[rng.integers(4)]}", choice, f"Because of this, {letter}", "I do not know"]
    return rng.choice(rare if rng.random() < OFF_FORM else common)


def glue(rng):
    pairs = [tuple(sorted(np.round(rng.uniform(0, 30, 2), 2).tolist())) for _ in range(rng.integers(1, 4))]
    if rng.random() < OFF_FORM:
        return rng.choice(["[]", f"[{pairs[0][0]}, {pairs[0][1]}]", f"{pairs[0][0]} to {pairs[0][1]}"])
    return str(pairs)


def boxes(rng):
    count = rng.integers(7, 17) if rng.random() < OFF_FORM else 8
    moved = np.round(np.resize(BOXES, (count, 4)) + rng.uniform(0, 0.1, (count, 4)), 2).tolist()
    if rng.random() < OFF_FORM / 2:
        return ", ".join(map(str, moved))
    return str(moved)


def number(rng, reference):
    value = [reference, reference * 1.1, reference + 1][rng.integers(3)]
    if rng.random() < OFF_FORM:
        return rng.choice([f"{value:,}", f"{value:.2f}", f"{value:g} people"])
    return f"{value:g}"


def caption(rng):
    words = CAPTION.split()
    kept = [word for word in words if rng.random() < 0.7] + ["picking", "runs"][: rng.integers(3)]
    return " ".join(kept)


def wrapped(rng, answer, evidence=""):
    """A completion in the form that the prompts ask for, and now and then a broken one."""
    gap = rng.choice(["", "\n", " "])
    text = f"<think>{rng.choice(THOUGHTS)}</think>{gap}<answer>{answer}</answer>"
    if evidence:
        text += f"{gap}<glue>{evidence}</glue>"
    if rng.random() < OFF_FORM:
        return rng.choice([text[: rng.integers(len(text))], text.replace("</think>", "")])
    return text


CASES = {
    "choice": (
        clip_of(
            "choice", "(B) the dog jumps over a fence", choices=CHOICES, spans=((5.0, 9.5), (12.0, 15.0))
        ),
        lambda rng: wrapped(rng, letter_answer(rng), glue(rng)),
        {
            "choice": lambda clip, text: released_rules.videochat_choice(text, clip.answer),
            "evidence_iou": lambda clip, text: released_rules.videochat_evidence(text, clip.spans),
            "format": lambda clip, text: released_rules.videochat_format(text, "choice"),
        },
    ),
    "grounding": (
        clip_of("grounding", "5.20 to 12.80", spans=((5.2, 12.8),)),
        lambda rng: wrapped(rng, seconds(rng)),
        {
            "span_iou": lambda clip, text: released_rules.videochat_span(text, clip.spans[0]),
            "format": lambda clip, text: released_rules.videochat_format(text, "grounding"),
        },
    ),
    "tracking": (
        clip_of("tracking", str(BOXES), boxes=BOXES),
        lambda rng: wrapped(rng, boxes(rng)),
        {
            "box_iou": lambda clip, text: released_rules.videochat_boxes(text, clip.boxes),
            "format": lambda clip, text: released_rules.videochat_format(text, "tracking"),
        },
    ),
    "multiple choice": (
        clip_of("choice", "<answer>C</answer>", choices=CHOICES),
        lambda rng: wrapped(rng, "ABCD"[rng.integers(4)]),
        {
            "choice": lambda clip, text: released_rules.video_r1_accuracy(
                text, clip.answer, "multiple choice"
            ),
            "format": lambda clip, text: released_rules.video_r1_format(text),
        },
    ),
    "numerical": (
        clip_of("numerical", "<answer>1250</answer>"),
        lambda rng: wrapped(rng, number(rng, 1250)),
        {"numerical": lambda clip, text: released_rules.video_r1_accuracy(text, clip.answer, "numerical")},
    ),
    "regression": (
        clip_of("regression", "<answer>3.2</answer>"),
        lambda rng: wrapped(rng, number(rng, 3.2)),
        {"regression": lambda clip, text: released_rules.video_r1_accuracy(text, clip.answer, "regression")},
    ),
    "OCR": (
        clip_of("ocr", "<answer>STOP here, No. 5!</answer>"),
        lambda rng: wrapped(
            rng, rng.choice(["STOP here, No. 5!", "STOP here No. 5", "here", "Stop No. 5 6"])
        ),
        {"ocr": lambda clip, text: released_rules.video_r1_accuracy(text, clip.answer, "OCR")},
    ),
    "free-form": (
        clip_of("caption", f"<answer>{CAPTION}</answer>"),
        lambda rng: wrapped(rng, caption(rng)),
        {"rouge_stems": lambda clip, text: released_rules.video_r1_accuracy(text, clip.answer, "free-form")},
    ),
}
# Why a completion may be worth something else: a name in docs/rewards.md -> the rewards, and whether the
# completion is such.
REASONS = {
    "no closed answer": (
        set(REWARDS),
        lambda text: not text.endswith(("</answer>", "</glue>")) or "</think>" not in text,
    ),
    "hedging": ({"choice"}, lambda text: re.search("<answer>[A-D] or [A-D]<", text)),
    "a capital in a word": ({"choice"}, lambda text: re.search("<answer>(Because|I )", text)),
    "an option's own text": ({"choice"}, lambda text: re.search("<answer>[a-z ]+<", text)),
    "a span with units": ({"span_iou"}, lambda text: re.search(r"<answer>[\d.]+s to", text)),
    "evidence that is no list of pairs": (
        {"evidence_iou", "format"},
        lambda text: "<glue>[(" not in text,
    ),
    "other boxes than eight in a list": (
        {"box_iou"},
        lambda text: text.count("[") != 9 or "<answer>[[" not in text,
    ),
    "a number written otherwise": (
        {"numerical", "regression"},
        lambda text: re.search(r"<answer>(.*[,.].*|.* people)<", text),
    ),
}


def differences():
    """(case, reward, text, ours, theirs) of each completion and reward; and the number of them."""
    rng, found, total = np.random.default_rng(0), [], 0
    for index in range(COUNT):
        case = list(CASES)[index % len(CASES)]
        clip, template, rules = CASES[case]
        text = template(rng)
        inputs = read(text, clip, frozenset(), 0, (), 1, 100)
        for name, rule in rules.items():
            ours, theirs = REWARDS[name][0](inputs), rule(clip, text)
            total += 1
            if abs(ours - theirs) > 1e-6:
                found.append((case, name, text, ours, theirs))
    return found, total


def test_released_rules_agree_but_for_listed_reasons():
    found, total = differences()
    counts = Counter()
    for case, name, text, ours, theirs in found:
        reasons = [reason for reason, (rewards, holds) in REASONS.items() if name in rewards and holds(text)]
        assert reasons, (case, name, text, ours, theirs)
        counts[reasons[0]] += 1
    assert set(counts) == set(REASONS), counts  # each reason occurs
    assert len(found) <= 0.01 * total, (counts, total)
