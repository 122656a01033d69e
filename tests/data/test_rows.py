"""The part of a row that is one clip: what its tokens show, key slots, V~, and remarks."""

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tests.words import StubVision, stub_config, word_text
from vpjax.data.keyframes import runs_of
from vpjax.data.rows import DegradedAnswers, seen_through, training_row
from vpjax.data.text import tokenize
from vpjax.data.units import choose_capacity, grid_of
from vpjax.data.video import Video
from vpjax.types import Clip, Keyword, Turn

CAPTION = "A red square drifts left and flashes twice."
QUESTION = "What happens?"


@pytest.fixture(scope="module")
def text():
    return word_text()


@pytest.fixture(scope="module")
def config(text):
    return stub_config(text)


def video_of(frames=8, height=56, width=28, fps=8.0):
    pixels = np.random.default_rng(frames).integers(1, 256, (frames, height, width, 3), np.uint8)
    return Video(pixels, np.arange(frames) / fps, 1 / 8)


def clip_of(spans=((0.375, 0.5),), video="a.mp4", question=QUESTION):
    return Clip("a", video, question, CAPTION, (Keyword("flashes", "flash", spans),))


def encode(clip, video, text, config, media=("video",), **options):
    tokens = tokenize(clip, text, media=media, keywords=2, keyword_tokens=3, train_turns="all")
    grids = [] if video is None else [grid_of(video.frames.shape[:3], config.vision)]
    return training_row(
        tokens, [] if video is None else [video], config, choose_capacity(grids, config.vision), **options
    )


def slot_of_unit(row, shows):
    """The slot of each visual token's unit."""
    return row.video.slot[shows[shows >= 0]]


def source(row):
    """For each slot of V~, the slot of V that it shows: all of its tokens agree."""
    per_slot = slot_of_unit(row, row.shows_degraded).reshape(row.slots.shape[1], -1)
    assert (per_slot == per_slot[:, :1]).all()
    return per_slot[:, 0].tolist()


@pytest.mark.parametrize("height, width", [(56, 28), (12, 20), (4, 4), (36, 16)])
def test_a_visual_token_shows_the_pixels_of_its_place(text, config, height, width):
    """Slot by slot, row by row, whatever the order of the units, which is that of windows of 2 x 2 here."""
    config = SimpleNamespace(**vars(config) | dict(vision=StubVision(patch=2, window=8, factor=4)))
    video = video_of(6, height, width)
    row = encode(clip_of(), video, text, config)
    shows, units = row.prompt.shows, row.video
    at = np.flatnonzero(shows >= 0)
    rows, columns = height // 4, width // 4
    np.testing.assert_array_equal(row.prompt.tokens[at], text.video_pad)
    np.testing.assert_array_equal(np.diff(at), 1)
    assert len(at) == 3 * rows * columns and (row.prompt.slot[row.prompt.shows < 0] == -1).all()
    for token, (s, r, k) in zip(at, np.ndindex(3, rows, columns), strict=True):
        unit = shows[token]
        patches = units.pixels[unit].reshape(2, 2, 3, 2, 2, 2)  # i, j, channel, frame, y, x
        pixels = patches.transpose(3, 0, 4, 1, 5, 2).reshape(2, 4, 4, 3)
        box = np.s_[2 * s : 2 * s + 2, 4 * r : 4 * r + 4, 4 * k : 4 * k + 4]
        np.testing.assert_array_equal(pixels, video.frames[box])
        assert units.place[unit].tolist() == [r, k] and units.grid[unit].tolist() == [rows, columns]
        assert row.prompt.slot[token] == units.slot[unit] == s


def test_the_answer_goes_on_where_the_prompt_ends(text, config):
    row = encode(clip_of(), video_of(), text, config)
    assert text.tokenizer.decode(row.answer) == CAPTION + "<|im_end|>" and row.answer[-1] == text.end
    whole, prompt = row.text, row.prompt
    split = len(prompt.tokens)
    np.testing.assert_array_equal(whole.tokens, [*prompt.tokens, *row.answer])
    np.testing.assert_array_equal(whole.positions[:, :split], prompt.positions)
    after = prompt.positions.max() + 1 + np.arange(len(row.answer))
    np.testing.assert_array_equal(whole.positions[:, split:], [after] * 3)
    assert (whole.segment == 1).all()
    for name in ("shows", "slot"):
        np.testing.assert_array_equal(getattr(whole, name)[:split], getattr(prompt, name))
        assert (getattr(whole, name)[split:] == -1).all()


