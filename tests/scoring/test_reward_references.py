"""What clips ask, which tokenizers can be read, and a user's own rewards: mistakes are named."""

import dataclasses
import sys

import numpy as np
import pytest

from tests.scoring.said import clip, seen
from vpjax.data.text import Text, train_tokenizer
from vpjax.events.text import EVENT_WORDS
from vpjax.scoring.forms import forms_of
from vpjax.scoring.references import Kind, references, sizes_of
from vpjax.scoring.rewards import check_names, host_score, limits_of
from vpjax.scoring.texts import byte_table, host_ascii
from vpjax.scoring.user import RewardFault, load_user_reward
from vpjax.scoring.words import host_fingerprint
from vpjax.types import Keyword, UserError

CAPTION = clip("A man runs and falls", keywords=seen(("runs", "run"), ("falls", "fall")))


@pytest.mark.parametrize(
    ("lemma", "text", "forms"),
    [
        ("run", "ran", "run runs running ran"),
        ("carry", "carries", "carry carries carried carrying"),
        ("play", "plays", "play plays played playing"),
        ("catch", "catches", "catch catches catching caught"),
        ("drop", "drops", "drop drops dropped dropping"),
        ("bake", "bakes", "bake bakes baked baking"),
        ("tie", "tied", "tie ties tied tying"),
        ("see", "sees", "see sees seeing saw seen"),
        ("go", "goes", "go goes going went gone"),
        ("explosion", "explosion", "explosion explosions"),
        ("pick up", "picked up", "pick|up picks|up picked|up picking|up"),
        ("take sip", "takes a sip", "takes|a|sip took|a|sip taken|a|sip taking|a|sip take|sip took|sip"),
        ("turn", "turns around", "turn turns turned turning turns|around"),
        ("spin", "rotates", EVENT_WORDS["spin"]),
    ],
)
def test_forms(lemma, text, forms):
    wanted = {tuple(word.encode() for word in form.split("|")) for form in forms.split()}
    found = forms_of(Keyword(text, lemma))
    assert wanted <= found
    # What else the rules give is no word that says another thing: the first word's start stays.
    assert all(form[0][:1] == lemma[:1].encode() for form in found - wanted)


def test_keywords_that_the_answer_does_not_say_are_not_asked():
    order = clip("First it spins.", "order", keywords=seen(("spins", "spin"), ("splits in two", "split")))
    sizes = sizes_of([order, CAPTION], keywords=2)
    rows = references([order, CAPTION, None], sizes)
    np.testing.assert_array_equal(rows.places, [[2, -1], [2, 4], [-1, -1]])
    np.testing.assert_array_equal(rows.kind, [Kind.TEXT, Kind.TEXT, Kind.MASKED])
    # Other keywords' words are those of the clips' that are not this clip's.
    assert host_fingerprint(b"rotates") in rows.others[1] and host_fingerprint(b"ran") in rows.others[0]
    assert (
        host_fingerprint(b"ran") not in rows.others[1] and host_fingerprint(b"rotates") not in rows.others[0]
    )


def test_a_lemma_is_asked_once():
    twice = dataclasses.replace(CAPTION, keywords=(*CAPTION.keywords, *CAPTION.keywords))
    rows = references([twice], sizes_of([twice], keywords=4))
    np.testing.assert_array_equal(rows.places, [[2, 4, -1, -1]])


def test_only_the_first_keywords_are_asked():
    """The others, and all words of the answer, are no strays where other clips know them as keywords."""
    other = clip("A dog falls on a man", keywords=seen(("falls", "fall"), ("man", "man")))
    sizes = sizes_of([CAPTION, other], keywords=1)
    rows = references([CAPTION, other], dataclasses.replace(sizes, known=sizes.known | {b"man", b"run"}))
    assert rows.places.shape == (2, 1)
    assert not np.isin([host_fingerprint(word) for word in (b"falls", b"man", b"runs")], rows.others[0]).any()
    assert host_fingerprint(b"run") in rows.others[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (clip("E", "choice", choices=("a", "b")), "names none of its 2 options"),
        (clip("yes", "choice"), "names none of its 26 options"),
        (clip("1 to 2", "grounding"), "needs spans"),
        (clip("[0, 0, 1, 1]", "tracking"), "needs boxes"),
        (clip("word " * 21), "21 words, of which rewards hold 20"),
    ],
)
def test_clips_that_cannot_be_judged_are_named_at_start(wrong, message):
    wrong = dataclasses.replace(wrong, id="bad-7")
    with pytest.raises(UserError, match=f"clip bad-7: .*{message}"):
        sizes_of([CAPTION, wrong], keywords=2, words=20)


