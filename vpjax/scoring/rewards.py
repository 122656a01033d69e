"""The rewards by name, and their weighted sum. docs/rewards.md lists them.

A reward counts for some types of answer. For the others it is NaN, which the sum leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vpjax.scoring import keywords, spans, texts, words
from vpjax.scoring.references import AnswerType, References
from vpjax.types import Array, UserError


class RewardInputs(NamedTuple):
    """One completion and its clip's reference.

    words u32[W]: of the answer. positions i32[J]: of each keyword's first mention in it, W: none. mentioned
    bool[J]; unexpected u32[W]: words of other known keywords, else 0. limit: C. max_words: W; max_pieces: the
    largest number of runs of letters or of digits. See ``texts``, ``words`` and ``keywords``.
    """

    completion: texts.CompletionText
    words: jax.Array
    positions: jax.Array
    mentioned: jax.Array
    unexpected: jax.Array
    reference: References
    limit: int
    max_words: int
    max_pieces: int

    @property
    def expected(self) -> jax.Array:
        """bool[J]: whether the reference answer mentions each keyword."""
        return jnp.greater_equal(self.reference.positions, 0)


class Reward(NamedTuple):
    """compute: RewardInputs -> f32[]. types: of answers for which it counts."""

    compute: Callable[[RewardInputs], jax.Array]
    types: tuple[AnswerType, ...]


def choice_reward(x: RewardInputs) -> jax.Array:
    """1.0 where the answer names the letter of the right option, else 0.0."""
    chosen = texts.chosen_option(x.completion.answer, x.reference.choices)
    return (chosen == x.reference.choice).astype(jnp.float32)


def span_reward(x: RewardInputs) -> jax.Array:
    """IoU of the last span that the answer names."""
    found = spans.find_spans(x.completion.answer, x.max_pieces, only_last=True)
    return spans.span_iou(found, x.reference.spans)


def evidence_reward(x: RewardInputs) -> jax.Array:
    """IoU of all the spans of the evidence for a choice."""
    found = spans.find_spans(x.completion.evidence, x.max_pieces, only_last=False)
    return spans.span_iou(found, x.reference.spans)


def box_reward(x: RewardInputs) -> jax.Array:
    """Mean IoU of the boxes, in order."""
    boxes, count = spans.find_boxes(x.completion.answer, x.max_pieces, len(x.reference.boxes))
    return spans.box_iou(boxes, count, x.reference.boxes, x.reference.box_count)


def overlong(x: RewardInputs) -> jax.Array:
    """0 for a completion (its end included) that leaves a fifth of the limit, -1 for one of all its tokens,
    linear between (DAPO's soft punishment)."""
    margin = max(1, x.limit // 5)
    return -jnp.clip((x.completion.length - x.limit + margin) / margin, 0.0, 1.0)


ALL = tuple(answer_type for answer_type in AnswerType if answer_type != AnswerType.PADDING)
TEXT_ONLY = (AnswerType.TEXT,)
CHOICES = (AnswerType.CHOICE, AnswerType.GROUNDED_CHOICE)

REWARDS = {
    # Words of a caption.
    "rouge_l": Reward(lambda x: words.rouge_l(x.words, x.reference.words), TEXT_ONLY),
    "rouge_1": Reward(lambda x: words.rouge_n(x.words, x.reference.words, 1), TEXT_ONLY),
    "rouge_2": Reward(lambda x: words.rouge_n(x.words, x.reference.words, 2), TEXT_ONLY),
    "caption_recall": Reward(lambda x: words.content_recall(x.words, x.reference.content), TEXT_ONLY),
    # Keywords that the reference answer mentions; keyword_removed: only those that are removed from V~.
    "keyword_recall": Reward(lambda x: keywords.keyword_recall(x.mentioned, x.expected), ALL),
    "keyword_removed": Reward(
        lambda x: keywords.keyword_recall(x.mentioned, x.expected & x.reference.removed), ALL
    ),
    "keyword_f1": Reward(lambda x: keywords.keyword_f1(x.mentioned, x.expected, x.unexpected), ALL),
    "keyword_order": Reward(
        lambda x: keywords.keyword_order(x.mentioned, x.positions, x.reference.positions), ALL
    ),
    "event": Reward(lambda x: keywords.exact_match(x.mentioned, x.expected, x.unexpected), ALL),
    # Letters, seconds and boxes.
    "choice": Reward(choice_reward, CHOICES),
    "span_iou": Reward(span_reward, (AnswerType.GROUNDING,)),
    "evidence_iou": Reward(evidence_reward, (AnswerType.GROUNDED_CHOICE,)),
    "box_iou": Reward(box_reward, (AnswerType.TRACKING,)),
    # The whole text: its tags, its repetitions, its length.
    "format": Reward(lambda x: texts.format_reward(x.completion.text), ALL),
    "repetition": Reward(
        lambda x: words.repetition(words.word_fingerprints(x.completion.text, x.max_words)), ALL
    ),
    "overlong": Reward(overlong, ALL),
}


def check_names(names: Iterable[str]) -> None:
    """UserError for a reward that does not exist."""
    for name in names:
        if name not in REWARDS:
            known = ", ".join(REWARDS)
            raise UserError(f"reward {name!r} does not exist; take my_module:fn (your own) or one of {known}")


def compute_rewards(
    names: Sequence[str],
    table: texts.ByteTable,
    tokens: Array,
    mask: Array,
    references: References,
) -> dict[str, jax.Array]:
    """The rewards f32[B, G] of the completions tokens i32[B, G, C]; mask bool[B, G, C] marks their tokens,
    the end included. NaN: the reward does not count for this clip. For use inside jit."""

    def rewards_of(tokens: Array, mask: Array, reference: References) -> dict[str, jax.Array]:
        completion = texts.read_completion(table, tokens, mask)
        max_words, max_pieces = len(tokens) * table.words, len(tokens) * table.pieces
        answer_words = words.word_fingerprints(completion.answer, max_words)
        positions = keywords.first_mentions(answer_words, reference.forms)
        inputs = RewardInputs(
            completion=completion,
            words=answer_words,
            positions=positions,
            mentioned=positions < len(answer_words),
            unexpected=keywords.unexpected_words(answer_words, reference.others),
            reference=reference,
            limit=len(tokens),
            max_words=max_words,
            max_pieces=max_pieces,
        )
        rewards = {}
        for name in names:
            counts = jnp.isin(reference.answer_type, jnp.array(REWARDS[name].types))
            reward = jnp.where(counts, REWARDS[name].compute(inputs), jnp.nan)
            rewards[name] = reward.astype(jnp.float32)
        return rewards

    return jax.vmap(jax.vmap(rewards_of, in_axes=(0, 0, None)))(tokens, mask, references)


def combine(rewards: Mapping[str, Array], weights: Mapping[str, float]) -> jax.Array:
    """The weighted sum f32[B, G] of the rewards that count: NaN adds nothing; 0 where none counts."""
    total = jnp.zeros(())
    for name, reward in rewards.items():
        total += weights[name] * jnp.where(jnp.isnan(reward), 0.0, reward)
    return total
