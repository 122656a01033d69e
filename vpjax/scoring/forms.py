"""The words by which an answer is known to say a keyword: its text, its lemma and their inflections."""

from __future__ import annotations

import re

from vpjax.events.text import EVENT_WORDS
from vpjax.scoring.texts import host_ascii
from vpjax.scoring.words import host_words_of
from vpjax.types import Keyword

Form = tuple[bytes, ...]  # words

# Pasts, and participles where they differ, of verbs of what happens in videos, where no rule gives them.
IRREGULAR = """
be was been, beat beaten, become became, begin began begun, bend bent, bite bit bitten, blow blew blown,
break broke broken, bring brought, build built, burn burnt, buy bought, catch caught, choose chose
chosen, come came, deal dealt, dig dug, dive dove, do did done, draw drew drawn, drink drank drunk,
drive drove driven, eat ate eaten, fall fell fallen, feed fed, feel felt, fight fought, find found, flee
fled, fling flung, fly flew flown, forget forgot, freeze froze frozen, get got gotten, give gave given,
go went gone, grind ground, grow grew grown, hang hung, have had, hear heard, hide hid hidden, hold
held, keep kept, kneel knelt, lay laid, lead led, lean leant, leap leapt, leave left, lend lent, lie lay
lain, light lit, lose lost, make made, meet met, pay paid, ride rode ridden, ring rang rung, rise rose
risen, run ran, say said, see saw seen, seek sought, sell sold, send sent, sew sewn, shake shook shaken,
shine shone, shoot shot, show shown, shrink shrank shrunk, sing sang sung, sink sank sunk, sit sat,
sleep slept, slide slid, sling slung, speak spoke spoken, speed sped, spend spent, spill spilt, spin
spun, spit spat, spring sprang sprung, stand stood, steal stole stolen, stick stuck, sting stung, stride
strode, strike struck stricken, string strung, sweep swept, swell swollen, swim swam swum, swing swung,
take took taken, teach taught, tear tore torn, tell told, think thought, throw threw thrown, tread trod,
wake woke woken, wear wore worn, weave wove woven, weep wept, win won, wind wound, withdraw withdrew
withdrawn, wring wrung, write wrote written
"""
PASTS = {verb: pasts for verb, *pasts in map(str.split, IRREGULAR.split(","))}


def forms_of(keyword: Keyword) -> frozenset[Form]:
    """The ways to say a keyword, each as its words: its text; its lemma with the first word inflected and,
    where the lemma has more words (``take sip``), the text so too (``took a sip``); of an event of the
    built-in clips all of its words, synonyms too."""
    text, lemma = (tuple(host_words_of(host_ascii(said))) for said in (keyword.text, keyword.lemma))
    heads = inflected(lemma[0].decode()) if lemma else set()
    endings = {lemma[1:]} | ({text[1:]} if len(lemma) > 1 and heads & {*text[:1]} else set())
    synonyms = {(word.encode(),) for word in EVENT_WORDS.get(keyword.lemma, "").split()}
    return frozenset({text} | {(head, *ending) for head in heads for ending in endings} | synonyms) - {()}


def inflected(word: str) -> set[bytes]:
    """An English verb's or noun's forms by the regular rules, and irregular pasts. Where spelling does not
    tell whether a letter doubles (``hopped``, but ``opened``) both are given; they are no other words."""
    past, running = {word + "ed"}, {word + "ing"}
    plural = word + ("es" if re.search(r"([sxzo]|[cs]h)$", word) else "s")
    if re.search(r"[^aeiou]y$", word):
        plural, past = word[:-1] + "ies", {word[:-1] + "ied"}
    elif word.endswith("ie"):
        past, running = {word + "d"}, {word[:-2] + "ying"}
    elif word.endswith("e"):
        past, running = {word + "d"}, {word[: len(word) - (word[-2:-1] not in ("e", "o", "y"))] + "ing"}
    elif re.search(r"[^aeiou][aeiou][^aeiouwxy]$", word):
        past.add(word + word[-1] + "ed")
        running.add(word + word[-1] + "ing")
    return {form.encode() for form in {word, plural, *past, *running, *PASTS.get(word, ())}}
