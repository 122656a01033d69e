"""Rewards: the device agrees with the host on any text; values worked by hand; laws."""

import itertools
import re
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from tests.scoring.reward_cases import (
    CHINESE,
    CLIPS,
    COUNT,
    PROOF,
    SIGN,
    SIZE,
    SPEC,
    STILL,
    STORY,
    TRACK,
    garbled,
    make_clip,
    noise,
    spanned_keywords,
    template_answer,
)
from tests.scoring.scorer import (
    GROUP,
    SIZES,
    assert_evaluation_agrees,
    assert_same,
    device_rewards,
    every_keyword,
    every_second,
    make_scorers,
)
from vpjax.events.clips import describe
from vpjax.events.text import PHRASES, event_of
from vpjax.scoring.answers import read_choice, read_spans
from vpjax.scoring.choices import chosen_option
from vpjax.scoring.references import reference_arrays, reference_rows
from vpjax.scoring.rewards import REWARDS, combine
from vpjax.scoring.spans import find_numbers, spans_of
from vpjax.scoring.words import fingerprint_of, word_fingerprints

pytestmark = pytest.mark.slow

PENALTIES = {"repetition", "overlong"}


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    return make_scorers(tmp_path_factory)


@pytest.fixture(scope="module")
def scorer(scorers):
    return scorers[0]


def grouped(clips, completion):
    """``completion(clip)`` GROUP times for each clip."""
    return [[completion(clip) for _ in range(GROUP)] for clip in clips]


@pytest.mark.parametrize("kind", ["templates", "garbled", "noise", "bytes"])
@pytest.mark.parametrize("tokenizer", [0, 1])
def test_device_equals_host(scorers, tokenizer, kind):
    """On 1,600 texts each, 12,800 in all; and evaluation makes the same of them. bytes: tokens at random, so
    that letters beyond ASCII are torn and special tokens stand anywhere; ids that no tokenizer has are among
    them."""
    scorer, rng = scorers[tokenizer], np.random.default_rng(7 + tokenizer)

    def completion(clip):
        if kind == "noise":
            return noise(rng)
        if kind == "bytes":
            return rng.integers(0, len(scorer.text.tokenizer) + 9, rng.integers(0, 60))
        text = template_answer(rng, clip)
        return garbled(rng, text) if kind == "garbled" else text

    for _ in range(2):
        completions = grouped(CLIPS, completion)
        device = scorer.device(completions, CLIPS)
        assert_same(device, scorer.host(completions, CLIPS))
        assert_evaluation_agrees(device, scorer.decoded(completions), CLIPS)
    if kind in ("templates", "garbled"):  # every reward takes several values
        assert not [name for name, x in device.items() if len(np.unique(x[~np.isnan(x)])) < 2]


def test_two_tokenizers_agree(scorers):
    rng = np.random.default_rng(3)
    completions = grouped(CLIPS, lambda clip: garbled(rng, template_answer(rng, clip))[:60])
    first, second = (scorer.device(completions, CLIPS) for scorer in scorers)
    for name in set(REWARDS) - {"overlong"}:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_rouge_equals_the_rouge_score_package(scorer):
    rng = np.random.default_rng(5)
    names = ["rouge1", "rouge2", "rougeL"]
    package, with_stems = RougeScorer(names), RougeScorer(names, use_stemmer=True)
    clips = [clip for clip in CLIPS if clip.task in ("caption", "order") and clip not in (STORY, CHINESE)]

    def completion(clip):
        """Without tags and other scripts, which the package does not know."""
        return re.sub(r"[<>]|[^\x00-\x7f]", "", garbled(rng, template_answer(rng, clip)))

    completions = grouped(clips, completion)
    device = scorer.device(completions, clips)
    texts = scorer.decoded(completions)
    for b, g in np.ndindex(len(clips), GROUP):
        expected = package.score(clips[b].answer, texts[b][g])
        for name, key in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
            assert device[name][b, g] == pytest.approx(expected[key].fmeasure, abs=1e-6), texts[b][g]
        stems = np.mean([score.fmeasure for score in with_stems.score(clips[b].answer, texts[b][g]).values()])
        assert device["rouge_stems"][b, g] == pytest.approx(stems, abs=1e-6), texts[b][g]


