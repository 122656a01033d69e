"""The rewards once more, on the host: regular expressions over decoded text, float64, no JAX.

An independent implementation, with which the rewards on the device are compared.
"""

import collections
import re
from typing import NamedTuple

import numpy as np

from vpjax.scoring.forms import forms_of
from vpjax.scoring.host_text import answer_in, normalize, option_index, split_words
from vpjax.scoring.keywords import first_mention
from vpjax.scoring.references import STOPWORDS, answer_words, expected_keywords, right_option
from vpjax.types import Clip

FORMAT = re.compile(rb" *<think>(.*)</think> *<answer>(.*)</answer> *(?:<glue>(.*)</glue> *)?", re.DOTALL)

NUMBER = r"(\d+(?:[.:]\d+)*)"
UNIT = r"(?:s|sec|secs|second|seconds)(?![a-z])"
JOIN = r"(?:(?:to|and|until|till)(?![a-z])|[-,])"
SPAN = re.compile(rf"{NUMBER} *(?:{UNIT} *)?{JOIN} *{NUMBER}".encode(), re.IGNORECASE)
BOX = re.compile(rf"[\[(] *{NUMBER} *, *{NUMBER} *, *{NUMBER} *, *{NUMBER} *[\])]".encode())
PART = r"(\d{1,6})"
VALUE = re.compile(rf"(?:(?:{PART}:)?{PART}:)?{PART}(?:\.(\d+))?".encode())


class HostInputs(NamedTuple):
    """One completion and its clip. length, limit: in tokens. positions, expected, hidden: of the keywords
    that the reference answer mentions; hidden: V~ lacks them. unexpected: words of other known keywords."""

    text: bytes
    answer: bytes
    evidence: bytes
    words: list
    length: int
    limit: int
    clip: Clip
    reference: list
    expected: list
    positions: list
    hidden: list
    unexpected: set


def host_rewards(names, completions, clips, known, *, keywords, hidden, lengths, limit):
    """The rewards f32[B, G] by name of decoded completions [B][G]. hidden bool[B, J]. lengths [B][G]: in
    tokens; known: the words that are known as keywords."""
    out = {name: np.full((len(clips), len(completions[0])), np.nan, np.float32) for name in names}
    for b, g in np.ndindex(len(clips), len(completions[0])):
        if clips[b] is not None:
            inputs = read(completions[b][g], clips[b], known, keywords, hidden[b], lengths[b][g], limit)
            for name in names:
                compute, counts = REWARDS[name]
                if counts(clips[b]):
                    out[name][b, g] = compute(inputs)
    return out


def read(completion, clip, known, keywords, hidden, length, limit):
    text = normalize(completion)
    answer = answer_in(text)
    _, found, rest = text.rpartition(b"<glue>")
    words, reference = split_words(answer), answer_words(clip)
    found_keywords = list(zip(expected_keywords(clip, keywords), hidden, strict=True))
    expected = [keyword for keyword, _ in found_keywords if keyword]
    own = {word for keyword in clip.keywords for form in forms_of(keyword) for word in form}
    return HostInputs(
        text=text,
        answer=answer,
        evidence=rest.partition(b"</glue>")[0] if found else answer,
        words=words,
        length=length,
        limit=limit,
        clip=clip,
        reference=reference,
        expected=expected,
        positions=[first_mention(words, keyword.forms) for keyword in expected],
        hidden=[is_hidden for keyword, is_hidden in found_keywords if keyword],
        unexpected=set(words) & known - own - set(reference),
    )


def rouge_l(x):
    row = [0] * (len(x.reference) + 1)
    for word in x.words:
        above = list(row)
        for j, other in enumerate(x.reference):
            row[j + 1] = above[j] + 1 if word == other else max(above[j + 1], row[j])
    return f1(row[-1], len(x.words), len(x.reference))


def rouge_n(x, n):
    candidate, reference = (
        collections.Counter(ngrams(x.words, n)),
        collections.Counter(ngrams(x.reference, n)),
    )
    return f1((candidate & reference).total(), candidate.total(), reference.total())


def ngrams(words, n):
    return [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]


def f1(both, candidate, reference):
    return 2 * both / max(candidate + reference, 1)


def caption_recall(x):
    content = [word for word in x.reference if word not in STOPWORDS]
    both = collections.Counter(x.words) & collections.Counter(content)
    return both.total() / len(content) if content else np.nan


def keyword_recall(x):
    return recall(x.positions)


