"""Clip -> token ids: the tokenizer, the chat template and where the visual tokens go.

transformers and tokenizers are imported where a tokenizer is loaded or trained: importing this module, as a
data worker does that only sees token ids, stays quick.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vpjax.data.positions import is_visual
from vpjax.types import Clip, UserError

if TYPE_CHECKING:
    from vpjax.models.config import VLMConfig

Media = Literal["video", "image"]

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# The token layout of Qwen2.5-VL's template, without its default system message: for a small model trained
# from scratch that message is only more tokens.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}{{ "\\n" }}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == "text" -%}{{ part.text }}
{%- else -%}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>{{ "\\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant{{ "\\n" }}{%- endif -%}
"""

# How Qwen2's tokenizer cuts text before merging: words with the space before them, single digits, the rest.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], folder: str | Path, vocab_size: int) -> None:
    """Train a byte-level BPE on ``texts`` and save it, with Qwen's special tokens and chat layout, in
    ``folder`` as a Hugging Face tokenizer of at most ``vocab_size`` tokens (at least 264: bytes and special
    tokens)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + len(SPECIALS)
    if vocab_size < least:
        raise UserError(f"vocab_size {vocab_size}: bytes and special tokens alone are {least}")
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=0,
        special_tokens=list(SPECIALS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(["system\nuser\nassistant\n", *texts], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIALS[1:]),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


@dataclasses.dataclass(frozen=True)
class Stamps:
    """How a tokenizer writes the time of a slot, ``<0.2 seconds>``: the ids of its pieces.

    They travel in place of the tokenizer, for the times of a clip are known when its frames are read."""

    pieces: Mapping[str, tuple[int, ...]]

    def write(self, seconds: float) -> list[int]:
        return [i for piece in ("<", *f"{seconds:.1f}", " seconds>") for i in self.pieces[piece]]


@dataclasses.dataclass(frozen=True)
class Text:
    """A tokenizer with its chat template, and the ids of the special tokens.

    image_pad, video_pad: the placeholders of visual tokens. end: ``<|im_end|>``, which closes an answer.
    pad: ``<|endoftext|>``; no mask is ever made by comparing with it.
    """

    tokenizer: Any
    image_pad: int
    video_pad: int
    vision_start: int
    vision_end: int
    end: int
    pad: int

    @classmethod
    def load(cls, folder: str | Path) -> Text:
        """Read a Hugging Face tokenizer folder. UserError where it is not that of a Qwen video model."""
        from transformers import AutoTokenizer

        if not (Path(folder) / "tokenizer_config.json").is_file():
            raise UserError(f"{folder}: no tokenizer_config.json; give a Hugging Face model folder")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # tokenizers has no class of its own for a file that it cannot parse
            raise UserError(f"{folder}: the tokenizer cannot be read: {error}") from error
        ids = {token: tokenizer.get_vocab().get(token) for token in SPECIALS if token != "<|vision_pad|>"}
        missing = [token for token, index in ids.items() if index is None]
        if missing:
            raise UserError(f"{folder}: the tokenizer lacks {', '.join(missing)}; use a Qwen video model's")
        if not tokenizer.chat_template:
            raise UserError(f"{folder}: the tokenizer has no chat template (chat_template.jinja)")
        return cls(
            tokenizer,
            image_pad=ids["<|image_pad|>"],
            video_pad=ids["<|video_pad|>"],
            vision_start=ids["<|vision_start|>"],
            vision_end=ids["<|vision_end|>"],
            end=ids["<|im_end|>"],
            pad=ids["<|endoftext|>"],
        )

    @property
    def stops(self) -> tuple[int, int]:
        """The ids at which generation ends."""
        return self.end, self.pad

    def chat(self, question: str, media: Media | None = "video") -> np.ndarray:
        """The prompt i32[p] of one user turn, to the end of the assistant's header. Its video or image stands
        before the question, as one placeholder. UserError where the question itself holds a placeholder."""
        parts = [{"type": media}] * (media is not None) + [{"type": "text", "text": question}]
        turn = [{"role": "user", "content": parts}]
        written = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = np.array(self.encode(written), np.int32)
        found = is_visual(ids, (self.image_pad, self.video_pad)).sum()
        if found != (media is not None):
            raise UserError(f"{media or 'text'} prompt with {found} places for media: {written[:80]!r}")
        return ids

    def prompt(
        self, question: str, slots: int = 0, tokens_per_slot: int = 0, media: Media | None = "video"
    ) -> np.ndarray:
        """``chat`` with its placeholder repeated for each of ``slots * tokens_per_slot`` visual tokens."""
        return expand(self.chat(question, media), slots * tokens_per_slot, (self.image_pad, self.video_pad))

    def answer(self, answer: str) -> np.ndarray:
        """i32[c]: the answer and the token that ends it."""
        return np.array([*self.encode(answer), self.end], np.int32)

    def keyword(self, keyword: str, answer: str) -> list[int]:
        """The ids of a keyword's tokens as they stand in the answer, leading space included; of ``" " +
        keyword`` where the answer does not say it (a letter that picks an option)."""
        places = self.places(keyword, answer)
        tokens = self.encode(answer)
        return [tokens[place] for place in places] or self.encode(" " + keyword)

    def places(self, keyword: str, answer: str) -> list[int]:
        """Where in the answer's tokens a keyword's stand, leading space included; [] where it is not said."""
        start = answer.find(keyword)
        if start < 0:
            return []
        offsets = self.tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
        spans = enumerate(offsets["offset_mapping"])
        return [i for i, (first, last) in spans if first < start + len(keyword) and last > start]

    @functools.cached_property
    def stamps(self) -> Stamps | None:
        """How times are written; None for a tokenizer that merges digits, as Qwen's do not."""
        pieces = ("<", *"0123456789.", " seconds>")
        stamps = Stamps({piece: tuple(self.encode(piece)) for piece in pieces})
        return stamps if stamps.write(9876543210.5) == self.encode("<9876543210.5 seconds>") else None

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, without its special ones."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def expand(prompt: np.ndarray, count: int, pads: tuple[int, int]) -> np.ndarray:
    """``prompt`` with its media placeholder repeated ``count`` times."""
    return np.repeat(prompt, np.where(is_visual(prompt, pads), count, 1))