BALL = make_clip("A man throws the ball", keywords=spanned_keywords(("throws", "throw")))
GROUND = make_clip("From 2 to 6 s", "grounding", spans=((2.0, 6.0),))
UNKNOWN = make_clip("A red square moves left and suddenly stays the same.")
LETTER = make_clip("(A)", "choice", choices=("yes", "no", "perhaps"))
TAGGED = "<think>so</think><answer>{}</answer>"
BY_HAND = [
    # 3 of 5 words in order: 2 * 3 / (5 + 5); without order 4. Pairs: "the ball" of 4 and 4.
    ("rouge_l", BALL, "the ball a man threw", 0.4),
    ("rouge_l", BALL, "A man, THE ball: throws!", 0.8),
    ("rouge_1", BALL, "the ball a man threw", 0.8),
    ("rouge_1", BALL, "the the the the the", 0.2),
    ("rouge_2", BALL, "the ball a man threw", 0.5),
    ("rouge_l", BALL, "", 0.0),
    # Content: man, throws, ball.
    ("caption_recall", BALL, "one man, one ball, one man", 2 / 3),
    # Keywords: picks up, runs, falls, drops, in any form and only as whole words.
    ("keyword_recall", STORY, "He picked up a thing and was running.", 0.5),
    ("keyword_recall", STORY, "He fell. The runway dropped; up he picks.", 0.5),
    ("keyword_recall", STORY, "<think>He runs and falls</think> He drops it.", 0.25),
    ("keyword_removed", STORY, "He ran.", 0.25),
    ("keyword_absent", STORY, "He ran.", 0.0),
    ("keyword_absent", STORY, "He sat and flashes.", 1.0),
    ("keyword_absent", STORY, "", 1.0),
    ("keyword_absent", STILL, "It ran.", np.nan),
    ("keyword_recall", TRACK, "He ran.", np.nan),
    # Mentioned: run, fall; and of other keywords "flashes" and "spun": 2 * 2 / (2 + 2 + 4).
    ("keyword_f1", STORY, "It ran and fell, flashes, spun and flashes.", 0.5),
    # Of 6 pairs of keywords: run before fall alone.
    ("keyword_order", STORY, "He runs and falls", 1 / 6),
    ("keyword_order", STORY, "He drops it, falls, runs and picks up", 0.0),
    ("keyword_order", BALL, "He throws", np.nan),
    ("event", BALL, "It was thrown", 1.0),
    ("event", BALL, "It was thrown or flashes", 0.0),
    ("event", STILL, "It does nothing at all", 1.0),
    ("event", STILL, "It stays the same and flashes", 0.0),
    ("event", STILL, "...", 0.0),  # saying nothing is not saying that nothing happens
    ("event", UNKNOWN, "It does nothing at all", np.nan),  # whose keywords nobody annotated
    ("event", TRACK, "It stays the same", np.nan),
    ("choice", LETTER, "(A) yes", 1.0),
    ("choice", LETTER, "<think>B?</think> The answer is A.", 1.0),
    ("choice", LETTER, "A man says no", 0.0),
    ("choice", LETTER, "He says yes", 1.0),
    ("choice", LETTER, "A because he nods", 1.0),
    ("choice", LETTER, "A or B", 0.0),
    ("choice", LETTER, "yes or no", 0.0),
    ("choice", LETTER, "B, not A", 0.0),
    ("choice", LETTER, "D. A", 1.0),
    ("choice", LETTER, "ABC", 0.0),
    ("choice", LETTER, "<answer>A</answer> B", 1.0),
    ("choice", LETTER, "<think>A", 0.0),
    ("choice", BALL, "A", np.nan),
    # The reference: 2 to 6.
    ("span_iou", GROUND, "From 4 to 8 seconds", 2 / 6),
    ("span_iou", GROUND, "0 to 1, no: 2.0s - 6.00s", 1.0),
    ("span_iou", GROUND, "0:02 until 0:00:06", 1.0),
    ("span_iou", GROUND, "6 to 2", 0.0),
    ("span_iou", GROUND, "3 to 4 to 9", 1 / 4),
    ("span_iou", GROUND, "3.5.1 to 6", 0.0),
    ("span_iou", GROUND, "start 2.0, end 4", 0.5),
    ("span_iou", GROUND, "2,5 to 1e1", 3.5 / 8),
    ("span_iou", GROUND, "2 to 4, no: 6 to 2", 0.5),
    ("span_iou", GROUND, "\uff12\uff0e\uff10\uff5e\uff16", 1.0),
    ("span_iou", GROUND, "2, 6", 1.0),
    ("span_iou", GROUND, "between 3 secs and 5", 0.5),
    ("span_iou", GROUND, "2 or 6", 1.0),  # the only two numbers
    ("span_iou", GROUND, "2 or 6 or 9", 0.0),
    # The reference: 5.2 to 10.4 and 12 to 18.5, in all 11.7.
    ("evidence_iou", PROOF, "C<glue>[(5.2, 10.4)]</glue>", 5.2 / 11.7),
    ("evidence_iou", PROOF, "<glue>12 to 14 and 13 to 18.5</glue>", 6.5 / 11.7),
    ("evidence_iou", PROOF, "C: 5.2 to 10.4", 0.0),
    ("evidence_iou", PROOF, "<answer>C</answer><glue>(5.2, 10.4), (12, 18.5), (20, 31.7)</glue>", 0.5),
    ("choice", PROOF, "<answer>C</answer><glue>[(5.2, 10.4)]</glue>", 1.0),
    # The first box is right, the second shares half of itself with one as large, the third is missing.
    ("box_iou", TRACK, "[[0.1, 0.2, 0.5, 0.6], (0.4, 0.2, 0.8, 0.6)]", (1 + 1 / 3) / 3),
    ("box_iou", TRACK, "[.1, 0.2, 0.5]", 0.0),
    ("box_iou", TRACK, "[0.1, 0.2, 0.5, 0.6] " * 5, (1 + 0.12 / 0.2 + 0.25 * 0.3 / (0.32 - 0.25 * 0.3)) / 5),
    ("format", BALL, "<think>so</think>\n<answer>B</answer>\n", 1.0),
    ("numerical", COUNT, "12.50", 1.0),
    ("numerical", COUNT, "12.496", 1.0),
    ("numerical", COUNT, "There are 12,5 of them", 1.0),
    ("numerical", COUNT, "12.4", 0.0),
    ("numerical", COUNT, "12.5 or 13", 0.0),
    ("numerical", COUNT, "none", 0.0),
    ("regression", SIZE, "1250", 1.0),
    ("regression", SIZE, "1.0e3 m", 0.8),
    ("regression", SIZE, "-1250", 0.0),
    # The reference has three words: one is wrong, one is missing, or two are too many.
    ("ocr", SIGN, "STOP, no. 5!", 2 / 3),
    ("ocr", SIGN, "STOP, 5!", 2 / 3),
    ("ocr", SIGN, "So: STOP, No. 5! now", 1 / 3),
    # 5 of 8 words: each Chinese character is one.
    ("rouge_l", CHINESE, "\u7537\u4eba\u8dd1 CAF\u00c9 \u043c\u043e\u0441\u043a\u0432\u0430", 2 * 5 / 13),
    ("format", BALL, "<think>so</think><answer>B</answer><glue>[1, 2]</glue>", 0.0),
    ("format", PROOF, "<think>so</think><answer>B</answer><glue>[(1, 2)]</glue>", 1.0),
    ("format", PROOF, "<think>so</think><answer>B</answer><glue>[(1, 2),(3.5, 4)]</glue>", 1.0),
    ("format", PROOF, "<think>so</think><answer>B</answer><glue>1 to 2</glue>", 0.0),
    ("format", PROOF, "<think>so</think><answer>B</answer><glue>[(2, 1)]</glue>", 0.0),
    ("format", PROOF, "<think>so</think><answer>B</answer>", 0.0),
    ("format", TRACK, TAGGED.format([[0.1, 0.2, 0.5, 0.6]] * 3), 1.0),
    ("format", TRACK, TAGGED.format([[0.1, 0.2, 0.5, 0.6]] * 2), 0.0),
    ("format", TRACK, TAGGED.format([[0.1, 0.2, 0.5, 0.6]] * 4), 0.0),
    ("format", TRACK, TAGGED.format(str([[0.1, 0.2, 0.5, 0.6]] * 3)[1:-1]), 0.0),
    ("format", BALL, "<think>so</think><answer></answer>", 0.0),
    ("format", BALL, "<think>so</think>or<answer>B</answer>", 0.0),
    ("format", BALL, "<think>so</think><answer>B</answer><answer>C</answer>", 0.0),
    ("format", BALL, "<answer>B</answer><think>so</think>", 0.0),
    ("format", BALL, "B", 0.0),
    # Five runs of three words, of which two came before.
    ("repetition", BALL, "a b c a b c a", -2 / 5),
    ("repetition", BALL, "one two", 0.0),
]


