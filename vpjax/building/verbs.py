"""Parts of speech without a trained pipeline, from WordNet's word lists (spacy-lookups-data) and a word's
neighbours.

Made for captions, and for verbs, objects and particles, which ``keywords`` needs. The text is read once from
left to right. If a word can be a noun and a verb ("cheers"), its clause decides: it is a verb if the clause
has a subject that still has no verb.
"""

import functools
import tomllib
from pathlib import Path
from types import SimpleNamespace

from spacy.lookups import load_lookups
from spacy.tokens import Doc

from vpjax.types import UserError


def read_word_lists() -> SimpleNamespace:
    """The lists of words.toml as attributes, each a frozenset of words."""
    lists = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
    return SimpleNamespace(**{name: frozenset(words.split()) for name, words in lists.items()})


WORDS = read_word_lists()
PREPOSITIONS = WORDS.particles | WORDS.prepositions
CLOSED_TAGS = {
    "BE": WORDS.be,
    "HAVE": WORDS.have,
    "MODAL": WORDS.modals,
    "CCONJ": WORDS.conjunctions,
    "SCONJ": WORDS.subordinators,
}
CLAUSE_WORDS = WORDS.conjunctions | WORDS.subordinators
OBJECT_STARTS = WORDS.determiners | WORDS.pronouns
PURE_PARTICLES = WORDS.particles - WORDS.doors
CLOSED = PREPOSITIONS.union(OBJECT_STARTS, WORDS.adverbs, *CLOSED_TAGS.values())
# Prepositions that belong to these verbs: "crashes into a tree".
PHRASAL = {"in": {"reel"}, "into": {"crash", "bump", "get"}, "on": {"turn", "switch", "put", "try"}}
FORMS_AFTER = {"TO": ["base"], "MODAL": ["base"], "BE": ["ing", "past"], "HAVE": ["past"]}
PHRASE = {"DET", "NUM", "ADJ", "NOUN", "PRON"}
PHRASE_HEADS = {"NOUN", "PRON"}
WORDS_KEPT = 65_536  # whose dictionary forms are kept in memory
TERSE = "person"  # what Charades calls whoever acts
TABLES = ["lemma_rules", "lemma_exc", "lemma_index", "lemma_lookup"]


class Tagger:
    """Sets ``tag_`` and ``lemma_`` of a Doc's tokens.

    Tags are those of Universal Dependencies except BE, HAVE and MODAL (auxiliaries), TO (before a verb) and
    PART (a verb's particle). The lemma of a verb is its dictionary form, that of any other word the word.
    UserError if the word lists are not installed.
    """

    def __init__(self) -> None:
        try:
            tables = load_lookups("en", TABLES)
        except ValueError as error:
            raise UserError("keywords: no English word lists; pip install spacy-lookups-data") from error
        rules, irregular, index, self.usual = (tables.get_table(name) for name in TABLES)
        self.words = {pos: frozenset(index[pos]) for pos in ("noun", "verb", "adj", "adv")}
        self.irregular = {pos: dict(irregular[pos]) for pos in ("noun", "verb")}
        self.endings = {pos: [tuple(rule) for rule in rules[pos]] for pos in ("noun", "verb")}

    # Captions say the same words again and again. A process has one or two taggers, for as long as it runs.
    @functools.lru_cache(WORDS_KEPT)  # noqa: B019
    def lemmas(self, word: str, pos: str) -> list[str]:
        """The dictionary forms of an inflected word, the likeliest first; [] if it is not inflected."""
        if word in self.irregular[pos]:
            return sorted(self.irregular[pos][word], key=lambda stem: stem in WORDS.rare)
        stems = []
        for old, new in self.endings[pos]:
            stem = word[: -len(old)] + new
            if word.endswith(old) and stem in self.words[pos]:
                stems.append(stem)
        # "singing": sing, not singe
        return sorted(stems, key=lambda stem: (stem in WORDS.rare, stem != self.usual.get(word)))

    def verb_forms(self, word: str) -> dict[str, str]:
        """The forms of a verb that ``word`` can be (base, s, ing, past), each with its lemma."""
        first, dash, word = word.rpartition("-")  # "rear-ends"
        forms = {}
        if word in self.words["verb"]:
            forms["base"] = word
        lemmas = self.lemmas(word, "verb")
        if lemmas and not word.endswith("ss"):
            form = next((ending for ending in ("ing", "s") if word.endswith(ending)), "past")
            forms[form] = lemmas[0]
        if word in WORDS.unchanged:
            forms["past"] = word
        return {form: first + dash + lemma for form, lemma in forms.items()}

    def all_forms(self, word: str) -> frozenset[str]:
        """The word and all dictionary forms that it can have, as a verb and as a noun."""
        return frozenset([word, *self.lemmas(word, "verb"), *self.lemmas(word, "noun")])

    def base_forms(self, word: str) -> frozenset[str]:
        """The forms that a word shares with its inflections. Of a verb's base form that is itself alone: to
        "fell" is not to "fall"."""
        return frozenset([word]) if word in self.words["verb"] else self.all_forms(word)

    def is_noun(self, word: str) -> bool:
        return word in self.words["noun"] or bool(self.lemmas(word, "noun"))

    def is_plural(self, word: str) -> bool:
        if word in WORDS.plural_words:
            return True
        return bool(self.lemmas(word, "noun")) and not word.endswith(("ss", "us", "is"))

    def is_known(self, word: str) -> bool:
        """Whether a dictionary has the word."""
        if word in CLOSED or word in self.words["adj"] or word in self.words["adv"]:
            return True
        return self.is_noun(word) or bool(self.verb_forms(word))

    def __call__(self, doc: Doc) -> Doc:
        clause = _Clause(self, doc)
        for token in doc:
            token.tag_, token.lemma_ = clause.tag(token.i)
        return doc