def with_media(
    prompt: np.ndarray,
    grid: tuple[int, int, int],
    seconds_S: np.ndarray,
    config: VLMConfig,
    stamps: Stamps | None,
) -> np.ndarray:
    """``prompt`` with its placeholder repeated for the visual tokens of ``grid`` = (slots, rows, columns).

    Where the model is told the time in words, every slot of a video stands behind its own of ``seconds_S``
    and between its own vision_start and vision_end, in place of the one pair that the chat template writes.
    UserError where ``stamps`` are wanted and missing. Source: ``Qwen3VLProcessor`` of transformers 4.57.
    """
    at = np.flatnonzero(prompt == config.video_token)
    if config.tokens_per_second is not None or not len(at):
        return expand(prompt, int(np.prod(grid)), (config.image_token, config.video_token))
    if stamps is None:
        raise UserError(
            "the model reads times digit by digit, which its tokenizer merges; use the model's own"
        )
    before, after = prompt[: at[0]], prompt[at[0] + 1 :]
    if before[-1] == config.vision_start and after[0] == config.vision_end:
        before, after = before[:-1], after[1:]
    visual = [config.vision_start, *[config.video_token] * (grid[1] * grid[2]), config.vision_end]
    slots = [stamps.write(seconds) + visual for seconds in seconds_S]
    return np.concatenate([before, *slots, after]).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """All of a clip that needs a tokenizer.

    prompt i32[p], its media still one placeholder; answer i32[c], its end included; keywords i32[J, W], -1
    padded; lemma i32[J], -1: none; spans: of each keyword, in seconds; stamps: see ``with_media``; notes:
    what was left out.
    """

    prompt: np.ndarray
    answer: np.ndarray
    keywords: np.ndarray
    lemma: np.ndarray
    spans: tuple[tuple[tuple[float, float], ...], ...]
    stamps: Stamps | None = None
    notes: tuple[str, ...] = ()


def tokenize(
    clip: Clip, text: Text, *, media: Media | None = "video", keywords: int = 0, keyword_tokens: int = 0
) -> Tokens:
    """A clip's tokens, with its first J = ``keywords`` keywords of at most W = ``keyword_tokens`` tokens."""
    ids = np.full((keywords, keyword_tokens), -1, np.int32)
    lemma = np.full(keywords, -1, np.int32)
    spans: list[tuple[tuple[float, float], ...]] = [()] * keywords
    notes = []
    if keywords and len(clip.keywords) > keywords:
        notes.append(f"keywords beyond the first {keywords} left out (data.keywords)")
    for j, keyword in enumerate(clip.keywords[:keywords]):
        pieces = text.keyword(keyword.text, clip.answer)
        if not 0 < len(pieces) <= keyword_tokens:
            notes.append(f"keyword of more than {keyword_tokens} tokens left out (data.keyword_tokens)")
            continue
        ids[j, : len(pieces)] = pieces
        lemma[j] = zlib.crc32(keyword.lemma.encode()) & 0x7FFFFFFF  # the same in every process and run
        spans[j] = keyword.spans
    return Tokens(
        prompt=text.chat(clip.question, media),
        answer=text.answer(clip.answer),
        keywords=ids,
        lemma=lemma,
        spans=tuple(spans),
        stamps=text.stamps,
        notes=tuple(notes),
    )
