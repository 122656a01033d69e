"""The option that an answer chooses, inside jit. ``answers.choose`` does the same on the host, and
docs/rewards.md explains the rules.

Axes: W words of an answer, O options of Y words each.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax

from vpjax.scoring.answers import (
    AFTER_LETTER,
    BEFORE_LETTER,
    HEDGING_WORDS,
    LABEL_WORDS,
    STATING_WORDS,
)
from vpjax.scoring.pieces import is_one_of, shifted, word_set
from vpjax.scoring.texts import SPACE, first_index, is_digit, is_letter, is_word_character, last_index
from vpjax.scoring.words import find_words, run_fingerprints
from vpjax.types import Array


def chosen_option(text: jax.Array, size: int, marks: Array, options: Array) -> jax.Array:
    """The index i32[] of the option that an answer i32[N] of at most W = ``size`` words chooses, -1 if it
    chooses none or several. marks i32[O]: the character by which each option is named, 0: none. options
    u32[O, Y]: the words of their texts, 0 after the last one."""
    runs = find_words(text, size)
    words = run_fingerprints(text, runs)
    hits, mentions = occurrences(words, options)
    lengths = jnp.sum(options != 0, axis=-1)

    def are(words_of: Iterable[str]) -> jax.Array:
        return is_one_of(words, word_set(words_of))

    is_label = are(LABEL_WORDS)
    labelled = shifted(is_label, -1)
    stated = follow_statement(are(["is"]), are(["answer"]), are(STATING_WORDS), are(BEFORE_LETTER))

    letters, option = marked_options(text, runs.start, runs.end, labelled, marks)
    own_text = (shifted_rows(hits) & (jnp.arange(len(lengths))[:, None] == option)).any(0)
    other_word = is_article_or_pronoun(text, runs.start, runs.end, are(AFTER_LETTER))
    letters &= labelled | stated | own_text | ~other_word
    # "A. (c)(b)" is no mention of (a)(c), for A's own text goes on beyond that.
    own_stop = jnp.where(own_text, jnp.arange(len(words)) + 1 + lengths[option], 0)
    reach = reach_of(mentions, lengths)
    letters &= (reach == 0) | (own_stop > reach)

    # Words that do not link the options of a hedge, as "or" does, counted up to each word.
    rank = jnp.cumsum((words != 0) & ~are(HEDGING_WORDS) & ~is_label)
    hedged = are_hedged(letters, option, rank)
    chosen = jnp.where(hedged, -1, option)
    last_stated, first = last_index(letters & stated), first_index(letters)
    begins = (first == 0) | ((first == 1) & is_label[0])
    first_option = option.at[first].get(mode="fill", fill_value=-1)
    agree = (~letters | (option == first_option)).all()
    by_letter = jnp.where(
        agree | (begins & ~hedged.at[first].get(mode="fill", fill_value=True)), first_option, -1
    )
    by_text = option_of_text(mentions, lengths, rank)
    unstated = jnp.where(letters.any(), by_letter, by_text)
    return jnp.where(last_stated >= 0, chosen[last_stated], unstated)


def follow_statement(
    is_is: jax.Array, is_answer: jax.Array, is_stating: jax.Array, is_before_letter: jax.Array
) -> jax.Array:
    """Which words bool[W] stand after "answer" or "option is", or with a word more as in "answer is option
    B". Arguments bool[W]: words that are "is", "answer", of STATING_WORDS and of BEFORE_LETTER."""
    skips = shifted(is_before_letter, -1) & shifted(is_is | is_answer, -2)
    by_is = jnp.where(
        skips, shifted(is_is, -2) & shifted(is_stating, -3), shifted(is_is & shifted(is_stating, -1), -1)
    )
    by_answer = jnp.where(skips, shifted(is_answer, -2), shifted(is_answer, -1))
    return by_is | by_answer


def are_hedged(letters: jax.Array, option: jax.Array, rank: jax.Array) -> jax.Array:
    """Which words bool[W] stand next to the letter of another option, as in "A or B". letters bool[W],
    option i32[W]: the letters, and the option of each. rank i32[W]: the number of words up to each
    that do not link the options of a hedge."""
    size = len(letters)
    place = jnp.arange(size)
    before = shifted(lax.cummax(jnp.where(letters, place, -1)), -1, -1)
    after = shifted(lax.cummin(jnp.where(letters, place, size), reverse=True), 1, size)

    def is_beside(other: jax.Array) -> jax.Array:
        exists = (other >= 0) & (other < size)
        other_option = option.at[other].get(mode="fill", fill_value=-1, wrap_negative_indices=False)
        other_rank = rank.at[other].get(mode="fill", fill_value=-9, wrap_negative_indices=False)
        return exists & (other_option != option) & (jnp.abs(other_rank - rank) == 1)

    return is_beside(before) | is_beside(after)


