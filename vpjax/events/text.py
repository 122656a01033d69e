"""The grammar of the event clips: event -> question and answer, and answer -> event."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

# Two ways to say each event, and the words by which an answer is known to name it. No word belongs to two
# events, and none stands anywhere else in an answer.
PHRASES = {
    "flash": ("flashes", "blinks white"),
    "jump": ("jumps aside", "hops sideways"),
    "flip": ("flips its colour", "changes colour"),
    "shrink": ("shrinks", "gets smaller"),
    "grow": ("grows", "gets bigger"),
    "vanish": ("vanishes", "disappears"),
    "split": ("splits in two", "breaks apart"),
    "spin": ("spins", "rotates"),
}
EVENT_WORDS = {
    "flash": "flash flashes flashed flashing blink blinks blinked blinking",
    "jump": "jump jumps jumped jumping hop hops hopped hopping",
    "flip": "flip flips flipped flipping change changes changed changing",
    "shrink": "shrink shrinks shrank shrunk shrinking smaller",
    "grow": "grow grows grew grown growing bigger larger",
    "vanish": "vanish vanishes vanished vanishing disappear disappears disappeared disappearing",
    "split": "split splits splitting break breaks broke broken breaking",
    "spin": "spin spins spun spinning rotate rotates rotated rotating",
}
KIND_OF_WORD = {word: kind for kind, words in EVENT_WORDS.items() for word in words.split()}

EVENT_TASKS = ("caption", "choice", "order", "grounding")
QUESTIONS = ("Describe the video.", "What happens in the video?", "What does the shape do?")
# A caption and the way in which it says the event. Its first words already tell which, so that a model that
# saw the event has one right word for it.
CAPTIONS = (
    ("A {colour} {shape} moves {direction} and suddenly {event}.", 0),
    ("The {colour} {shape} drifts {direction} and {event} for a moment.", 0),
    ("Moving {direction}, a {colour} {shape} briefly {event}.", 1),
    ("While it drifts {direction}, the {colour} {shape} {event}.", 1),
)
CHOICE_QUESTION = "What does the shape do?"
OPTION_LETTERS = "ABCD"
ORDER_QUESTION = "Which comes first: it {} or it {}?"
ORDER_ANSWER = "First it {event}."
GROUNDING_QUESTION = "When is it that the {shape} {event}?"
GROUNDING_ANSWER = "From {:.2f} to {:.2f} seconds."


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """A question with its options, if it has any, its answer, and how the two say each event."""

    question: str
    answer: str
    phrases: tuple[str, ...]
    choices: tuple[str, ...] = ()


def make_dialogue(
    task: str,
    kinds: Sequence[str],
    spans: Sequence[tuple[float, float]],
    words: Mapping[str, str],
    rng: np.random.Generator,
) -> Dialogue:
    """Ask about the event ``kinds[0]``, which is seen in ``spans[0]``.

    kinds: that event and another one: the second event of an order clip, else a wrong option. The question of
    a choice or an order is the same for both orders of the two. words: the shape, its colour and direction.
    """
    kind, (first, second) = kinds[0], sorted(kinds)
    said = {kind: phrases[0] for kind, phrases in PHRASES.items()}
    match task:
        case "choice":
            rest = [other for other in PHRASES if other not in kinds]
            options = rng.permutation([first, second, *rng.choice(rest, len(OPTION_LETTERS) - 2, replace=False)])
            lettered = {k: f"({letter}) {said[k]}" for letter, k in zip(OPTION_LETTERS, options, strict=True)}
            choices = tuple(said[option] for option in options)
            return Dialogue(" ".join([CHOICE_QUESTION, *lettered.values()]), lettered[kind], (said[kind],), choices)
        case "order":
            question = ORDER_QUESTION.format(*(said[k] for k in rng.permutation([first, second])))
            return Dialogue(question, ORDER_ANSWER.format(event=said[kind]), tuple(said[k] for k in kinds))
        case "grounding":
            question = GROUNDING_QUESTION.format(event=said[kind], **words)
            return Dialogue(question, GROUNDING_ANSWER.format(*spans[0]), (said[kind],))
    pattern, way = CAPTIONS[rng.integers(len(CAPTIONS))]
    phrase = PHRASES[kind][way]
    question = QUESTIONS[rng.integers(len(QUESTIONS))]
    return Dialogue(question, pattern.format(event=phrase, **words), (phrase,))


def event_of(text: str) -> str | None:
    """The one kind of event that ``text`` names by any of its words; None where it names none or several."""
    kinds = {KIND_OF_WORD[word] for word in re.findall(r"[a-z]+", text.lower()) if word in KIND_OF_WORD}
    return kinds.pop() if len(kinds) == 1 else None


def caption_variants(caption: str) -> tuple[str, ...]:
    """A caption of one event as it would be of each event, in the order of PHRASES and said in the same way;
    itself one of them. ValueError where it says no event as ``make_dialogue`` does."""
    for phrases in PHRASES.values():
        for way, phrase in enumerate(phrases):
            if phrase in caption:
                return tuple(caption.replace(phrase, others[way]) for others in PHRASES.values())
    raise ValueError(f"no event of the grammar in {caption!r}")
