"""A whole GRPO step with V~ is what the formulas of docs/method.md, section 3, make of transformers' model in
float64 and torch's AdamW: only the tokens that were sampled come from the step itself."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from torch.nn.functional import embedding

from tests import joint, tiny
from tests.training.rollouts import EOS, TruthJudge, config
from vpjax.models.hf import load_pretrained, save_pretrained
from vpjax.models.sharding import put_batch
from vpjax.models.vlm import leaves, rebuild
from vpjax.training.grpo import make_step
from vpjax.training.state import create_state

pytestmark = pytest.mark.slow

WEIGHT, TEMPERATURE, LR, DECAY = 0.5, 0.8, 1e-2, 0.2
EPS = 1e-3  # AdamW turns a gradient that is nothing but rounding into a whole step if eps is smaller than it
MOVED = 1e-3  # of a learning rate; 1e-4 is found, and 2e-2 with an eps that is wrong by a tenth


def answer_logprobs(model, clips):
    """log p of each clip's answer. A token of a video in an answer is a word, for which transformers would
    look for a video."""
    inputs = tiny.reference_inputs(clips, left=False)
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].double()
    said = inputs["input_ids"].clone()
    for row, clip in enumerate(clips):
        inputs["input_ids"][row, len(clip.prompt) :] = 0
        inputs["mm_token_type_ids"][row, len(clip.prompt) :] = 0
    model.model.rope_deltas = None  # kept from one call to the next
    embed = model.get_input_embeddings()
    with embed.register_forward_hook(lambda *_: embedding(said, embed.weight)):
        logprobs = (model(**inputs).logits / TEMPERATURE).log_softmax(-1)
    spans = [slice(len(x.prompt) - 1, len(x.prompt) + len(x.answer) - 1) for x in clips]
    return [
        x[at].gather(1, torch.tensor(c.answer)[:, None].long())[:, 0]
        for x, at, c in zip(logprobs, spans, clips, strict=True)
    ]


def share(tokens, wanted):
    return np.mean([wanted(token) for token in tokens])


def normalised(rewards):
    rewards = np.array(rewards)
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)


def test_the_update_is_that_of_torch(checkpoint, tmp_path):
    folder, clips = checkpoint("tied"), joint.prompt_contents(4)
    ours, theirs = load_pretrained(folder), tiny.reference(folder).double()
    relative = dict(grpo__relative__kind="need", grpo__degraded_weight=WEIGHT, grpo__temperature=TEMPERATURE)
    optim = dict(optim__lr=LR, optim__eps=EPS, optim__weight_decay=DECAY)
    c = config(batch=4, **relative, **optim)
    state, optimizer, layout = create_state(leaves(ours), c, joint.ONE)
    step = make_step(ours, c, optimizer, layout, judge=TruthJudge(), eos=EOS)
    after, metrics, judged = step(state, put_batch(joint.prompts_of(clips), joint.ONE))

    losses, counts, rewards = [0.0, 0.0], [0, 0], []
    tokens, mask = (np.asarray(x) for x in judged.completions[:2])
    for b, clip in enumerate(clips):
        said = [[tokens[b, r, g][mask[b, r, g]] for g in range(4) if mask[b, r, g].any()] for r in range(2)]
        small = [[share(x, lambda token: token < 64) for x in said[r]] for r in range(2)]
        rewards += small[0]
        weight = 1 - np.mean(small[1]) if clip.has_degraded else 1.0
        advantages = [weight * normalised(small[0]), []]
        if clip.has_degraded and clip.number % 2 == 0:  # of the others' V~ no truth is known
            advantages[1] = normalised([share(x, lambda token: token % 2 == 0) for x in said[1]])
        for r, seen in enumerate((clip, clip.filmed(clip.source))):
            if len(advantages[r]):
                answered = [dataclasses.replace(seen, answer=x) for x in said[r]]
                for logprobs, advantage in zip(answer_logprobs(theirs, answered), advantages[r], strict=True):
                    ratio = torch.exp(logprobs - logprobs.detach())
                    losses[r] = losses[r] - (ratio * advantage).sum()
                    counts[r] += len(logprobs)
    loss = losses[0] / counts[0] + WEIGHT * losses[1] / counts[1]
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), c.optim.clip)
    linear = (torch.nn.Linear, torch.nn.Conv3d)
    groups = {True: [], False: []}
    for name, parameter in theirs.named_parameters():
        module = theirs.get_submodule(name.rpartition(".")[0])
        groups[name.endswith("weight") and isinstance(module, linear)].append(parameter)
    before = {name: x.detach().numpy().copy() for name, x in theirs.named_parameters()}
    decayed = [dict(params=params, weight_decay=decays * DECAY) for decays, params in groups.items()]
    torch.optim.AdamW(decayed, lr=LR, betas=(c.optim.b1, c.optim.b2), eps=EPS).step()

    assert min(counts) > 10 and float(norm) > 2 * c.optim.clip
    assert metrics["reward"] == pytest.approx(np.mean(rewards), rel=1e-5)
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    save_pretrained(rebuild(ours, jax.device_get(after.params)), tmp_path)
    for name, x in tiny.reference(tmp_path).named_parameters():
        moved, expected = (y.detach().numpy() - before[name] for y in (x, theirs.get_parameter(name)))
        np.testing.assert_allclose(moved, expected, rtol=0, atol=MOVED * LR, err_msg=name)
