"""Keywords by a dependency parse, of a small pipeline that knows its sentences by heart."""

import pytest
import spacy
from spacy.training import Example

from vpjax.building.keywords import load_extractor
from vpjax.types import Keyword

pytestmark = pytest.mark.slow

# Sentences as word/part of speech/label/head, and their keywords.
PARSED = {
    "The/DET/det/1 man/NOUN/nsubj/2 opens/VERB/ROOT/2 the/DET/det/5 red/ADJ/amod/5 door/NOUN/dobj/2": (
        Keyword("opens the red door", "open")
    ),
    "The/DET/det/1 girl/NOUN/nsubj/2 picks/VERB/ROOT/2 up/ADP/prt/2 a/DET/det/5 phone/NOUN/dobj/2": (
        Keyword("picks up a phone", "pick up")
    ),
    "A/DET/det/1 cat/NOUN/nsubj/2 jumps/VERB/ROOT/2 off/ADP/prep/2 the/DET/det/5 table/NOUN/pobj/3": (
        Keyword("jumps off the table", "jump off")
    ),
    "He/PRON/nsubj/1 starts/VERB/ROOT/1 eating/VERB/xcomp/1 a/DET/det/4 sandwich/NOUN/dobj/2": (
        Keyword("eating a sandwich", "eat")
    ),
    "The/DET/det/1 dog/NOUN/nsubj/4 does/AUX/aux/4 not/PART/neg/4 bark/VERB/ROOT/4": None,
    "The/DET/det/1 camera/NOUN/nsubj/2 moves/VERB/ROOT/2 and/CCONJ/cc/2 turns/VERB/conj/2": None,
    "A/DET/det/1 light/NOUN/nsubj/2 turns/VERB/ROOT/2 green/ADJ/acomp/2": (
        Keyword("turns green", "turn green")
    ),
    "The/DET/det/1 vase/NOUN/nsubjpass/3 is/AUX/auxpass/3 broken/VERB/ROOT/3": Keyword("broken", "break"),
    "A/DET/det/1 boy/NOUN/ROOT/1 who/PRON/nsubj/3 throws/VERB/relcl/1 a/DET/det/5 ball/NOUN/dobj/3": (
        Keyword("throws a ball", "throw")
    ),
    "A/DET/det/2 running/VERB/amod/2 man/NOUN/nsubj/3 wears/VERB/ROOT/3 boots/NOUN/dobj/3": None,
}


def parse_of(doc):
    return [(token.text, token.pos_, token.dep_, token.head.i) for token in doc]


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    """The extractor of a small pipeline that was trained until it parses every sentence as above."""
    nlp = spacy.blank("en")
    nlp.add_pipe("morphologizer")
    nlp.add_pipe("parser", config={"min_action_freq": 1})
    nlp.add_pipe("lemmatizer", config={"mode": "lookup"})
    examples = []
    for line in PARSED:
        words, pos, labels, heads = zip(*(word.split("/") for word in line.split()), strict=True)
        truth = dict(words=words, pos=pos, deps=labels, heads=[int(head) for head in heads])
        examples.append(Example.from_dict(spacy.tokens.Doc(nlp.vocab, words), truth))
    spacy.util.fix_random_seed(0)
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = 0.01
    for _ in range(50):
        if all(parse_of(nlp(example.text)) == parse_of(example.reference) for example in examples):
            break
        for _ in range(10):
            nlp.update(examples, sgd=optimizer, drop=0.0)
    else:
        pytest.fail("the small pipeline does not learn its sentences")
    folder = tmp_path_factory.mktemp("pipeline")
    nlp.to_disk(folder)
    return load_extractor(str(folder))


@pytest.mark.parametrize("line", PARSED, ids=range(len(PARSED)))
def test_keywords_by_a_parse(extractor, line):
    sentence = " ".join(word.split("/")[0] for word in line.split())
    assert extractor(sentence) == ([PARSED[line]] if PARSED[line] else [])


def test_a_pipeline_describes_itself_as_a_parse(extractor):
    assert "dependency parse" in extractor.describe() and "fallback" not in extractor.describe()