def test_keywords_that_do_not_fit_are_left_out_and_noted(text, config):
    names = ("red square drifts left and", "flashes", "left")
    clip = Clip("a", "a.mp4", QUESTION, CAPTION, tuple(Keyword(n, n, ((0.0, 0.1),)) for n in names))
    row = encode(clip, video_of(), text, config)
    assert (row.keywords[0] == -1).all() and row.lemma[0] == -1 and not row.slots[0].any()
    assert (row.keywords[1] != -1).sum() == 1 and row.lemma[1] >= 0
    assert row.slots[1].tolist() == [True, False, False, False]
    assert sorted(note.split(" ")[0] for note in row.notes) == ["keyword", "keywords"]


def test_a_row_carries_its_key_slots_and_degraded_video(text, config):
    row = encode(clip_of(), video_of(), text, config)
    assert row.slots.tolist() == [[False, True, False, False], [False] * 4]
    assert source(row) == [0, 0, 2, 3] and row.has_degraded and row.hidden.tolist() == [True, False]
    assert row.notes == ()
    # A token of V~ shows the unit of the same place in another slot.
    visual = row.prompt.shows >= 0
    seen, own = row.shows_degraded[visual], row.prompt.shows[visual]
    np.testing.assert_array_equal(row.video.place[seen], row.video.place[own])
    assert (row.shows_degraded[~visual] == -1).all()


def test_a_keyword_between_the_sampled_frames_is_not_hidden(text, config):
    """V~ cannot hide what V does not show, whatever its span: no reward of hidden keywords counts it."""
    unseen = Keyword("drifts", "drift", ((99.0, 99.5),))
    clip = dataclasses.replace(clip_of(), keywords=(*clip_of().keywords, unseen))
    row = encode(clip, video_of(), text, config)
    assert row.has_degraded and row.hidden.tolist() == [True, False]
    assert any("between the sampled frames" in note for note in row.notes)


def test_the_degraded_tokens_begin_with_the_event_and_end_with_the_video(text, config):
    row = encode(clip_of(), video_of(), text, config)
    visual = np.flatnonzero(row.prompt.tokens == text.video_pad)
    part = slice(visual[row.prompt.slot[visual] == 1][0], visual[-1] + 1)  # the event is in slot 1
    degraded = row.degraded
    assert row.shared == part.start
    np.testing.assert_array_equal(row.shows_degraded[: row.shared], row.prompt.shows[: row.shared])
    np.testing.assert_array_equal(degraded.tokens, row.prompt.tokens[part])
    np.testing.assert_array_equal(degraded.positions, row.prompt.positions[:, part])
    np.testing.assert_array_equal(degraded.shows, row.shows_degraded[part])
    np.testing.assert_array_equal(degraded.slot, row.prompt.slot[part])  # those that are replaced
    plain = encode(clip_of(spans=()), video_of(), text, config)
    assert not plain.has_degraded and not plain.hidden.any()
    assert plain.degraded.tokens.shape == (0,) and plain.degraded.positions.shape == (3, 0)


def test_replacement_and_pool(text, config):
    video, clip = video_of(28), clip_of(spans=((0.5, 0.9),))  # slots 2 and 3 of 14
    for seed in range(20):
        row = encode(clip, video, text, config, replacement="random", pool="random", seed=(seed,))
        changed = source(row) != np.arange(14)
        np.testing.assert_array_equal(row.slots[0], changed)  # pooled where replaced
        assert runs_of(changed)[0] != (2, 4) and changed.sum() == 2 and row.hidden.tolist() == [True, False]
        row = encode(clip, video, text, config, replacement="random", seed=(seed,))
        assert np.flatnonzero(row.slots[0]).tolist() == [2, 3] and source(row)[2:4] == [2, 3]
        assert row.has_degraded and not row.hidden.any()  # V~ hides other slots than the keyword's
    row = encode(clip, video, text, config, replacement="none")
    assert source(row) == list(range(14)) and row.slots[0].sum() == 2 and not row.has_degraded
    row = encode(clip, video, text, config, widen=1)
    assert source(row) == [0, 0, 0, 5, 5, *range(5, 14)] and row.slots[0].sum() == 2


