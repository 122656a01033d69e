"""Completions as bytes inside jit: tokens to bytes, the answer in them, tags, the letter of an option.

All rewards read the same ASCII text: dashes are ``-``, a run of white space and of bytes past 127 is one
space. So bytes that are not UTF-8 are read as their decoded text would be. ``host_text`` reads reference
answers alike.

A text is u8[N], padded with spaces on the right.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.data.text import Text
from vpjax.types import Array, UserError

SPACE = ord(" ")
DASHES = ("\u2013", "\u2014")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class ByteTable:
    """The bytes u8[O, L] of each token and their number i32[O]; special tokens have none. words, pieces: the
    most runs of letters and digits, and the most runs of letters or of digits, in one token."""

    bytes: Array
    lengths: Array
    words: int = dataclasses.field(metadata=dict(static=True))
    pieces: int = dataclasses.field(metadata=dict(static=True))


def byte_table(tokenizer: Text | Any) -> ByteTable:
    """The table of a byte-level BPE: a Text or a fast tokenizer of transformers. UserError for another kind.
    So that L stays small, a run of white space becomes one space, and a run of any other mark is cut to two:
    no reward reads more of it."""
    from tokenizers import decoders
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    if isinstance(tokenizer, Text):
        tokenizer = tokenizer.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(getattr(backend, "decoder", None), decoders.ByteLevel):
        name = f"tokenizer {getattr(tokenizer, 'name_or_path', '')}"
        raise UserError(f"{name}: rewards read tokens of a byte-level BPE, such as Qwen's; use such a model")
    added = tokenizer.added_tokens_decoder
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    rows = [b""] * len(tokenizer)
    for token, index in tokenizer.get_vocab().items():
        if index not in added:
            row = bytes(byte_of[character] for character in token)
        else:
            row = b"" if added[index].special else token.encode()
        row = re.sub(rb"\s+", b" ", row)
        rows[index] = re.sub(rb"([^A-Za-z0-9\x80-\xff])\1{2,}", rb"\1\1", row)
    lengths = np.array([len(row) for row in rows], np.int32)
    table = np.full((len(rows), lengths.max()), SPACE, np.uint8)
    for index, row in enumerate(rows):
        table[index, : len(row)] = np.frombuffer(row, np.uint8)
    return ByteTable(
        table,
        lengths,
        words=max(len(re.findall(rb"[A-Za-z0-9]+", row)) for row in rows),
        pieces=max(len(re.findall(rb"[A-Za-z]+|[0-9]+", row)) for row in rows),
    )


def token_bytes(table: ByteTable, tokens: Array, mask: Array) -> jax.Array:
    """The bytes u8[C * L] of the tokens i32[C] that ``mask`` bool[C] keeps. Ids past the table are empty."""
    rows = jnp.asarray(table.bytes).at[tokens].get(mode="fill", fill_value=SPACE)
    lengths = jnp.asarray(table.lengths).at[tokens].get(mode="fill", fill_value=0)
    keep = mask[:, None] & (jnp.arange(rows.shape[1]) < lengths[:, None])
    return compact(rows.ravel(), keep.ravel())


def compact(b: jax.Array, keep: Array) -> jax.Array:
    """The bytes of a text that ``keep`` bool[N] marks, without gaps."""
    index = jnp.where(keep, jnp.cumsum(keep) - 1, len(b))
    return jnp.full_like(b, SPACE).at[index].set(b, mode="drop")


def normalize_bytes(b: jax.Array) -> jax.Array:
    """The text as every reward reads it; two spaces in a row only pad it."""
    blank = (b > 127) | (b == SPACE) | ((b >= 9) & (b <= 13))
    dash = pattern_starts(b, [dash.encode() for dash in DASHES]).any(0)
    b = jnp.where(dash, ord("-"), jnp.where(blank, SPACE, b)).astype(jnp.uint8)
    return compact(b, (b != SPACE) | (byte_behind(b) != SPACE))


def answer_and_evidence(b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The answer in a normalized text (see ``host_text.answer_in``), and the evidence, which names the spans
    that prove it: VideoChat-R1's ``<glue>``, else the answer. All other bytes become spaces."""
    begin, end = tag_starts(b, "think")
    thinking = begin.any() & ~end.any()
    start = jnp.where(end.any(), last_index(end) + len("</think>"), 0)
    answer = inside_tag(b, "answer", ~thinking & (jnp.arange(len(b)) >= start))
    evidence = inside_tag(b, "glue", answer)
    return jnp.where(answer, b, SPACE).astype(jnp.uint8), jnp.where(evidence, b, SPACE).astype(jnp.uint8)


