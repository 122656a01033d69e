"""Caption -> event-action keywords, by spaCy (METHOD section 1).

A keyword is the verb of something that happens with its particle and its object, as they stand in the
caption: "tips over", "opens the red door". Its lemma is the verb's with the particle: keywords of one lemma
are never held against one another by the contrast, so an object is part of it only where the verb alone says
nothing ("takes a sip"). With a trained pipeline the verbs come from its dependency parse, else from
``verbs``: the fallback, which says so.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Sequence

import spacy
from spacy.language import Language
from spacy.matcher import Matcher, PhraseMatcher
from spacy.tokens import Doc, Span, Token

from vpjax.building.verbs import CAUSATIVE, CHANGES, PARTICLES, PHRASE, RELATIVES, Tagger, words
from vpjax.types import Keyword, UserError

# What goes on without anything happening, or is no sight.
STATIC = words(
    "be have seem look watch see stare gaze show feature depict contain include wear hold stand sit lie lean "
    "rest remain stay wait await sleep live belong face surround like love enjoy want need know think feel "
    "hear listen consist exist display represent use demonstrate explain describe discuss introduce present "
    "narrate say mean hang let help lead keep observe get go come"
)
# What those do who film and cut: the picture changes, and nothing happens in it.
CAMERA = words("film zoom pan record capture focus fade")
SCREEN = words(
    "camera video clip footage scene shot screen view frame film movie picture image photo text title "
    "caption logo credit credits intro outro animation slideshow"
)
# Before another verb, which says what happens: "starts eating".
ASPECT = words("begin start continue try attempt stop finish manage proceed pretend appear tend make fail")
NEGATIONS = words("not n't never nobody nothing no without want need fail refuse plan hope wish")
LIGHT = words("do make take have give perform")  # say nothing without their object
MAX_WORDS = 6  # of a keyword: a longer one does without its object
ENGLISH = 0.6  # share of a caption's words that a dictionary knows; names are left aside

_VERB, _PARTICLE, _NOUN = {"TAG": "VERB"}, {"TAG": "PART"}, {"TAG": "NOUN"}
_ADVERB = {"TAG": "ADV", "OP": "?"}
_OBJECT = [{"TAG": {"IN": ["DET", "NUM", "ADJ", "NOUN"]}, "OP": "*"}, _NOUN]
ACTION = [
    [_VERB],
    [_VERB, _ADVERB, _PARTICLE],
    [_VERB, *_OBJECT],
    [_VERB, _PARTICLE, *_OBJECT],
    [_VERB, *_OBJECT, _PARTICLE],
    [_VERB, {"TAG": "PRON"}, _ADVERB, _PARTICLE],
    [_VERB | {"LEMMA": {"IN": sorted(CHANGES)}}, {"TAG": "ADJ"}],
]


@dataclasses.dataclass(frozen=True)
class Extractor:
    """caption -> its keywords, without spans, in their order; [] for a caption that has none or is not
    English.

    Made by ``load_extractor``, in other processes again: made_of are its arguments. find: Doc -> keywords.
    backend: in words.
    """

    made_of: tuple[str, tuple[str, ...]]
    nlp: Language
    find: Callable[[Doc], Iterable[Keyword]]
    backend: str

    def __reduce__(self):
        return load_extractor, self.made_of  # spaCy's pickled matchers forget options

    def __call__(self, caption: str) -> list[Keyword]:
        return list(dict.fromkeys(self.find(self.nlp(caption))))

    def describe(self) -> str:
        """The backend and its versions, for a data set's record and for the user."""
        return f"{self.backend}, spaCy {spacy.__version__}"


