"""What rewards compare completions with; clips that cannot be rewarded are named."""

import dataclasses

import numpy as np
import pytest

from tests.scoring.reward_cases import make_clip, removed_keywords
from vpjax.events.text import EVENT_WORDS
from vpjax.scoring.forms import forms_of
from vpjax.scoring.references import AnswerType, reference_rows, reference_sizes
from vpjax.scoring.rewards import check_names
from vpjax.scoring.words import fingerprint_of
from vpjax.types import Keyword, UserError

CAPTION = make_clip("A man runs and falls", keywords=removed_keywords(("runs", "run"), ("falls", "fall")))


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
    expected = {tuple(word.encode() for word in form.split("|")) for form in forms.split()}
    found = forms_of(Keyword(text, lemma))
    assert expected <= found
    # Further forms that the rules give are no other words: the start of the first word stays.
    assert all(form[0][:1] == lemma[:1].encode() for form in found - expected)


def test_only_keywords_that_the_answer_mentions_are_expected():
    keywords = removed_keywords(("spins", "spin"), ("splits in two", "split"))
    order = make_clip("First it spins.", "order", keywords=keywords)
    rows = reference_rows([order, CAPTION, None], reference_sizes([order, CAPTION], keywords=2))
    np.testing.assert_array_equal(rows.positions, [[2, -1], [2, 4], [-1, -1]])
    np.testing.assert_array_equal(rows.removed, [[True, False], [True, True], [False, False]])
    np.testing.assert_array_equal(rows.answer_type, [AnswerType.TEXT, AnswerType.TEXT, AnswerType.PADDING])
    # The words of other keywords are those of other clips' that are not this clip's.
    assert fingerprint_of(b"rotates") in rows.others[1] and fingerprint_of(b"ran") in rows.others[0]
    assert fingerprint_of(b"ran") not in rows.others[1] and fingerprint_of(b"rotates") not in rows.others[0]


def test_a_lemma_is_expected_once():
    twice = dataclasses.replace(CAPTION, keywords=(*CAPTION.keywords, *CAPTION.keywords))
    rows = reference_rows([twice], reference_sizes([twice], keywords=4))
    np.testing.assert_array_equal(rows.positions, [[2, 4, -1, -1]])


def test_only_the_first_keywords_are_expected():
    """Those after them, and all words of the answer, are not unexpected where other clips have them as
    keywords."""
    other = make_clip("A dog falls on a man", keywords=removed_keywords(("falls", "fall"), ("man", "man")))
    sizes = reference_sizes([CAPTION, other], keywords=1)
    sizes = dataclasses.replace(sizes, known=sizes.known | {b"man", b"run"})
    rows = reference_rows([CAPTION, other], sizes)
    assert rows.positions.shape == (2, 1)
    assert not np.isin([fingerprint_of(word) for word in (b"falls", b"man", b"runs")], rows.others[0]).any()
    assert fingerprint_of(b"run") in rows.others[1]


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (make_clip("E", "choice", choices=("a", "b")), "names none of its 2 options"),
        (make_clip("yes", "choice"), "names none of its 26 options"),
        (make_clip("1 to 2", "grounding"), "needs spans"),
        (make_clip("[0, 0, 1, 1]", "tracking"), "needs boxes"),
        (make_clip("word " * 21), "21 words, of which rewards hold 20"),
    ],
)
def test_clips_that_cannot_be_rewarded_are_named_at_the_start(clip, message):
    clip = dataclasses.replace(clip, id="bad-7")
    with pytest.raises(UserError, match=f"clip bad-7: .*{message}"):
        reference_sizes([CAPTION, clip], keywords=2, max_words=20)


@pytest.mark.parametrize("field", [dict(answer="A man runs and falls again"), dict(spans=((0, 1), (2, 3)))])
def test_a_longer_reference_than_the_tables_hold_is_named(field):
    sizes = reference_sizes([CAPTION], keywords=2)
    with pytest.raises(UserError, match="clip long: .* where the rewards' tables hold"):
        reference_rows([dataclasses.replace(CAPTION, id="long", **field)], sizes)


def test_an_answer_may_be_the_option_itself():
    clip = make_clip("yes", "choice", choices=("no", "yes"))
    assert reference_rows([clip], reference_sizes([clip], keywords=1)).choice == [1]


def test_unknown_rewards_are_refused():
    check_names(["rouge_l", "event"])
    with pytest.raises(UserError, match="'rogue' does not exist; take my_module:fn .* rouge_l, "):
        check_names(["rouge_l", "rogue"])
