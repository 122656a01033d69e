"""What else stands in a clip's row or batch does not change its loss, its contrast and their gradient.

The model is joint.MODEL, its tower has windows and full attention. Sums in another order change a loss by up
to 1e-6 of it, and a gradient by 1e-5 of its norm. What is masked is exactly 0: where only masked values
differ, results are equal to the bit.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests import batches, joint, tiny
from vpjax.data.packing import Sizes
from vpjax.models.vlm import leaves, rebuild
from vpjax.training import sft

pytestmark = pytest.mark.slow

LOSS, GRADIENT = 1e-6, 1e-5
ROUNDING = 5e-6  # of a margin, which is the difference of two log-probabilities of about 5
CONFIG = joint.config(contrast__answer=1.0, contrast__truth=1.0)
# Videos of several grids and lengths, text (2), an image (6), and clips without V~ (3) and keywords (7).
CLIPS = [dataclasses.replace(clip, data_set=clip.number) for clip in joint.contents(8, answers=True)]
TOGETHER = ((0, 1, 2), (3, 4), (5, 6, 7))
WITH_KEYWORDS = (0, 1, 4, 5)
# All rows have one shape, so that two programs serve all tests.
LEAST = Sizes(
    tokens=100,
    units=72,
    bins=78,
    degraded=60,
    targets=16,
    keywords=6,
    slots=16,
    windows=16,
    clips=4,
    degraded_targets=8,
)


def packed(rows, **layout):
    """A Batch of rows of clips, given by number."""
    rows = [[CLIPS[number] for number in row] for row in rows]
    return batches.packed(rows, joint.MODEL.vision, least=LEAST, **joint.LAYOUT | layout)


BATCH = packed(TOGETHER)


def only(batch, number):
    """The batch with nothing else to learn than what one clip says and shows."""
    is_own = batch.origin == number
    row, place = np.argwhere(batch.clip == number)[0]
    is_again = np.zeros(batch.compared.shape, bool)
    again = batch.degraded_target[row]
    is_again[row] = (again >= 0) & (batch.degraded.segment[row, again] == place + 1)
    return dataclasses.replace(
        batch,
        target=np.where(is_own, batch.target, -1),
        origin=np.where(is_own, number, -1),
        lemma=np.where(batch.owner == number, batch.lemma, -1),
        degraded_target=np.where(is_again, batch.degraded_target, -1),
        compared=np.where(is_again, batch.compared, -1),
    )


@jax.jit
def _losses(params, batch, pool):
    def total(params):
        heads = {path: x for path, x in params.items() if path.startswith(sft.HEADS_PREFIX)}
        model = rebuild(joint.model(), {path: x for path, x in params.items() if path not in heads})
        sums = sft.summed_losses(model, heads, batch, pool, CONFIG, len(CLIPS))
        return sums.lm.sum() + sums.contrast.loss + sums.answer.loss + sums.truth, sums

    return jax.value_and_grad(total, has_aux=True)(params)


@pytest.fixture(scope="module")
def losses():
    """``losses(batch, pool)``: losses by data set and of the contrast, and the gradient of their sum. The
    keywords of ``pool`` are negatives."""
    params = leaves(joint.model()) | sft.init_heads(CONFIG, joint.MODEL.decoder.hidden, jax.random.key(1))

    def losses(batch, pool=BATCH):
        (_, sums), gradient = jax.tree.map(np.array, _losses(params, batch, pool))
        return sums, gradient

    return losses


def assert_same(found, expected):
    (sums, gradient), (expected_sums, expected_gradient) = found, expected
    np.testing.assert_array_equal(sums.tokens, expected_sums.tokens)
    np.testing.assert_array_equal(sums.contrast.keywords, expected_sums.contrast.keywords)
    np.testing.assert_array_equal(sums.answer.clips, expected_sums.answer.clips)
    np.testing.assert_array_equal(sums.truth_tokens, expected_sums.truth_tokens)
    for name, x, expected_x in zip(sums._fields, sums, expected_sums, strict=True):
        atol = ROUNDING if name == "answer" else LOSS
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=LOSS, atol=atol), x, expected_x)
    off = sum(np.square(gradient[path] - x, dtype=np.float64).sum() for path, x in expected_gradient.items())
    norm = sum(np.square(x, dtype=np.float64).sum() for x in expected_gradient.values())
    assert off**0.5 < GRADIENT * norm**0.5


@pytest.mark.parametrize("number", range(len(CLIPS)))
def test_a_clip_is_worth_in_company_what_it_is_worth_alone(number, losses):
    """Other keywords are its negatives in both cases."""
    together, alone = only(BATCH, number), packed([[number]])
    assert_same(losses(together), losses(alone))
    assert losses(alone)[0].tokens.sum() == len(CLIPS[number].answer)
    sums = losses(alone)[0]
    assert (sums.contrast.loss > 0) == (number in WITH_KEYWORDS)
    assert (sums.answer.clips + (sums.truth_tokens > 0) > 0) == (number in WITH_KEYWORDS)


def test_the_order_of_clips_and_rows_changes_nothing(losses):
    """Nor do the places of units in blocks and bins, nor a row of padding."""
    expected = losses(BATCH)
    for other in (packed([(7, 0), (6, 3, 4), (2, 5, 1)]), packed([(7, 0, 3, 1), (), (6, 2, 5, 4)])):
        assert_same(losses(other, other), expected)
    other = packed(TOGETHER, seed=1)
    assert (other.video.window != BATCH.video.window).any() and (other.video.bins != BATCH.video.bins).any()
    assert_same(losses(other), expected)


def elsewhere(x, kept, rng, least, most):
    """``x`` with other values in [least, most) where ``kept`` is False."""
    noise = rng.integers(least, most, x.shape, dtype=x.dtype)
    return np.where(kept.reshape(kept.shape + (1,) * (x.ndim - kept.ndim)), x, noise)


def among_noise(batch, number):
    """The batch with noise for all pixels and words that are not of one clip: its neighbours, and padding."""
    rng = np.random.default_rng(number)
    row, place = np.argwhere(batch.clip == number)[0]
    segments = {name: getattr(batch, name).segment == place + 1 for name in ("text", "degraded")}
    for own in segments.values():
        own[np.arange(len(own)) != row] = False
    shown = batch.text.shows[segments["text"]]
    own_units = np.zeros(batch.video.window.shape, bool)
    own_units[row, shown[shown >= 0]] = True
    strips = {}
    for name, own in segments.items():
        strip = getattr(batch, name)
        kept = own | (strip.shows >= 0)
        positions = elsewhere(strip.positions.swapaxes(1, 2), own, rng, 0, 50).swapaxes(1, 2)
        tokens = elsewhere(strip.tokens, kept, rng, 0, tiny.TEXT_IDS)
        strips[name] = dataclasses.replace(strip, tokens=tokens, positions=positions)
    video = dataclasses.replace(
        batch.video,
        pixels=elsewhere(batch.video.pixels, own_units, rng, 0, 255),
        place=elsewhere(batch.video.place, own_units, rng, 0, 9),
    )
    return dataclasses.replace(batch, video=video, **strips)


@pytest.mark.parametrize("number", range(len(CLIPS)))
def test_neighbours_and_padding_are_not_seen(number, losses):
    """Neither in the losses nor in the gradient."""
    batch = only(BATCH, number)
    noisy = among_noise(batch, number)
    assert (noisy.video.pixels != batch.video.pixels).any() and (noisy.text.tokens != batch.text.tokens).any()
    jax.tree.map(np.testing.assert_array_equal, losses(noisy), losses(batch))


@pytest.mark.parametrize("ids", ["segment", "window", "slot"])
def test_a_clip_that_saw_its_neighbours_would_be_noticed(ids, losses):
    """The laws above would miss their tolerance by a factor of 100."""
    kept = only(BATCH, 1)
    if ids == "segment":
        seen = dataclasses.replace(kept.text, segment=np.minimum(kept.text.segment, 1))
        wrong = dataclasses.replace(kept, text=seen)
    else:
        video = dataclasses.replace(kept.video, **{ids: np.minimum(getattr(kept.video, ids), 0)})
        wrong = dataclasses.replace(kept, video=video)
    (found, _), (expected, _) = losses(wrong), losses(kept)
    assert abs(found.lm[1] - expected.lm[1]) > 100 * LOSS * expected.lm[1]
    assert abs(found.contrast.loss - expected.contrast.loss) > 100 * LOSS * expected.contrast.loss


def test_a_clips_own_words_and_frames_are_seen(losses):
    """What the laws above could not see if nothing mattered."""
    expected = losses(only(BATCH, 0))[0]
    for other in (1, 3, 5):
        assert losses(among_noise(only(BATCH, 0), other))[0].lm[0] != expected.lm[0]
    frames = dataclasses.replace(BATCH.video, pixels=255 - BATCH.video.pixels)
    changed = losses(only(dataclasses.replace(BATCH, video=frames), 0))[0]
    assert abs(changed.lm[0] - expected.lm[0]) > 1e-3 * expected.lm[0]
    assert abs(changed.contrast.loss - expected.contrast.loss) > 1e-3 * expected.contrast.loss
