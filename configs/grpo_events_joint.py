"""VideoChat-R1's joint GRPO on a laptop: grounding, tracking and grounded questions about event clips.

    python -m vpjax.train --config grpo_events_joint

What it does: takes the model that `python -m vpjax.train --config sft_events_joint` left in
runs/sft_events_joint (or another one by --config.init_from=DIR) and samples 8 answers to each question about
the video alone, without V~. An answer is rewarded for its format and by its task, as in
configs/grpo_videochat_r1.py: the IoU of its span, the mean IoU of its boxes, or its choice and the IoU of its
evidence. Each completion has one mean over its tokens, as there: a tracking has seven times as many tokens as
a grounding, and would else weigh as much more. The held-out table reports every task's own scores.
Hardware and cost: 2 CPU cores; a step took 13 CPU seconds, all 14 minutes of CPU time, when the update, 7.5
of the 13, computed all completions at the longest one's length. That is 3.2 now
(benchmarks/results/2026-11-29-grpo-step.md).
Expected, of 768 held-out clips, in pairs: evidence IoU .44 to .48 and AO of trackings .41 to .45, clear of 0;
grounding mIoU .47 to .49, not clear; and the right option in .64, .69 before, not clear either
(benchmarks/results/2026-11-29-grpo-events-joint.md).
"""

from vpjax.recipes import grpo_videochat_r1, sft_events_joint


def get_config():
    c = sft_events_joint.get_config()
    c.method = "grpo"
    c.init_from = "runs/sft_events_joint"
    c.steps = 60
    c.batch = 16
    c.accumulate = 16  # each prompt is updated on at the length of its own completions

    c.data.length_multiple = 160  # holds every prompt, so that one program is compiled

    c.grpo = grpo_videochat_r1.get_config().grpo
    c.grpo.max_new = 176  # a tracking has 173
    c.grpo.temperature = 0.8
    c.grpo.beta = 0.0  # no copy of the first policy: small steps and a cosine to 0 keep the model near it

    c.optim.lr = 1.5e-4
    return c
