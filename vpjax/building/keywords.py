"""Caption -> event-action keywords, by spaCy (docs/method.md, section 1).

A keyword is the verb of an event with its particle and its object, as they stand in the caption: "tips over",
"opens the red door". Its lemma is the verb's with the particle. The contrastive loss never opposes keywords
of the same lemma, so the object is part of the lemma only if the verb alone means nothing ("takes a sip").
With a trained pipeline the verbs come from its dependency parse, without one from the rules of ``verbs``,
which are a fallback.
"""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from vpjax.types import Keyword, UserError

try:
    import spacy
    import spacy_lookups_data  # noqa: F401 (spaCy finds it by itself)
except ModuleNotFoundError as error:
    raise UserError(
        f"keywords come from spaCy, but {error.name} is not installed: pip install 'vpjax[build]' (from a "
        "checkout: pip install -e '.[build]')"
    ) from error
from spacy.language import Language
from spacy.matcher import Matcher
from spacy.tokens import Doc, Span, Token

from vpjax.building.verbs import PHRASE, WORDS, Tagger
from vpjax.scoring.host_text import PLAIN_QUOTES

MAX_WORDS = 6  # of a keyword: a longer one is cut to its verb and particle
# "doesn\u2019t" is "doesn't" to a parser. Each character is still one.
PLAIN = PLAIN_QUOTES | {ord("\u00a0"): " "}
ENGLISH = 0.6  # share of a caption's words that the dictionary must know; capitalised words are not counted

