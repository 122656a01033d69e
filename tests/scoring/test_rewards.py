"""Rewards: the device agrees with the host on anything that can be said; values by hand; laws."""

import itertools
import string

import jax.numpy as jnp
import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from tests.scoring import said
from tests.scoring.said import CLIPS, PROOF, SPEC, STORY, TRACK, clip, seen
from vpjax.events.clips import describe
from vpjax.events.text import PHRASES, event_of
from vpjax.scoring.rewards import REWARDS, combine
from vpjax.scoring.words import host_fingerprint, words_of

PENALTIES = {"repetition", "overlong"}


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    """Of two tokenizers that share little."""
    return [
        said.Scorer(tmp_path_factory.mktemp("tokenizer"), texts, size)
        for texts, size in ((said.event_texts(), 400), (said.odd_texts(), 900))
    ]


@pytest.fixture(scope="module")
def scorer(scorers):
    return scorers[0]


def assert_twins(device, host):
    for name in REWARDS:
        # float32 against float64; an IoU of seconds up to 10^6, of which few are right, loses the most.
        np.testing.assert_allclose(device[name], host[name], rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("way", ["templates", "garbled", "noise", "bytes"])
@pytest.mark.parametrize("tokenizer", [0, 1])
def test_device_equals_host(scorers, tokenizer, way):
    """On 768 texts each. bytes: tokens at random, so that letters beyond ASCII are torn and special tokens
    stand anywhere; ids that no tokenizer has are among them."""
    scorer, rng = scorers[tokenizer], np.random.default_rng(7 + tokenizer)

    def one(clip):
        match way:
            case "noise":
                return said.noise(rng)
            case "bytes":
                return rng.integers(0, len(scorer.text.tokenizer) + 9, rng.integers(0, 60))
        text = said.spoken(rng, clip)
        return said.garbled(rng, text) if way == "garbled" else text

    device, host = scorer.both([[one(clip) for _ in range(32)] for clip in CLIPS], CLIPS)
    assert_twins(device, host)
    if way in ("templates", "garbled"):  # the texts say something of everything
        assert not [name for name, x in device.items() if len(np.unique(x[~np.isnan(x)])) < 2]


def test_two_tokenizers_agree(scorers):
    rng = np.random.default_rng(3)
    texts = [[said.garbled(rng, said.spoken(rng, clip))[:60] for _ in range(32)] for clip in CLIPS]
    one, other = (scorer.both(texts, CLIPS)[0] for scorer in scorers)
    for name in set(REWARDS) - {"overlong"}:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_rouge_equals_the_rouge_score_package(scorer):
    rng = np.random.default_rng(5)
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"])
    clips = [c for c in CLIPS if c.task in ("caption", "order") and c is not STORY]
    # Without tags, which the package does not know, and two letters that Python makes small ASCII ones.
    odd = dict.fromkeys(map(ord, "<>\u212a\u0130"))
    texts = [[said.garbled(rng, said.spoken(rng, c)).translate(odd) for _ in range(32)] for c in clips]
    device, _ = scorer.both(texts, clips)
    texts = scorer.heard(texts)
    for b, g in np.ndindex(len(clips), 32):
        wanted = theirs.score(clips[b].answer, texts[b][g])
        for name, key in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
            assert device[name][b, g] == pytest.approx(wanted[key].fmeasure, abs=1e-6), texts[b][g]


BALL = clip("A man throws the ball", keywords=seen(("throws", "throw")))
GROUND = clip("From 2 to 6 s", "grounding", spans=((2.0, 6.0),))
LETTER = clip("(A)", "choice", choices=("yes", "no", "perhaps"))
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
    ("keyword_recall", TRACK, "He ran.", np.nan),
    # Said: run, fall; and of other keywords "flashes" and "spun": 2 * 2 / (2 + 2 + 4).
    ("keyword_f1", STORY, "It ran and fell, flashes, spun and flashes.", 0.5),
    # Of 6 pairs of keywords: run before fall alone.
    ("keyword_order", STORY, "He runs and falls", 1 / 6),
    ("keyword_order", STORY, "He drops it, falls, runs and picks up", 0.0),
    ("keyword_order", BALL, "He throws", np.nan),
    ("event", BALL, "It was thrown", 1.0),
    ("event", BALL, "It was thrown or flashes", 0.0),
    ("choice", LETTER, "(A) yes", 1.0),
    ("choice", LETTER, "<think>B?</think> The answer is A.", 1.0),
    ("choice", LETTER, "A man says yes", 0.0),
    ("choice", LETTER, "B, not A", 0.0),
    ("choice", LETTER, "D. A", 1.0),
    ("choice", LETTER, "ABC", 0.0),
    ("choice", LETTER, "<answer>A</answer> B", 1.0),
    ("choice", LETTER, "<think>A", 0.0),
    ("choice", BALL, "A", np.nan),
    # ClipReference: 2 to 6.
    ("span_iou", GROUND, "From 4 to 8 seconds", 2 / 6),
    ("span_iou", GROUND, "0 to 1, no: 2.0s - 6.00s", 1.0),
    ("span_iou", GROUND, "0:02 until 0:00:06", 1.0),
    ("span_iou", GROUND, "6 to 2", 0.0),
    ("span_iou", GROUND, "3 to 4 to 9", 1 / 4),
    ("span_iou", GROUND, "3.5.1 to 6", 0.0),
    ("span_iou", GROUND, "2, 6", 1.0),
    ("span_iou", GROUND, "between 3 secs and 5", 0.5),
    ("span_iou", GROUND, "2 or 6", 0.0),
    # ClipReference: 5.2 to 10.4 and 12 to 18.5, in all 11.7.
    ("evidence_iou", PROOF, "C<glue>[(5.2, 10.4)]</glue>", 5.2 / 11.7),
    ("evidence_iou", PROOF, "12 to 14 and 13 to 18.5", 6.5 / 11.7),
    ("evidence_iou", PROOF, "<answer>C</answer><glue>(5.2, 10.4), (12, 18.5), (20, 31.7)</glue>", 0.5),
    ("choice", PROOF, "<answer>C</answer><glue>[(5.2, 10.4)]</glue>", 1.0),
    # The first box is right, the second shares half of itself with what is as large, the third is not there.
    ("box_iou", TRACK, "[[0.1, 0.2, 0.5, 0.6], (0.4, 0.2, 0.8, 0.6)]", (1 + 1 / 3) / 3),
    ("box_iou", TRACK, "[.1, 0.2, 0.5]", 0.0),
    ("box_iou", TRACK, "[0.1, 0.2, 0.5, 0.6] " * 6, (1 + 0.12 / 0.2 + 0.25 * 0.3 / (0.32 - 0.25 * 0.3)) / 6),
    ("format", BALL, "<think>so</think>\n<answer>B</answer>\n", 1.0),
    ("format", BALL, "<think>so</think><answer>B</answer><glue>[1, 2]</glue>", 1.0),
    ("format", BALL, "<think>so</think><answer></answer>", 0.0),
    ("format", BALL, "<think>so</think>or<answer>B</answer>", 0.0),
    ("format", BALL, "<think>so</think><answer>B</answer><answer>C</answer>", 0.0),
    ("format", BALL, "<answer>B</answer><think>so</think>", 0.0),
    ("format", BALL, "B", 0.0),
    # Five runs of three words, of which two came before.
    ("repetition", BALL, "a b c a b c a", -2 / 5),
    ("repetition", BALL, "one two", 0.0),
]


