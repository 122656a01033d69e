"""Clips of several videos and images: their places in the text, and their positions."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from tests.data.test_dialogue import QWEN, said, with_template
from tests.data.test_positions import PADS, huggingface
from tests.words import word_text
from vpjax.data.positions import positions, time_ids, with_media
from vpjax.data.text import Text, tokenize, without_media
from vpjax.data.tokenizer import train_tokenizer
from vpjax.types import Clip, Keyword, Turn, UserError


@pytest.fixture(scope="module")
def text():
    return word_text()


# Positions


def layout(rng, per_second):
    """The ids of a prompt of several media, with text before each, and their grids and seconds per slot."""
    ids, grids, seconds, kinds = [], [], [], []
    for _ in range(int(rng.integers(2, 5))):
        is_image = bool(rng.integers(0, 2))
        grid = (1 if is_image else int(rng.integers(1, 5)), *(int(n) for n in rng.integers(1, 6, 2)))
        pieces = grid[0] if per_second is None else 1
        for _ in range(pieces):
            ids += [1] * int(rng.integers(1, 4)) + [PADS[not is_image]] * (int(np.prod(grid)) // pieces)
        grids.append(grid)
        kinds.append(is_image)
        seconds.append(0.0 if is_image else float(rng.choice([1.0, 0.25, 0.5])))
    return np.array([*ids, *[1] * int(rng.integers(0, 4))]), grids, seconds, kinds


@pytest.mark.parametrize("per_second", [2.0, 25.0, None])
def test_positions_are_those_of_transformers(per_second):
    """By its own rule after a video; by Qwen's too where no video lasts longer than it is wide or high."""
    rng, agreed = np.random.default_rng(0), 0
    for _ in range(40):
        ids, grids, seconds, kinds = layout(rng, per_second)
        images = [grid for grid, is_image in zip(grids, kinds, strict=True) if is_image]
        videos = [grid for grid, is_image in zip(grids, kinds, strict=True) if not is_image]
        of_videos = [x for x, is_image in zip(seconds, kinds, strict=True) if not is_image]
        mask = np.ones_like(ids[None])
        theirs = huggingface(ids[None], mask, videos, of_videos, per_second, images)[:, 0]
        own = {
            rule: positions(ids, grids, seconds, per_second, pads=PADS, rule=rule)
            for rule in ("qwen", "transformers5")
        }
        np.testing.assert_array_equal(own["transformers5"], theirs)
        rate = per_second or 0.0
        if all(time_ids(g[0], s, rate)[-1] < max(g[1:]) for g, s in zip(grids, seconds, strict=True)):
            agreed += 1
            np.testing.assert_array_equal(own["qwen"], theirs)
    assert agreed > (0 if per_second == 25.0 else 5)


def test_each_medium_starts_after_the_largest_position_so_far():
    """Two slots of a token, 4 ids apart: from 1 and 5, text at 6, the second video from 7 and 11."""
    ids = np.array([1, 8, 8, 1, 8, 8, 1])
    own = positions(ids, [(2, 1, 1)] * 2, [2.0, 2.0], 2.0, pads=PADS)
    assert own.tolist() == [[0, 1, 5, 6, 7, 11, 12], [0, 1, 1, 6, 7, 7, 12], [0, 1, 1, 6, 7, 7, 12]]
    with pytest.raises(ValueError, match="visual tokens"):
        positions(ids, [(2, 1, 1)], [2.0], 2.0, pads=PADS)
    with pytest.raises(ValueError, match="visual tokens"):
        positions(ids, [(3, 1, 1), (1, 1, 1)], [2.0, 2.0], 2.0, pads=PADS)


# The prompt

TURNS = (Turn("Is <video> like <video>?", "No, it is red."), Turn("Why?", "It flashes."))
CLIP = Clip("a", "a.png", "And <video>\nnow?", "It jumps.", turns=TURNS, others=("b.mp4", "c.png"))
KINDS = ("image", "video", "image")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([*CLIP.texts, "You are a helpful assistant"], folder, 400)
    return Text.load(folder)


def messages(clip, kinds):
    """What a user of transformers writes: the media as parts of the questions."""
    waiting, out = list(kinds), []
    for turn in clip.dialogue:
        parts = []
        for number, piece in enumerate(turn.question.split("<video>")):
            if number:
                parts.append({"type": waiting.pop(0)})
            if piece:
                parts.append({"type": "text", "text": piece})
        out += [dict(role="user", content=parts), dict(role="assistant", content=turn.answer)]
    return out[:-1]


