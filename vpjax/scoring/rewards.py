"""The rewards by name, and their weighted sum. docs/rewards.md lists them.

A reward counts for some types of answer. For the others it is NaN, which the sum leaves out. ``hidden`` marks
the keywords whose slots V~ really replaces (``types.Prompts``).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vpjax.scoring import choices, keywords, spans, stemming, texts, words
from vpjax.scoring.references import AnswerType, References, answer_type
from vpjax.types import Array, Clip, UserError

ALL = tuple(answer_type for answer_type in AnswerType if answer_type != AnswerType.PADDING)
CHOICES = (AnswerType.CHOICE, AnswerType.GROUNDED_CHOICE)
# Those that read no reference answer, so that they count on V~ even where its truth is not known.
FREE_OF_ANSWER = ("keyword_absent", "format", "repetition", "overlong")


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
    hidden: Array,
) -> dict[str, jax.Array]:
    """The rewards f32[B, G] of completions, tokens i32[B, G, C], of which ``mask`` bool[B, G, C] marks those
    to read, the stop token included. hidden: bool[B, J]. NaN: the reward does not count for the clip. For use
    inside jit."""

    def compute(tokens: Array, mask: Array, reference: References, hidden: Array) -> dict[str, jax.Array]:
        said = read_completion(table, tokens, mask, reference, hidden)
        rewards = {}
        for name in names:
            counts = jnp.isin(reference.answer_type, jnp.array(REWARDS[name].answer_types))
            rewards[name] = jnp.where(counts, REWARDS[name].value(said), jnp.nan).astype(jnp.float32)
        return rewards

    return jax.vmap(jax.vmap(compute, in_axes=(0, 0, None, None)))(tokens, mask, references, hidden)


def answer_numbers(
    table: texts.ByteTable, known: keywords.KeywordTable, tokens: Array, mask: Array, references: References
) -> jax.Array:
    """What completions say, i32[B, G]: equal numbers for the same option or, in captions and orders, for the
    same set of keywords. -1 for other tasks. Arguments as in ``compute_rewards``; known: those of the run."""

    def compute(tokens: Array, mask: Array, reference: References) -> jax.Array:
        text = texts.read_text(table, tokens, mask)
        in_answer, _ = texts.answer_and_evidence(text)
        answer = jnp.where(in_answer, text, texts.SPACE)
        max_words = table.max_words(len(tokens))
        answer_words = words.word_fingerprints(answer, max_words)
        # Keywords of several words are not in the table of the run, but the clip's own are found here.
        mentioned = keywords.first_mentions(answer_words, reference.forms) < len(answer_words)
        places = words.powers(words.BASE, len(mentioned))
        own = jnp.where(mentioned, places, 0).sum(dtype=jnp.uint32)
        named = words.mix_bits(keywords.named_lemmas(answer_words, known) + words.mix_bits(own))
        # 0 stands for answers whose option cannot be read: they say the same.
        option = 1 + choices.chosen_option(answer, max_words, reference.marks, reference.options)
        is_text = reference.answer_type == AnswerType.TEXT
        is_choice = jnp.isin(reference.answer_type, jnp.array(CHOICES))
        number = jnp.where(is_text, (named >> 1).astype(jnp.int32), option)
        return jnp.where(is_text | is_choice, number, -1)

    return jax.vmap(jax.vmap(compute, in_axes=(0, 0, None)))(tokens, mask, references)


@dataclasses.dataclass(frozen=True)
class Completion:
    """A completion as rewards read it, beside what it is compared with.

    tokens i32[C]. mask bool[C]: those to read. text: its characters (``texts.read_text``); in_answer,
    in_evidence: which of them stand in the answer and in the evidence. answer: the text with spaces in the
    place of all others. words u32[W]: fingerprints of those of the answer. max_words, max_pieces: of a text,
    at most. positions i32[J]: of the first mention of each keyword; mentioned bool[J]: it has one. expected
    bool[J]: the keywords that there are; hidden bool[J]: those that V~ hides. unexpected u32[W]: the words
    that name keywords of other clips, else 0. reference: a row, without the axis B.
    """

    tokens: Array
    mask: Array
    text: jax.Array
    in_answer: jax.Array
    in_evidence: jax.Array
    answer: jax.Array
    words: jax.Array
    max_words: int
    max_pieces: int
    positions: jax.Array
    mentioned: jax.Array
    expected: jax.Array
    hidden: Array
    unexpected: jax.Array
    reference: References

    @functools.cached_property  # traced once for all rewards, and only if one of them asks
    def numbers(self) -> spans.Numbers:
        """Of the whole text: tags part the numbers of answer and evidence."""
        return spans.find_numbers(self.text, self.max_pieces)

    def number(self) -> jax.Array:
        return spans.the_number(self.numbers.within(self.in_answer))

    def spans_in(self, within: jax.Array) -> jax.Array:
        return spans.spans_of(self.numbers.within(within))

    @functools.cached_property
    def boxes(self) -> tuple[jax.Array, jax.Array]:
        return spans.boxes_of(self.numbers.within(self.in_answer), len(self.reference.boxes))


def read_completion(
    table: texts.ByteTable, tokens: Array, mask: Array, reference: References, hidden: Array
) -> Completion:
    """What rewards read of one completion. Arguments as in ``compute_rewards``, without the axes B and G."""
    text = texts.read_text(table, tokens, mask)
    in_answer, in_evidence = texts.answer_and_evidence(text)
    answer = jnp.where(in_answer, text, texts.SPACE)
    max_words, max_pieces = table.max_words(len(tokens)), table.max_pieces(len(tokens))
    answer_words = words.word_fingerprints(answer, max_words)
    positions = keywords.first_mentions(answer_words, reference.forms)
    return Completion(
        tokens=tokens,
        mask=mask,
        text=text,
        in_answer=in_answer,
        in_evidence=in_evidence,
        answer=answer,
        words=answer_words,
        max_words=max_words,
        max_pieces=max_pieces,
        positions=positions,
        mentioned=positions < max_words,
        expected=jnp.greater_equal(reference.positions, 0),
        hidden=hidden,
        unexpected=keywords.unexpected_words(answer_words, reference.others),
        reference=reference,
    )


def _event(said: Completion) -> jax.Array:
    """Where nothing known happens, the right text names no keyword at all, in at least a word."""
    reference = said.reference
    nothing_happens = reference.shows_nothing & (reference.answer_type == AnswerType.TEXT)
    right = keywords.exact_match(said.mentioned, said.expected, said.unexpected)
    right = jnp.where(words.count_words(said.words) > 0, right, 0.0)
    return jnp.where(said.expected.any() | nothing_happens, right, jnp.nan)


def _choice(said: Completion) -> jax.Array:
    reference = said.reference
    chosen = choices.chosen_option(said.answer, said.max_words, reference.marks, reference.options)
    return chosen == reference.choice


def _box_iou(said: Completion) -> jax.Array:
    boxes, count = said.boxes
    return spans.box_iou(boxes, count, said.reference.boxes, said.reference.box_count)


def _format(said: Completion) -> jax.Array:
    """Tags; for a grounded choice a list of spans in ``<glue>``; for tracking a list of as many boxes as the
    reference has."""
    is_grounded = said.reference.answer_type == AnswerType.GROUNDED_CHOICE
    is_tracking = said.reference.answer_type == AnswerType.TRACKING
    span_count = jnp.sum(~jnp.isnan(said.spans_in(said.in_evidence)[:, 0]))
    _, box_count = said.boxes
    evidence = jnp.where(said.in_evidence, said.text, texts.SPACE)
    has_evidence = spans.is_list(evidence, spans.SPAN_MARKS, span_count)
    is_whole = box_count == said.reference.box_count
    has_boxes = spans.is_list(said.answer, spans.BOX_MARKS, box_count) & is_whole
    is_tagged = texts.has_tags(said.text, is_grounded)
    return is_tagged & (has_evidence | ~is_grounded) & (has_boxes | ~is_tracking)


class Reward(NamedTuple):
    """answer_types: for which it counts. value: a function of a completion that gives f32[], so that only the
    rewards that are requested are traced."""

    answer_types: tuple[AnswerType, ...]
    value: Callable[[Completion], jax.Array]


TEXT, NUMBER, SIZE = (AnswerType.TEXT,), (AnswerType.NUMBER,), (AnswerType.SIZE,)
REWARDS: dict[str, Reward] = {
    "rouge_l": Reward(TEXT, lambda said: words.rouge_l(said.words, said.reference.words)),
    "rouge_1": Reward(TEXT, lambda said: words.rouge_n(said.words, said.reference.words, 1)),
    "rouge_2": Reward(TEXT, lambda said: words.rouge_n(said.words, said.reference.words, 2)),
    "rouge_stems": Reward(
        TEXT,
        lambda said: words.rouge_mean(stemming.word_stems(said.answer, said.max_words), said.reference.stems),
    ),
    "caption_recall": Reward(TEXT, lambda said: words.content_recall(said.words, said.reference.content)),
    "keyword_recall": Reward(ALL, lambda said: keywords.keyword_recall(said.mentioned, said.expected)),
    "keyword_removed": Reward(
        ALL, lambda said: keywords.keyword_recall(said.mentioned, said.expected & said.hidden)
    ),
    "keyword_absent": Reward(
        ALL, lambda said: keywords.keyword_absent(said.mentioned, said.expected & said.hidden)
    ),
    "keyword_f1": Reward(
        ALL, lambda said: keywords.keyword_f1(said.mentioned, said.expected, said.unexpected)
    ),
    "keyword_order": Reward(
        ALL,
        lambda said: keywords.keyword_order(said.mentioned, said.positions, said.reference.positions),
    ),
    "event": Reward(ALL, _event),
    "choice": Reward(CHOICES, _choice),
    "span_iou": Reward(
        (AnswerType.GROUNDING,),
        lambda said: spans.best_iou(spans.last_span(said.spans_in(said.in_answer)), said.reference.spans),
    ),
    "evidence_iou": Reward(
        (AnswerType.GROUNDED_CHOICE,),
        lambda said: spans.span_iou(said.spans_in(said.in_evidence), said.reference.spans),
    ),
    "box_iou": Reward((AnswerType.TRACKING,), _box_iou),
    "numerical": Reward(NUMBER, lambda said: spans.same_number(said.number(), said.reference.number)),
    "regression": Reward(SIZE, lambda said: spans.closeness(said.number(), said.reference.number)),
    "ocr": Reward(
        (AnswerType.OCR,),
        lambda said: words.word_accuracy(
            words.chunk_fingerprints(said.answer, said.max_words), said.reference.chunks
        ),
    ),
    "format": Reward(ALL, _format),
    "repetition": Reward(
        ALL, lambda said: words.repetition(words.word_fingerprints(said.text, said.max_words))
    ),
    "overlong": Reward(ALL, lambda said: overlong(jnp.sum(said.mask), len(said.tokens))),
}


def counts_for(name: str, clip: Clip) -> bool:
    """Whether a reward can count for a clip: by its task and, if it compares keywords, by having some."""
    has_keywords = bool(clip.keywords) or not name.startswith("keyword_")
    return has_keywords and answer_type(clip) in REWARDS[name].answer_types


def overlong(length: jax.Array, limit: int) -> jax.Array:
    """DAPO's soft punishment: 0 for a completion that leaves a fifth of ``limit`` unused, -1 for one of
    ``limit`` tokens, linear in between."""
    margin = max(1, limit // 5)
    return -jnp.clip((length - limit + margin) / margin, 0.0, 1.0)


def combine(rewards: Mapping[str, Array], weights: Mapping[str, float]) -> jax.Array:
    """The weighted sum f32[B, G] of the rewards that count: NaN adds nothing; 0 where none counts."""
    total = jnp.zeros(())
    for name, reward in rewards.items():
        total += weights[name] * jnp.where(jnp.isnan(reward), 0.0, reward)
    return total
