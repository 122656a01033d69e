"""What an answer says: the option it chooses, the seconds it names. The one place where evaluation reads
answers; rewards read bytes on the device, by rules of their own (``vpjax.rewards``)."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

TIME = r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)"  # seconds, minutes:seconds or hours:minutes:seconds
UNIT = r"\s*(?:s|sec|secs|seconds)?\b\.?"
SPAN = re.compile(rf"{TIME}{UNIT}\s*(?:to|until|till|and|-|–|—|,)\s*(?:at\s+)?{TIME}", re.IGNORECASE)
LABEL = re.compile(r"((?:option|caption|sentence|description)\s+(\w))\s*:\s*", re.IGNORECASE)
LETTERED = re.compile(r"\(?([A-Z])[.):]\s*")


def final(text: str) -> str:
    """The answer without the thinking before it: what the last ``<answer>`` holds, else all that follows
    ``</think>``, else the text. A thought that was cut before it ended holds no answer."""
    inside = re.findall(r"<answer>(.*?)(?:</answer>|\Z)", text, re.DOTALL)
    if inside:
        return inside[-1].strip()
    if "<think>" in text and "</think>" not in text:
        return ""
    return text.rpartition("</think>")[2].strip()


def choice_of(text: str, choices: Sequence[str]) -> int | None:
    """The place of the one option that an answer chooses; None where it chooses none, or several.

    choices: the options' texts. An option goes by its letter (A for the first) or, where its text begins with
    a label such as ``Caption B:`` or ``Option 2:``, by that. In this order: the answer is an option's text;
    it begins with a letter, or says "answer is" one; it names one label; it holds one option's text, longer
    options first, or begins with it; one letter stands alone in it.
    """
    said = final(text)
    labels = [LABEL.match(choice) for choice in choices]
    marks = [m[2].upper() if m else string.ascii_uppercase[i] for i, m in enumerate(labels)]
    plain = [_plain(choice[m.end() :] if m else choice) for choice, m in zip(choices, labels, strict=True)]
    words = _plain(said)
    whole = [i for i, option in enumerate(plain) if option and option == words]
    if len(whole) == 1:
        return whole[0]

    mark = f"[{''.join(marks)}]"
    begins = re.match(rf"[\s*\"'(]*({mark})(?:[.):,*\"']|\s*$)", said)
    states = re.findall(rf"(?i:answer(?:\s+is|\s*:)\s*(?:option\s+)?)[*(]*({mark})(?![\w'])", said)
    if begins or states:
        return marks.index(begins[1] if begins else states[-1])
    named = {i for i, m in enumerate(labels) if m and f" {_plain(m[1])} " in f" {words} "}
    if len(named) == 1:
        return named.pop()

    rest, held = f" {words} ", []
    for i in sorted(range(len(plain)), key=lambda i: -len(plain[i])):
        if plain[i] and f" {plain[i]} " in rest:
            held.append(i)
            rest = rest.replace(f" {plain[i]} ", "  ")  # a shorter option inside it is not said
    first = [i for i in held if f"{words} ".startswith(f"{plain[i]} ")]
    if len(held) == 1 or first:
        return first[0] if first else held[0]
    # "A" before a small letter is the article, unless another letter follows it: "A or B".
    alone = set(re.findall(rf"(?<![\w'])({mark})(?![\w'])(?!(?<=A)\s+(?!(?:or|and)\b)[a-z])", said))
    return marks.index(alone.pop()) if len(alone) == 1 and not held else None


def options_in(text: str) -> tuple[str, ...]:
    """The texts of the lettered options that stand in ``text``: what follows ``A.``, then ``B.`` and so on,
    each up to the next. Commas and letters out of turn are parts of an option."""
    places = []
    for match in re.finditer(rf"(?:(?<=^)|(?<=[\s,;])){LETTERED.pattern}", text):
        if match[1] == string.ascii_uppercase[len(places)]:
            places.append(match)
    ends = [*(match.start() for match in places), len(text)][1:]
    return tuple(text[m.end() : end].strip(" ,;\n\t") for m, end in zip(places, ends, strict=True))


def unlettered(option: str) -> str:
    """An option without the letter before it."""
    return LETTERED.sub("", option.strip(), count=1) if LETTERED.match(option.strip()) else option.strip()


def span_of(text: str) -> tuple[float, float] | None:
    """The last (start, end) in seconds that an answer names, as "a to b" or else as its only two numbers;
    None where there is none or it ends before it starts. ``1:05`` is a minute and five seconds."""
    said = final(text)
    found = SPAN.findall(said)
    if found:
        start, end = _seconds(found[-1][:3]), _seconds(found[-1][3:])
    else:
        times = re.findall(TIME, said)
        if len(times) != 2:
            return None
        start, end = map(_seconds, times)
    return (start, end) if start <= end else None


def _seconds(parts: Sequence[str]) -> float:
    hours, minutes, seconds = (float(part or 0) for part in parts)
    return 3600 * hours + 60 * minutes + seconds


def _plain(text: str) -> str:
    """Words in small letters, one space between them, no punctuation but inside a word or a number."""
    return " ".join(word.strip(string.punctuation + "’“”") for word in text.lower().split()).strip()