def inside_tag(b: jax.Array, tag: str, default: jax.Array) -> jax.Array:
    """Which bytes follow the last ``<tag>``, up to the next ``</tag>`` or the end; without one,
    ``default``."""
    index, (begin, end) = jnp.arange(len(b)), tag_starts(b, tag)
    start = last_index(begin) + len(f"<{tag}>")
    inside = (index >= start) & (index < first_index(end & (index >= start)))
    return jnp.where(begin.any(), inside, default)


def tag_starts(b: jax.Array, tag: str) -> tuple[jax.Array, jax.Array]:
    """Where ``<tag>`` and ``</tag>`` begin, bool[N] each."""
    begin, end = pattern_starts(b, [f"<{tag}>".encode(), f"</{tag}>".encode()])
    return begin, end


def pattern_starts(b: jax.Array, patterns: Sequence[bytes]) -> jax.Array:
    """Where each of the patterns begins, bool[len(patterns), N]."""
    longest = max(len(pattern) for pattern in patterns)
    windows = jnp.stack([byte_ahead(b, k) for k in range(longest)])
    rows = [list(pattern.ljust(longest, b"\0")) for pattern in patterns]
    expected = np.array(rows, np.uint8)[..., None]
    return ((windows == expected) | (expected == 0)).all(1)


def byte_ahead(b: jax.Array, k: int = 1) -> jax.Array:
    """The byte that stands ``k`` places after each byte, a space past the end."""
    return jnp.pad(b, (0, k), constant_values=SPACE)[k:]


def byte_behind(b: jax.Array, k: int = 1) -> jax.Array:
    """The byte that stands ``k`` places before each byte, a space before the start."""
    return jnp.pad(b, (k, 0), constant_values=SPACE)[: len(b)]


def first_index(flags: jax.Array) -> jax.Array:
    """The index of the first True, N where there is none."""
    return jnp.where(flags, jnp.arange(len(flags)), len(flags)).min()


def last_index(flags: jax.Array) -> jax.Array:
    """The index of the last True, -1 where there is none."""
    return jnp.where(flags, jnp.arange(len(flags)), -1).max()


def is_digit(b: jax.Array) -> jax.Array:
    return (b >= ord("0")) & (b <= ord("9"))


def is_letter(b: jax.Array) -> jax.Array:
    return ((b | 32) >= ord("a")) & ((b | 32) <= ord("z"))


def is_alphanumeric(b: jax.Array) -> jax.Array:
    return is_letter(b) | is_digit(b)


def chosen_option(b: jax.Array, choices: Array) -> jax.Array:
    """The index i32[] of the option that an answer chooses, -1 where it names none of ``choices``: its first
    capital letter that stands alone and is no article (``A`` that begins a sentence, before a small
    letter)."""
    alone = ~is_alphanumeric(byte_behind(b)) & ~is_alphanumeric(byte_ahead(b))
    before = jnp.where(byte_behind(b) == SPACE, byte_behind(b, 2), byte_behind(b))
    small = (byte_ahead(b, 2) >= ord("a")) & (byte_ahead(b, 2) <= ord("z"))
    article = (b == ord("A")) & ~is_alphanumeric(before) & (byte_ahead(b) == SPACE) & small
    named = alone & (b >= ord("A")) & (b < ord("A") + choices) & ~article
    return jnp.where(named.any(), b[jnp.argmax(named)].astype(jnp.int32) - ord("A"), -1)


def is_formatted(b: jax.Array) -> jax.Array:
    """Whether a text is ``<think>..</think> <answer>..</answer>``, each once and not empty, with nothing
    else but white space and at most a ``<glue>..</glue>`` of evidence after them."""
    index = jnp.arange(len(b))

    def holds_text(start, end):
        return ((b != SPACE) & (index >= start) & (index < end)).any()

    position, good = jnp.array(0), jnp.array(True)
    for tag in ("think", "answer", "glue"):
        begin, end = tag_starts(b, tag)
        content, after = first_index(begin) + len(f"<{tag}>"), first_index(end) + len(f"</{tag}>")
        once = (begin.sum() == 1) & (end.sum() == 1) & (content <= first_index(end))
        filled = holds_text(content, first_index(end)) & ~holds_text(position, first_index(begin))
        absent = (tag == "glue") & ~begin.any() & ~end.any()
        good &= (once & filled) | absent
        position = jnp.where(absent, position, after)
    return good & ~holds_text(position, len(b))
