"""Rows and batches: targets, key slots, V~ and padding."""

import subprocess
import sys

import numpy as np
import pytest

from tests.words import stub_config, word_text
from vpjax.data.keyframes import runs_of
from vpjax.data.rows import bucket_of, collate, masked_row, training_row
from vpjax.data.text import tokenize
from vpjax.data.video import Video
from vpjax.types import Clip, Keyword

CAPTIONS = ("A red square drifts left and flashes twice.", "A blue cross spins, then it jumps.")
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


def clip_of(answer=CAPTIONS[0], keyword="flashes", spans=((0.375, 0.5),)):
    return Clip("a", "a.mp4", QUESTION, answer, (Keyword(keyword, "flash", spans),))


def encode(clip, video, text, config, media="video", **options):
    tokens = tokenize(clip, text, media=media, keywords=2, keyword_tokens=3)
    return training_row(tokens, video, config, **options)


def test_only_the_answer_and_its_end_are_targets(text, config):
    row = encode(clip_of(), video_of(), text, config)
    batch = collate([row, masked_row(2, 3)], bucket_of([row], multiple=16), config)
    assert text.tokenizer.decode(batch.suffix[0][batch.target[0]]) == CAPTIONS[0] + "<|im_end|>"
    assert batch.suffix[0][batch.target[0]][-1] == text.end  # even where pad and end are one id
    assert not batch.target[1].any() and not batch.slots[1].any() and batch.clip.tolist() == [0, -1]
    assert QUESTION not in text.tokenizer.decode(batch.suffix[0])


def test_keywords_that_do_not_fit_are_left_out_and_noted(text, config):
    names = ("red square drifts left and", "flashes", "left")
    clip = Clip("a", "a.mp4", QUESTION, CAPTIONS[0], tuple(Keyword(n, n, ((0.0, 0.1),)) for n in names))
    row = encode(clip, video_of(), text, config)
    assert (row.keywords[0] == -1).all() and row.lemma[0] == -1 and not row.slots[0].any()
    assert (row.keywords[1] != -1).sum() == 1 and row.lemma[1] >= 0
    assert row.slots[1].tolist() == [True, False, False, False]
    assert sorted(note.split(" ")[0] for note in row.notes) == ["keyword", "keywords"]


def test_a_row_carries_its_key_slots_and_degraded_video(text, config):
    row = encode(clip_of(), video_of(), text, config)
    assert row.slots.tolist() == [[False, True, False, False], [False] * 4]
    assert row.source.tolist() == [0, 0, 2, 3]
    assert row.notes == ()


def test_replacement_and_pool(text, config):
    video, clip = video_of(28), clip_of(spans=((0.5, 0.9),))  # slots 2 and 3 of 14
    for seed in range(20):
        row = encode(clip, video, text, config, replacement="random", pool="random", seed=(seed,))
        changed = row.source != np.arange(14)
        np.testing.assert_array_equal(row.slots[0], changed)  # pooled where replaced
        assert runs_of(changed)[0] != (2, 4) and changed.sum() == 2
        row = encode(clip, video, text, config, replacement="random", seed=(seed,))
        assert np.flatnonzero(row.slots[0]).tolist() == [2, 3] and row.source[2:4].tolist() == [2, 3]
    row = encode(clip, video, text, config, replacement="none")
    assert row.source.tolist() == list(range(14)) and row.slots[0].sum() == 2
    row = encode(clip, video, text, config, widen=1)
    assert row.source.tolist() == [0, 0, 0, 5, 5, *range(5, 14)] and row.slots[0].sum() == 2


def test_events_between_the_sampled_frames_are_noted(text, config):
    row = encode(clip_of(spans=((0.2, 0.4),)), video_of(fps=2.0), text, config)
    assert row.notes == ("keyword whose event falls between the sampled frames",) and not row.slots.any()
    assert row.source.tolist() == [0, 1, 2, 3]


def test_time_positions_that_collapse_are_noted(text, config):
    (note,) = encode(clip_of(), video_of(fps=16.0), text, config).notes
    assert "share a time position" in note
    assert encode(clip_of(), video_of(fps=8.0), text, config).notes == ()


def test_batch_of_different_videos(text, config):
    """4 and 2 slots of 2 tokens, different answers: everything is right-padded, and nothing else moves."""
    long = encode(clip_of(), video_of(8), text, config)
    short = encode(clip_of(CAPTIONS[1]), video_of(4), text, config)
    bucket = bucket_of([long, short], multiple=8)
    assert bucket.frames == 8 and bucket.prompt % 8 == 0 and bucket.suffix % 8 == 0
    batch = collate([long, short], bucket, config)
    assert batch.frames.shape == (2, 8, 56, 28, 3) and batch.frames.dtype == np.uint8
    assert batch.slot_valid.tolist() == [[True] * 4, [True, True, False, False]]
    for i, row in enumerate((long, short)):
        p, v, s = len(row.prompt), len(row.visual), len(row.source)
        assert batch.prompt_valid[i].sum() == p and batch.prompt_valid[i, :p].all()
        np.testing.assert_array_equal(batch.prompt[i, :p], row.prompt)
        np.testing.assert_array_equal(batch.frames[i, : 2 * s], row.frames)
        assert (batch.prompt[i, batch.visual[i, :v]] == text.video_pad).all()
        assert (batch.visual[i, v:] == bucket.prompt).all()
        assert batch.source[i, s:].tolist() == list(range(s, 4))
        # The answer goes on where the prompt ends, not where its padding ends.
        after = row.positions[:, -1] + 1
        np.testing.assert_array_equal(batch.positions[i, :, bucket.prompt], after)
        np.testing.assert_array_equal(np.diff(batch.positions[i, :, bucket.prompt :]), 1)
    assert batch.video_end == batch.visual[0].max() + 1
    assert batch.visual.shape == (2, 8) and batch.keywords.shape == (2, 2, 3)


def test_rows_of_text_only(text, config):
    row = encode(Clip("t", "", QUESTION, "yes"), None, text, config, media=None)
    bucket = bucket_of([row])
    batch = collate([row], bucket, config)
    assert (bucket.frames, bucket.video_end) == (0, 0) and batch.visual.shape == (1, 0)
    length = len(row.prompt) + len(row.suffix)
    np.testing.assert_array_equal(batch.positions[0], np.tile(np.arange(length), (3, 1)))


def test_rows_of_one_image(text, config):
    video = Video(np.repeat(video_of(1).frames, 2, 0), np.zeros(2))
    row = encode(clip_of(spans=()), video, text, config, media="image")
    assert (row.prompt[row.visual] == text.image_pad).all()
    assert len(row.visual) == 2 and row.source.tolist() == [0]


def test_rows_that_do_not_fit_are_refused(text, config):
    row = encode(clip_of(), video_of(8), text, config)
    with pytest.raises(ValueError, match="does not fit"):
        collate([row], bucket_of([encode(clip_of(), video_of(4), text, config)]), config)
    with pytest.raises(ValueError, match="share no bucket"):
        bucket_of([row, encode(clip_of(), video_of(8, 28, 56), text, config)])


@pytest.mark.slow
def test_importing_needs_neither_torch_nor_transformers():
    code = "import sys, vpjax.data.rows; print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