def test_events_between_the_sampled_frames_are_noted(text, config):
    row = encode(clip_of(spans=((0.2, 0.4),)), video_of(fps=2.0), text, config)
    assert row.notes == ("keyword whose event falls between the sampled frames",) and not row.slots.any()
    assert source(row) == [0, 1, 2, 3] and not row.has_degraded


def test_time_positions_that_collapse_are_noted(text, config):
    (note,) = encode(clip_of(), video_of(fps=16.0), text, config).notes
    assert "share a time position" in note
    assert encode(clip_of(), video_of(fps=8.0), text, config).notes == ()


@pytest.mark.parametrize("choice", ["key", "random"])
def test_rows_of_text_only(text, config, choice):
    clip = clip_of(video="", spans=())
    row = encode(clip, None, text, config, media=(), replacement=choice, pool=choice, widen=1)
    assert (row.text.shows == -1).all() and row.slots.shape == (2, 0) and not row.has_degraded
    assert row.lemma[0] >= 0 and row.video.pixels.shape == (0, 4, 3 * 2 * 14**2)
    np.testing.assert_array_equal(row.text.positions, [np.arange(len(row.text.tokens))] * 3)


def test_rows_of_one_image(text, config):
    video = Video(np.repeat(video_of(1).frames, 2, 0), np.zeros(2))
    row = encode(clip_of(spans=()), video, text, config, media=("image",))
    visual = row.prompt.shows >= 0
    assert (row.prompt.tokens[visual] == text.image_pad).all()
    assert visual.sum() == 2 and source(row) == [0]


def test_what_a_changed_video_shows():
    """Slots of two tokens; text between them stays."""
    slot = np.array([-1, 0, 0, -1, 1, 1, 2, 2, -1])
    shows = np.array([-1, 7, 5, -1, 3, 9, 4, 6, -1])
    assert seen_through(shows, slot, np.array([2, 1, 1])).tolist() == [-1, 4, 6, -1, 3, 9, 3, 9, -1]
    np.testing.assert_array_equal(seen_through(shows, slot, np.arange(3)), shows)
    assert shows[1] == 7  # left as it was
    assert seen_through(np.array([-1]), np.array([-1]), np.zeros(0, int)).tolist() == [-1]


@pytest.mark.slow
def test_importing_needs_neither_torch_nor_transformers():
    code = "import sys, vpjax.data.collate; print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


TRUTH = "A red square drifts left."


def followed(text, config, answers, clip=None, **options):
    """The row of a clip with V~, and what follows V~'s prompt as (words, words of the targets)."""
    clip = clip or dataclasses.replace(clip_of(), degraded_answer=TRUTH)
    row = encode(clip, video_of(), text, config, answers=answers, **options)
    decode = text.tokenizer.decode
    whole = np.concatenate([row.prompt.tokens, row.degraded_answer])
    return row, decode(row.degraded_answer), decode(whole[row.degraded_target])


def test_the_answer_follows_up_to_the_last_compared_token(text, config):
    row, words, targets = followed(text, config, DegradedAnswers("keywords"))
    assert words.split() == CAPTION.split()[: CAPTION.split().index("flashes") + 1]
    assert targets.split() == ["flashes"]
    whole = np.concatenate([row.prompt.tokens, row.degraded_answer])
    np.testing.assert_array_equal(row.text.tokens[row.target[row.compared]], whole[row.degraded_target])
    np.testing.assert_array_equal(row.degraded.tokens, whole[row.shared :])
    shows = row.degraded.shows[: len(row.prompt.tokens) - row.shared]
    np.testing.assert_array_equal(shows, row.shows_degraded[row.shared :])
    row, _, targets = followed(text, config, DegradedAnswers("all"))
    np.testing.assert_array_equal(row.degraded_answer, row.answer)
    np.testing.assert_array_equal(row.compared, np.arange(len(row.answer)))


def test_a_share_of_the_clips_has_its_own_truth(text, config):
    """The others are compared. The choice is a function of the seed and leaves V~ as it is."""
    answers = DegradedAnswers("keywords", truth_share=0.3)
    rows = [followed(text, config, answers, seed=(0, epoch, 3))[0] for epoch in range(300)]
    truths = [row for row in rows if (row.compared < 0).any()]
    assert 60 < len(truths) < 120  # 90 on average, with a standard deviation of 8
    for row in truths:
        np.testing.assert_array_equal(row.degraded_answer, text.answer(TRUTH))
        places = len(row.prompt.tokens) + np.arange(len(row.degraded_answer))
        np.testing.assert_array_equal(row.degraded_target, places)
    again = followed(text, config, answers, seed=(0, 7, 3))[0]
    np.testing.assert_array_equal(again.degraded_answer, rows[7].degraded_answer)
    for row in rows:
        np.testing.assert_array_equal(row.shows_degraded, rows[0].shows_degraded)
    unknown = followed(text, config, DegradedAnswers("none", truth_share=1.0), clip_of())[0]
    assert not len(unknown.degraded_answer)


