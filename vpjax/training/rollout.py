"""Completions of prompts by the policy, sampled as ``config.grpo`` says."""

import jax
from ml_collections import ConfigDict

from vpjax.models.generate import Completions, generate
from vpjax.models.vision import Features
from vpjax.models.vlm import VideoLM, with_int8_decoder
from vpjax.types import Array, Prompts

ROLE = 2  # of the rollouts' keys among the folds of (seed, role, step); 0, 1, 3 are the first parameters'


def sample_completions(
    model: VideoLM,
    prompts: Prompts,
    features: Features | None,
    config: ConfigDict,
    step: Array,
    *,
    groups: tuple[int, ...],
    requested: Array,
    eos: tuple[int, ...],
) -> Completions:
    """The completions [B, X, C] of the step of this number. groups, requested, eos: as for ``generate``."""
    options = config.grpo
    if options.rollout_dtype == "int8":
        model = with_int8_decoder(model)
    key = jax.random.fold_in(jax.random.key(config.seed), ROLE)
    return generate(
        model,
        prompts,
        jax.random.fold_in(key, step),
        max_new=options.max_new,
        eos=eos,
        features=features,
        groups=groups,
        requested=requested,
        stop_share=options.stop_share,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
    )
