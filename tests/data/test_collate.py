"""Packed rows: each clip keeps its own row, whatever its neighbours, their order and their pixels."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests import unpacked
from tests.words import StubVision, stub_config, word_text
from vpjax.data.collate import (
    collate,
    collate_prompts,
    empty_batch,
    empty_prompts,
    single_prompt,
)
from vpjax.data.packing import Sizes
from vpjax.data.positions import Stamps
from vpjax.data.rows import NO_ANSWERS, DegradedAnswers, training_row
from vpjax.data.text import tokenize
from vpjax.data.units import choose_capacity, grid_of
from vpjax.data.video import Video
from vpjax.types import Batch, Clip, Keyword, Prompts

WORDS = "a red square drifts left and flashes twice while the blue cross spins then jumps over it".split()
J, W = 3, 2  # keywords of a clip, tokens of a keyword
SIDES = 6  # rows and columns of a slot's units are fewer
WINDOWED = StubVision(patch=2, window=8, factor=4)  # windows of 2 x 2 units
WHOLE = StubVision(patch=2, window=0, factor=4)


@pytest.fixture(scope="module")
def text():
    return word_text()


def config_of(text, family):
    """As of Qwen2.5-VL, or of Qwen3-VL: a slot's time in words, no windows."""
    config = stub_config(text)
    if family == "qwen2_5":
        return SimpleNamespace(**vars(config) | dict(vision=WINDOWED))
    own = dict(vision=WHOLE, tokens_per_second=None)
    return SimpleNamespace(**vars(config) | own, vision_start=text.vision_start, vision_end=text.vision_end)


FAMILIES = pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
ANSWERS = [
    NO_ANSWERS,
    DegradedAnswers("keywords"),
    DegradedAnswers("none", truth_share=1.0),
    DegradedAnswers("all", truth_share=0.5),
    DegradedAnswers("keywords", truth_share=1.0),
]
STAMPS = Stamps({**{piece: (901,) for piece in "<0123456789."}, " seconds>": (902, 903)})


def random_tokens(text, number, rng, media):
    """A clip with up to three keywords, of which one may have too many tokens, and one no known time."""
    words = rng.choice(WORDS, rng.integers(3, 12), replace=False).tolist()
    keywords = []
    for _ in range(rng.integers(0, J + 1)):
        first = int(rng.integers(len(words)))
        name = " ".join(words[first : first + int(rng.choice([1, 1, 2, W + 1]))])
        start = float(rng.uniform(0, 1))
        spans = ((start, start + float(rng.uniform(0.01, 0.3))),) if rng.random() < 0.8 and media else ()
        keywords.append(Keyword(name, words[first], spans))
    question = " ".join(rng.choice(WORDS, rng.integers(1, 9)))
    clip = Clip(f"c{number}", "x", question, " ".join(words), tuple(keywords))
    if rng.random() < 0.7:
        clip = dataclasses.replace(clip, degraded_answer=" ".join(rng.choice(WORDS, rng.integers(1, 6))))
    tokens = tokenize(clip, text, media=(media,) if media else (), keywords=J, keyword_tokens=W)
    return dataclasses.replace(tokens, stamps=STAMPS)


def random_video(rng, media):
    frames = 2 if media == "image" else 2 * int(rng.integers(1, 9))
    height, width = (4 * int(n) for n in rng.integers(1, SIDES, 2))
    pixels = rng.integers(1, 256, (frames, height, width, 3), np.uint8)
    if media == "image":
        return Video(np.repeat(pixels[:1], 2, 0), np.zeros(2))
    return Video(pixels, np.arange(frames) / frames, 1 / frames)


def random_rows(text, family, count=24, seed=2, answers=ANSWERS):
    """Rows of clips of all kinds, and how units are laid out for them: (rows, capacity, config). answers: the
    kinds of what follows the prompts of V~."""
    rng, config = np.random.default_rng(seed), config_of(text, family)
    kinds = [("video", "video", "image", None)[int(n)] for n in rng.integers(0, 4, count)]
    videos = [kind and random_video(rng, kind) for kind in kinds]
    capacity = choose_capacity(
        [(4, *sides) for sides in np.ndindex(SIDES, SIDES) if all(sides)], config.vision
    )
    rows = []
    for number, (kind, video) in enumerate(zip(kinds, videos, strict=True)):
        tokens = random_tokens(text, number, rng, kind)
        numbers = dict(clip=number, data_set=int(rng.integers(3)))
        own = answers[number % len(answers)]
        rows.append(training_row(tokens, [video] if video else [], config, capacity, answers=own, **numbers))
    return rows, capacity, config


def capacity_for(packing, rows):
    """What the fullest row of a packing holds, and a little more."""
    sums = [
        np.sum([unpacked.sizes_of(rows[number]) for number in numbers], axis=0)
        for numbers in packing
        if numbers
    ]
    return np.max(sums, axis=0)


