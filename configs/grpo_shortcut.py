"""GRPO in which V~ does not cancel: built-in clips with a shortcut, after configs/sft_shortcut.py.

    python -m vpjax.train --config grpo_shortcut

What it does: takes the model that `python -m vpjax.train --config sft_shortcut` left in runs/sft_shortcut (or
another one by --config.init_from=DIR), samples 8 answers to each question on the video and 8 on V~. Answers
on the video are rewarded for naming the event, and prompts that are answered without it count for less.
Answers on V~ are trained too, in groups of their own: they are rewarded for not naming the hidden event, for
naming no event at all, and for the words of what is true of V~. For a quarter of the clips other slots are
replaced, so that V~ shows the event and has to be answered as V is.
Hardware and cost: 2 CPU cores; not yet run at this batch.
Expected, of 16 clips a step, relative kind none and a tenth of the clips without an event
(benchmarks/results/2026-11-29-ablation-grpo-shortcut.md): of the answers where the colour misleads .37 follow
it after 160 steps, where .74 do after plain GRPO; .32 name an event on V~, where .84 do; events are named as
often.
"""

from vpjax.recipes import grpo, sft_shortcut


def get_config():
    c = sft_shortcut.get_config()
    c.method = "grpo"
    c.init_from = "runs/sft_shortcut"
    c.steps = 160
    c.batch = 48
    c.events.train = 12288  # those of configs/sft_shortcut.py and twice as many that its model has not seen

    c.grpo = grpo.get_config().grpo
    c.grpo.degraded = 8
    c.grpo.degraded_rewards = dict(keyword_absent=1.0, event=1.0, rouge_l=1.0)
    c.grpo.control_share = 0.25
    c.grpo.relative.kind = "need"

    c.optim.lr = 2e-4
    return c
