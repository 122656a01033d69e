"""Tokenizer, prompts and answers: the places of keywords and of visual tokens, times in words."""

import copy
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.words import StubVision, stub_config
from vpjax.data import text as text_module
from vpjax.data.index import row_sizes, stamp_tokens
from vpjax.data.positions import is_visual, positions
from vpjax.data.rows import prompt_row, training_row
from vpjax.data.text import Text, tokenize
from vpjax.data.tokenizer import train_tokenizer
from vpjax.data.units import Capacity
from vpjax.data.video import Video
from vpjax.scoring.answers import read_choice
from vpjax.types import Clip, Keyword, UserError

CAPACITY = Capacity(16, 0)

CAPTIONS = (
    "A red square drifts left and flashes twice.",
    "A blue cross spins, then it jumps.",
    "(A) yes (B) no",
)
QUESTION = "What happens?"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([*CAPTIONS, QUESTION], folder, 400)
    return Text.load(folder)


@pytest.fixture(scope="module")
def config(text):
    return stub_config(text)


@pytest.fixture(scope="module")
def config3(config, text):
    """As of Qwen3-VL: a slot's time in words, patches of 16."""
    own = dict(tokens_per_second=None, vision=StubVision(patch=16, window=0, factor=32))
    return SimpleNamespace(**vars(config) | own, vision_start=text.vision_start, vision_end=text.vision_end)


def video_of(frames=8, height=56, width=28, fps=8.0):
    pixels = np.random.default_rng(frames).integers(1, 256, (frames, height, width, 3), np.uint8)
    return Video(pixels, np.arange(frames) / fps, 1 / 8)


def whole_prompt(text, question, slots, tokens_per_slot, media="video"):
    """The prompt with one placeholder for each visual token."""
    prompt = text.chat(question, (media,))
    pads = is_visual(prompt, (text.image_pad, text.video_pad))
    return np.repeat(prompt, np.where(pads, slots * tokens_per_slot, 1))


def clip_of(answer=CAPTIONS[0], keyword="flashes", spans=((0.375, 0.5),)):
    return Clip("a", "a.mp4", QUESTION, answer, (Keyword(keyword, "flash", spans),))


def test_training_is_repeatable_and_small_vocabularies_are_refused(text, tmp_path):
    train_tokenizer([*CAPTIONS, QUESTION], tmp_path, 400)
    assert Text.load(tmp_path).tokenizer.get_vocab() == text.tokenizer.get_vocab()
    with pytest.raises(UserError, match="vocab_size 200"):
        train_tokenizer(CAPTIONS, tmp_path, 200)


@pytest.mark.parametrize("answer_text", [*CAPTIONS, " leading", "café 12\n\n naïve ☃", ""])
def test_answers_round_trip(text, answer_text):
    ids = text.answer(answer_text)
    assert ids[-1] == text.end and text.end not in ids[:-1]
    assert text.decode(ids) == answer_text


def test_known_words_are_single_tokens(text):
    assert len(text.answer(CAPTIONS[0])) == len(CAPTIONS[0].split()) + 2  # words, full stop, end