def pack_of(rows, packing, capacity, config, spare=0, lengths=None):
    lengths = capacity_for(packing, rows) if lengths is None else lengths
    steps = np.array([1, *capacity, *[1] * (len(Sizes._fields) - 3)])
    sizes = Sizes(*(int(n) for n in lengths + spare * steps))
    return collate([[rows[number] for number in numbers] for numbers in packing], sizes, capacity, config, W)


def random_packing(count, rng, rows=5):
    """Clips in any order in rows, some of which may stay empty."""
    place = rng.integers(0, rows, count)
    return [[int(n) for n in rng.permutation(np.flatnonzero(place == r))] for r in range(rows)]


def expected(row):
    """What ``unpacked.clips_of`` finds of a row, from the row itself."""
    units = jax.tree.map(lambda x: np.asarray(x)[None], row.video)
    out = {}
    for prefix, strip in (("", row.text), ("degraded_", row.degraded)):
        whole = jax.tree.map(lambda x: np.asarray(x)[None], strip)
        seen = unpacked.seen(units, 0, whole, np.arange(len(strip.tokens)), 0)
        out |= {prefix + name: value for name, value in seen.items()}
    shows = row.text.shows
    out["windows"], out["slots"] = unpacked.groups_of(units, 0, shows[shows >= 0])
    named = row.lemma >= 0
    free = []
    start = 0
    for count in row.counts:
        for number, slots in enumerate(row.slots[named]):
            length = slots[start : start + count].sum()
            for first in range(start, start + count - length + 1, length) if length else ():
                if not row.slots[:, first : first + length].any():
                    free.append((number, first, first + length))
        start += count
    return out | dict(
        target=row.target,
        origin=np.full(len(row.target), row.data_set),
        degraded_target=row.degraded_target - row.shared,
        compared=np.where(row.compared < 0, -1, row.target[row.compared]),
        shared=row.shared,
        keywords=row.keywords[named],
        lemma=row.lemma[named],
        key_slots=row.slots[named],
        has_degraded=row.in_degraded[named],
        free=np.array(sorted(free)).reshape(-1, 3),
    )


@FAMILIES
def test_a_packed_clip_is_its_own_row(text, family):
    """Its tokens, positions, pixels, slots, windows, V~, targets, keywords and moments: in any packing."""
    rows, capacity, config = random_rows(text, family)
    kinds = {(row.slots.shape[1] > 0, row.has_degraded, bool((row.lemma >= 0).any())) for row in rows}
    assert {(True, True, True), (True, False, False), (False, False, True), (True, False, True)} <= kinds
    assert any((row.keywords == -1).all() and row.notes for row in rows)  # a keyword that was left out
    followed = {(len(row.compared) > 0, bool((row.compared < 0).any())) for row in rows}
    assert followed == {(False, False), (True, False), (True, True)}  # nothing, the answer, V~'s own truth
    rng = np.random.default_rng(1)
    for spare in (0, 3, 7):
        packing = random_packing(len(rows), rng)
        found = unpacked.clips_of(pack_of(rows, packing, capacity, config, spare))
        assert sorted(found) == list(range(len(rows)))
        for number, part in found.items():
            unpacked.same(part, expected(rows[number]))


@FAMILIES
def test_neighbours_change_nothing_of_a_clip(text, family):
    """Their texts, videos and sizes become others; the clip's part of the row stays the same, bit for bit."""
    rows, capacity, config = random_rows(text, family)
    others, _, _ = random_rows(text, family, seed=9)
    packing = [list(range(8)), list(range(8, 16)), list(range(16, 24))]
    kept = {3, 8, 23}
    mixed = [row if n in kept else others[n] for n, row in enumerate(rows)]
    both = np.maximum(capacity_for(packing, rows), capacity_for(packing, mixed))
    before, after = (
        unpacked.clips_of(pack_of(each, packing, capacity, config, lengths=both)) for each in (rows, mixed)
    )
    for number in kept:
        unpacked.same(before[number], after[number])


def test_padding_belongs_to_nobody(text):
    rows, capacity, config = random_rows(text, "qwen2_5")
    batch = pack_of(rows, [[0, 1], [], [2]], capacity, config, spare=5)
    padding = batch.text.segment == 0
    assert not batch.text.segment[1].any() and (batch.clip[1] == -1).all()
    for strip in (batch.text, batch.degraded):
        padding = strip.segment == 0
        assert (strip.shows[padding] == -1).all() and (strip.slot[padding] == -1).all()
    for name in ("target", "origin", "degraded_target", "compared", "keywords", "lemma", "owner", "windows"):
        assert (getattr(batch, name)[1] == -1).all()
    assert not batch.slots[1].any() and not batch.has_degraded[1].any()
    assert (batch.video.window[1] == -1).all() and (batch.video.bins[1] == -1).all()
    # Text, image or video: the targets of the rows are the answers' tokens and nothing else.
    for r, numbers in ((0, (0, 1)), (2, (2,))):
        targets = batch.target[r][batch.target[r] >= 0]
        answers = np.concatenate([rows[n].answer for n in numbers])
        np.testing.assert_array_equal(batch.text.tokens[r, targets], answers)


