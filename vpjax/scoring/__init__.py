"""How an answer is read and what it is worth.

For text on the host, and for people who score files of their own: ``read_choice``, ``read_spans``,
``read_evidence``, ``read_boxes`` and ``read_number``. They are the grammar of answers (``answers``, ``numbers``,
``host_text``), by which evaluation reads them; ``metrics`` scores what was read.

Rewards of GRPO, computed inside the jitted step from the bytes of the tokens: ``judge`` (the rewards of a
run's config) calls ``rewards`` (all of them by name), which are made of ``texts`` (tokens to characters, tags),
``choices`` (the option of an answer), ``words`` (ROUGE, repetition), ``keywords`` and ``spans`` (numbers,
seconds and boxes). They read text by the same grammar. ``references`` holds what they compare completions with,
read from the clips on the host: ``forms`` (inflections). ``user`` loads a user's own rewards.
"""

from vpjax.scoring.answers import read_boxes, read_choice, read_evidence, read_number, read_spans

__all__ = ["read_boxes", "read_choice", "read_evidence", "read_number", "read_spans"]
