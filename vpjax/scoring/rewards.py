"""The rewards by name, and their weighted sum. docs/rewards.md lists them.

A reward counts for some types of answer. For the others it is NaN, which the sum leaves out. ``hidden`` marks
the keywords whose slots V~ really replaces (``types.Prompts``).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from vpjax.scoring import choices, keywords, spans, stemming, texts, words
from vpjax.scoring.references import AnswerType, References
from vpjax.types import Array, UserError

ALL = tuple(answer_type for answer_type in AnswerType if answer_type != AnswerType.PADDING)
CHOICES = (AnswerType.CHOICE, AnswerType.GROUNDED_CHOICE)
# Each reward's name, and the types of answer for which it counts.
REWARDS: dict[str, tuple[AnswerType, ...]] = {
    "rouge_l": (AnswerType.TEXT,),
    "rouge_1": (AnswerType.TEXT,),
    "rouge_2": (AnswerType.TEXT,),
    "rouge_stems": (AnswerType.TEXT,),
    "caption_recall": (AnswerType.TEXT,),
    "keyword_recall": ALL,
    "keyword_removed": ALL,
    "keyword_absent": ALL,
    "keyword_f1": ALL,
    "keyword_order": ALL,
    "event": ALL,
    "choice": CHOICES,
    "span_iou": (AnswerType.GROUNDING,),
    "evidence_iou": (AnswerType.GROUNDED_CHOICE,),
    "box_iou": (AnswerType.TRACKING,),
    "numerical": (AnswerType.NUMBER,),
    "regression": (AnswerType.SIZE,),
    "ocr": (AnswerType.OCR,),
    "format": ALL,
    "repetition": ALL,
    "overlong": ALL,
}
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
        return completion_rewards(names, table, tokens, mask, reference, hidden)

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


def completion_rewards(
    names: Sequence[str],
    table: texts.ByteTable,
    tokens: Array,
    mask: Array,
    reference: References,
    hidden: Array,
) -> dict[str, jax.Array]:
    """The rewards f32[] of one completion, tokens i32[C]; ``reference`` and ``hidden`` are rows, without the
    axis B."""
    text = texts.read_text(table, tokens, mask)
    in_answer, in_evidence = texts.answer_and_evidence(text)
    answer = jnp.where(in_answer, text, texts.SPACE)
    max_words, max_pieces = table.max_words(len(tokens)), table.max_pieces(len(tokens))
    answer_words = words.word_fingerprints(answer, max_words)

    positions = keywords.first_mentions(answer_words, reference.forms)
    mentioned = positions < max_words
    expected = jnp.greater_equal(reference.positions, 0)
    unexpected = keywords.unexpected_words(answer_words, reference.others)

    def numbers(within: jax.Array) -> spans.Numbers:
        """Read in the whole text: tags part the numbers of answer and evidence."""
        return spans.find_numbers(text, max_pieces).within(within)

    def named_spans(within: jax.Array) -> jax.Array:
        return spans.spans_of(numbers(within))

    def choice() -> jax.Array:
        chosen = choices.chosen_option(answer, max_words, reference.marks, reference.options)
        return chosen == reference.choice

    def box_iou() -> jax.Array:
        boxes, count = spans.boxes_of(numbers(in_answer), len(reference.boxes))
        return spans.box_iou(boxes, count, reference.boxes, reference.box_count)

    def is_formatted() -> jax.Array:
        """Tags; for a grounded choice a list of spans in ``<glue>``; for tracking a list of as many boxes as
        the reference has."""
        is_grounded = reference.answer_type == AnswerType.GROUNDED_CHOICE
        is_tracking = reference.answer_type == AnswerType.TRACKING
        span_count = jnp.sum(~jnp.isnan(named_spans(in_evidence)[:, 0]))
        _, box_count = spans.boxes_of(numbers(in_answer), len(reference.boxes))
        evidence = jnp.where(in_evidence, text, texts.SPACE)
        has_evidence = spans.is_list(evidence, spans.SPAN_MARKS, span_count)
        has_boxes = spans.is_list(answer, spans.BOX_MARKS, box_count) & (box_count == reference.box_count)
        is_tagged = texts.has_tags(text, is_grounded)
        return is_tagged & (has_evidence | ~is_grounded) & (has_boxes | ~is_tracking)

    def event() -> jax.Array:
        """Where the clip has no keyword, nothing known happens: the right text names no keyword at all."""
        nothing_happens = reference.without_keywords & (reference.answer_type == AnswerType.TEXT)
        right = keywords.exact_match(mentioned, expected, unexpected)
        return jnp.where(expected.any() | nothing_happens, right, jnp.nan)

    # Functions, so that only the rewards that are requested are traced.
    functions: dict[str, Callable[[], jax.Array]] = {
        "rouge_l": lambda: words.rouge_l(answer_words, reference.words),
        "rouge_1": lambda: words.rouge_n(answer_words, reference.words, 1),
        "rouge_2": lambda: words.rouge_n(answer_words, reference.words, 2),
        "rouge_stems": lambda: words.rouge_mean(stemming.word_stems(answer, max_words), reference.stems),
        "caption_recall": lambda: words.content_recall(answer_words, reference.content),
        "keyword_recall": lambda: keywords.keyword_recall(mentioned, expected),
        "keyword_removed": lambda: keywords.keyword_recall(mentioned, expected & hidden),
        "keyword_absent": lambda: keywords.keyword_absent(mentioned, expected & hidden),
        "keyword_f1": lambda: keywords.keyword_f1(mentioned, expected, unexpected),
        "keyword_order": lambda: keywords.keyword_order(mentioned, positions, reference.positions),
        "event": event,
        "choice": choice,
        "span_iou": lambda: spans.best_iou(spans.last_span(named_spans(in_answer)), reference.spans),
        "evidence_iou": lambda: spans.span_iou(named_spans(in_evidence), reference.spans),
        "box_iou": box_iou,
        "numerical": lambda: spans.same_number(spans.the_number(numbers(in_answer)), reference.number),
        "regression": lambda: spans.closeness(spans.the_number(numbers(in_answer)), reference.number),
        "ocr": lambda: words.word_accuracy(words.chunk_fingerprints(answer, max_words), reference.chunks),
        "format": is_formatted,
        "repetition": lambda: words.repetition(words.word_fingerprints(text, max_words)),
        "overlong": lambda: overlong(jnp.sum(mask), len(tokens)),
    }
    rewards = {}
    for name in names:
        counts = jnp.isin(reference.answer_type, jnp.array(REWARDS[name]))
        rewards[name] = jnp.where(counts, functions[name](), jnp.nan).astype(jnp.float32)
    return rewards


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