class _Clause:
    """The state of a clause while its words are read from left to right.

    last, before: the parts of speech of the latest word and of the one before it, adverbs aside. verb: the
    lemma of the latest verb.
    chain: the forms of the clause's verbs; after "and" another verb may follow in one of them.
    waits: whether there is a subject that has no verb yet. plural: whether that subject is plural. terse:
    whether it is a "person" without a determiner, whose verb may be bare, as in Charades ("person open the
    door"). orders: whether the clause began with an order.
    Of the noun phrase that is being read: subject, whether it is a subject; joined, whether "and" joins it
    to another one; bare, whether it is no subject and has no determiner; several, whether it is plural.
    """

    def __init__(self, tagger: Tagger, doc: Doc):
        self.tagger, self.doc = tagger, doc
        self.last, self.before, self.verb = "START", "", ""
        self.waits = self.plural = self.subject = self.joined = self.bare = self.several = False
        self.terse = self.orders = False
        self.chain: set[str] = set()

    def word(self, i: int) -> str:
        return self.doc[i].lower_ if i < len(self.doc) else ""

    def tag(self, i: int) -> tuple[str, str]:
        """The tag and the lemma of token ``i``, which must be the one after the last call's."""
        word = self.word(i)
        forms = self.tagger.verb_forms(word)
        form = self.verb_form(i, word, forms)
        pos, lemma = ("VERB", forms[form]) if form else (self.other_pos(i, word), word)
        if pos == "VERB":
            self.add_verb(form, lemma)
        elif pos in PHRASE:
            self.add_to_phrase(pos, word)
        elif pos == "SCONJ" or word in WORDS.stops:
            self.waits, self.chain, self.verb, self.orders = False, set(), "", False
        if word in WORDS.relatives and self.last == "NOUN":
            self.waits, self.plural = True, self.several
        if pos not in {"ADV", "SPACE"}:
            self.before, self.last = self.last, pos
        return pos, lemma

    def add_verb(self, form: str, lemma: str) -> None:
        # "a child wearing boots jumps": a participle leaves its subject waiting.
        if form != "ing" or self.last not in PHRASE_HEADS:
            self.waits = False
        self.chain.add(form)
        self.orders |= self.last == "START" and form == "base" and lemma in WORDS.orders
        if self.last in {"BE", "HAVE", "MODAL"}:  # "is sneezing, then throws"
            self.chain |= {"past", "base" if self.plural else "s"}
        self.verb = lemma

    def add_to_phrase(self, pos: str, word: str) -> None:
        if self.last not in PHRASE:
            self.subject = self.last in {"START", "PUNCT", "CCONJ", "SCONJ"}
            self.terse = self.subject and word == TERSE
            self.bare = pos == "NOUN" and not self.subject
            self.joined = self.waits and self.last == "CCONJ"  # "a dog and a cat fight"
        self.several = self.tagger.is_plural(word)
        if word in WORDS.nominative:  # "in the kitchen he opens a jar"
            self.subject, self.joined = True, False
        if pos in PHRASE_HEADS and self.subject:
            self.waits, self.plural = True, self.joined or self.several

    def verb_form(self, i: int, word: str, forms: dict[str, str]) -> str:
        """The one of ``forms`` in which the word is a verb here; "" if it is none."""
        after = self.word(i + 1)
        has_object = after in OBJECT_STARTS or (i + 1 < len(self.doc) and self.doc[i + 1].like_num)
        if not forms or word in WORDS.be or word in PURE_PARTICLES:
            return ""
        if after == "of" and self.tagger.is_noun(word):  # "a shot of"
            return ""
        if word in WORDS.have | WORDS.modals:
            if self.is_auxiliary(i):
                return ""
        elif word in CLOSED | WORDS.states and not (self.waits and (has_object or after in WORDS.particles)):
            return ""  # "left" and "down" are verbs before an object or a particle only
        for form in self.possible_forms(i, word, after, has_object):
            if form in forms:
                return form
        return ""

    def possible_forms(self, i: int, word: str, after: str, has_object: bool) -> list[str]:
        """The forms in which a verb can stand at ``i``, the likeliest first."""
        if self.last in FORMS_AFTER:
            return FORMS_AFTER[self.last]
        if self.last in PHRASE_HEADS:
            if self.waits:
                return self.forms_after_subject(i, after)
            if self.verb in WORDS.causative:
                return ["ing", "base"]
            return ["ing", "past"] if after == "by" else ["ing"]
        if self.last in {"VERB", "PART"}:
            if self.orders and self.verb in WORDS.orders and self.tagger.is_noun(word):  # "add dressing"
                return []
            return ["ing", "past"] if self.verb == "get" else ["ing"]
        if self.last in {"ADP", "SCONJ"}:
            if self.is_thing(i + 1):
                return []
            return ["ing"] if self.last == "ADP" else ["ing", "past"]
        if self.last not in {"START", "PUNCT", "CCONJ"}:
            return []
        # "A tall and thin man"
        if self.before == "ADJ" and word in self.tagger.words["adj"] and word in self.tagger.words["verb"]:
            return []
        forms = ["ing"]
        is_verb = has_object or after in WORDS.particles or not self.tagger.is_noun(word)
        if self.last == "PUNCT" and self.waits and is_verb:  # "A man, who is tall, opens a door"
            forms = self.forms_after_subject(i, after)
        # Not for "peppers" of "tomatoes, peppers and onions".
        if not (self.bare and self.several and self.tagger.is_plural(word)):
            forms += sorted(self.chain)
        # "Opens the door", whose subject is left out.
        if self.last == "START" and (after in WORDS.determiners or after in WORDS.particles):
            forms.append("s")
        # An order ("stir the soup") is a word that is not also a noun, is known for it, or has an object.
        follows = self.last != "START" and "base" in self.chain and not (self.bare or self.orders)
        if not (follows or is_verb or self.is_order(i)):
            return [form for form in forms if form != "base"]
        if not self.chain or "base" in self.chain:
            forms.append("base")
        return forms

    def is_order(self, i: int) -> bool:
        """Whether the word at ``i`` is a verb of orders, with which a sentence begins or goes on that began
        so, and no subject of the word after it ("Cook stirs the soup")."""
        after = self.word(i + 1)
        has_verb = after in WORDS.be or "s" in self.tagger.verb_forms(after)
        if has_verb and self.tagger.is_noun(after):  # "crack eggs", but "cook stirs the soup"
            has_verb = self.word(i + 2) in OBJECT_STARTS
        begins = self.last == "START" or self.orders
        return begins and self.word(i) in WORDS.orders and not has_verb

    def forms_after_subject(self, i: int, after: str) -> list[str]:
        """The forms of a verb at ``i``, whose subject stands before it."""
        forms = ["ing", "past"]
        # The noun before the verb may be what the subject is of: "a crowd of people cheer".
        if self.plural or self.terse or self.several:
            forms.append("base")
        # "The dance moves end": a plural before a bare verb that ends the clause is the subject's noun.
        stands_before_verb = self.tagger.is_plural(self.word(i)) and self.ends_clause(i + 1)
        if not self.plural and not stands_before_verb:
            forms.append("s")
        return forms

    def ends_clause(self, i: int) -> bool:
        """Whether the word at ``i`` is a bare verb without an object, and its clause ends behind it."""
        if self.word(i) not in WORDS.closing:
            return False
        following = self.word(i + 1)
        return not following or following in CLAUSE_WORDS or self.doc[i + 1].is_punct

    def other_pos(self, i: int, word: str) -> str:
        """The part of speech of a word that is no verb here."""
        after, token = self.word(i + 1), self.doc[i]
        if token.is_punct:
            return "PUNCT"
        if not any(map(str.isalnum, word)):  # a symbol, an emoji, spaces
            return "SPACE"
        if word == "'s" and self.word(i - 1) in WORDS.contracted:
            return "BE"
        # "She then adds salt", "is then seen": it joins no clauses where the verb is still to come.
        if word == "then" and (self.waits or self.last in FORMS_AFTER):
            return "ADV"
        for pos, words in CLOSED_TAGS.items():
            if word in words:
                return pos
        if word == "to" and self.begins_infinitive(i, after):
            return "TO"
        if self.is_particle(i, word):
            return "PART"
        if word in PREPOSITIONS:
            return "ADP"
        if word in WORDS.relatives and self.last == "NOUN":
            return "PRON"
        if word in WORDS.determiners and (word != "her" or self.goes_on(i + 1)):
            return "DET"
        if token.like_num and self.goes_on(i + 1):
            return "NUM"
        if word in WORDS.pronouns or word == "her":
            return "PRON"
        is_adjective = word in self.tagger.words["adj"]
        is_noun = self.tagger.is_noun(word)
        if (word in WORDS.adverbs and self.last != "DET") or (word.endswith("ly") and not is_noun):
            return "ADV"
        is_result = self.last == "VERB" and self.verb in WORDS.changes and not self.goes_on(i + 1)
        if (is_adjective and is_result) or (self.last != "NOUN" and self.modifies(i, word)):
            return "ADJ"
        # Behind its noun: "her hair followed by", but "in red" and "a snow covered hill".
        if word in WORDS.states and not (is_adjective or self.goes_on(i + 1)):
            return "ADP"
        if is_noun:
            return "NOUN"
        if is_adjective:
            return "ADJ"
        return "ADV" if word in self.tagger.words["adv"] else "NOUN"

    def begins_infinitive(self, i: int, after: str) -> bool:
        """Whether a verb follows the "to" at ``i``, and not where something goes or is."""
        if after in CLOSED or after in WORDS.colours or "base" not in self.tagger.verb_forms(after):
            return False
        if i and self.word(i - 1) in {"next", "close", "closer"}:  # "next to bottle"
            return False
        return "from" not in [self.word(k) for k in range(max(0, i - 3), i)]  # "from branch to branch"

    def is_particle(self, i: int, word: str) -> bool:
        after = self.word(i + 1)
        if self.last == "VERB":
            clause_ends = not after or after in CLAUSE_WORDS or self.doc[i + 1].is_punct
            if word in WORDS.late_particles and clause_ends:
                return True
            return word in WORDS.particles or self.verb in PHRASAL.get(word, ())
        # Behind the object ("turns the lamp off"), if no noun phrase follows.
        if after in OBJECT_STARTS or self.goes_on(i + 1) or self.waits:
            return False
        is_its_own = word in WORDS.particles or self.verb in PHRASAL.get(word, ())
        return is_its_own and bool(self.verb) and self.last in PHRASE_HEADS

    def is_auxiliary(self, i: int) -> bool:
        """Whether the "has" or "does" at ``i`` leads another verb."""
        form = "past" if self.word(i) in WORDS.have else "base"
        for k in range(i + 1, len(self.doc)):
            word = self.word(k)
            if word not in WORDS.adverbs and not word.endswith("ly"):
                return word in WORDS.be or form in self.tagger.verb_forms(word)
        return False

    def is_thing(self, i: int) -> bool:
        """Whether the word at ``i`` is a singular noun without a determiner."""
        word = self.word(i)
        return word not in CLOSED and self.tagger.is_noun(word) and not self.tagger.is_plural(word)

    def goes_on(self, i: int) -> bool:
        """Whether the word at ``i`` can stand inside a noun phrase."""
        word = self.word(i)
        return word not in CLOSED and (self.tagger.is_noun(word) or word in self.tagger.words["adj"])

    def modifies(self, i: int, word: str) -> bool:
        """Whether the word at ``i`` is an adjective or participle before its noun."""
        forms, adjectives = self.tagger.verb_forms(word), self.tagger.words["adj"]
        if word in adjectives and self.word(i + 1) in ("and", ","):  # "a red and white car"
            second = self.word(i + 2)
            return second in adjectives and second not in CLOSED and self.goes_on(i + 3)
        is_modifier = word in adjectives or "ing" in forms or "past" in forms
        if not is_modifier or not self.goes_on(i + 1):
            return False
        # "the blue cross drifts up": not where it is a noun itself and its verb follows.
        if not (self.tagger.is_noun(word) and "s" in self.tagger.verb_forms(self.word(i + 1))):
            return True
        verb_ends = self.word(i + 2) in (CLOSED - WORDS.be - WORDS.have) | {"", "."}
        return self.last != "ADJ" and not verb_ends
