"""What rewards compare completions with; clips that cannot be rewarded are named."""

import dataclasses

import numpy as np
import pytest

from tests.scoring.reward_cases import make_clip, spanned_keywords
from vpjax.events.text import EVENT_WORDS
from vpjax.scoring.forms import forms_of
from vpjax.scoring.references import (
    AnswerType,
    degraded_clip,
    keyword_table,
    reference_rows,
    reference_sizes,
)
from vpjax.scoring.rewards import check_names
from vpjax.scoring.words import fingerprint_of
from vpjax.types import Keyword, UserError

CAPTION = make_clip("A man runs and falls", keywords=spanned_keywords(("runs", "run"), ("falls", "fall")))


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
        ("squat", "squats", "squat squats squatted squatting"),
        ("mow", "mows", "mow mows mowed mown mowing"),
        ("overlay", "overlays", "overlay overlays overlaid overlaying"),
        ("explosion", "explosion", "explosion explosions"),
        ("pick up", "picked up", "pick|up picks|up picked|up picking|up"),
        ("take sip", "takes a sip", "takes|a|sip took|a|sip taken|a|sip taking|a|sip take|sip took|sip"),
        ("turn", "turns around", "turn turns turned turning turns|around"),
        ("spin", "rotates", EVENT_WORDS["spin"]),
    ],
)
def test_forms(lemma, text, forms):
    expected = {tuple(word for word in form.split("|")) for form in forms.split()}
    found = forms_of(Keyword(text, lemma))
    assert expected <= found
    # Further forms that the rules give are no other words: the start of the first word stays.
    assert all(form[0][:1] == lemma[:1] for form in found - expected)


@pytest.mark.parametrize(
    "lemma, others",
    [("hop", "hoped hoping"), ("tap", "taped taping"), ("scrap", "scraped scraping"), ("star", "stared")],
)
def test_forms_are_none_of_another_word(lemma, others):
    assert not {(other,) for other in others.split()} & forms_of(Keyword(lemma, lemma))


def test_only_keywords_that_the_answer_mentions_are_expected():
    keywords = spanned_keywords(("spins", "spin"), ("splits in two", "split"))
    order = make_clip("First it spins.", "order", keywords=keywords)
    rows = reference_rows([order, CAPTION, None], reference_sizes([order, CAPTION], keywords=2))
    np.testing.assert_array_equal(rows.positions, [[2, -1], [2, 4], [-1, -1]])
    assert not rows.shows_nothing.any()
    np.testing.assert_array_equal(rows.answer_type, [AnswerType.TEXT, AnswerType.TEXT, AnswerType.PADDING])
    # The words of other keywords are those of other clips' that are not this clip's.
    assert fingerprint_of("rotates") in rows.others[1] and fingerprint_of("ran") in rows.others[0]
    assert fingerprint_of("ran") not in rows.others[1] and fingerprint_of("rotates") not in rows.others[0]


def test_a_lemma_is_expected_once():
    twice = dataclasses.replace(CAPTION, keywords=(*CAPTION.keywords, *CAPTION.keywords))
    rows = reference_rows([twice], reference_sizes([twice], keywords=4))
    np.testing.assert_array_equal(rows.positions, [[2, 4, -1, -1]])


def test_only_the_first_keywords_are_expected():
    """Those after them, and all words of the answer, are not unexpected where other clips have them as
    keywords."""
    other = make_clip("A dog falls on a man", keywords=spanned_keywords(("falls", "fall"), ("man", "man")))
    sizes = reference_sizes([CAPTION, other], keywords=1)
    sizes = dataclasses.replace(sizes, known=sizes.known | {"man", "run"})
    rows = reference_rows([CAPTION, other], sizes)
    assert rows.positions.shape == (2, 1)
    assert not np.isin([fingerprint_of(word) for word in ("falls", "man", "runs")], rows.others[0]).any()
    assert fingerprint_of("run") in rows.others[1]


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (make_clip("E", "choice", choices=("a", "")), "names none of its 2 options"),
        (make_clip("yes", "choice"), "names none of its 26 options"),
        (make_clip("1 to 2", "grounding"), "needs spans"),
        (make_clip("[0, 0, 1, 1]", "tracking"), "needs boxes"),
        (make_clip("five", "numerical"), "is not one number, as numerical needs"),
        (make_clip("5 or 6", "regression"), "is not one number, as regression needs"),
        (make_clip("..."), "has no words to compare with"),
        (make_clip("<think>It runs", "ocr"), "has no words to compare with"),
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


def test_a_clip_as_its_degraded_video_shows_it():
    """It has V~'s answer, and keywords that this does not mention are wrong. Where the answer is not known,
    or the task asks for times, there is no such clip."""
    clip = dataclasses.replace(CAPTION, degraded_answer="A man runs on", spans=((1.0, 2.0),))
    shown = degraded_clip(clip)
    assert (shown.answer, shown.spans) == ("A man runs on", ())
    sizes = reference_sizes([clip, shown], keywords=2)
    rows = reference_rows([clip, shown], sizes)
    np.testing.assert_array_equal(rows.positions, [[2, 4], [2, -1]])
    # The forms of the keyword that V~ hides are known, so that naming it can be told.
    np.testing.assert_array_equal(rows.forms[1], rows.forms[0])
    assert fingerprint_of("fell") in rows.forms[1, 1]
    # On V a keyword that the answer does not mention is not known to be wrong.
    unmentioned = dataclasses.replace(clip, answer=clip.degraded_answer)
    assert not reference_rows([unmentioned], sizes).forms[0, 1].any()
    # V~ shows a keyword, or none.
    quiet = dataclasses.replace(clip, degraded_answer="A man stays", answer="He falls and runs")
    clips = [clip, shown, quiet, degraded_clip(quiet)]
    rows = reference_rows(clips, reference_sizes(clips, keywords=2))
    assert rows.shows_nothing.tolist() == [False, False, False, True]
    assert degraded_clip(CAPTION) is None
    assert degraded_clip(dataclasses.replace(clip, task="grounding")) is None


def test_words_of_known_keywords():
    """Each one-word form that some answer may use, with its lemma."""
    clips = [CAPTION, make_clip("It picks up", keywords=spanned_keywords(("picks up", "pick up")))]
    table = keyword_table(clips, 2)
    assert list(table.words) == sorted(table.words)
    lemma_of = dict(zip(table.words.tolist(), table.lemmas.tolist(), strict=True))
    for word, lemma in (("ran", "run"), ("falling", "fall")):
        assert lemma_of[fingerprint_of(word)] == fingerprint_of(lemma)
    assert fingerprint_of("picks") not in lemma_of
    assert keyword_table([], 2).words.tolist() == [0]
