"""A V~ that hides nothing, for a share of the prompts."""

import dataclasses

import numpy as np

from tests import batches, joint
from vpjax.data.control import with_control


def replaced(prompts):
    """The slots that V~ of each row replaces."""
    differs = prompts.shows_degraded != prompts.text.shows
    return [set(slot[d].tolist()) for slot, d in zip(prompts.text.slot, differs, strict=True)]


def prompts():
    """Twelve slots, of which V~ replaces one or two, in clips of several numbers; the last has no V~."""
    clips = batches.contents([batches.Clip(slots=12, grid=(1, 2)) for _ in range(40)])
    out = []
    for n, clip in enumerate(clips):
        marked, source = np.zeros((1, 12), bool), clip.source.copy()
        if n < 39:
            marked[0, 4 : 5 + n % 2] = True
            source[4 : 5 + n % 2] = 3
        keywords = np.ones((1, 1), np.int32)
        fields = dict(marked=marked, source=source, keywords=keywords, lemma=keywords[0])
        out.append(dataclasses.replace(clip, **fields))
    return batches.prompts([*out, None], joint.MODEL.vision)


def test_a_control_hides_nothing_and_replaces_as_much():
    before = prompts()
    after = with_control(before, 1.0, seed=0)
    assert before.hidden[:39].all() and not after.hidden.any()
    for n, (old, new) in enumerate(zip(replaced(before), replaced(after), strict=True)):
        assert len(new) == len(old) == (1 + n % 2 if n < 39 else 0)
        assert not new & old
    assert len({min(slots) for slots in replaced(after)[:39]}) > 4  # not always the same place
    np.testing.assert_array_equal(after.text.shows, before.text.shows)


def test_the_share_is_chosen_by_clip():
    """The same clips in whichever rows they stand, about as many as asked for; no other is changed."""
    before = prompts()
    after = with_control(before, 0.5, seed=0)
    chosen = ~after.hidden.any(axis=1) & before.hidden.any(axis=1)
    assert 8 < chosen.sum() < 31  # of 39: 3.5 standard deviations
    np.testing.assert_array_equal(after.shows_degraded[~chosen], before.shows_degraded[~chosen])
    assert (after.shows_degraded[chosen] != before.shows_degraded[chosen]).any(axis=1).all()

    def taken(prompts, rows):
        fields = ("shows_degraded", "hidden", "clip")
        text = dataclasses.replace(prompts.text, shows=prompts.text.shows[rows], slot=prompts.text.slot[rows])
        return dataclasses.replace(prompts, text=text, **{f: getattr(prompts, f)[rows] for f in fields})

    rows = np.arange(41)[::-1]
    np.testing.assert_array_equal(
        with_control(taken(before, rows), 0.5, seed=0).shows_degraded, after.shows_degraded[rows]
    )
    other = with_control(before, 0.5, seed=1)
    assert (other.hidden != after.hidden).any()
    np.testing.assert_array_equal(with_control(before, 0.0, seed=0).shows_degraded, before.shows_degraded)
