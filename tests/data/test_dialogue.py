"""Conversations as tokens: the ids of the chat template, what is trained of them, and the video's place."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from vpjax.data.clips import parse_clip, read_clips, write_clips
from vpjax.data.text import REWRITTEN, Text, messages_of, tokenize, without_media
from vpjax.data.tokenizer import train_tokenizer
from vpjax.types import Clip, Keyword, Turn, UserError

TURNS = (Turn("What is it?", "A red square flashes."), Turn("Where?", "On the left."))
CLIP = Clip("a", "a.mp4", "And then?", "It jumps.", turns=TURNS, system="Be brief.")
# That of Qwen2.5-VL-7B-Instruct, which has a system message of its own.
QWEN = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content "
    "or 'image_url' in content %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == "
    "'video' or 'video' in content %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([*CLIP.texts, "You are a helpful assistant", "a\n\nb"], folder, 400)
    return Text.load(folder)


def with_template(text, template):
    tokenizer = copy.deepcopy(text.tokenizer)
    tokenizer.chat_template = template
    return dataclasses.replace(text, tokenizer=tokenizer)


def said(role, *lines):
    return f"<|im_start|>{role}\n{''.join(lines)}<|im_end|>\n"


def whole(clip, media="<|vision_start|><|video_pad|><|vision_end|>"):
    """A conversation in Qwen's layout, written by hand; the video before all questions."""
    pieces = [said("system", clip.system)] if clip.system else []
    for number, turn in enumerate(clip.dialogue):
        pieces += [said("user", media if number == 0 else "", turn.question), said("assistant", turn.answer)]
    return "".join(pieces)


@pytest.mark.parametrize("own", [False, True])
def test_the_ids_are_those_of_the_whole_conversation(text, own):
    if own:
        text = with_template(text, QWEN)
    tokens = tokenize(CLIP, text, train_turns="all")
    ids = text.encode(whole(CLIP))
    assert [*tokens.prompt, *tokens.answer] == ids[:-1]  # without the line break after the last answer
    spoken = [turn.answer + "<|im_end|>" for turn in CLIP.dialogue]
    trained = np.array(ids)[tokens.targets]
    assert text.tokenizer.decode(trained) == "".join(spoken)
    assert [len(places) for places in tokens.earlier] == [len(text.answer(turn.answer)) for turn in TURNS]
    last = tokenize(CLIP, text, train_turns="last")
    np.testing.assert_array_equal(last.prompt, tokens.prompt)
    np.testing.assert_array_equal(last.targets, tokens.targets[-len(tokens.answer) :])


def test_a_system_message_replaces_that_of_the_template(text):
    qwen = with_template(text, QWEN)
    question = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Where?<|im_end|>\n"
    for system, expected in (("", "You are a helpful assistant."), ("Be brief.", "Be brief.")):
        written = qwen.tokenizer.decode(qwen.chat("Where?", system=system))
        assert written == said("system", expected) + question + "<|im_start|>assistant\n"
    assert "system" not in text.tokenizer.decode(text.chat("Where?"))


@pytest.mark.parametrize("template", [None, QWEN])
@pytest.mark.parametrize("media", [("video",), ("image",), ()])
@pytest.mark.parametrize("question", ["Where?", "  Where?\n", "Look at the <image> and <b>"])
def test_a_single_question_is_asked_as_ever(text, template, media, question):
    """Messages of a video and a text, as transformers' documentation has them."""
    text = with_template(text, template) if template else text
    parts = [{"type": "text", "text": question}]
    if media:
        parts.insert(0, {"type": media[0]})
    messages = [{"role": "user", "content": parts}]
    assert messages_of(question, media) == messages
    written = text.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.chat(question, media).tolist() == text.encode(written)
    clip = Clip("a", "a.mp4", question, "It jumps.")
    for train_turns in ("all", "last"):
        tokens = tokenize(clip, text, media=media, train_turns=train_turns)
        np.testing.assert_array_equal(tokens.prompt, text.chat(question, media))
        np.testing.assert_array_equal(
            tokens.targets, len(tokens.prompt) + np.arange(len(text.answer("It jumps.")))
        )


@pytest.mark.parametrize("media", ["video", "image"])
def test_the_video_stands_where_its_tag_stands(text, media):
    pad = f"<|vision_start|><|{media}_pad|><|vision_end|>"
    later = dataclasses.replace(CLIP, question="Look at <video> again.")
    written = text.tokenizer.decode(text.prompt(later, (media,)))
    assert written.count(pad) == 1 and said("user", f"Look at {pad} again.") in written
    assert said("user", "What is it?") in written
    first = (dataclasses.replace(TURNS[0], question="What is it?<video>"), TURNS[1])
    written = text.tokenizer.decode(text.prompt(dataclasses.replace(CLIP, turns=first), (media,)))
    assert said("user", f"What is it?{pad}") in written
    twice = dataclasses.replace(later, turns=first)
    with pytest.raises(UserError, match="2 places for media"):
        text.prompt(twice, (media,))
    alone = text.tokenizer.decode(text.prompt(without_media(twice), ()))
    assert pad not in alone and "<video>" not in alone and said("user", "Look at  again.") in alone
    html = text.tokenizer.decode(text.chat("What does <video> mean in HTML?", ()))
    assert "<video> mean" in html  # which is about text alone