def test_values_worked_by_hand(scorers):
    scorer = scorers[1]  # which needs fewer tokens for numbers
    for start in range(0, len(BY_HAND), len(CLIPS)):
        cases = BY_HAND[start : start + len(CLIPS)]
        completions, clips = [[text] for _, _, text, _ in cases], [clip for _, clip, _, _ in cases]
        device = scorer.device(completions, clips, every_keyword)
        host = scorer.host(completions, clips, every_keyword)
        for row, (name, _, text, value) in enumerate(cases):
            for rewards in (device, host):
                assert rewards[name][row, 0] == pytest.approx(value, abs=1e-6, nan_ok=True), (name, text)


def test_overlong_counts_tokens_and_the_end(scorer):
    lengths = [1, 80, 81, 90, 99, 100]
    letter = scorer.text.encode("a")
    completions = [[np.array(letter * n) for n in lengths]]
    for rewards in (scorer.device(completions, CLIPS[:1]), scorer.host(completions, CLIPS[:1])):
        np.testing.assert_allclose(rewards["overlong"], [[0, 0, -0.05, -0.5, -0.95, -1]], atol=1e-6)
    text = "a" + " a" * 79
    assert len(scorer.text.answer(text)) == 81
    assert scorer.device([[text]], CLIPS[:1])["overlong"] == pytest.approx(-0.05)


