"""Reference answers on the host, read by the rules by which ``texts`` reads completions on the device."""

import re

DASHES = ("\u2013", "\u2014")  # en dash and em dash, which are read as "-"


def normalize(text: str) -> bytes:
    """The text as every reward reads it, in ASCII: dashes are ``-``, and a run of white space and of bytes
    past 127 is one space."""
    for dash in DASHES:
        text = text.replace(dash, "-")
    return re.sub(rb"[\s\x80-\xff]+", b" ", text.encode(errors="surrogatepass")).lstrip()


def answer_in(text: bytes) -> bytes:
    """The answer in a normalized text: from the last ``<answer>`` to the next ``</answer>``, else from the
    last ``</think>`` on. A thought that never ends has no answer."""
    _, found, rest = text.rpartition(b"<answer>")
    if found:
        return rest.partition(b"</answer>")[0]
    if b"<think>" in text and b"</think>" not in text:
        return b""
    return text.rpartition(b"</think>")[2]


def split_words(text: bytes) -> list[bytes]:
    """The runs of letters and digits of a normalized text, in lower case."""
    return re.findall(rb"[a-z0-9]+", text.lower())


def option_index(answer: bytes, choices: int) -> int:
    """The index of the option that an answer names by its first capital letter that stands alone and is no
    article (see ``texts.chosen_option``); -1 if it names none of ``choices`` options."""
    for match in re.finditer(rb"(?<![A-Za-z0-9])[A-Z](?![A-Za-z0-9])", answer):
        before = answer[: match.start()].rstrip()[-1:]
        article = match[0] == b"A" and not before.isalnum() and re.match(rb" [a-z]", answer[match.end() :])
        index = match[0][0] - ord("A")
        if index < choices and not article:
            return index
    return -1
