"""The terms of SFT by which V~ acts on the answer: their formulas, their gradient, and what they leave alone.

Steps are taken by plain gradient descent at a rate of 1: what parameters lose is the gradient.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import batches, joint
from vpjax.models.vlm import rebuild
from vpjax.training.losses import answer_term

pytestmark = pytest.mark.slow

TOLERANCE = 2e-6  # float32 sums in another order; losses are of order 1 to 10
DESCENT = optax.sgd(1.0, momentum=0.9)  # its first update is the gradient
ANSWERS = dict(contrast__answer=0.3, contrast__answer_beta=2.0, contrast__truth=0.5)


@functools.cache
def answer_step(**fields):
    """(state, step, batch) with answers on V~."""
    config = joint.config(**ANSWERS | fields)
    return joint.compiled(config, joint.batch(answers=True), tx=DESCENT)


def answer_logprobs(params):
    """For each clip with answers on V~: log p of the compared tokens given V and given V~, or of its truth,
    in NumPy from the hidden states of whole rows."""
    batch = joint.batch(answers=True)

    @jax.jit
    def last(model, strip):
        return model.decoder.norm(model.states_after(model.encode(batch.video), strip, layers=joint.LAYERS))

    model = rebuild(joint.model(), params)
    strips = batch.text, batches.whole_degraded(batch)
    text_RTD, degraded_RTD = (np.array(last(model, strip)) for strip in strips)

    def logprobs(states, tokens):
        logits = states.astype(np.float64) @ params["decoder.lm_head"].T.astype(np.float64)
        return logits[np.arange(len(tokens)), tokens] - np.log(np.exp(logits).sum(-1))

    compared, truths = [], []
    clips = joint.contents(16, answers=True)
    for r in range(8):
        token = token_degraded = 0
        for clip in clips[2 * r : 2 * r + 2]:
            start = len(clip.prompt)
            if clip.has_degraded:
                places = start + clip.degraded_target
                tokens = clip.degraded_answer[clip.degraded_target]
                on_degraded = logprobs(degraded_RTD[r, token_degraded + places - 1], tokens)
                if (clip.compared < 0).all():
                    truths.extend(on_degraded)
                else:
                    on_video = logprobs(text_RTD[r, token + start + clip.compared - 1], tokens)
                    compared.append((on_video.sum(), on_degraded.sum()))
                token_degraded += start + len(clip.degraded_answer)
            token += start + len(clip.answer)
    return np.array(compared), np.array(truths)


def test_answer_terms_are_the_formula():
    """softplus(-beta * (log p(w given V) - log p(w given V~))) / beta over clips, and V~'s own truth."""
    before, _, metrics = joint.take(*answer_step())
    compared, truths = answer_logprobs(before.params)
    gap = compared[:, 0] - compared[:, 1]
    answer = np.log1p(np.exp(-2.0 * gap)).mean() / 2.0
    assert len(gap) == 4 and len(truths) >= 8
    expected = {
        "loss": metrics["loss/lm"] + 0.1 * metrics["loss/contrast"] + 0.3 * answer - 0.5 * truths.mean(),
        "loss/answer": answer,
        "answer/gap": gap.mean(),
        "answer/ahead": (gap > 0).mean(),
        "answer/clips": len(gap),
        "loss/truth": -truths.mean(),
        "truth/tokens": len(truths),
    }
    assert metrics == pytest.approx(metrics | expected, rel=0, abs=1e-5)


def test_the_answer_terms_leave_the_others_as_they_are():
    """The same losses of V and the same contrast, whose tapped states are causal; the margin's control trains
    on the keyword's tokens given V."""
    _, _, metrics = joint.take(*answer_step())
    _, _, plain = joint.run(joint.config(), joint.batch(), tx=DESCENT)
    for name in ("loss/lm", "loss/contrast", "contrast/gap", "contrast/keywords"):
        assert metrics[name] == pytest.approx(plain[name], abs=TOLERANCE)
    before, _, weighted = joint.take(*answer_step(contrast__answer_kind="weight"))
    compared, _ = answer_logprobs(before.params)
    assert weighted["loss/answer"] == pytest.approx(-compared[:, 0].mean(), abs=1e-5)


def test_the_gradient_flows_through_both_videos():
    """It is the slope of the loss, which it would not be if V~'s states were taken as given."""
    fields = dict(contrast__weight=0.0, contrast__answer=20.0, contrast__truth=0.0)
    state, step, batch = answer_step(**fields)
    before, after, metrics = joint.take(state, step, batch)
    descent = {path: before.params[path] - after.params[path] for path in before.params}
    size = sum(np.square(g, dtype=np.float64).sum() for g in descent.values()) ** 0.5

    def loss_at(distance):
        params = {path: jnp.asarray(x + distance / size * descent[path]) for path, x in before.params.items()}
        moved = dataclasses.replace(state, params=params)
        return joint.take(moved, step, batch)[2]["loss"]

    # The loss is about 20, of which float32 keeps 2e-6; its curvature adds about 1 %.
    slope = (loss_at(1e-3) - loss_at(-1e-3)) / 2e-3
    assert slope == pytest.approx(size, rel=0.03)
    assert metrics["grad_norm"] == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_the_margin_by_hand(beta):
    """Tokens of one clip add up, clips are averaged, padding counts for nothing; in float64 NumPy."""
    rng = np.random.default_rng(0)
    clip = np.array([[0, 0, 1, -1], [2, 2, 2, -1], [-1, -1, -1, -1]])
    given, degraded = rng.normal(-3, 2, (2, *clip.shape))
    found = answer_term(given, degraded, clip, 3, beta=beta)
    gaps = [(given - degraded)[r][clip[r] == n].sum() for r, n in ((0, 0), (0, 1), (1, 2))]
    expected = sum(np.log1p(np.exp(-beta * gap)) / beta for gap in gaps)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(found.gap, sum(gaps), rtol=1e-5)
    assert int(found.ahead) == sum(gap > 0 for gap in gaps) and int(found.clips) == 3


def test_micro_batches_add_up():
    """Clips are averaged over the whole batch, not over the means of its parts."""
    _, after, metrics = joint.take(*answer_step())
    _, after_parts, in_parts = joint.take(*answer_step(accumulate=4))
    assert in_parts == pytest.approx(metrics, rel=1e-6, abs=1e-5)  # the norm of the gradient is 20
    for path, x in after.params.items():
        np.testing.assert_allclose(after_parts.params[path], x, rtol=0, atol=TOLERANCE, err_msg=path)