def test_a_row_without_clips_has_the_shape_of_any_other(text):
    rows, capacity, config = random_rows(text, "qwen2_5")
    sizes = Sizes(*(int(n) for n in capacity_for([range(24)], rows)))
    full, empty = collate([rows], sizes, capacity, config, W), collate([[]], sizes, capacity, config, W)
    assert_alike(full, empty)
    assert_alike(full, empty_batch(1, sizes, capacity, config, W))
    assert isinstance(full, Batch)
    one = collate_prompts([rows[0], None], sizes, capacity, config, J, W)
    assert_alike(one, empty_prompts(2, sizes, capacity, config, J, W))
    assert isinstance(one, Prompts)


def assert_alike(ours, theirs):
    """The same shapes and types."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    describe = lambda leaf: (leaf.shape, leaf.dtype)  # noqa: E731
    assert jax.tree.leaves(jax.tree.map(describe, ours)) == jax.tree.leaves(jax.tree.map(describe, theirs))


@pytest.mark.parametrize("field", Sizes._fields)
def test_a_row_that_is_too_full_is_refused(text, field):
    rows, capacity, config = random_rows(text, "qwen2_5")
    packing = [list(range(len(rows)))]
    sizes = Sizes(*(int(n) for n in capacity_for(packing, rows)))
    collate([rows], sizes, capacity, config, W)
    with pytest.raises(ValueError, match=f"more than .*{field}={getattr(sizes, field) - 1}"):
        collate([rows], sizes._replace(**{field: getattr(sizes, field) - 1}), capacity, config, W)


@FAMILIES
def test_prompts_are_the_rows_without_their_answers(text, family):
    rows, capacity, config = random_rows(text, family, answers=[NO_ANSWERS])
    order = np.random.default_rng(2).permutation(len(rows)).tolist()
    picked = [rows[n] for n in order[:7]] + [None]
    longest = np.max([unpacked.sizes_of(row) for row in rows], axis=0)
    sizes = Sizes(*(int(n) for n in longest))
    batch = collate_prompts(picked, sizes, capacity, config, J, W)
    unpacked.check_units(batch.video)
    for r, row in enumerate(picked):
        if row is None:
            assert batch.clip[r] == -1 and not batch.text.segment[r].any()
            assert (batch.shows_degraded[r] == -1).all() and not batch.hidden[r].any()
            continue
        length = len(row.prompt.tokens)
        assert batch.clip[r] == row.clip and batch.has_degraded[r] == row.has_degraded
        np.testing.assert_array_equal(batch.text.segment[r], np.arange(sizes.tokens) < length)
        np.testing.assert_array_equal(batch.keywords[r], row.keywords)
        np.testing.assert_array_equal(batch.hidden[r], row.hidden)
        whole = expected(dataclasses.replace(row, answer=row.answer[:0]))
        for name, value in unpacked.seen(batch.video, r, batch.text, np.arange(length), 0).items():
            np.testing.assert_array_equal(value, whole[name], err_msg=name)
        changed = dataclasses.replace(batch.text, shows=batch.shows_degraded)
        part = np.arange(row.shared, row.shared + len(row.degraded.tokens))
        for name, value in unpacked.seen(batch.video, r, changed, part, 0).items():
            np.testing.assert_array_equal(value, whole[f"degraded_{name}"], err_msg=name)


@FAMILIES
def test_one_prompt_has_one_of_a_few_shapes(text, family):
    """Whatever the video, which is as the prompt shows it."""
    config, rng = config_of(text, family), np.random.default_rng(0)
    shapes = set()
    for kind in ("video", "image", None) * 20:
        video = kind and random_video(rng, kind)
        row, batch = single_prompt(
            text.chat("what?", (kind,) if kind else ()), [video] if video else [], config, stamps=STAMPS
        )
        unpacked.check_units(batch.video)
        length = len(row.prompt.tokens)
        assert batch.text.segment.sum() == length and batch.clip.tolist() == [0]
        assert not batch.has_degraded.any() and batch.text.tokens.size < 1.25 * length + 16
        seen = unpacked.seen(batch.video, 0, batch.text, np.arange(length), 0)
        unpacked.same(seen, {name: expected(row)[name] for name in seen})
        if video is not None:
            units = np.prod(grid_of(video.frames.shape[:3], config.vision))
            assert (batch.video.window >= 0).sum() == (batch.text.shows >= 0).sum() == units
        shapes.add(str(jax.tree.map(np.shape, batch)))
    assert len(shapes) < 20