def test_a_truth_must_hide_every_keyword(text, config):
    """One that is seen elsewhere in V~ would make it wrong."""
    drift = Keyword("drifts", "drift", ((0.0, 1.0),))  # seen in every slot, of which V~ must keep half
    clip = dataclasses.replace(clip_of(), degraded_answer=TRUTH)
    two = dataclasses.replace(clip, keywords=(*clip.keywords, drift))
    answers = DegradedAnswers("none", truth_share=1.0)
    assert len(followed(text, config, answers, clip)[0].degraded_answer)
    assert not len(followed(text, config, answers, two)[0].degraded_answer)


def test_what_is_not_hidden_is_not_compared(text, config):
    """Without V~, or for a keyword without a time. The random control compares what it stands for."""
    answers = DegradedAnswers("keywords")
    assert not len(followed(text, config, answers, replacement="none")[0].compared)
    unknown = dataclasses.replace(clip_of(), keywords=(Keyword("drifts", "drift", ()),))
    assert not len(followed(text, config, answers, unknown)[0].compared)
    row, _, targets = followed(text, config, answers, replacement="random")
    assert targets.split() == ["flashes"] and not row.hidden.any()


def test_no_truth_where_a_keyword_was_left_out(text, config):
    """Its event is still to be seen in V~."""
    late = Keyword("twice", "twice", ((0.75, 0.875),))
    clip = dataclasses.replace(clip_of(), degraded_answer=TRUTH)
    three = dataclasses.replace(clip, keywords=(*clip.keywords, late, late))  # of which two are kept
    answers = DegradedAnswers("none", truth_share=1.0)
    assert len(followed(text, config, answers, dataclasses.replace(three, keywords=three.keywords[:2]))[1])
    assert not followed(text, config, answers, three)[1]


def test_an_answer_before_the_video_is_not_compared(text, config):
    """It cannot depend on what V~ changes, and the states of the video would read a keyword off it."""
    drift = Keyword("drifts", "drift", ((0.375, 0.5),))
    for question, words in (("Hello?", ["drifts", "flashes"]), ("Hello? <video>", ["drifts", "flashes"])):
        clip = dataclasses.replace(clip_of(), turns=(Turn(question, "It drifts."),))
        clip = dataclasses.replace(clip, keywords=(drift, *clip.keywords))
        row, _, targets = followed(text, config, DegradedAnswers("keywords"), clip)
        assert targets.split() == words
        np.testing.assert_array_equal(row.target[row.compared], row.degraded_target)
        end = row.degraded_target.max() + 1
        assert len(row.degraded.tokens) == end - row.shared
    later = dataclasses.replace(clip, question=f"{QUESTION} <video>", turns=(Turn("Hello?", "It drifts."),))
    row, _, targets = followed(text, config, DegradedAnswers("keywords"), later)
    assert targets.split() == ["flashes"] and row.hidden.tolist() == [False, True]
    assert row.notes == ("keyword left out: an answer before the video names it",)
    row, _, targets = followed(text, config, DegradedAnswers("all"), later)
    assert targets == f"{CAPTION}<|im_end|>"
    first = dataclasses.replace(clip, keywords=(drift,))
    row, after, targets = followed(text, config, DegradedAnswers("keywords"), first)
    assert (after, targets.split()) == ("", ["drifts"])  # V~ ends with the only answer that is compared
    assert len(row.degraded.tokens) == row.degraded_target[0] + 1 - row.shared


def test_a_degraded_video_that_nothing_reads_is_left_out(text, config):
    answers = DegradedAnswers("none", truth_share=0.5, alone=False)
    rows = [followed(text, config, answers, seed=(n,))[0] for n in range(40)]
    for row in rows:
        assert row.has_degraded == (len(row.degraded_answer) > 0) == (len(row.degraded.tokens) > 0)
    assert {row.has_degraded for row in rows} == {True, False}