def test_prompt_layout(text):
    written = text.tokenizer.decode(whole_prompt(text, QUESTION, 2, 3))
    assert written == (
        "<|im_start|>user\n<|vision_start|>" + 6 * "<|video_pad|>" + f"<|vision_end|>{QUESTION}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    image = text.tokenizer.decode(whole_prompt(text, QUESTION, 1, 4, "image"))
    assert image.count("<|image_pad|>") == 4 and "<|video_pad|>" not in image
    assert text.tokenizer.decode(text.chat(QUESTION, ())) == (
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_slots_stand_behind_their_times(text, config3):
    """The ids are those of the whole text: pieces of it are written, but no boundary is another."""
    video = video_of(8, 32, 64)  # at 8 fps: a slot's middle is 1/16 s, 5/16 s, ...
    row = prompt_row(text.chat(QUESTION), [video], config3, CAPACITY, stamps=text.stamps)
    tokens = row.prompt.tokens
    slots = "".join(
        f"<{time} seconds><|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
        for time in ("0.1", "0.3", "0.6", "0.8")
    )
    written = f"<|im_start|>user\n{slots}{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    assert text.tokenizer.decode(tokens) == written
    assert tokens.tolist() == text.encode(written) and tokens.dtype == np.int32
    assert row.notes == () and (tokens[row.prompt.shows >= 0] == text.video_pad).all()
    assert row.prompt.slot[row.prompt.slot >= 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    np.testing.assert_array_equal(
        row.prompt.positions, positions(tokens, [(4, 1, 2)], [0], None, pads=(text.image_pad, text.video_pad))
    )
    again = prompt_row(tokens, [video], config3, CAPACITY)  # with all of its tokens there already
    np.testing.assert_array_equal(again.prompt.positions, row.prompt.positions)


@pytest.mark.parametrize("seconds", [0.0, 0.04, 9.94, 9.96, 59.95, 100.0, 3599.9])
def test_any_time_is_written_as_the_tokenizer_does(text, seconds):
    assert text.stamps.write(seconds) == text.encode(f"<{seconds:.1f} seconds>")


def test_an_image_has_no_time(text, config3):
    image = Video(np.repeat(video_of(1, 32, 64).frames, 2, 0), np.zeros(2))
    row = prompt_row(text.chat(QUESTION, ("image",)), [image], config3, CAPACITY, stamps=text.stamps)
    np.testing.assert_array_equal(row.prompt.tokens, whole_prompt(text, QUESTION, 1, 2, "image"))


def test_the_planned_sizes_have_room_for_every_time(text, config3):
    tokens = tokenize(clip_of(spans=((0.375, 0.5), (10.375, 10.5))), text, keywords=1, keyword_tokens=3)
    beside = stamp_tokens(tokens, 20.0, config3)
    sizes = row_sizes(tokens, [(8, 32, 64)], [beside], config3, CAPACITY)
    for start, spare in ((10.0, 0), (0.0, 4), (9.2, 3)):  # one token less for each time below 10
        video = dataclasses.replace(video_of(8, 32, 64), times=start + np.arange(8) / 8)
        row = training_row(tokens, [video], config3, CAPACITY)
        pair = 2  # the template's own start and end of the video, which the slots' replace
        assert sizes.tokens - len(row.text.tokens) == spare + pair
        if row.has_degraded:
            # V~ begins at the first visual token of a slot, so the time of that slot is not a part of it.
            first, shorter = int(row.degraded.slot[0]), int(start == 0.0)
            part = row_sizes(tokens, [(8, 32, 64)], [beside], config3, CAPACITY, first_replaced=(0, first))
            assert part.degraded - len(row.degraded.tokens) == beside + shorter * (4 - first - 1)
            assert part.degraded < sizes.degraded


class MergingTokenizer:
    """Every text is one token."""

    def __init__(self):
        self.backend_tokenizer = self

    def encode(self, words, add_special_tokens):
        return SimpleNamespace(ids=[len(words)])


def test_a_tokenizer_that_merges_digits_cannot_write_times(text, config3):
    other = dataclasses.replace(text, tokenizer=MergingTokenizer())
    assert other.stamps is None
    with pytest.raises(UserError, match="digit by digit"):
        prompt_row(text.chat(QUESTION), [video_of(8, 32, 64)], config3, CAPACITY, stamps=other.stamps)


def test_another_chat_template_is_followed(text):
    """Qwen2.5-VL's own writes a system message first; whatever the tokenizer's template says is used."""
    tokenizer = copy.deepcopy(text.tokenizer)
    tokenizer.chat_template = "SYSTEM" + tokenizer.chat_template
    other = dataclasses.replace(text, tokenizer=tokenizer)
    assert other.tokenizer.decode(other.chat(QUESTION)).startswith("SYSTEM<|im_start|>user")


def test_a_thought_that_the_template_begins_is_part_of_what_is_said(text):
    """Completions of Thinking models lack their <think>: one that is cut short would be read as an answer."""
    tokenizer = copy.deepcopy(text.tokenizer)
    header = '<|im_start|>assistant{{ "\\n" }}'
    assert tokenizer.chat_template.count(header) == 1
    tokenizer.chat_template = tokenizer.chat_template.replace(header, f'{header}<think>{{{{ "\\n" }}}}')
    other = dataclasses.replace(text, tokenizer=tokenizer)
    ids = text.encode("B or A?")
    assert (text.opening, text.decode(ids)) == ("", "B or A?")
    assert (other.opening, other.decode(ids)) == ("<think>\n", "<think>\nB or A?")
    assert read_choice(text.decode(text.encode("B")), ()) == 1
    assert read_choice(other.decode(text.encode("B")), ()) is None
    assert read_choice(other.decode(text.encode("A?</think>B")), ()) == 1


def test_a_question_that_holds_a_placeholder_is_refused(text):
    with pytest.raises(UserError, match="2 places for media"):
        text.chat("<|video_pad|> what?")
    with pytest.raises(UserError, match="1 places for media"):
        text.chat("<|image_pad|> what?", media=())


def test_a_qwen_folder_is_read_as_transformers_reads_it(text, tmp_path):
    """Its class in transformers splits and merges as its tokenizer.json says."""
    from transformers import AutoTokenizer

    text.tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(tokenizer_class="Qwen2Tokenizer")))
    ours, theirs = Text.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "Qwen2Tokenizer"
    for words in (
        *CAPTIONS,
        "What's 12345?\n\n x",
        "h\u00e9llo  \ufb01 e\u0301",
        "<|im_end|>x <|video_pad|>",
    ):
        ids = theirs(words, add_special_tokens=False)["input_ids"]
        assert ours.encode(words) == ids and ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_folders_without_a_usable_tokenizer_are_refused(text, tmp_path):
    from transformers import AutoTokenizer

    with pytest.raises(UserError, match="no tokenizer_config.json"):
        Text.load(tmp_path)
    text.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "kept")
    with pytest.raises(UserError, match="no tokenizer.json"):
        Text.load(tmp_path)
    (tmp_path / "kept").rename(tmp_path / "tokenizer.json")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UserError, match="no chat template"):
        Text.load(tmp_path)
    for file in tmp_path.iterdir():
        file.write_text(file.read_text().replace("<|video_pad|>", "<|other|>"))
    with pytest.raises(UserError, match=r"lacks <\|video_pad\|>"):
        Text.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="the tokenizer cannot be read"):
        Text.load(tmp_path)


