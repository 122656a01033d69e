"""Completions as text inside jit: tokens to characters, the answer in them, tags.

All rewards read the same text, in which all is ASCII but the letters of other scripts (see
``host_text.normalize``, which reads text on the host alike). Bytes that are not UTF-8 are spaces, as they are
in a decoded text that is read there.

A text is i32[N], one character each, padded with spaces on the right.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.data.text import Text
from vpjax.scoring.host_text import CHUNK, PLANE, UNSPACED, WORD, folded_characters, normalize
from vpjax.scoring.numbers import PIECE
from vpjax.types import Array, UserError

SPACE = ord(" ")
# Bytes and words for each token, on average, that rewards read: real text has a third of it. They bound the
# shapes of all that follows.
BYTES, WORDS = 16, 4
REPLACEMENT = 0xFFFD  # of bytes that are not UTF-8; it is read as a space


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class ByteTable:
    """The bytes u8[O, L] of each token and their number i32[O]; special tokens have none. characters u16:
    ``host_text.folded_characters``. words, pieces: the most words, or runs of other characters than spaces,
    and the most runs of letters or of digits, in one token."""

    bytes: Array
    lengths: Array
    characters: Array
    words: int = dataclasses.field(metadata=dict(static=True))
    pieces: int = dataclasses.field(metadata=dict(static=True))

    def max_words(self, tokens: int) -> int:
        """The size that holds the words of a completion of this many tokens."""
        return tokens * min(self.words, WORDS)

    def max_pieces(self, tokens: int) -> int:
        """The size that holds its runs of letters or of digits."""
        return tokens * min(self.pieces, WORDS)


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
        rows[index] = re.sub(rb"([!-/:-@\[-`{-~])\1{2,}", rb"\1\1", row)
    lengths = np.array([len(row) for row in rows], np.int32)
    table = np.full((len(rows), lengths.max()), SPACE, np.uint8)
    for index, row in enumerate(rows):
        table[index, : len(row)] = np.frombuffer(row, np.uint8)
    # A character that is torn between tokens counts as a word of each.
    texts = [normalize(row.decode(errors="replace").replace("\ufffd", "\u4e00")) for row in rows]
    return ByteTable(
        table,
        lengths,
        folded_characters(),
        words=max(max(len(WORD.findall(text)), len(CHUNK.findall(text))) for text in texts),
        pieces=max(len(PIECE.findall(text)) for text in texts),
    )


def read_text(table: ByteTable, tokens: Array, mask: Array) -> jax.Array:
    """The text i32[N] of the tokens i32[C] that ``mask`` bool[C] keeps. Ids past the table are empty."""
    return normalized(token_bytes(table, tokens, mask), table.characters)


def token_bytes(table: ByteTable, tokens: Array, mask: Array) -> jax.Array:
    """The bytes u8[N] of tokens."""
    rows = jnp.asarray(table.bytes).at[tokens].get(mode="fill", fill_value=SPACE)
    lengths = jnp.asarray(table.lengths).at[tokens].get(mode="fill", fill_value=0)
    keep = mask[:, None] & (jnp.arange(rows.shape[1]) < lengths[:, None])
    return compact(rows.ravel(), keep.ravel(), len(tokens) * min(rows.shape[1], BYTES))


def compact(b: jax.Array, keep: Array, size: int) -> jax.Array:
    """The first ``size`` elements that ``keep`` bool[N] marks, without gaps."""
    index = jnp.where(keep, jnp.cumsum(keep) - 1, size)
    return jnp.full(size, SPACE, b.dtype).at[index].set(b, mode="drop")


def normalized(b: jax.Array, characters: Array) -> jax.Array:
    """The text i32[N] of UTF-8 bytes u8[N], as ``host_text.normalize`` reads it. Two spaces in a row only pad
    it."""
    code, width = decoded(b)
    folded = jnp.asarray(characters)[jnp.minimum(code, PLANE - 1)].astype(jnp.int32)
    text = jnp.where(code < PLANE, folded, jnp.where(is_unspaced(code), code, SPACE))
    text = compact(text, width > 0, len(b))
    is_space = (text == SPACE) & (behind(text) == SPACE)
    is_repeated = is_mark(text) & (behind(text) == text) & (behind(text, 2) == text)
    return compact(text, ~is_space & ~is_repeated, len(b))


def decoded(b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of UTF-8 bytes u8[N]: the character i32[N] that begins with each, REPLACEMENT where none does, and its
    number of bytes i32[N]: 0 for its further ones, 1 for a byte that is not UTF-8."""
    first, second, third, fourth = (ahead(b, k).astype(jnp.int32) for k in range(4))

    def continues(x: jax.Array) -> jax.Array:
        return (x & 0xC0) == 0x80

    def between(x: jax.Array, low: int, high: int) -> jax.Array:
        return (x >= low) & (x <= high)

    # Neither longer forms than needed, nor surrogates, nor what is past the last character.
    two = between(first, 0xC2, 0xDF) & continues(second)
    bad_three = ((first == 0xE0) & (second < 0xA0)) | ((first == 0xED) & (second >= 0xA0))
    three = between(first, 0xE0, 0xEF) & continues(second) & continues(third) & ~bad_three
    bad_four = ((first == 0xF0) & (second < 0x90)) | ((first == 0xF4) & (second >= 0x90))
    four = between(first, 0xF0, 0xF4) & continues(second) & continues(third) & continues(fourth) & ~bad_four

    low = second & 0x3F
    code = jnp.where(first < 0x80, first, REPLACEMENT)
    code = jnp.where(two, (first & 0x1F) << 6 | low, code)
    code = jnp.where(three, (first & 0xF) << 12 | low << 6 | (third & 0x3F), code)
    code = jnp.where(four, (first & 7) << 18 | low << 12 | (third & 0x3F) << 6 | (fourth & 0x3F), code)
    width = jnp.where(four, 4, jnp.where(three, 3, jnp.where(two, 2, 1)))
    is_further = jnp.zeros(len(b), bool)
    for step in (1, 2, 3):
        is_further |= behind(width, step, fill=0) > step
    return code, jnp.where(is_further, 0, width)


