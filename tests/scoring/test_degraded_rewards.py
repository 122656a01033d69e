"""What V~ hides, what is true of it, and which answers on V and V~ say the same."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.scoring.reward_cases import CLIPS, STILL, STORY, make_clip, spanned_keywords
from tests.scoring.scorer import KEYWORDS, SIZES, make_scorers
from vpjax.scoring.judge import ConfigJudge
from vpjax.scoring.references import keyword_table, reference_rows
from vpjax.scoring.rewards import answer_numbers
from vpjax.types import Keyword, Prompts, Strip

pytestmark = pytest.mark.slow

BALL = make_clip("A man throws the ball", keywords=spanned_keywords(("throws", "throw")))
LETTER = make_clip("(A)", "choice", choices=("yes", "no", "perhaps"))


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return make_scorers(tmp_path_factory, names=("keyword_removed", "keyword_absent"))[0]


def make_judge(scorer, clips, *names):
    """A judge of completions on V~ by the rewards ``names``, and by ``event`` on V."""
    grpo = dict(rewards=dict(event=1.0), degraded_rewards=dict.fromkeys(names, 1.0), control_share=0.0)
    return ConfigJudge(ConfigDict(dict(seed=0, data=dict(keywords=KEYWORDS), grpo=grpo)), scorer.text, clips)


def prompts_of(hidden_BJ):
    """Prompts of clips 0, 1, ..., without videos, whose V~ hides these keywords."""
    none = np.full((len(hidden_BJ), 1), -1, np.int32)
    text = Strip(none, none, none, shows=none, slot=none)
    return Prompts(None, text, none, none, None, hidden_BJ, np.arange(len(hidden_BJ)))


def test_hidden_is_what_the_prompts_say(scorer):
    """For both rewards that read it, whatever spans a keyword has: none, one or all of a clip's keywords."""
    completions = [["He picks up the ball."], ["He falls."], ["He sits."]]
    clips = [STORY] * 3
    for hidden, removed, absent in (
        ([False] * 4, [np.nan] * 3, [np.nan] * 3),
        ([True, False, False, False], [1, 0, 0], [0, 1, 1]),
        ([True] * 4, [0.25, 0.25, 0], [0, 0, 1]),
    ):
        device = scorer.device(completions, clips, lambda rows, own=hidden: np.tile(own, (len(rows), 1)))
        np.testing.assert_array_equal(device["keyword_removed"][:, 0], np.float32(removed))
        np.testing.assert_array_equal(device["keyword_absent"][:, 0], np.float32(absent))


def test_answers_that_say_the_same(scorer):
    """In captions: name the same keywords, in whichever words and order; in choices: take the same option."""
    clips = [BALL, LETTER, STORY]
    said = [
        [
            ["It is thrown.", "A man threw the ball", "throwing"],
            ["It flashes", "something blinks white", "<think>spins</think>flashing and flashed"],
            ["It flashes and spins", "It rotates, then blinks"],
            # A form of several words is known in clips that have the keyword, and says nothing in others.
            ["It stays the same", "nothing", "", "He picks up"],
        ],
        [["(A) yes", "A."], ["(B) no", "B, not A"], ["D", "", "A or B"]],
        [["He picks up", "He picked up the ball"], ["He sits"]],
    ]
    tokens, mask = scorer.tokens([sum(groups, []) for groups in said])
    references = reference_rows([*clips, *[None] * (len(CLIPS) - len(clips))], SIZES)
    known = keyword_table([*CLIPS, BALL], KEYWORDS)
    numbers = np.asarray(jax.jit(answer_numbers)(scorer.table, known, tokens, mask, references))
    for row, groups in enumerate(said):
        group_of = [g for g, group in enumerate(groups) for _ in group]
        got = numbers[row, : len(group_of)]
        np.testing.assert_array_equal(np.equal.outer(got, got), np.equal.outer(group_of, group_of))
        assert (got >= 0).all()
    assert (numbers[len(clips) :] == -1).all()