def test_values_worked_by_hand(scorer):
    for start in range(0, len(BY_HAND), len(CLIPS)):
        some = BY_HAND[start : start + len(CLIPS)]
        device, host = scorer.both([[text] for _, _, text, _ in some], [clip for _, clip, _, _ in some])
        for row, (name, _, text, value) in enumerate(some):
            for scores in (device, host):
                assert scores[name][row, 0] == pytest.approx(value, abs=1e-6, nan_ok=True), (name, text)


def test_overlong_counts_tokens_and_the_end(scorer):
    lengths = [1, 20, 21, 30, 39, 40, 41, 100]
    letter = scorer.text.encode("a")
    device, host = scorer.both([[np.array(letter * n) for n in lengths]], CLIPS[:1])
    for scores in (device, host):
        np.testing.assert_allclose(scores["overlong"], [[0, 0, -0.05, -0.5, -0.95, -1, -1, -1]], atol=1e-6)
    said_20, _ = scorer.both([["a" + " a" * 19]], CLIPS[:1])
    ids = scorer.text.answer("a" + " a" * 19)
    assert len(ids) == 21 and said_20["overlong"] == pytest.approx(-0.05)


def test_to_say_the_reference_is_best(scorer):
    device, _ = scorer.both([[clip.answer] for clip in CLIPS], CLIPS)
    device["box_iou"] = scorer.both([[str([list(box) for box in TRACK.boxes])]], [TRACK])[0]["box_iou"]
    device["evidence_iou"] = scorer.both([[f"C<glue>{list(PROOF.spans)}</glue>"]], [PROOF])[0]["evidence_iou"]
    for name in set(REWARDS) - PENALTIES - {"format", "span_iou"}:
        counting = device[name][~np.isnan(device[name])]
        assert len(counting) and (counting == 1).all(), name
    spans = device["span_iou"]
    assert np.nanmin(spans) > 0.9  # the answers tell seconds to 1/100


