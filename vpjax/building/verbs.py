"""English words -> parts of speech without a trained pipeline: from WordNet's word lists (spacy-lookups-data)
and a word's neighbours.

Made for captions, and for what ``keywords`` asks of them: verbs, objects and particles. One pass from left to
right; where a word can be a noun and a verb ("cheers"), its clause decides: whether the subject stands
already and whether it still waits for its verb.
"""

from __future__ import annotations

from spacy.lookups import load_lookups
from spacy.tokens import Doc

from vpjax.types import UserError


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What a verb takes along: "tips over", "picks up". The second kind only at the end of a clause ("walks in").
PARTICLES = words(
    "up down off out away back over apart aside together around along forward forwards backward backwards "
    "sideways open shut"
)
LATE_PARTICLES = words("in on through by past inside outside across")
PREPOSITIONS = PARTICLES | words(
    "in on through by past inside outside across at of from with without into onto to toward towards under "
    "behind against near for between among above below beside like during within upon next"
)
DETERMINERS = words(
    "a an the this these those his her its their my your our some each every both no another any all several "
    "many few 's"
)
PRONOUNS = words(
    "i you he she it we they who which that someone somebody something everyone everybody one nobody nothing "
    "him them me us himself herself itself themselves"
)
PLURAL_WORDS = words("i you we they people both")
CONJUNCTIONS = words("and or but then")
SUBORDINATORS = words("while as when after before until because since if where once whereas")
ADVERBS = words(
    "not n't never just now twice once again briefly there here very too also right left still first soon"
)
BE, HAVE = words("be is are was were been being am 're"), words("has have had having")
MODALS = words("do does did can could will would shall should may might must 'll ca wo")
CLOSED = PREPOSITIONS | DETERMINERS | PRONOUNS | CONJUNCTIONS | SUBORDINATORS | ADVERBS | BE | HAVE | MODALS
RELATIVES = words("who which that")
STOPS = words(". ; : ! ?")
PHRASE = frozenset({"DET", "NUM", "ADJ", "NOUN", "PRON"})
HEADS = frozenset({"NOUN", "PRON"})
# Prepositions that belong to these verbs: "crashes into a tree".
PHRASAL = {
    "in": words("reel"),
    "into": words("crash bump get"),
    "on": words("turn switch put try"),
}
# Participles that say how something is, unless they have an object: "cars parked along the street".
STATES = words("parked located named called dressed seated made based surrounded filled covered situated")
CHANGES = words("get turn become go grow swing fall")  # the adjective after them says into what
CAUSATIVE = words("make let see watch help hear feel have")
UNCHANGED = words("hit cut put set let shut split spread hurt cast bet burst")  # the past is the base form


TABLES = ("lemma_rules", "lemma_exc", "lemma_index", "lemma_lookup")


