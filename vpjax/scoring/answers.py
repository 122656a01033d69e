"""Reads answers: the option that one chooses, the seconds, boxes and number that it names.

One grammar (docs/rewards.md), written for the host here. Evaluation reads answers by it; the rewards, which
read bytes on the device, are tested against it.
"""

import re
import string
from collections.abc import Sequence
from typing import NamedTuple

from vpjax.scoring.host_text import WORD, answer_in, evidence_in, in_small_letters, normalize, split_words
from vpjax.scoring.numbers import Box, Span, boxes_in, is_word_character, numbers_in, spans_in

LABEL_WORDS = ("option", "caption", "sentence", "description")
LABEL = re.compile(rf"((?:{'|'.join(LABEL_WORDS)})\s+(\w))\s*:\s*", re.IGNORECASE)
LETTERED = re.compile(r"\(?([A-Z])[.):]\s*")
LETTERS = string.ascii_uppercase
# "The answer is B", "best option: B", "answer: option B".
STATING_WORDS = ("answer", "choice", "option")
BEFORE_LETTER = (*LABEL_WORDS, "choice", "letter")
HEDGING_WORDS = ("or", "and")  # "A or B" is no answer
# "A" before one of these is no article: verbs, conjunctions, prepositions, pronouns, other articles.
AFTER_LETTER = tuple(
    "is was are were be has had does did would will should could seems appears looks makes shows matches "
    "fits describes says best because since as so but and or if while when where which that than then for "
    "from in on at with by to of it he she they we you this these those there the a an its his her their "
    "not".split()
)


class Option(NamedTuple):
    """An option of a question. mark: its letter or, if it is labelled so, its digit; "": it has none. words:
    of its text; (): none that can be told from a mark."""

    mark: str
    words: tuple[str, ...]


def read_choice(text: str, options: Sequence[str]) -> int | None:
    """The index of the one option that an answer chooses; None if it chooses none or several.

    options: their texts, with or without a letter (``B. a cat``) or a label (``Caption B: ...``). Thoughts
    (``<think>``) are not part of the answer.

    >>> read_choice("<think>B? No.</think><answer>A is correct</answer>", ("a dog", "a cat"))
    0
    >>> read_choice("It is a cat.", ("a dog", "a cat"))
    1
    >>> read_choice("A or B", ("a dog", "a cat")) is None
    True
    """
    return choose(answer_in(normalize(text)), read_options(options))


def read_spans(text: str) -> list[Span]:
    """The spans (start, end) in seconds that an answer names, from left to right. The last one is the answer
    to a question about one span.

    >>> read_spans("<think>1 to 2?</think> From 1:05 to 70.5 seconds.")
    [(65.0, 70.5)]
    >>> read_spans("start 12.5, end 17.0")
    [(12.5, 17.0)]
    """
    return spans_in(answer_in(normalize(text)))


def read_evidence(text: str) -> list[Span]:
    """The spans in the ``<glue>`` of an answer, which prove it.

    >>> read_evidence("<answer>C</answer><glue>[(5.2, 10.4), (12, 15)]</glue>")
    [(5.2, 10.4), (12.0, 15.0)]
    """
    return spans_in(evidence_in(normalize(text)))


def read_boxes(text: str) -> list[Box]:
    """The boxes (x0, y0, x1, y1) that an answer names, from left to right; NaN for a number that cannot be
    read.

    >>> read_boxes("[[.1, 0.5, 0.3, 0.55], [0.72, 0.25, 0.84, 0.43]]")
    [(0.1, 0.5, 0.3, 0.55), (0.72, 0.25, 0.84, 0.43)]
    """
    return boxes_in(answer_in(normalize(text)))


def read_number(text: str) -> float | None:
    """The one number that an answer names; None if it names none, or several that differ.

    >>> read_number("<answer>There are 1,250 people.</answer>")
    1250.0
    """
    numbers = numbers_in(answer_in(normalize(text)))
    if not numbers or any(number != numbers[0] for number in numbers):  # NaN differs from itself
        return None
    return numbers[0]