def test_a_longer_reference_than_the_tables_hold_is_named():
    sizes = sizes_of([CAPTION], keywords=2)
    for longer in (
        dataclasses.replace(CAPTION, id="long", answer=CAPTION.answer + " again"),
        dataclasses.replace(CAPTION, id="long", spans=((0.0, 1.0), (2.0, 3.0))),
    ):
        with pytest.raises(UserError, match="clip long: .* where the rewards' tables hold"):
            references([longer], sizes)


def test_an_answer_may_be_the_option_itself():
    asked = clip("yes", "choice", choices=("no", "yes"))
    assert references([asked], sizes_of([asked], keywords=1)).choice == [1]


def test_table_holds_what_each_token_says(tmp_path):
    train_tokenizer(["a  b\n\n\ncaf\u00e9 ------- 12"] * 5, tmp_path, 300)
    tokenizer = Text.load(tmp_path).tokenizer
    table = byte_table(tokenizer)
    assert table.lengths.shape == (len(tokenizer),)
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token], skip_special_tokens=True)
        row = bytes(table.bytes[token, : table.lengths[token]])
        if "\ufffd" not in text:  # a whole character
            assert host_ascii(row.decode()) == host_ascii(text if "---" not in text else "--")


def test_added_words_are_read_and_special_ones_not(tmp_path):
    train_tokenizer(["a b"], tmp_path, 264)
    tokenizer = Text.load(tmp_path).tokenizer
    tokenizer.add_tokens(["<think>"])
    table, (added,) = byte_table(tokenizer), tokenizer.convert_tokens_to_ids(["<think>"])
    assert bytes(table.bytes[added, : table.lengths[added]]) == b"<think>"
    assert not table.lengths[tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|video_pad|>"])].any()


def test_other_tokenizers_are_refused():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    metaspace = Tokenizer(models.WordLevel({"\u2581a": 0, "?": 1}, unk_token="?"))
    metaspace.decoder = decoders.Metaspace()
    with pytest.raises(UserError, match="byte-level BPE"):
        byte_table(PreTrainedTokenizerFast(tokenizer_object=metaspace))


def test_unknown_names_and_limits_are_refused():
    check_names(["rouge_l", "event"])
    with pytest.raises(UserError, match="'rogue' does not exist; take my_module:fn .* rouge_l, "):
        check_names(["rouge_l", "rogue"])
    with pytest.raises(UserError, match="margin of 50 tokens before the limit of 40"):
        limits_of(40, 50)
    with pytest.raises(UserError, match="'overlong' needs"):
        host_score(("overlong",), [["a"]], [CAPTION], sizes_of([CAPTION], keywords=1))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """``module(code)``: the name of a module of a user."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code):
        name = f"mine_{len(list(tmp_path.iterdir()))}_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(code)
        return name

    yield write
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]


def test_user_reward_sees_texts_and_clips(module):
    name = module(
        "def fn(completions, clips):\n"
        "    pairs = zip(completions, clips, strict=True)\n"
        "    return [float(text in clip.answer) if text else None for text, clip in pairs]\n"
    )
    reward = load_user_reward(f"{name}:fn")
    scores = reward([["runs", "spins"], ["runs", "runs"], ["", "falls"]], [CAPTION, None, CAPTION])
    np.testing.assert_array_equal(scores, [[1, 0], [np.nan, np.nan], [np.nan, 1]])
    assert scores.dtype == np.float32
    assert np.isnan(reward([["runs"]], [None])).all()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0]", "returned 1 values for 2 completions"),
        ("return [0.5, float('nan')]", "returned nan, which is no finite number"),
        ("return [0.5, 'good']", "returned 'good'"),
        ("return None", "raised TypeError"),
        ("return [1 / 0]", "raised ZeroDivisionError"),
    ],
)
def test_user_rewards_that_go_wrong_are_named(module, body, message):
    path = f"{module(f'def fn(completions, clips): {body}')}:fn"
    with pytest.raises(RewardFault, match=f"reward '{path}' {message}"):
        load_user_reward(path)([["a", "b"]], [CAPTION])


def test_user_rewards_that_are_not_there_are_named(module):
    with pytest.raises(UserError, match="not of the form my_module:fn"):
        load_user_reward("rouge_l")
    with pytest.raises(UserError, match="cannot be imported"):
        load_user_reward("no_such_module:fn")
    with pytest.raises(UserError, match="cannot be imported: ValueError"):
        load_user_reward(f"{module('raise ValueError')}:fn")
    with pytest.raises(UserError, match="has no function 'fn'"):
        load_user_reward(f"{module('fn = 1')}:fn")
