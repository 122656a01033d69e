"""The grammar of the event clips: from an event to a question and answer, and from an answer to the event."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

# Two phrases for each event, and the words by which an answer names it. No word belongs to two events, and
# none occurs anywhere else in an answer.
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
# The same for what a shape shows in fine lines (``events.long``).
HATCHED = {
    "plain": ("turns plain", "is left plain"),
    "rows": ("shows rows", "has rows"),
    "columns": ("shows columns", "has columns"),
    "checks": ("shows checks", "has checks"),
}
FAMILIES = (PHRASES, HATCHED)  # a question is about kinds of one of them
EVENT_WORDS = {
    "flash": "flash flashes flashed flashing blink blinks blinked blinking",
    "jump": "jump jumps jumped jumping hop hops hopped hopping",
    "flip": "flip flips flipped flipping change changes changed changing",
    "shrink": "shrink shrinks shrank shrunk shrinking smaller",
    "grow": "grow grows grew grown growing bigger larger",
    "vanish": "vanish vanishes vanished vanishing disappear disappears disappeared disappearing",
    "split": "split splits splitting break breaks broke broken breaking",
    "spin": "spin spins spun spinning rotate rotates rotated rotating",
    "plain": "plain",
    "rows": "row rows",
    "columns": "column columns",
    "checks": "check checks",
}
# The two phrases that stand in the event's place where no event is seen. They hold no word of EVENT_WORDS.
NOTHING = ("stays the same", "does nothing")
KIND_OF_WORD = {word: kind for kind, words in EVENT_WORDS.items() for word in words.split()}

EVENT_TASKS = ("caption", "choice", "order", "grounding", "tracking", "grounded")
QUESTIONS = ("Describe the video.", "What happens in the video?", "What does the shape do?")
# A caption, and which of the two phrases of PHRASES, or of NOTHING, stands in the event's place. The words
# before it already determine which, so that a model that saw the event has exactly one correct continuation.
CAPTIONS = (
    ("A {colour} {shape} moves {direction} and suddenly {event}.", 0),
    ("The {colour} {shape} drifts {direction} and {event} for a moment.", 0),
    ("Moving {direction}, a {colour} {shape} briefly {event}.", 1),
    ("While it drifts {direction}, the {colour} {shape} {event}.", 1),
)
# A caption of several sentences goes on with the first of these. They hold no word of EVENT_WORDS, no PHRASES
# and none of NOTHING, and are the same whatever the event.
DETAILS = (
    "This happens in {half} half of the clip.",
    "At the start the {shape} is in the {start} quarter of the picture, at the end in the {end} quarter.",
    "{light}",
    "The picture is {outline} and the clip lasts about {seconds} s.",
    "A {shape} has {corners} corners, and this one is {colour} on a {background} background.",
)
# Long clips: captions that a few of their seconds bear out, whichever these are, in the words of CAPTIONS.
LONG_CAPTIONS = (
    ("A {colour} {shape} suddenly {event}.", 0),
    ("The {colour} {shape} {event} for a moment.", 0),
    ("The {colour} {shape} briefly {event}.", 1),
)
CORNERS = {"square": "four", "triangle": "three", "cross": "twelve"}
LONGER_QUESTION = "{question} Use {sentences} sentences."
CHOICE_QUESTION = "What does the shape do?"
OPTION_LETTERS = "ABCD"
ORDER_QUESTION = "Which comes first: it {} or it {}?"
ORDER_ANSWER = "First it {event}."
GROUNDING_QUESTION = "When is it that the {shape} {event}?"
GROUNDING_ANSWER = "From {:.2f} to {:.2f} seconds."
TRACKING_QUESTION = "Track the {colour} {shape}, which begins at {box}: give its box at {moments} moments."
# Answered in an option's own words: a small model learns them long before it learns to look up letters.
GROUNDED_QUESTION = "Which of these does the shape do, and when: {}?"
EVIDENCE = "<glue>[({:.2f}, {:.2f})]</glue>"
# The answers of the last three tasks with ``EventSpec.tags``, in VideoChat-R1's form, and their thoughts.
TAGGED = "<think>{thought}</think> <answer>{answer}</answer>"
EVENT_THOUGHT = "It {event}."
TRACKING_THOUGHT = "It moves {direction}."


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """A question with its options, if any, its answer, and the phrases that name the events in them.
    degraded_answer: the caption if the event is not seen; "" for other tasks."""

    question: str
    answer: str
    phrases: tuple[str, ...]
    choices: tuple[str, ...] = ()
    degraded_answer: str = ""


def make_dialogue(
    task: str,
    kinds: Sequence[str],
    spans: Sequence[tuple[float, float]],
    words: Mapping[str, str],
    details: int,
    rng: np.random.Generator,
    *,
    boxes: Sequence[Sequence[float]] = (),
    tags: bool = False,
) -> Dialogue:
    """A question about the event ``kinds[0]``, which happens in ``spans[0]``, or about the way of the shape,
    and its answer.

    kinds: that event and another one: the second event of an order clip, else a wrong option. The question of
    a choice or an order is the same for both orders of the two. words: the shape, its colour and direction,
    and what DETAILS name. details: number of a caption's further sentences. boxes: where the shape is at the
    moments that a tracking asks for. tags: see ``EventSpec``.
    """
    phrase_of = {kind: phrases[0] for kind, phrases in family_of(kinds[0]).items()}
    phrase = phrase_of[kinds[0]]
    match task:
        case "choice":
            choices = _choices(phrase_of, kinds, rng)
            lettered = [f"({OPTION_LETTERS[i]}) {choice}" for i, choice in enumerate(choices)]
            question = " ".join([CHOICE_QUESTION, *lettered])
            return Dialogue(question, lettered[choices.index(phrase)], (phrase,), choices)
        case "grounded":
            choices = _choices(phrase_of, kinds, rng)
            answer = _answer(phrase, EVENT_THOUGHT.format(event=phrase), tags)
            evidence = EVIDENCE.format(*spans[0])
            question = GROUNDED_QUESTION.format(", ".join(choices))
            return Dialogue(question, f"{answer} {evidence}", (phrase,), choices)
        case "order":
            question = ORDER_QUESTION.format(*(phrase_of[kind] for kind in rng.permutation(sorted(kinds))))
            return Dialogue(question, ORDER_ANSWER.format(event=phrase), tuple(phrase_of[k] for k in kinds))
        case "grounding":
            question = GROUNDING_QUESTION.format(event=phrase, **words)
            answer = GROUNDING_ANSWER.format(*spans[0])
            return Dialogue(question, _answer(answer, EVENT_THOUGHT.format(event=phrase), tags), (phrase,))
        case "tracking":
            written = [_box(box) for box in boxes]
            question = TRACKING_QUESTION.format(box=written[0], moments=len(boxes), **words)
            thought = TRACKING_THOUGHT.format(**words)
            return Dialogue(question, _answer(f"[{','.join(written)}]", thought, tags), ())
    pattern, phrase_index = CAPTIONS[rng.integers(len(CAPTIONS))]
    phrase = PHRASES[kinds[0]][phrase_index]
    question = QUESTIONS[rng.integers(len(QUESTIONS))]
    if details:
        question = LONGER_QUESTION.format(question=question, sentences=details + 1)
    answer = _caption(pattern, phrase, words, details)
    nothing = _caption(pattern, NOTHING[phrase_index], {**words, "half": "neither"}, details)
    return Dialogue(question, answer, (phrase,), degraded_answer=nothing)


def long_dialogue(
    task: str,
    kinds: Sequence[str],
    span: tuple[float, float],
    words: Mapping[str, str],
    rng: np.random.Generator,
) -> Dialogue:
    """``make_dialogue`` about a long clip. Its captions say nothing about the way of the shape."""
    if task != "caption":
        return make_dialogue(task, kinds, [span], words, 0, rng)
    pattern, phrase_index = LONG_CAPTIONS[rng.integers(len(LONG_CAPTIONS))]
    phrase = family_of(kinds[0])[kinds[0]][phrase_index]
    question = QUESTIONS[rng.integers(1, len(QUESTIONS))]  # a description would be of more than the event
    nothing = _caption(pattern, NOTHING[phrase_index], words, 0)
    return Dialogue(question, _caption(pattern, phrase, words, 0), (phrase,), degraded_answer=nothing)


def family_of(kind: str) -> Mapping[str, tuple[str, str]]:
    """The phrases of the kinds of events among which a kind is one."""
    return next(family for family in FAMILIES if kind in family)


def _choices(phrase_of: Mapping[str, str], kinds: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    """The options of a choice in random order: both of ``kinds``, and others of their family."""
    rest = [kind for kind in phrase_of if kind not in kinds]
    wrong = rng.choice(rest, len(OPTION_LETTERS) - 2, replace=False)
    return tuple(phrase_of[kind] for kind in rng.permutation([*sorted(kinds), *wrong]))


def _answer(answer: str, thought: str, tags: bool) -> str:
    return TAGGED.format(thought=thought, answer=answer) if tags else answer


def _box(box: Sequence[float]) -> str:
    """A box in hundredths, without spaces, which would be a fifth of its tokens."""
    return f"[{','.join(f'{x:.2f}' for x in box)}]"


def _caption(pattern: str, phrase: str, words: Mapping[str, str], details: int) -> str:
    sentence = pattern.format(event=phrase, **words)
    sentence = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)  # an orange cross
    corners = CORNERS[words["shape"]]
    return " ".join([sentence, *(detail.format(corners=corners, **words) for detail in DETAILS[:details])])


def events_named(text: str) -> tuple[str, ...]:
    """The kinds of events that ``text`` names by any of their words, in the order of EVENT_WORDS."""
    kinds = {KIND_OF_WORD.get(word) for word in re.findall(r"[a-z]+", text.lower())}
    return tuple(kind for kind in EVENT_WORDS if kind in kinds)


def event_of(text: str) -> str | None:
    """The kind of event that ``text`` names by any of its words; None if it names none or several."""
    kinds = events_named(text)
    return kinds[0] if len(kinds) == 1 else None


def says_nothing_happens(text: str) -> bool:
    """Whether ``text`` holds one of NOTHING."""
    return any(phrase in text.lower() for phrase in NOTHING)


def caption_variants(caption: str) -> tuple[str, ...]:
    """A caption of one event, rewritten for each event of its family in order; one of them is the caption.

    ValueError if the caption contains no phrase of FAMILIES."""
    for family in FAMILIES:
        for phrases in family.values():
            for i, phrase in enumerate(phrases):
                if phrase in caption:
                    return tuple(caption.replace(phrase, variant[i]) for variant in family.values())
    raise ValueError(f"no event of the grammar in {caption!r}")