def load_extractor(model: str = "", keep: Sequence[str] = ()) -> Extractor:
    """An Extractor.

    model: name or folder of a trained spaCy pipeline for English with a parser; "": by rules. keep: the
    user's own keywords; where there are any, a caption's keywords are what it says of them, in any
    inflection, and nothing else. UserError for a pipeline that is not installed or does not parse English.
    """
    made_of = model, tuple(keep)
    tables = f"spacy-lookups-data {importlib.metadata.version('spacy-lookups-data')}"
    nlp = _trained(model) if model and not keep else spacy.blank("en")
    if keep:
        nlp.add_pipe("lemmatizer", config={"mode": "lookup"})
        nlp.initialize()
        listed = PhraseMatcher(nlp.vocab, attr="LEMMA")
        for phrase in keep:
            listed.add(phrase, [nlp(phrase.lower())])
        return Extractor(
            made_of, nlp, functools.partial(_listed, listed), f"a list of {len(keep)} keywords, {tables}"
        )
    if model:
        name = f"{nlp.meta['lang']}_{nlp.meta['name']} {nlp.meta['version']}"
        return Extractor(made_of, nlp, functools.partial(_by_parse, Tagger()), f"dependency parse by {name}")
    whole_words = [rule for rule in nlp.Defaults.infixes if "(?:-|" not in rule]  # "rear-ends" is one
    nlp.tokenizer.infix_finditer = spacy.util.compile_infix_regex(whole_words).finditer
    actions = Matcher(nlp.vocab)
    actions.add("action", ACTION, greedy="LONGEST")
    backend = f"rules on word lists (the fallback, no trained pipeline being given), {tables}"
    return Extractor(made_of, nlp, functools.partial(_by_rules, Tagger(), actions), backend)


def _trained(model: str) -> Language:
    try:
        nlp = spacy.load(model)
    except (OSError, ImportError, ValueError) as error:
        raise UserError(
            f"keywords: the spaCy pipeline {model!r} cannot be loaded; install it (python -m spacy download "
            f"{model}), give its folder, or leave it out and go by the rules"
        ) from error
    if nlp.lang != "en" or "parser" not in nlp.pipe_names:
        raise UserError(f"keywords: the spaCy pipeline {model!r} has no parser for English")
    return nlp


def _listed(listed: PhraseMatcher, doc: Doc) -> Iterator[Keyword]:
    """The user's keywords that a caption says, each with the lemma by which the user named it."""
    for span in sorted(spacy.util.filter_spans(listed(doc, as_spans=True))):
        yield Keyword(span.text, span.label_)


def _is_english(tagger: Tagger, doc: Doc) -> bool:
    known = [tagger.is_known(token.lower_) for token in doc if token.is_alpha and not token.is_title]
    return sum(known) >= ENGLISH * len(known) if known else doc.text.isascii()


def _happens(verb: Token, particle: str, thing: Token | None, subject: Token | None) -> bool:
    """Whether a verb names an event: neither a state nor the camera's doing."""
    lemma = verb.lemma_.lower()
    filmed = subject is not None and subject.lower_ in SCREEN
    turned = thing is not None and thing.lower_ == "camera"
    return not (filmed or turned or lemma in CAMERA) and (lemma not in STATIC or bool(particle))


def _keyword(verb: Token, whole: Span, short: Span, particle: str, thing: Token | None) -> Keyword:
    """whole: the keyword with its object, ``thing`` being its head; short: without."""
    lemma = verb.lemma_.lower()
    if particle:
        lemma += f" {particle}"
    elif lemma in LIGHT and thing is not None:
        lemma += f" {thing.lower_}"
    return Keyword((whole if len(whole) <= MAX_WORDS else short).text, lemma)


# By rules


def _by_rules(tagger: Tagger, actions: Matcher, doc: Doc) -> Iterator[Keyword]:
    if not _is_english(tagger, doc):
        return
    tagger(doc)
    for span in sorted(actions(doc, as_spans=True)):
        verb, last = span[0], span[-1]
        thing = next((token for token in reversed(span) if token.tag_ == "NOUN"), None)
        beside = [
            token for token in (*span[1:2], last) if token.tag_ == "PART" or token.tag_ == "ADJ" and not thing
        ]
        particle = beside[0].lower_ if beside else ""
        if _leads(span) or _negated(verb) or not _happens(verb, particle, thing, _subject(verb)):
            continue
        short = doc[verb.i : beside[0].i + 1] if beside else doc[verb.i : verb.i + 1]
        yield _keyword(verb, span, short, particle, thing)


def _leads(span: Span) -> bool:
    """Whether the verb at a span's start stands before another that says what happens."""
    following = [token for token in span.doc[span.end : span.end + 3] if token.tag_ != "ADV"]
    led = bool(following) and following[0].tag_ in {"VERB", "TO"}
    return led and span[0].lemma_ in ASPECT