def test_the_reference_itself_is_best(scorer):
    device = scorer.device([[clip.answer] for clip in CLIPS], CLIPS)
    boxes, evidence = str([list(box) for box in TRACK.boxes]), f"C<glue>{list(PROOF.spans)}</glue>"
    both = scorer.device([[boxes], [evidence]], [TRACK, PROOF])
    device["box_iou"], device["evidence_iou"] = both["box_iou"], both["evidence_iou"]
    for name in set(REWARDS) - PENALTIES - {"format", "span_iou", "keyword_absent"}:
        counting = device[name][~np.isnan(device[name])]
        assert len(counting) and (counting == 1).all(), name
    assert np.nanmin(device["span_iou"]) > 0.9  # the answers give seconds to 1/100


def test_bounds_and_order_of_completions(scorer):
    rng = np.random.default_rng(11)
    completions = grouped(CLIPS, lambda clip: template_answer(rng, clip))
    device = scorer.device(completions, CLIPS)
    order = rng.permutation(GROUP)
    moved = scorer.device([[row[g] for g in order] for row in completions], CLIPS)
    for name, x in device.items():
        low, high = (-1, 0) if name in PENALTIES else (0, 1)
        assert np.nanmin(x) >= low and np.nanmax(x) <= high, name
        np.testing.assert_array_equal(x[:, order], moved[name], err_msg=name)


def test_only_tokens_in_the_mask_count(scorer):
    """Tokens after the end, padding among them, change nothing; nor do special tokens before it."""
    text, rows = scorer.text, reference_rows(CLIPS, SIZES)
    tokens, mask = scorer.tokens([[clip.answer] for clip in CLIPS])
    hidden = every_second(CLIPS)
    rewards = device_rewards(scorer.table, tokens, mask, rows, hidden, scorer.names)
    padded = device_rewards(scorer.table, np.where(mask, tokens, text.pad), mask, rows, hidden, scorer.names)
    special = np.array([text.vision_start, text.pad, text.image_pad])
    mixed = scorer.device([[np.concatenate([special, text.answer(clip.answer)])] for clip in CLIPS], CLIPS)
    for name in REWARDS:
        np.testing.assert_array_equal(rewards[name], padded[name], err_msg=name)
        if name != "overlong":
            np.testing.assert_array_equal(rewards[name][:, :1], mixed[name], err_msg=name)


def test_rewards_count_for_their_tasks_alone(scorer):
    clips = [*CLIPS, None][-len(CLIPS) :]
    completions = [["A"]] * len(clips)
    device, host = scorer.device(completions, clips), scorer.host(completions, clips)
    texts = {"rouge_l", "rouge_1", "rouge_2", "rouge_stems", "caption_recall"}
    own = dict(caption=texts, order=texts, choice={"choice"}, grounding={"span_iou"}, tracking={"box_iou"})
    own |= dict(numerical={"numerical"}, regression={"regression"}, ocr={"ocr"})
    for row, clip in enumerate(clips):
        expected = {"format", "repetition", "overlong"} | own[clip.task] if clip else set()
        if clip and clip.task == "choice" and clip.spans:
            expected.add("evidence_iou")
        counts = {name for name, x in device.items() if not np.isnan(x[row, 0])}
        assert {name for name in counts if not name.startswith(("keyword", "event"))} == expected
        assert counts == {name for name, x in host.items() if not np.isnan(x[row, 0])}


