"""VideoChat-R1's joint GRPO on a laptop: grounding, tracking and grounded questions about event clips.

    python -m vpjax.train --config grpo_events_joint

What it does: takes the model that `python -m vpjax.train --config sft_events_joint` left in
runs/sft_events_joint (or another one by --config.init_from=DIR) and samples 8 answers to each question about
the video alone, without V~. An answer is rewarded for its format and by its task, as in
configs/grpo_videochat_r1.py: the IoU of its span, the mean IoU of its boxes, or its choice and the IoU of its
evidence. Each completion has one mean over its tokens, as there: a tracking has seven times as many tokens as
a grounding, and would else weigh as much more. The held-out table reports every task's own scores.
Hardware and cost: 2 CPU cores; a step takes 7 to 8 CPU seconds, all 12 minutes of CPU time.
Expected, of 768 held-out clips, in pairs: grounding mIoU .46 to .50, AO of trackings .38 to .41, evidence IoU
.32 to .44, and the right option with evidence of an IoU above .5 in .17 to .29, all clear of 0; the right
option in .56 to .60, not clear (benchmarks/results/2026-11-29-grpo-events-joint.md).
"""

from vpjax.recipes import grpo_videochat_r1, sft_events_joint


def get_config():
    c = sft_events_joint.get_config()
    c.method = "grpo"
    c.init_from = "runs/sft_events_joint"
    c.steps = 90
    c.batch = 16
    c.accumulate = 16  # each prompt is updated on at the length of its own completions

    c.events.caption = 0.0
    c.events.grounded = 1.0

    c.data.length_multiple = 160  # holds every prompt, so that one program is compiled

    c.grpo = grpo_videochat_r1.get_config().grpo
    c.grpo.max_new = 176  # a tracking has 173
    c.grpo.temperature = 0.8
    c.grpo.beta = 0.0  # no copy of the first policy: small steps and a cosine to 0 keep the model near it

    c.optim.lr = 1.5e-4
    return c
