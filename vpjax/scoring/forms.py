"""The forms of a keyword by which an answer may mention it: its text, its lemma and their inflections."""

import re
from pathlib import Path

from vpjax.events.text import EVENT_WORDS
from vpjax.scoring.host_text import normalize, split_words
from vpjax.types import Keyword

Form = tuple[str, ...]  # the words of one form of a keyword


# Irregular pasts, and participles if they differ, of verbs for events in videos.
_LINES = Path(__file__).with_name("irregular_verbs.txt").read_text().splitlines()
IRREGULAR_VERBS = {verb: pasts for verb, *pasts in (line.split() for line in _LINES)}


def forms_of(keyword: Keyword) -> frozenset[Form]:
    """All forms of a keyword: its text; its lemma with the first word inflected; for a lemma of several words
    (``take sip``), its text with the first word inflected too (``took a sip``); for an event of the built-in
    clips, all of its synonyms."""
    text = tuple(split_words(normalize(keyword.text)))
    lemma = tuple(split_words(normalize(keyword.lemma)))
    forms = {text} | {(word,) for word in EVENT_WORDS.get(keyword.lemma, "").split()}
    if lemma:
        heads = inflections(lemma[0])
        forms |= {(head, *lemma[1:]) for head in heads}
        if len(lemma) > 1 and text and text[0] in heads:
            forms |= {(head, *text[1:]) for head in heads}
    return frozenset(forms - {()})


def inflections(word: str) -> set[str]:
    """The forms of an English verb or noun by the regular rules, and irregular pasts. If the spelling does
    not show whether a letter doubles (``admitted``, but ``opened``), both forms are included: one of them is
    no word. In a single syllable it does (``hopped``): ``hoped`` is of another word.
    """
    plural, past, running = {word + "s"}, {word + "ed"}, {word + "ing"}
    if re.search(r"([sxzo]|[cs]h)$", word):
        plural = {word + "es"}
    if re.search(r"[^aeiou]y$", word):
        plural, past = {word[:-1] + "ies"}, {word[:-1] + "ied"}
    elif word.endswith("ie"):
        past, running = {word + "d"}, {word[:-2] + "ying"}
    elif word.endswith("e"):
        stem = word if word.endswith(("ee", "oe", "ye")) else word[:-1]
        past, running = {word + "d"}, {stem + "ing"}
    elif re.search(r"([^aeiou]|qu)[aeiou][^aeiouwxy]$", word):
        doubled = {word + word[-1] + "ed"}, {word + word[-1] + "ing"}
        if len(re.findall(r"[aeiouy]+", word.replace("qu", "q"))) == 1:
            past, running = doubled
        else:
            past, running = past | doubled[0], running | doubled[1]
    return {word, *plural, *past, *running, *IRREGULAR_VERBS.get(word, ())}