@pytest.mark.parametrize(
    "keyword, pieces",
    [
        ("flashes", [" flashes"]),
        ("drifts left", [" drifts", " left"]),
        ("twice", [" twice"]),
        ("A red", ["A", " red"]),  # no space before the first word
    ],
)
def test_keyword_tokens_are_those_of_the_caption(text, keyword, pieces):
    answer = CAPTIONS[0]
    places, ids = text.keyword(keyword, answer)
    assert [text.tokenizer.decode([i]) for i in ids] == pieces
    assert text.answer(answer)[places].tolist() == ids


def test_a_keyword_outside_the_answer_stands_as_in_a_sentence(text):
    assert text.keyword("flashes", "(A)") == ([], text.keyword("flashes", CAPTIONS[0])[1])


def test_a_prompt_with_all_of_its_visual_tokens_is_kept(text, config):
    prompt = whole_prompt(text, QUESTION, slots=2, tokens_per_slot=2)
    row = prompt_row(prompt, [video_of(4)], config, CAPACITY)  # 4 frames of 56 x 28
    np.testing.assert_array_equal(row.prompt.tokens, prompt)
    expected = positions(prompt, [(2, 2, 1)], [0.25], 4.0, pads=(text.image_pad, text.video_pad))
    np.testing.assert_array_equal(row.prompt.positions, expected)


def with_template(text, folder, template):
    text.tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_the_template_of_the_processor_comes_first(text, tmp_path):
    """That of a file which older folders have, whose tokenizers have another one, for text alone, or none."""
    template = text.tokenizer.chat_template
    with_template(text, tmp_path, "{{ messages[0].content + 'no parts' }}")
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    for _ in range(2):
        np.testing.assert_array_equal(Text.load(tmp_path).chat(QUESTION), text.chat(QUESTION))
        (tmp_path / "chat_template.jinja").unlink(missing_ok=True)


def test_a_template_that_does_not_end_is_one_line(text, tmp_path, monkeypatch):
    """Where the folder is read, before any clip. This one does end, so that it does not slow other tests
    down, but its ten million rounds take far longer than it may."""
    monkeypatch.setattr(text_module, "TEMPLATE_SECONDS", 0.02)
    loop = "{% for i in range(99999) %}{% for j in range(99) %}{% endfor %}{% endfor %}"
    folder = with_template(text, tmp_path, loop)
    with pytest.raises(UserError, match=f"^{tmp_path}: the chat template does not end within 0.02 s; give"):
        Text.load(folder)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no videos') }}",
        "{{ messages.nothing.more }}",
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}",  # beyond the sandbox
    ],
)
def test_a_template_that_fails_says_why_when_it_is_used(text, tmp_path, template):
    broken = Text.load(with_template(text, tmp_path, template))
    with pytest.raises(UserError, match="the chat template fails: .*") as error:
        broken.chat(QUESTION)
    assert "\n" not in str(error.value)