def test_what_is_true_of_the_degraded_video(scorer):
    """Completions on V~ are compared with its own truth where V~ hides a keyword, with the answer where it
    hides none; without a known truth only keyword_absent counts."""
    caption = "A red square moves left and suddenly spins."
    shown = make_clip(caption, keywords=spanned_keywords(("spins", "spin")))
    known = dataclasses.replace(shown, degraded_answer=STILL.answer)
    flash = make_clip("It flashes.", keywords=spanned_keywords(("flashes", "flash")))
    clips = [known, known, shown, flash]
    judge = make_judge(scorer, clips, "event", "rouge_l", "keyword_absent")
    hidden = np.zeros((4, KEYWORDS), bool)
    hidden[[0, 2, 3], 0] = True
    prompts = judge.with_references(prompts_of(hidden))
    texts = [shown.answer, STILL.answer, "A red square moves left and suddenly flashes."]
    tokens, mask = scorer.tokens([texts] * 4)
    scored = jax.jit(judge.score_degraded)(prompts, tokens[:4, :3], mask[:4, :3])
    nan = np.nan
    expected = {
        "event": [[0, 1, 0], [1, 0, 0], [nan] * 3, [nan] * 3],
        "keyword_absent": [[0, 1, 1], [nan] * 3, [0, 1, 1], [1, 1, 0]],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(scored[name], np.float32(values), err_msg=name)
    rouge = np.asarray(scored["rouge_l"])
    assert rouge[0, 1] == rouge[1, 0] == 1 and (rouge[0, [0, 2]] < 1).all() and np.isnan(rouge[2:]).all()
    # On V nothing has changed.
    on_v = jax.jit(judge.score)(prompts, tokens[:4, :3], mask[:4, :3])["event"]
    np.testing.assert_array_equal(on_v, [[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]])


def test_the_hidden_event_is_never_true_of_the_degraded_video(scorer):
    """A keyword of several words as little as one of one word, in whichever form."""
    man = "A man {} a ball."
    clip = make_clip(man.format("picks up"), keywords=spanned_keywords(("picks up", "pick up")))
    both = make_clip(
        "A man runs and picks up a ball.", keywords=spanned_keywords(("runs", "run"), ("picks up", "pick up"))
    )
    seen = Keyword("runs", "run")  # at no known time, so that V~ may show it
    both = dataclasses.replace(both, keywords=(seen, both.keywords[1]), degraded_answer="A man runs.")
    clips = [dataclasses.replace(clip, degraded_answer=man.format("looks at")), both]
    judge = make_judge(scorer, clips, "event", "keyword_f1")
    hidden = np.zeros((2, KEYWORDS), bool)
    hidden[0, 0] = hidden[1, 1] = True
    prompts = judge.with_references(prompts_of(hidden))
    texts = [
        "He looks at a ball.",
        "He picks up a ball.",
        "He picked up a ball.",
        "He ran.",
        "He ran, picking up a ball.",
    ]
    tokens, mask = scorer.tokens([texts] * 2)
    scored = jax.jit(judge.score_degraded)(prompts, tokens[:2, :5], mask[:2, :5])
    np.testing.assert_array_equal(scored["event"], [[1, 0, 0, 0, 0], [0, 0, 0, 1, 0]])
    # Two thirds: one keyword of two that are named is right, and one is all that can be.
    nan = np.nan
    np.testing.assert_allclose(scored["keyword_f1"], [[nan] * 5, [0, 0, 0, 1, 2 / 3]], rtol=1e-6)


def test_a_video_that_shows_some_of_its_events_has_no_known_truth(scorer):
    """One of two keywords is hidden, or four of five, of which the fifth is beyond ``data.keywords``. A
    keyword without a time may stay."""
    names = [("picks up", "pick up"), ("runs", "run"), ("falls", "fall"), ("drops", "drop"), ("sits", "sit")]
    keywords = spanned_keywords(*names)
    answer = "He picks up, runs, falls, drops and sits"
    untimed = Keyword("sits", "sit")
    clips = [
        make_clip(answer, keywords=chosen, degraded_answer="He stands")
        for chosen in (keywords[:2], keywords[:2], keywords, keywords[:4], (*keywords[:4], untimed))
    ]
    judge = make_judge(scorer, clips, "rouge_l")
    hidden = np.arange(KEYWORDS) < np.array([1, 2, 4, 4, 4])[:, None]
    tokens, mask = scorer.tokens([["He stands"]] * 5)
    prompts = judge.with_references(prompts_of(hidden))
    scored = jax.jit(judge.score_degraded)(prompts, tokens[:5, :1], mask[:5, :1])
    np.testing.assert_array_equal(scored["rouge_l"][:, 0], np.float32([np.nan, 1, np.nan, 1, 1]))