def answer_and_evidence(text: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which characters bool[N] of a text are its answer, and which its evidence (see ``host_text.answer_in``
    and ``evidence_in``)."""
    begin, end = tag_starts(text, "think")
    thinking = begin.any() & ~end.any()
    start = jnp.where(end.any(), last_index(end) + len("</think>"), 0)
    place = jnp.arange(len(text))
    answer = inside_tag(text, "answer", ~thinking & (place >= start))
    evidence = inside_tag(text, "glue", jnp.zeros(len(text), bool))
    # Evidence within the answer, and its tags, are no part of it.
    begin, end = tag_starts(text, "glue")
    opens = last_index(begin & answer)
    closes = first_index(end & answer & (place > opens)) + len("</glue>")
    return answer & ((opens < 0) | (place < opens) | (place >= closes)), evidence


def inside_tag(text: jax.Array, tag: str, default: jax.Array) -> jax.Array:
    """Which characters follow the last ``<tag>``, up to the next ``</tag>`` or the end; without one,
    ``default``."""
    place, (begin, end) = jnp.arange(len(text)), tag_starts(text, tag)
    start = last_index(begin) + len(f"<{tag}>")
    inside = (place >= start) & (place < first_index(end & (place >= start)))
    return jnp.where(begin.any(), inside, default)


def tag_starts(text: jax.Array, tag: str) -> tuple[jax.Array, jax.Array]:
    """Where ``<tag>`` and ``</tag>`` begin, bool[N] each."""
    # Four characters at once; those of other scripts are bytes of 255, which no tag has.
    four = jnp.zeros(len(text), jnp.uint32)
    for k in range(4):
        four |= jnp.minimum(ahead(text, k), 255).astype(jnp.uint32) << 8 * k
    places = []
    for pattern in (f"<{tag}>", f"</{tag}>"):
        found = jnp.ones(len(text), bool)
        for k in range(0, len(pattern), 4):
            part = pattern[k : k + 4].encode()
            mask = 2 ** (8 * len(part)) - 1
            found &= ahead(four, k) & np.uint32(mask) == np.uint32(int.from_bytes(part, "little"))
        places.append(found)
    return places[0], places[1]


def ahead(x: jax.Array, k: int = 1, fill: int = SPACE) -> jax.Array:
    """What stands ``k`` places after each element, ``fill`` past the end."""
    return jnp.pad(x, (0, k), constant_values=fill)[k:]


def behind(x: jax.Array, k: int = 1, fill: int = SPACE) -> jax.Array:
    """What stands ``k`` places before each element, ``fill`` before the start."""
    return jnp.pad(x, (k, 0), constant_values=fill)[: len(x)]


def first_index(flags: jax.Array) -> jax.Array:
    """The index of the first True, N where there is none."""
    return jnp.where(flags, jnp.arange(len(flags)), len(flags)).min()


def last_index(flags: jax.Array) -> jax.Array:
    """The index of the last True, -1 where there is none."""
    return jnp.where(flags, jnp.arange(len(flags)), -1).max()


def is_digit(x: jax.Array) -> jax.Array:
    return (x >= ord("0")) & (x <= ord("9"))


def is_letter(x: jax.Array) -> jax.Array:
    """Of ASCII."""
    return ((x | 32) >= ord("a")) & ((x | 32) <= ord("z"))


def is_word_character(x: jax.Array) -> jax.Array:
    """A digit or a letter of any script."""
    return is_letter(x) | is_digit(x) | (x > 127)


def is_mark(x: jax.Array) -> jax.Array:
    return (x != SPACE) & ~is_word_character(x)


def is_unspaced(x: jax.Array) -> jax.Array:
    """Whether a character belongs to a script without spaces, so that it is a word of its own."""
    found = jnp.zeros(x.shape, bool)
    for first, last in UNSPACED:
        found |= (x >= first) & (x <= last)
    return found


def has_tags(text: jax.Array, needs_evidence: Array) -> jax.Array:
    """Whether a text is ``<think>..</think> <answer>..</answer>`` and, if bool[] ``needs_evidence``,
    ``<glue>..</glue>`` after them: each once and not empty, with nothing else but white space."""
    place = jnp.arange(len(text))

    def holds_text(start: Array, end: Array | int) -> jax.Array:
        return ((text != SPACE) & (place >= start) & (place < end)).any()

    position, good = jnp.array(0), jnp.array(True)
    for tag in ("think", "answer", "glue"):
        begin, end = tag_starts(text, tag)
        content, after = first_index(begin) + len(f"<{tag}>"), first_index(end) + len(f"</{tag}>")
        once = (begin.sum() == 1) & (end.sum() == 1) & (content <= first_index(end))
        filled = holds_text(content, first_index(end)) & ~holds_text(position, first_index(begin))
        is_absent = ~begin.any() & ~end.any()
        if tag == "glue":
            good &= jnp.where(needs_evidence, once & filled, is_absent)
            position = jnp.where(needs_evidence, after, position)
        else:
            good &= once & filled
            position = after
    return good & ~holds_text(position, len(text))