def keyword_removed(x):
    return recall(hidden_positions(x))


def keyword_absent(x):
    positions = hidden_positions(x)
    return float(all(position is None for position in positions)) if positions else np.nan


def hidden_positions(x):
    return [position for position, is_hidden in zip(x.positions, x.hidden, strict=True) if is_hidden]


def recall(positions):
    return sum(position is not None for position in positions) / len(positions) if positions else np.nan


def keyword_f1(x):
    mentioned = sum(position is not None for position in x.positions)
    false = len(x.unexpected) + len(x.expected) - mentioned
    return 2 * mentioned / (2 * mentioned + false) if x.expected else np.nan


def keyword_order(x):
    right = []
    for a, first in enumerate(x.expected):
        for b, second in enumerate(x.expected):
            if first.position < second.position:
                mentioned = x.positions[a] is not None and x.positions[b] is not None
                right.append(mentioned and x.positions[a] < x.positions[b])
    return np.mean(right) if right else np.nan


def event(x):
    if not x.expected and not (is_text(x.clip) and not x.clip.keywords):
        return np.nan
    return float(None not in x.positions and not x.unexpected)


def choice(x):
    choices = len(x.clip.choices) or 26
    return float(option_index(x.answer, choices) == right_option(x.clip, choices))


def spans_in(text):
    return [(value(a), value(b)) for a, b in SPAN.findall(text)]


def value(number):
    match = VALUE.fullmatch(number)
    if not match:
        return np.nan
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3])
    fraction = (match[4] or b"0")[:6]
    return 3600 * hours + 60 * minutes + seconds + int(fraction) / 10 ** len(fraction)


def span_iou(candidate, reference):
    candidate, reference = merged(candidate), merged(reference)
    both = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in candidate for b in reference)
    either = sum(end - start for start, end in candidate + reference) - both
    return both / either if either else 0.0


def merged(spans):
    out = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if out and start <= out[-1][1]:
            out[-1][1] = max(out[-1][1], end)
        else:
            out.append([start, end])
    return out


def box_iou(x):
    candidate, reference = [[value(part) for part in box] for box in BOX.findall(x.answer)], x.clip.boxes
    total = 0.0
    for a, b in zip(candidate, reference, strict=False):
        if np.isfinite(a).all():
            width, height = (max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
            areas = [max(0.0, x1 - x0) * max(0.0, y1 - y0) for x0, y0, x1, y1 in (a, b)]
            either = sum(areas) - width * height
            total += width * height / either if either else 0.0
    return total / max(len(candidate), len(reference), 1)


def format_reward(x):
    match = FORMAT.fullmatch(x.text)
    parts = [part for part in match.groups() if part is not None] if match else [b""]
    tags = re.findall(rb"</?(?:think|answer|glue)>", x.text)
    return float(all(part.strip() for part in parts) and len(tags) == 2 * len(parts))


def repetition(x):
    grams = ngrams(split_words(x.text), 3)
    return len(set(grams)) / len(grams) - 1 if grams else 0.0


def overlong(x):
    margin = x.limit // 5
    beyond = x.length - (x.limit - margin)
    return -min(max(beyond, 0), margin) / margin


def always(clip):
    return True


def is_text(clip):
    return clip.task in ("caption", "order")


# By name: the reward, and whether it counts for a clip.
REWARDS = {
    "rouge_l": (rouge_l, is_text),
    "rouge_1": (lambda x: rouge_n(x, 1), is_text),
    "rouge_2": (lambda x: rouge_n(x, 2), is_text),
    "caption_recall": (caption_recall, is_text),
    "keyword_recall": (keyword_recall, always),
    "keyword_removed": (keyword_removed, always),
    "keyword_absent": (keyword_absent, always),
    "keyword_f1": (keyword_f1, always),
    "keyword_order": (keyword_order, always),
    "event": (event, always),
    "choice": (choice, lambda clip: clip.task == "choice"),
    "span_iou": (lambda x: span_iou(spans_in(x.answer)[-1:], x.clip.spans), lambda c: c.task == "grounding"),
    "evidence_iou": (
        lambda x: span_iou(spans_in(x.evidence), x.clip.spans),
        lambda clip: clip.task == "choice" and bool(clip.spans),
    ),
    "box_iou": (box_iou, lambda clip: clip.task == "tracking"),
    "format": (format_reward, always),
    "repetition": (repetition, always),
    "overlong": (overlong, always),
}
