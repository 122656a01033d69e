"""Finding copies among many rows: signatures that are alike where rows are alike, and bands that bring such
rows together without comparing all pairs (locality-sensitive hashing).

A row is a set of texts: the pairs of words of its caption, or the differences between places in its pictures.
The share of equal entries of the MinHash signatures of two sets estimates their Jaccard similarity (Broder,
1997). Nothing here depends on the machine.
"""

import hashlib
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

BANDS = 12  # of a signature: likeness .7 is found with a probability of .89, .8 with .99
ENTRIES = 5  # of a MinHash signature in each band
PRIME = (1 << 31) - 1  # products of two numbers below it stay below 2^62
SHINGLE = 2  # words of a run of which a caption's set is made

SIDE = 8  # places in a row and in a column of a picture
PICTURES = 5  # frames of a video that are compared
STEP = 8  # levels: a smaller difference may be another compression's


def hash_of(text: bytes) -> int:
    """63 bits, which SQLite's integers hold."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def _constants(name: str) -> np.ndarray:
    """Numbers u64[BANDS * ENTRIES, 1] from 1 to PRIME - 1, the same with every version of NumPy."""
    numbers = [1 + hash_of(f"{name} {n}".encode()) % (PRIME - 1) for n in range(BANDS * ENTRIES)]
    return np.array(numbers, np.uint64)[:, None]


_FACTORS, _SHIFTS = _constants("factor"), _constants("shift")


def minhash(elements: Iterable[str]) -> np.ndarray:
    """The signature u32[BANDS * ENTRIES] of a set of texts."""
    values = np.array([zlib.crc32(element.encode()) % PRIME for element in elements], np.uint64)
    hashes = (values * _FACTORS + _SHIFTS) % np.uint64(PRIME)
    return hashes.min(axis=1).astype(np.uint32)


def shingles(words: list[str]) -> list[str]:
    """The runs of SHINGLE words of a text, and their ends, so that a text of one word has some too."""
    padded = ["", *(word.lower() for word in words), ""]
    return [" ".join(padded[first : first + SHINGLE]) for first in range(len(padded) - SHINGLE + 1)]


def differences(frames: np.ndarray) -> list[str]:
    """The set of a video's frames u8[F,h,w,3]: of PICTURES of them, evenly spread, where in a grid of SIDE x
    SIDE places a colour is brighter or darker than in the next place to the right, by more than STEP. As a
    difference hash, but plain places have no entries that other pictures could share; [] if all are plain."""
    chosen = np.linspace(0, len(frames) - 1, PICTURES + 2)[1:-1].round().astype(int)
    found = []
    for number, frame in enumerate(frames[chosen]):
        small = Image.fromarray(frame).resize((SIDE + 1, SIDE), Image.Resampling.BOX)
        steps = np.diff(np.asarray(small, np.int16), axis=1)
        for sign, marked in (("+", steps > STEP), ("-", steps < -STEP)):
            found += [f"{number} {sign} {place}" for place in np.flatnonzero(marked)]
    return found


def bands_of(signature: np.ndarray, salt: str = "") -> list[int]:
    """A hash of each band of a signature. Rows with another ``salt`` never meet."""
    bands = enumerate(np.split(signature, BANDS))
    return [hash_of(f"{number} {salt} ".encode() + part.tobytes()) for number, part in bands]


def likeness(first: np.ndarray, second: np.ndarray) -> float:
    """The share of equal entries of two signatures."""
    return float(np.mean(first == second))