@pytest.mark.parametrize("template", [None, QWEN])
def test_the_ids_are_those_of_the_chat_template(tokenizer, template):
    text = with_template(tokenizer, template) if template else tokenizer
    written = text.tokenizer.apply_chat_template(
        messages(CLIP, KINDS), tokenize=False, add_generation_prompt=True
    )
    tokens = tokenize(CLIP, text, media=KINDS, train_turns="all")
    assert tokens.prompt.tolist() == text.encode(written)
    pads = [f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in KINDS]
    assert said("user", "Is ", pads[0], " like ", pads[1], "?") in written
    assert said("user", "And ", pads[2], "\nnow?") in written
    spoken = [turn.answer + "<|im_end|>" for turn in CLIP.dialogue]
    whole = np.concatenate([tokens.prompt, tokens.answer])
    assert text.tokenizer.decode(whole[tokens.targets]) == "".join(spoken)


def test_times_follow_text_as_the_tokenizer_writes_both(tokenizer):
    """Qwen3-VL's "<" is one token with a space or a mark before it."""
    first = Turn("Is it (<video> or <video>.<video>", "No.")
    clip = dataclasses.replace(CLIP, turns=(first,), question="And\n<video> then?", others=("b", "c", "d"))
    kinds, times = ("video",) * 3 + ("image",), [np.array([0.25, 1.25])] * 3 + [np.zeros(1)]
    config = SimpleNamespace(
        tokens_per_second=None,
        image_token=tokenizer.image_pad,
        video_token=tokenizer.video_pad,
        vision_start=tokenizer.vision_start,
        vision_end=tokenizer.vision_end,
    )
    tokens = tokenize(clip, tokenizer, media=kinds, train_turns="all")
    grids = [(2, 1, 2)] * 3 + [(1, 1, 1)]
    ids, ends = with_media(tokens.prompt, grids, times, config, tokens.stamps)
    written = tokenizer.tokenizer.apply_chat_template(
        messages(clip, kinds), tokenize=False, add_generation_prompt=True
    )
    slots = "".join(
        f"<{time} seconds><|vision_start|>{'<|video_pad|>' * 2}<|vision_end|>" for time in ("0.2", "1.2")
    )
    whole = tokenizer.encode(written.replace("<|vision_start|><|video_pad|><|vision_end|>", slots))
    assert ids.tolist() == whole
    (answer,) = tokens.earlier
    assert tokenizer.decode(ids[ends[answer]]) == "No."
    assert tokens.stamps.openings


def test_without_marks_all_stand_before_the_first_question(tokenizer):
    clip = dataclasses.replace(CLIP, turns=(Turn("Well?", "No."),), question="And now?")
    written = tokenizer.tokenizer.decode(tokenizer.prompt(clip, KINDS))
    assert "".join(f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in KINDS) + "Well?" in written
    assert "pad" not in tokenizer.tokenizer.decode(tokenizer.prompt(without_media(CLIP), ()))
    with pytest.raises(UserError, match="3 places for media, which are 2"):
        tokenizer.prompt(CLIP, KINDS[:2])


def test_a_clip_until_a_turn_shows_what_is_shown_until_then():
    assert [CLIP.turn_showing(n) for n in range(3)] == [0, 0, 2]
    assert CLIP.until(1).media == ("a.png", "b.mp4") and CLIP.until(2).media == CLIP.media
    assert CLIP.with_media([]).media == () and CLIP.with_media(["x"]).media == ("x",)


def test_a_keyword_is_left_out_if_an_answer_before_its_video_names_it(text):
    keywords = tuple(Keyword("flashes", "flash", ((0.5, 0.6),), video) for video in (0, 1, 2))
    tokens = tokenize(
        dataclasses.replace(CLIP, keywords=keywords), text, media=KINDS, keywords=3, keyword_tokens=3
    )
    assert (tokens.lemma >= 0).tolist() == [True, True, False]
    assert tokens.videos == (0, 1, 0) and tokens.spans_in(1) == ((), ((0.5, 0.6),), ())
    assert tokens.notes == ("keyword left out: an answer before the video names it",)
