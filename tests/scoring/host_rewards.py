"""The rewards once more, on the host: what evaluation reads and compares, over decoded text, without JAX.

An independent implementation, with which the rewards on the device are compared.
"""

import re
from typing import NamedTuple

import numpy as np

from vpjax.scoring.answers import choose, read_options
from vpjax.scoring.comparisons import (
    best_iou,
    box_iou,
    closeness,
    rouge_l,
    rouge_n,
    same_number,
    span_iou,
    word_accuracy,
)
from vpjax.scoring.forms import forms_of
from vpjax.scoring.host_text import CHUNK, STOPWORDS, answer_in, evidence_in, normalize, split_words
from vpjax.scoring.keywords import first_mention
from vpjax.scoring.numbers import boxes_in, numbers_in, spans_in
from vpjax.scoring.references import answer_words, expected_keywords, right_option
from vpjax.scoring.stems import stem_of
from vpjax.types import Clip

TAGGED = r" *<think>(.*)</think> *<answer>(.*)</answer> *"
EVIDENCE = r"<glue>(.*)</glue> *"
MARKS = re.compile(r"[^0-9.+eE -]")


class HostInputs(NamedTuple):
    """One completion and its clip. length, limit: in tokens. positions, expected, hidden: of the keywords
    that the reference answer mentions; hidden: V~ lacks them. unexpected: words of other known keywords."""

    text: str
    answer: str
    evidence: str
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
    words, reference = split_words(answer), answer_words(clip)
    found_keywords = list(zip(expected_keywords(clip, keywords), hidden, strict=True))
    expected = [keyword for keyword, _ in found_keywords if keyword]
    own = {word for keyword in clip.keywords for form in forms_of(keyword) for word in form}
    return HostInputs(
        text=text,
        answer=answer,
        evidence=evidence_in(text),
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


def rouge_stems(x):
    stems, reference = (list(map(stem_of, words)) for words in (x.words, x.reference))
    return np.mean([rouge_n(stems, reference, 1), rouge_n(stems, reference, 2), rouge_l(stems, reference)])


def caption_recall(x):
    content = [word for word in x.reference if word not in STOPWORDS]
    found = sum(min(x.words.count(word), content.count(word)) for word in set(content))
    return found / len(content) if content else np.nan


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
    return float(choose(x.answer, read_options(x.clip.choices)) == right_option(x.clip))


def grounding(x):
    spans = spans_in(x.answer)
    return best_iou(spans[-1], x.clip.spans) if spans else 0.0


def number(text):
    """The one number of a text."""
    numbers = numbers_in(text)
    return numbers[0] if numbers and set(numbers) == {numbers[0]} and numbers[0] == numbers[0] else None


def ocr(x):
    return word_accuracy(*(CHUNK.findall(text) for text in (x.answer, answer_in(normalize(x.clip.answer)))))


def format_reward(x):
    """A pattern for each task."""
    grounded = x.clip.task == "choice" and bool(x.clip.spans)
    match = re.fullmatch(TAGGED + EVIDENCE if grounded else TAGGED, x.text)
    if not match or not all(part.strip() for part in match.groups()):
        return 0.0
    if len(re.findall(r"</?(?:think|answer|glue)>", x.text)) != 2 * len(match.groups()):
        return 0.0
    if grounded:
        return float(is_list(match[3], "[,]", len(spans_in(match[3]))))
    if x.clip.task == "tracking":
        boxes = len(boxes_in(match[2]))
        return float(boxes == len(x.clip.boxes) and is_list(match[2], "[,,,]", boxes))
    return 1.0


def is_list(text, entry, count):
    marks = "".join(MARKS.findall(text)).replace("(", "[").replace(")", "]")
    return count > 0 and marks == f"[{','.join([entry] * count)}]"


def ngrams(words, n):
    return [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]


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
    "rouge_l": (lambda x: rouge_l(x.words, x.reference), is_text),
    "rouge_1": (lambda x: rouge_n(x.words, x.reference, 1), is_text),
    "rouge_2": (lambda x: rouge_n(x.words, x.reference, 2), is_text),
    "rouge_stems": (rouge_stems, is_text),
    "caption_recall": (caption_recall, is_text),
    "keyword_recall": (keyword_recall, always),
    "keyword_removed": (keyword_removed, always),
    "keyword_absent": (keyword_absent, always),
    "keyword_f1": (keyword_f1, always),
    "keyword_order": (keyword_order, always),
    "event": (event, always),
    "choice": (choice, lambda clip: clip.task == "choice"),
    "span_iou": (grounding, lambda clip: clip.task == "grounding"),
    "evidence_iou": (
        lambda x: span_iou(spans_in(x.evidence), x.clip.spans),
        lambda clip: clip.task == "choice" and bool(clip.spans),
    ),
    "box_iou": (lambda x: box_iou(boxes_in(x.answer), x.clip.boxes), lambda clip: clip.task == "tracking"),
    "numerical": (
        lambda x: float(same_number(number(x.answer), number(answer_in(normalize(x.clip.answer))))),
        lambda clip: clip.task == "numerical",
    ),
    "regression": (
        lambda x: closeness(number(x.answer), number(answer_in(normalize(x.clip.answer)))),
        lambda clip: clip.task == "regression",
    ),
    "ocr": (ocr, lambda clip: clip.task == "ocr"),
    "format": (format_reward, always),
    "repetition": (repetition, always),
    "overlong": (overlong, always),
}
