"""Signatures: what is alike is found alike, on every machine."""

import numpy as np
import pytest

from vpjax.curation.signatures import (
    BANDS,
    ENTRIES,
    bands_of,
    differences,
    hash_of,
    likeness,
    minhash,
    shingles,
)


def jaccard(first, second):
    return len(first & second) / len(first | second)


@pytest.mark.parametrize("shared", [0, 30, 60, 90, 100])
def test_minhash_estimates_jaccard(shared):
    """The mean over many pairs of sets of 100 texts that share some."""
    gaps = []
    for pair in range(40):
        first = {f"{pair} {n}" for n in range(100)}
        second = {f"{pair} {n}" for n in range(100 - shared, 200 - shared)}
        gaps.append(likeness(minhash(first), minhash(second)) - jaccard(first, second))
    # One estimate has a standard error of at most .5 / sqrt(60) = .065, a mean of 40 one of .010.
    assert abs(np.mean(gaps)) < 0.035
    assert np.abs(gaps).max() < 0.27


def test_a_signature_is_the_same_on_every_machine():
    """Numbers as they were on 2026-11-29: another version of NumPy or Python must not change a draw."""
    assert hash_of(b"vpjax") == 3212969721579775231
    signature = minhash(shingles("A man opens the red door".split()))
    assert signature.dtype == np.uint32 and len(signature) == BANDS * ENTRIES
    assert signature[:3].tolist() == [175775587, 209813248, 38765518]


def test_order_and_repeats_do_not_matter():
    np.testing.assert_array_equal(minhash(["a", "b", "c"]), minhash(["c", "b", "a", "b"]))
    assert shingles(["Go"]) == [" go", "go "]


def test_bands_meet_only_with_their_salt():
    signature = minhash(["a", "b"])
    assert bands_of(signature) == bands_of(signature.copy())
    assert not set(bands_of(signature)) & set(bands_of(signature, "video"))
    changed = signature.copy()
    changed[0] += 1
    assert len(set(bands_of(signature)) & set(bands_of(changed))) == BANDS - 1


def picture(seed):
    """Frames of a smooth picture that moves."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 220, (6, 6))
    frame = np.kron(coarse, np.ones((16, 16)))
    return np.stack([np.roll(frame, step, axis=1) for step in range(0, 40, 4)])[..., None].repeat(3, -1)


def test_a_copy_of_a_video_is_found_and_another_is_not():
    rng = np.random.default_rng(0)
    signatures = [minhash(differences(picture(seed).astype(np.uint8))) for seed in range(8)]
    for seed in range(8):
        noisy = picture(seed) * 0.95 + rng.normal(0, 4, picture(seed).shape)
        again = minhash(differences(noisy.clip(0, 255).astype(np.uint8)[:, ::2, ::2]))
        assert likeness(signatures[seed], again) > 0.75
        assert max(likeness(again, signatures[other]) for other in range(8) if other != seed) < 0.6


def test_plain_pictures_are_like_nothing():
    noise = np.random.default_rng(0).integers(0, 3, (4, 56, 56, 3), np.uint8)
    assert differences(90 + noise) == []
