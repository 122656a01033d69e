"""Answers as models write them, and what each one says, by hand."""

import doctest

import pytest

from vpjax.scoring import answers
from vpjax.scoring.answers import (
    final_answer,
    parse_options,
    read_boxes,
    read_choice,
    read_evidence,
    read_number,
    read_spans,
    without_letter,
)
from vpjax.scoring.host_text import normalize, split_words

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
        # The article, and the pronoun.
        ("A is correct", 0),
        ("A because the man runs", 0),
        ("A running", 0),  # the letter, then the option's text
        ("A running man", 0),
        ("I think that A person is falling: C", 2),
        ("A\nExplanation: he runs", 0),
        ("So A it is.", 0),
        ("A 3-year-old falls", None),
        # Several letters.
        ("C or B", None),
        ("A/B", None),
        ("A, B or C", None),
        ("The answer is A or B", None),
        ("Both A and B", None),
        ("B, not A", 1),
        ("B because A is wrong", 1),
        ("A seems right, but the answer is C", 2),
        ("B (B)", 1),
        # Letters in words, and after a label.
        ("T-shirt", None),
        ("A's T-shirt: C", 2),
        ("option c", 2),
        ("Option B, not option A", 1),
        ("The best option is (D)", 3),
        # Letters and texts.
        ("The person is running, so D", 3),
        ("\uff22", 1),  # full-width
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
        ("start 12.5, end 17.0", (12.5, 17.0)),
        ("10,5 to 17,0", (10.5, 17)),
        ("10. to 12.", (10, 12)),
        ("1e-1 to 1.5e1", (0.1, 15)),
        ("[(5,7)]", (5, 7)),  # in brackets a comma parts numbers
        ("1,000 to 1,250.5 s", (1000, 1250.5)),
        ("-1 to 2", (-1, 2)),
        ("2 -7", (2, 7)),  # a dash, no sign
        ("2.5 sec. to 5 sec.", (2.5, 5)),
        ("\uff12\uff0e\uff15\uff5e\uff17\u79d2", (2.5, 7)),
        ("1 to 2, then 3 to 4 to 5", (3, 4)),
        ("7 to 2", None),
        ("In a video of 30 s, 3 to 5.5", (3, 5.5)),  # 30 and 3 are none, and part of none
        ("9 to 3 to 5", (3, 5)),
        ("2 to 4, no: 7 to 3", (2, 4)),
        ("1.2.3 to 5", None),
        ("at 3 seconds", None),
        ("never", None),
    ],
)
def test_a_span(text, span):
    assert read_spans(text)[-1:] == ([span] if span else [])


@pytest.mark.parametrize(
    "text, boxes",
    [
        ("[.1, .1, .3, .3]", [(0.1, 0.1, 0.3, 0.3)]),
        ("[[1e-1, 0.1, 10., 0.4],[0.1,0.2,0.3,0.4]]", [(0.1, 0.1, 10, 0.4), (0.1, 0.2, 0.3, 0.4)]),
        ("(0.1, -0.2, 0.3 , 0.4 )", [(0.1, -0.2, 0.3, 0.4)]),
        ("[1, 2, 3]", []),
        ("0.1, 0.2, 0.3, 0.4", []),
        ("<think>[0, 0, 1, 1]</think> none", []),
    ],
)
def test_boxes(text, boxes):
    assert read_boxes(text) == boxes


@pytest.mark.parametrize(
    "text, number",
    [
        ("5", 5),
        ("There are 1,234,567.5 of them.", 1234567.5),
        ("-5", -5),
        ("\u22125", -5),  # the minus sign
        ("is -.5", -0.5),
        ("3-5", None),
        ("5, that is 5.0", 5),
        ("5 or 6", None),
        ("10\u00b2", 10),
        ("1:05", 65),
        ("\u0665", 5),  # an Arabic digit
        ("five", None),
        ("1.2.3", None),
    ],
)
def test_a_number(text, number):
    assert read_number(text) == number


def test_evidence_is_read_from_its_tag_alone():
    assert read_evidence("<answer>C</answer><glue>[(5.2, 10.4), (12, 15)]</glue>") == [(5.2, 10.4), (12, 15)]
    assert read_evidence("C: 5.2 to 10.4") == []
    assert read_spans("3 to 4 <glue>[(5.2, 10.4)]</glue>") == [(3, 4)]
    assert read_choice("<glue>[(1, 2)]</glue>B", OPTIONS) == 1


def test_options_may_have_their_letters():
    """As Video-R1 and NExT-GQA write them; the letter is not part of the text."""
    for options in (("A. yes", "B. no"), ("(A) yes", "(B) no")):
        assert [read_choice(text, options) for text in ("no", "(B) no", "B", "yes")] == [1, 1, 1, 0]


def test_option_texts():
    """The longer one where one holds another; as a whole; none where two are the same."""
    assert read_choice("no one falls", ("no", "no one")) == 1
    assert read_choice("A dog", ("dog", "a dog")) == 1
    # Video-MME asks for orders of (a), (b) and (c), and "A. (c)(b)" has the words of (a)(c)(b).
    orders = ("(c)(b)(a)", "(a)(b)(c)", "(a)(c)(b)", "(b)(a)(c)")
    for number, letter in enumerate("ABCD"):
        forms = ("{0}", "{0}. {1}", "({0}) {1}.", "The answer is {0}: {1}", "{1}")
        texts = [form.format(letter, orders[number]) for form in forms]
        assert [read_choice(text, orders) for text in texts] == [number] * len(texts)
    assert read_choice("A dog", ("dog", "cat")) == 0
    assert read_choice("A cat", ("dog", "cat")) == 1
    assert read_choice("4", ("3", "4")) == 1
    assert read_choice("B", ("B", "A")) == 1  # a letter, whatever the texts
    assert read_choice("runs", ("Runs.", "runs!")) is None
    assert read_choice("\u7537\u4eba\u8dd1", ("\u7537\u4eba", "\u7537\u4eba\u8dd1")) == 1


def test_words_of_any_script():
    latin_and_chinese = "Caf\u00e9 \u041c\u043e\u0441\u043a\u0432\u0430, \u7537\u4eba\u8dd1\u3002"
    words = split_words(normalize(latin_and_chinese + " \u0e41\u0e21 it\u2019s \ud55c\uad6d\uc5b4 10\u00b2"))
    assert words[:5] == ["caf\u00e9", "\u043c\u043e\u0441\u043a\u0432\u0430", "\u7537", "\u4eba", "\u8dd1"]
    assert words[5:] == ["\u0e41", "\u0e21", "it", "s", "\ud55c\uad6d\uc5b4", "10\u00b2"]


def test_examples():
    assert doctest.testmod(answers).failed == 0


def test_final_answer():
    assert (
        final_answer("<think>a</think> b ") == "b"
        and final_answer("<answer>x</answer><answer>y</answer>") == "y"
    )
