"""How an answer is read and what it is worth.

Rewards of GRPO, computed inside the jitted step from the bytes of the tokens: ``judge`` (the rewards of a
run's config) calls ``rewards`` (all of them by name), which are made of ``texts`` (tokens to bytes, answer,
tags, letter), ``words`` (ROUGE, repetition), ``keywords`` and ``spans`` (seconds and boxes). ``references``
holds what they compare completions with, read from the clips on the host: ``host_text`` and ``forms``
(inflections). ``user`` loads a user's own rewards.

Scores of evaluation, from decoded text on the host: ``answers`` reads a choice or a span, ``metrics`` scores
it.
"""
