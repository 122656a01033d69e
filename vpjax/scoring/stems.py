"""Porter's stems of English words."""

import functools

LONGEST = 24  # letters of a word that is stemmed; longer ones are no English words
LONGEST_Y = 2  # "y" in a row, likewise
SHORTEST = 4


@functools.lru_cache(2**16)
def stem_of(word: str) -> str:
    """The stem of a word in lower case, as the ``rouge-score`` package makes it (Porter's, by nltk, of words
    of four letters and more). Words of other scripts stay as they are."""
    is_english = word.isascii() and SHORTEST <= len(word) <= LONGEST and "y" * (LONGEST_Y + 1) not in word
    if not is_english:
        return word
    return _stemmer().stem(word)


@functools.cache
def _stemmer():
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()