def read_options(options: Sequence[str]) -> list[Option]:
    """The options of a question; one for each letter, without a text, if there are none."""
    if not options:
        return [Option(letter, ()) for letter in LETTERS]
    letters = [*LETTERS, *[""] * len(options)]
    read = []
    for letter, option in zip(letters, options, strict=False):
        label = LABEL.match(option)
        lettered = LETTERED.match(option)
        if label:
            letter, option = label[2].upper(), option[label.end() :]
        elif lettered and lettered[1] == letter:
            option = option[lettered.end() :]
        read.append(Option(letter, tuple(split_words(normalize(option)))))
    marks = {option.mark.lower() for option in read}
    # An option whose text is the letter of an option could not be told from that.
    return [option._replace(words=()) if {"".join(option.words)} <= marks else option for option in read]


def choose(answer: str, options: Sequence[Option]) -> int | None:
    """The index of the option that a normalized answer chooses; None if it chooses none or several."""
    reading = ChoiceReading(answer, options)
    letters = reading.letters
    stated = [place for place in letters if reading.is_stated(place)]
    if stated:
        return None if reading.is_hedged(stated[-1]) else letters[stated[-1]]
    if letters:
        first = next(iter(letters))
        begins = first == 0 or (first == 1 and reading.word(0) in LABEL_WORDS)
        if (begins and not reading.is_hedged(first)) or len(set(letters.values())) == 1:
            return letters[first]
        return None
    named = {option for option, _ in reading.mentions}
    if len(named) == 1:
        return named.pop()
    return reading.leading_option()


