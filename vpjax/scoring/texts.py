"""Completions as text: tokens -> bytes inside jit, the part that answers, tags, the chosen letter.

Every rule has two forms, one on arrays and one, ``host_``, on bytes. Both read the same ASCII text: a run of
white space and bytes past 127 is one space, dashes are ``-``. So bytes that are no UTF-8 read as they do once
they are decoded.

Of one completion: N bytes, right-padded with spaces.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.data.text import Text
from vpjax.types import Array, UserError

SPACE = ord(" ")
DASHES = ("\u2013", "\u2014")
THINK, ANSWER, GLUE = "think", "answer", "glue"  # glue: VideoChat-R1's tag of the spans that prove an answer
FORMAT = re.compile(rb" *<think>(.*)</think> *<answer>(.*)</answer> *(?:<glue>(.*)</glue> *)?", re.DOTALL)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class ByteTable:
    """The bytes of each token: u8[O, L], i32[O]. Special tokens have none.

    words, pieces: the most runs of letters and digits, and of letters or digits, that one token begins.
    """

    bytes: Array
    lengths: Array
    words: int = dataclasses.field(metadata=dict(static=True))
    pieces: int = dataclasses.field(metadata=dict(static=True))


def byte_table(tokenizer: Text | Any) -> ByteTable:
    """The table of a byte-level BPE, a Text or transformers' fast tokenizer. UserError for another kind.

    In it a run of white space is one space, and one of another mark is at most two long: no rule reads more,
    and L stays small.
    """
    from tokenizers import decoders

    tokenizer = tokenizer.tokenizer if isinstance(tokenizer, Text) else tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(getattr(backend, "decoder", None), decoders.ByteLevel):
        name = getattr(tokenizer, "name_or_path", "")
        raise UserError(
            f"tokenizer {name}: rewards read the tokens of a byte-level BPE, such as Qwen's; use such a model"
        )
    added = tokenizer.added_tokens_decoder
    byte_of = {character: byte for byte, character in byte_characters().items()}
    rows = [b""] * len(tokenizer)
    for token, index in tokenizer.get_vocab().items():
        if index not in added:
            rows[index] = bytes(byte_of[character] for character in token)
        elif not added[index].special:
            rows[index] = token.encode()
    rows = [re.sub(rb"([^A-Za-z0-9\x80-\xff])\1{2,}", rb"\1\1", re.sub(rb"\s+", b" ", row)) for row in rows]
    lengths = np.array([len(row) for row in rows], np.int32)
    table = np.full((len(rows), lengths.max()), SPACE, np.uint8)
    for row, text in zip(table, rows, strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    return ByteTable(
        table,
        lengths,
        words=max(len(re.findall(rb"[A-Za-z0-9]+", row)) for row in rows),
        pieces=max(len(re.findall(rb"[A-Za-z]+|[0-9]+", row)) for row in rows),
    )


def byte_characters() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's ``bytes_to_unicode``): a
    printable byte stands for itself, the others follow from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


class Reading(NamedTuple):
    """One completion, on the device or, in brackets, on the host.

    text u8[N] (bytes): the whole. answer, evidence: the part that answers and the one that names the spans
    that prove it, with spaces elsewhere. length i32[] (int): in tokens, the end included.
    """

    text: Array | bytes
    answer: Array | bytes
    evidence: Array | bytes
    length: Array | int


def read(table: ByteTable, tokens: Array, mask: Array) -> Reading:
    """Read the tokens i32[C] that ``mask`` bool[C] keeps. Ids past the table are empty."""
    text = ascii_of(bytes_of(table, tokens, mask))
    answer = answer_part(text)
    return Reading(text, answer, tagged(text, GLUE, answer), mask.sum())


def host_read(text: str, length: int) -> Reading:
    """Read a decoded completion of ``length`` tokens."""
    said = host_ascii(text)
    answer = host_answer_part(said)
    return Reading(said, answer, host_tagged(said, GLUE, answer), length)


def bytes_of(table: ByteTable, tokens: Array, mask: Array) -> Array:
    """The bytes u8[C * L] of the tokens, one after another."""
    rows = jnp.asarray(table.bytes).at[tokens].get(mode="fill", fill_value=SPACE)
    lengths = jnp.asarray(table.lengths).at[tokens].get(mode="fill", fill_value=0)
    return kept(rows.ravel(), (mask[:, None] & (jnp.arange(rows.shape[1]) < lengths[:, None])).ravel())


def kept(b: Array, keep: Array) -> Array:
    """The bytes u8[N] that ``keep`` bool[N] marks, without gaps."""
    place = jnp.where(keep, jnp.cumsum(keep) - 1, len(b))
    return jnp.full_like(b, SPACE).at[place].set(b, mode="drop")


def ascii_of(b: Array) -> Array:
    """The text as all rules read it. No space follows another but at its end."""
    blank = (b > 127) | (b == SPACE) | ((b >= 9) & (b <= 13))
    dash = find(b, [dash.encode() for dash in DASHES]).any(0)
    b = jnp.where(dash, ord("-"), jnp.where(blank, SPACE, b)).astype(jnp.uint8)
    return kept(b, (b != SPACE) | (behind(b) != SPACE))


def host_ascii(text: str) -> bytes:
    for dash in DASHES:
        text = text.replace(dash, "-")
    return re.sub(rb"[\s\x80-\xff]+", b" ", text.encode(errors="surrogatepass")).lstrip()


def answer_part(b: Array) -> Array:
    """What answers in a text: what follows the last ``<answer>``, up to the next ``</answer>``; without one,
    what follows the last ``</think>``. A thought that never ended has no answer."""
    begin, end = marks(b, THINK)
    thinking = begin.any() & ~end.any()
    start = jnp.where(end.any(), last(end) + len(f"</{THINK}>"), 0)
    return tagged(b, ANSWER, only(b, ~thinking & (jnp.arange(len(b)) >= start)))


def host_answer_part(text: bytes) -> bytes:
    rest = b"" if b"<think>" in text and b"</think>" not in text else text.rpartition(b"</think>")[2]
    return host_tagged(text, ANSWER, rest)


def tagged(b: Array, tag: str, default: Array) -> Array:
    """What follows the last ``<tag>``, up to the next ``</tag>`` or the end; without one, ``default``."""
    n, (begin, end) = jnp.arange(len(b)), marks(b, tag)
    start = last(begin) + len(f"<{tag}>")
    inside = (n >= start) & (n < first(end & (n >= start)))
    return jnp.where(begin.any(), only(b, inside), default)


def host_tagged(text: bytes, tag: str, default: bytes) -> bytes:
    _, found, rest = text.rpartition(f"<{tag}>".encode())
    return rest.partition(f"</{tag}>".encode())[0] if found else default


def only(b: Array, inside: Array) -> Array:
    """``b`` with spaces outside a part."""
    return jnp.where(inside, b, SPACE).astype(jnp.uint8)


def marks(b: Array, tag: str) -> tuple[Array, Array]:
    """Where ``<tag>`` and ``</tag>`` begin, bool[N] each."""
    begin, end = find(b, [f"<{tag}>".encode(), f"</{tag}>".encode()])
    return begin, end


def find(b: Array, patterns: Sequence[bytes]) -> Array:
    """Where each of the patterns begins, bool[len(patterns), N]."""
    longest = max(map(len, patterns))
    windows = jnp.stack([ahead(b, k) for k in range(longest)])
    wanted = np.array([list(pattern.ljust(longest, b"\0")) for pattern in patterns], np.uint8)[..., None]
    return ((windows == wanted) | (wanted == 0)).all(1)


def ahead(b: Array, k: int = 1) -> Array:
    """What stands ``k`` bytes further, spaces past the end."""
    return jnp.pad(b, (0, k), constant_values=SPACE)[k:]


def behind(b: Array, k: int = 1) -> Array:
    """What stands ``k`` bytes before, spaces before the start."""
    return jnp.pad(b, (k, 0), constant_values=SPACE)[: len(b)]


def first(flags: Array) -> Array:
    """The index of the first True, N where there is none."""
    return jnp.where(flags, jnp.arange(len(flags)), len(flags)).min()


def last(flags: Array) -> Array:
    """The index of the last True, -1 where there is none."""
    return jnp.where(flags, jnp.arange(len(flags)), -1).max()


def is_digit(b: Array) -> Array:
    return (b >= ord("0")) & (b <= ord("9"))


def is_letter(b: Array) -> Array:
    return ((b | 32) >= ord("a")) & ((b | 32) <= ord("z"))


def is_word(b: Array) -> Array:
    return is_letter(b) | is_digit(b)


def chosen(b: Array, choices: Array) -> Array:
    """The place i32[] of the option that an answer u8[N] chooses, -1 where it names none of ``choices``: its
    first capital letter that stands alone and is no article (``A`` that begins a sentence and has a small
    letter next)."""
    alone = ~is_word(behind(b)) & ~is_word(ahead(b))
    before = jnp.where(behind(b) == SPACE, behind(b, 2), behind(b))
    small = (ahead(b, 2) >= ord("a")) & (ahead(b, 2) <= ord("z"))
    article = (b == ord("A")) & ~is_word(before) & (ahead(b) == SPACE) & small
    named = alone & (b >= ord("A")) & (b < ord("A") + choices) & ~article
    return jnp.where(named.any(), b[jnp.argmax(named)].astype(jnp.int32) - ord("A"), -1)


def host_chosen(answer: bytes, choices: int) -> int:
    for match in re.finditer(rb"(?<![A-Za-z0-9])[A-Z](?![A-Za-z0-9])", answer):
        before = answer[: match.start()].rstrip()[-1:]
        article = match[0] == b"A" and not before.isalnum() and re.match(rb" [a-z]", answer[match.end() :])
        place = match[0][0] - ord("A")
        if place < choices and not article:
            return place
    return -1


def formatted(b: Array) -> Array:
    """1.0 where a text u8[N] is ``<think>..</think> <answer>..</answer>``, each once and not empty, and after
    them at most a ``<glue>..</glue>`` of evidence; white space aside nothing else. Else 0.0."""
    n = jnp.arange(len(b))

    def holds(start, end):
        return ((b != SPACE) & (n >= start) & (n < end)).any()

    place, good = 0, True
    for tag in (THINK, ANSWER, GLUE):
        begin, end = marks(b, tag)
        inner, outer = first(begin) + len(f"<{tag}>"), first(end) + len(f"</{tag}>")
        once = (begin.sum() == 1) & (end.sum() == 1) & (inner <= first(end))
        right = once & ~holds(place, first(begin)) & holds(inner, first(end))
        absent = (tag == GLUE) & ~begin.any() & ~end.any()
        good, place = good & (right | absent), jnp.where(absent, place, outer)
    return (good & ~holds(place, len(b))).astype(jnp.float32)


def host_formatted(text: bytes) -> float:
    match = FORMAT.fullmatch(text)
    parts = [part for part in match.groups() if part is not None] if match else [b""]
    tags = re.findall(rb"</?(?:think|answer|glue)>", text)
    return float(all(part.strip() for part in parts) and len(tags) == 2 * len(parts))
