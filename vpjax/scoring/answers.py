"""Reads answers for evaluation: the option that one chooses, the seconds that it names. Rewards read bytes on
the device, by rules of their own (``texts``)."""

import re
import string
from collections.abc import Sequence

TIME = r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)"  # seconds, minutes:seconds or hours:minutes:seconds
SECONDS = r"\s*(?:s|sec|secs|seconds)?\b\.?"
TIME_SPAN = re.compile(rf"{TIME}{SECONDS}\s*(?:to|until|till|and|-|–|—|,)\s*(?:at\s+)?{TIME}", re.IGNORECASE)
LABEL = re.compile(r"((?:option|caption|sentence|description)\s+(\w))\s*:\s*", re.IGNORECASE)
LETTERED = re.compile(r"\(?([A-Z])[.):]\s*")


def final_answer(text: str) -> str:
    """The answer without the thinking before it: the content of the last ``<answer>``, else the text after
    ``</think>``, else the whole text. A thought that was cut off has no answer."""
    inside = re.findall(r"<answer>(.*?)(?:</answer>|\Z)", text, re.DOTALL)
    if inside:
        return inside[-1].strip()
    if "<think>" in text and "</think>" not in text:
        return ""
    return text.rpartition("</think>")[2].strip()


def parse_choice(text: str, choices: Sequence[str]) -> int | None:
    """The index of the one option that an answer chooses; None if it chooses none or several.

    choices: the options' texts. The letter of an option follows from its place (A for the first) or, if its
    text begins with a label such as ``Caption B:`` or ``Option 2:``, from the label. The rules, in this
    order: the answer is an option's text; it begins with a letter, or contains "answer is" and a letter; it
    names one label; it holds one option's text, longer options first, or begins with it; one letter stands
    alone in it.
    """
    answer = final_answer(text)
    words = _plain_words(answer)
    labels = [LABEL.match(choice) for choice in choices]
    letters, options = [], []
    for i, (label, choice) in enumerate(zip(labels, choices, strict=True)):
        letters.append(label[2].upper() if label else string.ascii_uppercase[i])
        options.append(_plain_words(choice[label.end() :] if label else choice))

    equal = [i for i, option in enumerate(options) if option and option == words]
    if len(equal) == 1:
        return equal[0]

    any_letter = f"[{''.join(letters)}]"
    begins = re.match(rf"[\s*\"'(]*({any_letter})(?:[.):,*\"']|\s*$)", answer)
    if begins:
        return letters.index(begins[1])
    stated = re.findall(rf"(?i:answer(?:\s+is|\s*:)\s*(?:option\s+)?)[*(]*({any_letter})(?![\w'])", answer)
    if stated:
        return letters.index(stated[-1])
    labelled = [i for i, m in enumerate(labels) if m and f" {_plain_words(m[1])} " in f" {words} "]
    if len(labelled) == 1:
        return labelled[0]

    rest, held = f" {words} ", []
    for i in sorted(range(len(options)), key=lambda i: -len(options[i])):
        if options[i] and f" {options[i]} " in rest:
            held.append(i)
            rest = rest.replace(f" {options[i]} ", "  ")  # a shorter option inside this one does not count
    for i in held:
        if len(held) == 1 or f"{words} ".startswith(f"{options[i]} "):
            return i
    # "A" before a small letter is the article, unless another letter follows it: "A or B".
    alone = set(re.findall(rf"(?<![\w'])({any_letter})(?![\w'])(?!(?<=A)\s+(?!(?:or|and)\b)[a-z])", answer))
    return letters.index(alone.pop()) if len(alone) == 1 and not held else None


def parse_options(text: str) -> tuple[str, ...]:
    """The texts of the lettered options in ``text``: from ``A.`` to ``B.``, from there to ``C.``, and so on.
    Commas, and letters out of turn, belong to an option."""
    found: list[re.Match[str]] = []
    for match in re.finditer(rf"(?:(?<=^)|(?<=[\s,;])){LETTERED.pattern}", text):
        if match[1] == string.ascii_uppercase[len(found)]:
            found.append(match)
    ends = [match.start() for match in found[1:]] + [len(text)]
    return tuple(text[m.end() : end].strip(" ,;\n\t") for m, end in zip(found, ends, strict=False))


def without_letter(option: str) -> str:
    """An option without the letter before it."""
    return re.sub(rf"\A{LETTERED.pattern}", "", option.strip())


def parse_time_span(text: str) -> tuple[float, float] | None:
    """The last (start, end) in seconds that an answer names, as "a to b" or else as its only two numbers;
    None if there is none or it ends before it starts. ``1:05`` is a minute and five seconds."""
    answer = final_answer(text)
    spans = TIME_SPAN.findall(answer)
    times = [spans[-1][:3], spans[-1][3:]] if spans else re.findall(TIME, answer)
    if len(times) != 2:
        return None
    start, end = _seconds(times[0]), _seconds(times[1])
    return (start, end) if start <= end else None


def _seconds(parts: Sequence[str]) -> float:
    hours, minutes, seconds = (float(part or 0) for part in parts)
    return 3600 * hours + 60 * minutes + seconds


def _plain_words(text: str) -> str:
    """The words in lower case, with single spaces and without punctuation at their ends."""
    return " ".join(word.strip(string.punctuation + "’“”") for word in text.lower().split()).strip()
