"""The rewards by name: on the device, their twins on the host, and their weighted sum.

A reward counts for some kinds of clip and is NaN, "not this task", for the others: a sum ignores it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpjax.scoring import keywords, spans, texts, words
from vpjax.scoring.references import ClipReference, Kind, References, Sizes, clip_reference
from vpjax.scoring.texts import ByteTable, Reading
from vpjax.types import Array, Clip, UserError


class Limits(NamedTuple):
    """Tokens of a completion, its end included: ``overlong`` falls from ``limit - margin`` to ``limit``."""

    limit: int
    margin: int


class Case(NamedTuple):
    """One completion and what is wanted of it, on the device or, in brackets, on the host.

    words u32[W] (list of bytes): of the answer. place i32[J], named bool[J] (lists, of the keywords that are
    asked alone): where and whether each keyword is said. stray u32[W] (set): words of other known keywords.
    most: W, and the most runs of letters or of digits.
    """

    said: Reading
    words: Array | list[bytes]
    place: Array | list[int | None]
    named: Array | list[bool]
    stray: Array | frozenset[bytes]
    wanted: References | ClipReference
    limits: Limits
    most: tuple[int, int] = (0, 0)


class Reward(NamedTuple):
    """device: Case -> f32[]. host: its twin. kinds: of clip for which it counts."""

    device: Callable[[Case], Array]
    host: Callable[[Case], float]
    kinds: tuple[Kind, ...]


ANY = tuple(kind for kind in Kind if kind != Kind.MASKED)
TEXT, GROUNDING, TRACKING, EVIDENCE = (
    (kind,) for kind in (Kind.TEXT, Kind.GROUNDING, Kind.TRACKING, Kind.EVIDENCE)
)
CHOICE = (Kind.CHOICE, Kind.EVIDENCE)

REWARDS = {
    # The words of a caption: F1 of their longest common subsequence, of single words and of pairs; recall of
    # those that say what happens.
    "rouge_l": Reward(
        lambda c: words.rouge_l(c.words, c.wanted.words),
        lambda c: words.host_rouge_l(c.words, c.wanted.words),
        TEXT,
    ),
    "rouge_1": Reward(
        lambda c: words.rouge_n(c.words, c.wanted.words, 1),
        lambda c: words.host_rouge_n(c.words, c.wanted.words, 1),
        TEXT,
    ),
    "rouge_2": Reward(
        lambda c: words.rouge_n(c.words, c.wanted.words, 2),
        lambda c: words.host_rouge_n(c.words, c.wanted.words, 2),
        TEXT,
    ),
    "caption_recall": Reward(
        lambda c: words.content_recall(c.words, c.wanted.content),
        lambda c: words.host_content_recall(c.words, c.wanted.content),
        TEXT,
    ),
    # The keywords that the reference says. removed: those that V~ lacks. event: all of them and no other.
    "keyword_recall": Reward(
        lambda c: keywords.recall(c.named, asked(c)),
        lambda c: keywords.host_recall(c.named),
        ANY,
    ),
    "keyword_removed": Reward(
        lambda c: keywords.recall(c.named, asked(c) & c.wanted.removed),
        lambda c: keywords.host_recall(
            [named for named, keyword in zip(c.named, c.wanted.asked, strict=True) if keyword.removed]
        ),
        ANY,
    ),
    "keyword_f1": Reward(
        lambda c: keywords.f1(c.named, asked(c), c.stray),
        lambda c: keywords.host_f1(c.named, c.stray),
        ANY,
    ),
    "keyword_order": Reward(
        lambda c: keywords.order(c.place, c.wanted.places, c.named),
        lambda c: keywords.host_order(c.place, [keyword.place for keyword in c.wanted.asked]),
        ANY,
    ),
    "event": Reward(
        lambda c: keywords.exact(c.named, asked(c), c.stray),
        lambda c: keywords.host_exact(c.named, c.stray),
        ANY,
    ),
    # The letter of the right option.
    "choice": Reward(
        lambda c: (texts.chosen(c.said.answer, c.wanted.choices) == c.wanted.choice).astype(jnp.float32),
        lambda c: float(texts.host_chosen(c.said.answer, c.wanted.choices) == c.wanted.choice),
        CHOICE,
    ),
    # IoU of the last span that is named; of all the spans of the evidence for a choice; of boxes, in turn.
    "span_iou": Reward(
        lambda c: spans.span_iou(spans.spans_of(c.said.answer, c.most[1], only_last=True), c.wanted.spans),
        lambda c: spans.host_span_iou(spans.host_spans_of(c.said.answer)[-1:], c.wanted.spans),
        GROUNDING,
    ),
    "evidence_iou": Reward(
        lambda c: spans.span_iou(spans.spans_of(c.said.evidence, c.most[1], only_last=False), c.wanted.spans),
        lambda c: spans.host_span_iou(spans.host_spans_of(c.said.evidence), c.wanted.spans),
        EVIDENCE,
    ),
    "box_iou": Reward(
        lambda c: spans.box_iou(
            *spans.boxes_of(c.said.answer, c.most[1], len(c.wanted.boxes)), c.wanted.boxes, c.wanted.box_count
        ),
        lambda c: spans.host_box_iou(spans.host_boxes_of(c.said.answer), c.wanted.boxes),
        TRACKING,
    ),
    # The whole text: its tags, its repetitions, its length.
    "format": Reward(
        lambda c: texts.formatted(c.said.text), lambda c: texts.host_formatted(c.said.text), ANY
    ),
    "repetition": Reward(
        lambda c: words.repetition(words.words_of(c.said.text, c.most[0])),
        lambda c: words.host_repetition(words.host_words_of(c.said.text)),
        ANY,
    ),
    "overlong": Reward(
        lambda c: overlong(c.said.length, c.limits),
        lambda c: host_overlong(c.said.length, c.limits),
        ANY,
    ),
}


def asked(c: Case) -> Array:
    return c.wanted.places >= 0


def overlong(length: Array, limits: Limits) -> Array:
    """0 up to ``limit - margin`` tokens, -1 from ``limit`` on, straight between (DAPO's soft punishment)."""
    return -jnp.clip((length - limits.limit + limits.margin) / limits.margin, 0.0, 1.0)


def host_overlong(length: int, limits: Limits) -> float:
    beyond = length - (limits.limit - limits.margin)
    return -min(max(beyond, 0), limits.margin) / limits.margin


def limits_of(limit: int, margin: int | None = None) -> Limits:
    """The limits of ``overlong``; margin: by default DAPO's share of the limit, a fifth. UserError where they
    are none."""
    margin = max(1, limit // 5) if margin is None else margin
    if not 0 < margin <= limit:
        raise UserError(
            f"overlong: a margin of {margin} tokens before the limit of {limit}; take 1 to {limit}"
        )
    return Limits(limit, margin)


def check_names(names: Iterable[str]) -> None:
    """UserError for a reward that does not exist."""
    unknown = [name for name in names if name not in REWARDS]
    if unknown:
        known = ", ".join(REWARDS)
        raise UserError(
            f"reward {unknown[0]!r} does not exist; take my_module:fn (your own) or one of {known}"
        )


def score(
    names: Sequence[str],
    table: ByteTable,
    tokens: Array,
    mask: Array,
    refs: References,
    *,
    limits: Limits | None = None,
) -> dict[str, Array]:
    """The rewards f32[B, G] of the completions tokens i32[B, G, C], of which ``mask`` bool[B, G, C] keeps
    what was said, the end included. NaN: not this task. For use inside jit.

    limits: of ``overlong``, by default C and its last fifth. UserError for a name that does not exist.
    """
    check_names(names)
    limits = limits or limits_of(tokens.shape[-1])

    def one(tokens: Array, mask: Array, wanted: References) -> dict[str, Array]:
        said = texts.read(table, tokens, mask)
        most = len(tokens) * table.words, len(tokens) * table.pieces
        found = words.words_of(said.answer, most[0])
        place = keywords.places(found, wanted.forms)
        case = Case(
            said=said,
            words=found,
            place=place,
            named=place < len(found),
            stray=keywords.strays(found, wanted.others),
            wanted=wanted,
            limits=limits,
            most=most,
        )
        rewards = {name: REWARDS[name] for name in names}
        counts = {name: jnp.isin(wanted.kind, jnp.array(r.kinds)) for name, r in rewards.items()}
        return {
            name: jnp.where(counts[name], reward.device(case), jnp.nan).astype(jnp.float32)
            for name, reward in rewards.items()
        }

    return jax.vmap(jax.vmap(one, in_axes=(0, 0, None)))(tokens, mask, refs)


def host_score(
    names: Sequence[str],
    completions: Sequence[Sequence[str]],
    clips: Sequence[Clip | None],
    sizes: Sizes,
    *,
    lengths: Sequence[Sequence[int]] | None = None,
    limits: Limits | None = None,
) -> dict[str, np.ndarray]:
    """The same rewards f32[B, G] of decoded completions [B][G], without JAX. lengths: in tokens, and limits:
    for ``overlong`` alone."""
    check_names(names)
    if "overlong" in names and (lengths is None or limits is None):
        raise UserError("reward 'overlong' needs the completions' lengths in tokens and their limits")
    wanted = [clip and clip_reference(clip, keywords=sizes.keywords, known=sizes.known) for clip in clips]
    out = {name: np.full((len(clips), len(completions[0])), np.nan, np.float32) for name in names}
    for b, g in np.ndindex(len(clips), len(completions[0])):
        if wanted[b]:
            case = host_case(completions[b][g], wanted[b], lengths[b][g] if lengths else 0, limits)
            for name in names:
                if wanted[b].kind in REWARDS[name].kinds:
                    out[name][b, g] = REWARDS[name].host(case)
    return out


def host_case(text: str, wanted: ClipReference, length: int, limits: Limits | None) -> Case:
    said = texts.host_read(text, length)
    found = words.host_words_of(said.answer)
    place = [keywords.host_place(found, keyword.forms) for keyword in wanted.asked]
    return Case(
        said=said,
        words=found,
        place=place,
        named=[at is not None for at in place],
        stray=frozenset(found) & wanted.known - wanted.own,
        wanted=wanted,
        limits=limits,
    )


def combine(scores: Mapping[str, Array], weights: Mapping[str, float]) -> Array:
    """The weighted sum f32[B, G] of the rewards that count: NaN adds nothing; 0 where none counts."""
    return sum(weights[name] * jnp.where(jnp.isnan(x), 0.0, x) for name, x in scores.items())
