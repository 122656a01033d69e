"""The rewards of texts, from the device and from the host."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.scoring.host_rewards import host_rewards
from tests.scoring.reward_cases import CLIPS, event_texts, odd_texts
from vpjax.data.text import Text
from vpjax.data.tokenizer import train_tokenizer
from vpjax.scoring import metrics, tasks
from vpjax.scoring.references import reference_rows, reference_sizes
from vpjax.scoring.rewards import REWARDS, compute_rewards
from vpjax.scoring.texts import byte_table

KEYWORDS = 4
SIZES = reference_sizes(CLIPS, keywords=KEYWORDS)
GROUP = 32  # G
LIMIT = 100  # C
# Rewards that are scores of evaluation, too.
EVALUATED = {
    "choice": (metrics.score_choice, "accuracy"),
    "span_iou": (metrics.score_span, "mIoU"),
    "box_iou": (tasks.score_tracking, "box IoU"),
    "evidence_iou": (tasks.score_grounded_choice, "evidence IoU"),
    "numerical": (metrics.score_number, "accuracy"),
    "regression": (metrics.score_number, "closeness"),
    "ocr": (metrics.score_ocr, "word accuracy"),
}


# Run on thousands of texts: unlike most programs of the tests this one gains from being optimised.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


@functools.partial(jax.jit, static_argnames="names", compiler_options=OPTIMISED)
def device_rewards(table, tokens, mask, references, hidden, names=tuple(REWARDS)):
    return compute_rewards(names, table, tokens, mask, references, hidden)


def every_second(clips):
    """hidden bool[B, J]: every second of the clips' keywords, the first of every second clip among them."""
    hidden_BJ = np.zeros((len(clips), KEYWORDS), bool)
    for b, clip in enumerate(clips):
        count = len(clip.keywords) if clip else 0
        hidden_BJ[b, b % 2 : count : 2] = True
    return hidden_BJ


def every_keyword(clips):
    """hidden bool[B, J]: all."""
    return np.ones((len(clips), KEYWORDS), bool)


def assert_same(device, host):
    assert set(device) == set(host)
    for name in device:
        # float32 against float64; an IoU of seconds up to 10^6, of which few are right, loses the most.
        np.testing.assert_allclose(device[name], host[name], rtol=0, atol=2e-6, err_msg=name)


def assert_evaluation_agrees(device, texts, clips):
    for name in device.keys() & EVALUATED:
        score, metric = EVALUATED[name]
        for b, g in np.argwhere(~np.isnan(device[name])):
            value = score(clips[b], texts[b][g]).values[metric]
            assert device[name][b, g] == pytest.approx(value, abs=2e-6), (name, texts[b][g])


class Scorer:
    """The rewards of texts, from the device and from the host, under one tokenizer. All batches have the
    shape of one: as many rows as ``clips``, ``group`` completions of each, of at most ``limit`` tokens.
    names: of the rewards; a program of all takes half a minute to compile."""

    def __init__(self, text, table, clips=CLIPS, group=GROUP, limit=LIMIT, names=tuple(REWARDS)):
        self.text, self.table, self.names = text, table, names
        self.shape = len(clips), group, limit
        self.sizes = reference_sizes(clips, keywords=KEYWORDS)

    def tokens(self, completions):
        """Texts, or token ids, as arrays i32[B, G, C] and their mask; anything stands after an end."""
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, len(self.text.tokenizer) + 50, self.shape).astype(np.int32)
        mask = np.zeros(self.shape, bool)
        for b, row in enumerate(completions):
            for g, completion in enumerate(row):
                ids = self.text.answer(completion) if isinstance(completion, str) else completion
                ids = ids[: self.shape[2]]
                tokens[b, g, : len(ids)], mask[b, g, : len(ids)] = ids, True
        return tokens, mask

    def device(self, completions, clips, hidden_of=every_second):
        """The rewards of completions [B][G] of ``clips`` on the device."""
        tokens, mask = self.tokens(completions)
        padded = [*clips, *[None] * (self.shape[0] - len(clips))]
        references = reference_rows(padded, self.sizes)
        rewards = device_rewards(self.table, tokens, mask, references, hidden_of(padded), self.names)
        return {name: np.asarray(x)[: len(clips), : len(completions[0])] for name, x in rewards.items()}

    def host(self, completions, clips, hidden_of=every_second):
        lengths = self.tokens(completions)[1].sum(-1)
        texts = self.decoded(completions)
        return host_rewards(
            self.names,
            texts,
            clips,
            self.sizes.known,
            keywords=KEYWORDS,
            hidden=hidden_of(clips),
            lengths=lengths,
            limit=self.shape[2],
        )

    def decoded(self, completions):
        """What the tokenizer makes of the completions' first C tokens."""
        tokens, mask = self.tokens(completions)
        known = mask & (tokens < len(self.text.tokenizer))
        return [
            [self.text.decode(tokens[b, g][known[b, g]]) for g in range(len(row))]
            for b, row in enumerate(completions)
        ]


def make_scorers(tmp_path_factory, **options):
    """The scorers of two tokenizers that share little. Their tables have one shape, so that one program
    serves both. options: ``clips``, ``group``, ``limit`` and ``names`` of a ``Scorer``."""
    texts = []
    for sentences, size in ((event_texts(), 400), (odd_texts(), 900)):
        folder = tmp_path_factory.mktemp("tokenizer")
        train_tokenizer(sentences, folder, size)
        texts.append(Text.load(folder))
    tables = [byte_table(text) for text in texts]
    words, pieces = max(table.words for table in tables), max(table.pieces for table in tables)
    rows, width = np.max([table.bytes.shape for table in tables], axis=0)
    scorers = []
    for text, table in zip(texts, tables, strict=True):
        missing = rows - len(table.bytes)
        padding = ((0, missing), (0, width - table.bytes.shape[1]))
        table = dataclasses.replace(
            table,
            bytes=np.pad(table.bytes, padding, constant_values=ord(" ")),
            lengths=np.pad(table.lengths, (0, missing)),
            words=words,
            pieces=pieces,
        )
        scorers.append(Scorer(text, table, **options))
    return scorers