def occurrences(words: jax.Array, options: Array) -> tuple[jax.Array, jax.Array]:
    """Where the text of each option begins in words u32[W], bool[O, W], and where it does not lie in that of
    a longer one."""
    options = jnp.asarray(options)
    w, y = len(words), options.shape[-1]
    following = jnp.stack([jnp.pad(words, (0, k))[k:][:w] for k in range(y)])  # [Y, W]
    match = (options[..., None] == following) | (options[..., None] == 0)
    hits = match.all(1) & (options[:, :1] != 0)
    lengths, place = jnp.sum(options != 0, axis=-1), jnp.arange(w)
    # The latest occurrence that begins at or before a word reaches furthest.
    latest = lax.cummax(jnp.where(hits, place, -1), axis=1)
    reach = jnp.where(latest >= 0, latest + lengths[:, None], -1)
    holds = (reach[:, None] >= place + lengths[:, None]) & (lengths[:, None] > lengths)[..., None]
    return hits, hits & ~holds.any(0)


def reach_of(mentions: jax.Array, lengths: jax.Array) -> jax.Array:
    """Of each word that lies in a mention bool[O, W] of an option of so many words i32[O], the first word
    after that, i32[W]; 0 of the others."""
    place = jnp.arange(mentions.shape[1])
    latest = lax.cummax(jnp.where(mentions, place, -1), axis=1)
    stop = latest + lengths[:, None]
    return jnp.where((latest >= 0) & (stop > place), stop, 0).max(0)


def shifted_rows(x: jax.Array) -> jax.Array:
    """The element after each, in rows; False past the end."""
    return jnp.pad(x, ((0, 0), (0, 1)))[:, 1:]


def marked_options(
    text: jax.Array, start: jax.Array, end: jax.Array, labelled: jax.Array, marks: Array
) -> tuple[jax.Array, jax.Array]:
    """Which words bool[W] are the mark of an option, and of which i32[W]. labelled bool[W]: a word such as
    "option" stands before, after which a mark may be a small letter."""

    def character(index):
        return text.at[index].get(mode="fill", fill_value=SPACE, wrap_negative_indices=False)

    mark = jnp.where(end - start == 1, character(start), -1)
    mark = jnp.where(labelled & is_letter(mark), mark & ~32, mark)
    is_mark = mark[:, None] == marks
    before, after = is_one_of(character(start - 1), "'-"), is_one_of(character(end), "'-")
    glued = before & is_word_character(character(start - 2)) | after & is_word_character(character(end + 1))
    return is_mark.any(1) & ~glued, jnp.argmax(is_mark, axis=1)


def is_article_or_pronoun(
    text: jax.Array, start: jax.Array, end: jax.Array, follows_letter: jax.Array
) -> jax.Array:
    """Which words bool[W] are "A" or "I" before another word, which tells that they are no letters.
    follows_letter bool[W]: words that do not stand after an article."""

    def character(index):
        return text.at[index].get(mode="fill", fill_value=SPACE)

    next_character = character(end + 1)
    is_small = is_letter(next_character) & (next_character > ord("Z"))
    is_next = (character(end) == SPACE) & (shifted(start, 1, -1) == end + 1) & (end - start == 1)
    article = (character(start) == ord("A")) & (is_small | is_digit(next_character))
    article &= ~shifted(follows_letter, 1)
    pronoun = (character(start) == ord("I")) & is_small
    return is_next & (article | pronoun)


def option_of_text(mentions: jax.Array, lengths: jax.Array, rank: jax.Array) -> jax.Array:
    """The index i32[] of the only option of mentions bool[O, W], or of the one with which the answer begins,
    unless another one follows at once; else -1."""
    named, leads = mentions.any(1), mentions[:, 0]
    option = jnp.where(named.sum() == 1, jnp.argmax(named), jnp.argmax(leads))
    linked = rank - rank[lengths[option] - 1] == 1
    others = mentions & (jnp.arange(len(lengths)) != option)[:, None]
    begins = (leads.sum() == 1) & ~(others & linked).any()
    return jnp.where((named.sum() == 1) | begins, option, -1)