class Tagger:
    """Sets ``tag_`` and ``lemma_`` of a Doc's tokens.

    Tags are those of Universal Dependencies but for BE, HAVE and MODAL (auxiliaries), TO (before a verb) and
    PART (a verb's particle). Of verbs only, the lemma is the dictionary form.
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

    def lemmas(self, word: str, pos: str) -> list[str]:
        """The dictionary forms of a word that is inflected, the likeliest first."""
        if word in self.irregular[pos]:
            return self.irregular[pos][word]
        cut = [word[: -len(old)] + new for old, new in self.endings[pos] if word.endswith(old)]
        stems = [stem for stem in cut if stem in self.words[pos]]
        return sorted(stems, key=lambda stem: stem != self.usual.get(word))  # "singing": sing, not singe

    def verb_forms(self, word: str) -> dict[str, str]:
        """The forms of a verb that ``word`` can be (base, s, ing, past), each with its lemma."""
        first, dash, word = word.rpartition("-")  # "rear-ends"
        forms = {"base": word} if word in self.words["verb"] else {}
        lemmas = self.lemmas(word, "verb")
        if lemmas and not word.endswith("ss"):
            ending = [form for form in ("ing", "s") if word.endswith(form)]
            forms[ending[0] if ending else "past"] = lemmas[0]
        if word in UNCHANGED:
            forms["past"] = word
        return {form: first + dash + lemma for form, lemma in forms.items()}

    def is_noun(self, word: str) -> bool:
        return word in self.words["noun"] or bool(self.lemmas(word, "noun"))

    def is_plural(self, word: str) -> bool:
        return word in PLURAL_WORDS or (
            bool(self.lemmas(word, "noun")) and not word.endswith(("ss", "us", "is"))
        )

    def is_known(self, word: str) -> bool:
        return (
            word in CLOSED
            or self.is_noun(word)
            or bool(self.verb_forms(word))
            or any(word in self.words[pos] for pos in ("adj", "adv"))
        )

    def __call__(self, doc: Doc) -> Doc:
        clause = _Clause(self, doc)
        for token in doc:
            token.tag_, token.lemma_ = clause.tag(token.i)
        return doc


class _Clause:
    """What is known of a clause, from left to right.

    last: the part of speech of the latest word, adverbs aside. waits: a subject stands that has no verb
    yet; plural: it is several. subject: whether the phrase that is being read is one; joined: to another one,
    by "and". bare: it is none, and has no determiner. several: it is plural itself. chain: the forms of the
    verbs so far, in one of which another may follow after "and". verb: the lemma of the latest.
    """

    def __init__(self, tagger: Tagger, doc: Doc):
        self.know, self.doc = tagger, doc
        self.last, self.verb = "START", ""
        self.waits = self.plural = self.subject = self.joined = self.bare = self.several = False
        self.chain: set[str] = set()

    def word(self, i: int) -> str:
        return self.doc[i].lower_ if i < len(self.doc) else ""

    def tag(self, i: int) -> tuple[str, str]:
        """The part of speech of the next word, and its lemma if it is a verb."""
        word = self.word(i)
        forms = self.know.verb_forms(word)
        form = self.verb_form(i, word, forms)
        pos = "VERB" if form else self.other(i, word)
        if pos == "VERB":
            # "a child wearing boots jumps": a participle leaves its subject waiting.
            self.waits &= form == "ing" and self.last in HEADS
            self.chain.add(form)
            if self.last in {"BE", "HAVE", "MODAL"}:  # "is sneezing, then throws"
                self.chain |= {"past", "base" if self.plural else "s"}
            self.verb = forms[form]
        elif pos in PHRASE:
            if self.last not in PHRASE:
                self.subject = self.last in {"START", "PUNCT", "CCONJ", "SCONJ"}
                self.bare = pos == "NOUN" and not self.subject
                self.joined = self.waits and self.last == "CCONJ"  # "a dog and a cat fight"
            self.several = self.know.is_plural(word)
            if pos in HEADS and self.subject:
                self.waits, self.plural = True, self.joined or self.several
        elif pos == "SCONJ" or word in STOPS:
            self.waits, self.chain, self.verb = False, set(), ""
        if word in RELATIVES and self.last == "NOUN":
            self.waits, self.plural = True, self.several
        if pos not in {"ADV", "SPACE"}:
            self.last = pos
        return pos, forms[form] if form else word

    def verb_form(self, i: int, word: str, forms: dict[str, str]) -> str:
        """The form in which a word is a verb here, or ""."""
        after = self.word(i + 1)
        has_object = after in DETERMINERS | PRONOUNS or (i + 1 < len(self.doc) and self.doc[i + 1].like_num)
        if after == "of" and self.know.is_noun(word):  # "a shot of"
            return ""
        if not forms or word in BE or (word in HAVE | MODALS and self.is_auxiliary(i)):
            return ""
        if word in (CLOSED | STATES) - HAVE - MODALS and not (self.waits and has_object):
            return ""  # "left" and "down" are verbs before an object only
        wanted: tuple[str, ...] = ()
        match self.last:
            case "TO":
                wanted = ("base",)
            case "BE":
                wanted = ("ing", "past")
            case "HAVE":
                wanted = ("past",)
            case "MODAL":
                wanted = ("base",)
            case "NOUN" | "PRON":
                wanted = ("ing",)
                if self.waits:
                    wanted += ("past", "base" if self.plural else "s")
                elif self.verb in CAUSATIVE:
                    wanted += ("base",)
                elif after == "by":
                    wanted += ("past",)
            case "VERB" | "PART":
                wanted = ("ing", "past") if self.verb == "get" else ("ing",)
            case "ADP":
                wanted = () if self.is_thing(i + 1) else ("ing",)
            case "SCONJ":
                wanted = () if self.is_thing(i + 1) else ("ing", "past")
            case "START" | "PUNCT" | "CCONJ":
                # "peppers" of "tomatoes, peppers and onions"
                listed = self.bare and self.several and self.know.is_plural(word)
                wanted = ("ing", *(() if listed else sorted(self.chain)))
                # An order ("stir the soup"): a word that is no noun too, or has an object.
                follows = self.last != "START" and "base" in self.chain and not self.bare
                free = follows or has_object or after in PARTICLES or not self.know.is_noun(word)
                if not free:
                    wanted = tuple(form for form in wanted if form != "base")
                elif not self.chain or "base" in self.chain:
                    wanted += ("base",)
        return next((form for form in wanted if form in forms), "")

    def other(self, i: int, word: str) -> str:
        """The part of speech of a word that is no verb here."""
        after, token = self.word(i + 1), self.doc[i]
        if token.is_space or token.is_punct:
            return "SPACE" if token.is_space else "PUNCT"
        for pos, closed in (("BE", BE), ("HAVE", HAVE), ("MODAL", MODALS), ("CCONJ", CONJUNCTIONS)):
            if word in closed:
                return pos
        if word in SUBORDINATORS:
            return "SCONJ"
        ranges = "from" in (self.word(k) for k in range(max(0, i - 3), i))  # "from branch to branch"
        if word == "to" and not ranges and "base" in self.know.verb_forms(after) and after not in CLOSED:
            return "TO"
        if self.is_particle(i, word):
            return "PART"
        if word in PREPOSITIONS:
            return "ADP"
        if word in RELATIVES and self.last == "NOUN":
            return "PRON"
        if word in DETERMINERS and (word != "her" or self.goes_on(i + 1)):
            return "DET"
        if token.like_num and self.goes_on(i + 1):
            return "NUM"
        if word in PRONOUNS or word == "her":
            return "PRON"
        adjective = word in self.know.words["adj"]
        noun = self.know.is_noun(word)
        if word in ADVERBS and self.last != "DET" or (word.endswith("ly") and not noun):
            return "ADV"
        changed = self.last == "VERB" and self.verb in CHANGES and adjective and not self.goes_on(i + 1)
        if changed or (self.last != "NOUN" and self.modifies(i, word)):
            return "ADJ"
        if noun or not (adjective or word in self.know.words["adv"]):
            return "NOUN"
        return "ADJ" if adjective else "ADV"

    def is_particle(self, i: int, word: str) -> bool:
        after = self.word(i + 1)
        if self.last == "VERB":
            ends = after in CONJUNCTIONS | SUBORDINATORS or not after or self.doc[i + 1].is_punct
            late = word in LATE_PARTICLES and ends
            return word in PARTICLES or late or self.verb in PHRASAL.get(word, ())
        # Behind the object ("turns the lamp off"), where nothing follows that it could govern.
        governs = after in DETERMINERS | PRONOUNS or self.goes_on(i + 1)
        return word in PARTICLES and bool(self.verb) and self.last in HEADS and not self.waits and not governs

    def is_auxiliary(self, i: int) -> bool:
        """Whether the "has" or "does" at ``i`` leads another verb."""
        following = (self.word(k) for k in range(i + 1, len(self.doc)))
        word = next((w for w in following if w not in ADVERBS and not w.endswith("ly")), "")
        return word in BE or ("past" if self.word(i) in HAVE else "base") in self.know.verb_forms(word)

    def is_thing(self, i: int) -> bool:
        """Whether the word at ``i`` is a singular noun without a determiner."""
        word = self.word(i)
        return word not in CLOSED and self.know.is_noun(word) and not self.know.is_plural(word)

    def goes_on(self, i: int) -> bool:
        """Whether the word at ``i`` can stand inside a noun phrase."""
        word = self.word(i)
        return word not in CLOSED and (self.know.is_noun(word) or word in self.know.words["adj"])

    def modifies(self, i: int, word: str) -> bool:
        """Whether an adjective or participle stands before its noun."""
        if not (word in self.know.words["adj"] or {"ing", "past"} & self.know.verb_forms(word).keys()):
            return False
        # "the blue cross drifts up": not where it is a noun itself and its verb follows.
        verb = self.know.is_noun(word) and "s" in self.know.verb_forms(self.word(i + 1))
        ends = self.last == "ADJ" or self.word(i + 2) in CLOSED - BE - HAVE | {"", "."}
        return self.goes_on(i + 1) and not (verb and ends)