def test_bounds_and_order_of_completions(scorer):
    rng = np.random.default_rng(11)
    texts = [[said.spoken(rng, clip) for _ in range(32)] for clip in CLIPS]
    device, _ = scorer.both(texts, CLIPS)
    order = rng.permutation(32)
    moved, _ = scorer.both([[row[g] for g in order] for row in texts], CLIPS)
    for name, x in device.items():
        low, high = (-1, 0) if name in PENALTIES else (0, 1)
        assert np.nanmin(x) >= low and np.nanmax(x) <= high, name
        np.testing.assert_array_equal(x[:, order], moved[name], err_msg=name)


def test_only_masked_in_tokens_count(scorer):
    """What stands after the end, padding among it, changes nothing; nor do special tokens before it."""
    answers = [[clip.answer] for clip in CLIPS]
    tokens, mask = scorer.tokens(answers)
    refs = said.references(CLIPS, scorer.sizes)
    device = scorer.score(tokens, mask, refs)
    padded = scorer.score(np.where(mask, tokens, scorer.text.pad), mask, refs)
    special = np.array([scorer.text.vision_start, scorer.text.pad, scorer.text.image_pad])
    mixed = scorer.both([[np.concatenate([special, scorer.text.answer(row[0])])] for row in answers], CLIPS)[
        0
    ]
    for name in REWARDS:
        np.testing.assert_array_equal(device[name], padded[name], err_msg=name)
        if name != "overlong":
            np.testing.assert_array_equal(device[name][:, :1], mixed[name], err_msg=name)


def test_rewards_count_for_their_tasks_alone(scorer):
    clips = [*CLIPS, None][-len(CLIPS) :]
    device, host = scorer.both([["A"]] * len(clips), clips)
    texts = {"rouge_l", "rouge_1", "rouge_2", "caption_recall"}
    own = dict(caption=texts, order=texts, choice={"choice"}, grounding={"span_iou"}, tracking={"box_iou"})
    for row, asked in enumerate(clips):
        wanted = {"format", "repetition", "overlong"} | own[asked.task] if asked else set()
        if asked and asked.task == "choice" and asked.spans:
            wanted.add("evidence_iou")
        counts = {name for name, x in device.items() if not np.isnan(x[row, 0])}
        assert {name for name in counts if not name.startswith(("keyword", "event"))} == wanted
        assert counts == {name for name, x in host.items() if not np.isnan(x[row, 0])}


def test_event_is_what_held_out_clips_are_judged_by(scorer):
    """The reward is 1 where ``event_of`` reads the clip's event and no other, in whichever of its words."""
    clips = [clip for clip, _ in (describe(SPEC, "heldout", i) for i in range(200)) if clip.task == "caption"]
    clips, rng = clips[: len(CLIPS)], np.random.default_rng(2)
    phrases = [phrase for both in PHRASES.values() for phrase in both]
    texts = [[f"It {' and '.join(rng.choice(phrases, rng.integers(3)))}." for _ in range(32)] for _ in clips]
    device, _ = scorer.both(texts, clips)
    wanted = [
        [event_of(text) == clip.extra["event"] for text in row]
        for row, clip in zip(texts, clips, strict=True)
    ]
    np.testing.assert_array_equal(device["event"], wanted)
    assert 0 < np.mean(wanted) < 1


def test_a_sum_ignores_what_is_not_asked():
    scores = dict(
        rouge_l=np.array([[0.5, np.nan]]), choice=np.array([[np.nan, np.nan]]), format=np.ones((1, 2))
    )
    np.testing.assert_allclose(combine(scores, dict(rouge_l=2.0, choice=1.0, format=0.25)), [[1.25, 0.25]])


def test_word_order_counts_only_where_it_should(scorer):
    rng = np.random.default_rng(13)
    clips = [clip for clip in CLIPS if clip.task == "caption" and clip is not STORY]
    texts = [[" ".join(rng.permutation(asked.answer.split())) for _ in range(32)] for asked in clips]
    device, _ = scorer.both(texts, clips)
    for name in ("rouge_1", "caption_recall"):
        assert (device[name] == 1).all()
    for name in ("rouge_2", "rouge_l"):
        assert device[name].mean() < 0.7


def test_fingerprints_tell_words_apart():
    letters = string.ascii_lowercase + string.digits
    short = ["".join(pair).encode() for n in (1, 2) for pair in itertools.product(letters, repeat=n)]
    text = b" ".join(short)
    device = words_of(jnp.array(list(text), jnp.uint8), len(short) + 1)
    assert len(set(device.tolist()) - {0}) == len(short)
    np.testing.assert_array_equal(device[:-1], [host_fingerprint(word) for word in short])
    np.testing.assert_array_equal(words_of(jnp.array(list(text.upper()), jnp.uint8), len(short)), device[:-1])