Pattern = list[dict[str, Any]]
_VERB: Pattern = [{"TAG": "VERB"}]
_PARTICLE: Pattern = [{"TAG": "PART"}]
_ADVERB: Pattern = [{"TAG": "ADV", "OP": "?"}]
_OBJECT: Pattern = [{"TAG": {"IN": ["DET", "NUM", "ADJ", "NOUN"]}, "OP": "*"}, {"TAG": "NOUN"}]
ACTION: list[Pattern] = [
    _VERB,
    _VERB + _ADVERB + _PARTICLE,
    _VERB + _OBJECT,
    _VERB + _PARTICLE + _OBJECT,
    _VERB + _OBJECT + _PARTICLE,
    [*_VERB, {"TAG": "PRON"}, *_ADVERB, *_PARTICLE],
    [{"TAG": "VERB", "LEMMA": {"IN": sorted(WORDS.changes)}}, {"TAG": "ADJ"}],
]


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Returns the keywords of a caption, without spans and in their order; [] if the caption has none or is
    not English.

    find: yields the keywords of a Doc. backend: a description of how they are found.
    """

    nlp: Language
    find: Callable[[Doc], Iterable[Keyword]]
    backend: str

    def __call__(self, caption: str) -> list[Keyword]:
        plain = caption.translate(PLAIN)
        found = []
        for keyword in dict.fromkeys(self.find(self.nlp(plain))):
            place = plain.index(keyword.text)
            written = caption[place : place + len(keyword.text)]
            found.append(dataclasses.replace(keyword, text=written))
        return found

    def uneventful(self, caption: str, keywords: Sequence[Keyword]) -> str:
        """The sentences of a caption that tell no event: neither one of its ``keywords`` nor another that is
        found in them. "" if all sentences tell one, or none."""
        sentences = [sentence.text.strip() for sentence in _sentencizer()(caption).sents]
        told = {keyword.text for keyword in keywords}
        kept = [x for x in sentences if not self(x) and not any(text in x for text in told)]
        return " ".join(kept) if len(kept) < len(sentences) else ""

    def describe(self) -> str:
        """The backend and its versions."""
        return f"{self.backend}, spaCy {spacy.__version__}"


def load_extractor(model: str = "", keep: Sequence[str] = ()) -> Extractor:
    """Load an Extractor.

    model: name or folder of a trained spaCy pipeline for English with a parser; "" uses the rules. keep: the
    user's own keywords. If there are any, a caption's keywords are those of them that it contains, in any
    inflection, and no others. UserError for a pipeline that is not installed or does not parse English.
    """
    tables = f"spacy-lookups-data {importlib.metadata.version('spacy-lookups-data')}"
    if keep:
        nlp, tagger = spacy.blank("en"), Tagger()
        listed = {
            phrase: [tagger.base_forms(token.lower_) for token in nlp(phrase.translate(PLAIN))]
            for phrase in keep
        }
        find = functools.partial(_find_listed, tagger, listed)
        return Extractor(nlp, find, f"a list of {len(keep)} keywords, {tables}")
    if model:
        nlp = _load_pipeline(model)
        name = f"{nlp.meta['lang']}_{nlp.meta['name']} {nlp.meta['version']}"
        return Extractor(nlp, functools.partial(_find_by_parse, Tagger()), f"dependency parse by {name}")
    nlp = spacy.blank("en")
    infixes = [str(rule) for rule in nlp.Defaults.infixes or () if "(?:-|" not in str(rule)]
    tokenizer: Any = nlp.tokenizer  # typed as a function
    tokenizer.infix_finditer = spacy.util.compile_infix_regex(infixes).finditer  # "rear-ends" is one word
    actions = Matcher(nlp.vocab)
    actions.add("action", ACTION, greedy="LONGEST")
    backend = f"rules on word lists (the fallback, no trained pipeline being given), {tables}"
    return Extractor(nlp, functools.partial(_find_by_rules, Tagger(), actions), backend)


@functools.cache
def _sentencizer() -> Language:
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    return nlp


def _load_pipeline(model: str) -> Language:
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


def _find_listed(
    tagger: Tagger, listed: Mapping[str, Sequence[frozenset[str]]], doc: Doc
) -> Iterator[Keyword]:
    """The user's keywords that a caption contains; the lemma is the keyword as the user wrote it. listed: the
    ``base_forms`` of the words of each."""
    forms = [tagger.all_forms(token.lower_) for token in doc]
    found = []
    for phrase, words in listed.items():
        for start in range(len(doc) - len(words) + 1):
            if all(word & form for word, form in zip(words, forms[start:], strict=False)):
                found.append(Span(doc, start, start + len(words), label=phrase))
    for span in sorted(spacy.util.filter_spans(found)):
        yield Keyword(span.text, span.label_)


def _is_english(tagger: Tagger, doc: Doc) -> bool:
    known = [tagger.is_known(token.lower_) for token in doc if token.is_alpha and not token.is_title]
    return sum(known) >= ENGLISH * len(known) if known else doc.text.isascii()


def _is_event(verb: Token, particle: str, thing: Token | None, subject: Token | None) -> bool:
    """Whether a verb names an event: no state and no action of the camera. thing: the noun of its object."""
    lemma = verb.lemma_.lower()
    if lemma in WORDS.camera:
        return False
    if subject is not None and subject.lower_ in WORDS.screen:
        return False
    if thing is not None and thing.lower_ == "camera" and lemma in WORDS.aiming:
        return False
    if lemma == "do" and thing is None:  # "yes, he does"
        return False
    return lemma not in WORDS.static or bool(particle)


def _make_keyword(verb: Token, whole: Span, short: Span, particle: str, thing: Token | None) -> Keyword:
    """The keyword ``whole``, or ``short``, which leaves its object out, if that is too long. thing: the
    object's noun."""
    lemma = verb.lemma_.lower()
    if particle:
        lemma += f" {particle}"
    elif lemma in WORDS.light and thing is not None:
        lemma += f" {thing.lower_}"
    span = whole if len(whole) <= MAX_WORDS else short
    return Keyword(span.text, lemma)


# By rules


def _find_by_rules(tagger: Tagger, actions: Matcher, doc: Doc) -> Iterator[Keyword]:
    if not _is_english(tagger, doc):
        return
    tagger(doc)
    for span in sorted(actions(doc, as_spans=True)):
        verb = span[0]
        thing = next((token for token in reversed(span) if token.tag_ == "NOUN"), None)
        beside_tags = {"PART"} if thing is not None else {"PART", "ADJ"}  # "turns green"
        beside = next((token for token in (*span[1:2], span[-1]) if token.tag_ in beside_tags), None)
        particle = "" if beside is None else beside.lower_
        if _leads_another(span) or _is_negated(verb):
            continue
        if _is_event(verb, particle, thing, _subject(verb)):
            short = doc[verb.i : (beside or verb).i + 1]
            yield _make_keyword(verb, span, short, particle, thing)