def test_a_keyword_belongs_to_the_first_answer_that_names_it(text):
    keywords = tuple(Keyword(word, word, ((0.5, 0.6),)) for word in ("jumps", "flashes", "left", "spins"))
    clip = dataclasses.replace(CLIP, keywords=keywords, answer="It jumps left.")
    tokens = tokenize(clip, text, keywords=4, keyword_tokens=8, train_turns="all")
    ids = np.concatenate([tokens.prompt, tokens.answer])
    for word, own, places in zip(("jumps", "flashes", "left"), tokens.keywords, tokens.places, strict=False):
        at = tokens.targets[list(places)]
        assert text.tokenizer.decode(ids[at]) == f" {word}"
        assert own[own >= 0].tolist() == ids[at].tolist()
    first, second, _ = np.cumsum([len(text.answer(turn.answer)) for turn in clip.dialogue])
    turn_of = [np.searchsorted([first, second], places[0], side="right") for places in tokens.places[:3]]
    assert turn_of == [2, 0, 1] and tokens.places[3] == ()
    last = tokenize(clip, text, keywords=4, keyword_tokens=8, train_turns="last")
    np.testing.assert_array_equal(last.keywords, tokens.keywords)
    assert [bool(places) for places in last.places] == [True, False, False, False]  # only what is trained on


def test_what_an_earlier_answer_names_leaves_no_truth_of_v_degraded(text):
    keyword = Keyword("flashes", "flash", ((0.5, 0.6),))
    clip = dataclasses.replace(CLIP, keywords=(keyword,), degraded_answer="Nothing happens.")
    tokens = tokenize(clip, text, keywords=1, keyword_tokens=8)
    assert not len(tokens.degraded_answer)
    assert tokens.notes == ("degraded_answer left out: an earlier answer names what V~ hides",)
    own = dataclasses.replace(clip, keywords=(dataclasses.replace(keyword, text="jumps"),))
    tokens = tokenize(own, text, keywords=1, keyword_tokens=8)
    np.testing.assert_array_equal(tokens.degraded_answer, text.answer("Nothing happens."))
    assert tokens.notes == ()


@pytest.mark.parametrize(
    "template, turns",
    [
        # As templates of reasoning models do, whose earlier answers lose their thoughts.
        (
            "{% set short = true %}"
            + QWEN.replace("{{ message['content'] }}<", "{{ message['content'][3:] }}<"),
            TURNS,
        ),
        (None, (Turn("What is it?", "\nIt flashes."),)),  # the line break joins that of the header
    ],
)
def test_answers_that_the_template_rewrites_are_not_trained(text, template, turns):
    text = with_template(text, template) if template else text
    clip = dataclasses.replace(CLIP, turns=turns)
    with pytest.raises(UserError) as caught:
        tokenize(clip, text, train_turns="all")
    assert str(caught.value) == REWRITTEN
    assert len(tokenize(clip, text, train_turns="last").targets) == len(text.answer(CLIP.answer))


def test_a_clip_until_one_of_its_turns():
    clip = dataclasses.replace(CLIP, task="choice", choices=("A", "B"), degraded_answer="No.")
    assert clip.until(2) is clip
    assert clip.until(1) == Clip("a", "a.mp4", "Where?", "On the left.", turns=TURNS[:1], system="Be brief.")


def test_conversations_are_written_and_read(tmp_path):
    for name in ("a.jsonl", "a.array_record"):
        clip = dataclasses.replace(CLIP, video="")
        write_clips(tmp_path / name, [clip])
        assert read_clips(tmp_path / name) == [clip]
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert row["system"] == "Be brief."
    assert row["turns"][1] == {"question": "Where?", "answer": "On the left."}


@pytest.mark.parametrize(
    "turns, message",
    [
        ("x", "field 'turns' is 'x', not a list"),
        (["x"], "turn 'x' is not an object with question and answer"),
        ([{"question": "x"}], "is not an object with question and answer"),
        ([{"question": "x", "answer": 3}], "field 'answer' is 3, not a string"),
    ],
)
def test_turns_of_another_form_are_named(turns, message):
    with pytest.raises(ValueError, match=message):
        parse_clip(dict(id="a", video="", question="q", answer="a", turns=turns))


def test_a_keyword_stands_where_it_is_a_word(text):
    """Not within an earlier word, of its own answer or of an earlier one; but anywhere in a script that does
    not part words."""
    answer = "She seats him, and eats."
    places, ids = text.keyword("eats", answer)
    assert text.decode(text.answer(answer)[: places[0]]).rstrip() == "She seats him, and"
    assert ids == text.answer(answer)[places].tolist() and text.decode(ids).strip() == "eats"
    clip = Clip("a", "a.mp4", "And then?", "He eats.", turns=(Turn("What?", "She seats him."),))
    assert clip.turn_naming("eats") == 1 and clip.turn_naming("seat") == 0 and clip.turn_naming("falls") == 1
    assert text.keyword("\u6253\u5f00", "\u4ed6\u6253\u5f00\u95e8")[0]
