"""Completions as text: tokens -> bytes inside jit, the part that answers, tags, the chosen letter.

Every rule has two forms, one on arrays and one, ``host_``, on bytes. Both read ASCII: white space and all bytes
past 127 are a space, dashes are ``-``. So bytes that are no UTF-8 read as they do once they are decoded.

Of one completion: N bytes, right-padded with spaces.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vpjax.data.text import Text
from vpjax.types import Array, UserError

SPACE = ord(" ")
DASHES = ("\u2013", "\u2014")
THINK, ANSWER, EVIDENCE = "think", "answer", "glue"  # the last is VideoChat-R1's tag of evidence spans
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
    """The table of a byte-level BPE, as a Text or as transformers' fast tokenizer. UserError for another kind.

    A run of white space is one space in it and one of another mark is at most two long: no rule reads more,
    and L stays small.
    """
    from tokenizers import decoders

    tokenizer = tokenizer.tokenizer if isinstance(tokenizer, Text) else tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(getattr(backend, "decoder", None), decoders.ByteLevel):
        raise UserError(
            f"{getattr(tokenizer, 'name_or_path', '') or 'tokenizer'}: rewards on the device need a byte-level "
            "BPE, such as Qwen's; use one, or host rewards (my_module:fn)"
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
    """One completion: its text, the part that answers and the one that tells the evidence's spans, u8[N],
    spaces elsewhere; its tokens i32[], the end included; the most words and pieces that it can hold."""

    text: Array
    answer: Array
    evidence: Array
    length: Array
    words: int
    pieces: int


def read(table: ByteTable, tokens: Array, mask: Array) -> Reading:
    """Read the tokens i32[C] that ``mask`` bool[C] keeps. Ids past the table are empty."""
    text = ascii_of(text_of(table, tokens, mask))
    answer = answer_part(text)
    return Reading(
        text,
        answer,
        evidence=tagged(text, EVIDENCE, answer),
        length=mask.sum(),
        words=len(tokens) * table.words,
        pieces=len(tokens) * table.pieces,
    )


def text_of(table: ByteTable, tokens: Array, mask: Array) -> Array:
    """The bytes u8[C * L] of the tokens, one after another."""
    rows = jnp.asarray(table.bytes).at[tokens].get(mode="fill", fill_value=SPACE)
    lengths = jnp.where(mask, jnp.asarray(table.lengths).at[tokens].get(mode="fill", fill_value=0), 0)
    place = jnp.arange(rows.shape[1])
    inside = place < lengths[:, None]
    place = jnp.where(inside, (jnp.cumsum(lengths) - lengths)[:, None] + place, rows.size)
    return jnp.full(rows.size, SPACE, jnp.uint8).at[place].set(rows, mode="drop")


def ascii_of(b: Array) -> Array:
    blank = (b > 127) | (b == SPACE) | ((b >= 9) & (b <= 13))
    dash = functools.reduce(jnp.logical_or, [find(b, dash.encode()) for dash in DASHES])
    return jnp.where(dash, ord("-"), jnp.where(blank, SPACE, b)).astype(jnp.uint8)


def host_ascii(text: str) -> bytes:
    for dash in DASHES:
        text = text.replace(dash, "-")
    return re.sub(rb"[\s\x80-\xff]+", b" ", text.encode(errors="surrogatepass"))


def answer_part(b: Array) -> Array:
    """What answers in a text: what follows the last ``<answer>``, up to the next ``</answer>``; without one,
    what follows the last ``</think>``. A thought that never ended has no answer."""
    n, (begin, end) = jnp.arange(len(b)), marks(b, THINK)
    thinking = begin.any() & ~end.any()
    rest = jnp.where(~thinking & (n >= last(end) + len(f"</{THINK}>") * end.any()), b, SPACE)
    return tagged(b, ANSWER, rest.astype(jnp.uint8))


def host_answer_part(text: bytes) -> bytes:
    rest = b"" if b"<think>" in text and b"</think>" not in text else text.rpartition(b"</think>")[2]
    return host_tagged(text, ANSWER, rest)


def tagged(b: Array, tag: str, default: Array) -> Array:
    """What follows the last ``<tag>``, up to the next ``</tag>`` or the end; ``default`` where there is none."""
    n, (begin, end) = jnp.arange(len(b)), marks(b, tag)
    start = last(begin) + len(f"<{tag}>")
    inside = (n >= start) & (n < first(end & (n >= start)))
    return jnp.where(begin.any(), jnp.where(inside, b, SPACE), default).astype(jnp.uint8)


def host_tagged(text: bytes, tag: str, default: bytes) -> bytes:
    _, found, rest = text.rpartition(f"<{tag}>".encode())
    return rest.partition(f"</{tag}>".encode())[0] if found else default


def marks(b: Array, tag: str) -> tuple[Array, Array]:
    """Where ``<tag>`` and ``</tag>`` begin, bool[N] each."""
    return find(b, f"<{tag}>".encode()), find(b, f"</{tag}>".encode())


def find(b: Array, pattern: bytes) -> Array:
    """Where ``pattern`` begins, bool[N]."""
    padded = jnp.pad(b, (0, len(pattern)))
    hits = [padded[k : k + len(b)] == byte for k, byte in enumerate(pattern)]
    return functools.reduce(jnp.logical_and, hits)


def first(flags: Array) -> Array:
    """The index of the first True, N where there is none."""
    return jnp.where(flags, jnp.arange(len(flags)), len(flags)).min()


def last(flags: Array) -> Array:
    """The index of the last True, -1 where there is none."""
    return jnp.where(flags, jnp.arange(len(flags)), -1).max()


def next_true(flags: Array) -> Array:
    """i32[N + 1]: the first True at n or after it, N where there is none."""
    at = jnp.where(flags, jnp.arange(len(flags)), len(flags))
    return jnp.append(lax.cummin(at, reverse=True), len(flags))


def previous_true(flags: Array) -> Array:
    """i32[N + 1]: the last True before n, -1 where there is none."""
    return jnp.concatenate([jnp.array([-1]), lax.cummax(jnp.where(flags, jnp.arange(len(flags)), -1))])


def is_digit(b: Array) -> Array:
    return (b >= ord("0")) & (b <= ord("9"))


def is_letter(b: Array) -> Array:
    return ((b | 32) >= ord("a")) & ((b | 32) <= ord("z"))


def chosen(b: Array, choices: Array) -> Array:
    """The place i32[] of the option that an answer u8[N] chooses, -1 where it names none of ``choices``: its
    first capital letter that stands alone and is no article (``A`` that begins a sentence and has a small
    letter next)."""
    letter = is_letter(b) | is_digit(b)
    alone = ~jnp.pad(letter, (1, 0))[:-1] & ~jnp.pad(letter, (0, 1))[1:]
    before, after = previous_true(b != SPACE)[:-1], next_true(b != SPACE)[1:]
    opens = (before < 0) | ~letter[before]
    following = b.at[after].get(mode="fill", fill_value=SPACE)
    spaced = jnp.pad(b, (0, 1), constant_values=SPACE)[1:] == SPACE
    article = (b == ord("A")) & opens & spaced & (following >= ord("a")) & (following <= ord("z"))
    named = alone & (b >= ord("A")) & (b < ord("A") + choices) & ~article
    return jnp.where(named.any(), b[jnp.argmax(named)].astype(jnp.int32) - ord("A"), -1)


def host_chosen(answer: bytes, choices: int) -> int:
    for match in re.finditer(rb"(?<![A-Za-z0-9])[A-Z](?![A-Za-z0-9])", answer):
        before = answer[: match.start()].rstrip(b" ")[-1:]
        article = match[0] == b"A" and not before.isalnum() and re.match(rb" +[a-z]", answer[match.end() :])
        place = match[0][0] - ord("A")
        if place < choices and not article:
            return place
    return -1


def formatted(b: Array) -> Array:
    """1.0 where a text u8[N] is ``<think>..</think> <answer>..</answer>``, each once and not empty, and after
    them at most a ``<glue>..</glue>`` of evidence; white space aside nothing else. Else 0.0."""
    seen = jnp.pad(jnp.cumsum(b != SPACE), (1, 0))  # bytes before n that are no space

    def holds(start, end):
        return seen[end] - seen[start] > 0

    place, good = 0, True
    for tag in (THINK, ANSWER, EVIDENCE):
        begin, end = marks(b, tag)
        inner, outer = first(begin) + len(f"<{tag}>"), first(end) + len(f"</{tag}>")
        once = (begin.sum() == 1) & (end.sum() == 1) & (inner <= first(end))
        right = once & ~holds(place, first(begin)) & holds(inner, first(end))
        absent = (tag == EVIDENCE) & ~begin.any() & ~end.any()
        good, place = good & (right | absent), jnp.where(absent, place, outer)
    return (good & ~holds(place, len(b))).astype(jnp.float32)


def host_formatted(text: bytes) -> float:
    match = FORMAT.fullmatch(text)
    parts = [part for part in match.groups() if part is not None] if match else [b""]
    tags = re.findall(rb"</?(?:think|answer|glue)>", text)
    return float(all(part.strip() for part in parts) and len(tags) == 2 * len(parts))
