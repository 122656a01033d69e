"""How an answer is read and what it is worth.

On the host, for evaluation and for people who score files of their own: ``read_choice``, ``read_spans``,
``read_evidence``, ``read_boxes`` and ``read_number``. They are the grammar of answers (``answers``,
``numbers``, ``host_text``). ``comparisons`` says what an answer and its reference have in common (``stems``:
of words), and ``metrics`` scores the answer to a clip.

On the device, inside the jitted step of GRPO, from the bytes of the tokens, by the same grammar: ``judge``
(the rewards of a run's config) calls ``rewards`` (all of them by name), which are made of ``texts`` (tokens
to characters, tags), ``choices`` (the option of an answer), ``words`` (ROUGE, word errors, repetition),
``stemming``, ``keywords`` and ``spans`` (numbers, seconds and boxes). ``references`` holds what they compare
completions with, read from the clips: ``forms`` (inflections). ``user`` loads a user's own rewards.
"""

from vpjax.scoring.answers import read_boxes, read_choice, read_evidence, read_number, read_spans

__all__ = ["read_boxes", "read_choice", "read_evidence", "read_number", "read_spans"]