class ChoiceReading:
    """What an answer says about options. Places are numbers of words.

    mentions: (option, first word) of each occurrence of an option's text that does not lie in a longer one's.
    letters: place -> option, of each mark of an option that stands alone, from left to right.
    """

    def __init__(self, answer: str, options: Sequence[Option]):
        self.answer, self.options = answer, options
        self.places = list(WORD.finditer(answer))
        self.words = [in_small_letters(match[0]) for match in self.places]
        self.mentions = self._mentions()
        # Of each word that lies in a mention, the first word after that.
        reach: dict[int, int] = {}
        for mentioned, first in self.mentions:
            extent = self._extent(mentioned, first)
            reach |= {place: max(extent.stop, reach.get(place, 0)) for place in extent}
        self.letters: dict[int, int] = {}
        for place in range(len(self.words)):
            option = self._marked_option(place)
            if option is None:
                continue
            # "A. (c)(b)" is no mention of (a)(c), for A's own text goes on beyond that.
            own_stop = self._extent(option, place + 1).stop if self._holds(option, place + 1) else 0
            if place not in reach or own_stop > reach[place]:
                self.letters[place] = option
        # Of each word, how many words that do not link the options of a hedge stand up to it.
        self.ranks: list[int] = []
        for word in self.words:
            links = word in HEDGING_WORDS or word in LABEL_WORDS
            self.ranks.append((self.ranks[-1] if self.ranks else 0) + (not links))

    def word(self, place: int) -> str:
        return self.words[place] if 0 <= place < len(self.words) else ""

    def is_labelled(self, place: int) -> bool:
        return self.word(place - 1) in LABEL_WORDS

    def is_stated(self, place: int) -> bool:
        """Whether an answer states the mark at ``place``: ``the answer is B``."""
        before = place - 1
        if self.word(before) in BEFORE_LETTER and self.word(before - 1) in ("is", "answer"):
            before -= 1
        if self.word(before) == "is":
            return self.word(before - 1) in STATING_WORDS
        return self.word(before) == "answer"

    def is_hedged(self, place: int) -> bool:
        """Whether the mark of another option stands beside that at ``place``: ``A or B``."""
        order = list(self.letters)
        number = order.index(place)
        for other in order[max(number - 1, 0) : number + 2]:
            if self.letters[other] != self.letters[place] and self._are_linked(*sorted((place, other))):
                return True
        return False

    def leading_option(self) -> int | None:
        """The option with whose text the answer begins, unless that of another one follows at once."""
        mentions = sorted(self.mentions, key=lambda mention: mention[1])
        if not mentions or mentions[0][1] > 0 or (len(mentions) > 1 and mentions[1][1] == 0):
            return None
        option, first = mentions[0]
        for other, place in mentions[1:]:
            if other != option and self._are_linked(self._extent(option, first)[-1], place):
                return None
        return option

    def _are_linked(self, place: int, later: int) -> bool:
        """Whether nothing but marks and linking words stands between two words."""
        return self.ranks[later] - self.ranks[place] == 1

    def _extent(self, option: int, first: int) -> range:
        return range(first, first + len(self.options[option].words))

    def _holds(self, option: int, first: int) -> bool:
        words = self.options[option].words
        return bool(words) and tuple(self.words[first : first + len(words)]) == words

    def _mentions(self) -> list[tuple[int, int]]:
        every = [
            (option, first)
            for option in range(len(self.options))
            for first in range(len(self.words))
            if self._holds(option, first)
        ]

        def lies_in(mention: tuple[int, int], other: tuple[int, int]) -> bool:
            inner, outer = self._extent(*mention), self._extent(*other)
            return len(inner) < len(outer) and outer.start <= inner.start and inner.stop <= outer.stop

        return [mention for mention in every if not any(lies_in(mention, other) for other in every)]

    def _marked_option(self, place: int) -> int | None:
        """The option whose mark stands alone at ``place`` and is neither an article nor a pronoun."""
        start, end = self.places[place].span()
        mark = self.answer[start:end]
        labelled = self.is_labelled(place)
        if labelled and mark.isascii():
            mark = mark.upper()
        option = next((i for i, option in enumerate(self.options) if option.mark == mark), None)
        if option is None or self._is_glued(start - 1, start - 2) or self._is_glued(end, end + 1):
            return None
        if labelled or self.is_stated(place) or self._holds(option, place + 1):
            return option
        return None if self._is_article(place, mark) or self._is_pronoun(place, mark) else option

    def _is_glued(self, index: int, beyond: int) -> bool:
        """Whether a mark at ``index`` joins a letter to another word: ``T-shirt``, ``A's``."""
        if not 0 <= min(index, beyond) <= max(index, beyond) < len(self.answer):
            return False
        return self.answer[index] in "'-" and is_word_character(self.answer[beyond])

    def _follows(self, place: int) -> str:
        """The character with which the next word begins, if only a space stands before it; else "" """
        end = self.places[place].end()
        if place + 1 < len(self.places) and self.places[place + 1].start() == end + 1:
            return self.answer[end + 1] if self.answer[end] == " " else ""
        return ""

    def _is_article(self, place: int, mark: str) -> bool:
        following = self._follows(place)
        begins_small = following.isascii() and (following.islower() or following.isdigit())
        return mark == "A" and begins_small and self.words[place + 1] not in AFTER_LETTER

    def _is_pronoun(self, place: int, mark: str) -> bool:
        following = self._follows(place)
        return mark == "I" and following.isascii() and following.islower()


def parse_options(text: str) -> tuple[str, ...]:
    """The texts of the lettered options in ``text``: from ``A.`` to ``B.``, from there to ``C.``, and so on.
    Commas, and letters out of turn, belong to an option."""
    found: list[re.Match[str]] = []
    for match in re.finditer(rf"(?:(?<=^)|(?<=[\s,;])){LETTERED.pattern}", text):
        if match[1] == LETTERS[len(found)]:
            found.append(match)
    ends = [match.start() for match in found[1:]] + [len(text)]
    return tuple(text[m.end() : end].strip(" ,;\n\t") for m, end in zip(found, ends, strict=False))


def without_letter(option: str) -> str:
    """An option without the letter before it."""
    return re.sub(rf"\A{LETTERED.pattern}", "", option.strip())


def final_answer(text: str) -> str:
    """The answer in a text as it is written, without the thinking before it (see ``host_text.answer_in``)."""
    return answer_in(text).strip()
