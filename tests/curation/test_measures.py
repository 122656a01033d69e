"""What is measured on rows: each measure on captions whose truth is plain."""

import functools
import json
import math

import pytest

from vpjax.building.keywords import load_extractor
from vpjax.building.verbs import Tagger
from vpjax.curation.contamination import RUN, known_of, names_of
from vpjax.curation.measures import FOREIGN, KINDS, ROW, STAGES, Candidate, Tools, kind_of, stage_of
from vpjax.curation.recipe import Benchmark
from vpjax.curation.rows import held
from vpjax.types import Clip, Keyword


@functools.cache
def tools():
    return Tools(load_extractor(), Tagger(), Tagger().is_known, known_of(()))


def row(caption, *spans, video="a.mp4", known=(), **fields):
    clip = Clip("a", video, "What happens?", caption, spans=spans, **fields)
    return Candidate(clip, tools()._replace(known=known_of(known)))


def measured(measure, *arguments, **fields):
    return ROW[measure](row(*arguments, **fields))


def test_words_of_a_caption_and_of_a_choice():
    assert measured("words", "A dog's tail wags, twice.") == 5
    fields = dict(task="choice", choices=("(A) it falls", "(B) it stays"))
    choice = Clip("a", "a.mp4", "What does the cup do?\n(A) it falls\n(B) it stays", "(A)", **fields)
    assert Candidate(choice, tools()).told == "What does the cup do? it falls"


def test_english():
    assert measured("english", "A man's dog jumps over the fence.") == 1
    assert measured("english", "Un homme ouvre la porte rouge doucement.") < 0.4
    assert measured("english", "Ein Mann wirft den Ball weit.") < 0.7
    assert measured("english", "Una mujer abre el libro en la mesa.") < 0.4
    assert measured("english", "他打开门") == 0
    # No word that English has is foreign.
    closed = {"a", "an", "as", "do", "he", "in", "is", "it", "me", "no", "of", "on", "or", "over", "to", "we"}
    assert not FOREIGN & (closed | {"die", "men", "pour", "son", "van"})


def test_the_action_that_is_over_in_a_moment_names_the_row():
    candidate = row("A woman dances and opens the two red doors.", (2.0, 9.0))
    assert candidate.kinds == ["lasting", "punctual"] and candidate.action == "open door"
    assert row("A cup tips over.").action == "tip over"
    assert row("She takes a sip.").action == "take sip"
    assert row("A tree.").action == ""


@pytest.mark.parametrize(
    "caption, spans, seconds, share",
    [
        ("The cup falls.", [(3, 30)], 2, 0),
        ("The cup falls.", [(3, 3.5)], 0.5, 0),
        ("The cup falls.", [], 2, 0),
        ("A man dances.", [(3, 30)], 27, 1),
        ("A man dances.", [(3, 30), (4, 9)], 5, 1),
        ("A man dances and falls.", [(3, 30)], 2, 0.5),
        ("A man dances.", [], math.nan, 1),
        ("A tree.", [], math.nan, math.nan),
    ],
)
def test_how_long_an_event_lasts(caption, spans, seconds, share):
    assert measured("event_seconds", caption, *spans) == pytest.approx(seconds, nan_ok=True)
    assert measured("lasting", caption, *spans) == pytest.approx(share, nan_ok=True)


def test_an_apostrophe_is_one_however_it_is_written():
    straight = "The man's dog won't jump off, and it's not the boy's."
    for measure in ("words", "english"):
        assert measured(measure, straight.replace("'", "\u2019")) == measured(measure, straight)


def test_spans_of_keywords_are_the_nearer_ones():
    keywords = (Keyword("falls", "fall", ((1.0, 1.5),)),)
    assert measured("span", "The cup falls.", (0.0, 9.0), keywords=keywords) == 0.5


def test_a_verb_is_of_one_kind():
    assert {kind_of("sit down"), kind_of("open")} == {"punctual"} and kind_of("dance") == "lasting"
    assert kind_of("frobnicate") == "" and set(KINDS.values()) == {"punctual", "lasting"}


LONG = "why does the small boy in the green coat open the red box"


def test_questions_that_a_benchmark_does_not_ask_are_known_too(tmp_path):
    """Half of MotionBench's questions have no public answer, and no training row may show their videos."""
    hidden = {"uid": "1", "question": "How often?\nA. 1\nB. 2", "answer": "NA"}
    test = {"video_path": "hidden.mp4", "question_type": "Repetition Count", "qa": [hidden]}
    (tmp_path / "motion.jsonl").write_text(json.dumps(test))
    known = held(str(tmp_path), Benchmark("motionbench", "motion.jsonl"))
    assert measured("benchmark", "A cup falls.", video="all/hidden.mp4", known=known) == 1


def test_rows_of_a_benchmark_are_known_by_their_video_or_their_words():
    known = (Clip("q", "test/v_AbCdEfGhIjK.mp4", f"{LONG}?\nA. it rings", "A"),)
    for video in (
        "AbCdEfGhIjK.webm",
        "x/v_AbCdEfGhIjK",
        "AbCdEfGhIjK_12.5_20.0.mp4",
        "AbCdEfGhIjK_12_20.mp4",
    ):
        assert measured("benchmark", "A cup falls.", video=video, known=known) == 1
    assert measured("benchmark", "A cup falls.", known=known) == 0
    assert measured("benchmark", LONG.upper(), known=known) == 1
    words = LONG.split()
    half = " ".join(words[:RUN] + ["and", "then"] + words[RUN:])
    assert measured("benchmark", half, known=known) == pytest.approx(1 / (len(words) + 3 - RUN))
    assert measured("benchmark", " ".join(words[: RUN - 1]), known=known) == 0


def test_names_of_videos():
    assert names_of("a/clip.x.mp4") == {"clip.x"}
    assert names_of("v_short.mp4") == {"v_short"}
    assert "AbCdEfGhIjK" in names_of("youtube_video_2024/ytb_AbCdEfGhIjK.mp4")


def test_each_measure_has_a_stage():
    assert [stage_of(x) for x in ("words", "caption_copy", "peak", "nope")] == [*STAGES, ""]