def test_event_is_what_held_out_clips_are_scored_by(scorer):
    """The reward is 1 where ``event_of`` reads the clip's event and no other, in whichever of its words."""
    clips = [clip for clip, _ in (describe(SPEC, "heldout", i) for i in range(200)) if clip.task == "caption"]
    clips, rng = clips[: len(CLIPS)], np.random.default_rng(2)
    phrases = [phrase for pair in PHRASES.values() for phrase in pair]
    completions = grouped(clips, lambda _: f"It {' and '.join(rng.choice(phrases, rng.integers(3)))}.")
    device = scorer.device(completions, clips)
    expected = [
        [event_of(text) == clip.extra["event"] for text in row]
        for row, clip in zip(completions, clips, strict=True)
    ]
    np.testing.assert_array_equal(device["event"], expected)
    assert 0 < np.mean(expected) < 1


def test_word_order_counts_only_where_it_should(scorer):
    rng = np.random.default_rng(13)
    clips = [clip for clip in CLIPS if clip.task == "caption" and clip not in (STORY, CHINESE)]
    device = scorer.device(grouped(clips, lambda clip: " ".join(rng.permutation(clip.answer.split()))), clips)
    for name in ("rouge_1", "caption_recall"):
        assert (device[name] == 1).all()
    for name in ("rouge_2", "rouge_l"):
        assert device[name].mean() < 0.7


def test_a_sum_leaves_out_rewards_that_do_not_count():
    rewards = dict(
        rouge_l=np.array([[0.5, np.nan]]), choice=np.array([[np.nan, np.nan]]), format=np.ones((1, 2))
    )
    np.testing.assert_allclose(combine(rewards, dict(rouge_l=2.0, choice=1.0, format=0.25)), [[1.25, 0.25]])


def test_words_have_different_fingerprints():
    letters = string.ascii_lowercase + string.digits
    short = ["".join(pair) for n in (1, 2) for pair in itertools.product(letters, repeat=n)]
    text = " ".join(short)
    fingerprints = jax.jit(word_fingerprints, static_argnums=1)
    device = fingerprints(jnp.array([ord(character) for character in text]), len(short) + 1)
    assert len(set(device.tolist()) - {0}) == len(short)
    np.testing.assert_array_equal(device[:-1], [fingerprint_of(word) for word in short])
    upper = fingerprints(jnp.array([ord(character) for character in text.upper()]), len(short) + 1)
    np.testing.assert_array_equal(upper, device)


def characters(texts, size=48):
    return np.array([[ord(character) for character in text.ljust(size)] for text in texts], np.int32)


def test_letters_that_another_options_text_begins_with():
    """As in orders of (a), (b) and (c); the device reads what the host reads."""
    orders = ("(c)(b)(a)", "(a)(b)(c)", "(a)(c)(b)", "(b)(a)(c)")
    reference = reference_arrays(make_clip("A", "choice", choices=orders), 1)
    forms = ("{0}. {1}", "({0}) {1}.", "The answer is {0}: {1}", "{1}", "{0} or {1}")
    texts = [form.format(*pair) for pair in zip("ABCD", orders, strict=True) for form in forms]
    read = jax.jit(jax.vmap(lambda text: chosen_option(text, 16, reference.marks, reference.options)))
    host = [read_choice(text, orders) for text in texts]
    assert read(characters(texts)).tolist() == [-1 if option is None else option for option in host]
    assert host[::5] == host[1::5] == host[2::5] == [0, 1, 2, 3]


def test_numbers_that_are_no_span_hide_none():
    texts = ["of 30 s, 3 to 5.5", "9 to 3 to 5", "7, 2 to 4, no: 7 to 3", "7 to 2", "1 to 2 to 3"]
    read = jax.jit(jax.vmap(lambda text: spans_of(find_numbers(text, 24))))
    device = [
        [tuple(span) for span in spans.tolist() if not np.isnan(span[0])] for spans in read(characters(texts))
    ]
    assert device == list(map(read_spans, texts)) == [[(3, 5.5)], [(3, 5)], [(2, 4)], [], [(1, 2)]]