def _negated(verb: Token) -> bool:
    """Whether "not" or the like stands before a verb, or before the one that leads it."""
    for token in reversed(verb.doc[: verb.i]):
        if token.tag_ == "VERB":
            led = token.lemma_ in ASPECT | CAUSATIVE
            return token.lemma_ in NEGATIONS or (led and _negated(token))
        if token.lower_ in NEGATIONS:
            return True
        if token.tag_ in {"NOUN", "PUNCT", "CCONJ", "SCONJ"}:
            return False
    return False


def _subject(verb: Token) -> Token | None:
    """The head of the noun phrase that does what a verb says: the one right before a participle, else the
    nearest that begins a clause."""
    doc = verb.doc
    for i in range(verb.i - 1, -1, -1):
        participle = doc[i + 1].tag_ == "VERB" and doc[i + 1].lower_.endswith("ing")
        if doc[i].tag_ == "NOUN" and participle and verb.lower_.endswith("ing"):
            return doc[i]
        if doc[i].lower_ in RELATIVES and doc[i - 1].tag_ == "NOUN":
            return doc[i - 1]
        if doc[i].tag_ in {"NOUN", "PRON"}:
            start = i
            while start and doc[start - 1].tag_ in PHRASE:
                start -= 1
            if not start or doc[start - 1].tag_ in {"PUNCT", "CCONJ", "SCONJ", "ADV", "SPACE"}:
                return doc[i]
    return None


# By a dependency parse, in the labels of ClearNLP (spaCy's English pipelines) or of Universal Dependencies.


def _by_parse(tagger: Tagger, doc: Doc) -> Iterator[Keyword]:
    if not _is_english(tagger, doc):
        return
    for verb in doc:
        if verb.pos_ != "VERB" or verb.dep_ in {"amod", "compound", "aux", "auxpass"}:
            continue
        beside = next((token for token in verb.rights if _belongs(verb, token)), None)
        things = [
            *_children(verb, "dobj", "obj"),
            *(_children(beside, "pobj", "obl") if beside is not None else ()),
        ]
        thing = next((token for token in things if token.i > verb.i and token.pos_ != "PRON"), None)
        particle = beside.lower_ if beside is not None else ""
        led = any(child.pos_ == "VERB" for child in _children(verb, "xcomp", "ccomp"))
        if led and verb.lemma_ in ASPECT or _denied(verb):
            continue
        if not _happens(verb, particle, thing, _doer(verb)):
            continue
        short = doc[verb.i : (verb if beside is None else beside).i + 1]
        end = max(short.end, thing.i + 1 if thing is not None else 0)
        yield _keyword(verb, doc[verb.i : end], short, particle, thing)


def _children(token: Token, *labels: str) -> list[Token]:
    return [child for child in token.children if child.dep_ in labels]


def _belongs(verb: Token, token: Token) -> bool:
    """Whether a dependent on a verb's right is its particle, or says into what something changes."""
    if token.dep_ == "acomp":
        return verb.lemma_ in CHANGES
    if token.dep_ in {"prt", "compound:prt"}:
        return True
    return token.lower_ in PARTICLES and token.dep_ in {"prep", "advmod", "advcl"}


def _denied(verb: Token) -> bool:
    """Whether a verb is negated, or governed by one that says that it does not happen."""
    denied = any(child.dep_ == "neg" or child.lower_ in NEGATIONS for child in verb.children)
    head = verb.head
    governed = verb.dep_ in {"xcomp", "ccomp", "pcomp"} and head is not verb
    return denied or governed and (head.lower_ in NEGATIONS or head.lemma_ in NEGATIONS or _denied(head))


def _doer(verb: Token) -> Token | None:
    """Who or what does, or suffers, what a verb says."""
    for child in _children(verb, "nsubj", "nsubjpass", "nsubj:pass"):
        if child.lower_ not in RELATIVES:
            return child
    if verb.dep_ in {"relcl", "acl", "acl:relcl"}:
        return verb.head
    return _doer(verb.head) if verb.dep_ in {"conj", "xcomp", "advcl"} else None
