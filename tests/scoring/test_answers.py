"""Answers as models write them, and what each one says, by hand."""

import pytest

from vpjax.scoring.answers import (
    final_answer,
    parse_options,
    read_choice,
    read_spans,
    without_letter,
)

OPTIONS = ("running", "jumping", "a man who is running fast", "nothing")


@pytest.mark.parametrize(
    "text, chosen",
    [
        ("B", 1),
        ("(B)", 1),
        ("B.", 1),
        ("b", None),  # a letter is a capital
        ("B. jumping", 1),
        ("B) something else", 1),
        ("**C**", 2),
        ("A. jumping", 0),  # the letter counts, as in every public harness
        ("The answer is (D).", 3),
        ("Answer: C", 2),
        ("At first I thought the answer is A, but the answer is B", 1),
        ("E", None),  # no such option
        ("", None),
        ("I cannot tell.", None),
        ("Jumping.", 1),
        ("The person is jumping.", 1),
        ("It shows a man who is running fast.", 2),  # and not option A, which stands in it
        ("running or jumping", None),  # hedging earns nothing
        ("either jumping, or running", None),
        ("A or B", None),
        ("A man is there.", None),  # an article is no letter
        ("I would say B here", 1),
        ("<think>A? Or B? The answer is A.</think>\n<answer>D</answer>", 3),
        ("<think>A? Or B?</think> C", 2),
        ("<think>Surely B. But", None),
        ("<answer>B", 1),  # cut before the tag was closed
    ],
)
def test_a_choice(text, chosen):
    assert read_choice(text, OPTIONS) == chosen


@pytest.mark.parametrize(
    "text, chosen",
    [
        ("yes", 0),
        ("Yes, the man says no.", 0),
        ("No. He is not.", 1),
        ("Nothing is known", None),
        ("I think yes", 0),
    ],
)
def test_yes_or_no(text, chosen):
    assert read_choice(text, ("yes", "no")) == chosen


@pytest.mark.parametrize("kind, marks", [("Caption", "AB"), ("Option", "12"), ("Sentence", "AB")])
def test_labelled_options(kind, marks):
    options = [f"{kind} {marks[0]}: The car slows down.", f"{kind} {marks[1]}: The car speeds up."]
    for place, option in enumerate(options):
        label, _, sentence = option.partition(": ")
        texts = [option, label, f"{label}.", sentence, f"It is {label.lower()}"]
        texts += [f"({marks[place]})", marks[place]]
        assert [read_choice(text, options) for text in texts] == [place] * len(texts)
    assert read_choice(f"{kind} {marks[0]} and {kind} {marks[1]}", options) is None


def test_options_in_a_question():
    assert parse_options("What?\nA. one\nB. two, or more\nC. three") == ("one", "two, or more", "three")
    # Commas inside options, and a letter out of turn (as VRU-Accident has them).
    assert parse_options("A. wet, cold road, B. grade D. road, C. none") == (
        "wet, cold road",
        "grade D. road",
        "none",
    )
    assert parse_options("(A) x (B) y") == ("x", "y") and parse_options("No options.") == ()
    options = [without_letter(option) for option in ("B. two", "(C) three", "A man")]
    assert options == ["two", "three", "A man"]


@pytest.mark.parametrize(
    "text, span",
    [
        ("From 2.50 to 7.0 seconds.", (2.5, 7.0)),
        ("2.5s - 7s", (2.5, 7.0)),
        ("It happens between 3 and 5 seconds.", (3, 5)),
        ("from 1 to 2, no: from 3.5 to 4", (3.5, 4)),
        ("01:05 to 01:10.5", (65, 70.5)),
        ("1:00:01 to 1:00:02", (3601, 3602)),
        ("start: 4.0 seconds; end: 6", (4, 6)),
        ("<think>1 to 2</think><answer>3 to 4</answer>", (3, 4)),
        ("7 to 2", None),
        ("at 3 seconds", None),
        ("never", None),
    ],
)
def test_a_span(text, span):
    assert read_spans(text)[-1:] == ([span] if span else [])


def test_final_answer():
    assert (
        final_answer("<think>a</think> b ") == "b"
        and final_answer("<answer>x</answer><answer>y</answer>") == "y"
    )