def _leads_another(span: Span) -> bool:
    """Whether the verb at a span's start leads another verb, which names the event."""
    if span[0].lemma_ not in WORDS.aspect:
        return False
    for token in span.doc[span.end : span.end + 3]:
        if token.tag_ != "ADV":
            return token.tag_ in {"VERB", "TO"}
    return False


def _is_negated(verb: Token) -> bool:
    """Whether "not" or the like stands before a verb, or before the verb that leads it."""
    for token in reversed(verb.doc[: verb.i]):
        if token.tag_ == "VERB":
            leads = token.lemma_ in WORDS.aspect | WORDS.causative
            return token.lemma_ in WORDS.negations or (leads and _is_negated(token))
        if token.lower_ in WORDS.negations:
            return True
        if token.tag_ in {"NOUN", "PUNCT", "CCONJ", "SCONJ"}:
            return False
    return False


def _subject(verb: Token) -> Token | None:
    """The head of a verb's subject: the noun right before a participle, else the nearest noun phrase that
    begins a clause."""
    doc = verb.doc
    is_participle = verb.lower_.endswith("ing")
    for i in range(verb.i - 1, -1, -1):
        token, following = doc[i], doc[i + 1]
        before_participle = following.tag_ == "VERB" and following.lower_.endswith("ing")
        if token.tag_ == "NOUN" and before_participle and is_participle:
            return token
        if token.lower_ in WORDS.relatives and doc[i - 1].tag_ == "NOUN":
            return doc[i - 1]
        if token.tag_ in {"NOUN", "PRON"}:
            start = i
            while start and doc[start - 1].tag_ in PHRASE:
                start -= 1
            if not start or doc[start - 1].tag_ in {"PUNCT", "CCONJ", "SCONJ", "ADV", "SPACE"}:
                return token
    return None


# By a dependency parse, in the labels of ClearNLP (spaCy's English pipelines) or of Universal Dependencies.


def _find_by_parse(tagger: Tagger, doc: Doc) -> Iterator[Keyword]:
    if not _is_english(tagger, doc):
        return
    for verb in doc:
        if verb.pos_ != "VERB" or verb.dep_ in {"amod", "compound", "aux", "auxpass"}:
            continue
        beside = next((token for token in verb.rights if _is_particle(verb, token)), None)
        things = _children(verb, "dobj", "obj")
        if beside is not None:
            things += _children(beside, "pobj", "obl")
        thing = next((token for token in things if token.i > verb.i and token.pos_ != "PRON"), None)
        particle = "" if beside is None else beside.lower_
        leads_verb = any(child.pos_ == "VERB" for child in _children(verb, "xcomp", "ccomp"))
        if (leads_verb and verb.lemma_ in WORDS.aspect) or _is_denied(verb):
            continue
        if _is_event(verb, particle, thing, _parsed_subject(verb)):
            short = doc[verb.i : (beside or verb).i + 1]
            end = short.end if thing is None else max(short.end, thing.i + 1)
            yield _make_keyword(verb, doc[verb.i : end], short, particle, thing)


def _children(token: Token, *labels: str) -> list[Token]:
    return [child for child in token.children if child.dep_ in labels]


def _is_particle(verb: Token, token: Token) -> bool:
    """Whether a dependent on a verb's right is its particle, or names the result of a change."""
    if token.dep_ == "acomp":
        return verb.lemma_ in WORDS.changes
    if token.dep_ in {"prt", "compound:prt"}:
        return True
    return token.lower_ in WORDS.particles and token.dep_ in {"prep", "advmod", "advcl"}


def _is_denied(verb: Token) -> bool:
    """Whether a verb is negated, or governed by one that means that it does not happen."""
    if any(child.dep_ == "neg" or child.lower_ in WORDS.negations for child in verb.children):
        return True
    head = verb.head
    if verb.dep_ not in {"xcomp", "ccomp", "pcomp"} or head is verb:
        return False
    return head.lower_ in WORDS.negations or head.lemma_ in WORDS.negations or _is_denied(head)


def _parsed_subject(verb: Token) -> Token | None:
    """The subject of a verb, active or passive."""
    for child in _children(verb, "nsubj", "nsubjpass", "nsubj:pass"):
        if child.lower_ not in WORDS.relatives:
            return child
    if verb.dep_ in {"relcl", "acl", "acl:relcl"}:
        return verb.head
    return _parsed_subject(verb.head) if verb.dep_ in {"conj", "xcomp", "advcl"} else None
